//! Bugs that were found once, each with the shortest way to it. None may come back.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Result;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{Boundary, Fault, FaultKind, Operation, PowerLoss, SimClock, WALL_START_NS, When};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::volume::{Health, Volume};

use crate::harness::rig::{self, STORE};
use crate::harness::workload::{Step, content};
use crate::harness::{Outcome, Rig, Tally, wrap};

fn write(volume: &Volume, block: u64, number: u64, blocks: u64) -> Result<Lsn> {
    let data = content(number, (blocks * BLOCK_BYTES) as usize);
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset: block * BLOCK_BYTES, data: &data }], &mut results);
    results.remove(0)
}

fn words(error: cdp_core::error::Error) -> String {
    format!("{error:?}")
}

/// A process died between making a segment ahead and syncing its name; the next one used that segment, and the
/// power took it, with all that was flushed to it.
#[test]
fn a_segment_made_ahead_whose_name_was_never_synced() -> Outcome {
    let mut rig = Rig::new(2, 1, 64 << 10)?;
    for number in 0..5 {
        write(&rig.volumes[0], number, number + 1, 1).map_err(words)?;
    }
    rig.models[0] = crate::harness::Model::of(&rig.volumes[0]);
    rig.disk.record_boundaries(true);
    rig.store().maintain();
    let is_new_name = |path: &str| path == "/store/volumes/v0";
    let boundaries = rig.disk.take_boundaries();
    let boundary = boundaries.iter().find(|b| is_new_name(&b.path)).ok_or("no segment was made ahead")?;
    let disk = boundary.snapshot.mount(1).crash_process();
    let store = rig::open(&disk, &SimClock::new(3), &rig.wrap)?;
    write(&store.volumes()[0], 9, 9, 1).and_then(|_| store.volumes()[0].flush()).map_err(words)?;
    let tip = store.volumes()[0].tip_lsn();
    let disk = disk.crash_power_with(PowerLoss::all_lost());
    let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
    let volume = store.volumes().remove(0);
    rig::good(&volume)?;
    ensure!(volume.tip_lsn() == tip, "{tip:?} was flushed, {:?} is there", volume.tip_lsn());
    Ok(())
}

/// A process died between writing the durable mark and syncing it; the next opening wrote its mark over the slot that was
/// on the disk, and the power went in the middle: the disk had no mark at all, and the volume took no writes.
#[test]
fn a_mark_that_was_never_synced_when_the_next_one_is_torn() -> Outcome {
    let mut rig = Rig::new(4, 1, 64 << 10)?;
    write(&rig.volumes[0], 1, 1, 1).map_err(words)?;
    rig.models[0] = crate::harness::Model::of(&rig.volumes[0]);
    rig.step(&Step::Advance { ns: 1_100_000_000 })?;
    rig.disk.record_boundaries(true);
    rig.step(&Step::Maintain)?;
    let is_mark = |boundary: &&Boundary| boundary.path.ends_with("/mark");
    let boundaries = rig.disk.take_boundaries();
    let unsynced = boundaries
        .iter()
        .filter(is_mark)
        .find(|boundary| boundary.what == Operation::Sync && !boundary.during)
        .ok_or("no mark was written")?;
    let mut torn = 0;
    for seed in 0..40 {
        let disk = unsynced.snapshot.mount(seed).crash_process();
        disk.record_boundaries(true);
        drop(rig::open(&disk, &SimClock::new(3), &rig.wrap)?);
        for boundary in disk.take_boundaries().iter().filter(is_mark) {
            let plan = PowerLoss { tear_percent: 100, ..PowerLoss { seed, ..PowerLoss::all_lost() } };
            let disk = boundary.snapshot.mount(seed).crash_power_with(plan);
            let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
            rig::good(&store.volumes()[0])
                .map_err(|broken| format!("seed {seed}, at {:?} of the mark: {broken}", boundary.what))?;
            torn += 1;
        }
    }
    ensure!(torn >= 160, "only {torn} crashes");
    Ok(())
}

/// A sync failed, and so did appending again. The next sync of that file succeeds and proves nothing: no flush
/// may be answered by it, also not while the volume is closing.
#[test]
fn no_flush_is_answered_after_a_sync_that_could_not_be_repaired() -> Outcome {
    for closing in [false, true] {
        let rig = Rig::new(3, 1, 64 << 10)?;
        let volume = &rig.volumes[0];
        write(volume, 1, 1, 1).map_err(words)?;
        rig.disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)).on(".seg"));
        if closing {
            ensure!(volume.close().is_err(), "a stop that could not sync is not clean");
        } else {
            rig.disk.inject(Fault::new(FaultKind::NameError, When::Nth(1)));
            rig.disk.inject(Fault::new(FaultKind::WriteError, When::From(1)).on(".seg"));
            ensure!(volume.flush().is_err(), "the sync failed");
            ensure!(matches!(volume.health(), Health::ReadOnly { .. }), "{:?}", volume.health());
        }
        rig.disk.clear_faults();
        let second = volume.flush();
        let disk = rig.disk.crash_power_with(PowerLoss::all_lost());
        let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
        let is_there = store.volumes()[0].tip_lsn() >= Lsn(1);
        ensure!(second.is_err() || is_there, "closing {closing}: a flush was answered and the write is gone");
    }
    Ok(())
}

/// The header of the next segment could not be written, but had reached the disk. What still fitted into the
/// old one was appended there, behind the cut that this header tells recovery to make.
#[test]
fn a_segment_header_that_failed_and_is_there_all_the_same() -> Outcome {
    for seed in 0..24 {
        let rig = Rig::new(seed, 1, 64 << 10)?;
        let volume = &rig.volumes[0];
        // Nearly full: a large write does not fit any more, a small one does.
        for number in 0..2 {
            write(volume, 0, number + 1, 4).map_err(words)?;
        }
        rig.disk.inject(Fault::new(FaultKind::WriteError, When::Nth(1)).on("000002.seg"));
        ensure!(write(volume, 0, 50, 9).is_err(), "the header could not be written");
        let last = write(volume, 20, 60, 1).map_err(words)?;
        volume.flush().map_err(words)?;
        for power in [false, true] {
            let disk = rig.disk.snapshot().mount(seed);
            let disk = if power { disk.crash_power(seed) } else { disk.crash_process() };
            let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
            let volume = store.volumes().remove(0);
            rig::good(&volume)?;
            ensure!(volume.tip_lsn() == last, "seed {seed}: {last:?} was flushed: {:?}", volume.notes());
        }
    }
    Ok(())
}

/// Under a cap of the journal's own, attempts that fail and are repeated must not use the cap up.
#[test]
fn the_sum_of_the_journals_bytes_does_not_drift() -> Outcome {
    let cap = 12 * (64 << 10);
    let options = CreateOptions { journal_cap_bytes: Some(cap), ..rig::options(64 << 10) };
    let rig = Rig::with(5, 1, &options, wrap::nothing())?;
    let volume = &rig.volumes[0];
    rig.disk.set_capacity(Some(rig.disk.used_bytes()));
    let mut refused = 0;
    for number in 0..60 {
        refused += u64::from(write(volume, number % 40, number + 1, 4).is_err());
        rig.store().maintain();
    }
    ensure!(refused > 40, "only {refused} writes met the full disk");
    let on_disk = || -> u64 {
        let segments = rig.disk.paths().into_iter().filter(|path| path.ends_with(".seg"));
        segments.filter_map(|path| rig.disk.contents(path).ok()).map(|bytes| bytes.len() as u64).sum()
    };
    ensure!(volume.journal_bytes() == on_disk(), "{} counted, {} there", volume.journal_bytes(), on_disk());
    rig.disk.set_capacity(None);
    for number in 0..20 {
        write(volume, number, number + 1, 4).map_err(|error| format!("there is space again: {error:?}"))?;
        if number % 5 == 0 {
            rig.disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)).on(".seg"));
            let _failed = volume.flush();
        }
        rig.disk.inject(Fault::new(FaultKind::NameError, When::Nth(1)).on(".run"));
        rig.store().maintain();
        rig.disk.clear_faults();
        rig.store().maintain();
        ensure!(
            volume.journal_bytes() == on_disk(),
            "write {number}: {} counted, {} there",
            volume.journal_bytes(),
            on_disk()
        );
    }
    Ok(())
}

/// The disk could not read one sector, for a moment, while a server started: its volume forgot what stood there
/// and behind it, and removed the file.
#[test]
fn a_sector_that_cannot_be_read_is_no_crash_tail() -> Outcome {
    for at in [0, 4096, 8192, 5 * 4096, 29_696] {
        let rig = Rig::new(6, 1, 64 << 10)?;
        for number in 0..4 {
            write(&rig.volumes[0], number, number + 1, 1).map_err(words)?;
        }
        rig.volumes[0].flush().map_err(words)?;
        let disk = rig.disk.crash_process();
        let kept = disk.snapshot();
        let segment = "/store/volumes/v0/000000000001.seg";
        disk.make_unreadable(segment, at, 512).map_err(|error| error.to_string())?;
        let store = rig::open(&disk, &SimClock::new(4), &rig.wrap)?;
        let volume = store.volumes().remove(0);
        let whole = volume.tip_lsn() == Lsn(4);
        ensure!(whole || volume.health() != Health::Good, "byte {at}: forgotten: {:?}", volume.notes());
        ensure!(disk.contents(segment).is_ok(), "byte {at}: the file was removed");
        drop((volume, store));
        // The moment is over.
        let bytes = kept.mount(1).contents(segment).map_err(|error| error.to_string())?;
        let disk = disk.crash_process();
        if !whole {
            disk.mutate(segment, |now| *now = bytes.clone()).map_err(|error| error.to_string())?;
            let file = cdp_core::io::Files::open(&disk, Path::new(segment), true);
            let sector = std::io::IoSlice::new(&bytes[at as usize..at as usize + 512]);
            file.and_then(|file| file.write_at(at, &[sector])).map_err(|error| error.to_string())?;
        }
        let store = rig::open(&disk, &SimClock::new(5), &rig.wrap)?;
        let volume = store.volumes().remove(0);
        ensure!(volume.tip_lsn() == Lsn(4), "byte {at}: {:?} is all there is now", volume.tip_lsn());
    }
    Ok(())
}

/// Somebody asked for the year 2100, and every later record was dated 2100.
#[test]
fn a_question_about_the_future_does_not_move_the_clock() -> Outcome {
    let rig = Rig::new(7, 1, 64 << 10)?;
    let volume = &rig.volumes[0];
    let future = Timestamp(WALL_START_NS * 2);
    volume.lsn_at(future).map_err(words)?;
    let lsn = write(volume, 0, 1, 1).map_err(words)?;
    let at = volume.timestamp_of(lsn).map_err(words)?;
    ensure!(at < future, "the record is dated {at:?}");
    Ok(())
}

/// A store or a volume that is being made is there whole or not at all, and can then be made.
#[test]
fn a_crash_while_a_store_and_a_volume_are_made() -> Outcome {
    let mut tally = Tally::default();
    let (disk, clock) = (cdp_core::io::sim::SimDisk::new(8), SimClock::new(8));
    disk.record_boundaries(true);
    let rig_disk = disk.clone();
    Store::create(&disk, &clock, Path::new(STORE)).map_err(words)?;
    let made = disk.operations();
    let store = rig::open(&disk, &clock, &wrap::nothing())?;
    store.create_volume("v0", &rig::options(64 << 10), None).map_err(words)?;
    for boundary in rig_disk.take_boundaries() {
        for seed in 0..6 {
            let disk = boundary.snapshot.mount(seed);
            let disk = if seed == 0 { disk.crash_process() } else { disk.crash_power(seed) };
            tally.crashes += 1;
            let place = format!("operation {}, {:?} of {}", boundary.operation, boundary.what, boundary.path);
            let clock = SimClock::new(seed + 90);
            if !Store::exists(&disk, Path::new(STORE)) {
                ensure!(boundary.operation <= made, "{place}: the store is gone");
                Store::create(&disk, &clock, Path::new(STORE)).map_err(|e| format!("{place}: {e:?}"))?;
            }
            let store = rig::open(&disk, &clock, &wrap::nothing()).map_err(|b| format!("{place}: {b}"))?;
            ensure!(store.failed().is_empty(), "{place}: half a volume: {:?}", store.failed());
            if store.volumes().is_empty() {
                store
                    .create_volume("v0", &rig::options(64 << 10), None)
                    .map_err(|error| format!("{place}: {error:?}"))?;
            }
            let volume = store.volumes().remove(0);
            rig::good(&volume).map_err(|broken| format!("{place}: {broken}"))?;
            write(&volume, 1, 1, 1).and_then(|_| volume.flush()).map_err(|e| format!("{place}: {e:?}"))?;
            let disk = disk.crash_power_with(PowerLoss::all_lost());
            let store = rig::open(&disk, &clock, &wrap::nothing()).map_err(|b| format!("{place}: {b}"))?;
            let tip = store.volumes().first().map(|volume| volume.tip_lsn());
            ensure!(tip == Some(Lsn(1)), "{place}: flushed and gone: {tip:?}");
        }
    }
    println!("making: {tally}");
    Ok(())
}

/// An accepted loss is carried out; a crash at any moment in it must leave the old files somewhere.
#[test]
fn a_crash_while_a_loss_is_accepted_keeps_the_old_files() -> Outcome {
    use cdp_core::volume::open::Accept;
    let mut rig = Rig::new(9, 1, 64 << 10)?;
    for number in 0..30 {
        let edit =
            crate::harness::model::Edit::Write { offset: 0, data: content(number + 1, BLOCK_BYTES as usize) };
        rig.step(&Step::Apply { volume: 0, edits: vec![edit], fua: true })?;
    }
    let disk = rig.disk.crash_process();
    let all: Vec<String> = disk.paths().into_iter().filter(|path| path.ends_with(".seg")).collect();
    disk.rot(&all[1], 100, 1).map_err(|error| error.to_string())?;
    let last = content(30, BLOCK_BYTES as usize);
    let holds_last = |disk: &cdp_core::io::sim::SimDisk| {
        let files = disk.paths().into_iter().filter(|path| path.ends_with(".seg"));
        let mut contents = files.filter_map(|path| disk.contents(path).ok());
        contents.any(|bytes| bytes.chunks(BLOCK_BYTES as usize).any(|block| block == last))
    };
    ensure!(holds_last(&disk), "the newest write is in some file");
    disk.record_boundaries(true);
    let accept = |_: &str| Accept { loss: true, mark_loss: false };
    let (files, clock) = (Arc::new(disk.clone()), Arc::new(SimClock::new(4)));
    let store = Store::open_with(
        files,
        clock,
        Path::new(STORE),
        &OpenOptions { accept: &accept, ..OpenOptions::default() },
    )
    .map_err(words)?;
    rig::good(&store.volumes()[0])?;
    for (number, boundary) in disk.take_boundaries().into_iter().enumerate() {
        for power in [false, true] {
            let disk = boundary.snapshot.mount(number as u64);
            let disk = if power { disk.crash_power(number as u64) } else { disk.crash_process() };
            // Nobody accepts anything this time.
            let store = rig::open(&disk, &SimClock::new(5), &rig.wrap)?;
            drop(store);
            let disk = disk.crash_process();
            ensure!(
                holds_last(&disk),
                "boundary {number}, {:?} of {}, power {power}: the old file is gone",
                boundary.what,
                boundary.path
            );
        }
    }
    Ok(())
}
