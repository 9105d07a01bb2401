//! Merging runs: every state before, meanwhile and after; rotten runs, a full disk, failing files.

use cdp_core::io::sim::{Chance, Fault, FaultKind, When};

use crate::harness::check::check_volume;
use crate::harness::tally::with_seeds;
use crate::harness::workload::Step;
use crate::harness::{Depth, Outcome, Rig, Tally, Workload, rig};

/// A volume with some sealed segments, none of them merged as long as nobody maintains it.
fn sealed(seed: u64, segments: usize) -> Outcome<Rig> {
    let mut rig = Rig::new(seed, 1, 64 << 10)?;
    let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
    while rig.volumes[0].part_list().len() <= segments {
        match workload.step() {
            Step::Maintain => {}
            step => rig.step(&step)?,
        }
    }
    Ok(rig)
}

fn check_all(rig: &Rig, chance: &mut Chance) -> Outcome {
    check_volume(&rig.volumes[0], &rig.models[0], Depth::Every, chance).map(drop)
}

/// Maintains until nothing changes any more.
fn settle(rig: &mut Rig) -> Outcome {
    let mut quiet = 0;
    for _ in 0..3000 {
        let before = (rig.sealed(), rig.merged(), rig.disk.operations());
        rig.step(&Step::Maintain)?;
        rig.step(&Step::Advance { ns: 11_000_000_000 })?;
        let after = (rig.sealed(), rig.merged(), rig.disk.operations());
        // Marks are refreshed now and then.
        quiet =
            if before.0 == after.0 && before.1 == after.1 && after.2 <= before.2 + 8 { quiet + 1 } else { 0 };
        if quiet > 60 {
            return Ok(());
        }
    }
    Err("merging does not end".to_owned())
}

/// Whoever looks at an instant while runs are merged under him must see what he would have seen before.
#[test]
fn every_state_before_while_and_after_merging() {
    let mut tally = Tally::default();
    with_seeds("every_state_before_while_and_after_merging", 1, 3, &mut tally, |seed, _| {
        let mut chance = Chance::new(seed);
        let mut rig = sealed(seed, 12)?;
        check_all(&rig, &mut chance)?;
        let mut looked = 0;
        for round in 0..400 {
            rig.step(&Step::Maintain)?;
            if round % 7 == 0 {
                looked += 1;
                check_volume(&rig.volumes[0], &rig.models[0], Depth::Quick, &mut chance)?;
            }
        }
        ensure!(looked > 50, "looked {looked} times");
        ensure!(rig.merged() >= 9, "{} of {} segments are in merged runs", rig.merged(), rig.sealed());
        let layers = rig.volumes[0].part_list().layers().len();
        ensure!(layers * 2 < rig.sealed(), "{layers} layers for {} segments", rig.sealed());
        check_all(&rig, &mut chance)?;
        rig.step(&Step::Die)?;
        ensure!(rig.merged() >= 9, "after a restart only {} segments are in merged runs", rig.merged());
        check_all(&rig, &mut chance)
    });
}

/// A merged run is a cache like any run: rotten, unreadable, cut short or gone, every state reads as before, and
/// then it is made anew.
#[test]
fn a_bad_merged_run_is_made_anew() {
    let mut tally = Tally::default();
    with_seeds("a_bad_merged_run_is_made_anew", 1, 24, &mut tally, |seed, _| {
        let mut chance = Chance::new(seed);
        let mut rig = sealed(seed % 3, 10)?;
        settle(&mut rig)?;
        let merged: Vec<String> = rig
            .disk
            .paths()
            .into_iter()
            .filter(|path| path.contains('-') && path.ends_with(".run"))
            .collect();
        ensure!(!merged.is_empty(), "nothing was merged");
        let path = &merged[chance.below(merged.len() as u64) as usize];
        let len = rig.disk.contents(path).map_err(|error| error.to_string())?.len() as u64;
        let is_open = seed % 2 == 0;
        let harm = match seed / 2 % 4 {
            0 if !is_open => rig.disk.disappear(path),
            1 if !is_open => rig.disk.truncate(path, chance.below(len)),
            2 => rig.disk.make_unreadable(path, chance.below(len / 4096) * 4096, 4096),
            _ => rig.disk.rot(path, chance.below(len), 1 << chance.below(8)),
        };
        harm.map_err(|error| error.to_string())?;
        if is_open {
            // Pages that were read before are still good.
            rig.disk.evict_all();
        } else {
            rig.step(&Step::Die)?;
        }
        check_all(&rig, &mut chance).map_err(|broken| format!("{path} is bad: {broken}"))?;
        settle(&mut rig)?;
        check_all(&rig, &mut chance)?;
        for part in rig.volumes[0].part_list().iter() {
            ensure!(part.run().is_none_or(|run| !run.is_bad()), "a bad run is still in use");
        }
        let runs: usize =
            rig.volumes[0].part_list().layers().filter(|layer| layer.parts()[0].run().is_some()).count();
        let files = rig.disk.paths().iter().filter(|path| path.ends_with(".run")).count();
        ensure!(files == runs, "{files} files for {runs} runs");
        Ok(())
    });
}

/// When the disk is full, or fails, in the middle of a merge, everything stays as it was, the space comes back, and
/// later it is merged after all.
#[test]
fn a_merge_that_fails_is_tried_again() {
    let mut tally = Tally::default();
    with_seeds("a_merge_that_fails_is_tried_again", 1, 12, &mut tally, |seed, _| {
        let mut chance = Chance::new(seed);
        let mut rig = sealed(seed, 9)?;
        // All sealed, the first merge just under way.
        while rig.sealed() + 1 < rig.volumes[0].part_list().len() {
            rig.step(&Step::Maintain)?;
        }
        match seed % 4 {
            0 => rig.disk.set_capacity(Some(rig.disk.used_bytes() + chance.below(40_000))),
            1 => rig.disk.inject(Fault::new(FaultKind::WriteError, When::Nth(1)).on(".run")),
            2 => rig.disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)).on(".run")),
            _ => rig.disk.inject(Fault::new(FaultKind::NameError, When::Nth(1 + chance.below(3))).on(".run")),
        }
        for _ in 0..40 {
            // Whatever else the full disk keeps from being done is not of interest here.
            let _ = rig.volumes[0].maintain();
        }
        check_all(&rig, &mut chance)?;
        rig.disk.set_capacity(None);
        rig.disk.clear_faults();
        settle(&mut rig)?;
        ensure!(rig.merged() >= 6, "{} segments are in merged runs", rig.merged());
        let left: Vec<String> =
            rig.disk.paths().into_iter().filter(|path| path.ends_with(".run.new")).collect();
        ensure!(left.is_empty(), "{left:?} are left");
        check_all(&rig, &mut chance)?;
        rig.step(&Step::Die)?;
        check_all(&rig, &mut chance)
    });
}
