//! Making one run of several neighbouring ones, a bounded number of rows at a time.

use super::paged::Pages;
use super::rows::Rows;
use super::write::{create_fresh, publish};
use super::{PageCache, Run, bloom};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::run::{
    BLOOM_BLOCK_BYTES, BloomBlock, Entry, Fence, Header, KIND_MERGED, Layout, MergedSource, PAGE_BYTES, Row,
    Summary,
};
use crate::ids::{Lsn, Timestamp};
use crate::io::{File, Files};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A merge under way. Whatever becomes of it, its inputs are not touched; the new run has a temporary name until
/// it is whole and synced.
pub struct Merge {
    files: Arc<dyn Files>,
    path: PathBuf,
    fresh: PathBuf,
    file: Arc<dyn File>,
    inputs: Vec<Arc<Run>>,
    sources: Vec<MergedSource>,
    header: Header,
    pages: Pages,
    phase: Phase,
    entry_fences: Vec<Fence>,
    timestamp_fences: Vec<Timestamp>,
    filter: Vec<u8>,
}

/// The entries of one input, and the next of them.
type Cursor = (Rows<Entry>, Option<(Entry, Lsn)>);

enum Phase {
    Entries(Vec<Cursor>),
    /// Number of the input, and its rows.
    Timestamps(usize, Rows<Timestamp>),
    Rest,
}

impl Merge {
    /// Begins to merge `inputs`, neighbours from the oldest to the newest, whose segments are `sources`, into the
    /// file at `path`. `run_id` tells it from all other runs. A larger filter than `filter_bytes_max` is not made: it has to be in memory while
    /// it is made.
    pub fn begin(
        files: Arc<dyn Files>,
        path: &Path,
        run_id: u64,
        inputs: Vec<Arc<Run>>,
        sources: Vec<MergedSource>,
        filter_bytes_max: usize,
    ) -> Result<Merge> {
        let (Some(oldest), Some(newest), Some(last)) = (inputs.first(), inputs.last(), sources.last()) else {
            return Err(Error::new(Kind::Invalid, "a merge of nothing"));
        };
        assert!(
            inputs.windows(2).all(|pair| pair[0].last_lsn().next() == pair[1].first_lsn()),
            "only neighbours are merged"
        );
        let sum = |count: fn(&Header) -> u64| inputs.iter().map(|run| count(run.header())).sum::<u64>();
        let entries = sum(|header| header.entries);
        let blocks_max = (filter_bytes_max / BLOOM_BLOCK_BYTES) as u64;
        let payload = inputs.iter().map(|run| run.payload_entries()).sum::<Result<u64>>()?;
        let filter_blocks =
            Some(bloom::blocks_for(payload)).filter(|blocks| *blocks <= blocks_max).unwrap_or(0);
        let first_timestamp = inputs.iter().find(|run| run.header().timestamps > 0);
        let last_timestamp = inputs.iter().rfind(|run| run.header().timestamps > 0);
        let header = Header {
            kind: KIND_MERGED,
            level: inputs.iter().map(|run| run.header().level).max().unwrap_or(0).saturating_add(1),
            codec: 0,
            volume: oldest.header().volume,
            run_id,
            first_lsn: oldest.first_lsn(),
            last_lsn: newest.last_lsn(),
            first_timestamp: first_timestamp.map_or(Timestamp(0), |run| run.header().first_timestamp),
            last_timestamp: last_timestamp.map_or(Timestamp(0), |run| run.header().last_timestamp),
            log_end: last.log_end,
            chain: last.chain,
            seal: last.seal,
            key_id: [0; 16],
            region_tag: [0; 16],
            sources: sources.len() as u64,
            entries,
            timestamps: sum(|header| header.timestamps),
            markers: sum(|header| header.markers),
            damages: sum(|header| header.damages),
            bloom_blocks: filter_blocks,
            trees: inputs.iter().fold(0, |trees, run| trees | run.header().trees),
            region_crc: 0,
            summary: sources.iter().fold(Summary::default(), |mut sum, source| {
                sum.add(&source.summary);
                sum
            }),
        };
        let records = (header.last_lsn.0 + 1).saturating_sub(header.first_lsn.0);
        if records > u64::from(u32::MAX) || ![0, records].contains(&header.timestamps) {
            return Err(Error::new(Kind::Invalid, "more records than one run can tell apart"));
        }
        let context = || format!("write run {}", path.display());
        let (fresh, file) = create_fresh(&*files, path).at(context)?;
        let pages = Pages::new(file.clone(), run_id, Layout::of(&header).entries_page);
        let mut merge = Merge {
            files,
            path: path.to_owned(),
            fresh,
            file,
            inputs,
            sources,
            header,
            pages,
            phase: Phase::Rest,
            entry_fences: Vec::new(),
            timestamp_fences: Vec::new(),
            filter: vec![0; filter_blocks as usize * BLOOM_BLOCK_BYTES],
        };
        merge.phase = Phase::Entries(merge.first_entries()?);
        Ok(merge)
    }

    fn first_entries(&self) -> Result<Vec<Cursor>> {
        let open = |run: &Arc<Run>| {
            let mut rows = Rows::entries(run.clone());
            let first = rows.next_entry()?;
            Ok((rows, first))
        };
        self.inputs.iter().map(open).collect()
    }

    /// The runs that it merges.
    pub fn inputs(&self) -> &[Arc<Run>] {
        &self.inputs
    }

    /// Its segments.
    pub fn sources(&self) -> &[MergedSource] {
        &self.sources
    }

    /// Rows of entries and timestamps, for telling how far it is: done, and all.
    pub fn progress(&self) -> (u64, u64) {
        let entries = self.entry_fences.len() as u64 * Entry::PER_PAGE as u64;
        let timestamps = self.timestamp_fences.len() as u64 * Timestamp::PER_PAGE as u64;
        let total = self.header.entries + self.header.timestamps;
        ((entries + timestamps).min(total), total)
    }

    /// Memory it takes, in bytes, without the small buffers.
    pub fn memory_bytes(&self) -> usize {
        self.filter.capacity()
            + self.entry_fences.capacity() * size_of::<Fence>()
            + self.timestamp_fences.capacity() * size_of::<Timestamp>()
    }

    /// Merges some `rows_max` rows more. `Some` is the new run, whole, synced and named; then there is nothing more
    /// to do. After an error the merge is good for nothing: see [`Merge::abandon`].
    pub fn step(&mut self, rows_max: u64, pages: &Arc<PageCache>) -> Result<Option<Run>> {
        let mut left = rows_max;
        loop {
            match std::mem::replace(&mut self.phase, Phase::Rest) {
                Phase::Entries(mut cursors) => {
                    if !self.merge_entries(&mut cursors, &mut left)? {
                        self.phase = Phase::Entries(cursors);
                        return Ok(None);
                    }
                    self.pages.end_section().at(|| self.context())?;
                    self.phase = Phase::Timestamps(0, Rows::timestamps(self.inputs[0].clone()));
                }
                Phase::Timestamps(input, mut rows) => {
                    if !self.copy_timestamps(&mut rows, &mut left)? {
                        self.phase = Phase::Timestamps(input, rows);
                        return Ok(None);
                    }
                    if let Some(next) = self.inputs.get(input + 1) {
                        self.phase = Phase::Timestamps(input + 1, Rows::timestamps(next.clone()));
                    } else {
                        self.pages.end_section().at(|| self.context())?;
                    }
                }
                Phase::Rest => {
                    self.write_rest()?;
                    publish(&*self.files, &self.fresh, &self.file, &self.path).at(|| self.context())?;
                    return Run::open(&*self.files, &self.path, pages).map(Some);
                }
            }
        }
    }

    /// Whether all are merged.
    fn merge_entries(&mut self, cursors: &mut [Cursor], left: &mut u64) -> Result<bool> {
        loop {
            // Of one key the older run comes first, and has the lower LSNs.
            let nearest = cursors
                .iter()
                .enumerate()
                .filter_map(|(number, (_, next))| next.map(|(entry, _)| (entry.key, number)))
                .min();
            let Some((key, number)) = nearest else { return Ok(true) };
            let (rows, next) = &mut cursors[number];
            if !self.filter.is_empty() && key.tree() == 0 {
                bloom::insert(&mut self.filter, key);
            }
            // The versions of one key stand together.
            while let Some((entry, lsn)) = next.filter(|(entry, _)| entry.key == key) {
                if *left == 0 {
                    return Ok(false);
                }
                *left -= 1;
                let lsn_delta = (lsn.0 - self.header.first_lsn.0) as u32;
                if self.pages.row(&Entry { lsn_delta, ..entry }).at(|| self.context())? {
                    self.entry_fences.push(Fence { key, lsn_delta });
                }
                *next = rows.next_entry()?;
            }
        }
    }

    /// Whether all of this input are copied.
    fn copy_timestamps(&mut self, rows: &mut Rows<Timestamp>, left: &mut u64) -> Result<bool> {
        while *left > 0 {
            let Some(timestamp) = rows.next()? else { return Ok(true) };
            if self.pages.row(&timestamp).at(|| self.context())? {
                self.timestamp_fences.push(timestamp);
            }
            *left -= 1;
        }
        Ok(false)
    }

    fn write_rest(&mut self) -> Result<()> {
        for run in &self.inputs {
            for row in run.markers()? {
                self.pages.row(&row).at(|| self.context())?;
            }
        }
        self.pages.end_section().at(|| self.context())?;
        for run in &self.inputs {
            for row in run.damages()? {
                self.pages.row(&row).at(|| self.context())?;
            }
        }
        self.pages.end_section().at(|| self.context())?;
        let layout = Layout::of(&self.header);
        let mut region = vec![0; layout.region_bytes() as usize];
        let path = &self.path;
        let context = || format!("write run {}", path.display());
        self.pages.section(self.sources.iter().copied(), |_, _| {}).at(context)?;
        let mut at = layout.entry_fences_at;
        let mut keep = |row: &[u8]| {
            region[at..at + row.len()].copy_from_slice(row);
            at += row.len();
        };
        self.pages
            .section(self.entry_fences.iter().copied(), |fence, starts_page| {
                if starts_page {
                    let mut row = [0; Fence::BYTES];
                    fence.encode(&mut row);
                    keep(&row);
                }
            })
            .at(context)?;
        self.pages
            .section(self.timestamp_fences.iter().copied(), |fence, starts_page| {
                if starts_page {
                    keep(&fence.0.to_le_bytes());
                }
            })
            .at(context)?;
        let (blocks, _) = self.filter.as_chunks::<BLOOM_BLOCK_BYTES>();
        self.pages.section(blocks.iter().map(|block| BloomBlock(*block)), |_, _| {}).at(context)?;
        let written = self.pages.finish().at(context)?;
        if written != layout.region_page {
            return Err(Error::new(
                Kind::Damaged,
                "the runs to merge hold other rows than their headers say",
            ));
        }
        self.header.region_crc = crc32fast::hash(&region);
        self.file
            .write_at(layout.region_page * PAGE_BYTES as u64, &[IoSlice::new(&region)])
            .and_then(|()| self.file.write_at(0, &[IoSlice::new(&self.header.encode())]))
            .at(context)
    }

    fn context(&self) -> String {
        format!("write run {}", self.path.display())
    }

    /// Gives up, and the space back. What cannot be removed is removed by the next try or opening.
    pub fn abandon(self) {
        let _ = self.files.remove(&self.fresh);
    }
}
