//! Dependent writes on two volumes of a group.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cdp_core::device::{Change, Device};
use cdp_core::error::Error;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, PowerLoss, SimClock, When};
use cdp_core::io::{SystemClock, native};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::Back;

use crate::clones::{fill, fresh};
use crate::harness::check::read_blocks;
use crate::harness::model::Edit;
use crate::harness::rig::{self, GROUP, marker, volume_name};
use crate::harness::tally::with_seeds;
use crate::harness::{Outcome, Rig, Tally, wrap};

const INSTANTS: u64 = 1000;

/// The counter on a volume as of a record.
fn counter(volume: &Arc<Volume>, lsn: Lsn) -> Outcome<u64> {
    let view = View::new(volume.clone(), lsn);
    let block = read_blocks(&view, 0, 1).map_err(|error| format!("{error:?}"))?;
    Ok(u64::from_le_bytes(block[100..108].try_into().expect("8 bytes")))
}

/// Of two dependent writes on different volumes a common instant shows neither, both or only the first.
fn not_inverted(volumes: &[Arc<Volume>], lsns: [Lsn; 2], what: &str) -> Outcome {
    let (first, second) = (counter(&volumes[0], lsns[0])?, counter(&volumes[1], lsns[1])?);
    ensure!(
        first >= second && first <= second + 1,
        "{what}: the first volume has {first}, the second {second}"
    );
    Ok(())
}

/// At every group marker and at random instants, those of records included.
fn check(volumes: &[Arc<Volume>], seed: u64) -> Outcome<usize> {
    let words = |error: Error| format!("unexpected error: {error:?}");
    let mut markers = 0;
    for (marker, _) in volumes[0].named_markers() {
        let there = volumes[1].marker(&marker.name).map_err(words)?;
        let there = there.ok_or_else(|| format!("{} is on one volume only", marker.name))?;
        ensure!(
            marker.at == there.at,
            "{}: {:?} and {:?} are not one instant",
            marker.name,
            marker.at,
            there.at
        );
        not_inverted(volumes, [marker.lsn, there.lsn], &marker.name)?;
        markers += 1;
    }
    let mut chance = Chance::new(seed ^ 0x9409);
    let begin = volumes[0].identity().created.0.max(volumes[1].identity().created.0);
    let end = volumes[0].tip().1.0.max(volumes[1].tip().1.0);
    for _ in 0..INSTANTS {
        let at = if chance.percent(50) {
            begin + chance.below(end - begin + 2)
        } else {
            let volume = &volumes[chance.below(2) as usize];
            let record = Lsn(chance.below(volume.tip_lsn().0 + 1));
            volume.timestamp_of(record).map_err(words)?.0 - 1 + chance.below(3)
        };
        let at = Timestamp(at.max(begin));
        let lsns = [volumes[0].lsn_at(at).map_err(words)?, volumes[1].lsn_at(at).map_err(words)?];
        not_inverted(volumes, lsns, &format!("at {at:?}"))?;
    }
    Ok(markers)
}

/// A database that keeps its log on one volume and its tables on another must never see, at any common
/// instant, tables ahead of the log: whatever the clock does and however often the server restarts.
#[test]
fn dependent_counters_never_invert() {
    let mut tally = Tally::default();
    let mut markers = 0;
    with_seeds("dependent_counters_never_invert", 500, 4, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 2, 64 << 10)?;
        let mut chance = Chance::new(seed);
        for number in 1..=150u64 {
            for volume in 0..2 {
                let edit = Edit::Write { offset: 100, data: number.to_le_bytes().to_vec() };
                let mut results = Vec::new();
                rig.volumes[volume].apply(SessionId(1), &[edit.change()], &mut results);
                results.remove(0).map_err(|error| format!("{error:?}"))?;
                match chance.below(12) {
                    0 if chance.percent(50) => rig.clock.advance(chance.below(2_000_000_000)),
                    0 => rig.clock.step_wall(chance.below(20_000_000_000) as i64 - 10_000_000_000),
                    1 => {
                        let marker = marker(&format!("m{number}-{volume}"));
                        rig.store().mark(GROUP, &marker).map_err(|error| format!("{error:?}"))?;
                    }
                    2 => drop(rig.store().tick()),
                    3 => drop(rig.store().maintain()),
                    4 if chance.percent(15) => restart(&mut rig, &mut chance)?,
                    _ => rig.clock.advance(chance.below(3)),
                }
            }
        }
        markers += check(&rig.volumes, seed)?;
        restart(&mut rig, &mut chance)?;
        markers += check(&rig.volumes, seed + 1)?;
        tally.take(&rig.disk);
        Ok(())
    });
    println!("dependent counters: {markers} group markers; {tally}");
    assert!(markers > 50);
}

fn restart(rig: &mut Rig, chance: &mut Chance) -> Outcome {
    if chance.percent(50) {
        rig.store().close().map_err(|error| format!("{error:?}"))?;
    } else {
        rig.disk = rig.disk.crash_process();
    }
    rig.volumes.clear();
    rig.store = None;
    let store = rig::open(&rig.disk, &rig.clock, &rig.wrap)?;
    rig.volumes = store.volumes();
    rig.store = Some(store);
    rig.volumes.iter().try_for_each(|volume| rig::good(volume))
}

fn put(volume: &Volume, number: u64) {
    let data = number.to_le_bytes();
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset: 100, data: &data }], &mut results);
    results.remove(0).expect("a write");
}

/// The same with real files, real time and threads: markers are set and segments sealed in the middle of it.
#[test]
fn dependent_counters_with_threads_and_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path: &Path = &directory.path().join("store");
    let files = native(false);
    let open = || Store::open(files.clone(), Arc::new(SystemClock), path, "a test").expect("the store opens");
    Store::create(&*files, &SystemClock, path).expect("a store");
    let mut written = 0;
    for round in 0..3 {
        let store = open();
        if round == 0 {
            let names = [volume_name(0), volume_name(1)];
            for name in &names {
                store.create_volume(name, &rig::options(256 << 10), None).expect("a volume");
            }
            store.add_to_group(GROUP, &names, true).expect("a group");
        }
        let volumes = store.volumes();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..400 {
                    written += 1;
                    put(&volumes[0], written);
                    put(&volumes[1], written);
                }
                done.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                for number in 0.. {
                    store.mark(GROUP, &marker(&format!("m{round}-{number}"))).expect("a marker");
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    assert!(store.tick().is_empty() && store.maintain().is_empty(), "the timers' duties");
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    volumes[0].flush().expect("a flush");
                    volumes[1].flush().expect("a flush");
                }
            });
        });
        let markers = check(&volumes, round).unwrap_or_else(|broken| panic!("round {round}: {broken}"));
        assert!(markers > 0);
        if round == 1 {
            store.close().expect("a clean stop");
        }
        drop(volumes);
        drop(store);
    }
    let store = open();
    let volumes = store.volumes();
    for volume in &volumes {
        assert_eq!(counter(volume, volume.tip_lsn()), Ok(written));
    }
    check(&volumes, 77).expect("after the last restart");
}

/// A member of a group that a crash kept from being set back could not be opened at once. It is opened later, closed to clients, and its
/// link says that everything up to an instant has happened. What follows must be newer than that.
#[test]
fn who_follows_a_rollback_later_keeps_what_was_said_meanwhile() {
    let (disk, store) = fresh(16, &["one", "two"]);
    let members: Vec<_> = ["one", "two"].map(|name| store.volume(name).unwrap()).into();
    for volume in &members {
        fill(volume, 1, 0, 1);
        fill(volume, 2, 0, 1);
    }
    disk.record_boundaries(true);
    let parts: Vec<_> = members.iter().map(|volume| (volume.clone(), Back::To(Lsn(1)))).collect();
    store.rollback("all", &parts, "lsn:1").unwrap();
    drop((parts, members, store));
    let mut looked = 0;
    for boundary in disk.take_boundaries() {
        let disk = boundary.snapshot.mount(16).crash_power_with(PowerLoss::all_lost());
        for name in ["one", "two"] {
            let disk = disk.crash_process();
            // Its segments cannot be read at the opening.
            disk.inject(Fault::new(FaultKind::ReadError, When::From(1)).on(format!("volumes/{name}/")));
            let clock = SimClock::new(3);
            let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
            disk.clear_faults();
            if store.failed().is_empty() {
                continue;
            }
            clock.advance(60_000_000_000);
            store.maintain();
            let Ok(volume) = store.volume(name) else { continue };
            if volume.course().newest_rollback().is_some() || !volume.is_primary() {
                continue;
            }
            let (_, said) = volume.promise_complete();
            drop((volume, store));
            let store = rig::open(&disk.crash_process(), &clock, &wrap::nothing()).unwrap();
            let volume = store.volume(name).unwrap();
            let Some(turn) = volume.course().newest_rollback().cloned() else { continue };
            looked += 1;
            assert!(
                turn.at > said,
                "a record of {:?} came behind the word that all up to {said:?} was there",
                turn.at
            );
        }
    }
    assert!(looked > 0, "nothing was looked at");
}
