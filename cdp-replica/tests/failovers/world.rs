//! Two sites, what happens to them and between them, and what people do about it.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::epochs::Standing;
use cdp_core::history::point::Timeline;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, CrashAt};
use cdp_core::store::CreateOptions;
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::Back;
use cdp_replica::fault::FaultKind;

use crate::model::{Edit, Entry, Log, SECTOR, SECTORS, bytes_of};
use crate::site::{Copy, Orphan, Site};
use crate::wire::{End, Wire, address};

const NAMES: [&str; 2] = ["x", "y"];
const VOLUME_BYTES: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 96 << 10;
/// Connections of one volume in one direction that are there at once.
const WIRES_MAX: usize = 2;

macro_rules! broken {
    ($($text:tt)*) => { return Err(format!($($text)*)) };
}

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
    pub fenced_writes: u64,
    pub bases_moved: u64,
    pub folds: u64,
    pub states: u64,
}

macro_rules! add {
    ($to:ident, $from:ident; $($field:ident)*) => { $($to.$field += $from.$field;)* };
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        add!(self, other; writes rollbacks cuts half_open stalls flips doubled crashes full refused_full failovers
            failed_failovers to_points planned drained split_brains resyncs orphans refused_resyncs first_copies
            fenced_writes bases_moved folds states);
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
    sites: [Site; 2],
    names: &'static [&'static str],
    wires: Vec<Wire>,
    now_ns: u64,
    step_ns: u64,
    ids: u64,
    faults: bool,
    keeping: Keeping,
    // Replicas that need a first copy.
    behind: Vec<(usize, &'static str)>,
    trace: bool,
    pub met: Met,
}

type Outcome<T = ()> = Result<T, String>;

impl World {
    pub fn new(seed: u64) -> World {
        let mut chance = Chance::new(seed ^ 0xfa11);
        let sites = [Site::new("site-a", seed * 2 + 1), Site::new("site-b", seed * 2 + 2)];
        // No two machines agree on the time.
        sites[1].clock.step_wall(chance.below(4_000_000_000) as i64 - 2_000_000_000);
        let names = &NAMES[..1 + chance.below(2) as usize];
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

    fn gives_way(&self) -> bool {
        self.keeping == Keeping::DropOldest
    }

    fn set_policies(&mut self) {
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

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  {}", self.now_ns / 1_000_000, what());
        }
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A record that changes nothing to be seen.
    fn idle(&mut self, site: usize, name: &str) -> Entry {
        let id = self.next_id();
        Entry { id, ..self.sites[site].copy(name).log.newest().clone() }
    }

    /// Records that upkeep may write: periodic markers, steps of the clock.
    fn expect_events(&mut self, site: usize) {
        for name in self.names {
            if self.sites[site].copies.contains_key(name) {
                let events = (0..3).map(|_| self.idle(site, name)).collect();
                self.sites[site].copy(name).pending = events;
            }
        }
    }

    fn is_up(&self, site: usize) -> bool {
        self.sites[site].store.is_some() && !self.sites[site].disk.is_crashed()
    }

    pub fn run(&mut self, steps: usize) -> Outcome {
        for step in 0..steps {
            self.step()?;
            if self.chance.below(1000) < 40 {
                self.somebody_acts()?;
            }
            if step % 9 == 0 {
                self.check()?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Outcome {
        self.now_ns += self.step_ns;
        self.sites.iter().for_each(|site| site.clock.advance(self.step_ns));
        if self.faults {
            self.misfortune();
        }
        self.restart()?;
        self.work()?;
        self.upkeep()?;
        self.talk()?;
        self.restart()
    }

    fn misfortune(&mut self) {
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
            (40..42, _) => {
                let step = self.chance.below(400_000_000) as i64 - 200_000_000;
                self.sites[site].clock.step_wall(step);
            }
            _ => {}
        }
    }

    fn crash(&mut self, site: usize, power: bool) {
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
    fn restart(&mut self) -> Outcome {
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
    fn work(&mut self) -> Outcome {
        for site in 0..2 {
            for name in self.names {
                if self.is_up(site) && self.chance.percent(55) {
                    self.client(site, name)?;
                }
            }
        }
        Ok(())
    }

    fn client(&mut self, site: usize, name: &'static str) -> Outcome {
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
        self.sites[site].copy(name).pending = vec![Entry { id, sectors, size: newest.size }];
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
    fn turn_back(&mut self, site: usize, volume: &Arc<Volume>) -> Outcome {
        let name = volume.name();
        let tip = volume.tip_lsn();
        let to = Lsn(tip.0 - self.chance.below(tip.0.min(25) + 1));
        if to < volume.oldest().0 || !volume.keeps(to) {
            return Ok(());
        }
        let marker = self.idle(site, name);
        let id = self.next_id();
        let copy = self.sites[site].copy(name);
        let target = Entry { id, ..copy.log.at(to).clone() };
        copy.pending = vec![marker, target];
        self.met.rollbacks += u64::from(volume.rollback(Back::To(to), "a test").is_ok());
        self.settle(site)
    }

    /// After something was done at a site: its records are there, unless it died over it.
    fn settle(&mut self, site: usize) -> Outcome {
        match self.is_up(site) {
            true => self.sites[site].absorb(),
            false => Ok(()),
        }
    }

    fn upkeep(&mut self) -> Outcome {
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

    fn talk(&mut self) -> Outcome {
        for from in 0..2 {
            for name in self.names {
                let there = self.wires.iter().filter(|wire| wire.from == from && wire.name == *name).count();
                // A sender that believes its connection dead makes another; the old one may still be under way.
                let percent = if there == 0 { 35 } else { 2 };
                if there < WIRES_MAX && self.chance.percent(percent) && self.is_up(0) && self.is_up(1) {
                    let wire = Wire::connect(&self.sites, from, name, self.now_ns);
                    self.met.doubled += u64::from(there > 0 && wire.is_some());
                    self.wires.extend(wire);
                }
            }
        }
        for _ in 0..3 {
            let mut wires = std::mem::take(&mut self.wires);
            let mut kept = Vec::new();
            for mut wire in wires.drain(..) {
                let most = (self.chance.below(40_000) as usize, self.chance.below(300) as usize);
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

    fn begin_anew(&mut self) -> Outcome {
        for (site, name) in std::mem::take(&mut self.behind) {
            if self.is_up(site) {
                self.copy_anew(site, name)?;
            }
        }
        self.empty_trash()
    }

    fn ended(&mut self, wire: &Wire, end: End) -> Outcome {
        let End { fault, at_sender } = end;
        self.say(|| format!("link of {} from {}: {fault}", wire.name, self.sites[wire.from].name));
        if at_sender && fault.kind == FaultKind::Fenced && self.is_up(wire.from) {
            let volume = self.sites[wire.from].volume(wire.name);
            if volume.is_some_and(|volume| volume.is_primary()) {
                broken!("{}: {} is fenced and a primary", self.sites[wire.from].name, wire.name);
            }
        }
        if fault.kind == FaultKind::Behind {
            self.behind.push((1 - wire.from, wire.name));
        }
        Ok(())
    }

    /// What a replica needs is gone: it is removed, and begins with a first copy.
    fn copy_anew(&mut self, site: usize, name: &'static str) -> Outcome {
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
        if gone.is_ok() {
            // From here on it is nobody's; a crash leaves it in the trash, where it is looked for again.
            self.sites[site].copies.remove(name);
            self.met.first_copies += 1;
        }
        Ok(())
    }

    /// What was removed is in the way until it is gone for good.
    fn empty_trash(&mut self) -> Outcome {
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
    fn make_independent(&mut self, site: usize) -> bool {
        let Some(store) = self.sites[site].store.clone() else { return false };
        let names: Vec<String> = self.sites[site].orphans.iter().map(|orphan| orphan.name.clone()).collect();
        names.iter().all(|orphan| store.hydrate_volume(orphan, &mut |_, _| Ok(())).is_ok())
    }

    /// An operator does something, wise or not.
    fn somebody_acts(&mut self) -> Outcome {
        let site = self.chance.below(2) as usize;
        match self.chance.below(10) {
            0..4 => self.failover(site),
            4..6 => self.planned(site),
            _ => self.resync(site),
        }
    }

    /// Promotes all volumes of a site that are none yet.
    fn failover(&mut self, site: usize) -> Outcome {
        if !self.is_up(site) {
            return Ok(());
        }
        let volumes = self.sites[site].volumes();
        if volumes.len() < self.names.len() || volumes.iter().any(|volume| volume.is_primary()) {
            return Ok(());
        }
        let complete: Vec<Timestamp> = volumes.iter().map(|volume| volume.complete_through().1).collect();
        let newest = complete.iter().copied().min().expect("there is one");
        let how = self.chance.below(4);
        let instant = match how {
            // Some instant that somebody picks.
            0 => {
                let (oldest, tip) = (volumes[0].oldest().0, volumes[0].tip_lsn());
                let lsn = Lsn(oldest.0 + self.chance.below(tip.0 + 1 - oldest.0));
                volumes[0].timestamp_of(lsn).ok()
            }
            _ => Some(newest),
        };
        let Some(instant) = instant else { return Ok(()) };
        let mut members = Vec::new();
        for volume in &volumes {
            match volume.lsn_at(instant) {
                Ok(lsn) => members.push((volume.clone(), lsn)),
                Err(_) => return Ok(()),
            }
        }
        self.is_consistent(site, &members)?;
        let done = self.promote(site, &members)?;
        self.met.to_points += u64::from(done && how == 0);
        Ok(())
    }

    /// Of two writes, one of which was begun when the other was answered, no instant shows only the later one.
    fn is_consistent(&self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome {
        let (here, there) = (&self.sites[site], &self.sites[1 - site]);
        let newest = members.iter().map(|(volume, lsn)| here.copies[volume.name()].log.at(*lsn).id).max();
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
    fn promote(&mut self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome<bool> {
        let store = self.sites[site].store.clone().expect("it is up");
        for (volume, to) in members {
            let name = volume.name();
            let (epoch, marker) = (self.idle(site, name), self.idle(site, name));
            let id = self.next_id();
            let copy = self.sites[site].copy(name);
            let target = Entry { id, ..copy.log.at(*to).clone() };
            copy.pending = match *to == copy.log.tip() {
                true => vec![epoch],
                false => vec![epoch, marker, target],
            };
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
                let Ok(()) = self.finish_half(site, members, &pending) else {
                    broken!("a promotion stays half done")
                };
                return Ok(false);
            }
        }
        match &done {
            Ok(_) => {
                self.met.failovers += 1;
                for (volume, to) in members {
                    let log = &self.sites[site].copies[volume.name()].log;
                    if !volume.is_primary() || log.newest().sectors != log.at(*to).sectors {
                        broken!(
                            "{}: {} is promoted and shows another state",
                            self.sites[site].name,
                            volume.name()
                        );
                    }
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
            }
        }
        let is_done = done.is_ok();
        drop((done, store));
        self.restart()?;
        if !is_done && self.sites[site].store.is_some() {
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

    /// A full disk stopped it between two members: with room, and a restart, it is finished.
    fn finish_half(
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
    fn planned(&mut self, site: usize) -> Outcome {
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
        let mut members = Vec::new();
        for volume in volumes {
            let Ok(lsn) = volume.lsn_at(complete) else { return Ok(()) };
            members.push((volume, lsn));
        }
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
    fn resync(&mut self, site: usize) -> Outcome {
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
            if other.epochs.newest().number < ours || self.sites[1 - site].copies.get(name).is_none() {
                continue;
            }
            let join = match store.plan_resync(&volume, &other) {
                Ok(join) => join,
                Err(error) => {
                    self.met.refused_resyncs += 1;
                    self.met.split_brains += u64::from(error.to_string().contains("two primaries"));
                    let is_gone = error.hint_text().is_some_and(|hint| hint.contains("first copy"));
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
            drop(volume);
            let known: Vec<String> = store.volumes().iter().map(|volume| volume.name().to_owned()).collect();
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
                let copy = self.sites[site].copy(name);
                copy.cut = None;
                if failed.is_none() {
                    copy.log.cut(fork);
                    copy.durable = copy.durable.min(fork);
                }
            } else {
                let power = self.chance.percent(50);
                self.crash(site, power);
                self.sites[site].open(&mut self.chance)?;
            }
            self.find_orphans(site, name, &known, before, fork)?;
            if let Some(error) = failed {
                self.say(|| format!("it failed: {error:?}"));
                if error.hint_text().is_some_and(|hint| hint.contains("first copy")) {
                    self.copy_anew(site, name)?;
                    continue;
                }
            }
            self.sites[site].check(name, &mut self.chance, false)?;
        }
        Ok(())
    }

    fn find_orphans(&mut self, site: usize, name: &str, known: &[String], log: Log, fork: Lsn) -> Outcome {
        let store = self.sites[site].store.clone().expect("it is up");
        for volume in store.volumes() {
            if !known.iter().any(|known| known == volume.name()) {
                if !volume.name().starts_with(&format!("{name}-orphan-")) {
                    broken!("{}: what is {}?", self.sites[site].name, volume.name());
                }
                self.met.orphans += 1;
                let name = volume.name().to_owned();
                self.sites[site].orphans.push(Orphan { name, log: log.clone(), fork });
            }
        }
        self.sites[site].check_orphans()
    }

    /// Everything that must hold at every instant.
    pub fn check(&mut self) -> Outcome {
        for site in 0..2 {
            if !self.is_up(site) {
                continue;
            }
            self.sites[site].note_durable();
            for name in self.names {
                if self.sites[site].copies.contains_key(name) {
                    self.met.states += self.sites[site].check(name, &mut self.chance, false)?;
                }
            }
        }
        if !self.is_up(0) || !self.is_up(1) {
            return Ok(());
        }
        for name in self.names {
            let [a, b] = [0, 1].map(|site| self.sites[site].volume(name));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let common = self.sites[0].copies[name].log.common(&self.sites[1].copies[name].log);
            if common <= a.durable_lsn().min(b.durable_lsn())
                && let (Ok(at_a), Ok(at_b)) = (a.position_at(common), b.position_at(common))
                && (at_a.chain != at_b.chain || at_a.timestamp != at_b.timestamp)
            {
                broken!("{name}: {common:?} is not the same record at both sites");
            }
            for (from, volume, other) in [(0, &a, &b), (1, &b, &a)] {
                for replica in volume.replicas() {
                    if replica.is_acknowledged && replica.held > common {
                        broken!("{name}: {:?} is taken for acknowledged, {common:?} is common", replica.held);
                    }
                }
                // What it was told of completeness.
                let whole = &self.sites[from].copies[name].log;
                let complete = other.source().map_or(Timestamp(0), |source| source.complete);
                if volume.is_primary()
                    && other.is_replica()
                    && complete > Timestamp(0)
                    && self.sites[1 - from].copies[name].log.is_prefix_of(whole)
                    && let Ok(through) = volume.lsn_at(complete)
                    && through > other.durable_lsn()
                {
                    broken!("{name}: complete through {through:?}, and it has {:?}", other.durable_lsn());
                }
            }
        }
        Ok(())
    }

    /// No more trouble: people look after it until there is one history at both sites, in which nothing is missing.
    pub fn heal(&mut self) -> Outcome {
        self.faults = false;
        self.wires.clear();
        for site in 0..2 {
            self.sites[site].dark = 0;
            self.sites[site].disk.clear_crash();
            self.sites[site].disk.set_capacity(None);
            if self.is_up(site) {
                self.crash(site, false);
            }
        }
        self.restart()?;
        let mut said = String::new();
        for round in 0..60 {
            // Where a disk was full there is room again.
            self.upkeep()?;
            self.empty_trash()?;
            for site in 0..2 {
                let address = address(&self.sites[1 - site]);
                for volume in self.sites[site].volumes().iter().filter(|volume| volume.replicas().is_empty())
                {
                    let _ = volume.add_replica(&address, 0, self.gives_way());
                }
            }
            for name in self.names {
                for from in 0..2 {
                    said = self.converse(from, name)?.unwrap_or(said);
                }
            }
            if self.is_one()? {
                return self.check_all();
            }
            for site in 0..2 {
                self.resync(site)?;
            }
            if round % 3 == 2 {
                self.decide()?;
            }
        }
        let states: Vec<String> = self
            .sites
            .iter()
            .flat_map(|site| site.volumes().into_iter().map(move |volume| (site.name, volume)))
            .map(|(site, volume)| {
                let (role, epoch) = (volume.role(), volume.epochs().newest());
                format!(
                    "{site} {}: {role:?}, {epoch:?}, {:?}, {:?}",
                    volume.name(),
                    volume.tip_lsn(),
                    volume.health()
                )
            })
            .collect();
        broken!("they do not become one: {states:#?}; {said}")
    }

    /// One connection, for two seconds.
    fn converse(&mut self, from: usize, name: &'static str) -> Outcome<Option<String>> {
        let Some(mut wire) = Wire::connect(&self.sites, from, name, self.now_ns) else { return Ok(None) };
        for _ in 0..40 {
            self.now_ns += 50_000_000;
            self.sites.iter().for_each(|site| site.clock.advance(50_000_000));
            if let Some(end) = wire.exchange(&mut self.sites, self.now_ns, (usize::MAX, usize::MAX))? {
                let said = format!("{name} from {}: {}", self.sites[from].name, end.fault);
                self.ended(&wire, end)?;
                drop(wire);
                self.begin_anew()?;
                return Ok(Some(said));
            }
        }
        Ok(None)
    }

    /// Nobody goes on: somebody decides who shall.
    fn decide(&mut self) -> Outcome {
        for name in self.names {
            let volumes = [0, 1].map(|site| self.sites[site].volume(name));
            if volumes.iter().flatten().any(|volume| volume.is_primary()) {
                continue;
            }
            let standing = |volume: &Option<Arc<Volume>>| {
                volume.as_ref().map(|volume| (volume.epochs().newest().number, volume.tip_lsn()))
            };
            let site = usize::from(standing(&volumes[1]) > standing(&volumes[0]));
            if let Some(volume) = &volumes[site] {
                let members = [(volume.clone(), volume.tip_lsn())];
                self.promote(site, &members)?;
            }
        }
        Ok(())
    }

    /// One primary of each volume, and a replica that has all of it.
    fn is_one(&self) -> Outcome<bool> {
        for name in self.names {
            let [a, b] = [0, 1].map(|site| self.sites[site].volume(name));
            let (Some(a), Some(b)) = (a, b) else { return Ok(false) };
            let is_pair = a.is_primary() && b.is_replica() || b.is_primary() && a.is_replica();
            if !is_pair || a.tip_lsn() != b.tip_lsn() || a.epochs() != b.epochs() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every state of both sites, and all that was set aside.
    fn check_all(&mut self) -> Outcome {
        self.check()?;
        for site in 0..2 {
            for name in self.names {
                self.met.states += self.sites[site].check(name, &mut self.chance, true)?;
                let volume = self.sites[site].volume(name).expect("it is there");
                self.met.bases_moved += u64::from(volume.base_point().lsn > Lsn::ZERO);
                self.met.folds +=
                    volume.part_list().iter().filter(|part| part.segment.fold.is_some()).count() as u64;
            }
            self.sites[site].check_orphans()?;
        }
        for name in self.names {
            let [a, b] = [0, 1].map(|site| &self.sites[site].copies[name].log);
            if a.tip() != b.tip() || a.newest().id != b.newest().id {
                broken!("{name} is not the same at both sites");
            }
        }
        Ok(())
    }
}
