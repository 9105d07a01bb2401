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
//!
//! A few blocks of t that cannot be read are written all the same, as records that do not fit their checksum: reading them is
//! an error from then on, and all others are what they were. So what a disk loses once the epoch has begun does not
//! leave the volume between two states.

use std::sync::{Arc, MutexGuard};

use super::Volume;
use super::coalesced::{Coalesced, CoalescedState};
use super::parts::part_of;
use crate::base::Source;
use crate::device::{Content, Device};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::epoch::Ahead;
use crate::format::record::{RecordKind, flags};
use crate::format::turn::Turn;
use crate::history::course::Gap;
use crate::history::retention::AtCap;
use crate::ids::*;
use crate::index;
use crate::journal::append::{Appender, Draft};
use crate::journal::scan;
use crate::journal::segment::Fill;
use crate::limits::UNSYNCED_BYTES_MAX;
use crate::view::View;

const BLOCK: usize = BLOCK_BYTES as usize;
const HOLDER: &str = "a promotion to the newest state";
/// A record of the difference holds at most so many blocks, and at most an eighth of a segment.
const RECORD_BLOCKS_MAX: u64 = 256;
/// Stretches of the state that are looked at in one go.
const STRETCHES_PER_LOOK: usize = 256;
/// Changes between two states that are asked for at a time.
const CHANGES_PER_LOOK: usize = 4096;
/// Where more blocks of the state than this cannot be read, somebody has to choose, and may bring a file back before.
const UNREADABLE_BLOCKS_MAX: u64 = 256;
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

    /// How many blocks of what would be written cannot be read, before any of it is; the first of them.
    fn unreadable_in(
        self: &Arc<Volume>,
        newest: &Arc<Coalesced>,
        behind: Lsn,
        from: u64,
    ) -> Result<(u64, Option<u64>)> {
        let view = View::over(self.clone(), newest.clone(), HOLDER)?;
        let mut buffer = vec![0; self.record_blocks() as usize * BLOCK];
        let (mut count, mut first) = (0, None);
        self.each_difference(newest, behind, from, &mut |extent, is_zeros| {
            if is_zeros {
                return Ok(());
            }
            each_read(&view, extent, &mut buffer, &mut |extent, content| {
                if content.is_none() {
                    first.get_or_insert(extent.start.0);
                    count += extent.blocks;
                }
                Ok(())
            })
        })?;
        Ok((count, first))
    }

    fn refuse_unless_readable(self: &Arc<Volume>, newest: &Arc<Coalesced>) -> Result<()> {
        let (count, first) = self.unreadable_in(newest, self.tip_lsn(), 0)?;
        let Some(first) = first else { return Ok(()) };
        let what = format!(
            "{count} blocks of the state of its newest record cannot be read, block {first} is the first of them"
        );
        if count <= UNREADABLE_BLOCKS_MAX {
            self.note_error(format!("{what}: they stay unreadable, the others are what they were"));
            return Ok(());
        }
        let context = format!("volume {}: {what}; nothing was done", self.name());
        Err(Error::new(Kind::Damaged, context).hint(
            "`cdp verify` names what is damaged: bring it back, and try again; or go on from what history has, with --give-up-newest",
        ))
    }

    /// Before the first block that cannot be read is written as such: a disk that gives nothing for a while may give it later.
    fn refuse_where_too_much_is_gone(
        self: &Arc<Volume>,
        newest: &Arc<Coalesced>,
        gap: &Gap,
        from: u64,
    ) -> Result<()> {
        let (count, _) = self.unreadable_in(newest, gap.behind, from)?;
        if count <= UNREADABLE_BLOCKS_MAX {
            return Ok(());
        }
        let name = self.name();
        let context = format!(
            "volume {name}: of the state of {:?}, from which it goes on, {count} blocks from block {from} on cannot be read",
            gap.lsn
        );
        Err(Error::new(Kind::Damaged, context).hint(format!(
            "bring back what is damaged or missing in `coalesced` of its directory, and `cdp failover {name}` again; with --give-up-newest it goes on from what history has, lsn:{}",
            gap.behind
        )))
    }

    fn record_blocks(&self) -> u64 {
        (self.identity.segment_bytes / 8 / BLOCK_BYTES).clamp(1, RECORD_BLOCKS_MAX)
    }

    /// Before a promotion that goes on from the state after `to`: it is kept, and there is room for what has to be written.
    /// Whether the history has not arrived there meanwhile.
    ///
    /// # Errors
    /// `NoSpace`; `Damaged`, where too much of it cannot be read: nothing was done, and the volume shows what it showed.
    pub(crate) fn prepare_takeover(self: &Arc<Volume>, to: Lsn) -> Result<bool> {
        if !self.take_coalesced(to) {
            return Ok(false);
        }
        let Some(newest) = self.taken_coalesced() else { return Ok(false) };
        let made = self
            .refuse_unless_readable(&newest)
            .and_then(|()| self.difference_to(&newest))
            .and_then(|difference| self.reserve(newest.state(), difference));
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
                "`cdp failover {} --give-up-newest` goes on from what history has, lsn:{}",
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
        let mut is_looked_at = false;
        self.each_difference(&newest, gap.behind, done, &mut |extent, is_zeros| {
            if is_zeros {
                return self.append_blocks(extent, &[]);
            }
            each_read(&view, extent, &mut buffer, &mut |extent, content| {
                match content {
                    Some(content) => self.append_blocks(extent, content)?,
                    None => {
                        if !std::mem::replace(&mut is_looked_at, true) {
                            self.refuse_where_too_much_is_gone(&newest, &gap, extent.start.0)?;
                        }
                        self.append_unreadable(extent)?;
                    }
                }
                unsynced += extent.blocks * BLOCK_BYTES;
                if unsynced >= UNSYNCED_BYTES_MAX {
                    unsynced = 0;
                    self.sync_through(self.tip_lsn())?;
                }
                Ok(())
            })
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
        // The header is enough: the content may be what could not be read.
        let parts = self.part_list();
        let part = part_of(&parts, tip)?;
        let mut end = None;
        scan::scan(&part.segment, part.before, tip, &mut |found| {
            if found.header.lsn == tip && found.header.kind.changes_blocks() {
                end = Some(found.header.extent().end());
            }
        })
        .at(|| format!("reading {}", part.segment.path.display()))?;
        Ok(end.unwrap_or(0))
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
        // Of records, not of views: those behind the older state may be the half of a gap, which shows none.
        let blocks = self.size_at(state.from).max(self.size_at(behind)).div_ceil(BLOCK_BYTES);
        let mut changed = Changed {
            volume: self,
            difference: index::Difference::between(&self.visible(state.from), &self.visible(behind)),
            rest: Extent::new(0, blocks),
            page: Vec::new().into_iter(),
        };
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

    /// What could not be read: no content fits these checksums. Durable when this returns, because behind what is durable a
    /// record that does not fit is the end of the log.
    fn append_unreadable(&self, extent: Extent) -> Result<()> {
        let content = vec![0; extent.blocks as usize * BLOCK];
        let wrong = !crc32(&content[..BLOCK]);
        let draft = Draft {
            kind: RecordKind::Write,
            flags: 0,
            session: SessionId::STORE,
            lba: extent.start.0,
            blocks: extent.blocks,
            head_skip: 0,
            tail_skip: 0,
            parts: [&content, &[], &[]],
            crcs: vec![wrong; extent.blocks as usize],
        };
        self.append_draft(&draft)?;
        self.sync_through(self.tip_lsn())
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

/// Blocks that records between two states changed, in rising order.
struct Changed<'a> {
    volume: &'a Volume,
    difference: index::Difference,
    rest: Extent,
    page: std::vec::IntoIter<Extent>,
}

impl Iterator for Changed<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            if let Some(extent) = self.page.next() {
                return Some(Ok(extent));
            }
            if self.rest.blocks == 0 {
                return None;
            }
            match self.volume.changed_page(&self.difference, self.rest, CHANGES_PER_LOOK) {
                Ok(page) => {
                    self.rest = Extent::new(page.end, self.rest.end());
                    self.page = page.extents.into_iter();
                }
                Err(error) => {
                    self.rest.blocks = 0;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Whole blocks and their content; none where they cannot be read.
type Take<'a> = &'a mut dyn FnMut(Extent, Option<&[u8]>) -> Result<()>;

/// Reads blocks of the state, as many at a time as `buffer` has room for.
fn each_read(view: &View, extent: Extent, buffer: &mut [u8], take: Take<'_>) -> Result<()> {
    let mut at = extent.start.0;
    while at < extent.end() {
        let blocks = (buffer.len() as u64 / BLOCK_BYTES).min(extent.end() - at);
        let content = &mut buffer[..blocks as usize * BLOCK];
        if is_read(view, at, content)? {
            take(Extent { start: Lba(at), blocks }, Some(content))?;
            at += blocks;
            continue;
        }
        // Runs of those that can be read, and of those that cannot.
        let end = at + blocks;
        let mut readable = Vec::with_capacity(blocks as usize);
        for (number, block) in content.chunks_exact_mut(BLOCK).enumerate() {
            readable.push(is_read(view, at + number as u64, block)?);
        }
        let mut from = 0;
        for run in readable.chunk_by(|one, other| one == other) {
            let bytes = &content[from * BLOCK..(from + run.len()) * BLOCK];
            let extent = Extent { start: Lba(at + from as u64), blocks: run.len() as u64 };
            take(extent, run[0].then_some(bytes))?;
            from += run.len();
        }
        at = end;
    }
    Ok(())
}

fn is_read(view: &View, first: u64, buffer: &mut [u8]) -> Result<bool> {
    match view.read_blocks(first, buffer) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Io) => Ok(false),
        Err(error) => Err(error),
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
