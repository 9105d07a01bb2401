//! Export names come from anybody who can connect: no text may take the server down, and what we print must parse.

use proptest::prelude::*;

use super::{NOW, now, now_in};
use crate::history::point::*;
use crate::ids::Timestamp;

/// Pieces of real points, in any order: nearer to the grammar's edges than plain noise.
fn near_points() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "start",
        "latest",
        "-app",
        "lsn:",
        "ns:",
        "before:",
        "+rw",
        ":",
        "-",
        "+",
        " ",
        " ago",
        "today ",
        "yesterday ",
        "T",
        "Z",
        "z",
        ".",
        "0",
        "1",
        "59",
        "60",
        "24",
        "2026",
        "2026-",
        "10-25",
        "-03-29",
        "02:30",
        "10:03",
        "9999",
        "ms",
        "m",
        "h",
        "d",
        "18446744073709551615",
        "upgrade",
        "@",
        "%",
        "é",
        "５",
        "\0",
        "\u{202e}",
    ]);
    prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

fn check(text: &str, zone: &str, wall: u64) -> Result<(), TestCaseError> {
    let now = Now { wall: Timestamp(wall), zone: Zone::named(zone).unwrap() };
    match parse(text, &now) {
        Ok(request) => {
            // One text, one meaning: a name is a marker and nothing else is.
            if request.clone.is_none() {
                let is_marker = matches!(request.point, Point::Marker(_));
                prop_assert_eq!(is_marker, validate_marker_name(text).is_ok());
            }
            // What is printed parses to the same point.
            let printed = parse(&request.point.to_string(), &now).map(|request| request.point);
            match (&request.point, printed) {
                (Point::Instant { at, .. }, Ok(Point::Instant { at: again, .. })) => {
                    prop_assert_eq!(*at, again)
                }
                // A timestamp of the last, partial year.
                (Point::Instant { at, .. }, Err(_)) => prop_assert!(format_utc(*at).starts_with("2554")),
                (point, printed) => prop_assert_eq!(point, &printed.unwrap()),
            }
        }
        Err(error) => {
            prop_assert!(validate_marker_name(text).is_err());
            prop_assert!(error.to_string().chars().all(|c| !c.is_control()), "{:?}", error.to_string());
            prop_assert!(error.to_string().len() < 2_000);
        }
    }
    split_export(text);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_or_means_two_things(text in ".{0,40}", near in near_points(), wall: u64) {
        for zone in ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Pacific/Apia"] {
            check(&text, zone, NOW)?;
            check(&near, zone, NOW)?;
            check(&near, zone, wall)?;
        }
    }

    // From the second day to the last but one: west of Greenwich the first hours are in 1969, east of it the last ones
    // in a year beyond, which cannot be named.
    #[test]
    fn formatted_instants_parse_back_to_the_same_nanosecond(at in 86_400_000_000_000..18_429_120_000_000_000_000_u64) {
        let at = Timestamp(at);
        for zone in ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Africa/Monrovia"] {
            let now = now_in(zone);
            for text in [format_utc(at), format_local(at, &now.zone), format!("ns:{}", at.0)] {
                let Point::Instant { at: again, .. } = parse(&text, &now).unwrap().point else {
                    return Err(TestCaseError::fail(text));
                };
                prop_assert_eq!(at, again, "{}", text);
            }
        }
    }

    #[test]
    fn spans_print_as_they_parse(ms in 0..10_000_000_000_000_u64) {
        let point = Point::Ago(ms * 1_000_000);
        prop_assert_eq!(parse(&point.to_string(), &now()).unwrap().point, point);
    }

    #[test]
    fn an_escaped_name_is_one_path_segment_and_decodes_to_itself(name in ".{0,40}") {
        let escaped = escape_uri(&name);
        prop_assert!(escaped.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~@:%".contains(&byte)));
        let mut bytes = Vec::new();
        let mut rest = escaped.as_bytes();
        while let [first, behind @ ..] = rest {
            match first {
                b'%' => {
                    let hex = std::str::from_utf8(&behind[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &behind[2..];
                }
                byte => {
                    bytes.push(*byte);
                    rest = behind;
                }
            }
        }
        prop_assert_eq!(bytes, name.as_bytes());
    }
}
