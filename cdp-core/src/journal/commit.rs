//! Group commit: concurrent flushes share one sync. The flushing thread itself syncs, as leader, for all who
//! came before it started; those who come later wait and one of them leads the next round.

use std::sync::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::ids::Lsn;

/// What flushes agree on.
pub struct Commit {
    state: Mutex<State>,
    round_over: Condvar,
}

struct State {
    durable: Lsn,
    leading: bool,
    // Failed rounds so far, and how the newest failed.
    failures: u64,
    failure: Option<Error>,
}

impl Commit {
    /// Everything up to `durable` is durable already.
    pub fn new(durable: Lsn) -> Commit {
        let state = State { durable, leading: false, failures: 0, failure: None };
        Commit { state: Mutex::new(state), round_over: Condvar::new() }
    }

    /// The newest LSN that is known to be durable.
    pub fn durable(&self) -> Lsn {
        self.state.lock().expect("no panics under this lock").durable
    }

    /// Returns when `target` is durable. `sync` makes durable what is staged when it is called and says
    /// through which LSN. A round that fails fails everyone who waited for it.
    pub fn wait(&self, target: Lsn, sync: impl Fn() -> Result<Lsn>) -> Result<()> {
        let mut state = self.state.lock().expect("no panics under this lock");
        let failures_before = state.failures;
        loop {
            if state.failures != failures_before {
                return Err(state.failure.as_ref().expect("set with the count").duplicate());
            }
            if state.durable >= target {
                return Ok(());
            }
            if state.leading {
                state = self.round_over.wait(state).expect("no panics under this lock");
                continue;
            }
            state.leading = true;
            drop(state);
            let outcome = sync();
            state = self.state.lock().expect("no panics under this lock");
            state.leading = false;
            match outcome {
                Ok(through) => state.durable = state.durable.max(through),
                Err(error) => {
                    state.failures += 1;
                    state.failure = Some(error);
                }
            }
            self.round_over.notify_all();
        }
    }

    /// Notes that everything up to `lsn` became durable in another way.
    pub fn advance(&self, lsn: Lsn) {
        let mut state = self.state.lock().expect("no panics under this lock");
        state.durable = state.durable.max(lsn);
        self.round_over.notify_all();
    }
}
