//! The budget for indexes counts all of them: whoever gave a store 16 MiB must not find a hundred taken by trims, or by volumes that
//! nobody uses.

use std::sync::Arc;

use cdp_core::catalog::Catalog;
use cdp_core::device::{Change, Device};
use cdp_core::ids::*;
use cdp_core::index::IndexOptions;
use cdp_core::io::{SystemClock, native};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::volume::Volume;

const BUDGET: usize = 16 << 20;
const SIZE: u64 = 1 << 40;

fn store(dir: &std::path::Path) -> Store {
    Store::create(&*native(false), &SystemClock, dir).unwrap();
    let index = IndexOptions { budget_bytes: BUDGET, ..IndexOptions::default() };
    let none = &|_: &std::path::Path| Catalog::none();
    let options = OpenOptions { holder: "a test", index, catalog: none, ..OpenOptions::default() };
    Store::open_with(native(false), Arc::new(SystemClock), dir, &options).unwrap()
}

fn volume(store: &Store, name: &str) -> Arc<Volume> {
    let options = CreateOptions { segment_bytes: 68 << 20, ..CreateOptions::new(SIZE) };
    store.create_volume(name, &options, None).unwrap()
}

/// Trims that take many nodes each; `number` draws them.
fn trims(number: u64) -> Vec<Change<'static>> {
    let trim = |at: u64| {
        let random = (number * 250 + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let blocks = 1 + 2 * (random % (1 << 19));
        let start = 1 + 2 * (random / 7 % ((SIZE >> 13) - (1 << 20)));
        Change::Trim { offset: start * BLOCK_BYTES, len: blocks * BLOCK_BYTES }
    };
    (0..250).map(trim).collect()
}

fn apply(volume: &Volume, number: u64) {
    let mut results = Vec::new();
    volume.apply(SessionId(1), &trims(number), &mut results);
    results.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
}

#[test]
fn a_client_that_trims_without_end_does_not_get_more_than_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir.path().join("store"));
    let volume = volume(&store, "disk");
    let mut entries = 0;
    for number in 0..200 {
        // Nobody does upkeep meanwhile.
        apply(&volume, number);
        let used = volume.memory_used();
        assert!(used.total_bytes() <= BUDGET / 2, "{used:?} after {number} rounds");
        entries = entries.max(used.parts_bytes);
    }
    let parts = volume.part_list().len();
    assert!(
        entries > 1 << 20 && parts > 4,
        "{entries} bytes, {parts} parts: else there was nothing to give back"
    );
    assert!(volume.memory_used().total_bytes() + store.index_memory().0.pages().limit_bytes() <= BUDGET);
    // What was trimmed first is told by a run by now.
    let first = volume.part_list()[0].run().expect("it has its run").memory_bytes();
    assert!(first < 1 << 20, "{first}");
    store.close().unwrap();
}

#[test]
fn volumes_that_nobody_uses_give_back_what_they_took() {
    const VOLUMES: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir.path().join("store"));
    let volumes: Vec<_> = (0..VOLUMES).map(|number| volume(&store, &format!("disk-{number}"))).collect();
    for (number, volume) in (0..).zip(&volumes) {
        // Not so much that any of them begins a segment for it, while it is alone.
        (0..4).for_each(|round| apply(volume, number * 10 + round));
    }
    let taken = store.index_memory().1.parts_bytes;
    assert!(taken > BUDGET / 4, "{taken} bytes: else there is nothing to give back");
    for _ in 0..3 {
        volumes.iter().for_each(|volume| volume.maintain().unwrap());
    }
    let left = store.index_memory().1;
    assert!(left.parts_bytes <= BUDGET / 4, "{left:?}");
    for (number, volume) in (0..).zip(&volumes) {
        for change in trims(number * 10) {
            let Change::Trim { offset, .. } = change else { unreachable!("trims") };
            let stretches = volume.extents(offset, BLOCK_BYTES, 1).unwrap();
            assert_eq!(stretches[0].content, cdp_core::device::Content::Hole);
        }
    }
    store.close().unwrap();
}
