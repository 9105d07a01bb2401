//! A disk that is fuller than the caps that were set: history goes all the same.

use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::read_file;
use cdp_core::io::sim::{Fault, FaultKind, PowerLoss, SimClock, SimDisk, WALL_START_NS, When};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::verify::verify;

use crate::harness::check::read_blocks;
use crate::harness::rig::{self, Rig};
use crate::harness::workload::content;
use crate::harness::wrap;

const SEGMENT_BYTES: u64 = 64 << 10;
const VOLUME_BYTES: u64 = 16 << 20;
const JOURNAL_SEGMENTS: u64 = 30;
/// What the disk has beside that.
const FREE_SEGMENTS: u64 = 3;
const HOUR_NS: u64 = 3_600_000_000_000;

/// Neither are neighbours.
const APART: u64 = 3;

fn write(volume: &Volume, lba: u64, number: u64) -> cdp_core::error::Result<Lsn> {
    let data = content(number, BLOCK_BYTES as usize);
    let mut results = Vec::new();
    volume.apply(
        SessionId(1),
        &[Change::Write { offset: lba * APART * BLOCK_BYTES, data: &data }],
        &mut results,
    );
    results.remove(0)
}

/// Every block up to `count` has what was written there.
fn looks(volume: &Volume, count: u64) {
    for lba in 0..count {
        let bytes = read_blocks(volume, lba * APART, 1).unwrap();
        assert_eq!(bytes, content(lba, BLOCK_BYTES as usize), "block {lba}");
    }
}

/// A volume whose journal, of blocks that are nowhere else, takes all that the disk gives; how many there are.
fn filled(seed: u64) -> (SimDisk, SimClock, Store, Arc<Volume>, u64) {
    let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(VOLUME_BYTES) };
    let Rig { disk, clock, store, .. } = Rig::with(seed, 1, &options, wrap::nothing()).unwrap();
    let store = store.unwrap();
    let volume = store.volume(&rig::volume_name(0)).unwrap();
    let text = format!("every-write 60s, at most {}B, at cap drop-oldest", 1000 * SEGMENT_BYTES);
    volume.set_retention(retention::parse(&text).unwrap()).unwrap();
    let mut count = 0;
    while volume.journal_bytes() < JOURNAL_SEGMENTS * SEGMENT_BYTES {
        write(&volume, count, count).unwrap();
        count += 1;
        store.tick();
        store.maintain();
    }
    disk.set_capacity(Some(disk.used_bytes() + FREE_SEGMENTS * SEGMENT_BYTES));
    (disk, clock, store, volume, count)
}

/// Whoever lets a journal grow over all of a disk, and then comes to the end of its times at once (a night without upkeep, a
/// shorter policy), must get the space back: a fold of many segments did not fit beside them, and was tried again for ever.
#[test]
fn history_that_does_not_fit_into_the_base_at_once_goes_in_parts() {
    for restarted in [false, true] {
        let (mut disk, mut clock, mut store, mut volume, count) = filled(7);
        let capacity = disk.used_bytes() + FREE_SEGMENTS * SEGMENT_BYTES;
        clock.advance(HOUR_NS);
        write(&volume, 0, 0).unwrap();
        clock.advance(HOUR_NS);
        let mut begun = 0;
        for number in 0..400 {
            store.tick();
            let errors = store.maintain();
            assert!(errors.iter().all(|error| error.kind() == Kind::NoSpace), "{errors:?}");
            clock.advance(250_000_000);
            begun += errors.len();
            if restarted && number % 40 == 39 {
                drop((store, volume));
                disk = disk.crash_power_with(PowerLoss::seeded(number));
                disk.set_capacity(Some(capacity));
                clock = SimClock::new(number);
                clock.set_wall(WALL_START_NS + 3 * HOUR_NS);
                store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
                volume = store.volume(&rig::volume_name(0)).unwrap();
            }
        }
        println!("{begun} tries failed");
        let left = volume.segments().len();
        assert!(left <= 3, "{left} segments are left; the base stands at {:?}", volume.base_point().lsn);
        looks(&volume, count);
        // Writing goes on where it is written over.
        for number in 0..300 {
            write(&volume, number % 4, number % 4).unwrap();
            store.tick();
            store.maintain();
        }
        let found = verify(&volume, &mut |_, _| Ok(())).unwrap();
        assert_eq!(found.damage_count, 0, "{found:?}");
        drop((store, volume));
        let store = rig::open(&disk.crash_power(3), &clock, &wrap::nothing()).unwrap();
        looks(&store.volume(&rig::volume_name(0)).unwrap(), count);
    }
}

/// A disk that others fill while history is folded: what was put into the base before it did not fit is not in the way of the
/// smaller step that would.
#[test]
fn what_did_not_fit_is_not_in_the_way_of_what_does() {
    for restarted in [false, true] {
        let (disk, clock, store, volume, count) = filled(8);
        clock.advance(HOUR_NS);
        write(&volume, 0, 0).unwrap();
        clock.advance(HOUR_NS);
        // The filesystem says that there is room for many segments; it is for the next one, and one and a half.
        let quota = disk.used_bytes() + 5 * SEGMENT_BYTES / 2;
        disk.set_capacity(Some(quota + 30 * SEGMENT_BYTES));
        disk.set_quota(Some(quota));
        let (mut store, mut volume, mut clock, mut disk) = (store, volume, clock, disk);
        let mut failed = 0;
        for number in 0..400 {
            store.tick();
            let errors = store.maintain();
            assert!(errors.iter().all(|error| error.kind() == Kind::NoSpace), "{errors:?}");
            failed += errors.len();
            clock.advance(250_000_000);
            if restarted && failed == 1 && number < 100 {
                drop((store, volume));
                disk = disk.crash_process();
                disk.set_quota(Some(quota));
                clock = SimClock::new(number);
                clock.set_wall(WALL_START_NS + 3 * HOUR_NS);
                store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
                volume = store.volume(&rig::volume_name(0)).unwrap();
                failed += 1;
            }
        }
        assert!(failed > 0, "nothing was in the way");
        let left = volume.segments().len();
        assert!(
            left <= 3,
            "{left} segments are left after {failed} failures; the base stands at {:?}",
            volume.base_point().lsn
        );
        looks(&volume, count);
    }
}

/// The manifest says that something is in the base.
fn moved(history: &str) -> bool {
    history.lines().any(|line| line.starts_with("base_lsn = ") && line != "base_lsn = 0")
}

fn upkeep_until_it_fails(store: &Store, clock: &SimClock, rounds: u32) {
    for _ in 0..rounds {
        store.tick();
        if !store.maintain().is_empty() {
            break;
        }
        clock.advance(250_000_000);
    }
}

/// The base's new place was written down, and the disk failed to say so; then it is full. Clearing what was folded must not take
/// what the manifest says to be in the base.
#[test]
fn clearing_the_base_takes_nothing_that_the_disk_says_is_there() {
    let mut struck = 0;
    for nth in 1..12 {
        let (disk, clock, store, volume, count) = filled(9);
        disk.set_capacity(None);
        clock.advance(HOUR_NS);
        write(&volume, 0, 0).unwrap();
        clock.advance(HOUR_NS);
        let before = volume.base_point().lsn;
        let history = volume.dir().join("history");
        let said = || read_file(&disk, &history, 1 << 20).unwrap_or_default();
        // The manifest gets its name, and the sync of the directory fails.
        disk.inject(Fault::new(FaultKind::DirectorySyncError, When::Nth(nth)).on("/v0"));
        upkeep_until_it_fails(&store, &clock, 200);
        disk.clear_faults();
        let text = String::from_utf8_lossy(&said()).to_string();
        if volume.base_point().lsn != before || !moved(&text) {
            continue;
        }
        struck += 1;
        // Others fill the disk.
        disk.set_quota(Some(disk.used_bytes()));
        upkeep_until_it_fails(&store, &clock, 60);
        drop((store, volume));
        let disk = disk.crash_process();
        disk.set_quota(None);
        let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
        let volume = store.volume(&rig::volume_name(0)).unwrap();
        looks(&volume, count);
    }
    assert!(struck > 0, "no fault struck where it should");
}
