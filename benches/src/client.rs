//! One NBD connection that keeps many requests in flight from one thread: batched sends straight from the
//! request buffers, large receives, replies in any order, simple or structured.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use crate::stamp::{Payload, Stamper};
use crate::wire::{self, Command, ExportInfo, REQUEST_HEADER_BYTES, Request, protocol_error};

/// A server that stays silent for so long is taken for hung.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes asked for with one receive.
const RECEIVE_BYTES: usize = 512 << 10;
/// Pieces handed to one send; the kernel takes at most 1024.
const SEND_PIECES_MAX: usize = 256;
/// Requests in flight on one connection.
const DEPTH_MAX: usize = 1024;
/// An error text in a structured reply longer than this, in bytes, is a protocol error.
const ERROR_TEXT_BYTES_MAX: u32 = 64 << 10;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// An answered request.
pub struct Completion<'a> {
    /// What was asked.
    pub request: Request,
    /// What [`Connection::submit`] was told, to find the caller's own notes again.
    pub tag: u64,
    /// The NBD error, 0 when it worked.
    pub error: u32,
    /// When the batch it was in was handed to the kernel.
    pub sent: Instant,
    /// The bytes of a successful read if [`Connection::keep_data`] is set, else empty.
    pub data: &'a [u8],
}

struct Slot {
    request: Request,
    tag: u64,
    header: [u8; REQUEST_HEADER_BYTES],
    payload: Payload,
    data: Vec<u8>,
    sent: Instant,
    busy: bool,
    error: u32,
    /// Bytes of a read that have arrived.
    arrived: u64,
}

/// What the next received bytes are.
enum Expecting {
    Reply,
    /// Bytes of a read: the slot, where in its data, how many are left; whether the request ends with them.
    Data {
        slot: usize,
        at: usize,
        left: usize,
        last: bool,
    },
    /// Bytes nobody needs; whether this slot's request ends with them.
    Skip {
        slot: usize,
        left: usize,
        last: bool,
    },
}

/// A connection in the transmission phase.
pub struct Connection {
    socket: OwnedFd,
    info: ExportInfo,
    stamper: Stamper,
    slots: Vec<Slot>,
    free: Vec<usize>,
    batch: Vec<usize>,
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    expecting: Expecting,
    /// Whether the bytes of reads are kept for [`Completion::data`]; otherwise they are received and dropped.
    pub keep_data: bool,
}

impl Connection {
    /// Connects to `export` for up to `depth` (1 to 1024) requests in flight.
    pub fn open(address: &Address, export: &str, depth: usize, structured: bool) -> io::Result<Connection> {
        let (socket, info): (OwnedFd, _) = match address {
            Address::Unix(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                let info = wire::handshake(&mut stream, export, structured)?;
                (stream.into(), info)
            }
            Address::Tcp(address) => {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_nodelay(true)?;
                let info = wire::handshake(&mut stream, export, structured)?;
                (stream.into(), info)
            }
        };
        let depth = depth.clamp(1, DEPTH_MAX);
        let now = Instant::now();
        let idle = Request { command: Command::Flush, fua: false, offset: 0, len: 0 };
        let slot = || Slot {
            request: idle,
            tag: 0,
            header: [0; REQUEST_HEADER_BYTES],
            payload: Payload::default(),
            data: Vec::new(),
            sent: now,
            busy: false,
            error: 0,
            arrived: 0,
        };
        Ok(Connection {
            socket,
            info,
            stamper: Stamper::default(),
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            batch: Vec::with_capacity(depth),
            incoming: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
            expecting: Expecting::Reply,
            keep_data: false,
        })
    }

    /// What the server said of the export.
    pub fn info(&self) -> ExportInfo {
        self.info
    }

    /// The maker of write data, also needed to check it.
    pub fn stamper(&self) -> &Stamper {
        &self.stamper
    }

    /// Whether another request may be submitted now.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests submitted and not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether a request in flight touches this range; used to keep verified writes apart.
    pub fn is_busy(&self, offset: u64, len: u32) -> bool {
        self.slots.iter().any(|slot| {
            slot.busy
                && slot.request.offset < offset + u64::from(len)
                && offset < slot.request.offset + u64::from(slot.request.len)
        })
    }

    /// Queues a request for the next [`Connection::push`]. The data of a write is stamped with `tag`.
    pub fn submit(&mut self, request: Request, tag: u64) -> io::Result<()> {
        let index = self.free.pop().ok_or_else(|| io::Error::other("more requests than the depth allows"))?;
        let slot = &mut self.slots[index];
        slot.request = request;
        slot.tag = tag;
        slot.header = request.header(index as u64);
        slot.busy = true;
        slot.error = 0;
        slot.arrived = 0;
        if request.command == Command::Write {
            self.stamper.fill(&mut slot.payload, request.offset, request.len as usize, tag);
        }
        self.batch.push(index);
        Ok(())
    }

    /// Sends everything queued.
    pub fn push(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let batch = std::mem::take(&mut self.batch);
        for &index in &batch {
            self.slots[index].sent = now;
        }
        for part in batch.chunks(SEND_PIECES_MAX / 2) {
            self.send(part)?;
        }
        self.batch = batch;
        self.batch.clear();
        Ok(())
    }

    /// Never blocks in a send while replies could be waiting: two sides that only send would wait for ever.
    fn send(&mut self, part: &[usize]) -> io::Result<()> {
        let total: usize = part.iter().map(|&index| self.slots[index].wire_bytes()).sum();
        let mut sent = 0;
        while sent < total {
            let result = {
                let mut pieces = Vec::with_capacity(part.len() * 2);
                for &index in part {
                    let slot = &self.slots[index];
                    pieces.push(IoSlice::new(&slot.header));
                    if slot.request.command == Command::Write {
                        pieces.push(IoSlice::new(slot.payload.bytes(slot.request.len as usize)));
                    }
                }
                let mut rest = &mut pieces[..];
                IoSlice::advance_slices(&mut rest, sent);
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                sendmsg(&self.socket, rest, &mut SendAncillaryBuffer::default(), flags)
            };
            match result {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::OUT)];
                    match poll(&mut fds, None) {
                        Ok(_) => {}
                        Err(Errno::INTR) => continue,
                        Err(error) => return Err(error.into()),
                    }
                    if fds[0].revents().contains(PollFlags::IN) {
                        self.receive_more()?;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives once, growing the buffer when it is full (only while a send is stuck).
    fn receive_more(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.incoming.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.incoming.len() {
            self.incoming.resize(self.end + RECEIVE_BYTES, 0);
        }
        loop {
            match recv(&self.socket, &mut self.incoming[self.end..], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up"));
                }
                Ok((_, count)) => {
                    self.end += count;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until at least one request is answered and hands every answer that is there to `done`.
    /// Returns at once when nothing is in flight. What is queued must have been pushed.
    pub fn pull(&mut self, mut done: impl FnMut(Completion<'_>)) -> io::Result<()> {
        if self.in_flight() == 0 {
            return Ok(());
        }
        let before = self.free.len();
        loop {
            while self.advance(&mut done)? {}
            if self.free.len() > before {
                return Ok(());
            }
            self.receive_more()?;
        }
    }

    /// Takes one step through the received bytes; `false` when more are needed.
    fn advance(&mut self, done: &mut impl FnMut(Completion<'_>)) -> io::Result<bool> {
        let available = self.end - self.start;
        match self.expecting {
            Expecting::Reply => self.reply(done),
            Expecting::Data { slot, at, left, last } => {
                let count = left.min(available);
                if self.keep_data {
                    self.slots[slot].data[at..at + count]
                        .copy_from_slice(&self.incoming[self.start..self.start + count]);
                }
                self.start += count;
                if count < left {
                    self.expecting = Expecting::Data { slot, at: at + count, left: left - count, last };
                    return Ok(false);
                }
                self.end_of_piece(slot, last, done)
            }
            Expecting::Skip { slot, left, last } => {
                let count = left.min(available);
                self.start += count;
                if count < left {
                    self.expecting = Expecting::Skip { slot, left: left - count, last };
                    return Ok(false);
                }
                self.end_of_piece(slot, last, done)
            }
        }
    }

    fn end_of_piece(
        &mut self,
        slot: usize,
        last: bool,
        done: &mut impl FnMut(Completion<'_>),
    ) -> io::Result<bool> {
        self.expecting = Expecting::Reply;
        if last {
            self.complete(slot, done)?;
        }
        Ok(true)
    }

    fn reply(&mut self, done: &mut impl FnMut(Completion<'_>)) -> io::Result<bool> {
        let bytes = &self.incoming[self.start..self.end];
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok(false) };
        match u32::from_be_bytes(*magic) {
            wire::SIMPLE_REPLY_MAGIC => {
                let Some(header) = bytes.first_chunk::<16>() else { return Ok(false) };
                let error = be32(&header[4..8]);
                let slot = self.slot_of(be64(&header[8..16]))?;
                self.start += 16;
                self.slots[slot].error = error;
                let request = self.slots[slot].request;
                if request.command == Command::Read && error == 0 {
                    self.expect_data(slot, 0, request.len as usize, true);
                    return Ok(true);
                }
                self.complete(slot, done)?;
                Ok(true)
            }
            wire::STRUCTURED_REPLY_MAGIC => self.chunk(),
            other => Err(protocol_error(format!("reply magic {other:#010x}"))),
        }
    }

    fn chunk(&mut self) -> io::Result<bool> {
        const CHUNK_HEADER_BYTES: usize = 20;
        let bytes = &self.incoming[self.start..self.end];
        let Some(header) = bytes.first_chunk::<CHUNK_HEADER_BYTES>() else { return Ok(false) };
        let last = u16::from_be_bytes([header[4], header[5]]) & wire::CHUNK_DONE != 0;
        let kind = u16::from_be_bytes([header[6], header[7]]);
        let slot = self.slot_of(be64(&header[8..16]))?;
        let len = be32(&header[16..20]);
        let request = self.slots[slot].request;
        let wanted = match kind {
            wire::CHUNK_NONE => 0,
            wire::CHUNK_DATA => 8,
            wire::CHUNK_HOLE => 12,
            _ if kind & wire::CHUNK_ERROR_BIT != 0 => 4,
            _ => return Err(protocol_error(format!("chunk type {kind}"))),
        };
        if (len as usize) < wanted {
            return Err(protocol_error(format!("chunk type {kind} of {len} bytes")));
        }
        let Some(head) = bytes[CHUNK_HEADER_BYTES..].get(..wanted) else { return Ok(false) };
        let rest = len as usize - wanted;
        let range = |offset: u64, count: u64| -> io::Result<usize> {
            let at = offset.checked_sub(request.offset);
            match at {
                Some(at) if at + count <= u64::from(request.len) && request.command == Command::Read => {
                    Ok(at as usize)
                }
                _ => Err(protocol_error("a chunk outside of what was read")),
            }
        };
        match kind {
            wire::CHUNK_DATA => {
                let at = range(be64(&head[0..8]), rest as u64)?;
                self.start += CHUNK_HEADER_BYTES + wanted;
                self.expect_data(slot, at, rest, last);
            }
            wire::CHUNK_HOLE => {
                let count = be32(&head[8..12]) as usize;
                let at = range(be64(&head[0..8]), count as u64)?;
                self.start += CHUNK_HEADER_BYTES + wanted;
                if self.keep_data {
                    let data = &mut self.slots[slot].data;
                    data.resize(request.len as usize, 0);
                    data[at..at + count].fill(0);
                }
                self.slots[slot].arrived += count as u64;
                self.expecting = Expecting::Skip { slot, left: rest, last };
            }
            _ => {
                if kind != wire::CHUNK_NONE {
                    let error = be32(&head[0..4]);
                    self.slots[slot].error = error;
                    if error == 0 || len > ERROR_TEXT_BYTES_MAX {
                        return Err(protocol_error("an error chunk without an error or of absurd length"));
                    }
                }
                self.start += CHUNK_HEADER_BYTES + wanted;
                self.expecting = Expecting::Skip { slot, left: rest, last };
            }
        }
        Ok(true)
    }

    fn expect_data(&mut self, slot: usize, at: usize, left: usize, last: bool) {
        let entry = &mut self.slots[slot];
        if self.keep_data {
            entry.data.resize(entry.request.len as usize, 0);
        }
        entry.arrived += left as u64;
        self.expecting = Expecting::Data { slot, at, left, last };
    }

    fn slot_of(&self, cookie: u64) -> io::Result<usize> {
        match usize::try_from(cookie)
            .ok()
            .filter(|&index| self.slots.get(index).is_some_and(|slot| slot.busy))
        {
            Some(index) => Ok(index),
            None => Err(protocol_error(format!("an answer to cookie {cookie}, which is not in flight"))),
        }
    }

    fn complete(&mut self, index: usize, done: &mut impl FnMut(Completion<'_>)) -> io::Result<()> {
        let slot = &mut self.slots[index];
        let request = slot.request;
        let whole = slot.arrived == u64::from(request.len);
        if request.command == Command::Read && slot.error == 0 && !whole {
            return Err(protocol_error(format!("{} of {} bytes of a read came", slot.arrived, request.len)));
        }
        slot.busy = false;
        let kept = request.command == Command::Read && slot.error == 0 && self.keep_data;
        let data = if kept { &slot.data[..request.len as usize] } else { &[] };
        done(Completion { request, tag: slot.tag, error: slot.error, sent: slot.sent, data });
        self.free.push(index);
        Ok(())
    }

    /// Sends one request, waits for its answer, and turns an NBD error into an I/O error.
    pub fn call(&mut self, request: Request, tag: u64) -> io::Result<()> {
        self.submit(request, tag)?;
        self.push()?;
        let mut error = 0;
        while self.in_flight() > 0 {
            self.pull(|completion| error = completion.error)?;
        }
        check(error, request)
    }
}

impl Slot {
    fn wire_bytes(&self) -> usize {
        let payload = if self.request.command == Command::Write { self.request.len as usize } else { 0 };
        REQUEST_HEADER_BYTES + payload
    }
}

/// An NBD error as an I/O error that names the request.
pub fn check(error: u32, request: Request) -> io::Result<()> {
    if error == 0 {
        return Ok(());
    }
    let cause = io::Error::from_raw_os_error(error as i32);
    Err(io::Error::new(
        cause.kind(),
        format!("{:?} of {} bytes at {}: {cause}", request.command, request.len, request.offset),
    ))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
