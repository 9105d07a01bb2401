//! A fold's payload, read as if it stood there block by block: frames are looked up and decompressed on the way.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

use super::Fold;
use super::codec::unpack;
use crate::format::codec::Codec;
use crate::format::fold::{FRAME_BLOCKS, FRAME_ROW_BYTES, FrameRow};
use crate::ids::BLOCK_BYTES;
use crate::io::File;

const FRAME_BYTES: u64 = FRAME_BLOCKS * BLOCK_BYTES;

/// Reads block n of the payload at n · 4096; n counts from 1. Nothing can be written.
pub struct FoldPayload {
    fold: Arc<Fold>,
}

impl FoldPayload {
    /// The payload of `fold`.
    pub fn new(fold: Arc<Fold>) -> FoldPayload {
        FoldPayload { fold }
    }

    /// The bytes of one frame.
    fn frame(&self, number: u64) -> io::Result<Vec<u8>> {
        let header = &self.fold.header;
        let blocks = header.frame_blocks(number);
        if blocks == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "a block that the fold does not have"));
        }
        let mut row = [0; FRAME_ROW_BYTES as usize];
        self.fold.file.read_at(header.frames_at() + number * FRAME_ROW_BYTES, &mut row)?;
        let row = FrameRow::decode(&row);
        let wanted = (blocks * BLOCK_BYTES) as usize;
        let end = row.at.saturating_add(u64::from(row.bytes));
        // Blocks have checksums: what is wrong here need not look like anything but a block that does not fit.
        if end > header.tables_at || row.bytes as usize > wanted {
            return Ok(vec![0; wanted]);
        }
        let mut stored = vec![0; row.bytes as usize];
        self.fold.file.read_at(row.at, &mut stored)?;
        let codec = u8::try_from(row.codec).ok().and_then(Codec::from_number);
        Ok(codec.and_then(|codec| unpack(codec, &stored, wanted)).unwrap_or_else(|| vec![0; wanted]))
    }
}

fn read_only() -> io::Error {
    io::Error::new(ErrorKind::Unsupported, "a fold is never changed")
}

impl File for FoldPayload {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some(mut at) = offset.checked_sub(BLOCK_BYTES) else {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "a fold's payload begins with block 1"));
        };
        let mut rest = buffer;
        while !rest.is_empty() {
            let frame = self.frame(at / FRAME_BYTES)?;
            let from = (at % FRAME_BYTES) as usize;
            let step = rest.len().min(frame.len().saturating_sub(from));
            if step == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "a block that the fold does not have"));
            }
            let (front, behind) = rest.split_at_mut(step);
            front.copy_from_slice(&frame[from..from + step]);
            rest = behind;
            at += step as u64;
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buffers: &[IoSlice<'_>]) -> io::Result<()> {
        Err(read_only())
    }

    fn sync(&self) -> io::Result<()> {
        self.fold.file.sync()
    }

    /// Of the file as it stands on the disk.
    fn len(&self) -> io::Result<u64> {
        self.fold.file.len()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
}
