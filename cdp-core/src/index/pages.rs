//! Pages of runs that were read and checked, kept within a number of bytes for all runs together, which is whatever the other
//! parts of the index leave.

use super::entries::{EntryPage, FencePage};
use crate::format::run::Page;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const WAYS: usize = 4;
/// What a cached page takes, with what holds it.
const CACHED_BYTES: usize =
    size_of::<CachedPage>() + 2 * size_of::<usize>() + size_of::<Set>() / WAYS + ALLOCATION_BYTES;
/// What an allocation costs beside its bytes.
const ALLOCATION_BYTES: usize = 16;
/// So many sets are looked through for a page to give up, where the one that is wanted has none.
const SETS_LOOKED_THROUGH: usize = 64;

/// What is kept of a page.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "they differ by a fifth, and a box would be one more wait for memory"
)]
pub(super) enum CachedPage {
    /// Of entries.
    Entries(EntryPage),
    /// Of fences of entries.
    Fences(FencePage),
    /// Of another section: its bytes.
    Rows(Page),
}

/// A cache of checked pages, shared by all runs of a store. Never grows beyond its budget, apart from pages
/// that lookups hold at the moment.
#[derive(Debug)]
pub struct PageCache {
    sets: Box<[Mutex<Set>]>,
    runs: AtomicU64,
    misses: AtomicU64,
    pages: AtomicUsize,
    pages_max: AtomicUsize,
    // The set that gives up a page next.
    hand: AtomicUsize,
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
    page: Arc<CachedPage>,
}

impl PageCache {
    /// A cache of about so many bytes, at least four pages.
    pub fn new(bytes: usize) -> Arc<PageCache> {
        let sets = (bytes / (CACHED_BYTES * WAYS)).max(1);
        Arc::new(PageCache {
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            runs: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            pages: AtomicUsize::new(0),
            pages_max: AtomicUsize::new(sets * WAYS),
            hand: AtomicUsize::new(0),
        })
    }

    /// How many pages had to be read so far.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Memory that it takes now, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.pages.load(Ordering::Relaxed) * CACHED_BYTES
    }

    /// Memory that it may take at most, in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.pages_max.load(Ordering::Relaxed) * CACHED_BYTES
    }

    /// It may take so many bytes from now on, but not more than it was made for nor less than a few pages; what is too
    /// much is given up.
    pub fn set_limit(&self, bytes: usize) {
        let pages_max = (bytes / CACHED_BYTES).clamp(WAYS, self.sets.len() * WAYS);
        self.pages_max.store(pages_max, Ordering::Relaxed);
        // Each time a set is asked it gives up one at most, and those that were used one time later.
        self.give_up(self.sets.len() * 2 * WAYS);
    }

    /// A number that tells one opened run from all others.
    pub(super) fn register(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    fn set(&self, number: usize) -> MutexGuard<'_, Set> {
        // What a panic elsewhere left behind is whole: a slot is replaced in one assignment.
        self.sets[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page, from the cache or from `read`, which checks it.
    pub(super) fn get<E>(
        &self,
        run: u64,
        number: u64,
        read: impl FnOnce() -> Result<CachedPage, E>,
    ) -> Result<Arc<CachedPage>, E> {
        let hash = (run << 32 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize;
        for slot in self.set(place).slots.iter_mut().flatten() {
            if slot.run == run && slot.number == number {
                slot.used = true;
                return Ok(slot.page.clone());
            }
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let page = Arc::new(read()?);
        let fresh = Slot { run, number, used: false, page: page.clone() };
        let is_one_more = self.set(place).put(fresh);
        if is_one_more {
            self.pages.fetch_add(1, Ordering::Relaxed);
            self.give_up(SETS_LOOKED_THROUGH);
        }
        Ok(page)
    }

    /// Gives up pages until no more are left than may be, or so many sets were looked through.
    fn give_up(&self, sets: usize) {
        for _ in 0..sets {
            if self.pages.load(Ordering::Relaxed) <= self.pages_max.load(Ordering::Relaxed) {
                return;
            }
            let place = self.hand.fetch_add(1, Ordering::Relaxed) % self.sets.len();
            if self.set(place).give_up() {
                self.pages.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Set {
    /// Puts a page into a free slot, or replaces one that was not used since the hand last came by. Whether there is one more
    /// now.
    fn put(&mut self, fresh: Slot) -> bool {
        if let Some(free) = self.slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(fresh);
            return true;
        }
        loop {
            let hand = self.hand;
            self.hand = (hand + 1) % WAYS;
            match &mut self.slots[hand] {
                Some(slot) if slot.used => slot.used = false,
                place => {
                    *place = Some(fresh);
                    return false;
                }
            }
        }
    }

    /// Gives up a page that was not used since it was asked for one before; those that were count as not used from now on.
    fn give_up(&mut self) -> bool {
        for slot in &mut self.slots {
            match slot {
                Some(page) if page.used => page.used = false,
                Some(_) => {
                    *slot = None;
                    return true;
                }
                None => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::run::PAGE_BYTES;

    // A store with many open segments would take twice its memory, if pages stayed that were read before they were opened.
    #[test]
    fn gives_up_what_is_too_much_and_goes_on_as_before() {
        let cache = PageCache::new(1 << 20);
        let made_for = cache.limit_bytes();
        assert!(made_for <= 1 << 20 && made_for > 900 << 10);
        let get = |number: u64| {
            let page = cache.get(1, number, || {
                let mut page = [0; PAGE_BYTES];
                page[0] = number as u8;
                Ok::<_, ()>(CachedPage::Rows(page))
            });
            match &*page.unwrap() {
                CachedPage::Rows(page) => assert_eq!(page[0], number as u8),
                _ => panic!("another page"),
            }
        };
        (0..2000).for_each(get);
        assert!(cache.memory_bytes() > made_for * 9 / 10 && cache.memory_bytes() <= made_for);
        for limit in [made_for / 2, made_for / 8, made_for / 3, made_for * 4] {
            cache.set_limit(limit);
            assert!(cache.memory_bytes() <= limit);
            (0..2000).for_each(get);
            let allowed = limit.min(made_for);
            assert!(cache.memory_bytes() <= allowed && cache.memory_bytes() > allowed * 8 / 10);
        }
        cache.set_limit(0);
        assert_eq!(cache.memory_bytes(), WAYS * CACHED_BYTES);
        let before = cache.misses();
        (0..100).for_each(|_| get(7));
        assert!(cache.misses() <= before + 1);
    }
}
