//! The losing site comes back: its tail is set aside and cut, crashed at every boundary.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::format::epoch::Epoch;
use cdp_core::format::record::Chain;
use cdp_core::history::epochs::Epochs;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimDisk};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::epoch::Elsewhere;
use cdp_core::volume::role::Role;
use cdp_core::volume::rollback::Back;

use crate::clones::{content, each_crash, fill, fresh, open};
use crate::harness::Outcome;
use crate::harness::rig::marker;

/// What a volume shows at each of its records, with their timestamps and names.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Shown {
    states: BTreeMap<u64, (Vec<u8>, u64)>,
    names: Vec<(u64, String)>,
}

impl Shown {
    fn of(volume: &Arc<Volume>) -> Shown {
        let states = (volume.oldest().0.0..=volume.tip_lsn().0)
            .map(|lsn| {
                let at = volume.timestamp_of(Lsn(lsn)).unwrap().0;
                (lsn, (content(&View::new(volume.clone(), Lsn(lsn))), at))
            })
            .collect();
        let names =
            volume.named_markers().into_iter().map(|(marker, _)| (marker.lsn.0, marker.name)).collect();
        Shown { states, names }
    }

    fn part(&self, from: u64, through: u64) -> Shown {
        let states = self.states.range(from..=through).map(|(lsn, state)| (*lsn, state.clone())).collect();
        let names = self.names.iter().filter(|(lsn, _)| (from..=through).contains(lsn)).cloned().collect();
        Shown { states, names }
    }
}

/// The other site was promoted behind `fork`, of which this one says which chain value it has.
pub fn elsewhere(volume: &Arc<Volume>, fork: u64, number: u32) -> Elsewhere {
    let chain = volume.stands_at(Lsn(fork)).unwrap().chain;
    let mut epochs = volume.epochs().through(Lsn(fork));
    let epoch = Epoch { number: EpochNumber(number), id: 0xe1, start: Lsn(fork + 1), chain };
    assert!(epochs.push(epoch));
    Elsewhere { site: "site-b".to_owned(), epochs, tip: Lsn(fork + 20) }
}

struct Scene {
    disk: SimDisk,
    store: Option<Store>,
    before: Shown,
    fork: u64,
    // Clones and what they show, by name.
    clones: BTreeMap<&'static str, Vec<u8>>,
}

/// A volume with some segments, a tail with markers, a rollback in it that goes before the fork if `deep`; clones of the
/// common part and of the tail, one of them deleted, one of a clone.
fn scene(seed: u64, deep: bool, sealed: bool) -> Scene {
    let (disk, store) = fresh(seed, &["disk"]);
    let volume = store.volume("disk").unwrap();
    let mut chance = Chance::new(seed);
    let mut byte = 0;
    let mut write = |volume: &Arc<Volume>, count: u64| {
        for _ in 0..count {
            byte += 1;
            fill(volume, byte, chance.below(12), 1 + chance.below(4));
        }
    };
    write(&volume, 9);
    volume.mark(&marker("common")).unwrap();
    write(&volume, 5);
    let fork = volume.tip_lsn().0;
    write(&volume, 2);
    volume.mark(&marker("lost-1")).unwrap();
    volume.keep_proof(volume.tip_lsn(), true, "fsck").unwrap();
    write(&volume, 3);
    if deep {
        volume.rollback(Back::To(Lsn(fork - 4)), "lsn").unwrap();
        write(&volume, 2);
    }
    volume.rollback(Back::To(Lsn(fork + 2)), "lsn").unwrap();
    write(&volume, 9);
    volume.grow((1 << 20) + 4 * BLOCK_BYTES).unwrap();
    write(&volume, 3);
    volume.mark(&marker("lost-2")).unwrap();
    if sealed {
        for _ in 0..8 {
            volume.maintain().unwrap();
        }
    }
    let tip = volume.tip_lsn();
    let below = store.clone_volume(&volume, Lsn(fork), "below").unwrap();
    let above = store.clone_volume(&volume, Lsn(tip.0 - 3), "above").unwrap();
    let gone = store.clone_volume(&volume, Lsn(tip.0 - 1), "gone").unwrap();
    fill(&above, 0xa0, 3, 1);
    let grandchild = store.clone_volume(&above, above.tip_lsn(), "grandchild").unwrap();
    fill(&grandchild, 0xa1, 4, 1);
    let clones = [("below", &below), ("above", &above), ("gone", &gone), ("grandchild", &grandchild)]
        .map(|(name, volume)| (name, content(&**volume)))
        .into();
    drop((below, above, gone, grandchild));
    store.delete_volume("gone").unwrap();
    Scene { before: Shown::of(&volume), disk, store: Some(store), fork, clones }
}

fn orphan_of(store: &Store, id: VolumeId) -> Vec<Arc<Volume>> {
    let is_it = |volume: &Arc<Volume>| volume.identity().orphan.is_some_and(|orphan| orphan.of == id);
    store.volumes().into_iter().filter(is_it).collect()
}

impl Scene {
    /// Nothing that was written is gone: it is in the volume, or in exactly one orphan; and every clone shows what it did.
    fn check(&self, store: &Store) -> Outcome<bool> {
        ensure!(store.failed().is_empty(), "{:?}", store.failed());
        let volume = store.volume("disk").map_err(|error| error.to_string())?;
        let tip = *self.before.states.keys().last().unwrap();
        let shown = Shown::of(&volume);
        let orphans = orphan_of(store, volume.identity().id);
        ensure!(orphans.len() <= 1, "{} orphans", orphans.len());
        let is_cut = volume.tip_lsn().0 == self.fork;
        if is_cut {
            ensure!(shown == self.before.part(0, self.fork), "the common part is not what it was");
            ensure!(matches!(volume.role(), Role::Replica { .. }), "it is {:?}", volume.role());
            ensure!(orphans.len() == 1, "the tail is gone");
            ensure!(volume.proofs().unwrap().is_empty(), "a proof of the tail");
            volume.refuse_unless_replica().map_err(|error| error.to_string())?;
        } else {
            ensure!(shown == self.before, "it shows something else, uncut");
            ensure!(volume.role() != Role::Primary || orphans.is_empty(), "it takes writes again");
        }
        for orphan in &orphans {
            let from = orphan.oldest().0.0;
            ensure!(from <= self.fork, "the orphan begins at {from}");
            let shown = Shown::of(orphan);
            let expected = self.before.part(from, tip);
            ensure!(shown.states == expected.states, "the orphan shows something else");
            let names: Vec<_> = expected.names.into_iter().filter(|(lsn, _)| *lsn > from).collect();
            ensure!(shown.names == names, "the orphan has {:?}, not {names:?}", shown.names);
            ensure!(orphan.size_bytes() == (1 << 20) + 4 * BLOCK_BYTES, "{} bytes", orphan.size_bytes());
            let proofs = orphan.proofs().map_err(|error| error.to_string())?;
            ensure!(proofs.len() == 1, "{} proofs came along", proofs.len());
        }
        for (name, expected) in self.clones.iter().filter(|(name, _)| **name != "gone") {
            let clone = store.volume(name).map_err(|error| error.to_string())?;
            ensure!(content(&*clone) == *expected, "the clone {name} shows something else");
        }
        Ok(is_cut)
    }

    fn resync(&self, store: &Store) -> Outcome {
        let volume = store.volume("disk").map_err(|error| error.to_string())?;
        if volume.tip_lsn().0 == self.fork {
            return Ok(());
        }
        let other = elsewhere(&volume, self.fork, 2);
        drop(volume);
        let done = store.resync("disk", &other).map_err(|error| format!("{error:?}"))?;
        ensure!(done.common == Lsn(self.fork) && done.orphan.is_some(), "resynced at {:?}", done.common);
        Ok(())
    }
}

/// A primary was cut off, written to by people who did not know, and comes back. A power cut in the middle of setting
/// their work aside must not lose any of it, show it twice, or leave a journal that refuses to open.
#[test]
fn every_boundary_of_a_resync() {
    let mut crashes = 0;
    let (mut cut, mut uncut) = (0, 0);
    for (seed, deep, sealed) in [(1, false, false), (2, true, true), (3, false, true)] {
        let mut scene = scene(seed, deep, sealed);
        let live = scene.store.as_ref().unwrap();
        assert_eq!(scene.check(live), Ok(false));
        scene.disk.record_boundaries(true);
        scene.resync(live).unwrap();
        let mut chance = Chance::new(seed);
        crashes += each_crash(&scene.disk, seed, |disk, store| {
            if scene.check(&store)? {
                cut += 1
            } else {
                uncut += 1
            }
            if chance.percent(25) {
                // Going on from wherever it was cut off.
                scene.resync(&store)?;
                ensure!(scene.check(&store)?, "not cut at the second try");
                fill(&orphan_of(&store, store.volume("disk").unwrap().identity().id)[0], 0xee, 0, 1);
                store.undelete_volume("gone").map_err(|error| error.to_string())?;
                let gone = store.volume("gone").map_err(|error| error.to_string())?;
                ensure!(content(&*gone) == scene.clones["gone"], "the deleted clone shows something else");
                drop(gone);
                drop(store);
                let store = open(&disk.crash_process(), chance.bits());
                ensure!(store.failed().is_empty(), "{:?}", store.failed());
            }
            Ok(())
        });
        assert_eq!(scene.check(live), Ok(true), "seed {seed}");
        for _ in 0..4 {
            assert!(live.maintain().is_empty() && live.tick().is_empty());
        }
        assert_eq!(scene.check(live), Ok(true), "seed {seed}, after upkeep");
        scene.store.take().unwrap().close().unwrap();
        let store = open(&scene.disk, 5);
        assert_eq!(scene.check(&store), Ok(true), "seed {seed}, opened again");
        let found = cdp_core::volume::verify::verify(&store.volume("disk").unwrap(), &mut |_, _| Ok(()));
        assert_eq!(found.unwrap().damage_count, 0);
        for orphan in orphan_of(&store, store.volume("disk").unwrap().identity().id) {
            let found = cdp_core::volume::verify::verify(&orphan, &mut |_, _| Ok(())).unwrap();
            assert_eq!(found.damage_count, 0, "{found:?}");
            assert_eq!(orphan.name(), "disk-orphan-1");
        }
    }
    println!("resyncs: {crashes} crashes, {cut} found it cut, {uncut} not yet");
    assert!(cut > 50 && uncut > 50);
}

/// What resync must not do: give up a history that won, take one for lost that only looks like it, or guess.
#[test]
fn a_resync_that_would_lose_something_is_refused() {
    let (_, store) = fresh(7, &["disk"]);
    let volume = store.volume("disk").unwrap();
    for byte in 1..9 {
        fill(&volume, byte, byte as u64, 2);
    }
    let before = Shown::of(&volume);
    let first =
        Elsewhere { site: "site-b".to_owned(), epochs: Epochs::first(volume.identity().id), tip: Lsn(8) };
    let other = elsewhere(&volume, 5, 2);
    // The same history: nothing to give up.
    let same = store.resync("disk", &first).unwrap();
    assert!(same.orphan.is_none() && volume.is_primary());
    // A store that was brought back from a copy.
    let mut epochs = Epochs::first(volume.identity().id);
    assert!(epochs.push(Epoch { chain: Chain([1; 16]), ..other.epochs.newest() }));
    let forged = store.resync("disk", &Elsewhere { epochs, ..other.clone() }).err().unwrap();
    assert_eq!(forged.kind(), Kind::Refused);
    assert!(volume.is_primary(), "nothing was done");
    // This site won, and then there are two winners.
    volume.demote().unwrap();
    store.promote("disk", &[(volume.clone(), Lsn(8))], EpochNumber(1), "latest").unwrap();
    for wrong in [&first, &other] {
        let error = store.resync("disk", wrong).err().unwrap();
        assert_eq!(error.kind(), Kind::Refused, "{error:?}");
        assert!(error.hint_text().is_some());
    }
    assert!(volume.is_primary());
    assert_eq!(Shown::of(&volume).part(0, 8), before);
    // One that has nothing of its own beyond becomes a replica as it is, with whoever reads from it.
    let tip = volume.tip_lsn();
    let drained = elsewhere(&volume, tip.0, 9);
    let done = store.resync("disk", &drained).unwrap();
    assert!(done.orphan.is_none() && done.common == tip);
    assert!(matches!(volume.role(), Role::Replica { .. }));
    let mut results = Vec::new();
    volume.apply(SessionId(1), &[Change::Trim { offset: 0, len: 4096 }], &mut results);
    assert!(results[0].is_err());
}

/// What was held for others was a record that only the losing site had. Once that is cut away nothing above it is held: a copy begins
/// with a state that is there, and of what comes instead nothing goes before whoever had acknowledged the old one has it.
#[test]
fn nothing_is_held_above_a_cut() {
    let (disk, store) = fresh(8, &["disk"]);
    let volume = store.volume("disk").unwrap();
    for byte in 1..9 {
        fill(&volume, byte, byte as u64, 2);
    }
    let address = "site-c:1";
    volume.add_replica(address, 0, false).unwrap();
    // It had something, and lost it.
    volume.hold_replica(address, Lsn(2)).unwrap();
    assert_eq!(volume.hold_for_copy(address).unwrap(), volume.tip_lsn());
    volume.add_replica("site-d:1", 0, false).unwrap();
    volume.hold_replica("site-d:1", Lsn(7)).unwrap();
    let other = elsewhere(&volume, 5, 2);
    drop(volume);
    store.resync("disk", &other).unwrap();
    let held = |store: &Store| -> Vec<Lsn> {
        store.volume("disk").unwrap().replicas().iter().map(|replica| replica.held).collect()
    };
    assert_eq!(held(&store), [Lsn(5), Lsn(5)]);
    let volume = store.volume("disk").unwrap();
    assert_eq!(volume.tip_lsn(), Lsn(5));
    store.promote("disk", &[(volume.clone(), Lsn(5))], EpochNumber(2), "a test").unwrap();
    for byte in 1..9 {
        fill(&volume, byte, byte as u64, 2);
    }
    drop((volume, store));
    let store = open(&disk.crash_process(), 8);
    assert_eq!(held(&store), [Lsn(5), Lsn(5)], "of another history");
    let volume = store.volume("disk").unwrap();
    assert_eq!(volume.hold_for_copy(address).unwrap(), Lsn(5));
    assert_eq!(volume.hold_for_reseed(address, Some(Lsn(5))).unwrap(), Lsn(5));
}
