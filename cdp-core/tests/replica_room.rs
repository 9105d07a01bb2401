//! A replica that cannot be reached must not stop a volume whose owner said that it may be given up; and must not lose a
//! byte of what it needs where he did not.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::stream::LogReader;

const SEGMENT_BYTES: u64 = 256 << 10;

fn store(disk: &SimDisk) -> Store {
    Store::open(Arc::new(disk.clone()), Arc::new(SimClock::new(1)), Path::new("/store"), "a test").unwrap()
}

/// Writes four times what the journal may hold. How it ended.
fn fill(volume: &Volume) -> Result<(), Kind> {
    for number in 0..(16 * SEGMENT_BYTES / 4096) {
        let (offset, data) = (number % 64 * 4096, [number as u8 | 1; 4096]);
        let mut results = Vec::new();
        volume.apply(SessionId(1), &[Change::Write { offset, data: &data }], &mut results);
        results.remove(0).map_err(|error| error.kind())?;
        if number % 16 == 0 {
            volume.maintain().map_err(|error| error.kind())?;
        }
    }
    Ok(())
}

fn with_replica(gives_way: bool) -> (SimDisk, Store, Arc<Volume>) {
    let disk = SimDisk::new(1);
    Store::create(&disk, &SimClock::new(1), Path::new("/store")).unwrap();
    let store = store(&disk);
    let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(1 << 20) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    let policy = format!("at most {}, at cap drop-oldest", 4 * SEGMENT_BYTES);
    volume.set_retention(retention::parse(&policy).unwrap()).unwrap();
    volume.add_replica("far:1", 0, gives_way).unwrap();
    (disk, store, volume)
}

#[test]
fn a_replica_that_gives_way_is_given_up_and_that_is_said() {
    let (disk, store_before, volume) = with_replica(true);
    fill(&volume).unwrap();
    let why = volume.replicas()[0].gave_up.clone().expect("it is said");
    assert!(why.contains("full"), "{why}");
    assert!(volume.pins().is_empty(), "{:?}", volume.pins());
    assert!(LogReader::behind(&volume, Lsn::ZERO).is_err_and(|error| error.kind() == Kind::OutOfRange));
    drop((volume, store_before));
    let volume = store(&disk.crash_process()).volume("disk").unwrap();
    assert_eq!(volume.replicas()[0].gave_up.as_ref(), Some(&why), "forgotten over a restart");
}

#[test]
fn one_that_does_not_holds_everything() {
    let (_disk, _store, volume) = with_replica(false);
    assert_eq!(fill(&volume), Err(Kind::NoSpace));
    let mut reader = LogReader::behind(&volume, Lsn::ZERO).unwrap();
    volume.flush().unwrap();
    let mut count = 0;
    loop {
        let records = reader.read(1 << 20, 250).unwrap();
        if records.is_empty() {
            break;
        }
        assert_eq!(records[0].header.lsn, Lsn(count + 1));
        count += records.len() as u64;
    }
    assert_eq!(Lsn(count), volume.durable_lsn());
}
