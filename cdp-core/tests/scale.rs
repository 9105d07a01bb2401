//! History must cost nothing that grows with it: whoever opens a point in a long history waits no longer, and
//! whoever restarts the server needs no more memory, than with a short one.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::history::point::{Now, Timeline, Zone, parse, resolve};
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::io::{Clock, Files, SystemClock, native};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;

const SIZE_BYTES: u64 = 1 << 40;
const SEGMENT_BYTES: u64 = 40 << 20;
const STORE: &str = "/store";
/// More memory than this after a restart would mean that history is held in it.
const RSS_GROWTH_MAX_KIB: u64 = 32 << 10;

/// Makes a history of so many records; gives the number of segments and the time of the middle record. Few records are long ones and many are short ones, so that both
/// histories fill the same number of segments.
fn history(files: Arc<dyn Files>, clock: Arc<dyn Clock>, path: &Path, records: u64) -> (usize, Timestamp) {
    Store::create(&*files, &*clock, path).unwrap();
    let store = Store::open(files, clock, path, "a test").unwrap();
    let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(SIZE_BYTES) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    let bytes_each = 128_000_000 / records;
    let payload: Vec<u8> = (0..bytes_each / 4096 * 4096).map(|at| (at % 251) as u8 + 1).collect();
    let mut results = Vec::new();
    let mut number = 0;
    while number < records {
        let many = (records - number).min(if payload.is_empty() { 250 } else { 1 });
        let place = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE_BYTES / 4096 - 64) * 4096;
        let changes: Vec<Change<'_>> = (number..number + many)
            .map(|n| match payload.is_empty() {
                true => Change::Trim { offset: place(n), len: 4096 },
                false => Change::Write { offset: place(n), data: &payload },
            })
            .collect();
        results.clear();
        volume.apply(SessionId(1), &changes, &mut results);
        assert!(results.iter().all(|result| result.is_ok()));
        number += many;
        if number.is_multiple_of(5000) {
            volume.maintain().unwrap();
        }
    }
    for _ in 0..8 {
        volume.maintain().unwrap();
    }
    (volume.part_list().len(), volume.timestamp_of(Lsn(records / 2)).unwrap())
}

/// The file reads that it takes to resolve a time in the middle of history and to open the view there.
#[test]
fn opening_a_point_reads_the_same_in_a_long_and_a_short_history() {
    let mut reads = Vec::new();
    for records in [10_000, 1_000_000] {
        let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
        let files = || Arc::new(disk.clone());
        clock.set_tick(1000);
        let (segments, middle) = history(files(), Arc::new(clock.clone()), Path::new(STORE), records);
        let disk = disk.crash_process();
        let store =
            Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap();
        let volume = store.volume("disk").unwrap();
        assert_eq!(volume.tip_lsn().0, records);
        let now = Now { wall: store.clock().now(), zone: Zone::utc() };
        disk.reset_reads();
        let request = parse(&format!("ns:{}", middle.0), &now).unwrap();
        let resolved = resolve(&request.point, &*volume, &now).unwrap();
        let view = View::new(volume.clone(), resolved.lsn);
        let opened = disk.reads();
        assert_eq!(resolved.lsn, Lsn(records / 2));
        assert!(opened.reads > 0, "nothing was cached, so something must have been read");
        let mut buffer = vec![0; 4096];
        let mut read = [Read { offset: 0, buffer: &mut buffer, result: Ok(()) }];
        view.read(&mut read);
        assert!(read[0].result.is_ok());
        println!("{records} records in {segments} segments: {opened:?} to open a point");
        reads.push((segments, opened.reads));
    }
    let [(short_segments, short), (long_segments, long)] = reads[..] else { unreachable!() };
    assert_eq!(short_segments, long_segments, "the histories are to be compared at equal segments");
    assert_eq!(short, long, "file reads to open a point");
}

/// The child: opens the store, and says what memory that took.
fn report_rss(path: &Path) {
    let store = Store::open(native(true), Arc::new(SystemClock), path, "a test").unwrap();
    let volume = store.volume("disk").unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("\nRSS {kib} of lsn {}", volume.tip_lsn());
}

#[test]
fn a_restart_needs_no_more_memory_for_a_long_history() {
    if let Some(path) = std::env::var_os("CDP_TEST_REPORT_RSS") {
        report_rss(Path::new(&path));
        return;
    }
    let rss = |records: u64| -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        history(native(true), Arc::new(SystemClock), &path, records);
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_restart_needs_no_more_memory_for_a_long_history", "--nocapture"])
            .env("CDP_TEST_REPORT_RSS", &path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let line = said.lines().find(|line| line.starts_with("RSS ")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.ends_with(&format!("lsn {records}")), "{line}");
        line.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let (short, long) = (rss(10_000), rss(1_000_000));
    println!("RSS after a restart: {short} KiB with 10,000 records, {long} KiB with 1,000,000");
    assert!(long <= short + RSS_GROWTH_MAX_KIB, "{long} KiB against {short} KiB");
}
