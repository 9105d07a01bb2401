//! A device that may be answered for a time only, because another site may take over.

use std::io;
use std::sync::{Arc, Mutex};

use cdp_core::device::{Change, Content, Device, Read, Stretch};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{Lsn, SessionId};
use cdp_nbd::budget::Budget;
use cdp_nbd::handshake::Negotiated;
use cdp_nbd::request::{Command, Request};
use cdp_nbd::round::{Class, Executor, Outlet};

type Events = Arc<Mutex<Vec<String>>>;

struct Gate {
    events: Events,
    is_gated: bool,
}

impl Gate {
    fn note(&self, what: &str) {
        self.events.lock().unwrap().push(what.to_owned());
    }
}

impl Device for Gate {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn apply(&self, _: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        self.note("apply");
        results.extend(changes.iter().map(|_| Ok(Lsn(1))));
    }
    fn flush(&self) -> Result<()> {
        self.note("flush");
        Ok(())
    }
    fn read(&self, reads: &mut [Read<'_>]) {
        // As one that waited for the lease until its patience was over.
        self.note("read");
        reads.iter_mut().for_each(|read| read.result = Err(Error::new(Kind::Closed, "no lease")));
    }
    fn extents(&self, _: u64, len: u64, _: usize) -> Result<Vec<Stretch>> {
        self.note("extents");
        Ok(vec![Stretch { len, content: Content::Data }])
    }
    fn is_gated(&self) -> bool {
        self.is_gated
    }
}

struct Line {
    events: Events,
    sent: Vec<u8>,
}

impl Outlet for Line {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Simple replies: magic, error, cookie.
        for reply in bytes.chunks(16).filter(|reply| reply.len() == 16) {
            let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
            let cookie = u64::from_be_bytes(reply[8..16].try_into().unwrap());
            self.events
                .lock()
                .unwrap()
                .push(format!("answer {cookie} {}", if error == 0 { "ok" } else { "error" }));
        }
        self.sent.extend_from_slice(bytes);
        Ok(())
    }
    fn done(&mut self, _: Class, _: u64, _: u64) {}
}

fn round(is_gated: bool) -> Vec<String> {
    let events = Events::default();
    let device = Arc::new(Gate { events: events.clone(), is_gated });
    let mut executor = Executor::new(device, SessionId(1), Negotiated::default(), Budget::new(1 << 20));
    let change = |fua| Command::Change { change: Change::Trim { offset: 0, len: 4096 }, fua };
    let commands = [
        change(false),
        Command::Read { len: 4096, whole: false },
        change(true),
        change(false),
        Command::Done,
    ];
    let requests: Vec<Request<'_>> = commands
        .into_iter()
        .zip(1..)
        .map(|(command, cookie)| Request { cookie, offset: 0, command })
        .collect();
    executor.run(&requests, &mut Line { events: events.clone(), sent: Vec::new() }).unwrap();
    let events = events.lock().unwrap();
    events.clone()
}

/// The line to the other site is cut in the middle of a round. A read that waits for the lease and does not get it must not
/// carry the good news of a write along, long after the other site went on without that write.
#[test]
fn no_answer_waits_for_a_read() {
    let events = round(true);
    let place = |what: &str| {
        events.iter().position(|event| event == what).unwrap_or_else(|| panic!("{what}: {events:?}"))
    };
    for answer in ["answer 1 ok", "answer 4 ok", "answer 5 ok"] {
        assert!(place(answer) < place("read"), "{events:?}");
    }
    assert!(place("read") < place("answer 2 error"));
    // FUA goes through the gate once more, on its own.
    assert!(place("flush") < place("answer 3 ok"));
    assert_eq!(events.iter().filter(|event| event.starts_with("answer")).count(), 5, "{events:?}");
}

/// Where nobody votes, a round is sent in as few pieces as before, in the order in which it came.
#[test]
fn without_a_gate_answers_go_together() {
    let events = round(false);
    let answers: Vec<&str> =
        events.iter().filter(|event| event.starts_with("answer")).map(String::as_str).collect();
    assert_eq!(answers, ["answer 1 ok", "answer 2 error", "answer 4 ok", "answer 5 ok", "answer 3 ok"]);
    assert!(
        events.iter().position(|event| event == "read")
            < events.iter().position(|event| event == "answer 1 ok")
    );
}
