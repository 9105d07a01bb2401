//! First copies of replicas, crashed at every boundary of what becomes of them: a replica must never count blocks that
//! are not there any more, for they are zeros, and nobody sends them again.

use std::path::Path;

use cdp_core::error::Kind;
use cdp_core::format::record::Chain;
use cdp_core::history::epochs::Epochs;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::Store;
use cdp_core::store::copies::ReplicaCopy;
use cdp_core::store::replicas::{Copied, Origin};

use crate::clones::{each_crash, open};
use crate::harness::Outcome;
use crate::harness::check::read_blocks;
use crate::harness::rig::STORE;

const BLOCKS: u64 = 64;
const SIZE_BYTES: u64 = 1 << 20;
/// So many blocks of a copy are settled before it is crashed.
const SETTLED: u64 = 24;
const ID: VolumeId = VolumeId(9);

fn origin(lsn: u64) -> Origin {
    let copied = Copied { lsn: Lsn(lsn), at: Timestamp(5), chain: Chain([7; 16]), size_bytes: SIZE_BYTES };
    Origin {
        id: ID,
        first_size_bytes: SIZE_BYTES,
        created: Timestamp(1),
        marker_interval_ns: 0,
        segment_bytes: 64 << 10,
        journal_cap_bytes: None,
        copied: Some(copied),
        epochs: Epochs::of(ID, &[]).unwrap(),
    }
}

fn block(lsn: u64, number: u64) -> [u8; 4096] {
    [(1 + lsn * 100 + number) as u8; 4096]
}

fn send(copy: &mut ReplicaCopy, lsn: u64, from: u64, to: u64) {
    for number in from..to {
        copy.write(Lba(number), &block(lsn, number)).unwrap();
    }
}

fn begun(seed: u64) -> (SimDisk, Store) {
    let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, seed);
    let mut copy = store.take_copy("disk", &origin(3)).unwrap();
    send(&mut copy, 3, 0, SETTLED);
    copy.settle(SETTLED * BLOCK_BYTES).unwrap();
    (disk, store)
}

/// Whoever sends goes on from where the manifest says; the volume is then what was sent, every block of it.
fn goes_on(store: &Store, lsn: u64) -> Outcome {
    let volume = match store.volume("disk") {
        Ok(volume) => volume,
        Err(_) => {
            let mut copy = store.take_copy("disk", &origin(lsn)).map_err(|error| error.to_string())?;
            let done = copy.state().done_bytes / BLOCK_BYTES;
            send(&mut copy, lsn, done, BLOCKS);
            store.finish_copy("disk", copy).map_err(|error| error.to_string())?
        }
    };
    let bytes = read_blocks(&*volume, 0, BLOCKS).map_err(|error| error.to_string())?;
    for (number, found) in (0..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
        ensure!(found == block(lsn, number), "block {number} is {}, not what was sent", found[0]);
    }
    Ok(())
}

#[test]
fn every_boundary_of_dropping_one() {
    let (disk, store) = begun(1);
    disk.record_boundaries(true);
    store.drop_copy(ID).unwrap();
    let mut seen = [false; 2];
    let crashes = each_crash(&disk, 1, |_, store| {
        let copies = store.copies().map_err(|error| error.to_string())?;
        seen[copies.len()] = true;
        goes_on(&store, 3)
    });
    assert_eq!(seen, [true; 2]);
    println!("dropping a first copy: {crashes} crashes");
}

/// The other site's pin is gone, and it sends another state instead.
#[test]
fn every_boundary_of_beginning_anew_with_another_state() {
    let (disk, store) = begun(2);
    disk.record_boundaries(true);
    let mut copy = store.take_copy("disk", &origin(4)).unwrap();
    send(&mut copy, 4, 0, 8);
    copy.settle(8 * BLOCK_BYTES).unwrap();
    let boundaries = disk.take_boundaries();
    // Whichever of the two comes back.
    let crashes = crash_all(&boundaries, 3) + crash_all(&boundaries, 4);
    println!("beginning anew: {crashes} crashes");
}

fn crash_all(boundaries: &[cdp_core::io::sim::Boundary], lsn: u64) -> u64 {
    let mut crashes = 0;
    for boundary in boundaries {
        for style in 0..4 {
            let disk = boundary.snapshot.mount(lsn);
            let disk = if style == 0 { disk.crash_process() } else { disk.crash_power(style) };
            let outcome = goes_on(&open(&disk, style), lsn);
            assert_eq!(
                outcome,
                Ok(()),
                "state {lsn}, style {style}, {:?} of {}",
                boundary.what,
                boundary.path
            );
            crashes += 1;
        }
    }
    crashes
}

/// A connection comes while the copy is removed, and one while it gets its name: both are told to come again.
#[test]
fn who_has_it_in_hand_has_it_alone() {
    let (_disk, store) = begun(3);
    let held = store.take_copy("disk", &origin(3)).unwrap();
    assert!(store.drop_copy(ID).is_err_and(|error| error.kind() == Kind::Busy));
    assert!(store.take_copy("disk", &origin(4)).err().is_some_and(|error| error.kind() == Kind::Busy));
    drop(held);
    store.drop_copy(ID).unwrap();
    assert!(store.drop_copy(ID).is_err_and(|error| error.kind() == Kind::NotFound));
    goes_on(&store, 4).unwrap();
}
