//! An incremental backup must cost what changed, not how long the history is: a nightly job that reads more of the
//! index every night, or holds all changed blocks in memory, takes its server down in the end.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};

const SIZE_BYTES: u64 = 1 << 40;
const STORE: &str = "/store";
const RECORDS: u64 = 1_000_000;
/// So many records of every thousand change one block more than once.
const HOT: u64 = 200;
/// More than this while going through all changed blocks would mean that they are held in memory.
const GROWTH_MAX_KIB: u64 = 48 << 10;

/// Which block a record changes: all over the volume, some of them again and again.
fn place(record: u64) -> u64 {
    let record = if record % 1000 < HOT { record % 1000 } else { record };
    record.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE_BYTES / BLOCK_BYTES)
}

fn kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn going_through_a_million_changes_takes_little_memory_and_few_reads() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    clock.set_tick(1000);
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let open =
        || Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap();
    let store = open();
    let options = CreateOptions { segment_bytes: 40 << 20, ..CreateOptions::new(SIZE_BYTES) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    let mut results = Vec::new();
    for first in (0..RECORDS).step_by(250) {
        let changes: Vec<Change<'_>> = (first..first + 250)
            .map(|n| Change::Trim { offset: place(n) * BLOCK_BYTES, len: BLOCK_BYTES })
            .collect();
        results.clear();
        volume.apply(SessionId(1), &changes, &mut results);
        if (first + 250).is_multiple_of(5000) {
            volume.maintain().unwrap();
        }
    }
    (0..8).for_each(|_| volume.maintain().unwrap());
    store.close().unwrap();
    drop((volume, store));

    let store = open();
    let volume = store.volume("disk").unwrap();
    let tip = volume.tip_lsn();
    // The high-water mark begins again at what is in use now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = kib("VmRSS:");
    let (mut blocks, mut end) = (0, 0);
    for extent in volume.changed(Lsn::ZERO, tip).unwrap().extents() {
        let extent = extent.unwrap();
        assert!(extent.start.0 >= end);
        (blocks, end) = (blocks + extent.blocks, extent.end());
    }
    let growth = kib("VmHWM:").saturating_sub(before);
    let mut places: Vec<u64> = (0..RECORDS).map(place).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(blocks, places.len() as u64);
    println!("{blocks} changed blocks of {RECORDS} records: {growth} KiB more memory");
    assert!(growth <= GROWTH_MAX_KIB, "{growth} KiB");

    drop((volume, store));
    let reads_of = |a: u64, b: u64| {
        // With nothing cached.
        let store = open();
        let volume = store.volume("disk").unwrap();
        disk.reset_reads();
        let changes = volume.changed(Lsn(a), Lsn(b)).unwrap();
        let blocks: u64 = changes.extents().map(|extent| extent.unwrap().blocks).sum();
        (blocks, disk.reads().bytes)
    };
    let (all, all_bytes) = reads_of(0, tip.0);
    let (few, few_bytes) = reads_of(tip.0 - 100, tip.0);
    println!(
        "{all} blocks took {all_bytes} bytes of the index, the {few} of the last 100 records {few_bytes}"
    );
    assert!(few <= 100 && few > 0);
    assert!(few_bytes * 4 < all_bytes, "{few_bytes} bytes for 100 records, {all_bytes} for all");
}
