//! Lengths of time: `1h30m` as people type it, and durations as people read them.

use super::parse::Form;
use crate::error::{Kind, Result};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// Larger before smaller.
const UNITS: [(&str, u64); 6] =
    [("w", WEEK), ("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MS)];

/// The span in nanoseconds.
pub(super) fn parse(span: &str, form: &Form<'_>) -> Result<u64> {
    if span.is_empty() {
        return Err(form.wrong("the duration is missing"));
    }
    let mut rest = span;
    let mut total_ns: u64 = 0;
    let mut units_left = &UNITS[..];
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, behind) = behind.split_at(letters);
        if number.is_empty() {
            return Err(form.wrong(&format!("a number is expected at {rest:?}")));
        }
        if unit.is_empty() {
            return Err(form.wrong(&format!("{number} needs a unit: ms, s, m, h, d or w")));
        }
        if !UNITS.iter().any(|(name, _)| *name == unit) {
            return Err(form.wrong(&format!("the unit {unit:?} is not one of ms, s, m, h, d, w")));
        }
        let Some(place) = units_left.iter().position(|(name, _)| *name == unit) else {
            return Err(form.wrong("each unit stands once, larger before smaller, as in -1h30m"));
        };
        let unit_ns = units_left[place].1;
        units_left = &units_left[place + 1..];
        total_ns = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit_ns))
            .and_then(|part_ns| total_ns.checked_add(part_ns))
            .ok_or_else(|| form.failed(Kind::OutOfRange, "that is longer than any history"))?;
        rest = behind;
    }
    Ok(total_ns)
}

/// The span as the grammar has it; below a millisecond it is cut.
pub(super) fn text(elapsed_ns: u64) -> String {
    let mut text = String::new();
    let mut rest_ns = elapsed_ns;
    for (name, unit_ns) in &UNITS[1..] {
        if rest_ns >= *unit_ns {
            text.push_str(&format!("{}{name}", rest_ns / unit_ns));
            rest_ns %= unit_ns;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A duration for people, cut (never rounded up) to what matters: `350 ns`, `12 µs`, `2.3 s`, `1 m 5 s`, `1 h 5 m`,
/// `3 d 4 h`.
pub fn format_duration(duration_ns: u64) -> String {
    match duration_ns {
        0 => "0 s".to_owned(),
        ns if ns < 1_000 => format!("{ns} ns"),
        ns if ns < MS => format!("{} µs", ns / 1_000),
        ns if ns < SECOND => format!("{} ms", ns / MS),
        ns if ns < MINUTE => format!("{}.{} s", ns / SECOND, ns % SECOND / (SECOND / 10)),
        ns if ns < HOUR => format!("{} m {} s", ns / MINUTE, ns % MINUTE / SECOND),
        ns if ns < DAY => format!("{} h {} m", ns / HOUR, ns % HOUR / MINUTE),
        ns => format!("{} d {} h", ns / DAY, ns % DAY / HOUR),
    }
}
