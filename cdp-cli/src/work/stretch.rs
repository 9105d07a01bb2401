//! The markers and the changes between two records of a volume, in pages for programs.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cdp_core::error::Result;
use cdp_core::format::record::RecordKind;
use cdp_core::ids::{BLOCK_BYTES, Lsn};
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

use super::points::Place;

/// The most markers of a page: with their times it stays below the longest line of the control socket.
pub const MARKERS_MAX: usize = 20_000;
/// The most changes of a page.
pub const CHANGES_MAX: usize = 5_000;
/// The most names of a page.
const NAMES_MAX: usize = 1_000;

/// A stretch of a volume's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Which volume.
    pub volume: String,
    /// Records behind this one.
    pub after: u64,
    /// Records up to this one.
    pub through: u64,
}

/// Markers of a stretch, newest first in `lsns`. If there were too many, those next to the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Their records, falling.
    pub lsns: Vec<u64>,
    /// The names of those that have one.
    pub names: BTreeMap<u64, String>,
    /// There are older ones.
    pub more: bool,
}

/// One record that changed blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    #[serde(flatten)]
    pub place: Place,
    /// write, zero, trim; or what else changes the disk.
    pub kind: String,
    /// First byte.
    pub offset: u64,
    /// How many; 0 for what changes the disk otherwise.
    pub len: u64,
    /// Which session wrote it.
    pub session: u32,
}

/// Changes of a stretch, oldest first. If there were too many, those next to the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The records.
    pub changes: Vec<Change>,
    /// There are newer ones.
    pub more: bool,
}

/// The markers of a stretch.
pub fn marks(store: &Store, stretch: &Stretch) -> Result<Marks> {
    let volume = store.volume(&stretch.volume)?;
    let mut marks = Marks::default();
    volume.events_back(|_, row| {
        if row.lsn.0 <= stretch.after {
            return ControlFlow::Break(());
        }
        if row.lsn.0 <= stretch.through && row.kind == RecordKind::Marker as u8 {
            if marks.lsns.len() == MARKERS_MAX {
                marks.more = true;
                return ControlFlow::Break(());
            }
            marks.lsns.push(row.lsn.0);
        }
        ControlFlow::Continue(())
    })?;
    let (Some(newest), Some(oldest)) = (marks.lsns.first(), marks.lsns.last()) else { return Ok(marks) };
    let named = volume.named_markers();
    let inside = named.iter().rev().filter(|(marker, _)| (*oldest..=*newest).contains(&marker.lsn.0));
    marks.names = inside.take(NAMES_MAX).map(|(marker, _)| (marker.lsn.0, marker.name.clone())).collect();
    Ok(marks)
}

/// The changes of a stretch.
pub fn changes(store: &Store, stretch: &Stretch) -> Result<Changes> {
    let volume = store.volume(&stretch.volume)?;
    let mut found = Changes::default();
    let (from, to) = (Lsn(stretch.after + 1), Lsn(stretch.through));
    if from > to {
        return Ok(found);
    }
    volume.records(from, to, &mut |header| {
        let events =
            [RecordKind::Marker, RecordKind::ClockStep, RecordKind::SessionOpen, RecordKind::SessionClose];
        if events.contains(&header.kind) || header.lsn > to {
            return;
        }
        if found.changes.len() == CHANGES_MAX {
            found.more = true;
            return;
        }
        // A rollback or a new size changes the disk too, but no extent of its own.
        let skipped = u64::from(header.head_skip) + u64::from(header.tail_skip);
        let (offset, len) = match header.kind.changes_blocks() {
            true => (
                header.lba.0 * BLOCK_BYTES + u64::from(header.head_skip),
                (header.blocks * BLOCK_BYTES).saturating_sub(skipped),
            ),
            false => (0, 0),
        };
        found.changes.push(Change {
            place: Place::new(header.lsn, header.timestamp),
            kind: header.kind.word().to_owned(),
            offset,
            len,
            session: header.session.0,
        });
    })?;
    Ok(found)
}
