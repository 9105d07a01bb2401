//! Blocks on their way into the base, over what stood there.
//!
//! Nothing here is atomic, and nothing needs to be: a block is written only while every state that can still be
//! viewed finds a newer version of it in the journal (`volume/advance.rs`). Until the base LSN moves, whatever a
//! crash leaves of such a block, torn bytes or a checksum that does not fit, is read by nobody, and folding it
//! again makes it whole.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::piece::{Piece, Place};
use super::{BLOCK, BLOCKS_PER_LOOK, Base, PIECE_BLOCKS, image_path, map, sums_path};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::base::{SUMS_HEADER_BYTES, SumsHeader, present_sum};
use crate::io::File;

impl Base {
    /// Puts whole blocks, which begin at block `first`, in the place of what is there. `crcs` are the CRCs that
    /// their records promised: where a block does not fit its own, reading it from the base is an error as it was
    /// in the journal. Durable after [`Base::sync`].
    pub fn put(&self, first: u64, blocks: &[u8], crcs: &[u32]) -> Result<()> {
        debug_assert_eq!(blocks.len(), crcs.len() * BLOCK);
        let mut at = 0;
        while at < crcs.len() {
            let lba = first + at as u64;
            let count = ((PIECE_BLOCKS - lba % PIECE_BLOCKS) as usize).min(crcs.len() - at);
            let piece = self.piece_made(lba / PIECE_BLOCKS)?;
            let sums: Vec<u32> = crcs[at..at + count].iter().map(|crc| present_sum(*crc)).collect();
            piece.write_blocks(lba, &blocks[at * BLOCK..(at + count) * BLOCK])?;
            piece.write_sums(lba, &sums)?;
            at += count;
        }
        Ok(())
    }

    /// Makes the blocks `from..to` absent: they read as zeros and take no space. Costs what is there, however
    /// long the range is. Durable after [`Base::sync`].
    pub fn erase(&self, from: u64, to: u64) -> Result<()> {
        // What a failed sync left the cache with may show as gone what the disk still has.
        if self.doubted.load(Ordering::Relaxed) {
            return self.erase_present(from, to);
        }
        let mut at = from;
        while at < to {
            let (end, present) = self.stretch(at, to)?;
            if present {
                self.erase_present(at, end)?;
            }
            at = end;
        }
        Ok(())
    }

    fn erase_present(&self, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let end = ((at / PIECE_BLOCKS + 1) * PIECE_BLOCKS).min(to).min(at + BLOCKS_PER_LOOK);
            if let Some(piece) = self.piece(at / PIECE_BLOCKS)? {
                piece.erase(at, end)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes what was put and erased durable: images and checksums, then the map, where pages came into use.
    pub fn sync(&self) -> Result<()> {
        let pieces = self.held.read().expect("no panics under this lock").pieces.clone();
        let synced = self.sync_pieces(&pieces);
        if synced.is_err() {
            self.doubted.store(true, Ordering::Relaxed);
        }
        for piece in pieces.values() {
            let mut pages = piece.pages.write().expect("no panics under this lock");
            match synced.is_ok() {
                true => pages.settle(),
                // The disk may have nothing of them: they are written whole again.
                false => pages.take_back(),
            }
        }
        synced
    }

    fn sync_pieces(&self, pieces: &super::Pieces) -> Result<()> {
        let has_fresh =
            |piece: &Arc<Piece>| piece.pages.read().expect("no panics under this lock").has_fresh();
        let map = pieces.values().any(has_fresh).then(|| map::encode(self.volume, pieces));
        for (number, piece) in pieces {
            piece.sync(self.piece_bytes(*number))?;
        }
        map.map_or(Ok(()), |map| map::publish(&*self.files, &self.dir, &map))
    }

    /// Reads blocks back and holds them against the CRCs that were put, an error where one is not what it was:
    /// a block that had fitted its CRC (`intact`) and does not any more, or a checksum that is not the one put.
    pub fn check_put(&self, first: u64, crcs: &[u32], intact: &[bool]) -> Result<()> {
        let mut buffer = vec![0; BLOCK];
        for (number, (crc, intact)) in crcs.iter().zip(intact).enumerate() {
            let lba = first + number as u64;
            let lost = |what: &str| {
                let context = format!("block {lba} was folded into the base, and {what}");
                Error::new(Kind::Damaged, context).hint("nothing was dropped; check the disk under the store")
            };
            let piece = self.piece(lba / PIECE_BLOCKS)?.ok_or_else(|| lost("its piece is gone"))?;
            if piece.sums(lba, 1)?[0] != present_sum(*crc) {
                return Err(lost("its checksum does not read back"));
            }
            if *intact {
                match piece.read(lba, &mut buffer) {
                    Err(error) if error.kind() == Kind::Damaged => {
                        return Err(lost("reads back as something else"));
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// An error unless the blocks `from..to` are absent.
    pub fn check_erased(&self, from: u64, to: u64) -> Result<()> {
        match self.stretch(from, to)? {
            (end, false) if end == to => Ok(()),
            (end, present) => {
                let lba = if present { from } else { end };
                let context = format!("block {lba} was erased in the base and is still there");
                Err(Error::new(Kind::Damaged, context).hint("nothing was dropped"))
            }
        }
    }

    /// The piece, made if the map names none. Nothing of it counts before the map does.
    fn piece_made(&self, number: u64) -> Result<Arc<Piece>> {
        if let Some(piece) = self.piece(number)? {
            return Ok(piece);
        }
        let path = image_path(&self.dir, number);
        let made = (|| {
            // What an attempt before a crash left is taken over: nothing in it counts, and its pages are written whole.
            let sums = self.open_or_create(&sums_path(&self.dir, number))?;
            sums.set_len(SUMS_HEADER_BYTES as u64)?;
            let header = SumsHeader { volume: self.volume, piece: number as u32 };
            sums.write_at(0, &[IoSlice::new(&header.encode()[..])])?;
            let image = self.open_or_create(&path)?;
            image.set_len(self.piece_bytes(number))?;
            // The map's own sync of the directory comes after the map is there: it must not name files without a name.
            self.files.sync_dir(&self.dir)?;
            Ok((image, sums))
        })();
        let (image, sums) = made.at(|| format!("making {}", path.display()))?;
        let place = Place { dir: &self.dir, volume: self.volume, number };
        let piece = Arc::new(Piece::fresh(&place, image, sums));
        self.held.write().expect("no panics under this lock").pieces.insert(number, piece.clone());
        Ok(piece)
    }

    fn open_or_create(&self, path: &std::path::Path) -> std::io::Result<Arc<dyn File>> {
        match self.files.create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.files.open(path, true),
            other => other,
        }
    }
}
