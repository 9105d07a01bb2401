//! AHEAD bodies. PROTOCOL.md, "Newest state".

use cdp_core::format::bytes::Cursor;
use cdp_core::ids::{BLOCK_BYTES, Lba};

use super::frame::{FrameType, FrameWriter};
use crate::fault::Fault;
use crate::limits::COPY_BLOCKS_MAX;

const KIND_BYTES: u32 = 0;
const KIND_ZEROS: u32 = 1;

/// What an AHEAD frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead<'a> {
    /// Blocks, at least one and at most [`COPY_BLOCKS_MAX`].
    Bytes(Lba, &'a [u8]),
    /// So many blocks of zeros, at least one.
    Zeros(Lba, u32),
    /// That was all.
    End,
}

/// Appends one as a frame.
pub fn send(writer: &mut FrameWriter, out: &mut Vec<u8>, ahead: Ahead<'_>) {
    let (first, count, kind, bytes): (u64, u32, u32, &[u8]) = match ahead {
        Ahead::Bytes(first, blocks) => {
            let count = blocks.len() as u64 / BLOCK_BYTES;
            assert!((1..=COPY_BLOCKS_MAX).contains(&count) && blocks.len() as u64 == count * BLOCK_BYTES);
            (first.0, count as u32, KIND_BYTES, blocks)
        }
        Ahead::Zeros(first, count) => (first.0, count, KIND_ZEROS, &[]),
        Ahead::End => (0, 0, KIND_BYTES, &[]),
    };
    let mut body = Vec::with_capacity(16 + bytes.len());
    body.extend_from_slice(&first.to_le_bytes());
    body.extend_from_slice(&count.to_le_bytes());
    body.extend_from_slice(&kind.to_le_bytes());
    body.extend_from_slice(bytes);
    writer.frame(out, FrameType::Ahead, &body);
}

/// Reads a body.
pub fn read(body: &[u8]) -> Result<Ahead<'_>, Fault> {
    let wrong = || Fault::protocol("an AHEAD frame that makes no sense");
    let mut cursor = Cursor::new(body);
    let first = Lba(cursor.u64().ok_or_else(wrong)?);
    let count = cursor.u32().ok_or_else(wrong)?;
    let kind = cursor.u32().ok_or_else(wrong)?;
    let ahead = match (kind, count) {
        (KIND_BYTES, 0) if first.0 == 0 => Ahead::End,
        (KIND_BYTES, 1..) if u64::from(count) <= COPY_BLOCKS_MAX => {
            Ahead::Bytes(first, cursor.take(count as usize * BLOCK_BYTES as usize).ok_or_else(wrong)?)
        }
        (KIND_ZEROS, 1..) => Ahead::Zeros(first, count),
        _ => return Err(wrong()),
    };
    if !cursor.is_empty() || first.0.checked_add(u64::from(count)).is_none() {
        return Err(wrong());
    }
    Ok(ahead)
}
