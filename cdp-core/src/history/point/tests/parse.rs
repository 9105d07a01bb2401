//! Somebody restores to the wrong instant if a form is read loosely: each form, and the texts beside it.

use super::{NOW, now, refused};
use crate::error::Kind;
use crate::history::point::{CloneRequest, Point, parse};
use crate::ids::{Lsn, Timestamp};

const S: u64 = 1_000_000_000;

fn instant(at: u64) -> Point {
    Point::Instant { at: Timestamp(at), daily: false }
}

fn daily(at: u64) -> Point {
    Point::Instant { at: Timestamp(at), daily: true }
}

#[test]
fn every_form_means_what_the_grammar_says() {
    let cases = [
        ("start", Point::Start),
        ("latest", Point::Latest),
        ("latest-app", Point::LatestApplication),
        ("latest-proven", Point::LatestProven),
        ("lsn:0", Point::Lsn(Lsn(0))),
        ("lsn:42", Point::Lsn(Lsn(42))),
        ("lsn:18446744073709551615", Point::Lsn(Lsn::MAX)),
        ("ns:0", instant(0)),
        ("ns:1763719200000000000", instant(1_763_719_200_000_000_000)),
        ("upgrade", Point::Marker("upgrade".into())),
        ("before upgrade", Point::Marker("before upgrade".into())),
        ("2026-11-21-nightly", Point::Marker("2026-11-21-nightly".into())),
        ("3f2a9c1e-77aa", Point::Marker("3f2a9c1e-77aa".into())),
        ("größer", Point::Marker("größer".into())),
        ("before:upgrade", Point::Before("upgrade".into())),
        ("before:größer", Point::Before("größer".into())),
        // Instants.
        ("2026-11-21T10:00:00Z", instant(1_795_255_200 * S)),
        ("2026-11-21t10:00:00z", instant(1_795_255_200 * S)),
        ("2026-11-21 10:00:00Z", instant(1_795_255_200 * S)),
        ("2026-11-21T10:00Z", instant(1_795_255_200 * S)),
        ("2026-11-21T10:00:00.5Z", instant(1_795_255_200 * S + S / 2)),
        ("2026-11-21T10:00:00.123456789Z", instant(1_795_255_200 * S + 123_456_789)),
        ("2026-11-21T10:00:00.000000001Z", instant(1_795_255_200 * S + 1)),
        ("2026-11-21T11:00:00+01:00", instant(1_795_255_200 * S)),
        ("2026-11-21T04:30:00-05:30", instant(1_795_255_200 * S)),
        ("2026-11-21T10:00:00-00:00", instant(1_795_255_200 * S)),
        ("1970-01-01T00:00:00Z", instant(0)),
        ("2553-12-31T23:59:59Z", instant(18_429_292_799 * S)),
        // Civil times, in Berlin: winter and summer.
        ("2026-11-21 10:03", instant(1_795_251_780 * S)),
        ("2026-11-21T10:03:05", instant(1_795_251_785 * S)),
        ("2026-11-21T10:03:05.000000001", instant(1_795_251_785 * S + 1)),
        ("2026-07-01 10:03", instant(1_782_892_980 * S)),
        // Times of day.
        ("10:03", daily(1_795_251_780 * S)),
        ("10:03:05", daily(1_795_251_785 * S)),
        ("10:03:05.25", daily(1_795_251_785 * S + S / 4)),
        ("00:00", daily(1_795_215_600 * S)),
        ("today 10:03", daily(1_795_251_780 * S)),
        ("yesterday 10:03", daily((1_795_251_780 - 86_400) * S)),
        ("yesterday 23:59:59.999999999", daily(1_795_215_600 * S - 1)),
        ("13:34:56.789012345", daily(NOW)),
        // Elapsed time.
        ("-5m", Point::Ago(300 * S)),
        ("-1h30m", Point::Ago(5_400 * S)),
        ("-90s", Point::Ago(90 * S)),
        ("-90m", Point::Ago(5_400 * S)),
        ("-500ms", Point::Ago(S / 2)),
        ("-2d", Point::Ago(172_800 * S)),
        ("-1w2d3h4m5s6ms", Point::Ago(788_645 * S + 6_000_000)),
        ("-0s", Point::Ago(0)),
        ("-007s", Point::Ago(7 * S)),
        ("90s ago", Point::Ago(90 * S)),
        ("1h30m ago", Point::Ago(5_400 * S)),
    ];
    for (text, point) in cases {
        let request = parse(text, &now()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(request.point, point, "{text:?}");
        assert_eq!(request.clone, None, "{text:?}");
    }
}

#[test]
fn a_clone_request_ends_every_form() {
    for text in ["start", "latest", "-5m", "10:03", "lsn:42", "2026-11-21T11:00:00+01:00", "before:upgrade"] {
        let bare = parse(text, &now()).unwrap();
        let private = parse(&format!("{text}+rw"), &now()).unwrap();
        assert_eq!(
            (private.point, private.clone),
            (bare.point.clone(), Some(CloneRequest::Private)),
            "{text}"
        );
        let shared = parse(&format!("{text}+rw:try-2"), &now()).unwrap();
        assert_eq!(
            (shared.point, shared.clone),
            (bare.point, Some(CloneRequest::Shared("try-2".into()))),
            "{text}"
        );
    }
    refused("+rw", &now(), Kind::Invalid, &["latest+rw"]);
    refused("+rw:x", &now(), Kind::Invalid, &["latest+rw"]);
    refused("latest+rw:", &now(), Kind::Invalid, &["empty"]);
    refused("latest+rw:a/b", &now(), Kind::Invalid, &["'/'"]);
    refused("latest+rwx", &now(), Kind::Invalid, &["+rw:NAME"]);
    refused("latest+rw+rw", &now(), Kind::Invalid, &["+rw:NAME"]);
    refused("-5m +rw", &now(), Kind::Invalid, &["white space"]);
}

#[test]
fn what_is_not_exactly_a_form_is_refused_with_what_was_understood() {
    let invalid: &[(&str, &[&str])] = &[
        ("", &["empty", "-5m", "2026-11-21T10:00:00Z"]),
        (" ", &["white space"]),
        ("-", &["elapsed time", "missing"]),
        ("+", &[]),
        ("+5m", &[]),
        ("@", &[]),
        ("%2D5m", &["'%'"]),
        ("\0", &[]),
        (" latest", &["white space"]),
        ("latest ", &["white space"]),
        ("-5m\n", &["white space"]),
        ("Latest", &["`latest`"]),
        ("START", &["`start`"]),
        ("now", &["`latest`"]),
        ("midnight", &["`today 00:00`"]),
        ("Noon", &["12:00"]),
        ("tomorrow", &["still to come"]),
        ("today", &["`today 10:03`"]),
        ("yesterday", &["`yesterday 10:03`"]),
        ("tomorrow 10:03", &["yesterday 10:03"]),
        ("yesterday  10:03", &["a time of yesterday", "hour"]),
        ("Yesterday 10:03", &[]),
        // Spans.
        ("1d", &["`-1d`", "`1d ago`"]),
        ("5m", &["`-5m`"]),
        ("5 min", &["`-5min`"]),
        ("10am", &["time of day"]),
        ("5", &["lsn:5", "ns:5"]),
        ("-5", &["needs a unit"]),
        ("-m", &["number"]),
        ("-5min", &["\"min\"", "m, h, d"]),
        ("-5M", &["\"M\""]),
        ("-5 m", &[]),
        ("- 5m", &["number"]),
        ("--5m", &["number"]),
        ("-+5m", &["number"]),
        ("-1.5h", &[]),
        ("-30m1h", &["larger before smaller"]),
        ("-1h1h", &["each unit stands once"]),
        ("-1us", &["\"us\""]),
        ("-5m ago", &["elapsed time"]),
        (" ago", &["white space"]),
        ("5 min ago", &["elapsed time"]),
        ("90s  ago", &["elapsed time"]),
        ("90s Ago", &[]),
        ("long ago", &["elapsed time", "number"]),
        ("-５m", &["number"]),
        ("５m", &["-５m"]),
        // Numbers.
        ("lsn:", &["an LSN", "digits"]),
        ("lsn:-1", &["an LSN", "digits"]),
        ("lsn:+1", &["digits"]),
        ("lsn: 1", &["digits"]),
        ("lsn:0x10", &["digits"]),
        ("lsn:４２", &["digits"]),
        ("LSN:42", &["`:`"]),
        ("lns:42", &["`:`"]),
        ("ns:-1", &["Unix nanoseconds", "digits"]),
        ("ns:+1", &["digits"]),
        ("ns:1.5", &["digits"]),
        ("before:", &["empty", "before:upgrade"]),
        ("before:latest", &["before:upgrade"]),
        ("before:before:x", &["before:upgrade"]),
        ("before:-5m", &["before:upgrade"]),
        // Dates and times.
        ("2026-11-21", &["a date and time", "the time is missing", "`2026-11-21 10:03`"]),
        ("2026-11-21T10", &["hour and minute"]),
        ("2026-11-21  10:03", &["hour"]),
        ("2026-11-21T10:03:05 Z", &["\" Z\""]),
        ("2026-11-21T10:00:00+0100", &["offset"]),
        ("2026-11-21T10:00:00+24:00", &["24:00 is no offset"]),
        ("2026-11-21T10:00:00Z[UTC]", &["\"[UTC]\""]),
        ("2026-11-21T10:00:00.Z", &["1 to 9"]),
        ("2026-11-21T10:00:00.1234567890Z", &["1 to 9"]),
    ];
    for &(text, told) in invalid {
        refused(text, &now(), Kind::Invalid, told);
    }
    let more: &[(&str, &[&str])] = &[
        ("2026-13-21 10:03", &["no day 2026-13-21"]),
        ("2026-02-29 10:03", &["no day 2026-02-29"]),
        ("2026-00-01 10:03", &["no day"]),
        ("2026-1-21 10:03", &["month needs 2 digits"]),
        ("2026-11-21T24:00:00Z", &["no clock shows 24:00"]),
        ("2026-11-21T23:60:00Z", &["no clock shows"]),
        ("2026-11-21T23:59:60Z", &["leap second"]),
        ("21.11.2026 10:03", &[]),
        ("21.11.2026", &["looks like a time"]),
        ("2026/11/21", &[]),
        ("20261121T100000Z", &["looks like a time"]),
        ("２０２６-11-21 10:03", &[]),
        ("9:03", &["a time of day", "hour needs 2 digits"]),
        ("10:3", &["minute needs 2 digits"]),
        ("10:03 pm", &["\" pm\""]),
        ("10:03Z", &["\"Z\""]),
        ("10:03,5", &["\",5\""]),
        ("24:00", &["no clock shows"]),
        ("10:03.5x", &["\"x\""]),
        ("١٠:٠٣", &[]),
    ];
    for &(text, told) in more {
        refused(text, &now(), Kind::Invalid, told);
    }
    let beyond: &[(&str, &[&str])] = &[
        ("lsn:99999999999999999999", &["an LSN", "18446744073709551615"]),
        ("lsn:18446744073709551616", &["an LSN"]),
        ("ns:99999999999999999999", &["Unix nanoseconds"]),
        ("-99999999999999999999s", &["longer than any history"]),
        ("-30500w30500d", &["longer than any history"]),
        ("1969-12-31T23:59:59Z", &["1970"]),
        ("1970-01-01T00:00:00+01:00", &["before 1970", "`start`"]),
        ("9999-12-31T23:59:59Z", &["1970 to 2553"]),
    ];
    for &(text, told) in beyond {
        refused(text, &now(), Kind::OutOfRange, told);
    }
    refused(&"x".repeat(100_000), &now(), Kind::Invalid, &["512 bytes", "100000"]);
    refused(&"x".repeat(201), &now(), Kind::Invalid, &["200 are allowed"]);
}

#[test]
fn a_refused_text_comes_back_escaped_and_cut() {
    let error = parse(&format!("\u{1b}[31m{}", "é".repeat(200)), &now()).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
    assert!(error.chars().filter(|&c| c == 'é').count() < 200, "{error}");
}

#[test]
fn only_what_may_mean_another_state_later_is_relative() {
    for text in [
        "start",
        "latest",
        "latest-app",
        "latest-proven",
        "-5m",
        "90s ago",
        "10:03",
        "today 10:03",
        "yesterday 10:03",
    ] {
        assert!(parse(text, &now()).unwrap().point.is_relative(), "{text}");
    }
    for text in ["lsn:1", "ns:1", "upgrade", "before:upgrade", "2026-11-21T10:00:00Z", "2026-11-21 10:03"] {
        assert!(!parse(text, &now()).unwrap().point.is_relative(), "{text}");
    }
}
