//! The part of the index for the open segment, in memory.

use super::keys::Keys;
use super::overlay::{self, Part, Walk};
use super::tree::{Candidate, found, is_possible, nodes, shift, trees_of};
use super::{Search, Visible};
use crate::error::Result;
use crate::format::run::{Entry, Key, RANGE_HOLE, RANGE_ZERO};
use crate::ids::{Extent, Lba, Lsn, Timestamp};
use crate::limits::LBA_BITS;
use std::sync::Arc;

/// Everything known of the records of one segment that is not sealed yet, or whose run is not written yet.
///
/// Inserting is blind: nothing is looked up. Bytes used grow with the entries; the owner seals the segment
/// when [`Live::memory_bytes`] passes its budget, whatever space the segment has left.
#[derive(Debug)]
pub struct Live {
    first: Lsn,
    timestamps: Vec<u64>,
    versions: Keys<Versions>,
    trees: u64,
    entries: u64,
    listed_bytes: usize,
    // Of a fold: its newest record. Most of its records are gone, and with them their timestamps.
    sparse_last: Option<Lsn>,
}

/// One version at a key, its LSN as the distance from the part's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    lsn_delta: u32,
    block: u32,
    crc: u32,
}

/// The versions at one key, by rising LSN. Most keys are written once in a segment.
#[derive(Debug)]
enum Versions {
    One(Slot),
    Many(Vec<Slot>),
}

/// Up to so many keys a walk looks for each rather than have all keys put in order.
const PROBED_KEYS_MAX: u64 = 256;

impl Live {
    /// An empty part whose first record will have this LSN.
    pub fn new(first: Lsn) -> Live {
        Live {
            first,
            timestamps: Vec::new(),
            versions: Keys::new(),
            trees: 0,
            entries: 0,
            listed_bytes: 0,
            sparse_last: None,
        }
    }

    /// An empty part for what is left of the records from `first` to `last`: none is noted, versions of any of them are
    /// inserted, and it knows no timestamps.
    pub fn sparse(first: Lsn, last: Lsn) -> Live {
        Live { sparse_last: Some(last), ..Live::new(first) }
    }

    /// A version as another index had it. Whether it can be one.
    #[must_use]
    pub fn insert_entry(&mut self, entry: &Entry) -> bool {
        let newest = self.last_lsn().0.checked_sub(self.first.0);
        let is_sound = is_possible(entry.key)
            && found(entry).is_some()
            && newest.is_some_and(|newest| u64::from(entry.lsn_delta) <= newest);
        if is_sound {
            self.insert(entry.key, Slot { lsn_delta: entry.lsn_delta, block: entry.block, crc: entry.crc });
        }
        is_sound
    }

    /// Notes a record of any kind. Every record must be noted, in order; its versions are inserted afterwards.
    ///
    /// # Panics
    /// If `lsn` is not the one that follows.
    pub fn insert_record(&mut self, lsn: Lsn, timestamp: Timestamp) {
        assert_eq!(lsn.0, self.first.0 + self.timestamps.len() as u64, "records are noted in order");
        assert!(self.timestamps.len() < u32::MAX as usize, "more records than a segment can hold");
        self.timestamps.push(timestamp.0);
    }

    /// Blocks of payload: for each block from `start` on its place in the segment and its CRC-32.
    ///
    /// # Panics
    /// If the record was not noted, or a block lies beyond the largest volume.
    pub fn insert_payload(&mut self, lsn: Lsn, start: Lba, blocks: impl IntoIterator<Item = (u32, u32)>) {
        let lsn_delta = self.delta(lsn);
        for (lba, (block, crc)) in (start.0..).zip(blocks) {
            assert!(lba < 1 << LBA_BITS, "block {lba} is beyond the largest volume");
            self.insert(Key::new(0, lba), Slot { lsn_delta, block, crc });
        }
    }

    /// Blocks that became zeros: `hole` if without storage. Costs at most 2 · 34 entries. Blocks for which
    /// the same record has payload keep that.
    ///
    /// # Panics
    /// If the record was not noted, or the extent reaches beyond the largest volume.
    pub fn insert_range(&mut self, lsn: Lsn, extent: Extent, hole: bool) {
        let lsn_delta = self.delta(lsn);
        assert!(extent.end() <= 1 << LBA_BITS, "{extent:?} reaches beyond the largest volume");
        let block = if hole { RANGE_HOLE } else { RANGE_ZERO };
        for key in nodes(extent) {
            self.insert(key, Slot { lsn_delta, block, crc: 0 });
        }
    }

    fn delta(&self, lsn: Lsn) -> u32 {
        assert!(self.first <= lsn && lsn <= self.last_lsn(), "record {lsn} was not noted");
        (lsn.0 - self.first.0) as u32
    }

    fn insert(&mut self, key: Key, slot: Slot) {
        self.trees |= 1 << key.tree();
        match self.versions.get_or_insert(key, Versions::One(slot)) {
            None => self.entries += 1,
            Some(versions) => {
                let before = versions.listed_bytes();
                self.entries += u64::from(versions.insert(slot));
                self.listed_bytes += versions.listed_bytes() - before;
            }
        }
    }

    /// LSN of the first record, or of the one that will be first.
    pub fn first_lsn(&self) -> Lsn {
        self.first
    }

    /// LSN of the newest record; the one before [`Live::first_lsn`] if there is none.
    pub fn last_lsn(&self) -> Lsn {
        if let Some(last) = self.sparse_last {
            return last;
        }
        Lsn(self.first.0 + self.timestamps.len() as u64).previous()
    }

    /// Whether no record was noted.
    pub fn is_empty(&self) -> bool {
        self.last_lsn() < self.first
    }

    /// How many entries its run will have.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many different keys the entries have.
    pub(super) fn keys(&self) -> u64 {
        self.versions.len() as u64
    }

    /// About how much memory it takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.timestamps.capacity() * size_of::<u64>() + self.versions.memory_bytes() + self.listed_bytes
    }

    /// The newest record that changed this block, if one of these did.
    pub fn newest(&self, lba: Lba) -> Option<Lsn> {
        trees_of(self.trees).filter_map(|tree| self.versions.get(Key::new(tree, lba.0 >> shift(tree)))).fold(
            None,
            |newest, versions| {
                let last = versions.as_slice().last()?;
                newest.max(Some(Lsn(self.first.0 + u64::from(last.lsn_delta))))
            },
        )
    }

    /// Answers the gaps of `search` that these records changed.
    pub fn resolve(&self, visible: &Visible, search: &mut Search) {
        overlay::resolve(self, visible, search).expect("memory gives no errors");
    }

    /// The newest record whose timestamp is not after `timestamp`, if there is one here.
    pub fn lsn_at(&self, timestamp: Timestamp) -> Option<Lsn> {
        let count = self.timestamps.partition_point(|&given| given <= timestamp.0);
        (count > 0).then(|| Lsn(self.first.0 + count as u64 - 1))
    }

    /// When this record was given its LSN, if it is one of these.
    pub fn timestamp_of(&self, lsn: Lsn) -> Option<Timestamp> {
        let delta = lsn.0.checked_sub(self.first.0)?;
        self.timestamps.get(usize::try_from(delta).ok()?).map(|&timestamp| Timestamp(timestamp))
    }

    /// Timestamps of all records, from the first on.
    pub(super) fn timestamps(&self) -> &[u64] {
        &self.timestamps
    }

    /// All entries in the order in which a run has them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> {
        let keys = self.versions.sorted();
        (0..keys.len()).flat_map(move |at| {
            let key = keys[at];
            let slots = self.versions.get(key).map(Versions::as_slice).unwrap_or_default();
            slots.iter().map(move |slot| entry(key, slot))
        })
    }

    pub(super) fn tree_mask(&self) -> u64 {
        self.trees
    }

    fn candidate(&self, key: Key, slot: &Slot) -> Candidate {
        let found = found(&entry(key, slot)).expect("only what insert_range and insert_payload made");
        Candidate { key, lsn: Lsn(self.first.0 + u64::from(slot.lsn_delta)), found }
    }
}

fn entry(key: Key, slot: &Slot) -> Entry {
    Entry { key, lsn_delta: slot.lsn_delta, block: slot.block, crc: slot.crc }
}

impl Versions {
    fn as_slice(&self) -> &[Slot] {
        match self {
            Versions::One(slot) => std::slice::from_ref(slot),
            Versions::Many(slots) => slots,
        }
    }

    fn listed_bytes(&self) -> usize {
        match self {
            Versions::One(_) => 0,
            Versions::Many(slots) => slots.capacity() * size_of::<Slot>(),
        }
    }

    /// Puts a version in its place, mostly the last; one with the same LSN is replaced. Whether there is one
    /// more now.
    fn insert(&mut self, slot: Slot) -> bool {
        let slots = match self {
            Versions::Many(slots) => slots,
            Versions::One(only) => {
                if only.lsn_delta == slot.lsn_delta {
                    *only = slot;
                    return false;
                }
                *self = Versions::Many(vec![*only]);
                return self.insert(slot);
            }
        };
        let at = match slots.last() {
            Some(last) if last.lsn_delta < slot.lsn_delta => slots.len(),
            _ => slots.partition_point(|other| other.lsn_delta < slot.lsn_delta),
        };
        if let Some(same) = slots.get_mut(at).filter(|other| other.lsn_delta == slot.lsn_delta) {
            *same = slot;
            return false;
        }
        slots.insert(at, slot);
        true
    }

    /// The newest version with an LSN in one of the ranges.
    fn newest(&self, first: Lsn, ranges: &[(Lsn, Lsn)]) -> Option<&Slot> {
        let slots = self.as_slice();
        let lsn = |slot: &Slot| Lsn(first.0 + u64::from(slot.lsn_delta));
        for range in ranges.iter().rev() {
            let newest = match slots.last() {
                // The common question, at the tip.
                Some(last) if lsn(last) <= range.1 => last,
                _ => slots.get(slots.partition_point(|slot| lsn(slot) <= range.1).checked_sub(1)?)?,
            };
            if lsn(newest) >= range.0 {
                return Some(newest);
            }
        }
        None
    }
}

impl Part for Live {
    type Walk<'a> = LiveWalk<'a>;
    type Hand<'a> = ();

    fn lsns(&self) -> (Lsn, Lsn) {
        (self.first, self.last_lsn())
    }

    fn trees(&self) -> u64 {
        self.trees
    }

    fn hand(&self) {}

    fn newest_at(&self, (): &mut (), key: Key, ranges: &[(Lsn, Lsn)]) -> Result<Option<Candidate>> {
        let slot = self.versions.get(key).and_then(|versions| versions.newest(self.first, ranges));
        Ok(slot.map(|slot| self.candidate(key, slot)))
    }

    fn walk<'a>(&'a self, first: Key, last: Key, ranges: &'a [(Lsn, Lsn)]) -> Result<Option<LiveWalk<'a>>> {
        let keys = if last.index() - first.index() < PROBED_KEYS_MAX {
            WalkKeys::Probed { next: first, last }
        } else {
            let sorted = self.versions.sorted();
            let at = sorted.partition_point(|&key| key < first);
            let end = sorted.partition_point(|&key| key <= last);
            WalkKeys::Sorted { sorted, tree: first.tree(), at, end }
        };
        Ok(Some(LiveWalk { live: self, keys, ranges }))
    }
}

/// Walks one tree of a [`Live`].
pub(super) struct LiveWalk<'a> {
    live: &'a Live,
    keys: WalkKeys,
    ranges: &'a [(Lsn, Lsn)],
}

enum WalkKeys {
    Probed { next: Key, last: Key },
    Sorted { sorted: Arc<Vec<Key>>, tree: u8, at: usize, end: usize },
}

impl Iterator for WalkKeys {
    type Item = Key;

    fn next(&mut self) -> Option<Key> {
        match self {
            WalkKeys::Probed { next, last } => {
                let key = *next;
                *next = key.next_in_tree();
                (key <= *last).then_some(key)
            }
            WalkKeys::Sorted { sorted, tree, at, end } => {
                let mut key = sorted[..*end].get(*at).copied()?;
                while key.tree() != *tree {
                    // Between the keys of a tree stand those of others, for the same blocks.
                    let wanted = Key::of_tree_behind(*tree, key);
                    *at += sorted[*at..*end].partition_point(|key| *key < wanted);
                    key = sorted[..*end].get(*at).copied()?;
                }
                *at += 1;
                Some(key)
            }
        }
    }
}

impl Walk for LiveWalk<'_> {
    fn next(&mut self) -> Result<Option<Candidate>> {
        for key in self.keys.by_ref() {
            let versions = self.live.versions.get(key);
            if let Some(slot) = versions.and_then(|versions| versions.newest(self.live.first, self.ranges)) {
                return Ok(Some(self.live.candidate(key, slot)));
            }
        }
        Ok(None)
    }
}
