//! One site: its disk, its clock, its store while it is up, and what all of it has to show.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Device, Read};
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, PowerLoss, SimClock, SimDisk};
use cdp_core::store::{OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_replica::receiver::Feeding;

use crate::model::{BLOCKS, Entry, Log, bytes_of};
use crate::onlookers::Onlooker;
use crate::takeovers::Newest;

const STORE: &str = "/store";

/// A volume's copy at this site.
pub struct Copy {
    pub log: Log,
    /// Records that may follow, in this order, of something that was broken off.
    pub pending: Vec<Entry>,
    /// What no power cut may take.
    pub durable: Lsn,
    /// What is there after the death of the process, which has just happened.
    pub staged: Lsn,
    /// A resync was broken off that cuts it there.
    pub cut: Option<Lsn>,
    /// Its removal was broken off: it may be gone or not.
    pub leaving: bool,
    /// A promotion was broken off: whoever finishes it may mark the state before its rollback again.
    pub promoting: bool,
    /// A newest state ahead of the history, of which something is here.
    pub newest: Option<Newest>,
    /// The history at whoever may send one.
    pub bringing: Option<Log>,
    /// The records of a promotion that goes on from it: of those between the first and the last some may not be needed.
    pub taking: Vec<Entry>,
}

impl Copy {
    pub fn new(size: u64) -> Copy {
        Copy {
            log: Log::new(size),
            pending: Vec::new(),
            durable: Lsn::ZERO,
            staged: Lsn::ZERO,
            cut: None,
            leaving: false,
            promoting: false,
            newest: None,
            bringing: None,
            taking: Vec::new(),
        }
    }

    /// The state that a promotion goes on from.
    pub fn goes_on_from(&self, lsn: Lsn) -> &Entry {
        let newest = self.newest.as_ref().filter(|newest| newest.lsn == lsn && lsn > self.log.tip());
        newest.map_or_else(|| self.log.at(lsn), |newest| &newest.entry)
    }
}

/// What was set aside of a losing history, and has to stay.
pub struct Orphan {
    pub name: String,
    pub log: Log,
    pub fork: Lsn,
}

/// An old copy that stepped aside, and has to stay as it was.
pub struct Aside {
    pub name: String,
    pub log: Log,
}

pub struct Site {
    pub name: &'static str,
    pub disk: SimDisk,
    pub clock: SimClock,
    pub store: Option<Arc<Store>>,
    pub feeding: Arc<Feeding>,
    pub copies: BTreeMap<&'static str, Copy>,
    /// What a receiver was about to make a volume of: a crash may leave it or not.
    pub making: BTreeMap<&'static str, Log>,
    pub orphans: Vec<Orphan>,
    pub asides: Vec<Aside>,
    /// What a receiver is about to put in an old copy's place: it is there, or not, after a crash; and, where the disk refuses a
    /// step, some time later.
    pub replacing: BTreeMap<&'static str, Log>,
    /// Histories that a resync, which failed, was about to set aside behind their forks.
    pub parting: BTreeMap<&'static str, (Log, Lsn)>,
    /// What people have open.
    pub views: Vec<Onlooker>,
    /// Without power for so many steps.
    pub dark: u64,
    pub crashes: u64,
}

impl Site {
    pub fn new(name: &'static str, seed: u64) -> Site {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        let mut site = Site {
            name,
            disk,
            clock,
            store: None,
            feeding: Arc::default(),
            copies: BTreeMap::new(),
            making: BTreeMap::new(),
            orphans: Vec::new(),
            asides: Vec::new(),
            replacing: BTreeMap::new(),
            parting: BTreeMap::new(),
            views: Vec::new(),
            dark: 0,
            crashes: 0,
        };
        site.open(&mut Chance::new(seed)).unwrap();
        site
    }

    pub fn volume(&self, name: &str) -> Option<Arc<Volume>> {
        self.store.as_ref()?.volume(name).ok()
    }

    /// Whether somebody asked for a reseed that may take its place.
    pub fn is_to_be_replaced(&self, name: &str) -> bool {
        let plan = self.store.as_ref().and_then(|store| store.seed_plan(name).ok()).flatten();
        plan.is_some_and(|plan| plan.replaces.is_some())
    }

    /// All volumes that have a copy here, in the order of their ids.
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        let mut volumes: Vec<_> = self.copies.keys().filter_map(|name| self.volume(name)).collect();
        volumes.sort_by_key(|volume| volume.identity().id);
        volumes
    }

    pub fn copy(&mut self, name: &str) -> &mut Copy {
        self.copies.get_mut(name).unwrap_or_else(|| panic!("no copy of {name}"))
    }

    pub fn note_durable(&mut self) {
        for volume in self.volumes() {
            let copy = self.copy(volume.name());
            copy.durable = copy.durable.max(volume.durable_lsn().min(copy.log.tip()));
        }
    }

    /// Nothing runs any more, and with the power goes what was not synced.
    pub fn crash(&mut self, chance: &mut Chance, power: bool) {
        self.note_durable();
        self.views.clear();
        self.store = None;
        self.disk.clear_crash();
        self.disk.set_capacity(None);
        self.disk = match power {
            true => self.disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            false => self.disk.crash_process(),
        };
        if !power {
            for copy in self.copies.values_mut() {
                copy.staged = copy.log.tip();
            }
        }
        self.crashes += 1;
    }

    /// Starts it, however often it dies on the way.
    pub fn open(&mut self, chance: &mut Chance) -> Result<(), String> {
        loop {
            let options = OpenOptions { holder: "a test", ..OpenOptions::default() };
            let files = Arc::new(self.disk.clone());
            let opened = Store::open_with(files, Arc::new(self.clock.clone()), Path::new(STORE), &options);
            if self.disk.is_crashed() {
                drop(opened);
                self.disk.clear_crash();
                self.disk = match chance.percent(50) {
                    true => {
                        self.copies.values_mut().for_each(|copy| copy.staged = Lsn::ZERO);
                        self.disk.crash_power_with(PowerLoss::seeded(chance.bits()))
                    }
                    false => self.disk.crash_process(),
                };
                continue;
            }
            let store = opened.map_err(|error| format!("{}: opening: {error:?}", self.name))?;
            if !store.failed().is_empty() {
                return Err(format!("{}: {:?}", self.name, store.failed()));
            }
            self.store = Some(Arc::new(store));
            self.feeding = Arc::default();
            return self.recovered();
        }
    }

    /// After a start: what was durable is there, and nothing that nobody wrote.
    fn recovered(&mut self) -> Result<(), String> {
        let site = self.name;
        self.notice_swaps(true)?;
        self.replacing.clear();
        for (name, source) in std::mem::take(&mut self.making) {
            if let Some(volume) = self.volume(name) {
                let mut copy = Copy::new(source.at(Lsn::ZERO).size);
                copy.log.follow(&source, volume.tip_lsn());
                self.copies.insert(name, copy);
            }
        }
        let volumes: BTreeMap<_, _> = self
            .copies
            .keys()
            .map(|name| (*name, self.store.as_ref().and_then(|s| s.volume(name).ok())))
            .collect();
        self.copies.retain(|name, copy| !std::mem::take(&mut copy.leaving) || volumes[name].is_some());
        for (name, copy) in &mut self.copies {
            let Some(volume) = &volumes[name] else {
                return Err(format!("{site}: {name} is gone"));
            };
            let tip = volume.tip_lsn();
            if copy.cut == Some(tip) && volume.is_replica() {
                copy.log.cut(tip);
                (copy.durable, copy.staged) = (tip, tip);
            }
            copy.cut = None;
            copy.durable = copy.durable.max(std::mem::take(&mut copy.staged));
            if tip < copy.durable {
                return Err(format!(
                    "{site}: {name} stands at {tip:?} after a crash, {:?} was durable",
                    copy.durable
                ));
            }
            copy.log.cut(tip.min(copy.log.tip()));
            let there = (tip.0 - copy.log.tip().0) as usize;
            if std::mem::take(&mut copy.promoting) && copy.pending.len() > 1 {
                while copy.pending.len() < there {
                    copy.pending.insert(1, copy.pending[1 - usize::from(copy.pending.len() < 3)].clone());
                }
            }
            take_pending(copy, volume).map_err(|error| format!("{site}: {name} after a crash: {error}"))?;
            copy.notice_newest(volume).map_err(|error| format!("{site}: {name} after a crash: {error}"))?;
        }
        Ok(())
    }

    /// Where a new copy took an old one's place, the model follows; `died` just now.
    fn notice_swaps(&mut self, died: bool) -> Result<(), String> {
        let site = self.name;
        let Some(store) = self.store.clone() else { return Ok(()) };
        for aside in store.volumes() {
            let Some((of, _)) = aside.name().split_once("-until-") else { continue };
            if self.asides.iter().any(|known| known.name == aside.name()) {
                continue;
            }
            let Some((name, copy)) = self.copies.iter_mut().find(|(name, _)| **name == of) else {
                return Err(format!("{site}: {} stepped aside, of which there was no copy", aside.name()));
            };
            let Some(source) = self.replacing.remove(name) else {
                return Err(format!("{site}: nobody sent what took the place of {}", aside.name()));
            };
            let Ok(volume) = store.volume(name) else {
                return Err(format!("{site}: {} stepped aside, and nothing is in its place", aside.name()));
            };
            // What it had appended, and never acknowledged, may go with the power, but nothing comes that nobody sent.
            let tip = aside.tip_lsn();
            let least = if died { copy.durable.max(copy.staged) } else { copy.log.tip() };
            if tip < least {
                return Err(format!("{site}: {} has {tip:?} of {least:?}", aside.name()));
            }
            take_pending(copy, &aside).map_err(|error| format!("{site}: {}: {error}", aside.name()))?;
            copy.log.cut(tip);
            let mut fresh = Copy::new(source.at(Lsn::ZERO).size);
            fresh.log.follow(&source, volume.tip_lsn());
            let old = std::mem::replace(copy, fresh);
            self.asides.push(Aside { name: aside.name().to_owned(), log: old.log });
        }
        Ok(())
    }

    /// Each old copy that stepped aside shows what it showed.
    pub fn check_asides(&self) -> Result<(), String> {
        for aside in &self.asides {
            let Some(volume) = self.volume(&aside.name) else {
                return Err(format!("{}: {} is gone", self.name, aside.name));
            };
            let (oldest, tip) = (volume.oldest().0, volume.tip_lsn());
            if tip != aside.log.tip() || volume.is_primary() {
                return Err(format!(
                    "{}: {} stands at {tip:?}, not at {:?}",
                    self.name,
                    aside.name,
                    aside.log.tip()
                ));
            }
            for lsn in (oldest.0..=tip.0).map(Lsn).filter(|lsn| volume.keeps(*lsn)) {
                shows(&volume, lsn, aside.log.at(lsn)).map_err(|what| format!("{}: {what}", self.name))?;
            }
        }
        Ok(())
    }

    /// After something was done: its records, and no others, are there.
    pub fn absorb(&mut self) -> Result<(), String> {
        let site = self.name;
        self.notice_swaps(false)?;
        for volume in self.volumes() {
            let name = volume.name();
            let (tip, copy) = (volume.tip_lsn(), self.copies.get_mut(name).expect("of a copy"));
            if tip < copy.log.tip() {
                return Err(format!("{site}: {name} went back to {tip:?} from {:?}", copy.log.tip()));
            }
            take_pending(copy, &volume).map_err(|error| format!("{site}: {name}: {error}"))?;
            copy.notice_newest(&volume).map_err(|error| format!("{site}: {name}: {error}"))?;
        }
        Ok(())
    }

    /// Looks at some states of a copy, or at all of them.
    pub fn check(&self, name: &str, chance: &mut Chance, all: bool) -> Result<u64, String> {
        let Some(volume) = self.volume(name) else { return Ok(0) };
        let copy = &self.copies[name];
        let (tip, oldest) = (volume.tip_lsn(), volume.oldest().0);
        if tip != copy.log.tip() {
            return Err(format!("{}: {name} stands at {tip:?}, not at {:?}", self.name, copy.log.tip()));
        }
        let mut lsns: Vec<Lsn> = match all {
            true => (oldest.0..=tip.0).map(Lsn).collect(),
            false => (0..2).map(|_| Lsn(oldest.0 + chance.below(tip.0 + 1 - oldest.0))).collect(),
        };
        lsns.push(tip);
        let mut seen = 0;
        for lsn in lsns {
            if volume.keeps(lsn) {
                seen += 1;
                shows(&volume, lsn, copy.log.at(lsn)).map_err(|what| {
                    let base = volume.base_point().lsn;
                    let segments: Vec<_> = volume
                        .part_list()
                        .iter()
                        .map(|part| {
                            let fold = if part.segment.fold.is_some() { " fold" } else { "" };
                            format!("{}..{}{fold}", part.segment.header.first_lsn.0, part.last_lsn().0)
                        })
                        .collect();
                    let wrong: Vec<_> = (oldest.0..=tip.0)
                        .filter(|lsn| volume.keeps(Lsn(*lsn)) && shows(&volume, Lsn(*lsn), copy.log.at(Lsn(*lsn))).is_err())
                        .collect();
                    let role = volume.role().word();
                    let turns: Vec<_> = volume.course().turns().iter().map(|turn| format!("{} {:?}", turn.lsn.0, turn.turn)).collect();
                    format!("{}, {role}, {base:?} {oldest:?} to {tip:?}, {segments:?}, {turns:?}, wrong {wrong:?}: {what}", self.name)
                })?;
            }
        }
        let in_time = copy.checks_instants(&volume).and_then(|()| copy.checks_newest(&volume, chance));
        in_time.map_err(|what| format!("{}: {name}, {what}", self.name))?;
        let size = volume.size_bytes();
        if size != copy.log.newest().size && !copy.log.newest().hidden {
            return Err(format!("{}: {name} has {size} bytes", self.name));
        }
        Ok(seen)
    }

    /// Each orphan has exactly what was written behind its fork.
    pub fn check_orphans(&self) -> Result<(), String> {
        for orphan in &self.orphans {
            let Some(volume) = self.volume(&orphan.name) else {
                return Err(format!("{}: {} is gone", self.name, orphan.name));
            };
            let (oldest, tip) = (volume.oldest().0, volume.tip_lsn());
            if oldest > orphan.fork || tip < orphan.log.tip() {
                return Err(format!(
                    "{}: {} has {oldest:?} to {tip:?}, the fork is at {:?} and the tail ends at {:?}",
                    self.name,
                    orphan.name,
                    orphan.fork,
                    orphan.log.tip()
                ));
            }
            for lsn in (oldest.0..=orphan.log.tip().0).map(Lsn).filter(|lsn| volume.keeps(*lsn)) {
                shows(&volume, lsn, orphan.log.at(lsn)).map_err(|what| format!("{}: {what}", self.name))?;
            }
        }
        Ok(())
    }
}

fn take_pending(copy: &mut Copy, volume: &Volume) -> Result<(), String> {
    let tip = volume.tip_lsn();
    let mut pending = std::mem::take(&mut copy.pending).into_iter();
    while copy.log.tip() < tip {
        let next = copy.log.tip().next();
        let entry = match copy.taking.is_empty() {
            true => pending.next(),
            false => copy.taken_next(volume),
        };
        let Some(entry) = entry else {
            return Err(format!("nobody wrote {next:?}"));
        };
        copy.log.push(entry);
    }
    if !copy.log.newest().hidden {
        copy.taking.clear();
    }
    Ok(())
}

/// Whether the state after a record is the one it should be.
pub fn shows(volume: &Arc<Volume>, lsn: Lsn, entry: &Entry) -> Result<(), String> {
    let name = volume.name();
    let opened = View::open(volume.clone(), lsn, "a check");
    if entry.hidden {
        return match opened {
            Err(error) if error.to_string().contains("lies in a gap") => Ok(()),
            Err(error) => Err(format!("{name} at {lsn:?}, of which there is no state: {error:?}")),
            Ok(_) => Err(format!("{name} shows {lsn:?}, which is half of a state")),
        };
    }
    let view = opened.map_err(|error| format!("{name}: {error:?}"))?;
    is_state(&view, name, entry)
}

/// Whether somebody who opened it is shown this state.
pub fn is_state(view: &View, name: &str, entry: &Entry) -> Result<(), String> {
    let lsn = view.lsn();
    let mut bytes = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
    let mut reads = [Read { offset: 0, buffer: &mut bytes, result: Ok(()) }];
    view.read(&mut reads);
    let [read] = reads;
    read.result.map_err(|error| format!("{name} at {lsn:?}: {error:?}"))?;
    let wanted = bytes_of(entry.sectors.iter().copied());
    if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != wanted[*at]) {
        let sector = at / 512;
        let there = u32::from_le_bytes(bytes[sector * 512..sector * 512 + 4].try_into().expect("four bytes"));
        let wanted = entry.sectors[sector];
        return Err(format!("{name} at {lsn:?}: sector {sector} holds {there}, not {wanted}"));
    }
    if view.size_bytes() != entry.size {
        return Err(format!("{name} at {lsn:?} has {} bytes, not {}", view.size_bytes(), entry.size));
    }
    Ok(())
}
