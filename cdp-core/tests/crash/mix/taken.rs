//! Files that are taken away, or cut, behind the store's back, in the middle of a life. Whoever asks then gets the exact answer or a
//! clear refusal: never other bytes, never zeros in the place of data; and `verify` does not call good what is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::Error;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::verify::verify;
use cdp_core::volume::{Health, Volume};

use super::world::World;
use crate::harness::check::read_blocks;
use crate::harness::model::Edit;
use crate::harness::rig;
use crate::harness::workload::content;
use crate::harness::{Model, Outcome, wrap};

/// So many states of each volume are looked at.
const STATES_PER_LOOK: u64 = 6;
/// Where lives write mostly.
const FRONT_BLOCKS: u64 = 44;
const BACK_BLOCKS: u64 = 8;
/// What is taken, by the ends of names. (Of segments those that are sealed: of the others nobody knows that they were there.)
const KINDS: [&str; 9] =
    [".seg", ".run", ".fold", ".0000", ".sums", "/base.map", "/history", "/mark", "/looked"];

/// How often what was done.
#[derive(Default, Clone, Debug)]
pub struct Taken {
    pub files: BTreeMap<&'static str, u64>,
    pub exact: u64,
    pub refused: u64,
    pub unopened: u64,
    pub read_only: u64,
    pub written: u64,
}

impl Taken {
    pub fn add(&mut self, other: &Taken) {
        for (kind, count) in &other.files {
            *self.files.entry(kind).or_default() += count;
        }
        self.exact += other.exact;
        self.refused += other.refused;
        self.unopened += other.unopened;
        self.read_only += other.read_only;
        self.written += other.written;
    }
}

/// What there is to take: files by kind.
fn victims(world: &World, disk: &SimDisk) -> Vec<(&'static str, String)> {
    let mut sealed = Vec::new();
    for volume in world.store().volumes() {
        let list = volume.part_list();
        let parts = list.iter().filter(|part| part.frozen.get().is_some_and(|end| end.seal_hash.is_some()));
        sealed.extend(parts.map(|part| part.segment.path.display().to_string()));
    }
    let kind_of = |path: &String| {
        let kind = KINDS.into_iter().find(|kind| path.ends_with(kind))?;
        let is_known = kind != ".seg" || path.contains("/trash/") || sealed.contains(path);
        (path.contains("/volumes/") || path.contains("/trash/")).then_some(())?;
        is_known.then(|| (kind, path.clone()))
    };
    disk.paths().iter().filter_map(kind_of).collect()
}

/// One store from which files were taken.
struct Robbed {
    disk: SimDisk,
    store: Option<Store>,
    models: BTreeMap<String, Model>,
    taken: Vec<String>,
    chance: Chance,
    tally: Taken,
}

/// Takes files from the world as it stands; the world itself goes on as if nothing had happened.
pub fn rob(world: &World, seed: u64) -> Outcome<Taken> {
    let mut chance = Chance::new(seed);
    let disk = world.disk.snapshot().mount(seed).crash_process();
    let models = world.members.iter().map(|(name, member)| (name.clone(), member.model.clone()));
    let mut robbed = Robbed {
        disk,
        store: None,
        models: models.collect(),
        taken: Vec::new(),
        chance: Chance::new(seed ^ 0x0b),
        tally: Taken::default(),
    };
    let horizons: BTreeMap<String, Lsn> =
        world.store().volumes().iter().map(|volume| (volume.name().to_owned(), volume.oldest().0)).collect();
    let had_power_cut = chance.percent(30);
    if had_power_cut {
        robbed.lose_power(world, &mut chance)?;
    }
    let victims = victims(world, &robbed.disk);
    if chance.percent(40) {
        robbed.open()?;
    }
    for _ in 0..1 + chance.below(2) {
        // Kinds first: there are many more runs than maps.
        let kind = chance.pick(&KINDS);
        let of_kind: Vec<&String> = victims.iter().filter(|one| one.0 == kind).map(|one| &one.1).collect();
        if of_kind.is_empty() {
            continue;
        }
        let path = of_kind[chance.below(of_kind.len() as u64) as usize];
        let is_cut = chance.percent(25);
        let len = robbed.disk.contents(path).map_or(0, |bytes| bytes.len() as u64);
        let done = match is_cut {
            true => robbed.disk.truncate(path, chance.below(len.max(1))),
            false => robbed.disk.disappear(path),
        };
        if done.is_ok() {
            robbed.taken.push(format!("{path}{}", if is_cut { ", cut" } else { "" }));
            *robbed.tally.files.entry(kind).or_default() += 1;
        }
    }
    let outcome = robbed.live(Some(&horizons).filter(|_| !had_power_cut));
    let Robbed { taken, tally, .. } = robbed;
    outcome.map(|()| tally).map_err(|broken| format!("{broken}\n  taken (seed {seed}): {taken:?}"))
}

impl Robbed {
    fn open(&mut self) -> Outcome {
        self.store = None;
        self.disk = self.disk.crash_process();
        let clock = SimClock::new(self.chance.bits());
        self.store = Some(rig::open(&self.disk, &clock, &wrap::nothing())?);
        Ok(())
    }

    /// The power goes first; what is there then has to stay.
    fn lose_power(&mut self, world: &World, chance: &mut Chance) -> Outcome {
        self.disk = self.disk.crash_power(chance.bits());
        self.open()?;
        let store = self.store.take().expect("open");
        for volume in store.volumes() {
            let (name, tip) = (volume.name(), volume.tip_lsn());
            let flushed = world.members[name].flushed;
            ensure!(tip >= flushed, "{name}: LOST: {tip:?} is the newest, {flushed:?} was promised");
            self.models.insert(name.to_owned(), world.members[name].model.cut(tip));
        }
        drop(store);
        self.disk = self.disk.crash_process();
        Ok(())
    }

    fn live(&mut self, horizons: Option<&BTreeMap<String, Lsn>>) -> Outcome {
        let was_open = self.store.is_some();
        if was_open {
            self.look(None).map_err(|broken| format!("{broken}; taken from under an open store"))?;
            self.write_on()?;
            self.look(None).map_err(|broken| format!("{broken}; taken from under a store that goes on"))?;
        }
        self.open()?;
        self.look(horizons.filter(|_| !was_open)).map_err(|broken| format!("{broken}; opened again"))?;
        self.write_on()?;
        self.look(None).map_err(|broken| format!("{broken}; written to after that"))?;
        self.open()?;
        self.look(None).map_err(|broken| format!("{broken}; and opened again"))
    }

    /// Whatever is answered counts.
    fn write_on(&mut self) -> Outcome {
        let store = self.store.as_ref().expect("open");
        for volume in store.volumes() {
            let model = self.models.get_mut(volume.name()).ok_or("nobody made it")?;
            for _ in 0..10 {
                let number = self.chance.bits();
                let edit = match number % 5 {
                    0 => Edit::Trim { offset: number % 40 * BLOCK_BYTES, len: 3 * BLOCK_BYTES },
                    _ => Edit::Write { offset: number % 160_000, data: content(number, 5000) },
                };
                let mut results = Vec::new();
                let change: Change<'_> = edit.change();
                volume.apply(SessionId(1), &[change], &mut results);
                if let Ok(lsn) = results.remove(0) {
                    model.push(lsn, &edit)?;
                    self.tally.written += 1;
                }
            }
            let _ = volume.flush();
        }
        for _ in 0..4 {
            let _errors: Vec<Error> = store.tick().into_iter().chain(store.maintain()).collect();
        }
        for volume in store.volumes() {
            let model = self.models.get_mut(volume.name()).ok_or("nobody made it")?;
            if volume.health() == Health::Good {
                model.settle(&volume)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, horizons: Option<&BTreeMap<String, Lsn>>) -> Outcome {
        let store = self.store.as_ref().expect("open");
        self.tally.unopened += store.failed().len() as u64;
        let mut refused = Vec::new();
        for volume in store.volumes() {
            let name = volume.name();
            let model = self.models.get(name).ok_or_else(|| format!("nobody made {name}"))?;
            let (tip, oldest) = (volume.tip_lsn(), volume.oldest().0);
            let is_good = volume.health() == Health::Good;
            self.tally.read_only += u64::from(!is_good);
            ensure!(tip <= model.tip(), "{name}: {tip:?} is there, {:?} was asked for", model.tip());
            ensure!(
                !is_good || tip == model.tip(),
                "{name}: LOST without a word: {tip:?} of {:?}",
                model.tip()
            );
            let known = horizons.and_then(|horizons| horizons.get(name)).copied().unwrap_or(oldest);
            ensure!(!is_good || oldest <= known, "{name}: LOST: the horizon is {oldest:?}, it was {known:?}");
            let mut states = vec![tip, oldest];
            let span = (tip.0 + 1).saturating_sub(oldest.0).max(1);
            states.extend((0..STATES_PER_LOOK).map(|_| Lsn(oldest.0 + self.chance.below(span))));
            let mut count = 0;
            let everywhere = self.chance.percent(10);
            let own = is_exact(&*volume, model, tip, everywhere)
                .map_err(|broken| format!("{name}, live: {broken}"))?;
            count += own;
            for lsn in states.into_iter().filter(|lsn| *lsn <= tip && volume.keeps(*lsn)) {
                count += match View::open(volume.clone(), lsn, "a test") {
                    Err(_) => 1,
                    Ok(view) => is_exact(&view, model, lsn, everywhere)
                        .map_err(|broken| format!("{name} at {lsn:?}: {broken}"))?,
                };
                self.tally.exact += 1;
            }
            self.tally.refused += u64::from(count > 0);
            if count > 0 {
                refused.push(volume.clone());
            }
        }
        refused.iter().try_for_each(|volume| is_told(store, volume))
    }
}

/// Every block is that of the state, or refused; how many are. Looks everywhere, or where lives write.
fn is_exact(device: &dyn Device, model: &Model, lsn: Lsn, everywhere: bool) -> Outcome<u64> {
    let (size, state) = (device.size_bytes(), model.state(lsn));
    ensure!(size == state.bytes, "WRONG: {size} bytes, it had {}", state.bytes);
    let blocks = size / BLOCK_BYTES;
    let places = match everywhere {
        true => vec![(0, blocks)],
        false => vec![(0, FRONT_BLOCKS), (blocks - BACK_BLOCKS, blocks)],
    };
    let wrong = |lba: u64| Err(format!("WRONG BYTES: block {lba} is not what was written"));
    let mut refused = 0;
    for (first, end) in places {
        if let Ok(bytes) = read_blocks(device, first, end - first) {
            match state.differs(first as usize, &bytes) {
                Some(lba) => return wrong(lba as u64),
                None => continue,
            }
        }
        for lba in first..end {
            match read_blocks(device, lba, 1) {
                Ok(bytes) if state.block_is(lba as usize, &bytes) => {}
                Ok(_) => return wrong(lba),
                Err(_) => refused += 1,
            }
        }
    }
    Ok(refused)
}

/// What is refused is not called good: by the volume's own `verify`, or that of what it reads from.
fn is_told(store: &Store, volume: &Arc<Volume>) -> Outcome {
    let mut at = volume.clone();
    loop {
        match verify(&at, &mut |_, _| Ok(())) {
            Err(_) => return Ok(()),
            Ok(found) if found.damage_count > 0 => return Ok(()),
            Ok(_) => {}
        }
        let parent = at.parent().map(|parent| parent.id);
        let Some(parent) = parent else { break };
        match store.volumes().into_iter().find(|other| other.identity().id == parent) {
            Some(volume) => at = volume,
            // In the trash: nobody can verify it there.
            None => return Ok(()),
        }
    }
    Err(format!("{}: something is refused, and verify calls it good", volume.name()))
}
