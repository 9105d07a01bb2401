//! The night the clocks change: whoever types a time that occurred twice or never must be asked, not guessed at.

use super::{NOW, now_in, refused};
use crate::error::Kind;
use crate::history::point::{Now, Point, Zone, format_duration, format_local, format_utc, parse};
use crate::ids::Timestamp;

const S: u64 = 1_000_000_000;

/// The same rules by name and spelled out, so that the tests hold with any edition of the zone database.
const BERLIN: [&str; 2] = ["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"];
const NEW_YORK: [&str; 2] = ["America/New_York", "EST5EDT,M3.2.0,M11.1.0"];
const LORD_HOWE: [&str; 2] = ["Australia/Lord_Howe", "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0"];

fn instant(text: &str, now: &Now) -> u64 {
    match parse(text, now).unwrap_or_else(|error| panic!("{text:?}: {error}")).point {
        Point::Instant { at, .. } => at.0,
        other => panic!("{text:?} is {other:?}"),
    }
}

#[test]
fn a_time_that_occurred_twice_names_both_instants() {
    let folds = [
        (
            BERLIN,
            "2026-10-25 02:30",
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:30:00+01:00",
            1_792_888_200,
            3600,
        ),
        (
            NEW_YORK,
            "2026-11-01 01:30",
            "2026-11-01T01:30:00-04:00",
            "2026-11-01T01:30:00-05:00",
            1_793_511_000,
            3600,
        ),
        (
            LORD_HOWE,
            "2026-04-05 01:45",
            "2026-04-05T01:45:00+11:00",
            "2026-04-05T01:45:00+10:30",
            1_775_313_900,
            1800,
        ),
    ];
    for (zones, civil, first, second, at, apart) in folds {
        for zone in zones {
            let now = now_in(zone);
            refused(civil, &now, Kind::Invalid, &["twice", &format!("`{first}`"), &format!("`{second}`")]);
            // The copies work, and name the two sides.
            assert_eq!(instant(first, &now), at * S, "{zone}");
            assert_eq!(instant(second, &now), (at + apart) * S, "{zone}");
        }
    }
    // The edges of the hour belong to it as the clocks showed it: 02:00 twice, 03:00 once.
    let now = now_in(BERLIN[0]);
    assert_eq!(instant("2026-10-25 01:59:59.999999999", &now), 1_792_886_400 * S - 1);
    refused("2026-10-25 02:00", &now, Kind::Invalid, &["twice"]);
    refused("2026-10-25 02:59:59.999999999", &now, Kind::Invalid, &["02:59:59.999999999+02:00"]);
    assert_eq!(instant("2026-10-25 03:00", &now), 1_792_893_600 * S);
}

#[test]
fn a_time_that_never_was_names_its_neighbours() {
    let gaps = [
        (
            BERLIN,
            "2026-03-29 02:30",
            ["2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00", "2026-03-29T03:00:00+02:00"],
            [1_774_744_200, 1_774_747_800, 1_774_746_000],
        ),
        (
            NEW_YORK,
            "2026-03-08 02:30",
            ["2026-03-08T01:30:00-05:00", "2026-03-08T03:30:00-04:00", "2026-03-08T03:00:00-04:00"],
            [1_772_951_400, 1_772_955_000, 1_772_953_200],
        ),
        (
            LORD_HOWE,
            "2026-10-04 02:15",
            ["2026-10-04T01:45:00+10:30", "2026-10-04T02:45:00+11:00", "2026-10-04T02:30:00+11:00"],
            [1_791_040_500, 1_791_042_300, 1_791_041_400],
        ),
    ];
    for (zones, civil, texts, seconds) in gaps {
        for zone in zones {
            let now = now_in(zone);
            let told = texts.map(|text| format!("`{text}`"));
            refused(civil, &now, Kind::Invalid, &["never was", &told[0], &told[1], &told[2]]);
            for (text, second) in texts.iter().zip(seconds) {
                assert_eq!(instant(text, &now), second * S, "{zone} {text}");
            }
        }
    }
    let now = now_in(BERLIN[0]);
    assert_eq!(instant("2026-03-29 01:59:59.999999999", &now), 1_774_746_000 * S - 1);
    refused("2026-03-29 02:00", &now, Kind::Invalid, &["never was", "`2026-03-29T03:00:00+02:00`"]);
    assert_eq!(instant("2026-03-29 03:00", &now), 1_774_746_000 * S);
    // Samoa left out a whole day.
    refused(
        "2011-12-30 12:00",
        &now_in("Pacific/Apia"),
        Kind::Invalid,
        &["never was", "2011-12-31T00:00:00+14:00"],
    );
}

#[test]
fn times_of_day_in_the_changed_night_ask_too() {
    // 2026-10-25T04:00:00+01:00, the clocks having been set back an hour ago.
    let now = Now { wall: Timestamp(1_792_897_200 * S), zone: Zone::named(BERLIN[0]).unwrap() };
    refused("02:30", &now, Kind::Invalid, &["twice", "`2026-10-25T02:30:00+02:00`"]);
    refused("today 02:30", &now, Kind::Invalid, &["twice"]);
    assert_eq!(instant("yesterday 02:30", &now), (1_792_888_200 - 86_400) * S);
    // The next day, yesterday's is the one that asks, and the hour still to come says so.
    let now = Now { wall: Timestamp(1_792_969_200 * S), zone: now.zone };
    assert_eq!(format_local(now.wall, &now.zone), "2026-10-26T00:00:00.000000000+01:00");
    refused("yesterday 02:30", &now, Kind::Invalid, &["twice", "`2026-10-25T02:30:00+01:00`"]);
    refused("02:30", &now, Kind::OutOfRange, &["still to come", "clocks were changed"]);
    // A civil yesterday is a day on the calendar, here one of 25 hours.
    assert_eq!(instant("00:00", &now) - instant("yesterday 00:00", &now), 25 * 3600 * S);
}

#[test]
fn a_time_of_today_that_is_still_to_come_names_yesterdays() {
    // 10:03 has passed in Berlin and on Lord Howe (where tomorrow is near), not yet in New York.
    assert_eq!(instant("10:03", &now_in(BERLIN[0])), 1_795_251_780 * S);
    assert_eq!(instant("10:03", &now_in(LORD_HOWE[0])), 1_795_215_780 * S);
    for text in ["10:03", "today 10:03"] {
        refused(
            text,
            &now_in(NEW_YORK[0]),
            Kind::OutOfRange,
            &[
                "2026-11-21T10:03:00-05:00",
                "still to come",
                "`yesterday 10:03`",
                "2026-11-20T10:03:00-05:00",
                "latest",
            ],
        );
    }
    // To the nanosecond: now itself has come.
    let now = now_in("UTC");
    assert_eq!(instant("12:34:56.789012345", &now), NOW);
    refused("12:34:56.789012346", &now, Kind::OutOfRange, &["2026-11-20T12:34:56.789012346Z"]);
}

#[test]
fn the_day_is_that_of_the_zone() {
    // 2026-11-20T23:30Z: Berlin has the 21st already.
    let now = |zone| Now { wall: Timestamp(1_795_217_400 * S), zone: Zone::named(zone).unwrap() };
    assert_eq!(instant("00:15", &now("Europe/Berlin")), 1_795_216_500 * S);
    assert_eq!(instant("00:15", &now("UTC")), (1_795_132_800 + 900) * S);
    assert_eq!(instant("yesterday 00:15", &now("UTC")), (1_795_132_800 + 900 - 86_400) * S);
}

#[test]
fn instants_are_written_as_they_can_be_copied() {
    let at = Timestamp(NOW);
    assert_eq!(format_utc(at), "2026-11-21T12:34:56.789012345Z");
    assert_eq!(format_utc(Timestamp(0)), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(format_utc(Timestamp(u64::MAX)), "2554-07-21T23:34:33.709551615Z");
    assert_eq!(format_local(at, &Zone::utc()), "2026-11-21T12:34:56.789012345Z");
    assert_eq!(format_local(at, &Zone::named(NEW_YORK[1]).unwrap()), "2026-11-21T07:34:56.789012345-05:00");
    assert_eq!(format_local(at, &Zone::named(LORD_HOWE[1]).unwrap()), "2026-11-21T23:34:56.789012345+11:00");
    // RFC 3339 has no seconds in an offset: Monrovia was at -00:44:30 until 1972.
    assert_eq!(
        format_local(Timestamp(S), &Zone::named("Africa/Monrovia").unwrap()),
        "1970-01-01T00:00:01.000000000Z"
    );
}

#[test]
fn an_unknown_zone_is_an_error_and_not_utc() {
    let error = Zone::named("Europe/Berlim").unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("Europe/Berlin"), "{error}");
}

#[test]
fn durations_are_readable_and_never_longer_than_they_are() {
    let cases = [
        (0, "0 s"),
        (999, "999 ns"),
        (12_345, "12 µs"),
        (350_999_999, "350 ms"),
        (2_399_999_999, "2.3 s"),
        (59_999_999_999, "59.9 s"),
        (65 * S, "1 m 5 s"),
        (3_900 * S, "1 h 5 m"),
        (100 * 3_600 * S, "4 d 4 h"),
    ];
    for (ns, text) in cases {
        assert_eq!(format_duration(ns), text);
    }
    assert_eq!(format_duration(u64::MAX), "213503 d 23 h");
}

/// A misspelt `TZ` that read as UTC would shift every civil time in silence. The environment belongs to a process,
/// so this test runs itself as a child.
#[test]
fn the_machines_zone_is_known_or_an_error() {
    const CHILD: &str = "CDP_TEST_PRINTS_ITS_ZONE";
    if std::env::var_os(CHILD).is_some() {
        match Zone::system() {
            Ok(zone) => println!("[{}]", format_local(Timestamp(NOW), &zone)),
            Err(error) => println!("[{:?}: {error}]", error.kind()),
        }
        return;
    }
    let cases = [
        ("Europe/Berlin", "[2026-11-21T13:34:56.789012345+01:00]"),
        (NEW_YORK[1], "[2026-11-21T07:34:56.789012345-05:00]"),
        ("", "[2026-11-21T12:34:56.789012345Z]"),
        ("Europe/Berlim", "[Invalid: the time zone TZ=\"Europe/Berlim\" is not known"),
    ];
    for (tz, printed) in cases {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "history::point::tests::clocks::the_machines_zone_is_known_or_an_error",
            ])
            .env("TZ", tz)
            .env(CHILD, "1")
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&child.stdout);
        assert!(stdout.contains(printed), "TZ={tz:?} should print {printed}: {stdout}");
    }
}
