//! NBD requests: what any client may send once it has an export.
//!
//! The first byte says what was negotiated, the second in which sizes the rest arrives. However it is cut, the
//! same requests are decoded; each is answered exactly once, and the device holds what the accepted ones say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use cdp_core::device::Change;
use cdp_core::ids::SessionId;
use cdp_nbd::budget::Budget;
use cdp_nbd::contexts::Contexts;
use cdp_nbd::handshake::Negotiated;
use cdp_nbd::limits::{LARGE_BYTES_TOTAL, ROUND_REQUESTS_MAX};
use cdp_nbd::request::{Command, Decoded, Request, Session};
use cdp_nbd::round::{Class, Executor, Outlet};

use crate::bytes::{be16, be32, be64};
use crate::ram::{self, AllDirty, Ram};

const DISK_BYTES: usize = 64 << 10;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;
const DONE: u16 = 1;

/// Runs one input.
pub fn run(data: &[u8]) {
    let [agreed, cut, bytes @ ..] = data else { return };
    let structured = agreed & 1 != 0;
    let extended = agreed & 2 != 0;
    let negotiated = Negotiated {
        structured: structured || extended,
        extended,
        contexts: match structured || extended {
            true => Contexts::new(agreed & 4 != 0, usize::from(agreed >> 4 & 3)),
            false => Contexts::default(),
        },
    };
    let read_only = agreed & 8 != 0;
    let whole = converse(bytes, bytes.len().max(1), negotiated, read_only);
    answered_once(&whole, negotiated);
    for cut in [1, usize::from(*cut) + 1] {
        let again = converse(bytes, cut, negotiated, read_only);
        assert_eq!(again.requests, whole.requests, "other requests when {cut} bytes come at a time");
        answered_once(&again, negotiated);
    }
}

/// What is remembered of a request: its cookie, how long its data are if it is a read, and all of it as text.
#[derive(PartialEq, Eq, Debug)]
struct Noted {
    cookie: u64,
    read: Option<u64>,
    text: String,
}

struct Conversation {
    requests: Vec<Noted>,
    replies: Vec<u8>,
}

struct Mouth(Vec<u8>);

impl Outlet for Mouth {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn done(&mut self, _class: Class, _requests: u64, _bytes: u64) {}
}

fn converse(bytes: &[u8], cut: usize, negotiated: Negotiated, read_only: bool) -> Conversation {
    let device = Arc::new(Ram::new(DISK_BYTES, read_only));
    let mut model = vec![0; DISK_BYTES];
    let mut session = Session::new(negotiated, DISK_BYTES as u64, read_only);
    let mut executor =
        Executor::new(device.clone(), SessionId(1), negotiated, Budget::new(LARGE_BYTES_TOTAL))
            .with_bitmaps(vec![Arc::new(AllDirty), Arc::new(AllDirty), Arc::new(AllDirty)]);
    let mut mouth = Mouth(Vec::new());
    let mut requests = Vec::new();
    let (mut at, mut available, mut open) = (0, 0, true);
    while open {
        let mut round: Vec<Request<'_>> = Vec::new();
        while round.len() < ROUND_REQUESTS_MAX {
            let have = available - at;
            let mut note = |request: Request<'_>, requests: &mut Vec<Noted>| {
                requests.push(noted(&request));
                if let Command::Change { change, .. } = &request.command {
                    ram::apply(&mut model, change);
                }
            };
            match session.decode(&bytes[at..available]) {
                Decoded::Need(wanted) => {
                    assert!(wanted > have, "{wanted} bytes are wanted, {have} are there");
                    open = available < bytes.len();
                    available = bytes.len().min(available + cut);
                    break;
                }
                Decoded::Skipped(used) => {
                    assert!(used > 0 && used <= have, "skipped {used} of {have}");
                    at += used;
                }
                Decoded::Request(used, request) => {
                    assert!(used <= have, "used {used} of {have}");
                    at += used;
                    note(request.clone(), &mut requests);
                    round.push(request);
                }
                Decoded::LastRequest(request) => {
                    note(request.clone(), &mut requests);
                    round.push(request);
                    open = false;
                    break;
                }
                Decoded::Close => {
                    open = false;
                    break;
                }
            }
        }
        if executor.run(&round, &mut mouth).is_err() {
            panic!("a round fails although every reply can be sent");
        }
    }
    assert!(*device.bytes() == model, "the device does not hold what was asked for");
    Conversation { requests, replies: mouth.0 }
}

fn noted(request: &Request<'_>) -> Noted {
    let text = match &request.command {
        Command::Change { change: Change::Write { offset, data }, fua } => {
            let sum = data.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            format!("write {offset} {} {sum} {fua}", data.len())
        }
        other => format!("{} {other:?}", request.offset),
    };
    let read = match request.command {
        Command::Read { len, .. } => Some(len),
        _ => None,
    };
    Noted { cookie: request.cookie, read, text }
}

/// Walks over the replies. With distinct cookies, each must come exactly once, and a read in full.
fn answered_once(conversation: &Conversation, negotiated: Negotiated) {
    let reads: BTreeMap<u64, Option<u64>> =
        conversation.requests.iter().map(|noted| (noted.cookie, noted.read)).collect();
    if reads.len() < conversation.requests.len() {
        return;
    }
    let mut answered = BTreeSet::new();
    let mut arrived: BTreeMap<u64, u64> = BTreeMap::new();
    let mut rest = &conversation.replies[..];
    while !rest.is_empty() {
        let reply = next_reply(rest, negotiated, &reads);
        let wanted = reads.get(&reply.cookie).unwrap_or_else(|| panic!("an answer to nobody"));
        assert!(!answered.contains(&reply.cookie), "an answer behind the last one");
        *arrived.entry(reply.cookie).or_default() += reply.data;
        if reply.last {
            answered.insert(reply.cookie);
            if let Some(len) = wanted
                && !reply.failed
            {
                assert_eq!(arrived[&reply.cookie], *len, "a read comes short or long");
            }
        }
        rest = &rest[reply.bytes..];
    }
    assert_eq!(answered.len(), conversation.requests.len(), "not every request is answered");
}

struct Reply {
    cookie: u64,
    /// Bytes of a read that it brings, holes included.
    data: u64,
    last: bool,
    failed: bool,
    /// Its length on the wire.
    bytes: usize,
}

fn next_reply(rest: &[u8], negotiated: Negotiated, reads: &BTreeMap<u64, Option<u64>>) -> Reply {
    let magic = be32(&rest[0..4]);
    if magic == SIMPLE_MAGIC {
        assert!(!negotiated.extended, "a simple reply although extended headers were agreed on");
        let (error, cookie) = (be32(&rest[4..8]), be64(&rest[8..16]));
        let read = reads.get(&cookie).copied().flatten();
        assert!(read.is_none() || !negotiated.structured, "a read is answered with a simple reply");
        let data = if error == 0 { read.unwrap_or(0) } else { 0 };
        return Reply { cookie, data, last: true, failed: error != 0, bytes: 16 + data as usize };
    }
    let (flags, kind, cookie) = (be16(&rest[4..6]), be16(&rest[6..8]), be64(&rest[8..16]));
    let (header, len) = match magic {
        CHUNK_MAGIC if negotiated.structured && !negotiated.extended => (20, u64::from(be32(&rest[16..20]))),
        EXTENDED_MAGIC if negotiated.extended => (32, be64(&rest[24..32])),
        _ => panic!("reply magic {magic:#010x}"),
    };
    let payload = &rest[header..header + len as usize];
    let last = flags & DONE != 0;
    let (data, failed) = match kind {
        0 => {
            assert!(last && len == 0, "a chunk for nothing");
            (0, false)
        }
        1 => (len - 8, false),
        2 => (be32(&payload[8..12]).into(), false),
        5 => {
            let extents = &payload[4..];
            assert!(!extents.is_empty() && extents.len().is_multiple_of(8));
            assert!(extents.chunks(8).all(|extent| be32(&extent[0..4]) > 0), "an extent of no bytes");
            (0, false)
        }
        6 => {
            let extents = &payload[8..];
            assert_eq!(extents.len(), 16 * be32(&payload[4..8]) as usize);
            assert!(extents.chunks(16).all(|extent| be64(&extent[0..8]) > 0), "an extent of no bytes");
            (0, false)
        }
        _ => {
            assert!(kind & 0x8000 != 0, "chunk type {kind}");
            assert!(be32(&payload[0..4]) != 0, "an error that is none");
            assert!(payload.len() >= 6 + usize::from(be16(&payload[4..6])));
            (0, true)
        }
    };
    Reply { cookie, data, last, failed, bytes: header + len as usize }
}
