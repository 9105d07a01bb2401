//! Segments made ahead of their use, and the giving of ordinals.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use super::segment::{self, Fill, FirstBlock, Segment};
use crate::error::{IoContext, Result};
use crate::format::segment::{SegmentHeader, segment_file_name};
use crate::io::Files;

/// The volume's unused segments.
pub struct Pool {
    files: Arc<dyn Files>,
    dir: PathBuf,
    bytes: u64,
    prepared: VecDeque<(u64, Fill)>,
    next_ordinal: u64,
    newest_fill: Fill,
}

impl Pool {
    /// A pool that has these segments, all with ordinals above those in use and below `next_ordinal`.
    pub fn new(
        files: Arc<dyn Files>,
        dir: PathBuf,
        bytes: u64,
        prepared: VecDeque<u64>,
        next_ordinal: u64,
    ) -> Pool {
        // How an earlier process made them is not known.
        let prepared = prepared.into_iter().map(|ordinal| (ordinal, Fill::Reserved)).collect();
        Pool { files, dir, bytes, prepared, next_ordinal, newest_fill: Fill::Reserved }
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.prepared.len()
    }

    /// How the segment was made that was taken last.
    pub fn newest_fill(&self) -> Fill {
        self.newest_fill
    }

    /// Whether a segment is ready whose space is written.
    pub fn has_written(&self) -> bool {
        self.prepared.iter().any(|(_, fill)| *fill == Fill::Written)
    }

    /// Removes what is ready in front of the first segment whose space is written; gives their number, or `None`,
    /// and removes nothing, if there is no written one.
    pub fn prefer_written(&mut self) -> Option<u64> {
        let reserved = self.prepared.iter().position(|(_, fill)| *fill == Fill::Written)?;
        for (ordinal, _) in self.prepared.drain(..reserved) {
            // A leftover costs space only; the next opening removes it.
            let _ = self.files.remove(&self.dir.join(segment_file_name(ordinal)));
        }
        Some(reserved as u64)
    }

    /// Removes the newest of what is ready, but for so many; how many went.
    pub fn shrink_to(&mut self, count: usize) -> u64 {
        let kept = count.min(self.prepared.len());
        let gone = self.prepared.split_off(kept);
        for (ordinal, _) in &gone {
            // A leftover costs space only; the next opening removes it.
            let _ = self.files.remove(&self.dir.join(segment_file_name(*ordinal)));
        }
        gone.len() as u64
    }

    /// Size of a segment in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the next ordinal away. Whoever makes its file tells [`Pool::add`].
    pub fn claim_ordinal(&mut self) -> u64 {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        ordinal
    }

    /// A segment is ready for use. One whose time has passed, because a later one is in use already, is
    /// removed.
    pub fn add(&mut self, ordinal: u64, fill: Fill, newest_used: u64) {
        if ordinal > newest_used {
            let at = self.prepared.partition_point(|(other, _)| *other < ordinal);
            self.prepared.insert(at, (ordinal, fill));
        } else {
            // A leftover costs space only; the next opening removes it.
            let _ = self.files.remove(&self.dir.join(segment_file_name(ordinal)));
        }
    }

    /// Takes a segment, making one in this way if none is ready. `header.ordinal` and `header.bytes` are filled in here.
    /// The header is not written yet, so that the segment does not count until [`publish`].
    pub fn take(&mut self, mut header: SegmentHeader, fill: Fill) -> Result<Arc<Segment>> {
        loop {
            let (ordinal, fill) = match self.prepared.pop_front() {
                Some(ready) => ready,
                None => {
                    let ordinal = self.claim_ordinal();
                    segment::prepare(&*self.files, &self.dir, ordinal, self.bytes, fill)?;
                    (ordinal, fill)
                }
            };
            let path = self.dir.join(segment_file_name(ordinal));
            let file = self.files.open(&path, true).at(|| format!("opening {}", path.display()))?;
            let first = segment::read_first_block(&*file).at(|| format!("reading {}", path.display()))?;
            let bytes = file.len().at(|| format!("measuring {}", path.display()))?;
            if matches!(first, FirstBlock::Unused) && bytes == self.bytes {
                header.ordinal = ordinal;
                header.bytes = bytes;
                self.newest_fill = fill;
                return Ok(Arc::new(Segment { header, path, file, fold: None }));
            }
        }
    }
}

/// Writes the header of a segment taken from the pool: from now on it is a part of the stream.
pub fn publish(segment: &Segment) -> Result<()> {
    segment
        .file
        .write_at(0, &[IoSlice::new(&segment.header.encode()[..])])
        .at(|| format!("taking {} into use", segment.path.display()))
}
