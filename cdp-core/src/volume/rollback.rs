//! Setting a volume back to an older state and taking that back, making it larger, and holding it closed to
//! clients meanwhile.
//!
//! A rollback is a record: it costs the same however much was written. Before it stands the marker
//! `before-rollback-N`, in the same batch, so that the state that is left can be named. Legal states after a
//! crash: neither, the marker alone (it names the tip and does no harm), or both.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Volume;
use super::clone::HeldByClone;
use super::pins::PinGuard;
use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::format::epoch::EpochPayload;
use crate::format::marker::{MarkerClass, MarkerPayload};
use crate::format::record::RecordKind;
use crate::format::turn::Turn;
use crate::history::course::TurnAt;
use crate::ids::*;
use crate::journal::append::{Appender, Draft};
use crate::limits::VOLUME_BYTES_MAX;

/// The marker in front of a rollback is called so, with the rollback's number behind it.
pub const MARKER_PREFIX: &str = "before-rollback-";

/// A rollback takes so many timestamps: its marker's and its own.
const TIMESTAMPS: u64 = 2;

/// That a volume is closed to clients, since when and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Since when.
    pub since: Timestamp,
    /// Why, for people; one line.
    pub why: String,
}

/// Who may come in.
pub(super) struct Door {
    state: Mutex<DoorState>,
    // The newest rollback: whoever came in before it has stale caches.
    rolled_back: AtomicU64,
    // Held while a clone is hydrated.
    pub(super) hydrating: Mutex<()>,
    // The clones that read from it, and which state of it.
    pub(super) clones: Mutex<BTreeMap<VolumeId, HeldByClone>>,
}

struct DoorState {
    held: Option<Held>,
    bars: usize,
}

impl Door {
    pub(super) fn new(held: Option<Held>) -> Door {
        Door {
            state: Mutex::new(DoorState { held, bars: 0 }),
            rolled_back: AtomicU64::new(0),
            hydrating: Mutex::new(()),
            clones: Mutex::default(),
        }
    }
}

/// Lets no client in until it is dropped.
pub struct Bar(Arc<Volume>);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.door.state.lock().expect("no panics under this lock").bars -= 1;
    }
}

/// Where a rollback goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Back {
    /// To the state at this record.
    To(Lsn),
    /// To right before the newest rollback.
    Undo,
}

/// What is the same for all members of a group that are rolled back together.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// The group operation's id; 0 for a single volume.
    pub group: u128,
    /// The point as somebody asked for it.
    pub asked: String,
    /// When other members of the group went back, for one that follows them; `None`: now.
    pub at: Option<Timestamp>,
}

/// What a rollback did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RolledBack {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// The record whose state the volume has now.
    pub to: Lsn,
    /// The marker of the state that was left, at `lsn` − 1.
    pub marker: String,
    /// The volume's size before it, in bytes.
    pub size_before: u64,
    /// And after it.
    pub size_after: u64,
}

/// A rollback that can be appended.
struct Planned {
    to: Lsn,
    size_before: u64,
    marker: MarkerPayload,
    turn: Turn,
    _pin: PinGuard,
}

type Locked<'a> = MutexGuard<'a, Option<Appender>>;

impl Volume {
    /// The newest rollback's record; [`Lsn::ZERO`] if there was none.
    pub fn rolled_back(&self) -> Lsn {
        Lsn(self.door.rolled_back.load(Ordering::Acquire))
    }

    /// Whether it is closed to clients.
    pub fn held(&self) -> Option<Held> {
        self.door.state.lock().expect("no panics under this lock").held.clone()
    }

    /// Closes it to new clients, also across restarts, until [`Volume::resume`]. Durable when this returns.
    pub fn hold(&self, why: &str) -> Result<()> {
        let held = Held { since: self.shared.clock.now(), why: why.to_owned() };
        self.change_manifest(|manifest| manifest.held = Some(held.clone()))?;
        self.door.state.lock().expect("no panics under this lock").held = Some(held);
        Ok(())
    }

    /// Opens it again. Durable when this returns. Whether it was closed.
    pub fn resume(&self) -> Result<bool> {
        if self.held().is_none() {
            return Ok(false);
        }
        self.change_manifest(|manifest| manifest.held = None)?;
        self.door.state.lock().expect("no panics under this lock").held = None;
        Ok(true)
    }

    /// Lets no client in for a moment, of which nothing is remembered.
    pub fn bar(self: &Arc<Volume>) -> Bar {
        self.door.state.lock().expect("no panics under this lock").bars += 1;
        Bar(self.clone())
    }

    /// Whether a client may have it now.
    pub fn refuse_if_held(&self) -> Result<()> {
        let name = &self.identity.name;
        let has_state = self.course.read().expect("no panics under this lock").open_gap().is_none();
        if !has_state {
            let context =
                format!("volume {name} is between two states: the one it goes on from is being written");
            return Err(Error::new(Kind::Busy, context).hint("try again in a moment"));
        }
        let state = self.door.state.lock().expect("no panics under this lock");
        if let Some(held) = &state.held {
            let context = format!("volume {name} is closed: {}", held.why);
            return Err(Error::new(Kind::Refused, context).hint(format!(
                "`cdp resume {name}` opens it again; its past, {name}@POINT, is open meanwhile"
            )));
        }
        if state.bars > 0 {
            let context = format!("volume {name} is being set back");
            return Err(Error::new(Kind::Busy, context).hint("try again in a second"));
        }
        Ok(())
    }

    /// Sets the volume back. Durable when this returns. The caller sees to it that no client has it open: whoever
    /// had is refused from then on, see [`super::client::Client`].
    pub fn rollback(self: &Arc<Volume>, back: Back, asked: &str) -> Result<RolledBack> {
        let how = How { group: 0, asked: asked.to_owned(), at: None };
        let mut done = Volume::rollback_all(&[(self.clone(), back)], &how)?;
        Ok(done.remove(0))
    }

    /// Sets many volumes back at one instant: all append locks are held, and all records have one timestamp, so that no
    /// instant shows some members before and others behind it. They must be in rising order of their ids, each once. In
    /// memory it is all or none; that it is so after a crash too, the store's intent sees to.
    pub fn rollback_all(members: &[(Arc<Volume>, Back)], how: &How) -> Result<Vec<RolledBack>> {
        assert!(
            members.windows(2).all(|pair| pair[0].0.identity.id < pair[1].0.identity.id),
            "locks are taken in the order of ids"
        );
        // What makes room may drop the oldest history, but not where this goes.
        let mut held = Vec::with_capacity(members.len());
        for (volume, back) in members {
            match (back, volume.rolled_back()) {
                (Back::To(to), _) => held.push(volume.pin(*to, "a rollback")?),
                // Refused below.
                (Back::Undo, Lsn::ZERO) => {}
                (Back::Undo, newest) => held.push(volume.pin(newest.previous(), "an undo")?),
            }
            volume.make_room_for_event();
        }
        let mut locks: Vec<Locked<'_>> = members
            .iter()
            .map(|(volume, _)| volume.append.lock().expect("no panics under this lock"))
            .collect();
        let mut plans = Vec::with_capacity(members.len());
        for ((volume, back), append) in members.iter().zip(&mut locks) {
            plans.push(volume.plan_rollback(append, *back, how)?);
        }
        let at = instant_of(members, &locks, how.at);
        let mut done: Vec<RolledBack> = Vec::with_capacity(members.len());
        for (number, plan) in plans.iter().enumerate() {
            match members[number].0.append_rollback(&mut locks[number], plan, at) {
                Ok(one) => done.push(one),
                Err(error) => {
                    take_back(members, &mut locks, &done);
                    return Err(error);
                }
            }
        }
        drop(locks);
        for ((volume, _), one) in members.iter().zip(&done) {
            volume.sync_through(one.lsn)?;
        }
        Ok(done)
    }

    /// Everything that can be refused is refused here; afterwards only the storage can fail.
    fn plan_rollback(&self, append: &mut Locked<'_>, back: Back, how: &How) -> Result<Planned> {
        self.refuse_unless_writable()?;
        self.plan_in_any_role(append, back, how)
    }

    /// Sets back a volume that is being promoted and is not the primary yet, with the timestamps `at` and the one behind
    /// it. The caller makes it durable.
    pub(super) fn roll_back_for_promotion(
        &self,
        append: &mut Locked<'_>,
        to: Lsn,
        how: &How,
        at: Timestamp,
    ) -> Result<()> {
        self.refuse_unless_healthy()?;
        let plan = self.plan_in_any_role(append, Back::To(to), how)?;
        let (marker, turn) = (plan.marker.encode(), plan.turn.encode());
        let drafts = self.drafts(&plan, &marker, &turn);
        let (count, appended) = self.append_in_any_role(append, &drafts, at);
        self.rolled_back_by(&plan, count, appended).map(drop)
    }

    fn plan_in_any_role(&self, append: &mut Locked<'_>, back: Back, how: &How) -> Result<Planned> {
        let tip = self.tip_lsn();
        let name = &self.identity.name;
        let course = self.course.read().expect("no panics under this lock");
        let (to, undo) = match (back, course.newest_rollback()) {
            (Back::To(to), _) if to > tip => {
                let context = format!("volume {name} has no {to:?}; its newest record is {tip:?}");
                return Err(Error::new(Kind::OutOfRange, context));
            }
            (Back::To(to), _) => (to, false),
            (Back::Undo, Some(newest)) => (newest.lsn.previous(), true),
            (Back::Undo, None) => {
                let context = format!("volume {name} was never rolled back");
                return Err(Error::new(Kind::NotFound, context));
            }
        };
        let number = match course.newest_rollback().map(|newest| &newest.turn) {
            Some(Turn::Rollback { number, .. }) => number.saturating_add(1),
            _ => 1,
        };
        let (size_before, size_bytes) = (course.size_at(tip), course.size_at(to));
        drop(course);
        // Held until the record says that it is needed.
        let pin = self.pin(to, "a rollback")?;
        let (group, asked) = (how.group, how.asked.clone());
        let marker = MarkerPayload {
            class: MarkerClass::Manual,
            group,
            name: format!("{MARKER_PREFIX}{number}"),
            note: if undo {
                "set before an undo".to_owned()
            } else {
                format!("set before the rollback to {asked}")
            },
            tags: Vec::new(),
            hook_output: String::new(),
        };
        let turn = Turn::Rollback { to, number, size_bytes, undo, group, asked };
        let plan = Planned { to, size_before, marker, turn, _pin: pin };
        self.make_room(append, &plan)?;
        Ok(plan)
    }

    /// Marker and record go into one batch: when they do not fit here, the next segment is begun first.
    fn make_room(&self, append: &mut Locked<'_>, plan: &Planned) -> Result<()> {
        let (marker, turn) = (plan.marker.encode(), plan.turn.encode());
        let drafts = self.drafts(plan, &marker, &turn);
        let appender = append.as_mut().ok_or_else(|| Error::new(Kind::Closed, "the volume is closed"))?;
        if appender.fitting(&drafts).0 < drafts.len() {
            self.roll(appender)?;
        }
        Ok(())
    }

    fn drafts<'a>(&self, plan: &Planned, marker: &'a [u8], turn: &'a [u8]) -> [Draft<'a>; 2] {
        let elapsed_ns = self.shared.clock.elapsed_ns();
        let mut first = Draft::event(RecordKind::Marker, SessionId::STORE, elapsed_ns, marker);
        first.flags = plan.marker.class as u8;
        [first, Draft::event(plan.turn.kind(), SessionId::STORE, elapsed_ns, turn)]
    }

    fn append_rollback(&self, append: &mut Locked<'_>, plan: &Planned, at: Timestamp) -> Result<RolledBack> {
        self.refuse_unless_primary()?;
        let (marker, turn) = (plan.marker.encode(), plan.turn.encode());
        let drafts = self.drafts(plan, &marker, &turn);
        // Of one that follows others the crash may have left the marker alone.
        if append.as_ref().is_some_and(|appender| appender.position.timestamp == at) {
            let at = Timestamp(at.0 + 1);
            let lsn = self.append_in_any_role(append, &drafts[1..], at).1?;
            return Ok(Self::rolled_back_at(plan, lsn, at));
        }
        let (count, appended) = self.append_in_any_role(append, &drafts, at);
        self.rolled_back_by(plan, count, appended)
    }

    fn rolled_back_by(&self, plan: &Planned, count: usize, appended: Result<Lsn>) -> Result<RolledBack> {
        let first = appended?;
        assert_eq!(count, 2, "there is room for the marker and the rollback");
        let marked_at = self.timestamp_of_record(first)?;
        self.learn_name(first, marked_at, &plan.marker);
        let lsn = first.next();
        Ok(Self::rolled_back_at(plan, lsn, self.timestamp_of_record(lsn)?))
    }

    fn rolled_back_at(plan: &Planned, lsn: Lsn, at: Timestamp) -> RolledBack {
        RolledBack {
            lsn,
            at,
            to: plan.to,
            marker: plan.marker.name.clone(),
            size_before: plan.size_before,
            size_after: plan.turn.size_bytes(),
        }
    }

    /// Makes the volume larger. Clients that have it open keep the size they were told. Durable when this returns.
    pub fn grow(&self, size_bytes: u64) -> Result<(Lsn, Timestamp)> {
        if size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(512) {
            let context = format!(
                "a size of {size_bytes} bytes; it must be a multiple of 512, at most {VOLUME_BYTES_MAX} (64 TiB)"
            );
            return Err(Error::new(Kind::Invalid, context));
        }
        self.refuse_unless_writable()?;
        self.make_room_for_event();
        let set = {
            let mut append = self.append.lock().expect("no panics under this lock");
            let now = self.size_bytes();
            if size_bytes <= now {
                let context = format!("volume {} has {now} bytes; it can only grow", self.identity.name);
                return Err(Error::new(Kind::Refused, context).hint(
                    "shrinking would cut off what the filesystem has there; make a smaller volume and copy",
                ));
            }
            let payload = Turn::Resize { size_bytes }.encode();
            let elapsed_ns = self.shared.clock.elapsed_ns();
            let draft = Draft::event(RecordKind::Resize, SessionId::STORE, elapsed_ns, &payload);
            let lsn = self.append_one(&mut append, draft)?;
            (lsn, self.timestamp_of_record(lsn)?)
        };
        self.sync_through(set.0)?;
        Ok(set)
    }

    /// Learns of what turns the volume among records that were just appended, before any read sees them.
    pub(super) fn learn_turns(&self, drafts: &[Draft<'_>], first: Lsn, first_at: Timestamp) {
        for (number, draft) in drafts.iter().enumerate() {
            let turn = match draft.kind {
                RecordKind::Rollback | RecordKind::Resize => Turn::decode(draft.kind, draft.parts[0]),
                RecordKind::Epoch => match EpochPayload::decode(draft.parts[0]).map(|begun| begun.turn()) {
                    Some(None) => continue,
                    decoded => decoded.flatten(),
                },
                _ => continue,
            };
            let turn = turn.expect("it was encoded here");
            let lsn = Lsn(first.0 + number as u64);
            self.learn_turn(TurnAt { lsn, at: Timestamp(first_at.0 + number as u64), turn });
        }
    }

    pub(super) fn learn_turn(&self, turn: TurnAt) {
        let (lsn, size_bytes) = (turn.lsn, turn.turn.size_bytes());
        let is_rollback = turn.turn.kind() == RecordKind::Rollback;
        if matches!(turn.turn, Turn::Ahead { .. }) {
            self.role.note_other_state();
        }
        let fits = self.course.write().expect("no panics under this lock").push(turn);
        assert!(fits, "what is appended is newer than all before");
        self.size_bytes.store(size_bytes, Ordering::Release);
        if is_rollback {
            self.door.rolled_back.store(lsn.0, Ordering::Release);
        }
    }

    /// Takes over what the journal says; at the opening.
    pub(super) fn take_course(&self, turns: Vec<TurnAt>) -> Result<()> {
        for turn in turns {
            let lsn = turn.lsn;
            if !self.course.write().expect("no panics under this lock").push(turn) {
                let context =
                    format!("volume {}: {lsn:?} turns it to a state it cannot have", self.identity.name);
                return Err(Error::new(Kind::Damaged, context));
            }
        }
        let course = self.course.read().expect("no panics under this lock");
        self.size_bytes.store(course.size_at(self.tip_lsn()), Ordering::Release);
        self.door.rolled_back.store(course.newest_rollback_lsn().0, Ordering::Release);
        Ok(())
    }
}

/// The timestamp of the markers of a rollback; the rollbacks have the one behind it. Taken with all locks held.
fn instant_of(members: &[(Arc<Volume>, Back)], locks: &[Locked<'_>], wanted: Option<Timestamp>) -> Timestamp {
    let is_behind = |at: &Timestamp| {
        let newest = |lock: &Locked<'_>| lock.as_ref().map(|appender| appender.position.timestamp);
        // With that of the marker, it has the marker alone.
        locks.iter().all(|lock| newest(lock).is_some_and(|newest| newest <= *at))
    };
    let wanted = wanted.map(|at| Timestamp(at.0.saturating_sub(TIMESTAMPS - 1))).filter(is_behind);
    wanted.unwrap_or_else(|| {
        members.first().map_or(Timestamp(0), |(volume, _)| volume.shared.clock.take(TIMESTAMPS))
    })
}

/// Some members are rolled back already and another cannot be: the state of the former becomes again what it was.
fn take_back(members: &[(Arc<Volume>, Back)], locks: &mut [Locked<'_>], done: &[RolledBack]) {
    for (number, one) in done.iter().enumerate() {
        let volume = &members[number].0;
        let how = How { group: 0, asked: one.marker.clone(), at: None };
        let undone = volume.plan_rollback(&mut locks[number], Back::Undo, &how).and_then(|plan| {
            let at = volume.shared.clock.take(TIMESTAMPS);
            volume.append_rollback(&mut locks[number], &plan, at)
        });
        if let Err(error) = undone {
            volume.note_error(format!(
                "a rollback of its group failed and could not be taken back here: {error}"
            ));
        }
    }
}
