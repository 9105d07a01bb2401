//! Fills the base of a volume that is being made.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BLOCK, Base, PIECE_BLOCKS, Piece, image_path, sum_offset, sums_path};
use crate::error::{Error, IoContext, Result};
use crate::format::base::{SumsHeader, block_sum};
use crate::ids::{BLOCK_BYTES, Lsn, VolumeId};
use crate::io::Files;
use crate::limits::BASE_PIECE_BYTES;

/// Fills the base of a volume that is being made. Nothing counts before [`BaseWriter::finish`] and the
/// volume's own manifest.
pub struct BaseWriter {
    files: Arc<dyn Files>,
    dir: PathBuf,
    volume: VolumeId,
    size_bytes: u64,
    pieces: BTreeMap<u64, Piece>,
    // Pieces that were written to and not handed out to be synced.
    dirty: BTreeSet<u64>,
    // Blocks of zeros are present like any other.
    keeps_zeros: bool,
}

/// What a [`BaseWriter`] wrote up to a moment. Whoever syncs it may do so while more is written.
pub struct Unsynced {
    files: Arc<dyn Files>,
    dir: PathBuf,
    pieces: Vec<Piece>,
}

impl Unsynced {
    /// Makes it durable. After an error nothing that was written by then may be counted on.
    pub fn sync(&self) -> Result<()> {
        for Piece { path, image, sums } in &self.pieces {
            image.sync().and_then(|()| sums.sync()).at(|| format!("syncing {}", path.display()))?;
        }
        self.files.sync_dir(&self.dir).at(|| format!("syncing {}", self.dir.display()))
    }
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
        }
    }

    /// Blocks of zeros are written, too, from now on: what is read over something else has to say them.
    pub(super) fn keep_zeros(&mut self) {
        self.keeps_zeros = true;
    }

    /// Writes whole blocks from `first` on; blocks of zeros are left out.
    pub fn write(&mut self, first: u64, buffer: &[u8]) -> Result<()> {
        let count = buffer.len() / BLOCK;
        let block = |number: usize| &buffer[number * BLOCK..(number + 1) * BLOCK];
        let keeps_zeros = self.keeps_zeros;
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
            let sums: Vec<u8> = (at..end).flat_map(|number| block_sum(block(number)).to_le_bytes()).collect();
            let piece = self.piece(lba / PIECE_BLOCKS)?;
            piece
                .image
                .write_at(lba % PIECE_BLOCKS * BLOCK_BYTES, &[IoSlice::new(&buffer[at * BLOCK..end * BLOCK])])
                .and_then(|()| piece.sums.write_at(sum_offset(lba), &[IoSlice::new(&sums)]))
                .at(|| format!("writing {}", piece.path.display()))?;
            self.dirty.insert(lba / PIECE_BLOCKS);
            at = end;
        }
        Ok(())
    }

    fn piece(&mut self, number: u64) -> Result<&Piece> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.pieces.entry(number) {
            let path = image_path(&self.dir, number);
            let bytes = (self.size_bytes - number * BASE_PIECE_BYTES).min(BASE_PIECE_BYTES);
            let made = (|| {
                let image = self.files.create(&path)?;
                image.set_len(bytes)?;
                let sums = self.files.create(&sums_path(&self.dir, number))?;
                sums.set_len(sum_offset(0) + bytes.div_ceil(BLOCK_BYTES) * 4)?;
                let header = SumsHeader { volume: self.volume, piece: number as u32, base_lsn: Lsn::ZERO };
                sums.write_at(0, &[IoSlice::new(&header.encode()[..])])?;
                Ok(Piece { path: path.clone(), image, sums })
            })();
            vacant.insert(made.at(|| format!("making {}", path.display()))?);
        }
        Ok(&self.pieces[&number])
    }

    /// Goes on with a base of which the pieces below `pieces` may be there, synced; what stands there of others is
    /// removed.
    pub fn resume(
        files: Arc<dyn Files>,
        dir: &Path,
        volume: VolumeId,
        size_bytes: u64,
        pieces: u64,
    ) -> Result<BaseWriter> {
        for number in pieces..size_bytes.div_ceil(BASE_PIECE_BYTES) {
            for path in [image_path(dir, number), sums_path(dir, number)] {
                match files.remove(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io(error, format!("removing {}", path.display())));
                    }
                    _ => {}
                }
            }
        }
        let opened = Base::open(&files, dir, volume, size_bytes)?.pieces.into_inner();
        let opened = opened.expect("no panics under this lock");
        let pieces = opened.into_iter().map(|(number, piece)| (number, Piece::clone(&piece))).collect();
        let (dir, dirty) = (dir.to_owned(), BTreeSet::new());
        Ok(BaseWriter { files, dir, volume, size_bytes, pieces, dirty, keeps_zeros: false })
    }

    /// Forgets the blocks from `block` on: whatever stands there is absent.
    pub(super) fn forget_from(&mut self, block: u64) -> Result<()> {
        let number = block / PIECE_BLOCKS;
        debug_assert!(self.pieces.last_key_value().is_none_or(|(last, _)| *last <= number));
        let Some(Piece { path, sums, .. }) = self.pieces.get(&number) else { return Ok(()) };
        let cut = || {
            let len = sums.len()?;
            sums.set_len(sum_offset(block).min(len))?;
            sums.set_len(len)
        };
        cut().at(|| format!("cutting the checksums of {}", path.display()))?;
        self.dirty.insert(number);
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
        let pieces = taken.into_iter().map(|number| self.pieces[&number].clone()).collect();
        Unsynced { files: self.files.clone(), dir: self.dir.clone(), pieces }
    }
}
