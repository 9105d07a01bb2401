//! Counts of what a run did, seeds, and how long it may take.

use std::fmt;
use std::time::{Duration, Instant};

use cdp_core::io::sim::{FaultCounts, SimDisk};

/// What was done: printed by every test, so that an empty test shows.
pub struct Tally {
    pub crashes: u64,
    pub views: u64,
    pub counts: FaultCounts,
    began: Instant,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { crashes: 0, views: 0, counts: FaultCounts::default(), began: Instant::now() }
    }
}

impl Tally {
    /// Takes over what a disk counted. Once for each disk, at its end.
    pub fn take(&mut self, disk: &SimDisk) {
        self.counts += disk.counts();
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.began.elapsed().as_secs_f64();
        let rate = self.crashes as f64 / seconds.max(1e-9);
        write!(
            f,
            "{} crashes in {seconds:.1} s, {rate:.0} per second, {} views compared; {:?}",
            self.crashes, self.views, self.counts
        )
    }
}

/// The seed of this run: `CDP_SIM_SEED`, else the test's own.
pub fn seed(own: u64) -> u64 {
    std::env::var("CDP_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(own)
}

/// How long to go on with fresh seeds after the ordinary ones: `CDP_SIM_SECONDS`, else not at all.
pub fn soak_seconds() -> Duration {
    let seconds = std::env::var("CDP_SIM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Duration::from_secs(seconds)
}

/// Runs `one` with `count` seeds from the test's first on, then for as long as a soak lasts. A broken promise,
/// or a panic on the way, names the seed and the command that repeats it.
pub fn with_seeds(
    test: &str,
    first: u64,
    count: u64,
    tally: &mut Tally,
    mut one: impl FnMut(u64, &mut Tally) -> Result<(), String>,
) {
    let repeats = std::env::var("CDP_SIM_SEED").is_ok();
    let (first, count) = (seed(first), if repeats { 1 } else { count });
    let soak = soak_seconds();
    for number in 0.. {
        if number >= count && (repeats || tally.elapsed() >= soak) {
            break;
        }
        let seed = first + number;
        let told = Told { test, seed };
        if let Err(broken) = one(seed, tally) {
            panic!("{broken}");
        }
        std::mem::forget(told);
    }
}

/// Says how to repeat, should a panic drop it.
struct Told<'a> {
    test: &'a str,
    seed: u64,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!(
            "seed {}; repeat with: CDP_SIM_SEED={} cargo test -p cdp-core --test crash {} -- --nocapture",
            self.seed, self.seed, self.test
        );
    }
}
