//! Makes durable what a receiver took in: at once, or on a thread of its own, so that reading goes on meanwhile.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use cdp_core::error::{IoContext, Result};

use crate::fault::{Fault, FaultKind};

/// Who syncs.
pub enum Syncer {
    /// Whoever asks, before it goes on: simulations, where there is one thread.
    Here,
    /// A thread.
    Beside(Beside),
}

/// What makes something durable.
pub type Sync = Box<dyn FnOnce() -> Result<()> + Send>;

/// A thread that syncs when it is asked to.
pub struct Beside {
    // None: it is to end.
    ask: Option<SyncSender<Sync>>,
    outcome: Receiver<Result<()>>,
    is_busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// One with a thread, which ends with it.
    pub fn beside() -> Result<Syncer> {
        let (ask, asked) = sync_channel::<Sync>(1);
        let (answer, outcome) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("cdp sync".to_owned())
            .spawn(move || {
                while let Ok(sync) = asked.recv() {
                    if answer.send(sync()).is_err() {
                        return;
                    }
                }
            })
            .at(|| "starting a thread that syncs".to_owned())?;
        Ok(Syncer::Beside(Beside { ask: Some(ask), outcome, is_busy: false, thread: Some(thread) }))
    }

    /// Has this done; nothing else is under way, see [`Syncer::look`].
    pub fn begin(&mut self, sync: Sync) -> Result<(), Fault> {
        let Syncer::Beside(beside) = self else { return Ok(sync()?) };
        let ask = beside.ask.as_ref().ok_or_else(gone)?;
        ask.try_send(sync).map_err(|_| gone())?;
        beside.is_busy = true;
        Ok(())
    }

    /// Whether nothing is under way; how it ended, if it failed.
    pub fn look(&mut self) -> Result<bool, Fault> {
        let Syncer::Beside(beside) = self else { return Ok(true) };
        if !beside.is_busy {
            return Ok(true);
        }
        match beside.outcome.try_recv() {
            Ok(outcome) => {
                beside.is_busy = false;
                outcome?;
                Ok(true)
            }
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that syncs panicked");
        }
    }
}

fn gone() -> Fault {
    Fault::new(FaultKind::Storage, "the thread that syncs is gone")
}
