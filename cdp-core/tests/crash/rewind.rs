//! Rollbacks, undos and growth among everything else, with crashes everywhere.

use cdp_core::volume::rollback::Back;

use crate::harness::check::check_volume;
use crate::harness::model::Edit;
use crate::harness::tally::with_seeds;
use crate::harness::workload::{Step, content};
use crate::harness::{Depth, Rig, Tally, Workload, crash_at_every_boundary, rig};
use cdp_core::ids::BLOCK_BYTES;
use cdp_core::io::sim::Chance;

/// Whoever rolls back, takes that back, grows and goes on writing must find every instant before, between and
/// after as it was, with its size, through restarts: held against a list of whole disks.
#[test]
fn every_instant_stays_through_rollbacks_and_undos() {
    let mut tally = Tally::default();
    let mut rollbacks = 0;
    with_seeds("every_instant_stays_through_rollbacks_and_undos", 9000, 12, &mut tally, |seed, tally| {
        let volumes = 1 + (seed % 4 == 0) as usize;
        let mut rig = Rig::new(seed, volumes, [64 << 10, 128 << 10][(seed % 2) as usize])?;
        let mut workload = Workload::turning(seed, volumes, rig::VOLUME_BYTES);
        let mut chance = Chance::new(seed);
        for number in 0..160 {
            let step = workload.step();
            rig.step(&step).map_err(|broken| format!("step {number}: {broken}"))?;
            if number % 40 == 39 {
                for (volume, model) in rig.volumes.iter().zip(&rig.models) {
                    tally.views += check_volume(volume, model, Depth::Every, &mut chance)?;
                }
            }
        }
        rollbacks += rig.volumes.iter().map(|volume| volume.course().turns().len()).sum::<usize>();
        tally.take(&rig.disk);
        Ok(())
    });
    println!("rewind: {rollbacks} rollbacks and resizes; {tally}");
    assert!(rollbacks > 60);
}

/// A crash in the middle of a rollback leaves the state before it or after it, never a mixture.
#[test]
fn every_boundary_of_rollbacks() {
    let mut tally = Tally::default();
    with_seeds("every_boundary_of_rollbacks", 9100, 4, &mut tally, |seed, tally| {
        let mut rig = Rig::new(seed, 1, 64 << 10)?;
        let mut workload = Workload::turning(seed, 1, rig::VOLUME_BYTES);
        for _ in 0..10 {
            rig.step(&workload.step())?;
        }
        rig.disk.record_boundaries(true);
        for _ in 0..30 {
            rig.step(&workload.step())?;
        }
        // Back, taken back, taken back again, with the end of the journal in the cache only.
        let data = content(seed, 3 * BLOCK_BYTES as usize);
        let write = |offset| Step::Apply {
            volume: 0,
            edits: vec![Edit::Write { offset, data: data.clone() }],
            fua: false,
        };
        rig.step(&write(4096))?;
        rig.step(&Step::Rollback { volume: 0, pick: 3 })?;
        rig.step(&write(5000))?;
        rig.step(&Step::Undo { volume: 0 })?;
        rig.step(&Step::Undo { volume: 0 })?;
        rig.step(&write(9))?;
        let outcome = crash_at_every_boundary(&rig, seed, 2, tally);
        tally.take(&rig.disk);
        outcome
    });
    println!("boundaries of rollbacks: {tally}");
}

/// Index parts end at a rollback, also where a crash made the journal's end be written again: what is merged or
/// folded by parts then never mixes what is seen and what is not.
#[test]
fn segments_end_at_a_rollback() {
    let mut rig = Rig::new(9200, 1, 128 << 10).unwrap();
    for _ in 0..3 {
        let edits = vec![Edit::Write { offset: 0, data: vec![1; 5000] }];
        rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
        rig.volumes[0].rollback(Back::To(cdp_core::ids::Lsn(1)), "lsn:1").unwrap();
    }
    let ends = |rig: &Rig| {
        let volume = &rig.volumes[0];
        let parts = volume.part_list();
        volume.course().turns().iter().all(|turn| parts.iter().any(|part| part.last_lsn() == turn.lsn))
    };
    assert!(ends(&rig));
    rig.volumes.clear();
    rig.store = None;
    rig.disk = rig.disk.crash_process();
    let store = rig::open(&rig.disk, &rig.clock, &rig.wrap).unwrap();
    rig.volumes = store.volumes();
    assert_eq!(rig.volumes[0].course().turns().len(), 3);
    assert!(ends(&rig), "after a crash");
    drop(store);
}
