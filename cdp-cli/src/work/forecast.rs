//! When a journal reaches its cap at the rate of its last hour, or of its life if that is shorter, and what happens then.

use cdp_core::error::Result;
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::history::retention::AtCap;
use cdp_core::ids::Timestamp;
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

use crate::units::size;

/// The rate is taken over at most so long a time before now, in nanoseconds.
const RATE_NS: u64 = 3600 * 1_000_000_000;
/// And over at least so long a one, in nanoseconds: of a volume that was made just now nothing is known.
const RATE_NS_MIN: u64 = 1_000_000;
/// Somebody is warned so long before, in hours.
const WARN_HOURS: f64 = 24.0;
/// A rate tells no further ahead than so many times the time that it was taken over: thirty seconds of a new volume say
/// nothing of tomorrow.
const FORESIGHT: f64 = 24.0;
/// A rate that was taken over a shorter time is a burst, in nanoseconds: what a new disk is filled with says nothing of
/// the hours behind it. Somebody hears of it where little is left.
const BURST_NS: u64 = 600 * 1_000_000_000;
/// Little: one part in so many of the cap.
const LITTLE_PARTS: u64 = 2;
/// Where writes will be refused it is a reason to act so long before, in hours.
const ACT_HOURS: f64 = 1.0;
/// Beyond that nothing is said, in hours: a year; of a burst, [`FORESIGHT`] times its own length.
const TELL_HOURS: f64 = 24.0 * 365.0;

/// What becomes of a journal that grows on as it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// What happens at the cap: `block`, `thin` or `drop-oldest`.
    pub at_cap: String,
    /// How fast it grows, in bytes a second.
    pub bytes_per_s: f64,
    /// Hours until it is at its cap at that rate; 0: it is.
    pub hours: Option<f64>,
    /// It comes within a day, as far as its rate can tell.
    pub is_soon: bool,
    /// Within a day, and why somebody might not want that.
    pub warning: Option<String>,
    /// Writes are refused, or about to be: somebody should act.
    pub alarm: Option<String>,
    /// In words, if it is within a year.
    pub words: Option<String>,
}

impl Forecast {
    /// In words, if it is soon.
    pub fn soon(&self) -> Option<String> {
        self.words.clone().filter(|_| self.is_soon)
    }
}

/// What becomes of the journal of this volume.
pub fn of(volume: &Volume, now: Timestamp) -> Result<Forecast> {
    let cap_bytes = volume.journal_cap_bytes()?;
    let segment_bytes = volume.identity().segment_bytes;
    let policy = volume.retention();
    // History is thinned, or goes, a little ahead.
    let ahead = volume.journal_reserve_bytes()?;
    // A whole segment is taken at a time: what is left of the open one still counts as room.
    let left = cap_bytes.saturating_sub(volume.journal_bytes()) / segment_bytes * segment_bytes
        + volume.journal_room_bytes();
    let bytes_per_s = rate(volume, now);
    let is_refusing = volume.refuses_for_room();
    let hours = match left.saturating_sub(ahead) {
        0 => Some(0.0),
        _ if is_refusing => Some(0.0),
        room if bytes_per_s > 0.0 => Some(room as f64 / bytes_per_s / 3600.0),
        _ => None,
    };
    let looked_ns = now.0.saturating_sub(begin_of_look(volume, now));
    let foresight_hours = match looked_ns < BURST_NS && left > cap_bytes / LITTLE_PARTS {
        true => 0.0,
        false => (FORESIGHT * looked_ns as f64 / 3600e9).min(WARN_HOURS),
    };
    let mut forecast = Forecast {
        at_cap: word(policy.at_cap).to_owned(),
        bytes_per_s,
        hours,
        is_soon: hours.is_some_and(|hours| hours <= 0.0 || hours < foresight_hours),
        warning: None,
        alarm: None,
        words: None,
    };
    // A month's forecast from a second of a new volume would be a joke.
    let tell_hours = match looked_ns < BURST_NS {
        true => FORESIGHT * looked_ns as f64 / 3600e9,
        false => TELL_HOURS,
    };
    let Some(hours) = hours.filter(|hours| *hours <= 0.0 || *hours < tell_hours) else { return Ok(forecast) };
    let name = volume.name();
    let cap = size(cap_bytes);
    let when = match hours {
        hours if hours > 0.0 => {
            format!("reaches its cap of {cap} in {} at {}/s", hours_text(hours), size(bytes_per_s as u64))
        }
        _ => format!("is at its cap of {cap}"),
    };
    let oldest = format_utc(volume.horizon().1);
    let holder = volume.pins().into_iter().next();
    let then = match (policy.at_cap, hours > 0.0) {
        (AtCap::Block, true) => "then writes are refused".to_owned(),
        (AtCap::Block, false) => "writes are refused".to_owned(),
        (AtCap::Thin, true) => {
            "then the oldest history that has every write keeps single states only; writes are refused when nothing is left to thin"
                .to_owned()
        }
        (AtCap::Thin, false) => {
            "the oldest history that has every write keeps single states only; writes are refused when nothing is left to thin"
                .to_owned()
        }
        (AtCap::DropOldest, true) => format!("then the oldest history goes; now it begins at {oldest}"),
        (AtCap::DropOldest, false) => format!("the oldest history goes; it begins at {oldest}"),
    };
    forecast.words = Some(format!("{when}: {then}"));
    forecast.alarm = match (policy.at_cap, &holder) {
        (AtCap::Block, _) if hours <= 0.0 => {
            let small = match left {
                0 => String::new(),
                left => format!(", but for those that fit into the {} that are left", size(left)),
            };
            Some(format!(
                "ACT: the journal of volume {name} is full: writes are refused{small}; free space on the filesystem, or raise its cap."
            ))
        }
        (AtCap::Thin, _) if left == 0 || is_refusing => Some(format!(
            "ACT: the journal of volume {name} is full, and nothing of it can be thinned: writes are refused; raise its cap, or keep less."
        )),
        (AtCap::Block, _) if hours < ACT_HOURS && forecast.is_soon => Some(format!(
            "ACT: the journal of volume {name} is full in {}; free space on the filesystem, or raise its cap.",
            hours_text(hours)
        )),
        // Full is what it is meant to be; it is a reason to act only if something holds it.
        (AtCap::DropOldest, Some(pin)) if hours <= 0.0 => Some(format!(
            "ACT: the journal of volume {name} is full, and its oldest history is held: lsn:{} by {}; close that, or raise its cap.",
            pin.lsn, pin.holder
        )),
        (AtCap::DropOldest, None) if is_refusing => Some(format!(
            "ACT: the journal of volume {name} is full, and its oldest history could not go: writes are refused; raise its cap."
        )),
        _ => None,
    };
    if forecast.alarm.is_none() && hours > 0.0 && forecast.is_soon {
        let held = match (policy.at_cap, holder) {
            (AtCap::Block, _) | (_, None) => String::new(),
            (_, Some(pin)) => {
                format!("; lsn:{} is held by {}, and history behind it cannot go", pin.lsn, pin.holder)
            }
        };
        forecast.warning = Some(format!("SOON: the journal of volume {name} {when}: {then}{held}."));
    }
    Ok(forecast)
}

fn word(at_cap: AtCap) -> &'static str {
    match at_cap {
        AtCap::Block => "block",
        AtCap::Thin => "thin",
        AtCap::DropOldest => "drop-oldest",
    }
}

/// From where on the rate is taken: an hour ago, or when the volume was made.
fn begin_of_look(volume: &Volume, now: Timestamp) -> u64 {
    now.0.saturating_sub(RATE_NS).max(volume.identity().created.0)
}

/// Bytes a second that went into the journal in the last hour, or since the volume was made.
fn rate(volume: &Volume, now: Timestamp) -> f64 {
    let from = begin_of_look(volume, now);
    let window = now.0.saturating_sub(from).max(RATE_NS_MIN);
    let mut bytes = 0.0;
    for segment in volume.segments() {
        let (begin, end) = (segment.begin.0, segment.end.0.max(segment.begin.0 + 1));
        // Of a segment that reaches out of the window, the share that lies in it.
        let inside = end.saturating_sub(begin.max(from)) as f64 / (end - begin) as f64;
        bytes += segment.bytes as f64 * inside.min(1.0);
    }
    bytes / (window as f64 / 1e9)
}

/// A length of time for people.
pub fn hours_text(hours: f64) -> String {
    match hours {
        hours if hours * 60.0 < 1.0 => "less than a minute".to_owned(),
        hours if hours * 60.0 < 1.5 => "1 minute".to_owned(),
        hours if hours < 1.0 => format!("{:.0} minutes", hours * 60.0),
        hours if hours < 72.0 => format!("{hours:.1} hours"),
        hours => format!("{:.0} days", hours / 24.0),
    }
}
