//! The catalog: named markers, rollbacks and resizes by volume, in `sled`. A cache of what stands in the journal, so that opening a
//! volume need not read its whole history for them. The only file that names `sled`.
//!
//! Nothing here is believed without a check: every value carries a CRC, and what is said of a volume counts
//! only if the sealed segment it was complete through is there, with the same chain value. Any error, panic
//! or mismatch moves the catalog aside and makes a fresh one; the names are then read from the journal.

mod rows;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::format::record::Chain;
use crate::history::course::TurnAt;
use crate::ids::*;
use rows::{
    KEY_COMPLETE, KEY_NAMES, KEY_TURNS, decode_complete, decode_names, decode_turns, encode_complete,
    encode_names, encode_turns, is_of_this_version, key, lsn_of, prefix,
};

const DIR: &str = "catalog";
/// `sled` takes a multiple of what it is told.
const CACHE_BYTES: u64 = 4 << 20;

/// So many names stand in one row: `sled` takes some 2 KiB of memory for each row that it learns at once.
const NAMES_PER_ROW: usize = 64;
/// So many rows are removed at once.
const ROWS_PER_BATCH: usize = 4096;

/// Up to where the catalog knows the names of a volume: the end of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Complete {
    /// The segment.
    pub segment: SegmentId,
    /// Its last record.
    pub lsn: Lsn,
    /// Chain value after that record.
    pub chain: Chain,
}

/// A named marker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogName {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// Its class, as a number.
    pub class: u8,
    /// Its name.
    pub name: String,
}

/// What is known of a volume up to some segment's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// That end.
    pub complete: Complete,
    /// How many named markers it has up to there.
    pub names: u64,
    /// Its rollbacks and resizes, oldest first.
    pub turns: Vec<TurnAt>,
}

/// The opened catalog, or none: then every question is answered with "unknown".
pub struct Catalog {
    path: PathBuf,
    db: Mutex<Option<sled::Db>>,
}

impl Catalog {
    /// Opens the catalog in a store's directory, made anew if it cannot be used.
    pub fn open(store: &Path) -> Catalog {
        let path = store.join(DIR);
        let catalog = Catalog { path, db: Mutex::new(None) };
        let opened = open_db(&catalog.path).or_else(|| {
            catalog.move_aside();
            open_db(&catalog.path)
        });
        *catalog.lock() = opened;
        catalog
    }

    /// A catalog that knows nothing and keeps nothing.
    pub fn none() -> Catalog {
        Catalog { path: PathBuf::new(), db: Mutex::new(None) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<sled::Db>> {
        // A panic inside sled is caught below; what it left is thrown away.
        self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The broken files are kept for whoever wants to look at them; an older broken copy goes.
    fn move_aside(&self) {
        let aside = self.path.with_extension("broken");
        let _ = std::fs::remove_dir_all(&aside);
        let _ = std::fs::rename(&self.path, &aside);
    }

    fn guarded<T>(&self, work: impl FnOnce(&sled::Db) -> Option<T>) -> Option<T> {
        let mut db = self.lock();
        let open = db.as_ref()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| work(open))).ok().flatten();
        if outcome.is_none() {
            // Not usable: nobody asks it again, and the next opening starts with a fresh one.
            let broken = db.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
            self.move_aside();
        }
        outcome
    }

    /// What is known of a volume.
    pub fn known(&self, volume: VolumeId) -> Option<Known> {
        self.guarded(|db| {
            let Some(complete) = db.get(key(volume, KEY_COMPLETE, Lsn::ZERO)).ok()? else {
                return Some(None);
            };
            // Of an earlier version: it is learnt again.
            if !is_of_this_version(&complete) {
                return Some(None);
            }
            let (complete, names) = decode_complete(&complete)?;
            // One value for all of them: a rollback that is missing would show another disk.
            let Some(turns) = db.get(key(volume, KEY_TURNS, Lsn::ZERO)).ok()? else { return Some(None) };
            let turns = decode_turns(&turns, complete)?;
            Some(Some(Known { complete, names, turns }))
        })
        .flatten()
    }

    /// Visits the named markers of a volume, oldest first. Not `Some(true)`, perhaps after some visits, if they cannot be
    /// believed: there are more or fewer than was `known`, or one behind that end, which may be of a history that was cut
    /// since.
    pub fn names(
        &self,
        volume: VolumeId,
        known: &Known,
        visit: &mut dyn FnMut(&CatalogName),
    ) -> Option<bool> {
        self.guarded(|db| {
            let (mut count, mut newest) = (0, Lsn::ZERO);
            for row in db.scan_prefix(prefix(volume, KEY_NAMES)) {
                let (key, value) = row.ok()?;
                let first = lsn_of(&key)?;
                for name in decode_names(&value)? {
                    if name.lsn < first || name.lsn <= newest {
                        return None;
                    }
                    if name.lsn > known.complete.lsn {
                        return Some(false);
                    }
                    newest = name.lsn;
                    visit(&name);
                    count += 1;
                }
            }
            Some(count == known.names)
        })
    }

    /// Nothing that is known of a volume counts any more.
    pub fn forget(&self, volume: VolumeId) {
        self.guarded(|db| {
            // First, so that what is left of the others counts for nothing.
            db.remove(key(volume, KEY_COMPLETE, Lsn::ZERO)).ok()?;
            let mut batch = sled::Batch::default();
            for (number, row) in (1..).zip(db.scan_prefix(prefix(volume, KEY_NAMES))) {
                batch.remove(row.ok()?.0);
                if number % ROWS_PER_BATCH == 0 {
                    db.apply_batch(std::mem::take(&mut batch)).ok()?;
                }
            }
            db.apply_batch(batch).ok()
        });
    }

    /// Learns what is new up to `complete`: names behind those that it knows, by rising LSN, and all rollbacks and resizes.
    /// After a crash it knows all of that or what it knew before.
    pub fn learn(&self, volume: VolumeId, complete: Complete, names: &[CatalogName], turns: &[TurnAt]) {
        self.guarded(|db| {
            let known = db.get(key(volume, KEY_COMPLETE, Lsn::ZERO)).ok()?;
            let before = known.map_or(Some(0), |known| Some(decode_complete(&known)?.1))?;
            let mut batch = sled::Batch::default();
            let mut rest = names;
            if let Some(last) = db.scan_prefix(prefix(volume, KEY_NAMES)).next_back() {
                // A segment brings a few names: they fill up the row of those before.
                let (key, value) = last.ok()?;
                let mut row = decode_names(&value)?;
                let (now, behind) = rest.split_at(NAMES_PER_ROW.saturating_sub(row.len()).min(rest.len()));
                row.extend_from_slice(now);
                rest = behind;
                if !now.is_empty() {
                    batch.insert(key, encode_names(&row));
                }
            }
            for row in rest.chunks(NAMES_PER_ROW) {
                batch.insert(&key(volume, KEY_NAMES, row.first()?.lsn)[..], encode_names(row));
            }
            let count = before + names.len() as u64;
            batch.insert(&key(volume, KEY_TURNS, Lsn::ZERO)[..], encode_turns(turns, complete));
            batch.insert(&key(volume, KEY_COMPLETE, Lsn::ZERO)[..], encode_complete(complete, count));
            db.apply_batch(batch).ok()
        });
    }

    /// Learns that these markers went, by rising LSN; those that it does not know are nothing new. After a crash it knows that
    /// of all of them or of none.
    pub fn forget_names(&self, volume: VolumeId, gone: &[Lsn]) {
        self.guarded(|db| {
            let Some(known) = db.get(key(volume, KEY_COMPLETE, Lsn::ZERO)).ok()? else { return Some(()) };
            let (complete, mut count) = decode_complete(&known)?;
            let mut batch = sled::Batch::default();
            let mut rest = gone;
            while let Some(first) = rest.first() {
                let range = key(volume, KEY_NAMES, Lsn::ZERO)..=key(volume, KEY_NAMES, *first);
                let row = db.range(range).next_back().transpose().ok()?;
                let Some((key, value)) = row else {
                    rest = &rest[1..];
                    continue;
                };
                let mut row = decode_names(&value)?;
                let (had, last) = (row.len(), row.last()?.lsn.max(*first));
                let behind = rest.partition_point(|lsn| *lsn <= last);
                row.retain(|name| rest[..behind].binary_search(&name.lsn).is_err());
                rest = &rest[behind..];
                count = count.checked_sub((had - row.len()) as u64)?;
                match row.len() {
                    0 => batch.remove(key),
                    left if left < had => batch.insert(key, encode_names(&row)),
                    _ => {}
                }
            }
            batch.insert(&key(volume, KEY_COMPLETE, Lsn::ZERO)[..], encode_complete(complete, count));
            db.apply_batch(batch).ok()
        });
    }
}

fn open_db(path: &Path) -> Option<sled::Db> {
    catch_unwind(|| {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(2000));
        config.open().ok()
    })
    .ok()
    .flatten()
}
