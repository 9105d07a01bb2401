//! COPY bodies. PROTOCOL.md, "First copy".

use std::convert::Infallible;

use cdp_core::format::bytes::Cursor;
use cdp_core::ids::{BLOCK_BYTES, Lba};

use super::frame::{FrameType, FrameWriter};
use crate::fault::Fault;
use crate::limits::COPY_BLOCKS_MAX;

/// Appends blocks as a frame, at most [`COPY_BLOCKS_MAX`]; none: the copy is complete.
pub fn send(writer: &mut FrameWriter, out: &mut Vec<u8>, first: Lba, blocks: &[u8]) {
    let count = blocks.len() as u64 / BLOCK_BYTES;
    assert!(count <= COPY_BLOCKS_MAX && blocks.len() as u64 == count * BLOCK_BYTES);
    let put = |room: &mut [u8]| {
        room.copy_from_slice(blocks);
        Ok::<(), Infallible>(())
    };
    let Ok(()) = send_filled(writer, out, first, count, put);
}

/// As [`send`], of `count` blocks that `fill` puts in place, where there are zeros. After its error nothing was appended.
pub fn send_filled<E>(
    writer: &mut FrameWriter,
    out: &mut Vec<u8>,
    first: Lba,
    count: u64,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    assert!(count <= COPY_BLOCKS_MAX);
    writer.frame_in_place(out, FrameType::Copy, |out| {
        out.extend_from_slice(&first.0.to_le_bytes());
        out.extend_from_slice(&(count as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let from = out.len();
        out.resize(from + (count * BLOCK_BYTES) as usize, 0);
        fill(&mut out[from..])
    })
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
