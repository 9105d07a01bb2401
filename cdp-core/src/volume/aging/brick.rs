//! A piece of history as those see it who decide what goes: a segment or fold that is there, or a fold that would be.

use std::sync::{Arc, OnceLock};

use crate::error::{IoContext, Result};
use crate::format::record::RecordKind;
use crate::ids::*;
use crate::volume::parts::{Part, is_sealed};

/// A marker, whatever its class.
pub(in crate::volume) type Mark = (Lsn, Timestamp);

/// A part of the journal, or what some of them would become.
#[derive(Clone)]
pub(in crate::volume) struct Brick {
    what: What,
    // Read once.
    marks: OnceLock<Arc<Vec<Mark>>>,
}

#[derive(Clone)]
enum What {
    There(Arc<Part>),
    Made(Arc<MadeFold>),
}

/// A fold that was not made.
pub(in crate::volume) struct MadeFold {
    /// What is there of it: whole segments and folds.
    pub(in crate::volume) parts: Vec<Arc<Part>>,
    /// Its records.
    pub(in crate::volume) lsns: (Lsn, Lsn),
    /// When the record before the first was, and the last.
    pub(in crate::volume) timestamps: (Timestamp, Timestamp),
    /// As in its header.
    pub(in crate::volume) level: u8,
    /// Blocks of its payload.
    pub(in crate::volume) blocks: u64,
    /// Length of its file.
    pub(in crate::volume) bytes: u64,
    /// States that it keeps for themselves, rising.
    pub(in crate::volume) kept: Vec<Lsn>,
    /// All that are there, rising, with their instants.
    pub(in crate::volume) states: Vec<(Lsn, Timestamp)>,
    /// Markers that stay.
    pub(in crate::volume) marks: Arc<Vec<Mark>>,
}

impl Brick {
    pub(in crate::volume) fn there(part: &Arc<Part>) -> Brick {
        Brick { what: What::There(part.clone()), marks: OnceLock::new() }
    }

    pub(in crate::volume) fn made(fold: MadeFold) -> Brick {
        let marks = OnceLock::from(fold.marks.clone());
        Brick { what: What::Made(Arc::new(fold)), marks }
    }

    /// The fold, if it is one that was not made.
    pub(in crate::volume) fn as_made(&self) -> Option<&MadeFold> {
        match &self.what {
            What::There(_) => None,
            What::Made(fold) => Some(fold),
        }
    }

    /// What is there of it.
    pub(in crate::volume) fn parts(&self) -> &[Arc<Part>] {
        match &self.what {
            What::There(part) => std::slice::from_ref(part),
            What::Made(fold) => &fold.parts,
        }
    }

    /// Its first and its last record.
    pub(in crate::volume) fn lsns(&self) -> (Lsn, Lsn) {
        match &self.what {
            What::There(part) => (part.segment.header.first_lsn, part.last_lsn()),
            What::Made(fold) => fold.lsns,
        }
    }

    /// When the record before its first one was.
    pub(in crate::volume) fn begin(&self) -> Timestamp {
        match &self.what {
            What::There(part) => part.segment.header.timestamp_before,
            What::Made(fold) => fold.timestamps.0,
        }
    }

    /// When its last record was; `None` while records are added.
    pub(in crate::volume) fn end(&self) -> Option<Timestamp> {
        match &self.what {
            What::There(part) => part.frozen.get().map(|frozen| frozen.last.timestamp),
            What::Made(fold) => Some(fold.timestamps.1),
        }
    }

    /// Whether nothing about it changes any more.
    pub(in crate::volume) fn is_sealed(&self) -> bool {
        match &self.what {
            What::There(part) => is_sealed(part),
            What::Made(_) => true,
        }
    }

    /// Of a fold its level.
    pub(in crate::volume) fn level(&self) -> Option<u8> {
        match &self.what {
            What::There(part) => part.segment.fold.as_ref().map(|fold| fold.header.level),
            What::Made(fold) => Some(fold.level),
        }
    }

    /// Whether every state of it is there.
    pub(in crate::volume) fn is_whole(&self) -> bool {
        self.level().is_none()
    }

    /// Blocks of its file that may hold payload.
    pub(in crate::volume) fn blocks(&self) -> u64 {
        match &self.what {
            What::There(part) => match &part.segment.fold {
                Some(fold) => fold.header.payload_blocks,
                None => part.frozen.get().map_or(0, |frozen| frozen.end / BLOCK_BYTES),
            },
            What::Made(fold) => fold.blocks,
        }
    }

    /// Length of its file.
    pub(in crate::volume) fn bytes(&self) -> Result<u64> {
        match &self.what {
            What::There(part) => {
                let path = part.segment.path.display();
                part.segment.file.len().at(|| format!("measuring {path}"))
            }
            What::Made(fold) => Ok(fold.bytes),
        }
    }

    /// Of a fold the states that are there, rising, with their instants.
    pub(in crate::volume) fn states(&self) -> Option<Vec<(Lsn, Timestamp)>> {
        match &self.what {
            What::There(part) => part.segment.fold.as_ref().map(|fold| fold.instants().collect()),
            What::Made(fold) => Some(fold.states.clone()),
        }
    }

    /// Of a fold the states that it keeps for themselves, rising, each with whether the one before comes with it.
    pub(in crate::volume) fn points(&self) -> Vec<(Lsn, bool)> {
        match &self.what {
            What::There(part) => {
                let rows = part.segment.fold.iter().flat_map(|fold| &fold.points);
                rows.map(|row| (row.lsn, row.before > Timestamp(0))).collect()
            }
            What::Made(fold) => {
                let is_there = |lsn: Lsn| fold.states.binary_search_by_key(&lsn, |(lsn, _)| *lsn).is_ok();
                let comes =
                    |lsn: Lsn| is_there(lsn.previous()) && fold.kept.binary_search(&lsn.previous()).is_err();
                fold.kept.iter().map(|lsn| (*lsn, *lsn > fold.lsns.0 && comes(*lsn))).collect()
            }
        }
    }

    /// Its markers, by LSN; of a fold those that stayed.
    pub(in crate::volume) fn marks(&self) -> Result<Arc<Vec<Mark>>> {
        if let Some(marks) = self.marks.get() {
            return Ok(marks.clone());
        }
        let mut marks = Vec::new();
        for part in self.parts() {
            let rows = part.events()?;
            let rows = rows.iter().filter(|row| row.kind == RecordKind::Marker as u8);
            marks.extend(rows.map(|row| (row.lsn, row.timestamp)));
        }
        Ok(self.marks.get_or_init(|| Arc::new(marks)).clone())
    }
}
