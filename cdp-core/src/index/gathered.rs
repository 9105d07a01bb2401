//! Gathering what nodes a merged run has over the blocks of some neighbouring regions, from the pages in which they stand.

use super::Run;
use super::find::{Reader, hand_of};
use super::nodes::{NODES_MAX, NodeVersion, Nodes};
use super::pages::{Cached, Fresh, Kept};
use super::tree::{TREES, shift, trees_of};
use crate::error::Result;
use crate::format::run::{Entry, Fence, Key, PAGE_BYTES, Page, REGION_BITS, Row, pages_of, row_of};
use crate::ids::Lba;
use crate::limits::LBA_BITS;
use std::sync::Arc;

/// At most so many regions, aligned, are gathered together: where a run has few nodes, all of its regions begin in one page.
const TOGETHER_BITS: u32 = 6;
/// All regions of the largest volume.
const REGIONS: u64 = 1 << (LBA_BITS - REGION_BITS);
/// In the cache gathered nodes have numbers behind those of all pages.
const GATHERED: u64 = 1 << 63;
/// So many pages of entries are read for them at most; of rows that belong to others there are two pages at most.
const PAGES_MAX: usize = NODES_MAX / Entry::PER_PAGE + 3;

const _: () = assert!(LBA_BITS - REGION_BITS >= TOGETHER_BITS && REGION_BITS + TOGETHER_BITS < u32::BITS);

impl Run {
    /// The nodes over the blocks of the regions that begin in the same page as the one of this block.
    pub(super) fn nodes_over(&self, lba: Lba) -> Result<Arc<Kept<Nodes>>> {
        let region = lba.0 >> REGION_BITS;
        let wanted = Fence { key: Key::first_of_region(region), lsn_delta: 0 };
        let page_index = self.entries_page_of(wanted)?.unwrap_or(0);
        let together = region >> TOGETHER_BITS;
        let number = GATHERED | page_index << (LBA_BITS - REGION_BITS - TOGETHER_BITS) | together;
        let nodes = self.cached(number, || self.gather(page_index, together).map(Fresh::Nodes))?;
        match nodes {
            // Pages that contradict their fences would lead to the wrong place.
            Cached::Nodes(nodes) if nodes.has(lba.0) => Ok(nodes),
            _ => Err(self.nonsense()),
        }
    }

    /// Of the `together`-th aligned group of regions those that begin in this page of entries.
    fn gather(&self, page_index: u64, together: u64) -> Result<Nodes> {
        let pages = pages_of::<Entry>(self.header().entries).saturating_sub(page_index);
        let mut read: Vec<Page> = vec![[0; PAGE_BYTES]; pages.min(2) as usize];
        self.read_pages(self.layout().entries_page + page_index, &mut read)?;
        let begin = |page: &Page| regions_before(&row_of::<Entry>(page, 0));
        let mut from = together << TOGETHER_BITS;
        let mut to = from + (1 << TOGETHER_BITS);
        if page_index > 0 {
            from = from.max(read.first().map_or(0, begin));
        }
        to = to.min(read.get(1).map_or(REGIONS, begin));
        if from >= to {
            return Err(self.nonsense());
        }
        let (first, end) = (from << REGION_BITS, to << REGION_BITS);
        let mut versions = Vec::new();
        let mut number = 0;
        while let Some(page) = read.get(number) {
            let rows = self.entries_in_page(page_index + number as u64);
            let mut is_over = false;
            for slot in 0..rows {
                let entry: Entry = row_of(page, slot);
                match entry.key.region_of_node() {
                    Some(region) if from <= region && region < to => versions.push(self.version(&entry)?),
                    Some(region) => is_over = region >= to,
                    None => is_over = entry.key.tree() > 0,
                }
            }
            if versions.len() > NODES_MAX || number == PAGES_MAX {
                return Ok(Nodes::too_many(first, end));
            }
            number += 1;
            if is_over {
                break;
            }
            if number == read.len() && (number as u64) < pages {
                read.push([0; PAGE_BYTES]);
                let at = self.layout().entries_page + page_index + number as u64;
                self.read_pages(at, &mut read[number..])?;
            }
        }
        self.gather_large(first, end, &mut versions)?;
        Ok(Nodes::of(first, end, versions))
    }

    /// The versions of nodes that are larger than a region and have blocks in common with `first..end`; more than
    /// [`NODES_MAX`] in all are left out.
    fn gather_large(&self, first: u64, end: u64, versions: &mut Vec<NodeVersion>) -> Result<()> {
        let mut reader = Reader::new(self);
        let large = |tree: &u8| shift(*tree) > REGION_BITS && *tree < TREES;
        for tree in trees_of(self.header().trees).filter(large) {
            let nearest = Key::new(tree, first >> shift(tree));
            let last = Key::new(tree, (end - 1) >> shift(tree));
            let mut position = reader.position_of(nearest)?;
            while let Some(entry) = reader.entry(position, hand_of(last))?.filter(|entry| entry.key <= last) {
                if entry.key < nearest {
                    return Err(self.nonsense());
                }
                versions.push(self.version(&entry)?);
                if versions.len() > NODES_MAX {
                    return Ok(());
                }
                position += 1;
            }
        }
        Ok(())
    }

    fn version(&self, entry: &Entry) -> Result<NodeVersion> {
        let candidate = self.candidate(entry)?;
        let hole = candidate.found == super::Found::Hole;
        Ok(NodeVersion { key: candidate.key, lsn_delta: entry.lsn_delta, hole })
    }
}

/// How many regions begin before this entry.
fn regions_before(entry: &Entry) -> u64 {
    match entry.key.region_of_node() {
        Some(region) => {
            let begins_with_it = entry.key == Key::first_of_region(region) && entry.lsn_delta == 0;
            region + u64::from(!begins_with_it)
        }
        None if entry.key.tree() == 0 => 0,
        None => REGIONS,
    }
}
