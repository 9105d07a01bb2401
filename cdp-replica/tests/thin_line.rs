//! A thin line. People copy files: what stands at the second site already is not to cross it again; and that is a guess of the
//! sender's that must never become the receiver's. However thin it is, it gets on.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::Volume;
use cdp_replica::fault::{Fault, FaultKind};
use cdp_replica::receiver::Receiver;
use cdp_replica::sender::Sender;
use cdp_replica::status::LinkStatus;
use cdp_replica::wire::control::CODING_REFERENCES;

const STEP_NS: u64 = 5_000_000;
const SIZE: u64 = 16 << 20;
const FILE_BYTES: usize = 1 << 20;

fn store(seed: u64) -> (SimDisk, SimClock, Arc<Store>) {
    let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
    Store::create(&disk, &clock, Path::new("/store")).unwrap();
    let store =
        Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new("/store"), "a test").unwrap();
    (disk, clock, Arc::new(store))
}

struct Pair {
    here: Arc<Volume>,
    there: Arc<Store>,
    disk_there: SimDisk,
    clocks: [SimClock; 2],
    sender: Sender,
    receiver: Receiver,
    now_ns: u64,
    _store: Arc<Store>,
}

impl Pair {
    fn new(codings: u32) -> Pair {
        let (_, clock, store_here) = store(1);
        let (disk_there, clock_there, there) = store(2);
        let options = CreateOptions { segment_bytes: 1 << 20, ..CreateOptions::new(SIZE) };
        let here = store_here.create_volume("disk", &options, None).unwrap();
        here.add_replica("there", 0, false).unwrap();
        let mut sender = Sender::new(here.clone(), "there", 0);
        sender.restrict_codings(codings);
        let receiver = Receiver::new(there.clone(), Arc::default(), "here", 0);
        let clocks = [clock, clock_there];
        Pair { here, there, disk_there, clocks, sender, receiver, now_ns: 0, _store: store_here }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (number, part) in data.chunks(64 << 10).enumerate() {
            let mut results = Vec::new();
            let offset = offset + (number as u64) * (64 << 10);
            self.here.apply(SessionId(1), &[Change::Write { offset, data: part }], &mut results);
            results.remove(0).unwrap();
        }
        self.here.flush().unwrap();
    }

    /// Until the other side has everything: the bytes that went there.
    fn catch_up(&mut self) -> Result<usize, Fault> {
        self.catch_up_by(usize::MAX, STEP_NS)
    }

    /// With so many bytes at most in each step of time.
    fn catch_up_by(&mut self, bytes_max: usize, step_ns: u64) -> Result<usize, Fault> {
        let mut sent = 0;
        let mut status = LinkStatus::default();
        while status.acknowledged < self.here.durable_lsn() {
            self.now_ns += step_ns;
            self.clocks.iter().for_each(|clock| clock.advance(step_ns));
            self.sender.poll(self.now_ns)?;
            let output = self.sender.output();
            let bytes: Vec<u8> = output.drain(..output.len().min(bytes_max)).collect();
            sent += bytes.len();
            self.receiver.receive(&bytes, self.now_ns)?;
            self.receiver.poll(self.now_ns)?;
            let bytes = std::mem::take(self.receiver.output());
            self.sender.receive(&bytes, self.now_ns)?;
            self.sender.fill_status(&mut status);
        }
        Ok(sent)
    }
}

fn read(volume: &Volume, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut reads = [Read { offset, buffer: &mut bytes, result: Ok(()) }];
    volume.read(&mut reads);
    let [read] = reads;
    read.result.unwrap();
    bytes
}

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    (0..len).map(|_| chance.below(256) as u8).collect()
}

#[test]
fn a_copied_file_does_not_travel_again() {
    let file = random_bytes(5, FILE_BYTES);
    let mut changed = file.clone();
    changed[300_000..300_100].fill(7);
    for (codings, part_max) in [(u32::MAX, 0.02), (!CODING_REFERENCES, 1.1)] {
        let mut pair = Pair::new(codings);
        pair.write(1 << 20, &file);
        assert!(pair.catch_up().unwrap() >= FILE_BYTES);
        // A copy; one that is changed a little; and over that the first one, of which all stands at the other side.
        let mut sent = Vec::new();
        for (offset, data) in [(3 << 20, &file), (5 << 20, &changed), (5 << 20, &file)] {
            pair.write(offset, data);
            sent.push(pair.catch_up().unwrap());
            assert!(read(&pair.there.volume("disk").unwrap(), offset, FILE_BYTES) == *data, "{offset}");
        }
        let part = sent[0] as f64 / FILE_BYTES as f64;
        assert!(part < part_max, "{sent:?} with codings {codings:x}");
        assert!(part > part_max / 10.0, "{sent:?} with codings {codings:x}");
    }
}

/// What was changed or trimmed meanwhile is no place for its content any more.
#[test]
fn a_place_that_changed_is_not_referred_to() {
    let file = random_bytes(6, FILE_BYTES);
    let mut pair = Pair::new(u32::MAX);
    pair.write(1 << 20, &file);
    pair.catch_up().unwrap();
    let mut results = Vec::new();
    pair.here.apply(SessionId(1), &[Change::Trim { offset: 1 << 20, len: 1 << 19 }], &mut results);
    results.remove(0).unwrap();
    pair.write(3 << 20, &file);
    let sent = pair.catch_up().unwrap();
    assert!((FILE_BYTES / 2..FILE_BYTES * 6 / 10).contains(&sent), "{sent}");
    assert!(read(&pair.there.volume("disk").unwrap(), 3 << 20, FILE_BYTES) == file);
}

/// The other side's disk lost what is referred to: it must not make something up, and says which kind of coding it cannot undo, so
/// that the next connection does without.
#[test]
fn a_bad_block_is_not_copied() {
    let file = random_bytes(7, 64 << 10);
    let mut pair = Pair::new(u32::MAX);
    pair.write(1 << 20, &file);
    pair.catch_up().unwrap();
    let there = pair.there.volume("disk").unwrap();
    let tip = there.tip_lsn();
    for entry in pair.disk_there.list(there.dir()).unwrap() {
        if entry.name.ends_with(".seg") {
            pair.disk_there
                .mutate(there.dir().join(&entry.name), |bytes| {
                    let at = bytes.windows(64).position(|window| *window == file[8192..8256]);
                    if let Some(at) = at {
                        bytes[at] ^= 1;
                    }
                })
                .unwrap();
        }
    }
    pair.write(3 << 20, &file);
    let fault = pair.catch_up().expect_err("something was made up");
    assert_eq!(fault.kind, FaultKind::Coding, "{fault}");
    assert_eq!(there.tip_lsn(), tip, "something of it was appended");
}

/// A line, or a limit, over which one frame takes longer than silence is borne: it is no silence.
#[test]
fn a_frame_may_take_minutes() {
    let mut pair = Pair::new(u32::MAX);
    pair.write(1 << 20, &random_bytes(8, FILE_BYTES));
    // 2 KiB a second.
    let sent = pair.catch_up_by(1 << 10, 500_000_000).unwrap();
    assert!(sent >= FILE_BYTES);
    // And silence is silence.
    pair.write(1 << 20, &[1; 512]);
    let fault = pair.catch_up_by(0, 500_000_000).expect_err("it went on");
    assert_eq!(fault.kind, FaultKind::Closing, "{fault}");
}
