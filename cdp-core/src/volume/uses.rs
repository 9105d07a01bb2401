//! Who is using the files of an opened volume at the moment; and that nobody does any more once it is closed.
//!
//! The same files may be opened anew then, in their place or in another one: that instance folds, recycles and removes
//! them, and knows nothing of what was opened from this one. So whoever reads or replaces a file says so first and is refused
//! once the volume is closed, and closing waits for whoever was let in before. On the way of a read that is one addition
//! before it and one behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Volume;
use crate::error::{Error, Kind, Result};

/// Set once nobody is let in any more, for good.
const ENDED: u64 = 1 << 63;
/// Set while somebody waits for those who are in, and nobody is let in for it. Who gives up waiting takes it back, whoever else
/// waits: he sets it again. The rest counts those who are in.
const WANTED: u64 = 1 << 62;
const SHUT: u64 = ENDED | WANTED;
/// So often whoever waits looks.
const POLL: Duration = Duration::from_micros(100);

/// Counts them.
#[derive(Default)]
pub(super) struct Uses(AtomicU64);

/// As long as it lives, the files are the volume's own. Not to be kept while waiting for anything but files.
pub struct Use<'a>(&'a Uses);

impl Use<'_> {
    /// Whether somebody waits for this one to come to an end: whoever reads much gives up here.
    pub fn is_unwanted(&self) -> bool {
        self.0.is_ended()
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

impl Uses {
    fn enter(&self) -> Option<Use<'_>> {
        // Counted before the look: who finds it open is waited for.
        let entered = Use(self);
        (self.0.fetch_add(1, Ordering::Acquire) & SHUT == 0).then_some(entered)
    }

    fn is_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SHUT != 0
    }

    /// Lets nobody in any more, and waits for those who are in, so long at most. Whether all have gone; if not, it is as
    /// before.
    fn end_within(&self, limit: Duration) -> bool {
        let since = Instant::now();
        while !self.try_end() {
            if since.elapsed() >= limit {
                self.stop_waiting();
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Lets nobody in, and, if nobody is in, for good. Said again each time: somebody else may wait too, and give up.
    fn try_end(&self) -> bool {
        let state = self.0.fetch_or(WANTED, Ordering::AcqRel) | WANTED;
        // Nobody came in between, and nobody who gives up meanwhile opens it again.
        state & !SHUT == 0
            && self.0.compare_exchange(state, SHUT, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn stop_waiting(&self) {
        self.0.fetch_and(!WANTED, Ordering::AcqRel);
    }
}

impl Volume {
    /// Before its files are touched.
    ///
    /// # Errors
    /// `Closed` once the volume was closed.
    pub(crate) fn use_files(&self) -> Result<Use<'_>> {
        self.uses.enter().ok_or_else(|| self.is_over())
    }

    /// Those who read without asking for an error first get it when they look something up.
    pub(super) fn try_use_files(&self) -> Option<Use<'_>> {
        self.uses.enter()
    }

    /// The error about a volume that was closed while somebody had it, or a view of it, in hand.
    pub(crate) fn is_over(&self) -> Error {
        Error::new(Kind::Closed, format!("volume {} was closed, to be opened anew if it stays", self.name()))
            .hint("connect again")
    }

    /// The second half of [`Volume::close`], for whoever keeps others from waiting for one another: within `limit`, or it is
    /// as before, and `false`.
    pub(crate) fn end_uses_within(&self, limit: Duration) -> bool {
        self.uses.end_within(limit)
    }

    /// Waits for as long as it takes: a read ends when the disk answers.
    pub(super) fn end_uses(&self) {
        while !self.uses.end_within(Duration::MAX) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A read that began before a volume was closed must not see what the next instance does with its files.
    #[test]
    fn whoever_was_let_in_is_waited_for() {
        let uses = Uses::default();
        let inside = uses.enter().unwrap();
        assert!(!uses.end_within(Duration::ZERO), "nobody waited");
        assert!(!inside.is_unwanted() && uses.enter().is_some(), "it is not as before");
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| uses.end_within(Duration::MAX));
            while !inside.is_unwanted() {
                std::thread::yield_now();
            }
            assert!(uses.enter().is_none(), "somebody came in behind the end");
            assert!(!ended.is_finished());
            drop(inside);
            assert!(ended.join().unwrap());
        });
        assert!(uses.enter().is_none() && uses.end_within(Duration::ZERO));
    }

    // Two wait for the same reader, one of them with a limit. It is over just when the other has what he waited for: nobody may
    // come in behind a close that has returned.
    #[test]
    fn who_gives_up_opens_nothing_that_was_closed() {
        let uses = Uses::default();
        let inside = uses.enter().unwrap();
        assert!(!uses.try_end() && !uses.try_end());
        drop(inside);
        assert!(uses.try_end(), "the close");
        uses.stop_waiting();
        assert!(uses.enter().is_none(), "somebody came in behind the end");
        // The other way round: he gives up first, somebody comes in, and the close waits for him too.
        let uses = Uses::default();
        let inside = uses.enter().unwrap();
        assert!(!uses.try_end() && !uses.try_end());
        uses.stop_waiting();
        let second = uses.enter().unwrap();
        drop(inside);
        assert!(!uses.try_end());
        drop(second);
        assert!(uses.try_end() && uses.enter().is_none());
    }
}
