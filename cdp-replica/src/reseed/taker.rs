//! The receiving side of a reseed: compares what it is told with what stands here, takes what fits from there, and has the
//! rest sent.
//!
//! What is written is always what the told hash was computed of: of a range that fits the very bytes that were hashed here, of
//! one that was patched the bytes that hash to it. So nothing depends on the seed staying as it is.

use std::collections::VecDeque;

use cdp_core::ids::*;
use cdp_core::store::copies::ReplicaCopy;
use cdp_core::store::seeds::Seed;

use crate::fault::{Fault, FaultKind};
use crate::limits::*;
use crate::wire::frame::FrameWriter;
use crate::wire::ranges::{self, Differs, Grid, RangeHash, Ranges};

/// A frame of ranges that is being compared.
struct Told {
    ranges: Ranges,
    // So many of them were.
    compared: usize,
    differs: Vec<Differs>,
}

/// A range that is to be patched.
struct Waiting {
    range: u64,
    hash: RangeHash,
    // The blocks that do not come are those of the seed.
    is_known: bool,
}

/// A reseed that comes in.
pub(crate) struct Taker {
    seed: Seed,
    grid: Grid,
    told: VecDeque<Told>,
    waiting: VecDeque<Waiting>,
    // Up to this block ranges were told, and up to this one they were compared.
    told_through: u64,
    through: u64,
    is_all_told: bool,
}

impl Taker {
    /// Compares with `seed`, beginning at this byte, an edge of the grid of so large a volume.
    pub(crate) fn new(seed: Seed, size_bytes: u64, from_byte: u64) -> Result<Taker, Fault> {
        let grid = Grid::of(size_bytes);
        let through = grid
            .edge_at(from_byte)
            .ok_or_else(|| Fault::protocol(format!("a reseed from byte {from_byte} on, within a range")))?;
        Ok(Taker {
            seed,
            grid,
            told: VecDeque::new(),
            waiting: VecDeque::new(),
            told_through: through,
            through,
            is_all_told: false,
        })
    }

    /// Takes a RANGES body.
    pub(crate) fn ranges(&mut self, body: &[u8]) -> Result<(), Fault> {
        let ranges = ranges::read_ranges(body, self.grid)?;
        let first = ranges.ranges.first().map_or(ranges.through, |(range, _)| range * RANGE_BLOCKS);
        let goes_on = first >= self.told_through && ranges.through >= self.told_through;
        if self.is_all_told || !goes_on || self.told.len() >= RANGES_UNANSWERED {
            return Err(Fault::protocol("ranges that go back, or come unasked"));
        }
        self.told_through = ranges.through;
        self.is_all_told = ranges.through == self.grid.blocks();
        self.told.push_back(Told { ranges, compared: 0, differs: Vec::new() });
        Ok(())
    }

    /// Compares some of what was told. What it takes from here goes into `copy`; an answer to `out`. How many bytes were
    /// written.
    pub(crate) fn work(
        &mut self,
        copy: &mut ReplicaCopy,
        writer: &mut FrameWriter,
        out: &mut Vec<u8>,
    ) -> Result<u64, Fault> {
        let mut written = 0;
        for _ in 0..RANGES_PER_TURN {
            let Some(told) = self.told.front_mut() else { break };
            if let Some((range, hash)) = told.ranges.ranges.get(told.compared).copied() {
                told.compared += 1;
                let here = read_seed(&self.seed, self.grid, range);
                match here.as_ref().filter(|bytes| ranges::hash_range(bytes) == hash) {
                    Some(bytes) => {
                        copy.write(Lba(range * RANGE_BLOCKS), bytes)?;
                        written += bytes.len() as u64;
                    }
                    None => {
                        let there = here.map(|bytes| ranges::hash_blocks(&bytes)).unwrap_or_default();
                        self.waiting.push_back(Waiting { range, hash, is_known: !there.is_empty() });
                        told.differs.push(Differs { range, there });
                    }
                }
            } else if out.len() < OUTPUT_BYTES {
                ranges::send_differs(writer, out, &told.differs);
                self.through = told.ranges.through;
                self.told.pop_front();
            } else {
                break;
            }
        }
        Ok(written)
    }

    /// Takes a PATCH body; how many bytes were written.
    pub(crate) fn patch(&mut self, body: &[u8], copy: &mut ReplicaCopy) -> Result<u64, Fault> {
        let patch = ranges::read_patch(body, self.grid)?;
        let waiting = self.waiting.pop_front().filter(|waiting| waiting.range == patch.range);
        let waiting = waiting.ok_or_else(|| Fault::protocol("a patch of a range that was not asked for"))?;
        let changed = || {
            let text = format!("what range {} was compared with is not there as it was", patch.range);
            Fault::new(FaultKind::Coding, text)
        };
        let mut bytes = match waiting.is_known && !patch.is_all() {
            true => read_seed(&self.seed, self.grid, patch.range).ok_or_else(changed)?,
            false => vec![0; (patch.blocks * BLOCK_BYTES) as usize],
        };
        patch.apply(&mut bytes);
        if ranges::hash_range(&bytes) != waiting.hash {
            return Err(changed());
        }
        copy.write(Lba(patch.range * RANGE_BLOCKS), &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// Everything before this byte is written.
    pub(crate) fn at(&self) -> u64 {
        let next = self.told.front().and_then(|told| told.ranges.ranges.get(told.compared));
        let next = next.map(|(range, _)| range * RANGE_BLOCKS);
        let waiting = self.waiting.front().map(|waiting| waiting.range * RANGE_BLOCKS);
        let block = waiting.or(next).or_else(|| Some(self.told.front()?.ranges.through));
        self.grid.byte_of(block.unwrap_or(self.through))
    }

    /// All was told, compared, and written.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_all_told && self.told.is_empty() && self.waiting.is_empty()
    }
}

/// A range in whole blocks, as it is here, zeros behind the copied volume's end; `None` if it cannot be read, or is all zeros,
/// of which nothing is to be told.
fn read_seed(seed: &Seed, grid: Grid, range: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (grid.blocks_of(range) * BLOCK_BYTES) as usize];
    let from = range * RANGE_BLOCKS * BLOCK_BYTES;
    let there = (grid.byte_of(grid.blocks()) - from).min(bytes.len() as u64) as usize;
    if let Err(error) = seed.read(from, &mut bytes[..there]) {
        tracing::warn!("comparing: {error}; what is there comes from the other site");
        return None;
    }
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}
