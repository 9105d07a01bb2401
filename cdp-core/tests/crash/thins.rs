//! History of which only kept states stay, under every crash and every fault.

use std::collections::BTreeSet;

use cdp_core::device::Device;
use cdp_core::format::fold::FoldHeader;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, When};
use cdp_core::view::View;
use cdp_core::volume::verify::verify;

use crate::harness::check::{check_volume, read_blocks, thinned};
use crate::harness::model::Edit;
use crate::harness::tally::with_seeds;
use crate::harness::workload::{Step, content};
use crate::harness::{Depth, Outcome, Rig, Tally, Workload, crash_at_every_boundary, rig};

const SEGMENT_BYTES: u64 = 64 << 10;

fn set_policy(rig: &Rig, text: &str) -> Outcome {
    let policy = retention::parse(text).map_err(|error| error.to_string())?;
    for volume in &rig.volumes {
        volume.set_retention(policy.clone()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn folds(rig: &Rig) -> usize {
    rig.volumes[0].part_list().iter().filter(|part| part.segment.fold.is_some()).count()
}

/// Time goes by, and upkeep has its turn.
fn age(rig: &mut Rig, ns: u64) -> Outcome {
    rig.step(&Step::Advance { ns })?;
    rig.step(&Step::Maintain)
}

fn folds_of_disk(rig: &Rig) -> BTreeSet<String> {
    rig.disk.paths().into_iter().filter(|path| path.ends_with(".fold")).collect()
}

/// Whoever loses power or a process while old history is thinned must find every state that was kept, exact, and all of
/// the window; and what was thinned away must be refused, not shown half.
#[test]
fn every_boundary_while_history_is_thinned() {
    let mut tally = Tally::default();
    let mut made = 0;
    with_seeds("every_boundary_while_history_is_thinned", 300, 3, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, SEGMENT_BYTES)?;
        let codec = ["lz4", "zstd", "none"][seed as usize % 3];
        set_policy(&rig, &format!("every-write 10s, every 4s for 60s, codec {codec}"))?;
        let mut workload = Workload::turning(seed, 1, rig::VOLUME_BYTES);
        for number in 0..220 {
            rig.step(&workload.step()).map_err(|broken| format!("step {number}: {broken}"))?;
            age(&mut rig, 200_000_000).map_err(|broken| format!("step {number}: {broken}"))?;
        }
        ensure!(folds(&rig) > 0, "nothing was thinned");
        let before = folds_of_disk(&rig);
        rig.disk.record_boundaries(true);
        for _ in 0..400 {
            rig.step(&workload.step())?;
            age(&mut rig, 400_000_000)?;
            made = made.max(folds_of_disk(&rig).difference(&before).count());
            if folds_of_disk(&rig).difference(&before).count() > 1 {
                break;
            }
        }
        ensure!(folds_of_disk(&rig) != before, "nothing was thinned while it was looked at");
        let outcome = crash_at_every_boundary(&rig, seed, 2, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("{made} folds; {tally}");
}

/// Whoever keeps hourly states for long must get each of them back exactly, across rollbacks, undos, restarts, folds made
/// of folds, and the base that follows behind.
#[test]
fn what_a_policy_keeps_stays_exact() {
    let mut tally = Tally::default();
    let (mut gone, mut kept, mut moved) = (0, 0, 0);
    with_seeds("what_a_policy_keeps_stays_exact", 320, 6, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, SEGMENT_BYTES)?;
        set_policy(&rig, "every-write 15s, every 5s for 50s, every 20s for 150s, named 200s")?;
        let mut workload = Workload::turning(seed, 1, rig::VOLUME_BYTES);
        let mut chance = Chance::new(seed);
        let mut levels = 0;
        for number in 0..500 {
            rig.step(&workload.step()).map_err(|broken| format!("step {number}: {broken}"))?;
            if number % 100 == 50 {
                // What was thinned before stays as it is until it is made anew.
                let codec = ["zstd", "lz4", "none"][(number / 100 + seed as usize) % 3];
                let text = "every-write 15s, every 5s for 50s, every 20s for 150s, named 200s";
                set_policy(&rig, &format!("{text}, codec {codec}"))?;
            }
            if number % 3 == 0 {
                age(&mut rig, 1_500_000_000).map_err(|broken| format!("step {number}: {broken}"))?;
            }
            let volume = rig.volumes[0].clone();
            for part in volume.part_list().iter() {
                levels = levels.max(part.segment.fold.as_ref().map_or(0, |fold| fold.header.level));
            }
            if number % 25 == 0 {
                tally.views += check_volume(&volume, &rig.models[0], Depth::Quick, &mut chance)
                    .map_err(|broken| format!("step {number}: {broken}"))?;
                // Everything that the policy keeps is there, and all of the window.
                let retained = volume.retained().map_err(|error| error.to_string())?;
                ensure!(retained.kept.iter().all(|lsn| volume.keeps(*lsn)), "a kept state is gone");
                let lost = thinned(&volume)
                    .into_iter()
                    .find(|lsn| rig.models[0].records[lsn.0 as usize].at >= retained.window);
                ensure!(lost.is_none(), "{lost:?} is younger than every-write");
            }
        }
        let volume = rig.volumes[0].clone();
        tally.views += check_volume(&volume, &rig.models[0], Depth::Every, &mut chance)?;
        let found = verify(&volume, &mut |_, _| Ok(())).map_err(|error| error.to_string())?;
        ensure!(found.damage_count == 0, "{found:?}");
        let away = thinned(&volume).len();
        gone += away;
        kept += volume.tip_lsn().0 as usize - volume.oldest().0.0 as usize - away;
        ensure!(levels > 0, "no fold was made of folds");
        // A fold goes to the base as a whole, or not yet.
        moved += usize::from(volume.base_point().lsn > Lsn(0));
        tally.take(&rig.disk);
        Ok(())
    });
    println!("{gone} states thinned away, {kept} there; {tally}");
    assert!(gone > 100 && moved > 1, "{moved}");
}

/// One bad block at either end of a fold, where everything stands that it cannot be read without, must cost nobody a state,
/// and whoever looks is told.
#[test]
fn a_bad_block_at_an_end_of_a_fold_costs_nothing() {
    let mut rig = Rig::new(345, 1, SEGMENT_BYTES).unwrap();
    set_policy(&rig, "every-write 5s, every 4s for 1h").unwrap();
    let mut workload = Workload::turning(345, 1, rig::VOLUME_BYTES);
    for _ in 0..200 {
        rig.step(&workload.step()).unwrap();
        age(&mut rig, 400_000_000).unwrap();
    }
    rig.step(&Step::Close).unwrap();
    let model = rig.models[0].clone();
    let paths = folds_of_disk(&rig);
    assert!(!paths.is_empty());
    rig.volumes.clear();
    rig.store().close().unwrap();
    let kept = rig.disk.snapshot();
    let mut chance = Chance::new(345);
    for path in &paths {
        let bytes = rig.disk.contents(path).unwrap().len() as u64;
        let points_at = {
            let stored = rig.disk.contents(path).unwrap();
            let header = FoldHeader::decode(stored[..4096].try_into().unwrap(), bytes).unwrap();
            header.tables_at
        };
        for (at, how) in [(0, 0), (300, 1), (4095, 1), (points_at, 1), (bytes - 4096, 0), (bytes - 1, 1)] {
            let disk = kept.mount(7).crash_process();
            match how {
                0 => disk.make_unreadable(path, at / 512 * 512, 512).unwrap(),
                _ => disk.rot(path, at, 1 << chance.below(8)).unwrap(),
            }
            let store = rig::open(&disk, &rig.clock, &rig.wrap).unwrap();
            let volume = store.volumes().remove(0);
            check_volume(&volume, &model, Depth::Quick, &mut chance)
                .unwrap_or_else(|broken| panic!("{path}, {at} of {bytes}: {broken}"));
            assert_eq!(volume.health(), cdp_core::volume::Health::Good, "{path}, {at} of {bytes}");
            let found = verify(&volume, &mut |_, _| Ok(())).unwrap();
            assert!(found.damage_count > 0, "{path}, {at} of {bytes}: nobody is told");
        }
    }
}

/// A backup that is being read, and a clone, must not lose the state under their hands.
#[test]
fn what_somebody_looks_at_is_never_thinned_away() {
    let mut rig = Rig::new(340, 1, SEGMENT_BYTES).unwrap();
    set_policy(&rig, "every-write 5s, named 1s").unwrap();
    let write = |rig: &mut Rig, number: u64| {
        let edits = vec![Edit::Write { offset: number % 40 * 4096, data: content(number, 8192) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
    };
    for number in 0..60 {
        write(&mut rig, number);
    }
    let volume = rig.volumes[0].clone();
    let (first, second) = (Lsn(17), Lsn(33));
    let view = View::open(volume.clone(), first, "a backup").unwrap();
    rig.store().clone_volume(&volume, second, "child").unwrap();
    for number in 60..200 {
        write(&mut rig, number);
        age(&mut rig, 500_000_000).unwrap();
    }
    assert!(folds(&rig) > 0);
    assert!(!volume.keeps(Lsn(16)) && !volume.keeps(Lsn(34)) && volume.keeps(first) && volume.keeps(second));
    let model = rig.models[0].clone();
    let shows = |device: &dyn Device, lsn: Lsn| {
        let bytes = read_blocks(device, 0, rig::VOLUME_BYTES / BLOCK_BYTES).unwrap();
        assert_eq!(model.state(lsn).differs(0, &bytes), None, "at {lsn:?}");
    };
    shows(&view, first);
    shows(&*rig.store().volume("child").unwrap(), second);
    let error = View::open(volume.clone(), Lsn(20), "too late").err().unwrap();
    assert!(error.to_string().contains("thinned"), "{error}");
    let hint = error.hint_text().unwrap_or_default().to_owned();
    assert!(hint.contains("lsn:17") && hint.contains("lsn:33"), "{hint}");
    drop(view);
    for number in 200..300 {
        write(&mut rig, number);
        age(&mut rig, 500_000_000).unwrap();
    }
    shows(&*rig.store().volume("child").unwrap(), second);
}

/// Whoever still has to be sent everything must find everything.
#[test]
fn what_a_replica_still_has_to_get_is_not_thinned() {
    let mut rig = Rig::new(341, 1, SEGMENT_BYTES).unwrap();
    set_policy(&rig, "every-write 5s").unwrap();
    let write = |rig: &mut Rig, number: u64| {
        let edits = vec![Edit::Write { offset: number % 40 * 4096, data: content(number, 8192) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
        age(rig, 500_000_000).unwrap();
    };
    write(&mut rig, 0);
    let volume = rig.volumes[0].clone();
    let pin = volume.pin_all_above(Lsn(10), "a replica").unwrap();
    for number in 1..120 {
        write(&mut rig, number);
    }
    assert_eq!((folds(&rig), thinned(&volume).len()), (0, 0));
    assert!(volume.oldest().0 <= Lsn(10));
    pin.move_to(Lsn(90));
    for number in 120..180 {
        write(&mut rig, number);
    }
    assert!(volume.oldest().0 > Lsn(10));
    assert!((90..volume.tip_lsn().0).all(|lsn| volume.keeps(Lsn(lsn))));
}

/// A marker of last year and a rollback every night must cost what they hold, not all that happened since.
#[test]
fn an_old_marker_and_nightly_rollbacks_do_not_hold_all_space() {
    let mut rig = Rig::new(342, 1, SEGMENT_BYTES).unwrap();
    set_policy(&rig, "every-write 10s").unwrap();
    let write = |rig: &mut Rig, number: u64| {
        let edits = vec![Edit::Write { offset: number % 30 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
        age(rig, 300_000_000).unwrap();
    };
    for number in 0..10 {
        write(&mut rig, number);
    }
    rig.step(&Step::Mark { volume: 0 }).unwrap();
    let old = rig.models[0].tip();
    let mut written = 0;
    let mut largest = 0;
    for night in 0..30u64 {
        let evening = rig.models[0].tip();
        for number in 0..40 {
            write(&mut rig, 1000 + night * 100 + number);
            written += 4096;
        }
        let volume = rig.volumes[0].clone();
        let to = evening;
        let done = volume.rollback(cdp_core::volume::rollback::Back::To(to), "nightly").unwrap();
        rig.models[0].roll_back(done.lsn, done.to, &done.marker);
        // Nobody wants the markers that rollbacks leave.
        volume.unmark(&done.marker).unwrap();
        rig.models[0].records[done.lsn.0 as usize - 1].name = None;
        largest = largest.max(volume.journal_bytes());
    }
    for number in 0..60 {
        write(&mut rig, 90_000 + number);
    }
    let volume = rig.volumes[0].clone();
    let view = View::open(volume.clone(), old, "a test").unwrap();
    let bytes = read_blocks(&view, 0, 60).unwrap();
    assert_eq!(rig.models[0].state(old).differs(0, &bytes), None);
    check_volume(&volume, &rig.models[0], Depth::Every, &mut Chance::new(342)).unwrap();
    let bytes = volume.journal_bytes();
    assert!(
        bytes < written / 4,
        "{bytes} bytes of journal, {written} were written; at most it was {largest}"
    );
}

/// Named markers must outlive a journal that drops its oldest, as long as thinning makes room for them.
#[test]
fn named_markers_survive_a_full_journal() {
    let mut rig = Rig::new(343, 1, SEGMENT_BYTES).unwrap();
    set_policy(&rig, &format!("at most {}B, at cap drop-oldest", 16 * SEGMENT_BYTES)).unwrap();
    let mut marks = Vec::new();
    for number in 0..900u64 {
        let edits = vec![Edit::Write { offset: number % 12 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
        if [100, 250].contains(&number) {
            rig.step(&Step::Mark { volume: 0 }).unwrap();
            marks.push(rig.models[0].tip());
        }
        rig.step(&Step::Maintain).unwrap();
    }
    let volume = rig.volumes[0].clone();
    let ledger: Vec<_> = volume.ledger().into_iter().map(|entry| entry.fact).rev().take(5).collect();
    assert!(folds(&rig) > 0, "{marks:?} {:?} {ledger:?}", volume.named_markers());
    for lsn in &marks {
        let view = View::open(volume.clone(), *lsn, "a test").unwrap();
        let bytes = read_blocks(&view, 0, 20).unwrap();
        assert_eq!(rig.models[0].state(*lsn).differs(0, &bytes), None);
    }
    assert_eq!(volume.named_markers().len(), 2);
    assert!(volume.journal_bytes() <= 16 * SEGMENT_BYTES);
    check_volume(&volume, &rig.models[0], Depth::Every, &mut Chance::new(343)).unwrap();
}

/// With `at cap thin` the window gives way, not the states that the policy keeps beyond it, and not the writers.
#[test]
fn at_cap_thin_shortens_the_window() {
    let mut rig = Rig::new(344, 1, SEGMENT_BYTES).unwrap();
    let policy = format!("every-write 1h, every 30s for 1h, at most {}B, at cap thin", 12 * SEGMENT_BYTES);
    set_policy(&rig, &policy).unwrap();
    for number in 0..700u64 {
        let edits = vec![Edit::Write { offset: number % 12 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false })
            .unwrap_or_else(|broken| panic!("write {number}: {broken}"));
        age(&mut rig, 300_000_000).unwrap();
        rig.step(&Step::Tick).unwrap();
    }
    let volume = rig.volumes[0].clone();
    assert!(folds(&rig) > 0);
    assert_eq!(volume.oldest().0, Lsn(0));
    let kept = volume.retained().unwrap().kept;
    assert!(kept.iter().all(|lsn| volume.keeps(*lsn)));
    check_volume(&volume, &rig.models[0], Depth::Every, &mut Chance::new(344)).unwrap();
}

/// A disk that fails while history is thinned must cost work and never history.
#[test]
fn faults_while_thinning() {
    let mut tally = Tally::default();
    let mut struck = 0;
    with_seeds("faults_while_thinning", 360, 1, &mut tally, |seed, tally| {
        for kind in [
            FaultKind::WriteError,
            FaultKind::SyncError,
            FaultKind::DirectorySyncError,
            FaultKind::NameError,
            FaultKind::ReadError,
        ] {
            for file in [".fold", ".seg", "/v0"] {
                for nth in [1, 2, 3, 4, 6, 9] {
                    struck += fault_while_thinning(seed, kind, file, nth, tally)
                        .map_err(|broken| format!("{broken}\n  {kind:?} at the {nth}th on {file}"))?;
                }
            }
        }
        Ok(())
    });
    println!("{struck} faults struck; {tally}");
    assert!(struck > 30, "{struck}");
}

fn fault_while_thinning(seed: u64, kind: FaultKind, file: &str, nth: u64, tally: &mut Tally) -> Outcome<u64> {
    let mut rig = Rig::new(seed, 1, SEGMENT_BYTES)?;
    let mut number = seed << 16;
    let mut write = |rig: &mut Rig| {
        number += 1;
        let edits = vec![Edit::Write { offset: number * 7 % 40 * 4096, data: content(number, 6000) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: true })?;
        rig.step(&Step::Advance { ns: 300_000_000 })?;
        rig.step(&Step::Tick)
    };
    for _ in 0..50 {
        write(&mut rig)?;
        rig.store().maintain();
    }
    set_policy(&rig, "every-write 2s, every 3s for 1h")?;
    let counts = |rig: &Rig| {
        let counts = rig.disk.counts();
        counts.write_errors
            + counts.sync_errors
            + counts.directory_sync_errors
            + counts.name_errors
            + counts.read_errors
    };
    let before = counts(&rig);
    rig.disk.inject(Fault::new(kind, When::Nth(nth)).on(file));
    for _ in 0..6 {
        rig.clock.advance(400_000_000);
        rig.store().maintain();
    }
    let struck = counts(&rig) - before;
    rig.disk.clear_faults();
    let volume = rig.volumes[0].clone();
    let model = rig.models[0].clone();
    check_volume(&volume, &model, Depth::Quick, &mut Chance::new(nth))?;
    if volume.health() == cdp_core::volume::Health::Good {
        for _ in 0..30 {
            write(&mut rig)?;
            age(&mut rig, 1_000_000_000)?;
        }
        ensure!(folds(&rig) > 0, "thinning stopped: {:?}", volume.notes());
        check_volume(&volume, &rig.models[0], Depth::Every, &mut Chance::new(nth))?;
    }
    tally.take(&rig.disk);
    Ok(struck)
}
