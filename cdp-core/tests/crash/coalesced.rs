//! Newest states that come ahead of the history between, crashed at every boundary.

use std::sync::Arc;

use cdp_core::device::{Change, Content, Device};
use cdp_core::history::point::Timeline;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimDisk};
use cdp_core::store::Store;
use cdp_core::store::replicas::Origin;
use cdp_core::view::{ThrowAway, View};
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::{COALESCED_DIR, CoalescedState, CoalescedWriter, Come, Progress};
use cdp_core::volume::rollback::Back;
use cdp_core::volume::shown::Shown;
use cdp_core::volume::stream::LogReader;

use crate::clones::{each_crash, fill, fresh, open};
use crate::harness::Outcome;
use crate::harness::check::read_blocks;

/// The size before and behind the outage, in blocks.
const BLOCKS: u64 = 520;
const GROWN: u64 = 640;

/// What the first site has, and the two records between which the second one hears nothing.
pub struct Outage {
    pub store: Store,
    pub primary: Arc<Volume>,
    pub from: Lsn,
    pub to: Lsn,
}

fn trim(volume: &Volume, first: u64, blocks: u64) {
    let mut results = Vec::new();
    let (offset, len) = (first * BLOCK_BYTES, blocks * BLOCK_BYTES);
    volume.apply(SessionId(1), &[Change::Trim { offset, len }], &mut results);
    results.remove(0).unwrap();
}

impl Outage {
    /// Overwritten blocks, a short and a long trim, growth, and a rollback to before the outage and behind it.
    pub fn new(seed: u64, rolled_back: bool) -> Outage {
        let (_disk, store) = fresh(seed, &["disk"]);
        let primary = store.volume("disk").unwrap();
        primary.grow(BLOCKS * BLOCK_BYTES).unwrap();
        for round in 0..6u8 {
            fill(&primary, 1 + round, u64::from(round) * 80, 10);
        }
        let old = primary.tip_lsn();
        fill(&primary, 40, 3, 9);
        let from = primary.tip_lsn();
        fill(&primary, 41, 0, 4);
        trim(&primary, 82, 3);
        trim(&primary, 200, 300);
        primary.grow(GROWN * BLOCK_BYTES).unwrap();
        fill(&primary, 42, BLOCKS + 5, 2);
        if rolled_back {
            primary.rollback(Back::To(old), "a test").unwrap();
            fill(&primary, 43, 1, 1);
        }
        let to = primary.tip_lsn();
        fill(&primary, 44, 0, 8);
        Outage { store, primary, from, to }
    }

    pub fn origin(&self) -> Origin {
        let identity = self.primary.identity();
        Origin {
            id: identity.id,
            first_size_bytes: identity.first_size_bytes,
            created: identity.created,
            marker_interval_ns: 0,
            segment_bytes: identity.segment_bytes,
            journal_cap_bytes: None,
            copied: None,
            epochs: self.primary.epochs(),
        }
    }

    pub fn wanted(&self) -> CoalescedState {
        let at = |lsn| self.primary.position_at(lsn).unwrap();
        CoalescedState {
            from: self.from,
            from_chain: at(self.from).chain,
            lsn: self.to,
            at: at(self.to).timestamp,
            chain: at(self.to).chain,
            size_bytes: self.primary.size_at(self.to),
            come: Come::default(),
            progress: Progress::Begun,
        }
    }

    /// The records behind the replica's newest one, up to `to`.
    pub fn append(&self, replica: &Volume, to: Lsn) {
        let mut reader = LogReader::behind(&self.primary, replica.tip_lsn()).unwrap();
        while replica.tip_lsn() < to {
            let mut records = reader.read(4096, 2).unwrap();
            records.retain(|record| record.header.lsn <= to);
            replica.append_foreign(&records).unwrap();
        }
        replica.flush().unwrap();
    }

    pub fn content(&self, lsn: Lsn) -> Vec<u8> {
        content(&View::open(self.primary.clone(), lsn, "a test").unwrap()).unwrap()
    }

    /// What differs, from where the writer stands, with a settlement now and then.
    fn send(&self, writer: &mut CoalescedWriter) {
        let view = View::open(self.primary.clone(), self.to, "a test").unwrap();
        for extent in self.primary.changed(self.from, self.to).unwrap().extents() {
            let extent = extent.unwrap();
            let mut at = extent.start.0.max(writer.come_blocks());
            while at < extent.end() {
                let rest = (extent.end() - at) * BLOCK_BYTES;
                let stretch = view.extents(at * BLOCK_BYTES, rest, 1).unwrap()[0];
                let blocks = stretch.len / BLOCK_BYTES;
                match stretch.content {
                    Content::Data => {
                        writer.write(Lba(at), &read_blocks(&view, at, blocks).unwrap()).unwrap();
                    }
                    _ => writer.write_zeros(Lba(at), blocks).unwrap(),
                }
                at += blocks;
                settle(writer, false);
            }
        }
    }
}

fn settle(writer: &mut CoalescedWriter, all: bool) {
    let settlement = writer.begin_settling(all);
    settlement.carry_out().unwrap();
    writer.note_settled(settlement.come());
}

pub fn content(device: &dyn Device) -> Result<Vec<u8>, String> {
    read_blocks(device, 0, device.size_bytes() / BLOCK_BYTES).map_err(|error| error.to_string())
}

/// Brings the newest state alone.
pub fn bring_newest(outage: &Outage, replica: &Volume) {
    let mut writer = replica.begin_coalesced(&outage.wanted()).unwrap();
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    replica.show_coalesced(writer).unwrap();
}

/// Brings the newest state and then the history, from wherever the replica stands.
fn bring(outage: &Outage, replica: &Volume) {
    let state = replica.coalesced_state();
    let is_behind = replica.tip_lsn() == outage.from;
    if is_behind && state.is_none_or(|state| state.progress == Progress::Begun) {
        bring_newest(outage, replica);
    }
    outage.append(replica, Lsn((outage.from.0 + outage.to.0) / 2));
    outage.append(replica, outage.to);
    replica.maintain().unwrap();
}

/// Exactly the history, and exactly the newest state or nothing of it. Whether that is shown.
pub fn is_exact(outage: &Outage, volume: &Arc<Volume>) -> Outcome<bool> {
    let tip = volume.tip_lsn();
    ensure!((outage.from..=outage.to).contains(&tip), "it ends with {tip:?}");
    for lsn in [Lsn(2), outage.from, tip] {
        let view = View::open(volume.clone(), lsn, "a test").map_err(|error| error.to_string())?;
        ensure!(content(&view)? == outage.content(lsn), "{lsn:?} is not what it was");
    }
    let shown = Shown::of(volume.clone());
    let newest = volume.coalesced();
    ensure!(shown.tip().0 == if newest.is_some() { outage.to } else { tip }, "{:?}", shown.tip());
    for between in tip.0 + 1..outage.to.0 {
        for refused in [
            View::open(volume.clone(), Lsn(between), "a test").err(),
            View::of(volume.clone(), &shown, Lsn(between), "a test").err(),
        ] {
            let Some(refused) = refused else { return Err(format!("lsn:{between} is shown")) };
            let says = refused.to_string();
            ensure!(newest.is_none() || says.contains("filling"), "{says}");
        }
        ensure!(newest.is_none() || shown.timestamp_of(Lsn(between)).is_err(), "lsn:{between} has a time");
    }
    if tip < outage.to {
        ensure!(View::open(volume.clone(), outage.to, "a test").is_err(), "the history has what it has not");
        ensure!(content(&View::new(volume.clone(), outage.to)).is_err(), "the same, not pinned");
        let view = View::of(volume.clone(), &shown, outage.to, "a test");
        ensure!(view.is_ok() == newest.is_some(), "the newest state is {:?}", view.err());
    }
    if newest.is_some() {
        let view =
            View::of(volume.clone(), &shown, outage.to, "a test").map_err(|error| error.to_string())?;
        ensure!(view.lsn() == outage.to && view.is_ahead(), "{:?}", view.lsn());
        ensure!(content(&view)? == outage.content(outage.to), "half of the newest state is shown");
        ensure!(volume.changed(outage.from, outage.to).is_err(), "what changed is told");
    }
    Ok(newest.is_some())
}

/// The second site dies in the middle of catching up after an outage: whoever opens the newest state there must get exactly
/// that, or be told that it is not there; never half of it, never an older one under its name. And the history must be
/// whole in the end, with nothing beside it.
#[test]
fn every_boundary_from_the_first_block_to_the_last_record() {
    let mut met = [0; 4];
    for (seed, rolled_back) in [(1, false), (2, true)] {
        let outage = Outage::new(seed, rolled_back);
        let (disk, store) = fresh(seed + 10, &[]);
        let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
        outage.append(&volume, outage.from);
        disk.record_boundaries(true);
        bring(&outage, &volume);
        drop(volume);
        let mut chance = Chance::new(seed);
        let crashes = each_crash(&disk, seed, |disk, store| {
            let volume = store.volume("disk").unwrap();
            let shows = is_exact(&outage, &volume)?;
            let state = volume.coalesced_state().map(|state| state.progress);
            ensure!(shows == (state == Some(Progress::Whole)), "{state:?}, and it shows {shows}");
            met[match (state, volume.tip_lsn() == outage.to) {
                (None, false) => 0,
                (Some(Progress::Begun), _) => 1,
                (Some(_), _) => 2,
                (None, true) => 3,
            }] += 1;
            if chance.percent(85) {
                return Ok(());
            }
            bring(&outage, &volume);
            ends_well(&outage, disk, store)
        });
        println!("seed {seed}: {crashes} crashes, {met:?}");
        ends_well(&outage, &disk, store).unwrap();
    }
    assert!(met.iter().all(|count| *count > 20), "not all that can happen did: {met:?}");
}

fn ends_well(outage: &Outage, disk: &SimDisk, store: Store) -> Outcome {
    let volume = store.volume("disk").unwrap();
    ensure!(volume.tip_lsn() == outage.to, "{:?}", volume.tip_lsn());
    for lsn in 0..=outage.to.0 {
        let view = View::open(volume.clone(), Lsn(lsn), "a test").map_err(|error| error.to_string())?;
        ensure!(content(&view)? == outage.content(Lsn(lsn)), "lsn:{lsn} is not what it was");
    }
    let dir = volume.dir().join(COALESCED_DIR);
    ensure!(volume.coalesced_state().is_none() && volume.pins().is_empty(), "{:?}", volume.pins());
    let files: Arc<dyn cdp_core::io::Files> = Arc::new(disk.clone());
    ensure!(files.list(&dir).is_err(), "{} is left behind", dir.display());
    drop((volume, store));
    let store = open(disk, 5);
    ensure!(store.volume("disk").unwrap().tip_lsn() == outage.to, "after a restart");
    Ok(())
}

/// Somebody has the newest state open, and a throw-away clone of it, while history arrives and the overlay goes.
#[test]
fn who_has_it_open_reads_on() {
    let outage = Outage::new(3, false);
    let (disk, store) = fresh(13, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, outage.from);
    let mut writer = volume.begin_coalesced(&outage.wanted()).unwrap();
    assert!(volume.begin_coalesced(&outage.wanted()).is_err(), "two at once");
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    assert!(volume.begin_coalesced(&outage.wanted()).is_err(), "it is whole");
    let shown = Shown::of(volume.clone());
    let view = || View::of(volume.clone(), &shown, outage.to, "a test").unwrap();
    let open_view = view();
    let clone = ThrowAway::new(view(), &disk, &store.tmp_dir(), 1 << 20, 1).unwrap();
    let mut results = Vec::new();
    clone.apply(SessionId(1), &[Change::Write { offset: 700, data: &[9; 100] }], &mut results);
    results.remove(0).unwrap();
    let mut expected = outage.content(outage.to);
    let check = || {
        assert!(content(&open_view).unwrap() == outage.content(outage.to));
        // Any alignment, and block status that agrees with what is read.
        let mut at = 0;
        while at < open_view.size_bytes() {
            let stretch = open_view.extents(at, open_view.size_bytes() - at, 3).unwrap()[0];
            let bytes = &outage.content(outage.to)[at as usize..][..stretch.len as usize];
            assert!(stretch.content == Content::Data || bytes.iter().all(|byte| *byte == 0), "at {at}");
            at += stretch.len;
        }
    };
    check();
    outage.append(&volume, outage.to);
    volume.maintain().unwrap();
    assert!(volume.coalesced().is_none());
    check();
    expected[700..800].fill(9);
    assert!(content(&clone).unwrap() == expected);
    assert!(content(&view()).unwrap() == outage.content(outage.to), "from the history now");
    drop((open_view, clone));
    assert!(volume.pins().is_empty(), "{:?}", volume.pins());
}

/// A history that is not the one whose newest state is shown must not arrive under it; and what is damaged is an error,
/// never other bytes.
#[test]
fn another_history_and_rot_are_refused() {
    let outage = Outage::new(4, false);
    let (disk, store) = fresh(14, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, outage.from);
    let other = CoalescedState { chain: cdp_core::format::record::Chain([7; 16]), ..outage.wanted() };
    let mut writer = volume.begin_coalesced(&other).unwrap();
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    let mut reader = LogReader::behind(&outage.primary, outage.from).unwrap();
    let mut records = reader.read(1 << 20, 250).unwrap();
    records.retain(|record| record.header.lsn <= outage.to);
    assert!(volume.append_foreign(&records).is_err());
    assert_eq!(volume.tip_lsn(), outage.from, "something of it was appended");
    assert!(volume.drop_coalesced().unwrap());
    volume.append_foreign(&records).unwrap();
    drop((volume, store));

    let store = open(&disk, 6);
    let volume = store.volume("disk").unwrap();
    assert_eq!(volume.tip_lsn(), outage.to);
    drop((volume, store));
    let (disk, store) = fresh(15, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, outage.from);
    let mut writer = volume.begin_coalesced(&outage.wanted()).unwrap();
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    let files: Arc<dyn cdp_core::io::Files> = Arc::new(disk.clone());
    let image = files.open(&volume.dir().join(COALESCED_DIR).join("base.0000"), true).unwrap();
    let verify = || cdp_core::volume::verify::verify(&volume, &mut |_, _| Ok(())).unwrap();
    let before = verify();
    assert_eq!(before.damage_count, 0, "{before:?}");
    image.write_at(2 * BLOCK_BYTES + 9, &[std::io::IoSlice::new(&[1])]).unwrap();
    let found = verify();
    assert_eq!((found.damage_count, found.bytes), (1, before.bytes), "{found:?}");
    assert_eq!(found.damages[0].extent, Some(Extent { start: Lba(2), blocks: 1 }));
    assert!(found.damages[0].file.ends_with("coalesced/base.0000"), "{found:?}");
    let view = View::of(volume.clone(), &Shown::of(volume.clone()), outage.to, "a test").unwrap();
    assert!(read_blocks(&view, 2, 1).is_err(), "rot is read");
    assert!(read_blocks(&view, 3, 1).is_ok());
    drop((view, volume, store));
    let zeros = files.open(std::path::Path::new("/store/volumes/disk/coalesced/zeros"), true);
    zeros.unwrap().write_at(3, &[std::io::IoSlice::new(&[1])]).unwrap();
    let store = open(&disk, 7);
    let volume = store.volume("disk").unwrap();
    assert!(volume.coalesced().is_none(), "zeros at a place that nobody told");
    let found = cdp_core::volume::verify::verify(&volume, &mut |_, _| Ok(())).unwrap();
    assert!(found.damage_count > 0, "verify does not tell");
    assert!(volume.notes().last_error.unwrap().contains("not shown"));
    bring(&outage, &volume);
    drop(volume);
    ends_well(&outage, &disk, store).unwrap();
}

/// A journal that cannot hold the outage must not be stuck with it for ever: the newest state gives way, and history goes
/// on.
#[test]
fn a_full_journal_gives_the_newest_state_up() {
    let (_disk, first) = fresh(20, &["disk"]);
    let primary = first.volume("disk").unwrap();
    fill(&primary, 1, 0, 4);
    let from = primary.tip_lsn();
    for round in 0..120u8 {
        fill(&primary, round | 1, u64::from(round % 8), 4);
    }
    let outage = Outage { to: primary.tip_lsn(), store: first, from, primary };
    let (disk, store) = fresh(21, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    let policy = format!("at most {}, at cap drop-oldest", 6 * outage.origin().segment_bytes);
    volume.set_retention(retention::parse(&policy).unwrap()).unwrap();
    outage.append(&volume, from);
    let mut writer = volume.begin_coalesced(&outage.wanted()).unwrap();
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    let mut reader = LogReader::behind(&outage.primary, from).unwrap();
    let mut gave_up = false;
    while volume.tip_lsn() < outage.to {
        let records = reader.read(16 << 10, 4).unwrap();
        volume.append_foreign(&records).unwrap();
        volume.flush().unwrap();
        volume.maintain().unwrap();
        if !gave_up && volume.coalesced().is_none() {
            gave_up = true;
            let state = volume.coalesced_state().unwrap();
            assert_eq!(state.progress, Progress::GivenUp);
            let again = volume.begin_coalesced(&CoalescedState { from: volume.tip_lsn(), ..state });
            assert!(again.is_err(), "it comes again and again");
            assert!(volume.notes().last_error.unwrap().contains("given up"));
        }
    }
    assert!(gave_up);
    volume.maintain().unwrap();
    assert!(volume.coalesced_state().is_none());
    assert!(content(&*volume).unwrap() == outage.content(outage.to));
    drop((volume, store));
    open(&disk, 1).volume("disk").unwrap();
}

/// A trim of a TiB during the outage is one row beside the blocks, however large the volume is.
#[test]
fn a_trim_of_a_tebibyte_is_one_run() {
    let (_disk, first) = fresh(30, &["disk"]);
    let primary = first.volume("disk").unwrap();
    primary.grow(3 << 40).unwrap();
    fill(&primary, 5, 10, 2);
    fill(&primary, 6, (2 << 40) / BLOCK_BYTES, 2);
    let from = primary.tip_lsn();
    trim(&primary, 1, (2 << 40) / BLOCK_BYTES);
    fill(&primary, 7, (1 << 40) / BLOCK_BYTES, 1);
    let outage = Outage { to: primary.tip_lsn(), store: first, from, primary };
    let (disk, store) = fresh(31, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, from);
    let mut writer = volume.begin_coalesced(&outage.wanted()).unwrap();
    outage.send(&mut writer);
    assert_eq!(writer.state().come.zero_runs, 2);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    drop((volume, store));
    let store = open(&disk, 8);
    let volume = store.volume("disk").unwrap();
    let view = View::of(volume.clone(), &Shown::of(volume.clone()), outage.to, "a test").unwrap();
    for (block, byte) in [
        (0, 0),
        (10, 0),
        ((1 << 40) / BLOCK_BYTES, 7),
        ((2 << 40) / BLOCK_BYTES, 0),
        ((2 << 40) / BLOCK_BYTES + 1, 6),
    ] {
        assert_eq!(read_blocks(&view, block, 1).unwrap()[0], byte, "block {block}");
    }
}

/// On a disk without a byte left, giving the newest state up is what makes room: it must not need some first.
#[test]
fn a_full_disk_gives_the_newest_state_up() {
    let outage = Outage::new(4, false);
    let (disk, store) = fresh(22, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&volume, outage.from);
    let mut writer = volume.begin_coalesced(&outage.wanted()).unwrap();
    outage.send(&mut writer);
    writer.end();
    settle(&mut writer, true);
    volume.show_coalesced(writer).unwrap();
    let used = disk.used_bytes();
    disk.set_capacity(Some(used));
    disk.record_boundaries(true);
    assert!(volume.give_up_coalesced().unwrap());
    assert_eq!(volume.coalesced_state().unwrap().progress, Progress::GivenUp);
    assert!(disk.used_bytes() < used, "nothing was freed");
    drop((volume, store));
    for boundary in disk.take_boundaries() {
        for power in [false, true] {
            let disk = boundary.snapshot.mount(23);
            let disk = if power { disk.crash_power(24) } else { disk.crash_process() };
            let store = open(&disk, 25);
            let volume = store.volume("disk").unwrap();
            is_exact(&outage, &volume).unwrap();
            bring(&outage, &volume);
            drop(volume);
            ends_well(&outage, &disk, store).unwrap();
        }
    }
}
