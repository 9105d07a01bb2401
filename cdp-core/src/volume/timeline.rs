//! What happened when: markers, sessions, clock steps, and the resolution of points.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard};

use super::lesson::complete_through;
use super::names::Names;
use super::parts::{Part, part_of};
use super::pins::Thinned;
use super::{Health, Volume};
use crate::catalog::CatalogName;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::epoch::EpochPayload;
use crate::format::ledger::Fact;
use crate::format::marker::{MarkerClass, MarkerPayload};
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::run::{MarkerRow, Summary};
use crate::format::turn::Turn;
use crate::history::course::TurnAt;
use crate::history::point::{MarkerAt, Timeline, closest_names, format_utc};
use crate::ids::*;
use crate::journal::append::{Appender, Draft};
use crate::journal::fold::Fold;
use crate::journal::scan;
use crate::planted;

/// A handful: so many markers are named in an error.
const NAMED_IN_ERRORS: usize = 3;

/// A record that changes no blocks, as `log` shows it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its LSN.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// Elapsed clock of the machine then, in nanoseconds.
    pub elapsed_ns: u64,
    /// What it is.
    pub what: EventKind,
}

/// The records of a segment, and what they did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// The first of them.
    pub first: Lsn,
    /// The last of them.
    pub last: Lsn,
    /// In sums.
    pub did: Summary,
}

/// What an [`Event`] is.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// A marker without name, set by the store.
    PeriodicMarker,
    /// A marker with a name.
    Marker(MarkerPayload),
    /// The wall clock stepped from what was expected to what it was then.
    ClockStep {
        /// Where it would have been.
        expected: Timestamp,
        /// Where it was.
        wall: Timestamp,
    },
    /// A client attached.
    SessionOpen {
        /// Number of the session on this volume.
        session: SessionId,
        /// Who: pid and uid, or address; and the export's name.
        peer: String,
    },
    /// A client left.
    SessionClose {
        /// Number of the session on this volume.
        session: SessionId,
    },
    /// The volume was set back to an older state, or grew.
    Turn(Turn),
    /// An epoch began: the volume was promoted.
    Epoch(EpochPayload),
    /// Of a kind that this version does not show in detail.
    Other(RecordKind),
}

/// Whether the opening has to know what this record says.
fn is_learnt(row: &MarkerRow) -> bool {
    let kinds = [RecordKind::Rollback as u8, RecordKind::Resize as u8, RecordKind::Epoch as u8];
    row.flags > MarkerClass::Periodic as u8 || kinds.contains(&row.kind)
}

fn class_from(number: u8) -> MarkerClass {
    if number == MarkerClass::Application as u8 { MarkerClass::Application } else { MarkerClass::Manual }
}

impl Volume {
    /// Sets a marker.
    pub fn mark(&self, marker: &MarkerPayload) -> Result<(Lsn, Timestamp)> {
        self.refuse_unless_writable()?;
        let payload = marker.encode();
        let set = self.append_alone(|append| {
            let at = self.shared.clock.take(1);
            Ok((self.append_marker(append, marker, &payload, at)?, at))
        })?;
        self.sync_through(set.0)?;
        Ok(set)
    }

    /// Begins the next segment, if the marker does not fit into this one.
    fn make_room_for_marker(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        marker: &MarkerPayload,
        payload: &[u8],
    ) -> Result<()> {
        let draft = self.marker_draft(marker, payload);
        let appender = append.as_mut().ok_or_else(|| Error::new(Kind::Closed, "the volume is closed"))?;
        if appender.fitting(&[draft]).0 == 0 {
            self.roll(appender)?;
        }
        Ok(())
    }

    fn marker_draft<'a>(&self, marker: &MarkerPayload, payload: &'a [u8]) -> Draft<'a> {
        let elapsed_ns = self.shared.clock.elapsed_ns();
        let mut draft = Draft::event(RecordKind::Marker, SessionId::STORE, elapsed_ns, payload);
        draft.flags = marker.class as u8;
        draft
    }

    /// Appends a marker and learns its name. Under one hold of the append lock, so that the segment cannot be
    /// sealed in between and the catalog be told that it knows all names up to the seal.
    fn append_marker(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        marker: &MarkerPayload,
        payload: &[u8],
        at: Timestamp,
    ) -> Result<Lsn> {
        let lsn = self.append_one_at(append, self.marker_draft(marker, payload), at)?;
        self.learn_name(lsn, at, marker);
        Ok(lsn)
    }

    /// Sets one marker on many volumes at one instant, which it gives with the marker's record in each: all append
    /// locks are held, so that of two dependent writes on different members none can fall between, and all
    /// records have one timestamp. The volumes must be in rising order of their ids, each once. The marker
    /// counts when it is durable in each.
    pub fn mark_group(volumes: &[Arc<Volume>], marker: &MarkerPayload) -> Result<(Timestamp, Vec<Lsn>)> {
        assert!(
            volumes.windows(2).all(|pair| pair[0].identity.id < pair[1].identity.id),
            "locks are taken in the order of ids"
        );
        for volume in volumes {
            volume.refuse_unless_writable()?;
        }
        let payload = marker.encode();
        // With all locks held nobody can make room any more.
        for volume in volumes {
            volume.make_room_for_event();
        }
        let mut locks: Vec<_> =
            volumes.iter().map(|volume| volume.append.lock().expect("no panics under this lock")).collect();
        // Who has no room says so before any has the marker.
        for (volume, append) in volumes.iter().zip(&mut locks) {
            volume.make_room_for_marker(append, marker, &payload)?;
        }
        let at = volumes.first().map_or(Timestamp::default(), |volume| volume.shared.clock.take(1));
        let mut set = Vec::with_capacity(volumes.len());
        for (volume, append) in volumes.iter().zip(&mut locks) {
            set.push(volume.append_marker(append, marker, &payload, at)?);
        }
        drop(locks);
        for (volume, lsn) in volumes.iter().zip(&set) {
            volume.sync_through(*lsn)?;
        }
        Ok((at, set))
    }

    /// Notes that a client attached; gives the session's number.
    pub fn open_session(&self, peer: &str) -> Result<SessionId> {
        use std::sync::atomic::Ordering;
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed) as u32);
        // The history of a replica is that of its primary.
        if self.health() == Health::Good && self.is_primary() {
            // The number stands in the payload too: `log` then reads the index and payloads, no headers.
            let payload = [&session.0.to_le_bytes(), peer.as_bytes()].concat();
            match self.append_event(RecordKind::SessionOpen, session, &payload) {
                // A full journal is still there to be read, and a client that comes back must find its disk.
                // Nor is one that becomes a replica right now.
                Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::ReadOnly) => {}
                other => drop(other?),
            }
        }
        Ok(session)
    }

    /// Notes that it left.
    pub fn close_session(&self, session: SessionId) -> Result<()> {
        if self.health() == Health::Good && self.is_primary() {
            self.append_event(RecordKind::SessionClose, session, &session.0.to_le_bytes())?;
        }
        Ok(())
    }

    /// Learns the names, rollbacks, resizes and epochs: from the catalog (and the manifest of epochs) as far as it can be
    /// believed, the rest from the journal.
    pub(super) fn load_events(&self) -> Result<()> {
        if !self.load_events_behind(true)? {
            self.load_events_behind(false)?;
        }
        Ok(())
    }

    /// As above, with the catalog or without it. `false`, with nothing learnt but epochs, if the catalog is not enough.
    fn load_events_behind(&self, catalog: bool) -> Result<bool> {
        let mut names = Names::default();
        let mut turns = Vec::new();
        let mut epochs = Vec::new();
        let parts = self.parts.list();
        let mut known_lsn = Lsn::ZERO;
        if let Some(known) = self.shared.catalog.known(self.identity.id).filter(|_| catalog)
            && parts.iter().any(|part| complete_through(part) == Some(known.complete))
        {
            let mut take =
                |row: &CatalogName| names.insert(row.lsn, row.at, &row.name, class_from(row.class));
            if self.shared.catalog.names(self.identity.id, &known, &mut take) == Some(true) {
                known_lsn = known.complete.lsn;
                turns = known.turns;
                names.set_taught(Some(known.complete));
            } else {
                names = Names::default();
            }
        }
        for part in parts.iter().filter(|part| part.last_lsn() > known_lsn) {
            let mut rows = part.events()?;
            rows.retain(|row| is_learnt(row) && row.lsn > known_lsn);
            self.event_kinds(part, &rows, &mut |row, what| {
                match what {
                    Ok(EventKind::Marker(marker)) => {
                        names.insert(row.lsn, row.timestamp, &marker.name, marker.class);
                    }
                    Ok(EventKind::Turn(turn)) => turns.push(TurnAt { lsn: row.lsn, at: row.timestamp, turn }),
                    Ok(EventKind::Epoch(begun)) => {
                        epochs.push(begun.epoch);
                        turns.extend(begun.turn().map(|turn| TurnAt {
                            lsn: row.lsn,
                            at: row.timestamp,
                            turn,
                        }));
                    }
                    Ok(_) => {}
                    // Its name is lost, the point is not: it is said, and the volume opens.
                    Err(error) if row.flags > MarkerClass::Periodic as u8 => {
                        self.note_error(format!("a marker's name cannot be read: {error}"));
                    }
                    // Without it nothing behind it can be told: no guess.
                    Err(error) => return Err(error),
                }
                Ok(())
            })?;
        }
        if !self.take_epochs(known_lsn.max(self.base_point().lsn), &epochs)? && catalog {
            return Ok(false);
        }
        *self.names.lock().expect("no panics under this lock") = names;
        for entry in self.ledger() {
            // One that was cut off since is not the one that stands there now.
            if let Fact::LetGo { lsn, at, .. } = entry.fact
                && self.marker_is_of(lsn, at)
            {
                self.forget_marker(lsn);
            }
        }
        // The catalog may know more than the journal still has.
        for part in parts.iter() {
            let Some(fold) = &part.segment.fold else { continue };
            self.forget_names_within(fold.header.lsns, fold);
            let kept = fold.instants().map(|(lsn, _)| lsn).collect();
            self.pins.lock().thin(fold.header.lsns.0, Thinned { last: fold.header.lsns.1, kept });
        }
        self.forget_names(self.base_point().lsn);
        turns.retain(|turn| turn.lsn > self.base_point().lsn);
        self.take_course(turns)?;
        self.teach_catalog();
        Ok(true)
    }

    /// Markers up to the base LSN are gone with their records.
    pub(super) fn forget_names(&self, base: Lsn) {
        self.names.lock().expect("no panics under this lock").forget_through(base);
    }

    /// Names of markers that a fold does not keep are gone, too.
    pub(super) fn forget_names_within(&self, lsns: (Lsn, Lsn), fold: &Fold) {
        let mut names = self.names.lock().expect("no panics under this lock");
        let is_kept = |lsn: Lsn| fold.points.binary_search_by_key(&lsn, |point| point.lsn).is_ok();
        names.forget_within(lsns, is_kept);
    }

    /// Somebody let it go.
    pub(super) fn forget_marker(&self, lsn: Lsn) {
        self.names.lock().expect("no panics under this lock").forget(lsn);
    }

    fn marker_is_of(&self, lsn: Lsn, at: Timestamp) -> bool {
        let names = self.names.lock().expect("no panics under this lock");
        names.marker_at(lsn).is_some_and(|marker| marker.at == at)
    }

    /// Whether this record is a marker with a name.
    pub(super) fn is_kept_name(&self, lsn: Lsn) -> bool {
        self.names.lock().expect("no panics under this lock").contains(lsn)
    }

    /// Visits events from the newest to the oldest until told to stop. Cheap fields only: names are read on
    /// demand with [`Volume::event`].
    pub fn events_back(
        &self,
        mut visit: impl FnMut(&Arc<Part>, &MarkerRow) -> ControlFlow<()>,
    ) -> Result<()> {
        let _using = self.use_files()?;
        for part in self.parts.list().iter().rev() {
            for row in part.events()?.iter().rev() {
                if visit(part, row).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// One event with all it says.
    pub fn event(&self, part: &Part, row: &MarkerRow) -> Result<Event> {
        let _using = self.use_files()?;
        let what = self.event_kind(part, row)?;
        Ok(Event { lsn: row.lsn, at: row.timestamp, elapsed_ns: row.elapsed_ns, what })
    }

    /// The marker, of any class, that is nearest to this record, in records: for "how far is this point from
    /// a marker".
    pub fn nearest_marker(&self, lsn: Lsn) -> Result<Option<(Lsn, Timestamp, Option<String>)>> {
        let _using = self.use_files()?;
        let mut best: Option<(u64, Lsn, Timestamp)> = None;
        for part in self.parts.list().iter().rev() {
            let first = part.segment.header.first_lsn;
            for row in part.events()?.iter().filter(|row| row.kind == RecordKind::Marker as u8) {
                let distance = row.lsn.0.abs_diff(lsn.0);
                if best.is_none_or(|(least, ..)| distance < least) {
                    best = Some((distance, row.lsn, row.timestamp));
                }
            }
            // An older part can only be nearer if this one has nothing nearer than its own beginning.
            if first <= lsn && best.is_some_and(|(least, ..)| lsn.0 - first.0 >= least) {
                break;
            }
        }
        Ok(best.map(|(_, lsn, at)| {
            let names = self.names.lock().expect("no panics under this lock");
            (lsn, at, names.marker_at(lsn).map(|marker| marker.name))
        }))
    }

    /// All named markers, oldest first.
    pub fn named_markers(&self) -> Vec<(MarkerAt, MarkerClass)> {
        let names = self.names.lock().expect("no panics under this lock");
        names
            .iter()
            .map(|(lsn, at, class, name)| (MarkerAt { name: name.to_owned(), lsn, at }, class))
            .collect()
    }

    /// About how much memory the names of its markers take, in bytes.
    pub fn names_memory_bytes(&self) -> usize {
        self.names.lock().expect("no panics under this lock").memory_bytes()
    }

    /// A marker with a name was set.
    pub(super) fn learn_name(&self, lsn: Lsn, at: Timestamp, marker: &MarkerPayload) {
        let mut names = self.names.lock().expect("no panics under this lock");
        names.insert(lsn, at, &marker.name, marker.class);
    }

    /// What the named marker of this record carries.
    pub fn marker_payload(&self, lsn: Lsn) -> Result<MarkerPayload> {
        let _using = self.use_files()?;
        let parts = self.parts.list();
        let part = part_of(&parts, lsn)?;
        let rows = part.events()?;
        let row = rows.iter().find(|row| row.lsn == lsn);
        match row.map(|row| self.event_kind(part, row)).transpose()? {
            Some(EventKind::Marker(marker)) => Ok(marker),
            _ => Err(Error::new(Kind::NotFound, format!("{lsn:?} is no named marker"))),
        }
    }

    /// Visits the headers of the records `from..=to`, in order; without those of history that was thinned.
    pub fn records(&self, from: Lsn, to: Lsn, visit: &mut dyn FnMut(&RecordHeader)) -> Result<()> {
        let _using = self.use_files()?;
        for part in self.parts.list().iter() {
            let is_fold = part.segment.fold.is_some();
            if is_fold || part.segment.header.first_lsn > to || part.last_lsn() < from {
                continue;
            }
            let last = to.min(part.last_lsn());
            scan::headers(&part.segment, part.before, last, &mut |header| {
                if header.lsn >= from {
                    visit(header);
                }
            })
            .at(|| format!("reading {}", part.segment.path.display()))?;
        }
        Ok(())
    }

    /// What each segment's records did, oldest first, of the segments that have records from `from` to `to`; without
    /// reading the records.
    pub fn summaries(&self, from: Lsn, to: Lsn) -> Result<Vec<SegmentSummary>> {
        let _using = self.use_files()?;
        let mut summaries = Vec::new();
        for part in self.parts.list().iter() {
            let (first, last) = (part.segment.header.first_lsn, part.last_lsn());
            if first <= to && last >= from && first <= last {
                summaries.push(SegmentSummary { first, last, did: part.summary()? });
            }
        }
        Ok(summaries)
    }

    pub(super) fn timestamp_of_record(&self, lsn: Lsn) -> Result<Timestamp> {
        let _using = self.use_files()?;
        let parts = self.parts.list();
        let base = self.base_point();
        if lsn == base.lsn {
            return Ok(base.timestamp);
        }
        let part = part_of(&parts, lsn)?;
        part.timestamp_of(lsn)?.ok_or_else(|| match part.segment.fold {
            Some(_) => self.is_gone(lsn),
            None => Error::new(Kind::NotFound, format!("there is no {lsn:?}")),
        })
    }

    /// The newest record with a timestamp ≤ `at` that is still known: in history that was thinned that need not be the
    /// newest one that was written.
    pub fn newest_known(&self, at: Timestamp) -> Result<Lsn> {
        self.newest_known_at(at).map(|(lsn, _)| lsn)
    }

    /// The newest record with a timestamp ≤ `at` that is still known, and whether there surely was none between it and
    /// `at`.
    pub(super) fn newest_known_at(&self, at: Timestamp) -> Result<(Lsn, bool)> {
        let _using = self.use_files()?;
        {
            // Whatever has a timestamp up to `at` is staged when this lock is free, and whatever comes later
            // gets a later one.
            let _append = self.append.lock().expect("no panics under this lock");
            // Asking for the future must not drag the clock there.
            self.shared.clock.pass(at.min(self.shared.clock.now()));
        }
        let at = Timestamp(at.0 - u64::from(planted::is(planted::Bug::TimeOffByOne)));
        let parts = self.parts.list();
        let after = parts.partition_point(|part| part.segment.header.timestamp_before <= at);
        for part in parts[..after].iter().rev() {
            if let Some(lsn) = part.lsn_at(at)? {
                // Behind a kept state of a fold there were records whose instants are not known any more.
                let is_sure = part
                    .segment
                    .fold
                    .as_ref()
                    .is_none_or(|fold| lsn == fold.header.lsns.1 || fold.timestamp_of(lsn) == Some(at));
                return Ok((lsn, is_sure));
            }
            if let Some(fold) = &part.segment.fold
                && at > fold.header.timestamps.0
            {
                return Ok((fold.header.lsns.0.previous(), false));
            }
        }
        Ok((self.base_point().lsn, true))
    }

    /// Elapsed time → store time, by the elapsed clocks that events carry.
    fn store_time_ago(&self, ago_ns: u64) -> Result<Timestamp> {
        let now_elapsed = self.shared.clock.elapsed_ns();
        let now = self.shared.clock.now();
        // Walks back through instants that know both clocks: (elapsed, store time).
        let mut later = (now_elapsed, now.0);
        let mut ago_left = ago_ns;
        let mut answer = None;
        self.events_back(|_, row| {
            let same_boot = row.elapsed_ns <= later.0;
            // Across a reboot the elapsed clock began anew: the wall clock has to do.
            let between = if same_boot { later.0 - row.elapsed_ns } else { later.1 - row.timestamp.0 };
            if between >= ago_left {
                let after = row.timestamp.0 + (between - ago_left);
                answer = Some(Timestamp(after.min(later.1.saturating_sub(1)).max(row.timestamp.0)));
                return ControlFlow::Break(());
            }
            ago_left -= between;
            later = (row.elapsed_ns, row.timestamp.0);
            ControlFlow::Continue(())
        })?;
        Ok(match answer {
            Some(answer) if ago_ns > 0 => answer,
            Some(_) => now,
            None => Timestamp(later.1.saturating_sub(ago_left)),
        })
    }
}

impl Timeline for Volume {
    fn tip(&self) -> (Lsn, Timestamp) {
        let lsn = self.tip_lsn();
        (lsn, self.timestamp_of_record(lsn).unwrap_or(self.identity.created))
    }

    fn horizon(&self) -> (Lsn, Timestamp) {
        self.oldest()
    }

    fn lsn_at(&self, at: Timestamp) -> Result<Lsn> {
        let complete = self.complete_through().1;
        if self.is_replica() && at > complete {
            let context = format!(
                "volume {} is a replica that is complete through {}: which record {} is, is not known here yet",
                self.name(),
                format_utc(complete),
                format_utc(at)
            );
            return Err(
                Error::new(Kind::OutOfRange, context).hint("`latest` is the newest state that is here")
            );
        }
        let gap = self.course.read().expect("no panics under this lock").gap_at(at).copied();
        if let Some(gap) = gap {
            // From then on it is the newest state that there was, of the history that goes on.
            let whole = gap.end.filter(|_| gap.is_whole && at >= gap.at);
            return whole.map(|(lsn, _)| lsn).ok_or_else(|| self.is_in_gap(&gap, &format_utc(at)));
        }
        match self.newest_known_at(at)? {
            (lsn, true) => Ok(lsn),
            (below, false) => {
                let above = self.pins.lock().neighbours(below.next()).1;
                let context = format!(
                    "{} lies in history of volume {} that was thinned",
                    format_utc(at),
                    self.identity.name
                );
                Err(Error::new(Kind::OutOfRange, context).hint(self.kept_around(below, above)))
            }
        }
    }

    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp> {
        self.timestamp_of_record(lsn)
    }

    fn marker(&self, name: &str) -> Result<Option<MarkerAt>> {
        let names = self.names.lock().expect("no panics under this lock");
        Ok(names.newest_of(name))
    }

    fn latest_application_marker(&self) -> Result<Option<MarkerAt>> {
        let names = self.names.lock().expect("no panics under this lock");
        Ok(names.newest_of_application())
    }

    fn latest_proven(&self) -> Result<Option<(Lsn, Timestamp)>> {
        Ok(self.newest_proof()?.map(|proof| (proof.lsn, proof.at)))
    }

    fn similar_markers(&self, name: &str) -> Vec<MarkerAt> {
        let names = self.names.lock().expect("no panics under this lock");
        let distinct: BTreeSet<&str> = names.iter().map(|(_, _, _, name)| name).collect();
        closest_names(name, distinct, NAMED_IN_ERRORS)
            .into_iter()
            .filter_map(|name| names.newest_of(name))
            .collect()
    }

    fn markers_near(&self, at: Timestamp) -> Vec<MarkerAt> {
        let names = self.names.lock().expect("no panics under this lock");
        names.near(at, self.oldest().0, NAMED_IN_ERRORS)
    }

    fn elapsed_ago(&self, elapsed_ns: u64) -> Result<Timestamp> {
        self.store_time_ago(elapsed_ns)
    }
}
