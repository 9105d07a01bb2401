//! Finding entries in a run: the versions of a block, and the keys of one tree in order.

use super::entries::EntryPage;
use super::nodes::Nodes;
use super::overlay::{Part, Walk, newest_by_trees};
use super::pages::Kept;
use super::tree::{Candidate, NODE_TREES};
use super::visible::contains;
use super::{Found, Run};
use crate::error::Result;
use crate::format::run::{Entry, Fence, Key, Row};
use crate::ids::{Lba, Lsn};
use std::sync::Arc;

/// Up to so many keys the bloom filter is asked about each before a page is read.
const BLOOM_KEYS_MAX: u64 = 16;

/// Which of its pages a [`Reader`] looks for a key in.
pub(super) fn hand_of(key: Key) -> usize {
    usize::from(key.tree() > 0)
}

/// Finds entries. Keeps the page of payload and that of nodes that it looked at last: neighbours are mostly found in the same
/// ones, and so are all nodes that may cover a block.
pub(super) struct Reader<'a> {
    run: &'a Run,
    held: [Option<Held>; 2],
    nodes: Option<Arc<Kept<Nodes>>>,
}

/// A page of entries.
struct Held {
    index: u64,
    entries: Arc<Kept<EntryPage>>,
}

impl<'a> Reader<'a> {
    pub fn new(run: &'a Run) -> Reader<'a> {
        Reader { run, held: [None, None], nodes: None }
    }

    /// The `page_index`-th page of entries, kept for payload or for nodes.
    fn page(&mut self, page_index: u64, hand: usize) -> Result<&Held> {
        let held = &mut self.held[hand];
        if held.as_ref().is_some_and(|held| held.index != page_index) {
            *held = None;
        }
        match held {
            Some(held) => Ok(held),
            None => {
                let entries = self.run.entries_page(page_index)?;
                Ok(held.insert(Held { index: page_index, entries }))
            }
        }
    }

    /// The entry at `position`; `None` behind the last. `hand` as in [`Reader::page`].
    pub fn entry(&mut self, position: u64, hand: usize) -> Result<Option<Entry>> {
        if position >= self.run.header().entries {
            return Ok(None);
        }
        let per_page = Entry::PER_PAGE as u64;
        let held = self.page(position / per_page, hand)?;
        Ok(Some(held.entries.entry((position % per_page) as usize)))
    }

    /// How many entries are not after (`key`, `lsn_delta`); so the position of the first that is.
    fn position_after(&mut self, key: Key, lsn_delta: u32) -> Result<u64> {
        self.position_from(key, u64::from(lsn_delta) + 1)
    }

    /// The position of the first entry with `key` or a greater one.
    pub fn position_of(&mut self, key: Key) -> Result<u64> {
        self.position_from(key, 0)
    }

    /// The position of the first entry with `key` and at least `lsn_delta`, or with a greater key.
    fn position_from(&mut self, key: Key, lsn_delta: u64) -> Result<u64> {
        let Some(page_index) = self.page_for(key, lsn_delta)? else { return Ok(0) };
        let held = self.page(page_index, hand_of(key))?;
        Ok(page_index * Entry::PER_PAGE as u64 + held.entries.count_before(key, lsn_delta) as u64)
    }

    /// The page in which that position is, or at whose end; `None` if it is the first of all. Of the entries of `key` with less
    /// than `lsn_delta` the newest is in this page, if there is one.
    fn page_for(&mut self, key: Key, lsn_delta: u64) -> Result<Option<u64>> {
        match &self.held[hand_of(key)] {
            Some(held) if held.entries.tells(key, lsn_delta) => Ok(Some(held.index)),
            _ => {
                // A page that begins just there does as well as the one before it, unless that has what is looked for.
                let lsn_delta = lsn_delta.saturating_sub(1).min(u64::from(u32::MAX)) as u32;
                self.run.entries_page_of(Fence { key, lsn_delta })
            }
        }
    }

    /// The newest entry at `key` with an LSN in `ranges`.
    fn newest(&mut self, key: Key, ranges: &[(Lsn, Lsn)]) -> Result<Option<Candidate>> {
        let first = self.run.header().first_lsn.0;
        for range in ranges.iter().rev() {
            // Ranges overlap the run, so their end is not before its first LSN.
            let delta = u32::try_from(range.1.0.saturating_sub(first)).unwrap_or(u32::MAX);
            let behind = u64::from(delta) + 1;
            let Some(page_index) = self.page_for(key, behind)? else { return Ok(None) };
            let entries = &self.page(page_index, hand_of(key))?.entries;
            if !entries.may_hold(key) {
                return Ok(None);
            }
            let newest = entries.count_before(key, behind).checked_sub(1);
            let entry = newest.map(|slot| entries.entry(slot)).filter(|entry| entry.key == key);
            let Some(entry) = entry else { return Ok(None) };
            let lsn = self.run.lsn(&entry);
            if lsn >= range.0 && lsn <= range.1 {
                return self.run.candidate(&entry).map(Some);
            }
        }
        Ok(None)
    }

    /// The newest node over a block, of a merged run.
    fn newest_node(&mut self, lba: Lba, ranges: &[(Lsn, Lsn)]) -> Result<Option<(Lsn, Found)>> {
        let run = self.run;
        let nodes = match self.nodes.take().filter(|nodes| nodes.has(lba.0)) {
            Some(nodes) => nodes,
            None => run.nodes_over(lba)?,
        };
        let nodes = self.nodes.insert(nodes);
        if nodes.is_whole() {
            return Ok(nodes.newest(lba.0, run.first_lsn(), ranges));
        }
        newest_by_trees(run, self, lba, run.trees() & NODE_TREES, ranges)
    }
}

impl Part for Run {
    type Walk<'a> = RunWalk<'a>;
    type Hand<'a> = Reader<'a>;

    fn hand(&self) -> Reader<'_> {
        Reader::new(self)
    }

    fn lsns(&self) -> (Lsn, Lsn) {
        (self.header().first_lsn, self.header().last_lsn)
    }

    fn trees(&self) -> u64 {
        self.header().trees
    }

    fn newest_node<'a>(
        &'a self,
        hand: &mut Reader<'a>,
        lba: Lba,
        ranges: &[(Lsn, Lsn)],
    ) -> Result<Option<(Lsn, Found)>> {
        let trees = self.trees() & NODE_TREES;
        match trees {
            0 => Ok(None),
            _ if self.is_merged() => hand.newest_node(lba, ranges),
            // Its filter knows of most nodes that they are not there.
            _ => newest_by_trees(self, hand, lba, trees, ranges),
        }
    }

    fn newest_at<'a>(
        &'a self,
        hand: &mut Reader<'a>,
        key: Key,
        ranges: &[(Lsn, Lsn)],
    ) -> Result<Option<Candidate>> {
        if !self.may_hold(key)? {
            return Ok(None);
        }
        hand.newest(key, ranges)
    }

    fn walk<'a>(&'a self, first: Key, last: Key, ranges: &'a [(Lsn, Lsn)]) -> Result<Option<RunWalk<'a>>> {
        let keys = last.index() - first.index() + 1;
        if keys <= BLOOM_KEYS_MAX {
            let mut is_possible = false;
            for index in first.index()..=last.index() {
                is_possible |= self.may_hold(Key::new(first.tree(), index))?;
                if is_possible {
                    break;
                }
            }
            if !is_possible {
                return Ok(None);
            }
        }
        let mut reader = Reader::new(self);
        let position = reader.position_of(first)?;
        Ok(Some(RunWalk { reader, position, first, last, ranges }))
    }
}

/// Walks one tree of a [`Run`].
pub(super) struct RunWalk<'a> {
    reader: Reader<'a>,
    position: u64,
    /// The next key is not before this one.
    first: Key,
    last: Key,
    ranges: &'a [(Lsn, Lsn)],
}

impl Walk for RunWalk<'_> {
    fn next(&mut self) -> Result<Option<Candidate>> {
        while let Some(entry) = self.reader.entry(self.position, hand_of(self.last))? {
            if entry.key > self.last {
                break;
            }
            if entry.key < self.first {
                return Err(self.reader.run.nonsense());
            }
            if entry.key.tree() != self.last.tree() {
                // Between the keys of a tree stand those of others, for the same blocks.
                let next = Key::of_tree_behind(self.last.tree(), entry.key);
                if next > self.last {
                    break;
                }
                let position = self.reader.position_of(next)?;
                if position <= self.position {
                    return Err(self.reader.run.nonsense());
                }
                (self.first, self.position) = (next, position);
                continue;
            }
            self.first = entry.key.place_behind();
            let following = self.reader.entry(self.position + 1, hand_of(self.last))?;
            let candidate = if following.is_none_or(|following| following.key != entry.key) {
                self.position += 1;
                let is_seen = contains(self.ranges, self.reader.run.lsn(&entry));
                is_seen.then(|| self.reader.run.candidate(&entry)).transpose()?
            } else {
                let newest = self.reader.newest(entry.key, self.ranges)?;
                let next = self.reader.position_after(entry.key, u32::MAX)?;
                if next <= self.position {
                    return Err(self.reader.run.nonsense());
                }
                self.position = next;
                newest
            };
            if candidate.is_some() {
                return Ok(candidate);
            }
        }
        Ok(None)
    }
}
