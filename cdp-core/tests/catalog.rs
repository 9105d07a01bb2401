//! The catalog is a cache: whoever deletes or damages it, at any moment, must find every marker as before.

use std::path::Path;
use std::sync::Arc;

use cdp_core::catalog::Catalog;
use cdp_core::device::{Change, Device};
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::ids::*;
use cdp_core::io::sim::Chance;
use cdp_core::io::{SystemClock, native};
use cdp_core::store::{CreateOptions, OpenOptions, Store};

fn open(path: &Path) -> Store {
    let options = OpenOptions { holder: "a test", catalog: &Catalog::open, ..OpenOptions::default() };
    Store::open_with(native(false), Arc::new(SystemClock), path, &options).unwrap()
}

fn marker(name: String) -> MarkerPayload {
    MarkerPayload {
        class: if name.ends_with('7') { MarkerClass::Application } else { MarkerClass::Manual },
        group: 0,
        name,
        note: String::new(),
        tags: Vec::new(),
        hook_output: String::new(),
    }
}

fn names(store: &Store) -> Vec<(String, u64, u64, MarkerClass)> {
    let volume = store.volume("disk").unwrap();
    let row = |(marker, class): (cdp_core::history::point::MarkerAt, _)| {
        (marker.name, marker.lsn.0, marker.at.0, class)
    };
    volume.named_markers().into_iter().map(row).collect()
}

#[test]
fn deleted_or_damaged_at_random_everything_is_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    Store::create(&*native(false), &SystemClock, &path).unwrap();
    let mut store = open(&path);
    let options = CreateOptions { segment_bytes: 512 << 10, ..CreateOptions::new(1 << 20) };
    store.create_volume("disk", &options, None).unwrap();
    let mut expected = Vec::new();
    let mut chance = Chance::new(11);
    let mut damaged = 0;
    for round in 0..12u64 {
        let volume = store.volume("disk").unwrap();
        for number in 0..8 {
            let data = vec![round as u8 + 1; 20_000];
            let change = Change::Write { offset: number * 4096, data: &data };
            volume.apply(SessionId(1), &[change], &mut Vec::new());
            store.mark("disk", &marker(format!("m-{round}-{number}"))).unwrap();
            volume.maintain().unwrap();
        }
        let before = names(&store);
        assert_eq!(before.len() as u64, (round + 1) * 8);
        assert!(before.starts_with(&expected));
        expected = before;
        if round % 2 == 0 {
            store.close().unwrap();
        }
        drop((volume, store));
        let catalog = path.join("catalog");
        match round % 4 {
            0 => {}
            1 => std::fs::remove_dir_all(&catalog).unwrap(),
            _ => damaged += damage(&catalog, &mut chance),
        }
        store = open(&path);
        assert_eq!(names(&store), expected, "round {round}");
    }
    assert!(damaged > 0, "the damage must have hit something");
}

fn damage(catalog: &Path, chance: &mut Chance) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(catalog).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for _ in 0..200.min(bytes.len()) {
            let at = chance.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << chance.below(8);
        }
        std::fs::write(&path, bytes).unwrap();
        damaged += 1;
    }
    damaged
}

/// A marker that is set while its segment fills up and is sealed must not be missing from what the catalog is
/// told: after a restart its name would be unknown although it stands in the journal.
#[test]
fn a_name_that_is_set_while_segments_are_sealed_is_known_after_a_restart() {
    const MARKERS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    Store::create(&*native(false), &SystemClock, &path).unwrap();
    let store = open(&path);
    let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let goes_on = || !done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while goes_on() {
                let change = Change::Write { offset: 0, data: &[7; 60_000] };
                volume.apply(SessionId(1), &[change], &mut Vec::new());
            }
        });
        scope.spawn(|| {
            while goes_on() {
                volume.maintain().unwrap();
            }
        });
        for number in 0..MARKERS {
            store.mark("disk", &marker(format!("m-{number}"))).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let before = names(&store);
    assert_eq!(before.len() as u64, MARKERS);
    assert!(volume.part_list().len() > 10, "segments must have been sealed meanwhile");
    drop((volume, store));
    assert_eq!(names(&open(&path)), before);
}
