//! What people do at the two sites, wise or not: promote, step down, resync, begin a replica anew.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cdp_core::error::Error;
use cdp_core::history::epochs::Standing;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::volume::Volume;
use cdp_core::volume::role::Role;
use cdp_core::volume::together::{at_common, newest_of_all};

use crate::model::Entry;
use crate::site::Orphan;
use crate::wire::address;
use crate::world::{Outcome, World};

impl World {
    pub fn begin_anew(&mut self) -> Outcome {
        for site in std::mem::take(&mut self.read_from) {
            if self.is_up(site) {
                self.find_orphans(site)?;
                self.make_independent(site);
            }
        }
        for (site, name) in std::mem::take(&mut self.behind) {
            if self.is_up(site) {
                self.copy_anew(site, name)?;
            }
        }
        self.empty_trash()
    }

    /// What a replica needs is gone: somebody asks for a reseed, or removes it, and it begins with a first copy.
    pub fn copy_anew(&mut self, site: usize, name: &'static str) -> Outcome {
        match self.chance.percent(60) && self.reseed(site, name)? {
            true => Ok(()),
            false => self.remove_copy(site, name),
        }
    }

    /// Somebody asks for a reseed, where it is possible; whether he was heard.
    pub fn reseed(&mut self, site: usize, name: &'static str) -> Outcome<bool> {
        let Some(store) = self.sites[site].store.clone() else { return Ok(false) };
        let is_replaceable = self.sites[site].volume(name).is_some_and(|volume| !volume.is_primary());
        if !is_replaceable || !self.make_independent(site) {
            return Ok(false);
        }
        self.say(|| format!("{} wants {name} to be copied anew", self.sites[site].name));
        let planned = store.plan_reseed(name, None, None);
        drop(store);
        self.met.reseeds += u64::from(planned.is_ok());
        if let Err(error) = &planned {
            self.say(|| format!("it was refused: {error}"));
        }
        Ok(planned.is_ok())
    }

    fn remove_copy(&mut self, site: usize, name: &'static str) -> Outcome {
        let Some(store) = self.sites[site].store.clone() else { return Ok(()) };
        if self.sites[site].volume(name).is_none_or(|volume| volume.is_primary())
            || !self.make_independent(site)
        {
            return Ok(());
        }
        self.say(|| format!("{} begins {name} anew", self.sites[site].name));
        self.wires.clear();
        let gone = store.delete_volume(name);
        drop(store);
        match gone {
            // From here on it is nobody's; a crash leaves it in the trash, where it is looked for again.
            Ok(()) => {
                self.sites[site].copies.remove(name);
                self.sites[site].making.remove(name);
                self.met.first_copies += 1;
            }
            Err(_) => self.sites[site].copy(name).leaving = true,
        }
        Ok(())
    }

    /// What was removed is in the way until it is gone for good.
    pub fn empty_trash(&mut self) -> Outcome {
        for site in 0..2 {
            let is_all = self.sites[site].copies.len() == self.names.len();
            let trash = Path::new("/store/trash");
            let trashed = self.sites[site].disk.list(trash).unwrap_or_default();
            if is_all || trashed.is_empty() || !self.is_up(site) || !self.make_independent(site) {
                continue;
            }
            self.wires.clear();
            self.sites[site].crash(&mut self.chance, false);
            for dir in trashed {
                self.sites[site].disk.remove_dir_all(&trash.join(dir.name)).unwrap();
            }
            self.sites[site].open(&mut self.chance)?;
        }
        Ok(())
    }

    /// Orphans read from the volume they were; whether none does any more.
    pub fn make_independent(&mut self, site: usize) -> bool {
        let Some(store) = self.sites[site].store.clone() else { return false };
        let names: Vec<String> = self.sites[site].orphans.iter().map(|orphan| orphan.name.clone()).collect();
        names.iter().all(|orphan| store.hydrate_volume(orphan, &mut |_, _| Ok(())).is_ok())
    }

    /// An operator does something, wise or not.
    pub fn somebody_acts(&mut self) -> Outcome {
        let site = self.chance.below(2) as usize;
        match self.chance.below(12) {
            0..4 => self.failover(site),
            4..6 => self.planned(site),
            6..8 => {
                let name = self.chance.pick(self.names);
                let Some(store) = self.sites[site].store.clone() else { return Ok(()) };
                // Some think better of it.
                if self.is_up(site) && self.chance.percent(25) {
                    self.met.withdrawn += u64::from(store.withdraw_reseed(name).is_ok_and(|was_any| was_any));
                    return Ok(());
                }
                self.reseed(site, name).map(drop)
            }
            _ => self.resync(site),
        }
    }

    /// Promotes all volumes of a site that are none yet.
    pub fn failover(&mut self, site: usize) -> Outcome {
        if !self.is_up(site) {
            return Ok(());
        }
        let volumes = self.sites[site].volumes();
        if volumes.len() < self.names.len() || volumes.iter().any(|volume| volume.is_primary()) {
            return Ok(());
        }
        let is_ahead = volumes.iter().any(|volume| volume.coalesced().is_some());
        let how = self.chance.below(if is_ahead { 12 } else { 4 });
        let members = match how {
            // Some instant that somebody picks.
            0 => {
                let (oldest, tip) = (volumes[0].oldest().0, volumes[0].tip_lsn());
                let lsn = Lsn(oldest.0 + self.chance.below(tip.0 + 1 - oldest.0));
                volumes[0].timestamp_of(lsn).and_then(|instant| at_common(&volumes, instant))
            }
            _ => {
                let gives_up = self.gives_newest_up(&volumes);
                newest_of_all("all", &volumes, gives_up).map(|(_, members)| members)
            }
        };
        let Ok(members) = members else {
            self.met.no_instant += u64::from(volumes.iter().any(|volume| volume.coalesced().is_some()));
            return Ok(());
        };
        // What is refused is shown to nobody: members that are fenced have no instant with those that go on.
        let store = self.sites[site].store.clone().expect("it is up");
        if store.plan_promotion(&members, EpochNumber(0)).is_ok() {
            self.is_consistent(site, &members)?;
            // What is given up goes before: no crash leaves both.
            for (volume, _) in members.iter().filter(|(volume, to)| *to <= volume.tip_lsn()) {
                self.let_newest_go(site, volume.name())?;
            }
        }
        drop(store);
        if !self.is_up(site) {
            drop((members, volumes));
            return self.restart();
        }
        let done = self.promote(site, &members)?;
        self.met.to_points += u64::from(done && how == 0);
        Ok(())
    }

    /// Of two writes, one of which was begun when the other was answered, no instant shows only the later one.
    pub fn is_consistent(&self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome {
        let (here, there) = (&self.sites[site], &self.sites[1 - site]);
        let newest =
            members.iter().map(|(volume, lsn)| here.copies[volume.name()].goes_on_from(*lsn).written()).max();
        for (volume, lsn) in members {
            let Some(whole) = there.copies.get(volume.name()) else { return Ok(()) };
            if !here.copies[volume.name()].log.is_prefix_of(&whole.log) {
                return Ok(());
            }
            let _ = (volume, lsn);
        }
        for (volume, lsn) in members {
            let whole = &there.copies[volume.name()].log;
            if let Some(next) = whole.get(lsn.next())
                && Some(next.id) < newest
            {
                broken!(
                    "{}: {} at {lsn:?} lacks {}, and another member has {newest:?}",
                    here.name,
                    volume.name(),
                    next.id
                );
            }
        }
        Ok(())
    }

    /// Whether it was done.
    pub fn promote(&mut self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome<bool> {
        let store = self.sites[site].store.clone().expect("it is up");
        let (mut targets, mut takes_over) = (Vec::new(), false);
        for (volume, to) in members {
            let name = *self.names.iter().find(|name| **name == volume.name()).expect("one of them");
            targets.push((name, self.sites[site].copies[name].goes_on_from(*to).sectors.clone()));
            if *to > volume.tip_lsn() {
                takes_over = true;
                self.expect_takeover(site, volume)?;
                continue;
            }
            let (epoch, marker) = (self.idle(site, name), self.idle(site, name));
            let id = self.next_id();
            let copy = self.sites[site].copy(name);
            let target = copy.log.at(*to).again(id);
            copy.pending = match *to == copy.log.tip() {
                true => vec![epoch],
                false => vec![epoch, marker, target],
            };
            copy.promoting = true;
        }
        self.say(|| {
            let states: Vec<_> = members
                .iter()
                .map(|(volume, to)| format!("{} {:?} of {:?}", volume.name(), to, volume.tip_lsn()))
                .collect();
            format!("failover at {}: {}", self.sites[site].name, states.join(", "))
        });
        let name = if members.len() == 1 { members[0].0.name() } else { "all" };
        let pending: Vec<Vec<Entry>> =
            members.iter().map(|(volume, _)| self.sites[site].copy(volume.name()).pending.clone()).collect();
        let done = store.promote(name, members, EpochNumber(0), "a test");
        if self.is_up(site) {
            let half = done.is_err()
                && members
                    .iter()
                    .any(|(volume, _)| volume.tip_lsn() > self.sites[site].copies[volume.name()].log.tip());
            self.sites[site].absorb()?;
            if half {
                // What is missing follows at the next try, or the next opening.
                self.met.half_taken += u64::from(takes_over);
                let is_done = takes_over && self.say_it_again(site, members)?;
                self.sites[site].copies.values_mut().for_each(|copy| copy.promoting &= !is_done);
                if !is_done {
                    drop(store);
                    self.finish_half(site, members, &pending)
                        .map_err(|what| format!("a promotion stays half done: {what}"))?;
                }
                return Ok(false);
            }
        }
        match &done {
            Ok(_) => {
                self.met.failovers += 1;
                self.met.takeovers += u64::from(takes_over);
                for (volume, _) in members {
                    let address = address(&self.sites[1 - site]);
                    let _ = volume.add_replica(&address, 0, self.gives_way());
                }
            }
            Err(_) => {
                self.met.failed_failovers += 1;
                if self.is_up(site) && members.iter().any(|(volume, _)| volume.is_primary()) {
                    broken!(
                        "{}: a promotion that failed left a primary: {:?}",
                        self.sites[site].name,
                        done.err()
                    );
                }
                self.say(|| format!("it failed: {:?}", done.as_ref().err()));
                if self.is_up(site) {
                    self.still_show(site, members)?;
                }
            }
        }
        let is_done = done.is_ok();
        drop((done, store));
        self.restart()?;
        if self.sites[site].store.is_none() {
            // Whoever starts it later finishes it.
            return Ok(is_done);
        }
        for copy in self.sites[site].copies.values_mut() {
            copy.promoting = false;
            copy.taking.clear();
        }
        if is_done {
            self.is_promoted(site, &targets)?;
        } else {
            let primaries = self.sites[site].volumes().iter().filter(|volume| volume.is_primary()).count();
            if primaries != 0 && primaries != self.names.len() {
                broken!(
                    "{}: {primaries} of {} volumes are promoted",
                    self.sites[site].name,
                    self.names.len()
                );
            }
        }
        Ok(is_done)
    }

    /// Whoever was told that it is done finds these states, also after a crash.
    fn is_promoted(&self, site: usize, targets: &[(&'static str, Rc<[u32]>)]) -> Outcome {
        let site = &self.sites[site];
        for (name, target) in targets {
            let Some(volume) = site.volume(name) else {
                broken!("{}: {name} is promoted and gone", site.name)
            };
            let (role, newest) = (volume.role(), site.copies[name].log.newest());
            if role != Role::Primary || newest.sectors != *target || newest.hidden {
                broken!("{}: {name} is promoted, a {}, and shows another state", site.name, role.word());
            }
        }
        Ok(())
    }

    /// A full disk stopped it between two members: with room, and a restart, it is finished.
    pub fn finish_half(
        &mut self,
        site: usize,
        members: &[(Arc<Volume>, Lsn)],
        pending: &[Vec<Entry>],
    ) -> Outcome {
        for ((volume, _), pending) in members.iter().zip(pending) {
            let copy = self.sites[site].copy(volume.name());
            let newest = copy.log.newest().id;
            copy.pending = pending.iter().filter(|entry| entry.id > newest).cloned().collect();
        }
        self.crash(site, false);
        self.sites[site].open(&mut self.chance)
    }

    /// Drain, demote, promote: nobody's write may be lost.
    pub fn planned(&mut self, site: usize) -> Outcome {
        if !self.is_up(site) {
            return Ok(());
        }
        let volumes = self.sites[site].volumes();
        if volumes.len() < self.names.len() || !volumes.iter().all(|volume| volume.is_primary()) {
            return Ok(());
        }
        self.met.planned += 1;
        self.say(|| format!("{} steps down", self.sites[site].name));
        let parts: Vec<&Volume> = volumes.iter().map(|volume| &**volume).collect();
        let Ok(through) = Volume::demote_all(&parts) else { return self.restart() };
        let ends: Vec<(&str, Lsn, u64)> = volumes
            .iter()
            .map(|volume| {
                let name = *self.names.iter().find(|name| **name == volume.name()).expect("one of them");
                (name, volume.tip_lsn(), self.sites[site].copy(name).log.newest().id)
            })
            .collect();
        drop(volumes);
        let other = 1 - site;
        let has_all = |world: &World| {
            ends.iter().all(|(name, lsn, _)| {
                let Some(volume) = world.sites[site].volume(name) else { return false };
                volume.replicas().iter().any(|replica| {
                    replica.is_acknowledged && replica.held >= *lsn && replica.complete >= through
                })
            })
        };
        for _ in 0..60 {
            if has_all(self) {
                break;
            }
            self.step()?;
        }
        if !has_all(self) || !self.is_up(other) {
            // Back where it was, or over there with a loss, or nothing for now.
            return match self.chance.below(3) {
                0 => self.failover(site),
                1 => self.failover(other),
                _ => Ok(()),
            };
        }
        // Acknowledged means durable there.
        for (name, lsn, id) in &ends {
            let log = &self.sites[other].copy(name).log;
            if log.get(*lsn).is_none_or(|entry| entry.id != *id) {
                broken!("{name} is drained, and the other site does not have {lsn:?}");
            }
        }
        let volumes = self.sites[other].volumes();
        let complete = volumes.iter().map(|volume| volume.complete_through().1).min().expect("there is one");
        let Ok(members) = at_common(&volumes, complete) else { return Ok(()) };
        for (volume, lsn) in &members {
            let log = &self.sites[other].copies[volume.name()].log;
            if log.at(*lsn).sectors != log.newest().sectors {
                broken!("a planned failover would lose what {} has behind {lsn:?}", volume.name());
            }
        }
        if self.promote(other, &members)? {
            self.met.drained += 1;
        }
        Ok(())
    }

    /// A site that lost sets aside what only it has.
    pub fn resync(&mut self, site: usize) -> Outcome {
        if self.is_up(site) {
            self.find_orphans(site)?;
        }
        for name in self.names {
            if !self.is_up(site) {
                return Ok(());
            }
            let (Some(volume), Some(store)) = (self.sites[site].volume(name), self.sites[site].store.clone())
            else {
                continue;
            };
            let Some(other) = volume.elsewhere() else { continue };
            let ours = volume.epochs().newest().number;
            if other.epochs.newest().number < ours || !self.sites[1 - site].copies.contains_key(name) {
                continue;
            }
            let join = match store.plan_resync(&volume, &other) {
                Ok(join) => join,
                Err(error) => {
                    self.met.refused_resyncs += 1;
                    self.met.split_brains += u64::from(error.to_string().contains("two primaries"));
                    let is_gone = is_to_be_copied(&error);
                    if !is_gone && !error.to_string().contains("two primaries") {
                        broken!("{name} cannot be resynced, and nobody says what helps: {error:?}");
                    }
                    drop(volume);
                    if is_gone {
                        self.copy_anew(site, name)?;
                    }
                    continue;
                }
            };
            if join.standing == Standing::Same {
                continue;
            }
            let before = self.sites[site].copies[name].log.clone();
            let fork = before.common(&self.sites[1 - site].copies[name].log);
            if join.common != fork {
                broken!("{name} parts behind {fork:?}, and resync says {:?}", join.common);
            }
            self.say(|| {
                format!("{} resyncs {name} behind {fork:?} of {:?}", self.sites[site].name, before.tip())
            });
            self.sites[site].note_durable();
            self.sites[site].copy(name).cut = Some(fork);
            // It is no replica for a moment.
            self.sites[site].copy(name).newest_may_go();
            drop(volume);
            let done = store.resync(name, &other);
            drop(store);
            let failed = match done {
                Ok(done) => {
                    self.met.resyncs += 1;
                    let is_tail = before.tip() > fork;
                    if done.orphan.is_some() != is_tail || done.common != fork {
                        broken!("{name}: resynced at {:?}, orphan {}", done.common, done.orphan.is_some());
                    }
                    None
                }
                Err(error) => Some(error),
            };
            if self.is_up(site) {
                // One that was cut, and found no room to be opened again, is there after a restart.
                let is_closed = self.sites[site].volume(name).is_none();
                // Closing the old one may have failed, and all the rest was done.
                let is_cut = self.sites[site]
                    .volume(name)
                    .is_some_and(|volume| volume.is_replica() && volume.tip_lsn() == fork);
                let copy = self.sites[site].copy(name);
                copy.cut = is_closed.then_some(fork);
                if failed.is_none() || is_cut {
                    copy.log.cut(fork);
                    copy.durable = copy.durable.min(fork);
                }
            } else {
                let power = self.chance.percent(50);
                self.crash(site, power);
                self.sites[site].open(&mut self.chance)?;
            }
            self.sites[site].parting.insert(name, (before, fork));
            self.find_orphans(site)?;
            if let Some(error) = failed {
                self.say(|| format!("it failed: {error:?}"));
                if is_to_be_copied(&error) {
                    self.copy_anew(site, name)?;
                    continue;
                }
            }
            self.sites[site].check(name, &mut self.chance, false)?;
        }
        Ok(())
    }

    /// Also one that could not be opened when it was made, for want of room.
    pub fn find_orphans(&mut self, site: usize) -> Outcome {
        let Some(store) = self.sites[site].store.clone() else { return Ok(()) };
        for volume in store.volumes() {
            let is_old = self.sites[site].orphans.iter().any(|known| known.name == volume.name());
            // A member that was closed for want of room, and is open again after a crash.
            let is_aside = self.sites[site].asides.iter().any(|aside| aside.name == volume.name());
            if is_old || is_aside || self.names.contains(&volume.name()) {
                continue;
            }
            let of = self.names.iter().find(|name| volume.name().starts_with(&format!("{name}-orphan-")));
            let Some((log, fork)) = of.and_then(|name| self.sites[site].parting.get(name).cloned()) else {
                broken!("{}: what is {}?", self.sites[site].name, volume.name());
            };
            self.met.orphans += 1;
            let name = volume.name().to_owned();
            self.sites[site].orphans.push(Orphan { name, log, fork });
        }
        self.sites[site].check_orphans()
    }
}

/// Whether whoever is refused a resync is told to have the volume copied anew.
fn is_to_be_copied(error: &Error) -> bool {
    error.hint_text().is_some_and(|hint| hint.contains("`cdp replica reseed"))
}
