//! Pages of a run's entries and of their fences, taken apart for those who search them: a lookup asks them for up to 36 keys.
//!
//! Who looks into pages at random waits for memory more than for anything else, so what is read first stands together, in front.

use crate::format::run::{Entry, Fence, Key, Page, Row, bloom_hash, row_of};

/// Each so many rows the key stands in a list of its own.
const STRETCH: usize = 16;
/// Bits that tell which keys a page has: one false answer in ten.
const FILTER_BITS: usize = 2048;

/// Rising keys of at most `N` rows; `STRETCHES` is `N / STRETCH`, rounded up.
#[derive(Debug)]
#[repr(C)]
struct Keys<const N: usize, const STRETCHES: usize> {
    rows: usize,
    // The first keys of all stretches; behind the last row, a key behind all others.
    firsts: [Key; STRETCHES],
    keys: [Key; N],
}

impl<const N: usize, const STRETCHES: usize> Keys<N, STRETCHES> {
    fn of(rows: usize, key: impl Fn(usize) -> Key) -> Keys<N, STRETCHES> {
        const { assert!(STRETCHES == N.div_ceil(STRETCH)) };
        let rows = rows.clamp(1, N);
        let mut all = Keys { rows, firsts: [Key::BEHIND_ALL; STRETCHES], keys: [Key::BEHIND_ALL; N] };
        (0..rows).for_each(|slot| all.keys[slot] = key(slot));
        for (first, stretch) in all.firsts.iter_mut().zip(all.keys.chunks(STRETCH)) {
            *first = stretch[0];
        }
        all
    }

    /// How many rows have keys for which this holds; it must hold for the first of them and no others.
    fn count(&self, holds: impl Fn(Key) -> bool) -> usize {
        let stretches = self.firsts.iter().filter(|key| holds(**key)).count();
        let Some(last) = stretches.checked_sub(1) else { return 0 };
        let stretch = &self.keys[last * STRETCH..self.rows.min(stretches * STRETCH)];
        last * STRETCH + stretch.iter().filter(|key| holds(**key)).count()
    }

    /// How many rows come before all that have `key` and at least `lsn_delta`.
    fn count_before(&self, key: Key, lsn_delta: u64, delta_of: impl Fn(usize) -> u32) -> usize {
        if lsn_delta == 0 {
            return self.count(|other| other < key);
        }
        let through = self.count(|other| other <= key);
        // The versions of one key: mostly none or one.
        let is_newer = |slot: &usize| self.keys[*slot] == key && u64::from(delta_of(*slot)) >= lsn_delta;
        through - (0..through).rev().take_while(is_newer).count()
    }
}

/// The entries of one page, by key, then LSN.
#[derive(Debug)]
#[repr(C)]
pub(super) struct EntryPage {
    // Which keys it has, as far as that can be told by one bit.
    filter: [u64; FILTER_BITS / 64],
    keys: Keys<{ Entry::PER_PAGE }, { Entry::PER_PAGE.div_ceil(STRETCH) }>,
    rest: [Rest; Entry::PER_PAGE],
}

/// An entry but for its key.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    lsn_delta: u32,
    block: u32,
    crc: u32,
}

/// Word and bit of a key in the filter.
fn filter_bit(key: Key) -> (usize, u64) {
    let bit = bloom_hash(key.order()) as usize % FILTER_BITS;
    (bit / 64, 1 << (bit % 64))
}

impl EntryPage {
    /// Of a page that was checked, and has so many entries: at least 1, at most [`Entry::PER_PAGE`].
    pub fn of(page: &Page, rows: usize) -> EntryPage {
        let mut entries = EntryPage {
            filter: [0; FILTER_BITS / 64],
            keys: Keys::of(rows, |slot| row_of::<Entry>(page, slot).key),
            rest: [Rest::default(); Entry::PER_PAGE],
        };
        for slot in 0..entries.keys.rows {
            let Entry { key, lsn_delta, block, crc } = row_of(page, slot);
            entries.rest[slot] = Rest { lsn_delta, block, crc };
            let (word, bit) = filter_bit(key);
            entries.filter[word] |= bit;
        }
        entries
    }

    /// The entry in this slot, which is below the number of entries.
    pub fn entry(&self, slot: usize) -> Entry {
        let Rest { lsn_delta, block, crc } = self.rest[slot];
        Entry { key: self.keys.keys[slot], lsn_delta, block, crc }
    }

    /// Whether there may be an entry with this key; `false` is certain.
    pub fn may_hold(&self, key: Key) -> bool {
        let (word, bit) = filter_bit(key);
        self.filter[word] & bit != 0
    }

    /// How many of the entries come before all that have `key` and an LSN of at least `lsn_delta` more than the run's first.
    pub fn count_before(&self, key: Key, lsn_delta: u64) -> usize {
        self.keys.count_before(key, lsn_delta, |slot| self.rest[slot].lsn_delta)
    }

    /// Whether what comes before does not end with the first or behind the last of its entries, but between.
    pub fn tells(&self, key: Key, lsn_delta: u64) -> bool {
        let comes_before = |slot: usize| {
            let other = self.keys.keys[slot];
            other < key || other == key && u64::from(self.rest[slot].lsn_delta) < lsn_delta
        };
        comes_before(0) && !comes_before(self.keys.rows - 1)
    }
}

/// Fences of entries: where each of many pages begins.
#[derive(Debug)]
#[repr(C)]
pub(super) struct FencePage {
    keys: Keys<{ Fence::PER_PAGE }, { Fence::PER_PAGE.div_ceil(STRETCH) }>,
    lsn_deltas: [u32; Fence::PER_PAGE],
}

impl FencePage {
    /// Of a page that was checked, and has so many fences: at least 1, at most [`Fence::PER_PAGE`].
    pub fn of(page: &Page, rows: usize) -> FencePage {
        let keys = Keys::of(rows, |slot| row_of::<Fence>(page, slot).key);
        let mut lsn_deltas = [0; Fence::PER_PAGE];
        (0..keys.rows).for_each(|slot| lsn_deltas[slot] = row_of::<Fence>(page, slot).lsn_delta);
        FencePage { keys, lsn_deltas }
    }

    /// How many of the fences are not behind `wanted`.
    pub fn count_through(&self, wanted: Fence) -> usize {
        self.keys.count_before(wanted.key, u64::from(wanted.lsn_delta) + 1, |slot| self.lsn_deltas[slot])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::run::PAGE_BYTES;

    // Whoever is sent to the wrong place in a page reads an older version of his block, or none.
    #[test]
    fn finds_what_a_plain_search_finds() {
        let mut page = [0; PAGE_BYTES];
        let mut entries = Vec::new();
        for number in 0..Entry::PER_PAGE as u64 {
            let tree = [0, 0, 1, 3, 17, 18, 20][number as usize * 7 / Entry::PER_PAGE];
            let (key, lsn_delta) = (Key::new(tree, number / 3), (number % 3 * 10) as u32);
            entries.push(Entry { key, lsn_delta, block: 7, crc: number as u32 });
        }
        entries.sort_by_key(|entry| (entry.key, entry.lsn_delta));
        for (slot, entry) in entries.iter().enumerate() {
            entry.encode(&mut page[slot * Entry::BYTES..(slot + 1) * Entry::BYTES]);
        }
        for rows in [1, 2, 100, Entry::PER_PAGE] {
            let (entries, decoded) = (&entries[..rows], EntryPage::of(&page, rows));
            assert!((0..rows).all(|slot| decoded.entry(slot) == entries[slot]));
            assert!(entries.iter().all(|entry| decoded.may_hold(entry.key)));
            let others = (1000..11_000).filter(|index| decoded.may_hold(Key::new(0, *index))).count();
            assert!(others < 1500, "{others} false answers in 10,000");
            let keys = [0, 1, 2, 3, 16, 17, 18, 19, 20].map(|tree| (0..90).map(move |at| Key::new(tree, at)));
            for key in keys.into_iter().flatten() {
                for lsn_delta in [0, 1, 10, 11, 20, 21, 1 << 32] {
                    let before = |entry: &Entry| (entry.key, u64::from(entry.lsn_delta)) < (key, lsn_delta);
                    let count = entries.partition_point(before);
                    assert_eq!(decoded.count_before(key, lsn_delta), count, "{key:?} {lsn_delta}");
                    assert_eq!(decoded.tells(key, lsn_delta), count > 0 && count < rows);
                }
            }
        }
    }

    // Whoever is sent to the wrong page finds no version of his block where there is one.
    #[test]
    fn fences_lead_to_the_page_that_a_plain_search_leads_to() {
        let mut page = [0; PAGE_BYTES];
        let fence =
            |number: u64| Fence { key: Key::new(0, number / 5 * 2), lsn_delta: (number % 5 * 3) as u32 };
        for slot in 0..Fence::PER_PAGE {
            fence(slot as u64).encode(&mut page[slot * Fence::BYTES..(slot + 1) * Fence::BYTES]);
        }
        for rows in [1, 15, 16, 17, Fence::PER_PAGE] {
            let decoded = FencePage::of(&page, rows);
            let fences: Vec<Fence> = (0..rows as u64).map(fence).collect();
            for index in 0..200 {
                for lsn_delta in [0, 2, 3, 4, 12, u32::MAX] {
                    let wanted = Fence { key: Key::new(0, index), lsn_delta };
                    let count = fences.partition_point(|fence| *fence <= wanted);
                    assert_eq!(decoded.count_through(wanted), count, "{wanted:?}");
                }
            }
        }
    }
}
