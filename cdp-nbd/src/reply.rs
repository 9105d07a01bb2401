//! Replies as bytes: simple, structured or extended, whatever was agreed on.

use cdp_core::error::{Error, Kind};

use crate::budget::Buffer;
use crate::handshake::Negotiated;
use crate::limits::{BUFFER_BYTES, ERROR_TEXT_BYTES_MAX};
use crate::proto::{
    CHUNK_DONE, EXTENDED_HEADER_BYTES, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STRUCTURED_HEADER_BYTES, STRUCTURED_REPLY_MAGIC, chunk, errno,
};
use crate::request::Refusal;

/// Room that any reply without data needs at most, in bytes.
pub const SMALL_REPLY_BYTES: usize = EXTENDED_HEADER_BYTES + 16 + ERROR_TEXT_BYTES_MAX;

/// The beginning of `text`, at most `max` bytes, cut between characters.
pub fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// What a failed change tells the client.
pub fn change_refusal(error: &Error) -> Refusal {
    refusal(error, errno::ENOSPC)
}

/// What a failed read, flush or status tells the client.
pub fn read_refusal(error: &Error) -> Refusal {
    refusal(error, errno::EINVAL)
}

fn refusal(error: &Error, out_of_range: u32) -> Refusal {
    let errno = match error.kind() {
        Kind::NoSpace => errno::ENOSPC,
        Kind::ReadOnly => errno::EPERM,
        Kind::Invalid => errno::EINVAL,
        Kind::OutOfRange => out_of_range,
        Kind::Closed => errno::ESHUTDOWN,
        Kind::Io | Kind::Damaged | Kind::Refused | Kind::NotFound | Kind::Exists | Kind::Busy => errno::EIO,
    };
    Refusal { errno, text: error.to_string().into() }
}

/// Bytes that go out together. Room for data is set aside first and filled by the device in place.
pub struct ReplyBuffer {
    /// Grows to [`BUFFER_BYTES`] as needed, beyond that only where the budget allowed it.
    pub buffer: Buffer,
    end: usize,
}

impl ReplyBuffer {
    /// An empty one.
    pub fn new(buffer: Buffer) -> ReplyBuffer {
        ReplyBuffer { buffer, end: 0 }
    }

    /// How many bytes are in it.
    pub fn len(&self) -> usize {
        self.end
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Whether `len` more bytes fit into the connection's own share.
    pub fn has_room(&self, len: usize) -> bool {
        self.end + len <= BUFFER_BYTES
    }

    /// What is in it.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes()[..self.end]
    }

    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.end = 0;
    }

    /// Sets `len` bytes aside; returns where they begin. The caller has seen to the room.
    pub fn reserve(&mut self, len: usize) -> usize {
        let start = self.end;
        self.buffer.grow(start + len, start);
        self.end += len;
        start
    }

    /// Appends these bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        let start = self.reserve(bytes.len());
        self.buffer.bytes()[start..self.end].copy_from_slice(bytes);
    }
}

/// Writes replies in the form that was agreed on.
#[derive(Clone, Copy)]
pub struct Encoder {
    structured: bool,
    extended: bool,
}

/// To which request a reply belongs.
#[derive(Clone, Copy, Debug)]
pub struct To {
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset.
    pub offset: u64,
}

impl Encoder {
    /// For this connection.
    pub fn new(negotiated: Negotiated) -> Encoder {
        let Negotiated { structured, extended, .. } = negotiated;
        Encoder { structured: structured || extended, extended }
    }

    /// Whether reads are answered in chunks.
    pub fn chunks(&self) -> bool {
        self.structured
    }

    /// Bytes before the data of a read or of a piece of it.
    pub fn data_header_bytes(&self) -> usize {
        match (self.extended, self.structured) {
            (true, _) => EXTENDED_HEADER_BYTES + 8,
            (_, true) => STRUCTURED_HEADER_BYTES + 8,
            _ => SIMPLE_REPLY_BYTES,
        }
    }

    /// Success of a request other than a read.
    pub fn success(&self, out: &mut ReplyBuffer, to: To) {
        match self.extended {
            true => self.chunk(out, to, CHUNK_DONE, chunk::NONE, 0),
            false => simple(out, to, 0),
        }
    }

    /// Success of a request about nothing, of any kind.
    pub fn nothing(&self, out: &mut ReplyBuffer, to: To) {
        match self.structured {
            true => self.chunk(out, to, CHUNK_DONE, chunk::NONE, 0),
            false => simple(out, to, 0),
        }
    }

    /// Failure of a request of any kind; the last chunk of its reply.
    pub fn failure(&self, out: &mut ReplyBuffer, to: To, refusal: &Refusal) {
        if !self.structured {
            return simple(out, to, refusal.errno);
        }
        let text = clip(&refusal.text, ERROR_TEXT_BYTES_MAX).as_bytes();
        self.chunk(out, to, CHUNK_DONE, chunk::ERROR, 6 + text.len());
        out.put(&refusal.errno.to_be_bytes());
        out.put(&(text.len() as u16).to_be_bytes());
        out.put(text);
    }

    /// The header of `len` bytes from `at`, which follow: all of a read, or a piece of it.
    pub fn data_header(&self, out: &mut ReplyBuffer, to: To, at: u64, len: usize, last: bool) {
        if !self.structured {
            return simple(out, to, 0);
        }
        self.chunk(out, to, done(last), chunk::OFFSET_DATA, 8 + len);
        out.put(&at.to_be_bytes());
    }

    /// A piece of a read that is all zeros.
    pub fn hole(&self, out: &mut ReplyBuffer, to: To, at: u64, len: u32, last: bool) {
        self.chunk(out, to, done(last), chunk::OFFSET_HOLE, 12);
        out.put(&at.to_be_bytes());
        out.put(&len.to_be_bytes());
    }

    /// A block status of the context with this number: lengths in bytes and flags. Each context has a chunk.
    pub fn status(&self, out: &mut ReplyBuffer, to: To, id: u32, extents: &[(u64, u32)], last: bool) {
        if self.extended {
            self.chunk(out, to, done(last), chunk::BLOCK_STATUS_EXT, 8 + extents.len() * 16);
            out.put(&id.to_be_bytes());
            out.put(&(extents.len() as u32).to_be_bytes());
            for (len, flags) in extents {
                out.put(&len.to_be_bytes());
                out.put(&u64::from(*flags).to_be_bytes());
            }
        } else {
            self.chunk(out, to, done(last), chunk::BLOCK_STATUS, 4 + extents.len() * 8);
            out.put(&id.to_be_bytes());
            for (len, flags) in extents {
                // A compact request asks for less than 4 GiB, so no extent of its reply is longer.
                out.put(&u32::try_from(*len).unwrap_or(u32::MAX).to_be_bytes());
                out.put(&flags.to_be_bytes());
            }
        }
    }

    fn chunk(&self, out: &mut ReplyBuffer, to: To, flags: u16, kind: u16, len: usize) {
        let mut header = [0; EXTENDED_HEADER_BYTES];
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&to.cookie.to_be_bytes());
        if self.extended {
            header[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
            header[16..24].copy_from_slice(&to.offset.to_be_bytes());
            header[24..].copy_from_slice(&(len as u64).to_be_bytes());
            out.put(&header);
        } else {
            header[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
            header[16..20].copy_from_slice(&(len as u32).to_be_bytes());
            out.put(&header[..STRUCTURED_HEADER_BYTES]);
        }
    }
}

fn done(last: bool) -> u16 {
    if last { CHUNK_DONE } else { 0 }
}

fn simple(out: &mut ReplyBuffer, to: To, errno: u32) {
    let mut header = [0; SIMPLE_REPLY_BYTES];
    header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&errno.to_be_bytes());
    header[8..].copy_from_slice(&to.cookie.to_be_bytes());
    out.put(&header);
}
