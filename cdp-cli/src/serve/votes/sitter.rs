//! Whoever has one seat: asks the voters, tells the gate, and promotes what is here when the seat wins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::Result;
use cdp_core::history::point::{Zone, format_duration, format_utc};
use cdp_core::ids::{EpochNumber, VolumeId};
use cdp_core::io::{Clock, SystemClock};
use cdp_core::volume::role::Role;
use cdp_core::volume::together::newest_of_all;
use cdp_core::volume::{Health, Volume};
use cdp_replica::limits::LEASE_NS;
use cdp_replica::net::votes::Line;
use cdp_replica::vote::service::Service;
use cdp_replica::vote::{Ask, Ballot, Claim, Said, Seat, Standing, Verdict};

use super::Place;
use crate::serve::overlap;
use crate::work::{Site, failover};

/// Between two rounds.
const TICK: Duration = Duration::from_nanos(LEASE_NS / 4);
/// Between two rounds at least.
const TICK_MIN: Duration = Duration::from_millis(20);
/// After a promotion that failed the next is tried so much later.
const PROMOTION_RETRY: Duration = Duration::from_secs(5);
/// The site's own voter, the other site's, and the witness.
pub(super) const VOTERS: usize = 3;

/// Whoever has one seat, on a thread of its own.
pub(super) struct Sitter {
    pub site: Arc<Site>,
    pub place: Arc<Place>,
    pub service: Arc<Service>,
    pub own_name: String,
    pub seat: Seat,
    // Of all seats.
    pub targets: Vec<String>,
    pub lines: [Line; VOTERS - 1],
    // What each voter said last.
    pub said: BTreeMap<usize, Said>,
    // One that is under way: from which epoch on, and its end.
    pub promotion: Option<(u64, JoinHandle<Result<()>>)>,
    // When one failed last.
    pub promoted_at: Option<(Instant, String)>,
    pub stop: Arc<AtomicBool>,
}

impl Sitter {
    pub fn run(mut self, answers: &Receiver<(usize, Said)>) {
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
            if let Some(epoch) = self.given_up() {
                self.give_up(standing, &why, &volumes, epoch, &clock);
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
            let ask = Ask { volumes: volumes.to_vec(), claim, gives_up: false };
            self.lines.iter().for_each(|line| line.ask(ask.clone()));
            let said = self.service.answer(&ask, &self.own_name);
            next = self.seat.hear(0, &said.answer, clock.elapsed_ns());
            self.said.insert(0, said);
        }
    }

    /// The epoch that this site handed over: it stepped down durably, its clients were sent away before, and what it answered has
    /// arrived, or need not be waited for.
    fn given_up(&self) -> Option<u64> {
        let members = self.site.store.members(&self.place.plan.target).ok()?;
        let is_free =
            self.promotion.is_none() && self.place.handover.has_handed_over(&members, &self.place.plan.peer);
        let epochs = members.iter().map(|volume| u64::from(volume.epochs().newest().number.0));
        epochs.max().filter(|_| is_free)
    }

    /// Says so to all voters, until the other site has gone on. From before that on nothing is answered here in this epoch, nor
    /// will be: who goes on need not wait for the lease.
    fn give_up(
        &mut self,
        standing: Standing,
        why: &str,
        volumes: &[VolumeId],
        epoch: u64,
        clock: &SystemClock,
    ) {
        self.tell(standing, why, clock);
        if self.seat.lease(clock.elapsed_ns()).is_some() {
            return;
        }
        let ballot = Ballot { epoch, site: self.service.site() };
        let claim = Claim { ballot, trial: false, round: 0 };
        let ask = Ask { volumes: volumes.to_vec(), claim, gives_up: true };
        self.service.answer(&ask, &self.own_name);
        self.lines.iter().for_each(|line| line.ask(ask.clone()));
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
        let newest = newest_of_all(&self.place.plan.target, members, false);
        let (complete, parts) = newest.map_err(|error| error.to_string())?;
        let age_ns = SystemClock.wall_ns().saturating_sub(complete.0);
        if age_ns > self.place.plan.loss_max_ns {
            return Err(format!(
                "it is complete through {} only, longer ago than loss_max of {}: to go on from there is somebody's decision, `cdp failover {}`",
                format_utc(complete),
                format_duration(self.place.plan.loss_max_ns),
                self.place.plan.target
            ));
        }
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
            // The voters have decided; nobody is asked.
            let request =
                failover::Failover { target: target.clone(), force: true, ..failover::Failover::default() };
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
}
