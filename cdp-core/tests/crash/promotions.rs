//! Promotions of groups, crashed at every boundary.

use std::sync::Arc;

use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, PowerLoss, SimDisk};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::role::Role;

use crate::clones::{content, each_crash, fill, fresh, open};
use crate::harness::Outcome;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What each state of a volume shows, from LSN 0 to its tip.
fn states(volume: &Arc<Volume>) -> Vec<Vec<u8>> {
    (0..=volume.tip_lsn().0).map(|lsn| content(&View::new(volume.clone(), Lsn(lsn)))).collect()
}

/// All are primaries of one epoch that go on from the wanted states, or all are what they were; and every state
/// received is in view.
fn all_or_none(store: &Store, before: &[(Vec<Vec<u8>>, Lsn)], number: EpochNumber) -> Outcome<bool> {
    ensure!(store.failed().is_empty(), "{:?}", store.failed());
    let volumes: Vec<Arc<Volume>> = NAMES.iter().map(|name| store.volume(name).unwrap()).collect();
    let promoted = volumes[0].is_primary();
    let id = volumes[0].epochs().newest().id;
    for (volume, (states, to)) in volumes.iter().zip(before) {
        let (name, tip) = (volume.name(), Lsn(states.len() as u64 - 1));
        for (lsn, state) in states.iter().enumerate() {
            let shown = content(&View::new(volume.clone(), Lsn(lsn as u64)));
            ensure!(shown == *state, "{name} at {lsn} is not what it was");
        }
        let newest = volume.epochs().newest();
        if promoted {
            ensure!(volume.role() == Role::Primary, "{name} is {:?}, another is a primary", volume.role());
            ensure!(newest.number == number && newest.id == id, "{name} is in {newest:?}");
            ensure!(newest.start == tip.next(), "{name} begins its epoch at {:?}", newest.start);
            let shown = content(&**volume);
            ensure!(shown == states[to.0 as usize], "{name} does not go on from {to:?}");
            fill(volume, 0x77, 0, 1);
            ensure!(content(&**volume)[0] == 0x77, "{name} takes no writes");
        } else {
            ensure!(matches!(volume.role(), Role::Replica { .. }), "{name} is {:?}", volume.role());
            ensure!(newest.number < number, "{name} is in {newest:?}");
            ensure!(volume.tip_lsn() == tip, "{name} stands at {:?}, not at {tip:?}", volume.tip_lsn());
            volume.refuse_unless_replica().map_err(|error| error.to_string())?;
        }
    }
    Ok(promoted)
}

/// The second site dies in the middle of a failover: its database, on several volumes, must go on from one instant on
/// all of them, or still be a replica as a whole; never the log from one instant and the tables from another.
#[test]
fn every_boundary_of_a_promotion() {
    let mut crashes = 0;
    let (mut none, mut all) = (0, 0);
    for (seed, back) in [(1, [0, 0, 0]), (2, [2, 0, 5]), (3, [1, 3, 2])] {
        let (disk, store) = fresh(seed, &NAMES);
        let names: Vec<String> = NAMES.iter().map(|name| name.to_string()).collect();
        store.add_to_group("all", &names, true).unwrap();
        let volumes: Vec<Arc<Volume>> = NAMES.iter().map(|name| store.volume(name).unwrap()).collect();
        for round in 0..7u8 {
            for (number, volume) in volumes.iter().enumerate() {
                fill(volume, 1 + round * 3 + number as u8, round as u64 + number as u64, 3);
            }
        }
        for volume in &volumes {
            volume.demote().unwrap();
        }
        let before: Vec<(Vec<Vec<u8>>, Lsn)> = volumes
            .iter()
            .zip(back)
            .map(|(volume, back)| (states(volume), Lsn(volume.tip_lsn().0 - back)))
            .collect();
        let members: Vec<(Arc<Volume>, Lsn)> = store
            .members("all")
            .unwrap()
            .into_iter()
            .map(|volume| {
                let place = NAMES.iter().position(|name| *name == volume.name()).unwrap();
                (volume, before[place].1)
            })
            .collect();
        disk.record_boundaries(true);
        let done = store.promote("all", &members, EpochNumber(4), "a test").unwrap();
        assert_eq!(done.len(), 3);
        let again = store.promote("all", &members, EpochNumber(0), "a test");
        assert!(again.is_err(), "it is the primary already");
        drop((members, volumes));
        let mut chance = Chance::new(seed);
        crashes += each_crash(&disk, seed, |disk, store| {
            let promoted = all_or_none(&store, &before, EpochNumber(5))?;
            if promoted {
                all += 1
            } else {
                none += 1
            }
            drop(store);
            // Once it was seen it stays, whatever happens next.
            let disk = match chance.percent(50) {
                true => disk.crash_process(),
                false => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            };
            let store = open(&disk, chance.bits());
            let still = store.volume("a").unwrap().is_primary();
            ensure!(still == promoted, "promoted {promoted}, then {still}");
            Ok(())
        });
        assert_eq!(all_or_none(&store, &before, EpochNumber(5)), Ok(true));
    }
    println!("promotions: {crashes} crashes, {none} left replicas, {all} primaries");
    assert!(none > 20 && all > 20);
}

/// The opening after a crash in the middle of a failover is itself cut off, again and again: it must get there all the
/// same.
#[test]
fn finishing_a_promotion_can_be_cut_off() {
    let (disk, store) = fresh(11, &NAMES);
    let volumes: Vec<Arc<Volume>> = NAMES.iter().map(|name| store.volume(name).unwrap()).collect();
    for volume in &volumes {
        fill(volume, 1, 0, 4);
        fill(volume, 2, 2, 4);
        volume.demote().unwrap();
    }
    let before: Vec<_> = volumes.iter().map(|volume| (states(volume), Lsn(1))).collect();
    let mut members: Vec<_> = volumes.iter().map(|volume| (volume.clone(), Lsn(1))).collect();
    members.sort_by_key(|(volume, _)| volume.identity().id);
    disk.record_boundaries(true);
    store.promote("all", &members, EpochNumber(0), "a test").unwrap();
    drop((members, volumes, store));
    let outer = disk.take_boundaries();
    disk.record_boundaries(false);
    let mut chance = Chance::new(11);
    let mut cut_off = 0;
    for boundary in outer.iter().step_by(3) {
        let disk = boundary.snapshot.mount(12).crash_process();
        disk.record_boundaries(true);
        let store = open(&disk, 1);
        let inner = disk.take_boundaries();
        disk.record_boundaries(false);
        let settled = all_or_none(&store, &before, EpochNumber(2)).unwrap();
        for boundary in inner.iter().step_by(4) {
            let disk: SimDisk = boundary.snapshot.mount(13);
            let disk = match chance.percent(40) {
                true => disk.crash_process(),
                false => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            };
            let store = open(&disk, chance.bits());
            cut_off += 1;
            let outcome = all_or_none(&store, &before, EpochNumber(2));
            if settled {
                assert!(outcome.is_ok(), "{outcome:?}, {:?} of {}", boundary.what, boundary.path);
            } else {
                assert_eq!(outcome, Ok(false), "{:?} of {}", boundary.what, boundary.path);
            }
        }
    }
    println!("cut off while finishing: {cut_off}");
    assert!(cut_off > 50);
}
