//! A claimant: asks the voters, and knows until when it may answer writes.

use super::{Answer, Ballot, Claim, SiteId, Times, Verdict};

/// Voters that there are.
const VOTERS: usize = 3;

/// One site's claim to an epoch.
#[derive(Clone, Debug)]
pub struct Claimant {
    times: Times,
    ballot: Ballot,
    rounds: u64,
    current: Option<Round>,
    // On this site's clock.
    lease_until_ns: u64,
    would_win: bool,
    // By voter: the epoch by which it refuses this one. Ballots only rise, so it will for ever.
    superseded: [u64; VOTERS],
}

/// A claim that was sent to the voters.
#[derive(Clone, Debug)]
struct Round {
    number: u64,
    trial: bool,
    // Before it was sent.
    began_ns: u64,
    granted: [bool; VOTERS],
}

impl Claimant {
    /// A claimant that holds nothing yet. `first_round` is random, so that an answer to an earlier process counts for
    /// nothing.
    pub fn new(times: Times, site: SiteId, epoch: u64, first_round: u64) -> Claimant {
        Claimant {
            times,
            ballot: Ballot { epoch, site },
            rounds: first_round,
            current: None,
            lease_until_ns: 0,
            would_win: false,
            superseded: [0; VOTERS],
        }
    }

    /// The epoch it claims.
    pub fn epoch(&self) -> u64 {
        self.ballot.epoch
    }

    /// Begins a round of claims at `now_ns`; what it returns is to be sent to every voter. The round before it is given
    /// up, the lease is not.
    pub fn begin(&mut self, now_ns: u64, trial: bool) -> Claim {
        self.rounds = self.rounds.wrapping_add(1);
        let number = self.rounds;
        self.current = Some(Round { number, trial, began_ns: now_ns, granted: [false; VOTERS] });
        Claim { ballot: self.ballot, trial, round: number }
    }

    /// Hears what a voter said; voters have the numbers 0, 1 and 2.
    pub fn hear(&mut self, voter: usize, answer: &Answer) {
        let Some(round) = self.current.as_mut().filter(|round| round.number == answer.round) else { return };
        match answer.verdict {
            Verdict::Granted if round.trial == answer.trial => {
                let Some(granted) = round.granted.get_mut(voter) else { return };
                *granted = true;
                if round.granted.iter().filter(|granted| **granted).count() * 2 > VOTERS {
                    match round.trial {
                        true => {
                            self.would_win = true;
                            self.current = None;
                        }
                        false => {
                            let until_ns = round.began_ns.saturating_add(self.times.lease_ns);
                            self.lease_until_ns = self.lease_until_ns.max(until_ns);
                        }
                    }
                }
            }
            Verdict::Superseded { by } => {
                if let Some(known) = self.superseded.get_mut(voter) {
                    *known = by.max(*known);
                }
            }
            Verdict::Granted | Verdict::Promised { .. } | Verdict::Broken => {}
        }
    }

    /// Whether a majority said to a trial that it would grant the claim, which is then to be made at once. True once for
    /// each such trial: a claim that fails all the same is followed by another trial.
    pub fn take_would_win(&mut self) -> bool {
        std::mem::take(&mut self.would_win)
    }

    /// Whether it may answer a write at `now_ns`, which is to be read after the write is done.
    pub fn may_answer(&self, now_ns: u64) -> bool {
        now_ns < self.lease_until_ns()
    }

    /// Until when it may, on this site's clock; 0: it may not.
    pub fn lease_until_ns(&self) -> u64 {
        if self.superseded_by().is_some() { 0 } else { self.lease_until_ns }
    }

    /// Nanoseconds that are left of the lease.
    pub fn left_ns(&self, now_ns: u64) -> u64 {
        self.lease_until_ns().saturating_sub(now_ns)
    }

    /// The highest epoch by which a majority refuses it: it holds nothing any more, and never will under this number. One
    /// voter alone may be bound to a claim that failed: the lease of the two others holds.
    pub fn superseded_by(&self) -> Option<u64> {
        let count = self.superseded.iter().filter(|by| **by > 0).count();
        (count * 2 > VOTERS).then(|| self.heard())
    }

    /// The highest epoch that any voter refused it for, or 0.
    pub fn heard(&self) -> u64 {
        self.superseded.into_iter().max().unwrap_or_default()
    }

    /// A mistake: takes any answer for one to the claim that was sent last, and counts from when it came.
    #[cfg(test)]
    pub(super) fn mistake(&mut self, now_ns: u64, answer: &mut Answer) {
        if let Some(round) = &mut self.current {
            round.began_ns = now_ns;
            answer.round = round.number;
        }
    }
}
