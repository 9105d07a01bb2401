//! What the indexes of a store take of memory, and what is left of their budget for cached pages.
//!
//! Pages are what gives way: they are read again. Parts in memory give way by runs that are written, and small runs by being
//! merged; whoever owns them asks here whether it is time. Names of markers, and what is under way, do not.

use super::PageCache;
use crate::limits::{LIVE_BYTES_MAX, LIVE_BYTES_MIN, LIVE_BYTES_SHORT, MERGE_FILTER_BYTES_MAX};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of the budget, a sixteenth is left free: what is in memory grows between two looks at it.
const HEADROOM: usize = 16;
/// Pages may take three quarters of the budget, and always an eighth.
const PAGES_MAX: (usize, usize) = (3, 4);
const PAGES_MIN: usize = 8;
/// Parts in memory may take a quarter together, one that takes records an eighth; runs a quarter.
const PARTS: usize = 4;
const OPEN_PART: usize = 8;
const RUNS: usize = 4;
/// The filter of a merge may take an eighth.
const MERGE_FILTER: usize = 8;

/// Memory that indexes take, in bytes, but for cached pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Parts in memory: of open segments, of full ones until their runs stand, and of those whose runs are bad.
    pub parts_bytes: usize,
    /// What opened runs keep: fences and filters.
    pub runs_bytes: usize,
    /// Names of markers, and states that are kept in thinned history.
    pub names_bytes: usize,
    /// Merges and thinning under way.
    pub merges_bytes: usize,
}

impl Used {
    /// All of it.
    pub fn total_bytes(&self) -> usize {
        self.parts_bytes + self.runs_bytes + self.names_bytes + self.merges_bytes
    }

    fn change(&mut self, from: Used, to: Used) {
        let change = |sum: &mut usize, from: usize, to: usize| *sum = (*sum + to).saturating_sub(from);
        change(&mut self.parts_bytes, from.parts_bytes, to.parts_bytes);
        change(&mut self.runs_bytes, from.runs_bytes, to.runs_bytes);
        change(&mut self.names_bytes, from.names_bytes, to.names_bytes);
        change(&mut self.merges_bytes, from.merges_bytes, to.merges_bytes);
    }
}

/// The budget of a store, and what its volumes take of it.
#[derive(Debug)]
pub struct Memory {
    budget_bytes: usize,
    pages: Arc<PageCache>,
    used: Mutex<Used>,
    // Beside the lock: each write of each volume asks.
    is_short_of_parts: AtomicBool,
}

impl Memory {
    /// Of so many bytes.
    pub fn new(budget_bytes: usize) -> Arc<Memory> {
        let pages = PageCache::new(budget_bytes / PAGES_MAX.1 * PAGES_MAX.0);
        Arc::new(Memory {
            budget_bytes,
            pages,
            used: Mutex::default(),
            is_short_of_parts: AtomicBool::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Only numbers are changed under it.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache of pages.
    pub fn pages(&self) -> &Arc<PageCache> {
        &self.pages
    }

    /// What was set, in bytes.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// What is taken, when each volume was looked at last.
    pub fn used(&self) -> Used {
        *self.lock()
    }

    /// The share of one volume: nothing yet.
    pub fn share(self: &Arc<Memory>) -> Share {
        Share { memory: self.clone(), used: Mutex::default() }
    }

    /// Whether parts take so much that they should get runs, small ones too.
    pub fn is_short_of_parts(&self) -> bool {
        self.is_short_of_parts.load(Ordering::Relaxed)
    }

    /// Whether runs take so much that fewer should be made of them.
    pub fn is_short_of_runs(&self) -> bool {
        self.lock().runs_bytes > self.budget_bytes / RUNS
    }

    /// What a part may take that takes records, in bytes: at more the next segment is begun.
    pub fn open_part_bytes_max(&self) -> usize {
        match self.is_short_of_parts() {
            true => LIVE_BYTES_SHORT,
            false => (self.budget_bytes / OPEN_PART).clamp(LIVE_BYTES_MIN, LIVE_BYTES_MAX),
        }
    }

    /// What the filter of a merged run may take, in bytes, while it is made.
    pub fn merge_filter_bytes_max(&self) -> usize {
        (self.budget_bytes / MERGE_FILTER).min(MERGE_FILTER_BYTES_MAX)
    }

    fn change(&self, from: Used, to: Used) {
        let mut used = self.lock();
        used.change(from, to);
        self.is_short_of_parts.store(used.parts_bytes > self.budget_bytes / PARTS, Ordering::Relaxed);
        let left = self.budget_bytes.saturating_sub(used.total_bytes() + self.budget_bytes / HEADROOM);
        // Not below it: a lookup that has no page of its own reads each of them again and again.
        self.pages.set_limit(left.max(self.budget_bytes / PAGES_MIN));
    }
}

/// What one volume takes; nothing more when it is dropped.
#[derive(Debug)]
pub struct Share {
    memory: Arc<Memory>,
    used: Mutex<Used>,
}

impl Share {
    /// So much it is now.
    pub fn set(&self, used: Used) {
        let mut own = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.memory.change(*own, used);
        *own = used;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(Used::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A store of many volumes would take its budget once for pages and once more for everything else.
    #[test]
    fn pages_get_what_the_others_leave() {
        let memory = Memory::new(64 << 20);
        let (one, other) = (memory.share(), memory.share());
        let limit = || memory.pages().limit_bytes();
        let near = |bytes: usize, wanted: usize| bytes <= wanted && bytes + (64 << 10) > wanted;
        assert!(near(limit(), 48 << 20), "{}", limit());
        one.set(Used { names_bytes: 10 << 20, ..Used::default() });
        other.set(Used { parts_bytes: 20 << 20, runs_bytes: 2 << 20, ..Used::default() });
        assert!(near(limit(), (64 - 32 - 4) << 20), "{}", limit());
        assert!(memory.is_short_of_parts() && !memory.is_short_of_runs());
        assert_eq!(memory.open_part_bytes_max(), LIVE_BYTES_SHORT);
        other.set(Used { runs_bytes: 20 << 20, ..Used::default() });
        assert!(!memory.is_short_of_parts() && memory.is_short_of_runs());
        assert_eq!(memory.open_part_bytes_max(), 8 << 20);
        one.set(Used { names_bytes: 200 << 20, ..Used::default() });
        assert!(near(limit(), 8 << 20), "{}", limit());
        drop(one);
        assert_eq!(memory.used(), Used { runs_bytes: 20 << 20, ..Used::default() });
        drop(other);
        assert!(near(limit(), 48 << 20) && memory.used() == Used::default());
    }
}
