//! The sending side of a first copy: what is not zeros in a pinned state, one stretch behind the other, as far as the window goes.

use std::collections::VecDeque;

use cdp_core::device::{Content, Device, Read};
use cdp_core::ids::*;
use cdp_core::journal::append::Position;
use cdp_core::view::View;

use crate::alive::Alive;
use crate::fault::Fault;
use crate::limits::*;
use crate::stretch::stretch_at;
use crate::wire::control::Ack;
use crate::wire::copy;
use crate::wire::frame::FrameWriter;

/// So many stretches of a state are looked at before the other side has its turn.
const LOOKS_PER_TURN: u32 = 64;

/// A first copy under way.
pub(crate) struct Copying {
    view: View,
    position: Position,
    // Looked at up to this byte.
    at: u64,
    done_bytes: u64,
    // All of it was told.
    is_told: bool,
    // Where each frame ends, and the bytes sent up to it.
    unacknowledged: VecDeque<(u64, u64)>,
    sent_bytes: u64,
    acknowledged_bytes: u64,
    window_bytes: u64,
    alive: Alive,
}

impl Copying {
    /// Begins with the state of `view`, which stands at `position`, at this byte.
    pub(crate) fn new(view: View, position: Position, from_byte: u64) -> Result<Copying, Fault> {
        let is_edge = from_byte.is_multiple_of(BLOCK_BYTES) || from_byte == view.size_bytes();
        if from_byte > view.size_bytes() || !is_edge {
            return Err(Fault::protocol(format!("a copy that is at byte {from_byte}")));
        }
        Ok(Copying {
            view,
            position,
            at: from_byte,
            done_bytes: from_byte,
            is_told: false,
            unacknowledged: VecDeque::new(),
            sent_bytes: 0,
            acknowledged_bytes: 0,
            window_bytes: COPY_SYNC_BYTES,
            alive: Alive::default(),
        })
    }

    /// The record whose state it is.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Bytes that are durable there, of how many.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.done_bytes, self.view.size_bytes())
    }

    /// Takes an acknowledgement; whether the copy is whole there.
    pub(crate) fn acknowledged(&mut self, ack: &Ack) -> Result<bool, Fault> {
        if ack.copied_bytes < self.done_bytes || ack.copied_bytes > self.at {
            let text = format!("an acknowledgement of byte {}, which was not sent", ack.copied_bytes);
            return Err(Fault::protocol(text));
        }
        self.done_bytes = ack.copied_bytes;
        self.window_bytes = ack.window_bytes.min(WINDOW_BYTES_MAX);
        while let Some((at, bytes)) = self.unacknowledged.front().copied()
            && at <= ack.copied_bytes
        {
            self.acknowledged_bytes = bytes;
            self.unacknowledged.pop_front();
        }
        // As long as it is no volume yet there is no oldest state.
        if ack.oldest_ns == 0 || !self.is_told {
            return Ok(false);
        }
        if ack.durable_lsn != self.position.lsn.0 || ack.chain != self.position.chain.0 {
            return Err(Fault::protocol("an acknowledgement of another state than the one that was copied"));
        }
        Ok(true)
    }

    /// What is not zeros in the state goes out, as far as there is room.
    pub(crate) fn send(
        &mut self,
        writer: &mut FrameWriter,
        out: &mut Vec<u8>,
        now_ns: u64,
    ) -> Result<(), Fault> {
        let size = self.view.size_bytes();
        self.alive.say(writer, out, now_ns);
        let mut looks = 0;
        while self.at < size && out.len() < OUTPUT_BYTES && looks < LOOKS_PER_TURN && self.has_window() {
            looks += 1;
            let stretch = stretch_at(&self.view, self.at, COPY_BLOCKS_MAX * BLOCK_BYTES)?;
            if stretch.content != Content::Data {
                self.at += stretch.len;
                continue;
            }
            let len = stretch.len.min(COPY_BLOCKS_MAX * BLOCK_BYTES);
            let (at, view, before) = (self.at, &self.view, out.len());
            let (first, count) = (Lba(at / BLOCK_BYTES), len.div_ceil(BLOCK_BYTES));
            copy::send_filled(writer, out, first, count, |blocks| {
                let mut reads = [Read { offset: at, buffer: &mut blocks[..len as usize], result: Ok(()) }];
                view.read(&mut reads);
                let [read] = reads;
                read.result
            })?;
            self.at += len;
            self.sent_bytes += (out.len() - before) as u64;
            self.unacknowledged.push_back((self.at, self.sent_bytes));
        }
        if self.at == size && !self.is_told {
            self.is_told = true;
            copy::send(writer, out, Lba(size.div_ceil(BLOCK_BYTES)), &[]);
        }
        Ok(())
    }

    /// One frame may always be under way.
    fn has_window(&self) -> bool {
        self.sent_bytes - self.acknowledged_bytes < self.window_bytes || self.unacknowledged.is_empty()
    }
}
