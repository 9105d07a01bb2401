//! A name that is also a time would send somebody to the wrong state, or to none.

use super::{now, now_in};
use crate::error::Kind;
use crate::history::point::*;
use crate::limits::NAME_BYTES_MAX;

#[test]
fn volume_names_stay_clear_of_exports_uris_and_paths() {
    for name in [
        "disk",
        "vm-101",
        "Größe 2",
        "a.b",
        "5",
        "10am",
        "latest",
        "a+b",
        "c:d",
        "_x",
        &"x".repeat(NAME_BYTES_MAX),
    ] {
        validate_volume_name(name).unwrap();
    }
    let bad = [
        "",
        "a@b",
        "a?b",
        "a#b",
        "a%b",
        "a/b",
        "a\nb",
        "a\0b",
        "a\u{7f}b",
        "-a",
        ".a",
        "..",
        " a",
        "a ",
        "a\tb",
        "a\u{a0}b",
        "a\u{200b}b",
        "a\u{202e}b",
        "\u{feff}a",
        &"x".repeat(NAME_BYTES_MAX + 1),
        &"ä".repeat(NAME_BYTES_MAX / 2 + 1),
    ];
    for name in bad {
        let error = validate_volume_name(name).expect_err(name);
        assert_eq!(error.kind(), Kind::Invalid, "{name:?}");
        assert_eq!(validate_marker_name(name).expect_err(name).kind(), Kind::Invalid, "{name:?}");
    }
}

#[test]
fn marker_names_look_like_no_other_point() {
    let good = [
        "upgrade",
        "before upgrade",
        "v5.15",
        "2026-11-21-nightly",
        "2026-11-21_x",
        "1st",
        "3f2a9c1e",
        "a+b",
        "x+RW",
        "latest-good",
        "lsn",
        "ago",
        "monday",
        "startup",
        "today's",
        "nightly 10h",
        "10k rows",
        "5mx",
    ];
    for name in good {
        validate_marker_name(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(parse(name, &now()).unwrap().point, Point::Marker(name.into()));
        assert_eq!(parse(&format!("before:{name}"), &now()).unwrap().point, Point::Before(name.into()));
    }
    let bad = [
        "start",
        "Latest",
        "latest-app",
        "latest-proven",
        "now",
        "midnight",
        "yesterday",
        "lsn:1",
        "ns:x",
        "before:x",
        "a:b",
        "10:03",
        "1d",
        "5m",
        "5 min",
        "10am",
        "10 PM",
        "1.5h",
        "42",
        "5.15",
        "2026-11-21",
        "2026-11-21T",
        "2026-11-21 x",
        "20261121",
        "90s ago",
        "long ago",
        "yesterday evening",
        "x+rw",
        "+5m",
        "+rw",
        "1h30m",
        "５m",
        "²",
        "10 Uhr",
    ];
    for name in bad {
        validate_marker_name(name).expect_err(name);
        let request = parse(name, &now());
        assert!(
            !matches!(request, Ok(PointRequest { point: Point::Marker(_), clone: None })),
            "{name:?}: {request:?}"
        );
    }
}

#[test]
fn an_export_is_cut_at_its_first_at_sign() {
    assert_eq!(split_export("disk"), ("disk", None));
    assert_eq!(split_export(""), ("", None));
    assert_eq!(split_export("disk@-5m"), ("disk", Some("-5m")));
    assert_eq!(split_export("disk@"), ("disk", Some("")));
    assert_eq!(split_export("@start"), ("", Some("start")));
    assert_eq!(split_export("disk@a@b"), ("disk", Some("a@b")));
}

#[test]
fn a_uri_path_carries_any_name() {
    assert_eq!(escape_uri("disk@2026-11-21T10:00:00+01:00"), "disk@2026-11-21T10:00:00%2B01:00");
    assert_eq!(escape_uri("disk@before:große Sache+rw"), "disk@before:gro%C3%9Fe%20Sache%2Brw");
    assert_eq!(escape_uri("a?b#c%d/e,f&g"), "a%3Fb%23c%25d%2Fe%2Cf%26g");
    assert_eq!(escape_uri("a-b.c_d~e"), "a-b.c_d~e");
}

#[test]
fn the_nearest_names_come_first_and_strangers_not_at_all() {
    let names = ["upgrade", "Upgrade-2", "upgarde", "nightly", "x"];
    assert_eq!(closest_names("upgrade", names, 9), ["upgrade", "Upgrade-2", "upgarde"]);
    assert_eq!(closest_names("upgrad", names, 9), ["Upgrade-2", "upgrade", "upgarde"]);
    assert_eq!(closest_names("nihgtly", names, 9), ["nightly"]);
    assert_eq!(closest_names("UPGRADE", names, 1), ["upgrade"]);
    assert_eq!(closest_names("night", names, 9), ["nightly"]);
    assert!(closest_names("database", names, 9).is_empty());
    assert!(closest_names("a", names, 9).is_empty());
}

#[test]
fn a_point_prints_as_a_text_that_means_the_same() {
    for text in [
        "start",
        "latest",
        "latest-app",
        "latest-proven",
        "lsn:42",
        "2026-11-21T10:00:00.000000001Z",
        "-1h30m",
        "-0s",
        "-500ms",
        "upgrade",
        "before:upgrade",
    ] {
        assert_eq!(parse(text, &now()).unwrap().point.to_string(), text);
    }
    // Civil times print as what they meant.
    assert_eq!(parse("10:03", &now_in("UTC")).unwrap().point.to_string(), "2026-11-21T10:03:00.000000000Z");
}
