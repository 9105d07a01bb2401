//! When a newest state goes ahead of the history, and what it costs on the line: both sides in one process, on a quiet one.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::Back;
use cdp_core::volume::shown::Shown;
use cdp_replica::receiver::{Feeding, Receiver};
use cdp_replica::sender::Sender;
use cdp_replica::status::{LinkState, LinkStatus};

const STEP_NS: u64 = 50_000_000;

struct Pair {
    a: Arc<Store>,
    b: Arc<Store>,
    feeding: Arc<Feeding>,
    now_ns: u64,
}

fn store(seed: u64) -> Arc<Store> {
    let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
    Store::create(&disk, &clock, Path::new("/store")).unwrap();
    Arc::new(Store::open(Arc::new(disk), Arc::new(clock), Path::new("/store"), "a test").unwrap())
}

impl Pair {
    /// A replica that has some history, and writes behind it that it has not heard of.
    fn new(size_bytes: u64) -> (Pair, Arc<Volume>) {
        let pair = Pair { a: store(1), b: store(2), feeding: Arc::default(), now_ns: 1_000_000_000 };
        let options = CreateOptions { segment_bytes: 1 << 20, ..CreateOptions::new(size_bytes) };
        let volume = pair.a.create_volume("disk", &options, None).unwrap();
        volume.add_replica("b:1", 0, false).unwrap();
        (pair, volume)
    }

    fn replica(&self) -> Arc<Volume> {
        self.b.volume("disk").unwrap()
    }

    /// One connection, until the replica has everything or shows something ahead of it, if it is to end there. The bytes that
    /// went there, and the states that were met.
    fn connect(&mut self, coalesces: Option<u64>, until_shown: bool) -> (usize, Vec<LinkState>) {
        let volume = self.a.volume("disk").unwrap();
        volume.flush().unwrap();
        let mut sender = Sender::new(volume.clone(), "b:1", self.now_ns);
        if let Some(bytes) = coalesces {
            sender.coalesce(bytes);
        }
        let mut receiver = Receiver::new(self.b.clone(), self.feeding.clone(), "site-a", self.now_ns);
        let (mut bytes, mut states) = (0, Vec::new());
        for _ in 0..2000 {
            self.now_ns += STEP_NS;
            sender.poll(self.now_ns).unwrap();
            let out: Vec<u8> = sender.output().drain(..).collect();
            bytes += out.len();
            receiver.receive(&out, self.now_ns).unwrap();
            receiver.poll(self.now_ns).unwrap();
            let back: Vec<u8> = receiver.output().drain(..).collect();
            sender.receive(&back, self.now_ns).unwrap();
            let mut status = LinkStatus::default();
            sender.fill_status(&mut status);
            states.push(status.state);
            let is_shown = self.b.volume("disk").is_ok_and(|replica| replica.coalesced().is_some());
            if status.acknowledged == volume.tip_lsn() || until_shown && is_shown {
                return (bytes, states);
            }
        }
        panic!("it does not end: {:?}", states.last());
    }
}

fn change(volume: &Volume, change: Change<'_>) {
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[change], &mut results);
    results.remove(0).unwrap();
}

fn write(volume: &Volume, byte: u8, block: u64, blocks: u64) {
    let data = vec![byte; (blocks * BLOCK_BYTES) as usize];
    change(volume, Change::Write { offset: block * BLOCK_BYTES, data: &data });
}

fn read(device: &dyn Device, block: u64, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; (blocks * BLOCK_BYTES) as usize];
    let mut reads = [Read { offset: block * BLOCK_BYTES, buffer: &mut bytes, result: Ok(()) }];
    device.read(&mut reads);
    let [read] = reads;
    read.result.unwrap();
    bytes
}

fn shown(replica: &Arc<Volume>) -> View {
    let shown = Shown::of(replica.clone());
    View::of(replica.clone(), &shown, shown.tip().0, "a test").unwrap()
}

fn was_ahead(states: &[LinkState]) -> bool {
    states.iter().any(|state| matches!(state, LinkState::Coalescing { .. }))
}

/// A file of a TiB was deleted while the line was down, and a database went on writing: what it costs to be usable again
/// is what is new, not what is gone; and neither side goes through the TiB block by block.
#[test]
fn a_tebibyte_that_was_trimmed_costs_nothing() {
    let (mut pair, volume) = Pair::new(4 << 40);
    let tib = (1 << 40) / BLOCK_BYTES;
    write(&volume, 1, 10, 4);
    write(&volume, 2, 2 * tib, 4);
    pair.connect(Some(0), false);
    let replica = pair.replica();
    let from = replica.tip_lsn();
    change(&volume, Change::Trim { offset: 8 * BLOCK_BYTES, len: 2 << 40 });
    for round in 0..200u8 {
        write(&volume, round | 1, tib + u64::from(round % 4), 1);
    }
    let (bytes, states) = pair.connect(Some(64 << 10), true);
    assert!(was_ahead(&states), "{states:?}");
    assert!(bytes < 40_000, "{bytes} bytes");
    let view = shown(&replica);
    assert!(view.is_ahead() && replica.tip_lsn() == from && view.size_bytes() == 4 << 40);
    for (block, blocks) in [(0, 32), (tib, 8), (2 * tib, 16)] {
        assert!(read(&view, block, blocks) == read(&*volume, block, blocks), "block {block}");
    }
    pair.connect(Some(64 << 10), false);
    assert!(replica.coalesced().is_none());
    assert!(read(&*replica, tib, 8) == read(&*volume, tib, 8));
}

/// Where little waits, or nearly all of it is new, history alone is the shortest way to the newest state.
#[test]
fn what_does_not_pay_goes_in_its_order() {
    let (mut pair, volume) = Pair::new(16 << 20);
    write(&volume, 1, 0, 4);
    pair.connect(None, false);
    for block in 0..200 {
        write(&volume, 3, block * 4, 4);
    }
    // Each block is written once: the newest state is as much as the history.
    assert!(!was_ahead(&pair.connect(Some(1), false).1));
    for round in 0..200u8 {
        write(&volume, round | 1, 5, 2);
    }
    // Less waits than that.
    assert!(!was_ahead(&pair.connect(Some(1 << 30), false).1));
    for round in 0..200u8 {
        write(&volume, round | 1, 5, 2);
    }
    assert!(was_ahead(&pair.connect(Some(1), false).1));
    assert!(read(&*pair.replica(), 0, 16) == read(&*volume, 0, 16));
}

/// A second site is added to a volume that was written to for an hour: there is nothing there yet that a newest state could lie over,
/// and a link that offers one again and again never sends anything.
#[test]
fn a_new_replica_begins_with_history() {
    let (mut pair, volume) = Pair::new(1 << 20);
    for round in 0..200u8 {
        write(&volume, round | 1, 5, 2);
    }
    let (_, states) = pair.connect(Some(1), false);
    assert!(!was_ahead(&states), "{states:?}");
    assert!(read(&*pair.replica(), 0, 16) == read(&*volume, 0, 16));
}

/// The volume grew, was set back to before the outage, and written to again: what is shown is that, with the size it has then.
/// A link that has not the option goes on with the history behind it as if nothing stood beside it.
#[test]
fn growth_and_a_rollback_in_the_outage() {
    for to_the_smaller in [false, true] {
        let (mut pair, volume) = Pair::new(2 << 20);
        for round in 0..6u8 {
            write(&volume, 10 + round, u64::from(round) * 30, 20);
        }
        let old = volume.tip_lsn();
        write(&volume, 20, 3, 4);
        if to_the_smaller {
            volume.grow(3 << 20).unwrap();
            write(&volume, 21, 600, 40);
        }
        pair.connect(None, false);
        let replica = pair.replica();
        for round in 0..100u8 {
            write(&volume, round | 1, 7, 6);
        }
        volume.grow(4 << 20).unwrap();
        write(&volume, 30, 900, 30);
        volume.rollback(Back::To(old), "a test").unwrap();
        write(&volume, 31, 100, 1);
        let size_bytes = volume.size_bytes();
        let (_, states) = pair.connect(Some(1), true);
        assert!(was_ahead(&states));
        let view = shown(&replica);
        assert_eq!(view.size_bytes(), size_bytes);
        let blocks = size_bytes / BLOCK_BYTES;
        assert!(read(&view, 0, blocks) == read(&*volume, 0, blocks));
        drop(view);
        let (_, states) = pair.connect(None, false);
        assert!(!was_ahead(&states));
        assert!(replica.coalesced().is_none() && read(&*replica, 0, blocks) == read(&*volume, 0, blocks));
        for lsn in 0..=volume.tip_lsn().0 {
            let at = |volume: &Arc<Volume>| View::open(volume.clone(), Lsn(lsn), "a test").unwrap();
            let blocks = volume.size_at(Lsn(lsn)) / BLOCK_BYTES;
            assert!(read(&at(&volume), 0, blocks) == read(&at(&replica), 0, blocks), "lsn:{lsn}");
        }
    }
}

/// The line stalls without breaking, for hours: the second site must not wait for all that was written meanwhile before it has the
/// newest state, only because nobody cut the connection. It comes again and again, each time when the last one was filled in.
#[test]
fn a_stalled_line_is_an_outage_too() {
    let (mut pair, volume) = Pair::new(1 << 20);
    write(&volume, 1, 0, 8);
    pair.connect(Some(64 << 10), false);
    for outage in 0..2u8 {
        let (mut sender, mut receiver) = (
            Sender::new(volume.clone(), "b:1", pair.now_ns),
            Receiver::new(pair.b.clone(), pair.feeding.clone(), "site-a", pair.now_ns),
        );
        sender.coalesce(64 << 10);
        let mut ended = None;
        for step in 0..2000u32 {
            pair.now_ns += STEP_NS;
            if (20..100).contains(&step) {
                // What does not compress.
                let mut noise = u64::from(step + 1000 * u32::from(outage));
                let mut next = || {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise.to_be_bytes()
                };
                let data: Vec<u8> = (0..8192).flat_map(|_| next()).collect();
                change(&volume, Change::Write { offset: u64::from(step % 4) << 16, data: &data });
                volume.flush().unwrap();
            }
            if let Err(fault) = sender.poll(pair.now_ns) {
                ended = Some((step, fault.to_string()));
                break;
            }
            // So much goes through it in a step.
            let line = sender.output().len().min(4000);
            let out: Vec<u8> = sender.output().drain(..line).collect();
            receiver.receive(&out, pair.now_ns).unwrap();
            receiver.poll(pair.now_ns).unwrap();
            let back: Vec<u8> = receiver.output().drain(..).collect();
            sender.receive(&back, pair.now_ns).unwrap();
        }
        let (step, says) = ended.expect("it goes on as if nothing was");
        assert!(says.contains("newest state goes first") && step > 200, "after {step} steps: {says}");
        drop((sender, receiver));
        let (_, states) = pair.connect(Some(64 << 10), true);
        assert!(was_ahead(&states), "outage {outage}: {states:?}");
        assert!(read(&shown(&pair.replica()), 0, 64) == read(&*volume, 0, 64));
        // While it is shown none follows, and history has no gap in the end.
        let (_, states) = pair.connect(Some(64 << 10), false);
        assert!(!was_ahead(&states), "outage {outage}: {states:?}");
        pair.replica().maintain().unwrap();
        assert!(pair.replica().coalesced_state().is_none());
    }
    for lsn in 1..=volume.tip_lsn().0 {
        let view = |volume: &Arc<Volume>| View::open(volume.clone(), Lsn(lsn), "a test").unwrap();
        assert!(read(&view(&pair.replica()), 0, 64) == read(&view(&volume), 0, 64), "lsn:{lsn}");
    }
}
