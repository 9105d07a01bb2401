//! Clones and rollbacks of groups, crashed at every boundary.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, PowerLoss, SimClock, SimDisk};
use cdp_core::store::{Store, TRASH_NS};
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::Back;

use crate::harness::check::read_blocks;
use crate::harness::rig::{self, STORE, marker};
use crate::harness::{Outcome, wrap};

const BLOCKS: u64 = 16;

pub fn open(disk: &SimDisk, seed: u64) -> Store {
    rig::open(disk, &SimClock::new(seed), &wrap::nothing()).unwrap()
}

pub fn fresh(seed: u64, names: &[&str]) -> (SimDisk, Store) {
    let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, seed);
    for name in names {
        store.create_volume(name, &rig::options(64 << 10), None).unwrap();
    }
    (disk, store)
}

pub fn fill(volume: &Volume, byte: u8, first: u64, blocks: u64) {
    let data = vec![byte; (blocks * BLOCK_BYTES) as usize];
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset: first * BLOCK_BYTES, data: &data }], &mut results);
    results.remove(0).unwrap();
    volume.flush().unwrap();
}

/// The first bytes of the first blocks.
pub fn content(device: &dyn Device) -> Vec<u8> {
    let bytes = read_blocks(device, 0, BLOCKS).unwrap();
    bytes.chunks(BLOCK_BYTES as usize).map(|block| block[0]).collect()
}

fn blocks(parts: &[(u8, usize)]) -> Vec<u8> {
    parts.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect()
}

/// Every state that a crash in what was recorded can leave, opened again.
pub fn each_crash(disk: &SimDisk, seed: u64, mut check: impl FnMut(&SimDisk, Store) -> Outcome) -> u64 {
    let mut chance = Chance::new(seed);
    let boundaries = disk.take_boundaries();
    assert!(boundaries.len() > 4);
    let mut crashes = 0;
    for boundary in &boundaries {
        for style in 0..4 {
            let disk = boundary.snapshot.mount(seed);
            let disk = match style {
                0 => disk.crash_process(),
                1 => disk.crash_power_with(PowerLoss::all_lost()),
                _ => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            };
            crashes += 1;
            let outcome = check(&disk, open(&disk, chance.bits()));
            if let Err(broken) = outcome {
                panic!(
                    "seed {seed}, style {style}, before{} {:?} of {}: {broken}",
                    if boundary.during { " the end of" } else { "" },
                    boundary.what,
                    boundary.path
                );
            }
        }
    }
    crashes
}

/// Somebody tries an upgrade on a clone while the original is in use: neither may see a byte of the other, through
/// trims, partial writes, growth, restarts, and a clone of the clone.
#[test]
fn a_clone_and_its_parent_go_their_own_ways() {
    let (disk, store) = fresh(1, &["a"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    let point = parent.tip_lsn();
    fill(&parent, 2, 4, 8);
    let clone = store.clone_volume(&parent, point, "b").unwrap();
    assert_eq!(content(&*clone), blocks(&[(1, 8), (0, 8)]));
    fill(&parent, 3, 0, 1);
    fill(&clone, 4, 6, 4);
    let mut results = Vec::new();
    let trim = Change::Trim { offset: 0, len: BLOCK_BYTES };
    let partial = Change::Write { offset: BLOCK_BYTES + 10, data: &[9; 20] };
    clone.apply(SessionId(1), &[trim, partial], &mut results);
    assert!(results.iter().all(Result::is_ok));
    clone.grow((1 << 20) + 8 * BLOCK_BYTES).unwrap();
    let grandchild = store.clone_volume(&clone, clone.tip_lsn(), "c").unwrap();
    fill(&clone, 5, 2, 1);
    fill(&grandchild, 6, 3, 1);
    let check = |store: &Store| {
        let volume = |name: &str| store.volume(name).unwrap();
        assert_eq!(content(&*volume("a")), blocks(&[(3, 1), (1, 3), (2, 8), (0, 4)]));
        assert_eq!(content(&*volume("b")), blocks(&[(0, 1), (1, 1), (5, 1), (1, 3), (4, 4), (0, 6)]));
        assert_eq!(content(&*volume("c")), blocks(&[(0, 1), (1, 2), (6, 1), (1, 2), (4, 4), (0, 6)]));
        let second = read_blocks(&*volume("c"), 1, 1).unwrap();
        assert_eq!(
            (&second[..10], &second[10..30], &second[30..40]),
            (&[1; 10][..], &[9; 20][..], &[1; 10][..])
        );
        assert_eq!(volume("c").size_bytes(), (1 << 20) + 8 * BLOCK_BYTES);
        assert_eq!(read_blocks(&*volume("c"), 256, 8).unwrap(), vec![0; 8 * 4096]);
        assert_eq!(volume("b").parent().unwrap().lsn, point);
        let found = cdp_core::volume::verify::verify(&volume("c"), &mut |_, _| Ok(())).unwrap();
        assert_eq!(found.damage_count, 0, "{found:?}");
    };
    check(&store);
    // Back and forth on the clone, down to what it began with.
    clone.rollback(Back::To(Lsn::ZERO), "start").unwrap();
    assert_eq!(content(&*clone), blocks(&[(1, 8), (0, 8)]));
    clone.rollback(Back::Undo, "").unwrap();
    check(&store);
    drop((parent, clone, grandchild, store));
    check(&open(&disk.crash_process(), 5));
}

/// A parent is deleted while clones need it: they go on, also after restarts and when its time in the trash is over;
/// it goes when they have let go.
#[test]
fn a_deleted_parent_stays_as_long_as_it_is_read_from() {
    let (disk, store) = fresh(2, &["a"]);
    fill(&store.volume("a").unwrap(), 1, 0, 8);
    let parent = store.volume("a").unwrap();
    let clone = store.clone_volume(&parent, parent.tip_lsn(), "b").unwrap();
    assert_eq!(store.clones_of(&parent).unwrap(), ["b"]);
    store.delete_volume("a").unwrap();
    assert_eq!(content(&*clone), blocks(&[(1, 8), (0, 8)]));
    store.close().unwrap();
    drop((parent, clone, store));
    let clock = SimClock::new(3);
    clock.advance(TRASH_NS + 1_000_000_000_000);
    let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
    assert_eq!(store.trash().unwrap().len(), 1);
    let clone = store.volume("b").unwrap();
    fill(&clone, 2, 0, 1);
    assert_eq!(content(&*clone), blocks(&[(2, 1), (1, 7), (0, 8)]));
    // It comes back while it is read from.
    let parent = store.undelete_volume("a").unwrap();
    fill(&parent, 7, 0, 8);
    assert_eq!(content(&*clone), blocks(&[(2, 1), (1, 7), (0, 8)]));
    store.delete_volume("a").unwrap();
    assert_eq!(clone.hydrate(&mut |_, _| Ok(())).unwrap(), 8 * BLOCK_BYTES);
    assert_eq!(content(&*clone), blocks(&[(2, 1), (1, 7), (0, 8)]));
    assert!(clone.parent().is_none());
    store.close().unwrap();
    drop((parent, clone, store));
    clock.advance(TRASH_NS + 1_000_000_000_000);
    let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
    assert!(store.trash().unwrap().is_empty(), "nobody needs it any more");
    assert_eq!(content(&*store.volume("b").unwrap()), blocks(&[(2, 1), (1, 7), (0, 8)]));
}

/// A clone that was refused must not hold history; one that was made holds it by its name, and no longer than it is there.
#[test]
fn what_holds_history_for_clones_says_its_name_and_ends() {
    let (_disk, store) = fresh(10, &["a", "taken"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    for _ in 0..2 {
        let refused = store.clone_volume(&parent, parent.tip_lsn(), "taken").err().unwrap();
        assert_eq!(refused.kind(), Kind::Exists);
        assert!(parent.pins().is_empty(), "{:?}", parent.pins());
    }
    let clone = store.clone_volume(&parent, parent.tip_lsn(), "b").unwrap();
    let holders: Vec<String> = parent.pins().into_iter().map(|pin| pin.holder).collect();
    assert_eq!(holders, ["the clone b"]);
    drop(clone);
    store.hydrate_volume("b", &mut |_, _| Ok(())).unwrap();
    assert!(parent.pins().is_empty(), "{:?}", parent.pins());
}

/// A server that runs for months gives the space of what was deleted back, not only the next one to be started.
#[test]
fn the_trash_is_emptied_while_the_store_is_open() {
    let (disk, clock) = (SimDisk::new(8), SimClock::new(8));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
    for name in ["a", "b"] {
        fill(&store.create_volume(name, &rig::options(64 << 10), None).unwrap(), 1, 0, 8);
    }
    store.delete_volume("a").unwrap();
    clock.advance(TRASH_NS - 1_000_000_000_000);
    assert!(store.maintain().is_empty());
    assert_eq!(store.trash().unwrap().len(), 1);
    let used = disk.used_bytes();
    clock.advance(4_000_000_000_000 + 3_600_000_000_000);
    assert!(store.maintain().is_empty());
    assert!(store.trash().unwrap().is_empty());
    assert!(disk.used_bytes() < used, "its space was not given back");
}

/// Whoever needs the space at once removes what is deleted for good; not from under a clone, and a crash in the middle
/// leaves it whole in the trash, or nothing that keeps the trash from being emptied ever after.
#[test]
fn every_boundary_of_removing_for_good() {
    let (disk, store) = fresh(9, &["a"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    let clone = store.clone_volume(&parent, parent.tip_lsn(), "b").unwrap();
    assert!(store.purge_volume("a").is_err_and(|error| error.kind() == Kind::NotFound));
    drop(parent);
    store.delete_volume("a").unwrap();
    let refused = store.purge_volume("a").unwrap_err();
    assert!(refused.kind() == Kind::Busy && refused.to_string().contains('b'), "{refused}");
    assert_eq!(content(&*clone), blocks(&[(1, 8), (0, 8)]));
    clone.hydrate(&mut |_, _| Ok(())).unwrap();
    disk.record_boundaries(true);
    assert_eq!(store.purge_volume("a").unwrap(), 1);
    let mut seen = [false; 2];
    let crashes = each_crash(&disk, 9, |disk, store| {
        let trash = store.trash().map_err(|error| error.to_string())?;
        seen[trash.len()] = true;
        let found = content(&*store.volume("b").map_err(|error| error.to_string())?);
        ensure!(found == blocks(&[(1, 8), (0, 8)]), "{found:?}");
        if !trash.is_empty() {
            let back = store.undelete_volume("a").map_err(|error| format!("half of it: {error}"))?;
            ensure!(content(&*back) == blocks(&[(1, 8), (0, 8)]), "half of it");
        }
        let left: Vec<String> = disk.paths().into_iter().filter(|path| path.contains(".gone-")).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
    assert_eq!(seen, [true; 2]);
    println!("removing for good: {crashes} crashes");
}

/// A clone in the trash may come back: what it stands on is held until it is hydrated or gone, restarts included.
#[test]
fn a_deleted_clone_still_holds_its_parent() {
    let (disk, store) = fresh(3, &["a"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    let point = parent.tip_lsn();
    let id = store.clone_volume(&parent, point, "b").unwrap().identity().id;
    store.delete_volume("b").unwrap();
    assert_eq!(parent.held_by_clones(), [(id, point)]);
    store.close().unwrap();
    drop((parent, store));
    let store = open(&disk, 4);
    assert_eq!(store.volume("a").unwrap().held_by_clones(), [(id, point)]);
    let clone = store.undelete_volume("b").unwrap();
    assert_eq!(content(&*clone), blocks(&[(1, 8), (0, 8)]));
    store.hydrate_volume("b", &mut |_, _| Ok(())).unwrap();
    assert!(store.volume("a").unwrap().held_by_clones().is_empty());
}

/// A crash while a clone is made leaves the whole clone or none, and its parent as it was; one on what was never
/// flushed must not lose the ground under it.
#[test]
fn every_boundary_of_cloning() {
    let (disk, store) = fresh(4, &["a"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    let mut results = Vec::new();
    let unflushed = vec![2; 4096];
    parent.apply(SessionId(1), &[Change::Write { offset: 0, data: &unflushed }], &mut results);
    disk.record_boundaries(true);
    let clone = store.clone_volume(&parent, parent.tip_lsn(), "b").unwrap();
    fill(&clone, 3, 1, 1);
    let crashes = each_crash(&disk, 4, |_, store| {
        ensure!(store.failed().is_empty(), "{:?}", store.failed());
        if let Ok(clone) = store.volume("b") {
            let found = content(&*clone);
            let legal = [blocks(&[(2, 1), (1, 7), (0, 8)]), blocks(&[(2, 1), (3, 1), (1, 6), (0, 8)])];
            ensure!(legal.contains(&found), "{found:?}");
        }
        let parent = content(&*store.volume("a").map_err(|error| error.to_string())?);
        ensure!(parent[1..] == blocks(&[(1, 7), (0, 8)]), "{parent:?}");
        Ok(())
    });
    println!("cloning: {crashes} crashes");
}

/// A crash while a clone is hydrated leaves it as it was; it begins again, and ends with the parent let go.
#[test]
fn every_boundary_of_hydrating() {
    let (disk, store) = fresh(5, &["a"]);
    let parent = store.volume("a").unwrap();
    fill(&parent, 1, 0, 8);
    fill(&parent, 2, 2, 3);
    let clone = store.clone_volume(&parent, parent.tip_lsn(), "b").unwrap();
    fill(&clone, 3, 1, 1);
    let expected = blocks(&[(1, 1), (3, 1), (2, 3), (1, 3), (0, 8)]);
    disk.record_boundaries(true);
    clone.hydrate(&mut |_, _| Ok(())).unwrap();
    let mut free = 0;
    let crashes = each_crash(&disk, 5, |disk, store| {
        let clone = store.volume("b").map_err(|error| error.to_string())?;
        ensure!(content(&*clone) == expected, "{:?}", content(&*clone));
        free += u64::from(clone.parent().is_none());
        clone.hydrate(&mut |_, _| Ok(())).map_err(|error| error.to_string())?;
        ensure!(content(&*clone) == expected, "hydrated again: {:?}", content(&*clone));
        drop((clone, store));
        let store = open(&disk.crash_power_with(PowerLoss::all_lost()), 6);
        let clone = store.volume("b").map_err(|error| error.to_string())?;
        ensure!(clone.parent().is_none() && content(&*clone) == expected, "after the power went");
        Ok(())
    });
    println!("hydrating: {crashes} crashes, {free} of them when it was done");
    assert!(free > 0 && free < crashes);
}

/// A database and its log are rolled back together: after a crash in the middle both are, or neither is.
#[test]
fn every_boundary_of_a_group_rollback() {
    let names = ["a", "b", "c"];
    let (disk, store) = fresh(6, &names);
    let list: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    store.add_to_group("g", &list, true).unwrap();
    for name in names {
        fill(&store.volume(name).unwrap(), 1, 0, 4);
    }
    let points: Vec<(Arc<Volume>, Back)> =
        store.mark("g", &marker("good")).unwrap().into_iter().map(|(v, lsn, _)| (v, Back::To(lsn))).collect();
    for name in names {
        fill(&store.volume(name).unwrap(), 2, 0, 4);
    }
    let all = |byte| blocks(&[(byte, 4), (0, 12)]);
    let members: Vec<_> = points.iter().map(|(volume, _)| (volume.clone(), Back::Undo)).collect();
    for (round, members, before, after) in [(0, &points, 2, 1), (1, &members, 1, 2)] {
        disk.record_boundaries(true);
        store.rollback("g", members, "good").unwrap();
        let mut done = 0;
        let crashes = each_crash(&disk, 60 + round, |disk, store| {
            let states: Vec<Vec<u8>> = store.volumes().iter().map(|volume| content(&**volume)).collect();
            ensure!(states.len() == 3, "{:?}", store.failed());
            let is_done = states.iter().all(|state| *state == all(after));
            ensure!(is_done || states.iter().all(|state| *state == all(before)), "half done: {states:?}");
            ensure!(store.volumes().iter().all(|volume| volume.held().is_none()), "held");
            // At one instant, also those that followed: between two of them the group would be shown half done.
            let newest = |volume: &Arc<Volume>| volume.course().newest_rollback().map(|turn| turn.at);
            let instants: Vec<_> = store.volumes().iter().map(newest).collect();
            ensure!(instants.iter().all(|at| *at == instants[0]), "{instants:?}");
            done += u64::from(is_done);
            drop(store);
            let again: Vec<Vec<u8>> = open(&disk.crash_power_with(PowerLoss::all_lost()), 61)
                .volumes()
                .iter()
                .map(|volume| content(&**volume))
                .collect();
            ensure!(again == states, "another one after the power went: {again:?}");
            Ok(())
        });
        println!("group rollback: {crashes} crashes, {done} of them found it done");
        assert!(done > 0 && done < crashes);
        disk.record_boundaries(false);
    }
    // Members set back one by one have nothing in common to undo.
    store.volume("a").unwrap().rollback(Back::Undo, "").unwrap();
    assert!(store.rollback("g", &members, "").is_err());
}

/// One member cannot: nobody is rolled back, and nothing is left to be finished.
#[test]
fn a_group_is_not_rolled_back_when_a_member_cannot_be() {
    let (disk, store) = fresh(7, &["a", "b"]);
    store.add_to_group("g", &["a".to_owned(), "b".to_owned()], true).unwrap();
    for name in ["a", "b"] {
        fill(&store.volume(name).unwrap(), 1, 0, 4);
    }
    let members: Vec<_> = store.members("g").unwrap().into_iter().map(|v| (v, Back::To(Lsn::ZERO))).collect();
    members[1].0.close().unwrap();
    assert!(store.rollback("g", &members, "start").is_err());
    assert_eq!(members[0].0.rolled_back(), Lsn::ZERO);
    assert!(!disk.paths().iter().any(|path| path.ends_with("/operation")));
}
