//! One simulated file: what a process sees, what the disk has, and the effects that lie between them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::chance::Chance;
use super::image::{Image, PAGE_BYTES, SECTOR_BYTES};

/// Something done to a file that no sync has covered yet.
#[derive(Clone)]
pub(super) struct Effect {
    /// Place in the order of everything that happened on the disk.
    pub order: u64,
    change: Change,
    fate: Fate,
    /// Reached the disk already, though the sync that was to do it never returned.
    stored: bool,
}

#[derive(Clone)]
enum Change {
    /// Whole sectors as the page cache held them after the write: a sector is written out with all that is in
    /// it, so a later small write can never arrive without an earlier one beside it.
    Sectors {
        first: u64,
        data: Arc<[u8]>,
    },
    /// The file became at least so long.
    Extend(u64),
    SetLen(u64),
    Reserve {
        offset: u64,
        len: u64,
    },
}

/// What becomes of a write on the way to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    /// The disk says yes and stores nothing.
    Lost,
    /// The disk stores it in another place.
    Misdirected {
        inode: u64,
        sector: u64,
    },
}

/// Sectors that the disk put into the wrong place.
pub(super) struct Stray {
    pub inode: u64,
    pub offset: u64,
    pub data: Arc<[u8]>,
}

/// How much of one effect a power loss leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Whole,
    Nothing,
    Torn,
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub cached: Image,
    pub durable: Image,
    pub unsynced: Vec<Effect>,
    /// The cache shows something that the disk does not have and no unsynced effect explains.
    pub cache_lies: bool,
    /// Sectors that cannot be read until they are written again.
    pub unreadable: BTreeSet<u64>,
    /// Place of its newest change in the order of everything that happened: its ctime.
    pub changed: u64,
    /// The same as the disk has it. Only a sync carries it over, so that a power loss may leave new bytes under an old
    /// ctime.
    pub durable_changed: u64,
}

impl Inode {
    /// Puts bytes into the page cache.
    pub fn write(&mut self, offset: u64, data: &[u8], fate: Fate, order: &mut u64) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        let longer = end > self.cached.len() || end > self.durable.len();
        self.cached.write(offset, data);
        self.cached.extend(end);
        let first = offset / SECTOR_BYTES;
        let sectors = end.div_ceil(SECTOR_BYTES) - first;
        let mut whole = vec![0; (sectors * SECTOR_BYTES) as usize];
        self.cached.read(first * SECTOR_BYTES, &mut whole);
        for sector in offset.div_ceil(SECTOR_BYTES)..end / SECTOR_BYTES {
            self.unreadable.remove(&sector);
        }
        self.cache_lies |= fate != Fate::Stored;
        self.note(Change::Sectors { first, data: whole.into() }, fate, order);
        if longer {
            self.note(Change::Extend(end), Fate::Stored, order);
        }
    }

    pub fn set_len(&mut self, len: u64, order: &mut u64) {
        self.cached.set_len(len);
        self.note(Change::SetLen(len), Fate::Stored, order);
    }

    pub fn allocate(&mut self, offset: u64, len: u64, order: &mut u64) {
        self.cached.reserve(offset, len);
        self.cached.extend(offset + len);
        self.note(Change::Reserve { offset, len }, Fate::Stored, order);
        self.note(Change::Extend(offset + len), Fate::Stored, order);
    }

    fn note(&mut self, change: Change, fate: Fate, order: &mut u64) {
        *order += 1;
        self.changed = *order;
        self.unsynced.push(Effect { order: *order, change, fate, stored: false });
    }

    /// All that is unsynced reaches the disk.
    pub fn sync(&mut self) -> Vec<Stray> {
        let mut strays = Vec::new();
        for effect in std::mem::take(&mut self.unsynced) {
            effect.apply(&mut self.durable, &mut strays);
        }
        self.durable.clip();
        self.durable_changed = self.changed;
        strays
    }

    /// Some of what is unsynced reaches the disk and the sync never returns: a later one does it all.
    pub fn sync_partly(&mut self, chance: &mut Chance) -> Vec<Stray> {
        let mut strays = Vec::new();
        for effect in &mut self.unsynced {
            if chance.percent(50) {
                effect.stored = true;
                effect.apply(&mut self.durable, &mut strays);
            }
        }
        self.durable.clip();
        strays
    }

    /// A sync fails: `percent` of what is unsynced reached the disk, the rest never will, and the cache goes on
    /// showing it as if it had.
    pub fn sync_failed(&mut self, percent: u8, chance: &mut Chance) -> Vec<Stray> {
        self.cache_lies = true;
        self.lose_power(|_, chance| if chance.percent(percent) { Kept::Torn } else { Kept::Nothing }, chance)
    }

    /// The effects that `judge` keeps reach the disk, the others are gone. The cache stays as it is.
    pub fn lose_power(
        &mut self,
        mut judge: impl FnMut(u64, &mut Chance) -> Kept,
        chance: &mut Chance,
    ) -> Vec<Stray> {
        let mut strays = Vec::new();
        for effect in std::mem::take(&mut self.unsynced) {
            match if effect.stored { Kept::Whole } else { judge(effect.order, chance) } {
                Kept::Whole => effect.apply(&mut self.durable, &mut strays),
                Kept::Torn => effect.apply_torn(&mut self.durable, &mut strays, chance),
                Kept::Nothing => {}
            }
        }
        self.durable.clip();
        strays
    }

    /// Mixes the order of what is unsynced, so that an older write may end up over a newer one.
    pub fn shuffle(&mut self, chance: &mut Chance) {
        for last in (1..self.unsynced.len()).rev() {
            self.unsynced.swap(last, chance.below(last as u64 + 1) as usize);
        }
    }

    /// Throws clean pages out of the cache: those that `pick` chooses show what the disk has, and what is
    /// written to them but not synced.
    pub fn evict(&mut self, mut pick: impl FnMut() -> bool) -> u64 {
        let mut settled = self.durable.clone();
        for effect in &self.unsynced {
            effect.apply_here(&mut settled);
        }
        settled.clip();
        let pages: BTreeSet<u64> = self.cached.data_pages().into_iter().chain(settled.data_pages()).collect();
        let behind = self.cached.len().div_ceil(PAGE_BYTES);
        let mut evicted = 0;
        for page in pages.into_iter().filter(|&page| page < behind) {
            if pick() {
                self.cached.take_page(&settled, page);
                evicted += 1;
            }
        }
        self.cached.clip();
        evicted
    }

    /// Everything unsynced is forgotten because somebody is about to set the bytes of both faces.
    pub fn sync_away(&mut self) {
        self.unsynced.clear();
    }

    /// The cache shows what the disk has.
    pub fn remount(&mut self) {
        self.cache_lies = false;
        self.unsynced.clear();
        self.cached = self.durable.clone();
        self.changed = self.durable_changed;
    }

    /// Whether the cache shows just what the disk has, so that losing power changes nothing.
    pub fn is_settled(&self) -> bool {
        self.unsynced.is_empty() && !self.cache_lies
    }

    /// Whether a range touches a sector that cannot be read.
    pub fn is_unreadable(&self, offset: u64, len: u64) -> bool {
        len > 0
            && self
                .unreadable
                .range(offset / SECTOR_BYTES..(offset + len).div_ceil(SECTOR_BYTES))
                .next()
                .is_some()
    }
}

impl Effect {
    fn apply(&self, image: &mut Image, strays: &mut Vec<Stray>) {
        match (self.fate, &self.change) {
            (Fate::Lost, _) => {}
            (Fate::Misdirected { inode, sector }, Change::Sectors { data, .. }) => {
                strays.push(Stray { inode, offset: sector * SECTOR_BYTES, data: data.clone() });
            }
            _ => self.apply_here(image),
        }
    }

    fn apply_here(&self, image: &mut Image) {
        match &self.change {
            Change::Sectors { first, data } => image.write(first * SECTOR_BYTES, data),
            Change::Extend(len) => image.extend(*len),
            Change::SetLen(len) => image.set_len(*len),
            Change::Reserve { offset, len } => image.reserve(*offset, *len),
        }
    }

    /// Any part of it arrives: sectors one by one, a growing length at any sector border on its way.
    fn apply_torn(&self, image: &mut Image, strays: &mut Vec<Stray>, chance: &mut Chance) {
        match &self.change {
            Change::Sectors { first, data } if self.fate == Fate::Stored => {
                let torn_at = chance.below(data.len() as u64 / SECTOR_BYTES + 1);
                let in_order = chance.percent(50);
                for (index, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
                    let arrives = if in_order { (index as u64) < torn_at } else { chance.percent(50) };
                    if arrives {
                        image.write((first + index as u64) * SECTOR_BYTES, sector);
                    }
                }
            }
            Change::Extend(len) if *len > image.len() => {
                let from = image.len() / SECTOR_BYTES;
                let border = (from + chance.below(len / SECTOR_BYTES - from + 2)) * SECTOR_BYTES;
                image.extend(border.min(*len));
            }
            Change::Reserve { offset, len } => image.reserve(*offset, chance.below(*len + 1)),
            _ => self.apply(image, strays),
        }
    }
}
