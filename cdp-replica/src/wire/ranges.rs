//! RANGES, DIFFERS and PATCH bodies: comparing a state with what stands elsewhere. PROTOCOL.md, "Reseed".

use cdp_core::format::bytes::Cursor;
use cdp_core::ids::BLOCK_BYTES;

use super::frame::{FrameType, FrameWriter};
use crate::fault::Fault;
use crate::limits::{RANGE_BLOCKS, RANGES_PER_FRAME};

const BLOCK: usize = BLOCK_BYTES as usize;
const BITMAP_BYTES: usize = RANGE_BLOCKS as usize / 8;
/// Of a block's hash so many bytes travel: they find what differs, the range's whole hash proves the result.
const SHORT_BYTES: usize = 16;

/// What a range hashes to.
pub type RangeHash = [u8; 32];
/// The beginning of what a block hashes to.
pub type BlockHash = [u8; SHORT_BYTES];

/// Of a range's bytes.
pub fn hash_range(bytes: &[u8]) -> RangeHash {
    *blake3::hash(bytes).as_bytes()
}

/// Of each block of a range.
pub fn hash_blocks(bytes: &[u8]) -> Vec<BlockHash> {
    let short = |block: &[u8]| {
        let mut hash = [0; SHORT_BYTES];
        hash.copy_from_slice(&blake3::hash(block).as_bytes()[..SHORT_BYTES]);
        hash
    };
    bytes.chunks(BLOCK).map(short).collect()
}

/// How a volume is cut into ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    size_bytes: u64,
}

impl Grid {
    /// Of a volume of this size.
    pub fn of(size_bytes: u64) -> Grid {
        Grid { size_bytes }
    }

    /// How many blocks it has.
    pub fn blocks(self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }

    /// How many blocks this range has; 0 behind the end.
    pub fn blocks_of(self, range: u64) -> u64 {
        self.blocks().saturating_sub(range.saturating_mul(RANGE_BLOCKS)).min(RANGE_BLOCKS)
    }

    /// Whether ranges that were looked at may end here.
    pub fn is_edge(self, block: u64) -> bool {
        block == self.blocks() || block < self.blocks() && block.is_multiple_of(RANGE_BLOCKS)
    }

    /// The edge at this byte, if there is one.
    pub fn edge_at(self, byte: u64) -> Option<u64> {
        let block = byte.div_ceil(BLOCK_BYTES);
        (self.is_edge(block) && byte == self.byte_of(block)).then_some(block)
    }

    /// The byte of the last edge that is not behind this one.
    pub fn edge_before(self, byte: u64) -> u64 {
        match byte >= self.size_bytes {
            true => self.size_bytes,
            false => byte - byte % (RANGE_BLOCKS * BLOCK_BYTES),
        }
    }

    /// The byte at which an edge is.
    pub fn byte_of(self, edge: u64) -> u64 {
        edge.saturating_mul(BLOCK_BYTES).min(self.size_bytes)
    }
}

/// Some ranges of a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ranges {
    /// Up to this block the state was looked at: what is not listed before it is zeros.
    pub through: u64,
    /// Numbers, rising, and hashes.
    pub ranges: Vec<(u64, RangeHash)>,
}

/// Appends a RANGES frame.
pub fn send_ranges(writer: &mut FrameWriter, out: &mut Vec<u8>, ranges: &Ranges) {
    assert!(ranges.ranges.len() <= RANGES_PER_FRAME);
    let mut body = ranges.through.to_le_bytes().to_vec();
    body.extend_from_slice(&(ranges.ranges.len() as u64).to_le_bytes());
    for (range, hash) in &ranges.ranges {
        body.extend_from_slice(&range.to_le_bytes());
        body.extend_from_slice(hash);
    }
    writer.frame(out, FrameType::Ranges, &body);
}

/// Reads a RANGES body: ranges of the volume, rising, all before the block up to which was looked.
pub fn read_ranges(body: &[u8], grid: Grid) -> Result<Ranges, Fault> {
    let wrong = || Fault::protocol("a RANGES frame that makes no sense");
    let mut cursor = Cursor::new(body);
    let through = cursor.u64().filter(|block| grid.is_edge(*block)).ok_or_else(wrong)?;
    let count = cursor.u64().filter(|count| *count <= RANGES_PER_FRAME as u64).ok_or_else(wrong)?;
    let mut ranges: Vec<(u64, RangeHash)> = Vec::new();
    for _ in 0..count {
        let range = cursor.u64().ok_or_else(wrong)?;
        let hash = cursor.take(32).and_then(|hash| hash.try_into().ok()).ok_or_else(wrong)?;
        let rises = ranges.last().is_none_or(|(before, _)| *before < range);
        if !rises || range.checked_mul(RANGE_BLOCKS).is_none_or(|first| first >= through) {
            return Err(wrong());
        }
        ranges.push((range, hash));
    }
    if cursor.is_empty() { Ok(Ranges { through, ranges }) } else { Err(wrong()) }
}

/// A range that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differs {
    /// Its number.
    pub range: u64,
    /// What its blocks hash to as they are there; none: nothing is known of them.
    pub there: Vec<BlockHash>,
}

/// Appends a DIFFERS frame.
pub fn send_differs(writer: &mut FrameWriter, out: &mut Vec<u8>, differs: &[Differs]) {
    assert!(differs.len() <= RANGES_PER_FRAME);
    let mut body = (differs.len() as u64).to_le_bytes().to_vec();
    for Differs { range, there } in differs {
        body.extend_from_slice(&range.to_le_bytes());
        body.extend_from_slice(&(there.len() as u64).to_le_bytes());
        body.extend(there.iter().flatten());
    }
    writer.frame(out, FrameType::Differs, &body);
}

/// Reads a DIFFERS body.
pub fn read_differs(body: &[u8], grid: Grid) -> Result<Vec<Differs>, Fault> {
    let wrong = || Fault::protocol("a DIFFERS frame that makes no sense");
    let mut cursor = Cursor::new(body);
    let count = cursor.u64().filter(|count| *count <= RANGES_PER_FRAME as u64).ok_or_else(wrong)?;
    let mut differs: Vec<Differs> = Vec::new();
    for _ in 0..count {
        let range = cursor.u64().ok_or_else(wrong)?;
        let blocks = cursor.u64().ok_or_else(wrong)?;
        let rises = differs.last().is_none_or(|before| before.range < range);
        let of_it = grid.blocks_of(range);
        if !rises || of_it == 0 || (blocks != 0 && blocks != of_it) {
            return Err(wrong());
        }
        let bytes = cursor.take(blocks as usize * SHORT_BYTES).ok_or_else(wrong)?;
        differs.push(Differs { range, there: bytes.as_chunks().0.to_vec() });
    }
    if cursor.is_empty() { Ok(differs) } else { Err(wrong()) }
}

/// Appends a PATCH frame: of `bytes`, those blocks of the range that are not as they are `there`; if that is none, all.
pub fn send_patch(
    writer: &mut FrameWriter,
    out: &mut Vec<u8>,
    range: u64,
    bytes: &[u8],
    there: &[BlockHash],
) {
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    assert!(blocks.len() <= RANGE_BLOCKS as usize && bytes.len() == blocks.len() * BLOCK);
    let here = if there.is_empty() { Vec::new() } else { hash_blocks(bytes) };
    let is_all = here.iter().eq(there);
    let differs = |number: usize| is_all || here.get(number) != there.get(number);
    let mut bitmap = [0u8; BITMAP_BYTES];
    let mut body = range.to_le_bytes().to_vec();
    body.extend_from_slice(&bitmap);
    for (number, block) in blocks.iter().enumerate().filter(|(number, _)| differs(*number)) {
        bitmap[number / 8] |= 1 << (number % 8);
        body.extend_from_slice(block);
    }
    body[8..8 + BITMAP_BYTES].copy_from_slice(&bitmap);
    writer.frame(out, FrameType::Patch, &body);
}

/// Blocks of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch<'a> {
    /// Its number.
    pub range: u64,
    /// So many blocks it has.
    pub blocks: u64,
    bitmap: &'a [u8],
    bytes: &'a [u8],
}

impl Patch<'_> {
    /// Whether it has all blocks of the range.
    pub fn is_all(&self) -> bool {
        self.bytes.len() as u64 == self.blocks * BLOCK_BYTES
    }

    /// Puts its blocks into the range's bytes.
    pub fn apply(&self, bytes: &mut [u8]) {
        let mut new = self.bytes.chunks_exact(BLOCK);
        for (number, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            if self.bitmap[number / 8] & 1 << (number % 8) != 0
                && let Some(new) = new.next()
            {
                block.copy_from_slice(new);
            }
        }
    }
}

/// Reads a PATCH body.
pub fn read_patch(body: &[u8], grid: Grid) -> Result<Patch<'_>, Fault> {
    let wrong = || Fault::protocol("a PATCH frame that makes no sense");
    let mut cursor = Cursor::new(body);
    let range = cursor.u64().ok_or_else(wrong)?;
    let blocks = grid.blocks_of(range);
    let bitmap = cursor.take(BITMAP_BYTES).ok_or_else(wrong)?;
    let is_set = |number: u64| bitmap[(number / 8) as usize] & 1 << (number % 8) != 0;
    let count = (0..RANGE_BLOCKS).filter(|number| is_set(*number)).count();
    if count == 0 || (blocks..RANGE_BLOCKS).any(is_set) {
        return Err(wrong());
    }
    let bytes = cursor.take(count * BLOCK).ok_or_else(wrong)?;
    if cursor.is_empty() { Ok(Patch { range, blocks, bitmap, bytes }) } else { Err(wrong()) }
}
