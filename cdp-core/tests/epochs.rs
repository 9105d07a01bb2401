//! Who may write is what the epochs say: they must outlive the records that began them, and every cache of them.

use std::path::Path;
use std::sync::Arc;

use cdp_core::catalog::Catalog;
use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::epoch::{EPOCHS_FILE, Epoch};
use cdp_core::history::epochs::Standing;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::{SystemClock, native};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::role::Role;
use cdp_core::volume::timeline::EventKind;

fn open(path: &Path, catalog: bool) -> Store {
    let none = |_: &Path| Catalog::none();
    let catalog: &dyn Fn(&Path) -> Catalog = if catalog { &Catalog::open } else { &none };
    let options = OpenOptions { holder: "a test", catalog, ..OpenOptions::default() };
    Store::open_with(native(false), Arc::new(SystemClock), path, &options).unwrap()
}

fn write(volume: &Volume, count: u64) {
    for number in 0..count {
        let data = vec![number as u8 + 1; 20_000];
        let mut results = Vec::new();
        volume.apply(
            SessionId(1),
            &[Change::Write { offset: number % 20 * 4096, data: &data }],
            &mut results,
        );
        results.remove(0).unwrap();
    }
    volume.flush().unwrap();
}

fn promote(store: &Store, volume: &Arc<Volume>) -> Epoch {
    volume.demote().unwrap();
    let tip = volume.tip_lsn();
    store.promote("disk", &[(volume.clone(), tip)], EpochNumber(0), "latest").unwrap()[0].epoch
}

/// An old primary that comes back after months, when the records that began the epochs since are long in the base, must
/// still be told where its history ends; after restarts with the catalog, without it, and without the manifest as long
/// as the journal has what it says.
#[test]
fn epochs_outlive_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let file = path.join("volumes/disk").join(EPOCHS_FILE);
    Store::create(&*native(false), &SystemClock, &path).unwrap();
    let mut store = open(&path, true);
    let options = CreateOptions { segment_bytes: 512 << 10, ..CreateOptions::new(1 << 20) };
    let mut volume = store.create_volume("disk", &options, None).unwrap();
    volume.set_retention(retention::parse("at most 3MiB, at cap drop-oldest").unwrap()).unwrap();
    let mut expected = vec![Epoch::first(volume.identity().id)];
    let mut refused = 0;
    for round in 0..12 {
        write(&volume, 15);
        let epoch = promote(&store, &volume);
        assert_eq!(epoch.number, EpochNumber(round + 2));
        expected.push(epoch);
        write(&volume, 15);
        for _ in 0..20 {
            volume.maintain().unwrap();
        }
        let base = volume.base_point().lsn;
        assert_eq!(volume.epochs().list(), expected);
        let tip = volume.tip_lsn();
        drop(volume);
        if round % 3 == 0 {
            store.close().unwrap();
        }
        drop(store);
        store = open(&path, true);
        assert_eq!(
            store.volume("disk").unwrap().epochs().list(),
            expected,
            "round {round}, with the catalog"
        );
        drop(store);
        store = open(&path, false);
        assert_eq!(store.volume("disk").unwrap().epochs().list(), expected, "round {round}, without it");
        drop(store);
        // Somebody deleted the manifest.
        let kept = std::fs::read(&file).ok();
        let _ = std::fs::remove_file(&file);
        store = open(&path, round % 2 == 0);
        match store.volume("disk") {
            Ok(volume) => {
                assert!(base < expected[1].start, "the base is at {base:?}");
                assert_eq!(volume.epochs().list(), expected);
            }
            Err(error) => {
                assert!(base >= expected[1].start, "the journal has them all: {error:?}");
                assert_eq!(error.kind(), Kind::Damaged);
                refused += 1;
            }
        }
        drop(store);
        if let Some(kept) = kept {
            std::fs::write(&file, kept).unwrap();
        }
        store = open(&path, true);
        volume = store.volume("disk").unwrap();
        assert_eq!(volume.epochs().list(), expected);
        assert!(volume.tip_lsn() >= tip && volume.is_primary());
    }
    assert!(refused > 2, "the base got past an epoch");
    let mut shown = 0;
    volume
        .events_back(|part, row| {
            let event = volume.event(part, row).unwrap();
            shown +=
                matches!(event.what, EventKind::Epoch(ref begun) if expected.contains(&begun.epoch)) as u32;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert!(shown >= 1, "the log shows them");
}

/// A site that hears of a higher epoch, or of its own under another id, stops; of a lower one it does not.
#[test]
fn who_hears_of_a_higher_epoch_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    Store::create(&*native(false), &SystemClock, &path).unwrap();
    let store = open(&path, false);
    let options = CreateOptions { segment_bytes: 512 << 10, ..CreateOptions::new(1 << 20) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    write(&volume, 3);
    let first = volume.epochs().newest();
    let ours = promote(&store, &volume);
    assert_eq!(volume.hear_of(&first, "b").unwrap(), Standing::Above);
    assert_eq!(volume.hear_of(&ours, "b").unwrap(), Standing::Same);
    assert!(volume.is_primary());
    let twin = Epoch { id: 9, ..ours };
    assert_eq!(volume.hear_of(&twin, "b").unwrap(), Standing::SplitBrain);
    assert!(matches!(volume.role(), Role::Fenced { by: EpochNumber(2), .. }));
    let higher = Epoch { number: EpochNumber(7), ..twin };
    assert_eq!(volume.hear_of(&higher, "b").unwrap(), Standing::Fenced);
    assert!(matches!(volume.role(), Role::Fenced { by: EpochNumber(7), .. }));
    // Somebody decides that this one goes on: above all that was heard.
    let tip = volume.tip_lsn();
    let done = store.promote("disk", &[(volume.clone(), tip)], EpochNumber(0), "by hand").unwrap();
    assert_eq!(done[0].epoch.number, EpochNumber(8));
    write(&volume, 1);
    assert!(volume.is_primary());
}
