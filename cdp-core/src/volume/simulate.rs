//! What a policy would make of the history that there is: the duties of upkeep one after the other, chosen as upkeep
//! chooses them (`volume/aging`), and carried out on a picture of the journal instead of the journal.

mod measure;

use std::sync::Arc;

use super::Volume;
use super::aging::{Brick, Duty, MadeFold, Scene, ThinChoice};
use super::parts::Part;
use crate::error::{Error, Kind, Result};
use crate::history::point::Timeline;
use crate::history::retention::Policy;
use crate::ids::*;

/// What a policy would make of a volume's history, all of it done, nothing written meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Simulation {
    /// The oldest state that could be viewed.
    pub horizon: (Lsn, Timestamp),
    /// The base would hold everything up to here.
    pub base_lsn: Lsn,
    /// From here on every state would be there.
    pub window: (Lsn, Timestamp),
    /// The newest record.
    pub tip: (Lsn, Timestamp),
    /// Stretches that would be thinned, by first and last record, each with the states that stay.
    pub stretches: Vec<(Lsn, Lsn, Vec<Lsn>)>,
    /// States that can be viewed now, and could not be any more.
    pub states_gone: u64,
    /// Named markers that would go.
    pub names_gone: Vec<String>,
    /// What the journal takes now, folds and segments made ahead included, in bytes.
    pub journal_bytes: u64,
    /// What it would take.
    pub journal_bytes_after: u64,
    /// Of that the folds.
    pub fold_bytes: u64,
    /// What the journal may take.
    pub cap_bytes: u64,
    /// Whether the journal would be at its cap after that, and could not become smaller.
    pub is_full: bool,
    /// How many nanoseconds of every write fit below the cap at the rate of this journal; `None` where there is too
    /// little of it to tell.
    pub every_write_ns: Option<u64>,
    /// How far back the policy goes below the cap, likewise, its own times aside.
    pub policy_ns: Option<u64>,
}

impl Simulation {
    /// Whether the state after this record could be viewed.
    pub fn keeps(&self, lsn: Lsn) -> bool {
        let at = self.stretches.partition_point(|(first, ..)| *first <= lsn);
        let stretch = at.checked_sub(1).map(|at| &self.stretches[at]).filter(|(_, last, _)| lsn <= *last);
        let is_in_range = self.horizon.0 <= lsn && lsn <= self.tip.0;
        is_in_range && stretch.is_none_or(|(_, _, kept)| kept.binary_search(&lsn).is_ok())
    }
}

impl Volume {
    /// What `policy` would make of the history that there is, at this instant and with what is held now. Reads the
    /// index, and some payload to learn how well it can be compressed.
    pub fn simulate_retention(&self, policy: &Policy) -> Result<Simulation> {
        let mut scene = Scene::of(self, policy.clone())?;
        let before =
            Before { bytes: scene.journal_bytes, oldest: scene.oldest.0, bricks: scene.bricks.clone() };
        let mut base_lsn = self.base_point().lsn;
        // Each step moves the horizon, or makes fewer bricks or fewer states: there is an end. No loop if that is wrong.
        let mut left = STEPS_MIN + STEPS_PER_BRICK * scene.bricks.len();
        while let Some(duty) = scene.next()? {
            match duty {
                Duty::Move { to, .. } => {
                    scene.horizon = to;
                    scene.oldest = (to, self.timestamp_of_record(to)?);
                }
                Duty::Fold { count } => {
                    base_lsn = scene.bricks[count - 1].lsns().1;
                    let gone: Vec<Brick> = scene.bricks.drain(..count).collect();
                    self.give_back(&mut scene, &gone)?;
                }
                Duty::Thin(choice) => self.simulate_thin(&mut scene, &choice)?,
            }
            left = left.checked_sub(1).ok_or_else(|| {
                Error::new(Kind::Refused, format!("volume {}: the policy comes to no end", self.name()))
            })?;
        }
        self.sum_up(&scene, base_lsn, &before)
    }

    /// The space of segments and folds that go: that of the first segment becomes the next one, if none is ready.
    fn give_back(&self, scene: &mut Scene<'_>, gone: &[Brick]) -> Result<()> {
        let full = self.pool.lock().expect("no panics under this lock").segment_bytes();
        for brick in gone {
            scene.journal_bytes = scene.journal_bytes.saturating_sub(brick.bytes()?);
            let fits = scene.journal_bytes + full <= scene.cap_bytes;
            if scene.ready == 0 && fits && brick.is_whole() {
                scene.journal_bytes += full;
                scene.ready = 1;
            }
        }
        Ok(())
    }

    fn simulate_thin(&self, scene: &mut Scene<'_>, choice: &ThinChoice) -> Result<()> {
        let group = choice.group;
        let wanted = scene.kept_states(&choice.policy)?;
        let settled = scene.settle(group, &wanted, &|lsn| scene.keeps(lsn))?;
        let bricks = &scene.bricks[group.from..group.to];
        let parts: Vec<Arc<Part>> = bricks.iter().flat_map(|brick| brick.parts()).cloned().collect();
        let mut marks = Vec::new();
        for brick in bricks {
            marks.extend(brick.marks()?.iter().filter(|(lsn, _)| settled.kept.contains(lsn)));
        }
        let mut states = Vec::with_capacity(settled.states.len());
        for lsn in &settled.states {
            states.push((*lsn, self.timestamp_of_record(*lsn)?));
        }
        let (blocks, bytes) = self.measure_fold(&parts, &settled, choice.policy.codec)?;
        let fold = MadeFold {
            parts,
            lsns: scene.lsns_of(group),
            timestamps: (bricks[0].begin(), bricks[bricks.len() - 1].end().unwrap_or(Timestamp(0))),
            level: group.level,
            blocks,
            bytes,
            kept: settled.kept.into_iter().collect(),
            states,
            marks: Arc::new(marks),
        };
        let gone: Vec<Brick> = scene.bricks.splice(group.from..group.to, [Brick::made(fold)]).collect();
        scene.journal_bytes += bytes;
        self.give_back(scene, &gone)
    }

    fn sum_up(&self, scene: &Scene<'_>, base_lsn: Lsn, before: &Before) -> Result<Simulation> {
        let mut stretches = Vec::new();
        let mut fold_bytes = 0;
        for brick in &scene.bricks {
            if let Some(states) = brick.states() {
                let (first, last) = brick.lsns();
                stretches.push((first, last, states.into_iter().map(|(lsn, _)| lsn).collect()));
                fold_bytes += brick.bytes()?;
            }
        }
        let (tip, tip_at) = Timeline::tip(self);
        let whole = stretches
            .last()
            .map_or(scene.oldest.0, |(_, last, _): &(Lsn, Lsn, _)| (*last).max(scene.oldest.0));
        let window = match whole == scene.oldest.0 {
            true => scene.oldest,
            false => (whole, self.timestamp_of_record(whole)?),
        };
        let mut simulation = Simulation {
            horizon: scene.oldest,
            base_lsn,
            window,
            tip: (tip, tip_at),
            stretches,
            states_gone: 0,
            names_gone: Vec::new(),
            journal_bytes: before.bytes,
            journal_bytes_after: scene.journal_bytes,
            fold_bytes,
            cap_bytes: scene.cap_bytes,
            is_full: scene.excess_bytes() > 0 || scene.journal_bytes > scene.cap_bytes,
            every_write_ns: None,
            policy_ns: None,
        };
        for (marker, _) in self.named_markers() {
            if marker.lsn >= before.oldest && !scene.has_mark(marker.lsn)? {
                simulation.names_gone.push(marker.name);
            }
        }
        let left = states_of(&scene.bricks, scene.oldest.0);
        simulation.states_gone = states_of(&before.bricks, before.oldest).saturating_sub(left);
        self.extrapolate(&mut simulation, &before.bricks)?;
        Ok(simulation)
    }

    /// How far the space goes, by what each second of this journal takes: whole, and thinned.
    fn extrapolate(&self, simulation: &mut Simulation, bricks: &[Brick]) -> Result<()> {
        let (mut bytes, mut began) = (0u64, None);
        for brick in bricks.iter().filter(|brick| brick.is_whole()) {
            bytes += brick.blocks() * BLOCK_BYTES;
            began.get_or_insert(brick.begin());
        }
        let ns = began.map_or(0, |began| simulation.tip.1.0.saturating_sub(began.0));
        simulation.every_write_ns = span(bytes, ns, simulation.cap_bytes);
        let Some((first, ..)) = simulation.stretches.first() else { return Ok(()) };
        let begin = self.timestamp_of_record(first.previous()).unwrap_or(simulation.horizon.1);
        let thinned_ns = simulation.window.1.0.saturating_sub(begin.0);
        let window_ns = simulation.tip.1.0.saturating_sub(simulation.window.1.0);
        let window_bytes = simulation.journal_bytes_after.saturating_sub(simulation.fold_bytes);
        let left = simulation.cap_bytes.saturating_sub(window_bytes);
        let more = span(simulation.fold_bytes, thinned_ns, left);
        simulation.policy_ns = more.map(|more| match left {
            0 => span(window_bytes, window_ns, simulation.cap_bytes).unwrap_or(0),
            _ => window_ns.saturating_add(more),
        });
        Ok(())
    }
}

/// Far more steps than there can be.
const STEPS_MIN: usize = 1000;
const STEPS_PER_BRICK: usize = 16;

/// The history before anything was done.
struct Before {
    bytes: u64,
    oldest: Lsn,
    bricks: Vec<Brick>,
}

/// How much time `wanted` bytes are worth, where these bytes took so long.
fn span(bytes: u64, ns: u64, wanted: u64) -> Option<u64> {
    let span = u128::from(wanted) * u128::from(ns) / u128::from(bytes.max(1));
    (bytes > 0 && ns > 0).then(|| u64::try_from(span).unwrap_or(u64::MAX))
}

/// How many states from `oldest` on are there.
fn states_of(bricks: &[Brick], oldest: Lsn) -> u64 {
    let mut count = 0;
    let mut behind = oldest;
    for brick in bricks {
        let (first, last) = brick.lsns();
        // The state under all records is one that no brick has.
        count += first.0.saturating_sub(behind.0);
        count += match brick.states() {
            Some(states) => states.iter().filter(|(lsn, _)| *lsn >= oldest).count() as u64,
            None => (last.0 + 1).saturating_sub(first.0.max(oldest.0)),
        };
        behind = behind.max(last.next());
    }
    count
}
