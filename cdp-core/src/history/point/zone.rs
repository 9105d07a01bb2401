//! Zones, and instants as people write them. The only place that knows the calendar library.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use crate::error::{Error, Kind, Result};
use crate::ids::Timestamp;

/// Where civil times are at home.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// UTC.
    pub fn utc() -> Zone {
        Zone(TimeZone::UTC)
    }

    /// The zone of this machine: `TZ`, else `/etc/localtime`, else UTC. A `TZ` that nobody knows is an error of
    /// [`Kind::Invalid`] rather than UTC: it would shift every civil time.
    pub fn system() -> Result<Zone> {
        match TimeZone::try_system() {
            Ok(zone) => Ok(Zone(zone)),
            Err(_) if std::env::var_os("TZ").is_none() => Ok(Zone::utc()),
            Err(error) => {
                let set = std::env::var_os("TZ").unwrap_or_default();
                Err(Error::new(Kind::Invalid, format!("the time zone TZ={set:?} is not known: {error}"))
                    .hint("set TZ to a name like Europe/Berlin, or to UTC"))
            }
        }
    }

    /// A zone by its IANA name (`Europe/Berlin`) or as a POSIX rule (`CET-1CEST,M3.5.0,M10.5.0/3`).
    pub fn named(name: &str) -> Result<Zone> {
        TimeZone::get(name).or_else(|_| TimeZone::posix(name)).map(Zone).map_err(|error| {
            Error::new(Kind::Invalid, format!("the time zone {name:?} is not known: {error}"))
                .hint("give a name like Europe/Berlin, or UTC")
        })
    }

    /// The local calendar day of an instant, or so many days before it.
    pub(super) fn day_of(&self, at: Timestamp, days_back: u32) -> Option<Day> {
        let mut date = self.0.to_datetime(library(at)?).date();
        for _ in 0..days_back {
            date = date.yesterday().ok()?;
        }
        Some(Day(date))
    }

    /// The minute of the local day, 0 … 1439; `None` beyond what the calendar has.
    pub fn minute_of_day(&self, at: Timestamp) -> Option<u16> {
        let time = self.0.to_datetime(library(at)?).time();
        u16::try_from(i32::from(time.hour()) * 60 + i32::from(time.minute())).ok()
    }

    /// What a civil time means here. `None`: before 1970, or beyond what a timestamp holds.
    pub(super) fn read(&self, day: Day, time: TimeOfDay) -> Option<Reading> {
        let civil = civil(day, time);
        match self.0.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => instant(civil, offset).map(Reading::Once),
            AmbiguousOffset::Fold { before, after } => {
                Some(Reading::Twice(instant(civil, before)?, instant(civil, after)?))
            }
            AmbiguousOffset::Gap { before, after } => {
                // Read with the offset of the far side, a time in the gap falls on the near side, and so the next
                // change from there is the gap itself.
                let (earlier, later) = (instant(civil, after)?, instant(civil, before)?);
                let change = self.0.following(library(earlier)?).next()?;
                Some(Reading::Never { earlier, later, change: ours(change.timestamp())? })
            }
        }
    }
}

/// What a civil time means in a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// One instant.
    Once(Timestamp),
    /// The clocks were set back: two instants, in order.
    Twice(Timestamp, Timestamp),
    /// The clocks were set forward over it, at `change`; as far before and behind it are the other two.
    Never { earlier: Timestamp, later: Timestamp, change: Timestamp },
}

/// A calendar day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Day(Date);

impl Day {
    /// `None`: there is no such day.
    pub(super) fn new(year: u16, month: u8, day: u8) -> Option<Day> {
        Date::new(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?).ok().map(Day)
    }
}

/// A time of day that a clock can show, leap seconds left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TimeOfDay(Time);

impl TimeOfDay {
    /// `None`: no clock shows that.
    pub(super) fn new(hour: u8, minute: u8, second: u8, nanosecond: u32) -> Option<TimeOfDay> {
        let part = |value: u8| i8::try_from(value).ok();
        Time::new(part(hour)?, part(minute)?, part(second)?, nanosecond.try_into().ok()?).ok().map(TimeOfDay)
    }
}

/// A civil time at a fixed distance from UTC, which is less than 24 hours. `None`: before 1970, or beyond what a
/// timestamp holds.
pub(super) fn at_offset(day: Day, time: TimeOfDay, offset_seconds: i32) -> Option<Timestamp> {
    instant(civil(day, time), Offset::from_seconds(offset_seconds).ok()?)
}

fn civil(day: Day, time: TimeOfDay) -> DateTime {
    DateTime::from_parts(day.0, time.0)
}

fn instant(civil: DateTime, offset: Offset) -> Option<Timestamp> {
    ours(offset.to_timestamp(civil).ok()?)
}

fn ours(at: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(at.as_nanosecond()).ok().map(Timestamp)
}

fn library(at: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_nanosecond(at.0.into()).ok()
}

/// RFC 3339 in UTC with all nine digits of the nanoseconds: `2026-11-21T10:00:00.000000000Z`.
pub fn format_utc(at: Timestamp) -> String {
    write(at, Offset::UTC, Fraction::Whole)
}

/// RFC 3339 in the zone's own time with all nine digits of the nanoseconds: `2026-11-21T11:00:00.000000000+01:00`.
/// Where RFC 3339 cannot say the offset, which is so for offsets with seconds, it is UTC.
pub fn format_local(at: Timestamp, zone: &Zone) -> String {
    write(at, offset_of(at, zone), Fraction::Whole)
}

/// Like [`format_utc`], without the zeros at the end.
pub(super) fn short_utc(at: Timestamp) -> String {
    write(at, Offset::UTC, Fraction::Short)
}

/// Like [`format_local`], without the zeros at the end.
pub(super) fn short_local(at: Timestamp, zone: &Zone) -> String {
    write(at, offset_of(at, zone), Fraction::Short)
}

fn offset_of(at: Timestamp, zone: &Zone) -> Offset {
    let offset = library(at).map_or(Offset::UTC, |at| zone.0.to_offset(at));
    if offset.seconds() % 60 == 0 { offset } else { Offset::UTC }
}

enum Fraction {
    Whole,
    Short,
}

fn write(at: Timestamp, offset: Offset, fraction: Fraction) -> String {
    let Some(library) = library(at) else {
        return format!("ns:{}", at.0); // Not reached: every 64-bit timestamp is within the calendar.
    };
    let civil = offset.to_datetime(library);
    let mut nanos = format!(".{:09}", civil.subsec_nanosecond());
    if matches!(fraction, Fraction::Short) {
        nanos.truncate(nanos.trim_end_matches('0').trim_end_matches('.').len());
    }
    let zone = match offset.seconds() {
        0 => "Z".to_owned(),
        seconds => {
            let minutes = seconds.abs() / 60;
            format!("{}{:02}:{:02}", if seconds < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
        }
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{nanos}{zone}",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    )
}
