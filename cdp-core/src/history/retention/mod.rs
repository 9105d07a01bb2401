//! Which states are kept: a policy a person can read, as a pure function of markers and time.

mod parse;
pub mod stretch;
#[cfg(test)]
mod tests;

pub use parse::parse;

use crate::format::codec::Codec;
use crate::ids::{Lsn, Timestamp};
use crate::index::Visible;

/// How long something is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Until somebody lets it go, or there is no more room.
    Forever,
    /// For so many nanoseconds.
    For(u64),
}

impl Keep {
    /// The oldest instant that is kept.
    pub fn since(self, now: Timestamp) -> Timestamp {
        match self {
            Keep::Forever => Timestamp(0),
            Keep::For(ns) => Timestamp(now.0.saturating_sub(ns)),
        }
    }
}

/// One marker out of each interval is kept for some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tier {
    /// Length of the intervals, in nanoseconds; they are counted from the Unix epoch.
    pub every_ns: u64,
    /// How long.
    pub keep: Keep,
}

/// What happens when the journal has no room left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtCap {
    /// Writes are refused; history stays.
    #[default]
    Block,
    /// The oldest history that still has every write keeps only what it would keep later, writes go on; they are refused
    /// when nothing is left to thin.
    Thin,
    /// The oldest history goes, writes go on. Named markers stay as long as thinning makes room enough.
    DropOldest,
}

/// What is kept of a volume's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How long the state after every single write is kept.
    pub every_write: Keep,
    /// Beyond that, from the finest to the coarsest.
    pub tiers: Vec<Tier>,
    /// How long named markers are kept.
    pub named: Keep,
    /// The most that the journal may take, in bytes.
    pub bytes_max: Option<u64>,
    /// What happens then.
    pub at_cap: AtCap,
    /// How history that is thinned is compressed.
    pub codec: Codec,
}

impl Default for Policy {
    /// Everything is kept, and writes are refused when the journal is full.
    fn default() -> Policy {
        Policy {
            every_write: Keep::Forever,
            tiers: Vec::new(),
            named: Keep::Forever,
            bytes_max: None,
            at_cap: AtCap::Block,
            codec: Codec::default(),
        }
    }
}

/// A marker, as the policy sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// Whether it has a name, and nobody let it go.
    pub named: bool,
}

/// What a policy keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retained {
    /// Every state from this instant on.
    pub window: Timestamp,
    /// Single states before it, rising.
    pub kept: Vec<Lsn>,
}

/// What is kept at `now` of a history with these markers, which rise. Of the markers in an interval the first one
/// counts, so that what is kept today is kept tomorrow as long as its time is not over.
pub fn retained(policy: &Policy, markers: impl IntoIterator<Item = Candidate>, now: Timestamp) -> Retained {
    let window = policy.every_write.since(now);
    let mut seen: Vec<Option<u64>> = vec![None; policy.tiers.len()];
    let mut kept = Vec::new();
    for marker in markers.into_iter().take_while(|marker| marker.at < window) {
        let mut keep = marker.named && marker.at >= policy.named.since(now);
        for (tier, last) in policy.tiers.iter().zip(&mut seen) {
            let interval = marker.at.0 / tier.every_ns;
            if *last != Some(interval) {
                *last = Some(interval);
                keep |= marker.at >= tier.keep.since(now);
            }
        }
        if keep {
            kept.push(marker.lsn);
        }
    }
    Retained { window, kept }
}

/// Whether the base may rest at `b`, whose state is `at_b`, while these states are retained: each of them must see
/// of the records up to `b` just those that `at_b` sees. What was rolled back is in the base of nobody.
pub fn may_rest<'a>(b: Lsn, at_b: &Visible, retained: impl IntoIterator<Item = &'a Visible>) -> bool {
    retained.into_iter().all(|visible| visible.agrees_through(at_b, b))
}
