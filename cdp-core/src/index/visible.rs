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
