//! Sends large replies beside the connection's thread, which meanwhile reads what the next reply needs.
//!
//! One reply buffer is under way at a time and everything else waits for it, so the client sees the same bytes in
//! the same order. The thread is started by the first large reply: most connections never have one.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use crate::budget::{Budget, Buffer};
use crate::limits::SEND_BESIDE_BYTES_MIN;
use crate::reply::ReplyBuffer;
use crate::wire::Wire;

/// The way of all replies of one connection to its socket.
pub struct Sender<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    wire: &'env Wire<'env>,
    budget: Arc<Budget>,
    line: Option<Line>,
    under_way: bool,
    spare: Option<ReplyBuffer>,
}

/// To and from the thread that sends.
struct Line {
    out: SyncSender<ReplyBuffer>,
    back: Receiver<(ReplyBuffer, io::Result<()>)>,
}

impl<'scope, 'env> Sender<'scope, 'env> {
    /// A sender whose thread, if it comes to that, ends with `scope`.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        wire: &'env Wire<'env>,
        budget: Arc<Budget>,
    ) -> Sender<'scope, 'env> {
        Sender { scope, wire, budget, line: None, under_way: false, spare: None }
    }

    /// Sends all bytes behind what is under way.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.settle()?;
        self.wire.send(bytes, None)
    }

    /// Sends what is in `replies` and leaves it empty: at once if it is small; else it is exchanged for an empty
    /// buffer and is sent beside the caller, who hears of an error the next time.
    pub fn send_large(&mut self, replies: &mut ReplyBuffer) -> io::Result<()> {
        if replies.len() < SEND_BESIDE_BYTES_MIN || replies.buffer.is_large() {
            self.send(replies.bytes())?;
            replies.clear();
            return Ok(());
        }
        self.settle()?;
        let spare = self.spare.take();
        let empty = spare.unwrap_or_else(|| ReplyBuffer::new(Buffer::new(Arc::clone(&self.budget))));
        let full = std::mem::replace(replies, empty);
        match self.line()?.out.send(full) {
            Ok(()) => self.under_way = true,
            Err(_) => return Err(gone()),
        }
        Ok(())
    }

    /// Waits until nothing is under way.
    pub fn settle(&mut self) -> io::Result<()> {
        let Some(line) = self.line.as_ref().filter(|_| self.under_way) else { return Ok(()) };
        let (mut buffer, sent) = line.back.recv().map_err(|_| gone())?;
        self.under_way = false;
        buffer.clear();
        self.spare = Some(buffer);
        sent
    }

    /// Gives back the memory that is not in use.
    pub fn release(&mut self) {
        self.spare = None;
    }

    fn line(&mut self) -> io::Result<&Line> {
        match &mut self.line {
            Some(line) => Ok(line),
            none => {
                let (out, full) = sync_channel::<ReplyBuffer>(1);
                let (done, back) = sync_channel(1);
                let wire = self.wire;
                let send_all = move || {
                    for mut replies in full {
                        let sent = wire.send(replies.bytes(), None);
                        if done.send((replies, sent)).is_err() {
                            return;
                        }
                    }
                };
                thread::Builder::new().name("nbd send".into()).spawn_scoped(self.scope, send_all)?;
                Ok(none.insert(Line { out, back }))
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that sends replies is gone")
}
