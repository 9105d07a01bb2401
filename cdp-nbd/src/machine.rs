//! The server's side of one connection without a socket, a clock or threads: bytes in, bytes out. Tests and fuzzers
//! drive the same machines with it that connections do.

use std::io;
use std::sync::Arc;

use crate::budget::Budget;
use crate::exports::{Exports, OpenExport, Peer};
use crate::handshake::{Handshake, Opened, Step};
use crate::limits::LARGE_BYTES_TOTAL;
use crate::request::{Decoded, Request, Session};
use crate::round::{Class, Executor, Outlet};

enum Phase {
    Handshake(Box<Handshake>),
    Transmission { session: Session, executor: Box<Executor>, _export: OpenExport },
    Closed,
}

/// A connection that lives in memory.
pub struct Machine {
    exports: Arc<dyn Exports>,
    phase: Phase,
    input: Vec<u8>,
}

struct Gather<'a>(&'a mut Vec<u8>);

impl Outlet for Gather<'_> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn done(&mut self, _: Class, _: u64, _: u64) {}
}

impl Machine {
    /// A new connection; its greeting is appended to `out`.
    pub fn new(exports: Arc<dyn Exports>, out: &mut Vec<u8>) -> Machine {
        let phase = Phase::Handshake(Box::new(Handshake::new(out)));
        Machine { exports, phase, input: Vec::new() }
    }

    /// Takes bytes from the client and appends the replies to `out`. Returns whether the connection goes on.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        self.input.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(n) = self.step(used, out) {
            used += n;
        }
        self.input.drain(..used);
        !matches!(self.phase, Phase::Closed)
    }

    /// Handles what is there from `from` on; `None` when more is needed.
    fn step(&mut self, from: usize, out: &mut Vec<u8>) -> Option<usize> {
        let input = &self.input[from..];
        match &mut self.phase {
            Phase::Closed => None,
            Phase::Handshake(handshake) => {
                match handshake.step(input, self.exports.as_ref(), &Peer::Stdio, out) {
                    Step::Need(_) => None,
                    Step::Consumed(n) => Some(n),
                    Step::Close => {
                        self.phase = Phase::Closed;
                        None
                    }
                    Step::Transmission(n, negotiated, Opened { export, bitmaps }) => {
                        let device = &export.device;
                        let session = Session::new(negotiated, device.size_bytes(), device.is_read_only());
                        let budget = Budget::new(LARGE_BYTES_TOTAL);
                        let executor = Executor::new(Arc::clone(device), export.session, negotiated, budget)
                            .with_bitmaps(bitmaps);
                        let executor = Box::new(executor);
                        self.phase = Phase::Transmission { session, executor, _export: export };
                        Some(n)
                    }
                }
            }
            Phase::Transmission { session, executor, .. } => {
                let mut requests: Vec<Request<'_>> = Vec::new();
                let mut used = 0;
                let open = loop {
                    match session.decode(&input[used..]) {
                        Decoded::Need(_) => break true,
                        Decoded::Skipped(n) => used += n,
                        Decoded::Request(n, request) => {
                            used += n;
                            requests.push(request);
                        }
                        Decoded::LastRequest(request) => {
                            requests.push(request);
                            break false;
                        }
                        Decoded::Close => break false,
                    }
                };
                let ran = executor.run(&requests, &mut Gather(out));
                if !open || ran.is_err() {
                    self.phase = Phase::Closed;
                }
                (used > 0).then_some(used)
            }
        }
    }
}
