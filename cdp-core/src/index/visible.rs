//! Which records a view sees.

use crate::ids::Lsn;

/// The records a view sees: disjoint LSN ranges, ends included, in rising order. A volume that was never
/// rolled back sees one range, `1..=lsn`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visible {
    ranges: Vec<(Lsn, Lsn)>,
}

impl Visible {
    /// All records up to and including `lsn`.
    pub fn through(lsn: Lsn) -> Visible {
        Visible { ranges: vec![(Lsn(1), lsn)] }
    }

    /// The records in these ranges, ends included; the ranges must be disjoint and rising, each with its
    /// start not behind its end.
    pub fn of(ranges: Vec<(Lsn, Lsn)>) -> Visible {
        assert!(ranges.iter().all(|range| range.0 <= range.1), "a range ends before it starts: {ranges:?}");
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges must rise: {ranges:?}");
        Visible { ranges }
    }

    /// The same without the records up to and including `base`: what they changed is the base's, whatever the
    /// index still says of them. A merged run may name segments that are long gone.
    pub fn above(mut self, base: Lsn) -> Visible {
        self.ranges.retain(|range| range.1 > base);
        if let Some(first) = self.ranges.first_mut() {
            first.0 = first.0.max(base.next());
        }
        self
    }

    /// Of these records only those from `first` to `last`.
    pub fn within(&self, first: Lsn, last: Lsn) -> Visible {
        let clip = |range: &(Lsn, Lsn)| (range.0.max(first), range.1.min(last));
        Visible { ranges: self.ranges.iter().map(clip).filter(|range| range.0 <= range.1).collect() }
    }

    /// Whether both see the same of the records up to and including `through`.
    pub fn agrees_through(&self, other: &Visible, through: Lsn) -> bool {
        self.clipped(through).eq(other.clipped(through))
    }

    /// The ranges cut behind `through`. Ranges without a record are left out, and neighbours are one.
    fn clipped(&self, through: Lsn) -> impl Iterator<Item = (Lsn, Lsn)> {
        let mut ranges = self
            .ranges
            .iter()
            .map(move |range| (range.0, range.1.min(through)))
            .filter(|range| range.0 <= range.1)
            .peekable();
        std::iter::from_fn(move || {
            let (first, mut last) = ranges.next()?;
            while let Some(next) = ranges.next_if(|next| next.0 == last.next()) {
                last = next.1;
            }
            Some((first, last))
        })
    }

    /// The ranges, in rising order.
    pub fn ranges(&self) -> &[(Lsn, Lsn)] {
        &self.ranges
    }

    /// Whether the record is seen.
    pub fn contains(&self, lsn: Lsn) -> bool {
        contains(&self.ranges, lsn)
    }

    /// Those ranges that share an LSN with `first..=last`, not clipped.
    pub(super) fn overlapping(&self, first: Lsn, last: Lsn) -> &[(Lsn, Lsn)] {
        let from = self.ranges.partition_point(|range| range.1 < first);
        let to = self.ranges.partition_point(|range| range.0 <= last);
        self.ranges.get(from..to).unwrap_or(&[])
    }
}

/// Whether one of the rising, disjoint ranges holds `lsn`.
pub(super) fn contains(ranges: &[(Lsn, Lsn)], lsn: Lsn) -> bool {
    match ranges {
        [] => false,
        [range] => range.0 <= lsn && lsn <= range.1,
        _ => {
            let candidate = ranges.partition_point(|range| range.1 < lsn);
            ranges.get(candidate).is_some_and(|range| range.0 <= lsn)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Visible {
        Visible::of(ranges.iter().map(|range| (Lsn(range.0), Lsn(range.1))).collect())
    }

    /// A record at or below the base LSN that is still looked at shows bytes of a segment that was dropped.
    #[test]
    fn nothing_at_or_below_the_base_is_seen() {
        let visible = of(&[(1, 5), (9, 20), (30, 40)]);
        assert_eq!(visible.clone().above(Lsn::ZERO), visible);
        for base in 0..45 {
            let above = visible.clone().above(Lsn(base));
            for lsn in 1..50 {
                let expected = visible.contains(Lsn(lsn)) && lsn > base;
                assert_eq!(above.contains(Lsn(lsn)), expected, "{lsn} above {base}");
            }
        }
        assert!(Visible::through(Lsn::ZERO).above(Lsn(3)).ranges().is_empty());
    }

    /// An image made on one side of a rollback shows the other side's bytes if it is taken for usable.
    #[test]
    fn agreement_is_that_of_every_record() {
        let all = [
            of(&[(1, 20)]),
            of(&[(1, 5), (9, 20)]),
            of(&[(1, 5), (6, 20)]),
            of(&[(1, 5), (9, 12), (13, 20)]),
            of(&[(2, 20)]),
            of(&[]),
            Visible::through(Lsn::ZERO),
        ];
        for one in &all {
            for other in &all {
                for through in 0..25 {
                    let same = (1..=through).all(|lsn| one.contains(Lsn(lsn)) == other.contains(Lsn(lsn)));
                    assert_eq!(one.agrees_through(other, Lsn(through)), same, "{one:?} {other:?} {through}");
                }
            }
        }
    }
}
