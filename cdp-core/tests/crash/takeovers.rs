//! A second site that takes over with a newest state whose history it never got, crashed at every boundary.

use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::Kind;
use cdp_core::history::point::Timeline;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, Fault, FaultKind, PowerLoss, SimDisk, When};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::COALESCED_DIR;
use cdp_core::volume::epoch::Elsewhere;
use cdp_core::volume::role::Role;
use cdp_core::volume::rollback::Back;
use cdp_core::volume::shown::Shown;
use cdp_core::volume::stream::LogReader;

use crate::clones::{each_crash, fill, fresh, open};
use crate::coalesced::{Outage, bring_newest, content, is_exact};
use crate::harness::Outcome;
use crate::harness::check::read_blocks;

/// A second site that shows the newest state, and has history up to `end`.
fn shows_newest(outage: &Outage, seed: u64, end: Lsn) -> (SimDisk, Store, Arc<Volume>) {
    let (disk, store) = fresh(seed, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, outage.from);
    bring_newest(outage, &volume);
    outage.append(&volume, end);
    assert!(volume.coalesced().is_some());
    (disk, store, volume)
}

fn promote(store: &Store, outage: &Outage) -> cdp_core::error::Result<()> {
    let volume = store.volume("disk")?;
    let done = store.promote("disk", &[(volume, outage.to)], EpochNumber(0), "the newest state")?;
    assert_eq!(done[0].to, outage.to);
    Ok(())
}

/// The record at which the newest state is whole.
fn whole_at(volume: &Volume) -> Lsn {
    let course = volume.course();
    let gap = course.gaps().last().expect("there is a gap");
    assert!(gap.is_whole);
    gap.end.unwrap().0
}

fn shown(volume: &Arc<Volume>, lsn: Lsn) -> Outcome<Vec<u8>> {
    content(&View::open(volume.clone(), lsn, "a test").map_err(|error| error.to_string())?)
}

/// What everybody who has the history of the second site is shown of it: up to `end` what it was, then nothing, then exactly the
/// newest state.
fn shows_the_gap(outage: &Outage, volume: &Arc<Volume>, end: Lsn) -> Outcome {
    let whole = whole_at(volume);
    for lsn in [Lsn(2), outage.from, end] {
        ensure!(shown(volume, lsn)? == outage.content(lsn), "{lsn:?} is not what it was");
    }
    for lsn in end.0 + 1..whole.0 {
        let refused = shown(volume, Lsn(lsn));
        ensure!(refused.as_ref().is_err_and(|says| says.contains("gap")), "lsn:{lsn} is shown");
        ensure!(content(&View::new(volume.clone(), Lsn(lsn))).is_err(), "lsn:{lsn} is shown, not pinned");
    }
    ensure!(shown(volume, whole)? == outage.content(outage.to), "half of the newest state, at {whole:?}");
    let (at, ends) = (outage.wanted().at, volume.timestamp_of(end).unwrap());
    ensure!(volume.lsn_at(ends).is_ok_and(|lsn| lsn == end), "{:?}", volume.lsn_at(ends));
    for later in [at, Timestamp(at.0 + 1), volume.timestamp_of(whole).unwrap()] {
        ensure!(volume.lsn_at(later).is_ok_and(|lsn| lsn == whole), "{:?}", volume.lsn_at(later));
    }
    let between = Timestamp(at.0 - 1);
    ensure!(between <= ends || volume.lsn_at(between).is_err(), "{:?}", volume.lsn_at(between));
    Ok(())
}

fn has_taken_over(outage: &Outage, volume: &Arc<Volume>, end: Lsn) -> Outcome {
    ensure!(volume.role() == Role::Primary, "it is {:?}", volume.role());
    ensure!(volume.epochs().newest().start == end.next(), "{:?}", volume.epochs());
    ensure!(content(&**volume)? == outage.content(outage.to), "it does not go on from the newest state");
    ensure!(volume.tip_lsn() == whole_at(volume), "something came behind it");
    ensure!(volume.coalesced_state().is_none(), "{:?}", volume.coalesced_state());
    shows_the_gap(outage, volume, end)
}

/// The first site burnt down while the second was being filled. It has the newest state, and is told to go on from that; then it
/// dies as well. Whoever opens its disk later must get that state whole, or find the replica that shows it; never some
/// blocks of it among older ones.
#[test]
fn every_boundary_of_going_on_from_the_newest_state() {
    let (mut replicas, mut primaries, mut crashes) = (0, 0, 0);
    // How many records of the outage are here; with a rollback the last state is smaller than the one three records before.
    for (seed, rolled_back, missing) in
        [(1, false, None), (2, false, Some(3)), (3, false, Some(1)), (4, true, Some(3)), (5, true, Some(1))]
    {
        let outage = Outage::new(seed, rolled_back);
        let end = missing.map_or(outage.from, |missing| Lsn(outage.to.0 - missing));
        let (disk, store, volume) = shows_newest(&outage, seed + 20, end);
        disk.record_boundaries(true);
        let difference = volume.difference_to_newest().unwrap().unwrap();
        assert!(difference.records > 1 && difference.bytes > 0, "{difference:?}");
        promote(&store, &outage).unwrap();
        has_taken_over(&outage, &volume, end).unwrap();
        let tip = volume.tip_lsn();
        assert!(tip.0 - end.0 <= difference.records + 2, "{difference:?}, and {tip:?}");
        drop(volume);
        let mut chance = Chance::new(seed);
        crashes += each_crash(&disk, seed, |disk, store| {
            ensure!(store.failed().is_empty(), "{:?}", store.failed());
            let volume = store.volume("disk").unwrap();
            let promoted = volume.is_primary();
            if promoted {
                primaries += 1;
                has_taken_over(&outage, &volume, end)?;
            } else {
                replicas += 1;
                ensure!(volume.tip_lsn() == end, "{:?} {:?}", volume.tip_lsn(), volume.role());
                ensure!(is_exact(&outage, &volume)?, "the newest state is lost");
            }
            if chance.percent(70) {
                return Ok(());
            }
            // Once it was seen it stays; and who is told again does it.
            drop((volume, store));
            let disk = match chance.percent(50) {
                true => disk.crash_process(),
                false => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            };
            let store = open(&disk, chance.bits());
            let volume = store.volume("disk").unwrap();
            ensure!(volume.is_primary() == promoted, "promoted {promoted}, and then not so");
            if !promoted {
                promote(&store, &outage).map_err(|error| error.to_string())?;
            }
            has_taken_over(&outage, &volume, end)?;
            fill(&volume, 0x55, 7, 3);
            volume.grow(2 * volume.size_bytes()).map_err(|error| error.to_string())?;
            let mut expected = outage.content(outage.to);
            expected[7 * 4096..10 * 4096].fill(0x55);
            expected.resize(volume.size_bytes() as usize, 0);
            ensure!(content(&*volume)? == expected, "what lay behind its end came back");
            Ok(())
        });
        let dir = store.volume("disk").unwrap().dir().join(COALESCED_DIR);
        let files: Arc<dyn cdp_core::io::Files> = Arc::new(disk.clone());
        assert!(files.list(&dir).is_err(), "{} is left behind", dir.display());
    }
    println!("takeovers: {crashes} crashes, {replicas} left replicas, {primaries} primaries");
    assert!(replicas > 20 && primaries > 100);
}

/// The opening that finishes it is itself cut off, again and again, in the middle of the blocks: it must get there all the same.
#[test]
fn finishing_can_be_cut_off() {
    let outage = Outage::new(6, false);
    let end = Lsn(outage.from.0 + 1);
    let (disk, store, volume) = shows_newest(&outage, 36, end);
    disk.record_boundaries(true);
    promote(&store, &outage).unwrap();
    let all = volume.tip_lsn();
    drop((volume, store));
    let outer = disk.take_boundaries();
    disk.record_boundaries(false);
    let mut chance = Chance::new(6);
    let mut cut_off = 0;
    for boundary in outer.iter().step_by(5) {
        let disk = boundary.snapshot.mount(12).crash_power_with(PowerLoss::seeded(chance.bits()));
        disk.record_boundaries(true);
        drop(open(&disk, chance.bits()));
        for boundary in disk.take_boundaries().iter().step_by(7) {
            let disk = boundary.snapshot.mount(13).crash_power_with(PowerLoss::seeded(chance.bits()));
            let store = open(&disk, chance.bits());
            let volume = store.volume("disk").unwrap();
            cut_off += 1;
            let outcome = match volume.is_primary() {
                true => has_taken_over(&outage, &volume, end),
                false => is_exact(&outage, &volume).map(|shows| assert!(shows)),
            };
            outcome.unwrap_or_else(|broken| panic!("{:?} of {}: {broken}", boundary.what, boundary.path));
            // It goes on behind what is there, and does not begin anew each time.
            assert!(volume.tip_lsn() <= all, "{:?}", volume.tip_lsn());
        }
    }
    println!("{cut_off} openings cut off");
    assert!(cut_off > 20);
}

/// One in which more was written than a small journal holds.
fn long_outage() -> Outage {
    let (_disk, store) = fresh(7, &["disk"]);
    let primary = store.volume("disk").unwrap();
    fill(&primary, 1, 0, 4);
    fill(&primary, 2, 2, 4);
    let from = primary.tip_lsn();
    for round in 0..12 {
        fill(&primary, 7, round * 10, 9);
    }
    Outage { to: primary.tip_lsn(), store, primary, from }
}

/// There is no room for it: nothing is begun, the newest state stays in view, and history can go on.
#[test]
fn a_full_journal_is_said_before_anything_is_done() {
    let outage = long_outage();
    let (_disk, store, volume) = shows_newest(&outage, 37, outage.from);
    let segment = outage.origin().segment_bytes;
    let policy = |segments: u64| format!("at most {}, at cap block", segments * segment);
    let cap = (volume.journal_bytes() / segment).max(3);
    volume.set_retention(retention::parse(&policy(cap)).unwrap()).unwrap();
    let refused = promote(&store, &outage).expect_err("there is no room");
    assert_eq!(refused.kind(), Kind::NoSpace, "{refused}");
    assert!(refused.to_string().contains("nothing was done"), "{refused}");
    assert!(matches!(volume.role(), Role::Replica { .. }));
    assert!(is_exact(&outage, &volume).unwrap(), "the newest state is not shown any more");
    let end = outage.from;
    volume.set_retention(retention::parse(&policy(cap + 40)).unwrap()).unwrap();
    promote(&store, &outage).unwrap();
    has_taken_over(&outage, &volume, end).unwrap();
}

/// The first site comes back: both histories part where the second one's ended, what only the first had is kept beside, and in the
/// end both disks are the same, byte for byte. On the way it never shows half of the state, and cannot be promoted to it.
#[test]
fn the_first_site_comes_back_and_follows() {
    for (seed, rolled_back, missing) in [(8, false, 3), (9, true, 3), (10, true, 1)] {
        let outage = Outage::new(seed, rolled_back);
        let end = Lsn(outage.to.0 - missing);
        let (_disk, store, second) = shows_newest(&outage, seed + 40, end);
        promote(&store, &outage).unwrap();
        let whole = second.tip_lsn();
        fill(&second, 0x66, 30, 4);
        let latest = content(&*second).unwrap();
        let tail = outage.content(outage.primary.tip_lsn());
        let at = outage.wanted().at;

        let other = Elsewhere { site: "site-b".to_owned(), epochs: second.epochs(), tip: second.tip_lsn() };
        outage.primary.hear_of(&other.epochs.newest(), "the second site").unwrap();
        let first_store = &outage.store;
        let done = first_store.resync("disk", &other).unwrap();
        let orphan = done.orphan.expect("the first site had more");
        assert_eq!(content(&*orphan).unwrap(), tail, "what only the first site had");
        let first = first_store.volume("disk").unwrap();
        assert_eq!(first.tip_lsn(), end);
        let mut reader = LogReader::behind(&second, end).unwrap();
        while first.tip_lsn() < second.tip_lsn() {
            first.append_foreign(&reader.read(1, 1).unwrap()).unwrap();
            first.flush().unwrap();
            let tip = first.tip_lsn();
            if tip >= whole {
                continue;
            }
            let shown = Shown::of(first.clone());
            assert_eq!(shown.tip().0, tip);
            let view = View::of(first.clone(), &shown, tip, "a test");
            assert!(view.is_err_and(|error| error.to_string().contains("gap")), "{tip:?} is shown");
            assert!(first.refuse_if_held().is_err(), "a client gets half of it");
            assert!(first.lsn_at(at).is_err());
            let refused = first_store.promote("disk", &[(first.clone(), tip)], EpochNumber(0), "latest");
            assert!(refused.is_err(), "it goes on from half of it");
            assert!(matches!(first.role(), Role::Replica { .. }));
        }
        assert_eq!(content(&*first).unwrap(), latest, "seed {seed}");
        let whole_view = View::open(first.clone(), whole, "a test").unwrap();
        let whole_there = View::open(second.clone(), whole, "a test").unwrap();
        assert_eq!(content(&whole_view).unwrap(), content(&whole_there).unwrap());
    }
}

/// Right after the second site took over somebody set it back to the state that it went on from. The first site gets the end of that
/// state and the rollback to it at once, and must not take the target for half of a state.
#[test]
fn the_end_of_the_gap_and_a_rollback_to_it_come_together() {
    // Where a segment ends between the two they come one after the other: that is different for each of these.
    for pieces in 1..12 {
        let outage = Outage::new(14, false);
        let end = Lsn(outage.to.0 - 2);
        let (_disk, store, second) = shows_newest(&outage, 54, end);
        promote(&store, &outage).unwrap();
        let whole = second.tip_lsn();
        second.rollback(Back::To(whole), "a test").unwrap();
        let other = Elsewhere { site: "site-b".to_owned(), epochs: second.epochs(), tip: second.tip_lsn() };
        outage.primary.hear_of(&other.epochs.newest(), "the second site").unwrap();
        outage.store.resync("disk", &other).unwrap();
        let first = outage.store.volume("disk").unwrap();
        let records = LogReader::behind(&second, end).unwrap().read(1 << 20, 1000).unwrap();
        let ends = records.iter().position(|record| record.header.lsn == whole).unwrap();
        records[..ends].chunks(pieces).for_each(|piece| first.append_foreign(piece).unwrap());
        first.append_foreign(&records[ends..]).unwrap();
        assert_eq!(first.tip_lsn(), second.tip_lsn());
        assert_eq!(content(&*first).unwrap(), content(&*second).unwrap());
        assert_eq!(shown(&first, whole).unwrap(), shown(&second, whole).unwrap());
        assert!(shown(&first, whole.previous()).is_err_and(|says| says.contains("gap")));
    }
}

/// The second site is lost too before the first has all of the state: the first one goes on from what both had.
#[test]
fn who_has_half_of_it_goes_back_to_before() {
    let outage = Outage::new(11, false);
    let end = Lsn(outage.from.0 + 2);
    let (before, at) = (outage.content(end), outage.wanted().at);
    let (_disk, store, second) = shows_newest(&outage, 51, end);
    promote(&store, &outage).unwrap();
    let other = Elsewhere { site: "site-b".to_owned(), epochs: second.epochs(), tip: second.tip_lsn() };
    outage.primary.hear_of(&other.epochs.newest(), "the second site").unwrap();
    outage.store.resync("disk", &other).unwrap();
    let first = outage.store.volume("disk").unwrap();
    let mut reader = LogReader::behind(&second, end).unwrap();
    first.append_foreign(&reader.read(1 << 20, 3).unwrap()).unwrap();
    first.flush().unwrap();
    outage.store.promote("disk", &[(first.clone(), end)], EpochNumber(0), "lsn").unwrap();
    assert_eq!(content(&*first).unwrap(), before);
    assert!(first.refuse_if_held().is_ok());
    let course = first.course();
    assert!(!course.gaps()[0].is_whole && course.open_gap().is_none());
    assert!(first.lsn_at(at).is_err(), "an older state for an instant that was lost");
    fill(&first, 0x77, 0, 1);
    assert_eq!(content(&*first).unwrap()[..4096], [0x77; 4096]);
}

/// The second site, which took over with a newest state, is lost before the first has all of it; that goes back to before the gap. The
/// second one comes back: what only it had is kept beside, and it follows.
#[test]
fn who_took_over_follows_who_went_back_to_before() {
    let outage = Outage::new(11, false);
    let end = Lsn(outage.from.0 + 2);
    let (before, newest) = (outage.content(end), outage.content(outage.to));
    let (_disk, store, second) = shows_newest(&outage, 51, end);
    promote(&store, &outage).unwrap();
    fill(&second, 0x66, 30, 4);
    let tail = content(&*second).unwrap();
    let whole = whole_at(&second);
    let other = Elsewhere { site: "site-b".to_owned(), epochs: second.epochs(), tip: second.tip_lsn() };
    outage.primary.hear_of(&other.epochs.newest(), "the second site").unwrap();
    outage.store.resync("disk", &other).unwrap();
    let first = outage.store.volume("disk").unwrap();
    let mut reader = LogReader::behind(&second, end).unwrap();
    first.append_foreign(&reader.read(1 << 20, 3).unwrap()).unwrap();
    first.flush().unwrap();
    outage.store.promote("disk", &[(first.clone(), end)], EpochNumber(0), "lsn").unwrap();
    fill(&first, 0x77, 0, 1);
    let other = Elsewhere { site: "site-a".to_owned(), epochs: first.epochs(), tip: first.tip_lsn() };
    second.hear_of(&other.epochs.newest(), "the first site").unwrap();
    drop(second);
    let done = store.resync("disk", &other).expect("the second site cannot follow");
    let orphan = done.orphan.expect("the second site had more");
    assert_eq!(content(&*orphan).unwrap(), tail);
    // It has the gap as its volume had it.
    assert_eq!((whole_at(&orphan), orphan.oldest().0), (whole, end));
    assert_eq!(shown(&orphan, end).unwrap(), before);
    assert!((end.0 + 1..whole.0).all(|lsn| shown(&orphan, Lsn(lsn)).is_err()), "the gap is shown");
    assert_eq!(shown(&orphan, whole).unwrap(), newest);
    let second = store.volume("disk").unwrap();
    let mut reader = LogReader::behind(&first, second.tip_lsn()).unwrap();
    while second.tip_lsn() < first.tip_lsn() {
        second.append_foreign(&reader.read(1 << 20, 16).unwrap()).unwrap();
    }
    assert_eq!(content(&*second).unwrap(), content(&*first).unwrap());
}

/// A block of the newest state that is only there.
const BAD: u64 = 2;

/// As the newest state, but for that block, which is an error.
fn all_but_bad(outage: &Outage, device: &dyn Device) -> Outcome {
    let expected = outage.content(outage.to);
    ensure!(device.size_bytes() == expected.len() as u64, "it has {} bytes", device.size_bytes());
    for (lba, block) in expected.chunks(4096).enumerate() {
        let found = read_blocks(device, lba as u64, 1);
        match lba as u64 == BAD {
            true => ensure!(found.is_err(), "what could not be read is {:?}", found.map(|bytes| bytes[0])),
            false => ensure!(found.is_ok_and(|found| found == block), "block {lba} is not what it was"),
        }
    }
    Ok(())
}

/// The first site burnt down, and one block of what the second one shows cannot be read any more. It goes on with all the rest, a
/// crash or not, and never with something else in the place of that block.
#[test]
fn one_bad_block_of_the_newest_state_costs_that_block() {
    let outage = Outage::new(14, false);
    let (disk, store, volume) = shows_newest(&outage, 81, Lsn(outage.from.0 + 2));
    let image = volume.dir().join(COALESCED_DIR).join("base.0000");
    disk.make_unreadable(&image, BAD * BLOCK_BYTES, 1).unwrap();
    disk.record_boundaries(true);
    promote(&store, &outage).unwrap();
    all_but_bad(&outage, &*volume).unwrap();
    assert!(volume.is_primary() && volume.tip_lsn() == whole_at(&volume));
    drop(volume);
    let mut primaries = 0;
    each_crash(&disk, 14, |_, store| {
        ensure!(store.failed().is_empty(), "{:?}", store.failed());
        let volume = store.volume("disk").unwrap();
        if !volume.is_primary() {
            ensure!(volume.coalesced().is_some(), "it is {:?}, and shows nothing", volume.role());
            return Ok(());
        }
        primaries += 1;
        ensure!(volume.tip_lsn() == whole_at(&volume), "{:?}", volume.tip_lsn());
        all_but_bad(&outage, &*volume)?;
        // Written again, it is a block like others.
        fill(&volume, 0x55, BAD, 1);
        let mut expected = outage.content(outage.to);
        expected[BAD as usize * 4096..][..4096].fill(0x55);
        ensure!(content(&*volume)? == expected, "written again, it is not what was written");
        Ok(())
    });
    assert!(primaries > 100);
}

/// The files of the newest state are gone, or the disk gives nothing of them for a while, from any moment on. Whoever is told to go on
/// from it says so before anything is done, and shows what it showed; or says why it is between two states, keeps what makes the
/// newer one whole, and gets there when the disk is back, or to the older one.
#[test]
fn a_disk_that_gives_nothing_of_the_newest_state_is_said() {
    let (mut refused, mut between, mut done) = (0, 0, 0);
    for nth in 1..80 {
        let outage = Outage::new(15, false);
        let end = Lsn(outage.from.0 + 2);
        let (disk, store, volume) = shows_newest(&outage, 82, end);
        // Its checksums cannot be read: nobody can tell what it has.
        disk.inject(Fault::new(FaultKind::ReadError, When::From(nth)).on("coalesced/base"));
        let said = promote(&store, &outage);
        if volume.is_primary() {
            done += 1;
            continue;
        }
        let error = said.expect_err("it was said to be done");
        assert_eq!(volume.drop_coalesced().is_err(), !volume.is_replica());
        disk.clear_faults();
        if volume.is_replica() {
            refused += 1;
            assert!(error.to_string().contains("nothing was done"), "{error}");
            assert_eq!(volume.tip_lsn(), end);
            continue;
        }
        between += 1;
        assert!(volume.is_being_promoted() && volume.is_half_taken_over());
        if between % 2 == 0 {
            store.settle_promotion().unwrap();
            has_taken_over(&outage, &volume, end).unwrap();
            continue;
        }
        let asked = [(volume.clone(), end)];
        disk.inject(Fault::new(FaultKind::ReadError, When::From(1)).on("coalesced/base"));
        assert!(store.settle_promotion().is_err());
        store.promote("disk", &asked, EpochNumber(0), "the history").unwrap();
        assert!(volume.is_primary() && content(&*volume).unwrap() == outage.content(end));
        assert!(volume.coalesced_state().is_none());
    }
    println!("{refused} refused, {between} between two states, {done} done");
    assert!(refused > 4 && between > 4);
}

/// Behind the site that took over is another replica. Its line is slow: it is shown the newest state, and gets some records of the
/// gap. Then the second site is lost, too: the third one goes on from what it shows.
#[test]
fn who_shows_a_newest_state_over_half_of_a_gap_goes_on_from_it() {
    let outage = Outage::new(13, false);
    let end = Lsn(outage.from.0 + 2);
    let (before, at) = (outage.content(end), outage.wanted().at);
    let (_disk, store, second) = shows_newest(&outage, 71, end);
    let (disk, third_store) = fresh(72, &[]);
    let third = third_store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&third, end);
    promote(&store, &outage).unwrap();
    fill(&second, 0x66, 30, 4);
    let latest = content(&*second).unwrap();
    let later = Outage { to: second.tip_lsn(), store, primary: second, from: end };
    bring_newest(&later, &third);
    let behind = Lsn(end.0 + 3);
    later.append(&third, behind);
    assert!(third.coalesced().is_some() && third.course().open_gap().is_some());
    disk.record_boundaries(true);
    third_store.promote("disk", &[(third.clone(), later.to)], EpochNumber(0), "the newest state").unwrap();
    let looks = |third: &Arc<Volume>| -> Outcome {
        ensure!(content(&**third)? == latest, "it does not go on from what it showed");
        ensure!(third.lsn_at(at).is_err(), "there is a state of an instant that it never had");
        ensure!(shown(third, end)? == before, "what lies before both gaps is not what it was");
        let whole = whole_at(third);
        ensure!((end.0 + 1..whole.0).all(|lsn| shown(third, Lsn(lsn)).is_err()), "half of a state is shown");
        ensure!(shown(third, whole)? == latest, "half of the newest state, at {whole:?}");
        Ok(())
    };
    looks(&third).unwrap();
    drop(third);
    each_crash(&disk, 13, |_, store| {
        let third = store.volume("disk").unwrap();
        match third.is_primary() {
            true => looks(&third),
            false => {
                ensure!(third.coalesced().is_some() && third.tip_lsn() == behind, "the newest state is lost");
                Ok(())
            }
        }
    });
}

/// A database on three disks, two of which show newest states: all of them go on, or none, also where the power fails when one has
/// its epoch and the others have not.
#[test]
fn a_group_takes_over_as_one() {
    let outages = [Outage::new(12, false), Outage::new(13, true)];
    let (disk, store) = fresh(52, &["plain"]);
    let plain = store.volume("plain").unwrap();
    fill(&plain, 9, 0, 3);
    plain.demote().unwrap();
    let (names, ends) = (["one", "two"], [outages[0].from, Lsn(outages[1].to.0 - 1)]);
    let mut members = vec![(plain.clone(), plain.tip_lsn())];
    for place in 0..2 {
        let (outage, name) = (&outages[place], names[place]);
        let volume = store.create_replica(name, &outage.origin(), None).unwrap();
        outage.append(&volume, outage.from);
        bring_newest(outage, &volume);
        outage.append(&volume, ends[place]);
        members.push((volume, outage.to));
    }
    disk.record_boundaries(true);
    store.promote("all", &members, EpochNumber(0), "a test").unwrap();
    drop((plain, members, store));
    let (mut replicas, mut primaries) = (0, 0);
    each_crash(&disk, 12, |_, store| {
        ensure!(store.failed().is_empty(), "{:?}", store.failed());
        let promoted = store.volume("plain").unwrap().is_primary();
        *if promoted { &mut primaries } else { &mut replicas } += 1;
        for place in 0..2 {
            let volume = store.volume(names[place]).unwrap();
            match promoted {
                true => has_taken_over(&outages[place], &volume, ends[place])?,
                false => ensure!(is_exact(&outages[place], &volume)?, "the newest state is lost"),
            }
        }
        Ok(())
    });
    println!("{replicas} left replicas, {primaries} primaries");
    assert!(replicas > 20 && primaries > 100);
}

/// Two replicas were shown newest states when the first site was lost. One takes over with its; the other one is told to follow that,
/// and loses power on the way. Nobody may be shown the lost site's state by a replica that follows another history; nor may that state
/// keep the replica from getting there.
#[test]
fn who_follows_another_site_shows_nothing_of_the_lost_one() {
    for (seed, second_has, third_has) in [(12, 2, 0), (17, 0, 2)] {
        let outage = Outage::new(seed, false);
        let (_disk, store, second) = shows_newest(&outage, 61, Lsn(outage.from.0 + second_has));
        let (disk, third_store, third) = shows_newest(&outage, 62, Lsn(outage.from.0 + third_has));
        third.set_source("site-a").unwrap();
        promote(&store, &outage).unwrap();
        fill(&second, 0x66, 30, 4);
        let other = Elsewhere { site: "site-b".to_owned(), epochs: second.epochs(), tip: second.tip_lsn() };
        let follow = |store: &Store| -> Outcome {
            let done = store.resync("disk", &other).map_err(|error| error.to_string())?;
            ensure!(done.common <= second.tip_lsn(), "{:?}", done.common);
            let third = store.volume("disk").unwrap();
            let mut reader = LogReader::behind(&second, third.tip_lsn()).unwrap();
            while third.tip_lsn() < second.tip_lsn() {
                let taken = third.append_foreign(&reader.read(1, 1).unwrap());
                ensure!(taken.is_ok(), "at {:?} of {:?}: {taken:?}", third.tip_lsn(), second.tip_lsn());
            }
            third.flush().unwrap();
            let shown = Shown::of(third.clone());
            let view = View::of(third.clone(), &shown, shown.tip().0, "a test").unwrap();
            ensure!(content(&view)? == content(&*second)?, "`latest` is not the state of who is followed");
            Ok(())
        };
        disk.record_boundaries(true);
        drop(third);
        follow(&third_store).unwrap();
        let (mut before, mut behind) = (0, 0);
        each_crash(&disk, seed, |_, store| {
            let third = store.volume("disk").unwrap();
            let follows = third.source().is_some_and(|source| source.peer == "site-b");
            *if follows { &mut behind } else { &mut before } += 1;
            ensure!(!follows || third.coalesced_state().is_none(), "it shows {:?}", third.coalesced_state());
            drop(third);
            follow(&store)
        });
        println!("{before} crashes before it followed, {behind} behind that");
        assert!(before > 4 && behind > 4);
    }
}

/// A replica that shows a newest state is told to take its records from another one that the same site feeds. It goes on showing
/// that state where it is a record of what now comes, and only there.
#[test]
fn who_is_fed_by_another_replica_shows_what_that_one_has() {
    for has_it in [true, false] {
        let outage = Outage::new(18, false);
        let (_disk, store, volume) = shows_newest(&outage, 63, outage.from);
        volume.set_source("site-a").unwrap();
        let tip = if has_it { outage.to } else { outage.to.previous() };
        let other = |site: &str| Elsewhere { site: site.to_owned(), epochs: volume.epochs(), tip };
        store.resync("disk", &other("site-a")).unwrap();
        assert!(volume.coalesced().is_some(), "nothing changed");
        store.resync("disk", &other("site-b")).unwrap();
        assert_eq!(volume.source().map(|source| source.peer), Some("site-b".to_owned()));
        assert_eq!(volume.coalesced().is_some(), has_it);
    }
}

/// The first site comes back, gets half of the difference, and is gone again. The second one's journal reaches its cap meanwhile, and
/// its oldest history goes, up to what the first one has. Then the second one is restarted. Nobody may see half of the state.
#[test]
fn half_of_a_state_stays_hidden_when_its_epoch_is_folded() {
    let (_disk, store) = fresh(7, &["disk"]);
    let primary = store.volume("disk").unwrap();
    primary.grow(640 * BLOCK_BYTES).unwrap();
    fill(&primary, 1, 0, 4);
    fill(&primary, 2, 2, 4);
    let from = primary.tip_lsn();
    for round in 0..30 {
        fill(&primary, 7, round * 10, 9);
    }
    let outage = Outage { to: primary.tip_lsn(), store, primary, from };
    let (disk, store, volume) = shows_newest(&outage, 37, outage.from);
    let segment = outage.origin().segment_bytes;
    promote(&store, &outage).unwrap();
    let gap = volume.course().gaps()[0];
    let (end, newest) = (gap.end.unwrap().0, outage.content(outage.to));
    // What the first site has acknowledged: three quarters of the records of the gap.
    let acknowledged = Lsn(gap.behind.0 + (end.0 - gap.behind.0) * 3 / 4);
    volume.add_replica("first:1", 0, false).unwrap();
    volume.hold_replica("first:1", acknowledged).unwrap();
    let text = format!("every-write 1h, at most {}B, at cap drop-oldest", 12 * segment);
    volume.set_retention(retention::parse(&text).unwrap()).unwrap();
    for round in 0..400u64 {
        let data = vec![9; 4096];
        let mut results = Vec::new();
        let change = cdp_core::device::Change::Write { offset: (600 + round % 8) * BLOCK_BYTES, data: &data };
        volume.apply(SessionId(1), &[change], &mut results);
        if results.remove(0).is_err() {
            break;
        }
        store.tick();
        store.maintain();
    }
    for _ in 0..100 {
        store.tick();
        store.maintain();
    }
    let hidden = |volume: &Arc<Volume>| -> Vec<u64> {
        let shows = |lsn: &u64| match View::open(volume.clone(), Lsn(*lsn), "a test") {
            Ok(view) => content(&view).is_ok_and(|found| found != newest),
            Err(_) => false,
        };
        (gap.behind.0 + 1..end.0).filter(shows).collect()
    };
    assert_eq!(hidden(&volume), Vec::<u64>::new(), "before the restart");
    volume.flush().unwrap();
    drop((volume, store));
    let store = open(&disk.crash_process(), 5);
    let volume = store.volume("disk").unwrap();
    let seen = hidden(&volume);
    let begin = volume.lsn_at(volume.oldest().1);
    assert!(seen.is_empty(), "half of the newest state is shown at {seen:?}; `start` is {begin:?}");
}

/// There is no room for it. "Nothing was done": neither is the disk full of empty segments now, which no other volume has.
#[test]
fn what_was_refused_for_room_takes_none() {
    let outage = long_outage();
    let (disk, store, volume) = shows_newest(&outage, 37, outage.from);
    let segment = outage.origin().segment_bytes;
    let cap = volume.journal_bytes() / segment + 4;
    let text = format!("at most {}, at cap block", cap * segment);
    volume.set_retention(retention::parse(&text).unwrap()).unwrap();
    // What upkeep makes ahead of its use anyway.
    store.maintain();
    let before = (volume.journal_bytes() / segment, disk.used_bytes() / segment);
    let refused = store
        .promote("disk", &[(volume.clone(), outage.to)], EpochNumber(0), "the newest state")
        .expect_err("there is no room");
    assert_eq!(refused.kind(), Kind::NoSpace, "{refused}");
    for _ in 0..50 {
        store.tick();
        store.maintain();
    }
    let after = (volume.journal_bytes() / segment, disk.used_bytes() / segment);
    assert_eq!(before, after, "segments of the journal, and of the disk");
}
