//! Requests of the transmission phase, decoded in place: payloads stay in the receive buffer.

use std::borrow::Cow;

use cdp_core::device::Change;

use crate::contexts::Contexts;
use crate::handshake::Negotiated;
use crate::limits::{BITMAPS_MAX, PAYLOAD_BYTES_MAX, PAYLOAD_SKIP_BYTES_MAX};
use crate::proto::{Cursor, RequestHeader, command, command_flag, errno};

/// Bytes of a block status request's payload before the contexts' numbers.
const STATUS_LENGTH_BYTES: u64 = 8;
/// And of each number.
const CONTEXT_ID_BYTES: u64 = 4;
/// All bitmaps and `base:allocation`.
const STATUS_PAYLOAD_BYTES_MAX: u64 = STATUS_LENGTH_BYTES + CONTEXT_ID_BYTES * (BITMAPS_MAX as u64 + 1);

/// Why a request fails: an error number of the protocol and a text for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// One of [`errno`].
    pub errno: u32,
    /// Sent where replies can carry it.
    pub text: Cow<'static, str>,
}

impl Refusal {
    fn new(errno: u32, text: &'static str) -> Refusal {
        Refusal { errno, text: Cow::Borrowed(text) }
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Command<'a> {
    /// Bytes are wanted.
    Read {
        /// How many, at most [`PAYLOAD_BYTES_MAX`], not 0.
        len: u64,
        /// In one piece.
        whole: bool,
    },
    /// A write, zero or trim of at least one byte.
    Change {
        /// Ready for the device.
        change: Change<'a>,
        /// Flush before the reply.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Block status is wanted.
    Status {
        /// Of so many bytes, not 0.
        len: u64,
        /// One extent only.
        one: bool,
        /// Of these; without any the answer is empty.
        contexts: Contexts,
    },
    /// Nothing to do but to say so.
    Done,
    /// Not to be done.
    Refused(Refusal),
}

impl Command<'_> {
    /// Whether it is for what the device holds, and changes nothing.
    pub fn asks(&self) -> bool {
        matches!(self, Command::Read { .. } | Command::Status { .. })
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Opaque; goes back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// What to do there.
    pub command: Command<'a>,
}

/// What the front of the receive buffer holds.
#[derive(Clone, Debug)]
pub enum Decoded<'a> {
    /// Part of a request; so many bytes are needed from the front.
    Need(usize),
    /// So many bytes that mean nothing any more.
    Skipped(usize),
    /// A request and how many bytes it took.
    Request(usize, Request<'a>),
    /// The same, but the connection has to end after its reply.
    LastRequest(Request<'a>),
    /// The client said goodbye or broke the protocol: finish what is in hand, then close.
    Close,
}

/// The payload of a refused request that is still to be read past.
#[derive(Clone, Debug)]
struct Skip {
    remaining: u64,
    cookie: u64,
    offset: u64,
    refusal: Refusal,
}

/// The decoder of one connection.
pub struct Session {
    negotiated: Negotiated,
    size_bytes: u64,
    read_only: bool,
    skip: Option<Skip>,
    shutting_down: bool,
}

/// A checked header: what follows it, and what it means.
enum Checked {
    Plain(Command<'static>),
    Write { fua: bool },
    StatusPayload { one: bool },
    Refused(Refusal),
}

impl Session {
    /// A decoder for an export of this size.
    pub fn new(negotiated: Negotiated, size_bytes: u64, read_only: bool) -> Session {
        Session { negotiated, size_bytes, read_only, skip: None, shutting_down: false }
    }

    /// What was agreed on.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// From now on every request is refused with ESHUTDOWN.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Decodes the front of `input`.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<'a> {
        if let Some(skip) = &mut self.skip {
            let used = skip.remaining.min(input.len() as u64);
            skip.remaining -= used;
            if skip.remaining > 0 {
                return if used == 0 { Decoded::Need(1) } else { Decoded::Skipped(used as usize) };
            }
            let Skip { cookie, offset, refusal, .. } = skip.clone();
            self.skip = None;
            let request = Request { cookie, offset, command: Command::Refused(refusal) };
            return Decoded::Request(used as usize, request);
        }
        let extended = self.negotiated.extended;
        let header_bytes = RequestHeader::wire_bytes(extended);
        if input.len() < header_bytes {
            // A wrong magic is judged as soon as it is there.
            let magic = RequestHeader::magic(extended).to_be_bytes();
            let known = input.len().min(magic.len());
            return if input[..known] == magic[..known] {
                Decoded::Need(header_bytes)
            } else {
                Decoded::Close
            };
        }
        let Some(header) = RequestHeader::decode(input, extended) else { return Decoded::Close };
        if header.command == command::DISC {
            return Decoded::Close;
        }
        let RequestHeader { cookie, offset, .. } = header;
        let payload_bytes = self.payload_bytes(&header);
        let checked = match self.shutting_down {
            true => Checked::Refused(Refusal::new(errno::ESHUTDOWN, "the server is shutting down")),
            false => self.check(&header),
        };
        let (payload, used) = match checked {
            Checked::Refused(refusal) => {
                let request = Request { cookie, offset, command: Command::Refused(refusal.clone()) };
                if payload_bytes == 0 {
                    return Decoded::Request(header_bytes, request);
                }
                if payload_bytes > self.skip_bytes_max() {
                    return Decoded::LastRequest(request);
                }
                self.skip = Some(Skip { remaining: payload_bytes, cookie, offset, refusal });
                return Decoded::Skipped(header_bytes);
            }
            Checked::Plain(command) => {
                return Decoded::Request(header_bytes, Request { cookie, offset, command });
            }
            Checked::Write { .. } | Checked::StatusPayload { .. } => {
                let used = header_bytes + payload_bytes as usize;
                match input.get(header_bytes..used) {
                    None => return Decoded::Need(used),
                    Some(payload) => (payload, used),
                }
            }
        };
        let command = match checked {
            Checked::Write { fua } => match payload.is_empty() {
                true => nothing(fua),
                false => Command::Change { change: Change::Write { offset, data: payload }, fua },
            },
            Checked::StatusPayload { one } => self.status_payload(payload, offset, one),
            Checked::Plain(_) | Checked::Refused(_) => unreachable!("handled above"),
        };
        Decoded::Request(used, Request { cookie, offset, command })
    }

    /// Gives up the request at the front of `input`, of which a part is there: its payload will be read past
    /// and it is refused with ENOMEM. Returns how many bytes were used up.
    pub fn refuse_front(&mut self, input: &[u8]) -> usize {
        let extended = self.negotiated.extended;
        let Some(header) = RequestHeader::decode(input, extended) else { return 0 };
        let payload = self.payload_bytes(&header);
        let here = payload.min((input.len() - RequestHeader::wire_bytes(extended)) as u64);
        self.skip = Some(Skip {
            remaining: payload - here,
            cookie: header.cookie,
            offset: header.offset,
            refusal: Refusal::new(errno::ENOMEM, "too many large requests at once"),
        });
        RequestHeader::wire_bytes(extended) + here as usize
    }

    /// Bytes that follow the header.
    fn payload_bytes(&self, header: &RequestHeader) -> u64 {
        let announced = match self.negotiated.extended {
            true => header.flags & command_flag::PAYLOAD_LEN != 0,
            false => header.command == command::WRITE,
        };
        if announced { header.len } else { 0 }
    }

    fn skip_bytes_max(&self) -> u64 {
        match self.negotiated.extended {
            true => u64::from(PAYLOAD_BYTES_MAX),
            false => PAYLOAD_SKIP_BYTES_MAX,
        }
    }

    fn check(&self, header: &RequestHeader) -> Checked {
        match self.check_header(header) {
            Ok(checked) => checked,
            Err(refusal) => Checked::Refused(refusal),
        }
    }

    fn check_header(&self, header: &RequestHeader) -> Result<Checked, Refusal> {
        let RequestHeader { flags, offset, len, .. } = *header;
        self.check_flags(header)?;
        let fua = flags & command_flag::FUA != 0;
        let changes = matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.read_only {
            return Err(Refusal::new(errno::EPERM, "the export is read-only"));
        }
        let with_payload = flags & command_flag::PAYLOAD_LEN != 0;
        if header.command == command::BLOCK_STATUS && with_payload {
            // The length is the payload's; what the query is about stands in the payload.
            let is_whole = len % CONTEXT_ID_BYTES == 0;
            if !is_whole || !(STATUS_LENGTH_BYTES..=STATUS_PAYLOAD_BYTES_MAX).contains(&len) {
                return Err(invalid("the payload of the block status request has a wrong length"));
            }
            return Ok(Checked::StatusPayload { one: flags & command_flag::REQ_ONE != 0 });
        }
        if header.command == command::FLUSH {
            return match (offset, len) {
                (0, 0) => Ok(Checked::Plain(Command::Flush)),
                _ => Err(invalid("offset and length of a flush must be 0")),
            };
        }
        if header.command == command::WRITE && len > u64::from(PAYLOAD_BYTES_MAX) {
            return Err(invalid("the write is larger than 64 MiB"));
        }
        self.check_range(header.command, offset, len)?;
        Ok(match header.command {
            command::READ if len > u64::from(PAYLOAD_BYTES_MAX) => {
                return Err(invalid("the read is larger than 64 MiB"));
            }
            command::READ if len == 0 => Checked::Plain(Command::Done),
            command::READ => Checked::Plain(Command::Read { len, whole: flags & command_flag::DF != 0 }),
            command::WRITE => Checked::Write { fua },
            command::TRIM | command::WRITE_ZEROES if len == 0 => Checked::Plain(nothing(fua)),
            command::TRIM => Checked::Plain(Command::Change { change: Change::Trim { offset, len }, fua }),
            command::WRITE_ZEROES => {
                let hole = flags & command_flag::NO_HOLE == 0;
                Checked::Plain(Command::Change { change: Change::Zero { offset, len, hole }, fua })
            }
            // There is nothing to warm up: what the device reads it finds in the page cache anyway.
            command::CACHE => Checked::Plain(Command::Done),
            command::BLOCK_STATUS => {
                self.check_status(len)?;
                let one = flags & command_flag::REQ_ONE != 0;
                Checked::Plain(Command::Status { len, one, contexts: self.negotiated.contexts })
            }
            _ => return Err(invalid("unknown command")),
        })
    }

    fn check_flags(&self, header: &RequestHeader) -> Result<(), Refusal> {
        let chunks = self.negotiated.structured || self.negotiated.extended;
        let (allowed, required) = match header.command {
            command::READ if chunks => (command_flag::DF, 0),
            command::WRITE if self.negotiated.extended => {
                (command_flag::PAYLOAD_LEN, command_flag::PAYLOAD_LEN)
            }
            command::WRITE_ZEROES => (command_flag::NO_HOLE | command_flag::FAST_ZERO, 0),
            command::BLOCK_STATUS if self.negotiated.extended && !self.negotiated.contexts.is_empty() => {
                (command_flag::REQ_ONE | command_flag::PAYLOAD_LEN, 0)
            }
            command::BLOCK_STATUS => (command_flag::REQ_ONE, 0),
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => (0, 0),
            _ => return Err(invalid("unknown command")),
        };
        // FUA is to be accepted with every command.
        if header.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(invalid("a flag that this command does not have"));
        }
        if header.flags & required != required {
            return Err(invalid("a write must announce its payload"));
        }
        Ok(())
    }

    fn check_range(&self, command: u16, offset: u64, len: u64) -> Result<(), Refusal> {
        if offset <= self.size_bytes && len <= self.size_bytes - offset {
            return Ok(());
        }
        let errno = match command {
            command::WRITE | command::WRITE_ZEROES => errno::ENOSPC,
            _ => errno::EINVAL,
        };
        Err(Refusal::new(errno, "the request goes past the end of the export"))
    }

    fn check_status(&self, len: u64) -> Result<(), Refusal> {
        if self.negotiated.contexts.is_empty() {
            return Err(invalid("no metadata context was selected"));
        }
        if len == 0 {
            return Err(invalid("a block status request must have a length"));
        }
        Ok(())
    }

    fn status_payload(&self, payload: &[u8], offset: u64, one: bool) -> Command<'static> {
        let mut cursor = Cursor(payload);
        let len = cursor.u64().unwrap_or(0);
        let mut contexts = Contexts::default();
        let refused = self
            .check_range(command::BLOCK_STATUS, offset, len)
            .and_then(|()| self.check_status(len))
            .and_then(|()| {
                while let Some(id) = cursor.u32() {
                    if !self.negotiated.contexts.has(id) {
                        return Err(invalid("unknown metadata context"));
                    }
                    if contexts.has(id) {
                        return Err(invalid("a metadata context is asked for twice"));
                    }
                    contexts = contexts.with(id);
                }
                Ok(())
            });
        match refused {
            Err(refusal) => Command::Refused(refusal),
            Ok(()) => Command::Status { len, one, contexts },
        }
    }
}

fn invalid(text: &'static str) -> Refusal {
    Refusal::new(errno::EINVAL, text)
}

/// A change of no bytes: nothing to do, but a flush if it was asked for.
fn nothing(fua: bool) -> Command<'static> {
    if fua { Command::Flush } else { Command::Done }
}
