//! The parts of a volume's index, one per segment, oldest first; and how records find their way into them.

use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{RecordHeader, RecordKind, flags};
use crate::format::run::{DamageRow, MarkerRow, Summary};
use crate::ids::*;
use crate::index::{Live, Run, Search, Visible};
use crate::journal::Placement;
use crate::journal::append::Position;
use crate::journal::scan;
use crate::journal::segment::Segment;

/// The index of one segment.
pub struct Part {
    /// The segment its payload stands in.
    pub segment: Arc<Segment>,
    /// Position before its first record.
    pub before: Position,
    /// Where the segment's records end, once nothing more is appended to it.
    pub frozen: OnceLock<Frozen>,
    /// The lookup structure.
    pub index: PartIndex,
    /// What the run should say, read from the segment, once a page of the run turned out to be bad.
    pub repaired: OnceLock<Box<LivePart>>,
}

/// The end of a segment that takes no more records.
#[derive(Clone, Copy, Debug)]
pub struct Frozen {
    /// Its newest record.
    pub last: Position,
    /// Offset behind it.
    pub end: u64,
    /// Whether this opening made the segment and may therefore put a seal behind its records.
    pub may_seal: bool,
    /// Hash of its seal, once it has one.
    pub seal_hash: Option<[u8; 32]>,
}

/// In memory until the run stands.
pub enum PartIndex {
    /// In memory.
    Live(Box<RwLock<LivePart>>),
    /// An immutable file; a merged one belongs to several neighbouring parts.
    Run(Arc<Run>),
}

/// What is kept in memory for a segment without a run.
pub struct LivePart {
    /// Blocks and timestamps.
    pub live: Live,
    /// Records that change no blocks.
    pub events: Vec<MarkerRow>,
    /// Payload that is not what was written.
    pub damages: Vec<DamageRow>,
    /// What the records did.
    pub summary: Summary,
}

impl LivePart {
    /// Nothing yet; the first record will be `first`.
    pub fn new(first: Lsn) -> LivePart {
        LivePart {
            live: Live::new(first),
            events: Vec::new(),
            damages: Vec::new(),
            summary: Summary::default(),
        }
    }

    /// About how much memory it takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.live.memory_bytes()
            + self.events.capacity() * size_of::<MarkerRow>()
            + self.damages.capacity() * size_of::<DamageRow>()
    }

    /// Takes a record in.
    pub fn insert(&mut self, record: &RecordHeader, payload_block: u32, crcs: &[u32], damaged: bool) {
        self.live.insert_record(record.lsn, record.timestamp);
        let extent = record.extent();
        self.summary.add(&summary_of(record));
        // Which block of a damaged payload is wrong cannot be told from the record's one checksum: none of
        // them may be shown. A CRC that cannot fit makes every read of them an error.
        let spoil = if damaged { u32::MAX } else { 0 };
        let mut blocks = (payload_block..).zip(crcs.iter().map(|crc| crc ^ spoil));
        match record.kind {
            RecordKind::Write => self.live.insert_payload(record.lsn, extent.start, blocks),
            RecordKind::Zero | RecordKind::Trim => {
                let edges = record.edges();
                let inside = (extent.start.0 + edges.head as u64)..(extent.end() - edges.tail as u64);
                if edges.head {
                    self.live.insert_payload(record.lsn, extent.start, blocks.next());
                }
                if edges.tail {
                    self.live.insert_payload(record.lsn, Lba(inside.end), blocks.next());
                }
                if inside.start < inside.end {
                    let hole = record.kind == RecordKind::Trim || record.flags & flags::HOLE != 0;
                    self.live.insert_range(record.lsn, Extent::new(inside.start, inside.end), hole);
                }
            }
            _ => self.events.push(MarkerRow {
                lsn: record.lsn,
                timestamp: record.timestamp,
                elapsed_ns: record.lba.0,
                kind: record.kind as u8,
                flags: record.flags,
                block: payload_block,
                payload_bytes: record.payload_bytes,
                payload_crc: record.payload_crc,
            }),
        }
        if damaged {
            self.damages.push(DamageRow { lsn: record.lsn, extent, kind: 0 });
        }
    }
}

impl Part {
    /// A part for a segment that takes records.
    pub fn open(segment: Arc<Segment>, before: Position) -> Part {
        let live = LivePart::new(segment.header.first_lsn);
        let index = PartIndex::Live(Box::new(RwLock::new(live)));
        Part { segment, before, frozen: OnceLock::new(), index, repaired: OnceLock::new() }
    }

    /// Its newest record so far.
    pub fn last_lsn(&self) -> Lsn {
        match &self.index {
            PartIndex::Live(live) => live.read().expect("no panics under this lock").live.last_lsn(),
            PartIndex::Run(run) => match self.frozen.get() {
                Some(frozen) => frozen.last.lsn,
                None => run.last_lsn(),
            },
        }
    }

    /// Its run, if it has one.
    pub fn run(&self) -> Option<&Arc<Run>> {
        match &self.index {
            PartIndex::Live(_) => None,
            PartIndex::Run(run) => Some(run),
        }
    }

    /// Its run, if that is one of several segments.
    pub fn merged_run(&self) -> Option<&Arc<Run>> {
        self.run().filter(|run| run.is_merged())
    }

    /// About how much memory its lookup structure takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        match &self.index {
            PartIndex::Live(live) => live.read().expect("no panics under this lock").memory_bytes(),
            PartIndex::Run(run) => run.memory_bytes(),
        }
    }

    /// Answers what it can of a search; a merged run answers for all its parts. After an error the search is of no
    /// use; see [`Layer::fall_back`].
    pub fn resolve(&self, visible: &Visible, search: &mut Search) -> Result<()> {
        match (&self.index, self.repaired.get()) {
            (PartIndex::Live(live), _) => {
                live.read().expect("no panics under this lock").live.resolve(visible, search);
                Ok(())
            }
            (PartIndex::Run(_), Some(part)) => {
                part.live.resolve(visible, search);
                Ok(())
            }
            (PartIndex::Run(run), None) => run.resolve(visible, search),
        }
    }

    /// Whether a record newer than `than` may have changed this block.
    pub fn changed_since(&self, lba: Lba, than: Lsn) -> bool {
        match &self.index {
            PartIndex::Live(live) => {
                live.read().expect("no panics under this lock").live.newest(lba).is_some_and(|lsn| lsn > than)
            }
            // Sealed meanwhile: look again rather than read a file here.
            PartIndex::Run(_) => self.last_lsn() > than,
        }
    }

    /// Asks the part in memory, or the run; where the run cannot answer, its segment still can.
    fn ask<T>(&self, live: impl Fn(&LivePart) -> T, run: impl Fn(&Run) -> Result<T>) -> Result<T> {
        match (&self.index, self.repaired.get()) {
            (PartIndex::Live(part), _) => Ok(live(&part.read().expect("no panics under this lock"))),
            (PartIndex::Run(_), Some(part)) => Ok(live(part)),
            (PartIndex::Run(index), None) => match run(index) {
                Err(_) if index.is_merged() => {
                    index.set_bad();
                    self.read_segment().map(|part| live(&part))
                }
                Err(error) if self.repair() => self.repaired.get().map(|part| live(part)).ok_or(error),
                other => other,
            },
        }
    }

    /// The frozen part anew, in memory, read from its segment.
    pub(super) fn again(&self) -> Result<Part> {
        let may_seal = self.frozen.get().is_some_and(|frozen| frozen.may_seal);
        rebuild(&self.segment, self.before, self.last_lsn(), may_seal)
    }

    /// The part in memory, read from its segment.
    fn read_segment(&self) -> Result<LivePart> {
        let part = rebuild(&self.segment, self.before, self.last_lsn(), false)?;
        match part.index {
            PartIndex::Live(live) => Ok(live.into_inner().expect("no panics under this lock")),
            PartIndex::Run(_) => unreachable!("it was just read into memory"),
        }
    }

    /// The segment's own run has a bad page: reads the segment again in its place. Whether the part can answer
    /// now.
    pub(super) fn repair(&self) -> bool {
        if let (PartIndex::Run(_), None) = (&self.index, self.repaired.get())
            && let Ok(part) = self.read_segment()
        {
            // Whoever is second has read the same.
            let _ = self.repaired.set(Box::new(part));
        }
        self.repaired.get().is_some()
    }

    /// The newest record with a timestamp not after `at`; of a fold the newest one that is still known.
    pub fn lsn_at(&self, at: Timestamp) -> Result<Option<Lsn>> {
        if let Some(fold) = &self.segment.fold {
            return Ok(fold.lsn_at(at));
        }
        let (first, last) = (self.segment.header.first_lsn, self.last_lsn());
        let newest = self.ask(|part| part.live.lsn_at(at), |run| run.lsn_at(at))?;
        // A merged run may answer with a record of a neighbour.
        Ok(newest.map(|lsn| lsn.min(last)).filter(|lsn| *lsn >= first))
    }

    /// When this record was given its LSN.
    pub fn timestamp_of(&self, lsn: Lsn) -> Result<Option<Timestamp>> {
        if lsn < self.segment.header.first_lsn || lsn > self.last_lsn() {
            return Ok(None);
        }
        if let Some(fold) = &self.segment.fold {
            return Ok(fold.timestamp_of(lsn));
        }
        self.ask(|part| part.live.timestamp_of(lsn), |run| run.timestamp_of(lsn))
    }

    /// Its records that change no blocks, by LSN.
    pub fn events(&self) -> Result<Vec<MarkerRow>> {
        let (first, last) = (self.segment.header.first_lsn, self.last_lsn());
        self.ask(|part| part.events.clone(), |run| run.markers_of(first, last))
    }

    /// What its records did.
    pub fn summary(&self) -> Result<Summary> {
        let first = self.segment.header.first_lsn;
        self.ask(|part| part.summary, |run| run.summary_of(first))
    }

    /// Damaged payload, as far as it is known.
    pub fn damages(&self) -> Result<Vec<DamageRow>> {
        let own = self.segment.header.first_lsn..=self.last_lsn();
        let damages = self.ask(|part| part.damages.clone(), Run::damages)?;
        Ok(damages.into_iter().filter(|row| own.contains(&row.lsn)).collect())
    }
}

/// Neighbouring parts that answer lookups as one: a single part, or all parts of a merged run.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    parts: &'a [Arc<Part>],
    // What a merged run says of older parts is hidden by the set's base.
    is_oldest: bool,
}

impl<'a> Layer<'a> {
    /// Its parts, oldest first.
    pub fn parts(&self) -> &'a [Arc<Part>] {
        self.parts
    }

    fn newest(&self) -> &'a Part {
        self.parts.last().expect("no layer without a part")
    }

    /// Answers what it can of a search. After an error the search is of no use; see [`Layer::fall_back`].
    pub fn resolve(&self, visible: &Visible, search: &mut Search) -> Result<()> {
        if self.is_partial() {
            let visible = visible.within(self.parts[0].segment.header.first_lsn, self.newest().last_lsn());
            return self.resolve_whole(&visible, search);
        }
        self.resolve_whole(visible, search)
    }

    /// Whether its merged run speaks of parts, too, that are not in this layer any more: they were thinned.
    pub fn is_partial(&self) -> bool {
        self.newest().merged_run().is_some_and(|run| {
            let is_cut = run.first_lsn() < self.parts[0].segment.header.first_lsn;
            run.last_lsn() > self.newest().last_lsn() || is_cut && !self.is_oldest
        })
    }

    fn resolve_whole(&self, visible: &Visible, search: &mut Search) -> Result<()> {
        if self.newest().merged_run().is_none_or(|run| !run.is_bad()) {
            return self.newest().resolve(visible, search);
        }
        // Slow, and the same answer, until the run is made anew. One segment at a time in memory.
        for part in self.parts.iter().rev() {
            if search.is_done() {
                break;
            }
            part.read_segment()?.live.resolve(visible, search);
        }
        Ok(())
    }

    /// After an error: whether it can answer now, from its segments. The search begins anew.
    pub fn fall_back(&self) -> bool {
        match self.newest().merged_run() {
            // Its segments were asked already.
            Some(run) if run.is_bad() => false,
            Some(run) => {
                run.set_bad();
                true
            }
            None => self.newest().repair(),
        }
    }
}

/// The parts, oldest first, and which of them answer as one.
pub struct PartSet {
    parts: Vec<Arc<Part>>,
    // Where each layer ends, among the parts.
    ends: Vec<usize>,
}

impl PartSet {
    /// The record before the first one of these parts: what a merged run says of it and of older ones is the base's.
    pub fn base(&self) -> Lsn {
        self.parts.first().map_or(Lsn::ZERO, |first| first.before.lsn)
    }

    pub(super) fn new(parts: Vec<Arc<Part>>) -> PartSet {
        let is_one = |a: &Part, b: &Part| match (a.merged_run(), b.merged_run()) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let mut ends: Vec<usize> =
            (1..parts.len()).filter(|&at| !is_one(&parts[at - 1], &parts[at])).collect();
        if !parts.is_empty() {
            ends.push(parts.len());
        }
        PartSet { parts, ends }
    }

    /// What lookups go through, oldest first; walk it from its end.
    pub fn layers(&self) -> impl DoubleEndedIterator<Item = Layer<'_>> + ExactSizeIterator {
        (0..self.ends.len()).map(|number| {
            let from = number.checked_sub(1).map_or(0, |before| self.ends[before]);
            Layer { parts: &self.parts[from..self.ends[number]], is_oldest: number == 0 }
        })
    }
}

impl std::ops::Deref for PartSet {
    type Target = Vec<Arc<Part>>;

    fn deref(&self) -> &Vec<Arc<Part>> {
        &self.parts
    }
}

/// What one record did.
pub fn summary_of(record: &RecordHeader) -> Summary {
    let skipped = u64::from(record.head_skip) + u64::from(record.tail_skip);
    let bytes = record.blocks.saturating_mul(BLOCK_BYTES).saturating_sub(skipped);
    match record.kind {
        RecordKind::Write => Summary { writes: 1, written_bytes: bytes, ..Summary::default() },
        kind if kind.changes_blocks() => Summary { trims: 1, trimmed_bytes: bytes, ..Summary::default() },
        _ => Summary::default(),
    }
}

/// A list of parts, replaced as a whole: readers keep the one they took.
pub type PartList = Arc<PartSet>;

/// The volume's parts.
pub struct Parts {
    list: RwLock<PartList>,
    // Lists that were replaced and that somebody may still hold.
    retired: Mutex<Vec<Weak<PartSet>>>,
}

/// Lists that were replaced: readers that took one of them may still be at work.
pub struct OldLists(Vec<Weak<PartSet>>);

impl OldLists {
    /// Whether nobody holds one of them any more.
    pub fn are_gone(&self) -> bool {
        self.0.iter().all(|list| list.strong_count() == 0)
    }
}

impl Parts {
    /// These parts, oldest first.
    pub fn new(parts: Vec<Arc<Part>>) -> Parts {
        Parts { list: RwLock::new(Arc::new(PartSet::new(parts))), retired: Mutex::default() }
    }

    /// The list now.
    pub fn list(&self) -> PartList {
        self.list.read().expect("no panics under this lock").clone()
    }

    /// Changes the list in one step.
    pub fn change(&self, change: impl FnOnce(&mut Vec<Arc<Part>>)) {
        let mut list = self.list.write().expect("no panics under this lock");
        let mut parts = list.parts.clone();
        change(&mut parts);
        let old = std::mem::replace(&mut *list, Arc::new(PartSet::new(parts)));
        let mut retired = self.retired.lock().expect("no panics under this lock");
        retired.retain(|list| list.strong_count() > 0);
        retired.push(Arc::downgrade(&old));
    }

    /// All lists that were replaced so far.
    pub fn old_lists(&self) -> OldLists {
        OldLists(self.retired.lock().expect("no panics under this lock").clone())
    }

    /// Puts a part in the place of the one with the same segment.
    pub fn replace(&self, part: Part) {
        let part = Arc::new(part);
        self.change(|parts| {
            if let Some(old) = parts.iter_mut().find(|old| old.segment.header.id == part.segment.header.id) {
                *old = part;
            }
        });
    }
}

/// Whether a part is of a sealed segment with its run: nothing about it changes any more.
pub(super) fn is_sealed(part: &Part) -> bool {
    matches!(part.index, PartIndex::Run(_)) && part.frozen.get().is_some_and(|end| end.seal_hash.is_some())
}

/// The part that holds this record, among parts that are oldest first.
pub fn part_of(parts: &[Arc<Part>], lsn: Lsn) -> Result<&Arc<Part>> {
    let after = parts.partition_point(|part| part.segment.header.first_lsn <= lsn);
    after
        .checked_sub(1)
        .map(|at| &parts[at])
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{lsn:?} is before the first segment")))
}

/// Places records into the newest part of a list that readers may be using.
pub struct OpenPart<'a>(pub &'a Part);

impl Placement for OpenPart<'_> {
    fn opened(&mut self, _segment: &Arc<Segment>) {
        unreachable!("an append goes to the segment that is open");
    }

    fn placed(&mut self, record: &RecordHeader, payload_block: u32, crcs: &[u32], damaged: bool) {
        let PartIndex::Live(live) = &self.0.index else { unreachable!("the open part is in memory") };
        live.write().expect("no panics under this lock").insert(record, payload_block, crcs, damaged);
    }
}

/// Collects parts that no reader sees yet.
pub struct FreshParts {
    parts: Vec<(Part, Position, u64)>,
    position: Position,
}

impl FreshParts {
    /// The first part begins behind `position`.
    pub fn behind(position: Position) -> FreshParts {
        FreshParts { parts: Vec::new(), position }
    }

    /// The parts; all but the newest are frozen.
    pub fn finish(self) -> Vec<Arc<Part>> {
        let newest = self.parts.len().saturating_sub(1);
        let finish = |(number, (part, last, end)): (usize, (Part, Position, u64))| {
            if number < newest {
                let frozen = Frozen { last, end, may_seal: true, seal_hash: None };
                part.frozen.set(frozen).expect("a fresh part");
            }
            Arc::new(part)
        };
        self.parts.into_iter().enumerate().map(finish).collect()
    }
}

impl Placement for FreshParts {
    fn opened(&mut self, segment: &Arc<Segment>) {
        let part = Part::open(segment.clone(), self.position);
        self.parts.push((part, self.position, BLOCK_BYTES));
    }

    fn placed(&mut self, record: &RecordHeader, payload_block: u32, crcs: &[u32], damaged: bool) {
        self.position = Position { lsn: record.lsn, chain: record.chain, timestamp: record.timestamp };
        let (part, last, end) = self.parts.last_mut().expect("a segment is opened first");
        *last = self.position;
        *end = (payload_block as u64 + record.payload_blocks()) * BLOCK_BYTES;
        let PartIndex::Live(live) = &part.index else { unreachable!("fresh parts are in memory") };
        live.write().expect("no panics under this lock").insert(record, payload_block, crcs, damaged);
    }
}

/// Makes a frozen part in memory by reading its segment. `may_seal` as in [`Frozen`].
pub fn rebuild(segment: &Arc<Segment>, before: Position, last: Lsn, may_seal: bool) -> Result<Part> {
    if segment.fold.is_some() {
        return rebuild_fold(segment, before);
    }
    let mut live = LivePart::new(segment.header.first_lsn);
    let scan = scan::scan(segment, before, last, &mut |found| {
        live.insert(found.header, found.payload_block, found.crcs, !found.intact);
    })
    .at(|| format!("reading {}", segment.path.display()))?;
    if scan.position.lsn < last {
        let context = format!(
            "{} gives records up to {:?} only, {last:?} was expected",
            segment.path.display(),
            scan.position.lsn
        );
        return Err(Error::new(Kind::Damaged, context));
    }
    let frozen = Frozen { last: scan.position, end: scan.end, may_seal, seal_hash: None };
    Ok(Part {
        segment: segment.clone(),
        before,
        frozen: OnceLock::from(frozen),
        index: PartIndex::Live(Box::new(RwLock::new(live))),
        repaired: OnceLock::new(),
    })
}

/// The same of a fold, from its tables.
fn rebuild_fold(segment: &Arc<Segment>, before: Position) -> Result<Part> {
    let fold = segment.fold.as_ref().expect("the caller looked");
    let header = &fold.header;
    let damaged = || Error::new(Kind::Damaged, format!("{} has entries of nothing", segment.path.display()));
    let tables = fold.tables()?;
    let mut live = Live::sparse(header.lsns.0, header.lsns.1);
    for entry in &tables.entries {
        let is_there = entry.key.tree() > 0 || (1..=header.payload_blocks).contains(&u64::from(entry.block));
        if !is_there || !live.insert_entry(entry) {
            return Err(damaged());
        }
    }
    let index = LivePart { live, events: tables.events, damages: tables.damages, summary: header.summary };
    let frozen =
        Frozen { last: fold.last(), end: header.file_bytes(), may_seal: false, seal_hash: Some(header.seal) };
    Ok(Part {
        segment: segment.clone(),
        before,
        frozen: OnceLock::from(frozen),
        index: PartIndex::Live(Box::new(RwLock::new(index))),
        repaired: OnceLock::new(),
    })
}
