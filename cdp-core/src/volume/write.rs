//! From a client's change to records in the journal and the index.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::Volume;
use super::advance::Room;
use super::check_range;
use super::client::{Entry, stale};
use super::parts::{OpenPart, Part, PartIndex};
use crate::device::{Change, Device};
use crate::error::{Error, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::record::{RecordKind, flags};
use crate::generate::{Generated, ZERO_PAYLOAD};
use crate::ids::*;
use crate::journal::append::{Appender, Draft};
use crate::limits::{REQUEST_BYTES_MAX, UNSYNCED_BYTES_MAX};

const BLOCK: usize = BLOCK_BYTES as usize;
static ZERO_BLOCK_CRC: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| crc32(&[0; BLOCK]));
/// So often an edge block is read again because somebody changed it meanwhile, before it is read with
/// everybody else kept out.
const EDGE_TRIES: u32 = 3;
/// So often a writer makes room in a full journal for others to take it before he is refused.
const ROOM_TRIES: u32 = 100;
/// A marker with all it may carry fits into this, in bytes.
const EVENT_ROOM_BYTES: u64 = 64 << 10;

/// A change with its unaligned ends taken apart.
struct Shape {
    kind: RecordKind,
    flags: u8,
    first: u64,
    blocks: u64,
    head_skip: u16,
    tail_skip: u16,
}

impl Shape {
    fn of(kind: RecordKind, flags: u8, offset: u64, len: u64) -> Shape {
        let end = offset + len;
        let first = offset / BLOCK_BYTES;
        Shape {
            kind,
            flags,
            first,
            blocks: end.div_ceil(BLOCK_BYTES) - first,
            head_skip: (offset % BLOCK_BYTES) as u16,
            tail_skip: (end.next_multiple_of(BLOCK_BYTES) - end) as u16,
        }
    }

    fn is_aligned(&self) -> bool {
        self.head_skip == 0 && self.tail_skip == 0
    }

    fn draft<'a>(&self, session: SessionId, parts: [&'a [u8]; 3]) -> Draft<'a> {
        Draft {
            kind: self.kind,
            flags: self.flags,
            session,
            lba: self.first,
            blocks: self.blocks,
            head_skip: self.head_skip,
            tail_skip: self.tail_skip,
            parts,
            crcs: Vec::new(),
        }
        .checksummed()
    }
}

/// Whether all bytes are zero. Looks at the front first: most data differs there.
fn is_zero(bytes: &[u8]) -> bool {
    let (front, rest) = bytes.split_at(bytes.len().min(64));
    front.iter().all(|byte| *byte == 0)
        && rest.chunks(4096).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

impl Volume {
    /// `entry` is when whoever asks came in: what it wants is meant for the state since.
    pub(super) fn apply_changes(
        &self,
        session: SessionId,
        entry: Entry,
        changes: &[Change<'_>],
        results: &mut Vec<Result<Lsn>>,
    ) {
        if let Err(error) = self.refuse_unless_writable().and_then(|()| self.wait_for_write_out()) {
            results.extend(changes.iter().map(|_| Err(error.duplicate())));
            return;
        }
        let base = results.len();
        results.extend(changes.iter().map(|_| Ok(Lsn::ZERO)));
        let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(changes.len());
        let mut slots: Vec<usize> = Vec::with_capacity(changes.len());
        for (number, change) in changes.iter().enumerate() {
            let slot = base + number;
            let (offset, len) = range_of(change);
            if let Err(error) = self.check_change(change, offset, len) {
                results[slot] = Err(error);
                continue;
            }
            if len == 0 {
                results[slot] = Ok(self.tip_lsn());
                continue;
            }
            let (kind, flag, data) = match change {
                Change::Write { data, .. } => (RecordKind::Write, 0, *data),
                Change::Zero { hole, .. } => (RecordKind::Zero, if *hole { flags::HOLE } else { 0 }, &[][..]),
                Change::Trim { .. } => (RecordKind::Trim, 0, &[][..]),
            };
            let mut shape = Shape::of(kind, flag, offset, len);
            if shape.is_aligned() {
                let mut payload = data;
                if kind == RecordKind::Write && is_zero(data) {
                    shape.kind = RecordKind::Zero;
                    shape.flags = flags::HOLE | flags::ZEROS_WRITTEN;
                    payload = &[];
                }
                drafts.push(shape.draft(session, [payload, &[], &[]]));
                slots.push(slot);
            } else {
                // Its edges depend on what comes before it, so that goes first.
                self.append_drafts(entry, &mut drafts, &mut slots, results);
                results[slot] = self.apply_unaligned(session, entry, &shape, data);
            }
        }
        self.append_drafts(entry, &mut drafts, &mut slots, results);
    }

    /// Appends generated changes, see [`crate::generate`]: their payload is zeros that are not looked at.
    pub fn apply_generated(&self, changes: &[Generated]) -> Result<()> {
        self.refuse_unless_writable()?;
        self.wait_for_write_out()?;
        let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(changes.len());
        for change in changes {
            let (kind, extent, payload_blocks) = match change {
                Generated::Write(extent) => (RecordKind::Write, extent, extent.blocks as usize),
                Generated::Trim(extent) => (RecordKind::Trim, extent, 0),
            };
            check_range(extent.start.0 * BLOCK_BYTES, extent.blocks * BLOCK_BYTES, self.size_bytes())?;
            drafts.push(Draft {
                kind,
                flags: 0,
                session: SessionId(1),
                lba: extent.start.0,
                blocks: extent.blocks,
                head_skip: 0,
                tail_skip: 0,
                parts: [&ZERO_PAYLOAD[..payload_blocks * BLOCK], &[], &[]],
                crcs: vec![*ZERO_BLOCK_CRC; payload_blocks],
            });
        }
        let mut slots: Vec<usize> = (0..drafts.len()).collect();
        let mut results: Vec<Result<Lsn>> = drafts.iter().map(|_| Ok(Lsn::ZERO)).collect();
        self.append_drafts(self.entry(), &mut drafts, &mut slots, &mut results);
        results.into_iter().collect::<Result<Vec<Lsn>>>().map(drop)
    }

    fn check_change(&self, change: &Change<'_>, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size_bytes())?;
        if matches!(change, Change::Write { .. }) && len > REQUEST_BYTES_MAX {
            let context = format!("a write of {len} bytes; at most {REQUEST_BYTES_MAX} go in one request");
            return Err(Error::new(Kind::Invalid, context));
        }
        Ok(())
    }

    /// Back pressure: who writes faster than the disk takes it, or than the index gets runs, waits here, before taking any lock.
    pub(super) fn wait_for_write_out(&self) -> Result<()> {
        let unsynced = self.staged.lock().expect("no panics under this lock").bytes;
        if unsynced > 2 * UNSYNCED_BYTES_MAX {
            self.sync_through(self.tip_lsn())?;
        }
        self.wait_for_memory()
    }

    fn append_drafts(
        &self,
        entry: Entry,
        drafts: &mut Vec<Draft<'_>>,
        slots: &mut Vec<usize>,
        results: &mut [Result<Lsn>],
    ) {
        if drafts.is_empty() {
            return;
        }
        let mut append = self.append.lock().expect("no panics under this lock");
        let mut done = 0;
        if self.entry() != entry {
            slots.iter().for_each(|slot| results[*slot] = Err(stale(self)));
            done = drafts.len();
        }
        let mut tries = 0;
        while done < drafts.len() {
            let (count, outcome) = self.append_front(&mut append, &drafts[done..]);
            if self.is_full(&outcome) {
                drop(append);
                let is_room = self.make_room_for(&mut tries);
                append = self.append.lock().expect("no panics under this lock");
                if is_room {
                    continue;
                }
            }
            for (number, slot) in slots[done..done + count].iter().enumerate() {
                results[*slot] = match &outcome {
                    Ok(first) => Ok(Lsn(first.0 + number as u64)),
                    Err(error) => Err(error.duplicate()),
                };
            }
            done += count;
        }
        drop(append);
        drafts.clear();
        slots.clear();
    }

    fn is_full<T>(&self, outcome: &Result<T>) -> bool {
        outcome.as_ref().is_err_and(|error| error.kind() == Kind::NoSpace)
    }

    /// Makes room where the policy lets the oldest history go for it; whoever asks holds no lock, and asks again
    /// only as long as others are as quick to use what was freed. Whether it is worth trying again.
    pub(super) fn make_room_for(&self, tries: &mut u32) -> bool {
        match self.drop_for_room() {
            Ok(Room::Made) => {
                *tries += 1;
                *tries <= ROOM_TRIES
            }
            Ok(Room::Was) => {
                *tries += ROOM_TRIES / 4;
                *tries <= ROOM_TRIES
            }
            Ok(Room::None) => self.give_up_for_room(),
            Err(error) => {
                self.note_error(format!("making room in the journal: {error}"));
                false
            }
        }
    }

    /// Makes room, if the next record may find none.
    pub(super) fn make_room_for_event(&self) {
        let ready = self.pool.lock().expect("no panics under this lock").ready();
        if ready == 0 && self.journal_room_bytes() < EVENT_ROOM_BYTES {
            self.make_room_for(&mut 0);
        }
    }

    /// As [`Volume::append_one`] for a caller who holds no lock: where the journal is full, the policy may make room.
    pub(super) fn append_alone<T>(
        &self,
        mut append_it: impl FnMut(&mut MutexGuard<'_, Option<Appender>>) -> Result<T>,
    ) -> Result<T> {
        let mut tries = 0;
        loop {
            let outcome = append_it(&mut self.append.lock().expect("no panics under this lock"));
            if !self.is_full(&outcome) || !self.make_room_for(&mut tries) {
                return outcome;
            }
        }
    }

    /// Appends one record that may change blocks or not. The caller holds the append lock.
    pub(super) fn append_one(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        draft: Draft<'_>,
    ) -> Result<Lsn> {
        self.append_front(append, &[draft]).1
    }

    /// Appends as many drafts as go into one batch; gives their number, at least 1, and the first LSN or the
    /// error that all of them share.
    pub(super) fn append_front(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        drafts: &[Draft<'_>],
    ) -> (usize, Result<Lsn>) {
        // Whoever waited for the lock may find that the volume became a replica meanwhile.
        match self.refuse_unless_primary() {
            Ok(()) => self.append_stamped(append, drafts, None),
            Err(error) => (drafts.len(), Err(error)),
        }
    }

    /// As [`Volume::append_one`], with a timestamp that was taken when the caller held the append lock already.
    pub(super) fn append_one_at(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        draft: Draft<'_>,
        at: Timestamp,
    ) -> Result<Lsn> {
        self.refuse_unless_primary()?;
        self.append_stamped(append, &[draft], Some(at)).1
    }

    /// As [`Volume::append_front`], also for the promotion of a volume that is not the primary yet, with timestamps from
    /// `at` on that were taken when the caller held the append lock already.
    pub(super) fn append_in_any_role(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        drafts: &[Draft<'_>],
        at: Timestamp,
    ) -> (usize, Result<Lsn>) {
        self.append_stamped(append, drafts, Some(at))
    }

    /// With timestamps from `stamp` on, or from the clock.
    fn append_stamped(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        drafts: &[Draft<'_>],
        stamp: Option<Timestamp>,
    ) -> (usize, Result<Lsn>) {
        // Likewise that it became read-only.
        let refusal = self.refuse_unless_healthy().err();
        let Some(appender) = append.as_mut().filter(|_| refusal.is_none()) else {
            return (drafts.len(), Err(refusal.unwrap_or_else(closed)));
        };
        let (mut count, mut blocks) = appender.fitting(drafts);
        let is_full = self
            .parts
            .list()
            .last()
            .is_some_and(|open| open.memory_bytes() > self.shared.memory.open_part_bytes_max());
        if count == 0 || (is_full && self.roll_early(appender)) {
            if count == 0 && appender.is_empty() {
                return (1, Err(does_not_fit(&drafts[0])));
            }
            if count == 0
                && let Err(error) = self.roll(appender)
            {
                return (1, Err(error));
            }
            (count, blocks) = appender.fitting(drafts);
            if count == 0 {
                return (1, Err(does_not_fit(&drafts[0])));
            }
        }
        let parts = self.parts.list();
        let open = parts.last().expect("an open volume has an open part");
        let first_timestamp = stamp.unwrap_or_else(|| self.shared.clock.take(count as u64));
        let first = appender.position.lsn.next();
        let durable = self.commit.durable();
        let before = appender.end;
        match appender.append_batch(&drafts[..count], blocks, first_timestamp, durable, &mut OpenPart(open)) {
            Ok(()) => {
                self.learn_turns(&drafts[..count], first, first_timestamp);
                self.publish_staged(appender, appender.end - before);
                (count, Ok(first))
            }
            Err(error) if error.kind() == Kind::NoSpace && appender.void_failed_append().is_ok() => {
                (count, Err(error))
            }
            Err(error) => {
                self.leave_poisoned_segment(append, &error);
                (count, Err(error))
            }
        }
    }

    /// Many small ranges can fill the memory for the open segment's index long before its space is full. If
    /// there is no next segment to be had, memory has to give.
    fn roll_early(&self, appender: &mut Appender) -> bool {
        self.roll(appender).is_ok()
    }

    /// Reads see it from here on, and flushes cover it.
    pub(super) fn publish_staged(&self, appender: &Appender, bytes: u64) {
        let mut staged = self.staged.lock().expect("no panics under this lock");
        staged.lsn = appender.position.lsn;
        staged.bytes += bytes;
        staged.since_ns.get_or_insert_with(|| self.shared.clock.elapsed_ns());
        self.tip.store(staged.lsn.0, Ordering::Release);
    }

    fn apply_unaligned(&self, session: SessionId, entry: Entry, shape: &Shape, data: &[u8]) -> Result<Lsn> {
        let mut room_tries = 0;
        loop {
            let outcome = self.try_unaligned(session, entry, shape, data);
            if !self.is_full(&outcome) || !self.make_room_for(&mut room_tries) {
                return outcome;
            }
        }
    }

    fn try_unaligned(&self, session: SessionId, entry: Entry, shape: &Shape, data: &[u8]) -> Result<Lsn> {
        let mut tries = 0;
        loop {
            // As long as this list is held, what is visible at the tip is not folded away.
            let _held = self.parts.list();
            let seen = self.tip_lsn();
            if tries < EDGE_TRIES {
                let edges = self.fill_edges(shape, data, seen)?;
                let draft = edges.draft(shape, session);
                let mut append = self.append.lock().expect("no panics under this lock");
                if self.entry() != entry {
                    return Err(stale(self));
                }
                if self.edges_changed_since(shape, seen) {
                    tries += 1;
                    continue;
                }
                return self.append_one(&mut append, draft);
            }
            let mut append = self.append.lock().expect("no panics under this lock");
            if self.entry() != entry {
                return Err(stale(self));
            }
            let edges = self.fill_edges(shape, data, self.tip_lsn())?;
            return self.append_one(&mut append, edges.draft(shape, session));
        }
    }

    fn edges_changed_since(&self, shape: &Shape, seen: Lsn) -> bool {
        let last = shape.first + shape.blocks - 1;
        let changed = |part: &Part| {
            (shape.head_skip > 0 || shape.blocks == 1) && part.changed_since(Lba(shape.first), seen)
                || shape.tail_skip > 0 && part.changed_since(Lba(last), seen)
        };
        let parts = self.parts.list();
        parts.iter().rev().take_while(|part| part.last_lsn() > seen).any(|part| changed(part))
    }

    /// Whole blocks for the ends of an unaligned change, as they are at `lsn` with the change laid over.
    fn fill_edges<'a>(&self, shape: &Shape, data: &'a [u8], lsn: Lsn) -> Result<Edges<'a>> {
        let (head_skip, tail_skip) = (shape.head_skip as usize, shape.tail_skip as usize);
        let visible = self.visible(lsn);
        let reader = self.reader(&visible);
        let is_write = shape.kind == RecordKind::Write;
        let read = |lba: u64| {
            let mut block = vec![0; BLOCK];
            reader.read_blocks(lba, &mut block).map(|()| block)
        };
        if shape.blocks == 1 {
            let mut block = read(shape.first)?;
            let inside = &mut block[head_skip..BLOCK - tail_skip];
            if is_write {
                inside.copy_from_slice(data)
            } else {
                inside.fill(0)
            }
            return Ok(Edges { head: block, middle: &[], tail: Vec::new() });
        }
        let mut edges = Edges { head: Vec::new(), middle: data, tail: Vec::new() };
        if head_skip > 0 {
            edges.head = read(shape.first)?;
            if is_write {
                let (front, middle) = data.split_at(BLOCK - head_skip);
                edges.head[head_skip..].copy_from_slice(front);
                edges.middle = middle;
            } else {
                edges.head[head_skip..].fill(0);
            }
        }
        if tail_skip > 0 {
            edges.tail = read(shape.first + shape.blocks - 1)?;
            if is_write {
                let (middle, back) = edges.middle.split_at(edges.middle.len() - (BLOCK - tail_skip));
                edges.tail[..BLOCK - tail_skip].copy_from_slice(back);
                edges.middle = middle;
            } else {
                edges.tail[..BLOCK - tail_skip].fill(0);
            }
        }
        Ok(edges)
    }
}

/// The payload of an unaligned change.
struct Edges<'a> {
    head: Vec<u8>,
    middle: &'a [u8],
    tail: Vec<u8>,
}

impl Edges<'_> {
    fn draft(&self, shape: &Shape, session: SessionId) -> Draft<'_> {
        shape.draft(session, [&self.head, self.middle, &self.tail])
    }
}

fn range_of(change: &Change<'_>) -> (u64, u64) {
    match change {
        Change::Write { offset, data } => (*offset, data.len() as u64),
        Change::Zero { offset, len, .. } | Change::Trim { offset, len } => (*offset, *len),
    }
}

/// Segments that the largest request does not fit into are those of simulations.
fn does_not_fit(draft: &Draft<'_>) -> Error {
    let context = format!("a request of {} blocks does not fit into a segment", draft.payload_blocks());
    Error::new(Kind::Invalid, context)
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the volume is closed")
}

/// Whether a part is still in memory and takes records.
pub(super) fn is_open(part: &Part) -> bool {
    matches!(part.index, PartIndex::Live(_)) && part.frozen.get().is_none()
}
