//! What a point means: on a volume, and on all members of a group as one instant.

use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{
    Now, Point, PointRequest, Resolved, Timeline, Zone, escape_uri, format_utc, parse, resolve, split_export,
};
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::shown::Shown;
use cdp_core::volume::together::instants_of_all;
use serde::{Deserialize, Serialize};

use crate::report::Report;

/// A point, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// The volume.
    pub volume: String,
    /// What the user typed behind the `@`.
    pub asked: String,
    /// The state after this record.
    pub lsn: u64,
    /// The instant, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
    /// An export name that means this state for ever.
    pub export: String,
    /// The same, escaped for a URI.
    pub uri_name: String,
    /// The marker nearest to it.
    pub nearest_marker: Option<NearMarker>,
}

impl PointInfo {
    /// An export name by the record, which is easier to compare than one by the instant.
    pub fn export_by_lsn(&self) -> String {
        format!("{}@lsn:{}", self.volume, self.lsn)
    }
}

/// A marker near a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearMarker {
    /// Its name; periodic ones have none.
    pub name: Option<String>,
    /// Its record.
    pub lsn: u64,
    /// When, RFC 3339 in UTC.
    pub utc: String,
    /// How many records the point lies behind it; negative: before it.
    pub records: i64,
    /// How many nanoseconds the point lies behind it; negative: before it.
    pub distance_ns: i64,
}

/// A volume and a state of it.
pub struct Target {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The state.
    pub resolved: Resolved,
    /// What was asked for, clone included.
    pub request: PointRequest,
    /// The text behind the `@`.
    pub asked: String,
    // Of a replica, where it may be a newest state that came ahead of the history.
    shown: Option<Shown>,
}

impl Target {
    /// Refuses `+rw`: `asked` is what was typed.
    pub fn refuse_clone(&self, asked: &str) -> Result<()> {
        if self.request.clone.is_none() {
            return Ok(());
        }
        let context = format!("{asked} asks for a throw-away clone, and this is about a past state itself");
        Err(Error::new(Kind::Invalid, context)
            .hint("leave `+rw` out; what is in such a clone is seen over NBD only"))
    }

    /// Opens the state; `holder` is who is named where that keeps history from going.
    pub fn view(&self, holder: &str) -> Result<View> {
        let (volume, lsn) = (self.volume.clone(), self.resolved.lsn);
        match &self.shown {
            Some(shown) => View::of(volume, shown, lsn, holder),
            None => View::open(volume, lsn, holder),
        }
    }

    /// It is a newest state that came ahead of the history.
    pub fn is_ahead(&self) -> bool {
        self.shown.as_ref().is_some_and(|shown| shown.newest_at(self.resolved.lsn).is_some())
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        let newest = self.shown.as_ref().and_then(|shown| shown.newest_at(self.resolved.lsn));
        newest.map_or_else(|| self.volume.size_at(self.resolved.lsn), |newest| newest.state().size_bytes)
    }

    /// For people and programs.
    pub fn info(&self) -> Result<PointInfo> {
        let Resolved { lsn, at, absolute_name, .. } = &self.resolved;
        let export = format!("{}@{absolute_name}", self.volume.name());
        let near = self.volume.nearest_marker(*lsn)?.map(|(marker, marker_at, name)| NearMarker {
            name,
            lsn: marker.0,
            utc: format_utc(marker_at),
            records: difference(lsn.0, marker.0),
            distance_ns: difference(at.0, marker_at.0),
        });
        Ok(PointInfo {
            volume: self.volume.name().to_owned(),
            asked: self.asked.clone(),
            lsn: lsn.0,
            utc: format_utc(*at),
            ns: at.0,
            uri_name: escape_uri(&export),
            export,
            nearest_marker: near,
        })
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

/// The moment in which points are read on this store.
pub fn now(store: &Store, zone: &Zone) -> Now {
    Now { wall: store.clock().now(), zone: zone.clone() }
}

/// Resolves a point of one volume's history.
pub fn of_volume(store: &Store, volume: Arc<Volume>, text: &str, zone: &Zone) -> Result<Target> {
    let now = now(store, zone);
    let request = parse(text, &now)?;
    let resolved = resolve(&request.point, &*volume, &now)?;
    Ok(Target { volume, resolved, request, asked: text.to_owned(), shown: None })
}

/// As [`of_volume`], of all that is shown: also the newest state of a replica whose history is filled in behind it. For
/// whoever opens it with [`Target::view`].
pub fn shown_of_volume(store: &Store, volume: Arc<Volume>, text: &str, zone: &Zone) -> Result<Target> {
    let shown = Shown::of(volume.clone());
    let now = now(store, zone);
    let request = parse(text, &now)?;
    let resolved = resolve(&request.point, &shown, &now)?;
    Ok(Target { volume, resolved, request, asked: text.to_owned(), shown: Some(shown) })
}

type OfVolume = fn(&Store, Arc<Volume>, &str, &Zone) -> Result<Target>;

/// Resolves `VOL@POINT`, or `GROUP@POINT` to one instant on all members. Without a point: `latest`.
pub fn targets(store: &Store, target: &str, zone: &Zone) -> Result<Vec<Target>> {
    targets_by(store, target, zone, of_volume)
}

/// As [`targets`], of all that is shown; of a group, the history alone: a newest state is one volume's.
pub fn shown_targets(store: &Store, target: &str, zone: &Zone) -> Result<Vec<Target>> {
    targets_by(store, target, zone, shown_of_volume)
}

fn targets_by(store: &Store, target: &str, zone: &Zone, of_volume: OfVolume) -> Result<Vec<Target>> {
    let (name, text) = split_export(target);
    let text = text.unwrap_or("latest");
    let volumes = store.members(name)?;
    let is_group = store.groups().contains_key(name);
    match <[Arc<Volume>; 1]>::try_from(volumes) {
        Ok([volume]) if !is_group => Ok(vec![of_volume(store, volume, text, zone)?]),
        Ok([volume]) => of_group(store, name, vec![volume], text, zone),
        Err(volumes) => of_group(store, name, volumes, text, zone),
    }
}

/// As [`targets`], of states alone: whoever only looks at a state, and would look past what was written to a clone of it,
/// says so.
pub fn states(store: &Store, target: &str, zone: &Zone) -> Result<Vec<Target>> {
    let targets = targets(store, target, zone)?;
    targets.iter().try_for_each(|found| found.refuse_clone(target))?;
    Ok(targets)
}

/// As [`states`], of all that is shown.
pub fn shown_states(store: &Store, target: &str, zone: &Zone) -> Result<Vec<Target>> {
    let targets = shown_targets(store, target, zone)?;
    targets.iter().try_for_each(|found| found.refuse_clone(target))?;
    Ok(targets)
}

fn of_group(
    store: &Store,
    group: &str,
    volumes: Vec<Arc<Volume>>,
    text: &str,
    zone: &Zone,
) -> Result<Vec<Target>> {
    let now = now(store, zone);
    let request = parse(text, &now)?;
    let at = instant_of(group, &volumes, &request.point, &now)?;
    // Clock time does not stand still: the same `now`, so that the instant is not in anybody's future.
    let instants = instants_of_all(&volumes, at);
    let resolve_one = |(volume, at): (Arc<Volume>, Timestamp)| {
        let point = Point::Instant { at, daily: false };
        let mut resolved = resolve(&point, &*volume, &now)?;
        resolved.relative = request.point.is_relative();
        let request = PointRequest { point: request.point.clone(), clone: request.clone.clone() };
        Ok(Target { volume, resolved, request, asked: text.to_owned(), shown: None })
    };
    volumes.into_iter().zip(instants).map(resolve_one).collect()
}

/// Says which member of a group has no such point: others may have it.
pub fn of_member(error: Error, group: &str, member: &str) -> Error {
    let report = Report::of(&error);
    let named =
        Error::new(error.kind(), format!("{member}, a member of the group {group:?}: {}", report.message));
    report.hint.into_iter().fold(named, Error::hint)
}

/// The one instant that a point means for all members of a group.
fn instant_of(group: &str, volumes: &[Arc<Volume>], point: &Point, now: &Now) -> Result<Timestamp> {
    let first = volumes
        .first()
        .ok_or_else(|| Error::new(Kind::NotFound, format!("the group {group:?} has no members")))?;
    Ok(match point {
        Point::Instant { at, .. } => *at,
        Point::Latest => now.wall,
        // The youngest member's beginning is the oldest instant that all of them have.
        Point::Start => volumes.iter().map(|volume| volume.horizon().1).max().unwrap_or(now.wall),
        Point::Ago(elapsed_ns) => first.elapsed_ago(*elapsed_ns)?,
        Point::Lsn(_) => {
            let context = format!("each member of the group {group:?} counts its own LSNs");
            return Err(Error::new(Kind::Invalid, context).hint("give an instant or a marker"));
        }
        Point::LatestProven => {
            let context = format!("each member of the group {group:?} has proofs of its own");
            return Err(Error::new(Kind::Invalid, context).hint("give an instant or a marker"));
        }
        Point::Marker(_) | Point::LatestApplication | Point::Before(_) => {
            let found = volumes
                .iter()
                .map(|volume| {
                    let named = match point {
                        Point::Before(name) => Point::Marker(name.clone()),
                        other => other.clone(),
                    };
                    let resolved = resolve(&named, &**volume, now)
                        .map_err(|error| of_member(error, group, volume.name()))?;
                    Ok((volume, resolved.lsn, resolved.at))
                })
                .collect::<Result<Vec<_>>>()?;
            let newest = found.iter().map(|(.., at)| *at).max().unwrap_or(now.wall);
            let oldest = found.iter().map(|(.., at)| *at).min().unwrap_or(now.wall);
            // Set while all members stood still, so between the first and the last of them nothing was written.
            for (volume, lsn, _) in &found {
                if volume.lsn_at(newest)? != *lsn || volume.lsn_at(Timestamp(oldest.0 - 1))? != lsn.previous()
                {
                    let context = format!(
                        "the marker was not set on the whole group {group:?} at once: on {} it is at another instant",
                        volume.name()
                    );
                    return Err(Error::new(Kind::Invalid, context)
                        .hint(format!("`cdp mark {group} NAME` sets one for all; or give an instant")));
                }
            }
            match point {
                Point::Before(_) => Timestamp(oldest.0 - 1),
                _ => newest,
            }
        }
    })
}

/// Resolves and describes.
pub fn infos(store: &Store, target: &str, zone: &Zone) -> Result<Vec<PointInfo>> {
    shown_states(store, target, zone)?.iter().map(Target::info).collect()
}

/// An LSN with its instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The record.
    pub lsn: u64,
    /// Its timestamp, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
}

impl Place {
    /// Of a record.
    pub fn new(lsn: Lsn, at: Timestamp) -> Place {
        Place { lsn: lsn.0, utc: format_utc(at), ns: at.0 }
    }
}
