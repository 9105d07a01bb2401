//! The handshake: bytes in, bytes out, and at the end an open export. No sockets and no clock.
//!
//! ```text
//! Flags ──flags──▶ Options ──GO, EXPORT_NAME──▶ Transmission
//!                  │  ▲   └──ABORT──▶ close
//!   data too long ▼  │ all of it read past
//!                  Skip
//! ```
//! A peer that breaks a rule which leaves no way to answer is disconnected from any state.

mod ask;

use std::sync::Arc;

use cdp_core::error::{Error, Kind};

use crate::contexts::{Bitmap, BitmapInfo, Contexts, open_all};
use crate::exports::{ExportInfo, Exports, OpenExport, Peer};
use crate::limits::{
    BLOCK_BYTES_PREFERRED, LIST_EXPORTS_MAX, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX,
    PAYLOAD_BYTES_ADVERTISED, STRING_BYTES_MAX,
};
use crate::option::{InfoOption, MetaOption, export_name};
use crate::proto::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, BITMAP_ID_FIRST, Cursor, DIRTY_BITMAP, EXPORT_NAME_ZEROES, MAGIC,
    OPTION_HEADER_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option, reply,
    transmission_flag,
};
use crate::reply::clip;
use ask::Asked;

/// What both sides agreed on for the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// All headers are the 32-byte ones; implies chunks.
    pub extended: bool,
    /// The metadata contexts that were selected.
    pub contexts: Contexts,
}

/// What came of the bytes.
pub enum Step {
    /// Not enough of them: at least so many are needed from the front.
    Need(usize),
    /// So many were used up.
    Consumed(usize),
    /// Send what there is to send, then close.
    Close,
    /// So many were used up; what follows belongs to the transmission phase.
    Transmission(usize, Negotiated, Opened),
}

/// An export with the dirty bitmaps that were selected on it, in their order.
pub struct Opened {
    /// The export.
    pub export: OpenExport,
    /// What [`ContextKind::Bitmap`](crate::contexts::ContextKind::Bitmap) counts.
    pub bitmaps: Vec<Arc<dyn Bitmap>>,
}

/// What SET_META_CONTEXT selected, and on which export.
struct Selected {
    export: String,
    allocation: bool,
    bitmaps: Vec<BitmapInfo>,
}

#[derive(Clone, Copy)]
enum State {
    Flags,
    Options,
    /// So many bytes of an option's data are still to be read past; then this reply is due.
    Skip {
        remaining: usize,
        option: u32,
        reply: u32,
        text: &'static str,
    },
}

/// One client's handshake.
pub struct Handshake {
    state: State,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    /// The contexts that were selected last.
    selected: Option<Selected>,
    /// Data and answer of an INFO that came just before.
    info_before: Option<(Vec<u8>, ExportInfo)>,
    shutting_down: bool,
}

impl Handshake {
    /// A new handshake and the greeting to send.
    pub fn new(out: &mut Vec<u8>) -> Handshake {
        out.extend(MAGIC.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Handshake {
            state: State::Flags,
            fixed: false,
            no_zeroes: false,
            structured: false,
            extended: false,
            selected: None,
            info_before: None,
            shutting_down: false,
        }
    }

    /// From now on options are answered with ERR_SHUTDOWN.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Handles at most one message at the front of `input`; replies are appended to `out`.
    pub fn step(&mut self, input: &[u8], exports: &dyn Exports, peer: &Peer, out: &mut Vec<u8>) -> Step {
        match self.state {
            State::Flags => self.flags(input),
            State::Options => self.option(input, exports, peer, out),
            State::Skip { remaining, option, reply, text } => {
                let used = remaining.min(input.len());
                if used < remaining {
                    self.state = State::Skip { remaining: remaining - used, option, reply, text };
                    return if used == 0 { Step::Need(1) } else { Step::Consumed(used) };
                }
                self.state = State::Options;
                put(out, option, reply, &[text.as_bytes()]);
                Step::Consumed(used)
            }
        }
    }

    fn flags(&mut self, input: &[u8]) -> Step {
        let Some(flags) = Cursor(input).u32() else { return Step::Need(4) };
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Step::Close;
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::Options;
        Step::Consumed(4)
    }

    fn option(&mut self, input: &[u8], exports: &dyn Exports, peer: &Peer, out: &mut Vec<u8>) -> Step {
        let mut cursor = Cursor(input);
        // The magic is judged as soon as it is there: who speaks another protocol need not wait.
        let Some(magic) = cursor.u64() else { return Step::Need(OPTION_HEADER_BYTES) };
        if magic != OPTION_MAGIC {
            return Step::Close;
        }
        let (Some(number), Some(len)) = (cursor.u32(), cursor.u32()) else {
            return Step::Need(OPTION_HEADER_BYTES);
        };
        if number == option::EXPORT_NAME {
            if len as usize > STRING_BYTES_MAX {
                return Step::Close;
            }
        } else if !self.fixed {
            // Without fixed newstyle the client would not understand a reply.
            return Step::Close;
        } else if len as usize > OPTION_BYTES_MAX {
            return self.skip(number, len);
        }
        let Some(data) = cursor.bytes(len as usize) else {
            return Step::Need(OPTION_HEADER_BYTES + len as usize);
        };
        let used = OPTION_HEADER_BYTES + data.len();
        let info_before = self.info_before.take();
        match number {
            option::ABORT => {
                put(out, number, reply::ACK, &[]);
                return Step::Close;
            }
            _ if self.shutting_down => {
                if number == option::EXPORT_NAME {
                    return Step::Close;
                }
                put(out, number, reply::ERR_SHUTDOWN, &[b"the server is shutting down"]);
            }
            option::EXPORT_NAME => return self.export_name(data, used, exports, peer, out),
            option::GO => return self.go(data, used, info_before, exports, peer, out),
            option::INFO => self.info(data, exports, peer, out),
            option::LIST => list(data, exports, out),
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::EXTENDED_HEADERS => self.extended_headers(data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data, exports, peer, out);
            }
            _ => put(out, number, reply::ERR_UNSUP, &[b"this option is not supported"]),
        }
        Step::Consumed(used)
    }

    fn skip(&mut self, option: u32, len: u32) -> Step {
        if len > OPTION_SKIP_BYTES_MAX {
            return Step::Close;
        }
        let known = matches!(
            option,
            option::LIST
                | option::INFO
                | option::GO
                | option::STRUCTURED_REPLY
                | option::LIST_META_CONTEXT
                | option::SET_META_CONTEXT
                | option::EXTENDED_HEADERS
        );
        let (reply, text) = match known {
            true => (reply::ERR_TOO_BIG, "the option's data is too long"),
            false => (reply::ERR_UNSUP, "this option is not supported"),
        };
        if option == option::SET_META_CONTEXT {
            self.selected = None;
        }
        self.info_before = None;
        self.state = State::Skip { remaining: len as usize, option, reply, text };
        Step::Consumed(OPTION_HEADER_BYTES)
    }

    fn export_name(
        &mut self,
        data: &[u8],
        used: usize,
        exports: &dyn Exports,
        peer: &Peer,
        out: &mut Vec<u8>,
    ) -> Step {
        // This option has no way to say no but to hang up. With extended headers it is forbidden.
        let (false, Ok(name)) = (self.extended, export_name(data)) else { return Step::Close };
        let Ok(opened) = exports.open(name, peer).and_then(|export| self.with_bitmaps(name, export)) else {
            return Step::Close;
        };
        let negotiated = self.negotiated(name);
        let info = opened.export.info();
        out.extend(info.size_bytes.to_be_bytes());
        out.extend(transmission_flags(&info, negotiated).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; EXPORT_NAME_ZEROES]);
        }
        Step::Transmission(used, negotiated, opened)
    }

    fn go(
        &mut self,
        data: &[u8],
        used: usize,
        info_before: Option<(Vec<u8>, ExportInfo)>,
        exports: &dyn Exports,
        peer: &Peer,
        out: &mut Vec<u8>,
    ) -> Step {
        let request = match InfoOption::parse(data) {
            Ok(request) => request,
            Err(text) => {
                put(out, option::GO, reply::ERR_INVALID, &[text.as_bytes()]);
                return Step::Consumed(used);
            }
        };
        let export = match info_before.filter(|(before, _)| before == data) {
            Some((_, info)) => exports.open_after_info(request.name, &info, peer),
            None => exports.open(request.name, peer),
        };
        match export.and_then(|export| self.with_bitmaps(request.name, export)) {
            Ok(opened) => {
                let negotiated = self.negotiated(request.name);
                put_info(out, option::GO, &request.wanted, &opened.export.info(), negotiated);
                Step::Transmission(used, negotiated, opened)
            }
            Err(error) => {
                put_refusal(out, option::GO, &error);
                Step::Consumed(used)
            }
        }
    }

    fn info(&mut self, data: &[u8], exports: &dyn Exports, peer: &Peer, out: &mut Vec<u8>) {
        match InfoOption::parse(data) {
            Err(text) => put(out, option::INFO, reply::ERR_INVALID, &[text.as_bytes()]),
            Ok(request) => match exports.info(request.name, peer) {
                Err(error) => put_refusal(out, option::INFO, &error),
                Ok(info) => {
                    put_info(out, option::INFO, &request.wanted, &info, self.negotiated(request.name));
                    self.info_before = Some((data.to_vec(), info));
                }
            },
        }
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let (reply, text) = if self.extended {
            (reply::ERR_EXT_HEADER_REQD, "extended headers are agreed on already")
        } else if !data.is_empty() {
            (reply::ERR_INVALID, "this option takes no data")
        } else if self.structured {
            (reply::ERR_INVALID, "structured replies are agreed on already")
        } else {
            self.structured = true;
            (reply::ACK, "")
        };
        put(out, option::STRUCTURED_REPLY, reply, &[text.as_bytes()]);
    }

    fn extended_headers(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let (reply, text) = if !data.is_empty() {
            (reply::ERR_INVALID, "this option takes no data")
        } else if self.extended {
            (reply::ERR_INVALID, "extended headers are agreed on already")
        } else {
            self.extended = true;
            (reply::ACK, "")
        };
        put(out, option::EXTENDED_HEADERS, reply, &[text.as_bytes()]);
    }

    fn meta_context(
        &mut self,
        number: u32,
        data: &[u8],
        exports: &dyn Exports,
        peer: &Peer,
        out: &mut Vec<u8>,
    ) {
        let setting = number == option::SET_META_CONTEXT;
        if setting {
            // What was selected before is gone, also when this fails.
            self.selected = None;
        }
        if !self.structured && !self.extended {
            return put(out, number, reply::ERR_INVALID, &[b"structured replies have to be agreed on first"]);
        }
        let request = match MetaOption::parse(data) {
            Ok(request) => request,
            Err(text) => return put(out, number, reply::ERR_INVALID, &[text.as_bytes()]),
        };
        if let Err(error) = exports.info(request.name, peer) {
            return put_refusal(out, number, &error);
        }
        let mut asked = Asked::new(request, exports, peer);
        let found = match setting {
            true => asked.select(),
            false => asked.list(),
        };
        let (allocation, bitmaps) = match found {
            Ok(found) => found,
            Err(refused) => return refused.put(out, number),
        };
        // The number of a context means nothing in a list.
        let id = |id: u32| if setting { id } else { 0 }.to_be_bytes();
        if allocation {
            put(out, number, reply::META_CONTEXT, &[&id(BASE_ALLOCATION_ID), BASE_ALLOCATION.as_bytes()]);
        }
        for (bitmap, place) in bitmaps.iter().zip(BITMAP_ID_FIRST..) {
            let name = [DIRTY_BITMAP.as_bytes(), bitmap.name.as_bytes()].concat();
            put(out, number, reply::META_CONTEXT, &[&id(place), &name]);
        }
        if setting {
            self.selected = Some(Selected { export: request.name.to_owned(), allocation, bitmaps });
        }
        put(out, number, reply::ACK, &[]);
    }

    fn selected(&self, export: &str) -> Option<&Selected> {
        self.selected.as_ref().filter(|selected| selected.export == export)
    }

    fn with_bitmaps(&self, name: &str, export: OpenExport) -> Result<Opened, Error> {
        let selected = self.selected(name).map_or(&[][..], |selected| &selected.bitmaps);
        let bitmaps = open_all(export.bitmaps.as_deref(), selected)?;
        Ok(Opened { export, bitmaps })
    }

    fn negotiated(&self, name: &str) -> Negotiated {
        let contexts = self.selected(name).map_or(Contexts::default(), |selected| {
            Contexts::new(selected.allocation, selected.bitmaps.len())
        });
        Negotiated { structured: self.structured, extended: self.extended, contexts }
    }
}

fn list(data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) {
    if !data.is_empty() {
        return put(out, option::LIST, reply::ERR_INVALID, &[b"this option takes no data"]);
    }
    for export in exports.list().iter().take(LIST_EXPORTS_MAX) {
        let name = export.name.as_bytes();
        // A name that a client could not ask for is better left out than cut.
        if name.len() > STRING_BYTES_MAX {
            continue;
        }
        let description = clip(&export.description, STRING_BYTES_MAX).as_bytes();
        put(out, option::LIST, reply::SERVER, &[&(name.len() as u32).to_be_bytes(), name, description]);
    }
    put(out, option::LIST, reply::ACK, &[]);
}

/// The transmission flags of an export for a client that agreed on `negotiated`.
pub fn transmission_flags(info: &ExportInfo, negotiated: Negotiated) -> u16 {
    use transmission_flag as flag;
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
    flags |= match info.read_only {
        true => flag::READ_ONLY,
        false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO,
    };
    if info.multi_conn {
        flags |= flag::CAN_MULTI_CONN;
    }
    if negotiated.structured || negotiated.extended {
        flags |= flag::SEND_DF;
    }
    if negotiated.extended && !negotiated.contexts.is_empty() {
        flags |= flag::BLOCK_STATUS_PAYLOAD;
    }
    flags
}

fn put_info(out: &mut Vec<u8>, option: u32, wanted: &[u16], export: &ExportInfo, negotiated: Negotiated) {
    let flags = transmission_flags(export, negotiated).to_be_bytes();
    let size = export.size_bytes.to_be_bytes();
    put(out, option, reply::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
    if wanted.contains(&info::NAME) {
        let name = clip(&export.canonical_name, STRING_BYTES_MAX).as_bytes();
        put(out, option, reply::INFO, &[&info::NAME.to_be_bytes(), name]);
    }
    if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
        let description = clip(&export.description, STRING_BYTES_MAX).as_bytes();
        put(out, option, reply::INFO, &[&info::DESCRIPTION.to_be_bytes(), description]);
    }
    if wanted.contains(&info::BLOCK_SIZE) {
        let minimum = 1u32.to_be_bytes();
        let preferred = BLOCK_BYTES_PREFERRED.to_be_bytes();
        let maximum = PAYLOAD_BYTES_ADVERTISED.to_be_bytes();
        let kind = info::BLOCK_SIZE.to_be_bytes();
        put(out, option, reply::INFO, &[&kind, &minimum, &preferred, &maximum]);
    }
    put(out, option, reply::ACK, &[]);
}

fn put_refusal(out: &mut Vec<u8>, option: u32, error: &Error) {
    let reply = match error.kind() {
        Kind::NotFound | Kind::Invalid | Kind::OutOfRange => reply::ERR_UNKNOWN,
        Kind::Closed => reply::ERR_SHUTDOWN,
        _ => reply::ERR_POLICY,
    };
    let text = error.to_string();
    put(out, option, reply, &[clip(&text, STRING_BYTES_MAX).as_bytes()]);
}

fn put(out: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(reply.to_be_bytes());
    out.extend((len as u32).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}
