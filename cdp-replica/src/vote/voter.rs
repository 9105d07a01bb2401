//! One volume's part of a voter: bound to one ballot, and for a while to nobody else's.

#[cfg(test)]
use std::io;

#[cfg(test)]
use super::Answer;
use super::{Ballot, Claim, Times, Verdict};

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

    /// What is against a claim that arrived at `now_ns`; nothing, if it would be granted.
    pub fn objection(&self, claim: &Claim, now_ns: u64) -> Option<Verdict> {
        let bound = self.ballot.filter(|ballot| *ballot != claim.ballot)?;
        if bound.epoch >= claim.ballot.epoch {
            return Some(Verdict::Superseded { by: bound.epoch });
        }
        // A site may take a higher epoch while its own promise holds.
        if bound.site != claim.ballot.site && now_ns < self.promised_until_ns {
            return Some(Verdict::Promised { wait_ns: self.promised_until_ns - now_ns, epoch: bound.epoch });
        }
        None
    }

    /// Whether its ballot has to be kept before the claim is granted.
    pub fn is_news(&self, claim: &Claim) -> bool {
        self.ballot != Some(claim.ballot)
    }

    /// Grants a claim that nothing is against, and whose ballot is durable.
    pub fn grant(&mut self, claim: &Claim, now_ns: u64) {
        self.ballot = Some(claim.ballot);
        // A claim that was long under way must not shorten what a later one got.
        self.promised_until_ns = self.promised_until_ns.max(now_ns.saturating_add(self.times.promise_ns));
    }

    /// Whoever holds this ballot will never answer under it again: what was promised to it is over, the ballot stays. One that
    /// was long under way, and comes when another has been granted, ends nothing.
    pub fn release(&mut self, ballot: Ballot) {
        if self.ballot == Some(ballot) {
            self.promised_until_ns = 0;
        }
    }

    /// Answers for one volume alone; `keep` returns when the ballot is durable. The simulation's: a [`super::Board`]
    /// does the same for many.
    #[cfg(test)]
    pub(super) fn answer(
        &mut self,
        claim: &Claim,
        now_ns: u64,
        keep: &mut dyn FnMut(Ballot) -> io::Result<()>,
    ) -> Answer {
        let verdict = match self.objection(claim, now_ns) {
            Some(objection) => objection,
            None if claim.trial => Verdict::Granted,
            None if self.is_news(claim) && keep(claim.ballot).is_err() => Verdict::Broken,
            None => {
                self.grant(claim, now_ns);
                Verdict::Granted
            }
        };
        Answer { round: claim.round, trial: claim.trial, verdict }
    }

    #[cfg(test)]
    pub(super) fn forget_promise(&mut self) {
        self.promised_until_ns = 0;
    }
}
