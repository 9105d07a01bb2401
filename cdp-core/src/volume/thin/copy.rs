//! What goes into a fold: versions piece by piece with their payload, then the records that change no blocks; and the
//! comparison of what was written with what it was made of.

use super::{Stage, Thin};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::record::RecordKind;
use crate::format::run::{DamageRow, Entry, MarkerRow, Row};
use crate::ids::*;
use crate::index::{Found, Search, Version, Visible};
use crate::limits::MERGE_STEP_ROWS;
use crate::reader::{Piece, Reader};
use crate::volume::Volume;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Versions looked up at a time, by each part.
const VERSIONS_PER_LOOK: usize = 1024;
/// Neighbouring blocks read at a time.
const BLOCKS_PER_READ: usize = 256;
/// Entries read at a time, for a piece of which they are not there yet.
const ROWS_PER_STEP: u64 = MERGE_STEP_ROWS;
/// Looking up costs about as much as so many bytes, so that work without payload counts too.
pub(super) const LOOK_BYTES: u64 = 64 << 10;

impl Volume {
    /// Copies the newest versions of the next blocks in a piece: bytes copied, and the block to go on with.
    pub(super) fn copy_some(&self, thin: &mut Thin, piece: (Lsn, Lsn)) -> Result<(u64, u64)> {
        let prepared = thin.pieces.prepare(piece, ROWS_PER_STEP);
        if !prepared.is_ready {
            return Ok((prepared.rows * Entry::BYTES as u64, thin.next_block));
        }
        let visible = Visible::of(vec![piece]);
        let reader = self.reader_of(thin.plan.parts.clone(), &visible);
        let extent = Extent::new(thin.next_block, self.blocks_max());
        let look = || Search::bounded(extent, VERSIONS_PER_LOOK);
        let search = thin.pieces.search(&reader, piece, look)?;
        let (versions, end) = (search.found(), search.extent().end());
        let mut bytes = prepared.rows * Entry::BYTES as u64;
        let mut rest = versions;
        while let Some(first) = rest.first() {
            let count = neighbours(rest);
            let (now, later) = rest.split_at(count);
            rest = later;
            match first.found {
                Found::Hole => thin.index.live.insert_range(first.lsn, first.extent, true),
                Found::Zero => thin.index.live.insert_range(first.lsn, first.extent, false),
                Found::Payload { .. } => bytes += self.copy_payload(thin, &reader, now)?,
            }
        }
        Ok((bytes, end))
    }

    fn copy_payload(&self, thin: &mut Thin, reader: &Reader<'_>, versions: &[Version]) -> Result<u64> {
        let buffer = read_payload(reader, versions);
        for (version, block) in versions.iter().zip(buffer.chunks_exact(BLOCK)) {
            let Found::Payload { crc, .. } = version.found else { continue };
            // Damage stays what it was: a block that does not fit its checksum.
            let at = thin.writer.block(block).at(|| self.fold_place())?;
            thin.index.live.insert_payload(version.lsn, version.extent.start, [(at, crc)]);
            if crc32(block) != crc {
                let row = DamageRow { lsn: version.lsn, extent: version.extent, kind: 0 };
                thin.index.damages.push(row);
            }
        }
        Ok(buffer.len() as u64)
    }

    fn fold_place(&self) -> String {
        format!("volume {}: writing a fold", self.identity.name)
    }

    /// Copies those records that change no blocks and still mean something.
    pub(super) fn copy_events(&self, thin: &mut Thin) -> Result<()> {
        let Thin { plan, writer, index, .. } = thin;
        index.damages.sort_by_key(|row| (row.lsn, row.extent.start));
        for part in plan.parts.iter() {
            for row in part.events()? {
                let keeps = |lsn: Lsn| plan.points.binary_search_by_key(&lsn, |point| point.lsn).is_ok();
                if !event_stays(&row, keeps) {
                    continue;
                }
                let mut block = 0;
                for number in 0..u64::from(row.payload_bytes).div_ceil(BLOCK_BYTES) {
                    let mut bytes = [0; BLOCK];
                    let at = (u64::from(row.block) + number) * BLOCK_BYTES;
                    // A payload that cannot be read stays one: it does not fit its checksum.
                    if part.segment.file.read_at(at, &mut bytes).is_err() {
                        bytes = [0; BLOCK];
                        let turns = [RecordKind::Rollback, RecordKind::Resize, RecordKind::Epoch];
                        if turns.iter().any(|kind| *kind as u8 == row.kind) {
                            return Err(Error::new(
                                Kind::Damaged,
                                format!("the payload of {:?} cannot be read", row.lsn),
                            ));
                        }
                    }
                    let to = writer.block(&bytes).at(|| self.fold_place())?;
                    if number == 0 {
                        block = to;
                    }
                }
                index.events.push(MarkerRow { block, ..row });
            }
        }
        Ok(())
    }

    /// Holds the next blocks of a piece in the fold against what it was made of: bytes compared, and the block to go on
    /// with.
    pub(super) fn check_some(&self, thin: &mut Thin, piece: (Lsn, Lsn)) -> Result<(u64, u64)> {
        let Thin { plan, pieces, stage: Stage::Check(fold, fold_pieces), .. } = thin else {
            unreachable!("it was written before it is checked")
        };
        let mut rows = 0;
        for pieces in [&mut *pieces, &mut *fold_pieces] {
            let prepared = pieces.prepare(piece, ROWS_PER_STEP);
            rows += prepared.rows;
            if !prepared.is_ready {
                return Ok((rows * Entry::BYTES as u64, thin.next_block));
            }
        }
        let visible = Visible::of(vec![piece]);
        let source = self.reader_of(plan.parts.clone(), &visible);
        let written = self.reader_of(fold.clone(), &visible);
        let extent = Extent::new(thin.next_block, self.blocks_max());
        let wanted = pieces.search(&source, piece, || Search::bounded(extent, VERSIONS_PER_LOOK))?;
        let end = wanted.extent().end();
        let wanted = wanted.found();
        let search = fold_pieces.search(&written, piece, || Search::new(Extent::new(extent.start.0, end)))?;
        let wrong = |what: &str| {
            let context = format!("volume {}: a fold {what}; the segments stay", self.identity.name);
            Error::new(Kind::Damaged, context)
        };
        if !normal(wanted).eq(normal(search.found())) {
            return Err(wrong("has other versions than the segments it was made of"));
        }
        // Of each look a block is looked up as clients do it, too.
        if let Some(version) = wanted.get(wanted.len() / 2) {
            let block = Extent { start: version.extent.start, blocks: 1 };
            let looks = [source.search(|| Search::new(block))?, written.search(|| Search::new(block))?];
            let of_block = Version { extent: block, ..*version };
            if looks.iter().any(|look| !normal(look.found()).eq(normal(&[of_block]))) {
                return Err(wrong("is not looked up as it was read"));
            }
        }
        let mut bytes = rows * Entry::BYTES as u64;
        let (mut rest, mut wanted) = (search.found(), payloads(wanted));
        while !rest.is_empty() {
            let count = neighbours(rest);
            let (now, later) = rest.split_at(count);
            rest = later;
            if !matches!(now[0].found, Found::Payload { .. }) {
                continue;
            }
            let buffer = read_payload(&written, now);
            bytes += buffer.len() as u64;
            for (version, block) in now.iter().zip(buffer.chunks_exact(BLOCK)) {
                let Found::Payload { crc, .. } = version.found else { continue };
                let original = wanted.next();
                if crc32(block) == crc {
                    continue;
                }
                // Damaged already where it came from?
                let original = original.map(|version| read_payload(&source, std::slice::from_ref(version)));
                if original.is_none_or(|block| crc32(&block) == crc) {
                    return Err(wrong("does not read back as it was written"));
                }
            }
        }
        Ok((bytes, end))
    }
}

/// Whether a record that changes no blocks still means something in a fold: markers of states that it keeps, rollbacks,
/// resizes, clock steps, and whatever this version does not know. Sessions and other markers go.
pub(in crate::volume) fn event_stays(row: &MarkerRow, keeps: impl Fn(Lsn) -> bool) -> bool {
    match RecordKind::from_u8(row.kind) {
        Some(RecordKind::Marker) => keeps(row.lsn),
        Some(RecordKind::SessionOpen | RecordKind::SessionClose) => false,
        _ => true,
    }
}

/// What can be read of these neighbouring blocks; zeros where nothing can.
fn read_payload(reader: &Reader<'_>, versions: &[Version]) -> Vec<u8> {
    let mut buffer = vec![0; versions.len() * BLOCK];
    let piece = |version: &Version| match version.found {
        Found::Payload { block, crc } => {
            Piece::Journal { lba: version.extent.start, lsn: version.lsn, block, crc }
        }
        found => Piece::Zero { extent: version.extent, hole: found == Found::Hole },
    };
    let pieces: Vec<Piece> = versions.iter().map(piece).collect();
    if reader.fetch(&pieces, &mut buffer).is_err() {
        for (piece, block) in pieces.iter().zip(buffer.chunks_exact_mut(BLOCK)) {
            if !matches!(piece, Piece::Journal { .. }) {
                continue;
            }
            let _ = reader.fetch(std::slice::from_ref(piece), block);
        }
    }
    buffer
}

/// How many of the front versions are payload of neighbouring blocks; at least one.
fn neighbours(versions: &[Version]) -> usize {
    let first = versions.first().map_or(0, |version| version.extent.start.0);
    let is_next = |(n, version): &(usize, &Version)| {
        matches!(version.found, Found::Payload { .. }) && version.extent.start.0 == first + *n as u64
    };
    versions.iter().take(BLOCKS_PER_READ).enumerate().take_while(is_next).count().max(1)
}

fn payloads(versions: &[Version]) -> impl Iterator<Item = &Version> {
    versions.iter().filter(|version| matches!(version.found, Found::Payload { .. }))
}

/// Versions without the places of their payload, ranges that are one joined.
fn normal(versions: &[Version]) -> impl Iterator<Item = (Extent, Lsn, u64)> {
    let word = |found: Found| match found {
        Found::Hole => 1 << 32,
        Found::Zero => 2 << 32,
        Found::Payload { crc, .. } => u64::from(crc),
    };
    let mut versions = versions.iter().peekable();
    std::iter::from_fn(move || {
        let first = versions.next()?;
        let (mut extent, lsn, found) = (first.extent, first.lsn, word(first.found));
        while found > u64::from(u32::MAX)
            && let Some(next) = versions.next_if(|next| {
                next.extent.start.0 == extent.end() && next.lsn == lsn && word(next.found) == found
            })
        {
            extent.blocks += next.extent.blocks;
        }
        Some((extent, lsn, found))
    })
}
