//! A volume that takes no writes: what is wrong, the choices, and what each loses. Only for a store that we have
//! open ourselves.

use std::sync::Arc;

use cdp_core::error::{IoContext, Result};
use cdp_core::format::mark::{Mark, SLOT_BYTES};
use cdp_core::format::segment::segment_file_name;
use cdp_core::history::point::Timeline;
use cdp_core::ids::{Extent, Lsn, Timestamp};
use cdp_core::io::Files;
use cdp_core::journal::append::Position;
use cdp_core::journal::mark::MARK_FILE;
use cdp_core::journal::scan;
use cdp_core::journal::segment::{FirstBlock, Segment, list_ordinals, read_first_block};
use cdp_core::store::Store;
use cdp_core::volume::{Health, Volume};
use serde::{Deserialize, Serialize};

use super::points::Place;

/// So many extents are listed.
const EXTENTS_MAX: usize = 100;

/// What is known of a volume that somebody wants to repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The volume.
    pub volume: String,
    /// `good`, `read-only`, `failed`.
    pub state: String,
    /// Why.
    pub why: Option<String>,
    /// The newest state that can be served.
    pub serves_through: Option<Place>,
    /// The newest record that was durable, as far as the mark tells.
    pub durable_once: Option<Place>,
    /// What can be done.
    pub choices: Vec<Choice>,
}

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What to do: a line to copy, or words.
    pub how: String,
    /// What it loses, in words.
    pub loses: String,
    /// First and last record that are lost, as far as they are known.
    pub lsns: Option<(u64, u64)>,
    /// First and last instant that are lost, RFC 3339 in UTC.
    pub instants: Option<(String, String)>,
    /// Ranges of bytes that the lost records changed, as far as they can be read: offset and length.
    pub extents: Vec<(u64, u64)>,
    /// Of the records in between, so many cannot be read any more, and what they changed is unknown.
    pub unreadable_records: u64,
}

/// Looks at a volume.
pub fn diagnose(store: &Store, name: &str) -> Result<Diagnosis> {
    let volume = match store.volume(name) {
        Ok(volume) => volume,
        Err(error) if store.failed().iter().any(|(failed, _)| failed == name) => {
            return Ok(Diagnosis {
                volume: name.to_owned(),
                state: "failed".to_owned(),
                why: Some(error.to_string()),
                serves_through: None,
                durable_once: None,
                choices: vec![Choice::plain(
                    "bring the damaged files back from a copy of the store",
                    "nothing, if the copy is as new as the journal",
                )],
            });
        }
        Err(error) => return Err(error),
    };
    let (lsn, at) = volume.tip();
    let tip = Place::new(lsn, at);
    let Health::ReadOnly { reason, .. } = volume.health() else {
        return Ok(Diagnosis {
            volume: name.to_owned(),
            state: "good".to_owned(),
            why: None,
            serves_through: Some(tip),
            durable_once: None,
            choices: Vec::new(),
        });
    };
    let mark = newest_mark(&**store.files(), &volume);
    Ok(Diagnosis {
        volume: name.to_owned(),
        state: "read-only".to_owned(),
        why: Some(reason),
        serves_through: Some(tip),
        durable_once: mark.map(|mark| Place::new(mark.lsn, mark.timestamp)),
        choices: choices(&**store.files(), &volume, mark)?,
    })
}

impl Choice {
    fn plain(how: &str, loses: &str) -> Choice {
        Choice {
            how: how.to_owned(),
            loses: loses.to_owned(),
            lsns: None,
            instants: None,
            extents: Vec::new(),
            unreadable_records: 0,
        }
    }
}

/// The newer slot that can be read; `None` when the mark is lost.
fn newest_mark(files: &dyn Files, volume: &Volume) -> Option<Mark> {
    let file = files.open(&volume.dir().join(MARK_FILE), false).ok()?;
    let slot = |slot: u64| {
        let mut bytes = [0; SLOT_BYTES];
        file.read_at(slot * SLOT_BYTES as u64, &mut bytes).ok()?;
        Mark::decode(&bytes)
    };
    [slot(0), slot(1)].into_iter().flatten().max_by_key(|mark| mark.sequence)
}

fn choices(files: &dyn Files, volume: &Volume, mark: Option<Mark>) -> Result<Vec<Choice>> {
    let name = volume.name();
    let mut choices = vec![
        Choice::plain(
            "bring the missing or damaged files back (a copy, the old disk), then start again",
            "nothing, if they are the very files",
        ),
        Choice::plain(
            "leave it as it is: views of everything up to there are served, writes are refused",
            "nothing",
        ),
    ];
    if mark.is_none() {
        choices.push(Choice::plain(
            &format!("cdp repair {name} --accept-mark-loss"),
            "nothing that can be read; whether durable records are missing at the end cannot be told any more",
        ));
        return Ok(choices);
    }
    let lost = lost(files, volume)?;
    let (tip, tip_at) = volume.tip();
    let mark_lsn = mark.map_or(Lsn::ZERO, |mark| mark.lsn);
    let mark_at = mark.map_or(Timestamp(0), |mark| mark.timestamp);
    let last = lost.last.max(mark_lsn);
    let last_at = lost.last_at.max(mark_at).max(tip_at);
    let known = last > tip;
    choices.push(Choice {
        how: format!("cdp repair {name} --accept-loss"),
        loses: match known {
            true => format!("{} records that were durable once; the old files are kept aside", last.0 - tip.0),
            false => "records behind the newest state that is served, an unknown number; the old files are kept aside".to_owned(),
        },
        lsns: known.then_some((tip.0 + 1, last.0)),
        instants: known.then(|| {
            let utc = cdp_core::history::point::format_utc;
            (utc(Timestamp(tip_at.0 + 1)), utc(last_at))
        }),
        extents: lost.extents,
        unreadable_records: (last.0.saturating_sub(tip.0)).saturating_sub(lost.readable),
    });
    Ok(choices)
}

#[derive(Default)]
struct Lost {
    readable: u64,
    last: Lsn,
    last_at: Timestamp,
    extents: Vec<(u64, u64)>,
}

/// What stands in segments behind the state that is served, as far as it can be read.
fn lost(files: &dyn Files, volume: &Volume) -> Result<Lost> {
    let tip = volume.tip_lsn();
    let mut lost = Lost::default();
    for ordinal in list_ordinals(files, volume.dir())? {
        let path = volume.dir().join(segment_file_name(ordinal));
        let file = files.open(&path, false).at(|| format!("opening {}", path.display()))?;
        let Ok(FirstBlock::Header(header)) = read_first_block(&*file) else { continue };
        if header.volume != volume.identity().journal_id() {
            continue;
        }
        let before = Position {
            lsn: header.first_lsn.previous(),
            chain: header.chain_before,
            timestamp: header.timestamp_before,
        };
        let segment = Segment { header: *header, path: path.clone(), file: Arc::clone(&file), fold: None };
        // It ends where nothing can be read any more, which is what is to be expected here.
        let _ = scan::headers(&segment, before, Lsn::MAX, &mut |record| {
            if record.lsn <= tip {
                return;
            }
            lost.readable += 1;
            lost.last = lost.last.max(record.lsn);
            lost.last_at = lost.last_at.max(record.timestamp);
            if record.kind.changes_blocks() {
                add(&mut lost.extents, record.extent());
            }
        });
    }
    Ok(lost)
}

fn add(extents: &mut Vec<(u64, u64)>, extent: Extent) {
    let (start, len) = (extent.start.0 * 4096, extent.blocks * 4096);
    let touching = extents.iter().position(|(from, bytes)| start <= from + bytes && *from <= start + len);
    match touching {
        Some(at) => {
            let (from, bytes) = extents[at];
            let end = (from + bytes).max(start + len);
            extents[at] = (from.min(start), end - from.min(start));
        }
        None if extents.len() < EXTENTS_MAX => extents.push((start, len)),
        None => {}
    }
}
