//! Disks that fail, lie, fill up or are slow, under a store that is in use.

use cdp_core::device::{Change, Device};
use cdp_core::error::{Error, Kind};
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, PowerLoss, SimClock, SimDisk, When};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::{Health, Volume};
use std::sync::Arc;

use crate::harness::check::read_blocks;
use crate::harness::model::Edit;
use crate::harness::rig::{self, marker};
use crate::harness::tally::with_seeds;
use crate::harness::workload::Step;
use crate::harness::{Model, Outcome, Rig, Tally, Workload, wrap};

/// What a disk may do that is not its fault alone to hide.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Honesty {
    /// It says what fails: nothing durable may be lost, and after a restart all is well.
    Honest,
    /// It stores wrong or nothing and says yes: never wrong bytes, never silence about what the mark covers.
    Lying,
}

/// What happened to requests while faults struck.
#[derive(Default, Debug)]
struct Seen {
    writes_failed: u64,
    flushes_failed: u64,
    duties_failed: u64,
    read_only: u64,
    went_on: u64,
    blocks_refused: u64,
    refused_after_restart: u64,
}

/// A rig whose steps may fail.
struct Trial<'a> {
    rig: Rig,
    seen: &'a mut Seen,
    /// What an answered flush covers.
    flushed: Lsn,
    /// What seals or the mark witness for certain.
    marked: Lsn,
    /// Requests that were answered with an error since the last success, each a list of records (`None`: one
    /// that changes no block). A crash may bring up the front of one of them.
    ghosts: Vec<Vec<Option<Edit>>>,
}

impl<'a> Trial<'a> {
    fn new(rig: Rig, seen: &'a mut Seen) -> Trial<'a> {
        let flushed = rig.models[0].tip();
        Trial { rig, seen, flushed, marked: flushed, ghosts: Vec::new() }
    }

    fn volume(&self) -> &Arc<Volume> {
        &self.rig.volumes[0]
    }

    /// Does a step; errors must be named, and a failed change must have had no effect.
    fn step(&mut self, step: &Step) -> Outcome {
        let store = self.rig.store.as_ref().ok_or("no store")?;
        match step {
            Step::Apply { edits, fua, .. } => {
                let changes: Vec<Change<'_>> = edits.iter().map(Edit::change).collect();
                let mut results = Vec::new();
                self.volume().clone().apply(SessionId(1), &changes, &mut results);
                let mut ghost = Vec::new();
                for (edit, result) in edits.iter().zip(results) {
                    match result {
                        Ok(lsn) => {
                            self.rig.models[0].push(lsn, edit)?;
                            self.ghosts.clear();
                            ghost.clear();
                        }
                        Err(error) => {
                            self.seen.writes_failed += 1;
                            ghost.push(Some(edit.clone()));
                            self.ghosts.push(vec![Some(edit.clone())]);
                            expected(&error)?;
                        }
                    }
                }
                self.ghosts.push(ghost);
                if *fua {
                    self.flush()?;
                }
            }
            Step::Flush { .. } => self.flush()?,
            Step::Mark { .. } | Step::MarkGroup => {
                let name = format!("mark-{}", self.rig.disk.operations());
                match self.volume().mark(&marker(&name)) {
                    Ok((lsn, _)) => {
                        self.rig.models[0].name(lsn, &name);
                        self.flushed = lsn;
                    }
                    Err(error) => expected(&error)?,
                }
            }
            Step::Session { .. } => drop(self.volume().open_session("somebody")),
            Step::Tick => self.seen.duties_failed += store.tick().len() as u64,
            Step::Maintain => self.seen.duties_failed += store.maintain().len() as u64,
            Step::Advance { ns } => self.rig.clock.advance(*ns),
            Step::TurnWall { ns } => self.rig.clock.step_wall(*ns),
            Step::Close | Step::Die => {}
            // These workloads do not turn.
            Step::Rollback { .. } | Step::Undo { .. } | Step::Grow { .. } | Step::WriteEnd { .. } => {}
        }
        if !matches!(step, Step::Apply { .. } | Step::Flush { .. }) {
            self.ghosts.push(vec![None]);
        }
        let volume = self.volume().clone();
        self.rig.models[0].settle(&volume)
    }

    fn flush(&mut self) -> Outcome {
        let tip = self.volume().tip_lsn();
        match self.volume().flush() {
            Ok(()) => self.flushed = tip,
            Err(error) => {
                self.seen.flushes_failed += 1;
                expected(&error)?;
            }
        }
        Ok(())
    }

    /// Reads of the live volume: the right bytes or an error.
    fn reads_right(&mut self) -> Outcome {
        let volume = self.volume().clone();
        let (refused, _) = right_or_refused(&*volume, &self.rig.models[0], volume.tip_lsn())?;
        self.seen.blocks_refused += refused;
        Ok(())
    }

    /// After the faults: one death each way, and what is found then.
    fn end(&mut self, seed: u64, honesty: Honesty, tally: &mut Tally) -> Outcome {
        match self.volume().health() {
            Health::Good => self.seen.went_on += 1,
            Health::ReadOnly { reason, hint } => {
                ensure!(!reason.is_empty() && !hint.is_empty(), "read-only without a reason");
                self.seen.read_only += 1;
            }
            Health::Closed => return Err("closed by itself".into()),
        }
        self.rig.disk.clear_faults();
        let snapshot = self.rig.disk.snapshot();
        let mut chance = Chance::new(seed ^ 0xfa17);
        for (evict, power) in [(false, None), (true, None), (false, Some(PowerLoss::all_lost()))]
            .into_iter()
            .chain([(true, Some(PowerLoss::seeded(chance.bits())))])
        {
            let disk = snapshot.mount(seed);
            if evict {
                disk.evict_all();
            }
            let disk = match power {
                None => disk.crash_process(),
                Some(plan) => disk.crash_power_with(plan),
            };
            tally.crashes += 1;
            // What the cache forgot after a failed sync is as gone as after a power loss.
            let floor = if evict || power.is_some() { self.flushed } else { self.rig.models[0].tip() };
            self.found(&disk, honesty, floor).map_err(|broken| {
                format!(
                    "{broken}\n  evicted {evict}, {power:?}; floor {floor:?}, tip {:?}",
                    self.rig.models[0].tip()
                )
            })?;
            tally.take(&disk);
        }
        Ok(())
    }

    fn found(&mut self, disk: &SimDisk, honesty: Honesty, floor: Lsn) -> Outcome {
        let clock = SimClock::new(floor.0 ^ 0x0f0f);
        let store = match rig::open(disk, &clock, &self.rig.wrap) {
            Ok(store) => store,
            Err(_) if honesty == Honesty::Lying => {
                self.seen.refused_after_restart += 1;
                return Ok(());
            }
            Err(broken) => return Err(broken),
        };
        let Some(volume) = store.volumes().first().cloned() else {
            ensure!(honesty == Honesty::Lying, "the volume does not open: {:?}", store.failed());
            self.seen.refused_after_restart += 1;
            return Ok(());
        };
        let tip = volume.tip_lsn();
        let good = volume.health() == Health::Good;
        let model = self.with_ghosts(&volume)?;
        let (refused, read) = right_or_refused(&*volume, &model, tip)?;
        for lsn in [tip.0 / 3, tip.0 * 2 / 3, tip.0.saturating_sub(1)] {
            right_or_refused(&View::new(volume.clone(), Lsn(lsn)), &model, Lsn(lsn))?;
        }
        self.seen.blocks_refused += refused;
        // A disk that loses every fifth write may leave nothing that can be read.
        ensure!(read > 0 || honesty == Honesty::Lying, "nothing at all can be read");
        if honesty == Honesty::Honest {
            ensure!(good, "{:?}, {:?}", volume.health(), volume.notes());
            ensure!(refused == 0, "{refused} blocks cannot be read");
            ensure!(tip >= floor, "LOST: {tip:?} is the newest; {:?}", volume.notes());
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &[7; 4096] }], &mut results);
            results.remove(0).and_then(|_| volume.flush()).map_err(|error| format!("{error:?}"))?;
        } else if good {
            ensure!(tip >= self.marked, "LOST in silence: {tip:?}, the mark said {:?}", self.marked);
        } else {
            self.seen.refused_after_restart += 1;
        }
        Ok(())
    }

    /// The model, with the records of a request that failed if they are there after all.
    fn with_ghosts(&self, volume: &Arc<Volume>) -> Outcome<Model> {
        let model = &self.rig.models[0];
        let more = volume.tip_lsn().0.saturating_sub(model.tip().0) as usize;
        if more == 0 {
            return Ok(model.clone());
        }
        for ghost in self.ghosts.iter().filter(|ghost| ghost.len() >= more) {
            let mut model = model.clone();
            for edit in &ghost[..more] {
                let nothing = Edit::Write { offset: 0, data: Vec::new() };
                model.push(model.tip().next(), edit.as_ref().unwrap_or(&nothing))?;
            }
            if right_or_refused(&**volume, &model, model.tip()).is_ok() {
                return Ok(model);
            }
        }
        Err(format!("{more} records are there that nobody asked for: {:?}", volume.notes()))
    }
}

/// An error that a client may meet while a disk fails.
fn expected(error: &Error) -> Outcome {
    let kinds = [Kind::Io, Kind::NoSpace, Kind::ReadOnly, Kind::Damaged];
    ensure!(kinds.contains(&error.kind()), "unexpected error: {error:?}");
    Ok(())
}

/// Reads block by block; how many were refused, and how many are right.
fn right_or_refused(device: &dyn Device, model: &Model, lsn: Lsn) -> Outcome<(u64, u64)> {
    let blocks = device.size_bytes() / BLOCK_BYTES;
    let (mut refused, mut right) = (0, 0);
    if let Ok(bytes) = read_blocks(device, 0, 30) {
        let wrong = model.state(lsn).differs(0, &bytes);
        ensure!(wrong.is_none(), "WRONG bytes: block {wrong:?} at {lsn:?}");
        right += 30;
    }
    let rest = if right > 0 { blocks - 4..blocks } else { 0..30 };
    for lba in rest {
        match read_blocks(device, lba, 1) {
            Ok(bytes) => {
                ensure!(
                    model.state(lsn).block_is(lba as usize, &bytes),
                    "WRONG bytes: block {lba} at {lsn:?}"
                );
                right += 1;
            }
            Err(error) => {
                expected(&error)?;
                refused += 1;
            }
        }
    }
    Ok((refused, right))
}

const KINDS: [(FaultKind, Honesty); 9] = [
    (FaultKind::WriteError, Honesty::Honest),
    (FaultKind::SyncError, Honesty::Honest),
    (FaultKind::SyncErrorPartial, Honesty::Honest),
    (FaultKind::DirectorySyncError, Honesty::Honest),
    (FaultKind::NameError, Honesty::Honest),
    (FaultKind::ReadError, Honesty::Honest),
    (FaultKind::Slow { ns: 300_000_000 }, Honesty::Honest),
    (FaultKind::LostWrite, Honesty::Lying),
    (FaultKind::MisdirectedWrite, Honesty::Lying),
];

fn run(seed: u64, fault: Fault, honesty: Honesty, seen: &mut Seen, tally: &mut Tally) -> Outcome {
    let mut rig = Rig::new(seed, 1, 64 << 10)?;
    rig.disk.set_clock(rig.clock.clone());
    let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
    for _ in 0..12 {
        let step = workload.step();
        if !matches!(step, Step::Die | Step::Close) {
            rig.step(&step)?;
        }
    }
    rig.step(&Step::Advance { ns: 1_100_000_000 })?;
    rig.step(&Step::Maintain)?;
    rig.disk.inject(fault);
    let mut trial = Trial::new(rig, seen);
    trial.marked = trial.volume().durable_lsn();
    trial.flushed = trial.marked;
    for number in 0..40 {
        let step = workload.step();
        trial.step(&step).map_err(|broken| format!("{broken}, at step {number}"))?;
        if number % 8 == 7 {
            trial.reads_right()?;
        }
    }
    let outcome = trial.end(seed, honesty, tally);
    tally.take(&trial.rig.disk);
    outcome
}

/// A disk that fails once, at any write, sync or name of any file, must never lead to wrong bytes, nor to the
/// loss of what was promised: a database would find out months later.
#[test]
fn one_fault_of_each_kind_everywhere() {
    let mut tally = Tally::default();
    let mut seen = Seen::default();
    with_seeds("one_fault_of_each_kind_everywhere", 300, 2, &mut tally, |seed, tally| {
        for (kind, honesty) in KINDS {
            for file in [".seg", "mark", ".run", "/v0"] {
                for nth in [1, 2, 3, 5, 8, 13, 21, 34] {
                    let fault = Fault::new(kind, When::Nth(nth)).on(file);
                    run(seed * 31 + nth, fault, honesty, &mut seen, tally)
                        .map_err(|broken| format!("{broken}\n  {kind:?} at the {nth}th on {file}"))?;
                }
            }
        }
        Ok(())
    });
    println!("one fault: {seen:?}; {tally}");
    let counts = tally.counts;
    assert!(counts.write_errors > 0 && counts.sync_errors > 0 && counts.directory_sync_errors > 0);
    assert!(counts.name_errors > 0 && counts.read_errors > 0 && counts.slow > 0);
    assert!(counts.lost_writes > 0 && counts.misdirected_writes > 0 && counts.evicted_pages > 0);
    assert!(seen.writes_failed > 0 && seen.flushes_failed > 0 && seen.went_on > 0);
}

/// A disk that goes on failing: the volume may give up writing, but keeps what it promised.
#[test]
fn faults_that_stay() {
    let mut tally = Tally::default();
    let mut seen = Seen::default();
    with_seeds("faults_that_stay", 700, 12, &mut tally, |seed, tally| {
        for (kind, honesty) in KINDS {
            for when in [When::From(3), When::From(20), When::PerMille(30), When::PerMille(200)] {
                let fault = Fault::new(kind, when).on("/v0");
                run(seed, fault, honesty, &mut seen, tally)
                    .map_err(|broken| format!("{broken}\n  {kind:?}, {when:?}"))?;
            }
        }
        Ok(())
    });
    println!("faults that stay: {seen:?}; {tally}");
    assert!(seen.read_only > 0, "a disk that never works again makes a volume read-only");
}

/// A sync fails with the semantics of ext4: the next one succeeds, the cache shows the new bytes, the disk has
/// the old. What was acknowledged must come to stand elsewhere before any flush is answered.
#[test]
fn after_a_failed_sync_service_goes_on() {
    for seed in 0..40 {
        let mut rig = Rig::new(seed, 1, 64 << 10).expect("a store");
        let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
        let mut apply = |rig: &mut Rig, fua| {
            let edits = vec![workload.edit()];
            rig.step(&Step::Apply { volume: 0, edits, fua }).unwrap_or_else(|b| panic!("seed {seed}: {b}"));
        };
        (0..seed % 9).for_each(|number| apply(&mut rig, number % 3 == 0));
        apply(&mut rig, false);
        rig.disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)).on(".seg"));
        let answer = rig.volumes[0].flush().map_err(|error| error.kind());
        assert_eq!(answer, Err(Kind::Io), "seed {seed}: the flush that failed says so");
        assert_eq!(rig.volumes[0].health(), Health::Good, "seed {seed}: {:?}", rig.volumes[0].notes());
        assert!(rig.volumes[0].notes().last_error.is_some(), "seed {seed}: and somebody can read why");
        (0..4).for_each(|_| apply(&mut rig, true));
        let (disk, clock) = (rig.disk.crash_power_with(PowerLoss::all_lost()), SimClock::new(seed + 1));
        let store = rig::open(&disk, &clock, &rig.wrap).expect("it opens");
        let tip = store.volumes()[0].tip_lsn();
        assert_eq!(tip, rig.models[0].tip(), "seed {seed}: {:?}", store.volumes()[0].notes());
    }
}

/// A disk that is full at any moment: the write fails and has no effect; once there is space, writing goes on
/// without a restart, and nothing that was promised is gone.
#[test]
fn out_of_space_at_every_point() {
    let mut tally = Tally::default();
    let mut seen = Seen::default();
    let mut resumed = 0;
    with_seeds("out_of_space_at_every_point", 900, 2, &mut tally, |seed, tally| {
        for pages in 0..110 {
            // Half of them without a cap of the journal's own, so that the filesystem itself runs out.
            let cap = (pages % 2 == 0).then_some(1 << 40);
            let options = CreateOptions { journal_cap_bytes: cap, ..rig::options(64 << 10) };
            let rig = Rig::with(seed, 1, &options, wrap::nothing())?;
            let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
            let used = rig.disk.used_bytes();
            rig.disk.set_capacity(Some(used + pages * BLOCK_BYTES));
            let mut trial = Trial::new(rig, &mut seen);
            for number in 0..60 {
                let step = workload.step();
                trial.step(&step).map_err(|b| format!("{b}, at step {number}, {pages} pages free"))?;
            }
            trial.reads_right()?;
            ensure!(trial.volume().health() == Health::Good, "{:?}", trial.volume().notes());
            let full = trial.rig.disk.snapshot().mount(seed);
            trial.rig.disk.set_capacity(None);
            // No restart: everything works again at once.
            trial.rig.flush_marks(&mut resumed, &mut workload)?;
            trial.flushed = trial.rig.models[0].tip();
            trial.end(seed, Honesty::Honest, tally).map_err(|b| format!("{b}\n  {pages} pages were free"))?;
            tally.take(&trial.rig.disk);
            restart_when_full(full, &trial.rig).map_err(|b| format!("{b}\n  {pages} pages were free"))?;
        }
        Ok(())
    });
    println!("out of space: {resumed} writes resumed, {seen:?}; {tally}");
    assert!(tally.counts.out_of_space > 0 && seen.writes_failed > 0);
}

/// The server is restarted while the disk is full: it serves, and tells why it takes no writes if it does not.
fn restart_when_full(disk: SimDisk, rig: &Rig) -> Outcome {
    disk.set_capacity(Some(disk.used_bytes()));
    let disk = disk.crash_process();
    let store: Store = rig::open(&disk, &SimClock::new(3), &rig.wrap)?;
    let volume = store.volume("v0").map_err(|error| format!("full: {error:?}"))?;
    if let Health::ReadOnly { hint, .. } = volume.health() {
        ensure!(hint.contains("space"), "the hint is {hint:?}");
    }
    let (refused, _) = right_or_refused(&*volume, &rig.models[0], volume.tip_lsn())?;
    ensure!(refused == 0, "{refused} blocks cannot be read");
    drop((volume, store));
    // With space, everything is as it was.
    disk.set_capacity(None);
    let disk = disk.crash_process();
    let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
    rig::good(&store.volumes()[0])
}

impl Rig {
    /// Writes, flushes and does all duties; none may fail.
    fn flush_marks(&mut self, resumed: &mut u64, workload: &mut Workload) -> Outcome {
        for _ in 0..6 {
            let edits = vec![workload.edit()];
            self.step(&Step::Apply { volume: 0, edits, fua: true })?;
            *resumed += 1;
        }
        self.step(&Step::Tick)?;
        self.step(&Step::Maintain)
    }
}
