//! From a point to the record it means, on one volume's history.

use super::parse::{LSN, NS};
use super::span::format_duration;
use super::zone::short_utc;
use super::{Now, Point};
use crate::error::{Error, Kind, Result};
use crate::ids::{Lsn, Timestamp};

/// Where a named marker stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkerAt {
    /// Its name.
    pub name: String,
    /// The marker's own record.
    pub lsn: Lsn,
    /// That record's timestamp.
    pub at: Timestamp,
}

/// What resolution needs to know of a volume's history. Timestamps rise strictly with LSNs.
pub trait Timeline {
    /// The newest record and its timestamp.
    fn tip(&self) -> (Lsn, Timestamp);

    /// The oldest point that can be viewed and its timestamp. LSN 0, the volume as it was created or imported, has
    /// the time of creation.
    fn horizon(&self) -> (Lsn, Timestamp);

    /// The newest record with a timestamp ≤ `at`, which is not before the horizon's timestamp. Never older than the
    /// horizon: from its timestamp on, LSN 0 is an answer like any other.
    fn lsn_at(&self, at: Timestamp) -> Result<Lsn>;

    /// The timestamp of a record from the horizon to the tip.
    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp>;

    /// The marker of exactly this name.
    fn marker(&self, name: &str) -> Result<Option<MarkerAt>>;

    /// The newest application marker.
    fn latest_application_marker(&self) -> Result<Option<MarkerAt>>;

    /// The newest state that a program called good, with the timestamp of its record.
    fn latest_proven(&self) -> Result<Option<(Lsn, Timestamp)>> {
        Ok(None)
    }

    /// Markers whose names are like this one, best first, a handful: for the error about an unknown name
    /// ([`super::closest_names`] ranks).
    fn similar_markers(&self, name: &str) -> Vec<MarkerAt>;

    /// Named markers near this instant, nearest first, a handful: for errors.
    fn markers_near(&self, at: Timestamp) -> Vec<MarkerAt>;

    /// The store's time so many nanoseconds of *elapsed* time ago, clock steps absorbed. What lies before the
    /// history's begin may be any instant before the horizon's; it saturates and is no error.
    fn elapsed_ago(&self, elapsed_ns: u64) -> Result<Timestamp>;
}

/// What a point means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The view holds the records up to this one.
    pub lsn: Lsn,
    /// The instant asked for; for points that name no instant, the timestamp of the record.
    pub at: Timestamp,
    /// The same text may mean another state a moment later.
    pub relative: bool,
    /// A point text that means this very LSN for ever: `lsn:…` for `start` and LSNs, `ns:…`
    /// for all else.
    pub absolute_name: String,
}

/// Errors name markers up to this number.
const MARKERS_NAMED_MAX: usize = 5;

/// Finds the record that a point means. [`Kind::NotFound`]: no such marker; [`Kind::OutOfRange`]: in the future or
/// before the horizon. Both name what can be had instead.
pub fn resolve(point: &Point, timeline: &dyn Timeline, now: &Now) -> Result<Resolved> {
    let history = History { timeline, horizon: timeline.horizon(), tip: timeline.tip() };
    let (lsn, at, absolute_name) = match point {
        Point::Start => history.by_lsn(history.horizon.0)?,
        Point::Lsn(lsn) => history.by_lsn(*lsn)?,
        Point::Latest => by_time(history.tip),
        Point::Instant { at, .. } => {
            history.not_in_the_future(*at, now)?;
            history.by_instant(*at, &format!("`{}`", short_utc(*at)))?
        }
        Point::Ago(elapsed_ns) => {
            let at = timeline.elapsed_ago(*elapsed_ns)?;
            history.by_instant(at, &format!("{} ago", format_duration(*elapsed_ns)))?
        }
        Point::LatestApplication => by_time(history.at_marker(&history.latest_application()?)?),
        Point::LatestProven => by_time(history.latest_proven()?),
        Point::Marker(name) => by_time(history.at_marker(&history.named(name)?)?),
        Point::Before(name) => by_time(history.before_marker(&history.named(name)?)?),
    };
    Ok(Resolved { lsn, at, relative: point.is_relative(), absolute_name })
}

type Found = (Lsn, Timestamp, String);

/// A record that is called by its timestamp: these rise strictly, so that is the record and no later one.
fn by_time((lsn, at): (Lsn, Timestamp)) -> Found {
    (lsn, at, format!("{NS}{}", at.0))
}

/// A timeline, with its ends as they were when the resolution began.
struct History<'a> {
    timeline: &'a dyn Timeline,
    horizon: (Lsn, Timestamp),
    tip: (Lsn, Timestamp),
}

impl History<'_> {
    fn by_lsn(&self, lsn: Lsn) -> Result<Found> {
        if lsn > self.tip.0 {
            let context =
                format!("{LSN}{lsn} is beyond the tip, {LSN}{} at {}", self.tip.0, short_utc(self.tip.1));
            return Err(Error::new(Kind::OutOfRange, context).hint(self.newest()));
        }
        if lsn < self.horizon.0 {
            return Err(self.too_old(&format!("{LSN}{lsn}"), self.horizon.1));
        }
        Ok((lsn, self.timestamp_of(lsn)?, format!("{LSN}{lsn}")))
    }

    fn by_instant(&self, at: Timestamp, asked: &str) -> Result<Found> {
        if at < self.horizon.1 {
            return Err(self.too_old(asked, at));
        }
        let lsn = self.timeline.lsn_at(at)?;
        // Behind the tip the answer is settled. At or beyond it, records may be on their way, so that the newest
        // one's own timestamp is the safe name.
        let settled = if at < self.tip.1 { at } else { self.timestamp_of(lsn)? };
        Ok((lsn, at, format!("{NS}{}", settled.0)))
    }

    fn at_marker(&self, marker: &MarkerAt) -> Result<(Lsn, Timestamp)> {
        if marker.lsn < self.horizon.0 {
            return Err(self.too_old(&format!("the marker `{}`", marker.name), marker.at));
        }
        Ok((marker.lsn, marker.at))
    }

    fn before_marker(&self, marker: &MarkerAt) -> Result<(Lsn, Timestamp)> {
        if marker.lsn <= self.horizon.0 {
            return Err(self.too_old(&format!("the state before the marker `{}`", marker.name), marker.at));
        }
        let lsn = marker.lsn.previous();
        Ok((lsn, self.timestamp_of(lsn)?))
    }

    fn named(&self, name: &str) -> Result<MarkerAt> {
        if let Some(marker) = self.timeline.marker(name)? {
            return Ok(marker);
        }
        let similar = self.timeline.similar_markers(name);
        let hint = if similar.is_empty() {
            format!("no name is like it{}; {}", self.markers_near(self.tip.1), self.newest())
        } else {
            format!("names like it: {}", list(&similar))
        };
        Err(Error::new(Kind::NotFound, format!("this volume has no marker `{name}`")).hint(hint))
    }

    fn latest_application(&self) -> Result<MarkerAt> {
        self.timeline.latest_application_marker()?.ok_or_else(|| {
            Error::new(Kind::NotFound, "this volume has no application marker").hint(format!(
                "{}{}",
                self.newest(),
                self.markers_near(self.tip.1)
            ))
        })
    }

    fn latest_proven(&self) -> Result<(Lsn, Timestamp)> {
        self.timeline.latest_proven()?.ok_or_else(|| {
            Error::new(Kind::NotFound, "no state of this volume was proven good yet")
                .hint(format!("`cdp prove VOL@POINT -- PROGRAM` does it; {}", self.newest()))
        })
    }

    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp> {
        match lsn {
            lsn if lsn == self.horizon.0 => Ok(self.horizon.1),
            lsn if lsn == self.tip.0 => Ok(self.tip.1),
            lsn => self.timeline.timestamp_of(lsn),
        }
    }

    /// The tip can be ahead of `now` where the wall clock was set back.
    fn not_in_the_future(&self, at: Timestamp, now: &Now) -> Result<()> {
        let newest = now.wall.max(self.tip.1);
        if at <= newest {
            return Ok(());
        }
        let ahead = format_duration(at.0 - newest.0);
        let context = format!("`{}` is in the future, by {ahead}", short_utc(at));
        Err(Error::new(Kind::OutOfRange, context).hint(self.newest()))
    }

    fn too_old(&self, asked: &str, at: Timestamp) -> Error {
        let (lsn, begin) = self.horizon;
        let what = if lsn == Lsn::ZERO { "the volume's beginning" } else { "the horizon" };
        let context = format!("{asked} is before {what}, {}", short_utc(begin));
        Error::new(Kind::OutOfRange, context).hint(format!(
            "the oldest state is `start`, now `{LSN}{lsn}` or `{}`{}",
            short_utc(begin),
            self.markers_near(at.max(begin))
        ))
    }

    fn newest(&self) -> String {
        format!("the newest state is `latest`, now `{LSN}{}` or `{}`", self.tip.0, short_utc(self.tip.1))
    }

    fn markers_near(&self, at: Timestamp) -> String {
        let near = self.timeline.markers_near(at);
        if near.is_empty() { String::new() } else { format!("; markers near: {}", list(&near)) }
    }
}

fn list(markers: &[MarkerAt]) -> String {
    let texts: Vec<String> = markers
        .iter()
        .take(MARKERS_NAMED_MAX)
        .map(|marker| format!("`{}` ({LSN}{}, {})", marker.name, marker.lsn, short_utc(marker.at)))
        .collect();
    texts.join(", ")
}
