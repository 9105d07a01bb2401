//! A volume: one journal, its index, its base. The one owner of their state.
//!
//! Lock order: `duties` → `merging` → `append` → `pool` → `parts` (a part's own lock last). `commit` is never held while
//! another is taken. Nobody does I/O while holding `parts` or `course`.

pub mod advance;
mod aging;
mod ahead;
pub mod changed;
pub mod client;
pub mod clone;
pub mod coalesced;
pub mod cut;
mod doubt;
pub mod durable;
pub mod epoch;
mod events;
mod gather;
pub mod identity;
pub mod ledger;
mod lesson;
mod memory;
pub mod merge;
mod names;
pub mod open;
pub mod parts;
pub mod pins;
pub mod promote;
pub mod proofs;
pub mod rate;
pub mod replicas;
pub mod retain;
pub mod rights;
pub mod role;
pub mod rollback;
pub mod shown;
pub mod simulate;
pub mod source;
pub mod stream;
pub mod takeover;
pub mod thin;
pub mod timeline;
pub mod together;
pub mod upkeep;
pub mod uses;
pub mod verify;
pub mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::base::Base;
use crate::catalog::Catalog;
use crate::device::{Change, Device, Read, Stretch};
use crate::error::{Error, Kind, Result};
use crate::history::course::Course;
use crate::history::retention::Policy;
use crate::ids::*;
use crate::index::{IndexOptions, Memory, PageCache, Share, Visible};
use crate::io::{FilePool, Files, Space};
use crate::journal::append::Appender;
use crate::journal::commit::Commit;
use crate::journal::looked::LookedFile;
use crate::journal::mark::MarkFile;
use crate::journal::pool::Pool;
use crate::journal::segment::Segment;
use crate::promises::Promises;
use crate::reader::Reader;
use crate::time::StoreClock;
pub use identity::Identity;
use parts::Parts;

/// What all volumes of a store share.
#[derive(Clone)]
pub struct Shared {
    /// The files.
    pub files: Arc<dyn Files>,
    /// The store's one clock.
    pub clock: Arc<StoreClock>,
    /// What its clock never goes back behind.
    pub promises: Arc<Promises>,
    /// Pages of runs.
    pub pages: Arc<PageCache>,
    /// What the indexes take.
    pub memory: Arc<Memory>,
    /// Files of segments that are not written to.
    pub segments: Arc<FilePool>,
    /// Whether segments are pre-written for small commits when a volume is opened; else only reserved.
    pub prewrite: bool,
    /// Names of markers, as a cache.
    pub catalog: Arc<Catalog>,
    /// What the index may take.
    pub index: IndexOptions,
    /// Told of segments that are read because their run is gone: the volume's name, how many segments were looked at,
    /// and how many there are.
    pub rebuilding: fn(&str, usize, usize),
}

/// How a volume is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// Reads and writes.
    Good,
    /// Writes are refused, for this reason; views are served.
    ReadOnly {
        /// What happened.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// Closed. Whatever was opened from it, a view too, answers with an error: its files may be another instance's.
    Closed,
}

/// So many places of damage are noted; `verify` finds them all.
const DAMAGES_NOTED_MAX: usize = 1000;
/// Segments for which a cap that was set leaves room on the filesystem, a tenth of that at most.
const SEGMENTS_LEFT_FREE: u64 = 2;

/// A volume. Shared by all who serve it.
pub struct Volume {
    identity: Identity,
    dir: PathBuf,
    shared: Shared,
    incarnation: Incarnation,
    previous_incarnation: Incarnation,
    base: Base,
    // It was opened where there was no room for a segment.
    lacks_space: bool,
    // A record was refused since the last segment was begun: it did not fit, and there was no room for another segment.
    refused_for_room: AtomicBool,
    awaits_group: AtomicBool,
    append: Mutex<Option<Appender>>,
    pool: Mutex<Pool>,
    parts: Parts,
    staged: Mutex<Staged>,
    // The newest record that reads see: staged and indexed.
    tip: AtomicU64,
    commit: Commit,
    mark: Mutex<MarkState>,
    upkeep: Mutex<upkeep::UpkeepState>,
    merging: Mutex<merge::Merging>,
    // What a fold that is being made takes of memory.
    thinning_bytes: AtomicUsize,
    // What stood in the segments; a leaf among the locks, held while it is written.
    looked: Mutex<LookedFile>,
    // Segments that were believed at the opening and not looked at yet.
    doubted: Mutex<Vec<doubt::Doubted>>,
    health: Mutex<Health>,
    // Who reads or replaces its files, apart from its duties and its writers, who look at their own locks.
    uses: uses::Uses,
    notes: Mutex<Notes>,
    names: Mutex<names::Names>,
    // Held while the file of proofs is replaced.
    proving: Mutex<()>,
    // Rollbacks and resizes. A leaf among the locks.
    course: RwLock<Course>,
    // The tip's size, as the course has it.
    size_bytes: AtomicU64,
    sessions: AtomicU64,
    journal_bytes: AtomicU64,
    // What the manifest says now. Held while it is written.
    manifest: Mutex<Identity>,
    door: rollback::Door,
    role: role::RoleNow,
    epochs: Mutex<epoch::EpochState>,
    claims: Mutex<rights::Claims>,
    history: Mutex<retain::History>,
    ledger: Mutex<ledger::Ledger>,
    pins: Arc<pins::Pins>,
    retention: Mutex<Policy>,
    // Of a replica: whose records it takes. A leaf among the locks.
    source: Mutex<source::SourceState>,
    // The replicas that it feeds. Held while their file is written; pins are taken under it.
    replicas: Mutex<replicas::ReplicaList>,
    // Of a replica: the newest state that came ahead of its history. Only pins are taken under it; files of its own are
    // written.
    coalesced: Mutex<coalesced::Slot>,
    // What its index takes.
    memory: Share,
    // Sealing, folding and dropping: one at a time.
    duties: Mutex<advance::Duties>,
}

/// What was written and not yet synced.
struct Staged {
    lsn: Lsn,
    // Segments with unsynced records, oldest first; the last one is the open one.
    dirty: Vec<Arc<Segment>>,
    bytes: u64,
    since_ns: Option<u64>,
    // Syncs since the open segment was begun: tells commit-heavy loads from streams.
    syncs: u64,
    // A sync or write failed and what was not synced could not be appended again: no later sync of the same
    // file proves anything about it.
    lost_sync: Option<Error>,
}

struct MarkState {
    file: MarkFile,
    written: Lsn,
}

/// What somebody should know, for `status`.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// What recovery found when the volume was opened.
    pub recovery: String,
    /// The newest error of the storage, and what was done.
    pub last_error: Option<String>,
    /// Records whose payload is damaged, of which somebody knows: recovery, a reader, or `verify`. Their extents.
    pub damages: Vec<(Lsn, Extent)>,
}

/// When a segment was written, and how much is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpan {
    /// Timestamp of the record before its first one.
    pub begin: Timestamp,
    /// Timestamp of its newest record.
    pub end: Timestamp,
    /// Bytes in use.
    pub bytes: u64,
}

impl Volume {
    /// What the manifest said when it was opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it takes no writes because there was no room for a segment when it was opened.
    pub(crate) fn lacks_space(&self) -> bool {
        self.lacks_space
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        self.health.lock().expect("no panics under this lock").clone()
    }

    /// What somebody should know.
    pub fn notes(&self) -> Notes {
        let base = self.base_point().lsn;
        let mut notes = self.notes.lock().expect("no panics under this lock");
        // What was folded is not read from there any more.
        notes.damages.retain(|(lsn, _)| *lsn > base);
        notes.clone()
    }

    /// Somebody met a damaged payload of this record.
    pub(crate) fn note_damage(&self, lsn: Lsn, extent: Extent) {
        let mut notes = self.notes.lock().expect("no panics under this lock");
        let is_known = notes
            .damages
            .iter()
            .any(|(of, known)| *of == lsn && known.start <= extent.start && extent.end() <= known.end());
        if !is_known && notes.damages.len() < DAMAGES_NOTED_MAX {
            notes.damages.push((lsn, extent));
        }
    }

    /// The newest record that reads see.
    pub fn tip_lsn(&self) -> Lsn {
        Lsn(self.tip.load(Ordering::Acquire))
    }

    /// The newest record that is known to survive power loss.
    pub fn durable_lsn(&self) -> Lsn {
        self.commit.durable()
    }

    /// What the journal takes on disk, in bytes.
    pub fn journal_bytes(&self) -> u64 {
        self.journal_bytes.load(Ordering::Relaxed)
    }

    /// What is left in the open segment, in bytes.
    pub fn journal_room_bytes(&self) -> u64 {
        let append = self.append.lock().expect("no panics under this lock");
        append.as_ref().map_or(0, |appender| appender.segment.header.bytes.saturating_sub(appender.end))
    }

    /// Writes are refused for want of room: the last one that did not fit into the open segment found no room for another,
    /// and there is none now. Smaller ones may still fit into what is left, see [`Volume::journal_room_bytes`].
    pub fn refuses_for_room(&self) -> bool {
        self.refused_for_room.load(Ordering::Relaxed)
            && self.refuse_beyond_cap(self.identity.segment_bytes).is_err()
    }

    /// The segments of the journal, oldest first.
    pub fn segments(&self) -> Vec<SegmentSpan> {
        let open_end = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map(|appender| (appender.end, appender.position.timestamp))
        };
        let list = self.parts.list();
        let ends = list.iter().skip(1).map(|part| Some(part.segment.header.timestamp_before)).chain([None]);
        list.iter()
            .zip(ends)
            .map(|(part, next_begin)| {
                let begin = part.segment.header.timestamp_before;
                let frozen = part.frozen.get().map(|frozen| (frozen.end, frozen.last.timestamp));
                let (bytes, end) = frozen.or(open_end).unwrap_or((0, begin));
                SegmentSpan { begin, end: next_begin.unwrap_or(end), bytes }
            })
            .collect()
    }

    /// What it may take, in bytes: what was set, but no more than the filesystem has, less a little.
    pub fn journal_cap_bytes(&self) -> Result<u64> {
        Ok(self.journal_cap_bytes_by(&self.retention(), self.space()?))
    }

    /// What it might take if this were the policy, on a filesystem that has so much.
    fn journal_cap_bytes_by(&self, policy: &Policy, space: Space) -> u64 {
        let by_policy = policy.bytes_max;
        let by_hand = self.manifest.lock().expect("no panics under this lock").journal_cap_bytes;
        let cap = by_hand.into_iter().chain(by_policy).min();
        let left_free = match cap {
            None => space.total / 10,
            // What makes room needs some: a fold writes to the base before it drops.
            Some(_) => (SEGMENTS_LEFT_FREE * self.identity.segment_bytes).min(space.total / 10),
        };
        let by_space = (self.journal_bytes() + space.available).saturating_sub(left_free);
        cap.unwrap_or(u64::MAX).min(by_space)
    }

    /// What the filesystem has.
    fn space(&self) -> Result<Space> {
        self.shared.files.space(&self.dir).map_err(|error| {
            Error::io(error, format!("volume {}: asking for free space", self.identity.name))
        })
    }

    /// Whether it began as zeros, not as an image.
    pub fn is_blank_before(&self) -> bool {
        self.base.is_empty()
    }

    /// What is missing or cannot be used of the files of its base, as far as opening them told.
    pub fn base_problems(&self) -> Vec<crate::base::Problem> {
        self.base.problems()
    }

    /// Changes what the journal may take; `None`: what leaves a tenth of the filesystem free. Durable when this
    /// returns, and holds for the next segment that is needed.
    pub fn set_journal_cap(&self, cap_bytes: Option<u64>) -> Result<()> {
        self.change_manifest(|manifest| manifest.journal_cap_bytes = cap_bytes)
    }

    /// Changes what the manifest says; durable when this returns.
    pub(crate) fn change_manifest(&self, change: impl FnOnce(&mut Identity)) -> Result<()> {
        let _using = self.use_files()?;
        let mut manifest = self.manifest.lock().expect("no panics under this lock");
        let mut changed = manifest.clone();
        change(&mut changed);
        identity::write_manifest(&self.shared, &self.dir, &changed)?;
        *manifest = changed;
        Ok(())
    }

    /// Reads blocks as of what is visible.
    pub fn reader<'a>(&'a self, visible: &'a Visible) -> Reader<'a> {
        Reader {
            files: &*self.shared.files,
            parts: self.parts.list(),
            base: &self.base,
            visible,
            volume: self,
            using: self.try_use_files(),
        }
    }

    /// As [`Volume::reader`], with a list of parts that was taken before anything else was looked at.
    fn reader_of<'a>(&'a self, parts: parts::PartList, visible: &'a Visible) -> Reader<'a> {
        Reader { parts, ..self.reader(visible) }
    }

    /// Which records the state at `lsn` consists of.
    pub fn visible(&self, lsn: Lsn) -> Visible {
        self.course.read().expect("no panics under this lock").visible(lsn)
    }

    /// How large it was after this record, in bytes.
    pub fn size_at(&self, lsn: Lsn) -> u64 {
        self.course.read().expect("no panics under this lock").size_at(lsn)
    }

    /// The largest size it ever had, in bytes.
    pub fn largest_size_bytes(&self) -> u64 {
        self.course.read().expect("no panics under this lock").largest_size()
    }

    /// Its rollbacks and resizes.
    pub fn course(&self) -> Course {
        self.course.read().expect("no panics under this lock").clone()
    }

    /// Whether records of its own may be appended.
    fn refuse_unless_writable(&self) -> Result<()> {
        self.refuse_unless_healthy()?;
        self.refuse_unless_primary()
    }

    /// Whether records may be appended at all, whosoever they are.
    fn refuse_unless_healthy(&self) -> Result<()> {
        match self.health() {
            Health::Good => Ok(()),
            Health::ReadOnly { reason, hint } => Err(Error::new(
                Kind::ReadOnly,
                format!("volume {} takes no writes: {reason}", self.identity.name),
            )
            .hint(hint)),
            Health::Closed => {
                Err(Error::new(Kind::Closed, format!("volume {} is closed", self.identity.name)))
            }
        }
    }

    fn become_read_only(&self, reason: String, hint: &str) {
        let mut health = self.health.lock().expect("no panics under this lock");
        if *health == Health::Good {
            *health = Health::ReadOnly { reason, hint: hint.to_owned() };
        }
    }

    fn note_error(&self, text: String) {
        self.notes.lock().expect("no panics under this lock").last_error = Some(text);
    }
}

/// Checks a read's range against a device's size.
pub fn check_range(offset: u64, len: u64, size_bytes: u64) -> Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > size_bytes) {
        let context = format!("bytes {offset}+{len} reach behind the end of the device, {size_bytes}");
        return Err(Error::new(Kind::OutOfRange, context));
    }
    Ok(())
}

/// Carries out reads from a device of `size_bytes`; the volume's tip and every view of it read here.
pub fn read_visible(volume: &Volume, reader: &Reader<'_>, size_bytes: u64, reads: &mut [Read<'_>]) {
    for read in reads.iter_mut() {
        read.result = check_range(read.offset, read.buffer.len() as u64, size_bytes);
    }
    reader.read(reads);
    if reads.iter().any(is_gone) {
        // A segment was dropped between the look at the index and the read: the index has the answer now.
        for read in reads.iter_mut().filter(|read| is_gone(read)) {
            read.result = Ok(());
            volume.reader(reader.visible).read(std::slice::from_mut(read));
        }
    }
}

fn is_gone(read: &Read<'_>) -> bool {
    read.result.as_ref().is_err_and(|error| error.kind() == Kind::NotFound)
}

impl Device for Volume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.health() != Health::Good || !self.is_primary()
    }

    fn apply(&self, session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        self.apply_changes(session, self.entry(), changes, results);
    }

    fn flush(&self) -> Result<()> {
        let _using = self.use_files()?;
        self.sync_through(self.tip_lsn())
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        // The list first: as long as it is held, what is visible at this tip is not folded away.
        let parts = self.parts.list();
        let visible = self.visible(self.tip_lsn());
        read_visible(self, &self.reader_of(parts, &visible), self.size_bytes(), reads);
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        check_range(offset, len, self.size_bytes())?;
        let parts = self.parts.list();
        let visible = self.visible(self.tip_lsn());
        self.reader_of(parts, &visible).extents(offset, len, stretches_max)
    }
}
