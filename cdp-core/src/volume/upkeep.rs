//! What a volume does by itself: bounded write-out, periodic markers, sealing, runs, segments made ahead. No
//! threads here: somebody calls [`Volume::tick`] often and [`Volume::maintain`] where it may take its time.

use std::io::IoSlice;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::ahead::{Look, Seen};
use super::parts::{self, Frozen, Part, PartIndex};
use super::write::is_open;
use super::{Health, Shared, Volume};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::mark::Mark;
use crate::format::marker::MarkerClass;
use crate::format::record::RecordKind;
use crate::format::segment::Seal;
use crate::ids::*;
use crate::index::{Run, RunSource};
use crate::journal::append::{Draft, Position};
use crate::limits::{MARK_INTERVAL_NS, REPLICA_UNSYNCED_NS_MAX, UNSYNCED_BYTES_MAX, UNSYNCED_NS_MAX};
use crate::time::ClockStep;

/// Bytes hashed at a time when sealing.
const HASH_STEP_BYTES: u64 = 1 << 20;
/// So much must have been appended for the disk to be told to begin with it before the sync.
const HAND_OVER_BYTES: u64 = 4 << 20;
/// So many full segments may wait for their seal while a stream comes in, because hashing competes with the
/// clients for the processors. Beyond it sealing gets all the time it wants. Their runs do not wait: a restart reads those.
const SEAL_BACKLOG: usize = 16;
/// So much appended from one call of [`Volume::maintain`] to the next is a stream.
const BUSY_BYTES: u64 = 32 << 20;

/// What upkeep remembers between calls.
pub(super) struct UpkeepState {
    marker_at_ns: u64,
    // The newest record when the last periodic marker was set, that marker included.
    marked_lsn: Lsn,
    mark_at_ns: u64,
    // Up to where the open segment was handed to the disk ahead of its sync.
    handed_over: (SegmentId, u64),
    // Where the journal ended at the call of `maintain` before: the segment's ordinal, the offset in it.
    end_before: (u64, u64),
    // The open segment at that call.
    pub(super) seen_before: Seen,
    pub(super) look: Look,
}

impl UpkeepState {
    pub(super) fn new(now_ns: u64, tip: Lsn) -> UpkeepState {
        UpkeepState {
            marker_at_ns: now_ns,
            marked_lsn: tip,
            mark_at_ns: now_ns,
            handed_over: Default::default(),
            end_before: Default::default(),
            seen_before: Default::default(),
            look: Default::default(),
        }
    }
}

impl Volume {
    /// The quick duties, to be called every few milliseconds: syncs what waits too long, sets the periodic
    /// marker.
    pub fn tick(&self) -> Result<()> {
        if self.health() != Health::Good {
            return Ok(());
        }
        let now_ns = self.shared.clock.elapsed_ns();
        self.set_periodic_marker(now_ns)?;
        self.hand_over();
        self.serve_commits_from_written_space(now_ns)?;
        let (since_ns, bytes) = {
            let staged = self.staged.lock().expect("no panics under this lock");
            (staged.since_ns, staged.bytes)
        };
        // A third of the bound, so that a sync that begins now, perhaps behind another, still ends within it.
        let bound_ns = if self.is_replica() { REPLICA_UNSYNCED_NS_MAX } else { UNSYNCED_NS_MAX };
        let waits = since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= bound_ns / 3);
        if waits || bytes >= UNSYNCED_BYTES_MAX {
            self.sync_through(self.tip_lsn())?;
        }
        Ok(())
    }

    /// Lets the disk begin with what a stream has appended, so that the next sync finds little left to do.
    fn hand_over(&self) {
        let open = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map(|appender| (appender.segment.clone(), appender.end))
        };
        let Some((segment, end)) = open else { return };
        let from = {
            let mut state = self.upkeep.lock().expect("no panics under this lock");
            let (id, offset) = state.handed_over;
            let from = if id == segment.header.id { offset } else { BLOCK_BYTES };
            if end.saturating_sub(from) < HAND_OVER_BYTES {
                return;
            }
            state.handed_over = (segment.header.id, end);
            from
        };
        segment.file.start_writeback(from, end - from);
    }

    fn set_periodic_marker(&self, now_ns: u64) -> Result<()> {
        let interval_ns = self.identity.marker_interval_ns;
        {
            let state = self.upkeep.lock().expect("no panics under this lock");
            let idle = state.marked_lsn == self.tip_lsn();
            // A replica's markers come from its primary.
            if interval_ns == 0
                || idle
                || !self.is_primary()
                || now_ns.saturating_sub(state.marker_at_ns) < interval_ns
            {
                return Ok(());
            }
        }
        let lsn = self.append_event(RecordKind::Marker, SessionId::STORE, &[]);
        let mut state = self.upkeep.lock().expect("no panics under this lock");
        state.marker_at_ns = now_ns;
        match lsn {
            Ok(lsn) => state.marked_lsn = lsn,
            // A full journal has no room for markers either; the writers are told. One that becomes a replica right
            // now gets its markers from elsewhere.
            Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::ReadOnly) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notes a step of the wall clock in the history.
    pub fn note_clock_step(&self, step: ClockStep) -> Result<Lsn> {
        let mut payload = Vec::with_capacity(16);
        payload.extend_from_slice(&step.expected_ns.to_le_bytes());
        payload.extend_from_slice(&step.wall_ns.to_le_bytes());
        self.append_event(RecordKind::ClockStep, SessionId::STORE, &payload)
    }

    /// Appends a record that changes no blocks.
    pub(super) fn append_event(&self, kind: RecordKind, session: SessionId, payload: &[u8]) -> Result<Lsn> {
        let mut draft = Draft::event(kind, session, self.shared.clock.elapsed_ns(), payload);
        if kind == RecordKind::Marker {
            // Markers with a name go another way.
            draft.flags = MarkerClass::Periodic as u8;
        }
        if kind == RecordKind::Marker {
            // Set by the quick duties, which nobody may hold up.
            let mut append = self.append.lock().expect("no panics under this lock");
            return self.append_one(&mut append, draft);
        }
        self.append_alone(|append| self.append_one(append, draft.clone()))
    }

    /// The slow duties, to be called about once a second: seals segments that are full, writes their runs,
    /// makes the next segment ahead of its use, refreshes the durable mark, keeps history as short as its policy says. Each of
    /// them is tried, whatever became of those before it; the first error is given.
    pub fn maintain(&self) -> Result<()> {
        if self.health() != Health::Good {
            return Ok(());
        }
        self.retire_coalesced();
        let mut duties = self.duties.lock().expect("no panics under this lock");
        // It may have been closed meanwhile, and its files be another instance's.
        if self.health() != Health::Good {
            return Ok(());
        }
        // None keeps the others from being done: above all, what gives space back must come to its turn where another one
        // finds none.
        let mut first_error = Ok(());
        let mut note = |done: Result<()>| {
            if first_error.is_ok() {
                first_error = done;
            }
        };
        // Ahead of the sealing: a writer may be waiting for it soon.
        note(self.make_segment_ahead());
        note(self.write_segment_behind_stream());
        note(self.write_bad_runs_anew());
        self.doubt_some();
        self.begin_segment_for_memory();
        note(self.write_runs_ahead());
        note(self.seal_some());
        self.teach_catalog();
        note(self.merge_some());
        note(self.refresh_mark());
        self.note_memory();
        note(self.age(&mut duties));
        first_error
    }

    // In these two, a list that is held no longer than needed: whoever folds waits until nobody holds an old one.
    fn write_bad_runs_anew(&self) -> Result<()> {
        let list = self.parts.list();
        for part in list.iter().filter(|part| part.repaired.get().is_some()) {
            self.write_run_anew(part)?;
        }
        // One at a time: a merged run has many.
        match list.iter().find(|part| part.merged_run().is_some_and(|run| run.is_bad())) {
            Some(part) => self.write_run_anew(part),
            None => Ok(()),
        }
    }

    fn seal_some(&self) -> Result<()> {
        let list = self.parts.list();
        let waiting: Vec<_> =
            list.iter().filter(|part| part.frozen.get().is_some() && !parts::is_sealed(part)).collect();
        // Only sealed segments can go, and whoever needs room may wait for this call to end: the oldest.
        let least = usize::from(self.excess_bytes().is_ok_and(|bytes| bytes > 0)).min(waiting.len());
        let now = match self.is_streaming() {
            true => waiting.len().saturating_sub(SEAL_BACKLOG).max(least),
            // Half, so that they are soon done, and a client that comes back meanwhile does not wait for all.
            false => waiting.len().div_ceil(2),
        };
        waiting[..now].iter().try_for_each(|part| self.seal_part(part, false))
    }

    /// Whether much was appended since this was asked before.
    fn is_streaming(&self) -> bool {
        let end = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map_or((0, 0), |appender| (appender.segment.header.ordinal, appender.end))
        };
        let mut state = self.upkeep.lock().expect("no panics under this lock");
        let before = std::mem::replace(&mut state.end_before, end);
        let segments = end.0.saturating_sub(before.0);
        (segments * self.identity.segment_bytes + end.1).saturating_sub(before.1) > BUSY_BYTES
    }

    fn refresh_mark(&self) -> Result<()> {
        let now_ns = self.shared.clock.elapsed_ns();
        let due = {
            let mut state = self.upkeep.lock().expect("no panics under this lock");
            let due = now_ns.saturating_sub(state.mark_at_ns) >= MARK_INTERVAL_NS;
            if due {
                state.mark_at_ns = now_ns;
            }
            due
        };
        if due { self.write_mark() } else { Ok(()) }
    }

    /// Makes what is staged durable and marks it.
    fn write_mark(&self) -> Result<()> {
        let position = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map(|appender| appender.position)
        };
        let Some(position) = position else { return Ok(()) };
        let unmarked = {
            let mark = self.mark.lock().expect("no panics under this lock");
            mark.written < position.lsn
        };
        if !unmarked {
            return Ok(());
        }
        self.sync_through(position.lsn)?;
        self.mark_position(position, false)
    }

    fn mark_position(&self, position: Position, clean_stop: bool) -> Result<()> {
        assert!(position.lsn <= self.durable_lsn(), "only what is durable is marked");
        let mut mark = self.mark.lock().expect("no panics under this lock");
        if mark.written > position.lsn {
            return Ok(());
        }
        mark.file.write(Mark {
            volume: self.identity.journal_id(),
            incarnation: self.incarnation,
            sequence: 0,
            lsn: position.lsn,
            chain: position.chain,
            timestamp: position.timestamp,
            clean_stop,
        })?;
        mark.written = position.lsn;
        Ok(())
    }

    /// Gives a full segment its run before it is sealed, which takes much longer: a restart then does not read the segment,
    /// and nothing of it is kept in memory.
    ///
    /// Legal states after a crash: no run, and the segment is read; or its run, which speaks of records that were all
    /// durable before it was written.
    pub(super) fn write_run_ahead(&self, part: &Arc<Part>) -> Result<()> {
        let frozen = *part.frozen.get().expect("the caller looked");
        // The hash of one that no seal will hold stands in its run: it gets that with its hash.
        if !frozen.may_seal || part.run().is_some() {
            return Ok(());
        }
        self.sync_through(frozen.last.lsn)?;
        if !self.is_listed(part) {
            return Ok(());
        }
        self.mark_position(frozen.last, false)?;
        self.parts.replace(Part {
            segment: part.segment.clone(),
            before: part.before,
            frozen: OnceLock::from(frozen),
            index: PartIndex::Run(Arc::new(self.write_run(part, frozen)?)),
            repaired: OnceLock::new(),
        });
        self.looked.lock().expect("no panics under this lock").look(&part.segment);
        Ok(())
    }

    /// A failed sync may have cut a part and appended its end elsewhere. Once all of it is durable where it stands that
    /// cannot happen any more.
    fn is_listed(&self, part: &Arc<Part>) -> bool {
        self.parts.list().iter().any(|now| Arc::ptr_eq(now, part))
    }

    /// Seals the segment of a frozen part and gives it its run, if it has none.
    ///
    /// Legal states after a crash: no seal and no run (the segment is read again), a seal and no run (the
    /// run is made again), a run and no seal (the run is believed), or both. A torn seal is no seal. Cutting the file behind the seal may or may not
    /// have happened: without it, the seal is not found at the file's end and the segment is read.
    pub(super) fn seal_part(&self, part: &Arc<Part>, clean_stop: bool) -> Result<()> {
        let frozen = *part.frozen.get().expect("the caller looked");
        let segment = &part.segment;
        let place = || format!("sealing {}", segment.path.display());
        self.sync_through(frozen.last.lsn)?;
        if !self.is_listed(part) {
            return Ok(());
        }
        let seal_hash = match frozen.seal_hash {
            Some(hash) => hash,
            None => {
                let previous_hash = self.seal_hash_before(part);
                // Somebody cut it inside of a record that was durable: known to be damaged, it stays that.
                if segment.file.len().at(place)? < frozen.end {
                    segment.file.set_len(frozen.end).at(place)?;
                }
                let hash = hash_segment(&previous_hash, part, frozen.end).at(place)?;
                if frozen.may_seal {
                    let seal = Seal {
                        volume: self.identity.journal_id(),
                        segment: segment.header.id,
                        ordinal: segment.header.ordinal,
                        incarnation: self.incarnation,
                        first_lsn: segment.header.first_lsn,
                        last_lsn: frozen.last.lsn,
                        last_timestamp: frozen.last.timestamp,
                        end: frozen.end,
                        chain: frozen.last.chain,
                        clean_stop,
                        previous_hash,
                        hash,
                    };
                    let file = &segment.file;
                    // Shorter already if an earlier try got so far.
                    let bytes = file.len().at(place)?;
                    file.write_at(frozen.end, &[IoSlice::new(&seal.encode()[..])])
                        .and_then(|()| file.set_len(frozen.end + BLOCK_BYTES))
                        .and_then(|()| file.sync())
                        .at(place)?;
                    let freed = bytes.saturating_sub(frozen.end + BLOCK_BYTES);
                    self.forget_bytes(freed);
                }
                hash
            }
        };
        self.mark_position(frozen.last, clean_stop)?;
        let frozen = Frozen { seal_hash: Some(seal_hash), ..frozen };
        let run = match part.run() {
            Some(run) if frozen.may_seal => run.clone(),
            // The hash stands in the run, and nowhere else.
            Some(_) => Arc::new(self.write_run(&part.again()?, frozen)?),
            None => Arc::new(self.write_run(part, frozen)?),
        };
        self.parts.replace(Part {
            // From here on it is only read.
            segment: segment.pooled(&self.shared.segments),
            before: part.before,
            frozen: OnceLock::from(frozen),
            index: PartIndex::Run(run),
            repaired: OnceLock::new(),
        });
        if !frozen.may_seal {
            // What lies behind the cut was appended again elsewhere, synced and marked: only space is left.
            let bytes = segment.file.len().at(place)?;
            if bytes > frozen.end + BLOCK_BYTES {
                segment.file.set_len(frozen.end).at(place)?;
                self.forget_bytes(bytes - frozen.end);
            }
        }
        self.looked.lock().expect("no panics under this lock").look(segment);
        Ok(())
    }

    /// The run of this part has a bad page: makes it anew from the segment.
    fn write_run_anew(&self, part: &Arc<Part>) -> Result<()> {
        let frozen = *part.frozen.get().expect("a part with a run is frozen");
        let again = part.again()?;
        let run = self.write_run(&again, frozen)?;
        self.parts.replace(Part {
            frozen: OnceLock::from(frozen),
            index: PartIndex::Run(Arc::new(run)),
            ..again
        });
        if let Some(merged) = part.merged_run() {
            let is_used = |part: &Arc<Part>| part.run().is_some_and(|run| Arc::ptr_eq(run, merged));
            if !self.parts.list().iter().any(is_used) {
                // A file that stays costs space only: the next opening removes it.
                let _ = self.shared.files.remove(merged.path());
            }
        }
        Ok(())
    }

    fn seal_hash_before(&self, part: &Part) -> [u8; 32] {
        let list = self.parts.list();
        let at = list.partition_point(|other| other.segment.header.ordinal < part.segment.header.ordinal);
        match at.checked_sub(1) {
            Some(at) => list[at].frozen.get().and_then(|frozen| frozen.seal_hash).unwrap_or_default(),
            None => self.base_point().seal,
        }
    }

    fn write_run(&self, part: &Part, frozen: Frozen) -> Result<Run> {
        write_run(&self.shared, &self.dir, self.identity.journal_id(), part, frozen)
    }

    /// Ends service: syncs everything, seals the open segment, marks a clean stop. Further writes are refused, and, also
    /// where that fails, whatever was opened from it answers with `Closed` from here on: what began before is done when this
    /// returns. So its files may be moved, and opened anew.
    pub fn close(&self) -> Result<()> {
        let ended = self.end_service();
        self.end_uses();
        self.end_coalesced();
        ended
    }

    /// The first half of [`Volume::close`]: reads go on.
    pub(crate) fn end_service(&self) -> Result<()> {
        let before = {
            let mut health = self.health.lock().expect("no panics under this lock");
            std::mem::replace(&mut *health, Health::Closed)
        };
        self.abandon_merge();
        let mut duties = self.duties.lock().expect("no panics under this lock");
        if before != Health::Good {
            // Nobody writes to it from here on; and whoever closed it before is done.
            self.append.lock().expect("no panics under this lock").take();
            return Ok(());
        }
        self.give_up_thin(&mut duties);
        // Whoever got past the check of the health before has the lock, or finds no appender.
        let appender = self.append.lock().expect("no panics under this lock").take();
        let Some(appender) = appender else { return Ok(()) };
        self.sync_through(appender.position.lsn)?;
        let frozen = Frozen { last: appender.position, end: appender.end, may_seal: true, seal_hash: None };
        let list = self.parts.list();
        let open = list.last().filter(|part| is_open(part));
        let open = open.ok_or_else(|| Error::new(Kind::Io, "the open segment has no part in the index"))?;
        if appender.end == BLOCK_BYTES {
            for part in list.iter().filter(|part| !parts::is_sealed(part) && !Arc::ptr_eq(part, open)) {
                self.seal_part(part, false)?;
            }
            return self.remove_empty_segment(&list, open, appender.position);
        }
        open.frozen.set(frozen).expect("the open part is not frozen");
        for part in list.iter().filter(|part| !parts::is_sealed(part)) {
            self.seal_part(part, Arc::ptr_eq(part, open))?;
        }
        Ok(())
    }
}

impl Volume {
    /// An opening in which nothing was written leaves no segment behind.
    ///
    /// Legal states after a crash: the mark names an opening that the journal knows, whether the empty
    /// segment, whose header names that opening as the one before, is still there or not.
    fn remove_empty_segment(&self, list: &[Arc<Part>], open: &Part, position: Position) -> Result<()> {
        let is_ours = |part: &&Arc<Part>| {
            part.segment.header.incarnation == self.incarnation
                && part.segment.header.id != open.segment.header.id
        };
        let incarnation =
            if list.iter().any(|part| is_ours(&part)) { self.incarnation } else { self.previous_incarnation };
        {
            let mut mark = self.mark.lock().expect("no panics under this lock");
            mark.file.write(Mark {
                volume: self.identity.journal_id(),
                incarnation,
                sequence: 0,
                lsn: position.lsn,
                chain: position.chain,
                timestamp: position.timestamp,
                clean_stop: true,
            })?;
        }
        let files = &self.shared.files;
        files
            .remove(&open.segment.path)
            .and_then(|()| files.sync_dir(&self.dir))
            .at(|| format!("removing the empty {}", open.segment.path.display()))
    }
}

pub(super) fn hash_segment(previous: &[u8; 32], part: &Part, end: u64) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    let mut buffer = vec![0; HASH_STEP_BYTES as usize];
    let mut at = 0;
    while at < end {
        let step = (end - at).min(HASH_STEP_BYTES) as usize;
        part.segment.file.read_at(at, &mut buffer[..step])?;
        hasher.update(&buffer[..step]);
        at += step as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Writes the run of a part that is in memory and takes no more records.
pub(super) fn write_run(
    shared: &Shared,
    dir: &Path,
    volume: VolumeId,
    part: &Part,
    frozen: Frozen,
) -> Result<Run> {
    let path = dir.join(part.segment.run_name());
    let PartIndex::Live(live) = &part.index else { unreachable!("the caller looked") };
    let live = live.read().expect("no panics under this lock");
    let source = RunSource {
        volume,
        segment: part.segment.index_id(),
        log_end: frozen.end,
        chain: frozen.last.chain.0,
        seal: frozen.seal_hash.unwrap_or_default(),
        codec: 0,
        live: &live.live,
        markers: &live.events,
        damages: &live.damages,
        summary: live.summary,
    };
    // The part is frozen: only readers share this lock.
    Run::write(&*shared.files, &path, &source)?;
    Run::open(&*shared.files, &path, &shared.pages)
}
