//! Markers on demand.

use std::collections::BTreeMap;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::point::{Timeline, escape_uri, format_utc, validate_marker_name};
use cdp_core::limits::{NOTE_BYTES_MAX, TAGS_MAX};
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

/// A marker to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// A volume or a group.
    pub target: String,
    /// Its name; without it one is made of the instant.
    pub name: Option<String>,
    /// Free text.
    pub note: String,
    /// Labels.
    pub tags: Vec<String>,
    /// It is set between quiesce and thaw of the application; what the quiesce hook printed.
    pub application: Option<String>,
}

/// A marker that was set on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// The volume.
    pub volume: String,
    /// The marker's name.
    pub name: String,
    /// Its record.
    pub lsn: u64,
    /// When, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
    /// The export that shows this state.
    pub export: String,
    /// The same, escaped for a URI.
    pub uri_name: String,
    /// The record that the name meant until now, if it meant one.
    #[serde(default)]
    pub before_lsn: Option<u64>,
}

/// Refuses what no marker can be called or say; for those who set it only when a long work is done.
pub fn check(mark: &Mark) -> Result<()> {
    if mark.note.len() > NOTE_BYTES_MAX || mark.tags.len() > TAGS_MAX {
        let context = format!("a note has at most {NOTE_BYTES_MAX} bytes, and a marker {TAGS_MAX} tags");
        return Err(Error::new(Kind::Invalid, context));
    }
    mark.name.as_deref().map_or(Ok(()), validate_marker_name)
}

/// Sets a marker; it is durable when this returns.
pub fn mark(store: &Store, mark: &Mark) -> Result<Vec<Marked>> {
    check(mark)?;
    let payload = MarkerPayload {
        class: if mark.application.is_some() { MarkerClass::Application } else { MarkerClass::Manual },
        group: 0,
        name: mark.name.clone().unwrap_or_else(|| automatic_name(store)),
        note: mark.note.clone(),
        tags: mark.tags.clone(),
        hook_output: mark.application.clone().unwrap_or_default(),
    };
    let before = named_before(store, &mark.target, &payload.name)?;
    let marked = store.mark(&mark.target, &payload)?;
    let line = |(volume, lsn, at): (std::sync::Arc<cdp_core::volume::Volume>, _, _)| {
        let (lsn, at): (cdp_core::ids::Lsn, cdp_core::ids::Timestamp) = (lsn, at);
        let export = format!("{}@{}", volume.name(), payload.name);
        Marked {
            volume: volume.name().to_owned(),
            name: payload.name.clone(),
            lsn: lsn.0,
            utc: format_utc(at),
            ns: at.0,
            uri_name: escape_uri(&export),
            export,
            before_lsn: before.get(volume.name()).copied(),
        }
    };
    Ok(marked.into_iter().map(line).collect())
}

/// What a name means, by volume, before it is given anew.
fn named_before(store: &Store, target: &str, name: &str) -> Result<BTreeMap<String, u64>> {
    let mut before = BTreeMap::new();
    for volume in store.members(target)? {
        if let Some((lsn, _)) = volume.marker(name)?.map(|marker| (marker.lsn, marker.at)) {
            before.insert(volume.name().to_owned(), lsn.0);
        }
    }
    Ok(before)
}

/// `mark-20261121T100000.123Z`: sorts by time, and is no time that the point syntax would read.
fn automatic_name(store: &Store) -> String {
    let utc = format_utc(store.clock().now());
    let digits: String = utc.chars().take(23).filter(|c| !matches!(c, '-' | ':')).collect();
    format!("mark-{digits}Z")
}
