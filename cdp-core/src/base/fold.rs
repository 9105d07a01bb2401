//! Blocks on their way into the base, over what stood there.
//!
//! Nothing here is atomic, and nothing needs to be: a block is written only while every state that can still be
//! viewed finds a newer version of it in the journal (`volume/advance.rs`). Until the base LSN moves, whatever a
//! crash leaves of such a block, torn bytes or a checksum that does not fit, is read by nobody, and folding it
//! again makes it whole.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use super::{BLOCK, Base, PIECE_BLOCKS, Piece, SUMS_PER_READ, image_path, sum_offset, sums_path};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::base::{SUMS_HEADER_BYTES, SumsHeader, block_sum, stored_sum};
use crate::ids::{BLOCK_BYTES, Lsn};
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
            let sums: Vec<u8> =
                crcs[at..at + count].iter().flat_map(|crc| stored_sum(*crc).to_le_bytes()).collect();
            let bytes = &blocks[at * BLOCK..(at + count) * BLOCK];
            piece
                .image
                .write_at(lba % PIECE_BLOCKS * BLOCK_BYTES, &[IoSlice::new(bytes)])
                .and_then(|()| piece.sums.write_at(sum_offset(lba), &[IoSlice::new(&sums)]))
                .at(|| format!("folding into {}", piece.path.display()))?;
            at += count;
        }
        Ok(())
    }

    /// Makes the blocks `from..to` absent: they read as zeros and take no space. Costs what is there, however
    /// long the range is. Durable after [`Base::sync`].
    pub fn erase(&self, from: u64, to: u64) -> Result<()> {
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
            let end = ((at / PIECE_BLOCKS + 1) * PIECE_BLOCKS).min(to).min(at + SUMS_PER_READ);
            if let Some(piece) = self.piece(at / PIECE_BLOCKS) {
                let sums = vec![0; (end - at) as usize * 4];
                piece
                    .image
                    .punch(at % PIECE_BLOCKS * BLOCK_BYTES, (end - at) * BLOCK_BYTES)
                    .and_then(|()| piece.sums.write_at(sum_offset(at), &[IoSlice::new(&sums)]))
                    .at(|| format!("erasing in {}", piece.path.display()))?;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes what was put and erased durable.
    pub fn sync(&self) -> Result<()> {
        let pieces = self.pieces.read().expect("no panics under this lock").clone();
        for (number, piece) in pieces {
            let bytes = self.piece_bytes(number);
            // A crash while it was made may have left it short; its end is a hole then.
            let whole = piece.image.len().and_then(|len| match len < bytes {
                true => piece.image.set_len(bytes),
                false => Ok(()),
            });
            let synced = whole.and_then(|()| piece.image.sync().and_then(|()| piece.sums.sync()));
            synced.at(|| format!("syncing {}", piece.path.display()))?;
        }
        Ok(())
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
            let piece = self.piece(lba / PIECE_BLOCKS).ok_or_else(|| lost("its piece is gone"))?;
            if piece.sums(lba, 1)?[0] != stored_sum(*crc) {
                return Err(lost("its checksum does not read back"));
            }
            if *intact {
                let offset = lba % PIECE_BLOCKS * BLOCK_BYTES;
                piece
                    .image
                    .read_at(offset, &mut buffer)
                    .at(|| format!("reading byte {offset} of {} back", piece.path.display()))?;
                if block_sum(&buffer) != stored_sum(*crc) {
                    return Err(lost("reads back as something else"));
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

    /// The piece, made if it is not there. Its names are durable when this returns, the checksums before the
    /// image: an image without checksums would not open.
    fn piece_made(&self, number: u64) -> Result<Arc<Piece>> {
        if let Some(piece) = self.piece(number) {
            return Ok(piece);
        }
        let path = image_path(&self.dir, number);
        let bytes = self.piece_bytes(number);
        let made = (|| {
            // What an attempt before a crash left is taken over: nothing in it counts.
            let sums = self.open_or_create(&sums_path(&self.dir, number))?;
            sums.set_len(SUMS_HEADER_BYTES as u64)?;
            sums.set_len(sum_offset(0) + bytes.div_ceil(BLOCK_BYTES) * 4)?;
            let header = SumsHeader { volume: self.volume, piece: number as u32, base_lsn: Lsn::ZERO };
            sums.write_at(0, &[IoSlice::new(&header.encode()[..])])?;
            sums.sync()?;
            self.files.sync_dir(&self.dir)?;
            let image = self.open_or_create(&path)?;
            image.set_len(bytes)?;
            image.sync()?;
            self.files.sync_dir(&self.dir)?;
            Ok(Arc::new(Piece { path: path.clone(), image, sums }))
        })();
        let piece = made.at(|| format!("making {}", path.display()))?;
        self.pieces.write().expect("no panics under this lock").insert(number, piece.clone());
        Ok(piece)
    }

    fn open_or_create(&self, path: &std::path::Path) -> std::io::Result<Arc<dyn File>> {
        match self.files.create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.files.open(path, true),
            other => other,
        }
    }
}
