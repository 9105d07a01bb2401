//! Long histories: generated, merged, and every state compared with a replay of what was generated.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cdp_core::error::Result;
use cdp_core::format::run::Summary;
use cdp_core::generate::{Generated, HistoryOptions, Workload, history};
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::index::{IndexOptions, Visible};
use cdp_core::io::{SystemClock, native};
use cdp_core::reader::Piece;
use cdp_core::store::{OpenOptions, Store};
use cdp_core::volume::Volume;

const HOUR_NS: u64 = 3_600_000_000_000;

fn make(path: &Path, options: &HistoryOptions) -> Arc<Volume> {
    let began = Instant::now();
    history(native(false), path, options, &mut |_| {}).unwrap();
    println!("{} changes generated in {:?}", options.changes, began.elapsed());
    reopen(path)
}

fn reopen(path: &Path) -> Arc<Volume> {
    let index = IndexOptions { merge_runs: 2, ..IndexOptions::default() };
    let options = OpenOptions { holder: "a test", index, ..OpenOptions::default() };
    let store = Store::open_with(native(false), Arc::new(SystemClock), path, &options).unwrap();
    store.volume("disk").unwrap()
}

/// The newest change of each block up to each LSN, by the list of what was generated.
struct Replay {
    changes: Vec<(Lsn, Generated)>,
}

impl Replay {
    /// LSNs that the volume took for itself or for markers lie between.
    fn of(volume: &Volume, options: &HistoryOptions) -> Replay {
        let mut workload = Workload::new(options.seed, options.size_bytes / BLOCK_BYTES);
        let mut changes = Vec::new();
        volume
            .records(Lsn(1), volume.tip_lsn(), &mut |header| {
                if header.kind.changes_blocks() {
                    changes.push((header.lsn, workload.next().unwrap()));
                }
            })
            .unwrap();
        assert_eq!(changes.len() as u64, options.changes);
        Replay { changes }
    }

    fn newest(&self, lba: u64, at: Lsn) -> Option<(Lsn, Generated)> {
        let end = self.changes.partition_point(|change| change.0 <= at);
        self.changes[..end].iter().rev().copied().find(|(_, change)| {
            let (Generated::Write(extent) | Generated::Trim(extent)) = change;
            (extent.start.0..extent.end()).contains(&lba)
        })
    }
}

/// Every block of the extent at this record is what the replay says.
fn check(volume: &Volume, replay: &Replay, extent: Extent, at: Lsn) -> Result<()> {
    let visible = Visible::through(at);
    for piece in volume.reader(&visible).plan(extent)? {
        match piece {
            Piece::Journal { lba, lsn, .. } => {
                let newest = replay.newest(lba.0, at);
                assert!(
                    matches!(newest, Some((by, Generated::Write(_))) if by == lsn),
                    "{lba} at {at:?}: {lsn:?}, {newest:?}"
                );
            }
            Piece::Zero { extent, .. } | Piece::Base { extent } => {
                for lba in [extent.start.0, extent.end() - 1] {
                    let newest = replay.newest(lba, at);
                    assert!(!matches!(newest, Some((_, Generated::Write(_)))), "{lba} at {at:?}: {newest:?}");
                }
            }
        }
    }
    Ok(())
}

fn compare(volume: &Volume, replay: &Replay, options: &HistoryOptions, samples: u64) {
    let mut places = Workload::new(options.seed ^ 0x55, options.size_bytes / BLOCK_BYTES);
    let mut lsns = Workload::new(options.seed ^ 0xaa, volume.tip_lsn().0);
    for sample in 0..samples {
        let (Generated::Write(place) | Generated::Trim(place)) = match sample % 3 {
            // Where something happened, and anywhere.
            0 => places.next().unwrap(),
            _ => replay.changes[(sample.wrapping_mul(0x9e37_79b9_7f4a_7c15) % options.changes) as usize].1,
        };
        let (Generated::Write(lsn) | Generated::Trim(lsn)) = lsns.next().unwrap();
        let extent = Extent::new(place.start.0, place.start.0 + place.blocks.min(64));
        check(volume, replay, extent, Lsn(lsn.start.0 + 1)).unwrap();
    }
}

/// Months of history are merged under whoever looks at them: each state stays what it was, is there after a restart,
/// and is found again when the whole index is deleted.
#[test]
fn a_long_history_has_every_state_while_it_is_merged_and_without_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = HistoryOptions {
        changes: 60_000,
        size_bytes: 1 << 30,
        segment_bytes: 66 << 20,
        seed: 7,
        duration_ns: 24 * HOUR_NS,
        marker_every: 5_000,
    };
    let volume = make(&path, &options);
    let replay = Replay::of(&volume, &options);
    compare(&volume, &replay, &options, 300);
    let layers = volume.part_list().layers().len();
    volume.merge_all(&mut |_, _| {}).unwrap();
    assert!(volume.part_list().layers().len() < layers, "nothing was merged");
    compare(&volume, &replay, &options, 300);
    let names = volume.named_markers();
    assert_eq!(names.len() as u64, options.changes / options.marker_every);
    let sums = volume.summaries(Lsn(1), volume.tip_lsn()).unwrap();
    let mut did = Summary::default();
    sums.iter().for_each(|segment| did.add(&segment.did));
    let mut expected = Summary::default();
    for (_, change) in &replay.changes {
        match change {
            Generated::Write(extent) => {
                expected.writes += 1;
                expected.written_bytes += extent.blocks * BLOCK_BYTES;
            }
            Generated::Trim(extent) => {
                expected.trims += 1;
                expected.trimmed_bytes += extent.blocks * BLOCK_BYTES;
            }
        }
    }
    assert_eq!(did, expected, "the sums of the segments");
    let timestamps: Vec<Timestamp> =
        (1..50).map(|n| volume.timestamp_of(Lsn(volume.tip_lsn().0 * n / 50)).unwrap()).collect();
    drop(volume);
    let dirs: Vec<_> =
        std::fs::read_dir(path.join("volumes/disk")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let runs: Vec<_> = dirs.iter().filter(|path| path.extension().is_some_and(|end| end == "run")).collect();
    assert!(!runs.is_empty());
    runs.iter().for_each(|run| std::fs::remove_file(run).unwrap());
    let volume = reopen(&path);
    compare(&volume, &replay, &options, 300);
    let again: Vec<Timestamp> =
        (1..50).map(|n| volume.timestamp_of(Lsn(volume.tip_lsn().0 * n / 50)).unwrap()).collect();
    assert_eq!(timestamps, again);
    assert_eq!(volume.named_markers(), names);
    assert_eq!(volume.summaries(Lsn(1), volume.tip_lsn()).unwrap()[..sums.len()], sums);
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// A million writes to a terabyte, and 64 views of it: lookups go through few layers, few files are open, and the memory
/// stays within what the store was given; with more history only the number of segments grows.
#[test]
fn a_million_writes_need_few_layers_few_files_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = HistoryOptions {
        changes: 1_000_000,
        size_bytes: 1 << 40,
        segment_bytes: 66 << 20,
        seed: 11,
        duration_ns: 30 * 24 * HOUR_NS,
        marker_every: 10_000,
    };
    history(native(false), &path, &options, &mut |_| {}).unwrap();
    const BUDGET_BYTES: usize = 32 << 20;
    let index = IndexOptions { budget_bytes: BUDGET_BYTES, ..IndexOptions::default() };
    let open = OpenOptions { holder: "a test", index, ..OpenOptions::default() };
    let store = Store::open_with(native(false), Arc::new(SystemClock), &path, &open).unwrap();
    let volume = store.volume("disk").unwrap();
    volume.merge_all(&mut |_, _| {}).unwrap();
    let (layers, segments) = (volume.part_list().layers().len(), volume.part_list().len());
    assert!(segments > 60 && layers < 20, "{layers} layers for {segments} segments");
    let replay = Replay::of(&volume, &options);
    let before_mib = rss_mib();
    for view in 1..=64u64 {
        let at = Lsn(volume.tip_lsn().0 / 64 * view);
        for sample in 0..3u64 {
            let number = (view * 7919 + sample).wrapping_mul(0x9e37_79b9_7f4a_7c15) % options.changes;
            let (Generated::Write(place) | Generated::Trim(place)) = replay.changes[number as usize].1;
            check(&volume, &replay, Extent::new(place.start.0, place.start.0 + 1), at).unwrap();
        }
        // All over the volume, for the memory that it takes.
        let mut lba = view;
        while lba < options.size_bytes / BLOCK_BYTES {
            volume.reader(&Visible::through(at)).plan(Extent::new(lba, lba + 1)).unwrap();
            lba += 262_147;
        }
    }
    let grown_mib = rss_mib().saturating_sub(before_mib);
    println!("{layers} layers for {segments} segments; 64 views took {grown_mib} MiB");
    assert!(grown_mib <= BUDGET_BYTES as u64 >> 20, "{grown_mib} MiB");
}
