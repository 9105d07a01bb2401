//! History that is folded into the base and dropped, under every crash and every fault.

use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, When};
use cdp_core::view::View;
use cdp_core::volume::verify::verify;

use crate::harness::check::{Crash, Death, check_volume, read_blocks};
use crate::harness::model::Edit;
use crate::harness::tally::with_seeds;
use crate::harness::workload::{Step, content};
use crate::harness::{Depth, Outcome, Rig, Tally, Workload, crash_at_every_boundary, rig};

const SEGMENT_BYTES: u64 = 64 << 10;

/// A store whose volumes keep at most five small segments.
fn short_of_space(seed: u64, volumes: usize) -> Outcome<Rig> {
    let rig = Rig::new(seed, volumes, SEGMENT_BYTES)?;
    set_policy(&rig, &format!("at most {}B, at cap drop-oldest", 5 * SEGMENT_BYTES))?;
    Ok(rig)
}

fn set_policy(rig: &Rig, text: &str) -> Outcome {
    let policy = retention::parse(text).map_err(|error| error.to_string())?;
    for volume in &rig.volumes {
        volume.set_retention(policy.clone()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn base_lsn(rig: &Rig) -> u64 {
    rig.volumes[0].base_point().lsn.0
}

/// Whoever loses power or a process while old history is folded away must find every state that was kept, exact,
/// and nothing of it missing: the base is written over in place, and a mistake in the order shows in one of these.
#[test]
fn every_boundary_while_the_oldest_is_dropped() {
    let mut tally = Tally::default();
    let mut folded = 0;
    with_seeds("every_boundary_while_the_oldest_is_dropped", 40, 2, &mut tally, |seed, tally| {
        let mut rig = short_of_space(seed, 1)?;
        let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
        // Up to where the first segments go, without looking.
        while base_lsn(&rig) == 0 || rig.volumes[0].segments().len() < 4 {
            rig.step(&workload.step())?;
        }
        rig.disk.record_boundaries(true);
        let begin = base_lsn(&rig);
        let mut bases = vec![begin];
        for _ in 0..2000 {
            rig.step(&workload.step())?;
            if bases.last() != Some(&base_lsn(&rig)) {
                bases.push(base_lsn(&rig));
            }
            if bases.len() > 2 {
                break;
            }
        }
        ensure!(bases.len() > 2, "the base moved to {bases:?} only");
        folded += bases.len() - 1;
        let outcome = crash_at_every_boundary(&rig, seed, 2, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("folded {folded} times; {tally}");
}

/// Whoever rolls back and takes that back on a journal that is short of space must find every state that was kept,
/// while branches that were left are folded away or held, and must never be refused a write. (Seed 74 found rollbacks
/// whose payload was that of an older one in recycled space; seed 72 a mark that was called foreign because all segments of
/// its opening were in the base, and only a file of an earlier one was left.)
#[test]
fn rollbacks_while_the_oldest_is_dropped() {
    let mut tally = Tally::default();
    let mut turns = 0;
    with_seeds("rollbacks_while_the_oldest_is_dropped", 70, 5, &mut tally, |seed, tally| {
        let mut rig = short_of_space(seed, 1)?;
        let mut workload = Workload::turning(seed, 1, rig::VOLUME_BYTES);
        let mut chance = Chance::new(seed);
        for number in 0..500 {
            rig.step(&workload.step()).map_err(|broken| format!("step {number}: {broken}"))?;
            if number % 40 == 39 {
                tally.views += check_volume(&rig.volumes[0], &rig.models[0], Depth::Quick, &mut chance)?;
            }
        }
        ensure!(base_lsn(&rig) > 0, "nothing was folded");
        turns += rig.models[0].turns();
        rig.disk.record_boundaries(true);
        for _ in 0..40 {
            rig.step(&workload.step())?;
        }
        let outcome = crash_at_every_boundary(&rig, seed, 2, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("{turns} rollbacks while folding; {tally}");
    assert!(turns > 30);
}

/// A branch that was left by a rollback may be longer than what is folded at once otherwise. It must not hold the
/// journal at its cap for ever.
#[test]
fn a_long_branch_that_was_left_is_folded_as_a_whole() {
    let mut rig = Rig::new(80, 1, SEGMENT_BYTES).unwrap();
    let write = |rig: &mut Rig, number: u64| {
        let edits = vec![Edit::Write { offset: number % 20 * 4096, data: content(number, 8192) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false })
    };
    write(&mut rig, 0).unwrap();
    for number in 1..150 {
        write(&mut rig, number).unwrap();
        rig.step(&Step::Maintain).unwrap();
    }
    let branch = rig.volumes[0].segments().len();
    assert!(branch > 12, "{branch} segments");
    rig.step(&Step::Rollback { volume: 0, pick: 1 }).unwrap();
    // The rollback's own marker would stay as long as there is room for it.
    set_policy(&rig, &format!("named 0s, at most {}B, at cap drop-oldest", 16 * SEGMENT_BYTES)).unwrap();
    for number in 150..450 {
        write(&mut rig, number).unwrap_or_else(|broken| panic!("write {number}: {broken}"));
        rig.step(&Step::Maintain).unwrap();
    }
    assert!(base_lsn(&rig) > 150, "the base stands at {}", base_lsn(&rig));
    check_volume(&rig.volumes[0], &rig.models[0], Depth::Quick, &mut Chance::new(80)).unwrap();
}

/// A window of time instead of space, kept named markers that hold history back, restarts in between.
#[test]
fn a_window_of_time_is_exact() {
    let mut tally = Tally::default();
    with_seeds("a_window_of_time_is_exact", 60, 3, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, SEGMENT_BYTES)?;
        set_policy(&rig, "every-write 20s, named 60s")?;
        let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
        let mut chance = Chance::new(seed);
        let mut moved = 0;
        for number in 0..350 {
            rig.step(&workload.step())?;
            if number % 5 == 0 {
                rig.step(&Step::Advance { ns: 500_000_000 })?;
                rig.step(&Step::Maintain)?;
            }
            let volume = rig.volumes[0].clone();
            let oldest = volume.oldest();
            // Everything of the window is there, and every name that is young enough.
            let now = rig.store().clock().now();
            let window = Timestamp(now.0.saturating_sub(20_000_000_000));
            ensure!(
                oldest.0 == Lsn(0) || oldest.1 <= window,
                "the horizon is {oldest:?}, the window begins at {window:?}"
            );
            moved = moved.max(oldest.0.0);
            if number % 20 == 0 {
                check_volume(&volume, &rig.models[0], Depth::Quick, &mut chance)?;
            }
        }
        ensure!(moved > 0 && base_lsn(&rig) > 0, "nothing was folded");
        let found = verify(&rig.volumes[0], &mut |_, _| Ok(())).map_err(|error| error.to_string())?;
        ensure!(found.damage_count == 0, "{found:?}");
        tally.take(&rig.disk);
        Ok(())
    });
}

/// Somebody who looks at the past keeps it, however short the journal is; writers are told whose view it is, and go on
/// when it is closed.
#[test]
fn an_open_view_is_never_cut() {
    let mut rig = short_of_space(3, 1).unwrap();
    let mut workload = Workload::new(3, 1, rig::VOLUME_BYTES);
    for _ in 0..40 {
        rig.step(&workload.step()).unwrap();
    }
    let lsn = rig.models[0].tip();
    let volume = rig.volumes[0].clone();
    let view = View::open(volume.clone(), lsn, "a backup").unwrap();
    assert_eq!(volume.pins()[0].holder, "a backup");
    let mut refused = None;
    for number in 0..600 {
        let data = content(number, 8192);
        let edit = Edit::Write { offset: number % 20 * 4096, data };
        let mut results = Vec::new();
        volume.apply(SessionId(1), &[edit.change()], &mut results);
        match results.remove(0) {
            Ok(lsn) => rig.models[0].push(lsn, &edit).unwrap(),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        rig.store().maintain();
        rig.models[0].settle(&volume).unwrap();
    }
    let refused = refused.expect("the journal is full, and the view holds its oldest part");
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert!(refused.to_string().contains("a backup"), "{refused}");
    let bytes = read_blocks(&view, 0, rig::VOLUME_BYTES / BLOCK_BYTES).unwrap();
    assert_eq!(rig.models[0].state(lsn).differs(0, &bytes), None);
    drop(view);
    for number in 0..100 {
        let edits = vec![Edit::Write { offset: 0, data: content(number, 8192) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
    }
    assert!(volume.oldest().0 > lsn);
    assert!(View::open(volume, lsn, "too late").is_err());
}

/// Damage in the journal must stay an error when its block is folded, not become a block of anything.
#[test]
fn damaged_payload_stays_damaged_in_the_base() {
    let mut rig = Rig::new(5, 1, SEGMENT_BYTES).unwrap();
    let data = content(77, 4096);
    rig.step(&Step::Apply {
        volume: 0,
        edits: vec![Edit::Write { offset: 8 * 4096, data: data.clone() }],
        fua: true,
    })
    .unwrap();
    for number in 0..40 {
        let edits = vec![Edit::Write { offset: number % 5 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: true }).unwrap();
        rig.step(&Step::Maintain).unwrap();
    }
    let path = rig.disk.paths().into_iter().find(|path| path.ends_with(".seg")).unwrap();
    let bytes = rig.disk.contents(&path).unwrap();
    let at = bytes.chunks(4096).position(|block| block == data).unwrap() as u64;
    rig.disk.rot(&path, at * 4096 + 100, 1).unwrap();
    set_policy(&rig, &format!("at most {}B, at cap drop-oldest", 3 * SEGMENT_BYTES)).unwrap();
    for number in 0..100 {
        let edits = vec![Edit::Write { offset: number % 5 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: true }).unwrap();
        rig.step(&Step::Maintain).unwrap();
    }
    let volume = rig.volumes[0].clone();
    assert!(volume.base_point().lsn > Lsn(1), "its segment was folded");
    let error = read_blocks(&*volume, 8, 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    assert!(read_blocks(&*volume, 0, 8).is_ok());
    let found = verify(&volume, &mut |_, _| Ok(())).unwrap();
    assert_eq!(found.damage_count, 1, "{found:?}");
}

/// Trims and zeroes reach the base as absent blocks, and give its space back.
#[test]
fn what_was_trimmed_is_gone_from_the_base() {
    let mut rig = short_of_space(6, 1).unwrap();
    let mut edits: Vec<Edit> =
        (0..30).map(|number| Edit::Write { offset: number * 4096, data: content(number, 4096) }).collect();
    edits.push(Edit::Trim { offset: 4 * 4096, len: 20 * 4096 });
    edits.push(Edit::Zero { offset: 0, len: 4096, hole: false });
    for round in 0..8 {
        for edit in &edits[..30] {
            rig.step(&Step::Apply { volume: 0, edits: vec![edit.clone()], fua: round % 2 == 0 }).unwrap();
        }
        for edit in &edits[30..] {
            rig.step(&Step::Apply { volume: 0, edits: vec![edit.clone()], fua: true }).unwrap();
        }
        rig.step(&Step::Maintain).unwrap();
    }
    // On a block that none of the above is on, until all of it is in the base.
    let end = rig.models[0].tip();
    let mut number = 0;
    while rig.volumes[0].base_point().lsn < end {
        number += 1;
        let edits = vec![Edit::Write { offset: 60 * 4096, data: content(number, 4096) }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
        rig.step(&Step::Maintain).unwrap();
    }
    let image = rig.disk.contents("/store/volumes/v0/base.0000").unwrap();
    assert_eq!(image.len() as u64, rig::VOLUME_BYTES);
    let state = rig.models[0].state(end);
    assert_eq!(state.differs(0, &image[..30 * 4096]), None, "`cat` gives the disk");
    let stretches = rig.volumes[0].extents(0, 30 * 4096, 10).unwrap();
    assert_eq!(stretches.len(), 4, "{stretches:?}");
    check_volume(&rig.volumes[0], &rig.models[0], Depth::Every, &mut Chance::new(6)).unwrap();
}

/// A disk that fails while it folds, at any file, must cost work and never history: what was answered stays right.
#[test]
fn faults_while_folding() {
    let mut tally = Tally::default();
    let mut struck = 0;
    with_seeds("faults_while_folding", 80, 1, &mut tally, |seed, tally| {
        for kind in [
            FaultKind::WriteError,
            FaultKind::SyncError,
            FaultKind::SyncErrorPartial,
            FaultKind::DirectorySyncError,
            FaultKind::NameError,
            FaultKind::ReadError,
        ] {
            for file in ["base.", "history", "/v0"] {
                for nth in [1, 2, 3, 5, 9, 17] {
                    struck += fault_while_folding(seed + nth, kind, file, nth, tally)
                        .map_err(|broken| format!("{broken}\n  {kind:?} at the {nth}th on {file}"))?;
                }
            }
        }
        Ok(())
    });
    println!("{struck} faults struck; {tally}");
    assert!(struck > 50, "{struck}");
}

fn fault_while_folding(seed: u64, kind: FaultKind, file: &str, nth: u64, tally: &mut Tally) -> Outcome<u64> {
    let mut rig = short_of_space(seed, 1)?;
    let mut number = seed << 16;
    let mut write = |rig: &mut Rig, may_fail: bool| -> Outcome {
        number += 1;
        let edit = Edit::Write { offset: number * 7 % 40 * 4096, data: content(number, 6000) };
        let mut results = Vec::new();
        rig.volumes[0].apply(SessionId(1), &[edit.change()], &mut results);
        match results.remove(0) {
            Ok(lsn) => rig.models[0].push(lsn, &edit)?,
            Err(error) => ensure!(may_fail, "{error:?}"),
        }
        let volume = rig.volumes[0].clone();
        rig.models[0].settle(&volume)
    };
    while base_lsn(&rig) == 0 {
        write(&mut rig, false)?;
        rig.store().maintain();
    }
    rig.disk.inject(Fault::new(kind, When::Nth(nth)).on(file));
    let counts = |rig: &Rig| {
        let counts = rig.disk.counts();
        counts.write_errors
            + counts.sync_errors
            + counts.directory_sync_errors
            + counts.name_errors
            + counts.read_errors
    };
    let before = counts(&rig);
    for _ in 0..50 {
        write(&mut rig, true)?;
        rig.store().tick();
        rig.store().maintain();
    }
    let struck = counts(&rig) - before;
    rig.disk.clear_faults();
    let volume = rig.volumes[0].clone();
    let model = rig.models[0].clone();
    let bytes = read_blocks(&*volume, 0, 60).map_err(|error| format!("the live volume: {error:?}"))?;
    ensure!(model.state(volume.tip_lsn()).differs(0, &bytes).is_none(), "WRONG bytes in the live volume");
    let good = volume.health() == cdp_core::volume::Health::Good;
    if good {
        // No restart: folding goes on.
        let begin = base_lsn(&rig);
        for _ in 0..80 {
            write(&mut rig, false)?;
            rig.store().maintain();
        }
        ensure!(base_lsn(&rig) > begin, "folding stopped at {begin}");
        volume.flush().map_err(|error| format!("{error:?}"))?;
    }
    let (models, wrap) = (vec![rig.models[0].clone()], rig.wrap.clone());
    let tip = models[0].tip();
    let horizon = vec![volume.oldest().0];
    let thinned = crate::harness::check::thinned(&volume);
    let floor = if good { tip } else { Lsn(0) };
    let snapshot = rig.disk.snapshot();
    drop(volume);
    for death in [Death::Process, Death::Power(cdp_core::io::sim::PowerLoss::seeded(seed))] {
        let crash =
            Crash { models: &models, wrap: &wrap, seed, depth: Depth::Every, nested: false, writes_on: good };
        let promise = crate::harness::Promise {
            floor: vec![floor],
            flushed: vec![floor],
            ceiling: vec![tip],
            horizon: horizon.clone(),
            thinned: vec![thinned.clone()],
        };
        crash.check(snapshot.mount(seed), death, &promise, tally)?;
    }
    Ok(struck)
}

/// A filesystem that is full while the base grows: writes may be refused, nothing is lost, and with space it goes on.
#[test]
fn a_full_disk_while_folding() {
    for pages in (0..60).step_by(6) {
        let mut rig = short_of_space(pages, 1).unwrap();
        let mut workload = Workload::new(pages, 1, rig::VOLUME_BYTES);
        while base_lsn(&rig) == 0 {
            rig.step(&workload.step()).unwrap();
        }
        rig.disk.set_capacity(Some(rig.disk.used_bytes() + pages * BLOCK_BYTES));
        for number in 0..120u64 {
            let edit = Edit::Write { offset: number * 11 % 200 * 4096, data: content(number, 4096) };
            let mut results = Vec::new();
            rig.volumes[0].apply(SessionId(1), &[edit.change()], &mut results);
            match results.remove(0) {
                Ok(lsn) => rig.models[0].push(lsn, &edit).unwrap(),
                Err(error) => assert_eq!(error.kind(), Kind::NoSpace, "{pages} pages: {error:?}"),
            }
            rig.store().tick();
            rig.store().maintain();
            let volume = rig.volumes[0].clone();
            rig.models[0].settle(&volume).unwrap();
        }
        let volume = rig.volumes[0].clone();
        let outcome = check_volume(&volume, &rig.models[0], Depth::Every, &mut Chance::new(pages));
        outcome.unwrap_or_else(|broken| panic!("{pages} pages: {broken}"));
        rig.disk.set_capacity(None);
        for number in 0..60 {
            let edits = vec![Edit::Write { offset: number % 50 * 4096, data: content(number, 4096) }];
            rig.step(&Step::Apply { volume: 0, edits, fua: true })
                .unwrap_or_else(|b| panic!("{pages} pages: {b}"));
            rig.store().maintain();
        }
        drop(volume);
        rig.step(&Step::Die).unwrap_or_else(|broken| panic!("{pages} pages: {broken}"));
        check_volume(&rig.volumes[0].clone(), &rig.models[0], Depth::Every, &mut Chance::new(pages))
            .unwrap_or_else(|broken| panic!("{pages} pages, restarted: {broken}"));
    }
}

/// Readers of the live disk, of views, writers and folding at once: every byte is one that was written there.
#[test]
fn readers_while_folding() {
    let rig = short_of_space(9, 1).unwrap();
    let volume = rig.volumes[0].clone();
    let store = Arc::new(rig.store);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..1000u64 {
                // Every write fills block n with the number of a write that is n modulo 16.
                let data = number.to_le_bytes().repeat(512);
                let mut results = Vec::new();
                let change = Change::Write { offset: number % 16 * 4096, data: &data };
                volume.apply(SessionId(1), &[change], &mut results);
                // A view that is open too long may hold the whole journal.
                if let Err(error) = results.remove(0) {
                    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !is_done() {
                assert!(store.as_ref().as_ref().unwrap().maintain().is_empty());
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done() {
                    for block in 0..16 {
                        let bytes = read_blocks(&*volume, block, 1).unwrap();
                        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                        assert!(number == 0 || number % 16 == block, "block {block} holds {number}");
                        assert_eq!(bytes, number.to_le_bytes().repeat(512));
                    }
                    let lsn = volume.tip_lsn();
                    if let Ok(view) = View::open(volume.clone(), lsn, "a test") {
                        let first = read_blocks(&view, 0, 16).unwrap();
                        assert_eq!(read_blocks(&view, 0, 16).unwrap(), first);
                    }
                }
            });
        }
    });
    assert!(volume.base_point().lsn > Lsn(0));
}
