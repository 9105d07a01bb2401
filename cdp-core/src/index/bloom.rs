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
    let (block, bits) = place(filter.len(), key);
    for bit in bits {
        filter[block + bit / 8] |= 1 << (bit % 8);
    }
}

/// Whether the key may have been added; `false` is certain.
pub(super) fn may_hold(filter: &[u8], key: Key) -> bool {
    if filter.len() < BLOOM_BLOCK_BYTES {
        return false;
    }
    let (block, mut bits) = place(filter.len(), key);
    bits.all(|bit| filter[block + bit / 8] & 1 << (bit % 8) != 0)
}

/// Offset of the block in the filter, and the bits within it.
fn place(filter_bytes: usize, key: Key) -> (usize, impl Iterator<Item = usize>) {
    let hash = bloom_hash(key.value());
    let blocks = (filter_bytes / BLOOM_BLOCK_BYTES) as u64;
    let block = ((hash >> 32) * blocks) >> 32;
    let (a, b) = (hash & 0xffff, (hash >> 16) & 0xffff | 1);
    (block as usize * BLOOM_BLOCK_BYTES, (0..PROBES).map(move |i| ((a + i * b) % BLOCK_BITS) as usize))
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
