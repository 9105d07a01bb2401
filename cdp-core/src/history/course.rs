//! The course of a volume: its rollbacks and resizes, which decide what records a state consists of and how
//! large it is. They are few and known from the opening on, so that no question replays anything.

use crate::format::turn::Turn;
use crate::ids::{Lsn, Timestamp};
use crate::index::Visible;

/// A rollback or resize and its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TurnAt {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// What it says.
    pub turn: Turn,
}

/// The rollbacks and resizes of a volume, oldest first.
///
/// The state at x consists of visible(x) = visible(p) ∪ (n, x] for the newest rollback n→p with n ≤ x; without
/// one, of [1, x]. Its size is what the newest turn not above x says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Course {
    first_size_bytes: u64,
    turns: Vec<TurnAt>,
    // The rollbacks among them: record and target.
    rollbacks: Vec<(Lsn, Lsn)>,
    // What is visible right at the newest rollback: the tip's answer without a walk.
    newest: Vec<(Lsn, Lsn)>,
}

impl Course {
    /// Of a volume that was made with this size and never turned.
    pub fn new(first_size_bytes: u64) -> Course {
        Course { first_size_bytes, turns: Vec::new(), rollbacks: Vec::new(), newest: Vec::new() }
    }

    /// Adds the newest turn. `false`, and nothing is added, if it cannot be: its record must be above all before,
    /// a rollback's target below its record.
    #[must_use]
    pub fn push(&mut self, turn: TurnAt) -> bool {
        if self.turns.last().is_some_and(|last| last.lsn >= turn.lsn) {
            return false;
        }
        if let Turn::Rollback { to, .. } = turn.turn {
            if to >= turn.lsn {
                return false;
            }
            self.newest = self.walk(to);
            self.rollbacks.push((turn.lsn, to));
        }
        self.turns.push(turn);
        true
    }

    /// All turns, oldest first.
    pub fn turns(&self) -> &[TurnAt] {
        &self.turns
    }

    /// The newest rollback.
    pub fn newest_rollback(&self) -> Option<&TurnAt> {
        self.turns.iter().rfind(|turn| matches!(turn.turn, Turn::Rollback { .. }))
    }

    /// The record of the newest rollback; [`Lsn::ZERO`] without one.
    pub fn newest_rollback_lsn(&self) -> Lsn {
        self.rollbacks.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn)
    }

    /// The records of its rollbacks from `first` to `last`, rising.
    pub fn rollbacks_within(&self, first: Lsn, last: Lsn) -> impl Iterator<Item = Lsn> {
        let from = self.rollbacks.partition_point(|(record, _)| *record < first);
        self.rollbacks[from..].iter().map(|(lsn, _)| *lsn).take_while(move |lsn| *lsn <= last)
    }

    /// The newest rollback not above this record; [`Lsn::ZERO`] without one. States behind the same one see the same of
    /// what is before it.
    pub fn rollback_before(&self, lsn: Lsn) -> Lsn {
        let behind = self.rollbacks.partition_point(|(record, _)| *record <= lsn);
        behind.checked_sub(1).map_or(Lsn::ZERO, |at| self.rollbacks[at].0)
    }

    /// The rollback that was done to a whole group under this id.
    pub fn rollback_of_group(&self, id: u128) -> Option<&TurnAt> {
        self.turns.iter().rfind(|turn| matches!(turn.turn, Turn::Rollback { group, .. } if group == id))
    }

    /// Which records the state at `lsn` consists of. Its length is the number of rollbacks on the way.
    pub fn visible(&self, lsn: Lsn) -> Visible {
        match self.rollbacks.last() {
            None => Visible::through(lsn),
            Some((newest, _)) if *newest <= lsn => {
                let mut ranges = Vec::with_capacity(self.newest.len() + 1);
                ranges.extend_from_slice(&self.newest);
                if *newest < lsn {
                    ranges.push((newest.next(), lsn));
                }
                Visible::of(ranges)
            }
            Some(_) => Visible::of(self.walk(lsn)),
        }
    }

    fn walk(&self, lsn: Lsn) -> Vec<(Lsn, Lsn)> {
        let mut ranges = Vec::new();
        let mut at = lsn;
        loop {
            let before = self.rollbacks.partition_point(|(record, _)| *record <= at);
            let Some(newest) = before.checked_sub(1) else {
                if at > Lsn::ZERO {
                    ranges.push((Lsn(1), at));
                }
                break;
            };
            let (record, to) = self.rollbacks[newest];
            if record < at {
                ranges.push((record.next(), at));
            }
            at = to;
        }
        ranges.reverse();
        ranges
    }

    /// How large the volume was after this record, in bytes.
    pub fn size_at(&self, lsn: Lsn) -> u64 {
        let after = self.turns.partition_point(|turn| turn.lsn <= lsn);
        after.checked_sub(1).map_or(self.first_size_bytes, |newest| self.turns[newest].turn.size_bytes())
    }

    /// The largest size it ever had, in bytes.
    pub fn largest_size(&self) -> u64 {
        let sizes = self.turns.iter().map(|turn| turn.turn.size_bytes());
        sizes.fold(self.first_size_bytes, u64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::Chance;

    fn rollback(lsn: u64, to: u64) -> TurnAt {
        let turn = Turn::Rollback {
            to: Lsn(to),
            number: 1,
            size_bytes: 1,
            undo: false,
            group: 0,
            asked: String::new(),
        };
        TurnAt { lsn: Lsn(lsn), at: Timestamp(lsn), turn }
    }

    /// Whoever looks at any instant around rollbacks and undos sees the records that made that state, and no other:
    /// held against the rule itself, record by record.
    #[test]
    fn visible_is_the_rule() {
        for seed in 0..200 {
            let mut chance = Chance::new(seed);
            let mut course = Course::new(0);
            // For each LSN the set of records that its state consists of.
            let mut naive: Vec<Vec<u64>> = vec![Vec::new()];
            for lsn in 1..80u64 {
                let mut seen;
                if chance.percent(12) {
                    let to = chance.below(lsn);
                    assert!(course.push(rollback(lsn, to)));
                    seen = naive[to as usize].clone();
                } else {
                    seen = naive[lsn as usize - 1].clone();
                    seen.push(lsn);
                }
                naive.push(seen);
            }
            for (lsn, seen) in naive.iter().enumerate() {
                let visible = course.visible(Lsn(lsn as u64));
                let found: Vec<u64> = (1..80).filter(|at| visible.contains(Lsn(*at))).collect();
                assert_eq!(found, *seen, "seed {seed}, lsn {lsn}, {course:?}");
            }
        }
    }

    /// Nonsense in a journal must not make a walk that never ends.
    #[test]
    fn a_rollback_goes_back() {
        let mut course = Course::new(0);
        assert!(!course.push(rollback(5, 5)));
        assert!(!course.push(rollback(5, 9)));
        assert!(course.push(rollback(5, 4)));
        assert!(!course.push(rollback(5, 1)));
        assert_eq!(course.turns().len(), 1);
    }

    /// A view of the time before a volume grew, or of after it was set back to then, has the size it had then.
    #[test]
    fn a_state_has_the_size_of_its_instant() {
        let mut course = Course::new(10);
        let resize =
            |lsn, size_bytes| TurnAt { lsn: Lsn(lsn), at: Timestamp(lsn), turn: Turn::Resize { size_bytes } };
        assert!(course.push(resize(5, 20)) && course.push(rollback(9, 3)) && course.push(resize(12, 30)));
        let sizes: Vec<u64> = [0, 4, 5, 8, 9, 11, 12, 99].map(|lsn| course.size_at(Lsn(lsn))).to_vec();
        assert_eq!(sizes, [10, 10, 20, 20, 1, 1, 30, 30]);
    }
}
