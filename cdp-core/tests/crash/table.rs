//! The rows of the recovery table, on whole stores.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::{OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::open::Accept;
use cdp_core::volume::{Health, Volume};

use crate::harness::check::{check_times, check_volume, read_blocks};
use crate::harness::model::{Edit, Model};
use crate::harness::rig::{self, STORE};
use crate::harness::workload::{Step, content};
use crate::harness::{Depth, Outcome, Rig};

pub const VOLUME: &str = "/store/volumes/v0";
const WRITES: u64 = 70;
const BLOCKS_PER_WRITE: u64 = 2;

/// The n-th write of a built store, from 1: two whole blocks.
fn nth(number: u64) -> (u64, Vec<u8>) {
    (number * 3 % 40, content(number, (BLOCKS_PER_WRITE * BLOCK_BYTES) as usize))
}

/// A store with one volume of many segments, all flushed, marked and (but the newest) sealed.
pub fn build(seed: u64) -> Outcome<Rig> {
    let mut rig = Rig::new(seed, 1, 64 << 10)?;
    for number in 1..=WRITES {
        let (block, data) = nth(number);
        let edits = vec![Edit::Write { offset: block * BLOCK_BYTES, data }];
        rig.step(&Step::Apply { volume: 0, edits, fua: true })?;
        if number % 9 == 0 {
            rig.step(&Step::Advance { ns: 1_100_000_000 })?;
            rig.step(&Step::Maintain)?;
        }
    }
    rig.step(&Step::Advance { ns: 1_100_000_000 })?;
    rig.step(&Step::Mark { volume: 0 })?;
    rig.step(&Step::Maintain)?;
    ensure!(rig.sealed() >= 3, "{} sealed segments", rig.sealed());
    Ok(rig)
}

/// The same after a kill: the disk as the next process finds it, and what was in it.
pub fn killed(seed: u64) -> Outcome<(SimDisk, Model)> {
    let mut rig = build(seed)?;
    Ok((rig.disk.crash_process(), rig.models.remove(0)))
}

/// The same after a clean stop.
pub fn stopped(seed: u64) -> Outcome<(SimDisk, Model)> {
    let mut rig = build(seed)?;
    rig.store().close().map_err(|error| format!("{error:?}"))?;
    Ok((rig.disk.crash_process(), rig.models.remove(0)))
}

pub fn open(disk: &SimDisk, accept: Accept) -> Outcome<(Store, Arc<Volume>)> {
    let (files, clock) = (Arc::new(disk.clone()), Arc::new(SimClock::new(99)));
    let store = Store::open_with(
        files,
        clock,
        Path::new(STORE),
        &OpenOptions { accept: &|_| accept, ..OpenOptions::default() },
    )
    .map_err(|error| format!("the store does not open: {error:?}"))?;
    let volume = store.volume("v0").map_err(|error| format!("the volume does not open: {error:?}"))?;
    Ok((store, volume))
}

pub fn segments(disk: &SimDisk) -> Vec<String> {
    let is_segment = |path: &String| path.starts_with(VOLUME) && path.ends_with(".seg");
    let mut found: Vec<String> = disk.paths().into_iter().filter(is_segment).collect();
    found.retain(|path| disk.contents(path).is_ok_and(|bytes| bytes.starts_with(b"CDPSEGMT")));
    found
}

/// Where these bytes stand in a segment, the newest one that has them.
fn find(disk: &SimDisk, data: &[u8]) -> Outcome<(String, u64)> {
    for path in segments(disk).into_iter().rev() {
        let bytes = disk.contents(&path).map_err(|error| error.to_string())?;
        let blocks = bytes.chunks(BLOCK_BYTES as usize);
        if let Some(at) = blocks.into_iter().position(|block| block[..64] == data[..64]) {
            return Ok((path, at as u64 * BLOCK_BYTES));
        }
    }
    Err("the payload is in no segment".into())
}

/// The volume refuses writing with a reason that holds this text, and serves every state before `tip`.
pub fn refuses_but_serves(volume: &Arc<Volume>, model: &Model, names: &str) -> Outcome<Lsn> {
    let Health::ReadOnly { reason, hint } = volume.health() else {
        return Err(format!("it takes writes: {:?}", volume.notes()));
    };
    ensure!(reason.contains(names), "{reason:?} does not name {names:?}");
    ensure!(!hint.is_empty(), "no hint");
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &[1; 4096] }], &mut results);
    let refused = results.remove(0).err().map(|error| error.kind());
    ensure!(refused == Some(Kind::ReadOnly), "a write was answered with {refused:?}");
    check_volume(volume, model, Depth::Every, &mut Chance::new(1))?;
    Ok(volume.tip_lsn())
}

/// The volume goes on: writes, stops, starts and shows everything.
pub fn goes_on(disk: SimDisk, store: Store, volume: Arc<Volume>, model: &Model) -> Outcome {
    rig::good(&volume)?;
    let model = model.cut(volume.tip_lsn());
    drop(volume);
    let clock = SimClock::new(5);
    let mut rig = Rig::on(disk, clock, crate::harness::wrap::nothing(), store, Some(vec![model]))?;
    for number in 200..215 {
        let (block, data) = nth(number);
        let edits = vec![Edit::Write { offset: block * BLOCK_BYTES, data }];
        rig.step(&Step::Apply { volume: 0, edits, fua: number % 2 == 0 })?;
    }
    rig.step(&Step::Maintain)?;
    rig.step(&Step::Die)?;
    rig.step(&Step::Close)?;
    check_times(&rig.volumes[0], &rig.models[0], rig.models[0].tip())
}

/// A sector rots under a write that was durable: only its blocks may answer with an error, in the states that
/// show them; a backup of everything else must go through, and the volume must go on.
#[test]
fn rot_in_a_payload_spoils_its_blocks_only() -> Outcome {
    for number in [1, 7, 22, 40, 58, WRITES - 1, WRITES] {
        for (how, unreadable) in [("rot", false), ("unreadable", true)] {
            for drop_runs in [false, true] {
                let (disk, model) = killed(number)?;
                let (block, data) = nth(number);
                let (path, at) = find(&disk, &data)?;
                match unreadable {
                    false => disk.rot(&path, at + 700, 0x10).map_err(|error| error.to_string())?,
                    true => disk.make_unreadable(&path, at + 512, 512).map_err(|error| error.to_string())?,
                }
                if drop_runs {
                    remove_runs(&disk)?;
                }
                let place = format!("{how} in write {number}, runs dropped: {drop_runs}");
                let (store, volume) = open(&disk, Accept::default()).map_err(|b| format!("{place}: {b}"))?;
                spoiled(&volume, &model, number, block).map_err(|broken| format!("{place}: {broken}"))?;
                if unreadable && !drop_runs {
                    continue;
                }
                rig::good(&volume).map_err(|broken| format!("{place}: {broken}"))?;
                let mut results = Vec::new();
                let change = Change::Write { offset: block * BLOCK_BYTES, data: &nth(300).1 };
                volume.apply(SessionId(1), &[change], &mut results);
                results.remove(0).map_err(|error| format!("{place}: writing over it: {error:?}"))?;
                let healed = read_blocks(&*volume, block, BLOCKS_PER_WRITE);
                ensure!(healed.is_ok_and(|bytes| bytes == nth(300).1), "{place}: the tip is not healed");
                drop(store);
            }
        }
    }
    Ok(())
}

/// Each block of each state is right, or an error and one of the spoiled record's blocks.
fn spoiled(volume: &Arc<Volume>, model: &Model, number: u64, block: u64) -> Outcome {
    ensure!(volume.tip_lsn() == model.tip(), "the tip is {:?}: {:?}", volume.tip_lsn(), volume.notes());
    let mut errors = 0;
    for lsn in 0..=model.tip().0 {
        let view = View::new(volume.clone(), Lsn(lsn));
        for lba in 0..48 {
            let mine = (block..block + BLOCKS_PER_WRITE).contains(&lba);
            match read_blocks(&view, lba, 1) {
                Ok(bytes) => ensure!(model.state(Lsn(lsn)).block_is(lba as usize, &bytes), "WRONG bytes"),
                Err(error) => {
                    ensure!(mine, "block {lba} of lsn {lsn} answers {error:?}");
                    ensure!(matches!(error.kind(), Kind::Damaged | Kind::Io), "{error:?}");
                    errors += 1;
                }
            }
        }
    }
    ensure!(errors > 0, "write {number} is damaged and nobody noticed");
    Ok(())
}

pub fn remove_runs(disk: &SimDisk) -> Outcome {
    for path in disk.paths().iter().filter(|path| path.ends_with(".run")) {
        disk.disappear(path).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Each way to lose a segment: what is before it must be served, nothing may be written, the file is named;
/// and if the loss is accepted the volume goes on, and the old files are kept.
#[test]
fn lost_segments_are_named_and_what_is_before_them_is_served() -> Outcome {
    type Harm = fn(&SimDisk, &str) -> std::io::Result<()>;
    let harms: [(&str, Harm); 6] = [
        ("header rot", |disk, path| disk.rot(path, 100, 1)),
        ("header zeroed", |disk, path| disk.mutate(path, |bytes| bytes[..4096].fill(0))),
        ("header unreadable", |disk, path| disk.make_unreadable(path, 0, 512)),
        ("file missing", |disk, path| disk.disappear(path)),
        ("file cut", |disk, path| disk.truncate(path, BLOCK_BYTES)),
        ("file empty", |disk, path| disk.truncate(path, 0)),
    ];
    for (how, harm) in harms {
        for clean in [false, true] {
            let (disk, _) = if clean { stopped(3)? } else { killed(3)? };
            for at in 0..segments(&disk).len() {
                let (disk, model) = if clean { stopped(3)? } else { killed(3)? };
                let path = segments(&disk)[at].clone();
                harm(&disk, &path).map_err(|error| error.to_string())?;
                if how.starts_with("file cut") {
                    remove_runs(&disk)?;
                }
                let place = format!("{how} of {path}, clean stop: {clean}");
                lost(disk, &model, &path, how).map_err(|broken| format!("{place}: {broken}"))?;
            }
        }
    }
    Ok(())
}

fn lost(disk: SimDisk, model: &Model, path: &str, how: &str) -> Outcome {
    let (store, volume) = open(&disk, Accept::default())?;
    if volume.health() == Health::Good && ["header rot", "header unreadable"].contains(&how) {
        found_by_upkeep(&volume, model, path)?;
        drop((store, volume));
        return lost_at_once(disk.crash_process(), model, path, how);
    }
    drop((store, volume));
    lost_at_once(disk.crash_process(), model, path, how)
}

/// Bits that changed without anybody writing do not show in what the filesystem says of a file: what was remembered of the
/// segment is believed, everything reads as it was written, and upkeep finds it soon.
fn found_by_upkeep(volume: &Arc<Volume>, model: &Model, path: &str) -> Outcome {
    ensure!(volume.tip_lsn() == model.tip(), "the tip is {:?}", volume.tip_lsn());
    check_volume(volume, model, Depth::Every, &mut Chance::new(1))?;
    ensure!(volume.doubted() > 0, "nothing is doubted, so why was it believed");
    for _ in 0..20 {
        let _ = volume.maintain();
    }
    let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    refuses_but_serves(volume, model, file).map(drop)
}

fn lost_at_once(disk: SimDisk, model: &Model, path: &str, how: &str) -> Outcome {
    let before = segments(&disk);
    let (store, volume) = open(&disk, Accept::default())?;
    if how == "file missing" && volume.health() == Health::Good && volume.tip_lsn() == model.tip() {
        // The newest segment of a clean stop holds nothing: its loss is none.
        return Ok(());
    }
    let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let names = if how == "file missing" { "" } else { &file[..6] };
    let tip = refuses_but_serves(&volume, model, names)?;
    ensure!(tip < model.tip(), "nothing is lost, so why refuse");
    drop((store, volume));
    // Opening again changes nothing.
    let disk = disk.crash_process();
    ensure!(segments(&disk) == before, "a refusal changed the files");
    let (store, volume) = open(&disk, Accept::default())?;
    ensure!(refuses_but_serves(&volume, model, "")? == tip, "another tip at the second look");
    drop((store, volume));
    let disk = disk.crash_process();
    let (store, volume) = open(&disk, Accept { loss: true, mark_loss: false })?;
    ensure!(volume.tip_lsn() == tip, "accepted: {:?}, served was {tip:?}", volume.tip_lsn());
    let kept: Vec<String> = disk.paths().into_iter().filter(|path| path.contains("/lost-")).collect();
    for old in before.iter().filter(|old| *old > &path.to_owned()) {
        let name = Path::new(old).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ensure!(kept.iter().any(|kept| kept.ends_with(name)), "{name} is not kept: {kept:?}");
    }
    goes_on(disk, store, volume, model)
}

/// Whoever restores only a part of a store from a copy must not get a mixture: a mark of another volume, or of
/// a later state than the log, refuses writing; an older mark of the same log is only less of a witness.
#[test]
fn a_mark_that_does_not_belong_to_the_log_refuses() -> Outcome {
    let mark = format!("{VOLUME}/mark");
    let words = |error: std::io::Error| error.to_string();
    let (disk, model) = killed(4)?;
    let (other, _) = killed(5)?;
    let foreign = other.contents(&mark).map_err(words)?;
    disk.mutate(&mark, |bytes| bytes.copy_from_slice(&foreign)).map_err(words)?;
    let (_store, volume) = open(&disk, Accept::default())?;
    refuses_but_serves(&volume, &model, "mark")?;

    // The log of yesterday under the mark of today, within one opening and across one.
    for reopened in [false, true] {
        let mut rig = build(6)?;
        let yesterday = rig.disk.snapshot();
        let old = rig.models[0].clone();
        if reopened {
            rig.step(&Step::Close)?;
        }
        for number in 100..110 {
            let (block, data) = nth(number);
            let edits = vec![Edit::Write { offset: block * BLOCK_BYTES, data }];
            rig.step(&Step::Apply { volume: 0, edits, fua: true })?;
        }
        rig.step(&Step::Close)?;
        let today = rig.disk.contents(&mark).map_err(words)?;
        let disk = yesterday.mount(1).crash_process();
        disk.mutate(&mark, |bytes| bytes.copy_from_slice(&today)).map_err(words)?;
        let (_store, volume) = open(&disk, Accept::default())?;
        refuses_but_serves(&volume, &old, "").map_err(|broken| format!("reopened {reopened}: {broken}"))?;
    }

    // The mark of yesterday over the log of today.
    let mut rig = build(7)?;
    let yesterday = rig.disk.contents(&mark).map_err(words)?;
    for number in 100..130 {
        let (block, data) = nth(number);
        let edits = vec![Edit::Write { offset: block * BLOCK_BYTES, data }];
        rig.step(&Step::Apply { volume: 0, edits, fua: true })?;
    }
    let disk = rig.disk.crash_process();
    disk.mutate(&mark, |bytes| bytes.copy_from_slice(&yesterday)).map_err(words)?;
    let (store, volume) = open(&disk, Accept::default())?;
    ensure!(volume.tip_lsn() == rig.models[0].tip(), "{:?}", volume.notes());
    goes_on(disk, store, volume, &rig.models[0])
}

/// Both slots of the mark are gone. After a clean stop the seal tells the same; after a crash nobody knows what
/// was durable, so somebody has to accept that.
#[test]
fn both_mark_slots_bad() -> Outcome {
    type Harm = fn(&SimDisk, &str) -> std::io::Result<()>;
    let harms: [(&str, Harm); 4] = [
        ("rot", |disk, path| disk.rot(path, 33, 1).and_then(|()| disk.rot(path, 4096 + 33, 1))),
        ("unreadable", |disk, path| disk.make_unreadable(path, 0, 8192)),
        ("missing", |disk, path| disk.disappear(path)),
        ("empty", |disk, path| disk.truncate(path, 0)),
    ];
    let mark = format!("{VOLUME}/mark");
    for (how, harm) in harms {
        let (disk, model) = stopped(8)?;
        harm(&disk, &mark).map_err(|error| error.to_string())?;
        let (store, volume) = open(&disk, Accept::default())?;
        ensure!(volume.tip_lsn() == model.tip(), "{how}: {:?}", volume.notes());
        goes_on(disk, store, volume, &model).map_err(|broken| format!("{how}, clean: {broken}"))?;

        let (disk, model) = killed(8)?;
        harm(&disk, &mark).map_err(|error| error.to_string())?;
        let (store, volume) = open(&disk, Accept::default())?;
        let tip = refuses_but_serves(&volume, &model, "mark").map_err(|broken| format!("{how}: {broken}"))?;
        ensure!(tip == model.tip(), "{how}: what can be read is served, through {tip:?}");
        drop((store, volume));
        let disk = disk.crash_process();
        let (store, volume) = open(&disk, Accept { loss: false, mark_loss: true })?;
        ensure!(volume.tip_lsn() == model.tip(), "{how}, accepted: {:?}", volume.notes());
        goes_on(disk, store, volume, &model).map_err(|broken| format!("{how}, accepted: {broken}"))?;
    }
    // One bad slot is what a crash may leave, and no reason to refuse.
    for slot in 0..2 {
        let (disk, model) = killed(9)?;
        disk.rot(&mark, slot * 4096 + 50, 1).map_err(|error| error.to_string())?;
        let (store, volume) = open(&disk, Accept::default())?;
        ensure!(volume.tip_lsn() == model.tip(), "slot {slot}: {:?}", volume.notes());
        goes_on(disk, store, volume, &model).map_err(|broken| format!("slot {slot}: {broken}"))?;
    }
    Ok(())
}

/// A header rots in the middle of a segment, its run may know the extent and may not.
#[test]
fn header_rot_inside_a_segment() -> Outcome {
    for number in [2, 12, 30, 50, WRITES - 1] {
        for drop_runs in [false, true] {
            for clean in [false, true] {
                let (disk, model) = if clean { stopped(11)? } else { killed(11)? };
                let (path, at) = find(&disk, &nth(number).1)?;
                // The batch header stands in the block before its payload.
                disk.rot(&path, at - BLOCK_BYTES + 20, 4).map_err(|error| error.to_string())?;
                if drop_runs {
                    remove_runs(&disk)?;
                }
                let place = format!("batch of write {number}, runs dropped {drop_runs}, clean {clean}");
                let (_store, volume) = open(&disk, Accept::default()).map_err(|b| format!("{place}: {b}"))?;
                if volume.health() == Health::Good {
                    let all = volume.tip_lsn() == model.tip();
                    ensure!(all, "{place}: Good, but the tip is {:?}", volume.tip_lsn());
                    check_volume(&volume, &model, Depth::Every, &mut Chance::new(1))
                        .map_err(|broken| format!("{place}: {broken}"))?;
                } else {
                    refuses_but_serves(&volume, &model, ".seg").map_err(|b| format!("{place}: {b}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Runs are a cache of the segments: deleted, cut or rotten in any byte, everything reads as before.
#[test]
fn runs_are_rebuilt() -> Outcome {
    let (disk, model) = stopped(10)?;
    let kept = disk.snapshot();
    let runs: Vec<String> = disk.paths().into_iter().filter(|path| path.ends_with(".run")).collect();
    ensure!(runs.len() >= 3, "{} runs", runs.len());
    let mut chance = Chance::new(10);
    for round in 0..60 {
        let disk = kept.mount(round).crash_process();
        let path = &runs[chance.below(runs.len() as u64) as usize];
        let len = disk.contents(path).map_err(|error| error.to_string())?.len() as u64;
        let harm = match round % 4 {
            0 => disk.disappear(path),
            1 => disk.truncate(path, chance.below(len)),
            2 => disk.make_unreadable(path, chance.below(len / 512) * 512, 512),
            _ => disk.rot(path, chance.below(len), 1 << chance.below(8)),
        };
        harm.map_err(|error| error.to_string())?;
        let (store, volume) = open(&disk, Accept::default())?;
        check_volume(&volume, &model, Depth::Every, &mut chance)
            .and_then(|_| goes_on(disk, store, volume, &model))
            .map_err(|broken| format!("round {round}, {path}: {broken}"))?;
    }
    Ok(())
}
