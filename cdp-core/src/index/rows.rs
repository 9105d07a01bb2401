//! Reading a section of a run from its first row to its last, past the page cache.

use super::Run;
use crate::error::Result;
use crate::format::run::{Entry, PAGE_BYTES, Page, Row, row_of};
use crate::ids::{Lsn, Timestamp};
use std::marker::PhantomData;
use std::sync::Arc;

/// So many pages are read at once.
const READ_PAGES: u64 = 16;

/// The rows of one section.
pub(super) struct Rows<R> {
    run: Arc<Run>,
    /// Number in the file of the section's first page.
    first_page: u64,
    position: u64,
    count: u64,
    buffer: Vec<Page>,
    /// Which page of the section the buffer begins with.
    buffered: u64,
    rows: PhantomData<R>,
}

impl Rows<Entry> {
    /// All entries, by key, then LSN.
    pub fn entries(run: Arc<Run>) -> Rows<Entry> {
        let (page, count) = (run.layout().entries_page, run.header().entries);
        Rows::new(run, page, count)
    }

    /// The next entry with its LSN, checked to be one that a record can have made.
    pub fn next_entry(&mut self) -> Result<Option<(Entry, Lsn)>> {
        let Some(entry) = self.next()? else { return Ok(None) };
        let candidate = self.run.candidate(&entry)?;
        Ok(Some((entry, candidate.lsn)))
    }
}

/// The entries of a run, read once from the first to the last, past the cache.
pub struct RunEntries(Rows<Entry>);

impl RunEntries {
    /// Of this run. Reads nothing yet.
    pub fn of(run: Arc<Run>) -> RunEntries {
        RunEntries(Rows::entries(run))
    }

    /// The next entry, by key, then LSN, with its LSN; `None` behind the last.
    pub fn next_entry(&mut self) -> Result<Option<(Entry, Lsn)>> {
        self.0.next_entry()
    }
}

impl Rows<Timestamp> {
    /// All timestamps, by LSN.
    pub fn timestamps(run: Arc<Run>) -> Rows<Timestamp> {
        let (page, count) = (run.layout().timestamps_page, run.header().timestamps);
        Rows::new(run, page, count)
    }
}

impl<R: Row> Rows<R> {
    fn new(run: Arc<Run>, first_page: u64, count: u64) -> Rows<R> {
        Rows { run, first_page, position: 0, count, buffer: Vec::new(), buffered: 0, rows: PhantomData }
    }

    /// The next row; `None` behind the last.
    pub fn next(&mut self) -> Result<Option<R>> {
        if self.position == self.count {
            return Ok(None);
        }
        let per_page = R::PER_PAGE as u64;
        let page = self.position / per_page;
        if page - self.buffered >= self.buffer.len() as u64 {
            let pages = (self.count.div_ceil(per_page) - page).min(READ_PAGES);
            self.buffer.resize(pages as usize, [0; PAGE_BYTES]);
            self.buffered = page;
            self.run.read_pages(self.first_page + page, &mut self.buffer)?;
        }
        let page = &self.buffer[(page - self.buffered) as usize];
        let row = row_of(page, (self.position % per_page) as usize);
        self.position += 1;
        Ok(Some(row))
    }
}
