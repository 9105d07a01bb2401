//! Making replicas primaries, all at one instant.
//!
//! A promotion appends the epoch record behind the newest record that was received and, where an older state is
//! wanted, a rollback to that behind it: nothing is cut, what was received beyond the instant stays in view and can be
//! had back by an undo, and the other site's records are common up to the epoch. Where a newer state is wanted, one that came ahead
//! of its history, it is written behind the epoch record (`takeover.rs`).
//!
//! Order, for all members: receiving stops · epoch records, rollbacks · sync · newer states, sync · roles in the manifests ·
//! clients may write. The store's intent (`store/promotion.rs`) stands from before the first record until after the last role.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::Volume;
use super::role::Role;
use super::rollback::How;
use crate::error::Result;
use crate::format::epoch::Epoch;
use crate::format::turn::Turn;
use crate::ids::*;

/// A volume that is to be the primary.
#[derive(Clone)]
pub struct Member {
    /// It.
    pub volume: Arc<Volume>,
    /// The number of the epoch that begins.
    pub number: EpochNumber,
    /// The record whose state it goes on from; what it has beyond stays in its history. Beyond all it has: that of the newest
    /// state that it shows ahead of its history.
    pub to: Lsn,
}

/// A volume that was promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promoted {
    /// The epoch that began.
    pub epoch: Epoch,
    /// The record whose state it goes on from.
    pub to: Lsn,
}

impl Member {
    fn has_epoch(&self, id: u128) -> bool {
        self.volume.epochs().newest().id == id
    }

    /// Whether there is anything of this promotion in its journal.
    pub(crate) fn has_begun(&self, id: u128) -> bool {
        self.has_epoch(id)
    }

    /// It takes neither writes nor records, as long as this process has it open.
    pub(crate) fn stop(&self, why: &str) {
        let since = self.volume.shared.clock.now();
        self.volume.enter(Role::Fenced { since, by: self.number, why: why.to_owned() });
    }

    fn is_set_back(&self, id: u128) -> bool {
        let epoch = self.volume.epochs().newest();
        let course = self.volume.course();
        let newest = course.newest_rollback().map(|newest| &newest.turn);
        // Beyond it: the epoch says from which state it goes on.
        self.to >= epoch.start.previous() && epoch.id == id
            || matches!(newest, Some(Turn::Rollback { group, .. }) if *group == id)
    }
}

/// Promotes all members, or goes on with that; they are in rising order of their ids, each once, and what they have is
/// durable. `id` names the promotion: it is the id of the epochs, and what the rollbacks carry as group.
///
/// # Errors
/// Whoever asks finds out with [`Member::has_begun`] whether anything was done: if nothing, all is as it was; else none
/// takes writes or records before this was called again with success.
pub(crate) fn promote_all(members: &[Member], id: u128, asked: &str) -> Result<Vec<Promoted>> {
    assert!(
        members.windows(2).all(|pair| pair[0].volume.identity.id < pair[1].volume.identity.id),
        "locks are taken in the order of ids"
    );
    let _changing: Vec<_> = members
        .iter()
        .map(|member| member.volume.role.changing.lock().expect("no panics under this lock"))
        .collect();
    let before: Vec<Role> = members.iter().map(|member| member.volume.role()).collect();
    if let Err(error) = append_all(members, id, asked) {
        if members.iter().all(|member| !member.has_begun(id)) {
            for (member, role) in members.iter().zip(before) {
                member.volume.enter(role);
            }
        }
        return Err(error);
    }
    // On all of them before anything long begins.
    for Member { volume, .. } in members {
        volume.sync_through(volume.tip_lsn())?;
    }
    for Member { volume, .. } in members {
        volume.finish_takeover()?;
    }
    for Member { volume, .. } in members {
        volume.change_manifest(|manifest| manifest.role = Role::Primary)?;
    }
    let mut done = Vec::with_capacity(members.len());
    for Member { volume, to, .. } in members {
        // Numbers of sessions do not come again: those of the other site are in its records.
        volume.sessions.fetch_max(volume.tip_lsn().0 + 1, Ordering::Relaxed);
        volume.enter(Role::Primary);
        done.push(Promoted { epoch: volume.epochs().newest(), to: *to });
    }
    Ok(done)
}

fn append_all(members: &[Member], id: u128, asked: &str) -> Result<()> {
    let ended: Vec<Timestamp> = members.iter().map(|member| member.volume.complete_through().1).collect();
    let mut pins = Vec::with_capacity(members.len());
    for member in members {
        let Member { volume, to, .. } = member;
        volume.refuse_unless_healthy()?;
        // What it has of its own of a newer state counts by other records.
        let history_end =
            if member.has_epoch(id) { volume.epochs().newest().start.previous() } else { volume.tip_lsn() };
        if *to <= history_end {
            pins.push(volume.pin(*to, "a promotion")?);
        }
        // With all locks held nobody can make room any more.
        volume.make_room_for_event();
    }
    let mut locks: Vec<MutexGuard<'_, _>> = members
        .iter()
        .map(|member| member.volume.append.lock().expect("no panics under this lock"))
        .collect();
    let mut aheads = Vec::with_capacity(members.len());
    for ((member, lock), ended) in members.iter().zip(&locks).zip(&ended) {
        let Member { volume, number, to } = member;
        let newest = lock.as_ref().map_or(Timestamp(0), |appender| appender.position.timestamp);
        aheads.push(match member.has_epoch(id) || *to <= volume.tip_lsn() {
            true => None,
            false => Some(volume.ahead_of_epoch(*to, newest.max(*ended))?),
        });
        let why = "it is being promoted".to_owned();
        let role = Role::Fenced { since: volume.shared.clock.now(), by: *number, why };
        volume.enter_under(lock, role);
    }
    // One clock for all: nothing that another site gave is above what comes now.
    for (member, lock) in members.iter().zip(&locks) {
        if let Some(appender) = &**lock {
            member.volume.shared.clock.pass(appender.position.timestamp);
        }
        // Nor within what it said to be complete, or this site when it stepped down.
        member.volume.shared.clock.pass(member.volume.source_complete());
    }
    ended.into_iter().for_each(|at| members.iter().for_each(|member| member.volume.shared.clock.pass(at)));
    // What it goes on from is older than what says so.
    aheads
        .iter()
        .flatten()
        .for_each(|ahead| members.iter().for_each(|member| member.volume.shared.clock.pass(ahead.at)));
    let how = How { group: id, asked: asked.to_owned(), at: None };
    // An epoch record, a marker, a rollback. The last that a member gets has the last of these timestamps, whichever it is:
    // who fails over to a replica of this site finds all members promoted at that instant, or none.
    let Some(first) = members.first() else { return Ok(()) };
    let begins = first.volume.shared.clock.take(3);
    let (set_back, ends) = (Timestamp(begins.0 + 1), Timestamp(begins.0 + 2));
    for ((member, lock), ahead) in members.iter().zip(&mut locks).zip(aheads) {
        let goes_on = member.to == member.volume.tip_lsn();
        if !member.has_epoch(id) {
            let at = if goes_on { ends } else { begins };
            member.volume.append_epoch(lock, member.number, id, asked, at, ahead)?;
        }
        if !member.is_set_back(id) {
            member.volume.roll_back_for_promotion(lock, member.to, &how, set_back)?;
        }
    }
    Ok(())
}
