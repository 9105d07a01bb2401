//! Where versions hang: blocks of payload in tree 0, zeroed and trimmed ranges as dyadic nodes above it.
//!
//! Tree 0 has a key for every block with payload. Tree 1 + L has a key for every aligned node of 2^L blocks
//! that a range version covers whole; a range is cut into at most 2 · 34 such nodes, however long it is, and a
//! block has one possible node in each tree. Nodes nest or are disjoint, never half of each. In a run the nodes of a
//! region stand together, see [`Key`].

use super::Found;
use crate::format::run::{Entry, Key, RANGE_HOLE, RANGE_ZERO};
use crate::ids::{Extent, Lsn};
use crate::limits::LBA_BITS;

/// Trees: payload, and range nodes of 2^0 to 2^34 blocks.
pub(super) const TREES: u8 = 2 + LBA_BITS as u8;
/// The trees of range nodes, as a bitmask.
pub(super) const NODE_TREES: u64 = !1;

/// The newest visible version that hangs at a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub key: Key,
    pub lsn: Lsn,
    pub found: Found,
}

/// How many times a block number is halved to give a node's number in this tree.
pub(super) fn shift(tree: u8) -> u32 {
    u32::from(tree).saturating_sub(1)
}

/// The blocks below a key.
pub(super) fn extent(key: Key) -> Extent {
    let shift = shift(key.tree());
    Extent::new(key.index() << shift, (key.index() + 1) << shift)
}

/// Whether a key that came from a file can exist at all.
pub(super) fn is_possible(key: Key) -> bool {
    key.tree() < TREES && key.index() < 1 << (LBA_BITS - shift(key.tree()))
}

/// What an entry says of its blocks; `None` for one that no record can have made.
pub(super) fn found(entry: &Entry) -> Option<Found> {
    match (entry.key.tree(), entry.block) {
        (0, block) => Some(Found::Payload { block, crc: entry.crc }),
        (_, RANGE_ZERO) => Some(Found::Zero),
        (_, RANGE_HOLE) => Some(Found::Hole),
        _ => None,
    }
}

/// The nodes whose union is exactly `extent`, in rising order.
pub(super) fn nodes(extent: Extent) -> impl Iterator<Item = Key> {
    let mut start = extent.start.0;
    let end = extent.end();
    std::iter::from_fn(move || {
        if start == end {
            return None;
        }
        let level = start.trailing_zeros().min((end - start).ilog2()).min(LBA_BITS);
        let key = Key::new(1 + level as u8, start >> level);
        start += 1 << level;
        Some(key)
    })
}

/// The tree numbers in a bitmask, lowest first.
pub(super) fn trees_of(mut mask: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let tree = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (tree < u64::BITS).then_some(tree as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range that loses or gains a block in its decomposition zeroes a stranger's data.
    #[test]
    fn nodes_cover_a_range_exactly_and_are_few() {
        let top = 1u64 << LBA_BITS;
        let ends = [0, 1, 2, 3, 7, 8, 100, 4095, 4096, top / 2 - 1, top / 2, top / 2 + 1, top - 1, top];
        for &start in &ends {
            for &end in ends.iter().filter(|&&end| end > start) {
                let mut at = start;
                let mut count = 0;
                for key in nodes(Extent::new(start, end)) {
                    assert!(is_possible(key));
                    assert_eq!(extent(key).start.0, at);
                    at = extent(key).end();
                    count += 1;
                }
                assert_eq!(at, end);
                assert!(count <= 2 * LBA_BITS, "{count} nodes for {start}..{end}");
            }
        }
        assert_eq!(nodes(Extent::new(0, top)).count(), 1);
    }

    #[test]
    fn keys_outside_of_any_volume_are_not_possible() {
        assert!(is_possible(Key::new(TREES - 1, 0)));
        assert!(!is_possible(Key::new(TREES - 1, 1)));
        assert!(!is_possible(Key::new(TREES, 0)));
        assert!(!is_possible(Key::new(0, 1 << LBA_BITS)));
    }
}
