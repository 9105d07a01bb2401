//! The store's one clock: UTC nanoseconds that never repeat and never go back.

use std::sync::Arc;
use std::sync::Mutex;

use crate::ids::Timestamp;
use crate::io::Clock;

/// A difference between wall time and elapsed time that counts as a step, in nanoseconds. Slewing by NTP
/// stays far below it between two looks.
pub const STEP_NS_MIN: u64 = 500_000_000;

/// A step of the wall clock that was noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockStep {
    /// Where the wall clock would have been.
    pub expected_ns: u64,
    /// Where it is.
    pub wall_ns: u64,
    /// Elapsed clock when it was noticed.
    pub elapsed_ns: u64,
}

/// Gives timestamps for all volumes of a store: `max(wall, last + 1 ns)`.
pub struct StoreClock {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    last: u64,
    // Wall and elapsed time at the last look for steps.
    wall: u64,
    elapsed: u64,
}

impl StoreClock {
    /// A clock whose timestamps are all newer than `last`.
    pub fn new(clock: Arc<dyn Clock>, last: Timestamp) -> StoreClock {
        let state = State { last: last.0, wall: clock.wall_ns(), elapsed: clock.elapsed_ns() };
        StoreClock { clock, state: Mutex::new(state) }
    }

    /// Takes `count` (at least 1) consecutive timestamps; gives the first.
    pub fn take(&self, count: u64) -> Timestamp {
        let mut state = self.state.lock().expect("no panics under this lock");
        let first = self.clock.wall_ns().max(state.last + 1);
        state.last = first + count - 1;
        Timestamp(first)
    }

    /// Whatever is taken from now on is newer than `timestamp`.
    pub fn pass(&self, timestamp: Timestamp) {
        let mut state = self.state.lock().expect("no panics under this lock");
        state.last = state.last.max(timestamp.0);
    }

    /// The time now, as a point in the store's time: everything that has a timestamp has at most this one.
    pub fn now(&self) -> Timestamp {
        let state = self.state.lock().expect("no panics under this lock");
        Timestamp(self.clock.wall_ns().max(state.last))
    }

    /// Elapsed nanoseconds, see [`Clock::elapsed_ns`].
    pub fn elapsed_ns(&self) -> u64 {
        self.clock.elapsed_ns()
    }

    /// Random bits for names.
    pub fn random(&self) -> u128 {
        self.clock.random()
    }

    /// Whether the wall clock stepped since the last look.
    pub fn look_for_step(&self) -> Option<ClockStep> {
        let mut state = self.state.lock().expect("no panics under this lock");
        let (wall, elapsed) = (self.clock.wall_ns(), self.clock.elapsed_ns());
        let expected = state.wall + elapsed.saturating_sub(state.elapsed);
        (state.wall, state.elapsed) = (wall, elapsed);
        (wall.abs_diff(expected) >= STEP_NS_MIN).then_some(ClockStep {
            expected_ns: expected,
            wall_ns: wall,
            elapsed_ns: elapsed,
        })
    }
}
