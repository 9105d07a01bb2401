//! Runs of neighbouring segments become one, in the background and a little at a time, so that a lookup goes through
//! few of them however long the history is.
//!
//! Legal states on the disk, at any moment: for each sealed segment its own run, or a merged one that names it among
//! its segments, or both, or none. A merged run is there whole or not at all. Where there are several, that with the most
//! segments counts, if all its segments are those of the journal; the others are removed at the next opening, and
//! what none of them knows is read from the segment.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::parts::{Layer, Part, PartIndex, is_sealed};
use super::{Identity, Shared, Volume};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::run::MergedSource;
use crate::format::segment::merged_run_file_name;
use crate::ids::VolumeId;
use crate::index::{Merge, Run};
use crate::limits::{MERGE_LEVEL_MAX, MERGE_RETRY_NS};

/// The merge under way.
#[derive(Default)]
pub(super) struct Merging {
    job: Option<Merge>,
    retry_at_ns: u64,
}

impl Merging {
    /// Memory that it takes, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.job.as_ref().map_or(0, Merge::memory_bytes)
    }
}

impl Volume {
    /// Merges a little. A failure is noted and tried again later: the index is as good as before.
    pub(super) fn merge_some(&self) -> Result<()> {
        // Somebody else is at it.
        let Ok(mut merging) = self.merging.try_lock() else { return Ok(()) };
        let now_ns = self.shared.clock.elapsed_ns();
        if merging.job.is_none() && now_ns < merging.retry_at_ns {
            return Ok(());
        }
        if let Err(error) = self.merge_step(&mut merging) {
            merging.retry_at_ns = now_ns.saturating_add(MERGE_RETRY_NS);
            if let Some(job) = merging.job.take() {
                if error.kind() == Kind::Damaged {
                    // Whichever cannot be read is made anew before it is merged.
                    job.inputs().iter().filter(|run| run.verify().is_err()).for_each(|run| self.set_bad(run));
                }
                job.abandon();
            }
            self.note_error(format!("merging runs of the index: {error}; it is tried again later"));
        }
        Ok(())
    }

    /// Merges until nothing is left to merge; tells how far the merge under way is. For tests and tools.
    pub fn merge_all(&self, watch: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut merging = self.merging.lock().expect("no panics under this lock");
        loop {
            self.merge_step(&mut merging)?;
            match &merging.job {
                Some(job) => {
                    let (done, total) = job.progress();
                    watch(done, total);
                }
                None if self.plan_merge().is_none() => return Ok(()),
                None => {}
            }
        }
    }

    fn merge_step(&self, merging: &mut Merging) -> Result<()> {
        let job = match &mut merging.job {
            Some(job) => job,
            None => match self.begin_merge()? {
                Some(job) => merging.job.insert(job),
                None => return Ok(()),
            },
        };
        if let Some(run) = job.step(self.shared.index.merge_rows, &self.shared.pages)? {
            let job = merging.job.take().expect("it was just worked on");
            self.adopt(&job, run);
        }
        Ok(())
    }

    /// Gives up the merge under way, if there is one.
    pub(super) fn abandon_merge(&self) {
        let mut merging = self.merging.lock().expect("no panics under this lock");
        if let Some(job) = merging.job.take() {
            job.abandon();
        }
    }

    /// The oldest neighbouring runs of the lowest level that has enough of them: their parts.
    fn plan_merge(&self) -> Option<Vec<Arc<Part>>> {
        let list = self.parts.list();
        let levels: Vec<Option<(bool, u8)>> = list.layers().map(|layer| level(&layer)).collect();
        let layers: Vec<Layer<'_>> = list.layers().collect();
        let count = match self.shared.memory.is_short_of_runs() {
            // Small runs keep all their fences and filters in memory, merged ones do not.
            true => 2,
            false => self.shared.index.merge_runs.max(2),
        };
        let from = (0..MERGE_LEVEL_MAX).find_map(|wanted| {
            let is_streak = |levels: &[Option<(bool, u8)>]| {
                // Runs of folds know no timestamps: they are merged with each other only.
                [true, false]
                    .iter()
                    .any(|is_fold| levels.iter().all(|level| *level == Some((*is_fold, wanted))))
            };
            levels.windows(count).position(is_streak)
        })?;
        Some(layers[from..from + count].iter().flat_map(|layer| layer.parts().iter().cloned()).collect())
    }

    fn begin_merge(&self) -> Result<Option<Merge>> {
        let Some(parts) = self.plan_merge() else { return Ok(None) };
        let Some(inputs) = Inputs::of(&parts)? else { return Ok(None) };
        inputs.begin(&self.shared, &self.dir, &self.identity).map(Some)
    }

    /// Lookups go to the merged run from now on; those under way keep what they hold.
    fn adopt(&self, job: &Merge, run: Run) {
        let run = Arc::new(run);
        let mut is_adopted = false;
        self.parts.change(|parts| {
            let own = |part: &Part| {
                part.run().is_some_and(|run| job.inputs().iter().any(|input| Arc::ptr_eq(run, input)))
            };
            let within = |part: &Part| {
                let first = part.segment.header.first_lsn;
                run.first_lsn() <= first && first <= run.last_lsn() && part.run().is_some()
            };
            // Somebody may have made one of them anew meanwhile; then the merge begins anew, too.
            is_adopted = parts.iter().filter(|part| within(part)).all(|part| own(part));
            if is_adopted {
                for part in parts.iter_mut().filter(|part| own(part)) {
                    *part = Arc::new(with_run(part, &run));
                }
            }
        });
        // A file that stays costs space only: the next opening removes it.
        let files = &self.shared.files;
        if is_adopted {
            job.inputs().iter().for_each(|input| drop(files.remove(input.path())));
        } else {
            let _ = files.remove(run.path());
        }
    }

    fn set_bad(&self, run: &Arc<Run>) {
        run.set_bad();
        for part in self.parts.list().iter() {
            if part.run().is_some_and(|own| Arc::ptr_eq(own, run)) && !run.is_merged() {
                part.repair();
            }
        }
    }
}

/// What is merged.
struct Inputs {
    runs: Vec<Arc<Run>>,
    sources: Vec<MergedSource>,
}

impl Inputs {
    /// The runs of these parts, which are neighbours; `None` if one of them cannot be merged.
    fn of(parts: &[Arc<Part>]) -> Result<Option<Inputs>> {
        let mut runs: Vec<Arc<Run>> = parts.iter().filter_map(|part| part.run().cloned()).collect();
        runs.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let mut sources = Vec::new();
        for run in &runs {
            // A merged one may name segments that were dropped since.
            sources.extend(run.merged_sources()?);
            let own = |part: &&Arc<Part>| part.run().is_some_and(|own| Arc::ptr_eq(own, run));
            if !run.is_merged() {
                let part = parts.iter().find(own);
                let Some(source) = part.and_then(|part| source(part)) else { return Ok(None) };
                sources.push(source);
            }
        }
        Ok((!sources.is_empty()).then_some(Inputs { runs, sources }))
    }

    fn begin(self, shared: &Shared, dir: &Path, identity: &Identity) -> Result<Merge> {
        let Inputs { runs, sources } = self;
        // The journal comes first: a merge must not take the space that writers are about to need.
        let space = shared.files.space(dir);
        let space = space.at(|| format!("volume {}: asking for free space", identity.name))?;
        let needed = runs.iter().map(|run| run.file_bytes()).sum::<u64>() + 2 * identity.segment_bytes;
        if space.available < needed {
            let context = format!("{} bytes are free, {needed} are needed", space.available);
            return Err(Error::new(Kind::NoSpace, context));
        }
        let ordinals = sources.first().zip(sources.last()).map(|(first, last)| (first.ordinal, last.ordinal));
        let (first, last) = ordinals.expect("there is a source");
        let path = dir.join(merged_run_file_name(first, last));
        let run_id = run_id(identity.id, &sources);
        let filter_bytes_max = shared.memory.merge_filter_bytes_max();
        Merge::begin(shared.files.clone(), &path, run_id, runs, sources, filter_bytes_max)
    }
}

/// The number of a merged run, which stands in the checksums of its pages: the same whenever it is made anew of the same
/// segments.
fn run_id(volume: VolumeId, sources: &[MergedSource]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&volume.0.to_le_bytes());
    for source in sources {
        hasher.update(&source.segment.0.to_le_bytes());
        hasher.update(&source.chain);
    }
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes"))
}

/// The newest of these parts had lost its run and got it anew: with as many neighbours as are merged it is merged at once, so that
/// however many runs are lost, few small ones are in memory at a time. Where that fails they stay as they are.
///
/// Legal states after a crash: as at the head of this file.
pub(super) fn merge_rebuilt(shared: &Shared, dir: &Path, identity: &Identity, parts: &mut [Arc<Part>]) {
    let count = shared.index.merge_runs.max(2);
    let Some(from) = parts.len().checked_sub(count) else { return };
    let newest = &mut parts[from..];
    let is_small = |part: &Arc<Part>| is_sealed(part) && part.run().is_some_and(|run| !run.is_merged());
    let is_fold = newest[0].segment.fold.is_some();
    if !newest.iter().all(|part| is_small(part) && part.segment.fold.is_some() == is_fold) {
        return;
    }
    let Ok(Some(inputs)) = Inputs::of(newest) else { return };
    let Ok(mut merge) = inputs.begin(shared, dir, identity) else { return };
    let run = match merge.step(u64::MAX, &shared.pages) {
        Ok(Some(run)) => Arc::new(run),
        _ => return merge.abandon(),
    };
    for part in newest.iter_mut() {
        *part = Arc::new(with_run(part, &run));
    }
    // What they were merged from is removed when the volume is in service.
}

/// The part with another run.
fn with_run(part: &Part, run: &Arc<Run>) -> Part {
    Part {
        segment: part.segment.clone(),
        before: part.before,
        frozen: part.frozen.clone(),
        index: PartIndex::Run(run.clone()),
        repaired: OnceLock::new(),
    }
}

/// The level of a layer that may be merged.
fn level(layer: &Layer<'_>) -> Option<(bool, u8)> {
    if layer.is_partial() {
        return None;
    }
    let part = layer.parts().last()?;
    if !is_sealed(part) || part.repaired.get().is_some() {
        return None;
    }
    let run = part.run().filter(|run| !run.is_bad())?;
    Some((part.segment.fold.is_some(), run.header().level))
}

/// What a merged run says of a part.
fn source(part: &Part) -> Option<MergedSource> {
    let frozen = part.frozen.get()?;
    Some(MergedSource {
        segment: part.segment.index_id(),
        ordinal: part.segment.header.ordinal,
        first_lsn: part.segment.header.first_lsn,
        last_lsn: frozen.last.lsn,
        log_end: frozen.end,
        last_timestamp: frozen.last.timestamp,
        chain: frozen.last.chain.0,
        seal: frozen.seal_hash?,
        summary: part.run()?.summary_of(part.segment.header.first_lsn).ok()?,
    })
}
