//! Volumes that begin as a copy of another site's: the same id, no history of their own.

use std::sync::Arc;

use super::clones::Place;
use super::{FillBase, Store};
use crate::error::{Error, Kind, Result};
use crate::format::history::{BasePoint, HistoryState};
use crate::history::epochs::Epochs;
use crate::ids::*;
use crate::io::Files;
use crate::limits::{SEGMENT_BYTES, SEGMENT_BYTES_SIMULATED_MIN, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};
use crate::volume::role::Role;
use crate::volume::{Identity, Volume};

/// What a replica has in common with its primary.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The volume's name everywhere.
    pub id: VolumeId,
    /// The size in bytes that it was made with, as the primary's manifest has it.
    pub first_size_bytes: u64,
    /// When it was made: the timestamp of LSN 0.
    pub created: Timestamp,
    /// See [`Identity::marker_interval_ns`]; of use once it is promoted.
    pub marker_interval_ns: u64,
    /// Size of its journal segments in bytes; [`SEGMENT_BYTES`] but in simulations. A record of the primary never spans two.
    pub segment_bytes: u64,
    /// See [`Identity::journal_cap_bytes`].
    pub journal_cap_bytes: Option<u64>,
    /// The record whose state a first copy put into the base, with its timestamp, chain value and the volume's size
    /// then; `None`: the replica has the journal from its first record on.
    pub copied: Option<Copied>,
    /// The primary's epochs; those that had begun by the copied state count, the others come with the journal.
    pub epochs: Epochs,
}

/// The state that a first copy ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// Chain value after it.
    pub chain: crate::format::record::Chain,
    /// The volume's size after it, in bytes.
    pub size_bytes: u64,
}

impl Origin {
    /// Whether a volume can have such sizes. The other site says them, and it may be anybody's word.
    pub(super) fn check_sizes(&self, files: &dyn Files) -> Result<()> {
        let sizes = [Some(self.first_size_bytes), self.copied.map(|copied| copied.size_bytes)];
        for size in sizes.into_iter().flatten() {
            if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size) || !size.is_multiple_of(512) {
                return Err(Error::new(Kind::Invalid, format!("a size of {size} bytes for a replica")));
            }
        }
        // The largest request fits into those; once promoted, the replica takes requests. Smaller ones are for simulations.
        let least = if files.is_simulated() { SEGMENT_BYTES_SIMULATED_MIN } else { SEGMENT_BYTES };
        let segment = self.segment_bytes;
        if !(least..=SEGMENT_BYTES).contains(&segment) || !segment.is_multiple_of(BLOCK_BYTES) {
            let context = format!("segments of {segment} bytes for a replica; they have {SEGMENT_BYTES}");
            return Err(Error::new(Kind::Invalid, context));
        }
        Ok(())
    }

    /// What a replica of this name is, and where its journal begins, if not at the beginning.
    pub(super) fn identity(&self, name: &str, now: Timestamp) -> (Identity, Option<(HistoryState, Epochs)>) {
        let identity = Identity {
            name: name.to_owned(),
            id: self.id,
            first_size_bytes: self.first_size_bytes,
            created: self.created,
            segment_bytes: self.segment_bytes,
            journal_cap_bytes: self.journal_cap_bytes,
            marker_interval_ns: self.marker_interval_ns,
            held: None,
            parent: None,
            role: Role::Replica { since: now, ended: None },
            cut: None,
            orphan: None,
            journal_of: None,
        };
        let history = self.copied.map(|copied| HistoryState {
            horizon: (copied.lsn, copied.at),
            base: BasePoint {
                lsn: copied.lsn,
                timestamp: copied.at,
                chain: copied.chain,
                size_bytes: copied.size_bytes,
                epoch: self.epochs.of_record(copied.lsn),
                ..BasePoint::beginning(self.created)
            },
        });
        let begin = history.map(|history| (history, self.epochs.through(history.base.lsn)));
        (identity, begin)
    }
}

impl Store {
    /// Makes an empty replica, or one on top of a copied state that `fill` puts into its base.
    ///
    /// Legal states after a crash: none (an unfinished directory is removed at the next opening), or the whole one.
    ///
    /// # Errors
    /// `Exists` if the store has a volume of this id, also in the trash: two of them would be one history that forks
    /// within a store.
    pub fn create_replica(
        &self,
        name: &str,
        origin: &Origin,
        fill: Option<&mut FillBase<'_>>,
    ) -> Result<Arc<Volume>> {
        origin.check_sizes(&*self.shared.files)?;
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.refuse_second(origin.id)?;
        let (identity, begin) = origin.identity(name, self.shared.clock.now());
        self.make_volume(&identity, fill, None, begin.as_ref())
    }

    /// Says why a replica of this name cannot be made here, if it cannot: before anything is sent for it.
    pub fn refuse_replica(&self, name: &str, id: VolumeId) -> Result<()> {
        self.refuse_if_withheld(name)?;
        if self.volume(name).is_ok() || self.groups().contains_key(name) {
            let context = format!("there is another volume or group named {name:?} at the replica's site");
            return Err(Error::new(Kind::Exists, context));
        }
        self.refuse_second(id)
    }

    /// A store holds one copy of a volume, deleted ones included.
    pub(super) fn refuse_second(&self, id: VolumeId) -> Result<()> {
        let is_it = |place: &Place| place.identity.as_ref().is_some_and(|identity| identity.id == id);
        let Some(place) = self.places()?.into_iter().find(is_it) else { return Ok(()) };
        let deleted = place.name.rsplit_once('.').filter(|_| place.is_trash);
        Err(match deleted {
            // The other site is told this in one line, without a hint.
            Some((name, _)) => Error::new(
                Kind::Exists,
                format!(
                    "{name} was deleted at the replica's site and is in the trash there: `cdp undelete {name}` there brings it back, and after `cdp delete {name} --purge` there it comes anew"
                ),
            ),
            None => Error::new(Kind::Exists, format!("the volume {id} is here already, as {}", place.name))
                .hint("a store holds one copy of a volume; take another store, or remove that one for good"),
        })
    }

    /// The opened volume with this id.
    pub fn volume_by_id(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes().into_iter().find(|volume| volume.identity().id == id)
    }
}
