//! Pages of runs that were read and checked, kept within a number of bytes for all runs together, which is whatever the other
//! parts of the index leave.

use super::entries::{EntryPage, FencePage};
use super::nodes::Nodes;
use crate::format::run::Page;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const WAYS: usize = 4;
/// What an allocation costs beside its bytes, with the counts of who holds it.
const ALLOCATION_BYTES: usize = 32;
/// There is a place for each so many bytes: some that are kept are smaller than a page.
const BYTES_A_PLACE: usize = 2048;
/// Of the largest pages there is room for so many, however little may be kept.
const PAGES_MIN: usize = 4;
/// The lower bits of the hash tell the tag, the upper ones the set.
const TAG_SHIFT: u32 = 8;
/// So many sets are looked through for something to give up, and one more for each so many bytes that are too much.
const SETS_LOOKED_THROUGH: usize = 64;

/// What is kept of pages.
#[derive(Clone, Debug)]
pub(super) enum Cached {
    /// A page of entries.
    Entries(Arc<Kept<EntryPage>>),
    /// A page of fences of entries.
    Fences(Arc<Kept<FencePage>>),
    /// A page of another section: its bytes.
    Rows(Arc<Kept<Page>>),
    /// Nodes that were gathered from pages of entries.
    Nodes(Arc<Kept<Nodes>>),
}

/// Something that is kept, and of which run and page. That stands beside the count of those who hold it, which is touched anyway.
#[derive(Debug)]
pub(super) struct Kept<T> {
    place: (u64, u64),
    what: T,
}

impl<T> std::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.what
    }
}

/// What was read of a page, to be kept.
#[expect(clippy::large_enum_variant, reason = "it is moved once, into what is kept")]
pub(super) enum Fresh {
    Entries(EntryPage),
    Fences(FencePage),
    Rows(Page),
    Nodes(Nodes),
}

impl Cached {
    fn of(place: (u64, u64), fresh: Fresh) -> Cached {
        fn keep<T>(place: (u64, u64), what: T) -> Arc<Kept<T>> {
            Arc::new(Kept { place, what })
        }
        match fresh {
            Fresh::Entries(page) => Cached::Entries(keep(place, page)),
            Fresh::Fences(page) => Cached::Fences(keep(place, page)),
            Fresh::Rows(page) => Cached::Rows(keep(place, page)),
            Fresh::Nodes(nodes) => Cached::Nodes(keep(place, nodes)),
        }
    }

    fn place(&self) -> (u64, u64) {
        match self {
            Cached::Entries(page) => page.place,
            Cached::Fences(page) => page.place,
            Cached::Rows(page) => page.place,
            Cached::Nodes(nodes) => nodes.place,
        }
    }

    /// What it takes, with its place in a set.
    fn bytes(&self) -> usize {
        let held = match self {
            Cached::Entries(_) => size_of::<EntryPage>(),
            Cached::Fences(_) => size_of::<FencePage>(),
            Cached::Rows(_) => size_of::<Page>(),
            // A list beside it.
            Cached::Nodes(nodes) => nodes.memory_bytes() + ALLOCATION_BYTES,
        };
        held + BESIDE_BYTES
    }
}

/// What is beside the bytes of something that is kept.
const BESIDE_BYTES: usize = ALLOCATION_BYTES + size_of::<(u64, u64)>() + size_of::<Set>() / WAYS;
/// The least that may be kept.
const BYTES_MIN: usize = PAGES_MIN * (size_of::<EntryPage>() + BESIDE_BYTES);

/// A cache of checked pages, shared by all runs of a store. Never grows beyond its budget, apart from pages
/// that lookups hold at the moment.
#[derive(Debug)]
pub struct PageCache {
    sets: Box<[Set]>,
    runs: AtomicU64,
    misses: AtomicU64,
    bytes: AtomicUsize,
    bytes_max: AtomicUsize,
    // What it was made for.
    bytes_most: usize,
    // The set that gives up something next.
    hand: AtomicUsize,
}

/// Some places. Where a lookup finds nothing, or what stands in one of the first of them, it looks at one line of memory.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// A part of the hash of what stands in each place.
    tags: [u32; WAYS],
    /// Whether it was asked for since the hand last came by.
    used: [bool; WAYS],
    /// The place to give up next.
    hand: u8,
    kept: [Option<Cached>; WAYS],
}

impl PageCache {
    /// A cache of so many bytes, at least four pages.
    pub fn new(bytes: usize) -> Arc<PageCache> {
        let bytes = bytes.max(BYTES_MIN);
        Arc::new(PageCache {
            sets: (0..bytes / BYTES_A_PLACE / WAYS).map(|_| Set::default()).collect(),
            runs: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            bytes_max: AtomicUsize::new(bytes),
            bytes_most: bytes,
            hand: AtomicUsize::new(0),
        })
    }

    /// How many pages had to be read so far.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Memory that it takes now, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Memory that it may take at most, in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// It may take so many bytes from now on, but not more than it was made for nor less than a few pages; what is too
    /// much is given up.
    pub fn set_limit(&self, bytes: usize) {
        self.bytes_max.store(bytes.clamp(BYTES_MIN, self.bytes_most), Ordering::Relaxed);
        // Each time a set is asked it gives up one at most, and those that were used one time later.
        self.give_up(self.sets.len() * 2 * WAYS);
    }

    /// A number that tells one opened run from all others.
    pub(super) fn register(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    fn set(&self, number: usize) -> MutexGuard<'_, Places> {
        // What a panic elsewhere left behind is whole: what is kept knows its place, and is replaced in one assignment.
        self.sets[number].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of page `number`, from the cache or from `read`, which checks it.
    pub(super) fn get<E>(
        &self,
        run: u64,
        number: u64,
        read: impl FnOnce() -> Result<Fresh, E>,
    ) -> Result<Cached, E> {
        let hash = (run << 32 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let set = ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize;
        let tag = (hash >> TAG_SHIFT) as u32;
        if let Some(kept) = self.set(set).get(tag, (run, number)) {
            return Ok(kept);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let fresh = Cached::of((run, number), read()?);
        let bytes = fresh.bytes();
        // Before it can be given up again.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let replaced = self.set(set).put(tag, fresh.clone());
        self.bytes.fetch_sub(replaced.map_or(0, |kept| kept.bytes()), Ordering::Relaxed);
        self.give_up(SETS_LOOKED_THROUGH + bytes / BYTES_A_PLACE);
        Ok(fresh)
    }

    /// Gives up what was not used lately until no more is left than may be, or so many sets were looked through.
    fn give_up(&self, sets: usize) {
        for _ in 0..sets {
            if self.bytes.load(Ordering::Relaxed) <= self.bytes_max.load(Ordering::Relaxed) {
                return;
            }
            let place = self.hand.fetch_add(1, Ordering::Relaxed) % self.sets.len();
            let given_up = self.set(place).give_up();
            self.bytes.fetch_sub(given_up.map_or(0, |kept| kept.bytes()), Ordering::Relaxed);
        }
    }
}

impl Places {
    /// What is kept of this page of this run.
    fn get(&mut self, tag: u32, place: (u64, u64)) -> Option<Cached> {
        for way in 0..WAYS {
            if self.tags[way] == tag
                && let Some(kept) = &self.kept[way]
                && kept.place() == place
            {
                self.used[way] = true;
                return Some(kept.clone());
            }
        }
        None
    }

    /// Puts a page into a free place, or into that of one that was not used since the hand last came by: what stood there.
    fn put(&mut self, tag: u32, fresh: Cached) -> Option<Cached> {
        let free = self.kept.iter().position(Option::is_none);
        let way = free.unwrap_or_else(|| {
            loop {
                let hand = usize::from(self.hand) % WAYS;
                self.hand = (hand + 1) as u8;
                if !std::mem::take(&mut self.used[hand]) {
                    return hand;
                }
            }
        });
        (self.tags[way], self.used[way]) = (tag, false);
        self.kept[way].replace(fresh)
    }

    /// Gives up a page that was not used since it was asked for one before; those that were count as not used from now on.
    fn give_up(&mut self) -> Option<Cached> {
        for way in 0..WAYS {
            if self.kept[way].is_some() && !std::mem::take(&mut self.used[way]) {
                return self.kept[way].take();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::run::{Key, PAGE_BYTES};
    use crate::ids::Lsn;
    use crate::index::nodes::NodeVersion;

    // A store with many open segments would take twice its memory, if pages stayed that were read before they were opened.
    #[test]
    fn gives_up_what_is_too_much_and_goes_on_as_before() {
        let cache = PageCache::new(1 << 20);
        let made_for = cache.limit_bytes();
        assert!(made_for <= 1 << 20 && made_for > 900 << 10);
        let nodes = |count: u64| {
            let version = |at: u64| NodeVersion { key: Key::new(1, 2 * at), lsn_delta: 1, hole: true };
            Nodes::of(0, 1 << 16, (0..count).map(version).collect())
        };
        let get = |number: u64| {
            let page = cache.get(1, number, || {
                let mut page = [0; PAGE_BYTES];
                page[0] = number as u8;
                Ok::<_, ()>(match number % 3 {
                    0 => Fresh::Rows(page),
                    1 => Fresh::Entries(EntryPage::of(&page, 1)),
                    _ => Fresh::Nodes(nodes(number % 1000)),
                })
            });
            match page.unwrap() {
                Cached::Rows(page) => assert_eq!(page[0], number as u8),
                Cached::Nodes(nodes) => {
                    assert_eq!(
                        nodes.newest(0, Lsn(1), &[(Lsn(1), Lsn(9))]).is_some(),
                        !number.is_multiple_of(1000)
                    )
                }
                _ => assert_eq!(number % 3, 1),
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
        assert!(cache.memory_bytes() <= BYTES_MIN);
        let before = cache.misses();
        (0..100).for_each(|_| get(7));
        assert!(cache.misses() <= before + 1);
    }
}
