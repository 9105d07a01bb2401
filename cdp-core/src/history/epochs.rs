//! The epochs of a volume, and where two histories of it part.
//!
//! Within one epoch there is one primary and so one history: two sites that have the same epoch have the same records of
//! it, as far as both have them. So the last record that both have follows from the two lists and the two tips, without
//! a look at any record; the chain value there proves it.

use crate::format::epoch::Epoch;
use crate::format::record::Chain;
use crate::ids::{EpochNumber, Lsn, VolumeId};
use crate::limits::EPOCHS_MAX;

/// The epochs of a volume, oldest first; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Epochs(Vec<Epoch>);

/// How two histories of one volume stand to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Join {
    /// The last record that both can have. Where their chain values differ there, a site is not what it was (a store
    /// that was brought back from a copy, say), and nobody can tell from the epochs where they part.
    pub common: Lsn,
    /// Ours goes on behind it.
    pub ours_beyond: bool,
    /// Theirs goes on behind it.
    pub theirs_beyond: bool,
    /// Who may write.
    pub standing: Standing,
}

/// What the newest epochs of two sites say about who may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Both have the same newest epoch.
    Same,
    /// Theirs is higher: ours is fenced.
    Fenced,
    /// Ours is higher: theirs is to be refused.
    Above,
    /// The same number under two ids: two primaries at once. Both stop.
    SplitBrain,
}

impl Epochs {
    /// Of a volume that was never promoted.
    pub fn first(volume: VolumeId) -> Epochs {
        Epochs(vec![Epoch::first(volume)])
    }

    /// Of a list from outside, with the first epoch or without it; `None` if it makes no sense.
    pub fn of(volume: VolumeId, list: &[Epoch]) -> Option<Epochs> {
        let mut epochs = Epochs::first(volume);
        let rest = list.strip_prefix(&[Epoch::first(volume)]).unwrap_or(list);
        rest.iter().all(|epoch| epochs.push(*epoch)).then_some(epochs)
    }

    /// All of them, oldest first.
    pub fn list(&self) -> &[Epoch] {
        &self.0
    }

    /// The newest.
    pub fn newest(&self) -> Epoch {
        *self.0.last().expect("there is always the first")
    }

    /// Adds the newest epoch. `false`, and nothing is added, if it cannot be: number and start have to rise.
    #[must_use]
    pub fn push(&mut self, epoch: Epoch) -> bool {
        let newest = self.newest();
        let fits = epoch.number > newest.number
            // A volume may be promoted before it has its first record.
            && (epoch.start > newest.start || self.0.len() == 1 && epoch.start == newest.start)
            && self.0.len() < EPOCHS_MAX;
        if fits {
            self.0.push(epoch);
        }
        fits
    }

    /// The epochs that had begun by this record; at least the first.
    pub fn through(&self, lsn: Lsn) -> Epochs {
        let begun = self.0.iter().skip(1).take_while(|epoch| epoch.start <= lsn);
        Epochs(self.0[..1].iter().chain(begun).copied().collect())
    }

    /// The epoch in which a record was written.
    pub fn of_record(&self, lsn: Lsn) -> EpochNumber {
        self.through(lsn).newest().number
    }

    /// The chain value after this record, if an epoch begins right behind it.
    pub fn chain_at(&self, lsn: Lsn) -> Option<Chain> {
        self.0.iter().skip(1).find(|epoch| epoch.start == lsn.next()).map(|epoch| epoch.chain)
    }

    /// Who may write, of this site and one with `theirs` as its newest epoch.
    pub fn standing(&self, theirs: &Epoch) -> Standing {
        let ours = self.newest();
        match theirs.number.cmp(&ours.number) {
            std::cmp::Ordering::Greater => Standing::Fenced,
            std::cmp::Ordering::Less => Standing::Above,
            std::cmp::Ordering::Equal if *theirs == ours => Standing::Same,
            std::cmp::Ordering::Equal => Standing::SplitBrain,
        }
    }

    /// Where this history, up to `tip`, and another of the same volume part.
    pub fn join(&self, tip: Lsn, theirs: &Epochs, their_tip: Lsn) -> Join {
        let same = self.0.iter().zip(&theirs.0).take_while(|(ours, theirs)| ours == theirs).count();
        // Behind its end an epoch has no record.
        let end =
            |epochs: &Epochs, tip: Lsn| epochs.0.get(same).map_or(tip, |next| next.start.previous().min(tip));
        let common = end(self, tip).min(end(theirs, their_tip));
        Join {
            common,
            ours_beyond: tip > common,
            theirs_beyond: their_tip > common,
            standing: self.standing(&theirs.newest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::Chance;

    const VOLUME: VolumeId = VolumeId(7);

    fn epoch(number: u32, id: u128, start: u64) -> Epoch {
        Epoch { number: EpochNumber(number), id, start: Lsn(start), chain: Chain::default() }
    }

    fn epochs(list: &[Epoch]) -> Epochs {
        Epochs::of(VOLUME, list).unwrap()
    }

    /// The usual accident: the replica had up to 90, was promoted, wrote; the old primary had 100.
    #[test]
    fn a_promotion_parts_the_histories() {
        let old = Epochs::first(VOLUME);
        let new = epochs(&[epoch(2, 9, 91)]);
        let join = old.join(Lsn(100), &new, Lsn(120));
        let fenced =
            Join { common: Lsn(90), ours_beyond: true, theirs_beyond: true, standing: Standing::Fenced };
        assert_eq!(join, fenced);
        assert_eq!(new.join(Lsn(120), &old, Lsn(100)), Join { standing: Standing::Above, ..fenced });
        // Drained before: nothing is on one side only.
        assert!(!old.join(Lsn(90), &new, Lsn(120)).ours_beyond);
    }

    /// Two replicas were promoted at once: both are told.
    #[test]
    fn two_primaries_of_one_epoch_are_a_split_brain() {
        let (a, b) = (epochs(&[epoch(2, 1, 91)]), epochs(&[epoch(2, 2, 81)]));
        let join = a.join(Lsn(100), &b, Lsn(100));
        assert_eq!((join.common, join.standing), (Lsn(80), Standing::SplitBrain));
        assert!(join.ours_beyond && join.theirs_beyond);
    }

    /// What comes from another site may be anything.
    #[test]
    fn a_list_that_makes_no_sense_is_refused() {
        for list in [
            vec![epoch(1, 3, 5)],
            vec![epoch(2, 1, 50), epoch(2, 2, 60)],
            vec![epoch(2, 1, 50), epoch(3, 2, 50)],
            vec![epoch(3, 1, 50), epoch(2, 2, 60)],
        ] {
            assert_eq!(Epochs::of(VOLUME, &list), None, "{list:?}");
        }
        assert_eq!(epochs(&[Epoch::first(VOLUME), epoch(2, 1, 50)]).of_record(Lsn(50)), EpochNumber(2));
        assert_eq!(epochs(&[epoch(2, 1, 50)]).of_record(Lsn(49)), EpochNumber(1));
    }

    /// Nobody's writes may be taken for common when they are not, however often sites were promoted, cut off and
    /// brought together: held against the records themselves.
    #[test]
    fn the_join_is_where_the_records_part() {
        for seed in 0..500 {
            let mut chance = Chance::new(seed);
            // Of each site the epoch id of each of its records; a site extends its own or copies another's.
            let mut sites: Vec<(Vec<u128>, Epochs)> = vec![(Vec::new(), Epochs::first(VOLUME)); 3];
            let mut primary = 0;
            for step in 0..60u128 {
                let site = chance.below(3) as usize;
                match chance.below(4) {
                    // The primary writes, in its epoch.
                    0 | 1 => {
                        let id = sites[primary].1.newest().id;
                        sites[primary].0.extend(vec![id; 1 + chance.below(5) as usize]);
                    }
                    // A site takes a part of what another has, if it is the same up to its own tip.
                    2 => {
                        let other = chance.below(3) as usize;
                        let have = sites[site].0.len();
                        let (records, epochs) = sites[other].clone();
                        if records.len() > have && records[..have] == sites[site].0[..] {
                            let take = have + 1 + chance.below((records.len() - have) as u64) as usize;
                            sites[site] = (records[..take].to_vec(), epochs.through(Lsn(take as u64)));
                        }
                    }
                    // It is promoted, whatever the others do.
                    _ => {
                        let number = EpochNumber(sites[site].1.newest().number.0 + 1);
                        let start = Lsn(sites[site].0.len() as u64 + 1);
                        let id = 1000 + step;
                        let epoch = Epoch { number, id, start, chain: Chain::default() };
                        assert!(sites[site].1.push(epoch));
                        sites[site].0.push(id);
                        primary = site;
                    }
                }
            }
            for (a, b) in [(0, 1), (1, 2), (2, 0)] {
                let ((ours, our_epochs), (theirs, their_epochs)) = (&sites[a], &sites[b]);
                let common = ours.iter().zip(theirs).take_while(|(one, other)| one == other).count();
                let (tip, their_tip) = (Lsn(ours.len() as u64), Lsn(theirs.len() as u64));
                let join = our_epochs.join(tip, their_epochs, their_tip);
                assert_eq!(join.common, Lsn(common as u64), "seed {seed}: {sites:?}");
                assert_eq!(join.ours_beyond, ours.len() > common, "seed {seed}");
                assert_eq!(join.theirs_beyond, theirs.len() > common, "seed {seed}");
            }
        }
    }
}
