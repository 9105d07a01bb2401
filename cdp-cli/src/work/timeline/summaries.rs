//! Intervals of a long history, from the sums that the index keeps for each segment: no record is read.

use std::collections::BTreeMap;

use cdp_core::error::Result;
use cdp_core::format::run::Summary;
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::volume::Volume;
use cdp_core::volume::timeline::SegmentSummary;

use super::Interval;
use super::thinned::Thinned;

/// The intervals in which something was written, by their numbers. Where a segment belongs to several, its sums are
/// shared out by number of records.
pub(super) fn intervals(
    volume: &Volume,
    thinned: &Thinned,
    (from, to, step): (u64, u64, u64),
    (first, last): (Lsn, Lsn),
) -> Result<BTreeMap<u64, Interval>> {
    let summaries = volume.summaries(first.next(), last)?;
    let mut segments = summaries.iter().peekable();
    let mut intervals = BTreeMap::new();
    let mut before = first;
    let mut number = 0;
    while before < last && from.saturating_add(step.saturating_mul(number)) <= to {
        let end_ns = from.saturating_add(step.saturating_mul(number + 1)).saturating_sub(1).min(to);
        let through = volume.newest_known(Timestamp(end_ns))?.min(last);
        let mut did = Summary::default();
        while let Some(segment) = segments.peek() {
            did.add(&share(segment, before, through));
            if segment.last > through {
                break;
            }
            segments.next();
        }
        if did.writes + did.trims > 0 {
            let mut interval = Interval::new(volume, thinned.viewable(before), (from, to, step), number);
            interval.records = did.writes + did.trims;
            interval.new_bytes = did.written_bytes;
            interval.trimmed_bytes = did.trimmed_bytes;
            intervals.insert(number, interval);
        }
        before = before.max(through);
        number += 1;
    }
    Ok(intervals)
}

/// What a segment's records behind `before` and up to `through` did, if each did the same. The shares of neighbours add
/// up to the whole.
fn share(segment: &SegmentSummary, before: Lsn, through: Lsn) -> Summary {
    let records = segment.last.0 - segment.first.0 + 1;
    let up_to = |lsn: Lsn| (lsn.0 + 1).saturating_sub(segment.first.0).min(records);
    let (from, to) = (up_to(before), up_to(through).max(up_to(before)));
    let of = |sum: u64| {
        let part = |count: u64| (u128::from(sum) * u128::from(count) / u128::from(records)) as u64;
        part(to) - part(from)
    };
    let did = &segment.did;
    Summary {
        writes: of(did.writes),
        written_bytes: of(did.written_bytes),
        trims: of(did.trims),
        trimmed_bytes: of(did.trimmed_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Whoever adds up the intervals of a log must get what was written, wherever the intervals are cut.
    #[test]
    fn shares_add_up_to_the_whole() {
        let did =
            Summary { writes: 1001, written_bytes: 999_999_999_999, trims: 3, trimmed_bytes: u64::MAX / 2 };
        let segment = SegmentSummary { first: Lsn(11), last: Lsn(1014), did };
        for cuts in
            [&[0, 2000][..], &[5, 11, 12, 500, 501, 1014], &[0, 10, 1013, 1500], &[10, 700, 700, 1014]]
        {
            let mut sum = Summary::default();
            for pair in cuts.windows(2) {
                sum.add(&share(&segment, Lsn(pair[0]), Lsn(pair[1])));
            }
            assert_eq!(sum, did, "{cuts:?}");
        }
        assert_eq!(share(&segment, Lsn(1014), Lsn(3000)), Summary::default());
        assert_eq!(share(&segment, Lsn(0), Lsn(10)), Summary::default());
    }
}
