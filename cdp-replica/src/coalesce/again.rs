//! When a link that lives has fallen behind once more, so far that the newest state should go first again: then the connection
//! ends, and the next one begins with that.

/// It is looked so often, in nanoseconds of elapsed time.
const LOOK_NS: u64 = 1_000_000_000;
/// So much has to wait for so long: a burst that the line carries in a moment is no outage.
const OUTAGE_NS: u64 = 10_000_000_000;

/// Watches what waits for the replica.
#[derive(Default)]
pub(crate) struct Again {
    looked_ns: u64,
    // The least that waited since it was decided how this connection begins, or since the history arrived at the last newest
    // state; none before the first look.
    least_bytes: Option<u64>,
    // Since when too much waits.
    since_ns: Option<u64>,
}

impl Again {
    /// A newest state was sent: what comes behind it is a new outage.
    pub(crate) fn was_sent(&mut self) {
        (self.least_bytes, self.since_ns) = (Some(0), None);
    }

    /// Whether so much has come to wait, for ten seconds, that it should begin again: more than `bytes_min` over twice the least
    /// that waited. `waiting` counts what was not sent, in bytes.
    pub(crate) fn is_due(&mut self, bytes_min: u64, now_ns: u64, waiting: impl FnOnce() -> u64) -> bool {
        if now_ns.saturating_sub(self.looked_ns) < LOOK_NS {
            return false;
        }
        self.looked_ns = now_ns;
        let waiting = waiting();
        let least = self.least_bytes.map_or(waiting, |least| least.min(waiting));
        self.least_bytes = Some(least);
        // What history alone was thought better for has to double, or it would be asked again and again.
        if waiting <= least.saturating_mul(2).saturating_add(bytes_min) {
            self.since_ns = None;
            return false;
        }
        now_ns.saturating_sub(*self.since_ns.get_or_insert(now_ns)) >= OUTAGE_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that begins anew all the time sends nothing; one that never does leaves the second site behind for hours.
    #[test]
    fn it_begins_again_when_more_waits_than_did() {
        let mut again = Again::default();
        let mut at = 0;
        // Whether it begins again after so many seconds with so much.
        let mut wait = |again: &mut Again, waiting: u64, seconds: u64| {
            (0..seconds).any(|_| {
                at += LOOK_NS;
                again.is_due(100, at, || waiting)
            })
        };
        assert!(!wait(&mut again, 500, 50), "that it was decided about when it began");
        assert!(!wait(&mut again, 1100, 50) && !wait(&mut again, 1101, 10) && wait(&mut again, 1101, 1));
        assert!(!wait(&mut again, 0, 1) && !wait(&mut again, 101, 9), "a burst");
        assert!(!wait(&mut again, 100, 1) && !wait(&mut again, 101, 10) && wait(&mut again, 101, 1));
        again.was_sent();
        assert!(!wait(&mut again, 101, 10) && wait(&mut again, 101, 1));
        assert!(!again.is_due(0, at + 1, || unreachable!("it was looked just now")));
    }
}
