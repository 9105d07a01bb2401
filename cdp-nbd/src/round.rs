//! A round: the requests that arrived together are carried out together, and answered together.
//!
//! All changes go to the device in one call, in their order; then reads and status, which so see every change
//! that came before them; then one flush for all who asked. Replies to changes and reads do not wait for it.

use std::io;
use std::sync::Arc;

use cdp_core::device::{Change, Content, Device, Read, Stretch};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{Lsn, SessionId};

use crate::budget::{Budget, Buffer};
use crate::contexts::{Bitmap, ContextKind, Contexts};
use crate::handshake::Negotiated;
use crate::limits::{
    HOLE_BYTES_MIN, HOLE_SCAN_BYTES_MIN, HOLE_SCAN_STRETCHES_MAX, LARGE_WAIT, PIECE_BYTES_MAX,
    STATUS_EXTENTS_MAX,
};
use crate::proto::{STATE_DIRTY, STATE_HOLE, STATE_ZERO, errno};
use crate::reply::{Encoder, ReplyBuffer, SMALL_REPLY_BYTES, To, change_refusal, read_refusal};
use crate::request::{Command, Refusal, Request};

/// What is counted and measured apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Reads.
    Read,
    /// Writes, zeros and trims that need no flush.
    Write,
    /// Flushes, and changes with FUA.
    Flush,
}

/// Where the replies go.
pub trait Outlet {
    /// Sends all bytes; an error ends the connection.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Sends all that is in `replies` and leaves it empty, perhaps another buffer; an error may come with a later
    /// call.
    fn send_large(&mut self, replies: &mut ReplyBuffer) -> io::Result<()> {
        self.send(replies.bytes())?;
        replies.clear();
        Ok(())
    }

    /// So many requests of this class, about so many bytes, are done.
    fn done(&mut self, class: Class, requests: u64, bytes: u64);
}

/// A piece of a reply to a read, laid out in the reply buffer.
struct Slot {
    /// Which request of the round, and its reply's address.
    request: usize,
    to: To,
    /// Where header and data begin in the buffer, and where they end.
    start: usize,
    data: usize,
    end: usize,
    /// Where the data comes from.
    at: u64,
}

/// What a round did: requests and bytes.
#[derive(Default)]
struct Tally {
    written: (u64, u64),
    read: (u64, u64),
    flush_due: bool,
}

/// Carries out the rounds of one connection.
pub struct Executor {
    device: Arc<dyn Device>,
    session: SessionId,
    bitmaps: Vec<Arc<dyn Bitmap>>,
    encoder: Encoder,
    replies: ReplyBuffer,
    slots: Vec<Slot>,
    results: Vec<Result<Lsn>>,
    /// The request of this round whose read failed last; the rest of its pieces is left out.
    failed: Option<usize>,
}

impl Executor {
    /// An executor for one connection.
    pub fn new(
        device: Arc<dyn Device>,
        session: SessionId,
        negotiated: Negotiated,
        budget: Arc<Budget>,
    ) -> Executor {
        Executor {
            device,
            session,
            bitmaps: Vec::new(),
            encoder: Encoder::new(negotiated),
            replies: ReplyBuffer::new(Buffer::new(budget)),
            slots: Vec::new(),
            results: Vec::new(),
            failed: None,
        }
    }

    /// The same, with the dirty bitmaps that were selected, in their order.
    pub fn with_bitmaps(mut self, bitmaps: Vec<Arc<dyn Bitmap>>) -> Executor {
        self.bitmaps = bitmaps;
        self
    }

    /// Gives back the memory that is not in use between two rounds.
    pub fn release(&mut self) {
        self.replies.buffer.shrink(0);
    }

    /// Gives back what is beyond the connection's own share.
    pub fn release_large(&mut self) {
        if self.replies.buffer.is_large() {
            self.replies.buffer.shrink(0);
        }
    }

    /// Carries out all requests and sends all replies.
    pub fn run(&mut self, requests: &[Request<'_>], outlet: &mut dyn Outlet) -> io::Result<()> {
        self.apply(requests);
        let mut tally = Tally::default();
        if self.device.is_gated() {
            // A read may wait until nobody may be answered any more; what was changed is not to be held up by it.
            self.answer(requests, |command| !command.asks(), &mut tally, outlet)?;
            self.deliver(outlet)?;
            self.answer(requests, |command| command.asks(), &mut tally, outlet)?;
        } else {
            self.answer(requests, |_| true, &mut tally, outlet)?;
        }
        self.deliver(outlet)?;
        self.failed = None;
        if tally.written.0 > 0 {
            outlet.done(Class::Write, tally.written.0, tally.written.1);
        }
        if tally.read.0 > 0 {
            outlet.done(Class::Read, tally.read.0, tally.read.1);
        }
        if tally.flush_due {
            self.flush(requests, outlet)?;
        }
        Ok(())
    }

    /// Makes the replies to those requests that are wanted; what a sync has to come before waits for [`Executor::flush`].
    fn answer(
        &mut self,
        requests: &[Request<'_>],
        is_wanted: impl Fn(&Command<'_>) -> bool,
        tally: &mut Tally,
        outlet: &mut dyn Outlet,
    ) -> io::Result<()> {
        let mut changes = 0;
        for (number, request) in requests.iter().enumerate() {
            let change = changes;
            changes += usize::from(matches!(request.command, Command::Change { .. }));
            if !is_wanted(&request.command) {
                continue;
            }
            let to = To { cookie: request.cookie, offset: request.offset };
            self.make_room(SMALL_REPLY_BYTES, outlet)?;
            match &request.command {
                Command::Change { change: what, fua } => {
                    match &self.results[change] {
                        Err(error) => self.encoder.failure(&mut self.replies, to, &change_refusal(error)),
                        Ok(_) if *fua => tally.flush_due = true,
                        Ok(_) => self.encoder.success(&mut self.replies, to),
                    }
                    if !fua {
                        tally.written = (tally.written.0 + 1, tally.written.1 + change_bytes(what));
                    }
                }
                Command::Flush => tally.flush_due = true,
                Command::Done => self.encoder.nothing(&mut self.replies, to),
                Command::Refused(refusal) => self.encoder.failure(&mut self.replies, to, refusal),
                Command::Read { len, whole } => {
                    self.read(number, to, *len, *whole, outlet)?;
                    tally.read = (tally.read.0 + 1, tally.read.1 + len);
                }
                Command::Status { len, one, contexts } => {
                    self.status(to, *len, *one, *contexts, outlet)?;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, requests: &[Request<'_>]) {
        self.results.clear();
        let changes: Vec<Change<'_>> = requests
            .iter()
            .filter_map(|request| match &request.command {
                Command::Change { change, .. } => Some(*change),
                _ => None,
            })
            .collect();
        if changes.is_empty() {
            return;
        }
        self.device.apply(self.session, &changes, &mut self.results);
        debug_assert_eq!(self.results.len(), changes.len(), "the device answers every change");
        while self.results.len() < changes.len() {
            self.results.push(Err(Error::new(Kind::Io, "the device left a change without an answer")));
        }
    }

    fn flush(&mut self, requests: &[Request<'_>], outlet: &mut dyn Outlet) -> io::Result<()> {
        let refusal = self.device.flush().err().map(|error| read_refusal(&error));
        let mut change = 0;
        let mut flushed = (0, 0);
        for request in requests {
            let due = match &request.command {
                Command::Change { change: what, fua } => {
                    change += 1;
                    (*fua && self.results[change - 1].is_ok()).then(|| change_bytes(what))
                }
                Command::Flush => Some(0),
                _ => None,
            };
            let Some(bytes) = due else { continue };
            flushed = (flushed.0 + 1, flushed.1 + bytes);
            self.make_room(SMALL_REPLY_BYTES, outlet)?;
            let to = To { cookie: request.cookie, offset: request.offset };
            match &refusal {
                None => self.encoder.success(&mut self.replies, to),
                Some(refusal) => self.encoder.failure(&mut self.replies, to, refusal),
            }
        }
        self.deliver(outlet)?;
        outlet.done(Class::Flush, flushed.0, flushed.1);
        Ok(())
    }

    fn make_room(&mut self, len: usize, outlet: &mut dyn Outlet) -> io::Result<()> {
        if self.replies.has_room(len) { Ok(()) } else { self.deliver(outlet) }
    }

    fn read(
        &mut self,
        number: usize,
        to: To,
        len: u64,
        whole: bool,
        outlet: &mut dyn Outlet,
    ) -> io::Result<()> {
        if !self.encoder.chunks() || whole {
            return self.read_whole(number, to, len as usize, outlet);
        }
        if len <= HOLE_SCAN_BYTES_MIN {
            return self.piece(number, to, to.offset, len as usize, true, outlet);
        }
        let mut at = to.offset;
        let end = to.offset + len;
        for (len, hole) in self.stretches(to.offset, len) {
            let until = at + len;
            while at < until && self.failed != Some(number) {
                let bytes = if hole { until - at } else { (until - at).min(PIECE_BYTES_MAX as u64) };
                let last = at + bytes == end;
                match hole {
                    true => self.hole(number, to, at, bytes as u32, last, outlet)?,
                    false => self.piece(number, to, at, bytes as usize, last, outlet)?,
                }
                at += bytes;
            }
        }
        Ok(())
    }

    /// What a read covers, in order: lengths, and whether it is worth a hole. Covers all of it.
    fn stretches(&self, offset: u64, len: u64) -> Vec<(u64, bool)> {
        // A device that cannot tell is asked for the bytes, and says there what is wrong.
        let found = self.device.extents(offset, len, HOLE_SCAN_STRETCHES_MAX).unwrap_or_default();
        let mut left = len;
        let mut stretches: Vec<(u64, bool)> = Vec::with_capacity(found.len() + 1);
        let rest = Stretch { len, content: Content::Data };
        for stretch in found.into_iter().chain([rest]) {
            let len = stretch.len.min(left);
            let hole = stretch.content != Content::Data && len >= HOLE_BYTES_MIN;
            left -= len;
            match stretches.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.1 == hole => last.0 += len,
                _ => stretches.push((len, hole)),
            }
        }
        stretches
    }

    /// A read that has to be answered in one piece.
    fn read_whole(&mut self, number: usize, to: To, len: usize, outlet: &mut dyn Outlet) -> io::Result<()> {
        let bytes = self.encoder.data_header_bytes() + len;
        self.make_room(bytes, outlet)?;
        if !self.replies.has_room(bytes) {
            self.replies.buffer.grow(bytes, 0);
            if !self.replies.buffer.charge(bytes, LARGE_WAIT) {
                self.replies.buffer.shrink(0);
                let text = "too many large requests at once".into();
                self.encoder.failure(&mut self.replies, to, &Refusal { errno: errno::ENOMEM, text });
                return Ok(());
            }
        }
        self.lay_out(number, to, to.offset, len, true);
        Ok(())
    }

    fn piece(
        &mut self,
        number: usize,
        to: To,
        at: u64,
        len: usize,
        last: bool,
        outlet: &mut dyn Outlet,
    ) -> io::Result<()> {
        self.make_room(self.encoder.data_header_bytes() + len, outlet)?;
        if self.failed != Some(number) {
            self.lay_out(number, to, at, len, last);
        }
        Ok(())
    }

    fn lay_out(&mut self, request: usize, to: To, at: u64, len: usize, last: bool) {
        let start = self.replies.len();
        self.encoder.data_header(&mut self.replies, to, at, len, last);
        let data = self.replies.reserve(len);
        self.slots.push(Slot { request, to, start, data, end: data + len, at });
    }

    fn hole(
        &mut self,
        request: usize,
        to: To,
        at: u64,
        len: u32,
        last: bool,
        outlet: &mut dyn Outlet,
    ) -> io::Result<()> {
        self.make_room(SMALL_REPLY_BYTES, outlet)?;
        if self.failed != Some(request) {
            let start = self.replies.len();
            self.encoder.hole(&mut self.replies, to, at, len, last);
            let end = self.replies.len();
            self.slots.push(Slot { request, to, start, data: end, end, at });
        }
        Ok(())
    }

    fn status(
        &mut self,
        to: To,
        len: u64,
        one: bool,
        contexts: Contexts,
        outlet: &mut dyn Outlet,
    ) -> io::Result<()> {
        if contexts.is_empty() {
            self.encoder.nothing(&mut self.replies, to);
            return Ok(());
        }
        let count_max = if one { 1 } else { STATUS_EXTENTS_MAX };
        let mut left = contexts.iter().count();
        for (id, kind) in contexts.iter() {
            left -= 1;
            let extents = match self.status_of(kind, to.offset, len, count_max) {
                Ok(extents) => extents,
                Err(error) => {
                    self.make_room(SMALL_REPLY_BYTES, outlet)?;
                    self.encoder.failure(&mut self.replies, to, &read_refusal(&error));
                    return Ok(());
                }
            };
            self.make_room(SMALL_REPLY_BYTES + extents.len() * 16, outlet)?;
            self.encoder.status(&mut self.replies, to, id, &extents, left == 0);
        }
        Ok(())
    }

    /// Extents of one context: at most `count_max`, at least one, together at most `len` bytes.
    fn status_of(
        &self,
        kind: ContextKind,
        offset: u64,
        len: u64,
        count_max: usize,
    ) -> Result<Vec<(u64, u32)>> {
        let extents = match kind {
            ContextKind::Allocation => {
                let stretches = self.device.extents(offset, len, count_max)?;
                clipped(stretches.iter().map(|stretch| (stretch.len, state(stretch.content))), len, count_max)
            }
            ContextKind::Bitmap(place) => {
                if self.device.is_gated() {
                    // Bitmaps know of no gate.
                    self.device.extents(offset, len, 1)?;
                }
                let bitmap = self.bitmaps.get(place).ok_or_else(|| {
                    Error::new(Kind::Io, "a dirty bitmap was selected that the connection does not have")
                })?;
                let stretches = bitmap.stretches(offset, len, count_max)?;
                let flags = |dirty| if dirty { STATE_DIRTY } else { 0 };
                clipped(stretches.iter().map(|(len, dirty)| (*len, flags(*dirty))), len, count_max)
            }
        };
        Ok(match (extents.is_empty(), kind) {
            (false, _) => extents,
            // Nobody is to be left without progress: "not known to be a hole" and "perhaps changed" are always true.
            (true, ContextKind::Allocation) => vec![(len, 0)],
            (true, ContextKind::Bitmap(_)) => vec![(len, STATE_DIRTY)],
        })
    }

    /// Fills the data that was laid out and sends everything.
    fn deliver(&mut self, outlet: &mut dyn Outlet) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let errors = self.fill();
        let sent = match errors.is_empty() {
            true => outlet.send_large(&mut self.replies),
            false => {
                let bytes = self.without_failed(&errors);
                outlet.send(&bytes)
            }
        };
        self.replies.clear();
        self.slots.clear();
        sent
    }

    /// Reads into all slots; returns those that failed.
    fn fill(&mut self) -> Vec<(usize, Refusal)> {
        if self.slots.iter().all(|slot| slot.data == slot.end) {
            return Vec::new();
        }
        let mut reads = Vec::with_capacity(self.slots.len());
        let mut rest = self.replies.bytes();
        let mut position = 0;
        for slot in &self.slots {
            let (_, tail) = rest.split_at_mut(slot.data - position);
            let (buffer, tail) = tail.split_at_mut(slot.end - slot.data);
            (rest, position) = (tail, slot.end);
            if !buffer.is_empty() {
                reads.push(Read { offset: slot.at, buffer, result: Ok(()) });
            }
        }
        self.device.read(&mut reads);
        let with_data = self.slots.iter().enumerate().filter(|(_, slot)| slot.data != slot.end);
        with_data
            .zip(&reads)
            .filter_map(|((number, _), read)| Some((number, read_refusal(read.result.as_ref().err()?))))
            .collect()
    }

    /// The replies with an error in place of what could not be read, and nothing more of that request.
    fn without_failed(&mut self, errors: &[(usize, Refusal)]) -> Vec<u8> {
        let mut kept = ReplyBuffer::new(Buffer::new(Budget::new(usize::MAX)));
        let mut position = 0;
        for (number, slot) in self.slots.iter().enumerate() {
            kept.put(&self.replies.bytes()[position..slot.start]);
            position = slot.end;
            if self.failed == Some(slot.request) {
                continue;
            }
            match errors.iter().find(|(failed, _)| *failed == number) {
                Some((_, refusal)) => {
                    self.failed = Some(slot.request);
                    self.encoder.failure(&mut kept, slot.to, refusal);
                }
                None => kept.put(&self.replies.bytes()[slot.start..slot.end]),
            }
        }
        kept.put(&self.replies.bytes()[position..]);
        kept.bytes().to_vec()
    }
}

fn change_bytes(change: &Change<'_>) -> u64 {
    match change {
        Change::Write { data, .. } => data.len() as u64,
        Change::Zero { .. } | Change::Trim { .. } => 0,
    }
}

/// At most `count_max` extents, together at most `len` bytes.
fn clipped(stretches: impl Iterator<Item = (u64, u32)>, len: u64, count_max: usize) -> Vec<(u64, u32)> {
    let mut left = len;
    let mut extents = Vec::new();
    for (len, flags) in stretches.take(count_max) {
        let len = len.min(left);
        if len == 0 {
            break;
        }
        left -= len;
        extents.push((len, flags));
    }
    extents
}

/// What `base:allocation` says of it.
fn state(content: Content) -> u32 {
    match content {
        Content::Data => 0,
        Content::Zero => STATE_ZERO,
        Content::Hole => STATE_HOLE | STATE_ZERO,
    }
}
