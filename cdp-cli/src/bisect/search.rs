//! The search by itself: candidates in a row, the first good and the last bad, verdicts in between. No clock, no
//! program, no disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a program says of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// This state cannot be judged.
    Skip,
}

/// Where a search stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// There is something left to ask.
    Open,
    /// The last good and the first bad candidate are neighbours.
    Found,
    /// Only skipped candidates lie between the last good and the first bad one: it is one of them, or that.
    Narrowed,
}

/// A search among `count` candidates, 0 … count − 1, of which 0 is good and the last is bad.
#[derive(Clone, Debug)]
pub struct Search {
    good: u64,
    bad: u64,
    skipped: BTreeMap<u64, ()>,
}

impl Search {
    /// Begins; there are at least two candidates.
    pub fn new(count: u64) -> Search {
        assert!(count >= 2, "a good and a bad one");
        Search { good: 0, bad: count - 1, skipped: BTreeMap::new() }
    }

    /// The newest candidate known as good.
    pub fn last_good(&self) -> u64 {
        self.good
    }

    /// The oldest candidate known as bad.
    pub fn first_bad(&self) -> u64 {
        self.bad
    }

    /// Skipped candidates between the two.
    pub fn skipped(&self) -> impl Iterator<Item = u64> {
        self.skipped.range(self.good + 1..self.bad).map(|(candidate, ())| *candidate)
    }

    /// How many candidates lie between the two, those that were skipped included.
    pub fn left(&self) -> u64 {
        self.bad - self.good - 1
    }

    /// Whether there is more to ask.
    pub fn standing(&self) -> Standing {
        match (self.left(), self.skipped().count() as u64) {
            (0, _) => Standing::Found,
            (left, skipped) if left == skipped => Standing::Narrowed,
            _ => Standing::Open,
        }
    }

    /// Notes a verdict. Of verdicts that contradict each other (a good state after a bad one) the oldest bad one
    /// counts, so that there is always a change from good to bad between the two.
    pub fn note(&mut self, candidate: u64, verdict: Verdict) {
        match verdict {
            Verdict::Good if candidate < self.bad => self.good = self.good.max(candidate),
            Verdict::Bad if candidate > self.good => self.bad = self.bad.min(candidate),
            Verdict::Good | Verdict::Bad => {}
            Verdict::Skip => drop(self.skipped.insert(candidate, ())),
        }
    }

    /// The candidates to ask next, at most `together` of them at the same time; none when there is nothing to ask.
    pub fn next(&self, together: u64) -> Vec<u64> {
        let inner = self.left();
        if self.skipped().next().is_none() {
            let count = together.min(inner);
            // Cuts into equal parts: with one it is the middle.
            return (1..=count)
                .map(|i| self.good + (u128::from(inner + 1) * u128::from(i) / u128::from(count + 1)) as u64)
                .collect();
        }
        // What is known or being asked cuts the row into gaps: the middle of the longest each time. So a stretch of
        // candidates that cannot be judged is left behind quickly.
        let mut cuts: Vec<u64> = [self.good].into_iter().chain(self.skipped()).chain([self.bad]).collect();
        let mut chosen = Vec::new();
        while (chosen.len() as u64) < together {
            let longest = cuts.windows(2).max_by_key(|pair| pair[1] - pair[0]);
            let Some(&[from, to]) = longest.and_then(|pair| pair.first_chunk::<2>()) else { break };
            if to - from < 2 {
                break;
            }
            let middle = from + (to - from) / 2;
            chosen.push(middle);
            cuts.push(middle);
            cuts.sort_unstable();
        }
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with a program that says `Bad` from `first_bad` on; gives probes and rounds.
    fn play(count: u64, first_bad: u64, together: u64, skip: impl Fn(u64) -> bool) -> (Search, u64, u64) {
        let mut search = Search::new(count);
        let (mut probes, mut rounds) = (0, 0);
        while search.standing() == Standing::Open {
            let asked = search.next(together);
            assert!(!asked.is_empty() && asked.len() as u64 <= together, "it goes on");
            rounds += 1;
            for candidate in asked {
                assert!(candidate > 0 && candidate < count - 1, "the ends are known");
                probes += 1;
                assert!(probes < 10_000, "it does not end");
                let verdict = match candidate {
                    candidate if skip(candidate) => Verdict::Skip,
                    candidate if candidate < first_bad => Verdict::Good,
                    _ => Verdict::Bad,
                };
                search.note(candidate, verdict);
            }
        }
        (search, probes, rounds)
    }

    // A night of markers, each probe starting a database: 22 of them are an hour, 40 are not.
    #[test]
    fn a_million_markers_take_twenty_probes() {
        // The two ends are asked beside that: 22 in all.
        let count = 1_000_000 + 2;
        for first_bad in [1, 2, 3, 777, 499_999, 500_000, 500_001, 999_999, 1_000_000, 1_000_001] {
            let (search, probes, _) = play(count, first_bad, 1, |_| false);
            assert_eq!((search.last_good(), search.first_bad()), (first_bad - 1, first_bad));
            assert!(probes <= 20, "{first_bad}: {probes}");
        }
    }

    // -j 4 must be quicker, or nobody's machine needs to sweat.
    #[test]
    fn more_at_a_time_need_fewer_rounds() {
        for together in [2, 3, 4, 7, 16] {
            let (search, _, rounds) = play(1_000_002, 123_456, together, |_| false);
            assert_eq!(search.first_bad(), 123_456);
            let bound = (1_000_002f64.ln() / (together as f64 + 1.0).ln()).ceil() as u64 + 1;
            assert!(rounds <= bound, "{together}: {rounds} > {bound}");
        }
    }

    // Half an hour in which the database could not start must not be probed second by second.
    #[test]
    fn a_stretch_that_cannot_be_judged_is_left_behind() {
        let (search, probes, _) = play(1_000_002, 700_000, 1, |at| (400_000..600_000).contains(&at));
        assert_eq!((search.last_good(), search.first_bad()), (699_999, 700_000));
        assert!(probes < 60, "{probes}");
        // The change itself is in the stretch: all that can be said is said, and it ends.
        let (search, _, _) = play(2_000, 1_000, 3, |at| (990..1_010).contains(&at));
        assert_eq!(search.standing(), Standing::Narrowed);
        assert_eq!((search.last_good(), search.first_bad(), search.skipped().count()), (989, 1_010, 20));
    }

    // A program that is not monotone: whatever is named was good, and what follows was bad.
    #[test]
    fn contradictions_still_end_at_a_change_from_good_to_bad() {
        let mut search = Search::new(1000);
        while search.standing() == Standing::Open {
            for at in search.next(3) {
                search.note(at, if at / 100 % 2 == 0 { Verdict::Good } else { Verdict::Bad });
            }
        }
        assert_eq!(search.standing(), Standing::Found);
        assert!(search.first_bad() % 200 == 100, "{search:?}");
    }

    #[test]
    fn neighbours_need_no_probe() {
        assert_eq!(Search::new(2).standing(), Standing::Found);
        assert!(Search::new(2).next(4).is_empty());
        assert_eq!(play(3, 1, 8, |_| false).1, 1);
    }
}
