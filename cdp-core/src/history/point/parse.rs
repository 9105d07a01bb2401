//! From text to a point request: which form a text has. What each form holds is next door.

use super::names::{Resembles, quote, resembles};
use super::{
    CloneRequest, Now, Point, PointRequest, civil, span, validate_marker_name, validate_volume_name,
};
use crate::error::{Error, Kind, Result};
use crate::ids::{Lsn, Timestamp};
use crate::limits::POINT_BYTES_MAX;

pub(super) const START: &str = "start";
pub(super) const LATEST: &str = "latest";
pub(super) const LATEST_APPLICATION: &str = "latest-app";
pub(super) const LATEST_PROVEN: &str = "latest-proven";
pub(super) const LSN: &str = "lsn:";
pub(super) const NS: &str = "ns:";
pub(super) const BEFORE: &str = "before:";
const CLONE: &str = "+rw";
const AGO: &str = " ago";

/// Stands in the hint of every text that is no point.
const EXAMPLES: &str = "points are written like: latest, start, -5m, 10:03, yesterday 10:03, 2026-11-21 10:03, \
     2026-11-21T10:00:00Z, lsn:42, NAME, before:NAME";

/// A text under the form it was taken for, so that its error can say so.
pub(super) struct Form<'a> {
    pub(super) text: &'a str,
    pub(super) reads_as: &'static str,
}

impl Form<'_> {
    /// It is not quite that form.
    pub(super) fn wrong(&self, why: &str) -> Error {
        self.failed(Kind::Invalid, why).hint(EXAMPLES)
    }

    /// It is of that form, but says what cannot be.
    pub(super) fn failed(&self, kind: Kind, why: &str) -> Error {
        Error::new(kind, format!("{} reads as {}, but {why}", quote(self.text), self.reads_as))
    }
}

/// Reads a point by the grammar of this module; `now` gives civil times their day and zone. Errors are of
/// [`Kind::Invalid`], and of [`Kind::OutOfRange`] for a time of today that is still to come and numbers beyond
/// all history. Whether the volume has such a point is for [`super::resolve`] to say.
pub fn parse(text: &str, now: &Now) -> Result<PointRequest> {
    if text.len() > POINT_BYTES_MAX {
        let why = format!("a point has at most {POINT_BYTES_MAX} bytes, {} has {}", quote(text), text.len());
        return Err(Error::new(Kind::Invalid, why).hint(EXAMPLES));
    }
    let (point, clone) = match text.find(CLONE) {
        Some(at) => (&text[..at], Some(parse_clone(&text[at..])?)),
        None => (text, None),
    };
    if point.is_empty() {
        let why = if clone.is_some() {
            "there is no point before `+rw`; `latest+rw` is a clone of the newest state"
        } else {
            "the point is empty"
        };
        return Err(Error::new(Kind::Invalid, why).hint(EXAMPLES));
    }
    Ok(PointRequest { point: parse_point(point, now)?, clone })
}

fn parse_clone(suffix: &str) -> Result<CloneRequest> {
    let rest = &suffix[CLONE.len()..];
    if rest.is_empty() {
        return Ok(CloneRequest::Private);
    }
    let form = Form { text: suffix, reads_as: "a request for a writable clone" };
    let Some(name) = rest.strip_prefix(':') else {
        return Err(form.failed(Kind::Invalid, "only `+rw` and `+rw:NAME`, at the end of a point, are that"));
    };
    validate_volume_name(name)?;
    Ok(CloneRequest::Shared(name.to_owned()))
}

fn parse_point(text: &str, now: &Now) -> Result<Point> {
    match text {
        START => return Ok(Point::Start),
        LATEST => return Ok(Point::Latest),
        LATEST_APPLICATION => return Ok(Point::LatestApplication),
        LATEST_PROVEN => return Ok(Point::LatestProven),
        _ => {}
    }
    if text.trim() != text {
        let why = format!("{} begins or ends with white space", quote(text));
        return Err(Error::new(Kind::Invalid, why).hint(EXAMPLES));
    }
    if let Some(digits) = text.strip_prefix(LSN) {
        return integer(digits, &Form { text, reads_as: "an LSN" }).map(|lsn| Point::Lsn(Lsn(lsn)));
    }
    if let Some(digits) = text.strip_prefix(NS) {
        let at = Timestamp(integer(digits, &Form { text, reads_as: "Unix nanoseconds" })?);
        return Ok(Point::Instant { at, daily: false });
    }
    if let Some(name) = text.strip_prefix(BEFORE) {
        validate_marker_name(name).map_err(|error| {
            Error::new(error.kind(), format!("{}: {error}", quote(text)))
                .hint("before: takes the name of a marker, as in before:upgrade")
        })?;
        return Ok(Point::Before(name.to_owned()));
    }
    if let Some(elapsed) = text.strip_prefix('-') {
        return span::parse(elapsed, &Form { text, reads_as: "elapsed time" }).map(Point::Ago);
    }
    if let Some(elapsed) = text.strip_suffix(AGO) {
        return span::parse(elapsed, &Form { text, reads_as: "elapsed time" }).map(Point::Ago);
    }
    if validate_marker_name(text).is_ok() {
        return Ok(Point::Marker(text.to_owned()));
    }
    match civil::parse(text, now) {
        Some(point) => point,
        None => Err(refuse(text)),
    }
}

fn integer(digits: &str, form: &Form<'_>) -> Result<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(form.wrong("only digits can follow the colon"));
    }
    digits.parse().map_err(|_| form.failed(Kind::OutOfRange, &format!("the largest number is {}", u64::MAX)))
}

/// Why a text is neither a form nor a name; for the usual slips, what was probably meant.
fn refuse(text: &str) -> Error {
    let lower = text.to_lowercase();
    let meant = match resembles(text) {
        Some(Resembles::Keyword) => match lower.as_str() {
            START | LATEST | LATEST_APPLICATION | LATEST_PROVEN => format!("it is written `{lower}`"),
            "now" => "the newest state is `latest`".to_owned(),
            "midnight" => "it is written `today 00:00`".to_owned(),
            "noon" => "it is written `12:00`, or `yesterday 12:00`".to_owned(),
            "tomorrow" => "it is still to come".to_owned(),
            _ => format!("it needs a time: `{lower} 10:03`"),
        },
        Some(Resembles::Duration) => {
            format!("a duration is written `-{0}` or `{0} ago`, a time of day `10:03`", text.replace(' ', ""))
        }
        Some(Resembles::Digits) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("a bare number says too little: `lsn:{text}` is a record, `ns:{text}` an instant")
        }
        Some(Resembles::Digits) => "it looks like a time, but is none that can be read safely".to_owned(),
        Some(Resembles::Phrase) => "it is written like `yesterday 10:03` or `90s ago`".to_owned(),
        None => match validate_marker_name(text) {
            Err(error) => format!("no form of time, and no name: {error}"),
            Ok(()) => "no form of time".to_owned(),
        },
    };
    Error::new(Kind::Invalid, format!("{} is not a point: {meant}", quote(text))).hint(EXAMPLES)
}
