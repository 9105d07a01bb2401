//! Cutting the losing tail off a journal, once it stands somewhere else.
//!
//! That it is to be cut stands in the manifest; whoever opens the volume does it before anything else. Then the volume
//! is a replica that goes on from the cut. Legal states after a crash, each followed by the next at the next opening:
//!
//! | the manifest | mark | segment behind the cut | the journal |
//! |---|---|---|---|
//! | names no cut | any | no | whole |
//! | names the cut | above it | no | whole |
//! | names the cut | at it, in one slot or both | no | whole: the tail's own batches and seals bear witness |
//! | names the cut | at it, in both slots | yes: it names its predecessor's end, and is the newest that does | cut |
//! | names no cut, role replica | any | yes | cut |
//!
//! So the mark goes down first, while the journal still proves all it holds, and the header of the fresh segment, one
//! block, is what cuts. What the cut leaves behind is void by that header and removed like anything a crash left.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::parts::part_of;
use super::source::SOURCE_FILE;
use super::{Identity, Shared, Volume};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::mark::Mark;
use crate::format::record::{Chain, RecordHeader};
use crate::ids::*;
use crate::journal::Placement;
use crate::journal::append::Position;
use crate::journal::looked::LookedFile;
use crate::journal::mark::MarkFile;
use crate::journal::pool::Pool;
use crate::journal::reappend::{self, Cut};
use crate::journal::recover::{self, Begin, Request};
use crate::journal::scan;
use crate::journal::segment::{Fill, Segment};
use crate::journal::verdict::Verdict;

/// Behind which record a journal is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutAt {
    /// The newest record that stays.
    pub lsn: Lsn,
    /// Chain value after it.
    pub chain: Chain,
}

/// Of a volume that holds what only the losing site had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// Whose tail it was.
    pub of: VolumeId,
    /// The last record that both sites have. LSNs and timestamps are those that the records always had.
    pub fork: Lsn,
    /// The newest record of the tail.
    pub through: Lsn,
    /// Chain value after it, in the journal that it was cut off.
    pub chain: Chain,
}

/// Segments that are filled for a volume that is opened later.
pub(crate) struct NotPlaced;

impl Placement for NotPlaced {
    fn opened(&mut self, _: &Arc<Segment>) {}
    fn placed(&mut self, _: &RecordHeader, _: u32, _: &[u32], _: bool) {}
}

/// Cuts the journal of a volume that nobody has open. Nothing is done where that happened already.
pub(super) fn carry_out(
    shared: &Shared,
    dir: &Path,
    identity: &Identity,
    begin: Begin,
    at: CutAt,
) -> Result<()> {
    let files = &*shared.files;
    let (mut mark_file, mark) = MarkFile::open(files, dir)?;
    let nothing = LookedFile::empty(shared.files.clone(), dir, identity.journal_id());
    let request = Request {
        dir,
        segments: &shared.segments,
        volume: identity.journal_id(),
        begin,
        mark,
        accept_mark_loss: false,
        believe_seals: true,
        run: &|_| None,
        looked: &nothing,
        visit: &|_, _| {},
    };
    let refuse = |what: String| {
        let context = format!("volume {} is to be cut behind {:?}: {what}", identity.name, at.lsn);
        Error::new(Kind::Damaged, context)
            .hint("what is behind that stands in its orphan; nothing was changed here")
    };
    let mut recovered = recover::recover(files, &request)?;
    if !matches!(recovered.verdict, Verdict::CrashTail) {
        return Err(refuse(format!("its journal is {:?} ({})", recovered.verdict, recovered.why)));
    }
    let tip = recovered.position(&begin);
    if tip.lsn == at.lsn && tip.chain == at.chain {
        return Ok(());
    }
    let mut front = recovered.stream.clone();
    recover::cut_stream(&mut front, at.lsn, request.visit)?;
    let last = front.last();
    let position = last.map_or(begin.position, |found| found.last);
    if position.lsn != at.lsn || position.chain != at.chain {
        return Err(refuse(format!("it stands at {:?}, or has another record there", position.lsn)));
    }
    // What another site said it had sent goes beyond the cut; it says so again.
    match files.remove(&dir.join(SOURCE_FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other.at(|| format!("removing {}", dir.join(SOURCE_FILE).display()))?,
    }
    // Also names of what is built on: segments that a dead process made.
    files.sync_dir(dir).at(|| format!("syncing {}", dir.display()))?;
    let previous = recovered.newest_incarnation;
    let mark = Mark {
        volume: identity.journal_id(),
        incarnation: previous,
        sequence: 0,
        lsn: at.lsn,
        chain: at.chain,
        timestamp: position.timestamp,
        clean_stop: false,
    };
    // Both slots: the other one speaks of the tail.
    mark_file.write(mark)?;
    mark_file.write(mark)?;
    let mut pool = Pool::new(
        shared.files.clone(),
        dir.to_owned(),
        identity.segment_bytes,
        std::mem::take(&mut recovered.unused),
        recovered.next_ordinal,
    );
    let cut = Cut {
        predecessor: last.map_or(begin.segment, |found| found.segment.header.id),
        predecessor_end: last.map_or(0, |found| found.end),
        position,
        volume: identity.journal_id(),
        incarnation: Incarnation((shared.clock.random() as u64).max(1)),
        previous_incarnation: previous,
        epoch: last.map_or(EpochNumber(1), |found| found.segment.header.epoch),
    };
    let random = || shared.clock.random();
    reappend::reappend(cut, &mut pool, &random, &mut |_| Ok(()), &mut NotPlaced, Fill::Reserved)?;
    Ok(())
}

impl Volume {
    /// Where the stream stands behind this record, which is in the journal or the newest in the base.
    pub fn stands_at(&self, lsn: Lsn) -> Result<Position> {
        let base = self.base_point();
        if lsn == base.lsn {
            return Ok(Position { lsn, chain: base.chain, timestamp: base.timestamp });
        }
        let parts = self.parts.list();
        let gone = || Error::new(Kind::OutOfRange, format!("volume {} has no {lsn:?}", self.name()));
        if lsn < base.lsn || lsn > self.tip_lsn() {
            return Err(gone());
        }
        let part = part_of(&parts, lsn).map_err(|_| gone())?;
        if let Some(frozen) = part.frozen.get().filter(|frozen| frozen.last.lsn == lsn) {
            return Ok(frozen.last);
        }
        if part.segment.fold.is_some() {
            return Err(gone());
        }
        let found = scan::scan(&part.segment, part.before, lsn, &mut |_| {})
            .at(|| format!("reading {}", part.segment.path.display()))?;
        if found.position.lsn != lsn {
            let context = format!("{lsn:?} of volume {} cannot be read", self.name());
            return Err(Error::new(Kind::Damaged, context).hint("`cdp verify` tells what is damaged"));
        }
        Ok(found.position)
    }

    /// The newest state, not above `fork` and not older than what is kept, on which a volume can stand that has the
    /// records behind it: what each state from the fork on sees of the records up to there is what that state sees.
    pub(crate) fn base_of_orphan(&self, fork: Lsn) -> Result<Lsn> {
        let (course, tip) = (self.course(), self.tip_lsn());
        // What was thinned is not there record by record: the orphan begins behind it.
        let parts = self.parts.list();
        let thinned =
            parts.iter().filter(|part| part.segment.fold.is_some()).map(|part| part.last_lsn()).max();
        let oldest = self.oldest().0.max(thinned.unwrap_or_default());
        let mut states = vec![course.visible(tip)];
        let mut candidates = vec![fork, oldest];
        for turn in course.turns() {
            if let crate::format::turn::Turn::Rollback { to, .. } = turn.turn {
                if turn.lsn > fork {
                    states.push(course.visible(turn.lsn));
                }
                candidates.extend([to, turn.lsn, turn.lsn.previous()]);
            }
        }
        // A fork may lie in a gap, whose records are no state to stand on: the orphan has all of the gap then.
        candidates.extend(course.gaps().iter().map(|gap| gap.behind));
        let is_state = |lsn: Lsn| course.gap_of(lsn).is_none() && self.keeps(lsn);
        candidates.retain(|lsn| (oldest..=fork).contains(lsn) && is_state(*lsn));
        candidates.sort();
        let rests = |lsn: &Lsn| {
            // Between the candidate and the fork as well: rollbacks there are records of the orphan, too.
            let between = course.turns().iter().filter(|turn| turn.lsn > *lsn && turn.lsn <= fork);
            let between: Vec<_> = between.map(|turn| course.visible(turn.lsn)).collect();
            let at = course.visible(*lsn);
            crate::history::retention::may_rest(*lsn, &at, states.iter().chain(&between))
        };
        candidates.into_iter().rev().find(|lsn| rests(lsn)).ok_or_else(|| {
            let context = format!(
                "what only this site has of volume {} goes back to states before {oldest:?}, its oldest",
                self.name()
            );
            Error::new(Kind::Refused, context).hint(format!(
                "`cdp replica reseed {}` keeps it as it is under another name, and makes a new replica",
                self.name()
            ))
        })
    }
}
