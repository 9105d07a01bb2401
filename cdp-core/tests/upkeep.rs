//! The slow duties when the disk does not do what they want: history still becomes as short as its policy says, for that is what
//! gives the space back that everything else waits for.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::point::Timeline;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Fault, FaultKind, SimClock, SimDisk, When};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;

const SEGMENT_BYTES: u64 = 256 << 10;
const SECOND_NS: u64 = 1_000_000_000;

struct Scene {
    disk: SimDisk,
    clock: SimClock,
    _store: Store,
    volume: Arc<Volume>,
}

fn scene(policy: &str) -> Scene {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let path = Path::new("/store");
    Store::create(&disk, &clock, path).unwrap();
    let store = Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), path, "a test").unwrap();
    let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(1 << 20) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    volume.set_retention(retention::parse(policy).unwrap()).unwrap();
    Scene { disk, clock, _store: store, volume }
}

fn write(volume: &Volume, number: u64) -> Result<(), Kind> {
    let (offset, data) = (number % 64 * 4096, [number as u8 | 1; 4096]);
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset, data: &data }], &mut results);
    results.remove(0).map(drop).map_err(|error| error.kind())
}

/// Writes until it is refused; how often.
fn fill(scene: &Scene) -> u64 {
    for number in 0..100 * SEGMENT_BYTES / 4096 {
        if let Err(kind) = write(&scene.volume, number) {
            assert_eq!(kind, Kind::NoSpace);
            return number;
        }
        if number % 16 == 0 {
            let _ = scene.volume.maintain();
        }
    }
    panic!("the disk is never full");
}

/// A cap that the filesystem cannot hold is a promise that nobody can keep: without an end, writes would be refused for ever
/// on a disk full of history that expired long ago.
#[test]
fn a_full_filesystem_below_the_cap_gets_the_space_of_expired_history_back() {
    let scene = scene("every-write 3s, at most 20GiB");
    scene.disk.set_capacity(Some(scene.disk.used_bytes() + 12 * SEGMENT_BYTES));
    assert!(
        scene.volume.journal_cap_bytes().unwrap() < 14 * SEGMENT_BYTES,
        "nobody is told how much really fits"
    );
    let written = fill(&scene);
    assert!(written > 4 * SEGMENT_BYTES / 4096, "refused after {written} writes");
    for _ in 0..60 {
        scene.clock.advance(SECOND_NS);
        let _ = scene.volume.maintain();
    }
    assert!(scene.volume.horizon().0 > Lsn::ZERO, "history that expired is kept");
    for number in 0..SEGMENT_BYTES / 4096 {
        assert_eq!(write(&scene.volume, number), Ok(()), "after {number} writes");
    }
}

/// And where the oldest may go at the cap, nobody waits at all.
#[test]
fn a_full_filesystem_below_the_cap_drops_the_oldest_where_that_was_asked_for() {
    let scene = scene("at most 20GiB, at cap drop-oldest");
    scene.disk.set_capacity(Some(scene.disk.used_bytes() + 12 * SEGMENT_BYTES));
    for number in 0..40 * SEGMENT_BYTES / 4096 {
        assert_eq!(write(&scene.volume, number), Ok(()), "after {number} writes");
        if number % 16 == 0 {
            scene.volume.maintain().unwrap();
        }
    }
    assert!(scene.volume.horizon().0 > Lsn::ZERO);
}

/// While a client streams, sealing waits: a name must not go for that, where the segments behind it can be thinned as soon as
/// they are sealed.
#[test]
fn a_name_outlives_a_stream_into_a_small_journal() {
    const MIB: u64 = 1 << 20;
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let path = Path::new("/store");
    Store::create(&disk, &clock, path).unwrap();
    let store = Store::open(Arc::new(disk), Arc::new(clock), path, "a test").unwrap();
    let options = CreateOptions { segment_bytes: 16 * MIB, ..CreateOptions::new(8 * MIB) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    volume.set_retention(retention::parse("at most 80MiB, at cap drop-oldest").unwrap()).unwrap();
    // From one round of upkeep to the next more than a stream has.
    for every in [34, 37, 45, 61] {
        let name = format!("before-{every}");
        let (note, hook_output) = (String::new(), String::new());
        let (class, tags, group) = (MarkerClass::Manual, Vec::new(), 0);
        let marker = MarkerPayload { class, name: name.clone(), note, tags, group, hook_output };
        let (lsn, _) = volume.mark(&marker).unwrap();
        for number in 0..400 {
            let (offset, data) = (number % 8 * MIB, vec![number as u8 | 1; MIB as usize]);
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[Change::Write { offset, data: &data }], &mut results);
            results.remove(0).unwrap();
            if number % every == 0 {
                volume.maintain().unwrap();
                assert!(
                    View::open(volume.clone(), lsn, "a test").is_ok(),
                    "{name} is gone after {number} MiB"
                );
            }
        }
    }
}

/// One duty that fails for good, here the runs of the index, must not keep the others from theirs.
#[test]
fn one_duty_that_fails_does_not_keep_the_others_from_theirs() {
    let scene = scene("every-write 3s");
    for number in 0..6 * SEGMENT_BYTES / 4096 {
        write(&scene.volume, number).unwrap();
    }
    scene.volume.flush().unwrap();
    for _ in 0..10 {
        scene.clock.advance(SECOND_NS);
        scene.volume.maintain().unwrap();
    }
    let before = scene.volume.horizon().0;
    for number in 0..6 * SEGMENT_BYTES / 4096 {
        write(&scene.volume, number).unwrap();
    }
    // The next segment cannot be made.
    scene.disk.inject(Fault::new(FaultKind::WriteError, When::From(1)).on(".seg"));
    let mut failed = 0;
    for _ in 0..30 {
        scene.clock.advance(SECOND_NS);
        failed += u32::from(scene.volume.maintain().is_err());
    }
    assert!(failed > 0, "nothing failed");
    assert!(scene.volume.horizon().0 > before, "history that expired is kept: {before:?}");
}
