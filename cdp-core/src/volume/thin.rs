//! Thinning: of a stretch of old history only what kept states see is written to a fold, and the segments go.
//!
//! ```text
//!        ┌──── an error, or the process died: as if nothing had happened ────┐
//!        ▼                                                                   │
//!   choose, no new pins → write → sync → read back → publish ─► drop, recycle
//! ```
//!
//! - *Choose*: the oldest segments whose every-write time is over, or neighbouring folds, or a fold that keeps states
//!   which nobody wants any more. From here on only what will be kept can be pinned; what is pinned is kept.
//! - *Write*: the stretch is cut into pieces that each kept state sees whole or not at all (`history/retention/stretch.rs`);
//!   of each piece the newest version of a block goes to the fold, with its own LSN and checksum.
//! - *Read back*: each piece is looked up in the segments and in the fold; both must say the same, and the fold's payload
//!   must fit its checksums.
//! - *Publish*: one rename. From here on the fold counts, and recovery removes the segments that are still there.
//! - *Drop* as in `volume/advance.rs`. Readers that began before keep what they hold.

mod copy;
mod pieces;
mod plan;

pub(in crate::volume) use copy::event_stays;
pub(in crate::volume) use pieces::Pieces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::advance::Duties;
use super::aging::{Scene, ThinChoice};
use super::parts::{LivePart, Part, PartIndex, PartList};
use super::pins::Thinned;
use crate::error::{IoContext, Result};
use crate::format::codec::Codec;
use crate::format::fold::{FoldHeader, PointRow, fold_run_name};
use crate::format::ledger::{Fact, Reason};
use crate::ids::*;
use crate::index::{Live, Run, RunSource};
use crate::journal::fold::{Fold, FoldWriter};
use crate::limits::THIN_RETRY_NS;
use crate::volume::parts::Frozen;
use std::sync::OnceLock;

/// What is to be thinned, and to what.
pub(super) struct Plan {
    /// What the fold will stand for: neighbours, all sealed.
    pub(super) parts: PartList,
    /// Its records.
    pub(super) lsns: (Lsn, Lsn),
    /// Pieces of which the newest versions stay, rising.
    pub(super) pieces: Vec<(Lsn, Lsn)>,
    /// States that stay, rising.
    pub(super) points: Vec<PointRow>,
    /// The fold's level.
    pub(super) level: u8,
    /// Why.
    pub(super) reason: Reason,
    /// How its payload is compressed.
    pub(super) codec: Codec,
    /// What could be pinned of it before.
    pub(super) before: BTreeMap<Lsn, Thinned>,
}

/// A fold that is being made.
pub(super) struct Thin {
    plan: Plan,
    header: FoldHeader,
    writer: FoldWriter,
    index: LivePart,
    // What it is made of.
    pieces: Pieces,
    stage: Stage,
    piece: usize,
    next_block: u64,
}

enum Stage {
    Write,
    /// The fold, under its temporary name, and its pieces.
    Check(PartList, Box<Pieces>),
}

impl Thin {
    /// Memory that it takes, in bytes, without the small buffers.
    fn memory_bytes(&self) -> usize {
        let written = match &self.stage {
            Stage::Write => 0,
            Stage::Check(_, written) => written.memory_bytes(),
        };
        self.pieces.memory_bytes() + self.index.memory_bytes() + written
    }
}

/// What thinned history holds, and what that takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ThinnedPayload {
    /// Bytes of the versions that were kept.
    pub plain_bytes: u64,
    /// What they take, compressed.
    pub stored_bytes: u64,
}

impl Volume {
    /// What its folds hold, and what compression makes of it; without their tables.
    pub fn thinned_payload(&self) -> ThinnedPayload {
        let mut sum = ThinnedPayload::default();
        for part in self.parts.list().iter() {
            if let Some(fold) = &part.segment.fold {
                sum.plain_bytes += fold.header.payload_blocks * BLOCK_BYTES;
                sum.stored_bytes += fold.header.tables_at - BLOCK_BYTES;
            }
        }
        sum
    }

    /// One bounded step of thinning: of what is under way, or else of what `choose` finds. A failure is noted, everything
    /// is as before, and it is tried again later. The work done, in bytes; `None` if there is nothing to thin.
    pub(super) fn thin_step<'a>(
        &self,
        duties: &mut Duties,
        choose: impl FnOnce() -> Result<Option<(Scene<'a>, ThinChoice)>>,
    ) -> Option<u64> {
        let begun = match duties.thin.take() {
            Some(thin) => Ok(Some(thin)),
            None => choose().and_then(|chosen| match chosen {
                Some((scene, choice)) => {
                    self.plan_thin(&scene, &choice).and_then(|plan| self.begin_thin(plan)).map(Some)
                }
                None => Ok(None),
            }),
        };
        let stepped = begun.and_then(|thin| thin.map(|thin| self.thin_some(duties, thin)).transpose());
        stepped.unwrap_or_else(|error| {
            duties.thin_retry_ns = self.shared.clock.elapsed_ns().saturating_add(THIN_RETRY_NS);
            self.note_error(format!("thinning: {error}; it is tried again later"));
            None
        })
    }

    fn begin_thin(&self, plan: Plan) -> Result<Box<Thin>> {
        match self.open_writer(&plan) {
            Ok((header, writer)) => {
                let index = LivePart {
                    live: Live::sparse(plan.lsns.0, plan.lsns.1),
                    events: Vec::new(),
                    damages: Vec::new(),
                    summary: header.summary,
                };
                let pieces = self.pieces_of(&plan.parts);
                let stage = Stage::Write;
                Ok(Box::new(Thin { plan, header, writer, index, pieces, stage, piece: 0, next_block: 0 }))
            }
            Err(error) => {
                self.pins.lock().unthin(plan.lsns.0, plan.before);
                Err(error)
            }
        }
    }

    fn pieces_of(&self, parts: &PartList) -> Pieces {
        Pieces::of(parts.clone(), self.shared.memory.budget_bytes())
    }

    fn open_writer(&self, plan: &Plan) -> Result<(FoldHeader, FoldWriter)> {
        let (first, last) = (&plan.parts[0], &plan.parts[plan.parts.len() - 1]);
        let frozen = last.frozen.get().expect("the choice was among sealed parts");
        let mut summary = crate::format::run::Summary::default();
        let mut made_of_bytes = 0;
        let mut generation = 0;
        for part in plan.parts.iter() {
            summary.add(&part.summary()?);
            made_of_bytes +=
                part.segment.file.len().at(|| format!("measuring {}", part.segment.path.display()))?;
            generation = generation.max(part.segment.fold.as_ref().map_or(0, |fold| fold.header.generation));
        }
        let (oldest, newest) = (&first.segment.header, &last.segment.header);
        let first_ordinal = first.segment.fold.as_ref().map_or(oldest.ordinal, |fold| fold.header.ordinals.0);
        let id = SegmentId((self.shared.clock.random() as u64).max(1));
        let header = FoldHeader {
            is_twice: true,
            codec: plan.codec,
            volume: self.identity.journal_id(),
            id,
            level: plan.level,
            generation: generation + 1,
            ordinals: (first_ordinal, newest.ordinal),
            lsns: plan.lsns,
            timestamps: (first.before.timestamp, frozen.last.timestamp),
            chains: (first.before.chain, frozen.last.chain),
            predecessor: oldest.predecessor,
            predecessor_end: oldest.predecessor_end,
            segment: newest.id,
            incarnations: (newest.incarnation, newest.previous_incarnation),
            epoch: newest.epoch,
            seal: frozen.seal_hash.unwrap_or_default(),
            summary,
            made_of_bytes,
            payload_blocks: 0,
            tables_at: 0,
            points: 0,
            entries: 0,
            events: 0,
            damages: 0,
            points_crc: 0,
            tables_crc: 0,
            hash: [0; 32],
        };
        let writer = FoldWriter::begin(&self.shared.files, &self.dir, newest.ordinal, id, plan.codec)
            .at(|| format!("volume {}: making a fold", self.identity.name))?;
        Ok((header, writer))
    }

    fn thin_some(&self, duties: &mut Duties, mut thin: Box<Thin>) -> Result<u64> {
        match self.thin_piece(&mut thin) {
            Ok((bytes, false)) => {
                self.thinning_bytes.store(thin.memory_bytes(), Ordering::Relaxed);
                duties.thin = Some(thin);
                Ok(bytes)
            }
            Ok((bytes, true)) => {
                self.thinning_bytes.store(0, Ordering::Relaxed);
                self.finish_thin(duties, *thin)?;
                Ok(bytes)
            }
            Err(error) => {
                self.abandon_thin(*thin);
                Err(error)
            }
        }
    }

    /// Works on the next blocks of a piece: what it cost, and whether the fold is whole and checked.
    fn thin_piece(&self, thin: &mut Thin) -> Result<(u64, bool)> {
        let mut bytes = copy::LOOK_BYTES;
        if let Some(piece) = thin.plan.pieces.get(thin.piece).copied() {
            let (worked, end) = match &thin.stage {
                Stage::Write => self.copy_some(thin, piece)?,
                Stage::Check(..) => self.check_some(thin, piece)?,
            };
            bytes += worked;
            thin.next_block = end;
            if end < self.blocks_max() {
                return Ok((bytes, false));
            }
            (thin.piece, thin.next_block) = (thin.piece + 1, 0);
            if thin.piece < thin.plan.pieces.len() {
                return Ok((bytes, false));
            }
        }
        match &thin.stage {
            Stage::Check(..) => Ok((bytes, true)),
            Stage::Write => {
                let fold = self.end_writing(thin)?;
                let written = Box::new(self.pieces_of(&fold));
                thin.stage = Stage::Check(fold, written);
                thin.piece = 0;
                // With nothing to compare, comparing is over at once.
                Ok((bytes, thin.plan.pieces.is_empty()))
            }
        }
    }

    pub(super) fn blocks_max(&self) -> u64 {
        self.largest_size_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Writes tables, header and run, and opens what was written.
    fn end_writing(&self, thin: &mut Thin) -> Result<PartList> {
        let name = self.identity.name.clone();
        let place = || format!("volume {name}: writing a fold");
        self.copy_events(thin)?;
        let Thin { writer, index, plan, header, .. } = thin;
        *header = writer
            .finish(*header, &plan.points, index.live.iter(), &index.events, &index.damages)
            .at(place)?;
        let fold = Fold::open(writer.fresh_path(), &self.shared.segments).at(place)?;
        let Some(fold) = fold.filter(|fold| fold.header == *header && fold.points == plan.points) else {
            return Err(unreadable(&name));
        };
        if !fold.is_whole().at(place)? {
            return Err(unreadable(&name));
        }
        // What a rebuild of the run would read.
        fold.tables()?;
        let source = RunSource {
            volume: header.volume,
            segment: header.id,
            log_end: header.file_bytes(),
            chain: header.chains.1.0,
            seal: header.seal,
            codec: 0,
            live: &index.live,
            markers: &index.events,
            damages: &index.damages,
            summary: index.summary,
        };
        let path = self.run_path(writer);
        Run::write(&*self.shared.files, &path, &source)?;
        let run = Run::open(&*self.shared.files, &path, &self.shared.pages)?;
        let part = fold_part(&fold, Arc::new(run));
        // The memory is not needed any more.
        index.live = Live::sparse(header.lsns.0, header.lsns.1);
        Ok(Arc::new(super::parts::PartSet::new(vec![Arc::new(part)])))
    }

    fn run_path(&self, writer: &FoldWriter) -> std::path::PathBuf {
        let name = writer.path().file_name().unwrap_or_default();
        self.dir.join(fold_run_name(&name.to_string_lossy()))
    }

    /// As if nothing had happened.
    fn abandon_thin(&self, thin: Thin) {
        self.thinning_bytes.store(0, Ordering::Relaxed);
        thin.writer.abandon();
        let _ = self.shared.files.remove(&self.run_path(&thin.writer));
        self.pins.lock().unthin(thin.plan.lsns.0, thin.plan.before);
    }

    /// Gives up what is under way.
    pub(super) fn give_up_thin(&self, duties: &mut Duties) {
        if let Some(thin) = duties.thin.take() {
            self.abandon_thin(*thin);
        }
    }

    /// The fold is whole and was read back: it counts from here on, and what it was made of goes.
    fn finish_thin(&self, duties: &mut Duties, thin: Thin) -> Result<()> {
        let (files, name) = (&*self.shared.files, &self.identity.name);
        let place = || format!("volume {name}: publishing a fold");
        let published = thin.writer.publish().at(place).and_then(|()| {
            let fold = Fold::open(thin.writer.path(), &self.shared.segments).at(place)?;
            fold.filter(|fold| fold.header == thin.header).ok_or_else(|| unreadable(name))
        });
        let fold = match published {
            Ok(fold) => fold,
            Err(error) => {
                // Its name may be on the disk or not. Only when it surely is not, what it leaves out is shown again.
                let gone = files.remove(thin.writer.path());
                let gone = match gone {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => files.sync_dir(&self.dir),
                };
                if gone.is_ok() {
                    self.abandon_thin(thin);
                } else {
                    thin.writer.abandon();
                }
                return Err(error);
            }
        };
        let Stage::Check(checked, _) = &thin.stage else { unreachable!("it was checked") };
        let run = checked[0].run().expect("a fold's part has its run").clone();
        self.take_fold(duties, &thin, fold_part(&fold, run));
        let plan = &thin.plan;
        self.forget_names_within(plan.lsns, &fold);
        self.teach_catalog();
        self.note_fact(Fact::Thinned {
            from: (plan.lsns.0, thin.header.timestamps.0),
            to: (plan.lsns.1, thin.header.timestamps.1),
            kept: plan.points.len() as u64,
            bytes_before: thin.header.made_of_bytes,
            bytes_after: thin.header.file_bytes(),
            reason: plan.reason,
        });
        Ok(())
    }

    /// Puts the fold in the place of the parts that it was made of.
    fn take_fold(&self, duties: &mut Duties, thin: &Thin, part: Part) {
        let parts = &thin.plan.parts;
        let (first, last) = (parts[0].segment.header.ordinal, parts[parts.len() - 1].segment.header.ordinal);
        self.journal_bytes.fetch_add(thin.header.file_bytes(), Ordering::Relaxed);
        let part = Arc::new(part);
        // Under the append lock: leaving a poisoned segment replaces parts by their places in the list.
        let append = self.append.lock().expect("no panics under this lock");
        let mut dropped = Vec::new();
        self.parts.change(|parts| {
            let from = parts.partition_point(|part| part.segment.header.ordinal < first);
            let to = parts.partition_point(|part| part.segment.header.ordinal <= last);
            dropped.extend(parts.splice(from..to, [part.clone()]));
        });
        let lists = Arc::new(self.parts.old_lists());
        duties.dropped.extend(dropped.into_iter().map(|part| (part, lists.clone())));
        drop(append);
        let mut staged = self.staged.lock().expect("no panics under this lock");
        staged.dirty.retain(|segment| !(first..=last).contains(&segment.header.ordinal));
    }
}

fn unreadable(name: &str) -> crate::error::Error {
    let context = format!("volume {name}: a fold that was just written does not read back as it was written");
    crate::error::Error::new(crate::error::Kind::Damaged, context)
}

/// The part of a fold with its run.
fn fold_part(fold: &Arc<Fold>, run: Arc<Run>) -> Part {
    let end = fold.header.file_bytes();
    let frozen = Frozen { last: fold.last(), end, may_seal: false, seal_hash: Some(fold.header.seal) };
    Part {
        segment: fold.segment(),
        before: fold.before(),
        frozen: OnceLock::from(frozen),
        index: PartIndex::Run(run),
        repaired: OnceLock::new(),
    }
}
