//! Dates and times of day: reading them, and the errors of clocks that were changed.

use super::parse::Form;
use super::zone::{self, Day, Reading, TimeOfDay, Zone, short_local};
use super::{Now, Point};
use crate::error::{Error, Kind, Result};
use crate::ids::Timestamp;

/// Years that a 64-bit timestamp holds whole.
const YEARS: std::ops::RangeInclusive<u16> = 1970..=2553;

const TODAY: &str = "today ";
const YESTERDAY: &str = "yesterday ";
const FRACTION_DIGITS_MAX: usize = 9;

/// Reads an instant, a civil time, or a time of today or yesterday. `None`: it does not even begin like one.
pub(super) fn parse(text: &str, now: &Now) -> Option<Result<Point>> {
    if let Some(rest) = text.strip_prefix(TODAY) {
        return Some(time_of_day(text, rest, "a time of today", 0, now));
    }
    if let Some(rest) = text.strip_prefix(YESTERDAY) {
        return Some(time_of_day(text, rest, "a time of yesterday", 1, now));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    match (digits, text.as_bytes().get(digits)) {
        (4, Some(b'-')) => Some(date_and_time(text, &now.zone)),
        (1.., Some(b':')) => Some(time_of_day(text, text, "a time of day", 0, now)),
        _ => None,
    }
}

fn date_and_time(text: &str, zone: &Zone) -> Result<Point> {
    let form = Form { text, reads_as: "a date and time" };
    let mut scan = Scan { rest: text, form: &form };
    let year = scan.digits(4, "year")?;
    scan.expect(&['-'], "between year and month")?;
    let month = scan.two_digits("month")?;
    scan.expect(&['-'], "between month and day")?;
    let day = scan.two_digits("day")?;
    let Some(date) = Day::new(year, month, day) else {
        return Err(form.wrong(&format!("there is no day {year:04}-{month:02}-{day:02}")));
    };
    if !YEARS.contains(&year) {
        let why = format!("years from {} to {} can be named", YEARS.start(), YEARS.end());
        return Err(form.failed(Kind::OutOfRange, &why));
    }
    if scan.rest.is_empty() {
        return Err(form.wrong(&format!("the time is missing, as in `{text} 10:03`")));
    }
    scan.expect(&['T', 't', ' '], "between date and time")?;
    let time = scan.time()?;
    let at = match scan.offset_seconds()? {
        Some(offset_seconds) => {
            zone::at_offset(date, time, offset_seconds).ok_or_else(|| before_1970(&form))?
        }
        None => {
            scan.end()?;
            once(date, time, zone, &form)?
        }
    };
    Ok(Point::Instant { at, daily: false })
}

fn time_of_day(text: &str, time: &str, reads_as: &'static str, days_back: u32, now: &Now) -> Result<Point> {
    let form = Form { text, reads_as };
    let mut scan = Scan { rest: time, form: &form };
    let time_of_day = scan.time()?;
    scan.end()?;
    let day = |days_back| now.zone.day_of(now.wall, days_back);
    let date = day(days_back).ok_or_else(|| before_1970(&form))?;
    let at = once(date, time_of_day, &now.zone, &form)?;
    if at > now.wall {
        let why = format!("{} is still to come", short_local(at, &now.zone));
        let yesterday = match day(1).and_then(|day| now.zone.read(day, time_of_day)) {
            Some(Reading::Once(at)) => format!("that is {}", short_local(at, &now.zone)),
            _ => "the clocks were changed then".to_owned(),
        };
        return Err(form
            .failed(Kind::OutOfRange, &why)
            .hint(format!("`{YESTERDAY}{time}`, {yesterday}; the newest state is `latest`")));
    }
    Ok(Point::Instant { at, daily: true })
}

/// The one instant at which clocks showed that; an error that names the candidates where there is not exactly one.
fn once(date: Day, time: TimeOfDay, zone: &Zone, form: &Form<'_>) -> Result<Timestamp> {
    let show = |at| short_local(at, zone);
    match zone.read(date, time) {
        Some(Reading::Once(at)) => Ok(at),
        Some(Reading::Twice(first, second)) => Err(form
            .failed(Kind::Invalid, "the clocks were set back and showed it twice")
            .hint(format!("say which: `{}` or `{}`", show(first), show(second)))),
        Some(Reading::Never { earlier, later, change }) => Err(form
            .failed(Kind::Invalid, "the clocks were set forward over it, so it never was")
            .hint(format!(
                "nearest: `{}` or `{}`; the clocks changed at `{}`",
                show(earlier),
                show(later),
                show(change)
            ))),
        None => Err(before_1970(form)),
    }
}

fn before_1970(form: &Form<'_>) -> Error {
    form.failed(Kind::OutOfRange, "it lies before 1970").hint("the oldest state is `start`")
}

/// The text still to be read.
struct Scan<'a> {
    rest: &'a str,
    form: &'a Form<'a>,
}

impl Scan<'_> {
    fn digits(&mut self, count: usize, what: &str) -> Result<u16> {
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits != count {
            let why = format!("the {what} needs {count} digits, and {:?} follows", self.rest);
            return Err(self.form.wrong(&why));
        }
        let (number, rest) = self.rest.split_at(count);
        self.rest = rest;
        number.parse().map_err(|_| self.form.wrong(&format!("the {what} {number} is no number")))
    }

    fn two_digits(&mut self, what: &str) -> Result<u8> {
        self.digits(2, what).map(|number| number as u8)
    }

    fn eat(&mut self, any_of: &[char]) -> bool {
        let rest = self.rest.strip_prefix(any_of);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, any_of: &[char], place: &str) -> Result<()> {
        if self.eat(any_of) {
            return Ok(());
        }
        let why = format!("{:?} is expected {place}, and {:?} follows", any_of[0], self.rest);
        Err(self.form.wrong(&why))
    }

    fn time(&mut self) -> Result<TimeOfDay> {
        let hour = self.two_digits("hour")?;
        self.expect(&[':'], "between hour and minute")?;
        let minute = self.two_digits("minute")?;
        let second = if self.eat(&[':']) { self.two_digits("second")? } else { 0 };
        let nanosecond = if self.rest.starts_with('.') { self.nanoseconds()? } else { 0 };
        if second == 60 {
            return Err(self.form.wrong("leap seconds have no instant of their own in a journal"));
        }
        TimeOfDay::new(hour, minute, second, nanosecond)
            .ok_or_else(|| self.form.wrong(&format!("no clock shows {hour:02}:{minute:02}:{second:02}")))
    }

    fn nanoseconds(&mut self) -> Result<u32> {
        self.eat(&['.']);
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=FRACTION_DIGITS_MAX).contains(&digits) {
            return Err(self.form.wrong("the fraction of a second has 1 to 9 digits"));
        }
        let (fraction, rest) = self.rest.split_at(digits);
        self.rest = rest;
        let scale = 10u32.pow((FRACTION_DIGITS_MAX - digits) as u32);
        fraction
            .parse::<u32>()
            .map(|number| number * scale)
            .map_err(|_| self.form.wrong("the fraction of a second is no number"))
    }

    /// What follows a time in RFC 3339, to the end of the text; `None` if nothing follows.
    fn offset_seconds(&mut self) -> Result<Option<i32>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if self.eat(&['Z', 'z']) {
            return self.end().map(|()| Some(0));
        }
        let sign = if self.eat(&['-']) {
            -1
        } else if self.eat(&['+']) {
            1
        } else {
            return self.end().map(|()| None);
        };
        let hours = self.two_digits("hours of the offset")?;
        self.expect(&[':'], "in the offset from UTC")?;
        let minutes = self.two_digits("minutes of the offset")?;
        if hours > 23 || minutes > 59 {
            return Err(self.form.wrong(&format!("{hours:02}:{minutes:02} is no offset from UTC")));
        }
        self.end()?;
        Ok(Some(sign * (i32::from(hours) * 60 + i32::from(minutes)) * 60))
    }

    fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.form.wrong(&format!("{:?} was not expected at the end", self.rest)))
    }
}
