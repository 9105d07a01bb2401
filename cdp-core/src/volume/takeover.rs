//! Going on from a newest state whose history is not here: what tells it apart from the newest state of the history is written
//! as records of the epoch that begins.
//!
//! ```text
//!     ... e │ epoch (from t) │ blocks, in rising order │ resize: whole │ what clients write
//!           └──── a gap: its records show no state ────┘ = t
//! ```
//!
//! The epoch's record decides: from the moment it is durable the volume becomes t, and nothing else. Legal states after a
//! crash: a replica that shows t; the gap with any part of its records, which is gone on with behind the last of them before
//! anything is served; t whole, with the overlay or without. The blocks are found anew each time: those that the overlay
//! has, and those that changed between the record it lies over and e; there may be more of them than differ, never less.

use std::sync::{Arc, MutexGuard};

use super::Volume;
use super::coalesced::{Coalesced, CoalescedState};
use super::stream::LogReader;
use crate::base::Source;
use crate::device::{Content, Device};
use crate::error::{Error, Kind, Result};
use crate::format::epoch::Ahead;
use crate::format::record::{RecordKind, flags};
use crate::format::turn::Turn;
use crate::history::course::Gap;
use crate::history::retention::AtCap;
use crate::ids::*;
use crate::journal::append::{Appender, Draft};
use crate::journal::segment::Fill;
use crate::limits::UNSYNCED_BYTES_MAX;
use crate::view::View;

const BLOCK: usize = BLOCK_BYTES as usize;
const HOLDER: &str = "a promotion to the newest state";
/// A record of the difference holds at most so many blocks, and at most an eighth of a segment.
const RECORD_BLOCKS_MAX: u64 = 256;
/// Stretches of the state that are looked at in one go.
const STRETCHES_PER_LOOK: usize = 256;
/// Of the journal's cap so many segments are left to what follows.
const SEGMENTS_LEFT: u64 = 2;

/// What has to be written before a volume can go on from the newest state that it shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Records.
    pub records: u64,
    /// Bytes of content in them.
    pub bytes: u64,
}

/// Who is told of a stretch of blocks, and whether they are zeros.
type Visit<'a> = &'a mut dyn FnMut(Extent, bool) -> Result<()>;

impl Volume {
    /// What going on from the newest state that is shown would write; none if none is.
    pub fn difference_to_newest(self: &Arc<Volume>) -> Result<Option<Difference>> {
        let Some(newest) = self.coalesced() else { return Ok(None) };
        self.difference_to(&newest).map(Some)
    }

    fn difference_to(self: &Arc<Volume>, newest: &Arc<Coalesced>) -> Result<Difference> {
        let mut difference = Difference::default();
        let record_blocks = self.record_blocks();
        self.each_difference(newest, self.tip_lsn(), 0, &mut |extent, is_zeros| {
            difference.records += if is_zeros { 1 } else { extent.blocks.div_ceil(record_blocks) };
            difference.bytes += if is_zeros { 0 } else { extent.blocks * BLOCK_BYTES };
            Ok(())
        })?;
        Ok(difference)
    }

    fn record_blocks(&self) -> u64 {
        (self.identity.segment_bytes / 8 / BLOCK_BYTES).clamp(1, RECORD_BLOCKS_MAX)
    }

    /// Before a promotion that goes on from the state after `to`: it is kept, and there is room for what has to be written.
    /// Whether the history has not arrived there meanwhile.
    ///
    /// # Errors
    /// `NoSpace`: nothing was done, and the volume shows what it showed.
    pub(crate) fn prepare_takeover(self: &Arc<Volume>, to: Lsn) -> Result<bool> {
        if !self.take_coalesced(to) {
            return Ok(false);
        }
        let Some(newest) = self.taken_coalesced() else { return Ok(false) };
        let made =
            self.difference_to(&newest).and_then(|difference| self.reserve(newest.state(), difference));
        made.inspect_err(|_| self.release_coalesced()).map(|()| true)
    }

    fn reserve(&self, state: &CoalescedState, difference: Difference) -> Result<()> {
        let ready = self.pool.lock().expect("no panics under this lock").ready();
        // What others could use is not kept for what does not come about.
        self.make_segments_for(state, difference).inspect_err(|_| self.give_segments_back(ready))
    }

    /// Gives segments that were made ahead back to the filesystem, but for so many.
    fn give_segments_back(&self, ready: usize) {
        let gone = self.pool.lock().expect("no panics under this lock").shrink_to(ready);
        self.forget_bytes(gone * self.identity.segment_bytes);
    }

    fn make_segments_for(&self, state: &CoalescedState, difference: Difference) -> Result<()> {
        let segment_bytes = self.identity.segment_bytes;
        // Each record may be a batch with a header of its own, and none goes over the end of a segment.
        let wanted = difference.bytes + (difference.records + 4) * BLOCK_BYTES;
        let usable = segment_bytes - self.record_blocks() * BLOCK_BYTES - 4 * BLOCK_BYTES;
        loop {
            let ready = self.pool.lock().expect("no panics under this lock").ready() as u64;
            if self.journal_room_bytes() + ready * usable >= wanted {
                return Ok(());
            }
            let made = self.make_segment(Fill::Reserved);
            let why = match made {
                Ok(true) => continue,
                Ok(false) => {
                    // What is older than the state below is let go for it while it is written.
                    let kept = self.bytes_behind(state.from) + wanted + SEGMENTS_LEFT * segment_bytes;
                    let cap = self.journal_cap_bytes()?;
                    if self.retention().at_cap != AtCap::Block && kept <= cap {
                        return Ok(());
                    }
                    let used = self.journal_bytes();
                    Error::new(Kind::NoSpace, format!("the journal holds {used} bytes of at most {cap}"))
                }
                Err(error) if error.kind() == Kind::NoSpace => error,
                Err(error) => return Err(error),
            };
            let context = format!(
                "volume {}: going on from the state of its newest record writes {wanted} bytes, and there is no room: {why}; nothing was done",
                self.name()
            );
            return Err(Error::new(Kind::NoSpace, context).hint(
                "free space on the store's filesystem or raise the journal's cap, and try again; or go on from what history has, with --give-up-newest",
            ));
        }
    }

    /// What the epoch's record says of the state that it goes on from.
    pub(super) fn ahead_of_epoch(&self, to: Lsn, complete: Timestamp) -> Result<Ahead> {
        self.take_coalesced_again(to);
        let newest = self.taken_coalesced().filter(|newest| newest.state().lsn == to);
        let state = newest.as_ref().map(|newest| newest.state()).filter(|state| complete < state.at);
        let state = state.ok_or_else(|| {
            let context =
                format!("volume {} has no {to:?}; its newest record is {:?}", self.name(), self.tip_lsn());
            Error::new(Kind::OutOfRange, context)
        })?;
        let size_bytes = state.size_bytes.max(self.size_bytes());
        Ok(Ahead { lsn: state.lsn, at: state.at, chain: state.chain, complete, size_bytes })
    }

    /// Makes the state whole that the newest epoch goes on from, if it is not; durable when this returns. Nobody else appends
    /// meanwhile.
    pub(super) fn finish_takeover(self: &Arc<Volume>) -> Result<()> {
        let gap = self.course.read().expect("no panics under this lock").open_gap().copied();
        let Some(gap) = gap else { return Ok(()) };
        let newest = self.taken_coalesced().ok_or_else(|| {
            let context = format!(
                "volume {}: the state of {:?}, from which it goes on, is not readable any more",
                self.name(),
                gap.lsn
            );
            Error::new(Kind::Damaged, context).hint(format!(
                "`cdp failover {} --to lsn:{}` goes on from what history has",
                self.name(),
                gap.behind
            ))
        })?;
        self.sync_through(self.tip_lsn())?;
        let done = self.written_of(&gap)?;
        let view = View::over(self.clone(), newest.clone(), HOLDER)?;
        let record_blocks = self.record_blocks();
        let mut buffer = vec![0; record_blocks as usize * BLOCK];
        let mut unsynced = 0;
        self.each_difference(&newest, gap.behind, done, &mut |extent, is_zeros| {
            if is_zeros {
                return self.append_blocks(extent, &[]);
            }
            let mut at = extent.start.0;
            while at < extent.end() {
                let blocks = record_blocks.min(extent.end() - at);
                let content = &mut buffer[..blocks as usize * BLOCK];
                view.read_blocks(at, content)?;
                self.append_blocks(Extent { start: Lba(at), blocks }, content)?;
                at += blocks;
                unsynced += blocks * BLOCK_BYTES;
                if unsynced >= UNSYNCED_BYTES_MAX {
                    unsynced = 0;
                    self.sync_through(self.tip_lsn())?;
                }
            }
            Ok(())
        })?;
        let whole = Turn::Resize { size_bytes: newest.state().size_bytes };
        let payload = whole.encode();
        let elapsed_ns = self.shared.clock.elapsed_ns();
        let draft = Draft::event(whole.kind(), SessionId::STORE, elapsed_ns, &payload);
        self.append_draft(&draft)?;
        self.sync_through(self.tip_lsn())
    }

    /// The promotion is over, or cannot go on now. If it is done, the newest state is in the journal and goes.
    pub(crate) fn end_takeover(&self, is_done: bool) {
        self.release_coalesced();
        if self.course.read().expect("no panics under this lock").open_gap().is_none() {
            // Of what was made for it nothing more is wanted; one is what upkeep has ahead.
            self.give_segments_back(1);
        }
        if is_done && let Err(error) = self.drop_coalesced() {
            // It is not shown any more, and the next opening removes it.
            self.note_error(format!("the newest state that it went on from stays on the disk: {error}"));
        }
    }

    /// Up to which block the journal has it: they were written in rising order.
    fn written_of(self: &Arc<Volume>, gap: &Gap) -> Result<u64> {
        let tip = self.tip_lsn();
        if tip <= gap.behind.next() {
            return Ok(0);
        }
        let newest = LogReader::behind(self, tip.previous())?.read(1, 1)?;
        let header =
            newest.first().map(|record| &record.header).filter(|header| header.kind.changes_blocks());
        Ok(header.map_or(0, |header| header.extent().end()))
    }

    /// Visits what tells the newest state apart from that after `behind`, in rising order, from the block `from` on.
    fn each_difference(
        self: &Arc<Volume>,
        newest: &Arc<Coalesced>,
        behind: Lsn,
        from: u64,
        visit: Visit<'_>,
    ) -> Result<()> {
        let state = newest.state();
        let view = View::over(self.clone(), newest.clone(), HOLDER)?;
        let end = state.size_bytes.div_ceil(BLOCK_BYTES);
        let changes = self.changed(state.from, behind)?;
        let mut changed = changes.extents();
        let mut next = changed.next().transpose()?;
        let mut at = from;
        while at < end {
            let (until, source) = newest.overlay().look(at, end)?;
            match source {
                Source::Zeros => visit(Extent::new(at, until), true)?,
                Source::Own => visit(Extent::new(at, until), false)?,
                Source::Below => {
                    while let Some(extent) = next.filter(|extent| extent.start.0 < until) {
                        let inside = (extent.start.0.max(at), extent.end().min(until));
                        if inside.0 < inside.1 {
                            each_stretch(&view, Extent::new(inside.0, inside.1), visit)?;
                        }
                        if extent.end() > until {
                            break;
                        }
                        next = changed.next().transpose()?;
                    }
                }
            }
            at = until;
        }
        // What lies behind its end must not come back when the volume grows.
        let (start, larger) = (end.max(from), self.size_at(behind).div_ceil(BLOCK_BYTES));
        if start < larger { visit(Extent::new(start, larger), true) } else { Ok(()) }
    }

    /// Whole blocks; without content they are zeros.
    fn append_blocks(&self, extent: Extent, content: &[u8]) -> Result<()> {
        let is_zeros = content.iter().all(|byte| *byte == 0);
        let (kind, flags, payload) = match is_zeros {
            true => (RecordKind::Zero, flags::HOLE, &[][..]),
            false => (RecordKind::Write, 0, content),
        };
        let draft = Draft {
            kind,
            flags,
            session: SessionId::STORE,
            lba: extent.start.0,
            blocks: extent.blocks,
            head_skip: 0,
            tail_skip: 0,
            parts: [payload, &[], &[]],
            crcs: Vec::new(),
        };
        self.append_draft(&draft.checksummed())
    }

    fn append_draft(&self, draft: &Draft<'_>) -> Result<()> {
        self.wait_for_write_out()?;
        let append_it = |append: &mut MutexGuard<'_, Option<Appender>>| {
            let at = self.shared.clock.take(1);
            self.append_in_any_role(append, std::slice::from_ref(draft), at).1
        };
        self.append_alone(append_it).map(drop)
    }
}

/// Visits the stretches of data and of zeros in some blocks of the state.
fn each_stretch(view: &View, extent: Extent, visit: Visit<'_>) -> Result<()> {
    let (mut at, end) = (extent.start.0, extent.end());
    while at < end {
        // The block that the end cuts is a whole one.
        let bytes = (end * BLOCK_BYTES).min(view.size_bytes()) - at * BLOCK_BYTES;
        let stretches = view.extents(at * BLOCK_BYTES, bytes, STRETCHES_PER_LOOK)?;
        for stretch in stretches {
            let blocks = stretch.len.div_ceil(BLOCK_BYTES);
            visit(Extent { start: Lba(at), blocks }, stretch.content != Content::Data)?;
            at += blocks;
        }
    }
    Ok(())
}
