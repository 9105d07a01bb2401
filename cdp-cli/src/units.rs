//! Sizes and lengths of time, as people type and read them.

use cdp_core::error::{Error, Kind, Result};

const SIZE_UNITS: [(&str, u64); 5] =
    [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40), ("P", 1 << 50)];
const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1_000_000), ("s", NS), ("m", 60 * NS), ("h", 3600 * NS), ("d", 86_400 * NS)];
const NS: u64 = 1_000_000_000;

/// `10G`, `512MiB`, `4096`: bytes. Units are powers of 1024, with or without `iB`; a fraction is allowed before a
/// unit if it comes out as whole bytes. The error is of [`Kind::Invalid`].
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        Error::new(Kind::Invalid, format!("{text:?} is not a size"))
            .hint("give bytes, or a number with K, M, G or T behind it: 512M, 10G, 1.5T")
    };
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_uppercase();
    let letter = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let factor = match letter {
        "" => 1,
        letter => SIZE_UNITS.iter().find(|(name, _)| *name == letter).ok_or_else(wrong)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 6 || fraction.contains('.') || number.ends_with('.') {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let scale = 10u64.pow(fraction.len() as u32);
    let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong())? };
    let part = u128::from(part) * u128::from(factor);
    let bytes = u128::from(whole) * u128::from(factor) + part / u128::from(scale);
    if !part.is_multiple_of(u128::from(scale)) {
        return Err(wrong());
    }
    u64::try_from(bytes).map_err(|_| wrong())
}

/// Bytes for people: `1 GiB`, `1.5 MiB`, `512 B`.
pub fn size(bytes: u64) -> String {
    let Some((name, factor)) = SIZE_UNITS.iter().rev().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    let tenths = (u128::from(bytes) * 10 + u128::from(*factor) / 2) / u128::from(*factor);
    match tenths % 10 {
        0 => format!("{} {name}iB", tenths / 10),
        tenth => format!("{}.{tenth} {name}iB", tenths / 10),
    }
}

/// `500ms`, `30s`, `5m`, `2h`, `1d`: nanoseconds. The error is of [`Kind::Invalid`].
pub fn parse_duration(text: &str) -> Result<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = TIME_UNITS.iter().find(|(name, _)| *name == unit);
    let parsed = number.parse::<u64>().ok().zip(unit).and_then(|(number, (_, ns))| number.checked_mul(*ns));
    parsed.ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{text:?} is not a length of time"))
            .hint("give a number with a unit: 500ms, 30s, 5m, 2h, 1d")
    })
}

/// Nanoseconds for people, three digits at most: `81 µs`, `1.2 ms`, `12 s`.
pub fn latency(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A word as a shell takes it, for lines to copy.
pub fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "@%+=:,./_-".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A size that is read wrong makes a disk that is too small to restore to, or a cap that stops the writers.
    #[test]
    fn sizes_are_read_exactly_or_refused() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("512m", 512 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GB", 10 << 30),
            ("1.5T", 3 << 39),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1X", "1.G", ".5G", "1.3", "99999999999T", "1e9", "0x10", "1..5G"] {
            assert_eq!(parse_size(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        for bytes in [1, 1024, 1536, 1 << 20, 10 << 30, 3 << 39] {
            assert_eq!(parse_size(&size(bytes)).unwrap(), bytes, "{}", size(bytes));
        }
        assert_eq!(parse_duration("30s").unwrap(), 30 * NS);
        assert!(parse_duration("30").is_err() && parse_duration("s").is_err());
    }
}
