//! Clones of whole groups: all members or none, crashed at every boundary, also while a crash is recovered from.

use std::path::Path;
use std::sync::Arc;

use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, Fault, FaultKind, PowerLoss, SimDisk, When};
use cdp_core::store::Store;
use cdp_core::volume::Volume;

use crate::clones::{content, each_crash, fill, fresh, open};
use crate::harness::Outcome;
use crate::harness::rig::marker;

const NAMES: [&str; 3] = ["a", "b", "c"];
const CLONES: [&str; 3] = ["try-a", "try-b", "try-c"];

fn states(store: &Store, names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().filter_map(|name| store.volume(name).ok()).map(|volume| content(&*volume)).collect()
}

fn all(byte: u8) -> Vec<u8> {
    [vec![byte; 4], vec![0; 12]].concat()
}

/// A group that was marked and written to since; what the marker is on each member.
fn marked(seed: u64) -> (SimDisk, Store, Vec<(Arc<Volume>, Lsn)>) {
    let (disk, store) = fresh(seed, &NAMES);
    store.add_to_group("g", &NAMES.map(str::to_owned), true).unwrap();
    for name in NAMES {
        fill(&store.volume(name).unwrap(), 1, 0, 4);
    }
    let marks = store.mark("g", &marker("good")).unwrap();
    for name in NAMES {
        fill(&store.volume(name).unwrap(), 2, 0, 4);
    }
    (disk, store, marks.into_iter().map(|(volume, lsn, _)| (volume, lsn)).collect())
}

/// All or none; `true` if all.
fn whole_or_none(store: &Store) -> Outcome<bool> {
    ensure!(store.failed().is_empty(), "{:?}", store.failed());
    ensure!(states(store, &NAMES) == vec![all(2); 3], "the group itself: {:?}", states(store, &NAMES));
    let there = states(store, &CLONES);
    let group = store.groups().get("try").cloned();
    ensure!(there.is_empty() || there == vec![all(1); 3], "half a group, or another state: {there:?}");
    ensure!(group.is_some() != there.is_empty(), "{} clones, and the group is {group:?}", there.len());
    for name in NAMES {
        let held = store.volume(name).map_err(|error| error.to_string())?.held_by_clones().len();
        ensure!(held == usize::from(!there.is_empty()), "{held} clones hold {name}");
    }
    if let Some(mut group) = group {
        group.sort();
        ensure!(group == CLONES.map(str::to_owned), "the group has {group:?}");
    }
    Ok(!there.is_empty())
}

/// A database and its log are tried together. A crash while they are cloned must not leave a log without its database, nor
/// a clone that the next opening throws away after somebody wrote to it.
#[test]
fn every_boundary_of_cloning_a_group() {
    let (disk, store, members) = marked(20);
    disk.record_boundaries(true);
    let clones = store.clone_group("try", &members).unwrap();
    assert_eq!(clones.len(), 3);
    assert_eq!(whole_or_none(&store), Ok(true));
    let mut done = 0;
    let crashes = each_crash(&disk, 21, |disk, store| {
        let whole = whole_or_none(&store)?;
        done += u64::from(whole);
        if whole {
            // They are volumes like any other, and stay.
            for name in CLONES {
                let clone = store.volume(name).map_err(|error| error.to_string())?;
                fill(&clone, 7, 8, 1);
            }
        }
        drop(store);
        let store = open(&disk.crash_power_with(PowerLoss::all_lost()), 22);
        let again = states(&store, &CLONES);
        let expected = [vec![1; 4], vec![0; 4], vec![7; 1], vec![0; 7]].concat();
        ensure!(again.len() == if whole { 3 } else { 0 }, "after the power went: {again:?}");
        ensure!(again.iter().all(|state| *state == expected), "after the power went: {again:?}");
        let leftover =
            disk.paths().into_iter().find(|path| path.contains("/.new-") || path.ends_with("/cloning"));
        ensure!(leftover.is_none(), "{leftover:?} is left");
        if !whole {
            let member = |name: &str| store.volume(name).map(|volume| (volume, Lsn(1)));
            let members = NAMES.iter().map(|name| member(name)).collect::<Result<Vec<_>, _>>();
            let mut members = members.map_err(|error| error.to_string())?;
            members.sort_by_key(|(volume, _)| volume.identity().id);
            store.clone_group("try", &members).map_err(|error| format!("at the second try: {error:?}"))?;
            ensure!(whole_or_none(&store)?, "at the second try");
        }
        Ok(())
    });
    println!("cloning a group: {crashes} crashes, {done} of them found it done");
    assert!(done > 10 && crashes - done > 10);
}

/// The opening that makes the clones' names after a crash is itself cut off, again and again.
#[test]
fn finishing_the_clone_of_a_group_can_be_cut_off() {
    let (disk, store, members) = marked(30);
    disk.record_boundaries(true);
    store.clone_group("try", &members).unwrap();
    drop((members, store));
    let outer = disk.take_boundaries();
    let mut chance = Chance::new(31);
    let mut cut_off = 0;
    for boundary in outer.iter().filter(|boundary| !boundary.path.contains("/.new-")).step_by(2) {
        let disk = boundary.snapshot.mount(32).crash_process();
        disk.record_boundaries(true);
        let settled = whole_or_none(&open(&disk, 33)).unwrap();
        let inner = disk.take_boundaries();
        for boundary in inner.iter().step_by(4) {
            let disk: SimDisk = boundary.snapshot.mount(34);
            let power = chance.percent(60);
            let disk = match power {
                true => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
                false => disk.crash_process(),
            };
            cut_off += 1;
            let outcome = whole_or_none(&open(&disk, chance.bits()));
            let place = format!("{:?} of {}", boundary.what, boundary.path);
            // What only the cache knew may go with the power; what was settled without, stays so.
            assert!(
                outcome == Ok(settled) || power && outcome == Ok(false),
                "{outcome:?}, {settled}, at {place}"
            );
        }
    }
    println!("cut off while finishing: {cut_off}");
    assert!(cut_off > 50);
}

/// A name is taken, a state is gone, or the disk fails: no member is cloned, the group's history is held by nobody, and the
/// next try works.
#[test]
fn a_group_is_not_cloned_when_a_member_cannot_be() {
    let (_, store, members) = marked(40);
    store.create_volume("try-b", &crate::harness::rig::options(64 << 10), None).unwrap();
    let none = |store: &Store| {
        assert!(!store.groups().contains_key("try"));
        assert!(store.volumes().iter().all(|volume| volume.held_by_clones().is_empty()));
    };
    assert_eq!(store.clone_group("try", &members).err().unwrap().kind(), Kind::Exists);
    none(&store);
    store.delete_volume("try-b").unwrap();
    assert_eq!(store.clone_group("g", &members).err().unwrap().kind(), Kind::Exists);
    assert_eq!(store.clone_group("a", &members).err().unwrap().kind(), Kind::Exists);
    let mut future = members.clone();
    future[2].1 = Lsn(1000);
    assert_eq!(store.clone_group("try", &future).err().unwrap().kind(), Kind::OutOfRange);
    none(&store);
    assert_eq!(store.clone_group("try", &members).unwrap().len(), 3);
}

/// A disk that fails at any operation of it leaves all or none, then or at the next opening.
#[test]
fn faults_while_a_group_is_cloned() {
    let (mut struck, mut later) = (0, 0);
    for kind in
        [FaultKind::WriteError, FaultKind::SyncError, FaultKind::DirectorySyncError, FaultKind::NameError]
    {
        for nth in 1..30 {
            let (disk, store, members) = marked(50);
            disk.inject(Fault::new(kind, When::Nth(nth)));
            let outcome = store.clone_group("try", &members);
            disk.clear_faults();
            let told = outcome.is_ok();
            struck += u64::from(!told);
            drop((members, outcome, store));
            let store = open(&disk.crash_process(), 51);
            let whole =
                whole_or_none(&store).unwrap_or_else(|broken| panic!("{kind:?} at the {nth}th: {broken}"));
            assert!(whole || !told, "{kind:?} at the {nth}th: it was told to be there");
            later += u64::from(whole && !told);
        }
    }
    println!("{struck} faults struck, {later} of them were finished by the next opening");
    assert!(struck > 20);
}

/// A disk that fails when a group's clone is decided and has no names yet.
fn decided(seed: u64) -> (SimDisk, Store, Vec<(Arc<Volume>, Lsn)>) {
    for nth in 1.. {
        let (disk, store, members) = marked(seed);
        disk.inject(Fault::new(FaultKind::NameError, When::Nth(nth)));
        let failed = store.clone_group("try", &members).is_err();
        disk.clear_faults();
        let is_decided = disk.paths().iter().any(|path| path.ends_with("/cloning"));
        if failed && is_decided && !disk.paths().iter().any(|path| path.contains("/try-b/")) {
            return (disk, store, members);
        }
    }
    unreachable!()
}

/// The disk failed in the middle, the server goes on, and somebody wants one of the names for something else: no store may be
/// unable to open for that, nor anybody's volume be taken for a clone.
#[test]
fn a_decided_name_is_nobody_elses() {
    let (disk, store, members) = decided(60);
    let options = crate::harness::rig::options(64 << 10);
    for name in ["try-b", "try"] {
        let taken = store.create_volume(name, &options, None).map(|_| ());
        assert_eq!(taken.unwrap_err().kind(), Kind::Exists, "{name}");
    }
    assert_eq!(store.add_to_group("try", &["a".to_owned()], true).unwrap_err().kind(), Kind::Exists);
    store.create_volume("other", &options, None).unwrap();
    store.delete_volume("other").unwrap();
    // The next clone of any group finishes it.
    assert_eq!(store.clone_group("try", &members).err().unwrap().kind(), Kind::Exists);
    assert_eq!(whole_or_none(&store), Ok(true));
    drop((store, members));
    assert_eq!(whole_or_none(&open(&disk.crash_process(), 61)), Ok(true));
}

/// The same with the name taken behind the store's back, as before names were kept: it is not overwritten, and the clones are all
/// there.
#[test]
fn a_decided_name_that_is_taken_is_not_overwritten() {
    let (disk, store, members) = decided(70);
    let (file, aside) = (Path::new("/store/cloning"), Path::new("/store/aside"));
    disk.rename(file, aside).unwrap();
    let other = store.create_volume("try-b", &crate::harness::rig::options(64 << 10), None).unwrap();
    fill(&other, 9, 0, 8);
    fill(&other, 9, 8, 8);
    disk.rename(aside, file).unwrap();
    disk.sync_dir(Path::new("/store")).unwrap();
    drop((other, store, members));
    disk.record_boundaries(true);
    drop(open(&disk, 71));
    let crashes = each_crash(&disk, 72, |_, store| {
        ensure!(store.failed().is_empty(), "{:?}", store.failed());
        ensure!(states(&store, &["try-b"]) == vec![vec![9; 16]], "the other volume is gone");
        let group = store.groups().remove("try").ok_or("no group")?;
        let names: Vec<&str> = group.iter().map(String::as_str).collect();
        ensure!(states(&store, &names) == vec![all(1); 3], "{names:?}: {:?}", states(&store, &names));
        ensure!(!names.contains(&"try-b"), "another volume is in the group");
        let held = NAMES.map(|name| store.volume(name).unwrap().held_by_clones().len());
        ensure!(held == [1; 3], "{held:?} clones hold them");
        Ok(())
    });
    assert!(crashes > 20);
}
