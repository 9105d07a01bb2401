//! How large a fold would be: every version looked up as for writing it, and of the payload some frames compressed.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::format::codec::Codec;
use crate::format::fold::{FRAME_BLOCKS, fold_file_bytes};
use crate::format::run::Entry;
use crate::ids::*;
use crate::index::{Found, Live, Run, Search, Visible};
use crate::journal::fold::pack;
use crate::reader::{Piece, Reader};
use crate::volume::Volume;
use crate::volume::aging::Settled;
use crate::volume::parts::{Part, PartIndex, PartSet};
use crate::volume::thin::event_stays;

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
        let parts = Arc::new(PartSet::new(parts.to_vec()));
        let (Some(oldest), Some(newest)) = (parts.first(), parts.last()) else { return Ok((0, 0)) };
        let blocks_max: u64 = parts.iter().map(|part| blocks_of(part)).sum();
        let mut sample = Sample::of(blocks_max, codec);
        let mut index = Live::sparse(oldest.segment.header.first_lsn, newest.last_lsn());
        let entries = entries_by_lsn(&parts).ok();
        for piece in settled.stretch.pieces() {
            let visible = Visible::of(vec![piece]);
            let reader = self.reader_of(parts.clone(), &visible);
            let alone = entries.as_ref().map(|entries| entries_alone(entries, piece)).transpose()?;
            let mut from = 0;
            while from < self.blocks_max() {
                let extent = Extent::new(from, self.blocks_max());
                let bounded = || Search::bounded(extent, VERSIONS_PER_LOOK);
                let search = match &alone {
                    Some(alone) => {
                        let mut search = bounded();
                        alone.resolve(&visible, &mut search);
                        search
                    }
                    None => reader.search(bounded)?,
                };
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

/// The entries of all records of these parts, by LSN. A stretch may have a piece for each of ten thousand markers: who looked for
/// each of them through a run of hundreds of segments would never be done.
fn entries_by_lsn(parts: &PartSet) -> Result<Vec<(Lsn, Entry)>> {
    let mut entries = Vec::new();
    let mut before: Option<&Arc<Run>> = None;
    for part in parts.iter() {
        let (first, last) = (part.segment.header.first_lsn, part.last_lsn());
        let mut take = |live: &Live| {
            let lsn = |entry: &Entry| Lsn(live.first_lsn().0 + u64::from(entry.lsn_delta));
            entries.extend(live.iter().map(|entry| (lsn(&entry), entry)));
        };
        match (&part.index, part.repaired.get()) {
            (PartIndex::Live(live), _) => take(&live.read().expect("no panics under this lock").live),
            (PartIndex::Run(_), Some(repaired)) => take(&repaired.live),
            (PartIndex::Run(run), None) if run.is_bad() => {
                return Err(Error::new(Kind::Damaged, "the run is being made anew"));
            }
            // Neighbours share a merged one.
            (PartIndex::Run(run), None) if before.is_some_and(|before| Arc::ptr_eq(before, run)) => {}
            (PartIndex::Run(run), None) => {
                let shares = |other: &&Arc<Part>| other.run().is_some_and(|own| Arc::ptr_eq(own, run));
                let last = parts.iter().filter(shares).map(|part| part.last_lsn()).max().unwrap_or(last);
                run.entries_of(first, last, &mut |lsn, entry| entries.push((lsn, entry)))?;
                before = Some(run);
            }
        }
    }
    entries.sort_by_key(|(lsn, _)| *lsn);
    Ok(entries)
}

/// An index of the entries of one piece.
fn entries_alone(entries: &[(Lsn, Entry)], piece: (Lsn, Lsn)) -> Result<Live> {
    let from = entries.partition_point(|(lsn, _)| *lsn < piece.0);
    let mut alone = Live::sparse(piece.0, piece.1);
    for (lsn, entry) in entries[from..].iter().take_while(|(lsn, _)| *lsn <= piece.1) {
        let lsn_delta = (lsn.0 - piece.0.0) as u32;
        if !alone.insert_entry(&Entry { lsn_delta, ..*entry }) {
            return Err(Error::new(Kind::Damaged, format!("the index has entries of nothing at {lsn:?}")));
        }
    }
    Ok(alone)
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
