//! Two sites, what happens to them and between them, and what people do about it.

use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, CrashAt};
use cdp_core::store::CreateOptions;
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::Back;
use cdp_replica::fault::FaultKind;

use crate::model::{Edit, Entry, SECTOR, SECTORS, bytes_of};
use crate::site::{Copy, Site};
use crate::takeovers::ThinLine;
use crate::wire::{End, Wire, address};

const NAMES: [&str; 2] = ["x", "y"];
const VOLUME_BYTES: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 96 << 10;
/// Connections of one volume in one direction that are there at once.
const WIRES_MAX: usize = 2;

/// What happened, over all seeds.
#[derive(Default, Debug)]
pub struct Met {
    pub writes: u64,
    pub rollbacks: u64,
    pub cuts: u64,
    pub half_open: u64,
    pub stalls: u64,
    pub flips: u64,
    pub doubled: u64,
    pub crashes: u64,
    pub full: u64,
    pub refused_full: u64,
    pub failovers: u64,
    pub failed_failovers: u64,
    pub to_points: u64,
    pub planned: u64,
    pub drained: u64,
    pub split_brains: u64,
    pub resyncs: u64,
    pub orphans: u64,
    pub refused_resyncs: u64,
    pub first_copies: u64,
    pub reseeds: u64,
    pub withdrawn: u64,
    pub asides: u64,
    pub fenced_writes: u64,
    pub bases_moved: u64,
    pub folds: u64,
    pub states: u64,
    pub views: u64,
    pub looks: u64,
    pub over: u64,
    pub outages: u64,
    pub shown: u64,
    pub filled: u64,
    pub takeovers: u64,
    pub half_taken: u64,
    pub closed: u64,
    pub no_instant: u64,
    pub let_go: u64,
    pub given_up: u64,
}

macro_rules! add {
    ($to:ident, $from:ident; $($field:ident)*) => { $($to.$field += $from.$field;)* };
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        add!(self, other; writes rollbacks cuts half_open stalls flips doubled crashes full refused_full failovers
            failed_failovers to_points planned drained split_brains resyncs orphans refused_resyncs first_copies reseeds
            withdrawn asides
            fenced_writes bases_moved folds states views looks over outages shown filled takeovers half_taken closed
            no_instant let_go given_up);
    }
}

/// What is special about a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Story {
    Plain,
    /// See [`ThinLine`].
    ThinLine,
}

impl Story {
    pub fn of(seed: u64) -> Story {
        match seed / 4 % 3 {
            2 => Story::ThinLine,
            _ => Story::Plain,
        }
    }
}

/// What retention does at both sites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeping {
    Everything,
    Window,
    Thinning,
    DropOldest,
}

pub struct World {
    pub chance: Chance,
    pub sites: [Site; 2],
    pub names: &'static [&'static str],
    pub wires: Vec<Wire>,
    pub now_ns: u64,
    pub step_ns: u64,
    pub ids: u64,
    pub faults: bool,
    pub keeping: Keeping,
    // Replicas that need a first copy.
    pub behind: Vec<(usize, &'static str)>,
    // Sites whose orphans have to stand on their own.
    pub read_from: Vec<usize>,
    /// Draws what those do who have something open, in every other history.
    pub onlookers: Option<Chance>,
    /// The line is thin and often down, and the newest state goes first where that pays.
    pub thin_line: Option<ThinLine>,
    pub trace: bool,
    pub met: Met,
}

pub type Outcome<T = ()> = Result<T, String>;

impl World {
    pub fn new(seed: u64) -> World {
        let mut chance = Chance::new(seed ^ 0xfa11);
        let sites = [Site::new("site-a", seed * 2 + 1), Site::new("site-b", seed * 2 + 2)];
        // No two machines agree on the time.
        sites[1].clock.step_wall(chance.below(4_000_000_000) as i64 - 2_000_000_000);
        let story = Story::of(seed);
        let mut names = &NAMES[..1 + chance.below(2) as usize];
        if story == Story::ThinLine && !seed.is_multiple_of(3) {
            // Newest states of many volumes are seldom of one instant.
            names = &NAMES[..1];
        }
        let keeping = match seed % 4 {
            0 => Keeping::Everything,
            1 => Keeping::Window,
            2 => Keeping::Thinning,
            _ => Keeping::DropOldest,
        };
        let step_ns = if keeping == Keeping::Everything { 10_000_000 } else { 60_000_000 };
        let mut world = World {
            chance,
            sites,
            names,
            wires: Vec::new(),
            now_ns: 1_000_000_000,
            step_ns,
            ids: 0,
            faults: true,
            keeping,
            behind: Vec::new(),
            read_from: Vec::new(),
            onlookers: (seed % 2 == 1).then(|| Chance::new(seed ^ 0x100c)),
            thin_line: (story == Story::ThinLine).then(|| ThinLine::new(seed)),
            trace: std::env::var_os("CDP_SIM_TRACE").is_some(),
            met: Met::default(),
        };
        for name in names {
            let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(VOLUME_BYTES) };
            let store = world.sites[0].store.clone().expect("it is up");
            let volume = store.create_volume(name, &options, None).unwrap();
            volume.add_replica(&address(&world.sites[1]), 0, world.gives_way()).unwrap();
            world.sites[0].copies.insert(name, Copy::new(VOLUME_BYTES));
        }
        world.set_policies();
        world
    }

    pub fn gives_way(&self) -> bool {
        self.keeping == Keeping::DropOldest
    }

    pub fn set_policies(&mut self) {
        let text = match self.keeping {
            Keeping::Everything => return,
            Keeping::Window => "every-write 8s, named 8s".to_owned(),
            Keeping::Thinning => "every-write 6s, every 2s for 60s".to_owned(),
            Keeping::DropOldest => format!("at most {}B, at cap drop-oldest", 8 * SEGMENT_BYTES),
        };
        let policy = retention::parse(&text).unwrap();
        for site in &self.sites {
            for volume in site.volumes().iter().filter(|volume| volume.retention() != policy) {
                let _ = volume.set_retention(policy.clone());
            }
        }
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ns / 1_000_000, what());
        }
    }

    pub fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A record that changes nothing to be seen.
    pub fn idle(&mut self, site: usize, name: &str) -> Entry {
        let id = self.next_id();
        self.sites[site].copy(name).log.newest().again(id)
    }

    /// Records that upkeep may write: periodic markers, steps of the clock.
    pub fn expect_events(&mut self, site: usize) {
        for name in self.names {
            if self.sites[site].copies.contains_key(name) {
                let events = (0..3).map(|_| self.idle(site, name)).collect();
                self.sites[site].copy(name).pending = events;
            }
        }
    }

    pub fn is_up(&self, site: usize) -> bool {
        self.sites[site].store.is_some() && !self.sites[site].disk.is_crashed()
    }

    pub fn run(&mut self, steps: usize) -> Outcome {
        for step in 0..steps {
            self.step()?;
            if self.chance.below(1000) < 40 {
                self.somebody_acts()?;
            }
            self.somebody_takes_over()?;
            if step % 9 == 0 {
                self.check()?;
            }
        }
        Ok(())
    }

    pub fn step(&mut self) -> Outcome {
        self.now_ns += self.step_ns;
        self.sites.iter().for_each(|site| site.clock.advance(self.step_ns));
        if self.faults {
            self.misfortune();
            self.line_fails();
        }
        self.restart()?;
        self.work()?;
        self.upkeep()?;
        self.look_on()?;
        self.talk()?;
        self.look_on()?;
        self.restart()
    }

    pub fn misfortune(&mut self) {
        let site = self.chance.below(2) as usize;
        let at = self.chance.pick(&[CrashAt::Before, CrashAt::During, CrashAt::After]);
        let wire = match self.wires.len() as u64 {
            0 => None,
            count => Some(self.chance.below(count) as usize),
        };
        match (self.chance.below(200), wire) {
            (0..5, _) => {
                self.wires.clear();
                self.met.cuts += 1;
            }
            (5..9, Some(wire)) => {
                match self.chance.percent(50) {
                    true => self.wires[wire].sender = None,
                    false => self.wires[wire].receiver = None,
                }
                self.met.half_open += 1;
            }
            (9..16, Some(wire)) => {
                self.wires[wire].stalled ^= true;
                self.met.stalls += 1;
            }
            (16..20, Some(wire)) => {
                self.met.flips += u64::from(self.wires[wire].flip(&mut self.chance));
            }
            (20..26, _) if self.is_up(site) => {
                self.sites[site].disk.set_crash_after(1 + self.chance.below(25), at);
            }
            (26..28, _) if self.is_up(site) => {
                let power = self.chance.percent(50);
                self.crash(site, power);
            }
            (28..30, _) if self.is_up(site) => {
                let used = self.sites[site].disk.used_bytes();
                self.sites[site].disk.set_capacity(Some(used + self.chance.below(300_000)));
                self.met.full += 1;
            }
            (30..40, _) => self.sites[site].disk.set_capacity(None),
            // Where a new copy is about to take an old one's place, more often than elsewhere.
            (42..50, _)
                if self.is_up(site)
                    && self.names.iter().any(|name| self.sites[site].is_to_be_replaced(name)) =>
            {
                self.sites[site].disk.set_crash_after(1 + self.chance.below(60), at);
            }
            (40..42, _) => {
                let step = self.chance.below(400_000_000) as i64 - 200_000_000;
                self.sites[site].clock.step_wall(step);
            }
            _ => {}
        }
    }

    pub fn crash(&mut self, site: usize, power: bool) {
        self.say(|| format!("{} dies, power {power}", self.sites[site].name));
        for wire in &mut self.wires {
            match wire.from == site {
                true => wire.sender = None,
                false => wire.receiver = None,
            }
        }
        self.wires.retain(|wire| wire.sender.is_some() || wire.receiver.is_some());
        self.sites[site].crash(&mut self.chance, power);
        self.met.crashes += 1;
        if self.faults && self.chance.percent(30) {
            self.sites[site].dark = 1 + self.chance.below(25);
        }
    }

    /// Machines that died are started again.
    pub fn restart(&mut self) -> Outcome {
        for site in 0..2 {
            if self.sites[site].disk.is_crashed() {
                let power = self.chance.percent(60);
                self.crash(site, power);
            }
            if self.sites[site].store.is_some() {
                continue;
            }
            if self.sites[site].dark > 0 && self.faults {
                self.sites[site].dark -= 1;
                continue;
            }
            if self.faults && self.chance.percent(10) {
                self.sites[site].disk.set_crash_after(1 + self.chance.below(30), CrashAt::During);
            }
            self.sites[site].open(&mut self.chance)?;
        }
        Ok(())
    }

    /// Clients write wherever they may, and try where they may not.
    pub fn work(&mut self) -> Outcome {
        for site in 0..2 {
            for name in self.names {
                if self.is_up(site) && self.chance.percent(55) {
                    self.client(site, name)?;
                }
            }
        }
        Ok(())
    }

    pub fn client(&mut self, site: usize, name: &'static str) -> Outcome {
        let Some(volume) = self.sites[site].volume(name) else { return Ok(()) };
        let before = volume.tip_lsn();
        if !volume.is_primary() {
            if self.chance.percent(10) {
                let mut results = Vec::new();
                volume.apply(SessionId(3), &[Change::Trim { offset: 0, len: 4096 }], &mut results);
                self.met.fenced_writes += 1;
                if results[0].is_ok() || volume.tip_lsn() != before {
                    broken!("{}: a {} takes a write", self.sites[site].name, volume.role().word());
                }
            }
            return Ok(());
        }
        match self.chance.below(20) {
            0 => return self.turn_back(site, &volume),
            1 => {
                let size = volume.size_bytes() + BLOCK_BYTES;
                let entry = Entry { size, ..self.idle(site, name) };
                self.sites[site].copy(name).pending = vec![entry];
                let _ = volume.grow(size);
                return self.settle(site);
            }
            2 => {
                let entry = self.idle(site, name);
                let marker = MarkerPayload {
                    class: MarkerClass::Manual,
                    group: 0,
                    name: format!("m{}", entry.id),
                    note: String::new(),
                    tags: Vec::new(),
                    hook_output: String::new(),
                };
                self.sites[site].copy(name).pending = vec![entry];
                let _ = volume.mark(&marker);
                return self.settle(site);
            }
            _ => {}
        }
        let sector = self.chance.below(SECTORS);
        let count = (1 + self.chance.below(32)).min(SECTORS - sector);
        let id = self.next_id();
        let edit = match self.chance.below(8) {
            0 => Edit::Zero { sector, count },
            1 => Edit::Trim { sector, count },
            _ => Edit::Write { sector, count, stamp: id as u32 },
        };
        let newest = self.sites[site].copy(name).log.newest().clone();
        let sectors = edit.apply(&newest.sectors);
        self.sites[site].copy(name).pending = vec![Entry { sectors, ..newest.again(id) }];
        let data = bytes_of(std::iter::repeat_n(id as u32, count as usize));
        let (offset, len) = (sector * SECTOR, count * SECTOR);
        let change = match edit {
            Edit::Write { .. } => Change::Write { offset, data: &data },
            Edit::Zero { .. } => Change::Zero { offset, len, hole: true },
            Edit::Trim { .. } => Change::Trim { offset, len },
        };
        let mut results = Vec::new();
        volume.apply(SessionId(1), &[change], &mut results);
        self.met.writes += 1;
        if let Err(error) = &results[0]
            && self.is_up(site)
        {
            self.met.refused_full += u64::from(error.kind() == Kind::NoSpace);
            if volume.tip_lsn() != before {
                broken!("{}: a write that failed is there: {error:?}", self.sites[site].name);
            }
        }
        if self.chance.percent(25) && volume.flush().is_ok() {
            let tip = volume.tip_lsn();
            if self.is_up(site) && volume.durable_lsn() < tip {
                broken!(
                    "{}: flushed, and {:?} of {tip:?} is durable",
                    self.sites[site].name,
                    volume.durable_lsn()
                );
            }
        }
        self.settle(site)
    }

    /// Somebody sets a volume back.
    pub fn turn_back(&mut self, site: usize, volume: &Arc<Volume>) -> Outcome {
        let name = volume.name();
        let tip = volume.tip_lsn();
        let to = Lsn(tip.0 - self.chance.below(tip.0.min(25) + 1));
        if to < volume.oldest().0 || !volume.keeps(to) {
            return Ok(());
        }
        let marker = self.idle(site, name);
        let id = self.next_id();
        let copy = self.sites[site].copy(name);
        copy.pending = vec![marker, copy.log.at(to).again(id)];
        self.met.rollbacks += u64::from(volume.rollback(Back::To(to), "a test").is_ok());
        self.settle(site)
    }

    /// After something was done at a site: its records are there, unless it died over it.
    pub fn settle(&mut self, site: usize) -> Outcome {
        match self.is_up(site) {
            true => self.sites[site].absorb(),
            false => Ok(()),
        }
    }

    pub fn upkeep(&mut self) -> Outcome {
        for site in 0..2 {
            if !self.is_up(site) {
                continue;
            }
            self.expect_events(site);
            let store = self.sites[site].store.clone().expect("it is up");
            let mut errors = store.tick();
            self.settle(site)?;
            if self.is_up(site) && self.chance.percent(25) {
                self.expect_events(site);
                errors.extend(store.maintain());
                self.settle(site)?;
            }
            errors.retain(|error| error.kind() != Kind::NoSpace);
            let is_short =
                store.volumes().iter().any(|volume| volume.health() != cdp_core::volume::Health::Good);
            if !errors.is_empty() && self.is_up(site) && !is_short {
                broken!("{}: {errors:?}", self.sites[site].name);
            }
        }
        Ok(())
    }

    pub fn talk(&mut self) -> Outcome {
        if self.is_line_down() {
            return self.begin_anew();
        }
        for from in 0..2 {
            for name in self.names {
                let there = self.wires.iter().filter(|wire| wire.from == from && wire.name == *name).count();
                // A sender that believes its connection dead makes another; the old one may still be under way.
                let percent = if there == 0 { 35 } else { 2 };
                if there < WIRES_MAX && self.chance.percent(percent) && self.is_up(0) && self.is_up(1) {
                    let wire = self.connect(from, name);
                    self.met.doubled += u64::from(there > 0 && wire.is_some());
                    self.wires.extend(wire);
                }
            }
        }
        for _ in 0..3 {
            let mut wires = std::mem::take(&mut self.wires);
            let mut kept = Vec::new();
            for mut wire in wires.drain(..) {
                let most = (self.chance.below(self.line_bytes()) as usize, self.chance.below(300) as usize);
                let most = if self.faults { most } else { (usize::MAX, usize::MAX) };
                match wire.exchange(&mut self.sites, self.now_ns, most)? {
                    None => kept.push(wire),
                    Some(end) => self.ended(&wire, end)?,
                }
            }
            self.wires.extend(kept);
        }
        self.begin_anew()
    }

    pub fn ended(&mut self, wire: &Wire, end: End) -> Outcome {
        let End { fault, at_sender } = end;
        self.say(|| format!("link of {} from {}: {fault}", wire.name, self.sites[wire.from].name));
        if at_sender && fault.kind == FaultKind::Fenced && self.is_up(wire.from) {
            let volume = self.sites[wire.from].volume(wire.name);
            if volume.is_some_and(|volume| volume.is_primary()) {
                broken!("{}: {} is fenced and a primary", self.sites[wire.from].name, wire.name);
            }
        }
        // What it shows is of a history that did not go on.
        if fault.text.contains("--drop`") && self.is_up(1 - wire.from) {
            self.let_newest_go(1 - wire.from, wire.name)?;
        }
        if fault.kind == FaultKind::Behind {
            self.behind.push((1 - wire.from, wire.name));
        }
        // A resync made an orphan after somebody had asked for a reseed: it reads from what is to step aside.
        if fault.text.contains("`cdp hydrate` them") {
            self.read_from.push(1 - wire.from);
        }
        Ok(())
    }
}
