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

/// Members with the record whose state each goes on from.
pub type Parts = Vec<(Arc<Volume>, Lsn)>;

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
pub fn at_common(members: &[Arc<Volume>], at: Timestamp) -> Result<Parts> {
    let instants = instants_of_all(members, at);
    members.iter().zip(instants).map(|(volume, at)| Ok((volume.clone(), volume.lsn_at_common(at)?))).collect()
}

/// From where all members of `name` go on, if nobody names a point: the newest instant that all have completely, or that of a
/// newest state that is shown ahead of the history.
pub fn newest_of_all(name: &str, members: &[Arc<Volume>], gives_up: bool) -> Result<(Timestamp, Parts)> {
    // A member that had nothing to send holds nobody back: its source says up to when that is so.
    // Half of a state that is given up ends what history has.
    let complete_of = |volume: &Arc<Volume>| match volume.course().open_gap().filter(|_| gives_up) {
        Some(gap) => gap.complete,
        None => volume.complete_through().1,
    };
    let complete = members.iter().map(complete_of).min().unwrap_or_default();
    // One from before what the volume has completely is of a site that it does not follow any more.
    let is_ahead = |volume: &Volume, at: Timestamp| volume.complete_through().1 < at;
    let shown = |volume: &Volume| {
        volume.coalesced().filter(|newest| !gives_up && is_ahead(volume, newest.state().at))
    };
    let Some(at) = members.iter().find_map(|volume| shown(volume)).map(|newest| newest.state().at) else {
        return Ok((complete, at_common(members, complete)?));
    };
    if instants_of_all(members, at).iter().any(|instant| *instant != at) {
        return Err(has_no_instant(name, members, complete));
    }
    let mut parts = Vec::with_capacity(members.len());
    for volume in members {
        let to = match shown(volume) {
            Some(newest) if newest.state().at == at => newest.state().lsn,
            None if volume.complete_through().1 >= at => volume.lsn_at_common(at)?,
            _ => return Err(has_no_instant(name, members, complete)),
        };
        parts.push((volume.clone(), to));
    }
    Ok((at, parts))
}

/// Members show newest states, and not all of them have the same instant: `complete` is the newest one that all of them have.
fn has_no_instant(name: &str, members: &[Arc<Volume>], complete: Timestamp) -> Error {
    let of_each = members.iter().map(|volume| match volume.coalesced() {
        Some(newest) => format!("{} shows the state of {}", volume.name(), format_utc(newest.state().at)),
        None => format!("{} is complete through {}", volume.name(), format_utc(volume.complete_through().1)),
    });
    let context = format!(
        "the members of {name} have no newest state of one instant: {}",
        of_each.collect::<Vec<_>>().join(", ")
    );
    Error::new(Kind::Refused, context).hint(format!(
        "wait until history is filled in (`cdp replica newest {name}` says how far it is); or `cdp failover {name} --give-up-newest` goes on from {}, which all of them have; or fail over single volumes",
        format_utc(complete)
    ))
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
