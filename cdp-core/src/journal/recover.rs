//! What the journal holds after a crash: follows the segments from the first to the last, finds the first
//! record that is not there, weighs the witnesses and judges. Reads only; acting on it is the volume's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::append::Position;
use super::fold::Fold;
use super::looked::LookedFile;
use super::scan::{self, Stop};
use super::segment::{self, FirstBlock, Segment};
use super::verdict::{self, Evidence, MarkEvidence, Verdict};
use crate::error::{IoContext, Result};
use crate::format::fold::{is_fold_name, is_unfinished_fold_name};
use crate::format::history::BasePoint;
use crate::format::looked::Looked;
use crate::format::mark::Mark;
use crate::format::segment::{Seal, segment_file_name};
use crate::ids::*;
use crate::io::{File, FilePool, FileStat, Files};
use crate::planted;

/// A segment of the stream.
#[derive(Clone)]
pub struct Found {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Its newest record that belongs to the stream.
    pub last: Position,
    /// Offset behind that record.
    pub end: u64,
    /// Its seal, if it has one.
    pub seal: Option<Seal>,
    /// Position before its first record.
    pub before: Position,
    /// Records with damaged payload that were once durable.
    pub damaged: Vec<Lsn>,
    /// Its header and seal are what was remembered of them; the file was not opened.
    pub is_remembered: bool,
    /// What was read in its file, for remembering.
    pub looked: Option<Looked>,
}

/// What a run says of its segment, which then need not be read.
pub struct KnownFromRun {
    /// Its newest record.
    pub last: Position,
    /// Offset behind it.
    pub end: u64,
}

/// What recovery was asked to look at.
pub struct Request<'a> {
    /// The volume's directory.
    pub dir: &'a Path,
    /// Opens the segments.
    pub segments: &'a Arc<FilePool>,
    /// Whose journal.
    pub volume: VolumeId,
    /// Where the journal begins: behind what was folded into the base.
    pub begin: Begin,
    /// The mark that was read.
    pub mark: Option<Mark>,
    /// Somebody accepted that the mark is lost.
    pub accept_mark_loss: bool,
    /// A seal tells where its segment ends. Where nothing else does, because the run is gone, the records may
    /// have to be looked at after all.
    pub believe_seals: bool,
    /// Asks the segment's run.
    pub run: &'a dyn Fn(&Segment) -> Option<KnownFromRun>,
    /// What is remembered of segments that take no more records.
    pub looked: &'a LookedFile,
    /// Sees the records of the segments that have to be read, in order; a segment may come more than once, from its
    /// first record on.
    pub visit: &'a dyn Fn(&Segment, &scan::Found<'_>),
}

/// What it found.
pub struct Recovered {
    /// The judgement on the end of the log.
    pub verdict: Verdict,
    /// The segments of the stream, oldest first, cut to what is kept.
    pub stream: Vec<Found>,
    /// The first record that is not kept.
    pub first_bad: Lsn,
    /// The newest LSN that some witness calls durable.
    pub witness: Lsn,
    /// Why the stream ends where it ends, for people.
    pub why: String,
    /// Segment files that hold nothing of the stream.
    pub dead: Vec<PathBuf>,
    /// Segments made ahead, above all in use.
    pub unused: VecDeque<u64>,
    /// The next free ordinal.
    pub next_ordinal: u64,
    /// The newest opening that left a trace.
    pub newest_incarnation: Incarnation,
}

impl Recovered {
    /// The newest kept record; `begin` where the journal holds none.
    pub fn position(&self, begin: &Begin) -> Position {
        self.stream.last().map_or(begin.position, |found| found.last)
    }
}

/// Where a journal begins.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    /// The newest record that the base holds; LSN 0 where nothing was folded yet.
    pub position: Position,
    /// The segment that ended with it; 0 for none.
    pub segment: SegmentId,
    /// That segment's ordinal; 0 for none.
    pub ordinal: u64,
}

impl From<&BasePoint> for Begin {
    fn from(base: &BasePoint) -> Begin {
        let position = Position { lsn: base.lsn, chain: base.chain, timestamp: base.timestamp };
        Begin { position, segment: base.segment, ordinal: base.ordinal }
    }
}

const END_OF_JOURNAL: &str = "end of the journal";

struct Listing {
    segments: Vec<Arc<Segment>>,
    /// By predecessor, those that say they follow it, in rising order.
    followers: HashMap<SegmentId, Vec<usize>>,
    /// By ordinal.
    stats: HashMap<u64, FileStat>,
    /// Seals of those that were not opened, by ordinal.
    remembered: HashMap<u64, Option<Seal>>,
    /// Whole folds; the last one of those that begin at one place counts.
    folds: Vec<Arc<Segment>>,
    /// Folds that are not whole, or were never finished.
    unfinished: Vec<PathBuf>,
    unused: Vec<u64>,
    headless: Vec<Headless>,
    newest: u64,
}

impl Listing {
    /// The newest segment that says it follows this one: an older one was superseded by a recovery. Ordinals rise along
    /// the stream, so that no two headers can send this in a circle.
    fn follows(&self, id: SegmentId, ordinal: u64) -> Option<&Arc<Segment>> {
        let newest = self.followers.get(&id)?.last().map(|&at| &self.segments[at])?;
        (newest.header.ordinal > ordinal).then_some(newest)
    }

    /// A segment that may be the next one of the stream, with its seal.
    fn found(&self, segment: &Arc<Segment>, before: Position) -> Found {
        let ordinal = segment.header.ordinal;
        let remembered = self.remembered.get(&ordinal);
        let (seal, looked) = match remembered {
            Some(seal) => (*seal, None),
            // A seal that cannot be read is no seal: the records are then read one by one.
            None => match segment::read_seal(segment) {
                Err(_) => (None, None),
                Ok(seal) => {
                    let stat = self.stats.get(&ordinal).copied().unwrap_or_default();
                    let looked = Looked { stat, header: segment.header, seal };
                    (seal, stat.is_identity().then_some(looked))
                }
            },
        };
        Found {
            segment: segment.clone(),
            last: before,
            end: BLOCK_BYTES,
            seal,
            before,
            damaged: Vec::new(),
            is_remembered: remembered.is_some(),
            looked,
        }
    }
}

/// A segment file whose header is torn, rotten or unreadable, or zeros though records follow.
struct Headless {
    ordinal: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// The disk would not even give it.
    unreadable: bool,
}

fn list(files: &dyn Files, request: &Request<'_>) -> Result<Listing> {
    let mut listing = Listing {
        segments: Vec::new(),
        followers: HashMap::new(),
        stats: HashMap::new(),
        remembered: HashMap::new(),
        folds: Vec::new(),
        unfinished: Vec::new(),
        unused: Vec::new(),
        headless: Vec::new(),
        newest: request.begin.ordinal,
    };
    for ordinal in segment::list_ordinals(files, request.dir)? {
        let path = request.dir.join(segment_file_name(ordinal));
        listing.newest = listing.newest.max(ordinal);
        let file = request.segments.file(&path);
        let stat = files.stat(&path).at(|| format!("opening {}", path.display()))?;
        if let Some(known) = request.looked.get(ordinal, &stat) {
            listing.remembered.insert(ordinal, known.seal);
            listing.segments.push(Arc::new(Segment { header: known.header, path, file, fold: None }));
            continue;
        }
        listing.stats.insert(ordinal, stat);
        file.held().at(|| format!("opening {}", path.display()))?;
        let first = segment::read_first_block(&*file);
        let unreadable = first.is_err();
        match first {
            Ok(FirstBlock::Unused) => {
                listing.unused.push(ordinal);
                if scan::begins_with_batch(&*file) {
                    listing.headless.push(Headless { ordinal, path, file, unreadable });
                }
            }
            Ok(FirstBlock::Header(header))
                if header.volume == request.volume && header.ordinal == ordinal =>
            {
                listing.segments.push(Arc::new(Segment { header: *header, path, file, fold: None }));
            }
            Ok(_) | Err(_) => listing.headless.push(Headless { ordinal, path, file, unreadable }),
        }
    }
    for (at, segment) in listing.segments.iter().enumerate() {
        listing.followers.entry(segment.header.predecessor).or_default().push(at);
    }
    list_folds(files, request, &mut listing)?;
    Ok(listing)
}

fn list_folds(files: &dyn Files, request: &Request<'_>, listing: &mut Listing) -> Result<()> {
    let entries = files.list(request.dir).at(|| format!("listing {}", request.dir.display()))?;
    for entry in entries {
        let path = request.dir.join(&entry.name);
        if is_unfinished_fold_name(&entry.name) {
            listing.unfinished.push(path);
        } else if is_fold_name(&entry.name) {
            // One that is damaged is missing, and the stream says so; it is never removed.
            let fold = Fold::open(&path, request.segments).unwrap_or(None);
            if let Some(fold) = fold.filter(|fold| fold.header.volume == request.volume) {
                listing.newest = listing.newest.max(fold.header.ordinals.1);
                listing.folds.push(fold.segment());
            }
        }
    }
    listing.folds.sort_by_key(|fold| {
        fold.fold.as_ref().map_or((0, 0), |fold| (fold.header.ordinals.1, fold.header.generation))
    });
    Ok(())
}

/// Reads the journal and judges. Changes nothing.
pub fn recover(files: &dyn Files, request: &Request<'_>) -> Result<Recovered> {
    let listing = list(files, request)?;
    let mut stream: Vec<Found> = Vec::new();
    let mut at = request.begin.position;
    // What the base holds was durable before it was folded.
    let mut witness = at.lsn;
    let mut damaged: Vec<Lsn> = Vec::new();
    let mut unreadable: Vec<Lsn> = Vec::new();
    let mut why = String::from(END_OF_JOURNAL);
    let mut clean_stop = false;
    let mut predecessor = request.begin.segment;
    let mut ordinal = request.begin.ordinal;
    // Where a stretch was thinned its fold stands for the segments, also for those that are still there.
    let folded = |id: SegmentId, at: &Position| {
        listing.folds.iter().rfind(|fold| {
            let header = &fold.header;
            header.predecessor == id && header.first_lsn == at.lsn.next() && header.chain_before == at.chain
        })
    };
    loop {
        if let Some(found) = folded(predecessor, &at).and_then(|fold| found_fold(fold, at)) {
            at = found.last;
            (predecessor, ordinal) = (found.segment.header.id, found.segment.header.ordinal);
            witness = witness.max(at.lsn);
            clean_stop = false;
            stream.push(found);
            continue;
        }
        let Some(current) = listing.follows(predecessor, ordinal) else { break };
        let header = &current.header;
        if header.first_lsn != at.lsn.next() || header.chain_before != at.chain {
            why = format!("{} does not continue the chain", current.path.display());
            break;
        }
        let successor = listing.follows(header.id, header.ordinal);
        let through = successor.map_or(Lsn::MAX, |next| next.header.first_lsn.previous());
        let before = at;
        let mut found = listing.found(current, before);
        clean_stop = false;
        let seal = found.seal.take();
        witness = witness.max(seal.map_or(Lsn::ZERO, |seal| seal.last_lsn.min(through)));
        if let Some(seal) = seal
            && (successor.is_none() || seal.last_lsn == through)
            && (request.believe_seals
                || (request.run)(current).is_some_and(|run| run.last.lsn == seal.last_lsn))
        {
            at = Position { lsn: seal.last_lsn, chain: seal.chain, timestamp: seal.last_timestamp };
            clean_stop = seal.clean_stop;
            (found.last, found.end, found.seal) = (at, seal.end, Some(seal));
            stream.push(found);
        } else if let Some(known) = (request.run)(current)
            && successor
                .is_some_and(|next| known.last.lsn == through && known.last.chain == next.header.chain_before)
        {
            at = known.last;
            // Runs are written when all their records are durable.
            witness = witness.max(at.lsn);
            (found.last, found.end) = (at, known.end);
            stream.push(found);
        } else {
            // It may change yet: there is nothing to remember.
            found.looked = None;
            let scan = scan::scan(current, before, through, &mut |record| (request.visit)(current, &record))
                .at(|| format!("reading {}", current.path.display()))?;
            witness = witness.max(scan.durable);
            damaged.extend(&scan.damaged);
            unreadable.extend(&scan.unreadable);
            at = scan.position;
            (found.last, found.end) = (at, scan.end);
            found.damaged = scan.damaged;
            stream.push(found);
            if scan.stop != Stop::Complete {
                let durable = scan::harvest_durable(current, scan.end)
                    .at(|| format!("reading {}", current.path.display()))?;
                witness = witness.max(durable);
            }
            if at.lsn < through {
                why = format!(
                    "{} ends behind {:?} at byte {}: {}",
                    current.path.display(),
                    at.lsn,
                    scan.end,
                    stop_text(scan.stop)
                );
                break;
            }
        }
        predecessor = header.id;
        ordinal = header.ordinal;
    }

    // What lies behind the end cannot be used, but it still bears witness.
    let newest_in_stream = stream.last().map_or(request.begin.ordinal, |found| found.segment.header.ordinal);
    for segment in listing.segments.iter().filter(|s| s.header.ordinal > newest_in_stream) {
        if let Ok(Some(seal)) = segment::read_seal(segment) {
            witness = witness.max(seal.last_lsn);
        }
        let durable = scan::harvest_durable(segment, BLOCK_BYTES)
            .at(|| format!("reading {}", segment.path.display()))?;
        witness = witness.max(durable);
    }
    for fold in listing.folds.iter().filter(|fold| fold.header.ordinal > newest_in_stream) {
        witness = witness.max(fold.fold.as_ref().map_or(Lsn::ZERO, |fold| fold.header.lsns.1));
    }
    for found in listing.headless.iter().filter(|found| found.ordinal > newest_in_stream) {
        let durable = scan::harvest_headless(&*found.file, request.volume)
            .at(|| format!("reading {}", found.path.display()))?;
        witness = witness.max(durable);
        if found.unreadable {
            // A crash leaves torn headers, not unreadable ones: what stands behind it may be anything.
            witness = witness.max(at.lsn.next());
        }
    }
    let mark = weigh_mark(request, &listing, &stream, at)?;
    if let Some(mark) = &request.mark {
        witness = witness.max(mark.lsn);
    }

    if planted::is(planted::Bug::CutOnAnyMismatch) {
        witness = request.begin.position.lsn;
    }
    // Damage behind every witness is the crash's; damage before it is rot and stays in its place.
    let tail_damage = damaged.iter().copied().find(|lsn| *lsn > witness);
    let first_bad = tail_damage.unwrap_or(at.lsn.next());
    if tail_damage.is_some() {
        why = format!("the payload of {first_bad:?} is not complete");
    }
    if first_bad > witness && unreadable.contains(&first_bad) {
        // A crash leaves torn records, not unreadable ones: this one may have been promised.
        witness = first_bad;
        why = format!("the disk cannot read {first_bad:?}");
    }
    if first_bad <= witness && why == END_OF_JOURNAL {
        why = what_is_missing(&listing, stream.last(), newest_in_stream);
    }
    let verdict = verdict::judge(Evidence {
        mark,
        clean_stop,
        first_bad,
        witness,
        accept_mark_loss: request.accept_mark_loss,
    });
    let incarnations = listing.segments.iter().chain(&listing.folds);
    let incarnations = incarnations.map(|s| (s.header.ordinal, s.header.incarnation));
    let newest_incarnation = incarnations.max().map(|(_, incarnation)| incarnation);
    let mut recovered = Recovered {
        verdict,
        stream,
        first_bad,
        witness,
        why,
        dead: Vec::new(),
        unused: VecDeque::new(),
        next_ordinal: listing.newest + 1,
        newest_incarnation: newest_incarnation
            .or(request.mark.map(|mark| mark.incarnation))
            .unwrap_or_default(),
    };
    let newest_used = listing.segments.iter().chain(&listing.folds).map(|s| s.header.ordinal).max();
    let newest_used = newest_used.unwrap_or(0);
    for ordinal in listing.unused {
        if ordinal > newest_used {
            recovered.unused.push_back(ordinal);
        } else {
            recovered.dead.push(request.dir.join(segment_file_name(ordinal)));
        }
    }
    let used: HashSet<u64> = recovered.stream.iter().map(|found| found.segment.index_id().0).collect();
    for segment in listing.segments.into_iter().chain(listing.folds) {
        if !used.contains(&segment.index_id().0) {
            recovered.dead.push(segment.path.clone());
        }
    }
    recovered.dead.extend(listing.unfinished);
    let was_used = |found: &Headless| !recovered.unused.contains(&found.ordinal);
    let headless = listing.headless.into_iter().filter(was_used).map(|found| found.path);
    let headless: Vec<PathBuf> = headless.filter(|path| !recovered.dead.contains(path)).collect();
    recovered.dead.extend(headless);
    cut_stream(&mut recovered.stream, first_bad.previous(), request.visit)?;
    Ok(recovered)
}

fn found_fold(segment: &Arc<Segment>, before: Position) -> Option<Found> {
    let fold = segment.fold.as_ref()?;
    let (last, end) = (fold.last(), fold.header.file_bytes());
    Some(Found {
        segment: segment.clone(),
        last,
        end,
        seal: None,
        before,
        damaged: Vec::new(),
        looked: None,
        is_remembered: false,
    })
}

/// Names the file because of which the stream ends early.
fn what_is_missing(listing: &Listing, last: Option<&Found>, newest_in_stream: u64) -> String {
    let headless = listing.headless.iter().find(|found| found.ordinal > newest_in_stream);
    let later = listing.segments.iter().find(|segment| segment.header.ordinal > newest_in_stream);
    let last = last.map_or("the beginning".into(), |found| found.segment.path.display().to_string());
    match (headless, later) {
        (Some(found), _) => format!("the header of {} is damaged or cannot be read", found.path.display()),
        (None, Some(next)) => format!("between {last} and {} a segment is missing", next.path.display()),
        (None, None) => format!("the segment behind {last} is missing"),
    }
}

/// Shortens the stream so that `last` is its newest record. `visit` as in [`Request`].
pub fn cut_stream(
    stream: &mut Vec<Found>,
    last: Lsn,
    visit: &dyn Fn(&Segment, &scan::Found<'_>),
) -> Result<()> {
    while stream.last().is_some_and(|found| found.segment.header.first_lsn > last) {
        stream.pop();
    }
    if let Some(found) = stream.last_mut()
        && found.last.lsn > last
    {
        let (segment, before) = (&found.segment, found.before);
        let scan = scan::scan(segment, before, last, &mut |record| visit(segment, &record))
            .at(|| format!("reading {}", segment.path.display()))?;
        (found.last, found.end) = (scan.position, scan.end);
        found.looked = None;
    }
    if let Some(found) = stream.last_mut() {
        found.damaged.retain(|lsn| *lsn <= last);
    }
    Ok(())
}

fn weigh_mark(
    request: &Request<'_>,
    listing: &Listing,
    stream: &[Found],
    at: Position,
) -> Result<MarkEvidence> {
    let Some(mark) = &request.mark else { return Ok(MarkEvidence::BothBad) };
    let known_incarnation = listing.segments.iter().chain(&listing.folds).any(|segment| {
        segment.header.incarnation == mark.incarnation
            || segment.header.previous_incarnation == mark.incarnation
    });
    // With nothing behind the base that counts, all that knew the mark's opening may be in the base by now, and a file
    // that an earlier opening left proves nothing.
    if mark.volume != request.volume || (!known_incarnation && !stream.is_empty()) {
        return Ok(MarkEvidence::Disagrees);
    }
    if mark.lsn > at.lsn || mark.lsn < request.begin.position.lsn {
        // Nothing to compare with: the log is short, which the table judges by itself, or the record is in the base.
        return Ok(MarkEvidence::Agrees);
    }
    let chain = match stream.iter().find(|found| found.last.lsn >= mark.lsn) {
        None => request.begin.position.chain,
        Some(found) if found.last.lsn == mark.lsn => found.last.chain,
        Some(found) if found.before.lsn == mark.lsn => found.before.chain,
        // Its records are gone, and so is what could be compared.
        Some(found) if found.segment.fold.is_some() => mark.chain,
        Some(found) => {
            scan::scan(&found.segment, found.before, mark.lsn, &mut |_| {})
                .at(|| format!("reading {}", found.segment.path.display()))?
                .position
                .chain
        }
    };
    Ok(if chain == mark.chain { MarkEvidence::Agrees } else { MarkEvidence::Disagrees })
}

fn stop_text(stop: Stop) -> &'static str {
    match stop {
        Stop::Complete => "complete",
        Stop::NoBatch => "no batch follows",
        Stop::OffChain => "what follows does not continue the chain",
        Stop::BadRecord => "a record header is damaged",
        Stop::Short => "the file is too short",
        Stop::Unreadable => "the disk cannot read what follows",
    }
}
