//! Reads everything of a volume back: the base, every segment with its payloads, chain and seal, every run, the
//! mark, and a newest state that is shown ahead of the history. Never writes; the volume may be in use meanwhile.

mod base;
mod newest;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::identity::read_manifest;
use super::parts::{Part, PartIndex};
use super::upkeep::hash_segment;
use super::{Health, Volume};
use crate::error::{IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::fold::FRAME_BLOCKS;
use crate::format::mark::{Mark, SLOT_BYTES};
use crate::ids::*;
use crate::journal::fold::Fold;
use crate::journal::mark::MARK_FILE;
use crate::journal::scan::{self, Stop};
use crate::journal::segment::{FirstBlock, read_first_block, read_seal};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Places of damage are listed up to this number; they are counted beyond it.
pub const PLACES_MAX: usize = 1000;

/// Something that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which file.
    pub file: PathBuf,
    /// From which byte of it on.
    pub offset: u64,
    /// The record it belongs to, or, where a segment cannot be read any further, the first one that is lost.
    pub lsn: Option<Lsn>,
    /// The blocks of the volume that are affected.
    pub extent: Option<Extent>,
    /// What is wrong.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
    /// Records that were looked at.
    pub records: u64,
    /// Segments that were looked at.
    pub segments: u64,
    /// Places of damage, the first [`PLACES_MAX`] of them.
    pub damages: Vec<Damage>,
    /// How many there are.
    pub damage_count: u64,
}

impl Verified {
    fn add(&mut self, damage: Damage) {
        self.damage_count += 1;
        if self.damages.len() < PLACES_MAX {
            self.damages.push(damage);
        }
    }

    fn add_file(&mut self, file: &Path, offset: u64, what: String) {
        self.add(Damage { file: file.to_owned(), offset, lsn: None, extent: None, what });
    }
}

/// Told of the bytes that were read and of all there are; an error from it ends the work.
pub type Watch<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Reads everything back. Damage is what it finds, not an error; an error is what keeps it from looking.
pub fn verify(volume: &Volume, watch: &mut Watch<'_>) -> Result<Verified> {
    let mut found = Verified::default();
    // The parts, not their list: reading everything takes long, and whoever folds waits for lists to be let go.
    let parts: Vec<_> = volume.part_list().to_vec();
    let before = volume.base_point();
    let parts: Vec<_> = parts.into_iter().skip_while(|part| is_folded(part, before.lsn)).collect();
    let segment_bytes: u64 = parts.iter().map(|part| end_of(volume, part)).sum();
    let base_bytes = base::bytes(volume)?;
    let total = segment_bytes + base_bytes + newest::bytes(volume)?;
    watch(0, total)?;
    if let Health::ReadOnly { reason, .. } = volume.health() {
        found.add_file(volume.dir(), 0, format!("the volume takes no writes: {reason}"));
    }
    {
        let _using = volume.use_files()?;
        verify_small_files(volume, &mut found);
    }
    base::verify(volume, &mut found, total, watch)?;
    newest::verify(volume, &mut found, total, watch)?;
    let mut previous_hash = before.seal;
    for part in parts.iter() {
        let mut one = Verified::default();
        // Between two steps the volume may be closed, and its files be another instance's.
        let using = volume.use_files()?;
        let looked = verify_part(part, &previous_hash, &mut one);
        // What was folded meanwhile is the base's, and its file is gone.
        if !is_folded(part, volume.base_point().lsn) {
            looked?;
            found.records += one.records;
            found.damage_count += one.damage_count - one.damages.len() as u64;
            for damage in one.damages {
                if let (Some(lsn), Some(extent)) = (damage.lsn, damage.extent) {
                    volume.note_damage(lsn, extent);
                }
                found.add(damage);
            }
        }
        previous_hash = part.frozen.get().and_then(|frozen| frozen.seal_hash).unwrap_or_default();
        found.segments += 1;
        found.bytes += end_of(volume, part);
        drop(using);
        watch(found.bytes, total)?;
    }
    Ok(found)
}

fn end_of(volume: &Volume, part: &Part) -> u64 {
    match part.frozen.get() {
        Some(frozen) => frozen.end,
        None => part.segment.header.bytes.saturating_sub(volume.journal_room_bytes()),
    }
}

fn verify_small_files(volume: &Volume, found: &mut Verified) {
    if let Err(error) = read_manifest(&volume.shared, volume.dir()) {
        found.add_file(&volume.dir().join(super::identity::MANIFEST_FILE), 0, error.to_string());
    }
    let path = volume.dir().join(MARK_FILE);
    let mut good = 0;
    for slot in 0..2u64 {
        let mut bytes = [0; SLOT_BYTES];
        let read = volume
            .shared
            .files
            .open(&path, false)
            .and_then(|file| file.read_at(slot * SLOT_BYTES as u64, &mut bytes));
        let mark = read.ok().and_then(|()| Mark::decode(&bytes));
        good += u32::from(mark.is_some_and(|mark| mark.volume == volume.identity().journal_id()));
    }
    // One slot may be written just now; both are never bad but by damage.
    if good == 0 {
        found.add_file(&path, 0, "neither slot of the durable mark can be read".to_owned());
    }
}

/// Whether a part is the base's by now.
fn is_folded(part: &Part, base: Lsn) -> bool {
    part.frozen.get().is_some_and(|end| end.last.lsn <= base)
}

fn verify_part(part: &Arc<Part>, previous_hash: &[u8; 32], found: &mut Verified) -> Result<()> {
    let segment = &part.segment;
    if let Some(fold) = &segment.fold {
        verify_fold(part, fold, found)?;
        verify_run(part, found);
        return Ok(());
    }
    match read_first_block(&*segment.file) {
        Ok(FirstBlock::Header(header)) if *header == segment.header => {}
        Ok(_) => found.add_file(&segment.path, 0, "the segment's header is not what was written".to_owned()),
        Err(error) => {
            found.add_file(&segment.path, 0, format!("the segment's header cannot be read: {error}"))
        }
    }
    let last = part.frozen.get().map_or(part.last_lsn(), |frozen| frozen.last.lsn);
    let mut records = 0;
    let mut damages = Vec::new();
    let scanned = scan::scan(segment, part.before, last, &mut |record| {
        records += 1;
        if !record.intact {
            damages.push(Damage {
                file: segment.path.clone(),
                offset: u64::from(record.payload_block) * BLOCK_BYTES,
                lsn: Some(record.header.lsn),
                extent: record.header.kind.changes_blocks().then(|| record.header.extent()),
                what: format!("the payload of {:?} is not what was written", record.header.lsn),
            });
        }
    })
    .at(|| format!("reading {}", segment.path.display()))?;
    found.records += records;
    damages.into_iter().for_each(|damage| found.add(damage));
    if scanned.position.lsn < last {
        let what = match scanned.stop {
            Stop::Unreadable => "the disk gives an error",
            Stop::Short => "the file is too short",
            Stop::OffChain => "the next batch does not continue the chain",
            Stop::BadRecord => "a record's header is not what was written",
            Stop::NoBatch | Stop::Complete => "there is no batch",
        };
        found.add(Damage {
            file: segment.path.clone(),
            offset: scanned.end,
            lsn: Some(scanned.position.lsn.next()),
            extent: None,
            what: format!("{what}; the records through {last:?} cannot be read"),
        });
    }
    verify_seal(part, previous_hash, found);
    verify_run(part, found);
    Ok(())
}

/// A fold: both of its ends, the hash over all between them, and each block against its checksum.
fn verify_fold(part: &Arc<Part>, fold: &Fold, found: &mut Verified) -> Result<()> {
    let segment = &part.segment;
    if !fold.ends_are_whole() {
        let what = "the header or the points of the fold are not what was written, at one of its ends";
        found.add_file(&fold.path, 0, what.to_owned());
    }
    match fold.is_whole() {
        Ok(true) => {}
        Ok(false) => {
            found.add_file(&fold.path, 0, "the hash over the fold is not that of its header".to_owned());
        }
        Err(error) => found.add_file(&fold.path, 0, format!("the fold cannot be hashed: {error}")),
    }
    let mut entries = match fold.tables() {
        Ok(tables) => tables.entries,
        Err(error) => {
            found.add_file(&fold.path, fold.header.tables_at, error.to_string());
            return Ok(());
        }
    };
    entries.retain(|entry| entry.key.tree() == 0);
    found.records += entries.len() as u64;
    entries.sort_unstable_by_key(|entry| entry.block);
    let mut buffer = Vec::new();
    for frame in
        entries.chunk_by(|a, b| (a.block - 1) as u64 / FRAME_BLOCKS == (b.block - 1) as u64 / FRAME_BLOCKS)
    {
        let first = u64::from(frame[0].block);
        let blocks = u64::from(frame[frame.len() - 1].block) + 1 - first;
        buffer.resize((blocks * BLOCK_BYTES) as usize, 0);
        let read = segment.file.read_at(first * BLOCK_BYTES, &mut buffer);
        for entry in frame {
            let at = (u64::from(entry.block) - first) as usize * BLOCK;
            if read.is_ok() && crc32(&buffer[at..at + BLOCK]) == entry.crc {
                continue;
            }
            let lsn = Lsn(fold.header.lsns.0.0 + u64::from(entry.lsn_delta));
            let lba = entry.key.index();
            found.add(Damage {
                file: fold.path.clone(),
                offset: 0,
                lsn: Some(lsn),
                extent: Some(Extent::new(lba, lba + 1)),
                what: format!("block {lba} as {lsn:?} wrote it is not what was written"),
            });
        }
    }
    Ok(())
}

fn verify_run(part: &Arc<Part>, found: &mut Verified) {
    // A merged one is looked at with the last of its segments.
    if let PartIndex::Run(run) = &part.index
        && run.last_lsn() == part.last_lsn()
        && let Err(error) = run.verify()
    {
        let file = run.path().to_owned();
        let what = match error.kind() {
            Kind::Damaged => format!("the run is damaged (it is made again from the segment): {error}"),
            _ => error.to_string(),
        };
        found.add_file(&file, 0, what);
    }
}

/// The hash over all bytes, as it was when the segment was sealed.
fn verify_seal(part: &Part, previous_hash: &[u8; 32], found: &mut Verified) {
    let path = &part.segment.path;
    let Some(frozen) = part.frozen.get() else { return };
    let Some(expected) = frozen.seal_hash else { return };
    match hash_segment(previous_hash, part, frozen.end) {
        Ok(hash) if hash == expected => {}
        Ok(_) => found.add_file(path, 0, "the hash over the segment is not the one of its seal".to_owned()),
        Err(error) => found.add_file(path, 0, format!("the segment cannot be hashed: {error}")),
    }
    match read_seal(&part.segment) {
        Ok(Some(seal)) if seal.hash != expected || seal.previous_hash != *previous_hash => {
            found.add_file(path, frozen.end, "the seal is not what was written".to_owned());
        }
        // A segment that a crash or a failed sync ended has no seal: its hash stands in its run.
        Ok(_) => {}
        Err(error) => found.add_file(path, frozen.end, format!("the seal cannot be read: {error}")),
    }
}
