//! The lease as those who answer clients see it: held or not, now, and for which epoch. One for each seat.
//!
//! Legal answers: a request is answered with success only if the lease of one epoch was held when the request came in or
//! was waited for, and is held, still or again, when it is answered. In between nobody else can have answered: that takes
//! a higher epoch, and then this one is never held again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use cdp_core::io::Clock;

/// A lease. Cheap to ask; changed by the one thread that has the seat.
pub struct Lease {
    clock: Arc<dyn Clock>,
    // Until when on the clock; 0: not held. Read without the lock; written under it.
    until_ns: AtomicU64,
    epoch: AtomicU64,
    changed: (Mutex<String>, Condvar),
    is_closed: AtomicBool,
    is_hopeless: AtomicBool,
}

/// That the lease of an epoch was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    epoch: u64,
}

impl Lease {
    /// One that is not held.
    pub fn new(clock: Arc<dyn Clock>) -> Lease {
        let why = "the voters were not asked yet".to_owned();
        Lease {
            clock,
            until_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            changed: (Mutex::new(why), Condvar::new()),
            is_closed: AtomicBool::new(false),
            is_hopeless: AtomicBool::new(false),
        }
    }

    /// Its holder learns how it stands: for which epoch until when on the clock, or why it has none.
    pub fn set(&self, held: Option<(u64, u64)>, why: &str) {
        self.is_hopeless.store(false, Ordering::Release);
        self.put(held, why);
    }

    fn put(&self, held: Option<(u64, u64)>, why: &str) {
        let (lock, changed) = &self.changed;
        let mut known = lock.lock().expect("no panics under this lock");
        if *known != why {
            *known = why.to_owned();
        }
        let (epoch, until_ns) = held.unwrap_or((0, 0));
        if self.epoch.load(Ordering::Acquire) != epoch {
            // Not for a moment the new epoch with the old time.
            self.until_ns.store(0, Ordering::Release);
            self.epoch.store(epoch, Ordering::Release);
        }
        self.until_ns.store(until_ns, Ordering::Release);
        changed.notify_all();
    }

    /// As it stands it will not come back by itself: nobody waits for it until it is held again, or there is hope.
    pub fn give_up(&self, why: &str) {
        self.is_hopeless.store(true, Ordering::Release);
        self.put(None, why);
    }

    /// Nobody waits for it any more; as long as it is held it is.
    pub fn close(&self, why: &str) {
        self.is_closed.store(true, Ordering::Release);
        let (lock, changed) = &self.changed;
        *lock.lock().expect("no panics under this lock") = why.to_owned();
        changed.notify_all();
    }

    /// Whether it is held now, and for which epoch.
    pub fn held(&self) -> Option<Held> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let until_ns = self.until_ns.load(Ordering::Acquire);
        // Of one epoch both.
        let is_same = self.epoch.load(Ordering::Acquire) == epoch;
        (is_same && self.clock.elapsed_ns() < until_ns).then_some(Held { epoch })
    }

    /// Waits until it is held, so long at most.
    pub fn enter(&self, patience: Duration) -> Option<Held> {
        self.held().or_else(|| self.wait(patience, |_| true))
    }

    /// Whether it is held now, or within so long, for the same epoch. To be asked when all is done, before the answer.
    pub fn leave(&self, held: Held, patience: Duration) -> bool {
        self.held() == Some(held) || self.wait(patience, |now| now == held).is_some()
    }

    /// Nanoseconds that are left of it.
    pub fn left_ns(&self) -> u64 {
        self.until_ns.load(Ordering::Acquire).saturating_sub(self.clock.elapsed_ns())
    }

    /// Why it is not held, in words.
    pub fn why(&self) -> String {
        self.changed.0.lock().expect("no panics under this lock").clone()
    }

    fn wait(&self, patience: Duration, is_it: impl Fn(Held) -> bool) -> Option<Held> {
        let until_ns = self.clock.elapsed_ns().saturating_add(patience.as_nanos() as u64);
        let (lock, changed) = &self.changed;
        let mut known = lock.lock().expect("no panics under this lock");
        loop {
            if let Some(held) = self.held() {
                return Some(held).filter(|held| is_it(*held));
            }
            let left_ns = until_ns.saturating_sub(self.clock.elapsed_ns());
            let is_vain =
                [&self.is_closed, &self.is_hopeless].iter().any(|flag| flag.load(Ordering::Acquire));
            if left_ns == 0 || is_vain {
                return None;
            }
            let waited = changed.wait_timeout(known, Duration::from_nanos(left_ns));
            known = waited.expect("no panics under this lock").0;
        }
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::io::sim::SimClock;

    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    // A write that was under way while the other site answered must not be answered here when the lease comes back.
    #[test]
    fn an_answer_needs_the_lease_of_the_epoch_that_it_began_in() {
        let clock = SimClock::new(1);
        let lease = Lease::new(Arc::new(clock.clone()));
        assert_eq!(lease.enter(AT_ONCE), None);
        lease.set(Some((1, 1_000)), "");
        let held = lease.enter(AT_ONCE).unwrap();
        clock.advance(999);
        assert!(lease.leave(held, AT_ONCE) && lease.left_ns() == 1);
        clock.advance(1);
        assert!(!lease.leave(held, AT_ONCE), "it is over at its end, not behind it");
        lease.set(Some((1, 2_000)), "");
        assert!(lease.leave(held, AT_ONCE), "renewed: nobody else can have had it");
        lease.set(Some((3, 3_000)), "");
        assert!(!lease.leave(held, AT_ONCE), "another epoch lies between");
        lease.set(None, "the witness does not answer");
        assert_eq!((lease.enter(AT_ONCE), &lease.why()[..]), (None, "the witness does not answer"));
    }

    // A client of a site that lost hangs, though there is nothing to wait for.
    #[test]
    fn nobody_waits_in_vain() {
        let lease = Lease::new(Arc::new(cdp_core::io::SystemClock));
        lease.give_up("another site has it");
        assert_eq!(lease.enter(Duration::from_secs(3600)), None);
        lease.set(Some((2, u64::MAX)), "");
        assert_eq!(lease.enter(AT_ONCE), Some(Held { epoch: 2 }));
    }

    #[test]
    fn whoever_waits_hears_of_it() {
        let lease = Arc::new(Lease::new(Arc::new(cdp_core::io::SystemClock)));
        let waiter = lease.clone();
        let thread = std::thread::spawn(move || waiter.enter(Duration::from_secs(30)));
        lease.set(Some((4, u64::MAX)), "");
        assert_eq!(thread.join().unwrap(), Some(Held { epoch: 4 }));
    }
}
