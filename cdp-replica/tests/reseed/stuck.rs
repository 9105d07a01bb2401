//! The disk of the second site refuses a step while a new copy takes an old one's place, or the file that decides about it rots:
//! the other volumes of the store are served, nothing is lost, and what was decided is finished once the disk is good.

use std::path::Path;
use std::sync::Arc;

use cdp_core::io::sim::{Boundary, Fault, FaultKind, SimDisk, When};
use cdp_core::store::Store;

use super::*;

const SEED_FILE: &str = "/store/seeds/disk.seed";
/// Upkeep tries again within this time.
const RETRY_NS: u64 = 60_000_000_000;
/// Of the same store, and has nothing to do with it.
const BESIDE: &str = "beside";

/// A reseed that was asked for and went through, step by step at the second site; and all states that it had before.
struct Recorded {
    pair: Pair,
    old: Vec<(Lsn, Vec<u8>)>,
    boundaries: Vec<Boundary>,
}

fn recorded(seed: u64) -> Recorded {
    let mut pair = Pair::behind(seed);
    let options = CreateOptions { segment_bytes: 1 << 20, ..CreateOptions::new(1 << 20) };
    let beside = pair.b.store().create_volume(BESIDE, &options, None).unwrap();
    write(&beside, 5, b"of somebody else");
    drop(beside);
    let old = states(&pair.b.volume());
    pair.change(seed + 1, 12);
    pair.b.disk.record_boundaries(true);
    pair.ask(None);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    let boundaries = pair.b.disk.take_boundaries();
    pair.b.disk.record_boundaries(false);
    Recorded { pair, old, boundaries }
}

/// The moments at which the file says that.
fn moments(boundaries: &[Boundary], says: impl Fn(&str) -> bool) -> Vec<&Boundary> {
    let is_said = |boundary: &&Boundary| {
        let bytes = died(boundary).contents(SEED_FILE);
        bytes.is_ok_and(|bytes| says(std::str::from_utf8(&bytes).unwrap_or("")))
    };
    boundaries.iter().filter(is_said).collect()
}

impl Recorded {
    /// Whichever copy has the name, and with the other one beside it or not: nothing of either is wrong or missing.
    fn check(&self, site: &Site) -> bool {
        let volume = site.volume();
        match site.aside() {
            None => {
                assert!(states(&volume) == self.old);
                false
            }
            Some(aside) => {
                assert!(states(&aside) == self.old);
                assert!(
                    content(&volume, volume.tip_lsn()) == content(&self.pair.a.volume(), volume.tip_lsn())
                );
                true
            }
        }
    }

    fn reopen(&self, site: &mut Site) {
        site.store = None;
        site.disk.clear_faults();
        *site = Site::open(site.disk.crash_process(), site.clock.clone());
    }
}

/// After the death of the process at a moment.
fn died(moment: &Boundary) -> SimDisk {
    moment.snapshot.mount(1).crash_process()
}

fn open(disk: SimDisk, clock: &cdp_core::io::sim::SimClock) -> cdp_core::error::Result<Site> {
    let (files, time) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
    let store = Store::open(files, time, Path::new("/store"), "a test")?;
    Ok(Site { disk, clock: clock.clone(), store: Some(Arc::new(store)) })
}

/// Whether a copy is whole, and not a volume yet.
fn is_a_copy_whole(site: &Site) -> bool {
    let copies = Path::new("/store/copies");
    let names = site.disk.list(copies).unwrap_or_default();
    names.iter().any(|entry| site.disk.contents(copies.join(&entry.name).join("volume")).is_ok())
}

fn is_beside_served(site: &Site) {
    let beside = site.store().volume(BESIDE).unwrap();
    assert!(content(&beside, beside.tip_lsn())[5 * BLOCK_BYTES as usize..].starts_with(b"of somebody else"));
    assert!(beside.is_primary());
}

/// One rotten byte of a small file kept every volume of the store from service. It keeps one, whose error names the command
/// that helps; and that loses nothing, whatever had been decided.
#[test]
fn a_damaged_file_withholds_one_volume() {
    let recorded = recorded(101);
    let asked = moments(&recorded.boundaries, |text| !text.contains("aside_"));
    let decided = moments(&recorded.boundaries, |text| text.contains("aside_"));
    assert!(asked.len() > 20 && decided.len() > 5, "{} asked, {} decided", asked.len(), decided.len());
    let (mut withheld, mut kept, mut swapped) = (0, 0, 0);
    // Every byte at one moment of each kind, then one byte at every moment of the second and at some of the first.
    let mut damages: Vec<(&Boundary, Option<u64>, u64)> = Vec::new();
    for moment in [asked[0], decided[0]] {
        let len = died(moment).contents(SEED_FILE).unwrap().len() as u64;
        damages.extend((0..len).map(|at| (moment, Some(at), 0)));
        damages.extend((0..len).map(|len| (moment, None, len)));
    }
    damages.extend(decided.iter().map(|moment| (*moment, Some(20), 0)));
    damages.extend(asked.iter().step_by(7).map(|moment| (*moment, None, 0)));
    for (number, (moment, at, len)) in damages.into_iter().enumerate() {
        let disk = died(moment);
        match at {
            Some(at) => disk.rot(SEED_FILE, at, 1 << (at % 5)).unwrap(),
            None => disk.truncate(SEED_FILE, len).unwrap(),
        }
        let mut site = open(disk, &recorded.pair.b.clock).unwrap();
        is_beside_served(&site);
        let error = site.store().volume(NAME).err().unwrap();
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(error.hint_text().unwrap().contains("cdp replica reseed disk --cancel"), "{error:?}");
        withheld += 1;
        // Nothing else gets into its way meanwhile.
        let options = CreateOptions::new(1 << 20);
        assert_eq!(site.store().create_volume(NAME, &options, None).err().unwrap().kind(), Kind::Damaged);
        assert_eq!(site.store().delete_volume(NAME).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(site.store().plan_reseed(NAME, None, None).unwrap_err().kind(), Kind::Damaged);
        for copy in site.store().copies().unwrap() {
            let is_whole = is_a_copy_whole(&site);
            let dropped = site.store().drop_copy(copy.volume);
            assert!(dropped.is_err() || !is_whole, "a whole copy was dropped");
        }
        if number % 5 == 0 {
            recorded.reopen(&mut site);
            assert_eq!(site.store().volume(NAME).err().unwrap().kind(), Kind::Damaged);
        }
        assert!(site.store().withdraw_reseed(NAME).unwrap());
        let is_new = recorded.check(&site);
        *if is_new { &mut swapped } else { &mut kept } += 1;
        is_beside_served(&site);
        assert!(site.store().failed().is_empty() && site.store().seed_plans().unwrap().is_empty());
        if number % 3 == 0 {
            recorded.reopen(&mut site);
            assert_eq!(recorded.check(&site), is_new);
        }
    }
    assert!(
        withheld > 500 && kept > 400 && swapped > 2,
        "{withheld} withheld, {kept} kept, {swapped} swapped"
    );
}

/// Each thing that an opening asks of the disk for the swap fails once, or from then on for good. The other volumes are served;
/// when the disk is good again the swap is done: by upkeep, by the next connection, or by the next opening.
#[test]
fn a_stuck_swap_withholds_one_volume() {
    let mut recorded = recorded(103);
    let boundaries = std::mem::take(&mut recorded.boundaries);
    let decided = moments(&boundaries, |text| text.contains("aside_"));
    let kinds = [
        FaultKind::NameError,
        FaultKind::DirectorySyncError,
        FaultKind::WriteError,
        FaultKind::SyncError,
        FaultKind::ReadError,
    ];
    let places = ["/store/seeds", "/store/copies", "/store/volumes/disk", "/store/volumes"];
    let (mut by_upkeep, mut by_connection, mut by_opening, mut at_once) = (0, 0, 0, 0);
    let mut turn = 0;
    for moment in decided.into_iter().step_by(3) {
        for kind in kinds {
            for place in places {
                // Of all volumes: only what renames inside it make durable, behind the opening's own look at it.
                let is_shared = place == "/store/volumes";
                if is_shared && kind != FaultKind::DirectorySyncError {
                    continue;
                }
                for nth in 1 + u64::from(is_shared)..16 {
                    turn += 1;
                    let when = if turn % 2 == 0 { When::Nth(nth) } else { When::From(nth) };
                    let disk = died(moment);
                    let before = struck(&disk);
                    disk.inject(Fault::new(kind, when).on(place));
                    let clock = recorded.pair.b.clock.clone();
                    let mut site = open(disk, &clock).unwrap_or_else(|error| {
                        panic!("{kind:?} {when:?} on {place} closes the store: {error}")
                    });
                    if struck(&site.disk) == before {
                        break;
                    }
                    if !is_shared {
                        is_beside_served(&site);
                    }
                    site.disk.clear_faults();
                    let failed = site.store().failed();
                    if failed.iter().any(|(_, error)| error.to_string().contains("cannot take the place")) {
                        let error = site.store().volume(NAME).err().unwrap();
                        assert!(error.hint_text().is_some(), "{error:?}");
                        match turn % 3 {
                            0 => {
                                clock.advance(RETRY_NS);
                                assert!(site.store().maintain().is_empty());
                                by_upkeep += 1;
                            }
                            1 => {
                                std::mem::swap(&mut recorded.pair.b, &mut site);
                                recorded.pair.feeding = Default::default();
                                let ended = recorded.pair.connect(Trouble::Nothing, &mut |_| {});
                                assert_eq!(ended.fault, None, "{kind:?} {when:?} on {place}");
                                std::mem::swap(&mut recorded.pair.b, &mut site);
                                by_connection += 1;
                            }
                            _ => {
                                recorded.reopen(&mut site);
                                by_opening += 1;
                            }
                        }
                        assert!(
                            recorded.check(&site),
                            "{kind:?} {when:?} on {place}: it is the old copy still"
                        );
                    } else {
                        at_once += 1;
                    }
                    recorded.reopen(&mut site);
                    assert!(recorded.check(&site), "{kind:?} {when:?} on {place}: it is the old copy again");
                    is_beside_served(&site);
                }
            }
        }
    }
    let counts = format!(
        "{by_upkeep} by upkeep, {by_connection} by a connection, {by_opening} by an opening, {at_once} at once"
    );
    println!("{counts}");
    assert!(by_upkeep > 5 && by_connection > 5 && by_opening > 5, "{counts}");
}

fn struck(disk: &SimDisk) -> u64 {
    let counts = disk.counts();
    counts.name_errors
        + counts.directory_sync_errors
        + counts.write_errors
        + counts.sync_errors
        + counts.read_errors
}

/// The same while the store is open: the decision itself, and the steps behind it, meet a disk that refuses. Either copy is there
/// whole, the other volumes are served, and the next connection ends it.
#[test]
fn a_disk_that_refuses_while_the_copy_is_finished() {
    let (mut undone, mut withheld, mut through) = (0, 0, 0);
    for kind in
        [FaultKind::NameError, FaultKind::DirectorySyncError, FaultKind::WriteError, FaultKind::SyncError]
    {
        for place in ["/store/seeds", "/store/copies", "/store/volumes/disk"] {
            for (nth, lasts) in (1..8).flat_map(|nth| [(nth, false), (nth, true)]) {
                let mut pair = Pair::behind(107);
                let options = CreateOptions { segment_bytes: 1 << 20, ..CreateOptions::new(1 << 20) };
                write(&pair.b.store().create_volume(BESIDE, &options, None).unwrap(), 5, b"of somebody else");
                let old = states(&pair.b.volume());
                pair.change(109, 3);
                pair.ask(None);
                let before = struck(&pair.b.disk);
                let when = if lasts { When::From(nth) } else { When::Nth(nth) };
                pair.b.disk.inject(Fault::new(kind, when).on(place));
                let what = format!("{kind:?} {when:?} on {place}");
                let ended = pair.connect(Trouble::Nothing, &mut |_| {});
                let is_struck = struck(&pair.b.disk) > before;
                is_beside_served(&pair.b);
                match (pair.b.store().volume(NAME), pair.b.aside()) {
                    (Err(error), _) => {
                        let is_stuck = error.to_string().contains("cannot take the place");
                        assert!(error.hint_text().is_some() || !is_stuck, "{what}: {error:?}");
                        assert!(ended.fault.is_some(), "{what}: {error:?}");
                        withheld += u64::from(is_stuck);
                    }
                    // The old copy could not be opened under its new name, this time.
                    (Ok(_), None) if !pair.b.store().failed().is_empty() => through += 1,
                    (Ok(volume), None) => {
                        assert!(states(&volume) == old, "{what}");
                        undone += 1;
                    }
                    (Ok(_), Some(aside)) => {
                        assert!(states(&aside) == old, "{what}");
                        through += 1;
                    }
                }
                pair.b.disk.clear_faults();
                if nth % 2 == 0 {
                    pair.b.store = None;
                    pair.b = Site::open(pair.b.disk.crash_power(nth), pair.b.clock.clone());
                    pair.feeding = Default::default();
                }
                for _ in 0..3 {
                    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
                    if ended.fault.is_none() && pair.b.store().failed().is_empty() {
                        break;
                    }
                    // What a volume that could not be opened, or whose journal failed, needs.
                    pair.b.store = None;
                    pair.b = Site::open(pair.b.disk.crash_process(), pair.b.clock.clone());
                    pair.feeding = Default::default();
                }
                pair.check_equal();
                assert!(states(&pair.b.aside().unwrap()) == old, "{what}");
                is_beside_served(&pair.b);
                if !is_struck {
                    break;
                }
            }
        }
    }
    println!("{undone} undone, {withheld} withheld, {through} through");
    assert!(
        undone > 3 && withheld > 3 && through > 3,
        "{undone} undone, {withheld} withheld, {through} through"
    );
}
