//! Newest states that replicas here show while the history up to them is filled in.

use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::ids::Lsn;
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::Progress;
use serde::{Deserialize, Serialize};

use super::points::Place;
use crate::units;

/// Which ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    /// Only that of this volume or of this group's members.
    pub volume: Option<String>,
    /// They go.
    pub drop: bool,
}

/// A newest state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestLine {
    /// The volume.
    pub volume: String,
    /// `coming` (nothing of it is shown), `shown`, or `given-up` (it does not come again before the history is there).
    pub state: String,
    /// Which state it is.
    pub place: Place,
    /// Records between the history as it was then and that state which are here.
    pub records: u64,
    /// Of so many.
    pub of_records: u64,
    /// Of one that is coming: up to this byte of the disk it is here.
    pub come_bytes: u64,
    /// The size of the disk in it, in bytes.
    pub size_bytes: u64,
}

impl NewestLine {
    /// What stands before its text.
    pub fn word(&self) -> &'static str {
        if self.state == "shown" { "shows" } else { "newest" }
    }

    /// In words.
    pub fn text(&self) -> String {
        let Place { lsn, utc, .. } = &self.place;
        let filling = format!("filling, {} of {} records", self.records, self.of_records);
        match self.state.as_str() {
            "shown" => format!("LSN {lsn} of {utc}; {filling}"),
            "coming" => format!(
                "LSN {lsn} of {utc} comes ahead of the history, up to {} of {}; it is not shown yet",
                units::size(self.come_bytes),
                units::size(self.size_bytes)
            ),
            _ => format!("LSN {lsn} of {utc} was given up; {filling}"),
        }
    }
}

/// That of a volume.
pub fn of_volume(volume: &Volume) -> Option<NewestLine> {
    let tip = volume.tip_lsn();
    let state = volume.coalesced_state().filter(|state| volume.is_replica() && state.lsn > tip)?;
    let word = match state.progress {
        Progress::Begun => "coming",
        Progress::Whole => "shown",
        Progress::GivenUp => "given-up",
    };
    Some(NewestLine {
        volume: volume.name().to_owned(),
        state: word.to_owned(),
        place: Place::new(state.lsn, state.at),
        records: tip.0.saturating_sub(state.from.0),
        of_records: state.lsn.0 - state.from.0,
        come_bytes: (state.come.blocks * cdp_core::ids::BLOCK_BYTES).min(state.size_bytes),
        size_bytes: state.size_bytes,
    })
}

/// Those that there are; where they are to go, those that are left.
pub fn newest(store: &Store, request: &Newest) -> Result<Vec<NewestLine>> {
    let volumes = match &request.volume {
        Some(name) => store.members(name)?,
        None => store.volumes(),
    };
    if request.drop {
        let mut dropped = false;
        for volume in &volumes {
            dropped |= volume.drop_coalesced()?;
        }
        if !dropped {
            let name = request.volume.as_deref().unwrap_or("this store");
            return Err(Error::new(
                Kind::NotFound,
                format!("{name} has no newest state ahead of its history"),
            ));
        }
    }
    Ok(volumes.iter().filter_map(|volume| of_volume(volume)).collect())
}

/// A promotion to a point goes on from what history has: where a newer state is shown, somebody has to say that it may go.
pub fn refuse_where_shown(name: &str, members: &[(Arc<Volume>, Lsn)]) -> Result<()> {
    for (volume, to) in members {
        let Some(newest) = volume.coalesced() else { continue };
        let state = newest.state();
        let volume_name = volume.name();
        let context = format!(
            "volume {volume_name} shows the state of {} (lsn:{}) while history is filled in, and would go on from {} (lsn:{to})",
            format_utc(state.at),
            state.lsn,
            format_utc(volume.timestamp_of(*to)?)
        );
        return Err(Error::new(Kind::Refused, context).hint(format!(
            "`cdp failover {name}` without --to goes on from the newer state; with --give-up-newest it goes (`cdp restore {volume_name}@lsn:{} FILE` saves it)",
            state.lsn
        )));
    }
    Ok(())
}
