//! The points people type: one strict grammar for exports, command line and API, and what a point resolves to.
//!
//! A wrong reading is a wrong restore point, so nothing is guessed: what is not exactly one of these forms is an
//! error that says what was understood and names texts that can be copied.
//!
//! ```text
//! export   = request | point "+since:" point ;        (* the second: with the changes since it, over NBD *)
//! request  = point [ "+rw" [ ":" volume-name ] ] ;   (* the first "+rw" ends the point *)
//! point    = "start" | "latest" | "latest-app" | "latest-proven"
//!          | "lsn:" integer | "ns:" integer            (* a record; Unix nanoseconds *)
//!          | "before:" name | name                     (* a marker; the LSN before it *)
//!          | "-" span | span " ago"                    (* elapsed time *)
//!          | date sep time zone                        (* an instant, as in RFC 3339 *)
//!          | date sep time                             (* that time in the local zone *)
//!          | [ "today " | "yesterday " ] time ;        (* that time of the local day *)
//! span     = integer unit { integer unit } ;           (* each unit once, larger before smaller *)
//! unit     = "w" | "d" | "h" | "m" | "s" | "ms" ;      (* a day is 24 hours, a minute is "m" *)
//! date     = 4 digit "-" 2 digit "-" 2 digit ;
//! sep      = "T" | "t" | " " ;
//! time     = 2 digit ":" 2 digit [ ":" 2 digit [ "." 1 to 9 digit ] ] ;
//! zone     = "Z" | "z" | ( "+" | "-" ) 2 digit ":" 2 digit ;
//! integer  = digit { digit } ;                         (* ASCII, fits in 64 bits *)
//! name     = (* what validate_marker_name accepts: nothing that is, or looks like, another form *)
//! ```
//!
//! The view at an instant T holds every record whose timestamp is ≤ T. A civil time that occurs twice or never
//! (the clock changes) is an error naming the instants it may stand for; a time that is still to come is an error.

mod civil;
mod names;
mod parse;
mod resolve;
mod span;
#[cfg(test)]
mod tests;
mod zone;

use std::fmt;

use crate::ids::{Lsn, Timestamp};

pub use names::{
    SINCE, closest_names, escape_uri, split_export, split_since, validate_marker_name, validate_volume_name,
};
pub use parse::parse;
pub use resolve::{MarkerAt, Resolved, Timeline, resolve};
pub use span::format_duration;
pub use zone::{Zone, format_local, format_utc};

/// A place in a volume's history, as somebody asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Point {
    /// The horizon: the oldest state that can be viewed.
    Start,
    /// The tip.
    Latest,
    /// The newest application marker.
    LatestApplication,
    /// The newest state that a program called good.
    LatestProven,
    /// After this record.
    Lsn(Lsn),
    /// After every record with a timestamp ≤ this one.
    Instant {
        /// The instant that was named.
        at: Timestamp,
        /// It was named as a time of today or yesterday: the same text means another instant tomorrow.
        daily: bool,
    },
    /// So much elapsed time ago, in nanoseconds; a stepped clock does not count.
    Ago(u64),
    /// At the marker of this name.
    Marker(String),
    /// Before the marker of this name: its LSN − 1.
    Before(String),
}

impl Point {
    /// Whether the same text can mean another state when it is used again a moment later. Exports of such points
    /// must not advertise multi-conn.
    pub fn is_relative(&self) -> bool {
        match self {
            Point::Start | Point::Latest | Point::LatestApplication | Point::LatestProven | Point::Ago(_) => {
                true
            }
            Point::Instant { daily, .. } => *daily,
            Point::Lsn(_) | Point::Marker(_) | Point::Before(_) => false,
        }
    }
}

/// A text that parses to the same point; an instant is printed as RFC 3339 in UTC.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Start => f.write_str(parse::START),
            Point::Latest => f.write_str(parse::LATEST),
            Point::LatestApplication => f.write_str(parse::LATEST_APPLICATION),
            Point::LatestProven => f.write_str(parse::LATEST_PROVEN),
            Point::Lsn(lsn) => write!(f, "{}{lsn}", parse::LSN),
            Point::Instant { at, .. } => f.write_str(&format_utc(*at)),
            Point::Ago(elapsed_ns) => write!(f, "-{}", span::text(*elapsed_ns)),
            Point::Marker(name) => f.write_str(name),
            Point::Before(name) => write!(f, "{}{name}", parse::BEFORE),
        }
    }
}

/// A writable clone asked for with `+rw`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloneRequest {
    /// Private to the connection, discarded with it.
    Private,
    /// Shared by all who name it.
    Shared(String),
}

/// What stands behind the `@` of an export name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PointRequest {
    /// Which state.
    pub point: Point,
    /// Whether, and which, clone of it is to be written to; `None` is a read-only view.
    pub clone: Option<CloneRequest>,
}

/// The moment and place in which a point is read.
#[derive(Clone, Debug)]
pub struct Now {
    /// The store's clock, not the bare wall clock: no record written from now on may get a timestamp at or below
    /// it, or a point resolved twice could mean two states.
    pub wall: Timestamp,
    /// Zone of civil times.
    pub zone: Zone,
}
