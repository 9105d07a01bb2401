//! What a policy would make of the history that there is: the same choices as upkeep makes, without doing anything.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Volume;
use super::parts::{Part, PartSet, is_sealed};
use super::thin::choose::{Candidate, Settled, candidate, group, markers_of};
use crate::error::{IoContext, Result};
use crate::format::fold::{FRAME_BLOCKS, FRAME_ROW_BYTES, POINT_ROW_BYTES};
use crate::format::record::RecordKind;
use crate::format::run::{Entry, MarkerRow, Row};
use crate::history::point::Timeline;
use crate::history::retention::{self, Keep, Policy};
use crate::ids::*;
use crate::index::{Found, Search, Visible};
use crate::limits::FOLD_SEGMENTS_MAX;
use crate::reader::{Piece, Reader};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Versions looked up at a time, by each part.
const VERSIONS_PER_LOOK: usize = 4096;
/// Of so many frames of a fold one is compressed, to learn how well they do; of a small fold all are.
const SAMPLE_EVERY: u64 = 16;
const SAMPLE_ALL_FRAMES: u64 = 256;

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
    /// How many nanoseconds of every write fit below the cap at the rate of this journal; `None` where there is too
    /// little of it to tell.
    pub every_write_ns: Option<u64>,
    /// How far back the policy goes below the cap, likewise, its own times aside.
    pub policy_ns: Option<u64>,
}

impl Simulation {
    /// Whether the state after this record could be viewed.
    pub fn keeps(&self, lsn: Lsn) -> bool {
        let within = |(first, last, _): &&(Lsn, Lsn, Vec<Lsn>)| *first <= lsn && lsn <= *last;
        let is_in_range = self.horizon.0 <= lsn && lsn <= self.tip.0;
        let stretch = self.stretches.iter().find(within);
        is_in_range && stretch.is_none_or(|(_, _, kept)| kept.binary_search(&lsn).is_ok())
    }
}

/// A part as it would be: one that stands there, or a fold of some of those.
struct Model {
    /// Which of the real parts, by their places.
    from: usize,
    to: usize,
    candidate: Candidate,
    /// Of a fold that would be made: what it keeps.
    states: Option<Vec<Lsn>>,
    bytes: u64,
    end: Timestamp,
}

impl Volume {
    /// What `policy` would make of the history that there is. Reads the index, and some payload to learn how well it
    /// can be compressed. What the policy would do at the cap is not gone through: compare the sizes.
    pub fn simulate_retention(&self, policy: &Policy) -> Result<Simulation> {
        let list = self.parts.list();
        let horizon = self.simulated_horizon(policy)?;
        // Of the markers in an interval the first one counts that is still there.
        let mut kept: BTreeSet<Lsn> = self.retained_from(policy, horizon.0)?.kept.into_iter().collect();
        kept.extend(self.pins().into_iter().map(|pin| pin.lsn));
        kept.insert(horizon.0);
        let mut models = Vec::new();
        for (at, part) in list.iter().enumerate().take_while(|(_, part)| is_sealed(part)) {
            let bytes =
                part.segment.file.len().at(|| format!("measuring {}", part.segment.path.display()))?;
            let candidate = candidate(part, &kept, &self.pins.lock());
            models.push(Model { from: at, to: at + 1, candidate, states: None, bytes, end: candidate.end });
        }
        let mut freed = 0;
        let mut base = self.base_point().lsn;
        loop {
            let resting = self.simulated_rest(&list, &models, horizon.0)?;
            for model in models.drain(..resting) {
                freed += model.bytes;
                base = model.candidate.lsns.1;
            }
            if !self.simulate_fold(&list, &mut models, policy, &kept, horizon.0)? {
                break;
            }
        }
        self.sum_up(policy, horizon, base, &list, &models, freed)
    }

    /// Where the horizon would move.
    fn simulated_horizon(&self, policy: &Policy) -> Result<(Lsn, Timestamp)> {
        let now = self.oldest();
        let Keep::For(_) = policy.every_write else { return Ok(now) };
        let wanted = self.horizon_by(policy)?;
        let held = self.pins().into_iter().map(|pin| pin.lsn).fold(wanted, Lsn::min);
        match held <= now.0 {
            true => Ok(now),
            false => Ok((held, self.timestamp_of_record(held)?)),
        }
    }

    /// How many of the oldest parts could go into the base.
    fn simulated_rest(&self, list: &[Arc<Part>], models: &[Model], horizon: Lsn) -> Result<usize> {
        if !self.base.takes_folds() {
            return Ok(0);
        }
        let near = models.len().min(FOLD_SEGMENTS_MAX);
        for at in (0..near).rev().chain(near..models.len()) {
            let last = models[at].candidate.lsns.1;
            if last > horizon {
                if at >= near {
                    break;
                }
                continue;
            }
            let shapes = self.simulated_shapes(list, models, horizon, horizon);
            if retention::may_rest(last, &self.visible(last), &shapes) {
                return Ok(at + 1);
            }
        }
        Ok(0)
    }

    fn simulated_shapes(
        &self,
        list: &[Arc<Part>],
        models: &[Model],
        horizon: Lsn,
        from: Lsn,
    ) -> Vec<Visible> {
        let behind = models.last().map_or(0, |model| model.to);
        let real = |part: &Arc<Part>| {
            let states: Option<Vec<Lsn>> =
                part.segment.fold.as_ref().map(|fold| fold.instants().map(|(lsn, _)| lsn).collect());
            (part.segment.header.first_lsn, part.last_lsn(), states)
        };
        let modelled = models.iter().map(|model| match &model.states {
            Some(states) => (model.candidate.lsns.0, model.candidate.lsns.1, Some(states.clone())),
            None => real(&list[model.from]),
        });
        let all: Vec<_> = modelled.chain(list[behind..].iter().map(real)).collect();
        self.shapes_of(all, horizon, from)
    }

    /// The next fold that would be made, if there is one.
    fn simulate_fold(
        &self,
        list: &[Arc<Part>],
        models: &mut Vec<Model>,
        policy: &Policy,
        kept: &BTreeSet<Lsn>,
        horizon: Lsn,
    ) -> Result<bool> {
        let Keep::For(every_write_ns) = policy.every_write else { return Ok(false) };
        let window = policy.every_write.since(self.policy_now());
        let seam = self.pins().into_iter().filter(|pin| pin.all_above).map(|pin| pin.lsn).min();
        let is_old =
            |model: &&Model| model.end < window && seam.is_none_or(|seam| model.candidate.lsns.1 <= seam);
        let old = models.iter().take_while(is_old).count();
        let candidates: Vec<Candidate> = models[..old].iter().map(|model| model.candidate).collect();
        let Some(group) = group(&candidates, window, every_write_ns, false) else { return Ok(false) };
        let (from, to) = (models[group.from].from, models[group.to - 1].to);
        let parts = &list[from..to];
        let lsns = (candidates[group.from].lsns.0, candidates[group.to - 1].lsns.1);
        let beyond = self.simulated_shapes(list, models, horizon, lsns.1.next());
        let within = |lsn: &&Lsn| lsns.0 <= **lsn && **lsn <= lsns.1;
        let wanted: BTreeSet<Lsn> = kept.iter().filter(within).copied().collect();
        let markers = markers_of(parts)?;
        let settled = {
            let held = self.pins.lock();
            self.settle_states(lsns, wanted, beyond, &markers, &|lsn| held.keeps(lsn))
        };
        let (blocks, bytes) = self.measure_fold(parts, &settled)?;
        let candidate = Candidate {
            lsns,
            end: candidates[group.to - 1].end,
            level: Some(group.level),
            blocks,
            wanted: kept.range(lsns.0..=lsns.1).filter(|lsn| settled.keeps(**lsn)).count(),
            expired: 0,
        };
        let end = candidate.end;
        let model = Model { from, to, candidate, states: Some(settled.states), bytes, end };
        models.splice(group.from..group.to, [model]);
        Ok(true)
    }

    /// Blocks of payload and bytes of the fold that parts would become.
    fn measure_fold(&self, parts: &[Arc<Part>], settled: &Settled) -> Result<(u64, u64)> {
        let parts = Arc::new(PartSet::new(parts.to_vec()));
        let (mut blocks, mut entries) = (0u64, 0u64);
        let mut versions: Vec<Piece> = Vec::new();
        let mut sample = Sample::default();
        for piece in settled.stretch.pieces() {
            let visible = Visible::of(vec![piece]);
            let reader = self.reader_of(parts.clone(), &visible);
            let mut from = 0;
            while from < self.blocks_max() {
                let extent = Extent::new(from, self.blocks_max());
                let search = reader.search(|| Search::bounded(extent, VERSIONS_PER_LOOK))?;
                for version in search.found() {
                    let Found::Payload { block, crc } = version.found else {
                        entries += u64::from(u64::BITS - version.extent.blocks.leading_zeros());
                        continue;
                    };
                    versions.push(Piece::Journal { lba: version.extent.start, lsn: version.lsn, block, crc });
                    (blocks, entries) = (blocks + 1, entries + 1);
                    if versions.len() as u64 == FRAME_BLOCKS {
                        sample.frame(&reader, &versions);
                        versions.clear();
                    }
                }
                from = search.extent().end();
            }
            if !versions.is_empty() {
                sample.frame(&reader, &versions);
                versions.clear();
            }
        }
        let mut events = 0;
        let mut event_blocks = 0;
        for part in parts.iter() {
            for row in part.events()? {
                let stays = match RecordKind::from_u8(row.kind) {
                    Some(RecordKind::Marker) => settled.kept.contains(&row.lsn),
                    Some(RecordKind::SessionOpen | RecordKind::SessionClose) => false,
                    _ => true,
                };
                if stays {
                    events += 1;
                    event_blocks += u64::from(row.payload_bytes).div_ceil(BLOCK_BYTES);
                }
            }
        }
        // What events carry is nearly all zeros.
        let payload = sample.compressed(blocks) + event_blocks * EVENT_BLOCK_BYTES;
        let blocks = blocks + event_blocks;
        let bytes = BLOCK_BYTES
            + payload
            + settled.kept.len() as u64 * POINT_ROW_BYTES
            + blocks.div_ceil(FRAME_BLOCKS) * FRAME_ROW_BYTES
            + entries * Entry::BYTES as u64
            + events * MarkerRow::BYTES as u64;
        Ok((blocks, bytes))
    }

    fn sum_up(
        &self,
        policy: &Policy,
        horizon: (Lsn, Timestamp),
        base_lsn: Lsn,
        list: &[Arc<Part>],
        models: &[Model],
        freed: u64,
    ) -> Result<Simulation> {
        let folded: u64 = models.iter().filter(|model| model.states.is_some()).map(|model| model.bytes).sum();
        let mut replaced = 0;
        for part in models.iter().filter(|m| m.states.is_some()).flat_map(|m| &list[m.from..m.to]) {
            replaced +=
                part.segment.file.len().at(|| format!("measuring {}", part.segment.path.display()))?;
        }
        let still: u64 = models
            .iter()
            .filter(|model| model.states.is_none() && list[model.from].segment.fold.is_some())
            .map(|model| model.bytes)
            .sum();
        let journal_bytes = self.journal_bytes();
        let stretches: Vec<(Lsn, Lsn, Vec<Lsn>)> = models
            .iter()
            .filter_map(|model| {
                let (first, last) = model.candidate.lsns;
                let fold = list[model.from].segment.fold.as_ref();
                let there = || Some(fold?.instants().map(|(lsn, _)| lsn).collect());
                Some((first, last, model.states.clone().or_else(there)?))
            })
            .collect();
        let (tip, tip_at) = Timeline::tip(self);
        let whole = stretches.last().map_or(horizon.0, |(_, last, _)| (*last).max(horizon.0));
        let mut simulation = Simulation {
            horizon,
            base_lsn,
            window: (whole, self.newest_instant(whole, horizon)?),
            tip: (tip, tip_at),
            stretches,
            states_gone: 0,
            names_gone: Vec::new(),
            journal_bytes,
            journal_bytes_after: (journal_bytes + folded).saturating_sub(freed + replaced),
            fold_bytes: folded + still,
            cap_bytes: self.journal_cap_bytes_by(policy)?,
            every_write_ns: None,
            policy_ns: None,
        };
        let names = self.named_markers().into_iter().map(|(marker, _)| marker);
        simulation.names_gone =
            names.filter(|marker| !simulation.keeps(marker.lsn)).map(|marker| marker.name).collect();
        simulation.states_gone = self.states_lost(&simulation, list);
        self.extrapolate(&mut simulation, list);
        Ok(simulation)
    }

    fn newest_instant(&self, lsn: Lsn, horizon: (Lsn, Timestamp)) -> Result<Timestamp> {
        if lsn == horizon.0 { Ok(horizon.1) } else { self.timestamp_of_record(lsn) }
    }

    fn states_lost(&self, simulation: &Simulation, list: &[Arc<Part>]) -> u64 {
        let oldest = self.oldest().0;
        let mut there = 0;
        for part in list.iter() {
            let (first, last) = (part.segment.header.first_lsn.max(oldest), part.last_lsn());
            there += match &part.segment.fold {
                Some(fold) => fold.instants().filter(|(lsn, _)| *lsn >= oldest).count() as u64,
                None => (last.0 + 1).saturating_sub(first.0),
            };
        }
        let mut left = 0;
        let mut behind = simulation.horizon.0;
        for (first, last, kept) in &simulation.stretches {
            left += first.0.saturating_sub(behind.0);
            left += kept.iter().filter(|lsn| **lsn >= simulation.horizon.0).count() as u64;
            behind = behind.max(last.next());
        }
        left += (simulation.tip.0.0 + 1).saturating_sub(behind.0);
        // The state at the base is one that no part has.
        there += u64::from(list.first().is_none_or(|part| part.segment.header.first_lsn > oldest));
        there.saturating_sub(left)
    }

    /// How far the space goes, by what each second of this journal takes: whole, and thinned.
    fn extrapolate(&self, simulation: &mut Simulation, list: &[Arc<Part>]) {
        let whole = |part: &&Arc<Part>| part.segment.fold.is_none();
        let (mut bytes, mut began) = (0u64, None);
        for part in list.iter().filter(whole) {
            bytes += part.frozen.get().map_or(0, |frozen| frozen.end);
            began.get_or_insert(part.segment.header.timestamp_before);
        }
        let ns = began.map_or(0, |began| simulation.tip.1.0.saturating_sub(began.0));
        let per = |bytes: u64, ns: u64, wanted: u64| {
            let span = u128::from(wanted) * u128::from(ns) / u128::from(bytes.max(1));
            (bytes > 0 && ns > 0).then(|| u64::try_from(span).unwrap_or(u64::MAX))
        };
        simulation.every_write_ns = per(bytes, ns, simulation.cap_bytes);
        let Some((first, ..)) = simulation.stretches.first() else {
            return;
        };
        let begin = self.timestamp_of_record(first.previous()).unwrap_or(simulation.horizon.1);
        let thinned_ns = simulation.window.1.0.saturating_sub(begin.0);
        let window_ns = simulation.tip.1.0.saturating_sub(simulation.window.1.0);
        let window_bytes = simulation.journal_bytes_after.saturating_sub(simulation.fold_bytes);
        let left = simulation.cap_bytes.saturating_sub(window_bytes);
        let more = per(simulation.fold_bytes, thinned_ns, left);
        simulation.policy_ns = more.map(|more| match left {
            0 => per(window_bytes, window_ns, simulation.cap_bytes).unwrap_or(0),
            _ => window_ns.saturating_add(more),
        });
    }
}

/// About what a block of an event's payload takes.
const EVENT_BLOCK_BYTES: u64 = 128;

/// What some frames come to when they are compressed.
#[derive(Default)]
struct Sample {
    seen: u64,
    plain: u64,
    stored: u64,
}

impl Sample {
    fn frame(&mut self, reader: &Reader<'_>, versions: &[Piece]) {
        self.seen += 1;
        if self.seen > SAMPLE_ALL_FRAMES && !self.seen.is_multiple_of(SAMPLE_EVERY) {
            return;
        }
        let mut bytes = vec![0; versions.len() * BLOCK];
        for (piece, block) in versions.iter().zip(bytes.chunks_exact_mut(BLOCK)) {
            if !matches!(piece, Piece::Journal { .. }) {
                continue;
            }
            // What cannot be read is told by whoever thins.
            let _ = reader.fetch(std::slice::from_ref(piece), block);
        }
        let packed = lz4_flex::block::compress(&bytes).len().min(bytes.len());
        self.plain += bytes.len() as u64;
        self.stored += packed as u64;
    }

    /// What so many blocks come to.
    fn compressed(&self, blocks: u64) -> u64 {
        let bytes = u128::from(blocks * BLOCK_BYTES);
        match self.plain {
            0 => 0,
            plain => u64::try_from(bytes * u128::from(self.stored) / u128::from(plain)).unwrap_or(u64::MAX),
        }
    }
}
