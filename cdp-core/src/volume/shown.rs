//! The instants of a replica that shows a newest state ahead of its history: those of the history, and that one.
//!
//! The one place that says which record a point means then. Only for whoever opens it with [`crate::view::View::of`]:
//! everybody else goes by the history alone, for which that state lies beyond its tip.

use std::sync::Arc;

use super::Volume;
use super::coalesced::Coalesced;
use crate::error::{Error, Kind, Result};
use crate::history::point::{MarkerAt, Timeline, format_utc};
use crate::ids::{Lsn, Timestamp};

/// A volume's instants, with the newest state where there is one.
#[derive(Clone)]
pub struct Shown {
    volume: Arc<Volume>,
    newest: Option<Arc<Coalesced>>,
}

impl Shown {
    /// As it is now.
    pub fn of(volume: Arc<Volume>) -> Shown {
        let newest = volume.coalesced();
        Shown { volume, newest }
    }

    /// The newest state, if this record is the one that it stands behind, and not one of the history.
    pub fn newest_at(&self, lsn: Lsn) -> Option<&Arc<Coalesced>> {
        self.newest.as_ref().filter(|newest| newest.state().lsn == lsn)
    }
}

impl Timeline for Shown {
    fn tip(&self) -> (Lsn, Timestamp) {
        match &self.newest {
            Some(newest) => (newest.state().lsn, newest.state().at),
            None => self.volume.tip(),
        }
    }

    fn horizon(&self) -> (Lsn, Timestamp) {
        self.volume.horizon()
    }

    fn lsn_at(&self, at: Timestamp) -> Result<Lsn> {
        let Some(newest) = &self.newest else { return self.volume.lsn_at(at) };
        let state = newest.state();
        match at.cmp(&state.at) {
            std::cmp::Ordering::Equal => Ok(state.lsn),
            std::cmp::Ordering::Greater => {
                let context = format!(
                    "the newest state of volume {} is that of {}: what was written by {} is not known here yet",
                    self.volume.name(),
                    format_utc(state.at),
                    format_utc(at)
                );
                Err(Error::new(Kind::OutOfRange, context).hint("`latest` is the newest state that is here"))
            }
            std::cmp::Ordering::Less if at > self.volume.complete_through().1 => {
                Err(self.volume.is_filling(state))
            }
            std::cmp::Ordering::Less => self.volume.lsn_at(at),
        }
    }

    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp> {
        match &self.newest {
            Some(newest) if newest.state().lsn == lsn => Ok(newest.state().at),
            Some(newest) if lsn > self.volume.tip_lsn() => Err(self.volume.is_filling(newest.state())),
            _ => self.volume.timestamp_of(lsn),
        }
    }

    fn marker(&self, name: &str) -> Result<Option<MarkerAt>> {
        self.volume.marker(name)
    }

    fn latest_application_marker(&self) -> Result<Option<MarkerAt>> {
        self.volume.latest_application_marker()
    }

    fn latest_proven(&self) -> Result<Option<(Lsn, Timestamp)>> {
        self.volume.latest_proven()
    }

    fn similar_markers(&self, name: &str) -> Vec<MarkerAt> {
        self.volume.similar_markers(name)
    }

    fn markers_near(&self, at: Timestamp) -> Vec<MarkerAt> {
        self.volume.markers_near(at)
    }

    fn elapsed_ago(&self, elapsed_ns: u64) -> Result<Timestamp> {
        self.volume.elapsed_ago(elapsed_ns)
    }
}
