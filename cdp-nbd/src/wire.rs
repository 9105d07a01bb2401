//! A client's socket, and the signal by which the server reaches the thread that waits on it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::limits::{SEND_LOOK_TIME, STALLED_TIME};

/// What a connection is told to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Order {
    /// Go on.
    Run,
    /// Answer what is in hand, refuse what comes, end soon.
    WindDown,
    /// End now.
    End,
}

/// Reaches a thread that waits: in `poll`, so that no data is lost and any kind of descriptor will do.
pub struct Signal {
    event: OwnedFd,
    order: AtomicU8,
    until: Mutex<Option<Instant>>,
}

impl Signal {
    /// A signal that says nothing yet.
    pub fn new() -> io::Result<Signal> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Signal { event, order: AtomicU8::new(Order::Run as u8), until: Mutex::new(None) })
    }

    /// Gives an order; one that is milder than an earlier one changes nothing.
    pub fn give(&self, order: Order, until: Option<Instant>) {
        if let Some(until) = until {
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        // The counter cannot overflow, and a full one would be readable just the same.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// The order that holds.
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            0 => Order::Run,
            1 => Order::WindDown,
            _ => Order::End,
        }
    }

    /// Until when winding down may take.
    pub fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `fd` is ready; true if so, false if an order came or the time is over.
    pub fn wait(&self, fd: impl AsFd, events: PollFlags, until: Option<Instant>) -> io::Result<Wake> {
        loop {
            let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
            let mut fds = [PollFd::new(&fd, events), PollFd::new(&self.event, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(Wake::Timeout),
                Ok(_) => {}
            }
            if !fds[1].revents().is_empty() {
                let _ = rustix::io::read(&self.event, &mut [0; 8]);
                return Ok(Wake::Order);
            }
            return Ok(Wake::Ready);
        }
    }
}

/// Why waiting ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// The descriptor is ready.
    Ready,
    /// An order came.
    Order,
    /// The time is over.
    Timeout,
}

/// What receiving brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// So many bytes, more than 0.
    Bytes(usize),
    /// The client has closed its side.
    End,
    /// An order came.
    Order,
    /// The time is over.
    Timeout,
}

/// A client's socket.
pub struct Wire<'a> {
    socket: OwnedFd,
    signal: &'a Signal,
}

impl<'a> Wire<'a> {
    /// A wire over a stream socket.
    pub fn new(socket: OwnedFd, signal: &'a Signal) -> Wire<'a> {
        Wire { socket, signal }
    }

    /// Receives what is there, or waits. With `wait_first` it is not even tried without waiting: at queue depth
    /// one there is nothing yet.
    pub fn receive(
        &self,
        buffer: &mut [u8],
        wait_first: bool,
        until: Option<Instant>,
    ) -> io::Result<Received> {
        let mut wait = wait_first;
        loop {
            if wait {
                match self.signal.wait(&self.socket, PollFlags::IN, until)? {
                    Wake::Order => return Ok(Received::Order),
                    Wake::Timeout => return Ok(Received::Timeout),
                    Wake::Ready => {}
                }
            }
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(Received::End),
                Ok((n, _)) => return Ok(Received::Bytes(n)),
                Err(Errno::AGAIN) => wait = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all bytes, however slowly the client takes them; ends with an error at `until`, when the server
    /// wants the connection to end, or when the server winds down and the client takes nothing for
    /// [`STALLED_TIME`].
    pub fn send(&self, mut bytes: &[u8], until: Option<Instant>) -> io::Result<()> {
        let mut stalled_since = None;
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    stalled_since = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let since = *stalled_since.get_or_insert_with(Instant::now);
                    let stalled = (self.signal.order() > Order::Run).then_some(since + STALLED_TIME);
                    let until = until.into_iter().chain(self.signal.until()).chain(stalled).min();
                    // The connection's other thread may be the one that the signal wakes.
                    let look = Instant::now() + SEND_LOOK_TIME;
                    match self.signal.wait(
                        &self.socket,
                        PollFlags::OUT,
                        until.into_iter().chain([look]).min(),
                    )? {
                        Wake::Ready => {}
                        Wake::Order | Wake::Timeout if self.signal.order() == Order::End => {
                            return Err(io::ErrorKind::ConnectionAborted.into());
                        }
                        Wake::Order => stalled_since = None,
                        Wake::Timeout if until.is_some_and(|until| until <= Instant::now()) => {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                        Wake::Timeout => {}
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Says goodbye: nothing more will be sent. What the client still sends is read for a moment, since closing
    /// with unread bytes would make TCP throw away the last replies.
    pub fn goodbye(&self, time: Duration) {
        if shutdown(&self.socket, Shutdown::Write).is_err() {
            return;
        }
        let until = Instant::now() + time;
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            match self.receive(&mut buffer, false, Some(until)) {
                Ok(Received::Bytes(_)) => {}
                _ => return,
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up by a little, so that a wait does not end just before its time and spin.
    let duration = duration + Duration::from_micros(50);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
