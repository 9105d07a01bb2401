//! A store whose volumes come and go: clones, groups of clones, the trash; each with its naive model, and a note of what
//! was promised when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;

use crate::harness::check::{Depth, check_volume, thinned};
use crate::harness::rig::{self, STORE, volume_name};
use crate::harness::{Model, Outcome, Workload, wrap};

/// Where a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Live,
    Trash,
    /// Removed for good.
    Gone,
}

/// One volume that ever was.
pub struct Member {
    pub model: Model,
    pub flushed: Lsn,
    pub place: Place,
    pub hydrated: bool,
    /// What it was cloned from.
    pub parent: Option<String>,
}

/// What was promised of one volume.
#[derive(Clone, Debug)]
pub struct Stand {
    acknowledged: Lsn,
    flushed: Lsn,
    horizon: Lsn,
    thinned: BTreeSet<Lsn>,
    place: Place,
    reads_parent: bool,
}

/// What held after so many operations of the disk.
#[derive(Clone, Debug)]
pub struct Milestone {
    pub operations: u64,
    stands: BTreeMap<String, Stand>,
    groups: BTreeMap<String, Vec<String>>,
}

/// A view that somebody has open.
pub struct OpenView {
    pub name: String,
    pub lsn: Lsn,
    pub view: View,
}

/// The store and all that is known of it.
pub struct World {
    pub disk: SimDisk,
    pub clock: SimClock,
    pub store: Option<Store>,
    pub members: BTreeMap<String, Member>,
    pub milestones: Vec<Milestone>,
    pub views: Vec<OpenView>,
    /// Records that all of a group have, or none.
    pub joint: Vec<Vec<(String, Lsn)>>,
    /// Drawn for what happens, and never for checks.
    pub chance: Chance,
    pub edits: Workload,
    /// Nothing dies any more: crashes are looked at by others.
    pub immortal: bool,
    /// For so many steps more the disk is nearly full.
    pub short: u64,
    pub made: u64,
    pub tallied: Tallied,
}

/// How often what was done: an empty mixture shows.
#[derive(Default, Clone, Debug)]
pub struct Tallied {
    pub clones: u64,
    pub group_clones: u64,
    pub hydrated: u64,
    pub rollbacks: u64,
    pub undos: u64,
    pub group_turns: u64,
    pub growths: u64,
    pub deleted: u64,
    pub undeleted: u64,
    pub purged: u64,
    pub emptied: u64,
    pub shorts: u64,
    pub full: u64,
    pub views: u64,
    pub diffs: u64,
    pub refused: u64,
    pub folds: u64,
    pub advanced: u64,
    pub restarts: u64,
    pub crashes: u64,
}

impl Tallied {
    pub fn add(&mut self, other: &Tallied) {
        let pairs = [
            (&mut self.clones, other.clones),
            (&mut self.group_clones, other.group_clones),
            (&mut self.hydrated, other.hydrated),
            (&mut self.rollbacks, other.rollbacks),
            (&mut self.undos, other.undos),
            (&mut self.group_turns, other.group_turns),
            (&mut self.growths, other.growths),
            (&mut self.deleted, other.deleted),
            (&mut self.undeleted, other.undeleted),
            (&mut self.purged, other.purged),
            (&mut self.emptied, other.emptied),
            (&mut self.shorts, other.shorts),
            (&mut self.full, other.full),
            (&mut self.views, other.views),
            (&mut self.diffs, other.diffs),
            (&mut self.refused, other.refused),
            (&mut self.folds, other.folds),
            (&mut self.advanced, other.advanced),
            (&mut self.restarts, other.restarts),
            (&mut self.crashes, other.crashes),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }
}

pub const GROUP: &str = "all";

impl World {
    pub fn new(seed: u64, volumes: usize, segment_bytes: u64) -> Outcome<World> {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        let words = |error: cdp_core::error::Error| format!("making the store: {error}");
        Store::create(&disk, &clock, Path::new(STORE)).map_err(words)?;
        let store = rig::open(&disk, &clock, &wrap::nothing())?;
        let names: Vec<String> = (0..volumes).map(volume_name).collect();
        let mut members = BTreeMap::new();
        for name in &names {
            let volume = store.create_volume(name, &rig::options(segment_bytes), None).map_err(words)?;
            let model = Model::of(&volume);
            let member =
                Member { model, flushed: Lsn::ZERO, place: Place::Live, hydrated: true, parent: None };
            members.insert(name.clone(), member);
        }
        store.add_to_group(GROUP, &names, true).map_err(words)?;
        let mut world = World {
            disk,
            clock,
            store: Some(store),
            members,
            milestones: Vec::new(),
            views: Vec::new(),
            joint: Vec::new(),
            chance: Chance::new(seed ^ 0x0313),
            edits: Workload::new(seed, 1, rig::VOLUME_BYTES),
            immortal: false,
            short: 0,
            made: 0,
            tallied: Tallied::default(),
        };
        world.note()?;
        Ok(world)
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("open between steps")
    }

    pub fn volume(&self, name: &str) -> Outcome<Arc<Volume>> {
        self.store().volume(name).map_err(|error| format!("{name}: {error:?}"))
    }

    pub fn member(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(name).expect("it was made here")
    }

    pub fn live(&self) -> Vec<String> {
        let live = self.members.iter().filter(|(_, member)| member.place == Place::Live);
        live.map(|(name, _)| name.clone()).collect()
    }

    /// Those that read from it, deleted ones included.
    pub fn readers(&self, name: &str) -> usize {
        let reads = |member: &&Member| {
            member.place != Place::Gone && !member.hydrated && member.parent.as_deref() == Some(name)
        };
        self.members.values().filter(reads).count()
    }

    /// Writes down what is promised from here on.
    pub fn note(&mut self) -> Outcome {
        let mut stands = BTreeMap::new();
        let before = self.milestones.last().map(|milestone| milestone.stands.clone()).unwrap_or_default();
        for (name, member) in &mut self.members {
            if member.place == Place::Gone {
                continue;
            }
            if member.place == Place::Trash {
                // What it was when it was moved there.
                let stand = before[name].clone();
                let flushed = stand.acknowledged;
                stands.insert(name.clone(), Stand { place: Place::Trash, flushed, ..stand });
                continue;
            }
            let store = self.store.as_ref().expect("open between steps");
            let volume = store.volume(name).map_err(|error| format!("{name}: {error:?}"))?;
            member.model.settle(&volume).map_err(|broken| format!("{name}: {broken}"))?;
            let stand = Stand {
                acknowledged: member.model.tip(),
                flushed: member.flushed,
                horizon: volume.oldest().0,
                thinned: thinned(&volume),
                place: Place::Live,
                reads_parent: !member.hydrated,
            };
            stands.insert(name.clone(), stand);
        }
        let groups = self.store().groups();
        self.milestones.push(Milestone { operations: self.disk.operations(), stands, groups });
        Ok(())
    }

    /// What had been promised when this operation of the disk was about to happen, and what would be next.
    pub fn around(&self, operation: u64) -> (&Milestone, &Milestone) {
        let next = self.milestones.partition_point(|milestone| milestone.operations < operation);
        let past = &self.milestones[next.saturating_sub(1)];
        (past, self.milestones.get(next).unwrap_or(past))
    }

    pub fn newest(&self) -> &Milestone {
        self.milestones.last().expect("there is one from the beginning")
    }

    /// Everything that is promised of a store that was opened after a crash between the two; `turned` if a rollback of a
    /// group was under way.
    pub fn check(
        &self,
        store: &Store,
        (past, coming): (&Milestone, &Milestone),
        (power, turned): (bool, bool),
        depth: Depth,
        chance: &mut Chance,
    ) -> Outcome {
        let failed = store.failed();
        ensure!(failed.is_empty(), "volumes do not open: {failed:?}");
        let groups = store.groups();
        ensure!(groups == past.groups || groups == coming.groups, "the groups are {groups:?}");
        let volumes = store.volumes();
        let trash: BTreeSet<String> = store
            .trash()
            .map_err(|error| error.to_string())?
            .into_iter()
            .map(|trashed| trashed.name)
            .collect();
        for (name, stand) in &past.stands {
            let next = coming.stands.get(name).map(|next| next.place);
            let is_live = volumes.iter().any(|volume| volume.name() == name);
            let is_trash = trash.contains(name);
            let place = match (is_live, is_trash) {
                (true, false) => Some(Place::Live),
                (false, true) => Some(Place::Trash),
                (false, false) => None,
                (true, true) => return Err(format!("{name} is live, and in the trash")),
            };
            ensure!(
                place == Some(stand.place) || place == next,
                "LOST: {name} is in {place:?}, it was in {:?}",
                stand.place
            );
        }
        for volume in &volumes {
            let name = volume.name();
            let words = |broken: String| format!("{name}: {broken}");
            let (before, after) = (past.stands.get(name), coming.stands.get(name));
            let Some(most) = after.or(before) else { return Err(words("nobody made it".to_owned())) };
            rig::good(volume)?;
            let tip = volume.tip_lsn();
            let floor =
                before.map_or(Lsn::ZERO, |stand| if power { stand.flushed } else { stand.acknowledged });
            ensure!(tip >= floor, "{name}: LOST: {tip:?} is the newest, {floor:?} was promised");
            ensure!(
                turned || tip <= most.acknowledged,
                "{name}: {tip:?} is there, {:?} was asked for",
                most.acknowledged
            );
            // A rollback that the opening had to finish may have needed room, which a full journal makes by its policy.
            let pressed = turned && volume.retention().bytes_max.is_some();
            let oldest = volume.oldest().0;
            ensure!(
                pressed || oldest <= most.horizon,
                "{name}: LOST: the horizon is {oldest:?}, not {:?}",
                most.horizon
            );
            let gone = thinned(volume);
            let lost = gone.difference(&most.thinned).find(|lsn| **lsn >= most.horizon && **lsn <= floor);
            ensure!(pressed || lost.is_none(), "{name}: LOST: {lost:?} was thinned away");
            let reads = volume.parent().is_some();
            let legal = [before.map_or(most.reads_parent, |stand| stand.reads_parent), most.reads_parent];
            ensure!(legal.contains(&reads), "{name} reads from its parent: {reads}");
            let model = &self.members[name].model;
            let (known, turn) = (before.map_or(Lsn::ZERO, |stand| stand.acknowledged), volume.rolled_back());
            let model = match turned && turn > known {
                true => &model.redone(known, turn, most.acknowledged, volume).map_err(words)?,
                false => model,
            };
            check_volume(volume, model, depth, chance).map_err(words)?;
        }
        self.check_joint(&volumes, &trash)
    }

    fn check_joint(&self, volumes: &[Arc<Volume>], trash: &BTreeSet<String>) -> Outcome {
        for joint in &self.joint {
            let is_gone = |name: &String| self.members[name].place == Place::Gone;
            let joint: Vec<_> = joint.iter().filter(|(name, _)| !is_gone(name)).cloned().collect();
            let there = |(name, lsn): &(String, Lsn)| {
                let volume = volumes.iter().find(|volume| volume.name() == name)?;
                Some(volume.tip_lsn() >= *lsn)
            };
            let is_clone = joint.iter().all(|(_, lsn)| *lsn == Lsn::ZERO);
            let done: Vec<bool> = match is_clone {
                // One in the trash is there; only before it was made it is not.
                true => joint.iter().map(|one| there(one).is_some() || trash.contains(&one.0)).collect(),
                false => joint.iter().filter_map(there).collect(),
            };
            ensure!(done.windows(2).all(|two| two[0] == two[1]), "half of a group's {joint:?}: {done:?}");
        }
        Ok(())
    }
}
