//! What goes of a history next, by its policy or because there is no room: the one choice, for those who do it
//! (`volume/advance.rs`) and for those who only want to know (`volume/simulate.rs`).

mod brick;
mod group;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use brick::{Brick, MadeFold};
pub(super) use group::Group;
use group::{Candidate, group};

use super::Volume;
use super::pins::Pin;
use crate::error::Result;
use crate::format::ledger::Reason;
use crate::history::retention::stretch::Stretch;
use crate::history::retention::{self, AtCap, Keep, Policy, Retained};
use crate::ids::*;
use crate::index::Visible;
use crate::limits::{FOLD_SEGMENTS_MAX, THIN_SEGMENTS_MAX};

/// Named markers may keep that part of a journal that drops its oldest; beyond it they go with the rest.
const NAMES_PART: u64 = 2;
/// At most that part of a cap is left free.
const RESERVE_PART: u64 = 16;

/// A history, as it is or as it would be.
pub(super) struct Scene<'a> {
    volume: &'a Volume,
    pub(super) policy: Policy,
    pub(super) now: Timestamp,
    /// Oldest first.
    pub(super) bricks: Vec<Brick>,
    /// The oldest state that can be viewed, and that the base has to respect.
    pub(super) horizon: Lsn,
    /// The oldest state that is shown: ahead of the horizon while that is on its way to the disk.
    pub(super) oldest: (Lsn, Timestamp),
    /// What the journal takes, segments made ahead included.
    pub(super) journal_bytes: u64,
    /// What it may take.
    pub(super) cap_bytes: u64,
    /// Segments made ahead.
    pub(super) ready: u64,
    /// What the filesystem has left for what is folded into the base.
    pub(super) fold_room_bytes: u64,
    /// What holds history, oldest state first.
    pub(super) pins: Vec<Pin>,
    /// The newest state that a program called good: kept as a named marker is, until a newer one is.
    proven: Option<(Lsn, Timestamp)>,
}

/// What is to be done next.
pub(super) enum Duty {
    /// The horizon moves.
    Move { to: Lsn, reason: Reason },
    /// So many of the oldest bricks go to the base.
    Fold { count: usize },
    /// Some become one fold.
    Thin(ThinChoice),
}

/// Which become one fold, and why.
pub(super) struct ThinChoice {
    pub(super) group: Group,
    /// What is kept of them.
    pub(super) policy: Policy,
    pub(super) reason: Reason,
}

/// What stays of a stretch.
pub(super) struct Settled {
    pub(super) stretch: Stretch,
    /// States that are kept for themselves.
    pub(super) kept: BTreeSet<Lsn>,
    /// All that are there, rising.
    pub(super) states: Vec<Lsn>,
}

/// By how much a journal passes its cap when its next segment is made, in bytes; 0 where nothing may go for it.
pub(super) fn excess_bytes(
    at_cap: AtCap,
    journal_bytes: u64,
    ready: u64,
    segment_bytes: u64,
    cap_bytes: u64,
) -> u64 {
    if at_cap == AtCap::Block {
        return 0;
    }
    let wanted = segment_bytes * 1u64.saturating_sub(ready) + reserve_bytes(at_cap, segment_bytes, cap_bytes);
    (journal_bytes + wanted).saturating_sub(cap_bytes)
}

/// So much is left free below a cap: a fold is written before what it replaces is given back, and takes at most as much as
/// the segments that are thinned at once. Of a small cap a part of it; then the cap is passed meanwhile.
pub(super) fn reserve_bytes(at_cap: AtCap, segment_bytes: u64, cap_bytes: u64) -> u64 {
    let segments = (cap_bytes / RESERVE_PART / segment_bytes).min(THIN_SEGMENTS_MAX as u64);
    segment_bytes
        * match at_cap {
            AtCap::Block => 0,
            // Thinning takes its time: it begins a segment ahead at least.
            AtCap::Thin => segments.max(1),
            AtCap::DropOldest => segments,
        }
}

impl<'a> Scene<'a> {
    /// The history of a volume as it is, if this is the policy.
    pub(super) fn of(volume: &'a Volume, policy: Policy) -> Result<Scene<'a>> {
        let space = volume.space()?;
        let cap_bytes = volume.journal_cap_bytes_by(&policy, space);
        Ok(Scene {
            volume,
            policy,
            now: volume.policy_now(),
            bricks: volume.parts.list().iter().map(Brick::there).collect(),
            horizon: volume.durable_history().horizon.0,
            oldest: volume.oldest(),
            journal_bytes: volume.journal_bytes(),
            cap_bytes,
            ready: volume.pool.lock().expect("no panics under this lock").ready() as u64,
            fold_room_bytes: space.available,
            pins: volume.pins(),
            // A file that cannot be believed holds nothing back.
            proven: volume.newest_proof().ok().flatten().map(|proof| (proof.lsn, proof.at)),
        })
    }

    /// What is to be done next, of all that there is.
    pub(super) fn next(&self) -> Result<Option<Duty>> {
        match self.next_below(true, true)? {
            None => Ok(self.next_thin(true)?.map(Duty::Thin)),
            duty => Ok(duty),
        }
    }

    /// The same without thinning. `by_policy`: also what its times say. `may_thin`: as far as room goes, thinning can help.
    pub(super) fn next_below(&self, by_policy: bool, may_thin: bool) -> Result<Option<Duty>> {
        if by_policy
            && self.policy.every_write != Keep::Forever
            && let Some(to) = self.move_to(self.horizon_by_policy()?)
        {
            return Ok(Some(Duty::Move { to, reason: Reason::Policy }));
        }
        let excess = self.excess_bytes();
        if excess > 0
            && self.policy.at_cap == AtCap::DropOldest
            && let Some(to) = self.horizon_by_space(excess)?
            && let Some(to) = self.move_to(self.spare_names(to, may_thin)?)
        {
            return Ok(Some(Duty::Move { to, reason: Reason::Cap }));
        }
        Ok(self.rest()?.map(|count| Duty::Fold { count }))
    }

    /// What is to be thinned next. `by_policy` as above.
    pub(super) fn next_thin(&self, by_policy: bool) -> Result<Option<ThinChoice>> {
        let pressed = self.excess_bytes() > 0;
        if !by_policy && !pressed {
            return Ok(None);
        }
        match self.thin_by(&self.policy, Reason::Policy)? {
            None if pressed => self.thin_for_room(),
            choice => Ok(choice),
        }
    }

    pub(super) fn excess_bytes(&self) -> u64 {
        let segment_bytes = self.volume.identity.segment_bytes;
        excess_bytes(self.policy.at_cap, self.journal_bytes, self.ready, segment_bytes, self.cap_bytes)
    }

    /// Whether the state after this record is there, as far as thinning goes.
    pub(super) fn keeps(&self, lsn: Lsn) -> bool {
        match self.made_with(lsn) {
            Some(fold) => fold.states.binary_search_by_key(&lsn, |(lsn, _)| *lsn).is_ok(),
            None => self.volume.pins.lock().keeps(lsn),
        }
    }

    /// Whether this marker is still there. A state can stay without it, for the sake of the marker behind.
    pub(super) fn has_mark(&self, lsn: Lsn) -> Result<bool> {
        if lsn < self.oldest.0 {
            return Ok(false);
        }
        match self.made_with(lsn) {
            Some(fold) => Ok(fold.marks.iter().any(|(mark, _)| *mark == lsn)),
            None => Ok(true),
        }
    }

    /// The newest state not above this one that is there.
    fn newest_there(&self, lsn: Lsn) -> Lsn {
        if self.keeps(lsn) {
            return lsn;
        }
        match self.made_with(lsn) {
            Some(fold) => fold
                .states
                .iter()
                .rev()
                .find(|(kept, _)| *kept < lsn)
                .map_or(fold.lsns.0.previous(), |(kept, _)| *kept),
            None => self.volume.pins.lock().neighbours(lsn).0,
        }
    }

    /// The fold that is not there and would have this record.
    fn made_with(&self, lsn: Lsn) -> Option<&MadeFold> {
        let at = self.bricks.partition_point(|brick| brick.lsns().0 <= lsn).checked_sub(1)?;
        self.bricks[at].as_made().filter(|fold| lsn <= fold.lsns.1)
    }

    /// The newest record with a timestamp up to `at` that would still be known.
    fn newest_known_at(&self, at: Timestamp) -> Result<Lsn> {
        let known = self.volume.newest_known_at(at)?.0;
        Ok(match self.made_with(known) {
            Some(fold) if at < fold.timestamps.1 => {
                let not_after = fold.states.iter().rev().find(|(_, instant)| *instant <= at);
                not_after.map_or(fold.lsns.0.previous(), |(lsn, _)| *lsn)
            }
            _ => known,
        })
    }

    /// What a policy keeps of it.
    pub(super) fn retained(&self, policy: &Policy) -> Result<Retained> {
        let mut markers = Vec::new();
        if policy.every_write != Keep::Forever {
            let window = policy.every_write.since(self.now);
            for brick in self.bricks.iter().take_while(|brick| brick.begin() < window) {
                let marks = brick.marks()?;
                let there = marks.iter().filter(|(lsn, _)| *lsn >= self.oldest.0);
                markers.extend(there.map(|(lsn, at)| retention::Candidate {
                    lsn: *lsn,
                    at: *at,
                    named: self.volume.is_kept_name(*lsn),
                }));
            }
        }
        let mut retained = retention::retained(policy, markers, self.now);
        if let Some((proven, _)) = self.proven.filter(|(_, at)| *at < retained.window)
            && self.oldest.0 <= proven
            && self.keeps(proven)
            && let Err(at) = retained.kept.binary_search(&proven)
        {
            retained.kept.insert(at, proven);
        }
        Ok(retained)
    }

    /// Where the horizon should stand by the policy's times: at the oldest state that is kept.
    fn horizon_by_policy(&self) -> Result<Lsn> {
        let retained = self.retained(&self.policy)?;
        let window = match retained.window <= self.oldest.1 {
            true => self.oldest.0,
            // A replica that is far behind does not know yet which record that is.
            false => self.newest_known_at(retained.window.min(self.volume.complete_through().1))?,
        };
        // Where the window begins in history that was thinned under another policy.
        let window = self.newest_there(window);
        Ok(retained.kept.first().map_or(window, |kept| window.min(*kept)))
    }

    /// As far as the horizon may go there, if that is anywhere.
    fn move_to(&self, to: Lsn) -> Option<Lsn> {
        let held = self.pins.first().map_or(to, |pin| pin.lsn.min(to));
        Some(held.max(self.oldest.0)).filter(|to| *to > self.horizon)
    }

    /// The end of so many of the oldest bricks that dropping them gives back `bytes`, or all there are.
    fn horizon_by_space(&self, bytes: u64) -> Result<Option<Lsn>> {
        let mut freed = 0;
        let mut end = None;
        for brick in self.bricks.iter().take_while(|brick| brick.is_sealed()) {
            freed += brick.bytes()?;
            // Where the base could rest if this were the horizon: not on a branch that was left.
            let last = brick.lsns().1;
            if self.keeps(last) && self.may_rest(last, &self.shapes(last)) {
                end = Some(last);
                if freed >= bytes {
                    break;
                }
            }
        }
        Ok(end)
    }

    /// How far the horizon has to move to make room: no further than the first named marker, as long as thinning what is
    /// behind that makes room, too.
    fn spare_names(&self, to: Lsn, may_thin: bool) -> Result<Lsn> {
        let mut thinned = 0;
        let mut has_whole = false;
        // One that is full and not sealed yet is thinned as soon as it is: names wait for that.
        for brick in self.bricks.iter().take_while(|brick| brick.end().is_some()) {
            let (first, last) = brick.lsns();
            match brick.is_whole() {
                true => has_whole |= first <= last,
                false => thinned += brick.bytes()?,
            }
        }
        let helps = has_whole && may_thin && thinned <= self.cap_bytes / NAMES_PART;
        Ok(self.first_name_through(to).filter(|_| helps).unwrap_or(to))
    }

    /// The first named marker that is wanted and can be viewed, up to this record.
    fn first_name_through(&self, last: Lsn) -> Option<Lsn> {
        let since = self.policy.named.since(self.now);
        let names = self.volume.named_markers();
        let is_wanted =
            |lsn: Lsn, at: Timestamp| self.oldest.0 <= lsn && lsn <= last && at >= since && self.keeps(lsn);
        let name =
            names.into_iter().map(|(marker, _)| marker).find(|m| is_wanted(m.lsn, m.at)).map(|m| m.lsn);
        let is_there = |proven: &Lsn| self.oldest.0 <= *proven && *proven <= last && self.keeps(*proven);
        let proven = self.proven.map(|(lsn, _)| lsn).filter(is_there);
        name.into_iter().chain(proven).min()
    }

    /// States whose records must not be mixed: one for each shape that a retained state from `from` on can have.
    pub(super) fn shapes(&self, from: Lsn) -> Vec<Visible> {
        // What is seen of the records before changes at a rollback only.
        let course = self.volume.course.read().expect("no panics under this lock");
        let mut states: BTreeMap<Lsn, Lsn> = BTreeMap::new();
        let mut add = |lsn: Lsn| {
            if lsn >= from {
                states.entry(course.rollback_before(lsn)).or_insert(lsn);
            }
        };
        add(self.horizon);
        // What is written next sees what the tip sees.
        add(self.volume.tip_lsn().max(from));
        self.pins.iter().for_each(|pin| add(pin.lsn));
        for brick in self.bricks.iter().rev() {
            let (first, last) = brick.lsns();
            if last < from {
                break;
            }
            match brick.states() {
                Some(kept) => kept.into_iter().for_each(|(lsn, _)| add(lsn)),
                None => {
                    add(first.max(from));
                    course.rollbacks_within(first, last).for_each(&mut add);
                }
            }
        }
        states.values().map(|lsn| course.visible(*lsn)).collect()
    }

    /// How many of the oldest bricks go to the base next: no retained state needs them, and they surely fit, if any do.
    fn rest(&self) -> Result<Option<usize>> {
        let below = self.below_horizon();
        if below == 0 || !self.volume.base.takes_folds() {
            return Ok(None);
        }
        let near = self.fitting_in_base(below.min(FOLD_SEGMENTS_MAX))?;
        let shapes = self.shapes(self.horizon);
        // A branch that was left by a rollback goes as a whole, however long it is.
        let rest = (0..near).rev().chain(near..below).find(|at| self.may_rest(self.last_of(*at), &shapes));
        Ok(rest.map(|at| at + 1))
    }

    /// How many of the oldest bricks no retained state needs, whether they fit or not.
    pub(super) fn rest_of_all(&self) -> Option<usize> {
        let shapes = self.shapes(self.horizon);
        (0..self.below_horizon()).rev().find(|at| self.may_rest(self.last_of(*at), &shapes)).map(|at| at + 1)
    }

    fn below_horizon(&self) -> usize {
        let below = |brick: &&Brick| brick.is_sealed() && brick.lsns().1 <= self.horizon;
        self.bricks.iter().take_while(below).count()
    }

    fn last_of(&self, at: usize) -> Lsn {
        self.bricks[at].lsns().1
    }

    /// Whether the base may stand at this record: not in a gap, whose epoch record says that what follows shows no state, and would
    /// go with the rest.
    fn may_rest(&self, at: Lsn, shapes: &[Visible]) -> bool {
        let is_hidden = self.volume.course.read().expect("no panics under this lock").gap_of(at).is_some();
        !is_hidden && retention::may_rest(at, &self.volume.visible(at), shapes)
    }

    /// How many of the `count` oldest bricks find room in the base, whatever is in them: one at least, because what goes behind it
    /// is more than it takes as a rule.
    fn fitting_in_base(&self, count: usize) -> Result<usize> {
        let mut needed = 0;
        for (at, brick) in self.bricks[..count].iter().enumerate() {
            // Blocks of which nothing is there yet, each with a page of checksums of its own.
            needed += 2 * brick.bytes()?;
            if needed > self.fold_room_bytes {
                return Ok(at.max(1));
            }
        }
        Ok(count)
    }

    /// The journal is full, and what the policy keeps does not fit: the oldest segments that are still whole give up all
    /// but what the policy keeps beyond its window; where the oldest may be dropped, all but named markers.
    fn thin_for_room(&self) -> Result<Option<ThinChoice>> {
        let whole = self.bricks.iter().take_while(|brick| brick.is_sealed()).filter(|brick| brick.is_whole());
        // What is thinned at once, and no more.
        let Some(end) = whole.take(THIN_SEGMENTS_MAX).last().and_then(Brick::end) else { return Ok(None) };
        let window = Keep::For(self.now.0.saturating_sub(end.0.saturating_add(1)));
        let shorter = match self.policy.at_cap {
            AtCap::Thin => Policy { every_write: window, ..self.policy.clone() },
            // Only for the sake of a name, where the horizon came to stand for it; else dropping is better.
            AtCap::DropOldest if self.first_name_through(Lsn::MAX) == Some(self.oldest.0) => {
                Policy { every_write: window, tiers: Vec::new(), ..self.policy.clone() }
            }
            _ => return Ok(None),
        };
        self.thin_by(&shorter, Reason::Cap)
    }

    fn thin_by(&self, policy: &Policy, reason: Reason) -> Result<Option<ThinChoice>> {
        let Keep::For(every_write_ns) = policy.every_write else { return Ok(None) };
        let window = policy.every_write.since(self.now);
        let seam = self.pins.iter().filter(|pin| pin.all_above).map(|pin| pin.lsn).min();
        let is_old = |brick: &&Brick| {
            brick.is_sealed()
                && brick.end().is_some_and(|end| end < window)
                && seam.is_none_or(|seam| brick.lsns().1 <= seam)
        };
        let old = self.bricks.iter().take_while(is_old).count();
        if old == 0 {
            return Ok(None);
        }
        let kept = self.kept_states(policy)?;
        let candidates: Vec<Candidate> =
            self.bricks[..old].iter().map(|brick| self.candidate(brick, &kept)).collect();
        let group = group(&candidates, window, every_write_ns, reason == Reason::Cap);
        Ok(group.map(|group| ThinChoice { group, policy: policy.clone(), reason }))
    }

    /// States that stay although their every-write time is over: by policy, pinned, or where history begins.
    pub(super) fn kept_states(&self, policy: &Policy) -> Result<BTreeSet<Lsn>> {
        let mut kept: BTreeSet<Lsn> = self.retained(policy)?.kept.into_iter().collect();
        kept.extend(self.pins.iter().map(|pin| pin.lsn));
        kept.insert(self.horizon);
        Ok(kept)
    }

    fn candidate(&self, brick: &Brick, kept: &BTreeSet<Lsn>) -> Candidate {
        let lsns = brick.lsns();
        let wanted = match lsns.0 <= lsns.1 {
            true => kept.range(lsns.0..=lsns.1).filter(|lsn| self.keeps(**lsn)).count(),
            false => 0,
        };
        // The end costs nothing, and neither does the state before a marker.
        let is_expired = |(lsn, comes): &(Lsn, bool)| {
            *lsn != lsns.1 && !kept.contains(lsn) && (!comes || !kept.contains(&lsn.previous()))
        };
        Candidate {
            lsns,
            end: brick.end().unwrap_or(Timestamp(0)),
            level: brick.level(),
            blocks: brick.blocks(),
            wanted,
            expired: brick.points().iter().filter(|point| is_expired(point)).count(),
        }
    }

    /// What stays of these bricks if these states are wanted of them. `is_there`: what was not thinned away before.
    pub(super) fn settle(
        &self,
        group: Group,
        wanted: &BTreeSet<Lsn>,
        is_there: &dyn Fn(Lsn) -> bool,
    ) -> Result<Settled> {
        let bricks = &self.bricks[group.from..group.to];
        let lsns = self.lsns_of(group);
        // What was thinned away before is gone for all.
        let mut kept: BTreeSet<Lsn> =
            wanted.range(lsns.0..=lsns.1).filter(|lsn| is_there(**lsn)).copied().collect();
        let beyond = self.shapes(lsns.1.next());
        let views: Vec<Visible> = kept.iter().map(|lsn| self.volume.visible(*lsn)).chain(beyond).collect();
        let stretch = Stretch::cut(lsns.0, lsns.1, &views);
        if stretch.keeps(&self.volume.visible(lsns.1)) && is_there(lsns.1) {
            kept.insert(lsns.1);
        }
        let mut states = kept.clone();
        for brick in bricks {
            // The state before a marker has the same blocks: it comes with the marker.
            for (lsn, _) in brick.marks()?.iter() {
                let before = lsn.previous();
                if kept.contains(lsn) && *lsn > lsns.0 && is_there(before) {
                    states.insert(before);
                }
            }
        }
        Ok(Settled { stretch, states: states.into_iter().collect(), kept })
    }

    /// The first and the last record of these bricks.
    pub(super) fn lsns_of(&self, group: Group) -> (Lsn, Lsn) {
        (self.bricks[group.from].lsns().0, self.bricks[group.to - 1].lsns().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever gives a journal 200 GiB has them for something else if it takes 201, even for a minute: what is thinned at
    /// once fits below the cap. A journal of a few segments keeps as much as it can.
    #[test]
    fn a_fold_fits_below_a_cap_that_is_not_small() {
        let segment = 128 << 20;
        for at_cap in [AtCap::Thin, AtCap::DropOldest] {
            let reserve = |cap: u64| reserve_bytes(at_cap, segment, cap);
            assert_eq!(reserve(200 << 30), THIN_SEGMENTS_MAX as u64 * segment);
            assert_eq!(reserve(16 << 30), THIN_SEGMENTS_MAX as u64 * segment);
            assert_eq!(reserve(1 << 30), if at_cap == AtCap::Thin { segment } else { 0 });
            // Full as soon as what is free is less than that and the next segment.
            let cap = 20 << 30;
            let free = reserve(cap) + segment;
            assert_eq!(excess_bytes(at_cap, cap - free, 0, segment, cap), 0);
            assert_eq!(excess_bytes(at_cap, cap - free + 1, 0, segment, cap), 1);
            assert_eq!(excess_bytes(at_cap, cap - free + 1, 1, segment, cap), 0);
        }
        assert_eq!(excess_bytes(AtCap::Block, 5, 0, segment, 1), 0);
    }
}
