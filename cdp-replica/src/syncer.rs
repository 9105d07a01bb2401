//! Makes durable what a receiver appended: at once, or on a thread of its own, so that reading goes on meanwhile.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use cdp_core::device::Device;
use cdp_core::error::{IoContext, Result};
use cdp_core::volume::Volume;

use crate::fault::{Fault, FaultKind};

/// Who syncs.
pub enum Syncer {
    /// Whoever asks, before it goes on: simulations, where there is one thread.
    Here,
    /// A thread.
    Beside(Beside),
}

/// A thread that syncs one volume when it is asked to.
pub struct Beside {
    // None: it is to end.
    ask: Option<SyncSender<Weak<Volume>>>,
    outcome: Receiver<Result<()>>,
    is_busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// One with a thread, which ends with it.
    pub fn beside() -> Result<Syncer> {
        let (ask, asked) = sync_channel::<Weak<Volume>>(1);
        let (answer, outcome) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("cdp sync".to_owned())
            .spawn(move || {
                while let Ok(volume) = asked.recv() {
                    let synced = volume.upgrade().map_or(Ok(()), |volume| volume.flush());
                    if answer.send(synced).is_err() {
                        return;
                    }
                }
            })
            .at(|| "starting a thread that syncs".to_owned())?;
        Ok(Syncer::Beside(Beside { ask: Some(ask), outcome, is_busy: false, thread: Some(thread) }))
    }

    /// Everything that was appended so far is to become durable. `false`: a sync is under way, ask again.
    pub fn begin(&mut self, volume: &Arc<Volume>) -> Result<bool, Fault> {
        let Syncer::Beside(beside) = self else {
            volume.flush()?;
            return Ok(true);
        };
        if beside.is_busy {
            return Ok(false);
        }
        let ask = beside.ask.as_ref().ok_or_else(gone)?;
        ask.try_send(Arc::downgrade(volume)).map_err(|_| gone())?;
        beside.is_busy = true;
        Ok(true)
    }

    /// How a sync that was begun earlier ended, if it failed.
    pub fn look(&mut self) -> Result<(), Fault> {
        let Syncer::Beside(beside) = self else { return Ok(()) };
        match beside.outcome.try_recv() {
            Ok(outcome) => {
                beside.is_busy = false;
                Ok(outcome?)
            }
            Err(TryRecvError::Empty) => Ok(()),
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
