//! Writing the pages of a run in order, row by row, through a small buffer.

use crate::format::run::{PAGE_BYTES, Page, Row, seal_page};
use crate::io::File;
use std::io::IoSlice;
use std::sync::Arc;

/// So many pages are written at once.
const WRITE_PAGES: usize = 64;

/// Pages behind a run's header or region.
pub(super) struct Pages {
    file: Arc<dyn File>,
    run_id: u64,
    /// Number in the file of the first page in the buffer.
    number: u64,
    buffer: Vec<Page>,
    /// The page that is being filled, and how many rows it has.
    page: Page,
    rows: usize,
}

impl Pages {
    /// From page `number` on.
    pub fn new(file: Arc<dyn File>, run_id: u64, number: u64) -> Pages {
        let buffer = Vec::with_capacity(WRITE_PAGES);
        Pages { file, run_id, number, buffer, page: [0; PAGE_BYTES], rows: 0 }
    }

    /// Adds a row to the section; whether it begins a page.
    pub fn row<R: Row>(&mut self, row: &R) -> std::io::Result<bool> {
        if self.rows == R::PER_PAGE {
            self.end_section()?;
        }
        row.encode(&mut self.page[self.rows * R::BYTES..(self.rows + 1) * R::BYTES]);
        self.rows += 1;
        Ok(self.rows == 1)
    }

    /// The next row begins a new page.
    pub fn end_section(&mut self) -> std::io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut page = std::mem::replace(&mut self.page, [0; PAGE_BYTES]);
        self.rows = 0;
        seal_page(&mut page, self.run_id, self.number + self.buffer.len() as u64);
        self.buffer.push(page);
        if self.buffer.len() == WRITE_PAGES { self.flush() } else { Ok(()) }
    }

    /// Writes a whole section; `seen` hears of each row, and whether it begins a page.
    pub fn section<R: Row>(
        &mut self,
        rows: impl Iterator<Item = R>,
        mut seen: impl FnMut(&R, bool),
    ) -> std::io::Result<()> {
        for row in rows {
            let starts_page = self.row(&row)?;
            seen(&row, starts_page);
        }
        self.end_section()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if !self.buffer.is_empty() {
            let offset = self.number * PAGE_BYTES as u64;
            self.file.write_at(offset, &[IoSlice::new(self.buffer.as_flattened())])?;
            self.number += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the rest; the number of the page behind the last.
    pub fn finish(&mut self) -> std::io::Result<u64> {
        self.end_section()?;
        self.flush()?;
        Ok(self.number)
    }
}
