//! Names of volumes and markers: what is legal, what is near, and how a name is written in a URI.

use crate::error::{Error, Kind, Result};
use crate::limits::NAME_BYTES_MAX;

/// Between the volume and the point in an export name.
const POINT_SEPARATOR: char = '@';

/// Between the point that is exported and the one since which changes are shown.
pub const SINCE: &str = "+since:";

/// Characters with a meaning in export names, URIs or paths.
const SPECIAL: [char; 5] = ['@', '?', '#', '%', '/'];

/// Words that a person may take for a time, and the keywords.
const RESERVED: [&str; 10] = [
    "start",
    "latest",
    "latest-app",
    "latest-proven",
    "now",
    "today",
    "yesterday",
    "tomorrow",
    "midnight",
    "noon",
];

/// Unit words that make digits before them a duration or a time of day, whether or not the grammar knows them.
const UNIT_WORDS: [&str; 36] = [
    "ns", "us", "µs", "ms", "s", "sec", "secs", "second", "seconds", "m", "min", "mins", "minute", "minutes",
    "h", "hr", "hrs", "hour", "hours", "d", "day", "days", "w", "week", "weeks", "mo", "month", "months",
    "y", "yr", "year", "years", "am", "pm", "z", "uhr",
];

/// Shorter texts are contained in too many names to mean anything.
const CONTAINED_CHARS_MIN: usize = 3;

/// How a refused text is quoted at most, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// Whether a volume (or a group) may have this name: 1 to [`NAME_BYTES_MAX`] bytes without `@ ? # % /`, control or
/// invisible characters, spaces at the ends, or a leading `-` or `.`. The error is of [`Kind::Invalid`].
pub fn validate_volume_name(name: &str) -> Result<()> {
    check(name, "volume")
}

/// Whether a marker may have this name: what a volume's name may be, without `:`, `+rw`, a leading `+`, and
/// nothing that is, or looks like, another form of point. The error is of [`Kind::Invalid`].
pub fn validate_marker_name(name: &str) -> Result<()> {
    check(name, "marker")?;
    let refuse = |why: &str| Err(not_a_name(name, "marker", why));
    if name.contains(':') {
        return refuse("`:` belongs to forms like lsn:42, before:NAME and 10:03");
    }
    if name.starts_with('+') || name.contains("+rw") {
        return refuse("`+rw` at the end of a point asks for a writable clone");
    }
    match resembles(name) {
        None => Ok(()),
        Some(Resembles::Keyword) => refuse("that is a word of the point syntax"),
        Some(_) => refuse("it looks like a time or a number; begin with a letter, for example `v-…`"),
    }
}

fn check(name: &str, what: &str) -> Result<()> {
    let refuse = |why: &str| Err(not_a_name(name, what, why));
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse(&format!("it has {} bytes, {NAME_BYTES_MAX} are allowed", name.len()));
    }
    if name.starts_with(['-', '.']) {
        return refuse("it begins with `-` or `.`");
    }
    if name.starts_with(' ') || name.ends_with(' ') {
        return refuse("it begins or ends with a space");
    }
    match name.chars().find(|&c| SPECIAL.contains(&c) || is_unprintable(c)) {
        Some(c) => refuse(&format!("{c:?} is not allowed in it")),
        None => Ok(()),
    }
}

fn not_a_name(name: &str, what: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("{} cannot be the name of a {what}: {why}", quote(name)))
}

/// Control characters, white space other than a plain space, and what changes the look of its neighbours without
/// being seen: two names that look the same must be the same.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The other form of point that a text looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resembles {
    /// A word of the syntax, or one that many would take for one.
    Keyword,
    /// `today …`, `yesterday …`, `… ago`.
    Phrase,
    /// Digits and the punctuation of dates, times and numbers, or a date and more.
    Digits,
    /// Digits with unit words behind them.
    Duration,
}

/// Wider than the grammar on purpose: `1d`, `10am` or `２０２６-11-21` must not become a marker by a slip.
pub(super) fn resembles(text: &str) -> Option<Resembles> {
    let shape: String =
        text.chars().map(|c| if c.is_numeric() { '0' } else { c }).flat_map(char::to_lowercase).collect();
    if RESERVED.contains(&shape.as_str()) {
        return Some(Resembles::Keyword);
    }
    let first_word = shape.split(' ').next().unwrap_or_default();
    if matches!(first_word, "today" | "yesterday" | "tomorrow") || shape.ends_with(" ago") {
        return Some(Resembles::Phrase);
    }
    if !shape.starts_with('0') {
        return None;
    }
    let behind_date = shape.strip_prefix("0000-00-00");
    if shape.chars().all(|c| "0:-+.,tz ".contains(c))
        || behind_date.is_some_and(|rest| rest.is_empty() || rest.starts_with(['t', ' ']))
    {
        return Some(Resembles::Digits);
    }
    let is_duration = shape
        .split('0')
        .map(|word| word.trim_matches([' ', '.', ',']))
        .all(|word| word.is_empty() || UNIT_WORDS.contains(&word));
    is_duration.then_some(Resembles::Duration)
}

/// An export name cut at its first `@`: the volume, and the text of the point if there is one. An export name that
/// arrives over NBD is not escaped.
pub fn split_export(name: &str) -> (&str, Option<&str>) {
    match name.split_once(POINT_SEPARATOR) {
        Some((volume, point)) => (volume, Some(point)),
        None => (name, None),
    }
}

/// The text of a point with what stands behind [`SINCE`], if that is in it: `disk@POINT+since:POINT` is the first point
/// with the changes since the second. No marker's name holds a colon, so there is one way to read it.
pub fn split_since(point: &str) -> (&str, Option<&str>) {
    match point.split_once(SINCE) {
        Some((point, since)) => (point, Some(since)),
        None => (point, None),
    }
}

/// The name as it stands in the path of an NBD URI: everything but letters, digits and `- . _ ~ @ :` is
/// percent-encoded.
pub fn escape_uri(name: &str) -> String {
    use std::fmt::Write;
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' | b':' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("a String takes all"),
        }
    }
    escaped
}

/// The at most `count_max` names nearest to what was typed, nearest first, by the number of characters to change;
/// to contain it, or to be contained in it, counts as one. What shares too little with it is left out.
pub fn closest_names<'a>(
    typed: &str,
    names: impl IntoIterator<Item = &'a str>,
    count_max: usize,
) -> Vec<&'a str> {
    let typed = typed.to_lowercase();
    let typed_chars: Vec<char> = typed.chars().take(NAME_BYTES_MAX).collect();
    let mut ranked: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let chars: Vec<char> = lower.chars().take(NAME_BYTES_MAX).collect();
            let changes = distance(&typed_chars, &chars);
            let shorter = typed_chars.len().min(chars.len());
            let longer = typed_chars.len().max(chars.len());
            if shorter >= CONTAINED_CHARS_MIN && (lower.contains(&typed) || typed.contains(&lower)) {
                return Some((changes.min(1), name));
            }
            (changes * 2 <= longer).then_some((changes, name))
        })
        .collect();
    ranked.sort();
    ranked.truncate(count_max);
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// Insertions, deletions and replacements that turn one into the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The text in quotes, escaped and cut to what an error message can carry.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
