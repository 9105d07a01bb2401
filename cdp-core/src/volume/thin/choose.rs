//! Which stretch is thinned next, and what of it stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Plan;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::fold::PointRow;
use crate::format::ledger::Reason;
use crate::format::record::RecordKind;
use crate::history::retention::stretch::Stretch;
use crate::history::retention::{AtCap, Keep, Policy};
use crate::ids::*;
use crate::index::Visible;
use crate::limits::{FOLD_BLOCKS_MAX, FOLD_LEVEL_MAX, FOLD_POINTS_MAX, THIN_FOLDS, THIN_SEGMENTS_MAX};
use crate::volume::Volume;
use crate::volume::advance::Duties;
use crate::volume::parts::{Part, PartSet, is_sealed, part_of};
use crate::volume::pins::{Held, Thinned};

/// The policy is looked at so often, in nanoseconds.
const LOOK_INTERVAL_NS: u64 = 1_000_000_000;
/// Fewer segments than are thinned at once wait until they are older than the window by this part of it.
const WAIT_PART: u64 = 16;
/// A fold is made anew when of its states this part is not wanted any more.
const EXPIRED_PART: usize = 4;

/// Neighbouring parts, by their places in the list, and the level of the fold that they become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::volume) struct Group {
    pub(in crate::volume) from: usize,
    pub(in crate::volume) to: usize,
    pub(in crate::volume) level: u8,
}

/// What stays of a stretch.
pub(in crate::volume) struct Settled {
    pub(in crate::volume) stretch: Stretch,
    /// States that are kept for themselves.
    pub(in crate::volume) kept: BTreeSet<Lsn>,
    /// All that are there, rising.
    pub(in crate::volume) states: Vec<Lsn>,
}

impl Settled {
    pub(in crate::volume) fn keeps(&self, lsn: Lsn) -> bool {
        self.states.binary_search(&lsn).is_ok()
    }
}

/// What the choice needs to know of a part.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Candidate {
    /// Its first and its last record.
    pub(in crate::volume) lsns: (Lsn, Lsn),
    /// When the last one was.
    pub(in crate::volume) end: Timestamp,
    /// Of a fold its level.
    pub(in crate::volume) level: Option<u8>,
    /// Of a fold its payload, in blocks.
    pub(in crate::volume) blocks: u64,
    /// States that are wanted in it.
    pub(in crate::volume) wanted: usize,
    /// States that a fold keeps besides, and that nobody wants any more.
    pub(in crate::volume) expired: usize,
}

/// The oldest segments of `parts` that can be thinned: all of them may be as far as time goes. `hurry`: as few as there
/// are.
pub(in crate::volume) fn group(
    parts: &[Candidate],
    window: Timestamp,
    every_write_ns: u64,
    hurry: bool,
) -> Option<Group> {
    let wait = Timestamp(window.0.saturating_sub(every_write_ns / WAIT_PART));
    let fits = |from: usize, to: usize| {
        let wanted: usize = parts[from..to].iter().map(|part| part.wanted).sum();
        let blocks: u64 = parts[from..to].iter().map(|part| part.blocks).sum();
        let records = parts[to - 1].lsns.1.0.saturating_sub(parts[from].lsns.0.0);
        // One more for the end, which comes for nothing.
        (wanted as u64) < FOLD_POINTS_MAX && blocks <= FOLD_BLOCKS_MAX && records < u64::from(u32::MAX)
    };
    // What is whole comes first, but where room is wanted: joining folds costs nobody a state.
    match hurry {
        true => fold_group(parts, hurry, &fits).or_else(|| whole_group(parts, wait, hurry, &fits)),
        false => whole_group(parts, wait, hurry, &fits).or_else(|| fold_group(parts, hurry, &fits)),
    }
}

type Fits<'a> = dyn Fn(usize, usize) -> bool + 'a;

fn whole_group(parts: &[Candidate], wait: Timestamp, hurry: bool, fits: &Fits<'_>) -> Option<Group> {
    let mut from = 0;
    while from < parts.len() {
        if parts[from].level.is_some() || !fits(from, from + 1) {
            from += 1;
            continue;
        }
        let mut to = from + 1;
        while to < parts.len()
            && to - from < THIN_SEGMENTS_MAX
            && parts[to].level.is_none()
            && fits(from, to + 1)
        {
            to += 1;
        }
        let is_due = hurry || to - from == THIN_SEGMENTS_MAX || parts[from].end < wait;
        let has_records = parts[from].lsns.0 <= parts[to - 1].lsns.1;
        if is_due && has_records {
            return Some(Group { from, to, level: 0 });
        }
        from = to;
    }
    None
}

fn fold_group(parts: &[Candidate], hurry: bool, fits: &Fits<'_>) -> Option<Group> {
    // A fold that keeps much for nobody.
    let expired = |part: &Candidate| {
        part.level.is_some()
            && part.expired > 0
            && (hurry || part.expired * EXPIRED_PART >= part.expired + part.wanted)
    };
    if let Some(from) = parts.iter().position(expired) {
        return Some(Group { from, to: from + 1, level: parts[from].level.unwrap_or(0) });
    }
    // Neighbouring folds of one level become one of the next; where room is wanted, already two of them.
    let count = if hurry { 2 } else { THIN_FOLDS };
    let last = parts.len().checked_sub(count)?;
    for level in 0..=FOLD_LEVEL_MAX {
        let is_streak = |from: usize| {
            parts[from..from + count].iter().all(|part| part.level == Some(level)) && fits(from, from + count)
        };
        if let Some(from) = (0..=last).find(|from| is_streak(*from)) {
            return Some(Group { from, to: from + count, level: (level + 1).min(FOLD_LEVEL_MAX) });
        }
    }
    None
}

impl Volume {
    /// What to thin next by the policy, or because there is no room left.
    pub(super) fn choose_thin(&self, duties: &mut Duties, now_ns: u64) -> Result<Option<Plan>> {
        let policy = self.retention();
        let excess = self.excess_bytes()?;
        let pressed = excess > 0 && policy.at_cap != AtCap::Block;
        let has_looked =
            duties.thin_at_ns != 0 && now_ns.saturating_sub(duties.thin_at_ns) < LOOK_INTERVAL_NS;
        if now_ns < duties.thin_retry_ns || has_looked && !pressed && !duties.thin_again {
            return Ok(None);
        }
        duties.thin_at_ns = now_ns;
        duties.thin_again = false;
        let plan = match self.plan_by(&policy, Reason::Policy)? {
            None if pressed => self.plan_for_room(&policy)?,
            plan => plan,
        };
        duties.thin_again = plan.is_some();
        Ok(plan)
    }

    /// The journal is full, and what the policy keeps does not fit: the oldest segments that are still whole give up all
    /// but what the policy keeps beyond its window; where the oldest may be dropped, all but named markers.
    fn plan_for_room(&self, policy: &Policy) -> Result<Option<Plan>> {
        let now = self.policy_now();
        let list = self.parts.list();
        let is_whole = |part: &&Arc<Part>| part.segment.fold.is_none();
        let whole = list.iter().take_while(|part| is_sealed(part)).filter(is_whole);
        // What is thinned at once, and no more.
        let Some(end) = whole.take(THIN_SEGMENTS_MAX).last().and_then(|part| part.frozen.get().copied())
        else {
            return Ok(None);
        };
        let window = Keep::For(now.0.saturating_sub(end.last.timestamp.0.saturating_add(1)));
        let shorter = match policy.at_cap {
            AtCap::Thin => Policy { every_write: window, ..policy.clone() },
            // Only for the sake of a name, where the horizon came to stand for it; else dropping is better.
            AtCap::DropOldest if self.first_name_through(Lsn::MAX) == Some(self.oldest().0) => {
                Policy { every_write: window, tiers: Vec::new(), ..policy.clone() }
            }
            _ => return Ok(None),
        };
        self.plan_by(&shorter, Reason::Cap)
    }

    fn plan_by(&self, policy: &Policy, reason: Reason) -> Result<Option<Plan>> {
        let Keep::For(every_write_ns) = policy.every_write else { return Ok(None) };
        let now = self.policy_now();
        let window = policy.every_write.since(now);
        let list = self.parts.list();
        let seam = self.pins.lock().pins().filter(|pin| pin.all_above).map(|pin| pin.lsn).min();
        let is_old = |part: &&Arc<Part>| {
            let last = part.frozen.get().map(|frozen| frozen.last);
            is_sealed(part)
                && last
                    .is_some_and(|last| last.timestamp < window && seam.is_none_or(|seam| last.lsn <= seam))
        };
        let old = list.iter().take_while(is_old).count();
        if old == 0 {
            return Ok(None);
        }
        let kept: BTreeSet<Lsn> = self.kept_states(policy)?;
        let candidates: Vec<Candidate> =
            list[..old].iter().map(|part| candidate(part, &kept, &self.pins.lock())).collect();
        let Some(group) = group(&candidates, window, every_write_ns, reason == Reason::Cap) else {
            return Ok(None);
        };
        let parts = list[group.from..group.to].to_vec();
        drop(list);
        self.refuse_thin_without_room(&parts)?;
        self.plan_group(parts, policy, group.level, reason).map(Some)
    }

    /// States that stay although their every-write time is over: by policy, pinned, or where history begins.
    pub(in crate::volume) fn kept_states(&self, policy: &Policy) -> Result<BTreeSet<Lsn>> {
        let mut kept: BTreeSet<Lsn> = self.retained_by(policy)?.kept.into_iter().collect();
        kept.extend(self.pins().into_iter().map(|pin| pin.lsn));
        kept.insert(self.durable_history().horizon.0);
        Ok(kept)
    }

    /// What stays of a stretch if these states are wanted of it, and states beyond it see so much. `is_there`: what was
    /// not thinned away before.
    pub(in crate::volume) fn settle_states(
        &self,
        lsns: (Lsn, Lsn),
        mut kept: BTreeSet<Lsn>,
        beyond: Vec<Visible>,
        markers: &BTreeSet<Lsn>,
        is_there: &dyn Fn(Lsn) -> bool,
    ) -> Settled {
        // What was thinned away before is gone for all.
        kept.retain(|lsn| is_there(*lsn));
        let views: Vec<Visible> = kept.iter().map(|lsn| self.visible(*lsn)).chain(beyond).collect();
        let stretch = Stretch::cut(lsns.0, lsns.1, &views);
        if stretch.keeps(&self.visible(lsns.1)) && is_there(lsns.1) {
            kept.insert(lsns.1);
        }
        // The state before a marker has the same blocks: it comes with the marker.
        let comes = |lsn: &Lsn| {
            let before = lsn.previous();
            let is_new = *lsn > lsns.0 && is_there(before) && !kept.contains(&before);
            (is_new && markers.contains(lsn)).then_some(before)
        };
        let mut states = kept.clone();
        states.extend(kept.iter().filter_map(comes));
        Settled { stretch, states: states.into_iter().collect(), kept }
    }

    fn refuse_thin_without_room(&self, parts: &[Arc<Part>]) -> Result<()> {
        let mut needed = 2 * self.identity.segment_bytes;
        for part in parts {
            needed += part.segment.file.len().at(|| format!("measuring {}", part.segment.path.display()))?;
        }
        let space = self
            .shared
            .files
            .space(&self.dir)
            .at(|| format!("volume {}: asking for free space", self.identity.name))?;
        if space.available < needed {
            let context = format!("{} bytes are free, {needed} are needed", space.available);
            return Err(Error::new(Kind::NoSpace, context));
        }
        Ok(())
    }

    /// Settles what stays: from here on nothing else of the stretch can be pinned.
    fn plan_group(&self, parts: Vec<Arc<Part>>, policy: &Policy, level: u8, reason: Reason) -> Result<Plan> {
        let lsns = (parts[0].segment.header.first_lsn, parts[parts.len() - 1].last_lsn());
        let within = |lsn: &Lsn| lsns.0 <= *lsn && *lsn <= lsns.1;
        let by_policy = self.retained_by(policy)?.kept;
        let beyond = self.retained_shapes(lsns.1.next())?;
        let clones: Vec<Lsn> = self.held_by_clones().into_iter().map(|(_, lsn)| lsn).collect();
        let horizon = self.durable_history().horizon.0;
        let markers = markers_of(&parts)?;
        let mut held = self.pins.lock();
        let mut wanted: BTreeSet<Lsn> = by_policy.into_iter().filter(within).collect();
        wanted.extend(held.pins().map(|pin| pin.lsn).chain(clones).chain([horizon]).filter(within));
        let Settled { stretch, kept, states } =
            self.settle_states(lsns, wanted, beyond, &markers, &|lsn| held.keeps(lsn));
        let before = held.thin(lsns.0, Thinned { last: lsns.1, kept: states.clone() });
        drop(held);
        let rows: Result<Vec<PointRow>> =
            kept.iter().map(|lsn| point_of(&parts, *lsn, &kept, &states)).collect();
        let parts = Arc::new(PartSet::new(parts));
        match rows {
            Ok(points) => Ok(Plan { parts, lsns, pieces: stretch.pieces(), points, level, reason, before }),
            Err(error) => {
                self.pins.lock().unthin(lsns.0, before);
                Err(error)
            }
        }
    }
}

pub(in crate::volume) fn candidate(part: &Arc<Part>, kept: &BTreeSet<Lsn>, held: &Held) -> Candidate {
    let lsns = (part.segment.header.first_lsn, part.last_lsn());
    let end = part.frozen.get().map_or(Timestamp(0), |frozen| frozen.last.timestamp);
    let wanted = match lsns.0 <= lsns.1 {
        true => kept.range(lsns.0..=lsns.1).filter(|lsn| held.keeps(**lsn)).count(),
        false => 0,
    };
    let (level, blocks, expired) = match &part.segment.fold {
        None => (None, part.frozen.get().map_or(0, |frozen| frozen.end / BLOCK_BYTES), 0),
        Some(fold) => {
            // The end costs nothing, and neither does the state before a marker.
            let is_expired = |point: &&PointRow| {
                point.lsn != lsns.1
                    && !kept.contains(&point.lsn)
                    && (point.before == Timestamp(0) || !kept.contains(&point.lsn.previous()))
            };
            let expired = fold.points.iter().filter(is_expired).count();
            (Some(fold.header.level), fold.header.payload_blocks, expired)
        }
    };
    Candidate { lsns, end, level, blocks, wanted, expired }
}

/// Records that are markers, in parts that are not folds; and in folds those that were.
pub(in crate::volume) fn markers_of(parts: &[Arc<Part>]) -> Result<BTreeSet<Lsn>> {
    let mut markers = BTreeSet::new();
    for part in parts {
        let rows = part.events()?;
        let rows = rows.iter().filter(|row| row.kind == RecordKind::Marker as u8);
        markers.extend(rows.map(|row| row.lsn));
    }
    Ok(markers)
}

fn point_of(parts: &[Arc<Part>], lsn: Lsn, kept: &BTreeSet<Lsn>, states: &[Lsn]) -> Result<PointRow> {
    let timestamp = |lsn: Lsn| {
        let missing = || Error::new(Kind::NotFound, format!("there is no {lsn:?} to keep"));
        part_of(parts, lsn)?.timestamp_of(lsn)?.ok_or_else(missing)
    };
    let before = lsn.previous();
    let comes = !kept.contains(&before) && states.binary_search(&before).is_ok();
    let before = if comes { timestamp(before)? } else { Timestamp(0) };
    Ok(PointRow { lsn, at: timestamp(lsn)?, before })
}
