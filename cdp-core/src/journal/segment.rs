//! A segment file: made ahead of its use, taken into use by writing its header.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fold::Fold;
use crate::error::{IoContext, Result};
use crate::format::fold::fold_run_name;
use crate::format::segment::{Seal, SegmentHeader, run_file_name, segment_file_name, segment_ordinal};
use crate::ids::{BLOCK_BYTES, SegmentId};
use crate::io::{File, FilePool, Files};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Zeros are written in pieces of this size, so that foreground writes get in between.
const FILL_STEP_BYTES: usize = 1 << 20;

/// A segment in use or sealed.
pub struct Segment {
    /// Its first block.
    pub header: SegmentHeader,
    /// Where it stands.
    pub path: PathBuf,
    /// The file: open while it is written to; afterwards one of a [`FilePool`].
    pub file: Arc<dyn File>,
    /// Where this and segments before it were thinned: the fold that stands for them, whose payload `file` is. It has
    /// no batches and no seal.
    pub fold: Option<Arc<Fold>>,
}

impl Segment {
    /// The same segment with its file in the pool. Everything that was written to it must be synced.
    pub fn pooled(&self, pool: &Arc<FilePool>) -> Arc<Segment> {
        if let Some(fold) = &self.fold {
            return fold.segment();
        }
        let file = pool.file(&self.path);
        Arc::new(Segment { header: self.header, path: self.path.clone(), file, fold: None })
    }

    /// What an index of it names: a fold has an id of its own.
    pub fn index_id(&self) -> SegmentId {
        self.fold.as_ref().map_or(self.header.id, |fold| fold.header.id)
    }

    /// Name of the file of its run.
    pub fn run_name(&self) -> String {
        match (&self.fold, self.path.file_name()) {
            (Some(_), Some(name)) => fold_run_name(&name.to_string_lossy()),
            _ => run_file_name(self.header.ordinal),
        }
    }

    /// Its file, held open for reading many pieces at once.
    pub fn held(&self) -> io::Result<Arc<dyn File>> {
        Ok(self.file.held()?.unwrap_or_else(|| self.file.clone()))
    }
}

/// How a segment's space is made ahead of its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Zeros are written: small commits are then 1.4–1.6 times faster (docs/decisions/0003).
    Written,
    /// Only reserved: a stream would otherwise be written twice.
    Reserved,
}

/// Makes the file of a segment that is not in use yet: its header block is zeros. Its name is durable when
/// this returns.
pub fn prepare(files: &dyn Files, dir: &Path, ordinal: u64, bytes: u64, fill: Fill) -> Result<()> {
    let path = dir.join(segment_file_name(ordinal));
    let made = (|| -> io::Result<()> {
        let file = files.create(&path)?;
        file.allocate(0, bytes)?;
        if fill == Fill::Written {
            let zeros = vec![0; FILL_STEP_BYTES];
            let mut at = 0;
            while at < bytes {
                let step = (bytes - at).min(FILL_STEP_BYTES as u64);
                file.write_at(at, &[IoSlice::new(&zeros[..step as usize])])?;
                at += step;
            }
        }
        file.sync()?;
        files.sync_dir(dir)
    })();
    if made.is_err() {
        // Half a file is of no use; a failing removal leaves it to the next opening, which takes any
        // segment of the right size whose header is zeros and removes the others.
        let _ = files.remove(&path);
    }
    made.at(|| format!("making segment {}", path.display()))
}

/// Makes a dropped segment one that is not in use yet, under another name: its space is written already, which makes
/// small commits fast, and need not be written again. Durable when this returns.
///
/// Its old records stay where they are and count for nobody: every batch carries the random id of its segment. The
/// block behind the header is made zeros too, because a batch there says that the header was lost.
pub fn recycle(files: &dyn Files, dir: &Path, segment: &Segment, ordinal: u64, bytes: u64) -> Result<()> {
    let path = dir.join(segment_file_name(ordinal));
    let made = (|| -> io::Result<()> {
        let len = segment.file.len()?;
        segment.file.write_at(0, &[IoSlice::new(&[0; 2 * BLOCK])])?;
        if len < bytes {
            segment.file.allocate(len, bytes - len)?;
        }
        segment.file.sync()?;
        files.rename(&segment.path, &path)?;
        files.sync_dir(dir)
    })();
    if made.is_err() {
        let _ = files.remove(&path);
    }
    made.at(|| format!("recycling {} as {}", segment.path.display(), path.display()))
}

/// The first block of a segment file.
pub enum FirstBlock {
    /// Zeros: made ahead, not in use.
    Unused,
    /// In use or sealed.
    Header(Box<SegmentHeader>),
    /// Neither.
    Bad,
}

/// Reads the first block.
pub fn read_first_block(file: &dyn File) -> io::Result<FirstBlock> {
    if file.len()? < BLOCK_BYTES {
        return Ok(FirstBlock::Bad);
    }
    let mut block = [0; BLOCK];
    file.read_at(0, &mut block)?;
    Ok(match SegmentHeader::decode(&block) {
        Some(header) => FirstBlock::Header(Box::new(header)),
        None if block.iter().all(|byte| *byte == 0) => FirstBlock::Unused,
        None => FirstBlock::Bad,
    })
}

/// Reads the seal at the end of a sealed segment's file; `None` if there is none that fits the header.
pub fn read_seal(segment: &Segment) -> io::Result<Option<Seal>> {
    let len = segment.file.len()?;
    if len < 2 * BLOCK_BYTES || !len.is_multiple_of(BLOCK_BYTES) {
        return Ok(None);
    }
    let mut block = [0; BLOCK];
    segment.file.read_at(len - BLOCK_BYTES, &mut block)?;
    Ok(Seal::decode(&block).filter(|seal| {
        let header = &segment.header;
        seal.end == len - BLOCK_BYTES
            && seal.segment == header.id
            && seal.volume == header.volume
            && seal.ordinal == header.ordinal
            && seal.first_lsn == header.first_lsn
    }))
}

/// The ordinals of the segment files in a directory, rising.
pub fn list_ordinals(files: &dyn Files, dir: &Path) -> Result<Vec<u64>> {
    let entries = files.list(dir).at(|| format!("listing {}", dir.display()))?;
    let mut ordinals: Vec<u64> = entries.iter().filter_map(|entry| segment_ordinal(&entry.name)).collect();
    ordinals.sort_unstable();
    Ok(ordinals)
}
