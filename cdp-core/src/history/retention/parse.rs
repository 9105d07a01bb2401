//! Policies as people write them: `every-write 24h, hourly 7d, named until removed, at most 200GiB, at cap block`.

use std::fmt;

use super::{AtCap, Keep, Policy, Tier};
use crate::error::{Error, Kind, Result};
use crate::format::codec::Codec;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// Larger before smaller.
const UNITS: [(&str, u64); 5] = [("w", WEEK), ("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND)];
/// Tiers with a word of their own.
const WORDS: [(&str, u64); 4] = [("minutely", MINUTE), ("hourly", HOUR), ("daily", DAY), ("weekly", WEEK)];
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// The most tiers.
const TIERS_MAX: usize = 16;

/// What can be written, for errors and help.
const GRAMMAR: &str = "clauses with commas between them, from: `every-write 24h`, `hourly 7d`, `daily 30d`, \
`every 10m for 2d`, `named until removed`, `at most 200GiB`, `at cap block|thin|drop-oldest`, `codec lz4|zstd|none`";

/// Reads a policy. Clauses that are not there are as in [`Policy::default`].
pub fn parse(text: &str) -> Result<Policy> {
    let mut policy = Policy::default();
    for clause in text.split([',', ';', '\n']).map(str::trim).filter(|clause| !clause.is_empty()) {
        let words: Vec<&str> = clause.split_whitespace().collect();
        let wrong = || {
            Error::new(Kind::Invalid, format!("{clause:?} is no clause of a retention policy")).hint(GRAMMAR)
        };
        match words[..] {
            ["every-write", keep] => policy.every_write = self::keep(keep).ok_or_else(wrong)?,
            ["named", "until", "removed"] => policy.named = Keep::Forever,
            ["named", keep] => policy.named = self::keep(keep).ok_or_else(wrong)?,
            ["at", "most", ref size @ ..] => {
                policy.bytes_max = Some(self::size(&size.concat()).ok_or_else(wrong)?);
            }
            ["at", "cap", "block"] => policy.at_cap = AtCap::Block,
            ["at", "cap", "thin"] => policy.at_cap = AtCap::Thin,
            ["at", "cap", "drop-oldest"] => policy.at_cap = AtCap::DropOldest,
            ["codec", word] => policy.codec = Codec::from_word(word).ok_or_else(wrong)?,
            ["every", every, "for", keep] => {
                let every_ns = span(every).filter(|ns| *ns > 0).ok_or_else(wrong)?;
                policy.tiers.push(Tier { every_ns, keep: self::keep(keep).ok_or_else(wrong)? });
            }
            [word, keep] => {
                let tier = WORDS.iter().find(|(name, _)| *name == word).ok_or_else(wrong)?;
                policy.tiers.push(Tier { every_ns: tier.1, keep: self::keep(keep).ok_or_else(wrong)? });
            }
            _ => return Err(wrong()),
        }
    }
    if policy.tiers.len() > TIERS_MAX {
        return Err(Error::new(Kind::Invalid, format!("a policy has at most {TIERS_MAX} tiers")));
    }
    policy.tiers.sort_by_key(|tier| tier.every_ns);
    if policy.tiers.windows(2).any(|pair| pair[0].every_ns == pair[1].every_ns) {
        return Err(Error::new(Kind::Invalid, "two tiers have intervals of the same length"));
    }
    Ok(policy)
}

fn keep(text: &str) -> Option<Keep> {
    if text == "forever" { Some(Keep::Forever) } else { span(text).map(Keep::For) }
}

/// `1h30m` in nanoseconds.
fn span(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, behind) = behind.split_at(letters);
        let unit_ns = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit_ns)?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(total)
}

/// `200GiB`, `200G` or `200` bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let short = |name: &str| name.strip_suffix("iB").is_some_and(|letter| letter == unit);
    let bytes = match unit {
        "" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit || short(name))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(bytes)
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keep::Forever => f.write_str("forever"),
            Keep::For(ns) => f.write_str(&span_text(*ns)),
        }
    }
}

fn span_text(ns: u64) -> String {
    let mut text = String::new();
    let mut rest = ns;
    for (name, unit_ns) in UNITS {
        if rest >= unit_ns {
            text.push_str(&format!("{}{name}", rest / unit_ns));
            rest %= unit_ns;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn size_text(bytes: u64) -> String {
    let whole = SIZES.iter().find(|(_, unit)| bytes.is_multiple_of(*unit) && bytes >= *unit);
    let (name, unit) = whole.unwrap_or(&("B", 1));
    format!("{}{name}", bytes / unit)
}

impl fmt::Display for Policy {
    /// As [`parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every-write {}", self.every_write)?;
        for tier in &self.tiers {
            match WORDS.iter().find(|(_, ns)| *ns == tier.every_ns) {
                Some((word, _)) => write!(f, ", {word} {}", tier.keep)?,
                None => write!(f, ", every {} for {}", span_text(tier.every_ns), tier.keep)?,
            }
        }
        match self.named {
            Keep::Forever => f.write_str(", named until removed")?,
            keep => write!(f, ", named {keep}")?,
        }
        if let Some(bytes) = self.bytes_max {
            write!(f, ", at most {}", size_text(bytes))?;
        }
        f.write_str(match self.at_cap {
            AtCap::Block => ", at cap block",
            AtCap::Thin => ", at cap thin",
            AtCap::DropOldest => ", at cap drop-oldest",
        })?;
        // Programs that do not know the clause read all other policies.
        match self.codec == Codec::default() {
            true => Ok(()),
            false => write!(f, ", codec {}", self.codec),
        }
    }
}
