//! Crashes at every I/O boundary of random workloads.

use crate::harness::tally::with_seeds;
use crate::harness::workload::Step;
use crate::harness::{Rig, Tally, Workload, crash_at_every_boundary, rig};

/// Whoever loses power or a process at any moment must find a state the disk went through, with all that was
/// promised, or a database on it is torn; over segments that fill, are sealed and get their runs.
#[test]
fn every_boundary_of_random_workloads() {
    let mut tally = Tally::default();
    let mut sealed = 0;
    with_seeds("every_boundary_of_random_workloads", 1, 8, &mut tally, |seed, tally| {
        let volumes = 1 + (seed % 3 == 0) as usize;
        let segment_bytes = [64 << 10, 96 << 10, 128 << 10][(seed / 2 % 3) as usize];
        let mut rig = Rig::new(seed, volumes, segment_bytes)?;
        let mut workload = Workload::new(seed, volumes, rig::VOLUME_BYTES);
        rig.disk.record_boundaries(true);
        let mut steps = 0;
        // At least three sealed segments, however long that takes.
        while steps < 45 || rig.sealed() < 3 {
            assert!(steps < 2000, "segments fill up");
            let step = workload.step();
            rig.step(&step)?;
            steps += 1;
        }
        sealed += rig.sealed();
        let outcome = crash_at_every_boundary(&rig, seed, 2, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("every boundary: {sealed} sealed segments; {tally}");
    let counts = tally.counts;
    assert!(counts.process_deaths > 0 && counts.power_losses > 0);
    assert!(counts.effects_lost > 0 && counts.effects_torn > 0 && counts.effects_reordered > 0);
    assert!(counts.names_lost > 0 && counts.names_kept > 0);
}

/// A merge of runs is cut off at any write, rename, sync or removal: nobody may miss a record afterwards, or see one
/// twice, or one of another segment; and the next opening goes on merging.
#[test]
fn every_boundary_of_merges() {
    let mut tally = Tally::default();
    let mut merged = 0;
    with_seeds("every_boundary_of_merges", 1, 4, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, 64 << 10)?;
        let mut workload = Workload::new(seed ^ 0x3e12, 1, rig::VOLUME_BYTES);
        let mut steps = 0;
        while rig.sealed() < 8 {
            rig.step(&workload.step())?;
        }
        rig.disk.record_boundaries(true);
        let before = rig.merged();
        // Until a merge of merged runs happened, too.
        while steps < 30 || rig.merged() < before + 5 {
            assert!(steps < 2000, "runs are merged");
            let step = if steps % 3 == 0 { Step::Maintain } else { workload.step() };
            rig.step(&step)?;
            steps += 1;
        }
        merged += rig.merged();
        let outcome = crash_at_every_boundary(&rig, seed, 1, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("every boundary of merges: {merged} segments in merged runs; {tally}");
}

/// The whole index was lost, and the opening that makes it again, merging as it goes, is cut off as well: whoever opens the
/// volume next must see every state.
#[test]
fn every_boundary_of_an_opening_that_makes_the_index_again() {
    let mut tally = Tally::default();
    let mut merged = 0;
    with_seeds("every_boundary_of_an_opening_that_makes_the_index_again", 1, 4, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, 64 << 10)?;
        let mut workload = Workload::new(seed ^ 0x5eed, 1, rig::VOLUME_BYTES);
        while rig.sealed() < 9 {
            rig.step(&workload.step())?;
        }
        for path in rig.disk.paths().into_iter().filter(|path| path.ends_with(".run")) {
            rig.disk.disappear(&path).map_err(|error| error.to_string())?;
        }
        rig.disk.record_boundaries(true);
        rig.step(&Step::Die)?;
        // Upkeep had no part in it.
        merged += rig.merged();
        for _ in 0..6 {
            rig.step(&workload.step())?;
        }
        let outcome = crash_at_every_boundary(&rig, seed, 1, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("every boundary of an opening without its index: {merged} segments in merged runs; {tally}");
    assert!(merged >= 12, "{merged} segments were merged while volumes were opened");
}
