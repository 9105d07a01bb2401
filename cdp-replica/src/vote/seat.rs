//! What a site does about a volume or a group that it may have to hold: claims what it has, and what it could take over.
//!
//! ```text
//!   Out ───────────────── claims nothing
//!   Primary, epoch e ──── claims e: first a trial, then the claim, renewed every quarter of the lease
//!   Leaving, epoch e ──── the same as the primary, and answers nobody: a replica does not have all of it yet
//!   Replica, epoch e ──── while it could go on: a trial of e + 1; would it win, the claim; with the lease: promote
//! ```
//!
//! A site claims no other epochs than these. A primary that a majority refuses for a higher epoch does not outbid it: the
//! other site may have acknowledged writes in it, which are not here. So whoever answers has the newest epoch of all that
//! were begun.
//!
//! Pure, like the machines below it: time, the site's standing and random numbers are handed in.

use super::{Answer, Claim, Claimant, SiteId, Times};

/// How a site stands to a volume or a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is the primary, in this epoch.
    Primary(u64),
    /// It was the primary, in this epoch, and stepped down: it answers nobody, and keeps the epoch, so that nobody goes on
    /// before what it answered has arrived.
    Leaving(u64),
    /// It is a replica with all of this epoch that it knows of, and could go on from there.
    Ready(u64),
    /// Neither: it claims nothing.
    Out,
}

impl Standing {
    /// The epoch to claim.
    fn wanted(self) -> Option<u64> {
        match self {
            Standing::Primary(epoch) | Standing::Leaving(epoch) => Some(epoch),
            Standing::Ready(epoch) => epoch.checked_add(1),
            Standing::Out => None,
        }
    }
}

/// One site's place in the votes on one volume or group.
#[derive(Clone, Debug)]
pub struct Seat {
    times: Times,
    site: SiteId,
    claimant: Option<Claimant>,
    heard: u64,
}

impl Seat {
    /// A seat that holds nothing.
    pub fn new(times: Times, site: SiteId) -> Seat {
        Seat { times, site, claimant: None, heard: 0 }
    }

    /// Begins a round, every quarter of a lease or sooner; what it returns is to be sent to every voter.
    pub fn tick(&mut self, standing: Standing, now_ns: u64, random: u64) -> Option<Claim> {
        let wanted = standing.wanted();
        if self.claimant.as_ref().map(Claimant::epoch) != wanted {
            self.claimant = wanted.map(|epoch| Claimant::new(self.times, self.site, epoch, random));
        }
        let claimant = self.claimant.as_mut()?;
        // Whoever holds nothing only asks: a claim would bind its own voter, and keep it from a site that could win.
        let trial = claimant.left_ns(now_ns) == 0;
        Some(claimant.begin(now_ns, trial))
    }

    /// Hears a voter; voters have the numbers 0, 1 and 2. A claim that follows at once is to be sent to every voter.
    pub fn hear(&mut self, voter: usize, answer: &Answer, now_ns: u64) -> Option<Claim> {
        let claimant = self.claimant.as_mut()?;
        claimant.hear(voter, answer);
        self.heard = self.heard.max(claimant.heard());
        claimant.take_would_win().then(|| claimant.begin(now_ns, false))
    }

    /// The epoch that it holds a lease for, and until when on this site's clock.
    pub fn lease(&self, now_ns: u64) -> Option<(u64, u64)> {
        let claimant = self.claimant.as_ref().filter(|claimant| claimant.may_answer(now_ns))?;
        Some((claimant.epoch(), claimant.lease_until_ns()))
    }

    /// The epoch to begin by promoting what is here: it is this site's, and nobody else answers.
    pub fn promotes(&self, standing: Standing, now_ns: u64) -> Option<u64> {
        let Standing::Ready(epoch) = standing else { return None };
        self.lease(now_ns).map(|(held, _)| held).filter(|held| *held == epoch.saturating_add(1))
    }

    /// The epoch by which a majority refuses what it claims, if so.
    pub fn superseded_by(&self) -> Option<u64> {
        self.claimant.as_ref().and_then(Claimant::superseded_by)
    }

    /// The highest epoch that a voter told of.
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// A mistake, see [`Claimant::mistake`].
    #[cfg(test)]
    pub(super) fn mistake(&mut self, now_ns: u64, answer: &mut Answer) {
        if let Some(claimant) = &mut self.claimant {
            claimant.mistake(now_ns, answer);
        }
    }
}
