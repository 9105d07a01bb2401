//! A power loss: which of the unsynced effects it leaves.

use std::sync::Arc;

use super::chance::Chance;
use super::faults::FaultCounts;
use super::inode::Kept;
use super::names::NameOrder;
use super::state::State;

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

impl State {
    /// The power goes and the disk is mounted again.
    pub fn lose_power(&mut self, plan: &PowerLoss, counts: &mut FaultCounts) {
        let chance = &mut Chance::new(plan.seed);
        let mut orders: Vec<u64> = self.names.pending_orders().collect();
        orders.extend(self.inodes.values().flat_map(|file| file.unsynced.iter().map(|effect| effect.order)));
        orders.sort_unstable();
        let prefix = plan.order == WriteOrder::Prefix;
        let cut = chance.below(orders.len() as u64 + 1) as usize;
        let cut = orders.get(cut).copied().unwrap_or(u64::MAX);

        let keep_name = |order: u64, chance: &mut Chance| {
            if prefix { order < cut } else { chance.percent(plan.names_keep_percent) }
        };
        let (kept, lost) = Arc::make_mut(&mut self.names).lose_power(plan.names, keep_name, chance);
        counts.names_kept += kept;
        counts.names_lost += lost;

        let mut strays = Vec::new();
        for file in self.inodes.values_mut().filter(|file| !file.unsynced.is_empty()) {
            let file = Arc::make_mut(file);
            file.cache_lies = true;
            if plan.order == WriteOrder::Overlapping {
                file.shuffle(chance);
            }
            let mut gap = false;
            let judge = |order: u64, chance: &mut Chance| {
                let kept = if prefix {
                    match order.cmp(&cut) {
                        std::cmp::Ordering::Less => Kept::Whole,
                        std::cmp::Ordering::Equal if chance.percent(plan.tear_percent) => Kept::Torn,
                        _ => Kept::Nothing,
                    }
                } else if chance.percent(plan.keep_percent) {
                    Kept::Whole
                } else if chance.percent(plan.tear_percent) {
                    Kept::Torn
                } else {
                    Kept::Nothing
                };
                match kept {
                    Kept::Whole => counts.effects_kept += 1,
                    Kept::Torn => counts.effects_torn += 1,
                    Kept::Nothing => counts.effects_lost += 1,
                }
                counts.effects_reordered += u64::from(gap && kept != Kept::Nothing);
                gap |= kept == Kept::Nothing;
                kept
            };
            strays.extend(file.lose_power(judge, chance));
        }
        self.put(strays);
        for file in self.inodes.values_mut().filter(|file| !file.is_settled()) {
            Arc::make_mut(file).remount();
        }
        self.forget_nameless(|_| false);
    }
}
