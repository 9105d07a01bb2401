//! Says of most keys that a run does not have them, without reading it.

use crate::format::run::{BLOOM_BLOCK_BYTES, Key, bloom_hash};

/// Bits for each key: about one false answer in two hundred.
const BITS_PER_KEY: u64 = 12;
const PROBES: u64 = 8;
const BLOCK_BITS: u64 = BLOOM_BLOCK_BYTES as u64 * 8;

/// Blocks of a filter for so many keys.
pub(super) fn blocks_for(keys: u64) -> u64 {
    (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS)
}

/// Adds a key to the filter.
pub(super) fn insert(filter: &mut [u8], key: Key) {
    let place = Place::of((filter.len() / BLOOM_BLOCK_BYTES) as u64, key);
    let at = place.block as usize * BLOOM_BLOCK_BYTES;
    let block = &mut filter[at..at + BLOOM_BLOCK_BYTES];
    for bit in place.bits() {
        block[bit / 8] |= 1 << (bit % 8);
    }
}

/// Whether the key may have been added; `false` is certain.
pub(super) fn may_hold(filter: &[u8], key: Key) -> bool {
    let blocks = filter.len() / BLOOM_BLOCK_BYTES;
    if blocks == 0 {
        return false;
    }
    let place = Place::of(blocks as u64, key);
    place.is_set(&filter[place.block as usize * BLOOM_BLOCK_BYTES..][..BLOOM_BLOCK_BYTES])
}

/// Where a key stands in a filter.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Number of the filter's block.
    pub block: u64,
    hash: u64,
}

impl Place {
    /// In a filter of so many blocks, at least one.
    pub fn of(blocks: u64, key: Key) -> Place {
        let hash = bloom_hash(key.value());
        Place { block: ((hash >> 32) * blocks) >> 32, hash }
    }

    /// Whether all its bits are set in the block.
    pub fn is_set(&self, block: &[u8]) -> bool {
        self.bits().all(|bit| block[bit / 8] & 1 << (bit % 8) != 0)
    }

    fn bits(&self) -> impl Iterator<Item = usize> {
        let (a, b) = (self.hash & 0xffff, (self.hash >> 16) & 0xffff | 1);
        (0..PROBES).map(move |i| ((a + i * b) % BLOCK_BITS) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that is denied loses a write; too many that are claimed make every lookup read the disk.
    #[test]
    fn denies_none_that_it_has_and_most_that_it_has_not() {
        let mut filter = vec![0; blocks_for(10_000) as usize * BLOOM_BLOCK_BYTES];
        let key = |n: u64| Key::new((n % 3) as u8, n * 7);
        (0..10_000).for_each(|n| insert(&mut filter, key(n)));
        assert!((0..10_000).all(|n| may_hold(&filter, key(n))));
        let claimed = (10_000..110_000).filter(|&n| may_hold(&filter, key(n))).count();
        assert!(claimed < 1500, "{claimed} false answers in 100,000");
        assert!(!may_hold(&[], key(1)));
    }
}
