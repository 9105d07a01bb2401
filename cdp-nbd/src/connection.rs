//! One client, from greeting to goodbye: a thread that moves bytes between a socket and the machines.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::budget::Buffer;
use crate::exports::Peer;
use crate::handshake::{Handshake, Negotiated, Opened, Step};
use crate::limits::{
    BUFFER_BYTES, BUFFER_BYTES_MIN, HANDSHAKE_REPLY_BYTES, HANDSHAKE_TIME, IDLE_TIME, LARGE_KEPT_ROUNDS,
    LARGE_STEP_BYTES, LARGE_WAIT, RECEIVE_EXACT_BYTES, ROUND_REQUESTS_MAX,
};
use crate::reply::ReplyBuffer;
use crate::request::{Decoded, Request, Session};
use crate::round::{Class, Executor, Outlet};
use crate::sender::Sender;
use crate::server::{Client, Shared};
use crate::wire::{Order, Received, Wire};

/// How long a client that is being disconnected is listened to, so that it gets our last words.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// Leftovers up to this size are moved to the front of the buffer before receiving more, in bytes.
const MOVE_BYTES: usize = 4096;

/// Serves one client until either side has had enough. Errors of the socket end it and mean nothing else.
pub fn serve(wire: &Wire<'_>, client: &Client, shared: &Shared) {
    let ended = match shake_hands(wire, client, shared) {
        Ok(Some((rest, negotiated, opened))) => {
            client.opened(&opened.export.canonical_name);
            tracing::debug!(peer = %client.peer, export = opened.export.canonical_name, "connected");
            thread::scope(|scope| {
                let sender = Sender::new(scope, wire, Arc::clone(&shared.budget));
                transmit(wire, sender, client, shared, &rest, negotiated, &opened)
            })
            // The export is dropped here, after the last reply.
        }
        Ok(None) => {
            wire.goodbye(GOODBYE_TIME);
            Ok(())
        }
        Err(error) => Err(error),
    };
    tracing::debug!(peer = %client.peer, ended = ?ended.err(), "disconnected");
}

type Entered = (Vec<u8>, Negotiated, Opened);

/// `None` when the connection is over; else what was agreed on, and bytes that came behind it.
fn shake_hands(wire: &Wire<'_>, client: &Client, shared: &Shared) -> io::Result<Option<Entered>> {
    let exports = shared.exports.as_ref();
    let option_time = shared.options.handshake_option_time;
    let began = Instant::now();
    let mut progress = began;
    let mut out = Vec::new();
    let mut handshake = Handshake::new(&mut out);
    let mut input = Vec::new();
    let mut grace = Grace::new(shared.options.shutdown_grace);
    loop {
        match client.signal.order() {
            Order::Run => {}
            Order::WindDown => handshake.shut_down(),
            Order::End => return Ok(None),
        }
        let mut used = 0;
        let entered = loop {
            if out.len() >= HANDSHAKE_REPLY_BYTES {
                wire.send(&out, Some(progress + option_time))?;
                out.clear();
            }
            match handshake.step(&input[used..], exports, &client.peer, &mut out) {
                Step::Need(_) => break None,
                Step::Consumed(n) => {
                    used += n;
                    progress = Instant::now();
                }
                Step::Close => {
                    wire.send(&out, Some(progress + option_time))?;
                    return Ok(None);
                }
                Step::Transmission(n, negotiated, opened) => {
                    used += n;
                    break Some((negotiated, opened));
                }
            }
        };
        input.drain(..used);
        let until = (progress + option_time).min(began + HANDSHAKE_TIME);
        wire.send(&out, Some(until))?;
        out.clear();
        if let Some((negotiated, opened)) = entered {
            return Ok(Some((input, negotiated, opened)));
        }
        let mut buffer = [0; 4096];
        let until = grace.until(client).into_iter().chain([until]).min();
        match wire.receive(&mut buffer, false, until)? {
            Received::Bytes(n) => input.extend_from_slice(&buffer[..n]),
            Received::End | Received::Timeout => return Ok(None),
            Received::Order => {}
        }
    }
}

/// How long a connection goes on after the server began to wind down.
struct Grace {
    time: Duration,
    until: Option<Instant>,
}

impl Grace {
    fn new(time: Duration) -> Grace {
        Grace { time, until: None }
    }

    fn until(&mut self, client: &Client) -> Option<Instant> {
        if self.until.is_none() && client.signal.order() > Order::Run {
            let grace = Instant::now() + self.time;
            self.until = client.signal.until().into_iter().chain([grace]).min();
        }
        self.until
    }
}

/// The receive buffer: requests are decoded in place from `start..end`.
struct Input {
    buffer: Buffer,
    start: usize,
    end: usize,
    // The newest receive filled all the room there was: more is waiting.
    was_full: bool,
}

impl Input {
    fn bytes(&mut self) -> &[u8] {
        &self.buffer.bytes()[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Makes room for a request of `need` bytes from `start` and returns up to where to receive. A large
    /// request whose next bytes the budget does not allow gives `None`.
    fn make_room(&mut self, need: usize) -> Option<usize> {
        let have = self.end - self.start;
        if self.start > 0 && (have <= MOVE_BYTES || self.start + need > self.buffer.len().min(BUFFER_BYTES)) {
            self.buffer.bytes().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        // The client sends faster than this size takes in.
        let wanted = if self.was_full { (self.buffer.len() * 2).min(BUFFER_BYTES) } else { 0 };
        let wanted = wanted.max(self.start + need).max(BUFFER_BYTES_MIN);
        self.buffer.grow(wanted, self.end);
        let needed = self.start + need;
        if needed - self.end <= RECEIVE_EXACT_BYTES && needed <= BUFFER_BYTES {
            return Some(self.buffer.len().min(BUFFER_BYTES));
        }
        if needed <= self.buffer.usable() {
            return Some(needed);
        }
        let step = needed.min(self.end.max(BUFFER_BYTES) + LARGE_STEP_BYTES);
        self.buffer.charge(step, LARGE_WAIT).then_some(step)
    }
}

/// Where replies go, and who counts them.
struct Socket<'a, 'scope, 'env> {
    sender: Sender<'scope, 'env>,
    client: &'a Client,
    shared: &'a Shared,
    received: Instant,
}

impl Outlet for Socket<'_, '_, '_> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sender.send(bytes)
    }

    fn send_large(&mut self, replies: &mut ReplyBuffer) -> io::Result<()> {
        self.sender.send_large(replies)
    }

    fn done(&mut self, class: Class, requests: u64, bytes: u64) {
        self.client.counters.add(class, requests, bytes);
        self.shared.latencies.record(class, requests, self.received.elapsed());
    }
}

fn transmit(
    wire: &Wire<'_>,
    sender: Sender<'_, '_>,
    client: &Client,
    shared: &Shared,
    rest: &[u8],
    negotiated: Negotiated,
    opened: &Opened,
) -> io::Result<()> {
    let Opened { export, bitmaps } = opened;
    let device = &export.device;
    let mut session = Session::new(negotiated, device.size_bytes(), device.is_read_only());
    let mut executor =
        Executor::new(Arc::clone(device), export.session, negotiated, Arc::clone(&shared.budget))
            .with_bitmaps(bitmaps.clone());
    let mut input =
        Input { buffer: Buffer::new(Arc::clone(&shared.budget)), start: 0, end: 0, was_full: false };
    if !rest.is_empty() {
        input.buffer.grow(rest.len(), 0);
        input.buffer.bytes()[..rest.len()].copy_from_slice(rest);
        input.end = rest.len();
    }
    let mut outlet = Socket { sender, client, shared, received: Instant::now() };
    let mut idle = false;
    let mut large_unused = 0u32;
    // Time spent waiting for a large payload, and bytes that came, while others wait for memory.
    let mut pace = (Duration::ZERO, 0);
    let mut grace = Grace::new(shared.options.shutdown_grace);
    loop {
        match client.signal.order() {
            Order::Run => {}
            Order::WindDown => session.shut_down(),
            Order::End => return Ok(()),
        }
        let round = decode(&mut session, &mut input, &mut executor, &mut outlet)?;
        let need = match round {
            Round::Over { goodbye } => {
                if goodbye {
                    outlet.sender.settle()?;
                    wire.goodbye(GOODBYE_TIME);
                }
                return Ok(());
            }
            Round::More => continue,
            Round::Need { bytes, .. } => bytes,
        };
        large_unused = if need > BUFFER_BYTES { 0 } else { large_unused.wrapping_add(1) };
        if large_unused.is_multiple_of(LARGE_KEPT_ROUNDS) || shared.budget.wanted() {
            executor.release_large();
            if input.buffer.is_large() && input.is_empty() {
                input.buffer.shrink(0);
            }
        }
        let Some(limit) = input.make_room(need) else {
            refuse_front(&mut session, &mut input);
            continue;
        };
        let end = input.end;
        let now = Instant::now();
        let grace_until = grace.until(client);
        if grace_until.is_some_and(|until| until <= now) {
            return Ok(());
        }
        let until = if idle { grace_until } else { grace_until.into_iter().chain([now + IDLE_TIME]).min() };
        let wait_first = matches!(round, Round::Need { requests: 1, .. }) && input.is_empty();
        match wire.receive(&mut input.buffer.bytes()[end..limit], wait_first, until)? {
            Received::Bytes(n) => {
                outlet.received = Instant::now();
                input.end += n;
                input.was_full = input.end == input.buffer.len();
                idle = false;
                // Whoever lets a large payload drip must not keep the memory that others wait for.
                let in_part = input.end - input.start < need && input.buffer.is_large();
                if !in_part || !shared.budget.wanted() {
                    pace = (Duration::ZERO, 0);
                    continue;
                }
                pace = (pace.0 + now.elapsed(), pace.1 + n);
                if pace.0 >= IDLE_TIME {
                    if pace.1 < LARGE_STEP_BYTES {
                        refuse_front(&mut session, &mut input);
                    }
                    pace = (Duration::ZERO, 0);
                }
            }
            Received::End => return Ok(()),
            Received::Timeout => {
                executor.release();
                if input.is_empty() {
                    (input.start, input.end) = (0, 0);
                    input.buffer.shrink(0);
                    outlet.sender.settle()?;
                    outlet.sender.release();
                    idle = true;
                } else if input.buffer.is_large() && shared.budget.wanted() {
                    // It stopped in the middle, and others need the memory.
                    refuse_front(&mut session, &mut input);
                }
            }
            Received::Order => {}
        }
    }
}

/// What is left to do after all complete requests were carried out.
enum Round {
    /// So many bytes are needed for the next request; so many requests there were.
    Need { bytes: usize, requests: usize },
    /// There may be more complete ones.
    More,
    /// The connection is over; perhaps with words that the client should get.
    Over { goodbye: bool },
}

fn decode(
    session: &mut Session,
    input: &mut Input,
    executor: &mut Executor,
    outlet: &mut Socket<'_, '_, '_>,
) -> io::Result<Round> {
    let mut requests: Vec<Request<'_>> = Vec::new();
    let (start, end) = (input.start, input.end);
    let bytes = input.bytes();
    let mut used = 0;
    let round = loop {
        if requests.len() == ROUND_REQUESTS_MAX {
            break Round::More;
        }
        match session.decode(&bytes[used..]) {
            Decoded::Need(need) => break Round::Need { bytes: need, requests: requests.len() },
            Decoded::Skipped(n) => used += n,
            Decoded::Request(n, request) => {
                used += n;
                requests.push(request);
            }
            Decoded::LastRequest(request) => {
                requests.push(request);
                break Round::Over { goodbye: true };
            }
            Decoded::Close => break Round::Over { goodbye: false },
        }
    };
    if !requests.is_empty() {
        executor.run(&requests, outlet)?;
    }
    drop(requests);
    input.start = start + used;
    if input.start == end {
        (input.start, input.end) = (0, 0);
    }
    Ok(round)
}

/// Gives up the large request of which a part has come, and its memory.
fn refuse_front(session: &mut Session, input: &mut Input) {
    let used = session.refuse_front(input.bytes());
    debug_assert_eq!(input.start + used, input.end, "only the rest of one request is in a large buffer");
    (input.start, input.end) = (0, 0);
    input.buffer.shrink(0);
}

/// For messages of threads.
pub fn thread_name(peer: &Peer) -> String {
    match peer {
        Peer::Unix { pid, .. } => format!("nbd {pid}"),
        Peer::Tcp(address) => format!("nbd {}", address.port()),
        Peer::Stdio => "nbd stdio".to_owned(),
    }
}
