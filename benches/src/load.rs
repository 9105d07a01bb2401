//! Runs a load: connections, depth and a cycle of steps, for a fixed time, with what it cost both sides.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client::{Address, Connection, check};
use crate::host::{self, Disk};
use crate::stamp::Ledger;
use crate::wire::{Command, Request};

/// Where on the device a request goes. Every connection keeps to its own share of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Anywhere.
    Random,
    /// Behind the previous request, round and round.
    Sequential,
    /// The same within the first few MiB: a log.
    Log,
}

/// One step of a cycle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// So many reads of `len` bytes.
    Read(u32, Place, u32),
    /// So many writes of `len` bytes.
    Write(u32, Place, u32),
    /// A write with FUA.
    WriteFua(Place, u32),
    /// Reads, in so many of 100 cases, else writes; random places.
    Mixed(u32, u32),
    /// A trim of `len` bytes, one behind the other.
    Trim(u32),
    /// A flush.
    Flush,
    /// Waits for everything in flight.
    Wait,
}

/// What a row counts and times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Requests.
    Requests,
    /// Whole cycles (the cycle ends with [`Step::Wait`]): commits, transactions.
    Cycles,
    /// Bytes; times are those of requests.
    Bytes,
}

/// A load on one export.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections, each with a thread.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// What each connection does over and over.
    pub cycle: &'static [Step],
    /// What is counted.
    pub unit: Unit,
}

/// The server and device a load runs against.
pub struct Target<'a> {
    /// Where it listens.
    pub address: &'a Address,
    /// Export name.
    pub export: &'a str,
    /// Process whose CPU is the server's.
    pub server_pid: u32,
    /// The disk under it, where known.
    pub disk: Option<&'a Disk>,
    /// What the device must hold; kept up to date.
    pub ledger: &'a Ledger,
    /// Whether to agree on structured replies.
    pub structured: bool,
}

/// How long a load runs.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Before anything counts.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
    /// Seed of the random places.
    pub seed: u64,
}

/// What came out.
pub struct Outcome {
    /// Units per second.
    pub rate: f64,
    /// Time of each request or cycle, in nanoseconds.
    pub latency: Histogram<u64>,
    /// CPU of the client, in microseconds for each request.
    pub client_cpu_us: f64,
    /// CPU of the server, in microseconds for each request.
    pub server_cpu_us: f64,
    /// Bytes to disk for each byte written, the flush afterwards included; whole machine.
    pub disk_bytes_per_byte: Option<f64>,
    /// How long the flush afterwards took.
    pub settle: Duration,
}

/// The longest time a histogram can hold, in nanoseconds; a longer one counts as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Size of the regions that [`Place::Log`] goes round in, all connections together, in bytes.
const LOG_BYTES: u64 = 16 << 20;

/// An empty histogram of times in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds, tried by every test")]
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds are valid")
}

#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    end: Instant,
}

/// What one connection did.
struct Tally {
    latency: Histogram<u64>,
    requests: u64,
    cycles: u64,
    bytes: u64,
    /// Of the whole run, warm-up included.
    bytes_written: u64,
}

/// Runs `load`. An NBD error or a lost connection ends it with an error.
pub fn run(load: &Load, target: &Target<'_>, timing: Timing) -> io::Result<Outcome> {
    let mut runners = Vec::with_capacity(load.connections);
    for number in 0..load.connections {
        let connection = Connection::open(target.address, target.export, load.depth, target.structured)?;
        runners.push(Runner::new(connection, load, number, target.ledger, timing.seed));
    }
    let disk_before = target.disk.and_then(Disk::bytes_written);
    let start = Instant::now() + timing.warm_up;
    let window = Window { start, end: start + timing.measured };

    let (results, client_cpu, server_cpu) = thread::scope(|scope| {
        let threads: Vec<_> =
            runners.iter_mut().map(|runner| scope.spawn(move || runner.run(window))).collect();
        let sleep_until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
        sleep_until(window.start);
        let (client, server) = (host::own_cpu(), host::process_cpu(target.server_pid));
        sleep_until(window.end);
        let client = host::own_cpu().saturating_sub(client);
        let server = host::process_cpu(target.server_pid).saturating_sub(server);
        let results: Vec<io::Result<Tally>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a load thread panicked"))))
            .collect();
        (results, client, server)
    });

    let mut latency = histogram();
    let (mut requests, mut cycles, mut bytes, mut bytes_written) = (0, 0, 0, 0);
    for result in results {
        let tally = result?;
        latency.add(&tally.latency).map_err(io::Error::other)?;
        requests += tally.requests;
        cycles += tally.cycles;
        bytes += tally.bytes;
        bytes_written += tally.bytes_written;
    }
    let settle = settle(&mut runners)?;
    let disk_bytes_per_byte = match (disk_before, target.disk.and_then(Disk::bytes_written)) {
        (Some(before), Some(after)) if bytes_written > 0 => {
            Some((after - before) as f64 / bytes_written as f64)
        }
        _ => None,
    };
    let counted = match load.unit {
        Unit::Requests => requests,
        Unit::Cycles => cycles,
        Unit::Bytes => bytes,
    };
    let per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / requests.max(1) as f64;
    Ok(Outcome {
        rate: counted as f64 / timing.measured.as_secs_f64(),
        latency,
        client_cpu_us: per_request(client_cpu),
        server_cpu_us: per_request(server_cpu),
        disk_bytes_per_byte,
        settle,
    })
}

/// Nothing of this run may burden the next one.
fn settle(runners: &mut [Runner<'_>]) -> io::Result<Duration> {
    let started = Instant::now();
    if let Some(runner) = runners.first_mut()
        && !runner.connection.info().is_read_only()
    {
        runner.connection.call(Request { command: Command::Flush, fua: false, offset: 0, len: 0 }, 0)?;
    }
    Ok(started.elapsed())
}

/// Writes the whole device once, in order, so that every row finds data; then flushes.
pub fn fill(target: &Target<'_>, size: u64) -> io::Result<()> {
    const PIECE: u32 = 1 << 20;
    let mut connection = Connection::open(target.address, target.export, 4, target.structured)?;
    let mut first_error = Ok(());
    let mut offset = 0;
    while offset < size || connection.in_flight() > 0 {
        while offset < size && connection.has_room() {
            let len = PIECE.min((size - offset) as u32);
            let request = Request { command: Command::Write, fua: false, offset, len };
            connection.submit(request, target.ledger.take_sequences(1))?;
            offset += u64::from(len);
        }
        connection.push()?;
        connection.pull(|done| note(target.ledger, &done.request, done.tag, done.error, &mut first_error))?;
    }
    first_error?;
    connection.call(Request { command: Command::Flush, fua: false, offset: 0, len: 0 }, 0)
}

/// Reads the whole device and compares it with the ledger.
pub fn verify(target: &Target<'_>, size: u64) -> io::Result<()> {
    const PIECE: u32 = 1 << 20;
    let mut connection = Connection::open(target.address, target.export, 4, target.structured)?;
    connection.keep_data = true;
    let stamper = crate::stamp::Stamper::default();
    let mut first_error = Ok(());
    let mut offset = 0;
    while offset < size || connection.in_flight() > 0 {
        while offset < size && connection.has_room() {
            let len = PIECE.min((size - offset) as u32);
            connection.submit(Request { command: Command::Read, fua: false, offset, len }, 0)?;
            offset += u64::from(len);
        }
        connection.push()?;
        connection.pull(|done| {
            let result = check(done.error, done.request).and_then(|()| {
                let checked = target.ledger.check(&stamper, done.request.offset, done.data);
                checked.map_err(|mismatch| io::Error::other(format!("wrong data: {mismatch}")))
            });
            if first_error.is_ok() {
                first_error = result;
            }
        })?;
    }
    first_error
}

fn note(ledger: &Ledger, request: &Request, tag: u64, error: u32, first_error: &mut io::Result<()>) {
    match check(error, *request) {
        Ok(()) => match request.command {
            Command::Write => ledger.written(request.offset, request.len as usize, tag),
            Command::Trim | Command::WriteZeroes => ledger.zeroed(request.offset, request.len as usize),
            Command::Read | Command::Flush => {}
        },
        Err(error) if first_error.is_ok() => *first_error = Err(error),
        Err(_) => {}
    }
}

/// One connection going through its cycle.
struct Runner<'a> {
    connection: Connection,
    ledger: &'a Ledger,
    cycle: &'static [Step],
    unit: Unit,
    /// This connection's share of the device, and of the log.
    share: std::ops::Range<u64>,
    log: std::ops::Range<u64>,
    next_sequential: u64,
    next_log: u64,
    random: u64,
}

impl<'a> Runner<'a> {
    fn new(connection: Connection, load: &Load, number: usize, ledger: &'a Ledger, seed: u64) -> Runner<'a> {
        const ALIGN: u64 = 1 << 20;
        let cut = |bytes: u64, number: u64| bytes * number / load.connections as u64 / ALIGN * ALIGN;
        let size = connection.info().size;
        let share = cut(size, number as u64)..cut(size, number as u64 + 1);
        let log = share.start..share.end.min(share.start + LOG_BYTES / load.connections as u64);
        Runner {
            connection,
            ledger,
            cycle: load.cycle,
            unit: load.unit,
            next_sequential: share.start,
            next_log: log.start,
            share,
            log,
            random: (seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1,
        }
    }

    fn run(&mut self, window: Window) -> io::Result<Tally> {
        let mut tally = Tally { latency: histogram(), requests: 0, cycles: 0, bytes: 0, bytes_written: 0 };
        let mut first_error = Ok(());
        let (mut step, mut times, mut cycle_started) = (0, 0, Instant::now());
        let mut ending = false;
        loop {
            while !ending && self.connection.has_room() {
                if self.cycle[step] == Step::Wait {
                    if self.connection.in_flight() > 0 {
                        break;
                    }
                    times = 1;
                } else {
                    let request = self.request(self.cycle[step]);
                    let tag =
                        if request.command == Command::Write { self.ledger.take_sequences(1) } else { 0 };
                    self.connection.submit(request, tag)?;
                    times += 1;
                }
                if times < repeats(self.cycle[step]) {
                    continue;
                }
                (step, times) = ((step + 1) % self.cycle.len(), 0);
                if step == 0 && self.unit == Unit::Cycles {
                    let now = Instant::now();
                    if now >= window.start && now < window.end {
                        tally.cycles += 1;
                        let _ = tally.latency.record((now - cycle_started).as_nanos() as u64);
                    }
                    cycle_started = now;
                    ending = now >= window.end;
                }
            }
            self.connection.push()?;
            if self.connection.in_flight() == 0 && ending {
                break;
            }
            let mut now = None;
            self.connection.pull(|done| {
                let now = *now.get_or_insert_with(Instant::now);
                note(self.ledger, &done.request, done.tag, done.error, &mut first_error);
                if done.request.command == Command::Write {
                    tally.bytes_written += u64::from(done.request.len);
                }
                if now >= window.start && now < window.end {
                    tally.requests += 1;
                    tally.bytes += u64::from(done.request.len);
                    if self.unit != Unit::Cycles {
                        let _ = tally.latency.record((now - done.sent).as_nanos() as u64);
                    }
                }
            })?;
            let late = now.is_some_and(|now| now >= window.end);
            ending |= first_error.is_err() || (late && self.unit != Unit::Cycles);
        }
        first_error.map(|()| tally)
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn request(&mut self, step: Step) -> Request {
        let plain = |command, offset, len| Request { command, fua: false, offset, len };
        match step {
            Step::Read(_, place, len) => plain(Command::Read, self.any_place(place, u64::from(len)), len),
            Step::Write(_, place, len) => plain(Command::Write, self.place(place, len), len),
            Step::WriteFua(place, len) => {
                Request { fua: true, ..plain(Command::Write, self.place(place, len), len) }
            }
            Step::Mixed(reads, len) => {
                let command =
                    if self.random() % 100 < u64::from(reads) { Command::Read } else { Command::Write };
                plain(command, self.place(Place::Random, len), len)
            }
            Step::Trim(len) => plain(Command::Trim, self.place(Place::Sequential, len), len),
            Step::Flush | Step::Wait => plain(Command::Flush, 0, 0),
        }
    }

    /// Never a range that is in flight: the order of overlapping requests is nobody's promise, and the ledger
    /// must know what is there.
    fn place(&mut self, place: Place, len: u32) -> u64 {
        loop {
            let offset = self.any_place(place, u64::from(len));
            if !self.connection.is_busy(offset, len) {
                return offset;
            }
        }
    }

    fn any_place(&mut self, place: Place, len: u64) -> u64 {
        let next = |next: &mut u64, range: &std::ops::Range<u64>| {
            if *next + len > range.end {
                *next = range.start;
            }
            *next += len;
            *next - len
        };
        match place {
            Place::Sequential => next(&mut self.next_sequential, &self.share),
            Place::Log => next(&mut self.next_log, &self.log),
            Place::Random => {
                let slots = (self.share.end - self.share.start) / len;
                self.share.start + self.random() % slots * len
            }
        }
    }
}

fn repeats(step: Step) -> u32 {
    match step {
        Step::Read(times, ..) | Step::Write(times, ..) => times,
        _ => 1,
    }
}
