//! The catalog: named markers, rollbacks and resizes by volume, in `sled`. A cache of what stands in the journal, so that opening a
//! volume need not read its whole history for them. The only file that names `sled`.
//!
//! Nothing here is believed without a check: every value carries a CRC, and what is said of a volume counts
//! only if the sealed segment it was complete through is there, with the same chain value. Any error, panic
//! or mismatch moves the catalog aside and makes a fresh one; the names are then read from the journal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::format::bytes::{Cursor, crc32, put_text};
use crate::format::record::{Chain, RecordKind};
use crate::format::turn::Turn;
use crate::history::course::TurnAt;
use crate::ids::*;

const DIR: &str = "catalog";
/// `sled` takes a multiple of what it is told.
const CACHE_BYTES: u64 = 4 << 20;
const VERSION: u8 = 2;
/// Keys: volume id, then this byte for the completeness value, the next one and the LSN of a name, or the last one
/// for all rollbacks and resizes.
const KEY_COMPLETE: u8 = 0;
const KEY_NAME: u8 = 1;
const KEY_TURNS: u8 = 2;

/// So many rows are changed at once.
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
            let mut count = 0;
            for row in db.scan_prefix(prefix(volume, KEY_NAME)) {
                let (key, value) = row.ok()?;
                let name = decode_name(&value)?;
                if key.as_ref() != self::key(volume, KEY_NAME, name.lsn) {
                    return None;
                }
                if name.lsn > known.complete.lsn {
                    return Some(false);
                }
                visit(&name);
                count += 1;
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
            for (number, row) in (1..).zip(db.scan_prefix(prefix(volume, KEY_NAME))) {
                batch.remove(row.ok()?.0);
                if number % ROWS_PER_BATCH == 0 {
                    db.apply_batch(std::mem::take(&mut batch)).ok()?;
                }
            }
            db.apply_batch(batch).ok()
        });
    }

    /// Learns what is new up to `complete`: names behind those that it knows, those that went, how many there are then, and
    /// all rollbacks and resizes.
    pub fn learn(
        &self,
        volume: VolumeId,
        complete: Complete,
        (names, gone, count): (&[CatalogName], &[Lsn], u64),
        turns: &[TurnAt],
    ) {
        self.guarded(|db| {
            // Before what they are complete through: names behind that count for nothing.
            for names in names.chunks(ROWS_PER_BATCH) {
                let mut batch = sled::Batch::default();
                for name in names.iter().filter(|name| name.lsn <= complete.lsn) {
                    batch.insert(&key(volume, KEY_NAME, name.lsn)[..], encode_name(name));
                }
                db.apply_batch(batch).ok()?;
            }
            let mut batch = sled::Batch::default();
            for lsn in gone {
                batch.remove(&key(volume, KEY_NAME, *lsn)[..]);
            }
            batch.insert(&key(volume, KEY_TURNS, Lsn::ZERO)[..], encode_turns(turns, complete));
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

fn prefix(volume: VolumeId, what: u8) -> [u8; 17] {
    let mut prefix = [what; 17];
    prefix[..16].copy_from_slice(&volume.0.to_be_bytes());
    prefix
}

fn key(volume: VolumeId, what: u8, lsn: Lsn) -> [u8; 25] {
    let mut key = [0; 25];
    key[..17].copy_from_slice(&prefix(volume, what));
    key[17..].copy_from_slice(&lsn.0.to_be_bytes());
    key
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let crc = crc32(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    body
}

fn unsealed(value: &[u8]) -> Option<Cursor<'_>> {
    let (body, crc) = value.split_last_chunk::<4>()?;
    (crc32(body) == u32::from_le_bytes(*crc)).then_some(())?;
    let mut cursor = Cursor::new(body);
    (cursor.take(1)? == [VERSION]).then_some(cursor)
}

fn encode_complete(complete: Complete, names: u64) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&complete.segment.0.to_le_bytes());
    body.extend_from_slice(&complete.lsn.0.to_le_bytes());
    body.extend_from_slice(&complete.chain.0);
    body.extend_from_slice(&names.to_le_bytes());
    sealed(body)
}

fn decode_complete(value: &[u8]) -> Option<(Complete, u64)> {
    let mut cursor = unsealed(value)?;
    let complete = Complete {
        segment: SegmentId(cursor.u64()?),
        lsn: Lsn(cursor.u64()?),
        chain: Chain(cursor.take(16)?.try_into().ok()?),
    };
    Some((complete, cursor.u64()?))
}

fn encode_name(name: &CatalogName) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&name.lsn.0.to_le_bytes());
    body.extend_from_slice(&name.at.0.to_le_bytes());
    body.push(name.class);
    put_text(&mut body, &name.name);
    sealed(body)
}

fn decode_name(value: &[u8]) -> Option<CatalogName> {
    let mut cursor = unsealed(value)?;
    Some(CatalogName {
        lsn: Lsn(cursor.u64()?),
        at: Timestamp(cursor.u64()?),
        class: *cursor.take(1)?.first()?,
        name: cursor.text()?.to_owned(),
    })
}

/// The chain value of the end they are complete through, then for each: LSN, timestamp, kind, length, bytes.
fn encode_turns(turns: &[TurnAt], complete: Complete) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&complete.chain.0);
    for turn in turns.iter().filter(|turn| turn.lsn <= complete.lsn) {
        let copy = turn.turn.encode_copy();
        body.extend_from_slice(&turn.lsn.0.to_le_bytes());
        body.extend_from_slice(&turn.at.0.to_le_bytes());
        body.push(turn.turn.kind() as u8);
        body.extend_from_slice(&(copy.len() as u16).to_le_bytes());
        body.extend_from_slice(&copy);
    }
    sealed(body)
}

fn decode_turns(value: &[u8], complete: Complete) -> Option<Vec<TurnAt>> {
    let mut cursor = unsealed(value)?;
    (cursor.take(16)? == complete.chain.0).then_some(())?;
    let mut turns = Vec::new();
    while !cursor.is_empty() {
        let (lsn, at) = (Lsn(cursor.u64()?), Timestamp(cursor.u64()?));
        let kind = RecordKind::from_u8(*cursor.take(1)?.first()?)?;
        let len = usize::from(cursor.u16()?);
        turns.push(TurnAt { lsn, at, turn: Turn::decode_copy(kind, cursor.take(len)?)? });
    }
    Some(turns)
}
