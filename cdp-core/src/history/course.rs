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
    // Rising; only the last one may be open.
    gaps: Vec<Gap>,
}

/// A stretch of records that show no state: the history between was not here when an epoch went on from a state of another
/// site, and they make that state, block by block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The newest record before it.
    pub behind: Lsn,
    /// Up to then the state behind that record is the one.
    pub complete: Timestamp,
    /// The record of the other site whose state was gone on from.
    pub lsn: Lsn,
    /// Its timestamp.
    pub at: Timestamp,
    /// The record that ends the gap, and when that was; none as long as the state is not whole.
    pub end: Option<(Lsn, Timestamp)>,
    /// The state at its end is that of the other site. If not, somebody went back to before the gap.
    pub is_whole: bool,
}

impl Gap {
    /// Whether this record is one that shows no state.
    pub fn hides(&self, lsn: Lsn) -> bool {
        lsn > self.behind && self.end.is_none_or(|(end, _)| lsn < end)
    }

    fn covers(&self, at: Timestamp) -> bool {
        at > self.complete && self.end.is_none_or(|(_, end)| at < end)
    }
}

impl Course {
    /// Of a volume that was made with this size and never turned.
    pub fn new(first_size_bytes: u64) -> Course {
        Course {
            first_size_bytes,
            turns: Vec::new(),
            rollbacks: Vec::new(),
            newest: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Adds the newest turn. `false`, and nothing is added, if it cannot be: its record must be above all before,
    /// a rollback's target below its record, what is not there behind what is.
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
        if let Turn::Ahead { behind, complete, lsn, at, .. } = turn.turn {
            if behind.next() != turn.lsn || complete >= turn.at || at >= turn.at {
                return false;
            }
            // Of one that was open somebody else has taken over meanwhile.
            self.end_gap(&turn, false);
            self.gaps.push(Gap { behind, complete, lsn, at, end: None, is_whole: false });
        } else {
            self.end_gap(&turn, matches!(turn.turn, Turn::Resize { .. }));
        }
        self.turns.push(turn);
        true
    }

    fn end_gap(&mut self, turn: &TurnAt, is_whole: bool) {
        if let Some(gap) = self.gaps.last_mut().filter(|gap| gap.end.is_none()) {
            (gap.end, gap.is_whole) = (Some((turn.lsn, turn.at)), is_whole);
        }
    }

    /// The stretches whose records show no state, oldest first.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// The one whose state is not whole yet.
    pub fn open_gap(&self) -> Option<&Gap> {
        self.gaps.last().filter(|gap| gap.end.is_none())
    }

    /// The one that this record lies in.
    pub fn gap_of(&self, lsn: Lsn) -> Option<&Gap> {
        self.gaps.iter().rfind(|gap| gap.hides(lsn))
    }

    /// The one that this instant lies in.
    pub fn gap_at(&self, at: Timestamp) -> Option<&Gap> {
        self.gaps.iter().rfind(|gap| gap.covers(at))
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

    /// A second site took over with a newest state whose history it never got: nobody is shown the blocks of that state mixed
    /// with older ones, nor the older state for an instant at which the newer one was there.
    #[test]
    fn what_makes_a_state_shows_none() {
        let ahead = |lsn: u64, behind: u64| TurnAt {
            lsn: Lsn(lsn),
            at: Timestamp(lsn * 10),
            turn: Turn::Ahead {
                behind: Lsn(behind),
                complete: Timestamp(behind * 10 + 2),
                lsn: Lsn(90),
                at: Timestamp(behind * 10 + 7),
                size_bytes: 30,
            },
        };
        let whole = |lsn: u64| TurnAt {
            lsn: Lsn(lsn),
            at: Timestamp(lsn * 10),
            turn: Turn::Resize { size_bytes: 20 },
        };
        let mut course = Course::new(10);
        assert!(!course.push(ahead(5, 5)) && !course.push(ahead(6, 4)));
        assert!(course.push(ahead(5, 4)));
        assert_eq!(course.open_gap().map(|gap| gap.behind), Some(Lsn(4)));
        let hidden = |course: &Course| -> Vec<u64> {
            (0..40).filter(|lsn| course.gap_of(Lsn(*lsn)).is_some()).collect()
        };
        assert_eq!(hidden(&course), (5..40).collect::<Vec<_>>());
        assert!(course.push(whole(9)) && course.open_gap().is_none());
        assert_eq!(hidden(&course), [5, 6, 7, 8]);
        let times: Vec<u64> = (0..200).filter(|at| course.gap_at(Timestamp(*at)).is_some()).collect();
        assert_eq!(times, (43..90).collect::<Vec<_>>());
        assert!(course.gaps()[0].is_whole);
        assert_eq!([4, 5, 8, 9].map(|lsn| course.size_at(Lsn(lsn))), [10, 30, 30, 20]);
        // One that nobody finished: the next site went back to before it.
        assert!(course.push(ahead(20, 19)) && course.push(rollback(25, 19)));
        assert_eq!(hidden(&course), [5, 6, 7, 8, 20, 21, 22, 23, 24]);
        assert!(!course.gaps()[1].is_whole);
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
