//! A voter: bound to one ballot, and for a while to nobody else's.

use std::io;

use super::{Answer, Ballot, Claim, Times, Verdict};

/// One of three.
#[derive(Clone, Debug)]
pub struct Voter {
    times: Times,
    ballot: Option<Ballot>,
    // On this voter's clock.
    promised_until_ns: u64,
}

impl Voter {
    /// A voter that starts with the ballot it kept. What it promised before it stopped it does not know: so it
    /// promises anew, from now on.
    pub fn start(times: Times, ballot: Option<Ballot>, now_ns: u64) -> Voter {
        let promised_until_ns = if ballot.is_some() { now_ns.saturating_add(times.promise_ns) } else { 0 };
        Voter { times, ballot, promised_until_ns }
    }

    /// What it is bound to.
    pub fn ballot(&self) -> Option<Ballot> {
        self.ballot
    }

    /// Answers a claim that arrived at `now_ns`. `keep` returns when the ballot is durable; if it fails, nothing is
    /// granted and the ballot before it holds, whichever of them the disk has: nobody was told of the new one.
    pub fn answer(
        &mut self,
        claim: &Claim,
        now_ns: u64,
        keep: &mut dyn FnMut(Ballot) -> io::Result<()>,
    ) -> Answer {
        let verdict = self.decide(claim, now_ns, keep);
        Answer { round: claim.round, trial: claim.trial, verdict }
    }

    fn decide(
        &mut self,
        claim: &Claim,
        now_ns: u64,
        keep: &mut dyn FnMut(Ballot) -> io::Result<()>,
    ) -> Verdict {
        let is_renewal = self.ballot == Some(claim.ballot);
        if let Some(bound) = self.ballot.filter(|_| !is_renewal) {
            if bound.epoch >= claim.ballot.epoch {
                return Verdict::Superseded { by: bound.epoch };
            }
            // A site may take a higher epoch while its own promise holds.
            if bound.site != claim.ballot.site && now_ns < self.promised_until_ns {
                return Verdict::Promised { wait_ns: self.promised_until_ns - now_ns, epoch: bound.epoch };
            }
        }
        if claim.trial {
            return Verdict::Granted;
        }
        if !is_renewal {
            if keep(claim.ballot).is_err() {
                return Verdict::Broken;
            }
            self.ballot = Some(claim.ballot);
        }
        // A claim that was long under way must not shorten what a later one got.
        self.promised_until_ns = self.promised_until_ns.max(now_ns.saturating_add(self.times.promise_ns));
        Verdict::Granted
    }

    #[cfg(test)]
    pub(super) fn forget_promise(&mut self) {
        self.promised_until_ns = 0;
    }
}
