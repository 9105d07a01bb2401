//! The sending side of a reseed: hashes ranges of a pinned state, and sends of those that differ the blocks that do.
//!
//! At most [`RANGES_UNANSWERED`] frames of ranges are on their way, so what the answers take here is bounded.

use std::collections::VecDeque;

use cdp_core::device::{Content, Device, Read};
use cdp_core::error::Result as CoreResult;
use cdp_core::ids::*;
use cdp_core::journal::append::Position;
use cdp_core::view::View;

use crate::alive::Alive;
use crate::fault::Fault;
use crate::limits::*;
use crate::stretch::stretch_at;
use crate::wire::control::Ack;
use crate::wire::frame::FrameWriter;
use crate::wire::ranges::{self, Differs, Grid, RangeHash, Ranges};

/// A reseed under way.
pub(crate) struct Teller {
    view: View,
    grid: Grid,
    position: Position,
    // Looked at up to this block.
    looked: u64,
    batch: Vec<(u64, RangeHash)>,
    // All of it was told.
    is_told: bool,
    // The ranges of each frame that was not answered.
    unanswered: VecDeque<Vec<u64>>,
    wanted: VecDeque<Differs>,
    done_bytes: u64,
    alive: Alive,
}

impl Teller {
    /// Begins with the state of `view`, which stands at `position`, at this byte, an edge of its grid.
    pub(crate) fn new(view: View, position: Position, from_byte: u64) -> Result<Teller, Fault> {
        let grid = Grid::of(view.size_bytes());
        let looked = grid.edge_at(from_byte).ok_or_else(|| {
            Fault::protocol(format!("a reseed that is at byte {from_byte}, within a range"))
        })?;
        Ok(Teller {
            view,
            grid,
            position,
            looked,
            batch: Vec::new(),
            is_told: false,
            unanswered: VecDeque::new(),
            wanted: VecDeque::new(),
            done_bytes: from_byte,
            alive: Alive::default(),
        })
    }

    /// The record whose state it is.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Bytes that are durable there, of so many.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.done_bytes, self.view.size_bytes())
    }

    /// Tells and sends as far as there is room.
    pub(crate) fn send(
        &mut self,
        writer: &mut FrameWriter,
        out: &mut Vec<u8>,
        now_ns: u64,
    ) -> Result<(), Fault> {
        self.alive.say(writer, out, now_ns);
        for _ in 0..RANGES_PER_TURN {
            if out.len() >= OUTPUT_BYTES {
                break;
            }
            if let Some(Differs { range, there }) = self.wanted.pop_front() {
                ranges::send_patch(writer, out, range, &self.read(range)?, &there);
            } else if !self.is_told && self.unanswered.len() < RANGES_UNANSWERED {
                if self.looked < self.grid.blocks() {
                    self.look()?;
                }
                self.is_told = self.looked == self.grid.blocks();
                if self.is_told || self.batch.len() == RANGES_PER_FRAME {
                    let told = Ranges { through: self.looked, ranges: std::mem::take(&mut self.batch) };
                    ranges::send_ranges(writer, out, &told);
                    self.unanswered.push_back(told.ranges.iter().map(|(range, _)| *range).collect());
                }
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Looks at the next range, or at what is zeros from there on.
    fn look(&mut self) -> Result<(), Fault> {
        let (at, size_bytes) = (self.grid.byte_of(self.looked), self.view.size_bytes());
        let stretch = stretch_at(&self.view, at, RANGE_BLOCKS * BLOCK_BYTES)?;
        if stretch.content != Content::Data {
            let end = at + stretch.len;
            let edge = match end >= size_bytes {
                true => self.grid.blocks(),
                false => end / BLOCK_BYTES / RANGE_BLOCKS * RANGE_BLOCKS,
            };
            if edge > self.looked {
                self.looked = edge;
                return Ok(());
            }
        }
        let range = self.looked / RANGE_BLOCKS;
        let bytes = self.read(range)?;
        self.looked += self.grid.blocks_of(range);
        if bytes.iter().any(|byte| *byte != 0) {
            self.batch.push((range, ranges::hash_range(&bytes)));
        }
        Ok(())
    }

    /// A range in whole blocks.
    fn read(&self, range: u64) -> CoreResult<Vec<u8>> {
        let mut bytes = vec![0; (self.grid.blocks_of(range) * BLOCK_BYTES) as usize];
        let offset = range * RANGE_BLOCKS * BLOCK_BYTES;
        let there = (self.view.size_bytes() - offset).min(bytes.len() as u64) as usize;
        let mut reads = [Read { offset, buffer: &mut bytes[..there], result: Ok(()) }];
        self.view.read(&mut reads);
        let [read] = reads;
        read.result.map(|()| bytes)
    }

    /// Takes a DIFFERS body.
    pub(crate) fn answered(&mut self, body: &[u8]) -> Result<(), Fault> {
        let differs = ranges::read_differs(body, self.grid)?;
        let told = self.unanswered.pop_front().unwrap_or_default();
        if differs.iter().any(|differs| told.binary_search(&differs.range).is_err()) {
            return Err(Fault::protocol("an answer about ranges that were not told"));
        }
        self.wanted.extend(differs);
        Ok(())
    }

    /// Takes an acknowledgement; whether the copy is a volume now.
    pub(crate) fn acknowledged(&mut self, ack: &Ack) -> Result<bool, Fault> {
        if ack.copied_bytes < self.done_bytes || ack.copied_bytes > self.grid.byte_of(self.looked) {
            let text = format!("an acknowledgement of byte {}, which was not told", ack.copied_bytes);
            return Err(Fault::protocol(text));
        }
        self.done_bytes = ack.copied_bytes;
        // As long as it is no volume yet there is no oldest state.
        if ack.oldest_ns == 0 {
            return Ok(false);
        }
        let is_settled = self.is_told && self.unanswered.is_empty() && self.wanted.is_empty();
        if !is_settled || ack.durable_lsn != self.position.lsn.0 || ack.chain != self.position.chain.0 {
            return Err(Fault::protocol(
                "an acknowledgement of another state than the one that was compared",
            ));
        }
        Ok(true)
    }
}
