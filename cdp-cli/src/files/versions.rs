//! Which versions of something there were in a row of states, found with few looks.
//!
//! Some states are looked at, spread over the row; where two neighbours among them differ, the border is searched
//! between them. That finds every version that is there at one of the samples or that is not surrounded by one and
//! the same version, with log₂ of the distance looks for each border.

use std::collections::{BTreeMap, BinaryHeap};

use cdp_core::error::Result;

/// A stretch of the row with the same version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run<V> {
    /// The first state that has it.
    pub first: u64,
    /// The last state that was seen to have it.
    pub last: u64,
    /// The version.
    pub version: V,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found<V> {
    /// The runs in order. `first` is exact where the search was not cut short.
    pub runs: Vec<Run<V>>,
    /// The looks were used up before every border was found.
    pub cut_short: bool,
}

/// Finds the versions in the states 0 … `count` − 1. `samples` are looked at in any case, the ends too.
pub fn find<V: Clone + Eq>(
    count: u64,
    samples: impl IntoIterator<Item = u64>,
    looks_max: u64,
    look: &mut dyn FnMut(u64) -> Result<V>,
) -> Result<Found<V>> {
    let mut known: BTreeMap<u64, V> = BTreeMap::new();
    let ends = [0, count.saturating_sub(1)];
    let mut looks = 0;
    for at in ends.into_iter().chain(samples).filter(|at| *at < count) {
        if !known.contains_key(&at) && looks < looks_max {
            known.insert(at, look(at)?);
            looks += 1;
        }
    }
    // The widest first, so that a search that is cut short knows all a little rather than some well.
    let mut open: BinaryHeap<(u64, u64)> = BinaryHeap::new();
    let all: Vec<u64> = known.keys().copied().collect();
    let differs = |known: &BTreeMap<u64, V>, from: u64, to: u64| to - from > 1 && known[&from] != known[&to];
    for pair in all.windows(2).filter(|pair| differs(&known, pair[0], pair[1])) {
        open.push((pair[1] - pair[0], pair[0]));
    }
    let mut cut_short = false;
    while let Some((width, from)) = open.pop() {
        if looks == looks_max {
            cut_short = true;
            break;
        }
        let (middle, to) = (from + width / 2, from + width);
        known.insert(middle, look(middle)?);
        looks += 1;
        for (from, to) in [(from, middle), (middle, to)] {
            if differs(&known, from, to) {
                open.push((to - from, from));
            }
        }
    }
    let mut runs: Vec<Run<V>> = Vec::new();
    for (at, version) in known {
        match runs.last_mut() {
            Some(run) if run.version == version => run.last = at,
            _ => runs.push(Run { first: at, last: at, version }),
        }
    }
    Ok(Found { runs, cut_short })
}

/// `count` states spread evenly over a row of `of`.
pub fn spread(of: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count.min(of)).map(move |i| (u128::from(of) * u128::from(i) / u128::from(count.min(of))) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(row: &[u32], samples: u64, looks_max: u64) -> (Found<u32>, u64) {
        let mut looks = 0;
        let found = find(row.len() as u64, spread(row.len() as u64, samples), looks_max, &mut |at| {
            looks += 1;
            Ok(row[at as usize])
        });
        (found.unwrap(), looks)
    }

    // A year of markers, each look a connection and a walk through a filesystem: thousands are too many.
    #[test]
    fn few_looks_find_every_version_and_its_first_state() {
        let borders = [3, 400, 401, 402, 70_000, 999_999];
        let row: Vec<u32> =
            (0..1_000_000).map(|at| borders.iter().filter(|b| **b <= at).count() as u32).collect();
        let (found, looks) = play(&row, 64, 10_000);
        let firsts: Vec<u64> = found.runs.iter().map(|run| run.first).collect();
        assert_eq!(firsts, [0, 3, 400, 401, 402, 70_000, 999_999]);
        assert!(found.runs.windows(2).all(|pair| pair[0].last + 1 == pair[1].first && !found.cut_short));
        assert!(looks < 64 + 6 * 20, "{looks}");
    }

    // The file was there for an hour, in the middle: both ends say it never was.
    #[test]
    fn what_came_and_went_is_seen_at_a_sample() {
        let mut row = vec![0; 10_000];
        row[5_000..5_400].fill(1);
        let (found, _) = play(&row, 64, 1000);
        assert_eq!(found.runs[1], Run { first: 5_000, last: 5_399, version: 1 });
    }

    #[test]
    fn a_file_that_changes_all_the_time_ends_with_the_looks() {
        let row: Vec<u32> = (0..100_000).collect();
        let (found, looks) = play(&row, 64, 500);
        assert!(found.cut_short && looks == 500 && found.runs.len() == 500);
        assert_eq!(play(&[7], 64, 10).0.runs.len(), 1);
    }
}
