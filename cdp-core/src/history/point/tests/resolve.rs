//! What a point shows is decided to the nanosecond here: every write answered by T, none sent after T.

use super::timeline::Fake;
use super::{NOW, now};
use crate::error::{Error, Kind};
use crate::history::point::{Now, Point, Resolved, Zone, format_utc, parse, resolve};
use crate::ids::{Lsn, Timestamp};

const S: u64 = 1_000_000_000;

/// Created an hour before now, then records 1 to 5, ten minutes apart but for the last two, 1 ns apart.
fn fake() -> Fake {
    let created = NOW - 3_600 * S;
    let record = |minutes: u64| created + minutes * 60 * S;
    Fake {
        timestamps: vec![created, record(10), record(20), record(30), record(40), record(40) + 1],
        horizon: 0,
        markers: vec![("install", 1), ("upgrade", 3), ("postgres", 4)],
        application: Some("postgres"),
        proven: Some(2),
        now: NOW,
        stepped: 0,
    }
}

fn find(text: &str, fake: &Fake) -> Result<Resolved, Error> {
    let request = parse(text, &now()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    resolve(&request.point, fake, &now())
}

fn found(text: &str, fake: &Fake) -> Resolved {
    find(text, fake).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn refused(text: &str, fake: &Fake, kind: Kind, told: &[&str]) {
    let error = find(text, fake).expect_err(text);
    assert_eq!(error.kind(), kind, "{text:?}: {error}");
    for told in told {
        assert!(error.to_string().contains(told), "{text:?} should tell {told:?}: {error}");
    }
}

#[test]
fn an_instant_shows_records_up_to_it_to_the_nanosecond() {
    let fake = fake();
    let ns = |at: u64| found(&format!("ns:{at}"), &fake);
    for (lsn, &at) in fake.timestamps.iter().enumerate() {
        let lsn = lsn as u64;
        assert_eq!(ns(at).lsn, Lsn(lsn), "at record {lsn}");
        assert_eq!(ns(at).at, Timestamp(at));
        let next = fake.timestamps.get(lsn as usize + 1).copied().unwrap_or(NOW);
        assert_eq!(ns(next.min(at + 1)).lsn, Lsn(if next == at + 1 && next != NOW { lsn + 1 } else { lsn }));
        if lsn > 0 {
            assert_eq!(ns(at - 1).lsn, Lsn(lsn - 1), "1 ns before record {lsn}");
            assert_eq!(found(&format_utc(Timestamp(at - 1)), &fake).lsn, Lsn(lsn - 1));
        }
    }
    assert_eq!(ns(NOW).lsn, Lsn(5));
}

#[test]
fn every_form_finds_its_record() {
    let fake = fake();
    let at = |lsn: usize| fake.timestamps[lsn];
    let cases = [
        ("start", 0, at(0), true),
        ("latest", 5, at(5), true),
        ("latest-app", 4, at(4), true),
        ("latest-proven", 2, at(2), true),
        ("lsn:0", 0, at(0), false),
        ("lsn:2", 2, at(2), false),
        ("lsn:5", 5, at(5), false),
        ("upgrade", 3, at(3), false),
        ("before:upgrade", 2, at(2), false),
        ("before:install", 0, at(0), false),
        ("-0s", 5, NOW, true),
        ("-20m", 4, NOW - 1_200 * S, true),
        ("-1200001ms", 3, NOW - 1_200 * S - 1_000_000, true),
        ("60m ago", 0, at(0), true),
        ("12:34:56.789012345", 0, at(0), true),
        ("2026-11-21 12:55", 2, 1_795_262_100 * S, false),
    ];
    for (text, lsn, at, relative) in cases {
        let found = found(text, &fake);
        assert_eq!((found.lsn, found.at, found.relative), (Lsn(lsn), Timestamp(at), relative), "{text}");
    }
}

#[test]
fn the_absolute_name_means_the_same_state_whatever_is_written_later() {
    let mut fake = fake();
    let texts = [
        "start",
        "latest",
        "latest-app",
        "lsn:0",
        "lsn:2",
        "upgrade",
        "before:upgrade",
        "before:install",
        "-0s",
        "-20m",
        "-25m",
        "60m ago",
        "13:00",
        "2026-11-21 12:55",
        "2026-11-21T12:34:56.789Z",
    ];
    let first: Vec<Resolved> = texts.iter().map(|text| found(text, &fake)).collect();
    // Writing goes on although the clock was set back behind what was asked for.
    fake.timestamps.extend([fake.timestamps[5] + 1, NOW - 1, NOW, NOW + 1]);
    for (text, first) in texts.iter().zip(first) {
        let again = found(&first.absolute_name, &fake);
        assert_eq!(again.lsn, first.lsn, "{text} as {}", first.absolute_name);
        assert!(!again.relative, "{text}");
    }
    assert_eq!(found("upgrade", &fake).absolute_name, format!("ns:{}", fake.timestamps[3]));
    assert_eq!(found("lsn:2", &fake).absolute_name, "lsn:2");
    assert_eq!(found("-25m", &fake).absolute_name, format!("ns:{}", NOW - 1_500 * S));
}

#[test]
fn the_future_is_refused_and_latest_named() {
    let fake = fake();
    refused(
        &format!("ns:{}", NOW + 1),
        &fake,
        Kind::OutOfRange,
        &["in the future, by 1 ns", "`latest`", "`lsn:5`"],
    );
    refused("2027-01-01T00:00:00Z", &fake, Kind::OutOfRange, &["2027-01-01T00:00:00Z", "future", "`latest`"]);
    refused("ns:18446744073709551615", &fake, Kind::OutOfRange, &["future"]);
    refused("lsn:6", &fake, Kind::OutOfRange, &["beyond the tip", "lsn:5", "`latest`"]);
    refused("lsn:18446744073709551615", &fake, Kind::OutOfRange, &["beyond the tip"]);
}

#[test]
fn a_wall_clock_set_back_does_not_hide_the_newest_records() {
    let fake = fake();
    let tip = fake.timestamps[5];
    let now = Now { wall: Timestamp(tip - 100), zone: Zone::utc() };
    let at = |ns| resolve(&Point::Instant { at: Timestamp(ns), daily: false }, &fake, &now);
    assert_eq!(at(tip).unwrap().lsn, Lsn(5));
    assert_eq!(at(tip + 1).unwrap_err().kind(), Kind::OutOfRange);
}

#[test]
fn what_is_before_the_horizon_is_refused_and_the_horizon_named() {
    let mut fake = fake();
    let created = format_utc(Timestamp(fake.timestamps[0]));
    refused(
        "-2h",
        &fake,
        Kind::OutOfRange,
        &["2 h 0 m ago", "the volume's beginning", &created, "`start`", "`install`"],
    );
    refused(
        &format!("ns:{}", fake.timestamps[0] - 1),
        &fake,
        Kind::OutOfRange,
        &["before the volume's beginning"],
    );
    refused("-30000w", &fake, Kind::OutOfRange, &["before the volume's beginning"]);

    fake.horizon = 3;
    let horizon = format_utc(Timestamp(fake.timestamps[3]));
    let told = ["before the horizon", horizon.as_str(), "`start`", "`lsn:3`", "`upgrade` (lsn:3, "];
    refused("lsn:2", &fake, Kind::OutOfRange, &told);
    refused("lsn:0", &fake, Kind::OutOfRange, &told);
    refused("-31m", &fake, Kind::OutOfRange, &told);
    refused(&format!("ns:{}", fake.timestamps[3] - 1), &fake, Kind::OutOfRange, &told);
    refused("install", &fake, Kind::OutOfRange, &told);
    refused("before:install", &fake, Kind::OutOfRange, &told);
    refused("before:upgrade", &fake, Kind::OutOfRange, &told);
    assert_eq!(found("upgrade", &fake).lsn, Lsn(3));
    assert_eq!(found("start", &fake).lsn, Lsn(3));
    assert_eq!(found("start", &fake).absolute_name, "lsn:3");
    assert_eq!(found(&format!("ns:{}", fake.timestamps[3]), &fake).lsn, Lsn(3));
}

#[test]
fn unknown_names_list_the_known_ones() {
    let mut fake = fake();
    refused(
        "upgrad",
        &fake,
        Kind::NotFound,
        &["no marker `upgrad`", "`upgrade` (lsn:3, 2026-11-21T12:04:56.789012345Z)"],
    );
    refused("before:upgarde", &fake, Kind::NotFound, &["`upgrade`"]);
    refused("zzz", &fake, Kind::NotFound, &["no name is like it", "`postgres`", "`latest`"]);
    fake.markers.clear();
    refused("upgrade", &fake, Kind::NotFound, &["no name is like it", "`latest`"]);
    fake.application = None;
    refused("latest-app", &fake, Kind::NotFound, &["no application marker", "`latest`"]);
    fake.proven = None;
    refused("latest-proven", &fake, Kind::NotFound, &["proven good", "cdp prove", "`latest`"]);
}

#[test]
fn elapsed_time_goes_by_the_history_and_not_by_the_wall() {
    // The clock was set forward 20 minutes a moment ago: five minutes ago it showed a time 25 minutes back.
    let mut fake = fake();
    assert_eq!(found("-5m", &fake).lsn, Lsn(5));
    fake.stepped = 1_200 * S;
    let before = found("-5m", &fake);
    assert_eq!((before.lsn, before.at), (Lsn(3), Timestamp(NOW - 1_500 * S)));
}

#[test]
fn a_volume_without_records_has_one_state() {
    let mut fake = fake();
    fake.timestamps.truncate(1);
    fake.markers.clear();
    fake.application = None;
    for text in ["start", "latest", "lsn:0", "-30m", "-0s", "2026-11-21T12:00:00Z"] {
        let state = found(text, &fake);
        assert_eq!(state.lsn, Lsn(0), "{text}");
        assert_eq!(found(&state.absolute_name, &fake).lsn, Lsn(0), "{text}");
    }
    refused("lsn:1", &fake, Kind::OutOfRange, &["beyond the tip, lsn:0"]);
}
