//! A benchmark that trusts the server measures how fast a server can lose data. Here the load client meets a
//! small server in memory that loses, swaps, tears and misplaces writes, and has to find each of them.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cdp_benches::client::{Address, Connection};
use cdp_benches::load::{self, Load, Place, Step, Target, Timing, Unit};
use cdp_benches::stamp::Ledger;
use cdp_benches::wire::{Command, Request};

const SIZE: u64 = 8 << 20;
/// Every so many writes one goes wrong; the first of them well past the fill.
const BAD_WRITE: u64 = 40;

/// What the server does to one write.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    Lost,
    /// Lands one block further.
    Misplaced,
    /// Only the first 512 bytes of it land.
    Torn,
    /// One bit is flipped between the stamps.
    Flipped,
    /// Answered with EIO.
    Refused,
    /// The answer bears a cookie that nobody sent.
    ForeignCookie,
}

struct Disk {
    bytes: Vec<u8>,
    writes: u64,
}

/// Serves connections until the test ends; `structured` decides how reads are answered.
fn serve(listener: UnixListener, fault: Fault) {
    let disk = Arc::new(Mutex::new(Disk { bytes: vec![0; SIZE as usize], writes: 0 }));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let disk = disk.clone();
            thread::spawn(move || {
                let _ = serve_one(stream, &disk, fault);
            });
        }
    });
}

fn number(stream: &mut impl Read, bytes: usize) -> io::Result<u64> {
    let mut buffer = [0; 8];
    stream.read_exact(&mut buffer[8 - bytes..])?;
    Ok(u64::from_be_bytes(buffer))
}

fn serve_one(mut stream: UnixStream, disk: &Mutex<Disk>, fault: Fault) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    number(&mut stream, 4)?;
    let mut structured = false;
    loop {
        number(&mut stream, 8)?;
        let option = number(&mut stream, 4)? as u32;
        let len = number(&mut stream, 4)? as usize;
        stream.read_exact(&mut vec![0; len])?;
        let reply = |kind: u32, data: &[u8]| {
            let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            out.extend(option.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
            out
        };
        match option {
            8 => {
                structured = true;
                stream.write_all(&reply(1, &[]))?;
            }
            7 => {
                let mut info = vec![0, 0];
                info.extend(SIZE.to_be_bytes());
                info.extend([0x01, 0x2d]);
                stream.write_all(&reply(3, &info))?;
                stream.write_all(&reply(1, &[]))?;
                break;
            }
            other => panic!("option {other} is not expected"),
        }
    }
    transmission(&mut stream, disk, fault, structured)
}

/// Answers in pairs, the second first, to see that replies out of order are told apart.
fn transmission(
    stream: &mut UnixStream,
    disk: &Mutex<Disk>,
    fault: Fault,
    structured: bool,
) -> io::Result<()> {
    let mut held: VecDeque<Vec<u8>> = VecDeque::new();
    stream.set_nonblocking(false)?;
    loop {
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        let mut magic = [0; 4];
        match stream.read(&mut magic[..1]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                while let Some(reply) = held.pop_back() {
                    stream.write_all(&reply)?;
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        stream.set_read_timeout(None)?;
        stream.read_exact(&mut magic[1..])?;
        assert_eq!(magic, [0x25, 0x60, 0x95, 0x13]);
        let (_flags, command) = (number(stream, 2)?, number(stream, 2)?);
        let (cookie, offset, len) = (number(stream, 8)?, number(stream, 8)?, number(stream, 4)?);
        let mut data = vec![0; if command == 1 { len as usize } else { 0 }];
        stream.read_exact(&mut data)?;
        held.push_back(answer(
            &mut disk.lock().unwrap(),
            fault,
            structured,
            command,
            cookie,
            offset,
            len,
            data,
        ));
        if held.len() > 1 {
            while let Some(reply) = held.pop_back() {
                stream.write_all(&reply)?;
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "a request, spelled out")]
fn answer(
    disk: &mut Disk,
    fault: Fault,
    structured: bool,
    command: u64,
    mut cookie: u64,
    offset: u64,
    len: u64,
    mut data: Vec<u8>,
) -> Vec<u8> {
    let mut error = 0u32;
    let (mut at, mut count) = (offset as usize, len as usize);
    if command == 1 {
        disk.writes += 1;
        if disk.writes.is_multiple_of(BAD_WRITE) {
            match fault {
                Fault::None => {}
                Fault::Lost => count = 0,
                Fault::Misplaced => at = (at + 4096) % (SIZE as usize - count),
                Fault::Torn => count = 512,
                Fault::Flipped => data[count - 100] ^= 4,
                Fault::Refused => (error, count) = (5, 0),
                Fault::ForeignCookie => cookie += 1 << 40,
            }
        }
        disk.bytes[at..at + count].copy_from_slice(&data[..count]);
    }
    if command == 4 {
        disk.bytes[at..at + count].fill(0);
    }
    let mut out = Vec::new();
    if command == 0 && structured {
        // Half as data, half as a hole where it is zeros, else as data again; then the end.
        let half = count / 2;
        for (part, at) in [(0..half, at), (half..count, at + half)] {
            let bytes = &disk.bytes[at..at + part.len()];
            let hole = bytes.iter().all(|&byte| byte == 0);
            let body = if hole { (part.len() as u32).to_be_bytes().to_vec() } else { bytes.to_vec() };
            chunk(&mut out, 0, if hole { 2 } else { 1 }, cookie, &[&(at as u64).to_be_bytes(), &body[..]]);
        }
        chunk(&mut out, 1, 0, cookie, &[]);
        return out;
    }
    out.extend(0x6744_6698u32.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    if command == 0 {
        out.extend(&disk.bytes[at..at + count]);
    }
    out
}

fn chunk(out: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, pieces: &[&[u8]]) {
    out.extend(0x668e_33efu32.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend((pieces.iter().map(|piece| piece.len()).sum::<usize>() as u32).to_be_bytes());
    pieces.iter().for_each(|piece| out.extend(*piece));
}

/// Fill, load, read back, against a server with this fault: what the client says.
fn story(fault: Fault, structured: bool, cycle: &'static [Step]) -> io::Result<f64> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    serve(UnixListener::bind(&path)?, fault);
    let ledger = Ledger::new(SIZE);
    let address = Address::Unix(path);
    let target = Target {
        address: &address,
        export: "disk",
        server_pid: std::process::id(),
        disk: None,
        ledger: &ledger,
        structured,
    };
    load::fill(&target, SIZE)?;
    let load = Load { connections: 2, depth: 8, cycle, unit: Unit::Requests };
    let timing = Timing { warm_up: Duration::from_millis(10), measured: Duration::from_millis(150), seed: 7 };
    let outcome = load::run(&load, &target, timing)?;
    load::verify(&target, SIZE)?;
    Ok(outcome.rate)
}

const WRITES: &[Step] = &[Step::Write(1, Place::Sequential, 8192)];

#[test]
fn an_honest_server_passes_with_simple_and_structured_replies() {
    const ALL: &[Step] = &[
        Step::Mixed(50, 4096),
        Step::WriteFua(Place::Random, 4096),
        Step::Trim(65536),
        Step::Write(3, Place::Sequential, 131_072),
        Step::Flush,
        Step::Wait,
        Step::Read(2, Place::Log, 8192),
    ];
    for structured in [false, true] {
        let rate = story(Fault::None, structured, ALL).unwrap();
        assert!(rate > 50.0, "{rate} requests per second");
    }
}

#[test]
fn every_kind_of_lost_or_changed_write_is_found() {
    for (fault, said) in [
        (Fault::Lost, "wrong data"),
        (Fault::Misplaced, "wrong data"),
        (Fault::Torn, "wrong data"),
        (Fault::Flipped, "wrong data"),
        (Fault::Refused, "Write of 8192 bytes"),
        (Fault::ForeignCookie, "not in flight"),
    ] {
        let error = story(fault, false, WRITES).expect_err(&format!("{fault:?} went unseen"));
        assert!(error.to_string().contains(said), "{fault:?}: {error}");
    }
}

#[test]
fn a_read_that_comes_short_in_chunks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        let hear = |stream: &mut UnixStream, bytes: usize| stream.read_exact(&mut vec![0; bytes]).unwrap();
        let reply = |option: u32, kind: u32, data: &[u8]| {
            let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            out.extend([option, kind, data.len() as u32].map(u32::to_be_bytes).concat());
            [&out, data].concat()
        };
        hear(&mut stream, 4 + 16);
        stream.write_all(&reply(8, 1, &[])).unwrap();
        hear(&mut stream, 16 + 10);
        stream.write_all(&reply(7, 3, &[&[0, 0], &SIZE.to_be_bytes()[..], &[1, 0x2d]].concat())).unwrap();
        stream.write_all(&reply(7, 1, &[])).unwrap();
        hear(&mut stream, 28);
        let mut out = Vec::new();
        chunk(&mut out, 0, 1, 0, &[&0u64.to_be_bytes(), &[7; 2048]]);
        chunk(&mut out, 1, 0, 0, &[]);
        stream.write_all(&out).unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    let mut connection = Connection::open(&Address::Unix(path), "disk", 1, true).unwrap();
    let error = connection.call(Request { command: Command::Read, fua: false, offset: 0, len: 4096 }, 0);
    assert!(error.unwrap_err().to_string().contains("2048 of 4096 bytes"), "only half of it came");
}
