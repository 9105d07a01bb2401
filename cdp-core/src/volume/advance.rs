//! Advance: the oldest history is folded into the base, the newest version of each block only, and its segments are
//! given back.
//!
//! ```text
//!           ┌───────── an error, or the process died: from the beginning ─────────┐
//!           ▼                                                                     │
//!   horizon durable → drain → write → sync → read back → base LSN durable → drop, recycle
//! ```
//!
//! - *Horizon durable*: no state below it can be viewed any more (`volume/retain.rs`), and the base LSN `b` will
//!   not be above it.
//! - *Drain*: reads that began before hold the list of parts that they took; they have gone when the list has.
//! - *Write*: a block of the base is written over only if a record in (base LSN, b] changed it. Every state that is
//!   retained sees that record or a newer one, so nobody reads that block of the base until the base LSN is b.
//! - *Sync, read back*: the base holds what the records promised before anything says so.
//! - *Base LSN durable*: one manifest, replaced as a whole. From here on the records up to b are the base's.
//! - *Drop*: the segments go; whoever still reads in one keeps it until he is done.
//!
//! Nothing here holds the append lock during I/O. Every step can be repeated, so a crash or an error anywhere costs
//! only work.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::aging::{Duty, Scene};
use super::parts::{OldLists, Part, PartList, PartSet, is_sealed};
use super::thin::Thin;
use super::{Health, Volume};
use crate::error::{IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::history::{BasePoint, HistoryState};
use crate::history::retention::{AtCap, Policy};
use crate::ids::*;
use crate::index::Visible;
use crate::journal::segment::{self, Fill};
use crate::limits::FOLD_BYTES_PER_S;
use crate::reader::{Piece, Reader};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Versions looked up at a time, by each part.
const VERSIONS_PER_LOOK: usize = 1024;
/// Blocks read from the journal and written to the base at a time.
const BLOCKS_PER_WRITE: usize = 256;
/// Looking up and checking costs about as much as so many bytes, so that work without payload counts too.
const LOOK_BYTES: u64 = 64 << 10;
/// The budget of a call when the journal is full, in bytes: between two calls the other duties have their turn.
const PRESSED_STEP_BYTES: u64 = 64 << 20;
/// The policy is looked at so often, in nanoseconds.
const POLICY_INTERVAL_NS: u64 = 1_000_000_000;
/// So long a writer waits for readers and views to leave what is to be dropped, in milliseconds.
const READERS_WAIT_MS: u64 = 1_000;

/// What upkeep of history remembers between calls. Its lock is taken before all others of the volume.
pub(super) struct Duties {
    fold: Option<Fold>,
    // A fold did not fit: the next ones are as small as can be until one is done.
    fold_is_tight: bool,
    pub(super) dropped: Vec<(Arc<Part>, Arc<OldLists>)>,
    budget_at_ns: u64,
    // The policy by which there was nothing to do, and when.
    looked: Option<(Policy, u64)>,
    pub(super) thin: Option<Box<Thin>>,
    // When thinning may be tried again.
    pub(super) thin_retry_ns: u64,
}

impl Duties {
    pub(super) fn new(now_ns: u64) -> Duties {
        Duties {
            fold: None,
            fold_is_tight: false,
            dropped: Vec::new(),
            budget_at_ns: now_ns,
            looked: None,
            thin: None,
            thin_retry_ns: 0,
        }
    }

    /// Whether it is time to look what the times of the policy say. While there is something to do, it always is.
    fn is_due(&self, policy: &Policy, now_ns: u64) -> bool {
        let is_over = |at_ns: u64| now_ns.saturating_sub(at_ns) >= POLICY_INTERVAL_NS;
        self.looked.as_ref().is_none_or(|(looked, at_ns)| looked != policy || is_over(*at_ns))
    }
}

/// A fold in progress.
struct Fold {
    /// What is folded: the oldest parts, all sealed.
    parts: PartList,
    /// Where the base will stand.
    to: BasePoint,
    visible: Visible,
    stage: Stage,
    /// The next block to look at, while writing and reading back.
    next_block: u64,
}

enum Stage {
    /// Until the readers of these lists have gone.
    Drain(OldLists),
    Write,
    Check,
}

/// What came of making room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// There was some: the filesystem is full, or others are quicker.
    Was,
    /// There is some now.
    Made,
    /// There is none to be had.
    None,
}

/// What a step came to.
#[derive(PartialEq, Eq)]
enum Step {
    /// There is nothing to fold or drop.
    Idle,
    /// Somebody still reads what is to go.
    Waiting,
    /// So many bytes' worth of work was done.
    Worked(u64),
}

impl Volume {
    /// The part of [`Volume::maintain`] that keeps history as short as its policy says: some bounded work.
    pub(super) fn age(&self, duties: &mut Duties) -> Result<()> {
        let now_ns = self.shared.clock.elapsed_ns();
        let since = now_ns.saturating_sub(duties.budget_at_ns);
        duties.budget_at_ns = now_ns;
        let pressed = self.excess_bytes()? > 0;
        let gentle = u128::from(FOLD_BYTES_PER_S) * u128::from(since) / 1_000_000_000;
        let mut budget =
            if pressed { PRESSED_STEP_BYTES } else { (gentle as u64).clamp(LOOK_BYTES, PRESSED_STEP_BYTES) };
        while let Step::Worked(bytes) = self.age_step(duties)? {
            budget = budget.saturating_sub(bytes);
            if budget == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Whether the journal is full and the oldest history has to go: then [`Volume::maintain`] is wanted again at
    /// once.
    pub fn is_pressed(&self) -> bool {
        let drops = self.retention().at_cap == AtCap::DropOldest;
        drops && self.health() == Health::Good && self.excess_bytes().is_ok_and(|bytes| bytes > 0)
    }

    /// Makes room for the next segment, as the policy allows, while a writer waits who holds no lock.
    pub(super) fn drop_for_room(&self) -> Result<Room> {
        if self.retention().at_cap == AtCap::Block {
            return Ok(Room::None);
        }
        let mut waited_ms = 0;
        let mut room = Room::Was;
        loop {
            let mut duties = self.duties.lock().expect("no panics under this lock");
            // It may have been closed meanwhile, and its files be another instance's.
            self.refuse_unless_healthy()?;
            // What is to be left free besides is for upkeep to care for.
            if self.has_room() {
                return Ok(room);
            }
            room = Room::Made;
            let sealed = self.seal_oldest()?;
            match self.age_step(&mut duties)? {
                Step::Worked(_) => {}
                // The base may rest at the end of the next one only.
                Step::Idle if sealed => {}
                Step::Idle if self.has_room() => return Ok(room),
                Step::Idle if self.held_by().is_none() => return Ok(Room::None),
                // A view that is open for a moment must not fail a write; one that stays may.
                Step::Idle | Step::Waiting if waited_ms >= READERS_WAIT_MS => return Ok(Room::None),
                Step::Idle | Step::Waiting => {
                    drop(duties);
                    // Whoever reads there needs no lock of ours to come to an end.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    waited_ms += 1;
                }
            }
        }
    }

    /// Whether the next segment is there, or fits below the cap.
    fn has_room(&self) -> bool {
        let ready = self.pool.lock().expect("no panics under this lock").ready();
        ready > 0 || self.refuse_beyond_cap(self.identity.segment_bytes).is_ok()
    }

    /// Only sealed segments can go: seals the oldest one that is full and is not. Whether there was one.
    fn seal_oldest(&self) -> Result<bool> {
        let list = self.parts.list();
        let Some(part) = list.iter().find(|part| part.frozen.get().is_some() && !is_sealed(part)) else {
            return Ok(false);
        };
        self.seal_part(part, false)?;
        Ok(true)
    }

    /// One bounded step. After an error the fold begins anew.
    fn age_step(&self, duties: &mut Duties) -> Result<Step> {
        match self.recycle_dropped(duties)? {
            Step::Idle => {}
            done => return Ok(done),
        }
        match duties.fold.take() {
            Some(fold) => self.fold_step_or_clear(duties, fold),
            None if duties.thin.is_some() => {
                Ok(self.thin_step(duties, || Ok(None)).map_or(Step::Idle, Step::Worked))
            }
            None => self.begin_duty(duties),
        }
    }

    /// Begins with what is next, if anything is.
    fn begin_duty(&self, duties: &mut Duties) -> Result<Step> {
        let now_ns = self.shared.clock.elapsed_ns();
        let policy = self.retention();
        let is_due = duties.is_due(&policy, now_ns);
        let may_thin = now_ns >= duties.thin_retry_ns;
        let mut scene = Scene::of(self, policy)?;
        if duties.fold_is_tight {
            scene.fold_room_bytes = 0;
        }
        match scene.next_below(is_due, may_thin)? {
            Some(Duty::Move { to, reason }) => {
                // Unless somebody has come who holds it.
                if self.move_horizon(to, reason)? {
                    return Ok(Step::Worked(LOOK_BYTES));
                }
            }
            Some(Duty::Fold { count }) => {
                let fold = self.begin_fold(scene, count)?;
                return self.fold_step_or_clear(duties, fold);
            }
            Some(Duty::Thin(_)) | None => {}
        }
        let policy = scene.policy.clone();
        let choose = || {
            let choice = if may_thin { scene.next_thin(is_due)? } else { None };
            Ok(choice.map(|choice| (scene, choice)))
        };
        let worked = self.thin_step(duties, choose);
        if is_due && worked.is_none() {
            duties.looked = Some((policy, now_ns));
        }
        Ok(worked.map_or(Step::Idle, Step::Worked))
    }

    /// As below; where there is no room for what is folded, the next one is as small as can be.
    fn fold_step_or_clear(&self, duties: &mut Duties, fold: Fold) -> Result<Step> {
        let (parts, visible) = (fold.parts.clone(), fold.visible.clone());
        let done = self.fold_step(duties, fold);
        if let Err(error) = &done
            && error.kind() == Kind::NoSpace
        {
            // What was put there already would be in the way of a smaller one; also what an earlier opening put there.
            let was_tight = std::mem::replace(&mut duties.fold_is_tight, true);
            // The disk may already say that what is cleared is the base's.
            let cleared = self.settle_history().and_then(|()| match was_tight {
                true => self.clear_folded(parts, &visible),
                false => self.clear_all_folded(),
            });
            if let Err(error) = cleared {
                self.note_error(format!("clearing what was folded into the base and did not fit: {error}"));
            }
        }
        done
    }

    /// Takes everything out of the base that any fold could have put there since the base LSN moved.
    fn clear_all_folded(&self) -> Result<()> {
        let scene = Scene::of(self, self.retention())?;
        let Some(count) = scene.rest_of_all() else { return Ok(()) };
        let parts: Vec<Arc<Part>> =
            scene.bricks[..count].iter().flat_map(|brick| brick.parts()).cloned().collect();
        let visible = self.visible(scene.bricks[count - 1].lsns().1);
        self.clear_folded(Arc::new(PartSet::new(parts)), &visible)
    }

    /// Takes everything out of the base that these parts changed, none of which a retained state needs.
    ///
    /// Legal states after a crash: as while it is written. Every retained state finds a newer version of each of these blocks in the
    /// journal, and a fold that begins anew writes them all.
    fn clear_folded(&self, parts: PartList, visible: &Visible) -> Result<()> {
        let blocks = self.largest_size_bytes().div_ceil(BLOCK_BYTES);
        let reader = Reader {
            files: &*self.shared.files,
            parts,
            base: &self.base,
            visible,
            volume: self,
            using: self.try_use_files(),
        };
        let mut at = 0;
        while at < blocks {
            let (covered, pieces) = reader.changed(Extent::new(at, blocks), VERSIONS_PER_LOOK)?;
            for piece in &pieces {
                match piece {
                    Piece::Journal { lba, .. } => self.base.erase(lba.0, lba.0 + 1)?,
                    Piece::Zero { extent, .. } => self.base.erase(extent.start.0, extent.end())?,
                    Piece::Base { .. } => {}
                }
            }
            at = covered.end();
        }
        Ok(())
    }

    fn fold_step(&self, duties: &mut Duties, mut fold: Fold) -> Result<Step> {
        match &fold.stage {
            Stage::Drain(lists) if !lists.are_gone() => {
                duties.fold = Some(fold);
                return Ok(Step::Waiting);
            }
            Stage::Drain(_) => fold.stage = Stage::Write,
            Stage::Write | Stage::Check => {}
        }
        let checking = matches!(fold.stage, Stage::Check);
        let bytes = self.fold_some(&mut fold, checking)?;
        let blocks = self.largest_size_bytes().div_ceil(BLOCK_BYTES);
        if fold.next_block >= blocks {
            if checking {
                self.finish_fold(duties, &fold)?;
                return Ok(Step::Worked(bytes));
            }
            self.base.sync()?;
            fold.stage = Stage::Check;
            fold.next_block = 0;
        }
        duties.fold = Some(fold);
        Ok(Step::Worked(bytes))
    }

    /// The oldest sealed segments, which no retained state needs, go to the base.
    fn begin_fold(&self, scene: Scene<'_>, count: usize) -> Result<Fold> {
        let last = scene.bricks[count - 1].parts().last().expect("a brick of what is there is a part");
        let frozen = *last.frozen.get().expect("the choice was among sealed parts");
        let ordinal = last.segment.header.ordinal;
        let to = BasePoint {
            lsn: frozen.last.lsn,
            timestamp: frozen.last.timestamp,
            chain: frozen.last.chain,
            segment: last.segment.header.id,
            ordinal,
            seal: frozen.seal_hash.unwrap_or_default(),
            size_bytes: self.size_at(frozen.last.lsn),
            epoch: self.epochs().of_record(frozen.last.lsn),
        };
        drop(scene);
        let list = self.parts.list();
        let count = list.partition_point(|part| part.segment.header.ordinal <= ordinal);
        let parts: PartList = Arc::new(PartSet::new(list[..count].to_vec()));
        drop(list);
        // Those who read from here on take another list, so that the old ones tell when the others have gone.
        self.parts.change(|_| {});
        self.base.set_size(self.largest_size_bytes());
        let visible = self.visible(to.lsn);
        Ok(Fold { parts, to, visible, stage: Stage::Drain(self.parts.old_lists()), next_block: 0 })
    }

    /// Writes some blocks to the base, or reads them back; gives what it cost.
    fn fold_some(&self, fold: &mut Fold, checking: bool) -> Result<u64> {
        let blocks = self.largest_size_bytes().div_ceil(BLOCK_BYTES);
        let reader = Reader {
            files: &*self.shared.files,
            parts: fold.parts.clone(),
            base: &self.base,
            visible: &fold.visible,
            volume: self,
            using: self.try_use_files(),
        };
        let (covered, pieces) = reader.changed(Extent::new(fold.next_block, blocks), VERSIONS_PER_LOOK)?;
        let mut bytes = LOOK_BYTES;
        let mut rest = &pieces[..];
        while let Some(first) = rest.first() {
            let count = match first {
                Piece::Journal { .. } => neighbours(rest),
                _ => 1,
            };
            let (now, later) = rest.split_at(count);
            rest = later;
            match first {
                Piece::Journal { lba, .. } => {
                    self.fold_payload(&reader, lba.0, now, checking)?;
                    bytes += (count * BLOCK) as u64;
                }
                Piece::Zero { extent, .. } if checking => {
                    self.base.check_erased(extent.start.0, extent.end())?;
                }
                Piece::Zero { extent, .. } => self.base.erase(extent.start.0, extent.end())?,
                Piece::Base { .. } => unreachable!("the base's own pieces are left out"),
            }
        }
        fold.next_block = covered.end();
        Ok(bytes)
    }

    /// Blocks that are neighbours on the volume, from `first` on.
    fn fold_payload(&self, reader: &Reader<'_>, first: u64, pieces: &[Piece], checking: bool) -> Result<()> {
        let mut buffer = vec![0; pieces.len() * BLOCK];
        if reader.fetch(pieces, &mut buffer).is_err() {
            // Some block is damaged. What can be read of it goes to the base with the checksum that it does not
            // fit, so that reading it stays an error, and the others are what they were.
            for (piece, block) in pieces.iter().zip(buffer.chunks_exact_mut(BLOCK)) {
                if !matches!(piece, Piece::Journal { .. }) {
                    continue;
                }
                let _ = reader.fetch(std::slice::from_ref(piece), block);
            }
        }
        let crcs: Vec<u32> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Journal { crc, .. } => *crc,
                _ => 0,
            })
            .collect();
        if !checking {
            return self.base.put(first, &buffer, &crcs);
        }
        let intact: Vec<bool> =
            buffer.chunks_exact(BLOCK).zip(&crcs).map(|(block, crc)| crc32(block) == *crc).collect();
        self.base.check_put(first, &crcs, &intact)
    }

    /// The base holds it all: says so, and takes the segments out.
    fn finish_fold(&self, duties: &mut Duties, fold: &Fold) -> Result<()> {
        let horizon = self.durable_history().horizon;
        // Their records go.
        self.keep_epochs()?;
        self.publish_history(HistoryState { horizon, base: fold.to })?;
        duties.fold_is_tight = false;
        // Under the append lock: leaving a poisoned segment replaces parts by their places in the list.
        let append = self.append.lock().expect("no panics under this lock");
        let mut dropped = Vec::new();
        self.parts.change(|parts| {
            let count = parts.partition_point(|part| part.segment.header.ordinal <= fold.to.ordinal);
            dropped.extend(parts.drain(..count));
        });
        let lists = Arc::new(self.parts.old_lists());
        duties.dropped.extend(dropped.into_iter().map(|part| (part, lists.clone())));
        drop(append);
        // Sealed segments are synced, also where the next round of syncs has not taken them off its list yet.
        let mut staged = self.staged.lock().expect("no panics under this lock");
        staged.dirty.retain(|segment| segment.header.ordinal > fold.to.ordinal);
        drop(staged);
        self.forget_names(fold.to.lsn);
        self.pins.lock().forget_thinned(fold.to.lsn);
        Ok(())
    }

    /// Gives the space of dropped segments back: as the next segment if one is wanted, else to the filesystem.
    ///
    /// Legal states after a crash: the segment is still there (it is before the base, and removed at the next
    /// opening), its header is zeros under its old or its new name (an unused segment, or removed), or it is gone.
    fn recycle_dropped(&self, duties: &mut Duties) -> Result<Step> {
        let Some((part, lists)) = duties.dropped.first() else { return Ok(Step::Idle) };
        let wanted = self.pool.lock().expect("no panics under this lock").ready() == 0;
        // No list has it any more but old ones, so nobody can come to hold it who does not yet.
        let is_held = Arc::strong_count(part) > 1 || Arc::strong_count(&part.segment) > 1;
        let is_read = is_held || !lists.are_gone();
        let (part, _) = duties.dropped.remove(0);
        let files = &self.shared.files;
        self.remove_run_of(&part);
        let path = &part.segment.path;
        let bytes = part.segment.file.len().at(|| format!("measuring {}", path.display()))?;
        // One that was cut short grows to its full size again.
        let fits = self.journal_bytes().saturating_sub(bytes) + self.identity.segment_bytes
            <= self.journal_cap_bytes()?;
        if wanted && fits && !is_read && part.segment.fold.is_none() {
            self.recycle(&part, bytes)?;
        } else {
            files.remove(path).at(|| format!("removing {}", path.display()))?;
            self.forget_bytes(bytes);
        }
        Ok(Step::Worked(LOOK_BYTES))
    }

    /// A merged run goes with the last of its segments. A file that stays costs space only; the next opening removes
    /// it.
    fn remove_run_of(&self, part: &Part) {
        let files = &self.shared.files;
        match part.merged_run() {
            None => drop(files.remove(&self.dir.join(part.segment.run_name()))),
            Some(run) => {
                let list = self.parts.list();
                let is_shared = |other: &Arc<Part>| other.run().is_some_and(|own| Arc::ptr_eq(own, run));
                if !list.iter().any(is_shared) {
                    let _ = files.remove(run.path());
                }
            }
        }
    }

    fn recycle(&self, part: &Part, bytes: u64) -> Result<()> {
        let files = &*self.shared.files;
        let (ordinal, full) = {
            let mut pool = self.pool.lock().expect("no panics under this lock");
            (pool.claim_ordinal(), pool.segment_bytes())
        };
        if let Err(error) = segment::recycle(files, &self.dir, &part.segment, ordinal, full) {
            // It is before the base: whatever is left of it, the next opening removes it.
            let _ = files.remove(&part.segment.path);
            self.forget_bytes(bytes);
            return Err(error);
        }
        self.journal_bytes.fetch_add(full.saturating_sub(bytes), Ordering::Relaxed);
        self.add_to_pool(ordinal, Fill::Written);
        Ok(())
    }

    /// A wrong sum must not wrap: a measurement may have come in between.
    pub(super) fn forget_bytes(&self, bytes: u64) {
        let less = |now: u64| Some(now.saturating_sub(bytes));
        let _ = self.journal_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// How many of the front pieces are payload of neighbouring blocks, as many as are written at once.
fn neighbours(pieces: &[Piece]) -> usize {
    let lba = |piece: &Piece| match piece {
        Piece::Journal { lba, .. } => Some(lba.0),
        _ => None,
    };
    let first = pieces.first().and_then(lba).unwrap_or(0);
    let follow = pieces
        .iter()
        .take(BLOCKS_PER_WRITE)
        .enumerate()
        .take_while(|(n, piece)| lba(piece) == Some(first + *n as u64));
    follow.count().max(1)
}
