//! What a follower of a volume asks: how far the volume is durable, and what makes one state of it another.

use std::sync::Arc;

use cdp_core::device::{Content, Device};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::ids::{BLOCK_BYTES, Extent, Lsn, Timestamp};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::changed::Changes;
use serde::{Deserialize, Serialize};

/// The most stretches of a page: with two long numbers each it stays below the longest line of the control socket.
const STRETCHES_MAX: usize = 12 << 10;
/// Extents that differ, looked up at a time.
const EXTENTS_MAX: usize = 4096;
/// Looked through for holes at a time, in bytes.
const LOOK_BYTES_MAX: u64 = 1 << 40;
const HOLDER: &str = "cdp restore --follow";

/// A state of a volume to describe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateOf {
    /// Which volume.
    pub volume: String,
    /// The state after this record; without it, the newest durable one.
    pub lsn: Option<u64>,
    /// Make everything that was answered durable first.
    pub settle: bool,
}

/// A state of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The volume's identity, the same on every site.
    pub volume_id: String,
    /// The state after this record.
    pub lsn: u64,
    /// The record's timestamp in Unix nanoseconds: of two records with one LSN it tells which.
    pub ns: u64,
    /// The same, RFC 3339.
    pub utc: String,
    /// The size of the volume then, in bytes.
    pub size_bytes: u64,
    /// Nothing that was written up to this instant is missing from the newest durable state.
    pub complete_through_ns: u64,
}

/// What makes one state of another, or what is there at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaOf {
    /// Which volume.
    pub volume: String,
    /// From this state; without it, from a disk of zeros.
    pub from: Option<u64>,
    /// To this one; it may be the older one.
    pub to: u64,
    /// Begin with this byte: where the page before ended.
    pub offset: u64,
}

/// Part of it, in rising order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaPage {
    /// First byte, length, and whether there are only zeros.
    pub stretches: Vec<(u64, u64, bool)>,
    /// Where the next page begins, if there is more to look through.
    pub next: Option<u64>,
}

/// Describes a state. [`Kind::OutOfRange`] if it is before the horizon, [`Kind::Refused`] if the volume has no such
/// durable record.
pub fn state(store: &Store, request: &StateOf) -> Result<State> {
    let volume = store.volume(&request.volume)?;
    if request.settle {
        volume.settle(volume.tip_lsn())?;
    }
    // In this order: what is written after the first look is not promised.
    let now = store.clock().now();
    let tip = volume.tip_lsn();
    let durable = volume.durable_lsn().min(tip);
    let lsn = request.lsn.map_or(durable, Lsn);
    if lsn > durable {
        let context = format!("volume {} is durable up to {durable:?}, not {lsn:?}", volume.name());
        return Err(Error::new(Kind::Refused, context));
    }
    let at = timestamp(&volume, lsn)?;
    let complete = match volume.is_primary() {
        true if durable == tip => now,
        true => timestamp(&volume, durable)?,
        // What the other site has written since, nobody here knows.
        false => {
            let (through, at) = volume.complete_through();
            if through <= durable { at } else { timestamp(&volume, durable)? }
        }
    };
    Ok(State {
        volume_id: volume.identity().id.to_string(),
        lsn: lsn.0,
        ns: at.0,
        utc: format_utc(at),
        size_bytes: volume.size_at(lsn),
        complete_through_ns: complete.0,
    })
}

fn timestamp(volume: &Arc<Volume>, lsn: Lsn) -> Result<Timestamp> {
    let (oldest, at) = volume.oldest();
    match lsn {
        lsn if lsn < oldest => Err(gone(volume, lsn)),
        lsn if lsn == oldest => Ok(at),
        lsn => Timeline::timestamp_of(&**volume, lsn),
    }
}

fn gone(volume: &Volume, lsn: Lsn) -> Error {
    let context = format!("{lsn:?} of volume {} is before its horizon", volume.name());
    Error::new(Kind::OutOfRange, context)
}

fn view(volume: &Arc<Volume>, lsn: u64) -> Result<Arc<View>> {
    let lsn = Lsn(lsn);
    if lsn > volume.tip_lsn() {
        return Err(Error::new(Kind::Refused, format!("volume {} has no {lsn:?}", volume.name())));
    }
    View::open(volume.clone(), lsn, HOLDER).map(Arc::new)
}

/// One page of what makes a state.
pub fn delta(store: &Store, request: &DeltaOf) -> Result<DeltaPage> {
    let volume = store.volume(&request.volume)?;
    let to = view(&volume, request.to)?;
    let mut page = DeltaPage::default();
    let Some(from) = request.from else {
        let end = to.size_bytes();
        if request.offset < end {
            let len = (end - request.offset).min(LOOK_BYTES_MAX);
            let at = page.look(&to, request.offset, len)?;
            page.next = (at < end).then_some(at);
        }
        return Ok(page);
    };
    let changes = Changes::between(view(&volume, from)?, to.clone())?;
    let whole = changes.whole();
    let start = (request.offset / BLOCK_BYTES).min(whole.end());
    let found = changes.page(Extent::new(start, whole.end()), EXTENTS_MAX)?;
    for extent in &found.extents {
        let first = (extent.start.0 * BLOCK_BYTES).max(request.offset);
        // What lies behind the end of the new state is gone with it.
        let end = (extent.end() * BLOCK_BYTES).min(to.size_bytes());
        if first >= end {
            continue;
        }
        let at = page.look(&to, first, end - first)?;
        if at < end {
            page.next = Some(at);
            return Ok(page);
        }
    }
    page.next = (found.end < whole.end()).then_some(found.end * BLOCK_BYTES);
    Ok(page)
}

impl DeltaPage {
    /// Adds what a range of the view holds. Gives how far it came: the page may be full.
    fn look(&mut self, view: &View, offset: u64, len: u64) -> Result<u64> {
        let (mut at, end) = (offset, offset + len);
        while at < end && self.stretches.len() < STRETCHES_MAX {
            let room = STRETCHES_MAX - self.stretches.len();
            for stretch in view.extents(at, end - at, room)? {
                self.stretches.push((at, stretch.len, stretch.content != Content::Data));
                at += stretch.len;
            }
        }
        Ok(at)
    }
}
