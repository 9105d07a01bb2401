//! Laying the versions of one part over each other: the newest wins, block by block.

use super::tree::{Candidate, NODE_TREES, extent, shift, trees_of};
use super::{Found, Search, Version, Visible};
use crate::error::Result;
use crate::format::run::Key;
use crate::ids::{Extent, Lba, Lsn};

/// A part, as the overlay sees it: for each tree an ordered map from key to versions.
pub(super) trait Part {
    /// Walks the keys of one tree.
    type Walk<'a>: Walk
    where
        Self: 'a;

    /// What one lookup leaves for the next: neighbours are mostly found in one page.
    type Hand<'a>
    where
        Self: 'a;

    /// A hand that holds nothing yet.
    fn hand(&self) -> Self::Hand<'_>;

    /// First and last LSN of the part.
    fn lsns(&self) -> (Lsn, Lsn);

    /// Bitmask of the trees that hold anything.
    fn trees(&self) -> u64;

    /// The newest version at `key` within `ranges`.
    fn newest_at<'a>(
        &'a self,
        hand: &mut Self::Hand<'a>,
        key: Key,
        ranges: &[(Lsn, Lsn)],
    ) -> Result<Option<Candidate>>;

    /// The newest version within `ranges` that a node over this block has.
    fn newest_node<'a>(
        &'a self,
        hand: &mut Self::Hand<'a>,
        lba: Lba,
        ranges: &[(Lsn, Lsn)],
    ) -> Result<Option<(Lsn, Found)>> {
        newest_by_trees(self, hand, lba, self.trees() & NODE_TREES, ranges)
    }

    /// The keys from `first` to `last` (same tree, ends included) with their newest versions within
    /// `ranges`, rising; `None` when the part knows that there are none.
    fn walk<'a>(&'a self, first: Key, last: Key, ranges: &'a [(Lsn, Lsn)]) -> Result<Option<Self::Walk<'a>>>;
}

/// The keys of one tree in rising order, each with its newest visible version; others are left out.
pub(super) trait Walk {
    /// The next one.
    fn next(&mut self) -> Result<Option<Candidate>>;
}

/// Answers what this part knows of the gaps of `search`.
pub(super) fn resolve<P: Part>(part: &P, visible: &Visible, search: &mut Search) -> Result<()> {
    let (first, last) = part.lsns();
    let ranges = visible.overlapping(first, last);
    if ranges.is_empty() || part.trees() == 0 || search.is_done() {
        return Ok(());
    }
    let found_max = search.found_max();
    let gaps = search.take_gaps();
    let mut hand = part.hand();
    for &gap in &gaps {
        if search.found.len() >= found_max {
            search.cut(gap.start);
        }
        if gap.start.0 >= search.extent().end() {
            break;
        }
        if gap.blocks == 1 {
            resolve_block(part, &mut hand, gap.start, ranges, search)?;
        } else {
            resolve_gap(part, gap, ranges, search, found_max)?;
        }
    }
    search.recycle(gaps);
    Ok(())
}

/// The newest version of one block within `ranges`. Of equal LSNs payload wins: the edges of a zero record.
pub(super) fn newest_of_block<'a, P: Part>(
    part: &'a P,
    hand: &mut P::Hand<'a>,
    lba: Lba,
    ranges: &[(Lsn, Lsn)],
) -> Result<Option<(Lsn, Found)>> {
    let payload = newest_by_trees(part, hand, lba, part.trees() & !NODE_TREES, ranges)?;
    let node = part.newest_node(hand, lba, ranges)?;
    Ok(newer(payload, node))
}

/// The newest version over one block within `ranges` in any of some trees, of which there is one key each.
pub(super) fn newest_by_trees<'a, P: Part + ?Sized>(
    part: &'a P,
    hand: &mut P::Hand<'a>,
    lba: Lba,
    trees: u64,
    ranges: &[(Lsn, Lsn)],
) -> Result<Option<(Lsn, Found)>> {
    let mut newest = None;
    for tree in trees_of(trees) {
        let candidate = part.newest_at(hand, Key::new(tree, lba.0 >> shift(tree)), ranges)?;
        newest = newer(newest, candidate.map(|candidate| (candidate.lsn, candidate.found)));
    }
    Ok(newest)
}

/// The first, unless the second has a higher LSN.
fn newer(first: Option<(Lsn, Found)>, second: Option<(Lsn, Found)>) -> Option<(Lsn, Found)> {
    match (first, second) {
        (Some(first), Some(second)) if first.0 >= second.0 => Some(first),
        (first, None) => first,
        (_, second) => second,
    }
}

fn resolve_block<'a, P: Part>(
    part: &'a P,
    hand: &mut P::Hand<'a>,
    lba: Lba,
    ranges: &[(Lsn, Lsn)],
    search: &mut Search,
) -> Result<()> {
    match newest_of_block(part, hand, lba, ranges)? {
        Some((lsn, found)) => {
            search.answer(Version { extent: Extent { start: lba, blocks: 1 }, lsn, found });
        }
        None => search.leave(lba.0, lba.0 + 1),
    }
    Ok(())
}

/// Nodes of the trees that cover the place where the sweep stands, the innermost last.
struct Cover {
    end: u64,
    lsn: Lsn,
    found: Found,
}

/// Sweeps one gap from its start to its end. All trees are walked at once, lazily, so that a bounded search
/// over 64 TiB costs what it finds. Because nodes nest, the covers open at any place form a stack, and a
/// cover that carries the newest version of itself and all below it answers alone.
fn resolve_gap<P: Part>(
    part: &P,
    gap: Extent,
    ranges: &[(Lsn, Lsn)],
    search: &mut Search,
    found_max: usize,
) -> Result<()> {
    let mut walks: Vec<(P::Walk<'_>, Candidate)> = Vec::new();
    for tree in trees_of(part.trees()) {
        let first = Key::new(tree, gap.start.0 >> shift(tree));
        let last = Key::new(tree, (gap.end() - 1) >> shift(tree));
        if let Some(mut walk) = part.walk(first, last, ranges)?
            && let Some(candidate) = walk.next()?
        {
            walks.push((walk, candidate));
        }
    }
    let mut sweep = Sweep { at: gap.start.0, end: gap.end(), covers: Vec::new() };
    // Of those that start together the outermost comes first, so that the inner one is laid over it.
    while let Some(nearest) = (0..walks.len()).min_by_key(|&walk| {
        let key = walks[walk].1.key;
        (extent(key).start, std::cmp::Reverse(key.tree()))
    }) {
        let (walk, candidate) = &mut walks[nearest];
        let next = *candidate;
        match walk.next()? {
            Some(following) => *candidate = following,
            None => drop(walks.swap_remove(nearest)),
        }
        sweep.advance(extent(next.key).start.0, search);
        if search.found.len() >= found_max && sweep.at > gap.start.0 {
            search.cut(Lba(sweep.at));
            return Ok(());
        }
        sweep.open(next);
    }
    sweep.advance(gap.end(), search);
    Ok(())
}

struct Sweep {
    at: u64,
    end: u64,
    covers: Vec<Cover>,
}

impl Sweep {
    /// Answers everything up to `to`, closing the covers that end before.
    fn advance(&mut self, to: u64, search: &mut Search) {
        while self.at < to {
            let Some(cover) = self.covers.last() else {
                search.leave(self.at, to);
                self.at = to;
                return;
            };
            let end = cover.end.min(to);
            if self.at < end {
                search.answer(Version {
                    extent: Extent::new(self.at, end),
                    lsn: cover.lsn,
                    found: cover.found,
                });
                self.at = end;
            }
            if cover.end <= to {
                self.covers.pop();
            }
        }
    }

    /// Opens a cover that starts where the sweep stands (or before the gap).
    fn open(&mut self, candidate: Candidate) {
        // A cover that ends here is no outer one of what begins here.
        while self.covers.last().is_some_and(|cover| cover.end <= self.at) {
            self.covers.pop();
        }
        let end = extent(candidate.key).end().min(self.end);
        let (mut lsn, mut found) = (candidate.lsn, candidate.found);
        if let Some(outer) = self.covers.last()
            && outer.lsn > lsn
        {
            (lsn, found) = (outer.lsn, outer.found);
        }
        self.covers.push(Cover { end, lsn, found });
    }
}
