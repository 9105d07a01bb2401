//! Which runs answer for the segments that recovery found; what has none is read from its segment.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::super::gather::Gathered;
use super::super::parts::{self, Frozen, Part, PartIndex};
use super::super::{Identity, Shared, merge, upkeep};
use crate::error::Result;
use crate::format::record::Chain;
use crate::format::run::MergedSource;
use crate::format::segment::is_merged_run_name;
use crate::ids::*;
use crate::index::Run;
use crate::journal::append::Position;
use crate::journal::recover::{Found, KnownFromRun};
use crate::journal::segment::Segment;

/// A run of several segments, and what it says of them.
pub(super) struct MergedRun {
    run: Arc<Run>,
    sources: Vec<MergedSource>,
}

impl MergedRun {
    /// Those of its segments that `stream` begins with, if there are any.
    fn sources_of(&self, stream: &[Found]) -> Option<&[MergedSource]> {
        let first = stream.first()?.segment.index_id();
        let skipped = self.sources.iter().position(|source| source.segment == first)?;
        let sources = &self.sources[skipped..];
        let fits = |(source, found): (&MergedSource, &Found)| {
            let header = &found.segment.header;
            source.segment == found.segment.index_id()
                && source.ordinal == header.ordinal
                && source.first_lsn == header.first_lsn
                && source.last_lsn == found.last.lsn
                && source.log_end == found.end
                && source.chain == found.last.chain.0
        };
        // The others were dropped or thinned: a layer hides what it still says of them.
        let count = sources.iter().zip(stream).take_while(|pair| fits(*pair)).count();
        (count > 0).then_some(&sources[..count])
    }
}

/// The runs of several segments that can be opened, those with the most segments first.
pub(super) fn open_merged_runs(shared: &Shared, dir: &Path, volume: VolumeId) -> Vec<MergedRun> {
    let entries = shared.files.list(dir).unwrap_or_default();
    let mut merged: Vec<MergedRun> = entries
        .iter()
        .filter(|entry| is_merged_run_name(&entry.name))
        .filter_map(|entry| {
            // What is wrong with one does not matter: it is made again.
            let run = Run::open(&*shared.files, &dir.join(&entry.name), &shared.pages).ok()?;
            let sources = run.merged_sources().ok()?;
            let fits = run.header().volume == volume && !sources.is_empty();
            fits.then(|| MergedRun { run: Arc::new(run), sources })
        })
        .collect();
    merged.sort_by_key(|merged| std::cmp::Reverse(merged.sources.len()));
    merged
}

/// The parts of what `stream` holds; `name` is the volume's, for whoever is told of work.
pub(super) fn open_parts(
    shared: &Shared,
    dir: &Path,
    identity: &Identity,
    stream: &[Found],
    merged: &[MergedRun],
    gathered: &Gathered,
    may_write: bool,
) -> Result<Vec<Arc<Part>>> {
    let mut parts = Vec::with_capacity(stream.len());
    let mut at = 0;
    while let Some(found) = stream.get(at) {
        // Those with the most segments come first.
        let fitting = merged.iter().find_map(|merged| Some((merged, merged.sources_of(&stream[at..])?)));
        let Some((merged, sources)) = fitting else {
            let mut part = open_part(shared, dir, found, gathered)?;
            if part.run().is_none() {
                (shared.rebuilding)(&identity.name, at + 1, stream.len());
            }
            let is_rebuilt = may_write && leave_memory(shared, dir, &mut part);
            parts.push(Arc::new(part));
            if is_rebuilt {
                merge::merge_rebuilt(shared, dir, identity, &mut parts);
            }
            at += 1;
            continue;
        };
        for (found, source) in stream[at..].iter().zip(sources) {
            let hash = found.seal.map_or(source.seal, |seal| seal.hash);
            let frozen = Frozen { last: found.last, end: found.end, may_seal: false, seal_hash: Some(hash) };
            parts.push(Arc::new(Part {
                segment: found.segment.clone(),
                before: found.before,
                frozen: OnceLock::from(frozen),
                index: PartIndex::Run(merged.run.clone()),
                repaired: OnceLock::new(),
            }));
        }
        at += sources.len();
    }
    Ok(parts)
}

/// Gives a part that was read from its sealed segment a run at once, so that however many runs are gone, one segment is
/// in memory at a time. Where that fails it stays in memory, and upkeep tries again.
fn leave_memory(shared: &Shared, dir: &Path, part: &mut Part) -> bool {
    let sealed = part.frozen.get().copied().filter(|frozen| frozen.seal_hash.is_some());
    if part.run().is_none()
        && let Some(frozen) = sealed
        && let Ok(run) = upkeep::write_run(shared, dir, part.segment.header.volume, part, frozen)
    {
        part.index = PartIndex::Run(Arc::new(run));
        return true;
    }
    false
}

/// The part of a segment that takes no more records: its run if that stands and fits, else from the segment.
fn open_part(shared: &Shared, dir: &Path, found: &Found, gathered: &Gathered) -> Result<Part> {
    let header = &found.segment.header;
    if let Some(run) = open_run(shared, dir, &found.segment)
        && run.last_lsn() == found.last.lsn
        && run.header().log_end == found.end
    {
        // A run that was written ahead of the seal has none.
        let hash = found.seal.map(|seal| seal.hash).or(run.seal());
        let frozen = Frozen { last: found.last, end: found.end, may_seal: false, seal_hash: hash };
        return Ok(Part {
            segment: found.segment.clone(),
            before: found.before,
            frozen: OnceLock::from(frozen),
            index: PartIndex::Run(Arc::new(run)),
            repaired: OnceLock::new(),
        });
    }
    debug_assert!(found.last.lsn.0 + 1 >= header.first_lsn.0);
    let mut part = match gathered.take(found) {
        Some(part) => part,
        None => parts::rebuild(&found.segment, found.before, found.last.lsn, false)?,
    };
    if let (Some(seal), Some(frozen)) = (found.seal, part.frozen.get_mut()) {
        frozen.seal_hash = Some(seal.hash);
    }
    Ok(part)
}

fn open_run(shared: &Shared, dir: &Path, segment: &Segment) -> Option<Run> {
    let header = &segment.header;
    let path = dir.join(segment.run_name());
    // A run is made again from its segment whatever is wrong with it.
    let run = Run::open(&*shared.files, &path, &shared.pages).ok()?;
    let fits = run.header().volume == header.volume
        && run.header().run_id == segment.index_id().0
        && run.first_lsn() == header.first_lsn;
    fits.then_some(run)
}

/// Where a segment ends, as its run says.
pub(super) fn known_from_run(
    shared: &Shared,
    dir: &Path,
    segment: &Segment,
    merged: &[MergedRun],
) -> Option<KnownFromRun> {
    let id = segment.header.id;
    if let Some(source) = merged.iter().flat_map(|merged| &merged.sources).find(|source| source.segment == id)
    {
        let last =
            Position { lsn: source.last_lsn, chain: Chain(source.chain), timestamp: source.last_timestamp };
        return Some(KnownFromRun { last, end: source.log_end });
    }
    let run = open_run(shared, dir, segment)?;
    let header = run.header();
    // The run of a segment without records has no timestamp; that of the record before it holds.
    let timestamp = header.last_timestamp.max(segment.header.timestamp_before);
    let last = Position { lsn: header.last_lsn, chain: Chain(header.chain), timestamp };
    Some(KnownFromRun { last, end: header.log_end })
}

/// Runs that answer for no part any more. One that stays costs space only.
pub(super) fn remove_orphan_runs(shared: &Shared, dir: &Path, parts: &[Arc<Part>]) {
    let names: BTreeSet<String> = parts
        .iter()
        .map(|part| match part.merged_run().and_then(|run| run.path().file_name()) {
            Some(name) => name.to_string_lossy().into_owned(),
            None => part.segment.run_name(),
        })
        .collect();
    let Ok(entries) = shared.files.list(dir) else { return };
    for entry in entries {
        let run = entry.name.strip_suffix(".new").unwrap_or(&entry.name);
        let is_unfinished = run != entry.name;
        if run.ends_with(".run") && (is_unfinished || !names.contains(run)) {
            let _ = shared.files.remove(&dir.join(&entry.name));
        }
    }
}
