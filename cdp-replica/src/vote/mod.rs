//! Which of two sites may answer writes, decided by three voters: either site's own, and a witness that holds no data.
//!
//! ```text
//!   Claimant, one at each site                     Voter, one at each site and the witness
//!
//!   idle ── try (trial claims) ──▶ would win       free ── claim of a higher epoch ──▶ bound to (epoch, site)
//!    ▲                                │                                  (durable)        │  ▲
//!    │ refused, or no majority        │ claim of epoch e+1                promise is over │  │ claim of the same
//!    │                                ▼                                                   ▼  │ site: promise anew
//!   over ◀── a higher epoch ── holds the lease ◀─┐                       free for higher epochs
//!                                     │ majority │
//!                                     └──────────┘ renewed every quarter of the lease
//! ```
//!
//! A claimant that a majority granted one claim may answer writes for [`Times::lease_ns`], counted on its own clock from
//! *before* it sent that claim. A voter that grants promises to grant nobody else a higher epoch for
//! [`Times::promise_ns`], counted on its own clock from when the claim *arrived*. A majority of three has a voter in
//! common with any other majority, and that voter's promise began later and lasts longer than the lease. So no two sites
//! hold a lease at one time. `docs/VOTES.md` has the proof's obligations and the test of each.
//!
//! A [`Seat`] is what a site does with a claimant, a [`Board`] is a voter for many volumes, [`ballots`] its file, [`lease`]
//! what stands in front of the answers, [`wire`] the messages, and [`service`] a voter at work.
//!
//! Pure, but for the last steps of these: time is handed in as nanoseconds of a clock that runs on through suspend (`CLOCK_BOOTTIME`), messages are values,
//! and a ballot is kept through a function that returns when it is durable.

pub mod ballots;
mod board;
mod claimant;
pub mod lease;
mod seat;
pub mod service;
#[cfg(test)]
mod simulation;
mod voter;
pub mod wire;

pub use board::{Ask, Ballots, Board, Kept, Said, fresh_site};
pub use claimant::Claimant;
pub use seat::{Seat, Standing};
pub use voter::Voter;

/// A site: a random id, kept beside its ballots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SiteId(pub u128);

/// How long leases and promises hold, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// A lease, on its holder's clock.
    pub lease_ns: u64,
    /// A promise, on its voter's clock.
    pub promise_ns: u64,
}

impl Times {
    /// A promise outlasts a lease by an eighth. That is safe while no clock's rate is off by more than one part in
    /// seventeen: a lease may take up to `lease / (1 - d)` of true time and a promise as little as `promise / (1 + d)`,
    /// and 9/8 ≥ (1 + d) / (1 - d) for all d ≤ 1/17. (The kernel slews a clock by one part in 2000 at most.)
    pub fn with_lease(lease_ns: u64) -> Times {
        Times { lease_ns, promise_ns: lease_ns + lease_ns.div_ceil(8) }
    }
}

/// What a voter is bound to. It is durable before anybody hears of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ballot {
    /// The epoch that was granted.
    pub epoch: u64,
    /// To whom.
    pub site: SiteId,
}

/// A site asks to hold an epoch, or to go on holding it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Which epoch by whom.
    pub ballot: Ballot,
    /// Only asks what the answer would be. Without it, a site that is cut off from the holder but not from its own voter
    /// would bind that voter to a higher epoch, and end a lease that nobody else can get.
    pub trial: bool,
    /// Comes back with the answer: grants count for the claim that they answer, and for no other.
    pub round: u64,
}

/// What a voter says to a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The claim's.
    pub round: u64,
    /// The claim's.
    pub trial: bool,
    /// Yes or no.
    pub verdict: Verdict,
}

/// Yes or no, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Granted; to a trial, would be granted.
    Granted,
    /// This epoch, or a higher one, is another's.
    Superseded {
        /// By which epoch.
        by: u64,
    },
    /// Somebody else's promise is not over.
    Promised {
        /// Nanoseconds until it is.
        wait_ns: u64,
        /// The epoch it was given for.
        epoch: u64,
    },
    /// The voter cannot keep its ballot.
    Broken,
}
