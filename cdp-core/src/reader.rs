//! Any extent as of any LSN: plan with the index, then fetch. A live read and a read of the past are the same
//! code; they differ in what is visible.

mod fetch;

use std::sync::Arc;

use crate::base::Base;
use crate::device::{Content, Read, Stretch};
use crate::error::{Error, Result};
use crate::ids::{BLOCK_BYTES, Extent, Lba, Lsn};
use crate::index::{Found, Search, Visible};
use crate::io::{Files, GatheredRead};
use crate::volume::Volume;
use crate::volume::parts::{PartList, part_of};
use crate::volume::uses::Use;

use fetch::Fetches;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks looked up at a time: bounds the memory of a plan.
const PLAN_BLOCKS_MAX: u64 = 16 << 10;

/// Where some blocks come from.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Zeros; `hole` if nothing is stored for them.
    Zero {
        /// Which blocks.
        extent: Extent,
        /// Reported as a hole.
        hole: bool,
    },
    /// One block of a record's payload.
    Journal {
        /// Which block.
        lba: Lba,
        /// The record.
        lsn: Lsn,
        /// Block number in the record's segment.
        block: u32,
        /// What its checksum must be.
        crc: u32,
    },
    /// From the base, or zeros where the base has nothing.
    Base {
        /// Which blocks.
        extent: Extent,
    },
}

impl Piece {
    /// Which blocks.
    pub fn extent(&self) -> Extent {
        match self {
            Piece::Zero { extent, .. } | Piece::Base { extent } => *extent,
            Piece::Journal { lba, .. } => Extent { start: *lba, blocks: 1 },
        }
    }
}

/// Reads blocks from one state of the volume.
pub struct Reader<'a> {
    /// For gathered reads.
    pub files: &'a dyn Files,
    /// The index and the segments.
    pub parts: PartList,
    /// What is under all records.
    pub base: &'a Base,
    /// Which records count.
    pub visible: &'a Visible,
    /// Whose they are.
    pub volume: &'a Volume,
    /// Held as long as the reader lives; none where the volume was closed before.
    pub using: Option<Use<'a>>,
}

impl Reader<'_> {
    /// Looks an extent up. Covers it exactly, in order. Reads no payload.
    pub fn plan(&self, extent: Extent) -> Result<Vec<Piece>> {
        self.search(|| Search::new(extent)).map(|search| pieces(&search))
    }

    /// As [`Reader::plan`], of a prefix of at least one block: it ends where a part has found `versions_max` versions.
    pub fn plan_prefix(&self, extent: Extent, versions_max: usize) -> Result<Vec<Piece>> {
        self.search(|| Search::bounded(extent, versions_max)).map(|search| pieces(&search))
    }

    /// What the records changed in a prefix of `extent`, of at least one block, in order: no piece of it is the
    /// base's. Each part adds about `versions_max` pieces at most.
    pub(crate) fn changed(&self, extent: Extent, versions_max: usize) -> Result<(Extent, Vec<Piece>)> {
        let search = self.search(|| Search::bounded(extent, versions_max))?;
        let mut pieces = pieces(&search);
        pieces.retain(|piece| !matches!(piece, Piece::Base { .. }));
        Ok((search.extent(), pieces))
    }

    /// Every read passes here, and every long one again and again: an error where the volume was closed, or is about to be.
    pub(crate) fn refuse_if_over(&self) -> Result<()> {
        match &self.using {
            Some(using) if !using.is_unwanted() => Ok(()),
            _ => Err(self.volume.is_over()),
        }
    }

    /// Hands a search through the layers of parts, newest first, and finishes it.
    pub fn search(&self, begin: impl Fn() -> Search) -> Result<Search> {
        self.refuse_if_over()?;
        let base = self.parts.base();
        let above = (base > Lsn::ZERO).then(|| self.visible.clone().above(base));
        let visible = above.as_ref().unwrap_or(self.visible);
        // Once more for each layer with a bad run: from then on its segments answer.
        'anew: loop {
            let mut search = begin();
            for layer in self.parts.layers().rev() {
                if search.is_done() {
                    break;
                }
                if let Err(error) = layer.resolve(visible, &mut search) {
                    if layer.fall_back() {
                        continue 'anew;
                    }
                    return Err(error);
                }
            }
            search.finish();
            return Ok(search);
        }
    }

    /// Carries out reads of any alignment inside the device; each has its own result. Aligned reads are
    /// looked up first and then fetched together.
    pub fn read(&self, reads: &mut [Read<'_>]) {
        let mut plans: Vec<Option<Vec<Piece>>> = Vec::with_capacity(reads.len());
        for read in reads.iter_mut() {
            let len = read.buffer.len() as u64;
            let together = read.result.is_ok()
                && len > 0
                && read.offset.is_multiple_of(BLOCK_BYTES)
                && len.is_multiple_of(BLOCK_BYTES)
                && len <= PLAN_BLOCKS_MAX * BLOCK_BYTES;
            if !together {
                if read.result.is_ok() && len > 0 {
                    read.result = self.read_one(read.offset, read.buffer);
                }
                plans.push(None);
                continue;
            }
            let extent = Extent { start: Lba(read.offset / BLOCK_BYTES), blocks: len / BLOCK_BYTES };
            match self.plan(extent) {
                Ok(plan) => plans.push(Some(plan)),
                Err(error) => {
                    read.result = Err(error);
                    plans.push(None);
                }
            }
        }
        let mut fetches = Fetches::default();
        let mut owners = Vec::new();
        for (number, (read, plan)) in reads.iter_mut().zip(&plans).enumerate() {
            let Some(plan) = plan else { continue };
            let laid_out = self.lay_out(plan, read.buffer, &mut fetches);
            owners.resize(fetches.len(), number);
            if let Err(error) = laid_out {
                read.result = Err(error);
            }
        }
        for (number, error) in self.carry_out(fetches) {
            let result = &mut reads[owners[number]].result;
            if result.is_ok() {
                *result = Err(error);
            }
        }
    }

    fn read_one(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        let head = (offset % BLOCK_BYTES) as usize;
        let aligned = head == 0 && end.is_multiple_of(BLOCK_BYTES);
        if aligned {
            return self.read_blocks(first, buffer);
        }
        if last - first < 2 {
            let mut blocks = vec![0; ((last - first + 1) * BLOCK_BYTES) as usize];
            self.read_blocks(first, &mut blocks)?;
            buffer.copy_from_slice(&blocks[head..head + buffer.len()]);
            return Ok(());
        }
        // The middle goes straight into the caller's buffer; the edges go through a block each.
        let mut edge = vec![0; BLOCK];
        let head_bytes = (BLOCK - head) % BLOCK;
        let tail_bytes = (end % BLOCK_BYTES) as usize;
        let (front, rest) = buffer.split_at_mut(head_bytes);
        let (middle, back) = rest.split_at_mut(rest.len() - tail_bytes);
        if !front.is_empty() {
            self.read_blocks(first, &mut edge)?;
            front.copy_from_slice(&edge[head..]);
        }
        self.read_blocks(first + (head > 0) as u64, middle)?;
        if !back.is_empty() {
            self.read_blocks(last, &mut edge)?;
            back.copy_from_slice(&edge[..tail_bytes]);
        }
        Ok(())
    }

    /// Reads whole blocks from `first` on.
    pub fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let mut first = first;
        for buffer in buffer.chunks_mut(PLAN_BLOCKS_MAX as usize * BLOCK) {
            let blocks = (buffer.len() / BLOCK) as u64;
            let plan = self.plan(Extent { start: Lba(first), blocks })?;
            self.fetch(&plan, buffer)?;
            first += blocks;
        }
        Ok(())
    }

    /// Reads what the plan says into `buffer`, which begins where the plan does, and checks every block.
    pub(crate) fn fetch(&self, plan: &[Piece], buffer: &mut [u8]) -> Result<()> {
        let mut fetches = Fetches::default();
        self.lay_out(plan, buffer, &mut fetches)?;
        self.carry_out(fetches).into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    fn cannot_read(&self, error: std::io::Error) -> Error {
        Error::io(error, format!("volume {}: reading the journal", self.volume.name()))
    }

    /// Fills what needs no journal, and lists the reads of the journal that fill the rest.
    fn lay_out<'p, 'b>(
        &self,
        plan: &'p [Piece],
        buffer: &'b mut [u8],
        fetches: &mut Fetches<'p, 'b>,
    ) -> Result<()> {
        let mut rest: &mut [u8] = buffer;
        let mut at = 0;
        while let Some(piece) = plan.get(at) {
            at += 1;
            let (lsn, block) = match piece {
                Piece::Zero { extent, .. } => {
                    take_front(&mut rest, extent.blocks).fill(0);
                    continue;
                }
                Piece::Base { extent } => {
                    self.base.read(extent.start.0, take_front(&mut rest, extent.blocks))?;
                    continue;
                }
                Piece::Journal { lsn, block, .. } => (*lsn, *block),
            };
            let part = part_of(&self.parts, lsn)?;
            // Neighbours on the device that are neighbours in one segment are one read.
            let first = at - 1;
            while let Some(Piece::Journal { lsn: next, block: behind, .. }) = plan.get(at)
                && *behind as usize == block as usize + at - first
                && Arc::ptr_eq(part_of(&self.parts, *next)?, part)
            {
                at += 1;
            }
            let read = GatheredRead {
                file: part.segment.held().map_err(|error| self.cannot_read(error))?,
                offset: block as u64 * BLOCK_BYTES,
                buffer: take_front(&mut rest, (at - first) as u64),
                result: Ok(()),
            };
            fetches.push(read, &plan[first..at]);
        }
        debug_assert!(rest.is_empty(), "a plan covers its extent");
        Ok(())
    }

    /// What `offset..offset + len` holds, in at most `stretches_max` stretches; covers a prefix.
    pub fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        let end = offset + len;
        let start = offset / BLOCK_BYTES;
        let blocks = end.div_ceil(BLOCK_BYTES) - start;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = offset;
        // Every stretch may consist of many versions: look up so many at a time.
        let mut next = Extent { start: Lba(start), blocks };
        while next.blocks > 0 && stretches.len() <= stretches_max {
            let search = self.search(|| Search::bounded(next, VERSIONS_PER_LOOK))?;
            let covered = search.extent();
            for piece in pieces(&search) {
                match piece {
                    Piece::Zero { extent, hole } => {
                        let content = if hole { Content::Hole } else { Content::Zero };
                        push(&mut stretches, &mut at, end, extent.end(), content);
                    }
                    Piece::Journal { lba, .. } => {
                        push(&mut stretches, &mut at, end, lba.0 + 1, Content::Data);
                    }
                    Piece::Base { extent } => {
                        let mut from = extent.start.0;
                        while from < extent.end() && stretches.len() <= stretches_max {
                            let (to, present) = self.base.stretch(from, extent.end())?;
                            let content = if present { Content::Data } else { Content::Hole };
                            push(&mut stretches, &mut at, end, to, content);
                            from = to;
                        }
                    }
                }
                if stretches.len() > stretches_max {
                    break;
                }
            }
            next = Extent::new(covered.end(), next.end());
        }
        stretches.truncate(stretches_max);
        Ok(stretches)
    }
}

/// Cuts so many blocks off the front.
fn take_front<'b>(rest: &mut &'b mut [u8], blocks: u64) -> &'b mut [u8] {
    let (front, back) = std::mem::take(rest).split_at_mut(blocks as usize * BLOCK);
    *rest = back;
    front
}

const VERSIONS_PER_LOOK: usize = 4096;

fn push(stretches: &mut Vec<Stretch>, at: &mut u64, end: u64, to_block: u64, content: Content) {
    let to = (to_block * BLOCK_BYTES).min(end);
    let len = to - *at;
    *at = to;
    match stretches.last_mut() {
        Some(last) if last.content == content => last.len += len,
        _ => stretches.push(Stretch { len, content }),
    }
}

/// A finished search as pieces in order, its gaps being the base's.
fn pieces(search: &Search) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(search.found().len() + search.gaps().len());
    let end = search.extent().end();
    let mut gaps = search.gaps().iter().filter(|gap| gap.start.0 < end).peekable();
    let base = |gap: &Extent| Piece::Base { extent: Extent::new(gap.start.0, gap.end().min(end)) };
    for version in search.found() {
        while let Some(gap) = gaps.next_if(|gap| gap.start < version.extent.start) {
            pieces.push(base(gap));
        }
        pieces.push(match version.found {
            Found::Hole => Piece::Zero { extent: version.extent, hole: true },
            Found::Zero => Piece::Zero { extent: version.extent, hole: false },
            Found::Payload { block, crc } => {
                Piece::Journal { lba: version.extent.start, lsn: version.lsn, block, crc }
            }
        });
    }
    pieces.extend(gaps.map(base));
    pieces
}
