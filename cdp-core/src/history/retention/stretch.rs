//! What has to be kept of a stretch of records for some states to stay exact: a pure function of what they see.

use std::collections::BTreeMap;

use crate::ids::Lsn;
use crate::index::Visible;

/// A stretch of records, cut so that each state that is kept sees every piece whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    first: Lsn,
    last: Lsn,
    // First records of pieces, rising; whether a kept state sees that piece.
    cuts: Vec<(Lsn, bool)>,
}

impl Stretch {
    /// Of the records `first..=last`, for the states that see `views`.
    pub fn cut<'a>(first: Lsn, last: Lsn, views: impl IntoIterator<Item = &'a Visible>) -> Stretch {
        // How many views begin to see at a record, less how many end.
        let mut steps: BTreeMap<Lsn, i64> = BTreeMap::from([(first, 0)]);
        for view in views {
            for (from, to) in view.within(first, last).ranges() {
                *steps.entry(*from).or_default() += 1;
                if *to < last {
                    *steps.entry(to.next()).or_default() -= 1;
                }
            }
        }
        let mut seen = 0;
        let cuts = steps.into_iter().map(|(from, step)| {
            seen += step;
            (from, seen > 0)
        });
        Stretch { first, last, cuts: cuts.collect() }
    }

    /// The pieces that some kept state sees, rising. Of each the newest version of a block is enough.
    pub fn pieces(&self) -> Vec<(Lsn, Lsn)> {
        let ends = self.cuts.iter().skip(1).map(|(from, _)| from.previous()).chain([self.last]);
        let pieces = self.cuts.iter().zip(ends);
        pieces.filter(|((_, seen), _)| *seen).map(|((from, _), to)| (*from, to)).collect()
    }

    /// Whether a state stays exact as well, although nothing was kept for it.
    pub fn keeps(&self, view: &Visible) -> bool {
        let at = |lsn: Lsn| self.cuts.binary_search_by_key(&lsn, |(from, _)| *from);
        view.within(self.first, self.last).ranges().iter().all(|(from, to)| {
            let Ok(begin) = at(*from) else { return false };
            let end = if *to == self.last { Ok(self.cuts.len()) } else { at(to.next()) };
            end.is_ok_and(|end| self.cuts[begin..end].iter().all(|(_, seen)| *seen))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::Chance;

    /// A state that was kept and lost a version, or a piece kept for nobody: held against the rule, version by version.
    #[test]
    fn what_is_kept_is_what_the_states_see() {
        for seed in 0..500 {
            let mut chance = Chance::new(seed);
            let (first, last) = (Lsn(5), Lsn(40));
            // Each record changes one of three blocks.
            let blocks: Vec<u64> = (0..60).map(|_| chance.below(3)).collect();
            let mut view = || {
                let mut ranges = Vec::new();
                let mut at = 1 + chance.below(10);
                while at < 58 && ranges.len() < 4 {
                    let to = (at + chance.below(20)).min(58);
                    ranges.push((Lsn(at), Lsn(to)));
                    at = to + 2 + chance.below(5);
                }
                Visible::of(ranges)
            };
            let views: Vec<Visible> = (0..4).map(|_| view()).collect();
            let other = view();
            let stretch = Stretch::cut(first, last, &views);
            let pieces = stretch.pieces();
            // The newest version of each block in each piece.
            let survives = |lsn: u64| {
                !(first.0..=last.0).contains(&lsn)
                    || pieces.iter().any(|(from, to)| {
                        (from.0..=to.0).contains(&lsn)
                            && (lsn + 1..=to.0).all(|later| blocks[later as usize] != blocks[lsn as usize])
                    })
            };
            let newest = |view: &Visible, block: u64, all: bool| {
                let seen = |lsn: &u64| view.contains(Lsn(*lsn)) && (all || survives(*lsn));
                (1..59).rev().filter(seen).find(|lsn| blocks[*lsn as usize] == block)
            };
            let is_exact =
                |view: &Visible| (0..3).all(|block| newest(view, block, true) == newest(view, block, false));
            assert!(views.iter().all(is_exact), "seed {seed}: {views:?} {stretch:?}");
            assert!(!stretch.keeps(&other) || is_exact(&other), "seed {seed}: {other:?} {stretch:?}");
            assert!(views.iter().all(|view| stretch.keeps(view)), "seed {seed}");
            let seen = |lsn: u64| views.iter().any(|view| view.contains(Lsn(lsn)));
            for (from, to) in &pieces {
                assert!((from.0..=to.0).all(seen), "seed {seed}: {from:?} to {to:?} is seen by nobody");
            }
        }
    }
}
