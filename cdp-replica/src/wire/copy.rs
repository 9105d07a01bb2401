//! COPY bodies. PROTOCOL.md, "First copy".

use cdp_core::format::bytes::Cursor;
use cdp_core::ids::{BLOCK_BYTES, Lba};

use super::frame::{FrameType, FrameWriter};
use crate::fault::Fault;
use crate::limits::COPY_BLOCKS_MAX;

/// Appends blocks as a frame, at most [`COPY_BLOCKS_MAX`]; none: the copy is complete.
pub fn send(writer: &mut FrameWriter, out: &mut Vec<u8>, first: Lba, blocks: &[u8]) {
    let count = blocks.len() as u64 / BLOCK_BYTES;
    assert!(count <= COPY_BLOCKS_MAX && blocks.len() as u64 == count * BLOCK_BYTES);
    let mut body = Vec::with_capacity(16 + blocks.len());
    body.extend_from_slice(&first.0.to_le_bytes());
    body.extend_from_slice(&(count as u32).to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(blocks);
    writer.frame(out, FrameType::Copy, &body);
}

/// Reads a body: its first block, and the blocks.
pub fn read(body: &[u8]) -> Result<(Lba, &[u8]), Fault> {
    let wrong = || Fault::protocol("a COPY frame that makes no sense");
    let mut cursor = Cursor::new(body);
    let first = cursor.u64().ok_or_else(wrong)?;
    let count = u64::from(cursor.u32().ok_or_else(wrong)?);
    cursor.u32().filter(|zeros| *zeros == 0).ok_or_else(wrong)?;
    if count > COPY_BLOCKS_MAX || first.checked_add(count).is_none() {
        return Err(wrong());
    }
    let blocks = cursor.take((count * BLOCK_BYTES) as usize).ok_or_else(wrong)?;
    if cursor.is_empty() { Ok((Lba(first), blocks)) } else { Err(wrong()) }
}
