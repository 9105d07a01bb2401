//! The real clock and the kernel's random bits.

use std::hash::{BuildHasher, RandomState};

use rustix::rand::GetRandomFlags;
use rustix::time::{ClockId, clock_gettime};

use super::Clock;

/// Time and chance of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ns(&self) -> u64 {
        nanoseconds(ClockId::Realtime)
    }

    fn elapsed_ns(&self) -> u64 {
        nanoseconds(ClockId::Boottime)
    }

    fn wait(&self, ns: u64) {
        std::thread::sleep(std::time::Duration::from_nanos(ns));
    }

    fn random(&self) -> u128 {
        let mut bytes = [0u8; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(read) => filled += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return stand_in(),
            }
        }
        u128::from_ne_bytes(bytes)
    }
}

/// A clock before 1970 reads as 1970.
fn nanoseconds(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Where getrandom is refused: the standard library seeds its hashers from whatever chance the system has.
/// Good enough for names that must not repeat, and only ever used for those.
fn stand_in() -> u128 {
    let word = || RandomState::new().hash_one(nanoseconds(ClockId::Boottime));
    u128::from(word()) << 64 | u128::from(word())
}
