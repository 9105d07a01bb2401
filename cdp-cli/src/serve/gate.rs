//! A live volume that is answered only under a lease, where the sites vote on which of them answers.
//!
//! Reads, too: a site that was cut off and goes on showing what it has would show a client what another site has changed
//! long ago. Views of the past say which instant they are of, and are not asked.

use std::sync::Arc;
use std::time::Duration;

use cdp_core::device::{Change, Device, Read, Stretch};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{Lsn, SessionId};
use cdp_replica::vote::lease::{Held, Lease};

/// A request waits so long for the lease, when it comes in and again before it is answered: longer than a voter takes to
/// start again, and less than clients wait. Then it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// A client that comes in waits so long at most, and is sent away then: it may have another address to try.
pub const DOOR_PATIENCE: Duration = Duration::from_secs(5);

/// A device behind a lease.
pub struct Gated {
    inner: Arc<dyn Device>,
    name: String,
    lease: Arc<Lease>,
}

impl Gated {
    /// `inner` is answered as long as `lease` is held; `name` is what people call it.
    pub fn new(inner: Arc<dyn Device>, name: &str, lease: Arc<Lease>) -> Gated {
        Gated { inner, name: name.to_owned(), lease }
    }

    fn enter(&self) -> Result<Held> {
        self.lease.enter(PATIENCE).ok_or_else(|| refusal(&self.name, &self.lease))
    }

    fn leave(&self, held: Held) -> Result<()> {
        if self.lease.leave(held, PATIENCE) { Ok(()) } else { Err(refusal(&self.name, &self.lease)) }
    }
}

/// Why a client is not answered.
pub fn refusal(name: &str, lease: &Lease) -> Error {
    let context = format!("volume {name} is not answered here: {}", lease.why());
    Error::new(Kind::Closed, context)
        .hint("connect to the other site, or again when `cdp status` shows the lease here")
}

impl Device for Gated {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn apply(&self, session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        let held = match self.enter() {
            Ok(held) => held,
            Err(error) => return results.extend(changes.iter().map(|_| Err(error.duplicate()))),
        };
        let before = results.len();
        self.inner.apply(session, changes, results);
        // They are in the history, as writes may be that were never answered; whoever goes on decides.
        if let Err(error) = self.leave(held) {
            results[before..].iter_mut().for_each(|result| *result = Err(error.duplicate()));
        }
    }

    fn flush(&self) -> Result<()> {
        let held = self.enter()?;
        self.inner.flush()?;
        self.leave(held)
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        let outcome = self.enter().and_then(|held| {
            self.inner.read(reads);
            self.leave(held)
        });
        if let Err(error) = outcome {
            reads.iter_mut().for_each(|read| read.result = Err(error.duplicate()));
        }
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        let held = self.enter()?;
        let stretches = self.inner.extents(offset, len, stretches_max)?;
        self.leave(held)?;
        Ok(stretches)
    }

    fn is_gated(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use cdp_core::io::sim::SimClock;

    use super::*;

    /// Takes as long as it is told to, and notes what it did.
    struct Slow {
        clock: SimClock,
        takes_ns: u64,
        done: Mutex<u32>,
        lease: Arc<Lease>,
    }

    impl Device for Slow {
        fn size_bytes(&self) -> u64 {
            4096
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn apply(&self, _: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
            self.flush().unwrap();
            results.extend(changes.iter().map(|_| Ok(Lsn(1))));
        }
        fn flush(&self) -> Result<()> {
            *self.done.lock().unwrap() += 1;
            self.clock.advance(self.takes_ns);
            // Nobody shall wait here for a clock that stands still.
            self.lease.close("it is over");
            Ok(())
        }
        fn read(&self, _: &mut [Read<'_>]) {
            self.flush().unwrap();
        }
        fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Stretch>> {
            self.flush()?;
            Ok(Vec::new())
        }
    }

    fn outcomes(held_ns: Option<u64>, takes_ns: u64) -> (Vec<bool>, u32) {
        let mut answered = Vec::new();
        let mut done = 0;
        for what in 0..4 {
            let clock = SimClock::new(1);
            let lease = Arc::new(Lease::new(Arc::new(clock.clone())));
            match held_ns {
                Some(until) => lease.set(Some((1, until)), ""),
                None => lease.close("it was never there"),
            }
            let slow = Arc::new(Slow { clock, takes_ns, done: Mutex::new(0), lease: lease.clone() });
            let gated = Gated::new(slow.clone(), "disk", lease);
            answered.push(match what {
                0 => {
                    let mut results = Vec::new();
                    gated.apply(SessionId(1), &[Change::Trim { offset: 0, len: 512 }], &mut results);
                    results.len() == 1 && results[0].is_ok()
                }
                1 => gated.flush().is_ok(),
                2 => {
                    let mut buffer = [0; 512];
                    let mut reads = [Read { offset: 0, buffer: &mut buffer, result: Ok(()) }];
                    gated.read(&mut reads);
                    reads[0].result.is_ok()
                }
                _ => gated.extents(0, 512, 1).is_ok(),
            });
            done += *slow.done.lock().unwrap();
        }
        (answered, done)
    }

    // The site was cut off while its disk was slow: the other one answers by now, and this answer would be the second.
    #[test]
    fn nothing_is_answered_when_the_lease_ended_meanwhile() {
        assert_eq!(outcomes(Some(100), 99), (vec![true; 4], 4));
        assert_eq!(outcomes(Some(100), 100), (vec![false; 4], 4));
        assert_eq!(outcomes(None, 1), (vec![false; 4], 0), "nothing is even begun");
    }
}
