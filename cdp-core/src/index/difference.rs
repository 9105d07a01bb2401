//! Which records tell two states of a volume apart.

use super::Visible;
use super::visible::contains;
use crate::ids::Lsn;

/// The records to look through for the blocks that differ between two states, a and b.
///
/// A block differs if its newest record in a is not its newest one in b. Of both states' records together, let n
/// be the newest that changed the block. If both see n, it is the newest in both, and the block is the same; if
/// only one sees it, the block differs, because the other's newest is another one. So one lookup over what either
/// state sees tells, and of that only what is not older than the oldest record that one of them sees alone: for
/// two points without a rollback between them exactly the records between them, however long the history is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    relevant: Visible,
    /// Seen by one of the two only.
    alone: Vec<(Lsn, Lsn)>,
}

impl Difference {
    /// Between two states of one volume; which is which does not matter.
    pub fn between(a: &Visible, b: &Visible) -> Difference {
        let alone = combine(a, b, |a, b| a != b);
        let oldest = alone.first().map_or(Lsn::MAX, |range| range.0);
        let mut relevant = combine(a, b, |a, b| a || b);
        relevant.retain(|range| range.1 >= oldest);
        if let Some(first) = relevant.first_mut() {
            first.0 = first.0.max(oldest);
        }
        Difference { relevant: Visible::of(relevant), alone }
    }

    /// Whether both states see the same records, so that nothing can differ.
    pub fn is_empty(&self) -> bool {
        self.alone.is_empty()
    }

    /// The records to look through.
    pub fn relevant(&self) -> &Visible {
        &self.relevant
    }

    /// Whether a block differs whose newest one of the [`Difference::relevant`] records is `lsn`. One that has none
    /// does not.
    pub fn is_told_by(&self, lsn: Lsn) -> bool {
        contains(&self.alone, lsn)
    }
}

/// The LSNs for which `keep` holds, given which of the two sees them; as disjoint, rising ranges that do not touch.
fn combine(a: &Visible, b: &Visible, keep: impl Fn(bool, bool) -> bool) -> Vec<(Lsn, Lsn)> {
    // Half open, so that a range's end is the first LSN that may be judged otherwise. No record has the last LSN.
    let mut edges: Vec<u64> = [a, b]
        .iter()
        .flat_map(|visible| visible.ranges())
        .filter(|range| range.0 <= range.1)
        .flat_map(|range| [range.0.0, range.1.0.saturating_add(1)])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let mut kept: Vec<(Lsn, Lsn)> = Vec::new();
    for pair in edges.windows(2) {
        let (first, last) = (Lsn(pair[0]), Lsn(pair[1] - 1));
        if !keep(a.contains(first), b.contains(first)) {
            continue;
        }
        match kept.last_mut() {
            Some(before) if before.1.next() == first => before.1 = last,
            _ => kept.push((first, last)),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Visible {
        Visible::of(ranges.iter().map(|range| (Lsn(range.0), Lsn(range.1))).collect())
    }

    // A backup that looks through too few records misses blocks; one that looks through all of them takes as long
    // as the history.
    #[test]
    fn between_two_points_only_the_records_between_them_count() {
        let difference = Difference::between(&Visible::through(Lsn(7)), &Visible::through(Lsn(12)));
        assert_eq!(difference.relevant(), &of(&[(8, 12)]));
        assert!(difference.is_told_by(Lsn(8)) && difference.is_told_by(Lsn(12)));
        assert!(!difference.is_told_by(Lsn(7)) && !difference.is_told_by(Lsn(13)));
        let back = Difference::between(&Visible::through(Lsn(12)), &Visible::through(Lsn(7)));
        assert_eq!(back, difference);
        for nothing in [Lsn::ZERO, Lsn(1), Lsn(5), Lsn::MAX] {
            let difference = Difference::between(&Visible::through(nothing), &Visible::through(nothing));
            assert!(difference.is_empty() && difference.relevant().ranges().is_empty());
        }
        let all = Difference::between(&Visible::through(Lsn::ZERO), &Visible::through(Lsn(3)));
        assert_eq!(all.relevant(), &of(&[(1, 3)]));
    }

    // After a rollback both states share what came before it; what both see afterwards hides what only one saw.
    #[test]
    fn across_a_rollback_what_both_see_is_no_difference() {
        // 21 is a rollback to 10; the first state stands before it, the second behind.
        let (before, behind) = (of(&[(1, 20)]), of(&[(1, 10), (21, 30)]));
        let difference = Difference::between(&before, &behind);
        assert_eq!(difference.relevant(), &of(&[(11, 30)]));
        assert!((11..=30).all(|lsn| difference.is_told_by(Lsn(lsn))));
        let both = of(&[(1, 30)]);
        let difference = Difference::between(&both, &behind);
        assert_eq!(difference.relevant(), &of(&[(11, 30)]));
        assert!(difference.is_told_by(Lsn(20)) && !difference.is_told_by(Lsn(21)));
    }
}
