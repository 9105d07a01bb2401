//! Holds on history: what somebody is looking at stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::ids::Lsn;

/// A hold on the state at one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// The state.
    pub lsn: Lsn,
    /// Who holds it, for people.
    pub holder: String,
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
}

impl Held {
    /// The oldest pinned state.
    pub(super) fn oldest(&self) -> Option<&Pin> {
        self.pins.values().min_by_key(|pin| pin.lsn)
    }
}

impl Pins {
    /// None yet; nothing below `floor` may be pinned.
    pub(super) fn above(floor: Lsn) -> Arc<Pins> {
        Arc::new(Pins { held: Mutex::new(Held { next: 0, pins: BTreeMap::new(), floor }) })
    }

    /// For those who move the floor.
    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panics under this lock")
    }

    /// Pins a state, unless it is below the floor.
    pub(super) fn take(self: &Arc<Pins>, lsn: Lsn, holder: &str) -> Option<PinGuard> {
        let mut held = self.lock();
        if lsn < held.floor {
            return None;
        }
        let id = held.next;
        held.next += 1;
        held.pins.insert(id, Pin { lsn, holder: holder.to_owned() });
        Some(PinGuard { pins: self.clone(), id })
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

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.pins.lock().pins.remove(&self.id);
    }
}
