//! The server's part in the votes on which of two sites answers: its own voter, its seats, and the promotion that follows
//! when a seat wins.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::{Zone, format_duration, format_utc};
use cdp_core::ids::{EpochNumber, VolumeId};
use cdp_core::io::{Clock, SystemClock};
use cdp_core::store::Store;
use cdp_core::volume::role::Role;
use cdp_core::volume::{Health, Volume};
use cdp_replica::limits::LEASE_NS;
use cdp_replica::net::tls::Tls;
use cdp_replica::net::votes::{Line, Which};
use cdp_replica::vote::ballots::BallotFile;
use cdp_replica::vote::lease::Lease;
use cdp_replica::vote::service::Service;
use cdp_replica::vote::{Ask, Claim, Said, Seat, Standing, Times, Verdict};
use serde::{Deserialize, Serialize};

use super::handover::Handover;
use super::overlap;
use crate::config::Config;
use crate::work::{Site, failover};

/// Between two rounds.
const TICK: Duration = Duration::from_nanos(LEASE_NS / 4);
/// Between two rounds at least.
const TICK_MIN: Duration = Duration::from_millis(20);
/// After a promotion that failed the next is tried so much later.
const PROMOTION_RETRY: Duration = Duration::from_secs(5);
/// The site's own voter, the other site's, and the witness.
const VOTERS: usize = 3;

/// A volume or a group that fails over by itself, as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Automatic {
    /// Its name.
    pub target: String,
    /// Where the other site takes replicas, and votes.
    pub peer: String,
    /// Where the witness is.
    pub witness: String,
    /// The replica promotes itself only where no more than so much time would be lost, in nanoseconds of the clocks on the
    /// wall.
    pub loss_max_ns: u64,
}

/// How a seat stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatStatus {
    /// The volume or group.
    pub target: String,
    /// `holds` the lease, `waits` for it as the primary, `hands-over` after it stepped down, `stands-by` as the replica, or
    /// is `out`.
    pub state: String,
    /// The same in a sentence.
    pub text: String,
    /// The site that has the lease, as far as it is known here.
    pub holder: Option<String>,
    /// The epoch that this site claims.
    pub epoch: Option<u64>,
    /// What is left of the lease here, in nanoseconds.
    pub left_ns: u64,
    /// The voters: this site's, the other's, the witness.
    pub voters: Vec<VoterStatus>,
}

/// A voter, as a seat sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterStatus {
    /// `here`, `peer` or `witness`.
    pub which: String,
    /// Where it is.
    pub address: Option<String>,
    /// Its name, once it was met.
    pub name: Option<String>,
    /// Whether it answers.
    pub reachable: bool,
    /// What it said last, or why it says nothing.
    pub text: String,
}

/// One seat, for the threads that look at it.
struct Place {
    plan: Automatic,
    lease: Arc<Lease>,
    status: Mutex<SeatStatus>,
    heard: AtomicU64,
    handover: Handover,
}

impl Place {
    fn new(plan: &Automatic) -> Arc<Place> {
        let lease = Arc::new(Lease::new(Arc::new(SystemClock)));
        let status = SeatStatus { target: plan.target.clone(), ..SeatStatus::default() };
        let (status, heard) = (Mutex::new(status), AtomicU64::new(0));
        Arc::new(Place { plan: plan.clone(), lease, status, heard, handover: Handover::default() })
    }
}

/// All of it. Empty where nothing is configured.
#[derive(Default)]
pub struct Votes {
    service: Option<Arc<Service>>,
    places: Vec<Arc<Place>>,
    stop: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Votes {
    /// Whether the configuration can work; before anything is opened or made.
    pub fn check(config: &Config) -> Result<()> {
        if config.automatic.is_empty() || config.replica_listen.is_some() {
            return Ok(());
        }
        let context = "[automatic] needs an address where the other site can reach this one";
        Err(Error::new(Kind::Invalid, context)
            .hint("say it with --replica-listen ADDR:PORT, or replica_listen in the configuration"))
    }

    /// Opens the site's ballots, if anything is to fail over by itself. Nothing is answered before [`Votes::start`].
    pub fn prepare(config: &Config, store: &Arc<Store>) -> Result<Votes> {
        let targets: Vec<&str> = config.automatic.iter().map(|plan| &*plan.target).collect();
        if let Some((volume, one, other)) = overlap::named_twice(&store.groups(), &targets) {
            let context = format!("[automatic.{one}] and [automatic.{other}] both mean volume {volume}");
            return Err(Error::new(Kind::Invalid, context)
                .hint("name the group only: its members fail over together, and a half of it is of no use"));
        }
        let groups = store.groups();
        let is_meant = |name: &str| {
            let is_member =
                |target: &&str| groups.get(*target).is_some_and(|m| m.iter().any(|one| one == name));
            targets.iter().any(|target| *target == name || is_member(target))
        };
        let ballots = BallotFile::peek(&**store.files(), store.path());
        overlap::warn_of_forgotten(store, &ballots, is_meant);
        if config.automatic.is_empty() {
            return Ok(Votes::default());
        }
        let own = store.clone();
        let floor = move |id: VolumeId| {
            own.volume_by_id(id).map_or(0, |volume| u64::from(volume.epochs().newest().number.0))
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (files, dir) = (store.files().clone(), store.path());
        let own = store.clone();
        let may = move |id: VolumeId, name: &str| own.volume_by_id(id).is_none_or(|one| concerns(&one, name));
        let service = Service::open(files, clock.clone(), dir, Box::new(floor), Box::new(may))?;
        let places = config.automatic.iter().map(Place::new).collect();
        Ok(Votes { service: Some(Arc::new(service)), places, ..Votes::default() })
    }

    /// Of a command that has the store open by itself, and asks no voters: what needs a lease is not answered.
    pub fn absent(config: &Config) -> Votes {
        let votes = Votes { places: config.automatic.iter().map(Place::new).collect(), ..Votes::default() };
        let why =
            "it fails over by itself, and only `cdp serve` asks the voters whether this site may answer";
        votes.places.iter().for_each(|place| place.lease.close(why));
        votes
    }

    /// One that is answered under this lease, and that nobody votes on.
    #[cfg(test)]
    pub fn under(plan: &Automatic, lease: Arc<Lease>) -> Votes {
        let place = Arc::into_inner(Place::new(plan)).map(|place| Arc::new(Place { lease, ..place }));
        Votes { places: place.into_iter().collect(), ..Votes::default() }
    }

    /// The site's own voter, for whoever comes for a vote.
    pub fn service(&self) -> Option<Arc<Service>> {
        self.service.clone()
    }

    /// The lease that this volume is answered under, if it is one of those.
    pub fn lease_of(&self, store: &Store, volume: &Volume) -> Option<Arc<Lease>> {
        self.place_of(store, volume).map(|place| place.lease.clone())
    }

    fn place_of(&self, store: &Store, volume: &Volume) -> Option<&Arc<Place>> {
        self.places.iter().find(|place| {
            let target = &place.plan.target;
            let id = volume.identity().id;
            let is_member = |members: Vec<Arc<Volume>>| members.iter().any(|one| one.identity().id == id);
            // A group with a member that cannot be opened is no reason to answer the others without a lease.
            target == volume.name()
                || store
                    .groups()
                    .get(target)
                    .is_some_and(|names| names.iter().any(|name| name == volume.name()))
                || store.members(target).is_ok_and(is_member)
        })
    }

    /// The highest epoch that a voter told of for a volume or a group, or for the group that it belongs to, and that this
    /// site's own voter is bound to: what is begun has to be above it.
    pub fn heard(&self, store: &Store, target: &str) -> EpochNumber {
        let members = store.members(target).unwrap_or_default();
        let places = members.iter().filter_map(|volume| self.place_of(store, volume));
        let heard = places.map(|place| place.heard.load(Ordering::Relaxed));
        let ballot = |volume: &Arc<Volume>| self.service.as_ref()?.ballot(volume.identity().id);
        let heard = heard.chain(members.iter().filter_map(ballot).map(|ballot| ballot.epoch));
        let heard = heard.max().unwrap_or_default();
        EpochNumber(u32::try_from(heard).unwrap_or(u32::MAX - 1))
    }

    /// These are about to be demoted: their epoch is kept until the other site has all of them, and until this instant at
    /// most. Gives whether any of them fails over by itself.
    pub fn step_down(&self, store: &Store, volumes: &[Arc<Volume>], until: Option<Instant>) -> bool {
        let places: Vec<_> = volumes.iter().filter_map(|volume| self.place_of(store, volume)).collect();
        places.iter().for_each(|place| place.handover.begin(until));
        !places.is_empty()
    }

    /// How the seats stand.
    pub fn status(&self) -> Vec<SeatStatus> {
        let status = |place: &Arc<Place>| {
            let status = place.status.lock().expect("no panics under this lock").clone();
            SeatStatus { left_ns: place.lease.left_ns(), ..status }
        };
        self.places.iter().map(status).collect()
    }

    /// Takes the seats.
    pub fn start(&self, site: &Arc<Site>, tls: Option<&Tls>) -> Result<()> {
        let (Some(service), Some(tls)) = (&self.service, tls) else { return Ok(()) };
        if !tls.is_sender() {
            let context = "[automatic] needs a certificate with which this site can claim, and its own is for a replica only";
            return Err(
                Error::new(Kind::Invalid, context).hint("`cdp pki issue` without --replica-only makes one")
            );
        }
        for place in &self.places {
            let (post, answers) = mpsc::channel();
            let open =
                |which, address: &str, number| Line::open(which, address, tls.clone(), number, post.clone());
            let lines =
                [open(Which::Peer, &place.plan.peer, 1)?, open(Which::Witness, &place.plan.witness, 2)?];
            let sitter = Sitter {
                site: site.clone(),
                place: place.clone(),
                service: service.clone(),
                own_name: tls.site().to_owned(),
                seat: Seat::new(Times::with_lease(LEASE_NS), service.site()),
                targets: self.places.iter().map(|place| place.plan.target.clone()).collect(),
                lines,
                said: BTreeMap::new(),
                promotion: None,
                promoted_at: None,
                stop: self.stop.clone(),
            };
            let thread = std::thread::Builder::new()
                .name("cdp seat".to_owned())
                .spawn(move || sitter.run(&answers))
                .at(|| "starting the thread of a seat".to_owned())?;
            self.threads.lock().expect("no panics under this lock").push(thread);
        }
        Ok(())
    }

    /// Nobody waits for a lease any more: the server goes down.
    pub fn close(&self) {
        self.places.iter().for_each(|place| place.lease.close("this server is going down"));
    }

    /// Leases are not renewed any more.
    pub fn stop(&self) {
        self.close();
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("no panics under this lock").drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a seat panicked");
            }
        }
    }
}

/// Whether the site of this name feeds a volume, or is fed: nobody else is asked for a vote on it.
fn concerns(volume: &Volume, name: &str) -> bool {
    volume.source().is_some_and(|source| source.peer == name)
        || volume.replicas().iter().any(|replica| replica.site.as_deref() == Some(name))
}

/// Whoever has one seat, on a thread of its own.
struct Sitter {
    site: Arc<Site>,
    place: Arc<Place>,
    service: Arc<Service>,
    own_name: String,
    seat: Seat,
    // Of all seats.
    targets: Vec<String>,
    lines: [Line; VOTERS - 1],
    // What each voter said last.
    said: BTreeMap<usize, Said>,
    // One that is under way: from which epoch on, and its end.
    promotion: Option<(u64, JoinHandle<Result<()>>)>,
    // When one failed last.
    promoted_at: Option<(Instant, String)>,
    stop: Arc<AtomicBool>,
}

impl Sitter {
    fn run(mut self, answers: &Receiver<(usize, Said)>) {
        let clock = SystemClock;
        while !self.stop.load(Ordering::Relaxed) {
            let (standing, volumes, why) = self.standing();
            let now_ns = clock.elapsed_ns();
            if let Some(epoch) = self.seat.promotes(standing, now_ns) {
                self.promote(epoch);
            }
            let mut wait = TICK;
            if let Some(claim) = self.seat.tick(standing, now_ns, clock.random() as u64) {
                self.ask_all(&volumes, claim, &clock);
            }
            let until = Instant::now() + TICK;
            loop {
                self.tell(standing, &why, &clock);
                // As soon as the lease is there, and when a promise is over.
                let is_due = self.seat.promotes(standing, clock.elapsed_ns()).is_some() && self.may_promote();
                if is_due || self.is_promoted() {
                    break;
                }
                if self.promotion.is_some() {
                    wait = TICK_MIN;
                }
                let left = until.saturating_duration_since(Instant::now()).min(wait);
                match answers.recv_timeout(left) {
                    Ok((voter, said)) => {
                        if let Verdict::Promised { wait_ns, .. } = said.answer.verdict {
                            wait = Duration::from_nanos(wait_ns).clamp(TICK_MIN, TICK);
                        }
                        self.hear(voter, said, &volumes, &clock);
                    }
                    Err(RecvTimeoutError::Timeout) if self.promotion.is_none() || Instant::now() >= until => {
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK_MIN),
                }
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    /// A seat that sees its own voter answers at once; the others are asked on their lines.
    fn ask_all(&mut self, volumes: &[VolumeId], claim: Claim, clock: &SystemClock) {
        let mut next = Some(claim);
        while let Some(claim) = next.take() {
            let ask = Ask { volumes: volumes.to_vec(), claim };
            self.lines.iter().for_each(|line| line.ask(ask.clone()));
            let said = self.service.answer(&ask, &self.own_name);
            next = self.seat.hear(0, &said.answer, clock.elapsed_ns());
            self.said.insert(0, said);
        }
    }

    fn hear(&mut self, voter: usize, said: Said, volumes: &[VolumeId], clock: &SystemClock) {
        let claim = self.seat.hear(voter, &said.answer, clock.elapsed_ns());
        self.said.insert(voter, said);
        self.place.heard.store(self.seat.heard(), Ordering::Relaxed);
        if let Some(claim) = claim {
            self.ask_all(volumes, claim, clock);
        }
    }

    /// How the site stands, on which volumes, and why it is out.
    fn standing(&mut self) -> (Standing, Vec<VolumeId>, String) {
        let store = &self.site.store;
        let members = match store.members(&self.place.plan.target) {
            Ok(members) => members,
            Err(error) => return (Standing::Out, Vec::new(), error.to_string()),
        };
        let volumes = members.iter().map(|volume| volume.identity().id).collect();
        if let Some((epoch, _)) = &self.promotion {
            // Half done it looks like neither.
            return (Standing::Ready(*epoch - 1), volumes, String::new());
        }
        let epoch = members.iter().map(|volume| u64::from(volume.epochs().newest().number.0)).max();
        let Some(epoch) = epoch else { return (Standing::Out, volumes, "it has no members".to_owned()) };
        if members.iter().all(|volume| volume.is_primary()) {
            return (Standing::Primary(epoch), volumes, String::new());
        }
        if let Some(why) = self.place.handover.keeps(&members, &self.place.plan.peer) {
            return (Standing::Leaving(epoch), volumes, why);
        }
        match self.could_go_on(&members, epoch) {
            Ok(()) => (Standing::Ready(epoch), volumes, String::new()),
            Err(why) => (Standing::Out, volumes, why),
        }
    }

    /// Whether it could be promoted to the epoch behind `epoch`, and without losing more than is allowed; or why not.
    fn could_go_on(&self, members: &[Arc<Volume>], epoch: u64) -> std::result::Result<(), String> {
        self.site.store.refuse_partial(&self.place.plan.target).map_err(|error| error.to_string())?;
        for volume in members {
            let name = volume.name();
            match volume.role() {
                Role::Replica { .. } if volume.health() != Health::Good => {
                    return Err(format!("volume {name} is not good here"));
                }
                Role::Replica { .. } if volume.fed_by().is_none() => {
                    return Err(format!("volume {name} was not fed since this server knows it as a replica"));
                }
                Role::Replica { .. } => {}
                role => return Err(format!("volume {name} is {}", role.word())),
            }
        }
        // A group that got another member while this server runs.
        let targets: Vec<&str> = self.targets.iter().map(|target| &**target).collect();
        if let Some((volume, one, other)) = overlap::named_twice(&self.site.store.groups(), &targets)
            && [&one, &other].contains(&&self.place.plan.target)
        {
            return Err(format!("[automatic.{one}] and [automatic.{other}] both mean volume {volume}"));
        }
        // A primary that asks nobody answers without a lease, and would be two with this one.
        for volume in members {
            let ballot = self.service.ballot(volume.identity().id);
            let is_voted_on = ballot.is_some_and(|ballot| {
                let is_own = ballot.site == self.service.site();
                ballot.epoch == if is_own { epoch + 1 } else { epoch }
            });
            if !is_voted_on {
                return Err(format!(
                    "no site has held epoch {epoch} of volume {} by a vote yet; the other site needs its lines of [automatic], too",
                    volume.name()
                ));
            }
        }
        let complete = members.iter().map(|volume| volume.complete_through().1).min().unwrap_or_default();
        let age_ns = SystemClock.wall_ns().saturating_sub(complete.0);
        if age_ns > self.place.plan.loss_max_ns {
            return Err(format!(
                "it is complete through {} only, longer ago than loss_max of {}: to go on from there is somebody's decision, `cdp failover {}`",
                format_utc(complete),
                format_duration(self.place.plan.loss_max_ns),
                self.place.plan.target
            ));
        }
        let parts = failover::at_common(members, complete).map_err(|error| error.to_string())?;
        let planned =
            self.site.store.plan_promotion(&parts, EpochNumber(0)).map_err(|error| error.to_string())?;
        match planned.first().map(|member| u64::from(member.number.0)) {
            Some(number) if number == epoch + 1 => Ok(()),
            number => Err(format!(
                "the other site has begun epoch {}, whose records are not all here",
                number.unwrap_or_default().saturating_sub(1)
            )),
        }
    }

    fn may_promote(&self) -> bool {
        let is_early = |(at, _): &(Instant, String)| at.elapsed() < PROMOTION_RETRY;
        self.promotion.is_none() && !self.promoted_at.as_ref().is_some_and(is_early)
    }

    /// Promotes what is here, beside: the lease has to be renewed meanwhile.
    fn promote(&mut self, epoch: u64) {
        if !self.may_promote() {
            return;
        }
        let (site, target) = (self.site.clone(), self.place.plan.target.clone());
        tracing::warn!("{target}: the voters give this site epoch {epoch}: it is promoted");
        let work = move || {
            let heard = EpochNumber(u32::try_from(epoch - 1).unwrap_or(u32::MAX - 1));
            let request =
                failover::Failover { target: target.clone(), to: None, dry_run: false, partial: false };
            let done = failover::failover_above(&site, &request, &Zone::system()?, heard)?;
            for line in &done {
                tracing::warn!(
                    "{} is the primary, in epoch {}, from {} (lsn:{}) on; complete through {}",
                    line.volume,
                    line.epoch,
                    line.to_utc,
                    line.to_lsn,
                    line.complete_utc
                );
            }
            Ok(())
        };
        match std::thread::Builder::new().name("cdp promote".to_owned()).spawn(work) {
            Ok(thread) => self.promotion = Some((epoch, thread)),
            Err(error) => self.promoted_at = Some((Instant::now(), error.to_string())),
        }
    }

    /// Whether one has just come to its end.
    fn is_promoted(&mut self) -> bool {
        let Some((_, thread)) = self.promotion.take_if(|(_, thread)| thread.is_finished()) else {
            return false;
        };
        self.promoted_at = match thread.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::error!("{}: the promotion failed: {error}", self.place.plan.target);
                Some((Instant::now(), error.to_string()))
            }
            Err(_) => Some((Instant::now(), "it panicked".to_owned())),
        };
        true
    }

    /// The lease for those who answer, and the status for people.
    fn tell(&self, standing: Standing, why: &str, clock: &SystemClock) {
        let lease = self.seat.lease(clock.elapsed_ns());
        let held = lease.filter(|(epoch, _)| standing == Standing::Primary(*epoch));
        let voters = self.voters();
        let holder = self.said.values().map(|said| &said.holder).find(|holder| !holder.is_empty());
        let (state, text) = self.words(standing, why, held.is_some(), &voters);
        match standing {
            // Another voter may come back, or say yes the next time.
            Standing::Primary(_) if self.seat.superseded_by().is_none() => self.place.lease.set(held, &text),
            _ => self.place.lease.give_up(&text),
        }
        let epoch = match standing {
            Standing::Primary(epoch) | Standing::Leaving(epoch) => Some(epoch),
            Standing::Ready(epoch) => Some(epoch + 1),
            Standing::Out => None,
        };
        *self.place.status.lock().expect("no panics under this lock") = SeatStatus {
            target: self.place.plan.target.clone(),
            state: state.to_owned(),
            text,
            holder: if held.is_some() { Some(self.own_name.clone()) } else { holder.cloned() },
            epoch,
            left_ns: 0,
            voters,
        };
    }

    fn words(
        &self,
        standing: Standing,
        why: &str,
        is_held: bool,
        voters: &[VoterStatus],
    ) -> (&'static str, String) {
        let silent: Vec<String> = voters
            .iter()
            .filter(|voter| !voter.reachable || voter.text != "granted")
            .map(|voter| format!("{} {}", voter_words(voter), voter.text))
            .collect();
        match standing {
            Standing::Primary(epoch) if is_held => (
                "holds",
                format!("this site answers, in epoch {epoch}, under a lease of two voters of three"),
            ),
            Standing::Primary(epoch) => match self.seat.superseded_by() {
                Some(by) => (
                    "waits",
                    format!(
                        "epoch {by} was given to another site, this site has {epoch}: it answers no more; when the two meet it is fenced, and `cdp resync` joins them"
                    ),
                ),
                None => (
                    "waits",
                    format!("no lease: two voters of three have to grant it, and {}", silent.join("; ")),
                ),
            },
            Standing::Leaving(_) => ("hands-over", why.to_owned()),
            Standing::Ready(_) => match (&self.promotion, &self.promoted_at) {
                (Some((epoch, _)), _) => ("stands-by", format!("it is being promoted, in epoch {epoch}")),
                (None, Some((_, error))) => ("stands-by", format!("the promotion failed: {error}")),
                (None, None) => ("stands-by", "a replica that takes over when the lease ends".to_owned()),
            },
            Standing::Out => ("out", format!("it does not take over by itself: {why}")),
        }
    }

    fn voters(&self) -> Vec<VoterStatus> {
        let said = |number: usize| match self.said.get(&number).map(|said| said.answer.verdict) {
            None => "was not asked yet".to_owned(),
            Some(Verdict::Granted) => "granted".to_owned(),
            Some(Verdict::Superseded { by }) => format!("is bound to epoch {by}{}", self.of(number)),
            Some(Verdict::Promised { wait_ns, epoch: 0 }) => format!(
                "was just made, and votes in {}: it may have promised something before",
                format_duration(wait_ns / 100_000_000 * 100_000_000)
            ),
            Some(Verdict::Promised { wait_ns, epoch }) => format!(
                "promised epoch {epoch}{} for another {}",
                self.of(number),
                format_duration(wait_ns / 100_000_000 * 100_000_000)
            ),
            Some(Verdict::Broken) => "cannot vote: its disk, or this site's certificate".to_owned(),
        };
        let mut voters = vec![VoterStatus {
            which: "here".to_owned(),
            address: None,
            name: Some(self.own_name.clone()),
            reachable: true,
            text: said(0),
        }];
        for (number, (line, which)) in self.lines.iter().zip(["peer", "witness"]).enumerate() {
            let state = line.state();
            voters.push(VoterStatus {
                which: which.to_owned(),
                address: Some(line.address().to_owned()),
                name: state.name,
                reachable: state.trouble.is_none(),
                text: state
                    .trouble
                    .map_or_else(|| said(number + 1), |trouble| format!("does not answer: {trouble}")),
            });
        }
        voters
    }

    fn of(&self, number: usize) -> String {
        let holder = self.said.get(&number).map(|said| &said.holder).filter(|holder| !holder.is_empty());
        holder.map(|holder| format!(" to {holder}")).unwrap_or_default()
    }
}

/// What people call a voter.
pub fn voter_words(voter: &VoterStatus) -> &'static str {
    match voter.which.as_str() {
        "here" => "this site",
        "peer" => "the other site",
        _ => "the witness",
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::io::native;
    use cdp_core::io::sim::SimClock;
    use cdp_core::store::CreateOptions;
    use cdp_replica::vote::{Ballot, SiteId};

    use super::*;

    // Somebody promotes by hand what fails over by itself, or one member of such a group: with the number of an epoch that
    // the voters gave to the other site, both would have it.
    #[test]
    fn a_failover_by_hand_is_above_what_was_voted_on() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("store");
        let (files, sim) = (native(false), SimClock::new(1));
        let clock: Arc<dyn Clock> = Arc::new(sim.clone());
        Store::create(&*files, &*clock, &dir).unwrap();
        let store = Store::open(files.clone(), clock.clone(), &dir, "a test").unwrap();
        for name in ["db", "logs", "other"] {
            store.create_volume(name, &CreateOptions::new(1 << 20), None).unwrap();
        }
        store.add_to_group("shop", &["db".to_owned(), "logs".to_owned()], true).unwrap();
        let service = Service::open(files, clock, &dir, Box::new(|_| 0), Box::new(|_, _| true)).unwrap();
        let service = Arc::new(service);
        let [target, peer, witness] = ["shop", "peer:1", "witness:1"].map(str::to_owned);
        let place = Place::new(&Automatic { target, peer, witness, loss_max_ns: 0 });
        let votes = Votes { service: Some(service.clone()), places: vec![place.clone()], ..Votes::default() };
        assert_eq!(votes.heard(&store, "db"), EpochNumber(0));

        sim.advance(2 * LEASE_NS);
        let claim = Claim { ballot: Ballot { epoch: 3, site: SiteId(9) }, trial: false, round: 1 };
        let ask = Ask { volumes: vec![store.volume("db").unwrap().identity().id], claim };
        assert_eq!(service.answer(&ask, "site-b").answer.verdict, Verdict::Granted);
        place.heard.store(2, Ordering::Relaxed);
        let heard = ["db", "shop", "logs", "other"].map(|name| votes.heard(&store, name).0);
        assert_eq!(heard, [3, 3, 2, 0]);
    }
}
