//! Whoever starts a machine from a followed disk after the follower, or the power, was cut in the middle of something
//! must find exactly one instant of the volume on it, and the one that was promised or a later one.

use std::path::Path;
use std::sync::Arc;

use cdp_cli::follow::disk::{FileDisk, How};
use cdp_cli::follow::follower::{Bounds, Follower, Found, Paths, Trouble};
use cdp_cli::follow::source::Source;
use cdp_cli::work::{DeltaPage, State};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, Fault, FaultKind, SimDisk, When};

const BLOCK: usize = 4096;
const BLOCKS_MAX: u64 = 12;
const TARGET: &str = "/vm.img";
const BOUNDS: Bounds = Bounds { delta_bytes_max: 3 * BLOCK as u64, copied_bytes_per_note: 2 * BLOCK as u64 };

/// A volume as a list of its states.
#[derive(Clone)]
struct Model {
    images: Vec<Vec<u8>>,
    // Which write a block is of; what a rollback brings back is as old as it was.
    writes: Vec<Vec<u64>>,
    horizon: u64,
    // What is not there any more answers like that.
    is_down: bool,
}

impl Model {
    fn new(chance: &mut Chance) -> Model {
        let blocks = 4 + chance.below(4) as usize;
        let mut model = Model {
            images: vec![vec![0; blocks * BLOCK]],
            writes: vec![vec![0; blocks]],
            horizon: 0,
            is_down: false,
        };
        // It began as a copy of something.
        for block in 0..blocks {
            if chance.percent(50) {
                model.images[0][block * BLOCK..][..BLOCK].fill(1 + chance.below(255) as u8);
            }
        }
        model
    }

    fn tip(&self) -> u64 {
        self.images.len() as u64 - 1
    }

    fn step(&mut self, chance: &mut Chance) {
        let lsn = self.images.len() as u64;
        let (mut image, mut writes) =
            (self.images[lsn as usize - 1].clone(), self.writes[lsn as usize - 1].clone());
        let blocks = writes.len() as u64;
        match chance.below(20) {
            // A rollback may shrink it, and is one record however much it changes.
            0 | 1 => {
                let to = chance.below(lsn) as usize;
                (image, writes) = (self.images[to].clone(), self.writes[to].clone());
            }
            2 if blocks < BLOCKS_MAX => {
                image.resize(image.len() + BLOCK, 0);
                writes.push(0);
            }
            kind => {
                let first = chance.below(blocks);
                let count = 1 + chance.below((blocks - first).min(3));
                let byte = if kind < 7 { 0 } else { 1 + chance.below(255) as u8 };
                for block in first..first + count {
                    image[block as usize * BLOCK..][..BLOCK].fill(byte);
                    writes[block as usize] = lsn;
                }
            }
        }
        self.images.push(image);
        self.writes.push(writes);
    }

    fn describe(&self, lsn: u64) -> State {
        State {
            volume_id: format!("{:032x}", 7),
            lsn,
            ns: 1000 + lsn,
            utc: lsn.to_string(),
            size_bytes: self.images[lsn as usize].len() as u64,
            complete_through_ns: 0,
        }
    }

    fn check_up(&self) -> Result<()> {
        if self.is_down { Err(Error::new(Kind::Closed, "the server is down")) } else { Ok(()) }
    }
}

impl Source for Model {
    fn newest(&mut self, _settle: bool) -> Result<State> {
        self.check_up()?;
        Ok(self.describe(self.tip()))
    }

    fn state(&mut self, lsn: u64) -> Result<State> {
        self.check_up()?;
        match lsn {
            lsn if lsn < self.horizon => Err(Error::new(Kind::OutOfRange, "gone")),
            lsn if lsn > self.tip() => Err(Error::new(Kind::Refused, "never was")),
            lsn => Ok(self.describe(lsn)),
        }
    }

    fn hold(&mut self, _lsns: &[u64]) -> Result<()> {
        self.check_up()
    }

    fn delta(&mut self, from: Option<u64>, to: u64, offset: u64) -> Result<DeltaPage> {
        self.check_up()?;
        if from.unwrap_or(to) < self.horizon {
            return Err(Error::new(Kind::OutOfRange, "gone"));
        }
        if from.unwrap_or(to).max(to) > self.tip() {
            return Err(Error::new(Kind::Refused, "never was"));
        }
        let (image, writes) = (&self.images[to as usize], &self.writes[to as usize]);
        let first = offset as usize / BLOCK;
        // Pages of three blocks.
        let end = (first + 3).min(writes.len());
        let mut page = DeltaPage::default();
        for block in first..end {
            let before = from.map(|from| self.writes[from as usize].get(block));
            if before.is_none_or(|before| before.copied().unwrap_or(0) != writes[block]) {
                let zeros = image[block * BLOCK..][..BLOCK].iter().all(|byte| *byte == 0);
                page.stretches.push(((block * BLOCK) as u64, BLOCK as u64, zeros));
            }
        }
        page.next = (end < writes.len()).then_some((end * BLOCK) as u64);
        Ok(page)
    }

    fn read(&mut self, lsn: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_up()?;
        let gone = || Error::new(Kind::Closed, "that state is not there");
        let image = self.images.get(lsn as usize).and_then(|image| image.get(offset as usize..));
        buffer.copy_from_slice(image.and_then(|image| image.get(..buffer.len())).ok_or_else(gone)?);
        Ok(())
    }
}

fn paths() -> Paths {
    Paths::of(Path::new("/vm.img.cdp-follow"))
}

fn open(disk: &SimDisk, force: bool) -> Result<Found> {
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let opener = |how: How| FileDisk::open(&files, Path::new(TARGET), how, false);
    Follower::open(&files, &paths(), BOUNDS, &opener, force)
}

fn begin(disk: &SimDisk, force: bool, first: &State) -> Result<Follower> {
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let opener = |how: How| FileDisk::open(&files, Path::new(TARGET), how, false);
    Follower::begin(&files, &paths(), BOUNDS, &opener, force, first)
}

fn advance(follower: &mut Follower, model: &mut Model, to: u64) -> Result<(), Trouble> {
    let to = model.describe(to);
    follower.advance(model, &to, &mut |_| true)
}

/// A standing follower's target is what it says.
fn check(disk: &SimDisk, model: &Model, follower: &Follower, place: &str) {
    let position = follower.position();
    assert!(follower.is_standing(), "{place}: not standing");
    let found = disk.contents(TARGET).unwrap();
    let wanted = &model.images[position.lsn as usize];
    assert_eq!(found.len(), wanted.len(), "{place}: length at lsn {}", position.lsn);
    let differs = found.chunks(BLOCK).zip(wanted.chunks(BLOCK)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{place}: a block that is not of lsn {}", position.lsn);
}

/// What the follower had promised by which operation of the disk.
type Promises = Vec<(u64, u64)>;

/// One life: a first copy, steps, now and then a restart, an older instant at times.
fn live(seed: u64, disk: &SimDisk, model: &mut Model, chance: &mut Chance) -> Promises {
    let mut promises = Vec::new();
    let mut follower = begin(disk, false, &model.describe(model.tip())).unwrap();
    for round in 0..5 {
        for _ in 0..chance.below(6) {
            model.step(chance);
        }
        let to = match chance.percent(15) {
            true => chance.below(model.tip() + 1),
            false => model.tip(),
        };
        follower.join(model).unwrap();
        advance(&mut follower, model, to).unwrap_or_else(|trouble| panic!("seed {seed}: {trouble:?}"));
        promises.push((disk.operations(), follower.position().lsn));
        check(disk, model, &follower, &format!("seed {seed} round {round}"));
        if chance.percent(30) {
            drop(follower);
            let Found::Ours(again) = open(disk, false).unwrap() else { panic!("seed {seed}: it is gone") };
            follower = *again;
        }
    }
    promises
}

/// After a crash: what is there is one state, as new as was promised; and it can go on.
fn recover(
    disk: &SimDisk,
    model: &Model,
    promised: Option<u64>,
    is_known: &dyn Fn(u64) -> bool,
    place: &str,
) -> bool {
    let mut model = model.clone();
    model.is_down = true;
    let found = open(disk, false).unwrap_or_else(|error| panic!("{place}: {error}"));
    let mut follower = match found {
        Found::Ours(follower) => *follower,
        Found::Nothing => {
            assert_eq!(promised, None, "{place}: the target is forgotten");
            begin(disk, false, &model.describe(0)).unwrap_or_else(|error| panic!("{place}: {error}"))
        }
    };
    let was_standing = follower.is_standing();
    if was_standing {
        // Without the volume: as `--finish --no-store`.
        check(disk, &model, &follower, place);
        let lsn = follower.position().lsn;
        assert!(is_known(lsn) || promised == Some(lsn), "{place}: stands at {lsn}, promised {promised:?}");
    }
    model.is_down = false;
    follower.join(&mut model).unwrap_or_else(|trouble| panic!("{place}: {trouble:?}"));
    let newest = model.tip();
    advance(&mut follower, &mut model, newest).unwrap_or_else(|trouble| panic!("{place}: {trouble:?}"));
    check(disk, &model, &follower, &format!("{place}, gone on"));
    was_standing
}

#[test]
fn after_a_crash_at_any_operation_it_is_one_instant() {
    let (mut crashes, mut standing) = (0, 0);
    for seed in 0..30 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&mut chance);
        for _ in 0..6 {
            model.step(&mut chance);
        }
        let disk = SimDisk::new(seed);
        disk.record_boundaries(true);
        let begun = model.tip();
        let promises = live(seed, &disk, &mut model, &mut chance);
        for boundary in disk.take_boundaries() {
            let before = promises.iter().rev().find(|(operation, _)| *operation < boundary.operation);
            let promised = before.map(|(_, lsn)| *lsn);
            let next = promises.iter().find(|(operation, _)| *operation >= boundary.operation);
            // On its way from the last promise to the next, by any state in between.
            let (from, to) = (promised.unwrap_or(begun), next.map_or(begun, |(_, lsn)| *lsn));
            let is_known = |lsn: u64| (from.min(to)..=from.max(to)).contains(&lsn);
            let place = format!(
                "seed {seed}, {:?} of {} (operation {})",
                boundary.what, boundary.path, boundary.operation
            );
            for power in 0..3 {
                let disk = boundary.snapshot.mount(power);
                let disk = if power == 0 { disk.crash_process() } else { disk.crash_power(seed ^ power) };
                crashes += 1;
                standing += usize::from(recover(&disk, &model, promised, &is_known, &place));
            }
        }
    }
    assert!(crashes > 5000 && standing > crashes / 3, "{crashes} crashes, {standing} of them standing");
}

// A crash while it recovers from a crash must not be worse than the first one.
#[test]
fn a_second_crash_in_the_middle_of_finishing_a_step() {
    let mut found = 0;
    for seed in 0..20 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&mut chance);
        for _ in 0..6 {
            model.step(&mut chance);
        }
        let disk = SimDisk::new(seed);
        disk.record_boundaries(true);
        live(seed, &disk, &mut model, &mut chance);
        for boundary in disk.take_boundaries().into_iter().filter(|b| b.path == TARGET) {
            for n in 1..4 {
                let disk = boundary.snapshot.mount(n).crash_power(seed);
                disk.set_crash_after(n, cdp_core::io::sim::CrashAt::During);
                let _ = open(&disk, false);
                if !disk.is_crashed() {
                    continue;
                }
                found += 1;
                let disk = disk.crash_power(seed + n);
                recover(
                    &disk,
                    &model,
                    None,
                    &|_| true,
                    &format!("seed {seed}, {boundary:?} and {n}", boundary = boundary.operation),
                );
            }
        }
    }
    assert!(found > 100, "only {found} second crashes");
}

// A step that fails half-way, on a full or bad disk, is told as an error, and finished when the disk is well again.
#[test]
fn a_step_that_fails_is_finished_later() {
    let mut failed = 0;
    for seed in 0..60 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&mut chance);
        let disk = SimDisk::new(seed);
        let mut follower = begin(&disk, false, &model.describe(0)).unwrap();
        follower.join(&mut model).unwrap();
        advance(&mut follower, &mut model, 0).unwrap();
        for _ in 0..4 {
            model.step(&mut chance);
        }
        let kind = [FaultKind::WriteError, FaultKind::SyncError, FaultKind::NameError][seed as usize % 3];
        disk.inject(Fault::new(kind, When::Nth(1 + chance.below(4))));
        let newest = model.tip();
        failed += usize::from(advance(&mut follower, &mut model, newest).is_err());
        disk.clear_faults();
        drop(follower);
        let disk = if seed % 2 == 0 { disk.crash_process() } else { disk.crash_power(seed) };
        recover(&disk, &model, None, &|_| true, &format!("seed {seed}, {kind:?}"));
    }
    assert!(failed > 20, "only {failed} of 60 steps failed");
}

// History that went while nobody followed: the disk is compared as a whole, and right again.
#[test]
fn what_the_volume_has_forgotten_is_compared_as_a_whole() {
    for seed in 0..40 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&mut chance);
        let disk = SimDisk::new(seed);
        let mut follower = begin(&disk, false, &model.describe(0)).unwrap();
        follower.join(&mut model).unwrap();
        advance(&mut follower, &mut model, 0).unwrap();
        drop(follower);
        for _ in 0..8 {
            model.step(&mut chance);
        }
        model.horizon = 1 + chance.below(model.tip());
        recover(&disk, &model, Some(0), &|_| false, &format!("seed {seed}"));
    }
}

// Two volumes mixed on one disk, or two histories, are nobody's disk.
#[test]
fn another_volume_or_another_history_is_refused() {
    let mut chance = Chance::new(1);
    let mut model = Model::new(&mut chance);
    for _ in 0..5 {
        model.step(&mut chance);
    }
    let disk = SimDisk::new(1);
    let newest = model.tip();
    let mut follower = begin(&disk, false, &model.describe(newest)).unwrap();
    advance(&mut follower, &mut model, newest).unwrap();
    let refused = |follower: &mut Follower, model: &mut dyn Source| match follower.join(model) {
        Err(Trouble::Target(error)) => error.kind() == Kind::Refused,
        other => panic!("{other:?}"),
    };

    struct Bent(Model, String, u64);
    impl Source for Bent {
        fn newest(&mut self, settle: bool) -> Result<State> {
            Ok(State { volume_id: self.1.clone(), ..self.0.newest(settle)? })
        }
        fn state(&mut self, lsn: u64) -> Result<State> {
            let state = self.0.state(lsn)?;
            Ok(State { ns: state.ns + self.2, ..state })
        }
        fn hold(&mut self, lsns: &[u64]) -> Result<()> {
            self.0.hold(lsns)
        }
        fn delta(&mut self, from: Option<u64>, to: u64, offset: u64) -> Result<DeltaPage> {
            self.0.delta(from, to, offset)
        }
        fn read(&mut self, lsn: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
            self.0.read(lsn, offset, buffer)
        }
    }
    let ours = format!("{:032x}", 7);
    assert!(refused(&mut follower, &mut Bent(model.clone(), "8".repeat(32), 0)));
    assert!(refused(&mut follower, &mut Bent(model.clone(), ours.clone(), 1)));
    let mut shorter = model.clone();
    shorter.images.truncate(3);
    assert!(refused(&mut follower, &mut shorter));
    assert!(follower.join(&mut Bent(model.clone(), ours, 0)).is_ok());

    // And what was handed over is left alone, until somebody insists.
    follower.hand_over().unwrap();
    assert!(matches!(open(&disk, false), Err(error) if error.kind() == Kind::Refused));
    assert!(matches!(open(&disk, true), Ok(Found::Nothing)));
    assert!(
        matches!(begin(&disk, false, &model.describe(newest)), Err(error) if error.kind() == Kind::Exists)
    );
    let mut again = begin(&disk, true, &model.describe(newest)).unwrap();
    advance(&mut again, &mut model, newest).unwrap();
    check(&disk, &model, &again, "again");
}

/// A site was set to another one's history while its raw disk was followed, and the journal has passed the old place again by the
/// next look: whenever that happens, the disk is a state of the one history or of the other, or known to be neither.
#[test]
fn another_history_in_the_middle_of_a_step_is_noticed() {
    struct Turning {
        old: Model,
        new: Model,
        fork: u64,
        calls: u64,
        turn: u64,
    }
    impl Turning {
        fn now(&mut self) -> (&mut Model, u64) {
            self.calls += 1;
            if self.calls > self.turn { (&mut self.new, 1) } else { (&mut self.old, 0) }
        }
        fn state_of(&self, state: State, shift: u64) -> State {
            let shift = if state.lsn > self.fork { shift } else { 0 };
            State { ns: state.ns + shift, ..state }
        }
    }
    impl Source for Turning {
        fn newest(&mut self, settle: bool) -> Result<State> {
            let (model, shift) = self.now();
            let state = model.newest(settle)?;
            Ok(self.state_of(state, shift))
        }
        fn state(&mut self, lsn: u64) -> Result<State> {
            let (model, shift) = self.now();
            let state = model.state(lsn)?;
            Ok(self.state_of(state, shift))
        }
        fn hold(&mut self, lsns: &[u64]) -> Result<()> {
            self.now().0.hold(lsns)
        }
        fn delta(&mut self, from: Option<u64>, to: u64, offset: u64) -> Result<DeltaPage> {
            self.now().0.delta(from, to, offset)
        }
        fn read(&mut self, lsn: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
            self.now().0.read(lsn, offset, buffer)
        }
    }
    let (mut noticed, mut done) = (0, 0);
    for seed in 0..60 {
        let mut chance = Chance::new(seed);
        let mut common = Model::new(&mut chance);
        (0..3).for_each(|_| common.step(&mut chance));
        let fork = common.tip();
        let (mut old, mut new) = (common.clone(), common);
        (0..2 + chance.below(4)).for_each(|_| old.step(&mut chance));
        let stood = old.tip();
        (0..chance.below(3)).for_each(|_| old.step(&mut chance));
        (0..10).for_each(|_| new.step(&mut chance));
        for turn in 0.. {
            let disk = SimDisk::new(seed);
            let mut follower = begin(&disk, false, &old.describe(stood)).unwrap();
            // Half of the time it stands there already.
            if seed % 2 == 0 {
                advance(&mut follower, &mut old.clone(), stood).unwrap();
            }
            let mut source = Turning { old: old.clone(), new: new.clone(), fork, calls: 0, turn };
            let to = if seed % 4 < 2 { old.describe(old.tip()) } else { new.describe(new.tip()) };
            let shift = u64::from(seed % 4 >= 2);
            let to = State { ns: to.ns + shift, ..to };
            let outcome = follower.advance(&mut source, &to, &mut |_| true);
            if follower.is_standing() {
                let position = follower.position();
                let is_new = position.ns != old.describe(position.lsn).ns;
                let model = if is_new { &new } else { &old };
                check(&disk, model, &follower, &format!("seed {seed}, at call {turn}: {outcome:?}"));
            }
            match outcome {
                Ok(()) => done += 1,
                Err(Trouble::Source(_) | Trouble::Target(_)) => noticed += 1,
                Err(Trouble::Stopped) => panic!("nobody stopped it"),
            }
            if source.calls <= turn {
                break;
            }
        }
    }
    assert!(noticed > 500 && done > 20, "{noticed} {done}");
}
