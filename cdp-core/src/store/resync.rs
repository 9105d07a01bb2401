//! Making two histories of a volume one again, at the site that lost: what only this site has becomes a clone, a volume of
//! its own with its segments, markers and timestamps; then the journal is cut behind the last common record, and the
//! volume is a replica that can be brought up from there.
//!
//! Order, and the legal states after a crash, each of which the next call (or, from 4 on, the next opening) goes on from:
//!
//! 1. fenced: it takes neither writes nor records.
//! 2. the orphan stands there whole, or not at all. Both volumes have the tail.
//! 3. clones of the tail read from the orphan, some or all; the others still find what they read in the tail.
//! 4. the manifest names the cut: from here on the tail is the orphan's alone.
//! 5. the journal is cut, the role is replica (`volume/cut.rs`).
//!
//! A newest state that came ahead of the history, from beyond what both sites have, is gone before the source is another one
//! (from 1 on, or, where nothing is set aside, just before it follows): nobody is shown it by a replica that follows
//! another history.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::clones::{CLONE_DEPTH_MAX, When};
use super::{Store, TRASH_DIR, VOLUMES_DIR};
use crate::error::{Error, Kind, Result};
use crate::format::epoch::Epoch;
use crate::format::history::{BasePoint, HistoryState};
use crate::format::mark::Mark;
use crate::history::epochs::{Join, Standing};
use crate::ids::*;
use crate::journal::append::Verbatim;
use crate::journal::mark::MarkFile;
use crate::journal::pool::Pool;
use crate::journal::reappend::{self, Cut};
use crate::journal::segment::Fill;
use crate::view::View;
use crate::volume::clone::Parent;
use crate::volume::coalesced::CoalescedState;
use crate::volume::cut::{CutAt, NotPlaced, Orphan};
use crate::volume::durable::read_records;
use crate::volume::epoch::Elsewhere;
use crate::volume::role::Role;
use crate::volume::{Identity, Volume};

/// What a resync did.
#[derive(Clone)]
pub struct Resynced {
    /// The last record that both sites have: the volume stands there now.
    pub common: Lsn,
    /// The volume with what only this site had; `None` if that was nothing.
    pub orphan: Option<Arc<Volume>>,
}

/// Through which record the other site has what this one, where it follows that from now on, has or is shown; `None` where it
/// followed it before.
fn known_to(volume: &Volume, other: &Elsewhere, join: &Join) -> Option<Lsn> {
    match join.standing {
        // What that one does not have yet it may never have.
        Standing::Same if volume.source().is_none_or(|source| source.peer != other.site) => Some(other.tip),
        Standing::Same => None,
        _ => Some(join.common),
    }
}

impl Store {
    /// Where this site's history of a volume and another's part.
    ///
    /// # Errors
    /// `Refused`, each with what to do: this site has the higher epoch; both have the same under two ids; the fork lies
    /// before what is kept here.
    pub fn plan_resync(&self, volume: &Volume, other: &Elsewhere) -> Result<Join> {
        let join = volume.epochs().join(volume.tip_lsn(), &other.epochs, other.tip);
        let (name, theirs) = (volume.name(), other.epochs.newest().number.0);
        match join.standing {
            Standing::Above => {
                let ours = volume.epochs().newest().number.0;
                let context = format!(
                    "volume {name} is in epoch {ours} here and in epoch {theirs} there: this site won"
                );
                return Err(Error::new(Kind::Refused, context).hint("resync at the other site"));
            }
            Standing::SplitBrain => {
                let context = format!("volume {name} has two primaries in epoch {theirs}, here and there");
                return Err(Error::new(Kind::Refused, context).hint(
                    "decide which one goes on, and `cdp failover` there: its epoch is then the higher one; resync at the other",
                ));
            }
            Standing::Same | Standing::Fenced => {}
        }
        if join.ours_beyond && join.common < volume.oldest().0 {
            let context = format!(
                "the last record that both sites have of volume {name} is {:?}, and its history begins at {:?} here",
                join.common,
                volume.oldest().0
            );
            return Err(Error::new(Kind::Refused, context).hint(format!(
                "`cdp replica reseed {name}` keeps it as it is under another name, and makes a new replica"
            )));
        }
        Ok(join)
    }

    /// The newest state that is shown ahead of the history and goes with a resync, because the other site does not have it.
    pub fn newest_given_up(&self, volume: &Volume, other: &Elsewhere, join: &Join) -> Option<CoalescedState> {
        let through = known_to(volume, other, join)?;
        let newest = volume.coalesced()?;
        (newest.state().lsn > through).then(|| newest.state().clone())
    }

    /// The opened volumes that a resync of this one closes and opens anew, if it sets something aside: it and its clones.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn shut_by_resync(&self, name: &str) -> Result<Vec<Arc<Volume>>> {
        let affected = self.with_descendants(self.volume(name)?.identity().id)?;
        Ok(self.volumes().into_iter().filter(|volume| affected.contains(&volume.identity().id)).collect())
    }

    /// Gives up what this site has beyond the last common record, and keeps it as an orphan. The volume and its clones are
    /// closed and opened anew: whoever has one of them open, or a view of one, gets [`Kind::Closed`] until he opens it again.
    ///
    /// # Errors
    /// As [`Store::plan_resync`]; `Refused` if the chain values differ, and both are kept as they are.
    pub fn resync(&self, name: &str, other: &Elsewhere) -> Result<Resynced> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.finish_promotion()?;
        let volume = self.volume(name)?;
        let join = self.plan_resync(&volume, other)?;
        if join.standing == Standing::Same {
            // One history, of which one site has more. Where it comes from may change all the same.
            if volume.is_replica() {
                if let Some(through) = known_to(&volume, other, &join) {
                    volume.drop_coalesced_beyond(through)?;
                }
                volume.set_source(&other.site)?;
            }
            return Ok(Resynced { common: join.common, orphan: None });
        }
        if !join.ours_beyond {
            // The sender's records join here or they do not: that is looked at before the first is taken.
            volume.fence(other.epochs.newest().number, "another site went on")?;
            volume.settle(volume.tip_lsn())?;
            volume.drop_coalesced_beyond(join.common)?;
            volume.set_source(&other.site)?;
            volume.receive_from_here()?;
            return Ok(Resynced { common: join.common, orphan: None });
        }
        let common = volume.stands_at(join.common).map_err(|error| match error.kind() {
            Kind::OutOfRange => {
                let context = format!(
                    "the last record that both sites have of volume {name} is {:?}, and the records around it were thinned here",
                    join.common
                );
                Error::new(Kind::Refused, context)
                    .hint(format!("`cdp replica reseed {name}` keeps it as it is under another name, and makes a new replica"))
            }
            _ => error,
        })?;
        // Where the other site goes on from there with an epoch of its own, that says what it had. Where it is this site
        // that began one, the link looks before it appends the first record, and the tail is kept by then.
        if other.epochs.chain_at(join.common).is_some_and(|chain| chain != common.chain) {
            let context = format!(
                "volume {name}: the sites differ at {:?}, which both should have alike: one of them is not what it was",
                join.common
            );
            return Err(Error::new(Kind::Refused, context)
                .hint("was a store brought back from a copy? Both histories are kept; make a new replica"));
        }
        let newest = other.epochs.newest();
        volume.fence(newest.number, &format!("another site has epoch {}", newest.number.0))?;
        volume.settle(volume.tip_lsn())?;
        volume.drop_coalesced_beyond(join.common)?;
        // From here on it takes nothing before it is cut, and then of this site only.
        volume.set_source(&other.site)?;
        let orphan = self.set_tail_aside(&volume, join.common)?;
        self.reparent_clones(volume.identity().id, join.common, orphan)?;
        let at = CutAt { lsn: common.lsn, chain: common.chain };
        volume.change_manifest(|manifest| manifest.cut = Some(at))?;
        let affected = self.with_descendants(volume.identity().id)?;
        drop(volume);
        self.open_anew(&affected)?;
        self.note_clones()?;
        self.volume(name)?;
        let orphan = self.volumes().into_iter().find(|volume| volume.identity().id == orphan);
        Ok(Resynced { common: join.common, orphan })
    }

    /// The volume with the tail of this one behind the fork: one that an earlier try made, or a new one.
    fn set_tail_aside(&self, volume: &Arc<Volume>, fork: Lsn) -> Result<VolumeId> {
        let tip = volume.stands_at(volume.tip_lsn())?;
        let orphan = Orphan { of: volume.identity().id, fork, through: tip.lsn, chain: tip.chain };
        if let Some(id) = self.orphan_like(&orphan)? {
            return Ok(id);
        }
        if self.depth_of(volume)? >= CLONE_DEPTH_MAX {
            let context =
                format!("volume {} is a clone of a clone, too deep to have one itself", volume.name());
            return Err(Error::new(Kind::Refused, context)
                .hint(format!("`cdp hydrate {}` makes it a volume of its own", volume.name())));
        }
        let epochs = volume.epochs();
        let base = volume.base_of_orphan(fork)?;
        let view = View::open(volume.clone(), base, "a tail that is set aside")?;
        let stands = volume.stands_at(base)?;
        let identity = Identity {
            name: self.orphan_name(volume.name(), epochs.newest())?,
            id: VolumeId(self.shared.clock.random()),
            first_size_bytes: volume.size_at(base),
            created: volume.identity().created,
            segment_bytes: volume.identity().segment_bytes,
            journal_cap_bytes: None,
            marker_interval_ns: volume.identity().marker_interval_ns,
            held: None,
            parent: Some(Parent { id: volume.identity().id, lsn: base }),
            role: Role::Primary,
            cut: None,
            orphan: Some(orphan),
            journal_of: None,
        };
        let history = HistoryState {
            horizon: (base, stands.timestamp),
            base: BasePoint {
                lsn: base,
                timestamp: stands.timestamp,
                chain: stands.chain,
                size_bytes: volume.size_at(base),
                epoch: epochs.of_record(base),
                ..BasePoint::beginning(identity.created)
            },
        };
        volume.hold_for_clone(identity.id, &identity.name, base);
        let begin = (history, epochs.through(base));
        self.make_volume_with(&identity, None, Some(Arc::new(view)), Some(&begin), &mut |dir| {
            self.fill_orphan(volume, &identity, &history.base, dir)
        })?;
        Ok(identity.id)
    }

    /// Writes the tail as the journal of another volume: LSNs, timestamps, epochs, payloads as they are, and a chain of
    /// its own. Synced when this returns.
    fn fill_orphan(
        &self,
        volume: &Volume,
        identity: &Identity,
        base: &BasePoint,
        dir: &std::path::Path,
    ) -> Result<()> {
        let shared = &self.shared;
        let position =
            crate::journal::append::Position { lsn: base.lsn, chain: base.chain, timestamp: base.timestamp };
        let mut pool =
            Pool::new(shared.files.clone(), dir.to_owned(), identity.segment_bytes, Default::default(), 1);
        let incarnation = Incarnation((shared.clock.random() as u64).max(1));
        let cut = Cut {
            predecessor: SegmentId(0),
            predecessor_end: 0,
            position,
            volume: identity.id,
            incarnation,
            previous_incarnation: Incarnation(0),
            epoch: base.epoch,
        };
        let mut chain = base.chain;
        let list = volume.part_list();
        let filled = reappend::reappend(
            cut,
            &mut pool,
            &|| shared.clock.random(),
            &mut |sink| {
                for part in list.iter().filter(|part| part.last_lsn() > base.lsn) {
                    let mut relink = |mut record: Verbatim| {
                        record.header.volume = identity.id;
                        record.header.link(chain);
                        chain = record.header.chain;
                        sink(record)
                    };
                    read_records(&part.segment, part.before, base.lsn, part.last_lsn(), &mut relink)?;
                }
                Ok(())
            },
            &mut NotPlaced,
            Fill::Reserved,
        )?;
        if filled.position.lsn != volume.tip_lsn() {
            let context =
                format!("only {:?} of {:?} could be set aside", filled.position.lsn, volume.tip_lsn());
            return Err(Error::new(Kind::Damaged, context));
        }
        volume.copy_proofs(dir, identity.id, base.lsn)?;
        let mark = Mark {
            volume: identity.id,
            incarnation,
            sequence: 0,
            lsn: filled.position.lsn,
            chain: filled.position.chain,
            timestamp: filled.position.timestamp,
            clean_stop: false,
        };
        MarkFile::create(&*shared.files, dir, mark)
    }

    /// A name for it that is free.
    fn orphan_name(&self, name: &str, epoch: Epoch) -> Result<String> {
        let first = format!("{name}-orphan-{}", epoch.number.0);
        let is_free = |name: &String| {
            let taken = self.volumes.lock().expect("no panics under this lock").contains_key(name)
                || self.failed.lock().expect("no panics under this lock").contains_key(name)
                || self.groups.lock().expect("no panics under this lock").contains_key(name);
            !taken && self.shared.files.list(&self.path.join(VOLUMES_DIR).join(name)).is_err()
        };
        let others = (2..1000).map(|number| format!("{first}-{number}"));
        std::iter::once(first.clone())
            .chain(others)
            .find(is_free)
            .ok_or_else(|| Error::new(Kind::Exists, format!("there are too many volumes named {first}-…")))
    }

    /// Lets go of a volume and of what reads from it, carries out what its manifest says, and opens them again.
    fn open_anew(&self, affected: &BTreeSet<VolumeId>) -> Result<()> {
        let taken = self.take_out(affected);
        self.send_away(&taken.iter().map(|volume| volume.name().to_owned()).collect::<Vec<_>>());
        let mut places = Vec::new();
        let mut closed = Ok(());
        for volume in taken {
            // What one of them could not sync or seal its next opening finds as after a crash; no other is left shut for it.
            closed = closed.and(volume.close());
            let is_hidden = volume.dir().starts_with(self.path.join(TRASH_DIR));
            places.push((volume.name().to_owned(), volume.dir().to_owned(), is_hidden));
        }
        for (name, dir, is_hidden) in places {
            let is_open = self.volumes.lock().expect("no panics under this lock").contains_key(&name);
            // One in the trash is opened when somebody reads from it.
            if !is_hidden && !is_open {
                self.open_by_dir(&name, &dir, When::Live);
            }
        }
        closed
    }

    /// Takes opened volumes out of everybody's sight.
    fn take_out(&self, affected: &BTreeSet<VolumeId>) -> Vec<Arc<Volume>> {
        let mut taken = Vec::new();
        let mut volumes = self.volumes.lock().expect("no panics under this lock");
        let mut hidden = self.hidden.lock().expect("no panics under this lock");
        volumes.retain(|_, volume| {
            let is_affected = affected.contains(&volume.identity().id);
            if is_affected {
                taken.push(volume.clone());
            }
            !is_affected
        });
        hidden.retain(|id, volume| {
            let is_affected = affected.contains(id);
            if is_affected {
                taken.push(volume.clone());
            }
            !is_affected
        });
        taken
    }
}
