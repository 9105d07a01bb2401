//! The part of the index for a sealed segment: an immutable file, of which only what is needed is read.

use super::overlay::{self, Part, Walk};
use super::tree::{Candidate, found, is_possible};
use super::visible::contains;
use super::{PageCache, Search, Visible, bloom};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::run::{
    BLOOM_BLOCK_BYTES, DamageRow, Entry, Fence, Header, Key, Layout, MarkerRow, PAGE_BYTES, Page, Row,
    Source, check_page, damaged, pages_of, row_of,
};
use crate::ids::{Lba, Lsn, Timestamp};
use crate::io::{File, Files};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Up to so many keys the bloom filter is asked about each before a page is read.
const BLOOM_KEYS_MAX: u64 = 16;

/// An opened run. In memory: header, fences and bloom filter; pages come through the shared cache, each checked
/// when it is read. A page that does not fit its checksum is an error of kind [`Kind::Damaged`], never a wrong
/// answer; the run can be made anew from its segment.
pub struct Run {
    path: PathBuf,
    file: Arc<dyn File>,
    header: Header,
    layout: Layout,
    region: Vec<u8>,
    pages: Arc<PageCache>,
    cache_run: u64,
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
            file.read_at(PAGE_BYTES as u64, &mut region).at(context)?;
        }
        if crc32fast::hash(&region) != header.region_crc {
            return Err(at_path(damaged("fences and filter do not fit their checksum"), path));
        }
        let cache_run = pages.register();
        let pages = pages.clone();
        Ok(Run { path: path.to_owned(), file, header, layout, region, pages, cache_run })
    }

    /// Whose run it is and what it holds.
    pub fn header(&self) -> &Header {
        &self.header
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
        size_of::<Run>() + self.region.capacity()
    }

    /// The segments whose records it indexes, with their first LSNs.
    pub fn sources(&self) -> Vec<Source> {
        (0..self.header.sources as usize)
            .map(|source| Source::decode(self.region_row(0, source, Source::BYTES)))
            .collect()
    }

    /// Answers the gaps of `search` that these records changed.
    pub fn resolve(&self, visible: &Visible, search: &mut Search) -> Result<()> {
        overlay::resolve(self, visible, search)
    }

    /// The newest record that changed this block, if one of these did.
    pub fn newest(&self, lba: Lba) -> Result<Option<Lsn>> {
        let all = [(self.first_lsn(), self.last_lsn())];
        Ok(overlay::newest_of_block(self, lba, &all)?.map(|candidate| candidate.lsn))
    }

    /// The newest record whose timestamp is not after `timestamp`, if there is one here.
    pub fn lsn_at(&self, timestamp: Timestamp) -> Result<Option<Lsn>> {
        let pages = pages_of::<Timestamp>(self.header.timestamps) as usize;
        let fence = |page| {
            Timestamp::decode(self.region_row(self.layout.timestamp_fences_at, page, Timestamp::BYTES))
        };
        let Some(page_index) = partition(pages, |page| fence(page) <= timestamp).checked_sub(1) else {
            return Ok(None);
        };
        let page = self.page(self.layout.timestamps_page + page_index as u64)?;
        let before = page_index * Timestamp::PER_PAGE;
        let rows = (self.header.timestamps as usize - before).min(Timestamp::PER_PAGE);
        let count = before + partition(rows, |slot| row_of::<Timestamp>(&page, slot) <= timestamp);
        Ok(count.checked_sub(1).map(|delta| Lsn(self.header.first_lsn.0 + delta as u64)))
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
        self.rows(self.layout.markers_page, self.header.markers)
    }

    /// Payload that was found to be damaged when the run was made, by LSN.
    pub fn damages(&self) -> Result<Vec<DamageRow>> {
        self.rows(self.layout.damages_page, self.header.damages)
    }

    /// Reads every page from the file and checks it.
    pub fn verify(&self) -> Result<()> {
        (self.layout.entries_page..self.layout.file_pages)
            .try_for_each(|number| self.read_page(number).map(drop))
    }

    fn rows<R: Row>(&self, first_page: u64, count: u64) -> Result<Vec<R>> {
        (0..count).map(|row| self.row(first_page, row)).collect()
    }

    fn row<R: Row>(&self, first_page: u64, row: u64) -> Result<R> {
        let page = self.page(first_page + row / R::PER_PAGE as u64)?;
        Ok(row_of(&page, (row % R::PER_PAGE as u64) as usize))
    }

    fn region_row(&self, section_at: usize, row: usize, bytes: usize) -> &[u8] {
        &self.region[section_at + row * bytes..][..bytes]
    }

    fn page(&self, number: u64) -> Result<Arc<Page>> {
        self.pages.get(self.cache_run, number, || self.read_page(number))
    }

    fn read_page(&self, number: u64) -> Result<Arc<Page>> {
        let mut page = Arc::new([0; PAGE_BYTES]);
        let buffer = Arc::make_mut(&mut page);
        self.file
            .read_at(number * PAGE_BYTES as u64, buffer)
            .at(|| format!("read page {number} of run {}", self.path.display()))?;
        check_page(buffer, self.header.run_id, number).map_err(|error| at_path(error, &self.path))?;
        Ok(page)
    }

    fn bloom(&self) -> &[u8] {
        &self.region[self.layout.bloom_at..][..self.header.bloom_blocks as usize * BLOOM_BLOCK_BYTES]
    }

    fn candidate(&self, entry: &Entry) -> Result<Candidate> {
        let is_record = u64::from(entry.lsn_delta) < self.header.timestamps;
        let found =
            found(entry).filter(|_| is_record && is_possible(entry.key)).ok_or_else(|| self.nonsense())?;
        Ok(Candidate { key: entry.key, lsn: self.lsn(entry), found })
    }

    fn lsn(&self, entry: &Entry) -> Lsn {
        Lsn(self.header.first_lsn.0.saturating_add(u64::from(entry.lsn_delta)))
    }

    fn nonsense(&self) -> Error {
        at_path(damaged("entries that no record can have made"), &self.path)
    }
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

/// Finds entries, keeping the page it looked at last.
struct Reader<'a> {
    run: &'a Run,
    held: Option<(u64, Arc<Page>)>,
}

impl<'a> Reader<'a> {
    fn new(run: &'a Run) -> Reader<'a> {
        Reader { run, held: None }
    }

    /// The `page_index`-th page of entries.
    fn page(&mut self, page_index: u64) -> Result<&Page> {
        if self.held.as_ref().is_none_or(|held| held.0 != page_index) {
            self.held = None;
            let page = self.run.page(self.run.layout.entries_page + page_index)?;
            return Ok(&self.held.insert((page_index, page)).1);
        }
        match &self.held {
            Some(held) => Ok(&held.1),
            None => unreachable!("it was just looked at"),
        }
    }

    /// The entry at `position`; `None` behind the last.
    fn entry(&mut self, position: u64) -> Result<Option<Entry>> {
        if position >= self.run.header.entries {
            return Ok(None);
        }
        let per_page = Entry::PER_PAGE as u64;
        let page = self.page(position / per_page)?;
        Ok(Some(row_of(page, (position % per_page) as usize)))
    }

    /// How many entries are not after (`key`, `lsn_delta`); so the position of the first that is.
    fn position_after(&mut self, key: Key, lsn_delta: u32) -> Result<u64> {
        let wanted = Fence { key, lsn_delta };
        let entries = self.run.header.entries;
        let fences_at = self.run.layout.entry_fences_at;
        let run = self.run;
        let page_index = partition(pages_of::<Entry>(entries) as usize, |page| {
            Fence::decode(run.region_row(fences_at, page, Fence::BYTES)) <= wanted
        });
        let Some(page_index) = (page_index as u64).checked_sub(1) else { return Ok(0) };
        let before = page_index * Entry::PER_PAGE as u64;
        let rows = (entries - before).min(Entry::PER_PAGE as u64) as usize;
        let page = self.page(page_index)?;
        let within = partition(rows, |slot| {
            let entry: Entry = row_of(page, slot);
            Fence { key: entry.key, lsn_delta: entry.lsn_delta } <= wanted
        });
        Ok(before + within as u64)
    }

    /// The position of the first entry with `key` or a greater one.
    fn position_of(&mut self, key: Key) -> Result<u64> {
        match key.value().checked_sub(1) {
            Some(before) => self.position_after(Key::from_value(before), u32::MAX),
            None => Ok(0),
        }
    }

    /// The newest entry at `key` with an LSN in `ranges`.
    fn newest(&mut self, key: Key, ranges: &[(Lsn, Lsn)]) -> Result<Option<Candidate>> {
        let first = self.run.header.first_lsn.0;
        for range in ranges.iter().rev() {
            // Ranges overlap the run, so their end is not before its first LSN.
            let delta = u32::try_from(range.1.0.saturating_sub(first)).unwrap_or(u32::MAX);
            let Some(position) = self.position_after(key, delta)?.checked_sub(1) else { return Ok(None) };
            let entry = self.entry(position)?.filter(|entry| entry.key == key);
            let Some(entry) = entry else { return Ok(None) };
            let lsn = self.run.lsn(&entry);
            if lsn >= range.0 && lsn <= range.1 {
                return self.run.candidate(&entry).map(Some);
            }
        }
        Ok(None)
    }
}

impl Part for Run {
    type Walk<'a> = RunWalk<'a>;

    fn lsns(&self) -> (Lsn, Lsn) {
        (self.header.first_lsn, self.header.last_lsn)
    }

    fn trees(&self) -> u64 {
        self.header.trees
    }

    fn newest_at(&self, key: Key, ranges: &[(Lsn, Lsn)]) -> Result<Option<Candidate>> {
        if !bloom::may_hold(self.bloom(), key) {
            return Ok(None);
        }
        Reader::new(self).newest(key, ranges)
    }

    fn walk<'a>(&'a self, first: Key, last: Key, ranges: &'a [(Lsn, Lsn)]) -> Result<Option<RunWalk<'a>>> {
        let keys = last.index() - first.index() + 1;
        if keys <= BLOOM_KEYS_MAX {
            let mut keys = (first.index()..=last.index()).map(|index| Key::new(first.tree(), index));
            if !keys.any(|key| bloom::may_hold(self.bloom(), key)) {
                return Ok(None);
            }
        }
        let mut reader = Reader::new(self);
        let position = reader.position_of(first)?;
        Ok(Some(RunWalk { reader, position, first, last, ranges }))
    }
}

/// Walks one tree of a [`Run`].
pub(super) struct RunWalk<'a> {
    reader: Reader<'a>,
    position: u64,
    /// The next key is not before this one.
    first: Key,
    last: Key,
    ranges: &'a [(Lsn, Lsn)],
}

impl Walk for RunWalk<'_> {
    fn next(&mut self) -> Result<Option<Candidate>> {
        while let Some(entry) = self.reader.entry(self.position)? {
            if entry.key > self.last {
                break;
            }
            if entry.key < self.first {
                return Err(self.reader.run.nonsense());
            }
            self.first = Key::from_value(entry.key.value() + 1);
            let following = self.reader.entry(self.position + 1)?;
            let candidate = if following.is_none_or(|following| following.key != entry.key) {
                self.position += 1;
                let is_seen = contains(self.ranges, self.reader.run.lsn(&entry));
                is_seen.then(|| self.reader.run.candidate(&entry)).transpose()?
            } else {
                let newest = self.reader.newest(entry.key, self.ranges)?;
                let next = self.reader.position_after(entry.key, u32::MAX)?;
                if next <= self.position {
                    return Err(self.reader.run.nonsense());
                }
                self.position = next;
                newest
            };
            if candidate.is_some() {
                return Ok(candidate);
            }
        }
        Ok(None)
    }
}
