//! How far back a volume can be viewed: its horizon, what holds it, and the policy that moves it.
//!
//! The horizon moves in this order: the floor for new pins (so that nobody opens what is about to go), the
//! manifest `history` on the disk, and only then anything is folded or dropped. After a crash anywhere the horizon
//! is where it was or where it should be; both are at or above the base.

use super::identity::RETENTION_FILE;

use super::Volume;
use super::aging::{self, Scene};
use super::pins::{Pin, PinGuard};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::{BasePoint, HISTORY_FILE, HistoryState};
use crate::format::ledger::{Entry, Fact, Reason};
use crate::format::manifest::Manifest;
use crate::history::course::Gap;
use crate::history::point::{Timeline, format_utc};
use crate::history::retention::{self, AtCap, Policy, Retained};
use crate::ids::*;
use crate::io::{put_in_place, replace_file, write_beside};

const KIND: &str = "cdp-retention";
const VERSION: u32 = 1;
/// Segments that a journal needs to go on while it drops the oldest: the open one, the one that is dropped, and the
/// next one made ahead.
pub const SEGMENTS_MIN: u64 = 3;

pub(super) fn decode_policy(bytes: &[u8]) -> Option<Policy> {
    let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
    retention::parse(manifest.values.get("policy")?).ok()
}

/// How far back it goes.
pub(super) struct History {
    // As on the disk; written by the holder of `duties` only.
    durable: HistoryState,
    // A later one may be there all the same: saying so failed.
    is_doubtful: bool,
    // The oldest state that is shown: ahead of the durable horizon while that is on its way to the disk.
    oldest: (Lsn, Timestamp),
}

impl History {
    pub(super) fn new(durable: HistoryState) -> History {
        History { durable, is_doubtful: false, oldest: durable.horizon }
    }
}

/// A stretch of history of which only single states are left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ThinnedStretch {
    /// Its first and its last record.
    pub lsns: (Lsn, Lsn),
    /// The instants of the record before it and of its last one: what was in it came after the first and not after the second.
    pub timestamps: (Timestamp, Timestamp),
    /// The states that are left, rising.
    pub kept: Vec<(Lsn, Timestamp)>,
}

impl Volume {
    /// Where only single states are left, oldest first.
    pub fn thinned(&self) -> Vec<ThinnedStretch> {
        let parts = self.parts.list();
        let folds = parts.iter().filter_map(|part| part.segment.fold.as_ref());
        folds
            .map(|fold| ThinnedStretch {
                lsns: fold.header.lsns,
                timestamps: fold.header.timestamps,
                kept: fold.instants().collect(),
            })
            .collect()
    }

    /// Where the base stands.
    pub fn base_point(&self) -> BasePoint {
        self.durable_history().base
    }

    /// The oldest state that can be viewed.
    pub fn oldest(&self) -> (Lsn, Timestamp) {
        self.history.lock().expect("no panics under this lock").oldest
    }

    pub(super) fn durable_history(&self) -> HistoryState {
        self.history.lock().expect("no panics under this lock").durable
    }

    /// What is kept of its history.
    pub fn retention(&self) -> Policy {
        self.retention.lock().expect("no panics under this lock").clone()
    }

    /// Refuses a policy that this volume cannot keep: [`Kind::Invalid`].
    pub fn check_retention(&self, policy: &Policy) -> Result<()> {
        let least = SEGMENTS_MIN * self.identity.segment_bytes;
        if policy.bytes_max.is_some_and(|bytes| bytes < least) {
            let context = format!("a journal of at most {} bytes", policy.bytes_max.unwrap_or(0));
            return Err(Error::new(Kind::Invalid, context).hint(format!(
                "it grows and shrinks by segments of {} bytes and needs {SEGMENTS_MIN} of them",
                self.identity.segment_bytes
            )));
        }
        Ok(())
    }

    /// Changes what is kept. Durable when this returns; what is not kept any more goes in the background.
    pub fn set_retention(&self, policy: Policy) -> Result<()> {
        self.check_retention(&policy)?;
        let _using = self.use_files()?;
        let mut current = self.retention.lock().expect("no panics under this lock");
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("policy", &policy);
        let path = self.dir.join(RETENTION_FILE);
        replace_file(&*self.shared.files, &path, &manifest.encode())
            .at(|| format!("writing {}", path.display()))?;
        *current = policy.clone();
        drop(current);
        self.note_fact(Fact::Policy(policy.to_string()));
        Ok(())
    }

    /// Writes a fact down. A ledger that cannot be written costs an explanation, no history: it is no reason to stop.
    pub(super) fn note_fact(&self, fact: Fact) {
        // Of one that was closed nobody asks any more.
        let Ok(_using) = self.use_files() else { return };
        let (at, base) = (self.shared.clock.now(), self.base_point().lsn);
        let written = self.ledger.lock().expect("no panics under this lock").append(at, fact, base);
        if let Err(error) = written {
            self.note_error(format!("{error}; it will be written with the next entry"));
        }
    }

    /// What is written down about its history besides the journal, oldest first.
    pub fn ledger(&self) -> Vec<Entry> {
        let horizon = self.oldest().0;
        let came_about = |entry: &&Entry| match entry.fact {
            Fact::Horizon { to, .. } => to.0 <= horizon,
            _ => true,
        };
        let ledger = self.ledger.lock().expect("no panics under this lock");
        ledger.entries().iter().filter(came_about).cloned().collect()
    }

    /// Lets the newest marker of this name go: it keeps nothing any more, and its name is free.
    pub fn unmark(&self, name: &str) -> Result<(Lsn, Timestamp)> {
        let marker = Timeline::marker(self, name)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("volume {} has no marker `{name}`", self.identity.name))
        })?;
        let _using = self.use_files()?;
        let fact = Fact::LetGo { lsn: marker.lsn, at: marker.at, name: name.to_owned() };
        let (at, base) = (self.shared.clock.now(), self.base_point().lsn);
        // This one must be written: a name that came back would hold history that nobody wants.
        self.ledger.lock().expect("no panics under this lock").append(at, fact, base)?;
        self.forget_marker(marker.lsn);
        Ok((marker.lsn, marker.at))
    }

    /// What holds history now, oldest state first.
    pub fn pins(&self) -> Vec<Pin> {
        let mut pins = self.pins.list();
        pins.extend(self.pins_of_clones());
        pins.sort_by(|one, other| (one.lsn, &one.holder).cmp(&(other.lsn, &other.holder)));
        // A clone holds by its name what its view of its parent holds too.
        pins.dedup_by(|one, other| (one.lsn, &one.holder) == (other.lsn, &other.holder));
        pins
    }

    /// Holds the state at `lsn` until the guard is dropped. [`Kind::OutOfRange`] if it is before the horizon, was
    /// thinned away, or is none: half of one that was gone on from.
    pub fn pin(&self, lsn: Lsn, holder: &str) -> Result<PinGuard> {
        let is_hidden = self.course.read().expect("no panics under this lock").gap_of(lsn).is_some();
        if is_hidden {
            return Err(self.is_gone(lsn));
        }
        self.pin_what_is_there(lsn, holder)
    }

    /// As [`Volume::pin`], also of what shows no state: for who lays blocks over it.
    pub(crate) fn pin_what_is_there(&self, lsn: Lsn, holder: &str) -> Result<PinGuard> {
        self.pins.take(lsn, holder).ok_or_else(|| self.is_gone(lsn))
    }

    /// Holds every state from `lsn` on that is there now: nothing of them is folded or thinned until the guard is
    /// dropped. For whoever still has to be sent all of it; see [`PinGuard::move_to`].
    pub fn pin_all_above(&self, lsn: Lsn, holder: &str) -> Result<PinGuard> {
        self.pins.take_all_above(lsn, holder).ok_or_else(|| self.is_gone(lsn))
    }

    /// Holds every state from `lsn` on as long as the volume is open.
    pub fn hold_while_open(&self, lsn: Lsn, holder: &str) {
        if let Ok(guard) = self.pin_all_above(lsn, holder) {
            std::mem::forget(guard);
        }
    }

    /// Whether the state after this record is there: not before the horizon, and not thinned away.
    pub fn keeps(&self, lsn: Lsn) -> bool {
        lsn >= self.oldest().0 && self.pins.lock().keeps(lsn)
    }

    /// The error about a state that is gone.
    pub(crate) fn is_gone(&self, lsn: Lsn) -> Error {
        let (oldest, at) = self.oldest();
        let name = &self.identity.name;
        if lsn > self.tip_lsn() {
            return match self.coalesced_state() {
                Some(state) if state.lsn >= lsn => self.is_filling(&state),
                _ => Error::new(Kind::OutOfRange, format!("volume {name} has no {lsn:?}")),
            };
        }
        if let Some(gap) = self.course().gap_of(lsn).filter(|_| lsn >= oldest) {
            return self.is_in_gap(gap, &format!("{lsn:?}"));
        }
        let held = self.pins.lock();
        if lsn >= oldest && !held.keeps(lsn) {
            let (below, above) = held.neighbours(lsn);
            drop(held);
            let context = format!("{lsn:?} of volume {name} lies in history that was thinned");
            return Error::new(Kind::OutOfRange, context).hint(self.kept_around(below, above));
        }
        drop(held);
        let context =
            format!("{lsn:?} of volume {name} is before the horizon, {oldest:?} at {}", format_utc(at));
        Error::new(Kind::OutOfRange, context).hint("the oldest state is `start`")
    }

    /// Why there is no state at `what`, a record or an instant that lies in this stretch.
    pub(super) fn is_in_gap(&self, gap: &Gap, what: &str) -> Error {
        let name = &self.identity.name;
        let (from, to) = (format_utc(gap.complete), format_utc(gap.at));
        let before = format!("`lsn:{}` is the newest state before it", gap.behind);
        let (why, hint) = match gap.end {
            None => (
                format!("the state of {to}, with which it goes on, is not all here yet"),
                format!("try again in a moment; {before}"),
            ),
            Some((end, _)) if gap.is_whole => (
                format!(
                    "what was written between {from} and {to} was not here when this history went on with the state of {to}"
                ),
                format!("{before}, `lsn:{end}` is the state of {to}"),
            ),
            Some(_) => (format!("the state of {to} was never all here"), before),
        };
        Error::new(Kind::OutOfRange, format!("{what} lies in a gap of volume {name}: {why}")).hint(hint)
    }

    /// Where to look instead.
    pub(super) fn kept_around(&self, below: Lsn, above: Lsn) -> String {
        let place = |lsn: Lsn| match self.timestamp_of_record(lsn) {
            Ok(at) => format!("`lsn:{lsn}` ({})", format_utc(at)),
            Err(_) => format!("`lsn:{lsn}`"),
        };
        format!("kept around it are {} and {}", place(below), place(above))
    }

    /// Moves the horizon to `to`, or as far as pins allow. Whether it moved. Durable when this returns.
    pub(super) fn move_horizon(&self, to: Lsn, reason: Reason) -> Result<bool> {
        // What shows no state is no oldest one.
        let course = self.course();
        let to = match course.gap_of(to) {
            Some(gap) => gap.end.map_or(gap.behind, |(end, _)| end),
            None => to,
        };
        let to = self.held_by_clones().into_iter().map(|(_, lsn)| lsn).fold(to, Lsn::min);
        let to = {
            let mut held = self.pins.lock();
            let to = held.oldest().map_or(to, |pin| pin.lsn.min(to));
            // A replica may hold what lies in a gap: it has got so far.
            let to = course.gap_of(to).map_or(to, |gap| gap.behind);
            held.floor = held.floor.max(to);
            to
        };
        let before = self.durable_history();
        // What is not shown any more stays hidden, also where saying so failed: the disk may have it all the same.
        let to = to.max(self.oldest().0);
        if to <= before.horizon.0 {
            return Ok(false);
        }
        let horizon = (to, self.timestamp_of_record(to)?);
        self.history.lock().expect("no panics under this lock").oldest = horizon;
        // Why, before it is so: an entry for a move that never came is passed over by whoever reads.
        self.note_fact(Fact::Horizon { from: before.horizon, to: horizon, reason });
        self.publish_history(HistoryState { horizon, ..before })?;
        Ok(true)
    }

    /// Writes the manifest `history`. Only the duties' thread, which holds their lock, comes here.
    ///
    /// Legal states after an error: what was known to be durable, or this one. Until one of them is written again, nothing may
    /// be done that only the first allows.
    pub(super) fn publish_history(&self, state: HistoryState) -> Result<()> {
        let (files, path) = (&*self.shared.files, self.dir.join(HISTORY_FILE));
        let place = || format!("writing {}", path.display());
        let fresh = write_beside(files, &path, &state.encode()).at(place)?;
        let known = || self.history.lock().expect("no panics under this lock");
        known().is_doubtful = true;
        put_in_place(files, &fresh, &path).at(place)?;
        let mut known = known();
        (known.durable, known.is_doubtful) = (state, false);
        Ok(())
    }

    /// Makes sure that what is known to be durable is what the disk says.
    pub(super) fn settle_history(&self) -> Result<()> {
        let (durable, is_doubtful) = {
            let known = self.history.lock().expect("no panics under this lock");
            (known.durable, known.is_doubtful)
        };
        if is_doubtful { self.publish_history(durable) } else { Ok(()) }
    }

    /// What the policy keeps now.
    pub fn retained(&self) -> Result<Retained> {
        self.retained_by(&self.retention())
    }

    /// The store's time; not before the newest record, which may be ahead of a wall clock that was set back.
    pub(super) fn policy_now(&self) -> Timestamp {
        self.shared.clock.now().max(Timeline::tip(self).1)
    }

    /// What another policy would keep now.
    pub fn retained_by(&self, policy: &Policy) -> Result<Retained> {
        Scene::of(self, policy.clone())?.retained(policy)
    }

    /// Whether the journal should be made smaller for the next segment to fit, by policy; and by how much.
    pub(super) fn excess_bytes(&self) -> Result<u64> {
        let at_cap = self.retention().at_cap;
        if at_cap == AtCap::Block {
            return Ok(0);
        }
        let ready = self.pool.lock().expect("no panics under this lock").ready() as u64;
        let (used, cap) = (self.journal_bytes(), self.journal_cap_bytes()?);
        Ok(aging::excess_bytes(at_cap, used, ready, self.identity.segment_bytes, cap))
    }

    /// So much of its cap the journal leaves free, in bytes: below that its oldest history is thinned or goes.
    pub fn journal_reserve_bytes(&self) -> Result<u64> {
        let cap = self.journal_cap_bytes()?;
        Ok(aging::reserve_bytes(self.retention().at_cap, self.identity.segment_bytes, cap))
    }

    /// The oldest pin, if it keeps a journal that may drop its oldest from doing so.
    pub(super) fn held_by(&self) -> Option<Pin> {
        let drops = self.retention().at_cap != AtCap::Block;
        self.pins().into_iter().next().filter(|_| drops)
    }
}
