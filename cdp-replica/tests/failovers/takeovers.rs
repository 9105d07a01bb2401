//! Newest states that come ahead of the history over a thin line that is often down; and what people at the second site do with
//! them: they read them, let them go, and take over with them when the first site is lost.

use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::format::record::Chain;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, CrashAt};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::Progress;
use cdp_core::volume::role::Role;
use cdp_core::volume::shown::Shown;
use cdp_replica::wire::control::CODING_RANGES;

use crate::model::{Entry, Gap};
use crate::site::{Copy, is_state};
use crate::wire::Wire;
use crate::world::{Outcome, World};

/// What a takeover may write beyond what it said: where it was cut off, a stretch of zeros may be written in two parts.
const RECORDS_MORE: u64 = 8;

/// A line that carries little.
pub struct ThinLine {
    // In one exchange at most.
    bytes: u64,
    // For so many steps.
    down: u64,
}

impl ThinLine {
    pub fn new(seed: u64) -> ThinLine {
        ThinLine { bytes: Chance::new(seed ^ 0x7419).pick(&[3_000, 8_000, 20_000]), down: 0 }
    }
}

/// A newest state of which something is here.
#[derive(Clone)]
pub struct Newest {
    pub lsn: Lsn,
    pub entry: Entry,
    chain: Chain,
    is_shown: bool,
    // Somebody does something that removes it, or may.
    may_go: bool,
}

impl Copy {
    /// It may be gone, or not, when it is looked at next.
    pub fn newest_may_go(&mut self) {
        if let Some(newest) = &mut self.newest {
            newest.may_go = true;
        }
    }

    /// What is shown ahead of the history is what somebody sent, and stays until the history has arrived there.
    pub fn notice_newest(&mut self, volume: &Arc<Volume>) -> Outcome {
        let (state, shown) = (volume.coalesced_state(), volume.coalesced());
        let known = self.newest.take();
        let is_same = |known: &&Newest| {
            state.as_ref().is_some_and(|state| known.lsn == state.lsn && known.chain == state.chain)
        };
        let same = known.as_ref().filter(is_same).cloned();
        let is_given_up = state.as_ref().is_some_and(|state| state.progress == Progress::GivenUp);
        if let Some(known) = known.filter(|known| known.is_shown && !known.may_go)
            && volume.is_replica()
            && self.log.tip() < known.lsn
            && (same.is_none() || shown.is_none() && !is_given_up)
        {
            broken!("the newest state, {:?}, is not shown any more: {state:?}", known.lsn);
        }
        let Some(state) = state else { return Ok(()) };
        let sent = || {
            let entry = self.bringing.as_ref().and_then(|log| log.get(state.lsn))?.clone();
            Some(Newest { lsn: state.lsn, entry, chain: state.chain, is_shown: false, may_go: false })
        };
        let Some(newest) = same.or_else(sent) else {
            broken!("nobody sent the newest state {state:?}");
        };
        if newest.entry.hidden {
            broken!("the newest state is half of one: {state:?}");
        }
        self.newest = Some(Newest { is_shown: shown.is_some(), may_go: false, ..newest });
        Ok(())
    }

    /// What is shown ahead of the history is exactly that, and nothing between is.
    pub fn checks_newest(&self, volume: &Arc<Volume>, chance: &mut Chance) -> Outcome {
        let Some(ahead) = volume.coalesced() else { return Ok(()) };
        let (name, tip, state) = (volume.name(), volume.tip_lsn(), ahead.state());
        let Some(newest) = self.newest.as_ref().filter(|newest| newest.lsn == state.lsn) else {
            broken!("nobody sent {state:?}");
        };
        let shown = Shown::of(volume.clone());
        let open = |lsn| View::of(volume.clone(), &shown, lsn, "a check");
        is_state(&open(state.lsn).map_err(|error| format!("{error:?}"))?, name, &newest.entry)?;
        let mut between = vec![state.lsn.next()];
        if state.lsn > tip.next() {
            between.push(Lsn(tip.0 + 1 + chance.below(state.lsn.0 - tip.0 - 1)));
        }
        for lsn in between {
            let says = open(lsn).err().map(|error| error.to_string()).unwrap_or_default();
            if !says.contains("filling") && lsn < state.lsn || says.is_empty() {
                broken!("{lsn:?} with {tip:?} here and {state:?} ahead: {says}");
            }
        }
        if View::open(volume.clone(), state.lsn, "a check").is_ok() {
            broken!("{state:?} is taken for history");
        }
        let complete = volume.complete_through().1;
        let before = Timestamp(state.at.0 - 1);
        if !matches!(shown.lsn_at(state.at), Ok(lsn) if lsn == state.lsn)
            || shown.lsn_at(Timestamp(state.at.0 + 1)).is_ok()
            || before > complete && shown.lsn_at(before).is_ok()
        {
            broken!("complete through {complete:?}, and wrong instants around {state:?}");
        }
        Ok(())
    }

    /// No instant of a gap shows anything, and those around it what they should.
    pub fn checks_instants(&self, volume: &Arc<Volume>) -> Outcome {
        let oldest = volume.oldest().0;
        for (behind, whole, gap) in self.log.gaps().filter(|(_, whole, _)| *whole >= oldest) {
            let (at, between) = (volume.lsn_at(gap.at), Timestamp(gap.at.0 - 1));
            let is_kept = volume.keeps(whole);
            if !matches!(at, Ok(lsn) if lsn == whole) && (is_kept || at.is_ok()) {
                broken!("{whole:?} is the newest state that it went on with, and at {gap:?} there is {at:?}");
            }
            // Before its oldest state a copy that began later knows no gap.
            if behind >= oldest && between > gap.complete && volume.lsn_at(between).is_ok() {
                broken!("{gap:?} shows {:?}", volume.lsn_at(between));
            }
            // Where what follows was thinned it is not known when that began.
            if behind >= oldest && volume.keeps(behind) && volume.keeps(behind.next()) {
                let at = volume.lsn_at(gap.complete);
                if !matches!(at, Ok(lsn) if lsn == behind) {
                    broken!("{behind:?} is before {gap:?}, and at its beginning there is {at:?}");
                }
            }
        }
        Ok(())
    }

    /// The next record of a promotion that goes on from a newest state.
    pub fn taken_next(&self, volume: &Volume) -> Option<Entry> {
        let (next, newest) = (self.log.tip().next(), self.log.newest().id);
        let course = volume.course();
        let is_whole =
            course.gaps().iter().any(|gap| gap.is_whole && gap.end.is_some_and(|end| end.0 == next));
        self.taking.iter().find(|entry| entry.id > newest && entry.hidden != is_whole).cloned()
    }
}

impl World {
    pub fn connect(&mut self, from: usize, name: &'static str) -> Option<Wire> {
        let mut wire = Wire::connect(&self.sites, from, name, self.now_ns)?;
        if let (Some(_), Some(sender)) = (&self.thin_line, &mut wire.sender) {
            wire.is_thin = true;
            // What everybody writes here takes no room on a line otherwise.
            sender.restrict_codings(CODING_RANGES);
            if self.chance.percent(90) {
                sender.coalesce(self.chance.below(150_000));
            }
        }
        Some(wire)
    }

    pub fn line_bytes(&self) -> u64 {
        self.thin_line.as_ref().map_or(40_000, |line| line.bytes)
    }

    pub fn line_fails(&mut self) {
        let Some(line) = &mut self.thin_line else { return };
        if line.down == 0 && self.chance.percent(2) {
            line.down = 10 + self.chance.below(60);
            self.wires.clear();
            self.met.outages += 1;
        }
    }

    pub fn is_line_down(&mut self) -> bool {
        let Some(line) = self.thin_line.as_mut().filter(|line| self.faults && line.down > 0) else {
            return false;
        };
        line.down -= 1;
        true
    }

    /// Where a newest state is shown, the first site is lost more often than elsewhere.
    pub fn somebody_takes_over(&mut self) -> Outcome {
        if self.thin_line.is_none() {
            return Ok(());
        }
        for site in 0..2 {
            let shown: Vec<_> = self
                .names
                .iter()
                .filter(|name| {
                    self.sites[site].volume(name).is_some_and(|volume| volume.coalesced().is_some())
                })
                .collect();
            self.met.shown += shown.len() as u64;
            let Some(name) = shown.first() else { continue };
            match self.chance.below(100) {
                0..8 => self.failover(site)?,
                8 => self.let_newest_go(site, name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether somebody who fails over wants no newest state.
    pub fn gives_newest_up(&mut self, volumes: &[Arc<Volume>]) -> bool {
        let is_any = volumes.iter().any(|volume| volume.coalesced().is_some());
        is_any && self.chance.percent(12)
    }

    /// Somebody lets a newest state go.
    pub fn let_newest_go(&mut self, site: usize, name: &str) -> Outcome {
        let Some(volume) = self.sites[site].volume(name) else { return Ok(()) };
        if volume.coalesced_state().is_none() {
            return Ok(());
        }
        self.say(|| format!("{} lets the newest state of {name} go", self.sites[site].name));
        self.sites[site].copy(name).newest_may_go();
        self.met.let_go += u64::from(volume.drop_coalesced().is_ok());
        self.settle(site)
    }

    /// What a promotion is going to write that goes on from the newest state; and something may happen on the way.
    pub fn expect_takeover(&mut self, site: usize, volume: &Arc<Volume>) -> Outcome {
        let Some(ahead) = volume.coalesced() else { broken!("{} goes on from nothing", volume.name()) };
        let records =
            volume.difference_to_newest().ok().flatten().map_or(100, |difference| difference.records);
        let ids: Vec<u64> = (0..records + RECORDS_MORE).map(|_| self.next_id()).collect();
        let whole = self.next_id();
        let copy = self.sites[site].copy(volume.name());
        let newest = copy.goes_on_from(ahead.state().lsn).clone();
        let gap = Gap { complete: volume.complete_through().1, at: ahead.state().at, id: newest.written() };
        copy.taking = ids.into_iter().map(|id| Entry { hidden: true, ..newest.again(id) }).collect();
        copy.taking.push(Entry { gap: Some(gap), ..newest.again(whole) });
        copy.newest_may_go();
        let disk = &self.sites[site].disk;
        match self.chance.below(100) {
            _ if !self.faults => {}
            0..25 => {
                let at = self.chance.pick(&[CrashAt::Before, CrashAt::During, CrashAt::After]);
                disk.set_crash_after(1 + self.chance.below(60), at);
            }
            25..45 => disk.set_capacity(Some(disk.used_bytes() + self.chance.below(200_000))),
            _ => {}
        }
        Ok(())
    }

    /// A promotion came to nothing: who showed a newest state shows it as before.
    pub fn still_show(&self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome {
        for (volume, to) in members {
            let copy = &self.sites[site].copies[volume.name()];
            let was_shown = copy.newest.as_ref().is_some_and(|newest| newest.lsn == *to);
            if was_shown && *to > volume.tip_lsn() && volume.coalesced().is_none() {
                broken!("{} does not show {to:?} after a promotion that failed", volume.name());
            }
        }
        Ok(())
    }

    /// A disk that filled up stopped a promotion in the middle of what it writes: nobody is shown half of it, and who says it again
    /// has it done, or hears why not.
    pub fn say_it_again(&mut self, site: usize, members: &[(Arc<Volume>, Lsn)]) -> Outcome<bool> {
        let store = self.sites[site].store.clone().expect("it is up");
        let mut tries = self.chance.below(3);
        loop {
            for (volume, _) in members.iter().filter(|(volume, _)| !volume.is_primary()) {
                let Role::Fenced { why, .. } = volume.role() else {
                    broken!("{} is half promoted and {:?}", volume.name(), volume.role());
                };
                let mut results = Vec::new();
                volume.apply(SessionId(3), &[Change::Trim { offset: 0, len: 4096 }], &mut results);
                let is_half = self.sites[site].copies[volume.name()].log.newest().hidden;
                if results[0].is_ok() || is_half && volume.refuse_if_held().is_ok() || why.is_empty() {
                    broken!("{} is half promoted and lets clients in: {why}", volume.name());
                }
                self.sites[site].check(volume.name(), &mut self.chance, false)?;
                self.met.closed += 1;
            }
            if tries == 0 {
                return Ok(false);
            }
            tries -= 1;
            if self.chance.percent(60) {
                self.sites[site].disk.set_capacity(None);
            }
            let said = store.settle_promotion();
            if !self.is_up(site) {
                return Ok(false);
            }
            self.sites[site].absorb()?;
            if members.iter().all(|(volume, _)| volume.is_primary()) {
                return Ok(true);
            }
            self.say(|| format!("said again: {said:?}, {:?}", members[0].0.role()));
        }
    }
}
