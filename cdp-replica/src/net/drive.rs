//! Runs one side of a link on a socket until it ends.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;

use crate::fault::{Fault, FaultKind};
use crate::receiver::Receiver;
use crate::sender::Sender;

/// Read from the socket at a time, in bytes: TLS would ask for 4 KiB.
const READ_BYTES: usize = 256 << 10;
/// A buffer of what goes out that grew beyond this is not kept where little goes out, in bytes.
const KEPT_BYTES: usize = 256 << 10;
/// So much is taken in before what came is worked on, in bytes.
const TURN_BYTES: usize = 2 << 20;
/// What waits for the time is looked at so often.
const WAIT: Duration = Duration::from_millis(10);
/// The other side hears why it ends, if it listens for so long.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// A limited sender may be ahead of its rate by so much of a second.
const AHEAD: f64 = 0.1;

/// One side of a link.
pub trait Side {
    /// See [`Sender::output`].
    fn output(&mut self) -> &mut Vec<u8>;
    /// See [`Sender::receive`].
    fn receive(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault>;
    /// See [`Sender::poll`].
    fn poll(&mut self, now_ns: u64) -> Result<(), Fault>;
}

impl Side for Sender {
    fn output(&mut self) -> &mut Vec<u8> {
        Sender::output(self)
    }
    fn receive(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault> {
        Sender::receive(self, bytes, now_ns)
    }
    fn poll(&mut self, now_ns: u64) -> Result<(), Fault> {
        Sender::poll(self, now_ns)
    }
}

impl Side for Receiver {
    fn output(&mut self) -> &mut Vec<u8> {
        Receiver::output(self)
    }
    fn receive(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault> {
        Receiver::receive(self, bytes, now_ns)
    }
    fn poll(&mut self, now_ns: u64) -> Result<(), Fault> {
        Receiver::poll(self, now_ns)
    }
}

/// A connection at work.
pub struct Drive<'a> {
    socket: &'a TcpStream,
    tls: Connection,
    began: Instant,
    // So many bytes a second go out at most, now; 0 = as fast as it goes.
    limit_bytes_per_s: Arc<AtomicU64>,
    // What came from the socket, and TLS did not ask for yet.
    arrived: BufReader<&'a TcpStream>,
    leaving: Leaving,
}

/// What the side said, on its way to TLS. While it goes, the side fills the other buffer: nothing is moved up.
#[derive(Default)]
struct Leaving {
    bytes: Vec<u8>,
    // Up to where TLS took it.
    taken: usize,
}

impl Leaving {
    fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    /// What TLS may take now, at most so many bytes. Once all of it went, what the side said meanwhile is next.
    fn next(&mut self, output: &mut Vec<u8>, bytes_max: usize) -> &[u8] {
        if self.is_empty() {
            self.taken = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES && output.len() < KEPT_BYTES {
                self.bytes = Vec::new();
            }
            std::mem::swap(&mut self.bytes, output);
        }
        let left = &self.bytes[self.taken..];
        &left[..left.len().min(bytes_max)]
    }
}

impl<'a> Drive<'a> {
    /// A connection on `socket`, which does not block. Time is counted from `began`; `limit_bytes_per_s` go out at most, 0 = as
    /// fast as it goes.
    pub fn new(
        socket: &'a TcpStream,
        tls: Connection,
        began: Instant,
        limit_bytes_per_s: Arc<AtomicU64>,
    ) -> Drive<'a> {
        let arrived = BufReader::with_capacity(READ_BYTES, socket);
        Drive { socket, tls, began, limit_bytes_per_s, arrived, leaving: Leaving::default() }
    }

    /// Runs until it ends. `look` is called every turn with the side and the bytes that went out since the last one.
    pub fn run<S: Side>(
        &mut self,
        side: &mut S,
        stop: &AtomicBool,
        look: &mut dyn FnMut(&mut S, u64),
    ) -> Fault {
        let mut budget = Budget::new(self.limit_bytes_per_s.clone());
        loop {
            match self.turn(side, &mut budget, look) {
                Ok(()) if stop.load(Ordering::Relaxed) => {
                    let fault = Fault::new(FaultKind::Closing, "this side is going down");
                    self.farewell(side);
                    return fault;
                }
                Ok(()) => {}
                Err(fault) => {
                    self.farewell(side);
                    return fault;
                }
            }
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn turn<S: Side>(
        &mut self,
        side: &mut S,
        budget: &mut Budget,
        look: &mut dyn FnMut(&mut S, u64),
    ) -> Result<(), Fault> {
        side.poll(self.now_ns())?;
        let sent = self.send(side, budget.allowed()).map_err(lost)?;
        budget.spend(sent);
        let received = self.receive(side)?;
        look(side, sent as u64);
        if sent == 0 && received == 0 {
            self.wait().map_err(lost)?;
        }
        Ok(())
    }

    /// Gives what there is to TLS, and what that makes of it to the socket. How many bytes of ours went.
    fn send<S: Side>(&mut self, side: &mut S, allowed: usize) -> std::io::Result<usize> {
        let mut sent = 0;
        loop {
            let left = self.leaving.next(side.output(), allowed.saturating_sub(sent));
            let taken = if left.is_empty() { 0 } else { self.tls.writer().write(left)? };
            self.leaving.taken += taken;
            sent += taken;
            let mut is_full = false;
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        is_full = true;
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if is_full || taken == 0 {
                return Ok(sent);
            }
        }
    }

    fn receive<S: Side>(&mut self, side: &mut S) -> Result<usize, Fault> {
        let mut received = 0;
        while received < TURN_BYTES {
            match self.tls.read_tls(&mut self.arrived) {
                Ok(0) => return Err(Fault::new(FaultKind::Closing, "the other side closed the connection")),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(error)),
            }
            let state = self
                .tls
                .process_new_packets()
                .map_err(|error| Fault::new(FaultKind::Closing, format!("TLS: {error}")))?;
            if state.plaintext_bytes_to_read() > 0 {
                let now_ns = self.now_ns();
                let mut reader = self.tls.reader();
                loop {
                    let bytes = match reader.fill_buf() {
                        Ok(bytes) => bytes,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(lost(error)),
                    };
                    let read = bytes.len();
                    if read == 0 {
                        break;
                    }
                    received += read;
                    side.receive(bytes, now_ns)?;
                    reader.consume(read);
                }
            }
            if state.peer_has_closed() {
                return Err(Fault::new(FaultKind::Closing, "the other side closed the connection"));
            }
        }
        Ok(received)
    }

    /// Until something can be read, what is written can go on, or it is time to look.
    fn wait(&mut self) -> std::io::Result<()> {
        let mut flags = PollFlags::IN;
        if self.tls.wants_write() {
            flags |= PollFlags::OUT;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(WAIT.subsec_nanos()) };
        match poll(&mut [PollFd::new(self.socket, flags)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is left to say goes out, if the other side takes it soon; then the end of TLS, behind which nobody listens;
    /// then what still comes is read for a moment: closing with unread bytes would take back the last words.
    fn farewell<S: Side>(&mut self, side: &mut S) {
        let until = Instant::now() + FAREWELL_TIME;
        let mut is_ending = false;
        while Instant::now() < until {
            if self.send(side, usize::MAX).is_err() {
                return;
            }
            let is_said = side.output().is_empty() && self.leaving.is_empty() && !self.tls.wants_write();
            match (is_said, is_ending) {
                (true, true) => break,
                (true, false) => {
                    self.tls.send_close_notify();
                    is_ending = true;
                }
                (false, _) if self.wait().is_err() => return,
                (false, _) => {}
            }
        }
        if self.socket.shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let mut unheard = [0; 4096];
        while Instant::now() < until {
            match (&mut &*self.socket).read(&mut unheard) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.wait().is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn lost(error: std::io::Error) -> Fault {
    Fault::new(FaultKind::Closing, format!("the connection is lost: {error}"))
}

/// What a limited sender may send.
struct Budget {
    limit_bytes_per_s: Arc<AtomicU64>,
    credit: f64,
    counted: Instant,
}

impl Budget {
    fn new(limit_bytes_per_s: Arc<AtomicU64>) -> Budget {
        Budget { limit_bytes_per_s, credit: 0.0, counted: Instant::now() }
    }

    fn allowed(&mut self) -> usize {
        let limit = self.limit_bytes_per_s.load(Ordering::Relaxed);
        if limit == 0 {
            self.counted = Instant::now();
            return usize::MAX;
        }
        let limit = limit as f64;
        let elapsed = self.counted.elapsed();
        self.counted = Instant::now();
        self.credit = (self.credit + limit * elapsed.as_secs_f64()).min((limit * AHEAD).max(1.0));
        self.credit as usize
    }

    fn spend(&mut self, bytes: usize) {
        // What went without a limit is not made up for.
        if self.limit_bytes_per_s.load(Ordering::Relaxed) > 0 {
            self.credit -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TLS takes what it has room for, while the side says more. Were a buffer exchanged before all of it went, frames would
    /// go out in pieces of each other, and the other side would end the connection; were a large one kept for ever, a thousand
    /// quiet links would hold gigabytes.
    #[test]
    fn what_leaves_stays_in_order_and_large_buffers_go() {
        let (mut leaving, mut output, mut gone) = (Leaving::default(), Vec::new(), Vec::new());
        let mut said = Vec::new();
        for turn in 0..1000_usize {
            let more: Vec<u8> = (0..turn % 7 * 31).map(|n| (n * turn) as u8).collect();
            output.extend_from_slice(&more);
            said.extend_from_slice(&more);
            let taken = leaving.next(&mut output, turn % 5 * 17).to_vec();
            leaving.taken += taken.len();
            gone.extend_from_slice(&taken);
        }
        while !output.is_empty() || !leaving.is_empty() {
            let taken = leaving.next(&mut output, usize::MAX).to_vec();
            leaving.taken += taken.len();
            gone.extend_from_slice(&taken);
        }
        assert!(gone == said && !said.is_empty());
        output.resize(KEPT_BYTES * 4, 1);
        for _ in 0..3 {
            leaving.taken += leaving.next(&mut output, usize::MAX).len();
            output.push(1);
        }
        assert!(output.capacity() <= KEPT_BYTES && leaving.bytes.capacity() <= KEPT_BYTES);
    }
}
