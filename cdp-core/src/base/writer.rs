//! Fills the base of a volume that is being made.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::piece::{Piece, Place};
use super::{BLOCK, BLOCKS_PER_LOOK, Base, PIECE_BLOCKS, Pieces, image_path, map, sums_path};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::base::{SumsHeader, block_sum};
use crate::ids::VolumeId;
use crate::io::Files;
use crate::limits::BASE_PIECE_BYTES;

/// Shorter runs of a stream gather in the page cache: an order to the disk for each of them would cost more.
const BULK_BYTES_MIN: usize = 256 << 10;

/// Fills the base of a volume that is being made. Nothing counts before [`BaseWriter::finish`] and the
/// volume's own manifest.
pub struct BaseWriter {
    files: Arc<dyn Files>,
    dir: PathBuf,
    volume: VolumeId,
    size_bytes: u64,
    pieces: Pieces,
    // Pieces that were written to and not handed out to be synced.
    dirty: BTreeSet<u64>,
    // Blocks of zeros are present like any other.
    keeps_zeros: bool,
    // Long runs are written as bulk.
    is_stream: bool,
    // The map on the disk is not that of the pieces, whether or not pages came into use.
    map_is_old: bool,
}

/// What a [`BaseWriter`] wrote up to a moment. Whoever syncs it may do so while more is written.
pub struct Unsynced {
    files: Arc<dyn Files>,
    dir: PathBuf,
    size_bytes: u64,
    pieces: Vec<Arc<Piece>>,
    // Where it has to be replaced.
    map: Option<Vec<u8>>,
}

impl Unsynced {
    /// Makes it durable. After an error nothing that was written by then may be counted on.
    pub fn sync(&self) -> Result<()> {
        for piece in &self.pieces {
            piece.sync(piece_bytes(self.size_bytes, piece.number))?;
        }
        self.files.sync_dir(&self.dir).at(|| format!("syncing {}", self.dir.display()))?;
        // What it names is durable by now, and has a name that is.
        self.map.as_ref().map_or(Ok(()), |bytes| map::publish(&*self.files, &self.dir, bytes))
    }
}

fn piece_bytes(size_bytes: u64, number: u64) -> u64 {
    size_bytes.saturating_sub(number * BASE_PIECE_BYTES).min(BASE_PIECE_BYTES)
}

impl BaseWriter {
    /// An empty base in `dir`.
    pub fn new(files: Arc<dyn Files>, dir: &Path, volume: VolumeId, size_bytes: u64) -> BaseWriter {
        BaseWriter {
            files,
            dir: dir.to_owned(),
            volume,
            size_bytes,
            pieces: BTreeMap::new(),
            dirty: BTreeSet::new(),
            keeps_zeros: false,
            is_stream: false,
            map_is_old: true,
        }
    }

    /// Blocks of zeros are written, too, from now on: what is read over something else has to say them.
    pub(super) fn keep_zeros(&mut self) {
        self.keeps_zeros = true;
    }

    /// What comes is long, and nobody reads it soon: the disk begins with long runs at once from now on, so that a sync finds
    /// little left, and the stream goes through the same few pages of the page cache.
    pub fn stream(mut self) -> BaseWriter {
        self.is_stream = true;
        self
    }

    /// Writes whole blocks from `first` on; blocks of zeros are left out.
    pub fn write(&mut self, first: u64, buffer: &[u8]) -> Result<()> {
        let count = buffer.len() / BLOCK;
        let block = |number: usize| &buffer[number * BLOCK..(number + 1) * BLOCK];
        let (keeps_zeros, is_stream) = (self.keeps_zeros, self.is_stream);
        let is_zero = |number: usize| !keeps_zeros && block(number).iter().all(|byte| *byte == 0);
        let mut at = 0;
        while at < count {
            if is_zero(at) {
                at += 1;
                continue;
            }
            // As much as goes into one piece at once.
            let lba = first + at as u64;
            let room = usize::try_from(PIECE_BLOCKS - lba % PIECE_BLOCKS).unwrap_or(usize::MAX);
            let mut end = at + 1;
            while end < count && end - at < room && !is_zero(end) {
                end += 1;
            }
            let sums: Vec<u32> = (at..end).map(|number| block_sum(block(number))).collect();
            let piece = self.piece(lba / PIECE_BLOCKS)?;
            let run = &buffer[at * BLOCK..end * BLOCK];
            match is_stream && run.len() >= BULK_BYTES_MIN {
                true => piece.write_bulk(lba, run)?,
                false => piece.write_blocks(lba, run)?,
            }
            piece.write_sums(lba, &sums)?;
            self.dirty.insert(lba / PIECE_BLOCKS);
            at = end;
        }
        Ok(())
    }

    fn piece(&mut self, number: u64) -> Result<&Piece> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.pieces.entry(number) {
            let path = image_path(&self.dir, number);
            let made = (|| {
                let image = self.files.create(&path)?;
                image.set_len(piece_bytes(self.size_bytes, number))?;
                let sums = self.files.create(&sums_path(&self.dir, number))?;
                let header = SumsHeader { volume: self.volume, piece: number as u32 };
                sums.write_at(0, &[IoSlice::new(&header.encode()[..])])?;
                Ok((image, sums))
            })();
            let (image, sums) = made.at(|| format!("making {}", path.display()))?;
            let place = Place { dir: &self.dir, volume: self.volume, number };
            vacant.insert(Arc::new(Piece::fresh(&place, image, sums)));
        }
        Ok(&self.pieces[&number])
    }

    /// Goes on with a base of which the pieces below `pieces` may be there, synced; what stands there of others is
    /// removed.
    ///
    /// # Errors
    /// `Damaged` if something of it is missing: it has to be begun anew.
    pub fn resume(
        files: Arc<dyn Files>,
        dir: &Path,
        volume: VolumeId,
        size_bytes: u64,
        pieces: u64,
    ) -> Result<BaseWriter> {
        let mut writer = BaseWriter::new(files, dir, volume, size_bytes);
        // Without a piece there may be no map yet.
        if pieces > 0 {
            let base = Base::open(&writer.files, dir, volume, size_bytes)?;
            if let Some(problem) = base.problems().into_iter().find(|problem| problem.extent.is_some()) {
                let context = format!("{}: {}", problem.file.display(), problem.what);
                return Err(Error::new(Kind::Damaged, context));
            }
            let held = base.held.into_inner().expect("no panics under this lock");
            writer.pieces = held.pieces;
            // What the map names beyond them was on its way when it ended.
            writer.map_is_old = !writer.pieces.split_off(&pieces).is_empty();
        }
        for number in 0..size_bytes.div_ceil(BASE_PIECE_BYTES) {
            if !writer.pieces.contains_key(&number) {
                writer.remove_piece(number)?;
            }
        }
        Ok(writer)
    }

    /// Forgets the blocks from `block` on: they are absent, and nothing stands in their place.
    pub(super) fn forget_from(&mut self, block: u64) -> Result<()> {
        let number = block / PIECE_BLOCKS;
        debug_assert!(self.pieces.last_key_value().is_none_or(|(last, _)| *last <= number));
        let Some(piece) = self.pieces.get(&number) else { return Ok(()) };
        let end = (number + 1) * PIECE_BLOCKS;
        let mut at = block;
        while at < end {
            let (to, present) = piece.stretch(at, end, None)?;
            let to = if present { to.min(at + BLOCKS_PER_LOOK) } else { to };
            if present {
                piece.erase(at, to)?;
            }
            at = to;
        }
        self.dirty.insert(number);
        Ok(())
    }

    fn remove_piece(&self, number: u64) -> Result<()> {
        for path in [image_path(&self.dir, number), sums_path(&self.dir, number)] {
            match self.files.remove(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(error, format!("removing {}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Above the highest piece that there is.
    pub fn pieces(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    /// Makes everything written durable.
    pub fn finish(mut self) -> Result<()> {
        self.sync()
    }

    /// Makes everything written so far durable, but for what was handed out. After an error it is of no use.
    pub fn sync(&mut self) -> Result<()> {
        self.take_unsynced().sync()
    }

    /// Hands out what was written since the last time, to be synced by somebody else.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let taken = std::mem::take(&mut self.dirty);
        let pieces: Vec<_> = taken.into_iter().map(|number| self.pieces[&number].clone()).collect();
        let mut map_is_old = std::mem::take(&mut self.map_is_old);
        for piece in &pieces {
            let mut pages = piece.pages.write().expect("no panics under this lock");
            map_is_old |= pages.has_fresh();
            pages.settle();
        }
        // As it is now: what comes into use from here on may not be durable when it is.
        let map = map_is_old.then(|| map::encode(self.volume, &self.pieces));
        Unsynced {
            files: self.files.clone(),
            dir: self.dir.clone(),
            size_bytes: self.size_bytes,
            pieces,
            map,
        }
    }
}
