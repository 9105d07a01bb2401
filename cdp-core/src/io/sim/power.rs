//! A power loss: which of the unsynced effects it leaves.

use super::chance::Chance;
use super::names::NameOrder;

/// Which unsynced effects on files a power loss may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOrder {
    /// Everything up to some instant, names too; the effect at that instant may be torn. The kindest disk.
    Prefix,
    /// Any of them: a later one may be kept and an earlier one lost. Where they overlap the newest kept one wins.
    Any,
    /// Any of them, and where they overlap an older one may win: a drive that reorders its queue. No
    /// filesystem does this to one page; ask for it only where the code promises to stand it.
    Overlapping,
}

/// How a power loss chooses. The same value on the same disk always leaves the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerLoss {
    /// Seeds every choice.
    pub seed: u64,
    /// Which effects on files may be left.
    pub order: WriteOrder,
    /// Which changes of names may be left.
    pub names: NameOrder,
    /// So many of 100 unsynced effects on files are kept.
    pub keep_percent: u8,
    /// Of the others so many of 100 are kept in part.
    pub tear_percent: u8,
    /// So many of 100 unsynced changes of names are kept.
    pub names_keep_percent: u8,
}

impl PowerLoss {
    /// A style drawn from the seed: from "all is lost" by every mixture to "all is kept".
    pub fn seeded(seed: u64) -> PowerLoss {
        let mut chance = Chance::new(seed ^ 0x90e4);
        PowerLoss {
            seed,
            order: chance.pick(&[WriteOrder::Prefix, WriteOrder::Any, WriteOrder::Any, WriteOrder::Any]),
            names: chance.pick(&[NameOrder::PerDirectory, NameOrder::PerName]),
            keep_percent: chance.pick(&[0, 10, 50, 50, 90, 100]),
            tear_percent: chance.pick(&[0, 30, 100]),
            names_keep_percent: chance.pick(&[0, 50, 90, 100]),
        }
    }

    /// Nothing unsynced is left.
    pub fn all_lost() -> PowerLoss {
        PowerLoss {
            seed: 0,
            order: WriteOrder::Any,
            names: NameOrder::PerDirectory,
            keep_percent: 0,
            tear_percent: 0,
            names_keep_percent: 0,
        }
    }

    /// Everything is left, as if all had been synced in time.
    pub fn all_kept() -> PowerLoss {
        PowerLoss { keep_percent: 100, names_keep_percent: 100, ..PowerLoss::all_lost() }
    }
}
