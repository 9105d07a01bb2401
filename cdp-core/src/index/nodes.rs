//! What nodes cover the blocks of a few neighbouring regions, laid out for the question that a lookup of a block asks: which is the
//! newest visible one over it?
//!
//! Nodes nest or are disjoint. So between the ends of all of them each stretch of blocks has one innermost node, each node one
//! that is next around it, and what covers a block is a chain: found by one search, and few steps long however many trees there are.

use super::Found;
use super::tree::extent;
use super::visible::contains;
use crate::format::run::Key;
use crate::ids::Lsn;
use std::cmp::Reverse;

/// More entries are not laid out: whoever meets such a place asks tree by tree. To lay out so many costs some ten pages' reading.
pub(super) const NODES_MAX: usize = 2048;
/// So many parts of the blocks have a place of their own to begin the search at.
const GUIDES: usize = 64;
/// Words of a stretch: its first block less that of all; its innermost node, and in the lowest bit whether the newest version over it
/// made a hole; the LSN of that version and of the oldest one, less the run's first.
const STRETCH_WORDS: usize = 4;
/// A node begins with a word that has in its lower bits how many versions it has, less one; above them which is the next node
/// around it.
const COUNT_BITS: u32 = NODES_MAX.ilog2();
/// Nodes are told by the words before them and one more; this is none.
const NOWHERE: u32 = 0;

// A node has a word, and two at most for each version.
const _: () = assert!(NODES_MAX == 1 << COUNT_BITS && 3 * NODES_MAX < 1 << (u32::BITS - COUNT_BITS));

/// A version of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeVersion {
    /// Which blocks.
    pub key: Key,
    /// Its LSN less the run's first.
    pub lsn_delta: u32,
    /// Whether it made a hole, or zeros that are kept as space.
    pub hole: bool,
}

/// The versions of all nodes that cover blocks of an extent.
///
/// Who looks into them waits for memory more than for anything else, so all of it is one list of words, and what is read one after the other
/// stands together:
///
/// 1. *Guides*: how many stretches begin before each part of the blocks, and how many there are.
/// 2. *Stretches*, by where they begin; the first begins with the first block. Mostly they tell already: of the runs that a view goes
///    through it sees all but one to their ends.
/// 3. *Nodes*, each behind all that are around it: the word of [`COUNT_BITS`], the LSNs of its versions less the run's
///    first, rising; a bit for each of them, whether it made a hole.
#[derive(Debug)]
pub(super) struct Nodes {
    first: u64,
    blocks: u64,
    words: Box<[u32]>,
    // By how much the number of a block is shifted for the number of its guide.
    guide_shift: u32,
    nodes_at: u32,
}

impl Nodes {
    /// Of the extent `first..end`, of less than 2^32 blocks: all versions of all nodes that have blocks in common with it, in any
    /// order.
    pub fn of(first: u64, end: u64, mut versions: Vec<NodeVersion>) -> Nodes {
        if versions.len() > NODES_MAX {
            return Nodes::too_many(first, end);
        }
        let begin = |key: Key| extent(key).start.0.max(first);
        // Of nodes that begin together the larger one is around the smaller.
        versions.sort_unstable_by_key(|version| {
            (begin(version.key), Reverse(version.key.tree()), version.lsn_delta)
        });
        let mut sweep =
            Sweep { first, nodes: Vec::new(), stretches: vec![[0; STRETCH_WORDS]], open: Vec::new() };
        for versions in versions.chunk_by(|one, next| one.key == next.key) {
            let key = versions[0].key;
            sweep.close_through(begin(key));
            sweep.begin(begin(key), extent(key).end().min(end), versions);
        }
        sweep.close_through(end);
        let Sweep { nodes, stretches, .. } = sweep;
        let guide_shift = (end - first).next_power_of_two().ilog2().saturating_sub(GUIDES.ilog2());
        let nodes_at = (GUIDES + 1 + STRETCH_WORDS * stretches.len()) as u32;
        let guides = (0..=GUIDES as u64).map(|guide| {
            let start = guide << guide_shift;
            stretches.partition_point(|stretch| u64::from(stretch[0]) < start) as u32
        });
        let words = guides.chain(stretches.iter().flatten().copied()).chain(nodes).collect();
        Nodes { first, blocks: end - first, words, guide_shift, nodes_at }
    }

    /// Of an extent with too many of them.
    pub fn too_many(first: u64, end: u64) -> Nodes {
        Nodes { first, blocks: end - first, words: Box::default(), guide_shift: 0, nodes_at: 0 }
    }

    /// Whether it has what covers the blocks; else it says nothing of them.
    pub fn is_whole(&self) -> bool {
        !self.words.is_empty()
    }

    /// Whether this is one of its blocks.
    pub fn has(&self, block: u64) -> bool {
        block.wrapping_sub(self.first) < self.blocks
    }

    /// Memory that it takes, in bytes, without what allocations cost beside it.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Nodes>() + size_of_val(&*self.words)
    }

    /// The newest version over one of its blocks within `ranges`, of a run that begins with the record `first_lsn`.
    pub fn newest(&self, block: u64, first_lsn: Lsn, ranges: &[(Lsn, Lsn)]) -> Option<(Lsn, Found)> {
        let words = &*self.words;
        let at = (block - self.first) as u32;
        let guide = (at >> self.guide_shift) as usize;
        let (from, to) = (words[guide] as usize, words[guide + 1] as usize);
        let (stretches, nodes) = words[GUIDES + 1..].split_at(self.nodes_at as usize - (GUIDES + 1));
        let (stretches, _) = stretches.as_chunks::<STRETCH_WORDS>();
        let before = from + stretches[from..to].partition_point(|stretch| stretch[0] <= at);
        let [_, innermost, newest, oldest] = stretches[before - 1];
        let lsn = |delta: u32| Lsn(first_lsn.0.saturating_add(u64::from(delta)));
        let found = |is_hole: bool| if is_hole { Found::Hole } else { Found::Zero };
        let mut number = innermost >> 1;
        if number == NOWHERE || ranges.last().is_none_or(|range| range.1 < lsn(oldest)) {
            return None;
        }
        if contains(ranges, lsn(newest)) {
            return Some((lsn(newest), found(innermost & 1 == 1)));
        }
        // Its LSN, and where the bit of its kind stands.
        let mut newest: Option<(u32, usize, usize)> = None;
        while number != NOWHERE {
            let node = &nodes[number as usize - 1..];
            let count = (node[0] as usize & (NODES_MAX - 1)) + 1;
            let versions = &node[1..=count];
            if let Some(version) = newest_within(versions, first_lsn, ranges)
                && newest.is_none_or(|newest| newest.0 < versions[version])
            {
                let word = number as usize + count + version / BITS;
                newest = Some((versions[version], word, version % BITS));
            }
            number = node[0] >> COUNT_BITS;
        }
        newest.map(|(delta, word, bit)| (lsn(delta), found(nodes[word] >> bit & 1 == 1)))
    }
}

const BITS: usize = u32::BITS as usize;

/// Goes from the first block to the last and notes where the innermost node changes.
struct Sweep {
    first: u64,
    // Words.
    nodes: Vec<u32>,
    stretches: Vec<[u32; STRETCH_WORDS]>,
    // What is around the place, the innermost last.
    open: Vec<Around>,
}

/// A node, and what covers the blocks of it that no smaller node has.
#[derive(Clone, Copy)]
struct Around {
    end: u64,
    node: u32,
    newest: (u32, bool),
    oldest: u32,
}

impl Sweep {
    /// Begins a node with its versions, at least one.
    fn begin(&mut self, begin: u64, end: u64, versions: &[NodeVersion]) {
        let outer = self.open.last().copied();
        let node = self.nodes.len() as u32 + 1;
        let count = versions.len() as u32;
        self.nodes.push(outer.map_or(NOWHERE, |outer| outer.node) << COUNT_BITS | (count - 1));
        self.nodes.extend(versions.iter().map(|version| version.lsn_delta));
        let holes = versions.chunks(BITS).map(|versions| {
            versions.iter().enumerate().fold(0, |bits, (bit, version)| bits | u32::from(version.hole) << bit)
        });
        self.nodes.extend(holes);
        let (first, last) = (versions[0], versions[versions.len() - 1]);
        let own = Around { end, node, newest: (last.lsn_delta, last.hole), oldest: first.lsn_delta };
        self.open.push(outer.map_or(own, |outer| Around {
            newest: outer.newest.max(own.newest),
            oldest: outer.oldest.min(own.oldest),
            ..own
        }));
        self.put(begin);
    }

    /// Ends the nodes that end at or before `block`; what is around them goes on.
    fn close_through(&mut self, block: u64) {
        while let Some(Around { end, .. }) = self.open.pop_if(|around| around.end <= block) {
            self.put(end);
        }
    }

    /// Begins a stretch; one that begins there already was of no blocks.
    fn put(&mut self, block: u64) {
        let start = (block - self.first) as u32;
        let stretch = match self.open.last() {
            Some(around) => {
                let (newest, hole) = around.newest;
                [start, around.node << 1 | u32::from(hole), newest, around.oldest]
            }
            None => [start, NOWHERE << 1, 0, 0],
        };
        match self.stretches.last_mut() {
            Some(last) if last[0] == start => *last = stretch,
            _ => self.stretches.push(stretch),
        }
    }
}

/// The last of some rising LSNs that lies in one of the rising ranges.
fn newest_within(lsn_deltas: &[u32], first_lsn: Lsn, ranges: &[(Lsn, Lsn)]) -> Option<usize> {
    let mut left = lsn_deltas;
    for (from, to) in ranges.iter().rev() {
        let is_seen = |delta: &u32| first_lsn.0.saturating_add(u64::from(*delta)) <= to.0;
        left = match left.last() {
            // The common question, at the tip.
            Some(last) if is_seen(last) => left,
            _ => &left[..left.partition_point(is_seen)],
        };
        let last = left.last()?;
        if first_lsn.0.saturating_add(u64::from(*last)) >= from.0 {
            return Some(left.len() - 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tree::is_possible;
    use crate::io::sim::Chance;

    // Whoever is led to another node than the newest sees a trim that came later undone, or one that never was.
    #[test]
    fn says_what_a_look_at_every_node_says() {
        for seed in 0..300 {
            let mut chance = Chance::new(seed);
            let first = chance.below(50) * 1000;
            let blocks = [1, 7, 16, 17, 1000, 1 << 16, (1 << 22) - 5][chance.below(7) as usize];
            let end = first + blocks;
            let largest = chance.below(24) as u8;
            let mut versions: Vec<NodeVersion> = Vec::new();
            for _ in 0..chance.below(200) {
                let level = chance.below(u64::from(largest) + 1) as u8;
                let key = Key::new(1 + level, (first + chance.below(blocks)) >> level);
                let version =
                    NodeVersion { key, lsn_delta: chance.below(400) as u32, hole: chance.below(2) == 0 };
                let is_there = |other: &NodeVersion| other.lsn_delta == version.lsn_delta;
                if is_possible(key) && !versions.iter().any(is_there) {
                    versions.push(version);
                }
            }
            let nodes = Nodes::of(first, end, versions.clone());
            assert!(nodes.is_whole() && nodes.has(first) && nodes.has(end - 1) && !nodes.has(end));
            assert!(first == 0 || !nodes.has(first - 1));
            let edges = versions.iter().flat_map(|version| {
                let extent = extent(version.key);
                [extent.start.0.saturating_sub(1), extent.start.0, extent.end() - 1, extent.end()]
            });
            let random: Vec<u64> = (0..50).map(|_| first + chance.below(blocks)).collect();
            for block in edges.chain(random).filter(|block| (first..end).contains(block)) {
                let mut bounds: Vec<u64> = (0..6).map(|_| 5 + chance.below(400)).collect();
                bounds.sort_unstable();
                bounds.dedup();
                let ranges: Vec<(Lsn, Lsn)> =
                    bounds.chunks_exact(2).map(|pair| (Lsn(pair[0]), Lsn(pair[1] - 1))).collect();
                let newest = versions
                    .iter()
                    .map(|version| (Lsn(7 + u64::from(version.lsn_delta)), version))
                    .filter(|(_, version)| {
                        let extent = extent(version.key);
                        extent.start.0 <= block && block < extent.end()
                    })
                    .filter(|(lsn, _)| ranges.iter().any(|range| range.0 <= *lsn && *lsn <= range.1))
                    .max_by_key(|(lsn, _)| *lsn);
                let expected =
                    newest.map(|(lsn, version)| (lsn, if version.hole { Found::Hole } else { Found::Zero }));
                assert_eq!(nodes.newest(block, Lsn(7), &ranges), expected, "seed {seed}, block {block}");
            }
        }
    }

    // A place with more of them than may be kept must say so, and not answer from a part of them.
    #[test]
    fn too_many_are_not_half_of_them() {
        let version = |at: u64| NodeVersion { key: Key::new(1, at), lsn_delta: at as u32, hole: true };
        let most = Nodes::of(0, 1 << 16, (0..NODES_MAX as u64).map(version).collect());
        assert!(most.is_whole());
        assert_eq!(most.newest(2000, Lsn(1), &[(Lsn(1), Lsn::MAX)]), Some((Lsn(2001), Found::Hole)));
        assert_eq!(most.newest(NODES_MAX as u64, Lsn(1), &[(Lsn(1), Lsn::MAX)]), None);
        let more = Nodes::of(0, 1 << 16, (0..NODES_MAX as u64 + 1).map(version).collect());
        assert!(!more.is_whole() && more.memory_bytes() < most.memory_bytes() / 10);
    }
}
