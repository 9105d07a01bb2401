//! A disk that was gone for a minute must not take a volume out of service until somebody restarts the server; and a
//! damaged one must not be opened by itself, again and again.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Fault, FaultKind, SimClock, SimDisk, Snapshot, When};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::open::Accept;
use cdp_core::volume::rollback::Back;
use cdp_core::volume::verify::verify;

const STORE: &str = "/store";
const MINUTE_NS: u64 = 60 * 1_000_000_000;

fn open(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap()
}

fn write(volume: &Volume, byte: u8) {
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &[byte; 4096] }], &mut results);
    results.remove(0).unwrap();
    volume.flush().unwrap();
}

fn first_byte(volume: &Volume) -> u8 {
    let mut buffer = [0; 1];
    let mut reads = [Read { offset: 0, buffer: &mut buffer, result: Ok(()) }];
    volume.read(&mut reads);
    std::mem::replace(&mut reads[0].result, Ok(())).unwrap();
    buffer[0]
}

/// Two volumes, one written to; closed.
fn store_of_two(disk: &SimDisk, clock: &SimClock) {
    Store::create(disk, clock, Path::new(STORE)).unwrap();
    let store = open(disk, clock);
    for name in ["disk", "other"] {
        let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
        write(&store.create_volume(name, &options, None).unwrap(), 7);
    }
    store.close().unwrap();
}

#[test]
fn what_the_disk_did_not_give_is_tried_again() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    store_of_two(&disk, &clock);
    let disk = disk.crash_process();
    disk.inject(Fault::new(FaultKind::ReadError, When::From(1)).on("volumes/disk/"));
    let store = open(&disk, &clock);
    assert_eq!(store.failed().len(), 1, "{:?}", store.failed());
    assert_eq!(first_byte(&store.volume("other").unwrap()), 7);
    // The disk stays away for a while.
    for _ in 0..3 {
        clock.advance(MINUTE_NS);
        assert!(store.maintain().is_empty());
        assert!(store.volume("disk").is_err_and(|error| error.kind() == Kind::Io));
    }
    disk.clear_faults();
    clock.advance(MINUTE_NS);
    assert!(store.maintain().is_empty());
    assert!(store.failed().is_empty(), "{:?}", store.failed());
    let volume = store.volume("disk").unwrap();
    assert_eq!(first_byte(&volume), 7);
    write(&volume, 8);
    assert_eq!(first_byte(&volume), 8);
}

#[test]
fn a_volume_whose_name_was_not_known_to_be_durable_is_there_all_the_same() {
    let (disk, clock) = (SimDisk::new(2), SimClock::new(2));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, &clock);
    disk.inject(Fault::new(FaultKind::DirectorySyncError, When::Nth(1)).on("/store/volumes"));
    let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
    // Whichever directory's sync it is that fails first, the volume is there in the end, or can be made.
    let made = store.create_volume("disk", &options, None);
    assert!(made.is_err_and(|error| error.kind() == Kind::Io), "the fault did not strike");
    disk.clear_faults();
    clock.advance(MINUTE_NS);
    assert!(store.maintain().is_empty());
    let volume = match store.volume("disk") {
        Ok(volume) => volume,
        Err(_) => store.create_volume("disk", &options, None).unwrap(),
    };
    write(&volume, 9);
    assert_eq!(first_byte(&volume), 9);
    drop((volume, store));
    let store = open(&disk.crash_power(3), &clock);
    assert_eq!(first_byte(&store.volume("disk").unwrap()), 9);
}

#[test]
fn what_somebody_has_to_decide_is_left_alone() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new(3));
    store_of_two(&disk, &clock);
    let disk = disk.crash_process();
    disk.mutate("/store/volumes/disk/volume", |bytes| bytes[40] ^= 1).unwrap();
    let store = open(&disk, &clock);
    let [(name, error)] = &store.failed()[..] else { panic!("{:?}", store.failed()) };
    assert_eq!((&name[..], error.kind()), ("disk", Kind::Damaged));
    disk.reset_reads();
    clock.advance(MINUTE_NS);
    store.maintain();
    assert_eq!(disk.reads_of("/store/volumes/disk/volume").reads, 0, "it was tried again");
    assert_eq!(store.failed().len(), 1);
}

/// A member of a group whose rollback is not done on all: served as it was before, it would be out of step with the others.
#[test]
fn a_member_that_comes_back_within_a_rollback_of_its_group_is_closed_to_clients() {
    let (disk, clock) = (SimDisk::new(6), SimClock::new(6));
    store_of_two(&disk, &clock);
    let store = open(&disk, &clock);
    let names = ["disk", "other"].map(str::to_owned);
    store.add_to_group("both", &names, true).unwrap();
    let volumes = store.members("both").unwrap();
    let backs: Vec<_> = volumes.iter().map(|volume| (volume.clone(), Back::To(volume.tip_lsn()))).collect();
    volumes.iter().for_each(|volume| write(volume, 8));
    disk.inject(Fault::new(FaultKind::SyncError, When::From(1)).on("volumes/other/"));
    store.rollback("both", &backs, "back").expect_err("the fault did not strike");
    drop((backs, volumes, store));
    let disk = disk.crash_process();
    disk.clear_faults();
    assert!(disk.list(Path::new(STORE)).unwrap().iter().any(|entry| entry.name == "operation"));

    disk.inject(Fault::new(FaultKind::ReadError, When::From(1)).on("volumes/other/"));
    let store = open(&disk, &clock);
    assert_eq!(store.failed().len(), 1, "{:?}", store.failed());
    assert!(store.volume("disk").unwrap().refuse_if_held().is_err());
    disk.clear_faults();
    clock.advance(MINUTE_NS);
    assert!(store.maintain().is_empty());
    let volume = store.volume("other").unwrap();
    let refused = volume.refuse_if_held().expect_err("it is served");
    assert!(refused.to_string().contains("restart"), "{refused}");
    // Bringing one back is an opening as well.
    drop(volume);
    store.delete_volume("other").unwrap();
    let volume = store.undelete_volume("other").unwrap();
    assert!(volume.refuse_if_held().is_err());
    store.close().unwrap();
    drop((volume, store));

    let store = open(&disk.crash_process(), &clock);
    for name in names {
        let volume = store.volume(&name).unwrap();
        assert_eq!(first_byte(&volume), 7, "{name}");
        assert!(volume.resume().unwrap());
    }
}

/// A file that the disk does not let go of, in what was deleted, is no reason to serve nobody.
#[test]
fn a_trash_that_cannot_be_emptied_keeps_nobody_from_service() {
    let (disk, clock) = (SimDisk::new(8), SimClock::new(8));
    store_of_two(&disk, &clock);
    let store = open(&disk, &clock);
    store.delete_volume("disk").unwrap();
    disk.inject(Fault::new(FaultKind::NameError, When::From(1)).on(".gone-"));
    store.purge_volume("disk").expect_err("the fault did not strike");
    assert_eq!(store.trash().unwrap(), []);
    store.close().unwrap();
    drop(store);
    let store = open(&disk, &clock);
    assert_eq!(first_byte(&store.volume("other").unwrap()), 7);
    clock.advance(61 * MINUTE_NS);
    assert_eq!(store.maintain().len(), 1, "nobody says what is in the way");
    disk.clear_faults();
    clock.advance(61 * MINUTE_NS);
    assert!(store.maintain().is_empty());
    assert_eq!(disk.list(&Path::new(STORE).join("trash")).unwrap().len(), 0);
}

/// Damage that only a reader met, or `verify`, is known from then on: a status that says that all is well would be believed.
#[test]
fn damage_that_a_reader_met_is_known() {
    for reader in ["read", "verify"] {
        let (disk, clock) = (SimDisk::new(5), SimClock::new(5));
        store_of_two(&disk, &clock);
        let store = open(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        assert!(volume.notes().damages.is_empty());
        // The payload: behind the segment's header and the batch's.
        disk.rot("/store/volumes/disk/000000000001.seg", 2 * 4096 + 100, 4).unwrap();
        match reader {
            "read" => {
                let mut buffer = [0; 1];
                let mut reads = [Read { offset: 0, buffer: &mut buffer, result: Ok(()) }];
                volume.read(&mut reads);
                assert!(reads[0].result.as_ref().is_err_and(|error| error.kind() == Kind::Damaged));
            }
            _ => assert!(verify(&volume, &mut |_, _| Ok(())).unwrap().damage_count > 0),
        }
        let known: Vec<u64> = volume.notes().damages.iter().map(|(_, extent)| extent.start.0).collect();
        assert_eq!(known, [0], "{reader}");
    }
}

/// A segment that somebody cut, wherever, is a loss that can be accepted: the volume is one again that can be closed,
/// opened, written to and read, but for what was cut.
#[test]
fn a_cut_segment_can_be_accepted_wherever_it_was_cut() {
    for lives in 1..=3 {
        let (mut disk, clock) = (SimDisk::new(4), SimClock::new(4));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        let mut store = open(&disk, &clock);
        let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
        store.create_volume("disk", &options, None).unwrap();
        for life in 0..lives {
            let volume = store.volume("disk").unwrap();
            for number in 0..3 {
                let mut results = Vec::new();
                let data = vec![number + 1; 61440];
                let change = Change::Write { offset: u64::from(number) * 61440, data: &data };
                volume.apply(SessionId(1), &[change], &mut results);
                results.remove(0).unwrap();
                volume.flush().unwrap();
            }
            // The last life ends with a crash.
            if life + 1 < lives {
                store.close().unwrap();
            }
            drop((volume, store));
            disk = disk.crash_process();
            store = open(&disk, &clock);
        }
        drop(store);
        disk = disk.crash_process();
        let image = disk.snapshot();
        let is_segment = |path: &String| path.ends_with(".seg");
        for name in disk.paths().into_iter().filter(is_segment) {
            let words = format!("{lives} lives, {name}");
            cut_and_accept(&disk.restore(&image), &clock, &image, &name, &words);
        }
    }
}

fn cut_and_accept(disk: &SimDisk, clock: &SimClock, image: &Snapshot, name: &str, words: &str) {
    let bytes = disk.contents(name).unwrap().len() as u64;
    for len in (0..bytes.min(256 << 10)).step_by(7 * 512) {
        let disk = disk.restore(image);
        disk.truncate(name, len).unwrap();
        let accept = |_: &str| Accept { loss: true, mark_loss: true };
        let options = OpenOptions { accept: &accept, ..OpenOptions::default() };
        let (files, times) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
        let store = Store::open_with(files, times, Path::new(STORE), &options).unwrap();
        let words = format!("{words}, cut at {len}: {:?}", store.failed());
        let volume = store.volume("disk").unwrap_or_else(|error| panic!("{words}: {error}"));
        write(&volume, 99);
        store.close().unwrap_or_else(|error| panic!("{words}: {error}"));
        drop((volume, store));
        let store = open(&disk.crash_process(), clock);
        let volume = store.volume("disk").unwrap_or_else(|error| panic!("{words}, after it: {error}"));
        assert_eq!(first_byte(&volume), 99, "{words}");
        write(&volume, 98);
        store.close().unwrap();
    }
}
