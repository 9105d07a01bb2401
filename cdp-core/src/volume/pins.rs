//! Holds on history: what somebody is looking at stays; and which states are there to be looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::ids::Lsn;

/// A hold on history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// The oldest state that it holds.
    pub lsn: Lsn,
    /// Who holds it, for people.
    pub holder: String,
    /// Whether it holds every state from there on, as a replica does, which still has to be sent all of them.
    pub all_above: bool,
}

/// The pins of a volume that live as long as this process.
pub(super) struct Pins {
    held: Mutex<Held>,
}

pub(super) struct Held {
    next: u64,
    pins: BTreeMap<u64, Pin>,
    /// The oldest state that may still be pinned: moved here first, then made durable.
    pub(super) floor: Lsn,
    // Stretches that are thinned, or about to be, by their first record.
    thinned: BTreeMap<Lsn, Thinned>,
}

/// A stretch of which only some states are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Thinned {
    /// Its last record.
    pub(super) last: Lsn,
    /// The states, rising.
    pub(super) kept: Vec<Lsn>,
}

impl Held {
    /// The oldest pinned state.
    pub(super) fn oldest(&self) -> Option<&Pin> {
        self.pins.values().min_by_key(|pin| pin.lsn)
    }

    /// All of them.
    pub(super) fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }

    /// From now on only these states of the stretch can be pinned. Gives what was said before of stretches in it.
    pub(super) fn thin(&mut self, first: Lsn, thinned: Thinned) -> BTreeMap<Lsn, Thinned> {
        let inside: Vec<Lsn> = self.thinned.range(first..=thinned.last).map(|(lsn, _)| *lsn).collect();
        let before = inside.iter().filter_map(|lsn| Some((*lsn, self.thinned.remove(lsn)?))).collect();
        self.thinned.insert(first, thinned);
        before
    }

    /// Takes that back.
    pub(super) fn unthin(&mut self, first: Lsn, before: BTreeMap<Lsn, Thinned>) {
        self.thinned.remove(&first);
        self.thinned.extend(before);
    }

    /// Stretches up to the base are gone.
    pub(super) fn forget_thinned(&mut self, base: Lsn) {
        self.thinned.retain(|_, thinned| thinned.last > base);
    }

    /// Whether the state after this record is there, as far as thinning goes.
    pub(super) fn keeps(&self, lsn: Lsn) -> bool {
        self.stretch_of(lsn).is_none_or(|(_, thinned)| thinned.kept.binary_search(&lsn).is_ok())
    }

    fn stretch_of(&self, lsn: Lsn) -> Option<(&Lsn, &Thinned)> {
        self.thinned.range(..=lsn).next_back().filter(|(_, thinned)| lsn <= thinned.last)
    }

    /// The kept states around one that is not, as far as they are known here: of its stretch, or the ends of it.
    pub(super) fn neighbours(&self, lsn: Lsn) -> (Lsn, Lsn) {
        let Some((first, thinned)) = self.stretch_of(lsn) else { return (lsn, lsn) };
        let at = thinned.kept.partition_point(|kept| *kept < lsn);
        let below = at.checked_sub(1).map_or(first.previous(), |at| thinned.kept[at]);
        let above = thinned.kept.get(at).copied().unwrap_or(thinned.last.next());
        (below, above)
    }
}

impl Pins {
    /// None yet; nothing below `floor` may be pinned.
    pub(super) fn above(floor: Lsn) -> Arc<Pins> {
        let held = Held { next: 0, pins: BTreeMap::new(), floor, thinned: BTreeMap::new() };
        Arc::new(Pins { held: Mutex::new(held) })
    }

    /// For those who move the floor.
    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panics under this lock")
    }

    /// Pins a state, unless it is below the floor or was thinned away.
    pub(super) fn take(self: &Arc<Pins>, lsn: Lsn, holder: &str) -> Option<PinGuard> {
        let mut held = self.lock();
        if lsn < held.floor || !held.keeps(lsn) {
            return None;
        }
        Some(self.insert(&mut held, lsn, holder, false))
    }

    /// Pins every state from `lsn` on that is there.
    pub(super) fn take_all_above(self: &Arc<Pins>, lsn: Lsn, holder: &str) -> Option<PinGuard> {
        let mut held = self.lock();
        (lsn >= held.floor).then(|| self.insert(&mut held, lsn, holder, true))
    }

    fn insert(self: &Arc<Pins>, held: &mut Held, lsn: Lsn, holder: &str, all_above: bool) -> PinGuard {
        let id = held.next;
        held.next += 1;
        held.pins.insert(id, Pin { lsn, holder: holder.to_owned(), all_above });
        PinGuard { pins: self.clone(), id }
    }

    /// All of them, oldest state first.
    pub(super) fn list(&self) -> Vec<Pin> {
        let mut pins: Vec<Pin> = self.lock().pins.values().cloned().collect();
        pins.sort_by_key(|pin| pin.lsn);
        pins
    }
}

/// A pin; let go when dropped.
pub struct PinGuard {
    pins: Arc<Pins>,
    id: u64,
}

impl PinGuard {
    /// What is before `lsn` is not needed any more. Never moves back.
    pub fn move_to(&self, lsn: Lsn) {
        if let Some(pin) = self.pins.lock().pins.get_mut(&self.id) {
            pin.lsn = pin.lsn.max(lsn);
        }
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.pins.lock().pins.remove(&self.id);
    }
}
