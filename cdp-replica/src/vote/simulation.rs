//! Two sites and a witness on a simulated network with simulated clocks: never two holders, always one in the end.
//!
//! Clocks run up to one part in twenty too fast or too slow; messages are lost, doubled, overtaken and late by several
//! leases; links are cut; nodes lose all but their durable ballot, with or without a reboot that sets their clock back,
//! also between the ballot's becoming durable and its answer. A double holder would be two sites that answer writes.
//!
//! The sites have histories, which they ship to each other, and do what a server does: a primary writes and answers under its
//! lease, a replica with the lease promotes itself, an old primary that hears of it is fenced and resynced. Whoever answers
//! has to be in the newest epoch that anybody began, and whatever was answered and had arrived is there for ever.

use std::collections::{BTreeMap, BinaryHeap};

use super::{Answer, Ballot, Claim, Seat, SiteId, Standing, Times, Voter};

const LEASE_NS: u64 = 3_000_000_000;
const TICK_NS: u64 = LEASE_NS / 4;
/// Nodes 0 and 1 are sites, node 2 is the witness.
const SITES: usize = 2;
const NODES: usize = 3;
/// Of simulated time.
const LENGTH_NS: u64 = 200 * LEASE_NS;
/// Then nothing fails any more.
const CALM_NS: u64 = 40 * LEASE_NS;

/// What the simulation has to catch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// The lease is counted from the answers, to whichever claim.
    CountFromAnswer,
    /// A voter that starts again promises nothing.
    ForgetPromise,
    /// Ballots are not durable.
    BallotInMemory,
    /// A promise is as short as a lease, whatever the clocks do.
    NoMargin,
    /// The lease is looked at when a write comes in, and not when it is answered.
    AnswerLate,
    /// A primary that lost outbids the other site.
    Outbid,
    /// Who steps down gives up the epoch at once, and answers what is under way.
    GiveUpEarly,
    /// A voter that is told so ends whatever it promised.
    GiveUpAnything,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

enum Event {
    /// A site looks what to do.
    Tick(usize),
    Claim {
        from: usize,
        to: usize,
        claim: Claim,
    },
    /// A site will never answer under this ballot again.
    GiveUp {
        to: usize,
        ballot: Ballot,
    },
    /// Somebody wants the other site to go on.
    StepDown(usize),
    Answer {
        from: usize,
        to: usize,
        answer: Answer,
    },
    /// A client writes at a site.
    Write(usize),
    /// The write of an epoch is done, and may be answered.
    Reply {
        site: usize,
        start: u64,
        epoch: u64,
        lsn: u64,
    },
    /// What a site has, on its way to the other.
    Ship {
        to: usize,
        role: Role,
        log: Log,
    },
    Stop(usize),
    Start {
        node: usize,
        reboot: bool,
    },
    Cut(usize, usize),
    Heal(usize, usize),
}

struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Primary,
    Replica,
    Fenced,
    /// Stepped down, durably, and the other site has not gone on yet.
    Left,
}

/// A history: where its epochs begin, and its newest record. What two have in common they have in the same epochs.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Log {
    epochs: Vec<(u64, u64)>,
    tip: u64,
}

impl Log {
    fn newest(&self) -> u64 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// The newest record of both.
    fn common(&self, other: &Log) -> u64 {
        let common = self.tip.min(other.tip);
        for number in 0..self.epochs.len().max(other.epochs.len()) {
            let (a, b) = (self.epochs.get(number), other.epochs.get(number));
            if a != b {
                let begins = [a, b].into_iter().flatten().map(|(_, start)| *start).min();
                return common.min(begins.map_or(common, |start| start - 1));
            }
        }
        common
    }

    fn has(&self, epoch: u64, lsn: u64) -> bool {
        let of = self.epochs.iter().rev().find(|(_, start)| *start <= lsn);
        lsn <= self.tip && of.is_some_and(|(number, _)| *number == epoch)
    }
}

struct Node {
    /// Parts per million by which its clock is too fast.
    drift: i64,
    zero: u64,
    kept: Option<Ballot>,
    /// `None` while it is down.
    voter: Option<Voter>,
    seat: Seat,
    /// So often it was started.
    start: u64,
    // Of a site: durable.
    role: Role,
    log: Log,
    // What it knows of the other's, as acknowledged to it.
    seen: Log,
}

impl Node {
    fn is_drained(&self) -> bool {
        self.seen.has(self.log.newest(), self.log.tip)
    }

    fn standing(&self) -> Standing {
        match self.role {
            Role::Left if self.is_drained() => Standing::Out,
            Role::Left => Standing::Leaving(self.log.newest()),
            Role::Primary => Standing::Primary(self.log.newest()),
            Role::Replica => Standing::Ready(self.log.newest()),
            Role::Fenced => Standing::Out,
        }
    }
}

struct World {
    random: Random,
    planted: Planted,
    times: Times,
    now: u64,
    count: u64,
    queue: BinaryHeap<Due>,
    nodes: Vec<Node>,
    cut: [[bool; NODES]; NODES],
    winners: BTreeMap<u64, SiteId>,
    /// The newest epoch that anybody began.
    begun: u64,
    /// The newest record that was answered when the other site had it.
    safe: (u64, u64),
    answered: u64,
    changes: u64,
    held_ns: u64,
    /// The epoch and the newest record of who stepped down last, and when he gave up.
    stepped_down: Option<(u64, u64)>,
    given_up: u64,
    /// So often the other site went on before a lease could have run out.
    handed_over: u64,
}

/// What a run showed.
#[derive(Debug)]
struct Outcome {
    /// How often the holder changed.
    changes: u64,
    /// Writes that were answered.
    answered: u64,
    /// Whether somebody held the lease at the end.
    held_at_the_end: bool,
    /// How much of the time somebody did, in percent.
    held_percent: u64,
    /// Planned changes for which nobody waited for a lease.
    handed_over: u64,
}

impl World {
    fn new(seed: u64, planted: Planted) -> World {
        let mut random = Random(seed);
        let mut times = Times::with_lease(LEASE_NS);
        if planted == Planted::NoMargin {
            times.promise_ns = times.lease_ns;
        }
        let nodes = (0..NODES)
            .map(|number| Node {
                drift: random.below(100_001) as i64 - 50_000,
                zero: 0,
                kept: None,
                voter: Some(Voter::start(times, None, 0)),
                seat: Seat::new(times, SiteId(number as u128)),
                start: 0,
                role: if number == 0 { Role::Primary } else { Role::Replica },
                log: Log { epochs: vec![(1, 1)], tip: 1 },
                seen: Log { epochs: vec![(1, 1)], tip: 1 },
            })
            .collect();
        World {
            random,
            planted,
            times,
            now: 0,
            count: 0,
            queue: BinaryHeap::new(),
            nodes,
            cut: Default::default(),
            winners: BTreeMap::new(),
            begun: 1,
            safe: (1, 1),
            answered: 0,
            changes: 0,
            held_ns: 0,
            stepped_down: None,
            given_up: 0,
            handed_over: 0,
        }
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.count += 1;
        self.queue.push(Due(self.now + delay, self.count, event));
    }

    fn clock(&self, node: usize) -> u64 {
        let Node { drift, zero, .. } = &self.nodes[node];
        let true_ns = i128::from(self.now - zero);
        (true_ns + true_ns * i128::from(*drift) / 1_000_000) as u64
    }

    /// To itself a node speaks at once and surely.
    fn send(&mut self, from: usize, to: usize, event: impl Fn() -> Event) {
        if from == to {
            return self.at(0, event());
        }
        if self.cut[from][to] {
            return;
        }
        let calm = self.now > LENGTH_NS;
        if !calm && self.random.chance(10) {
            return;
        }
        let copies = if !calm && self.random.chance(10) { 2 } else { 1 };
        for _ in 0..copies {
            let late = !calm && self.random.chance(15);
            let delay = self.random.below(if late { 3 * LEASE_NS } else { 20_000_000 });
            self.at(delay, event());
        }
    }

    fn run(mut self) -> Result<Outcome, String> {
        for site in 0..SITES {
            let delay = self.random.below(TICK_NS);
            self.at(delay, Event::Tick(site));
            self.at(delay, Event::Write(site));
        }
        self.trouble();
        while let Some(Due(at, _, event)) = self.queue.pop() {
            if at > LENGTH_NS + CALM_NS {
                break;
            }
            let before = self.holders();
            if !before.is_empty() {
                self.held_ns += at - self.now;
            }
            self.now = at;
            self.step(event)?;
            let holders = self.holders();
            if holders.len() > 1 {
                return Err(format!("two holders at {} ns", self.now));
            }
            for node in holders {
                let epoch = self.nodes[node].seat.lease(self.clock(node)).map_or(0, |(epoch, _)| epoch);
                let site = SiteId(node as u128);
                match self.winners.insert(epoch, site) {
                    None => self.changes += 1,
                    Some(other) if other != site => {
                        return Err(format!("two sites held epoch {epoch}"));
                    }
                    Some(_) => {}
                }
            }
        }
        let is_answering = |site: &usize| self.nodes[*site].role == Role::Primary;
        let held_at_the_end = self.holders().iter().any(is_answering);
        let held_percent = self.held_ns * 100 / (LENGTH_NS + CALM_NS);
        let World { changes, answered, handed_over, .. } = self;
        Ok(Outcome { changes, answered, held_at_the_end, held_percent, handed_over })
    }

    fn holders(&self) -> Vec<usize> {
        let holds = |node: &usize| {
            let Node { voter, seat, .. } = &self.nodes[*node];
            voter.is_some() && seat.lease(self.clock(*node)).is_some()
        };
        (0..SITES).filter(holds).collect()
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick(site) => return self.tick(site),
            Event::Write(site) => self.write(site),
            Event::Reply { site, start, epoch, lsn } => return self.reply(site, start, epoch, lsn),
            Event::Ship { to, role, log } => return self.take(to, role, log),
            Event::Claim { from, to, claim } => self.claim(from, to, claim),
            Event::StepDown(site) => self.step_down(site),
            Event::GiveUp { to, ballot } => {
                if let Some(voter) = &mut self.nodes[to].voter {
                    let known = voter.ballot().filter(|_| self.planted == Planted::GiveUpAnything);
                    voter.release(known.unwrap_or(ballot));
                }
            }
            Event::Answer { from, to, mut answer } => {
                let clock = self.clock(to);
                if self.nodes[to].voter.is_none() {
                    return Ok(());
                }
                if self.planted == Planted::CountFromAnswer {
                    self.nodes[to].seat.mistake(clock, &mut answer);
                }
                if let Some(claim) = self.nodes[to].seat.hear(from, &answer, clock) {
                    self.ask_all(to, claim);
                }
            }
            Event::Stop(node) => self.stop(node),
            Event::Start { node, reboot } => self.start(node, reboot),
            Event::Cut(a, b) => (self.cut[a][b], self.cut[b][a]) = (true, true),
            Event::Heal(a, b) => (self.cut[a][b], self.cut[b][a]) = (false, false),
        }
        Ok(())
    }

    /// As a server does it.
    fn tick(&mut self, site: usize) -> Result<(), String> {
        let wait = TICK_NS / 2 + self.random.below(TICK_NS);
        self.at(wait, Event::Tick(site));
        if self.nodes[site].voter.is_none() {
            return Ok(());
        }
        let (clock, first) = (self.clock(site), self.random.next());
        let node = &mut self.nodes[site];
        let mut standing = node.standing();
        if let Some(epoch) = node.seat.promotes(standing, clock) {
            if epoch <= self.begun {
                return Err(format!("epoch {epoch} is begun again"));
            }
            let (safe_epoch, safe_lsn) = self.safe;
            if !node.log.has(safe_epoch, safe_lsn) {
                return Err(format!("lsn {safe_lsn} was answered and had arrived, and is gone"));
            }
            // Whoever stepped down keeps the epoch until all of it is there; one that died may have kept nothing.
            if let Some((left, tip)) = self.stepped_down.take_if(|(left, _)| *left + 1 == epoch) {
                let is_early = self.given_up > 0 && self.now - self.given_up < LEASE_NS / 2;
                self.handed_over += u64::from(is_early);
                if is_early && !node.log.has(left, tip) {
                    return Err(format!("lsn {tip} of who handed over is not there"));
                }
            }
            node.log.tip += 1;
            node.log.epochs.push((epoch, node.log.tip));
            node.role = Role::Primary;
            self.begun = epoch;
            standing = node.standing();
        }
        if self.planted == Planted::Outbid
            && let Standing::Primary(epoch) = standing
            && node.seat.heard() > epoch
        {
            standing = Standing::Primary(node.seat.heard() + 1);
        }
        if let Some(claim) = node.seat.tick(standing, clock, first) {
            self.ask_all(site, claim);
        }
        self.give_up(site);
        let (to, role, log) = (1 - site, self.nodes[site].role, self.nodes[site].log.clone());
        self.send(site, to, || Event::Ship { to, role, log: log.clone() });
        Ok(())
    }

    /// As `cdp demote` does it: its clients were sent away, and it is a replica from now on, durably.
    fn step_down(&mut self, site: usize) {
        let clock = self.clock(site);
        let node = &mut self.nodes[site];
        if node.voter.is_none() || node.role != Role::Primary || node.seat.lease(clock).is_none() {
            return;
        }
        if self.planted == Planted::GiveUpEarly {
            let ballot = Ballot { epoch: node.log.newest(), site: SiteId(site as u128) };
            (0..NODES).for_each(|to| self.send(site, to, || Event::GiveUp { to, ballot }));
            return;
        }
        node.role = Role::Left;
        (self.stepped_down, self.given_up) = (Some((node.log.newest(), node.log.tip)), 0);
    }

    /// Says so again and again, until the other site has gone on: its messages get lost, too.
    fn give_up(&mut self, site: usize) {
        let node = &self.nodes[site];
        if node.role != Role::Left || node.standing() != Standing::Out {
            return;
        }
        let ballot = Ballot { epoch: node.log.newest(), site: SiteId(site as u128) };
        if self.given_up == 0 {
            self.given_up = self.now;
        }
        (0..NODES).for_each(|to| self.send(site, to, || Event::GiveUp { to, ballot }));
    }

    fn write(&mut self, site: usize) {
        let wait = self.random.below(LEASE_NS / 2);
        self.at(wait, Event::Write(site));
        let clock = self.clock(site);
        let node = &mut self.nodes[site];
        let is_up = node.voter.is_some() && node.role == Role::Primary;
        let Some((held, _)) = node.seat.lease(clock).filter(|_| is_up) else { return };
        node.log.tip += 1;
        let (start, epoch, lsn) = (node.start, held, node.log.tip);
        // A slow disk.
        let slow = self.random.chance(20);
        let delay = self.random.below(if slow { 3 * LEASE_NS } else { LEASE_NS / 10 });
        self.at(delay, Event::Reply { site, start, epoch, lsn });
    }

    fn reply(&mut self, site: usize, start: u64, epoch: u64, lsn: u64) -> Result<(), String> {
        let node = &self.nodes[site];
        let held = node.seat.lease(self.clock(site)).map(|(held, _)| held);
        let may = held == Some(epoch) || self.planted == Planted::AnswerLate;
        if node.voter.is_none() || node.start != start || node.role != Role::Primary || !may {
            return Ok(());
        }
        self.answered += 1;
        let others = self.holders().into_iter().any(|holder| holder != site);
        if others || node.log.newest() < self.begun {
            return Err(format!("a write is answered in epoch {epoch}, and epoch {} has begun", self.begun));
        }
        let of = node.log.newest();
        if self.nodes[1 - site].log.has(of, lsn) {
            self.safe = (of, lsn);
        }
        Ok(())
    }

    /// Records of the other site arrive, or what it has to say about epochs.
    fn take(&mut self, to: usize, role: Role, log: Log) -> Result<(), String> {
        if self.nodes[to].voter.is_none() {
            return Ok(());
        }
        let (safe_epoch, safe_lsn) = self.safe;
        let node = &mut self.nodes[to];
        // What is acknowledged is never less than before, unless it is another history.
        if log.newest() > node.seen.newest() || log.newest() == node.seen.newest() && log.tip > node.seen.tip
        {
            node.seen = log.clone();
        }
        let (ours, theirs) = (node.log.newest(), log.newest());
        if node.role == Role::Primary && role == Role::Primary && ours == theirs {
            return Err(format!("two sites began epoch {ours}"));
        }
        match node.role {
            Role::Primary if theirs > ours => node.role = Role::Fenced,
            // Somebody resyncs it.
            Role::Fenced if theirs > ours => node.role = Role::Replica,
            // The other site went on from all that is here, or a part of it.
            Role::Left if theirs > ours => node.role = Role::Replica,
            // A replica that is ahead of what was long under way keeps what it has.
            Role::Replica if [Role::Primary, Role::Left].contains(&role) && theirs >= ours => {
                let common = node.log.common(&log);
                let is_behind = common == node.log.tip && log.tip > common;
                if theirs > ours || is_behind {
                    let had = node.log.has(safe_epoch, safe_lsn);
                    node.log = log;
                    if had && !node.log.has(safe_epoch, safe_lsn) {
                        return Err(format!("lsn {safe_lsn} was answered and had arrived, and is cut off"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn ask_all(&mut self, site: usize, claim: Claim) {
        for to in 0..NODES {
            self.send(site, to, || Event::Claim { from: site, to, claim });
        }
    }

    fn claim(&mut self, from: usize, to: usize, claim: Claim) {
        let clock = self.clock(to);
        let dies = self.now < LENGTH_NS && self.random.chance(1);
        let lost = dies && self.random.chance(50);
        let planted = self.planted;
        let node = &mut self.nodes[to];
        let Some(voter) = &mut node.voter else { return };
        let kept = &mut node.kept;
        let answer = voter.answer(&claim, clock, &mut |ballot| {
            if planted != Planted::BallotInMemory && !lost {
                *kept = Some(ballot);
            }
            Ok(())
        });
        if dies {
            // Before anybody was answered.
            self.stop(to);
            let (delay, reboot) = (self.random.below(2 * LEASE_NS), self.random.chance(50));
            return self.at(delay, Event::Start { node: to, reboot });
        }
        self.send(to, from, || Event::Answer { from: to, to: from, answer });
    }

    fn stop(&mut self, node: usize) {
        self.nodes[node].voter = None;
        self.nodes[node].seat = Seat::new(self.times, SiteId(node as u128));
    }

    fn start(&mut self, node: usize, reboot: bool) {
        if reboot {
            self.nodes[node].zero = self.now;
        }
        let clock = self.clock(node);
        let mut voter = Voter::start(self.times, self.nodes[node].kept, clock);
        if self.planted == Planted::ForgetPromise {
            voter.forget_promise();
        }
        self.nodes[node].voter = Some(voter);
        self.nodes[node].seat = Seat::new(self.times, SiteId(node as u128));
        self.nodes[node].start += 1;
    }

    fn trouble(&mut self) {
        for _ in 0..40 {
            let at = self.random.below(LENGTH_NS);
            let lasts = self.random.below(8 * LEASE_NS);
            let a = self.random.below(NODES as u64) as usize;
            let b = (a + 1 + self.random.below(NODES as u64 - 1) as usize) % NODES;
            match self.random.below(3) {
                0 => {
                    self.at(at, Event::Cut(a, b));
                    self.at((at + lasts).min(LENGTH_NS), Event::Heal(a, b));
                }
                // A site that nobody reaches: the other is to take over.
                1 => {
                    for other in (0..NODES).filter(|other| *other != a) {
                        self.at(at, Event::Cut(a, other));
                        self.at((at + lasts).min(LENGTH_NS), Event::Heal(a, other));
                    }
                }
                _ if lasts.is_multiple_of(4) => self.at(at, Event::StepDown(a % SITES)),
                _ => {
                    let reboot = self.random.chance(50);
                    self.at(at, Event::Stop(a));
                    self.at((at + lasts / 4).min(LENGTH_NS), Event::Start { node: a, reboot });
                }
            }
        }
    }
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = match std::env::var("CDP_SIM_SEED") {
        Ok(seed) => seed.parse().expect("CDP_SIM_SEED is a number"),
        Err(_) => 1,
    };
    let count = if std::env::var("CDP_SIM_SEED").is_ok() { 1 } else { count };
    first..first + count
}

#[test]
fn never_two_holders_and_in_the_end_always_one() {
    let (mut changes, mut held, mut answered, mut handed_over, mut runs) = (0, 0, 0, 0, 0);
    for seed in seeds(1000) {
        let outcome = World::new(seed, Planted::Nothing).run();
        let outcome = outcome.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(outcome.held_at_the_end, "seed {seed}: nobody holds the lease though all is well");
        changes += outcome.changes;
        held += outcome.held_percent;
        handed_over += outcome.handed_over;
        answered += outcome.answered;
        runs += 1;
    }
    println!(
        "{runs} runs, {changes} epochs won, {answered} writes answered, {handed_over} handed over, held {} % of the time",
        held / runs
    );
    assert!(handed_over > runs / 4, "hardly anybody handed over");
    assert!(changes > 3 * runs, "the lease hardly ever changed hands: this shows nothing");
    assert!(answered > 100 * runs, "hardly anything was answered");
    assert!(held / runs > 50, "so much trouble shows little");
}

#[test]
fn planted_mistakes_are_found() {
    let mistakes = [
        Planted::CountFromAnswer,
        Planted::ForgetPromise,
        Planted::BallotInMemory,
        Planted::NoMargin,
        Planted::AnswerLate,
        Planted::Outbid,
        Planted::GiveUpEarly,
        Planted::GiveUpAnything,
    ];
    for planted in mistakes {
        let found = (1..2000).find(|seed| World::new(*seed, planted).run().is_err());
        println!("{planted:?}: seed {found:?}");
        assert!(found.is_some(), "{planted:?} was not found");
    }
}
