//! How large a fold would be: every version looked up as for writing it, and of the payload some frames compressed.

use std::sync::Arc;

use crate::error::Result;
use crate::format::codec::Codec;
use crate::format::fold::{FRAME_BLOCKS, fold_file_bytes};
use crate::ids::*;
use crate::index::{Found, Live, Search, Visible};
use crate::journal::fold::pack;
use crate::reader::{Piece, Reader};
use crate::volume::Volume;
use crate::volume::aging::Settled;
use crate::volume::parts::{Part, PartSet};
use crate::volume::thin::{Pieces, event_stays};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Versions looked up at a time, by each part.
const VERSIONS_PER_LOOK: usize = 4096;
/// About so many frames of a fold are compressed, and of one with fewer all.
const FRAMES_SAMPLED: u64 = 1024;

impl Volume {
    /// Blocks of payload and length of the fold that parts would become.
    pub(super) fn measure_fold(
        &self,
        parts: &[Arc<Part>],
        settled: &Settled,
        codec: Codec,
    ) -> Result<(u64, u64)> {
        let _using = self.use_files()?;
        let parts = Arc::new(PartSet::new(parts.to_vec()));
        let (Some(oldest), Some(newest)) = (parts.first(), parts.last()) else { return Ok((0, 0)) };
        let blocks_max: u64 = parts.iter().map(|part| blocks_of(part)).sum();
        let mut sample = Sample::of(blocks_max, codec);
        let mut index = Live::sparse(oldest.segment.header.first_lsn, newest.last_lsn());
        let mut pieces = Pieces::of(parts.clone(), self.shared.memory.budget_bytes());
        for piece in settled.stretch.pieces() {
            let visible = Visible::of(vec![piece]);
            let reader = self.reader_of(parts.clone(), &visible);
            while !pieces.prepare(piece, u64::MAX).is_ready {}
            let mut from = 0;
            while from < self.blocks_max() {
                // With the entries at hand nobody else asks.
                reader.refuse_if_over()?;
                let extent = Extent::new(from, self.blocks_max());
                let bounded = || Search::bounded(extent, VERSIONS_PER_LOOK);
                let search = pieces.search(&reader, piece, bounded)?;
                for version in search.found() {
                    match version.found {
                        Found::Hole => index.insert_range(version.lsn, version.extent, true),
                        Found::Zero => index.insert_range(version.lsn, version.extent, false),
                        Found::Payload { block, crc } => {
                            let (lba, lsn) = (version.extent.start, version.lsn);
                            index.insert_payload(lsn, lba, [(1, crc)]);
                            sample.block(&reader, Some(Piece::Journal { lba, lsn, block, crc }), &[]);
                        }
                    }
                }
                from = search.extent().end();
            }
        }
        let visible = Visible::of(Vec::new());
        let reader = self.reader_of(parts.clone(), &visible);
        let mut events = 0;
        for part in parts.iter() {
            for row in part.events()? {
                if event_stays(&row, |lsn| settled.kept.contains(&lsn)) {
                    events += 1;
                    for number in 0..u64::from(row.payload_bytes).div_ceil(BLOCK_BYTES) {
                        let mut bytes = [0; BLOCK];
                        // What cannot be read is told by whoever thins.
                        let at = (u64::from(row.block) + number) * BLOCK_BYTES;
                        let _ = part.segment.file.read_at(at, &mut bytes);
                        sample.block(&reader, None, &bytes);
                    }
                }
            }
        }
        sample.end_frame(&reader);
        let entries = index.iter().count() as u64;
        let points = settled.kept.len() as u64;
        let bytes = fold_file_bytes(sample.stored_bytes(), sample.blocks, points, entries, events, 0);
        Ok((sample.blocks, bytes))
    }
}

fn blocks_of(part: &Part) -> u64 {
    match &part.segment.fold {
        Some(fold) => fold.header.payload_blocks,
        None => part.frozen.get().map_or(0, |frozen| frozen.end / BLOCK_BYTES),
    }
}

/// Frames as they are filled, and what some of them come to when they are compressed.
struct Sample {
    /// One frame of so many is compressed.
    every: u64,
    codec: Codec,
    blocks: u64,
    frame: Vec<(Option<Piece>, Vec<u8>)>,
    frames: u64,
    seen_blocks: u64,
    seen_stored: u64,
}

impl Sample {
    fn of(blocks_max: u64, codec: Codec) -> Sample {
        let every = (blocks_max / FRAME_BLOCKS / FRAMES_SAMPLED).max(1);
        Sample { every, codec, blocks: 0, frame: Vec::new(), frames: 0, seen_blocks: 0, seen_stored: 0 }
    }

    /// A block of the index, or its bytes.
    fn block(&mut self, reader: &Reader<'_>, piece: Option<Piece>, bytes: &[u8]) {
        self.frame.push((piece, bytes.to_vec()));
        self.blocks += 1;
        if self.frame.len() as u64 == FRAME_BLOCKS {
            self.end_frame(reader);
        }
    }

    fn end_frame(&mut self, reader: &Reader<'_>) {
        let frame = std::mem::take(&mut self.frame);
        self.frames += 1;
        // Not every n-th: what was written in a pattern would be met in that pattern.
        if frame.is_empty() || !scattered(self.frames).is_multiple_of(self.every) {
            return;
        }
        let mut bytes = vec![0; frame.len() * BLOCK];
        for ((piece, event), block) in frame.iter().zip(bytes.chunks_exact_mut(BLOCK)) {
            match piece {
                // What cannot be read is told by whoever thins.
                Some(_) => {
                    let _ = reader.fetch(piece.as_slice(), block);
                }
                None => block.copy_from_slice(event),
            }
        }
        self.seen_blocks += frame.len() as u64;
        self.seen_stored += pack(self.codec, &bytes).map_or(bytes.len(), |packed| packed.len()) as u64;
    }

    /// What all blocks come to.
    fn stored_bytes(&self) -> u64 {
        match self.seen_blocks {
            0 => self.blocks * BLOCK_BYTES,
            seen => {
                let stored = u128::from(self.blocks) * u128::from(self.seen_stored) / u128::from(seen);
                u64::try_from(stored).unwrap_or(u64::MAX)
            }
        }
    }
}

/// A number's bits, mixed.
fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 16
}
