//! One instant of many volumes.
//!
//! What is done to a group as a whole has one timestamp on all members, so that any instant shows all of them before it
//! or all behind it. Rollbacks of a group that were journalled before that was so, and those of members that could follow
//! only later, have several: an instant between these is none of the group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use crate::error::{Error, Kind, Result};
use crate::format::turn::Turn;
use crate::history::point::{Timeline, format_utc};
use crate::ids::{Lsn, Timestamp};

/// The instant of each of these volumes at which they stand as one at `at`: that, for all of them; where it lies between the
/// records of one rollback of their group, the instant of the last of those, or as far towards it as a replica is complete.
pub fn instants_of_all(volumes: &[Arc<Volume>], at: Timestamp) -> Vec<Timestamp> {
    let whole = whole_instant(volumes, at);
    let of_one = |volume: &Arc<Volume>| match whole > at && volume.is_replica() {
        true => whole.min(volume.complete_through().1).max(at),
        false => whole,
    };
    volumes.iter().map(of_one).collect()
}

/// The newest records of the members of a group at an instant.
///
/// # Errors
/// As of [`Volume::lsn_at_common`].
pub fn at_common(members: &[Arc<Volume>], at: Timestamp) -> Result<Vec<(Arc<Volume>, Lsn)>> {
    let instants = instants_of_all(members, at);
    members.iter().zip(instants).map(|(volume, at)| Ok((volume.clone(), volume.lsn_at_common(at)?))).collect()
}

fn whole_instant(volumes: &[Arc<Volume>], at: Timestamp) -> Timestamp {
    // From the first to the last record of each rollback of many.
    let mut spans: BTreeMap<u128, (Timestamp, Timestamp)> = BTreeMap::new();
    for volume in volumes {
        for turn in volume.course().turns() {
            let Turn::Rollback { group: id @ 1.., .. } = turn.turn else { continue };
            let (first, last) = spans.entry(id).or_insert((turn.at, turn.at));
            (*first, *last) = ((*first).min(turn.at), (*last).max(turn.at));
        }
    }
    let mut whole = at;
    // It only rises, to one of finitely many.
    while let Some((_, last)) = spans.values().find(|(first, last)| *first <= whole && whole < *last) {
        whole = *last;
    }
    whole
}

impl Volume {
    /// A rollback of its group is not done on it. The next start does it, at the instant of the others, which may be long over:
    /// until then nobody is told that any instant is.
    pub(crate) fn await_group(&self) {
        self.awaits_group.store(true, Ordering::Relaxed);
    }

    pub(super) fn awaits_group(&self) -> bool {
        self.awaits_group.load(Ordering::Relaxed)
    }

    /// The newest record up to an instant at which all members of a group are to go on; see [`at_common`].
    ///
    /// # Errors
    /// `OutOfRange`: the history here begins later, as that of a member does that was copied anew; its oldest state is not
    /// that of the instant.
    pub fn lsn_at_common(&self, at: Timestamp) -> Result<Lsn> {
        let (_, begins) = self.oldest();
        if at < begins {
            let context = format!(
                "volume {} has nothing older than {}, and the other members are complete only through {}",
                self.name(),
                format_utc(begins),
                format_utc(at)
            );
            return Err(Error::new(Kind::OutOfRange, context).hint(
                "wait until they have caught up, fail over single volumes, or name a point with --to",
            ));
        }
        self.lsn_at(at)
    }
}
