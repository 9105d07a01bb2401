//! The index of a sealed segment, or of several: an immutable file, of which only what is needed is read.

use super::entries::{EntryPage, FencePage};
use super::find::Reader;
use super::overlay::{self, Part};
use super::pages::{Cached, Fresh, Kept};
use super::tree::{Candidate, found, is_possible};
use super::{PageCache, Search, Visible, bloom};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::run::{
    BLOOM_BLOCK_BYTES, BloomBlock, DamageRow, Entry, Fence, Header, KIND_MERGED, Key, Layout, MarkerRow,
    MergedSource, PAGE_BYTES, Page, Row, Source, Summary, check_page, damaged, pages_of, row_of,
};
use crate::ids::{Lba, Lsn, Timestamp};
use crate::io::{File, Files};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An opened run. In memory: the header, and of a segment's run the fences and the bloom filter, of a merged one
/// some 36 bytes for each 100,000 entries; pages come through the shared cache, each checked when it is read. A page that does not fit its checksum is an error of kind [`Kind::Damaged`], never a wrong
/// answer; the run can be made anew from its segment.
pub struct Run {
    path: PathBuf,
    file: Arc<dyn File>,
    header: Header,
    layout: Layout,
    region: Vec<u8>,
    // Of the region: the fences of entries, or of the pages of fences.
    fences: Box<[Fence]>,
    pages: Arc<PageCache>,
    cache_run: u64,
    is_bad: AtomicBool,
}

impl Run {
    /// Opens a run with two reads, however many entries it has. [`Kind::Damaged`] if anything does not fit;
    /// whether it is the run of the wanted volume and segment is for the caller to see in [`Run::header`].
    pub fn open(files: &dyn Files, path: &Path, pages: &Arc<PageCache>) -> Result<Run> {
        let context = || format!("open run {}", path.display());
        let file = files.open(path, false).at(context)?;
        let file_bytes = file.len().at(context)?;
        let mut page = [0; PAGE_BYTES];
        file.read_at(0, &mut page).at(context)?;
        let header = Header::decode(&page, file_bytes).map_err(|error| at_path(error, path))?;
        let layout = Layout::of(&header);
        let mut region = vec![0; layout.region_bytes() as usize];
        if !region.is_empty() {
            file.read_at(layout.region_page * PAGE_BYTES as u64, &mut region).at(context)?;
        }
        if crc32fast::hash(&region) != header.region_crc {
            return Err(at_path(damaged("fences and filter do not fit their checksum"), path));
        }
        let entry_pages = pages_of::<Entry>(header.entries);
        let fences = if header.kind == KIND_MERGED { pages_of::<Fence>(entry_pages) } else { entry_pages };
        let fence =
            |at: usize| Fence::decode(&region[layout.entry_fences_at + at * Fence::BYTES..][..Fence::BYTES]);
        let fences = (0..fences as usize).map(fence).collect();
        let cache_run = pages.register();
        let pages = pages.clone();
        let is_bad = AtomicBool::new(false);
        Ok(Run { path: path.to_owned(), file, header, layout, region, fences, pages, cache_run, is_bad })
    }

    /// Whose run it is and what it holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Seal hash of its (last) segment; `None` if it was written before the segment was sealed.
    pub fn seal(&self) -> Option<[u8; 32]> {
        (self.header.seal != [0; 32]).then_some(self.header.seal)
    }

    /// LSN of the first record.
    pub fn first_lsn(&self) -> Lsn {
        self.header.first_lsn
    }

    /// LSN of the last record; the one before [`Run::first_lsn`] if there is none.
    pub fn last_lsn(&self) -> Lsn {
        self.header.last_lsn
    }

    /// Memory that an opened run takes, in bytes, without cached pages.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Run>() + self.region.capacity() + size_of_val(&*self.fences)
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of its file.
    pub fn file_bytes(&self) -> u64 {
        self.layout.file_pages * PAGE_BYTES as u64
    }

    /// Whether it is the run of several segments.
    pub fn is_merged(&self) -> bool {
        self.header.kind == KIND_MERGED
    }

    /// Whether something in it could not be read: it has to be made anew.
    pub fn is_bad(&self) -> bool {
        self.is_bad.load(Ordering::Relaxed)
    }

    /// Notes that something in it could not be read.
    pub fn set_bad(&self) {
        self.is_bad.store(true, Ordering::Relaxed);
    }

    /// The segment whose records it indexes; of a merged run see [`Run::merged_sources`].
    pub fn sources(&self) -> Vec<Source> {
        let sources = if self.is_merged() { 0 } else { self.header.sources as usize };
        (0..sources).map(|source| Source::decode(self.region_row(0, source, Source::BYTES))).collect()
    }

    /// The segments whose records a merged run indexes, oldest first.
    pub fn merged_sources(&self) -> Result<Vec<MergedSource>> {
        let sources: Vec<MergedSource> = match self.is_merged() {
            true => self.rows(self.layout.sources_page, 0, self.header.sources)?,
            false => Vec::new(),
        };
        let gap = || at_path(damaged("its segments do not follow each other"), &self.path);
        let behind = |lsn: Lsn| lsn.0.checked_add(1).map(Lsn).ok_or_else(gap);
        let mut next = self.header.first_lsn;
        for source in &sources {
            let end = behind(source.last_lsn)?;
            if source.first_lsn != next || end < next {
                return Err(gap());
            }
            next = end;
        }
        if self.is_merged() && next != behind(self.header.last_lsn)? {
            return Err(at_path(damaged("its segments do not have its LSNs"), &self.path));
        }
        Ok(sources)
    }

    /// How many entries are payload, not ranges' nodes.
    pub(super) fn payload_entries(&self) -> Result<u64> {
        Reader::new(self).position_of(Key::new(1, 0))
    }

    /// What the records of one of its segments did; the segment is told by its first LSN.
    pub fn summary_of(&self, first: Lsn) -> Result<Summary> {
        if !self.is_merged() {
            return Ok(self.header.summary);
        }
        let row = |row| self.row::<MergedSource>(self.layout.sources_page, row);
        let behind = partition_rows(self.header.sources, |at| Ok(row(at)?.first_lsn <= first))?;
        let source = behind.checked_sub(1).map(row).transpose()?;
        source
            .filter(|source| source.first_lsn == first)
            .map(|source| source.summary)
            .ok_or_else(|| at_path(damaged("it does not have the segment that it was taken for"), &self.path))
    }

    /// Answers the gaps of `search` that these records changed.
    pub fn resolve(&self, visible: &Visible, search: &mut Search) -> Result<()> {
        overlay::resolve(self, visible, search)
    }

    /// The newest record that changed this block, if one of these did.
    pub fn newest(&self, lba: Lba) -> Result<Option<Lsn>> {
        let all = [(self.first_lsn(), self.last_lsn())];
        Ok(overlay::newest_of_block(self, &mut self.hand(), lba, &all)?.map(|(lsn, _)| lsn))
    }

    /// The newest record whose timestamp is not after `timestamp`, if there is one here.
    pub fn lsn_at(&self, timestamp: Timestamp) -> Result<Option<Lsn>> {
        let Some(page_index) = self.timestamps_page_of(timestamp)? else { return Ok(None) };
        let page = self.rows_page(self.layout.timestamps_page + page_index)?;
        let before = page_index * Timestamp::PER_PAGE as u64;
        let rows = (self.header.timestamps - before).min(Timestamp::PER_PAGE as u64) as usize;
        let count = before + partition(rows, |slot| row_of::<Timestamp>(&page, slot) <= timestamp) as u64;
        Ok(count.checked_sub(1).map(|delta| Lsn(self.header.first_lsn.0 + delta)))
    }

    /// When this record was given its LSN, if it is one of these.
    pub fn timestamp_of(&self, lsn: Lsn) -> Result<Option<Timestamp>> {
        let Some(delta) = lsn.0.checked_sub(self.header.first_lsn.0) else { return Ok(None) };
        if delta >= self.header.timestamps {
            return Ok(None);
        }
        self.row(self.layout.timestamps_page, delta).map(Some)
    }

    /// All markers, by LSN.
    pub fn markers(&self) -> Result<Vec<MarkerRow>> {
        self.rows(self.layout.markers_page, 0, self.header.markers)
    }

    /// The markers from `first` to `last`, by LSN.
    pub fn markers_of(&self, first: Lsn, last: Lsn) -> Result<Vec<MarkerRow>> {
        let row = |row| self.row::<MarkerRow>(self.layout.markers_page, row).map(|row| row.lsn);
        let from = partition_rows(self.header.markers, |at| Ok(row(at)? < first))?;
        let to = partition_rows(self.header.markers, |at| Ok(row(at)? <= last))?;
        self.rows(self.layout.markers_page, from, to.max(from))
    }

    /// Payload that was found to be damaged when the run was made, by LSN.
    pub fn damages(&self) -> Result<Vec<DamageRow>> {
        self.rows(self.layout.damages_page, 0, self.header.damages)
    }

    /// Reads every page from the file and checks it.
    pub fn verify(&self) -> Result<()> {
        (self.layout.entries_page..self.layout.rows_end_page)
            .try_for_each(|number| self.read_page(number).map(drop))
    }

    fn rows<R: Row>(&self, first_page: u64, from: u64, to: u64) -> Result<Vec<R>> {
        (from..to).map(|row| self.row(first_page, row)).collect()
    }

    fn row<R: Row>(&self, first_page: u64, row: u64) -> Result<R> {
        let page = self.rows_page(first_page + row / R::PER_PAGE as u64)?;
        Ok(row_of(&page, (row % R::PER_PAGE as u64) as usize))
    }

    fn region_row(&self, section_at: usize, row: usize, bytes: usize) -> &[u8] {
        &self.region[section_at + row * bytes..][..bytes]
    }

    /// What stands in the cache under this number, a page's or one behind those of all pages; else `read` gives it.
    pub(super) fn cached(&self, number: u64, read: impl FnOnce() -> Result<Fresh>) -> Result<Cached> {
        self.pages.get(self.cache_run, number, read)
    }

    /// A page of another section than the entries.
    fn rows_page(&self, number: u64) -> Result<Arc<Kept<Page>>> {
        match self.cached(number, || self.read_page(number).map(Fresh::Rows))? {
            Cached::Rows(page) => Ok(page),
            // Sections share no page.
            _ => Err(self.nonsense()),
        }
    }

    /// The `page_index`-th page of entries.
    pub(super) fn entries_page(&self, page_index: u64) -> Result<Arc<Kept<EntryPage>>> {
        let number = self.layout.entries_page + page_index;
        let rows = self.entries_in_page(page_index);
        let read = || Ok(Fresh::Entries(EntryPage::of(&self.read_page(number)?, rows)));
        match self.cached(number, read)? {
            Cached::Entries(page) => Ok(page),
            _ => Err(self.nonsense()),
        }
    }

    /// How many entries stand in the `page_index`-th page of them.
    pub(super) fn entries_in_page(&self, page_index: u64) -> usize {
        rows_of_page::<Entry>(self.header.entries, page_index).0
    }

    fn read_page(&self, number: u64) -> Result<Page> {
        let mut page = [0; PAGE_BYTES];
        self.file
            .read_at(number * PAGE_BYTES as u64, &mut page)
            .at(|| format!("read page {number} of run {}", self.path.display()))?;
        check_page(&page, self.header.run_id, number).map_err(|error| at_path(error, &self.path))?;
        Ok(page)
    }

    /// Whether there may be an entry with this key; `false` is certain.
    pub(super) fn may_hold(&self, key: Key) -> Result<bool> {
        let blocks = self.header.bloom_blocks;
        if !self.is_merged() {
            let filter = &self.region[self.layout.bloom_at..][..blocks as usize * BLOOM_BLOCK_BYTES];
            return Ok(bloom::may_hold(filter, key));
        }
        if blocks == 0 || key.tree() > 0 {
            // Too many keys for a filter; or nodes, which stand together for all of whom a block may be below.
            return Ok(true);
        }
        let place = bloom::Place::of(blocks, key);
        let per_page = BloomBlock::PER_PAGE as u64;
        let page = self.rows_page(self.layout.bloom_page + place.block / per_page)?;
        let at = (place.block % per_page) as usize * BLOOM_BLOCK_BYTES;
        Ok(place.is_set(&page[at..at + BLOOM_BLOCK_BYTES]))
    }

    /// The last page of entries that begins with `wanted` or before it, counted from the first.
    pub(super) fn entries_page_of(&self, wanted: Fence) -> Result<Option<u64>> {
        let found = self.fences.partition_point(|fence| *fence <= wanted).checked_sub(1);
        let Some(found) = found.map(|found| found as u64) else { return Ok(None) };
        if !self.is_merged() {
            return Ok(Some(found));
        }
        let pages = pages_of::<Entry>(self.header.entries);
        let (rows, before) = rows_of_page::<Fence>(pages, found);
        let number = self.layout.entry_fences_page + found;
        let read = || Ok(Fresh::Fences(FencePage::of(&self.read_page(number)?, rows)));
        match self.cached(number, read)? {
            Cached::Fences(fences) => Ok((before + fences.count_through(wanted) as u64).checked_sub(1)),
            _ => Err(self.nonsense()),
        }
    }

    /// The same for timestamps.
    fn timestamps_page_of(&self, wanted: Timestamp) -> Result<Option<u64>> {
        let pages = pages_of::<Timestamp>(self.header.timestamps);
        if !self.is_merged() {
            return Ok(self.timestamp_fence(pages, wanted));
        }
        let Some(found) = self.timestamp_fence(pages_of::<Timestamp>(pages), wanted) else {
            return Ok(None);
        };
        let (rows, before) = rows_of_page::<Timestamp>(pages, found);
        let page = self.rows_page(self.layout.timestamp_fences_page + found)?;
        let within = partition(rows, |slot| row_of::<Timestamp>(&page, slot) <= wanted);
        Ok((before + within as u64).checked_sub(1))
    }

    /// The last of `fences` fences of timestamps in the region that is not behind `wanted`. A segment's run has all of them there, a
    /// merged one those of its pages of fences.
    fn timestamp_fence(&self, fences: u64, wanted: Timestamp) -> Option<u64> {
        let at = self.layout.timestamp_fences_at;
        let fence = |row: usize| Timestamp::decode(self.region_row(at, row, Timestamp::BYTES));
        partition(fences as usize, |row| fence(row) <= wanted).checked_sub(1).map(|found| found as u64)
    }

    /// Reads pages of entries, or of another section, in a row, past the cache; each is checked.
    pub(super) fn read_pages(&self, first: u64, pages: &mut [Page]) -> Result<()> {
        self.file
            .read_at(first * PAGE_BYTES as u64, pages.as_flattened_mut())
            .at(|| format!("read pages {first} … of run {}", self.path.display()))?;
        for (number, page) in (first..).zip(pages.iter()) {
            check_page(page, self.header.run_id, number).map_err(|error| at_path(error, &self.path))?;
        }
        Ok(())
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn candidate(&self, entry: &Entry) -> Result<Candidate> {
        let newest = self.header.last_lsn.0.checked_sub(self.header.first_lsn.0);
        let is_record = newest.is_some_and(|newest| u64::from(entry.lsn_delta) <= newest);
        let found =
            found(entry).filter(|_| is_record && is_possible(entry.key)).ok_or_else(|| self.nonsense())?;
        Ok(Candidate { key: entry.key, lsn: self.lsn(entry), found })
    }

    pub(super) fn lsn(&self, entry: &Entry) -> Lsn {
        Lsn(self.header.first_lsn.0.saturating_add(u64::from(entry.lsn_delta)))
    }

    pub(super) fn nonsense(&self) -> Error {
        at_path(damaged("entries that no record can have made"), &self.path)
    }
}

/// As [`partition`], over rows that have to be read.
fn partition_rows(count: u64, holds: impl Fn(u64) -> Result<bool>) -> Result<u64> {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle)? {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    Ok(from)
}

/// Of a section of so many rows, how many stand in this page, and how many before it.
fn rows_of_page<R: Row>(rows: u64, page_index: u64) -> (usize, u64) {
    let before = page_index * R::PER_PAGE as u64;
    (rows.saturating_sub(before).clamp(1, R::PER_PAGE as u64) as usize, before)
}

/// The number of leading items of `0..count` for which `holds`, which is false for all that follow.
fn partition(count: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}

fn at_path(error: Error, path: &Path) -> Error {
    Error::new(Kind::Damaged, format!("{}: {error}", path.display()))
        .hint("it is made anew from its segment when the volume is opened")
}
