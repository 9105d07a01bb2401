//! A store on a simulated disk, its model beside it, and a note of what was promised when.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::ids::*;
use cdp_core::index::IndexOptions;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::volume::parts::Part;
use cdp_core::volume::rollback::{Back, RolledBack};
use cdp_core::volume::{Health, Volume};

use super::model::{Edit, Model};
use super::workload::Step;
use super::wrap::{self, Wrap};
use super::{Outcome, Promise};
use crate::ensure;

/// Where the store stands on every disk.
pub const STORE: &str = "/store";
/// The group that all volumes of a rig with more than one belong to.
pub const GROUP: &str = "all";

/// What held after so many operations of the disk.
pub struct Milestone {
    operations: u64,
    acknowledged: Vec<Lsn>,
    flushed: Vec<Lsn>,
    horizon: Vec<Lsn>,
    thinned: Vec<std::collections::BTreeSet<Lsn>>,
}

/// A store that is driven step by step.
pub struct Rig {
    pub disk: SimDisk,
    pub clock: SimClock,
    pub wrap: Wrap,
    pub store: Option<Store>,
    pub volumes: Vec<Arc<Volume>>,
    pub models: Vec<Model>,
    flushed: Vec<Lsn>,
    milestones: Vec<Milestone>,
    marks: u64,
}

/// The name of a rig's volume.
pub fn volume_name(number: usize) -> String {
    format!("v{number}")
}

/// Opens the store of a disk.
pub fn open(disk: &SimDisk, clock: &SimClock, wrap: &Wrap) -> Outcome<Store> {
    // Few and slow merges would not be met in short workloads; these begin early and last long.
    let index = IndexOptions { merge_runs: 3, merge_rows: 60, ..IndexOptions::default() };
    let options = OpenOptions { holder: "a test", index, ..OpenOptions::default() };
    Store::open_with(wrap(disk), Arc::new(clock.clone()), Path::new(STORE), &options)
        .map_err(|error| format!("the store does not open: {error}"))
}

/// Small segments, so that short workloads span many.
pub fn options(segment_bytes: u64) -> CreateOptions {
    CreateOptions { segment_bytes, ..CreateOptions::new(VOLUME_BYTES) }
}

/// How much larger a volume gets.
const GROWTH_BYTES_MAX: u64 = 64 * BLOCK_BYTES;

/// The smallest volume there is.
pub const VOLUME_BYTES: u64 = 1 << 20;

impl Rig {
    /// A fresh store with so many volumes.
    pub fn new(seed: u64, volumes: usize, segment_bytes: u64) -> Outcome<Rig> {
        Rig::with(seed, volumes, &options(segment_bytes), wrap::nothing())
    }

    /// The same behind a wrapper.
    pub fn with(seed: u64, volumes: usize, options: &CreateOptions, wrap: Wrap) -> Outcome<Rig> {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        let words = |error: cdp_core::error::Error| format!("making the store: {error}");
        Store::create(&*wrap(&disk), &clock, Path::new(STORE)).map_err(words)?;
        let store = open(&disk, &clock, &wrap)?;
        let names: Vec<String> = (0..volumes).map(volume_name).collect();
        for name in &names {
            store.create_volume(name, options, None).map_err(words)?;
        }
        if volumes > 1 {
            store.add_to_group(GROUP, &names, true).map_err(words)?;
        }
        Rig::on(disk, clock, wrap, store, None)
    }

    /// A store that is open already, with what is known of its volumes.
    pub fn on(
        disk: SimDisk,
        clock: SimClock,
        wrap: Wrap,
        store: Store,
        models: Option<Vec<Model>>,
    ) -> Outcome<Rig> {
        let volumes = store.volumes();
        let models = models.unwrap_or_else(|| volumes.iter().map(|volume| Model::of(volume)).collect());
        let flushed = models.iter().map(Model::tip).collect();
        let mut rig = Rig {
            disk,
            clock,
            wrap,
            store: Some(store),
            volumes,
            models,
            flushed,
            milestones: Vec::new(),
            marks: 0,
        };
        rig.note()?;
        Ok(rig)
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("open between steps")
    }

    /// Writes down what is promised from here on.
    fn note(&mut self) -> Outcome {
        for (volume, model) in self.volumes.iter().zip(&mut self.models) {
            model.settle(volume)?;
        }
        self.milestones.push(Milestone {
            operations: self.disk.operations(),
            acknowledged: self.models.iter().map(Model::tip).collect(),
            flushed: self.flushed.clone(),
            horizon: self.volumes.iter().map(|volume| volume.oldest().0).collect(),
            thinned: self.volumes.iter().map(|volume| super::check::thinned(volume)).collect(),
        });
        Ok(())
    }

    /// What was promised when this operation of the disk was about to happen, or half done.
    pub fn promise_at(&self, operation: u64, power: bool) -> Promise {
        let next = self.milestones.partition_point(|milestone| milestone.operations < operation);
        let past = &self.milestones[next.saturating_sub(1)];
        let coming = self.milestones.get(next).unwrap_or(past);
        let floor = if power { &past.flushed } else { &past.acknowledged };
        Promise {
            floor: floor.clone(),
            flushed: past.flushed.clone(),
            ceiling: coming.acknowledged.clone(),
            horizon: coming.horizon.clone(),
            thinned: coming.thinned.clone(),
        }
    }

    /// What is promised now.
    pub fn promise_now(&self, power: bool) -> Promise {
        self.promise_at(u64::MAX, power)
    }

    /// Does one thing; any error of the store is a broken promise here.
    pub fn step(&mut self, step: &Step) -> Outcome {
        self.act(step).map_err(|broken| format!("{broken}, at {}", brief(step)))?;
        self.note()
    }

    fn act(&mut self, step: &Step) -> Outcome {
        let words = |error: cdp_core::error::Error| format!("unexpected error: {error:?}");
        match step {
            Step::Apply { volume, edits, fua } => {
                let changes: Vec<Change<'_>> = edits.iter().map(|edit| edit.change()).collect();
                let mut results = Vec::new();
                self.volumes[*volume].apply(SessionId(1), &changes, &mut results);
                ensure!(results.len() == edits.len(), "{} answers to {}", results.len(), edits.len());
                for (edit, result) in edits.iter().zip(results) {
                    self.models[*volume].push(result.map_err(words)?, edit)?;
                }
                if *fua {
                    self.note()?;
                    self.flush(*volume)?;
                }
            }
            Step::Flush { volume } => self.flush(*volume)?,
            Step::Mark { volume } => {
                let name = self.next_name();
                let (lsn, _) = self.volumes[*volume].mark(&marker(&name)).map_err(words)?;
                self.models[*volume].name(lsn, &name);
                self.flushed[*volume] = lsn;
            }
            Step::MarkGroup if self.volumes.len() > 1 => {
                let name = self.next_name();
                for (volume, lsn, _) in self.store().mark(GROUP, &marker(&name)).map_err(words)? {
                    let number = self.number(&volume);
                    self.models[number].name(lsn, &name);
                    self.flushed[number] = lsn;
                }
            }
            Step::MarkGroup => {}
            Step::Rollback { volume, pick } => {
                let oldest = self.volumes[*volume].oldest().0;
                let mut to = Lsn(oldest.0 + pick % (self.models[*volume].tip().0 - oldest.0 + 1));
                while !self.volumes[*volume].keeps(to) {
                    to = to.next();
                }
                match self.volumes[*volume].rollback(Back::To(to), "lsn") {
                    Ok(done) => self.take_rollback(*volume, to, &done)?,
                    // Where it goes holds all that could make room.
                    Err(error) if error.kind() == Kind::NoSpace => {}
                    Err(error) => return Err(words(error)),
                }
            }
            Step::Undo { volume } => {
                let oldest = self.volumes[*volume].oldest().0;
                let newest = self.models[*volume].rolled_back().filter(|newest| *newest > oldest);
                let newest = newest.filter(|lsn| self.volumes[*volume].keeps(lsn.previous()));
                let Some(newest) = newest else { return Ok(()) };
                match self.volumes[*volume].rollback(Back::Undo, "") {
                    Ok(done) => self.take_rollback(*volume, newest.previous(), &done)?,
                    Err(error) if error.kind() == Kind::NoSpace => {}
                    Err(error) => return Err(words(error)),
                }
            }
            Step::Grow { volume, blocks } => {
                let bytes = self.volumes[*volume].size_bytes() + blocks * BLOCK_BYTES;
                if bytes <= VOLUME_BYTES + GROWTH_BYTES_MAX {
                    let (lsn, _) = self.volumes[*volume].grow(bytes).map_err(words)?;
                    self.models[*volume].grow(lsn, bytes);
                    self.flushed[*volume] = lsn;
                }
            }
            Step::WriteEnd { volume, data } => {
                let offset = self.volumes[*volume].size_bytes() - data.len() as u64;
                let edits = vec![Edit::Write { offset, data: data.clone() }];
                self.act(&Step::Apply { volume: *volume, edits, fua: false })?;
            }
            Step::Session { volume } => {
                let session = self.volumes[*volume].open_session("somebody").map_err(words)?;
                self.volumes[*volume].close_session(session).map_err(words)?;
            }
            Step::Tick => no_errors(self.store().tick())?,
            Step::Maintain => no_errors(self.store().maintain())?,
            Step::Advance { ns } => self.clock.advance(*ns),
            Step::TurnWall { ns } => self.clock.step_wall(*ns),
            Step::Close => {
                self.store().close().map_err(words)?;
                self.reopen()?;
            }
            Step::Die => {
                self.volumes.clear();
                self.store = None;
                self.disk = self.disk.crash_process();
                self.reopen()?;
            }
        }
        Ok(())
    }

    fn take_rollback(&mut self, volume: usize, to: Lsn, done: &RolledBack) -> Outcome {
        ensure!(done.to == to, "set back to {:?}, not to {to:?}", done.to);
        self.models[volume].roll_back(done.lsn, to, &done.marker);
        self.flushed[volume] = done.lsn;
        Ok(())
    }

    fn flush(&mut self, volume: usize) -> Outcome {
        self.volumes[volume].flush().map_err(|error| format!("unexpected error: {error:?}"))?;
        self.flushed[volume] = self.models[volume].tip();
        Ok(())
    }

    fn next_name(&mut self) -> String {
        self.marks += 1;
        format!("mark-{}-{}", self.disk.operations(), self.marks)
    }

    fn number(&self, volume: &Arc<Volume>) -> usize {
        self.volumes.iter().position(|other| Arc::ptr_eq(other, volume)).expect("one of ours")
    }

    /// Opens the store again, whatever became of it before. Everything that was acknowledged must be there,
    /// and is durable from now on.
    pub fn reopen(&mut self) -> Outcome {
        self.volumes.clear();
        self.store = None;
        let store = open(&self.disk, &self.clock, &self.wrap)?;
        self.volumes = store.volumes();
        self.store = Some(store);
        ensure!(self.volumes.len() == self.models.len(), "{} volumes are there", self.volumes.len());
        for (volume, model) in self.volumes.iter().zip(&self.models) {
            good(volume)?;
            let tip = volume.tip_lsn();
            ensure!(tip == model.tip(), "{tip:?} after a restart, {:?} was acknowledged", model.tip());
        }
        self.flushed = self.models.iter().map(Model::tip).collect();
        Ok(())
    }

    /// Segments that are sealed and have their run.
    pub fn sealed(&self) -> usize {
        let is_sealed = |part: &&Arc<Part>| part.frozen.get().is_some_and(|end| end.seal_hash.is_some());
        self.volumes.iter().map(|volume| volume.part_list().iter().filter(is_sealed).count()).sum()
    }

    /// How many of them share a run with others.
    pub fn merged(&self) -> usize {
        let is_merged = |volume: &Arc<Volume>| {
            volume.part_list().iter().filter(|part| part.merged_run().is_some()).count()
        };
        self.volumes.iter().map(is_merged).sum()
    }
}

/// The volume reads and writes.
pub fn good(volume: &Volume) -> Outcome {
    ensure!(
        volume.health() == Health::Good,
        "volume {} is {:?}, {:?}",
        volume.name(),
        volume.health(),
        volume.notes()
    );
    Ok(())
}

/// A named marker.
pub fn marker(name: &str) -> MarkerPayload {
    MarkerPayload {
        class: MarkerClass::Manual,
        group: 0,
        name: name.to_owned(),
        note: "a note".to_owned(),
        tags: vec!["tag".to_owned()],
        hook_output: String::new(),
    }
}

fn no_errors(errors: Vec<cdp_core::error::Error>) -> Outcome {
    ensure!(errors.is_empty(), "unexpected errors: {errors:?}");
    Ok(())
}

/// A step without its bytes.
fn brief(step: &Step) -> String {
    match step {
        Step::Apply { volume, edits, fua } => {
            format!("a request of {} changes to volume {volume}, FUA {fua}", edits.len())
        }
        other => format!("{other:?}"),
    }
}
