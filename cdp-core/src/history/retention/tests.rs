//! Policies: what they say, and what they keep.

use super::*;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

/// Whoever sets a policy reads it back in `show`: what is printed must mean the same.
#[test]
fn a_policy_reads_as_it_is_printed() {
    let text = "every-write 24h, hourly 7d, daily 30d, every 1h30m for 2w3d, named until removed, at most 200GiB, at cap drop-oldest";
    let policy = parse(text).unwrap();
    assert_eq!(policy.every_write, Keep::For(DAY));
    assert_eq!(policy.tiers.len(), 3);
    assert_eq!(policy.bytes_max, Some(200 << 30));
    assert_eq!(policy.at_cap, AtCap::DropOldest);
    assert_eq!(parse(&policy.to_string()).unwrap(), policy);
    for other in [
        "",
        "at most 300M",
        "named 5d",
        "every-write forever, at cap block",
        "weekly forever",
        "codec zstd",
        "hourly 7d, codec none",
    ] {
        let policy = parse(other).unwrap();
        assert_eq!(parse(&policy.to_string()).unwrap(), policy, "{other}");
    }
    assert_eq!(parse("").unwrap(), Policy::default());
}

/// A typing mistake must not become a policy that drops history.
#[test]
fn nonsense_is_refused() {
    for text in [
        "every-write",
        "every-write 24",
        "every-write 24x",
        "hourly",
        "fortnightly 7d",
        "at most",
        "at most 5Q",
        "at cap maybe",
        "codec",
        "codec gzip",
        "every 0s for 5d",
        "hourly 7d, hourly 8d",
        "every 1h for",
        "named",
        "at most -5G",
        "every-write 99999999999999w",
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.kind(), crate::error::Kind::Invalid, "{text}");
    }
}

fn every_minute(hours: u64) -> Vec<Candidate> {
    (0..hours * 60)
        .map(|minute| Candidate {
            lsn: Lsn(minute + 1),
            at: Timestamp(minute * 60 * SECOND + 5),
            named: minute == 7,
        })
        .collect()
}

/// Everything of the last day, an hour apart for a week, named ones for good: as it is read.
#[test]
fn the_window_the_hours_and_the_names() {
    let policy = parse("every-write 24h, hourly 3d").unwrap();
    let now = Timestamp(5 * DAY);
    let kept = retained(&policy, every_minute(120), now);
    assert_eq!(kept.window, Timestamp(4 * DAY));
    // The named one, and the first of each hour of days 3 and 4 (the oldest is a whole 3 days old).
    let hours: Vec<Lsn> = (48..96).map(|hour| Lsn(hour * 60 + 1)).collect();
    assert_eq!(kept.kept, [vec![Lsn(8)], hours].concat());
}

/// What is kept today is kept tomorrow until its time is over: a choice that moved with the clock would keep
/// nothing, because the history around it is gone by then.
#[test]
fn choices_do_not_move() {
    let policy = parse("every-write 2h, hourly 1d, daily 30d, named 1h").unwrap();
    let markers = every_minute(24 * 12);
    let mut alive: Option<Vec<Lsn>> = None;
    for hour in 1..24 * 12 {
        let now = Timestamp(hour * HOUR + 11 * SECOND);
        let there: Vec<Candidate> = markers.iter().copied().filter(|marker| marker.at <= now).collect();
        let found = retained(&policy, there.iter().copied(), now);
        if let Some(alive) = &alive {
            let lost: Vec<_> = found.kept.iter().filter(|lsn| !alive.contains(lsn)).collect();
            assert!(lost.is_empty(), "{lost:?} would be wanted at hour {hour}, and was not kept before");
        }
        let window = there.iter().filter(|marker| marker.at >= found.window).map(|marker| marker.lsn);
        alive = Some(found.kept.iter().copied().chain(window).collect());
        // The same from what is left.
        let left: Vec<Candidate> =
            there.iter().copied().filter(|marker| alive.as_ref().unwrap().contains(&marker.lsn)).collect();
        assert_eq!(retained(&policy, left, now), found);
    }
}

/// A rollback that was undone, or not, must never be in the base of a state that does not see it.
#[test]
fn the_base_rests_where_all_agree() {
    // Records 1 … 100, then a rollback at 101 to 50, then on to 150.
    let rolled = |x: u64| Visible::of(vec![(Lsn(1), Lsn(50)), (Lsn(101), Lsn(x))]);
    let through = |x: u64| Visible::through(Lsn(x));
    assert!(may_rest(Lsn(40), &through(40), [&rolled(120), &rolled(150)]));
    assert!(may_rest(Lsn(50), &through(50), [&rolled(120), &rolled(150)]));
    assert!(!may_rest(Lsn(80), &through(80), [&rolled(120), &rolled(150)]));
    assert!(may_rest(Lsn(110), &rolled(110), [&rolled(120), &rolled(150)]));
    // Somebody still looks at the time before the rollback.
    assert!(!may_rest(Lsn(110), &rolled(110), [&through(100), &rolled(150)]));
    assert!(!may_rest(Lsn(80), &through(80), [&through(100), &rolled(150)]));
    assert!(may_rest(Lsn(50), &through(50), [&through(100), &rolled(150)]));
    // However the ranges are cut.
    let cut = Visible::of(vec![(Lsn(1), Lsn(20)), (Lsn(21), Lsn(60))]);
    assert!(may_rest(Lsn(40), &cut, [&through(60)]));
    assert!(may_rest(Lsn(0), &through(0), [&through(60), &rolled(150)]));
}
