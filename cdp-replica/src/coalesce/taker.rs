//! The receiving side of a newest state: puts its blocks beside the history, makes them durable, and shows them when they
//! are all there.

use std::sync::Arc;

use cdp_core::ids::*;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::{CoalescedState, CoalescedWriter, Come};

use crate::fault::Fault;
use crate::limits::*;
use crate::syncer::Syncer;
use crate::wire::ahead::{self, Ahead};
use crate::wire::control::Ack;

/// A newest state that comes in.
pub(crate) struct Taker {
    pub(crate) volume: Arc<Volume>,
    pub(crate) number: u64,
    // None once it is shown.
    writer: Option<CoalescedWriter>,
    is_ended: bool,
    // This is being made durable, and whether it is all.
    settling: Option<(Come, bool)>,
    unsynced_bytes: u64,
    synced_at_ns: u64,
    acknowledged_at_ns: u64,
}

impl Taker {
    /// Takes the state `wanted` from this block on, as the connection of this number.
    pub(crate) fn new(
        volume: Arc<Volume>,
        number: u64,
        wanted: &CoalescedState,
        from_block: u64,
    ) -> Result<Taker, Fault> {
        let writer = volume.begin_coalesced(wanted)?;
        let next = writer.state().come.blocks;
        if from_block != next {
            return Err(Fault::protocol(format!(
                "a newest state from block {from_block} on, and {next} is next"
            )));
        }
        Ok(Taker {
            volume,
            number,
            writer: Some(writer),
            is_ended: false,
            settling: None,
            unsynced_bytes: 0,
            synced_at_ns: 0,
            acknowledged_at_ns: 0,
        })
    }

    /// Takes an AHEAD body.
    pub(crate) fn take(&mut self, body: &[u8]) -> Result<(), Fault> {
        let ahead = ahead::read(body)?;
        let Some(writer) = self.writer.as_mut().filter(|_| !self.is_ended) else {
            return Err(Fault::protocol("an AHEAD frame behind the end of the newest state"));
        };
        match ahead {
            Ahead::Bytes(first, blocks) => {
                writer.write(first, blocks)?;
                self.unsynced_bytes += blocks.len() as u64;
            }
            Ahead::Zeros(first, blocks) => writer.write_zeros(first, u64::from(blocks))?,
            Ahead::End => {
                writer.end();
                self.is_ended = true;
            }
        }
        Ok(())
    }

    /// Syncs what came. Whether the state is shown now.
    pub(crate) fn settle(&mut self, syncer: &mut Syncer, now_ns: u64) -> Result<bool, Fault> {
        if syncer.look()? {
            self.note_settled()?;
        }
        let Some(writer) = &mut self.writer else { return Ok(true) };
        let is_time = now_ns.saturating_sub(self.synced_at_ns) >= COPY_SYNC_NS;
        let is_due = is_time || self.unsynced_bytes >= COPY_SYNC_BYTES || self.is_ended;
        let is_new = writer.come_blocks() > writer.state().come.blocks || self.is_ended;
        if self.settling.is_none() && is_new && is_due {
            self.synced_at_ns = now_ns;
            self.unsynced_bytes = 0;
            let settlement = writer.begin_settling(self.is_ended);
            self.settling = Some((settlement.come(), self.is_ended));
            syncer.begin(Box::new(move || settlement.carry_out()))?;
            if syncer.look()? {
                self.note_settled()?;
            }
        }
        Ok(self.writer.is_none())
    }

    fn note_settled(&mut self) -> Result<(), Fault> {
        let Some((come, is_all)) = self.settling.take() else { return Ok(()) };
        self.acknowledged_at_ns = 0;
        if let Some(writer) = &mut self.writer {
            writer.note_settled(come);
        }
        if is_all && let Some(writer) = self.writer.take() {
            self.volume.show_coalesced(writer)?;
        }
        Ok(())
    }

    /// What is durable, if it is time to say that.
    pub(crate) fn acknowledge(&mut self, now_ns: u64) -> Option<Ack> {
        let writer = self.writer.as_ref()?;
        if now_ns.saturating_sub(self.acknowledged_at_ns) < ACK_NS_MAX {
            return None;
        }
        self.acknowledged_at_ns = now_ns.max(1);
        let copied_bytes = writer.state().come.blocks * BLOCK_BYTES;
        Some(Ack { window_bytes: COPY_WINDOW_BYTES, copied_bytes, ..Ack::default() })
    }
}
