//! What a crash leaves of names.

use std::collections::BTreeSet;
use std::path::Path;

use super::{disk_with, write};
use crate::io::sim::{CrashAt, NameOrder, PowerLoss, SimDisk};
use crate::io::{Files, read_file, replace_file};

const SEEDS: u64 = 200;

fn root() -> &'static Path {
    Path::new("/")
}

/// A forgotten sync of a directory loses a whole segment: tests can only find that if the disk does it.
#[test]
fn a_new_name_is_safe_only_after_its_directory_was_synced() {
    let mut present = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/file")).unwrap();
        write(&*file, 0, b"bytes");
        file.sync().unwrap();
        assert_eq!(disk.durable_contents("/file").unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let unsynced = disk.snapshot().mount(seed).crash_power(seed);
        present.insert(unsynced.contents("/file").is_ok());
        disk.sync_dir(root()).unwrap();
        assert_eq!(disk.crash_power(seed).contents("/file").unwrap(), b"bytes", "seed {seed}");
    }
    assert_eq!(present.len(), 2);
}

/// Manifests live by this: there is always the old one or the new one, whole.
#[test]
fn a_replaced_file_is_old_or_new_at_every_boundary() {
    let disk = SimDisk::new(1);
    replace_file(&disk, Path::new("/manifest"), b"old").unwrap();
    disk.record_boundaries(true);
    replace_file(&disk, Path::new("/manifest"), b"new!").unwrap();
    let done = disk.operations();
    let mut seen = BTreeSet::new();
    for boundary in disk.take_boundaries() {
        for seed in 0..SEEDS {
            let disk = boundary.snapshot.mount(seed).crash_power(seed);
            let content = read_file(&disk, Path::new("/manifest"), 100).unwrap();
            assert!(content == b"old" || content == b"new!", "{content:?} before {}", boundary.operation);
            seen.insert(content);
        }
    }
    assert_eq!(seen.len(), 2);
    assert_eq!(disk.operations(), done);
    assert_eq!(disk.crash_power_with(PowerLoss::all_lost()).contents("/manifest").unwrap(), b"new!");
}

/// The same, with the sync left out by mistake: the disk must be nasty enough to show an empty manifest.
#[test]
fn renaming_before_syncing_is_punished() {
    let punished = (0..SEEDS).any(|seed| {
        let (disk, _) = disk_with(b"old");
        write(&*disk.create(Path::new("/fresh")).unwrap(), 0, b"new");
        disk.rename(Path::new("/fresh"), Path::new("/file")).unwrap();
        disk.sync_dir(root()).unwrap();
        disk.crash_power(seed).contents("/file").unwrap().is_empty()
    });
    assert!(punished);
}

/// With a journalling filesystem names come in order; without, any of them may be missing.
#[test]
fn the_order_of_names_is_as_asked() {
    let outcomes = |names| -> BTreeSet<Vec<String>> {
        let leaves = |seed| {
            let disk = SimDisk::new(seed);
            for path in ["/a", "/b", "/c"] {
                disk.create(Path::new(path)).unwrap();
            }
            let plan = PowerLoss {
                names,
                names_keep_percent: 50,
                order: crate::io::sim::WriteOrder::Any,
                ..PowerLoss::seeded(seed)
            };
            disk.crash_power_with(plan).paths()
        };
        (0..SEEDS).map(leaves).collect()
    };
    let in_order = outcomes(NameOrder::PerDirectory);
    assert_eq!(in_order.len(), 4);
    assert!(
        in_order.iter().all(
            |paths| ["/a", "/b", "/c"].starts_with(&paths.iter().map(String::as_str).collect::<Vec<_>>())
        )
    );
    assert_eq!(outcomes(NameOrder::PerName).len(), 8);
}

/// A synced file in a directory that was never made durable is gone with it; a move is at one end or the other.
#[test]
fn directories_and_moves() {
    let (mut lost, mut places) = (0, BTreeSet::new());
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        disk.create_dir(Path::new("/d")).unwrap();
        write(&*disk.create(Path::new("/d/file")).unwrap(), 0, b"x");
        disk.sync_dir(Path::new("/d")).unwrap();
        lost += u32::from(disk.snapshot().mount(seed).crash_power(seed).paths().is_empty());
        disk.sync_dir(root()).unwrap();
        disk.rename(Path::new("/d/file"), Path::new("/moved")).unwrap();
        places.insert(disk.snapshot().mount(seed).crash_power(seed).paths());
        disk.sync_dir(root()).unwrap();
        assert_eq!(disk.crash_power(seed).paths(), ["/moved"], "seed {seed}");
    }
    assert!(lost > 10);
    assert_eq!(places, BTreeSet::from([vec!["/d/file".to_owned()], vec!["/moved".to_owned()]]));
}

/// A removed file may come back; its space and its readers' bytes stay right meanwhile.
#[test]
fn removal_waits_for_a_sync_too() {
    let mut back = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, _file) = disk_with(&[1; 4096]);
        disk.remove(Path::new("/file")).unwrap();
        assert_eq!(disk.used_bytes(), 0);
        back.insert(disk.snapshot().mount(seed).crash_power(seed).contents("/file").ok());
        disk.sync_dir(root()).unwrap();
        assert!(disk.crash_power(seed).paths().is_empty(), "seed {seed}");
    }
    assert_eq!(back, BTreeSet::from([None, Some(vec![1; 4096])]));
}

/// A crash inside removing a directory leaves some of it: each file is an operation of its own.
#[test]
fn removing_a_directory_can_stop_in_the_middle() {
    let disk = SimDisk::new(1);
    disk.create_dir(Path::new("/d")).unwrap();
    for name in ["a", "b", "c"] {
        disk.create(&Path::new("/d").join(name)).unwrap();
    }
    disk.set_crash_after(3, CrashAt::Before);
    assert!(disk.remove_dir_all(Path::new("/d")).is_err());
    assert_eq!(disk.crash_process().paths(), ["/d/c"]);
}
