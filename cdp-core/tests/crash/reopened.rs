//! What somebody has in hand while a volume is closed and its files are opened anew, under the same name or another one:
//! the instance that comes after moves its horizon, folds into the same base and recycles the same segments.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cdp_core::device::{Change, Device};
use cdp_core::error::{Error, Kind};
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::Store;
use cdp_core::store::replicas::{Copied, Origin};
use cdp_core::view::{ThrowAway, View};
use cdp_core::volume::Volume;
use cdp_core::volume::stream::LogReader;
use cdp_core::volume::verify::verify;

use crate::clones::fill;
use crate::harness::check::read_blocks;
use crate::harness::rig::{self, STORE};
use crate::harness::tally::with_seeds;
use crate::harness::{Outcome, Tally, wrap};
use crate::resyncs::elsewhere;

const BLOCKS: u64 = 16;
/// What the volume is made from, in each of its blocks.
const IMAGE: u8 = 0xb0;
const SECOND_NS: u64 = 1_000_000_000;
/// The records behind this many are of the tail that a resync sets aside.
const COMMON: usize = 30;

/// One byte for each block.
type Shown = Vec<u8>;

struct Scene {
    clock: SimClock,
    store: Store,
    /// What the volume shows after each record.
    states: Vec<(Lsn, Shown)>,
}

fn scene(seed: u64) -> Scene {
    let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = rig::open(&disk, &clock, &wrap::nothing()).unwrap();
    let image = vec![IMAGE; (BLOCKS * BLOCK_BYTES) as usize];
    store.create_volume("disk", &rig::options(64 << 10), Some(&mut |base| base.write(0, &image))).unwrap();
    let volume = store.volume("disk").unwrap();
    let mut chance = Chance::new(seed);
    let mut shown = vec![IMAGE; BLOCKS as usize];
    let mut states = Vec::new();
    for byte in 1..=COMMON as u8 + 10 {
        let (first, blocks) = (chance.below(12), 1 + chance.below(4));
        fill(&volume, byte, first, blocks);
        shown[first as usize..(first + blocks) as usize].fill(byte);
        states.push((volume.tip_lsn(), shown.clone()));
        clock.advance(SECOND_NS / 10);
    }
    Scene { clock, store, states }
}

impl Scene {
    fn volume(&self) -> Arc<Volume> {
        self.store.volume("disk").unwrap()
    }

    /// Horizons move as far as they may, and what is behind them goes; whoever takes writes needs its segments.
    fn age(&self) -> Outcome {
        let policy = retention::parse("every-write 1s").map_err(|error| error.to_string())?;
        for volume in self.store.volumes() {
            volume.set_retention(policy.clone()).map_err(|error| error.to_string())?;
        }
        for byte in 0..40 {
            self.clock.advance(SECOND_NS);
            for volume in self.store.volumes().iter().filter(|volume| volume.is_primary()) {
                fill(volume, 0xc0 + byte, BLOCKS + u64::from(byte), 8);
            }
            let errors: Vec<Error> = self.store.tick().into_iter().chain(self.store.maintain()).collect();
            ensure!(errors.is_empty(), "{errors:?}");
        }
        Ok(())
    }
}

/// Just these bytes, or the error that says that they cannot be had here any more. Whether it was that.
fn is_refused(device: &dyn Device, expected: &[u8]) -> Outcome<bool> {
    match read_blocks(device, 0, BLOCKS) {
        Ok(bytes) => {
            let blocks = bytes.chunks(BLOCK_BYTES as usize).zip(expected);
            let wrong = blocks.enumerate().find(|(_, (block, byte))| block.iter().any(|b| b != *byte));
            if let Some((number, (block, byte))) = wrong {
                return Err(format!("WRONG BYTES: block {number} begins with {}, not {byte}", block[0]));
            }
            Ok(false)
        }
        Err(error) if error.kind() == Kind::Closed => Ok(true),
        Err(error) => Err(format!("{error:?}")),
    }
}

fn refused<T>(outcome: Result<T, Error>) -> Outcome<bool> {
    match outcome {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == Kind::Closed => Ok(true),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// What people have open.
struct Kept {
    volume: Arc<Volume>,
    views: Vec<(Arc<View>, Shown)>,
    shared: ThrowAway,
    scratched: Shown,
}

impl Kept {
    fn of(scene: &Scene) -> Kept {
        let volume = scene.volume();
        let view = |at: usize| {
            let (lsn, shown) = &scene.states[at];
            (Arc::new(View::open(volume.clone(), *lsn, "a test").unwrap()), shown.clone())
        };
        let views = [2, 9, 17, 24, COMMON - 1, COMMON + 4, COMMON + 8].map(view).into();
        let (lsn, shown) = &scene.states[5];
        let below = View::open(volume.clone(), *lsn, "a test").unwrap();
        let (files, dir) = (&**scene.store.files(), scene.store.tmp_dir());
        let shared = ThrowAway::new(below, files, &dir, 1 << 20, 77).unwrap();
        let mut results = Vec::new();
        let own = [0xe0; BLOCK_BYTES as usize];
        shared.apply(SessionId(1), &[Change::Write { offset: 0, data: &own }], &mut results);
        results.remove(0).unwrap();
        let mut scratched = shown.clone();
        scratched[0] = 0xe0;
        Kept { volume, views, shared, scratched }
    }

    /// Looks at everything once; whether all of it was refused.
    fn look(&self, log: &mut LogReader) -> Outcome<bool> {
        let mut all = is_refused(&self.shared, &self.scratched)?;
        for (view, shown) in &self.views {
            all &= is_refused(&**view, shown)?;
        }
        let (from, to) = (&self.views[0], &self.views[3]);
        let changes = cdp_core::volume::changed::Changes::between(from.0.clone(), to.0.clone());
        let extents = changes.and_then(|changes| changes.with_content().extents().collect());
        if let Ok(extents) = &extents {
            let extents: &Vec<Extent> = extents;
            let is_told =
                |lba: u64| extents.iter().any(|extent| (extent.start.0..extent.end()).contains(&lba));
            let wrong =
                (0..BLOCKS).find(|lba| is_told(*lba) != (from.1[*lba as usize] != to.1[*lba as usize]));
            ensure!(wrong.is_none(), "WRONG: whether block {wrong:?} changed");
        }
        all &= refused(extents)?;
        all &= refused(log.read(1, 1))?;
        Ok(all)
    }
}

/// Does something to the volume while everything is read on other threads, and ages what is there then.
fn keep_across(
    seed: u64,
    prepare: &dyn Fn(&Scene),
    also: &(dyn Fn(&Scene) -> Outcome + Sync),
    act: &dyn Fn(&Scene) -> Outcome,
) -> Outcome<Scene> {
    let scene = scene(seed);
    prepare(&scene);
    let kept = Kept::of(&scene);
    let (over, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    let log = || LogReader::behind(&kept.volume, scene.states[1].0);
    let logs: Vec<LogReader> = (0..2).map(|_| log().unwrap()).collect();
    let mut last = log().unwrap();
    let until_over = |one: &mut dyn FnMut() -> Outcome| -> Outcome {
        while !over.load(Ordering::Acquire) {
            one()?;
            looks.fetch_add(1, Ordering::Relaxed);
        }
        one()
    };
    std::thread::scope(|scope| {
        let (kept, scene, until_over) = (&kept, &scene, &until_over);
        let mut others: Vec<_> = logs
            .into_iter()
            .map(|mut log| scope.spawn(move || until_over(&mut || kept.look(&mut log).map(drop))))
            .collect();
        // Upkeep that still had the volume in hand, and somebody who checks it.
        others.push(scope.spawn(move || {
            until_over(&mut || {
                if let Err(error) = kept.volume.maintain() {
                    ensure!(error.kind() == Kind::Closed, "{error:?}");
                }
                match verify(&kept.volume, &mut |_, _| Ok(())) {
                    Ok(found) => ensure!(found.damage_count == 0, "{found:?}"),
                    Err(error) => ensure!(error.kind() == Kind::Closed, "{error:?}"),
                }
                Ok(())
            })
        }));
        others.push(scope.spawn(move || until_over(&mut || also(scene))));
        // They are at work.
        while looks.load(Ordering::Relaxed) < 8 && !others.iter().any(|other| other.is_finished()) {
            std::thread::yield_now();
        }
        let acted = act(scene).and_then(|()| scene.age());
        over.store(true, Ordering::Release);
        let others: Vec<Outcome> =
            others.into_iter().map(|other| other.join().expect("it panics on its own")).collect();
        acted.and(others.into_iter().collect::<Outcome>())
    })?;
    ensure!(kept.look(&mut last)?, "something of the closed instance still answers");
    // Nor does it write where another stands now.
    let (old, policy) = (&kept.volume, retention::parse("every-write 9s").map_err(|e| e.to_string())?);
    ensure!(refused(old.set_journal_cap(Some(1 << 30)))?, "its manifest was written");
    ensure!(refused(old.set_retention(policy))?, "its retention was written");
    ensure!(refused(old.keep_proof(scene.states[9].0, true, "fsck"))?, "a proof was written");
    ensure!(refused(View::open(old.clone(), scene.states[9].0, "a test"))?, "a view was opened");
    for volume in scene.store.volumes() {
        let found = verify(&volume, &mut |_, _| Ok(())).map_err(|error| format!("{error:?}"))?;
        ensure!(found.damage_count == 0, "{}: {found:?}", volume.name());
        if !volume.is_primary() && volume.parent().is_none() {
            let (oldest, tip) = (volume.oldest().0, volume.tip_lsn());
            ensure!(oldest > scene.states[2].0, "{} kept {oldest:?} of {tip:?}", volume.name());
        }
    }
    drop(kept);
    Ok(scene)
}

/// A client that reads a replica while that is made anew, or its past, must not be handed what was written later; the checksums
/// of the copy that stepped aside fit what its retention made of it.
#[test]
fn nobody_reads_on_in_a_copy_that_stepped_aside() {
    let mut tally = Tally::default();
    with_seeds("nobody_reads_on_in_a_copy_that_stepped_aside", 1, 3, &mut tally, |seed, _| {
        let reseed = |scene: &Scene| {
            let volume = scene.volume();
            let words = |error: Error| format!("{error:?}");
            volume.demote().map_err(words)?;
            scene.store.plan_reseed("disk", None, None).map_err(words)?;
            let identity = volume.identity();
            let stands = volume.stands_at(volume.tip_lsn()).map_err(words)?;
            let copied = Copied {
                lsn: stands.lsn,
                at: stands.timestamp,
                chain: stands.chain,
                size_bytes: volume.size_bytes(),
            };
            let origin = Origin {
                id: identity.id,
                first_size_bytes: identity.first_size_bytes,
                created: identity.created,
                marker_interval_ns: 0,
                segment_bytes: identity.segment_bytes,
                journal_cap_bytes: None,
                copied: Some(copied),
                epochs: volume.epochs(),
            };
            let mut copy = scene.store.take_copy("disk", &origin).map_err(words)?;
            copy.write(Lba(0), &read_blocks(&*volume, 0, BLOCKS).map_err(words)?).map_err(words)?;
            drop(volume);
            scene.store.finish_copy("disk", copy).map(drop).map_err(words)
        };
        let scene = keep_across(seed, &|_| (), &|_| Ok(()), &reseed)?;
        let newest = &scene.states[scene.states.len() - 1].1;
        ensure!(scene.store.volumes().len() == 2, "the old copy is gone");
        for volume in scene.store.volumes() {
            ensure!(!is_refused(&*volume, newest)?, "{} is closed", volume.name());
        }
        Ok(())
    });
}

/// The site that lost gives up what only it has: a view of the old volume must not show what the winner sends from then on, nor
/// what is folded here.
#[test]
fn nobody_reads_on_in_a_volume_that_was_cut() {
    let mut tally = Tally::default();
    with_seeds("nobody_reads_on_in_a_volume_that_was_cut", 1, 3, &mut tally, |seed, _| {
        let resync = |scene: &Scene| {
            let volume = scene.volume();
            let other = elsewhere(&volume, scene.states[COMMON - 1].0.0, 2);
            drop(volume);
            scene.store.resync("disk", &other).map(drop).map_err(|error| format!("{error:?}"))
        };
        let scene = keep_across(seed, &|_| (), &|_| Ok(()), &resync)?;
        let (common, newest) = (&scene.states[COMMON - 1].1, &scene.states[scene.states.len() - 1].1);
        ensure!(!is_refused(&*scene.volume(), common)?, "the volume is closed");
        let orphan = scene.store.volumes().into_iter().find(|volume| volume.identity().orphan.is_some());
        ensure!(!is_refused(&*orphan.ok_or("no orphan")?, newest)?, "the orphan is closed");
        Ok(())
    });
}

/// Deleting a volume and bringing it back opens it twice anew. Views of it are over; its clones go on through all of it,
/// without an error, and so does one that is being hydrated meanwhile.
#[test]
fn clones_read_on_while_their_parent_comes_and_goes() {
    let mut tally = Tally::default();
    with_seeds("clones_read_on_while_their_parent_comes_and_goes", 1, 3, &mut tally, |seed, _| {
        let clones = std::sync::OnceLock::new();
        let hydrated = std::sync::Once::new();
        let also = |scene: &Scene| {
            // Before anything happens to the parent: nobody waits for less.
            let clones: &Vec<Arc<Volume>> = clones.get().ok_or("no clones yet")?;
            for clone in clones {
                ensure!(!is_refused(&**clone, &scene.states[COMMON].1)?, "{} was refused", clone.name());
            }
            let mut outcome = Ok(());
            hydrated.call_once(|| {
                outcome =
                    clones[1].hydrate(&mut |_, _| Ok(())).map(drop).map_err(|e| format!("hydrating: {e:?}"));
            });
            outcome
        };
        let prepare = |scene: &Scene| {
            let volume = scene.volume();
            let lsn = scene.states[COMMON].0;
            let clone = |name: &str| scene.store.clone_volume(&volume, lsn, name).unwrap();
            let _ = clones.set(vec![clone("clone"), clone("second")]);
        };
        let act = |scene: &Scene| {
            for _ in 0..4 {
                scene.store.delete_volume("disk").map_err(|error| format!("deleting: {error:?}"))?;
                scene.store.undelete_volume("disk").map_err(|error| format!("back: {error:?}"))?;
            }
            Ok(())
        };
        let scene = keep_across(seed, &prepare, &also, &act)?;
        for clone in ["clone", "second"] {
            let clone = scene.store.volume(clone).map_err(|error| error.to_string())?;
            ensure!(!is_refused(&*clone, &scene.states[COMMON].1)?, "{} was refused", clone.name());
        }
        let newest = &scene.states[scene.states.len() - 1].1;
        ensure!(!is_refused(&*scene.volume(), newest)?, "the volume is closed");
        Ok(())
    });
}
