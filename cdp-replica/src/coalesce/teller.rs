//! The sending side of a newest state: counts whether it pays, then sends the blocks that differ.

use std::collections::VecDeque;
use std::sync::Arc;

use cdp_core::device::{Content, Device, Read};
use cdp_core::error::Result as CoreResult;
use cdp_core::ids::*;
use cdp_core::journal::append::Position;
use cdp_core::view::View;
use cdp_core::volume::changed::Changes;

use crate::alive::Alive;
use crate::fault::Fault;
use crate::limits::*;
use crate::stretch::stretch_at;
use crate::wire::ahead::{self, Ahead};
use crate::wire::control::{Ack, Start};
use crate::wire::frame::FrameWriter;

/// Extents that are asked for at a time.
const PAGE_EXTENTS: usize = 1024;
/// Extents that are counted before the other side has its turn.
const WEIGHINGS_PER_TURN: usize = 256;
/// Of a long extent so much is looked at when it is counted.
const WEIGHED_BYTES: u64 = 64 << 20;
/// So many stretches of the state are looked at before the other side has its turn.
const LOOKS_PER_TURN: usize = 64;

/// What weighing comes to.
pub(crate) enum Weight {
    /// It goes on.
    NotYet,
    /// It does not pay: history alone.
    Heavy,
    /// It pays.
    Light,
}

/// A newest state that is to be sent, or is.
pub(crate) struct Teller {
    // Between the newest record there and the state's.
    changes: Changes,
    from: Position,
    to: Position,
    // Blocks of the state.
    end: u64,
    // Counted up to this block, so many; more than the limit does not pay.
    weighed: u64,
    weight_blocks: u64,
    limit_blocks: u64,
    // Looked at up to this block, and what was found and not sent.
    looked: u64,
    page: VecDeque<Extent>,
    sent_blocks: u64,
    sent_end: u64,
    is_told: bool,
    // Behind which block each frame ends, and the bytes sent up to it.
    unacknowledged: VecDeque<(u64, u64)>,
    sent_bytes: u64,
    acknowledged_bytes: u64,
    window_bytes: u64,
    done_block: u64,
    alive: Alive,
}

impl Teller {
    /// The state after `to` for somebody who has the one after `from`, and of it everything before `done_block`. With more
    /// than `limit_blocks` it does not pay.
    pub(crate) fn new(
        (from, to): (Position, Position),
        views: (View, View),
        done_block: u64,
        limit_blocks: u64,
    ) -> Result<Teller, Fault> {
        let end = views.1.size_bytes().div_ceil(BLOCK_BYTES);
        if done_block > end {
            return Err(Fault::protocol(format!("a newest state that is at block {done_block} of {end}")));
        }
        let changes = Changes::between(Arc::new(views.0), Arc::new(views.1))?;
        Ok(Teller {
            changes,
            from,
            to,
            end,
            weighed: done_block,
            weight_blocks: 0,
            limit_blocks,
            looked: done_block,
            page: VecDeque::new(),
            sent_blocks: 0,
            sent_end: done_block,
            is_told: false,
            unacknowledged: VecDeque::new(),
            sent_bytes: 0,
            acknowledged_bytes: 0,
            window_bytes: COPY_SYNC_BYTES,
            done_block,
            alive: Alive::default(),
        })
    }

    /// The newest record there.
    pub(crate) fn from(&self) -> Position {
        self.from
    }

    /// The record whose state it is.
    pub(crate) fn to(&self) -> Position {
        self.to
    }

    /// Bytes that were sent, of so many; none while they are counted.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.sent_blocks * BLOCK_BYTES, self.weight_blocks * BLOCK_BYTES)
    }

    /// It begins so.
    pub(crate) fn start(&self) -> Start {
        Start::Ahead {
            lsn: self.to.lsn.0,
            ns: self.to.timestamp.0,
            chain: self.to.chain.0,
            size_bytes: self.changes.to().size_bytes(),
            from_lsn: self.from.lsn.0,
            chain_before: self.from.chain.0,
            from_block: self.done_block,
        }
    }

    /// Counts some more of what differs.
    pub(crate) fn weigh(
        &mut self,
        writer: &mut FrameWriter,
        out: &mut Vec<u8>,
        now_ns: u64,
    ) -> Result<Weight, Fault> {
        self.alive.say(writer, out, now_ns);
        for _ in 0..WEIGHINGS_PER_TURN {
            match self.page.pop_front() {
                Some(extent) if extent.blocks <= COPY_BLOCKS_MAX => self.weight_blocks += extent.blocks,
                // A long run of zeros costs nothing.
                Some(extent) => {
                    let stretch = stretch_at(self.changes.to(), extent.start.0 * BLOCK_BYTES, WEIGHED_BYTES)?;
                    let blocks = stretch.len.div_ceil(BLOCK_BYTES).min(extent.blocks);
                    self.weight_blocks += if stretch.content == Content::Data { blocks } else { 0 };
                    if blocks < extent.blocks {
                        self.page.push_front(Extent::new(extent.start.0 + blocks, extent.end()));
                    }
                }
                None if self.weighed < self.end => {
                    let page = self.changes.page(Extent::new(self.weighed, self.end), PAGE_EXTENTS)?;
                    self.weighed = page.end;
                    self.page = page.extents.into();
                }
                None => return Ok(Weight::Light),
            }
            if self.weight_blocks > self.limit_blocks {
                return Ok(Weight::Heavy);
            }
        }
        Ok(Weight::NotYet)
    }

    /// What the state holds at the front of an extent: so many blocks of the same.
    fn stretch(&self, extent: Extent) -> CoreResult<(u64, Content)> {
        let view = self.changes.to();
        let stretch = stretch_at(view, extent.start.0 * BLOCK_BYTES, COPY_BLOCKS_MAX * BLOCK_BYTES)?;
        let max = if stretch.content == Content::Data { COPY_BLOCKS_MAX } else { u64::from(u32::MAX) };
        Ok((stretch.len.div_ceil(BLOCK_BYTES).min(extent.blocks).min(max), stretch.content))
    }

    /// Sends as far as there is room.
    pub(crate) fn send(
        &mut self,
        writer: &mut FrameWriter,
        out: &mut Vec<u8>,
        now_ns: u64,
    ) -> Result<(), Fault> {
        self.alive.say(writer, out, now_ns);
        for _ in 0..LOOKS_PER_TURN {
            let has_room = self.sent_bytes - self.acknowledged_bytes < self.window_bytes
                || self.unacknowledged.is_empty();
            if self.is_told || out.len() >= OUTPUT_BYTES || !has_room {
                break;
            }
            let before = out.len();
            if let Some(extent) = self.page.pop_front() {
                self.send_some(writer, out, extent)?;
            } else if self.looked < self.end {
                let page = self.changes.page(Extent::new(self.looked, self.end), PAGE_EXTENTS)?;
                self.looked = page.end;
                self.page = page.extents.into();
            } else {
                self.is_told = true;
                self.sent_end = self.end;
                ahead::send(writer, out, Ahead::End);
            }
            if out.len() > before {
                self.sent_bytes += (out.len() - before) as u64;
                self.unacknowledged.push_back((self.sent_end, self.sent_bytes));
            }
        }
        Ok(())
    }

    /// The front of an extent; the rest of it is next.
    fn send_some(&mut self, writer: &mut FrameWriter, out: &mut Vec<u8>, extent: Extent) -> CoreResult<()> {
        let (blocks, content) = self.stretch(extent)?;
        let first = extent.start;
        if content == Content::Data {
            let mut bytes = vec![0; (blocks * BLOCK_BYTES) as usize];
            let view = self.changes.to();
            let offset = first.0 * BLOCK_BYTES;
            let there = (view.size_bytes() - offset).min(bytes.len() as u64) as usize;
            let mut reads = [Read { offset, buffer: &mut bytes[..there], result: Ok(()) }];
            view.read(&mut reads);
            let [read] = reads;
            read.result?;
            ahead::send(writer, out, Ahead::Bytes(first, &bytes));
            self.sent_blocks += blocks;
        } else {
            ahead::send(writer, out, Ahead::Zeros(first, blocks as u32));
        }
        self.sent_end = first.0 + blocks;
        if blocks < extent.blocks {
            self.page.push_front(Extent::new(self.sent_end, extent.end()));
        }
        Ok(())
    }

    /// Takes an acknowledgement; whether the state is shown there now.
    pub(crate) fn acknowledged(&mut self, ack: &Ack) -> Result<bool, Fault> {
        // The first one of somebody who takes records: all of it is durable there.
        if ack.oldest_ns != 0 {
            let is_same = ack.durable_lsn == self.from.lsn.0 && ack.chain == self.from.chain.0;
            return match self.is_told && is_same {
                true => Ok(true),
                false => Err(Fault::protocol(
                    "an acknowledgement of another history, before the newest state is whole",
                )),
            };
        }
        let done = ack.copied_bytes / BLOCK_BYTES;
        if done < self.done_block || done > self.sent_end {
            return Err(Fault::protocol(format!("an acknowledgement of block {done}, which was not sent")));
        }
        self.done_block = done;
        self.window_bytes = ack.window_bytes.min(WINDOW_BYTES_MAX);
        while let Some((end, bytes)) = self.unacknowledged.front().copied()
            && end <= done
        {
            self.acknowledged_bytes = bytes;
            self.unacknowledged.pop_front();
        }
        Ok(false)
    }
}
