//! What was written when: intervals with their counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdp_core::device::{Content, Device};
use cdp_core::error::Result;
use cdp_core::format::record::RecordKind;
use cdp_core::history::point::{escape_uri, format_utc};
use cdp_core::ids::{BLOCK_BYTES, Lsn, Timestamp};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

use super::thinned::Thinned;
use crate::work::{Progress, Watch};

/// Blocks in one piece of the map of written blocks.
const PIECE_BLOCKS: u64 = 4096 * 8;
/// Stretches asked for at a time, to see what was there before.
const STRETCHES_MAX: usize = 64;

/// What was written in an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// When it begins.
    pub from_ns: u64,
    /// RFC 3339 in UTC.
    pub utc: String,
    /// When it ends.
    pub to_ns: u64,
    /// Records that changed blocks.
    pub records: u64,
    /// Bytes written where nothing was.
    pub new_bytes: u64,
    /// Bytes written over others.
    pub overwritten_bytes: u64,
    /// Bytes trimmed or zeroed.
    pub trimmed_bytes: u64,
    /// The state right before it; where that was thinned away, the newest one before it that is left.
    pub point_before: String,
    /// The same, escaped for a URI.
    pub uri_before: String,
}

impl Interval {
    /// The `number`-th one, with nothing in it.
    pub(super) fn new(
        volume: &Volume,
        before: Lsn,
        (from, to, step): (u64, u64, u64),
        number: u64,
    ) -> Interval {
        let point = format!("{}@lsn:{before}", volume.name());
        let from_ns = from + number * step;
        Interval {
            from_ns,
            utc: format_utc(Timestamp(from_ns)),
            to_ns: (from_ns + step).min(to),
            uri_before: escape_uri(&point),
            point_before: point,
            ..Interval::default()
        }
    }
}

/// The intervals in which something was written, by their numbers.
pub(super) fn intervals(
    volume: &Arc<Volume>,
    thinned: &Thinned,
    (from, to, step): (u64, u64, u64),
    (first, last): (Lsn, Lsn),
    watch: &mut Watch<'_>,
) -> Result<BTreeMap<u64, Interval>> {
    let mut intervals: BTreeMap<u64, Interval> = BTreeMap::new();
    let mut written = Written::new(volume, first);
    let mut failed = None;
    let total = (last.0 - first.0).max(1);
    volume.records(first.next(), last, &mut |header| {
        if failed.is_some() || !header.kind.changes_blocks() {
            return;
        }
        let number = header.timestamp.0.saturating_sub(from) / step;
        let interval = intervals.entry(number).or_insert_with(|| {
            let before = thinned.viewable(header.lsn.previous());
            Interval::new(volume, before, (from, to, step), number)
        });
        interval.records += 1;
        let (start, end) = (header.lba.0, header.lba.0 + header.blocks);
        let bytes = header.blocks * BLOCK_BYTES - u64::from(header.head_skip) - u64::from(header.tail_skip);
        let outcome = match header.kind {
            RecordKind::Write => written.write(start, end).map(|over| {
                let over = (over * BLOCK_BYTES).min(bytes);
                interval.overwritten_bytes += over;
                interval.new_bytes += bytes - over;
            }),
            _ => written.trim(start, end).map(|()| interval.trimmed_bytes += bytes),
        };
        let told = outcome.and_then(|()| match header.lsn.0 % 100_000 {
            0 => watch(Progress {
                what: format!("reading the history of {}", volume.name()),
                done: header.lsn.0 - first.0,
                total,
            }),
            _ => Ok(()),
        });
        failed = told.err();
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(intervals),
    }
}

/// Which blocks hold data: as far as it was seen in records, from a map; else asked of the state before.
struct Written {
    before: Option<View>,
    // Bits by block, in pieces: looked at, and data.
    pieces: BTreeMap<u64, Box<[(u64, u64)]>>,
}

impl Written {
    fn new(volume: &Arc<Volume>, first: Lsn) -> Written {
        let empty = first == Lsn::ZERO && volume.is_blank_before();
        Written { before: (!empty).then(|| View::new(volume.clone(), first)), pieces: BTreeMap::new() }
    }

    fn piece(&mut self, number: u64) -> &mut [(u64, u64)] {
        let words = (PIECE_BLOCKS / 64) as usize;
        self.pieces.entry(number).or_insert_with(|| vec![(0, 0); words].into_boxed_slice())
    }

    /// Marks blocks as data; gives how many were before.
    fn write(&mut self, start: u64, end: u64) -> Result<u64> {
        let mut over = 0;
        for block in start..end {
            let (seen, data) = self.bits(block);
            over += match seen {
                true => u64::from(data),
                false => u64::from(self.was_data(block)?),
            };
            self.set(block, true);
        }
        Ok(over)
    }

    /// Marks blocks as empty. However long the range is, only what was looked at is visited; the rest is empty
    /// or will be asked about, and then counts as it was before: a small error in favour of a quick answer.
    fn trim(&mut self, start: u64, end: u64) -> Result<()> {
        let pieces: Vec<u64> =
            self.pieces.range(start / PIECE_BLOCKS..=end / PIECE_BLOCKS).map(|(number, _)| *number).collect();
        for number in pieces {
            let first = (number * PIECE_BLOCKS).max(start);
            for block in first..((number + 1) * PIECE_BLOCKS).min(end) {
                self.set(block, false);
            }
        }
        Ok(())
    }

    fn bits(&mut self, block: u64) -> (bool, bool) {
        let (seen, data) = self.piece(block / PIECE_BLOCKS)[(block % PIECE_BLOCKS / 64) as usize];
        (seen >> (block % 64) & 1 == 1, data >> (block % 64) & 1 == 1)
    }

    fn set(&mut self, block: u64, is_data: bool) {
        let word = &mut self.piece(block / PIECE_BLOCKS)[(block % PIECE_BLOCKS / 64) as usize];
        let bit = 1 << (block % 64);
        word.0 |= bit;
        if is_data { word.1 |= bit } else { word.1 &= !bit }
    }

    fn was_data(&self, block: u64) -> Result<bool> {
        let Some(view) = &self.before else { return Ok(false) };
        let offset = block * BLOCK_BYTES;
        if offset >= view.size_bytes() {
            // It has grown since.
            return Ok(false);
        }
        let len = BLOCK_BYTES.min(view.size_bytes() - offset);
        let stretches = view.extents(offset, len, STRETCHES_MAX)?;
        Ok(stretches.iter().any(|stretch| stretch.content == Content::Data))
    }
}
