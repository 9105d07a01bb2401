//! A history small enough to be checked by eye, and slow enough to be right.

use crate::error::{Error, Kind, Result};
use crate::history::point::{MarkerAt, Timeline, closest_names};
use crate::ids::{Lsn, Timestamp};

/// Records 0.. with their timestamps; 0 is the creation.
pub(super) struct Fake {
    pub(super) timestamps: Vec<u64>,
    pub(super) horizon: u64,
    pub(super) markers: Vec<(&'static str, u64)>,
    pub(super) application: Option<&'static str>,
    pub(super) proven: Option<u64>,
    /// The store's time now; elapsed time counts back from it, unless a step says otherwise.
    pub(super) now: u64,
    /// So far the clock was set forward a moment ago.
    pub(super) stepped: u64,
}

impl Fake {
    fn named(&self, &(name, lsn): &(&str, u64)) -> MarkerAt {
        MarkerAt { name: name.into(), lsn: Lsn(lsn), at: Timestamp(self.timestamps[lsn as usize]) }
    }

    fn at(&self, lsn: u64) -> (Lsn, Timestamp) {
        (Lsn(lsn), Timestamp(self.timestamps[lsn as usize]))
    }
}

impl Timeline for Fake {
    fn tip(&self) -> (Lsn, Timestamp) {
        self.at(self.timestamps.len() as u64 - 1)
    }

    fn horizon(&self) -> (Lsn, Timestamp) {
        self.at(self.horizon)
    }

    fn lsn_at(&self, at: Timestamp) -> Result<Lsn> {
        assert!(at >= self.horizon().1, "asked for what is before the horizon");
        let newest = self.timestamps.iter().rposition(|&timestamp| timestamp <= at.0);
        newest.map(|lsn| Lsn(lsn as u64)).ok_or_else(|| Error::new(Kind::OutOfRange, "nothing that old"))
    }

    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp> {
        assert!(
            lsn >= self.horizon().0 && lsn <= self.tip().0,
            "asked for {lsn}, which is not in the history"
        );
        Ok(self.at(lsn.0).1)
    }

    fn marker(&self, name: &str) -> Result<Option<MarkerAt>> {
        Ok(self.markers.iter().find(|(known, _)| *known == name).map(|marker| self.named(marker)))
    }

    fn latest_application_marker(&self) -> Result<Option<MarkerAt>> {
        self.application.map_or(Ok(None), |name| self.marker(name))
    }

    fn latest_proven(&self) -> Result<Option<(Lsn, Timestamp)>> {
        Ok(self.proven.map(|lsn| self.at(lsn)))
    }

    fn similar_markers(&self, name: &str) -> Vec<MarkerAt> {
        let names = closest_names(name, self.markers.iter().map(|(known, _)| *known), 3);
        names.iter().filter_map(|name| self.marker(name).unwrap()).collect()
    }

    fn markers_near(&self, at: Timestamp) -> Vec<MarkerAt> {
        let mut near: Vec<MarkerAt> = self.markers.iter().map(|marker| self.named(marker)).collect();
        near.sort_by_key(|marker| marker.at.0.abs_diff(at.0));
        near
    }

    fn elapsed_ago(&self, elapsed_ns: u64) -> Result<Timestamp> {
        let stepped = if elapsed_ns == 0 { 0 } else { self.stepped };
        Ok(Timestamp(self.now.saturating_sub(elapsed_ns).saturating_sub(stepped)))
    }
}
