//! Starting again reads what is open, not what is history: what is remembered of sealed segments, and when that counts.

use std::path::Path;

use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, SimDisk};
use cdp_core::volume::Health;
use cdp_core::volume::open::Accept;
use cdp_core::volume::parts::Frozen;

use crate::harness::check::check_volume;
use crate::harness::workload::Step;
use crate::harness::{Depth, Outcome, Rig, Workload, rig};
use crate::table::{VOLUME, goes_on, killed, open, refuses_but_serves, remove_runs, segments, stopped};

const LOOKED: &str = "/store/volumes/v0/looked";

fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// A volume with so many full segments, all with their runs, and some records in the open one.
fn history(seed: u64, parts: usize) -> Outcome<Rig> {
    let mut rig = Rig::new(seed, 1, 64 << 10)?;
    let mut workload = Workload::new(seed, 1, rig::VOLUME_BYTES);
    while rig.volumes[0].part_list().len() < parts {
        rig.step(&workload.step())?;
    }
    while rig.sealed() + 1 < rig.volumes[0].part_list().len() {
        rig.step(&Step::Maintain)?;
    }
    Ok(rig)
}

/// The files of the segments that are sealed, by a seal of their own or, where a crash ended them, by their run.
fn sealed_parts(rig: &Rig) -> Vec<String> {
    let list = rig.volumes[0].part_list();
    let is_sealed = |end: &Frozen| end.seal_hash.is_some();
    let sealed = list.iter().filter(|part| part.frozen.get().is_some_and(is_sealed));
    sealed.map(|part| part.segment.path.display().to_string()).collect()
}

fn sealed_files(disk: &SimDisk) -> Outcome<Vec<String>> {
    let mut sealed = Vec::new();
    for path in segments(disk) {
        let bytes = disk.contents(&path).map_err(words)?;
        if bytes[bytes.len() - 4096..].starts_with(b"CDPSEAL") {
            sealed.push(path);
        }
    }
    Ok(sealed)
}

/// A server that was killed must be back as quickly after a year as after a day: of a sealed segment nothing is read.
#[test]
fn a_restart_does_not_read_sealed_segments() -> Outcome {
    let mut counts = Vec::new();
    for parts in [8, 40] {
        let mut rig = history(3, parts)?;
        let sealed = sealed_parts(&rig);
        let (disk, model) = (rig.disk.crash_process(), rig.models.remove(0));
        drop(rig);
        ensure!(sealed.len() + 1 >= parts, "{} of {parts} are sealed", sealed.len());
        disk.reset_reads();
        let (store, volume) = open(&disk, Accept::default())?;
        // Names of markers are read where no catalog has them; no whole block is.
        let reads: Vec<_> = sealed.iter().filter(|path| disk.reads_of(path).bytes >= 4096).collect();
        ensure!(reads.is_empty(), "{} of {} sealed segments were read: {reads:?}", reads.len(), sealed.len());
        counts.push(segments(&disk).iter().map(|path| disk.reads_of(path).bytes).sum::<u64>());
        ensure!(volume.doubted() == sealed.len(), "{} are doubted", volume.doubted());
        check_volume(&volume, &model, Depth::Every, &mut Chance::new(1))?;
        while volume.doubted() > 0 {
            volume.maintain().map_err(|error| error.to_string())?;
        }
        goes_on(disk, store, volume, &model)?;
    }
    println!("bytes of segments read at a restart with 8 and with 40: {counts:?}");
    ensure!(counts[1] < 4 * (64 << 10) + counts[0], "{counts:?} bytes were read");
    Ok(())
}

/// A full segment has its run before it is sealed: a kill in between must not cost reading it.
#[test]
fn a_restart_does_not_read_full_segments_that_have_their_run() -> Outcome {
    let mut rig = Rig::new(5, 1, 64 << 10)?;
    let mut workload = Workload::new(5, 1, rig::VOLUME_BYTES);
    // Much at once is a stream, for which sealing waits.
    while rig.volumes[0].part_list().len() < 12 {
        match workload.step() {
            Step::Maintain | Step::Die | Step::Close => {}
            step => rig.step(&step)?,
        }
    }
    rig.step(&Step::Maintain)?;
    let list = rig.volumes[0].part_list();
    let ahead: Vec<String> = list
        .iter()
        .filter(|part| part.run().is_some() && part.frozen.get().is_some_and(|end| end.seal_hash.is_none()))
        .map(|part| part.segment.path.display().to_string())
        .collect();
    drop(list);
    ensure!(ahead.len() >= 3, "only {} wait for their seal", ahead.len());
    let disk = rig.disk.crash_process();
    let model = rig.models.remove(0);
    drop(rig);
    disk.reset_reads();
    let (store, volume) = open(&disk, Accept::default())?;
    for path in &ahead {
        let bytes = disk.reads_of(path).bytes;
        // Its header, a look whether it ends with a seal, and names of markers.
        ensure!(bytes < 3 * 4096, "{bytes} bytes of {path} were read");
    }
    check_volume(&volume, &model, Depth::Every, &mut Chance::new(1))?;
    goes_on(disk, store, volume, &model)
}

/// It is a cache: gone, cut, rotten, of another volume, of yesterday, or twice as long, everything is as it was written.
#[test]
fn what_is_remembered_can_go_at_any_moment() -> Outcome {
    let (other, _) = killed(21)?;
    let foreign = other.contents(LOOKED).map_err(words)?;
    for round in 0..40u64 {
        let (disk, model) = if round % 2 == 0 { killed(20)? } else { stopped(20)? };
        let mut chance = Chance::new(round);
        let len = disk.contents(LOOKED).map_err(words)?.len() as u64;
        ensure!(len > 3 * 512, "only {len} bytes are remembered");
        match round / 2 % 6 {
            0 => disk.disappear(LOOKED),
            1 => disk.truncate(LOOKED, chance.below(len)),
            2 => disk.rot(LOOKED, chance.below(len), 1 << chance.below(8)),
            3 => disk.mutate(LOOKED, |bytes| bytes.clone_from(&foreign)),
            4 => disk.make_unreadable(LOOKED, chance.below(len / 512) * 512, 512),
            // Entries of files that are gone, and each twice.
            _ => disk.mutate(LOOKED, |bytes| {
                let again = bytes[512..].to_vec();
                bytes.extend(again);
                bytes.extend_from_slice(&foreign[512..]);
            }),
        }
        .map_err(words)?;
        let (store, volume) = open(&disk, Accept::default())?;
        check_volume(&volume, &model, Depth::Every, &mut chance)
            .and_then(|_| goes_on(disk, store, volume, &model))
            .map_err(|broken| format!("round {round}: {broken}"))?;
    }
    Ok(())
}

/// Somebody put another file in a segment's place, of the same length: restored from an older copy, swapped with its
/// neighbour, or written over. That must be found at the opening, whatever is remembered, as if nothing were.
#[test]
fn a_segment_that_somebody_replaced_is_found_at_the_opening() -> Outcome {
    for how in ["zeros", "older", "neighbour", "renamed"] {
        for at in 0..4 {
            let (disk, model) = killed(23)?;
            let sealed = sealed_files(&disk)?;
            ensure!(sealed.len() >= 5, "{} sealed", sealed.len());
            let (path, next) = (&sealed[at], &sealed[at + 1]);
            let theirs = disk.contents(next).map_err(words)?;
            match how {
                "zeros" => disk.mutate(path, |bytes| bytes[..4096].fill(0)).map_err(words)?,
                "older" => disk
                    .mutate(path, |bytes| {
                        let len = bytes.len();
                        bytes.copy_from_slice(&vec![7; len]);
                    })
                    .map_err(words)?,
                "neighbour" => disk
                    .mutate(path, |bytes| {
                        let len = bytes.len().min(theirs.len());
                        bytes[..len].copy_from_slice(&theirs[..len]);
                    })
                    .map_err(words)?,
                _ => disk.rename(Path::new(next), Path::new(path)).map_err(words)?,
            }
            let (_store, volume) = open(&disk, Accept::default())?;
            refuses_but_serves(&volume, &model, "").map_err(|broken| format!("{how}, {at}: {broken}"))?;
            ensure!(volume.tip_lsn() < model.tip(), "{how}: nothing is missing");
        }
    }
    Ok(())
}

/// The cache may be older than the disk, as a power loss leaves it: each state of it under each state of the journal.
#[test]
fn older_caches_under_newer_journals() -> Outcome {
    let mut rig = Rig::new(29, 1, 64 << 10)?;
    let mut workload = Workload::new(29, 1, rig::VOLUME_BYTES);
    let mut caches: Vec<Vec<u8>> = Vec::new();
    for _ in 0..400 {
        rig.step(&workload.step())?;
        if let Ok(bytes) = rig.disk.contents(LOOKED)
            && caches.last() != Some(&bytes)
        {
            caches.push(bytes);
        }
    }
    ensure!(caches.len() >= 4, "it changed {} times", caches.len());
    let kept = rig.disk.snapshot();
    for (number, cache) in caches.iter().enumerate() {
        for drop_runs in [false, true] {
            let disk = kept.mount(number as u64).crash_process();
            disk.mutate(LOOKED, |bytes| bytes.clone_from(cache)).map_err(words)?;
            if drop_runs {
                remove_runs(&disk)?;
            }
            let (store, volume) = open(&disk, Accept::default())?;
            ensure!(volume.health() == Health::Good, "cache {number}: {:?}", volume.notes());
            check_volume(&volume, &rig.models[0], Depth::Quick, &mut Chance::new(1))
                .map_err(|broken| format!("cache {number} of {VOLUME}: {broken}"))?;
            drop((store, volume));
        }
    }
    Ok(())
}
