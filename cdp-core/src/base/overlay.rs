//! Blocks that are read over another state of a volume: pieces as a base has them, in which blocks of zeros are present
//! like any other, and a list of long runs of zeros beside them.
//!
//! Filled in rising order. What counts of it, its owner's manifest says ([`Come`]); what stands behind that is forgotten
//! when somebody goes on with it.

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BLOCK, Base, BaseWriter, PIECE_BLOCKS, Problem, Unsynced};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::coalesced::{Come, ZERO_ROW_BYTES, ZeroRow};
use crate::ids::{Extent, Lba, VolumeId};
use crate::io::{File, Files};

const ZEROS_FILE: &str = "zeros";
/// Shorter runs of zeros are blocks of zeros in the pieces, 4 bytes each: so the list stays small beside them.
const ZERO_RUN_BLOCKS_MIN: u64 = 256;
/// Rows of the list that are read at a time.
const ROWS_PER_READ: u64 = 4096;
/// Zeros are written into the pieces in so many blocks at a time.
const ZERO_BLOCKS: usize = 64;

/// Where blocks come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From what the overlay lies over.
    Below,
    /// They are zeros.
    Zeros,
    /// The overlay has them.
    Own,
}

/// An overlay that takes no more blocks.
pub struct Overlay {
    blocks: Base,
    // Disjoint, rising.
    runs: Vec<Extent>,
}

/// Fills an overlay.
pub struct OverlayWriter {
    dir: PathBuf,
    volume: VolumeId,
    size_blocks: u64,
    blocks: BaseWriter,
    zeros: Arc<dyn File>,
    come: Come,
}

/// What an [`OverlayWriter`] wrote up to a moment.
pub struct OverlayUnsynced {
    blocks: Unsynced,
    zeros: Arc<dyn File>,
    path: PathBuf,
}

impl OverlayUnsynced {
    /// Makes it durable. After an error nothing that was written by then may be counted on.
    pub fn sync(&self) -> Result<()> {
        self.zeros.sync().at(|| format!("syncing {}", self.path.display()))?;
        self.blocks.sync()
    }
}

impl Overlay {
    /// Opens what has come. Blocks are checked when they are read, the list of zeros is checked here.
    pub fn open(
        files: &Arc<dyn Files>,
        dir: &Path,
        volume: VolumeId,
        size_bytes: u64,
        come: Come,
    ) -> Result<Overlay> {
        let path = dir.join(ZEROS_FILE);
        let damaged =
            |row: u64| Error::new(Kind::Damaged, format!("row {row} of {} is not readable", path.display()));
        let file = files.open(&path, false).at(|| format!("opening {}", path.display()))?;
        let there = file.len().at(|| format!("reading {}", path.display()))? / ZERO_ROW_BYTES as u64;
        if there < come.zero_runs {
            return Err(damaged(there));
        }
        let mut runs: Vec<Extent> = Vec::new();
        let mut row = 0;
        while row < come.zero_runs {
            let count = (come.zero_runs - row).min(ROWS_PER_READ);
            let mut bytes = vec![0; count as usize * ZERO_ROW_BYTES];
            file.read_at(row * ZERO_ROW_BYTES as u64, &mut bytes)
                .at(|| format!("reading {}", path.display()))?;
            let (rows, _) = bytes.as_chunks::<ZERO_ROW_BYTES>();
            for bytes in rows {
                let run = ZeroRow::decode(bytes, volume, row).ok_or_else(|| damaged(row))?.0;
                let follows = runs.last().is_none_or(|last| last.end() <= run.start.0);
                if !follows || run.blocks == 0 || run.start.0.checked_add(run.blocks).is_none() {
                    return Err(damaged(row));
                }
                runs.push(run);
                row += 1;
            }
        }
        Ok(Overlay { blocks: Base::open(files, dir, volume, size_bytes)?, runs })
    }

    /// What is missing or cannot be used of its files, as far as opening them told.
    pub fn problems(&self) -> Vec<Problem> {
        self.blocks.problems()
    }

    /// Up to which block nothing can be read from block `at` on, because a whole file or the map is missing.
    pub fn lost_until(&self, at: u64) -> Option<u64> {
        self.blocks.lost_until(at)
    }

    /// Up to which block, at most `to`, the blocks from `from` on come from the same place, and which.
    pub fn look(&self, from: u64, to: u64) -> Result<(u64, Source)> {
        let at = self.runs.partition_point(|run| run.end() <= from);
        let end = match self.runs.get(at) {
            Some(run) if run.start.0 <= from => return Ok((run.end().min(to), Source::Zeros)),
            Some(run) => run.start.0.min(to),
            None => to,
        };
        let (end, present) = self.blocks.stretch(from, end)?;
        Ok((end, if present { Source::Own } else { Source::Below }))
    }

    /// Reads whole blocks from `first` on; `below` reads those that the overlay does not have.
    pub fn read(
        &self,
        first: u64,
        buffer: &mut [u8],
        below: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = first;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (end, source) = self.look(at, at + (rest.len() / BLOCK) as u64)?;
            let (front, back) = rest.split_at_mut((end - at) as usize * BLOCK);
            match source {
                Source::Below => below(at, front)?,
                Source::Zeros => front.fill(0),
                Source::Own => self.blocks.read(at, front)?,
            }
            rest = back;
            at = end;
        }
        Ok(())
    }
}

impl OverlayWriter {
    /// Begins one in `dir`, which is there and empty, or goes on behind what has come of it.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        volume: VolumeId,
        size_bytes: u64,
        come: Come,
    ) -> Result<OverlayWriter> {
        let path = dir.join(ZEROS_FILE);
        let zeros = match files.open(&path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => files.create(&path),
            other => other,
        };
        let zeros = zeros.at(|| format!("opening {}", path.display()))?;
        let there = zeros.len().at(|| format!("reading {}", path.display()))?;
        if there < come.zero_runs * ZERO_ROW_BYTES as u64 {
            let context = format!("{} is shorter than it was", path.display());
            return Err(Error::new(Kind::Damaged, context));
        }
        let pieces = come.pieces.min(come.blocks.div_ceil(PIECE_BLOCKS));
        let mut blocks = BaseWriter::resume(files, dir, volume, size_bytes, pieces)?;
        blocks.forget_from(come.blocks)?;
        blocks.keep_zeros();
        let size_blocks = size_bytes.div_ceil(BLOCK as u64);
        Ok(OverlayWriter { dir: dir.to_owned(), volume, size_blocks, blocks, zeros, come })
    }

    /// What has come.
    pub fn come(&self) -> Come {
        Come { pieces: self.blocks.pieces(), ..self.come }
    }

    fn check(&self, first: Lba, blocks: u64) -> Result<()> {
        let end = first.0.checked_add(blocks).filter(|end| *end <= self.size_blocks);
        if first.0 < self.come.blocks || end.is_none() {
            let context =
                format!("{blocks} blocks at {first:?} go back, or reach behind the end of the state");
            return Err(Error::new(Kind::Invalid, context));
        }
        Ok(())
    }

    /// Takes whole blocks from `first` on, behind all that has come.
    pub fn write(&mut self, first: Lba, blocks: &[u8]) -> Result<()> {
        let count = (blocks.len() / BLOCK) as u64;
        self.check(first, count)?;
        self.blocks.write(first.0, blocks)?;
        self.come.blocks = first.0 + count;
        Ok(())
    }

    /// Takes zeros from `first` on, however many.
    pub fn write_zeros(&mut self, first: Lba, blocks: u64) -> Result<()> {
        self.check(first, blocks)?;
        if blocks >= ZERO_RUN_BLOCKS_MIN {
            let row = self.come.zero_runs;
            let bytes = ZeroRow(Extent { start: first, blocks }).encode(self.volume, row);
            self.zeros
                .write_at(row * ZERO_ROW_BYTES as u64, &[IoSlice::new(&bytes)])
                .at(|| format!("writing {}", self.dir.join(ZEROS_FILE).display()))?;
            self.come.zero_runs += 1;
        } else {
            let zeros = [0; ZERO_BLOCKS * BLOCK];
            let mut at = 0;
            while at < blocks {
                let count = (blocks - at).min(ZERO_BLOCKS as u64);
                self.blocks.write(first.0 + at, &zeros[..count as usize * BLOCK])?;
                at += count;
            }
        }
        self.come.blocks = first.0 + blocks;
        Ok(())
    }

    /// Everything up to this block has come, whether anything stands there or not.
    pub fn pass(&mut self, block: u64) {
        self.come.blocks = self.come.blocks.max(block.min(self.size_blocks));
    }

    /// Hands out what was written since the last time, to be synced by somebody else.
    pub fn take_unsynced(&mut self) -> OverlayUnsynced {
        let path = self.dir.join(ZEROS_FILE);
        OverlayUnsynced { blocks: self.blocks.take_unsynced(), zeros: self.zeros.clone(), path }
    }
}
