//! Many clients, the timers and a failing disk at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cdp_core::device::{Change, Device};
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, PowerLoss, SimClock, When};
use cdp_core::volume::Health;

use crate::harness::check::check_volume;
use crate::harness::model::Edit;
use crate::harness::rig;
use crate::harness::tally::with_seeds;
use crate::harness::{Depth, Model, Outcome, Rig, Tally, Workload};

const WRITERS: u64 = 3;
const REQUESTS: u64 = 60;

fn run(seed: u64, fault: Option<FaultKind>, tally: &mut Tally) -> Outcome<bool> {
    let mut rig = Rig::new(seed, 1, 64 << 10)?;
    if let Some(kind) = fault {
        rig.disk.inject(Fault::new(kind, When::PerMille(25)).on(".seg"));
    }
    let volume = rig.volumes[0].clone();
    let acknowledged: Mutex<Vec<(Lsn, Edit)>> = Mutex::new(Vec::new());
    let flushed = Mutex::new(Lsn::ZERO);
    let writing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (volume, acknowledged) = (&volume, &acknowledged);
                scope.spawn(move || {
                    let mut workload = Workload::new(seed * WRITERS + writer, 1, rig::VOLUME_BYTES);
                    for _ in 0..REQUESTS {
                        let edits: Vec<Edit> = (0..2).map(|_| workload.edit()).collect();
                        let changes: Vec<Change<'_>> = edits.iter().map(Edit::change).collect();
                        let mut results = Vec::new();
                        volume.apply(SessionId(1), &changes, &mut results);
                        let done = edits.into_iter().zip(results);
                        let done = done.filter_map(|(edit, result)| Some((result.ok()?, edit)));
                        acknowledged.lock().expect("no panics here").extend(done);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while writing.load(Ordering::Acquire) {
                let tip = volume.tip_lsn();
                if volume.flush().is_ok() {
                    *flushed.lock().expect("no panics here") = tip;
                }
            }
        });
        let (store, clock) = (rig.store(), &rig.clock);
        let writing = &writing;
        scope.spawn(move || {
            while writing.load(Ordering::Acquire) {
                clock.advance(20_000_000);
                store.tick();
                store.maintain();
                std::thread::yield_now();
            }
        });
        for writer in writers {
            let _ = writer.join();
        }
        writing.store(false, Ordering::Release);
    });
    rig.disk.clear_faults();
    let good = volume.health() == Health::Good;
    let mut done = acknowledged.into_inner().map_err(|_| "a writer panicked")?;
    done.sort_by_key(|(lsn, _)| *lsn);
    let mut model = Model::of(&volume);
    for (lsn, edit) in &done {
        model.push(*lsn, edit)?;
    }
    model.settle(&volume)?;
    let mut chance = Chance::new(seed);
    check_volume(&volume, &model, Depth::Every, &mut chance).map_err(|broken| format!("live: {broken}"))?;
    drop(volume);
    rig.volumes.clear();
    let flushed = flushed.into_inner().map_err(|_| "the flusher panicked")?;
    for death in [None, Some(PowerLoss::all_lost()), Some(PowerLoss::seeded(seed))] {
        let disk = rig.disk.snapshot().mount(seed);
        let (disk, floor) = match death {
            None => (disk.crash_process(), model.tip()),
            Some(plan) => (disk.crash_power_with(plan), flushed),
        };
        tally.crashes += 1;
        let store = rig::open(&disk, &SimClock::new(seed + 1), &rig.wrap)?;
        let volume: Arc<_> = store.volumes().remove(0);
        rig::good(&volume)?;
        let tip = volume.tip_lsn();
        // Where writing was given up a failed request may come up after all.
        ensure!(tip >= floor, "LOST: {tip:?} of {floor:?}, {death:?}: {:?}", volume.notes());
        ensure!(tip <= model.tip() || !good, "{tip:?} of {:?}", model.tip());
        if tip <= model.tip() {
            check_volume(&volume, &model, Depth::Every, &mut chance)
                .map_err(|broken| format!("{death:?}: {broken}"))?;
        }
        tally.take(&disk);
    }
    tally.take(&rig.disk);
    Ok(good)
}

/// Clients that write over each other, a flusher and the timers, on a disk whose syncs and writes fail now and
/// then: requests are ordered by LSN alone, and every state and restart agrees with that order.
#[test]
fn clients_timers_and_failing_syncs_at_once() {
    let mut tally = Tally::default();
    let mut good = 0;
    with_seeds("clients_timers_and_failing_syncs_at_once", 40, 3, &mut tally, |seed, tally| {
        let kinds = [
            None,
            Some(FaultKind::SyncError),
            Some(FaultKind::SyncErrorPartial),
            Some(FaultKind::WriteError),
        ];
        for kind in kinds {
            let outcome = run(seed, kind, tally).map_err(|broken| format!("{kind:?}: {broken}"))?;
            good += u64::from(outcome);
        }
        Ok(())
    });
    println!("threads: {good} runs went on to the end; {tally}");
    assert!(good > 0 && tally.counts.sync_errors > 0 && tally.counts.write_errors > 0);
}
