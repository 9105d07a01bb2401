//! Reads a newest state back that came ahead of the history: what its manifest counts, block by block against the checksums.

use super::{BLOCK, Damage, Verified, Watch};
use crate::base::{Overlay, Source};
use crate::error::Result;
use crate::ids::*;
use crate::limits::BASE_PIECE_BYTES;
use crate::volume::Volume;
use crate::volume::coalesced::COALESCED_DIR;

/// Bytes read at a time.
const STEP_BYTES: u64 = 1 << 20;
const PIECE_BLOCKS: u64 = BASE_PIECE_BYTES / BLOCK_BYTES;

/// How much there is to read. One that is not whole yet is not shown, and what it has is checked when it is.
pub(super) fn bytes(volume: &Volume) -> Result<u64> {
    let Some(newest) = volume.coalesced() else { return Ok(0) };
    let mut bytes = 0;
    each_own(volume, newest.overlay(), newest.state().size_bytes, &mut |extent| {
        bytes += extent.blocks * BLOCK_BYTES;
        Ok(())
    })?;
    Ok(bytes)
}

fn each_own(
    volume: &Volume,
    overlay: &Overlay,
    size_bytes: u64,
    visit: &mut dyn FnMut(Extent) -> Result<()>,
) -> Result<()> {
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    let mut at = 0;
    while at < blocks {
        let using = volume.use_files()?;
        if let Some(end) = overlay.lost_until(at) {
            at = end;
            continue;
        }
        let (end, source) = overlay.look(at, blocks.min((at / PIECE_BLOCKS + 1) * PIECE_BLOCKS))?;
        drop(using);
        if source == Source::Own {
            visit(Extent::new(at, end))?;
        }
        at = end;
    }
    Ok(())
}

pub(super) fn verify(volume: &Volume, found: &mut Verified, total: u64, watch: &mut Watch<'_>) -> Result<()> {
    let dir = volume.dir().join(COALESCED_DIR);
    if let Some(why) = volume.coalesced_problem() {
        found.add_file(&dir, 0, why);
    }
    // Whoever has it open reads on when the history has arrived meanwhile, and so does this.
    let Some(newest) = volume.coalesced() else { return Ok(()) };
    for problem in newest.overlay().problems() {
        found.add(Damage {
            file: problem.file,
            offset: 0,
            lsn: None,
            extent: problem.extent,
            what: problem.what,
        });
    }
    let mut buffer = vec![0; STEP_BYTES as usize];
    each_own(volume, newest.overlay(), newest.state().size_bytes, &mut |extent| {
        let mut at = extent.start.0;
        while at < extent.end() {
            let blocks = (extent.end() - at).min(STEP_BYTES / BLOCK_BYTES);
            let using = volume.use_files()?;
            let read = |first: u64, buffer: &mut [u8]| {
                newest.overlay().read(first, buffer, &mut |_, below| {
                    below.fill(0);
                    Ok(())
                })
            };
            if read(at, &mut buffer[..blocks as usize * BLOCK]).is_err() {
                for lba in at..at + blocks {
                    if let Err(error) = read(lba, &mut buffer[..BLOCK]) {
                        found.add(Damage {
                            file: dir.join(format!("base.{:04}", lba / PIECE_BLOCKS)),
                            offset: lba % PIECE_BLOCKS * BLOCK_BYTES,
                            lsn: None,
                            extent: Some(Extent { start: Lba(lba), blocks: 1 }),
                            what: error.to_string(),
                        });
                    }
                }
            }
            drop(using);
            at += blocks;
            found.bytes += blocks * BLOCK_BYTES;
            watch(found.bytes, total)?;
        }
        Ok(())
    })
}
