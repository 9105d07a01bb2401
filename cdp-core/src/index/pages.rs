//! Pages of runs that were read and checked, kept within a fixed number of bytes for all runs together.

use crate::format::run::{PAGE_BYTES, Page};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const WAYS: usize = 4;

/// A cache of checked pages, shared by all runs of a store. Never grows beyond its budget, apart from pages
/// that lookups hold at the moment.
#[derive(Debug)]
pub struct PageCache {
    sets: Box<[Mutex<Set>]>,
    runs: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug, Default)]
struct Set {
    slots: [Option<Slot>; WAYS],
    /// The slot to give up next.
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    run: u64,
    number: u64,
    used: bool,
    page: Arc<Page>,
}

impl PageCache {
    /// A cache of about so many bytes, at least 16 KiB.
    pub fn new(bytes: usize) -> Arc<PageCache> {
        let sets = (bytes / (PAGE_BYTES * WAYS)).max(1);
        Arc::new(PageCache {
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            runs: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// How many pages had to be read so far.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// A number that tells one opened run from all others.
    pub(super) fn register(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    /// The page, from the cache or from `read`, which checks it.
    pub(super) fn get<E>(
        &self,
        run: u64,
        number: u64,
        read: impl FnOnce() -> Result<Arc<Page>, E>,
    ) -> Result<Arc<Page>, E> {
        let hash = (run << 32 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let set = &self.sets[((u128::from(hash) * self.sets.len() as u128) >> 64) as usize];
        // What a panic elsewhere left behind is whole: a slot is replaced in one assignment.
        let mut guard = set.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in guard.slots.iter_mut().flatten() {
            if slot.run == run && slot.number == number {
                slot.used = true;
                return Ok(slot.page.clone());
            }
        }
        drop(guard);
        self.misses.fetch_add(1, Ordering::Relaxed);
        let page = read()?;
        let mut guard = set.lock().unwrap_or_else(PoisonError::into_inner);
        guard.put(Slot { run, number, used: false, page: page.clone() });
        Ok(page)
    }
}

impl Set {
    /// Replaces a slot that was not used since the hand last came by.
    fn put(&mut self, fresh: Slot) {
        loop {
            let hand = self.hand;
            self.hand = (hand + 1) % WAYS;
            match &mut self.slots[hand] {
                Some(slot) if slot.used => slot.used = false,
                place => {
                    *place = Some(fresh);
                    return;
                }
            }
        }
    }
}
