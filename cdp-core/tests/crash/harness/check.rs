//! What must hold after a crash: D1 to D6, every view, every timestamp, every name.

use std::collections::BTreeSet;
use std::sync::Arc;

use cdp_core::device::{Device, Read};
use cdp_core::error::Error;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{Boundary, Chance, PowerLoss, SimClock, SimDisk, WALL_START_NS};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;

use super::Outcome;
use super::model::Model;
use super::rig::{self, Rig};
use super::tally::Tally;
use super::workload::Workload;
use super::wrap::Wrap;
use crate::ensure;

/// Between which records each volume's state may stand.
#[derive(Clone, Debug)]
pub struct Promise {
    pub floor: Vec<Lsn>,
    /// What not even a power loss may take; at most `floor`.
    pub flushed: Vec<Lsn>,
    pub ceiling: Vec<Lsn>,
    /// The oldest state of each volume that must be there.
    pub horizon: Vec<Lsn>,
    /// Those behind it that need not be, because they were thinned away.
    pub thinned: Vec<BTreeSet<Lsn>>,
}

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The tip and a few views.
    Quick,
    /// Every view.
    Every,
}

/// Changing operations that one recovery may take: a fixed number and some for each segment file.
const OPERATIONS_MAX: u64 = 60;
const OPERATIONS_PER_SEGMENT_MAX: u64 = 12;
/// Where workloads write mostly: a quick look reads only there.
const FRONT_BLOCKS_READ: u64 = 40;
const BACK_BLOCKS_READ: u64 = 4;

/// Reads blocks of a device.
pub fn read_blocks(device: &dyn Device, first: u64, blocks: u64) -> Result<Vec<u8>, Error> {
    let mut buffer = vec![0xee; (blocks * BLOCK_BYTES) as usize];
    let mut reads = [Read { offset: first * BLOCK_BYTES, buffer: &mut buffer, result: Ok(()) }];
    device.read(&mut reads);
    let [read] = reads;
    read.result?;
    Ok(buffer)
}

/// A device shows just this record's state: everywhere, or where workloads write.
fn shows(device: &dyn Device, model: &Model, lsn: Lsn, everywhere: bool) -> Outcome {
    let (size, expected) = (device.size_bytes(), model.state(lsn).bytes);
    ensure!(size == expected, "{size} bytes at {lsn:?}, it had {expected}");
    let blocks = size / BLOCK_BYTES;
    let places = match everywhere {
        true => vec![(0, blocks)],
        false => vec![(0, FRONT_BLOCKS_READ), (blocks - BACK_BLOCKS_READ, BACK_BLOCKS_READ)],
    };
    for (first, count) in places {
        let bytes =
            read_blocks(device, first, count).map_err(|error| format!("unexpected read error: {error:?}"))?;
        if let Some(lba) = model.state(lsn).differs(first as usize, &bytes) {
            return Err(format!("block {lba} at {lsn:?} is not what was written"));
        }
    }
    Ok(())
}

/// Everything that is promised of one volume.
pub fn check_volume(volume: &Arc<Volume>, model: &Model, depth: Depth, chance: &mut Chance) -> Outcome<u64> {
    let tip = volume.tip_lsn();
    let everywhere = depth == Depth::Every || chance.percent(10);
    shows(&**volume, model, tip, everywhere).map_err(|broken| format!("{broken}; {}", stand(volume, tip)))?;
    let horizon = volume.oldest().0;
    let mut points: Vec<u64> = match depth {
        Depth::Every => (horizon.0..=tip.0).collect(),
        Depth::Quick => (0..3).map(|_| horizon.0 + chance.below(tip.0 - horizon.0 + 1)).collect(),
    };
    points.push(tip.0.saturating_sub(1).max(horizon.0));
    points.push(horizon.0);
    ensure!(
        volume.keeps(tip) && volume.keeps(horizon),
        "the tip or the horizon {horizon:?} was thinned away; folds {:?}; {}",
        folds_of(volume),
        stand(volume, tip)
    );
    check_refused(volume, horizon)?;
    for lsn in &points {
        if !volume.keeps(Lsn(*lsn)) {
            check_gone(volume, Lsn(*lsn))?;
            continue;
        }
        shows(&View::new(volume.clone(), Lsn(*lsn)), model, Lsn(*lsn), everywhere)?;
    }
    check_times(volume, model, tip)?;
    let base = volume.base_point().lsn;
    let expected: Vec<_> =
        model.names(tip).into_iter().filter(|(lsn, _)| *lsn > base && is_there(volume, *lsn)).collect();
    let names: Vec<(Lsn, String)> =
        volume.named_markers().into_iter().map(|(marker, _)| (marker.lsn, marker.name)).collect();
    ensure!(names == expected, "markers {names:?}, expected {expected:?}");
    Ok(points.len() as u64 + 1)
}

fn folds_of(volume: &Volume) -> Vec<(Lsn, Lsn, Vec<Lsn>)> {
    let list = volume.part_list();
    let folds = list.iter().filter_map(|part| part.segment.fold.as_ref());
    let told = folds.map(|fold| {
        let (first, last) = fold.header.lsns;
        (first, last, fold.instants().map(|(lsn, _)| lsn).collect())
    });
    told.collect()
}

/// What the volume believes, for whoever has to find out why it is wrong.
fn stand(volume: &Volume, tip: Lsn) -> String {
    let parts = volume.part_list();
    let parts: Vec<_> =
        parts.iter().map(|part| (part.segment.header.first_lsn.0, part.last_lsn().0)).collect();
    let turns: Vec<_> = volume.course().turns().iter().map(|turn| (turn.lsn, turn.turn.clone())).collect();
    format!(
        "base {:?}, oldest {:?}, parts {parts:?}, turns {turns:?}, visible {:?}, recovery {:?}",
        volume.base_point(),
        volume.oldest(),
        volume.visible(tip),
        volume.notes().recovery
    )
}

/// Whether this record was not thinned away, whether or not it is before the horizon.
fn is_there(volume: &Volume, lsn: Lsn) -> bool {
    let list = volume.part_list();
    let within = |lsns: (Lsn, Lsn)| lsns.0 <= lsn && lsn <= lsns.1;
    let mut folds = list.iter().filter_map(|part| part.segment.fold.as_ref());
    let fold = folds.find(|fold| within(fold.header.lsns));
    fold.is_none_or(|fold| fold.points.iter().any(|point| point.lsn == lsn))
}

/// States from the horizon to the tip that were thinned away.
pub fn thinned(volume: &Volume) -> BTreeSet<Lsn> {
    let (oldest, tip) = (volume.oldest().0, volume.tip_lsn());
    (oldest.0..=tip.0).map(Lsn).filter(|lsn| !volume.keeps(*lsn)).collect()
}

/// What is before the horizon is refused, never shown.
fn check_refused(volume: &Arc<Volume>, horizon: Lsn) -> Outcome {
    if horizon == Lsn::ZERO {
        return Ok(());
    }
    check_gone(volume, horizon.previous())
}

fn check_gone(volume: &Arc<Volume>, gone: Lsn) -> Outcome {
    let horizon = volume.oldest().0;
    ensure!(
        View::open(volume.clone(), gone, "a test").is_err(),
        "{gone:?} opens, the horizon is {horizon:?}"
    );
    ensure!(
        read_blocks(&View::new(volume.clone(), gone), 0, 1).is_err(),
        "{gone:?} is read, the horizon is {horizon:?}"
    );
    Ok(())
}

/// Timestamps are those that were given, and T → LSN is exact.
pub fn check_times(volume: &Volume, model: &Model, tip: Lsn) -> Outcome {
    let words = |error: cdp_core::error::Error| format!("unexpected error: {error:?}");
    let horizon = volume.oldest().0.0;
    let list = volume.part_list();
    // Whether all that was around this record is still known.
    let whole = |lsn: u64| {
        let mut folds = list.iter().filter_map(|part| part.segment.fold.as_ref());
        folds.all(|fold| lsn + 1 < fold.header.lsns.0.0 || lsn > fold.header.lsns.1.0 + 1)
    };
    for lsn in (horizon..=tip.0).rev().filter(|lsn| volume.keeps(Lsn(*lsn))) {
        let at = model.records[lsn as usize].at;
        let found = volume.timestamp_of(Lsn(lsn)).map_err(words)?;
        ensure!(found == at, "lsn {lsn} has the timestamp {found:?}, it was given {at:?}");
        let exact = volume.lsn_at(at).map_err(words)?;
        ensure!(exact.0 == lsn, "at {at:?} stands {exact:?}, lsn {lsn} was expected");
        if !whole(lsn) {
            // Near what is gone an instant may be refused, but never be another state.
            let beside = [(at.0 - 1, lsn.saturating_sub(1)), (at.0 + 1, lsn)];
            for (near, wanted) in beside.into_iter().skip(usize::from(lsn == horizon)) {
                let next = model.records.get(lsn as usize + 1).map_or(0, |record| record.at.0);
                match volume.lsn_at(Timestamp(near)) {
                    Ok(found) => ensure!(
                        found.0 == wanted || near == next && found.0 == lsn + 1,
                        "1 ns beside lsn {lsn} stands {found:?}"
                    ),
                    Err(error) => {
                        ensure!(error.kind() == cdp_core::error::Kind::OutOfRange, "{error:?}");
                    }
                }
            }
            continue;
        }
        if lsn > horizon {
            let before = volume.lsn_at(Timestamp(at.0 - 1)).map_err(words)?;
            ensure!(before.0 == lsn - 1, "1 ns before lsn {lsn} stands {before:?}");
        }
        let behind = volume.lsn_at(Timestamp(at.0 + 1)).map_err(words)?;
        let next_is_there = lsn < tip.0 && model.records[lsn as usize + 1].at.0 == at.0 + 1;
        let expected = lsn + u64::from(next_is_there);
        ensure!(behind.0 == expected, "1 ns after lsn {lsn} stands {behind:?}");
    }
    Ok(())
}

/// Everything that is promised of an opened store.
pub fn check_store(
    store: &Store,
    models: &[Model],
    promise: &Promise,
    depth: Depth,
    chance: &mut Chance,
    tally: &mut Tally,
) -> Outcome<Vec<Lsn>> {
    let failed = store.failed();
    ensure!(failed.is_empty(), "volumes do not open: {failed:?}");
    let volumes = store.volumes();
    ensure!(volumes.len() == models.len(), "{} of {} volumes are there", volumes.len(), models.len());
    let mut tips = Vec::new();
    for (number, (volume, model)) in volumes.iter().zip(models).enumerate() {
        rig::good(volume)?;
        let (tip, floor, ceiling) = (volume.tip_lsn(), promise.floor[number], promise.ceiling[number]);
        ensure!(tip >= floor, "LOST: {tip:?} is the newest, {floor:?} was promised; {:?}", volume.notes());
        let (oldest, wanted) = (volume.oldest().0, promise.horizon[number]);
        ensure!(oldest <= wanted, "LOST: the horizon is {oldest:?}, everything from {wanted:?} on was kept");
        ensure!(volume.base_point().lsn <= oldest, "the base is at {:?}", volume.base_point().lsn);
        let gone = thinned(volume);
        let lost = gone.difference(&promise.thinned[number]).find(|lsn| **lsn >= wanted && **lsn <= floor);
        ensure!(lost.is_none(), "LOST: {lost:?} was thinned away, though it was kept");
        ensure!(tip <= ceiling, "{tip:?} is there, nobody asked for more than {ceiling:?}");
        tally.views += check_volume(volume, model, depth, chance)
            .map_err(|broken| format!("volume {number}, tip {tip:?}: {broken}"))?;
        tips.push(tip);
    }
    Ok(tips)
}

/// A clock after a crash: the wall face may stand before or behind where it was.
fn clock_after(seed: u64) -> SimClock {
    let clock = SimClock::new(seed ^ 0xaf7e4);
    let mut chance = Chance::new(seed);
    clock.set_wall(WALL_START_NS + chance.pick(&[0, 0, 3_600_000_000_000]));
    clock
}

/// Files that a recovery may have to remove.
fn dropped_files(disk: &SimDisk) -> u64 {
    let counts = |path: &&String| [".seg", ".run", ".fold"].iter().any(|suffix| path.contains(suffix));
    disk.paths().iter().filter(counts).count() as u64
}

/// How the machine dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    Process,
    Power(PowerLoss),
}

impl Death {
    fn strike(self, disk: &SimDisk) -> SimDisk {
        match self {
            Death::Process => disk.crash_process(),
            Death::Power(plan) => disk.crash_power_with(plan),
        }
    }

    fn is_power(self) -> bool {
        self != Death::Process
    }
}

/// One crash from a boundary: recovery, all checks, crashes during recovery, and life afterwards.
pub struct Crash<'a> {
    pub models: &'a [Model],
    pub wrap: &'a Wrap,
    pub seed: u64,
    pub depth: Depth,
    /// Crash again at each boundary of the recovery.
    pub nested: bool,
    /// Write on after the recovery, and crash once more.
    pub writes_on: bool,
}

impl Crash<'_> {
    /// Opens the disk after `death` and checks; gives what stands there.
    pub fn check(&self, disk: SimDisk, death: Death, promise: &Promise, tally: &mut Tally) -> Outcome {
        let mut chance = Chance::new(self.seed ^ 0xc4ec);
        let disk = death.strike(&disk);
        tally.crashes += 1;
        let clock = clock_after(self.seed);
        let dropped = dropped_files(&disk);
        let operations = disk.operations();
        disk.record_boundaries(self.nested);
        let store = rig::open(&disk, &clock, self.wrap)?;
        let boundaries = disk.take_boundaries();
        disk.record_boundaries(false);
        let segments = disk.paths().iter().filter(|path| path.ends_with(".seg")).count() as u64;
        let operations = disk.operations() - operations;
        let bound =
            dropped + OPERATIONS_MAX * self.models.len() as u64 + OPERATIONS_PER_SEGMENT_MAX * segments;
        ensure!(operations <= bound, "recovery took {operations} operations, at most {bound} are allowed");
        let tips = check_store(&store, self.models, promise, self.depth, &mut chance, tally)?;
        if self.nested {
            self.check_nested(&boundaries, promise, &tips, tally)?;
            // What was shown is durable.
            let horizon = store.volumes().iter().map(|volume| volume.oldest().0).collect();
            let thinned = store.volumes().iter().map(|volume| thinned(volume)).collect();
            let (floor, flushed, ceiling) = (tips.clone(), tips.clone(), tips.clone());
            let shown = Promise { floor, flushed, ceiling, horizon, thinned };
            let after = Death::Power(PowerLoss::all_lost()).strike(&disk.snapshot().mount(self.seed));
            tally.crashes += 1;
            let again = rig::open(&after, &clock_after(self.seed + 1), self.wrap)?;
            check_store(&again, self.models, &shown, Depth::Quick, &mut chance, tally)
                .map_err(|broken| format!("shown, then gone with the power: {broken}"))?;
            tally.take(&after);
        }
        if self.writes_on {
            self.write_on(disk.clone(), clock, store, &tips, tally)
                .map_err(|broken| format!("after the recovery: {broken}"))?;
        }
        tally.take(&disk);
        Ok(())
    }

    /// D5: a crash during the recovery changes nothing.
    fn check_nested(
        &self,
        boundaries: &[Boundary],
        promise: &Promise,
        tips: &[Lsn],
        tally: &mut Tally,
    ) -> Outcome {
        let mut chance = Chance::new(self.seed ^ 0x0e57);
        for boundary in boundaries {
            for inner in [Death::Process, Death::Power(PowerLoss::seeded(chance.bits()))] {
                let disk = inner.strike(&boundary.snapshot.mount(self.seed));
                tally.crashes += 1;
                // The cache survives a process, so nothing may be lost; power may take what was never synced.
                let flushed = promise.flushed.clone();
                let floor = if inner.is_power() { flushed.clone() } else { tips.to_vec() };
                let (horizon, thinned) = (promise.horizon.clone(), promise.thinned.clone());
                let legal = Promise { floor, flushed, ceiling: tips.to_vec(), horizon, thinned };
                let place = || {
                    format!(
                        "crash ({inner:?}) during recovery at {:?} of {}{}",
                        boundary.what,
                        boundary.path,
                        if boundary.during { ", half done" } else { "" }
                    )
                };
                let store = rig::open(&disk, &clock_after(chance.bits()), self.wrap)
                    .map_err(|broken| format!("{}: {broken}", place()))?;
                check_store(&store, self.models, &legal, Depth::Quick, &mut chance, tally)
                    .map_err(|broken| format!("{}: {broken}", place()))?;
                tally.take(&disk);
            }
        }
        Ok(())
    }

    fn write_on(
        &self,
        disk: SimDisk,
        clock: SimClock,
        store: Store,
        tips: &[Lsn],
        tally: &mut Tally,
    ) -> Outcome {
        let models = self.models.iter().zip(tips).map(|(model, tip)| model.cut(*tip)).collect();
        let mut rig = Rig::on(disk, clock, self.wrap.clone(), store, Some(models))?;
        let mut workload = Workload::new(self.seed ^ 0x0041, rig.volumes.len(), rig::VOLUME_BYTES);
        for _ in 0..6 {
            let step = workload.step();
            rig.step(&step)?;
        }
        let mut chance = Chance::new(self.seed ^ 0x0042);
        let snapshot = rig.disk.snapshot();
        for death in [Death::Process, Death::Power(PowerLoss::seeded(chance.bits()))] {
            let disk = death.strike(&snapshot.mount(self.seed));
            tally.crashes += 1;
            let store = rig::open(&disk, &clock_after(chance.bits()), self.wrap)?;
            let promise = rig.promise_now(death.is_power());
            check_store(&store, &rig.models, &promise, Depth::Quick, &mut chance, tally)
                .map_err(|broken| format!("second crash ({death:?}): {broken}"))?;
            tally.take(&disk);
        }
        Ok(())
    }
}

/// Crashes at every boundary that a rig's disk recorded, by both deaths, with `losses` styles of power loss.
pub fn crash_at_every_boundary(rig: &Rig, seed: u64, losses: u64, tally: &mut Tally) -> Outcome {
    let boundaries = rig.disk.take_boundaries();
    ensure!(!boundaries.is_empty(), "nothing was recorded");
    for (number, boundary) in boundaries.iter().enumerate() {
        let mut chance = Chance::new(seed ^ (number as u64) << 32);
        let mut deaths = vec![Death::Process];
        deaths.extend((0..losses).map(|_| Death::Power(PowerLoss::seeded(chance.bits()))));
        if number % 5 == 0 {
            deaths.push(Death::Power(PowerLoss::all_lost()));
        }
        for death in deaths {
            let crash = Crash {
                models: &rig.models,
                wrap: &rig.wrap,
                seed: chance.bits(),
                depth: if chance.percent(4) { Depth::Every } else { Depth::Quick },
                nested: chance.percent(2),
                writes_on: chance.percent(10),
            };
            let promise = rig.promise_at(boundary.operation, death.is_power());
            let disk = boundary.snapshot.mount(crash.seed);
            crash.check(disk, death, &promise, tally).map_err(|broken| {
                format!(
                    "{broken}\n  boundary {number}: before{} operation {}, {:?} of {}; {death:?}; promised {promise:?}",
                    if boundary.during { " the end of" } else { "" },
                    boundary.operation,
                    boundary.what,
                    boundary.path
                )
            })?;
        }
    }
    Ok(())
}
