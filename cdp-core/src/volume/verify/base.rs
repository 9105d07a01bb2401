//! Reads the base back: what its map names, against its files; each block, against its checksum; and what the image holds
//! beside those.

use std::collections::BTreeSet;

use super::{BLOCK, Damage, Verified, Watch};
use crate::base::Base;
use crate::error::Result;
use crate::ids::*;
use crate::limits::BASE_PIECE_BYTES;
use crate::volume::Volume;

/// Bytes read at a time.
const STEP_BYTES: u64 = 1 << 20;
const STEP_BLOCKS: u64 = STEP_BYTES / BLOCK_BYTES;
/// A block counts as damaged after so many looks.
const LOOKS: usize = 3;
const PIECE_BLOCKS: u64 = BASE_PIECE_BYTES / BLOCK_BYTES;

/// How much there is to read.
pub(super) fn bytes(volume: &Volume) -> Result<u64> {
    let mut bytes = 0;
    each_present(volume, &volume.base, &mut |from, to| {
        bytes += (to - from) * BLOCK_BYTES;
        Ok(())
    })?;
    Ok(bytes)
}

/// Visits the block ranges that it holds, or should hold, but for files that are missing as a whole. A block that the image holds and
/// the checksums do not counts as held: reading it is an error.
fn each_present(volume: &Volume, base: &Base, visit: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let blocks = volume.largest_size_bytes().div_ceil(BLOCK_BYTES);
    let mut at = 0;
    while at < blocks && !base.is_empty() {
        let using = volume.use_files()?;
        if let Some(end) = base.lost_until(at) {
            at = end;
            continue;
        }
        let piece_end = (at / PIECE_BLOCKS + 1) * PIECE_BLOCKS;
        let (end, present) = base.stretch(at, blocks.min(piece_end))?;
        drop(using);
        if present {
            visit(at, end)?;
        }
        at = end;
    }
    Ok(())
}

pub(super) fn verify(volume: &Volume, found: &mut Verified, total: u64, watch: &mut Watch<'_>) -> Result<()> {
    let blocks = volume.largest_size_bytes().div_ceil(BLOCK_BYTES);
    for problem in volume.base_problems() {
        let within = |extent: Extent| Extent::new(extent.start.0.min(blocks), extent.end().min(blocks));
        let extent = problem.extent.map(within);
        found.add(Damage { file: problem.file, offset: 0, lsn: None, extent, what: problem.what });
    }
    verify_blocks(volume, &volume.base, found, total, watch)?;
    // Not counted: nothing should be in them.
    verify_blocks(volume, &volume.base.strays()?, found, total, watch)
}

fn verify_blocks(
    volume: &Volume,
    base: &Base,
    found: &mut Verified,
    total: u64,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let mut buffer = vec![0; STEP_BYTES as usize];
    let mut run: Option<Damage> = None;
    each_present(volume, base, &mut |from, to| {
        let mut at = from;
        while at < to {
            let blocks = (to - at).min(STEP_BLOCKS);
            let using = volume.use_files()?;
            if base.read(at, &mut buffer[..blocks as usize * BLOCK]).is_err() {
                let extent = Extent { start: Lba(at), blocks };
                for damage in damaged_blocks(volume, base, extent, &mut buffer[..BLOCK]) {
                    match &mut run {
                        Some(run) if continues(run, &damage) => lengthen(run),
                        _ => run.replace(damage).into_iter().for_each(|run| found.add(run)),
                    }
                }
            }
            drop(using);
            at += blocks;
            found.bytes += blocks * BLOCK_BYTES;
            watch(found.bytes, total)?;
        }
        Ok(())
    })?;
    run.into_iter().for_each(|run| found.add(run));
    Ok(())
}

/// Neighbouring blocks of one file are one place.
fn continues(run: &Damage, next: &Damage) -> bool {
    let ends = |damage: &Damage| damage.extent.map(|extent| (extent.start.0, extent.end()));
    run.file == next.file && ends(run).zip(ends(next)).is_some_and(|(run, next)| run.1 == next.0)
}

fn lengthen(run: &mut Damage) {
    if let Some(extent) = &mut run.extent {
        extent.blocks += 1;
    }
}

/// A block that was changed between the base LSN and the horizon may be half folded: nobody reads it, and it is made whole before
/// anybody does.
fn being_folded(volume: &Volume, extent: Extent) -> BTreeSet<u64> {
    let list = volume.part_list();
    let horizon = volume.visible(volume.oldest().0);
    let reader = crate::reader::Reader { parts: list, ..volume.reader(&horizon) };
    let mut blocks = BTreeSet::new();
    let mut rest = extent;
    while rest.blocks > 0 {
        let Ok((covered, pieces)) = reader.changed(rest, STEP_BLOCKS as usize) else { break };
        for piece in &pieces {
            let changed = piece.extent();
            blocks.extend(changed.start.0.max(rest.start.0)..changed.end().min(rest.end()));
        }
        rest = Extent::new(covered.end(), rest.end());
    }
    blocks
}

fn damaged_blocks(volume: &Volume, base: &Base, extent: Extent, buffer: &mut [u8]) -> Vec<Damage> {
    let mut suspects: Vec<u64> = (extent.start.0..extent.end()).collect();
    let mut damages = Vec::new();
    // A fold may end between two looks.
    for _ in 0..LOOKS {
        damages.clear();
        for &lba in &suspects {
            if let Err(error) = base.read(lba, buffer) {
                damages.push(Damage {
                    file: volume.dir().join(format!("base.{:04}", lba / PIECE_BLOCKS)),
                    offset: lba % PIECE_BLOCKS * BLOCK_BYTES,
                    lsn: None,
                    extent: Some(Extent { start: Lba(lba), blocks: 1 }),
                    what: error.to_string(),
                });
            }
        }
        let excused = being_folded(volume, extent);
        let lba = |damage: &Damage| damage.extent.map_or(0, |extent| extent.start.0);
        damages.retain(|damage| !excused.contains(&lba(damage)));
        suspects = damages.iter().map(lba).collect();
    }
    damages
}
