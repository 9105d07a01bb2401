//! Two sites, what happens to them, and what must hold meanwhile.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use cdp_core::base::BaseWriter;
use cdp_core::device::{Change, Device, Read};
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, CrashAt, PowerLoss, SimClock, SimDisk, Snapshot};
use cdp_core::store::{CreateOptions, FillBase, OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::Progress;
use cdp_core::volume::rollback::Back;
use cdp_core::volume::shown::Shown;
use cdp_replica::fault::Fault;
use cdp_replica::receiver::{Feeding, Receiver};
use cdp_replica::sender::Sender;
use cdp_replica::status::LinkStatus;
use cdp_replica::wire::control::{CODING_LZ4, CODING_ZSTD};

const STORE: &str = "/store";
const NAME: &str = "disk";
const ADDRESS: &str = "b:1";
const BLOCKS: u64 = 24;
/// Of the whole volume.
const ALL_BLOCKS: u64 = 256;
const SEGMENT_BYTES: u64 = 192 << 10;
const STEP_NS: u64 = 7_000_000;

/// What may happen.
#[derive(Clone, Copy)]
pub struct Plan {
    faults: bool,
    copy: bool,
    reseeds: bool,
    coalesces: bool,
}

impl Plan {
    pub fn everything() -> Plan {
        Plan { faults: true, copy: false, reseeds: false, coalesces: false }
    }

    /// A volume that did not begin as zeros, so that a state of it has to be copied first.
    pub fn with_copy() -> Plan {
        Plan { faults: true, copy: true, reseeds: false, coalesces: false }
    }

    /// People at the second site who have it copied anew now and then.
    pub fn with_reseeds() -> Plan {
        Plan { faults: true, copy: false, reseeds: true, coalesces: false }
    }

    /// A thin line, on which the newest state goes ahead of the history whenever that pays.
    pub fn with_newest_first() -> Plan {
        Plan { faults: true, copy: false, reseeds: false, coalesces: true }
    }

    pub fn quiet() -> Plan {
        Plan { faults: false, copy: false, reseeds: false, coalesces: false }
    }
}

/// What did.
#[derive(Default, Debug)]
pub struct Met {
    pub cuts: u64,
    pub flips: u64,
    pub stalls: u64,
    pub crashes_a: u64,
    pub crashes_b: u64,
    pub rollbacks: u64,
    pub resumed: u64,
    pub checks: u64,
    pub copies_resumed: u64,
    pub coded: u64,
    pub asked: u64,
    pub reseeded: u64,
    pub begun: u64,
    pub went_on: u64,
    pub shown: u64,
    pub refused: u64,
    pub dropped: u64,
    pub filled: u64,
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        self.cuts += other.cuts;
        self.flips += other.flips;
        self.stalls += other.stalls;
        self.crashes_a += other.crashes_a;
        self.crashes_b += other.crashes_b;
        self.rollbacks += other.rollbacks;
        self.resumed += other.resumed;
        self.checks += other.checks;
        self.copies_resumed += other.copies_resumed;
        self.coded += other.coded;
        self.asked += other.asked;
        self.reseeded += other.reseeded;
        self.begun += other.begun;
        self.went_on += other.went_on;
        self.shown += other.shown;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.filled += other.filled;
    }
}

struct Site {
    disk: SimDisk,
    clock: SimClock,
    store: Option<Arc<Store>>,
}

impl Site {
    fn new(seed: u64) -> Site {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        let mut site = Site { disk, clock, store: None };
        site.open();
        site
    }

    fn open(&mut self) {
        let options = OpenOptions { holder: "a test", ..OpenOptions::default() };
        let files = Arc::new(self.disk.clone());
        let store = Store::open_with(files, Arc::new(self.clock.clone()), Path::new(STORE), &options);
        self.store = Some(Arc::new(store.unwrap()));
    }

    fn volume(&self) -> Option<Arc<Volume>> {
        self.store.as_ref()?.volume(NAME).ok()
    }

    fn crash(&mut self, chance: &mut Chance, power: bool) {
        self.store = None;
        self.disk.clear_crash();
        self.disk = match power {
            true => self.disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            false => self.disk.crash_process(),
        };
        self.open();
    }
}

/// A connection; either side may be gone already without the other knowing.
struct Wire {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
    there: VecDeque<u8>,
    back: VecDeque<u8>,
    stalled: bool,
}

pub struct World {
    seed: u64,
    plan: Plan,
    chance: Chance,
    a: Site,
    b: Site,
    feeding: Arc<Feeding>,
    wire: Option<Wire>,
    now_ns: u64,
    forked_from: Option<Snapshot>,
    codings: u32,
    pub met: Met,
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        let (a, b) = (Site::new(seed * 2 + 1), Site::new(seed * 2 + 2));
        let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(1 << 20) };
        let mut fill = |base: &mut BaseWriter| {
            let mut noise = Chance::new(seed);
            (0..ALL_BLOCKS).step_by(3).try_for_each(|block| {
                let bytes: Vec<u8> = (0..512).flat_map(|_| noise.bits().to_le_bytes()).collect();
                base.write(block, &bytes)
            })
        };
        let fill: Option<&mut FillBase<'_>> = if plan.copy { Some(&mut fill) } else { None };
        let volume = a.store.as_ref().unwrap().create_volume(NAME, &options, fill).unwrap();
        if plan.copy && seed.is_multiple_of(2) {
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &[5; 9000] }], &mut results);
        }
        volume.add_replica(ADDRESS, 0, false).unwrap();
        World {
            seed,
            plan,
            chance: Chance::new(seed ^ 0x11a7),
            a,
            b,
            feeding: Arc::default(),
            wire: None,
            now_ns: 1_000_000_000,
            forked_from: None,
            codings: u32::MAX,
            met: Met::default(),
        }
    }

    pub fn run(&mut self, steps: usize) {
        for step in 0..steps {
            self.step();
            if step == steps / 3 {
                self.forked_from = Some(self.a.disk.snapshot());
            }
            if step % 7 == 0 {
                self.check();
            }
        }
    }

    fn step(&mut self) {
        // A copy takes its time, so that it can be broken off.
        let step_ns = if self.plan.copy { 10 * STEP_NS } else { STEP_NS };
        self.now_ns += step_ns;
        self.a.clock.advance(step_ns);
        self.b.clock.advance(step_ns);
        if self.plan.faults {
            self.misfortune();
        }
        if self.chance.percent(70) {
            self.work_at_a();
        }
        if self.plan.reseeds && self.chance.percent(4) {
            let store = self.b.store.as_ref().unwrap();
            self.met.asked += u64::from(store.plan_reseed(NAME, None, None).is_ok());
            if self.chance.percent(20) {
                let _ = store.withdraw_reseed(NAME);
            }
            self.restart_crashed();
        }
        self.upkeep();
        let had = self.b.volume().and_then(|b| b.coalesced_state());
        if had.is_some() && self.chance.percent(1) {
            let b = self.b.volume().unwrap();
            let gone = if self.chance.percent(50) { b.drop_coalesced() } else { b.give_up_coalesced() };
            self.met.dropped += u64::from(gone.is_ok());
            self.restart_crashed();
        }
        self.talk();
        let has = self.b.volume().and_then(|b| b.coalesced_state());
        self.met.begun += u64::from(has.is_some() && had.is_none());
    }

    fn misfortune(&mut self) {
        match self.chance.below(100) {
            0..3 => {
                self.wire = None;
                self.met.cuts += 1;
            }
            3..5 => {
                if let Some(wire) = &mut self.wire {
                    // One side's machine is gone; the other hears nothing of it.
                    if self.chance.percent(50) {
                        wire.sender = None
                    } else {
                        wire.receiver = None
                    }
                    self.met.stalls += 1;
                }
            }
            5..7 => {
                if let Some(wire) = &mut self.wire {
                    wire.stalled = !wire.stalled;
                    self.met.stalls += 1;
                }
            }
            7..10 => {
                if let Some(wire) = &mut self.wire {
                    let there = self.chance.percent(70);
                    let bytes = if there { &mut wire.there } else { &mut wire.back };
                    if !bytes.is_empty() {
                        let at = self.chance.below(bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << self.chance.below(8);
                        self.met.flips += 1;
                    }
                }
            }
            10..12 => self.a.disk.set_crash_after(1 + self.chance.below(12), CrashAt::During),
            12..15 => self.b.disk.set_crash_after(1 + self.chance.below(12), CrashAt::During),
            15 => {
                let power = self.chance.percent(50);
                self.crash_a(power);
            }
            16 => {
                let power = self.chance.percent(50);
                self.crash_b(power);
            }
            _ => {}
        }
    }

    /// After a planned crash the machine is started again.
    fn restart_crashed(&mut self) {
        if self.a.disk.is_crashed() {
            let power = self.chance.percent(60);
            self.crash_a(power);
        }
        if self.b.disk.is_crashed() {
            let power = self.chance.percent(60);
            self.crash_b(power);
        }
    }

    fn crash_a(&mut self, power: bool) {
        if let Some(wire) = &mut self.wire {
            wire.sender = None;
        }
        self.a.crash(&mut self.chance, power);
        self.met.crashes_a += 1;
        // Of two connections the old one may linger.
        if self.chance.percent(50) {
            self.wire = None;
        }
    }

    pub fn crash_b(&mut self, power: bool) {
        if let Some(wire) = &mut self.wire {
            wire.receiver = None;
        }
        self.b.crash(&mut self.chance, power);
        self.feeding = Arc::default();
        self.met.crashes_b += 1;
        if self.chance.percent(50) {
            self.wire = None;
        }
    }

    fn work_at_a(&mut self) {
        let volume = self.a.volume().expect("the primary has it");
        let offset = self.chance.below(BLOCKS * 8) * 512;
        // A third of the content stands in other places already.
        let byte = match self.chance.below(255) as u8 + 1 {
            common @ 0..80 => common % 4 + 1,
            rare => rare,
        };
        let aligned = offset / 4096 * 4096;
        let mut data = vec![byte; 4096 * (1 + self.chance.below(6)) as usize];
        for (number, byte) in data.iter_mut().enumerate() {
            *byte = byte.wrapping_add((number / 97) as u8);
        }
        let change = match self.chance.below(10) {
            0..4 => Change::Write { offset: aligned, data: &data },
            4..6 => Change::Write { offset, data: &data[..700] },
            6 => Change::Zero { offset, len: 5000, hole: true },
            7 => Change::Trim { offset: aligned, len: 8192 },
            8 => {
                let marker = MarkerPayload {
                    class: MarkerClass::Manual,
                    group: 0,
                    name: format!("m{}", self.chance.below(1000)),
                    note: String::new(),
                    tags: Vec::new(),
                    hook_output: String::new(),
                };
                let _ = volume.mark(&marker);
                return self.restart_crashed();
            }
            _ => {
                let tip = volume.tip_lsn().0;
                if self.chance.percent(30) {
                    let _ = volume.grow(volume.size_bytes() + 4096);
                } else if tip > 3 && !self.plan.copy {
                    // Not to what a copy does not have.
                    let back = Lsn(tip - self.chance.below(tip.min(20))).max(self.copied_from(&volume));
                    self.met.rollbacks += u64::from(volume.rollback(Back::To(back), "test").is_ok());
                }
                return self.restart_crashed();
            }
        };
        let session = SessionId(1);
        let mut results = Vec::new();
        volume.apply(session, &[change], &mut results);
        if self.chance.percent(30) {
            let _ = volume.flush();
        }
        self.restart_crashed();
    }

    /// The newest state that a copy at the second site begins with, or is going to.
    fn copied_from(&self, a: &Volume) -> Lsn {
        if !self.plan.reseeds {
            return Lsn::ZERO;
        }
        let begun = self.b.store.as_ref().unwrap().copy_state(a.identity().id).unwrap();
        let oldest = self.b.volume().map_or(Lsn::ZERO, |volume| volume.oldest().0);
        let held = a.replicas()[0].clone();
        let held = if held.is_acknowledged { Lsn::ZERO } else { held.held };
        begun.map_or(Lsn::ZERO, |state| state.copied.lsn).max(oldest).max(held)
    }

    fn upkeep(&mut self) {
        for site in [&self.a, &self.b] {
            let store = site.store.as_ref().unwrap();
            let errors = store.tick();
            assert!(errors.is_empty() || site.disk.is_crashed(), "seed {}: {errors:?}", self.seed);
            if self.chance.percent(20) {
                let errors = store.maintain();
                assert!(errors.is_empty() || site.disk.is_crashed(), "seed {}: {errors:?}", self.seed);
            }
        }
        self.restart_crashed();
    }

    fn connect(&mut self) {
        if let Some(a) = self.a.volume() {
            let begun = self.b.store.as_ref().unwrap().copy_state(a.identity().id).unwrap();
            self.met.copies_resumed += u64::from(begun.is_some_and(|state| state.done_bytes > 0));
        }
        let mut sender = Sender::new(self.a.volume().unwrap(), ADDRESS, self.now_ns);
        // Either compression, or none.
        let without = [0, CODING_ZSTD, CODING_ZSTD | CODING_LZ4][self.chance.below(3) as usize];
        sender.restrict_codings(self.codings & !without);
        if let Some(b) = self.b.volume()
            && let Some(state) = b.coalesced_state()
        {
            self.met.went_on += u64::from(state.come.blocks > 0 && state.progress == Progress::Begun);
        }
        // Somebody may have changed that link meanwhile.
        if self.plan.coalesces && !self.chance.percent(10) {
            sender.coalesce(self.chance.below(200_000));
        }
        let store = self.b.store.clone().unwrap();
        let receiver = Receiver::new(store, self.feeding.clone(), "site-a", self.now_ns);
        self.wire = Some(Wire {
            sender: Some(sender),
            receiver: Some(receiver),
            there: VecDeque::new(),
            back: VecDeque::new(),
            stalled: false,
        });
        self.met.resumed += 1;
    }

    fn talk(&mut self) {
        if self.wire.is_none() {
            if self.chance.percent(40) {
                self.connect();
            }
            return;
        }
        for _ in 0..4 {
            if let Some(fault) = self.exchange() {
                // A planned crash, a flipped bit, silence: whatever it is, a new connection has to do.
                let expected = self.plan.faults;
                assert!(expected, "seed {}: {fault}", self.seed);
                self.wire = None;
                break;
            }
        }
        self.restart_crashed();
    }

    /// Moves some bytes each way and lets both sides work. How the connection ended, if it did.
    fn exchange(&mut self) -> Option<Fault> {
        let now_ns = self.now_ns;
        let wire = self.wire.as_mut()?;
        if let Some(sender) = &mut wire.sender {
            if let Err(fault) = sender.poll(now_ns) {
                return Some(fault);
            }
            wire.there.extend(sender.output().drain(..));
            let mut status = LinkStatus::default();
            sender.fill_status(&mut status);
            self.met.coded += status.coded_records;
        }
        if let Some(receiver) = &mut wire.receiver {
            if let Err(fault) = receiver.poll(now_ns) {
                return Some(fault);
            }
            wire.back.extend(receiver.output().drain(..));
        }
        if wire.stalled {
            return None;
        }
        let bytes = if self.plan.copy || self.plan.coalesces { 6_000 } else { 60_000 };
        let most = if self.plan.faults { self.chance.below(bytes) as usize } else { usize::MAX };
        let some: Vec<u8> = wire.there.drain(..most.min(wire.there.len())).collect();
        if let Some(receiver) = &mut wire.receiver
            && let Err(fault) = receiver.receive(&some, now_ns)
        {
            return Some(fault);
        }
        let most = if self.plan.faults { self.chance.below(200) as usize } else { usize::MAX };
        let some: Vec<u8> = wire.back.drain(..most.min(wire.back.len())).collect();
        if let Some(sender) = &mut wire.sender
            && let Err(fault) = sender.receive(&some, now_ns)
        {
            return Some(fault);
        }
        None
    }

    /// Everything that must hold at every instant.
    pub fn check(&mut self) {
        self.met.checks += 1;
        let seed = self.seed;
        let a = self.a.volume().unwrap();
        let Some(b) = self.b.volume() else { return };
        let (tip_a, tip_b) = (a.durable_lsn(), b.tip_lsn());
        assert!(
            tip_b <= tip_a,
            "seed {seed}: the replica has {tip_b:?}, {tip_a:?} is durable at the primary"
        );
        let oldest = b.oldest().0.0;
        let mut any = || Lsn(oldest + self.chance.below(tip_b.0 + 1 - oldest));
        for lsn in [tip_b, any(), any()] {
            self.check_state(&a, &b, lsn);
        }
        self.check_newest(&a, &b);
        // What stepped aside is what it was.
        let all = self.b.store.as_ref().unwrap().volumes();
        let asides: Vec<_> = all.into_iter().filter(|volume| volume.name() != NAME).collect();
        self.met.reseeded = self.met.reseeded.max(asides.len() as u64);
        if !asides.is_empty() {
            let aside = &asides[self.chance.below(asides.len() as u64) as usize];
            let (oldest, tip) = (aside.oldest().0.0, aside.tip_lsn().0);
            let lsn = Lsn(oldest + self.chance.below(tip + 1 - oldest));
            self.check_state(&a, aside, lsn);
        }
        let held = a.replicas()[0].held;
        assert!(
            !a.replicas()[0].is_acknowledged || held <= b.durable_lsn(),
            "seed {seed}: {held:?} is taken for acknowledged"
        );
        let complete = b.source().map_or(Timestamp(0), |source| source.complete);
        if complete > Timestamp(0) {
            let through = a.lsn_at(complete).unwrap();
            let durable = b.durable_lsn();
            assert!(
                through <= durable,
                "seed {seed}: complete through {complete:?}, {through:?}, with {durable:?}"
            );
        }
    }

    /// What is shown ahead of the history is exactly that state of the primary, and nothing between is.
    fn check_newest(&mut self, a: &Arc<Volume>, b: &Arc<Volume>) {
        let (seed, tip) = (self.seed, b.tip_lsn());
        let shown = Shown::of(b.clone());
        let newest = shown.tip();
        let beyond = Lsn(a.durable_lsn().0.max(newest.0.0) + 1);
        let mut between = vec![beyond];
        if newest.0 > tip.next() {
            between.push(Lsn(tip.0 + 1 + self.chance.below(newest.0.0 - tip.0 - 1)));
        }
        for lsn in between {
            let refused = View::of(b.clone(), &shown, lsn, "a check").is_err();
            assert!(refused, "seed {seed}: {lsn:?} is shown, with {tip:?} here and {newest:?} ahead");
            assert!(View::open(b.clone(), lsn, "a check").is_err(), "seed {seed}: {lsn:?}");
            self.met.refused += 1;
        }
        if newest.0 == tip {
            return;
        }
        self.met.shown += 1;
        assert!(
            newest.0 <= a.durable_lsn(),
            "seed {seed}: {newest:?} is shown and not durable at the primary"
        );
        assert_eq!(a.position_at(newest.0).unwrap().timestamp, newest.1, "seed {seed}");
        let view = View::of(b.clone(), &shown, newest.0, "a check").unwrap();
        assert_eq!(view.size_bytes(), a.size_at(newest.0), "seed {seed}: {newest:?}");
        assert!(bytes(&view) == content(a, newest.0), "seed {seed}: {newest:?} is not that state");
    }

    fn check_state(&self, a: &Arc<Volume>, b: &Arc<Volume>, lsn: Lsn) {
        let seed = self.seed;
        if lsn <= b.durable_lsn() {
            let (at_a, at_b) = (a.position_at(lsn).unwrap(), b.position_at(lsn).unwrap());
            assert_eq!(at_a.chain, at_b.chain, "seed {seed}: {lsn:?}");
            assert_eq!(at_a.timestamp, at_b.timestamp, "seed {seed}: {lsn:?}");
        }
        assert_eq!(a.size_at(lsn), b.size_at(lsn), "seed {seed}: {lsn:?}");
        assert!(content(a, lsn) == content(b, lsn), "seed {seed}: the states at {lsn:?} differ");
    }

    /// Both sites show the same disk now.
    pub fn check_tip(&self) {
        let (a, b) = (self.a.volume().unwrap(), self.b.volume().unwrap());
        self.check_state(&a, &b, a.tip_lsn());
    }

    /// No more faults: the replica gets everything, and every state of it is the primary's.
    pub fn heal(&mut self) {
        self.catch_up(true);
    }

    /// As [`World::heal`], where not every state of the replica can be read.
    pub fn heal_unread(&mut self) {
        self.catch_up(false);
    }

    fn catch_up(&mut self, checked: bool) {
        self.plan.faults = false;
        self.a.disk.clear_crash();
        self.b.disk.clear_crash();
        self.wire = None;
        let a = self.a.volume().unwrap();
        a.flush().unwrap();
        let tip = a.tip_lsn();
        for _ in 0..400 {
            self.now_ns += 50_000_000;
            if self.wire.is_none() {
                self.connect();
            }
            if let Some(fault) = self.exchange() {
                panic!("seed {}: {fault}", self.seed);
            }
            if a.replicas()[0].held == tip && a.replicas()[0].is_acknowledged {
                break;
            }
        }
        let b = self.b.volume().unwrap();
        assert_eq!((b.durable_lsn(), self.acknowledged()), (tip, tip), "seed {}", self.seed);
        // Nothing is left beside the history.
        self.met.filled += u64::from(b.coalesced_state().is_some());
        b.maintain().unwrap();
        assert_eq!(b.coalesced_state(), None, "seed {}", self.seed);
        for lsn in b.oldest().0.0..=tip.0 {
            if checked {
                self.check_state(&a, &b, Lsn(lsn));
            }
        }
        // Of what was before a copied state there are no names.
        let mut named = a.named_markers();
        named.retain(|(marker, _)| b.oldest().0 == Lsn::ZERO || marker.lsn > b.oldest().0);
        assert_eq!(named, b.named_markers(), "seed {}", self.seed);
        self.wire = None;
    }

    /// Nobody writes, and nothing goes wrong, until the second site has said that it has everything up to now.
    pub fn idle(&mut self) {
        self.plan.faults = false;
        self.wire = None;
        let before = self.complete_at_b();
        for _ in 0..20_000 {
            // Small steps, and real time for the threads that sync.
            self.now_ns += 2_000_000;
            self.a.clock.advance(2_000_000);
            self.b.clock.advance(2_000_000);
            std::thread::sleep(std::time::Duration::from_micros(500));
            // As upkeep does.
            self.a.volume().unwrap().flush().unwrap();
            if self.wire.is_none() {
                self.connect();
            }
            if let Some(fault) = self.exchange() {
                panic!("seed {}: {fault}", self.seed);
            }
            if self.complete_at_b() > before {
                return;
            }
        }
        panic!("seed {}: the second site says nothing new", self.seed);
    }

    pub fn feed_third(&mut self) {
        let (c, b) = (Site::new(self.seed + 1000), self.b.volume().unwrap());
        b.add_replica("c:1", 0, false).unwrap();
        let mut sender = Sender::new(b.clone(), "c:1", self.now_ns);
        let store = c.store.clone().unwrap();
        let mut receiver = Receiver::new(store, Arc::default(), "site-b", self.now_ns);
        for _ in 0..200 {
            self.now_ns += 50_000_000;
            sender.poll(self.now_ns).unwrap();
            let there: Vec<u8> = sender.output().drain(..).collect();
            receiver.receive(&there, self.now_ns).unwrap();
            receiver.poll(self.now_ns).unwrap();
            let back: Vec<u8> = receiver.output().drain(..).collect();
            sender.receive(&back, self.now_ns).unwrap();
        }
        let third = c.volume().unwrap();
        assert_eq!(third.durable_lsn(), b.durable_lsn());
        for lsn in 0..=b.durable_lsn().0 {
            self.check_state(&b, &third, Lsn(lsn));
        }
        let (known, told) = (b.complete_through().1, third.source().unwrap());
        assert!(told.complete <= known && told.peer == "site-b", "{told:?}, {known:?}");
    }

    pub fn acknowledged(&self) -> Lsn {
        self.a.volume().unwrap().replicas()[0].held
    }

    /// The instant through which the second site said that it has everything.
    pub fn complete_at_b(&self) -> Timestamp {
        self.a.volume().unwrap().replicas()[0].complete
    }

    pub fn tip_b(&self) -> Lsn {
        self.b.volume().map_or(Lsn::ZERO, |volume| volume.tip_lsn())
    }

    /// The primary is again what it was some time ago, and goes on differently.
    pub fn fork_a(&mut self) {
        self.a.store = None;
        self.a.disk = self.a.disk.restore(self.forked_from.as_ref().unwrap()).crash_process();
        self.a.open();
        let volume = self.a.volume().unwrap();
        let tip = self.tip_b();
        while volume.tip_lsn() <= tip {
            let mut results = Vec::new();
            let change = Change::Write { offset: 0, data: &[99; 4096] };
            volume.apply(SessionId(2), &[change], &mut results);
            assert!(results[0].is_ok());
        }
        volume.flush().unwrap();
    }

    /// A client changes this block at the first site, whole or its first bytes.
    pub fn write_block(&mut self, block: u64, bytes: &[u8]) {
        let volume = self.a.volume().unwrap();
        let mut results = Vec::new();
        let change = Change::Write { offset: block * BLOCK_BYTES, data: bytes };
        volume.apply(SessionId(3), &[change], &mut results);
        assert!(results[0].is_ok());
        volume.flush().unwrap();
    }

    /// The second site's disk loses a bit of the journal block with this content.
    pub fn rot_at_b(&mut self, content: &[u8]) {
        let files = self.b.disk.clone();
        let dir = self.b.volume().unwrap().dir().to_owned();
        for entry in files.list(&dir).unwrap() {
            let path = dir.join(&entry.name);
            if path.extension().is_none_or(|extension| extension != "seg") {
                continue;
            }
            let file = files.open(&path, false).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(0, &mut bytes).unwrap();
            if let Some(block) = bytes.chunks(content.len()).position(|block| block == content) {
                return files.rot(&path, (block * content.len()) as u64 + 9, 4).unwrap();
            }
        }
        panic!("no segment has it");
    }

    /// From the next connection on only these codings are used.
    pub fn restrict_codings(&mut self, mask: u32) {
        self.codings = mask;
        self.wire = None;
    }

    pub fn connect_until_it_ends(&mut self) -> Fault {
        self.connect();
        self.talk_until_it_ends()
    }

    /// A connection that has nothing to do.
    pub fn keep_connected(&mut self) {
        self.connect();
        for _ in 0..20 {
            self.now_ns += 50_000_000;
            assert_eq!(self.exchange(), None);
        }
    }

    pub fn promote_b(&mut self) {
        let (store, volume) = (self.b.store.clone().unwrap(), self.b.volume().unwrap());
        let members = [(volume.clone(), volume.tip_lsn())];
        store.promote(NAME, &members, EpochNumber(0), "a test").unwrap();
        let mut results = Vec::new();
        volume.apply(SessionId(5), &[Change::Write { offset: 0, data: &[77; 4096] }], &mut results);
        assert!(results[0].is_ok());
        volume.flush().unwrap();
    }

    pub fn a_is_fenced(&self) {
        let volume = self.a.volume().unwrap();
        let mut results = Vec::new();
        volume.apply(SessionId(6), &[Change::Write { offset: 0, data: &[78; 4096] }], &mut results);
        assert!(results[0].is_err(), "a write is answered at the old primary");
        assert_eq!(volume.role().word(), "fenced");
    }

    /// How the sender's side of it ends.
    pub fn talk_until_it_ends(&mut self) -> Fault {
        for _ in 0..1000 {
            self.now_ns += 50_000_000;
            let Some(fault) = self.exchange() else { continue };
            // What one side found, the other one is told.
            let wire = self.wire.as_mut().unwrap();
            let (sender, receiver) = (wire.sender.as_mut().unwrap(), wire.receiver.as_mut().unwrap());
            let farewell: Vec<u8> = receiver.output().drain(..).collect();
            let told = sender.receive(&farewell, self.now_ns);
            return told.err().unwrap_or(fault);
        }
        panic!("it goes on");
    }
}

fn content(volume: &Arc<Volume>, lsn: Lsn) -> Vec<u8> {
    bytes(&View::open(volume.clone(), lsn, "a check").unwrap())
}

fn bytes(view: &View) -> Vec<u8> {
    let mut bytes = vec![0; (ALL_BLOCKS * BLOCK_BYTES) as usize];
    let mut reads = [Read { offset: 0, buffer: &mut bytes, result: Ok(()) }];
    view.read(&mut reads);
    let [read] = reads;
    read.result.unwrap();
    bytes
}
