//! The simulated clock: stands still until it is told to go.

use std::sync::{Arc, Mutex, PoisonError};

use super::chance::Chance;
use crate::io::Clock;

/// Where every simulated clock begins: 2025-11-21 10:00:00 UTC, in nanoseconds since 1970.
pub const WALL_START_NS: u64 = 1_763_719_200_000_000_000;

/// A clock under a test's hand. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct SimClock {
    inner: Arc<Mutex<Hands>>,
}

#[derive(Debug)]
struct Hands {
    wall_ns: u64,
    elapsed_ns: u64,
    tick_ns: u64,
    chance: Chance,
}

impl SimClock {
    /// A clock at [`WALL_START_NS`] whose random names depend only on `seed`.
    pub fn new(seed: u64) -> SimClock {
        let hands =
            Hands { wall_ns: WALL_START_NS, elapsed_ns: 0, tick_ns: 0, chance: Chance::new(seed ^ 0xc10c) };
        SimClock { inner: Arc::new(Mutex::new(hands)) }
    }

    /// Lets `ns` nanoseconds go by, on both faces.
    pub fn advance(&self, ns: u64) {
        self.with(|hands| {
            hands.wall_ns = hands.wall_ns.saturating_add(ns);
            hands.elapsed_ns = hands.elapsed_ns.saturating_add(ns);
        });
    }

    /// Steps the wall face only, forward or back, as an administrator or NTP does.
    pub fn step_wall(&self, ns: i64) {
        self.with(|hands| hands.wall_ns = hands.wall_ns.saturating_add_signed(ns));
    }

    /// Sets the wall face only.
    pub fn set_wall(&self, wall_ns: u64) {
        self.with(|hands| hands.wall_ns = wall_ns);
    }

    /// From now on each look at the wall face lets so many nanoseconds go by (0 at first).
    pub fn set_tick(&self, ns: u64) {
        self.with(|hands| hands.tick_ns = ns);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Hands) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clock for SimClock {
    fn wait(&self, ns: u64) {
        self.advance(ns);
    }

    fn wall_ns(&self) -> u64 {
        self.with(|hands| {
            let now = hands.wall_ns;
            hands.wall_ns = now.saturating_add(hands.tick_ns);
            hands.elapsed_ns = hands.elapsed_ns.saturating_add(hands.tick_ns);
            now
        })
    }

    fn elapsed_ns(&self) -> u64 {
        self.with(|hands| hands.elapsed_ns)
    }

    fn random(&self) -> u128 {
        self.with(|hands| u128::from(hands.chance.bits()) << 64 | u128::from(hands.chance.bits()))
    }
}
