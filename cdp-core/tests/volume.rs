//! A volume as its users meet it: written, read back, looked at in the past, killed and opened again.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Content, Device, Read};
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::{Health, Volume};

const STORE: &str = "/store";

fn options() -> CreateOptions {
    CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) }
}

fn create(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::create(disk, clock, Path::new(STORE)).unwrap();
    let store = open(disk, clock);
    store.create_volume("disk", &options(), None).unwrap();
    store
}

fn open(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap()
}

fn write(volume: &dyn Device, offset: u64, data: &[u8]) -> Lsn {
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset, data }], &mut results);
    results.pop().unwrap().unwrap()
}

fn read(device: &dyn Device, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; len];
    let mut reads = [Read { offset, buffer: &mut buffer, result: Ok(()) }];
    device.read(&mut reads);
    std::mem::replace(&mut reads[0].result, Ok(())).unwrap();
    buffer
}

fn view(volume: &Arc<Volume>, lsn: u64) -> View {
    View::new(volume.clone(), Lsn(lsn))
}

/// Whoever overwrites a file must find the old one in the past, bytes of any alignment included.
#[test]
fn every_write_can_be_looked_at() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    write(&*volume, 0, &[1; 8192]);
    write(&*volume, 4000, &[2; 200]);
    write(&*volume, 1, &[3; 3]);
    write(&*volume, 0, &[0; 4096]);
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Trim { offset: 10, len: 8000 }], &mut results);
    assert_eq!(results.pop().unwrap().unwrap(), Lsn(5));

    let mut model = vec![0; 8192];
    assert_eq!(read(&view(&volume, 0), 0, 8192), model);
    model.fill(1);
    assert_eq!(read(&view(&volume, 1), 0, 8192), model);
    model[4000..4200].fill(2);
    assert_eq!(read(&view(&volume, 2), 0, 8192), model);
    model[1..4].fill(3);
    assert_eq!(read(&view(&volume, 3), 0, 8192), model);
    model[..4096].fill(0);
    assert_eq!(read(&view(&volume, 4), 0, 8192), model);
    model[10..8010].fill(0);
    assert_eq!(read(&view(&volume, 5), 0, 8192), model);
    assert_eq!(read(&*volume, 0, 8192), model);
    assert_eq!(read(&*volume, 4090, 20), model[4090..4110]);
    let stretches = volume.extents(0, 1 << 20, 10).unwrap();
    assert_eq!(stretches.iter().map(|s| s.len).sum::<u64>(), 1 << 20);
    assert_eq!(stretches.last().unwrap().content, Content::Hole);
}

/// A process that dies loses nothing it acknowledged; one that stops cleanly neither; over many segments.
#[test]
fn everything_is_there_after_a_restart() {
    for clean in [true, false] {
        let (mut disk, clock) = (SimDisk::new(2), SimClock::new(2));
        let mut store = create(&disk, &clock);
        let mut history: Vec<(Lsn, Vec<u8>)> = vec![(Lsn::ZERO, vec![0; 1 << 20])];
        for round in 0..6u64 {
            let volume = store.volume("disk").unwrap();
            assert_eq!(volume.health(), Health::Good, "{:?}", volume.notes());
            for number in 0..60u64 {
                clock.advance(1_000_000);
                let offset = (round * 7919 + number * 104_729) % ((1 << 20) - 20_000);
                let data = vec![(round * 60 + number) as u8 | 1; (number * 331) as usize % 19_000 + 1];
                let mut state = history.last().unwrap().1.clone();
                state[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                let lsn = write(&*volume, offset, &data);
                history.push((lsn, state));
                if number % 16 == 0 {
                    volume.flush().unwrap();
                    volume.maintain().unwrap();
                }
            }
            for (lsn, state) in history.iter().step_by(23) {
                assert_eq!(read(&view(&volume, lsn.0), 0, 1 << 20), *state, "round {round} {lsn:?}");
            }
            if clean {
                store.close().unwrap();
            }
            drop(volume);
            drop(store);
            disk = disk.crash_process();
            store = open(&disk, &clock);
            let volume = store.volume("disk").unwrap();
            assert_eq!(volume.tip_lsn(), history.last().unwrap().0, "{:?}", volume.notes());
            assert_eq!(read(&*volume, 0, 1 << 20), history.last().unwrap().1);
        }
        let volume = store.volume("disk").unwrap();
        for (lsn, state) in &history {
            assert_eq!(read(&view(&volume, lsn.0), 0, 1 << 20), *state, "{lsn:?}");
            let at = volume.timestamp_of(*lsn).unwrap();
            assert_eq!(volume.lsn_at(at).unwrap(), *lsn);
            if lsn.0 > 0 {
                assert_eq!(volume.lsn_at(Timestamp(at.0 - 1)).unwrap(), lsn.previous());
            }
        }
    }
}

/// Power goes: what was flushed is there, and the disk shows one of the states it went through.
#[test]
fn flushed_writes_survive_power_loss() {
    for seed in 0..200 {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        let store = create(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        let mut states = vec![vec![0u8; 1 << 20]];
        let mut flushed = 0;
        for number in 0..40u64 {
            let offset = (seed * 7919 + number * 104_729) % ((1 << 20) - 20_000);
            let data = vec![number as u8 + 1; (number * 331) as usize % 19_000 + 1];
            let mut state = states.last().unwrap().clone();
            state[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            write(&*volume, offset, &data);
            states.push(state);
            if (number + seed) % 7 == 0 {
                volume.flush().unwrap();
                flushed = number + 1;
            }
        }
        drop((volume, store));
        let disk = disk.crash_power(seed);
        let store = open(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        assert_eq!(volume.health(), Health::Good, "seed {seed}: {:?}", volume.notes());
        let tip = volume.tip_lsn().0;
        assert!(tip >= flushed, "seed {seed}: {tip} < {flushed}");
        assert_eq!(read(&*volume, 0, 1 << 20), states[tip as usize], "seed {seed}");
    }
}

/// What a replica still lacks is asked for right after a start, when the open segment has no record yet.
#[test]
fn what_lies_behind_a_record_can_be_told_at_any_time() {
    let (disk, clock) = (SimDisk::new(4), SimClock::new(4));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    let first = write(&*volume, 0, &[1; 8192]);
    let second = write(&*volume, 0, &[2; 8192]);
    volume.flush().unwrap();
    drop((volume, store));
    let store = open(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    assert_eq!(volume.bytes_behind(second), 0);
    assert!((8192..=20_480).contains(&volume.bytes_behind(first)), "{}", volume.bytes_behind(first));
    assert!(volume.bytes_behind(Lsn::ZERO) > volume.bytes_behind(first));
}

/// A server that starts on a full disk, because something else filled it, must not need somebody to start it again once
/// there is room: until then the past is served, and nobody who is connected is cut off.
#[test]
fn a_store_on_a_full_disk_takes_writes_again_when_there_is_room() {
    let (disk, clock) = (SimDisk::new(6), SimClock::new(6));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    write(&*volume, 0, &[7; 8192]);
    volume.flush().unwrap();
    drop((volume, store));
    // The segments that were made ahead are gone with what filled the disk.
    let disk = disk.crash_process();
    for path in disk.paths() {
        if path.ends_with(".seg") && disk.contents(&path).unwrap().iter().all(|byte| *byte == 0) {
            disk.disappear(&path).unwrap();
        }
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let store = open(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    assert!(matches!(volume.health(), Health::ReadOnly { .. }), "{:?}", volume.health());
    assert_eq!(read(&*volume, 0, 8192), [7; 8192]);
    store.maintain();
    assert!(store.volume("disk").unwrap().health() != Health::Good, "there is no room yet");
    disk.set_capacity(None);
    store.maintain();
    assert!(volume.health() != Health::Good, "somebody has it in hand");
    drop(volume);
    store.maintain();
    let volume = store.volume("disk").unwrap();
    assert_eq!(volume.health(), Health::Good);
    write(&*volume, 4096, &[8; 4096]);
    volume.flush().unwrap();
    drop((volume, store));
    let store = open(&disk.crash_power(6), &clock);
    assert_eq!(read(&*store.volume("disk").unwrap(), 4095, 2), [7, 8]);
}

/// A full journal refuses writes without effect; raising the cap lets them go on, with the server running.
#[test]
fn a_full_journal_goes_on_when_its_cap_is_raised() {
    let (disk, clock) = (SimDisk::new(5), SimClock::new(5));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    volume.set_journal_cap(Some(600 << 10)).unwrap();
    let mut written = 0u64;
    let error = loop {
        let mut results = Vec::new();
        let data = [written as u8 + 1; 8192];
        volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &data }], &mut results);
        match results.pop().unwrap() {
            Ok(lsn) => written = lsn.0,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), cdp_core::error::Kind::NoSpace, "{error}");
    assert_eq!(volume.tip_lsn().0, written);
    assert!(volume.journal_bytes() <= 600 << 10);
    assert_eq!(read(&*volume, 0, 4), [written as u8; 4]);
    volume.open_session("somebody who comes to read").unwrap();
    volume.set_journal_cap(None).unwrap();
    assert_eq!(write(&*volume, 0, &[0xaa; 8192]), volume.tip_lsn());
    volume.flush().unwrap();
    drop((volume, store));
    let store = open(&disk.crash_power(5), &clock);
    assert_eq!(read(&*store.volume("disk").unwrap(), 0, 4), [0xaa; 4]);
}

/// A database that commits in small steps behind somebody's bulk load must not pay for the kind of segment that the load
/// left behind, and the journal must not lose a segment's space each time.
#[test]
fn commits_behind_a_stream_go_on_in_written_space() {
    commits_behind_a_stream(true);
    commits_behind_a_stream(false);
}

fn commits_behind_a_stream(rests: bool) {
    let (disk, clock) = (SimDisk::new(9), SimClock::new(9));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, &clock);
    let sizes = CreateOptions { segment_bytes: 4 << 20, ..CreateOptions::new(8 << 20) };
    store.create_volume("disk", &sizes, None).unwrap();
    let volume = store.volume("disk").unwrap();
    write(&*volume, 0, &[1; 1 << 20]);
    let commit = |times: u64| {
        for n in 0..times {
            write(&*volume, n * 4096, &[n as u8 + 2; 4096]);
            volume.flush().unwrap();
        }
        volume.tick().unwrap();
    };
    volume.tick().unwrap();
    if rests {
        volume.maintain().unwrap();
        volume.maintain().unwrap();
    }
    commit(10);
    assert_eq!(volume.part_list().len(), 1, "a few commits change nothing");
    commit(40);
    if !rests {
        assert_eq!(volume.part_list().len(), 1, "nobody waits for a segment to be written");
        volume.maintain().unwrap();
        volume.tick().unwrap();
    }
    assert_eq!(volume.part_list().len(), 2, "commits go on in a segment made for them");
    commit(40);
    volume.maintain().unwrap();
    commit(40);
    assert_eq!(volume.part_list().len(), 2, "once is enough");
    let held = volume.journal_bytes();
    assert!(held < 4 * (4 << 20), "the first segment is cut behind its seal: {held} bytes");
    for n in 0..40 {
        assert_eq!(read(&*volume, n * 4096, 4096), [n as u8 + 2; 4096]);
    }
    drop((volume, store));
    let store = open(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    assert_eq!(read(&*volume, 39 * 4096, 4096), [41; 4096]);
    assert_eq!(read(&*volume, 40 * 4096, 4096), [1; 4096]);
}

/// Segments of a simulation may be smaller than a request: that is refused, again and again, and costs nothing but the request.
#[test]
fn a_request_larger_than_a_segment_is_refused() {
    let (disk, clock) = (SimDisk::new(9), SimClock::new(9));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    let data = vec![7; 512 << 10];
    for round in 0..5u8 {
        let mut results = Vec::new();
        let changes =
            [Change::Write { offset: 0, data: &data }, Change::Write { offset: 0, data: &[round; 4096] }];
        volume.apply(SessionId(1), &changes, &mut results);
        let refused = results.remove(0).unwrap_err();
        assert_eq!(refused.kind(), cdp_core::error::Kind::Invalid, "{refused}");
        results.remove(0).unwrap();
        assert_eq!(read(&*volume, 0, 4096), [round; 4096]);
    }
    assert!(volume.part_list().len() < 8, "{} segments", volume.part_list().len());
}
