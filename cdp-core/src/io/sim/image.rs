//! The bytes of one file, sparse, in pages that are shared between copies until somebody writes to them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What the page cache and space accounting count in, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;
/// What the disk writes whole or not at all, in bytes.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Pages behind one pointer: a copy of an image costs one pointer for each 256 KiB.
const CHUNK_PAGES: u64 = 64;

#[derive(Clone, Default)]
enum Page {
    #[default]
    Hole,
    /// Space is taken, nothing was written: reads as zeros.
    Reserved,
    Data(Arc<[u8; PAGE_BYTES as usize]>),
}

type Chunk = [Page; CHUNK_PAGES as usize];

/// Length and pages. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Image {
    len: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
    /// Pages that are not holes.
    pages: u64,
}

impl Image {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of space that are taken.
    pub fn space(&self) -> u64 {
        self.pages * PAGE_BYTES
    }

    /// Fills the buffer; holes and what is behind the end read as zeros.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (page, within, part) in pieces(offset, buffer.len()) {
            let target = &mut buffer[part];
            match self.page(page) {
                Page::Data(bytes) => target.copy_from_slice(&bytes[within..within + target.len()]),
                _ => target.fill(0),
            }
        }
    }

    /// The whole content.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// Stores bytes, also behind the end; the length stays.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, within, part) in pieces(offset, data.len()) {
            let source = &data[part];
            let slot = self.page_mut(page);
            let was_hole = matches!(slot, Page::Hole);
            match slot {
                Page::Data(bytes) => {
                    Arc::make_mut(bytes)[within..within + source.len()].copy_from_slice(source);
                }
                empty => {
                    let mut bytes = [0; PAGE_BYTES as usize];
                    bytes[within..within + source.len()].copy_from_slice(source);
                    *empty = Page::Data(Arc::new(bytes));
                }
            }
            self.pages += u64::from(was_hole);
        }
    }

    /// Makes the file at least so long.
    pub fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Makes the file exactly so long; what is cut off is gone, what is added is a hole.
    pub fn set_len(&mut self, len: u64) {
        self.len = len;
        self.clip();
    }

    /// Takes space for the pages of a range.
    pub fn reserve(&mut self, offset: u64, len: u64) {
        for page in page_range(offset, len) {
            let slot = self.page_mut(page);
            if matches!(slot, Page::Hole) {
                *slot = Page::Reserved;
                self.pages += 1;
            }
        }
    }

    /// Gives back the space of pages that lie in the range; they read as zeros.
    pub fn free(&mut self, offset: u64, len: u64) {
        for page in offset.div_ceil(PAGE_BYTES)..(offset + len) / PAGE_BYTES {
            if !matches!(self.page(page), Page::Hole) {
                *self.page_mut(page) = Page::Hole;
                self.pages -= 1;
            }
        }
    }

    /// Pages of the range that take no space yet.
    pub fn holes_in(&self, offset: u64, len: u64) -> u64 {
        page_range(offset, len).filter(|&page| matches!(self.page(page), Page::Hole)).count() as u64
    }

    /// The first offset at or behind `offset` with written bytes, before the end.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let first = offset / PAGE_BYTES;
        for (&number, chunk) in self.chunks.range(first / CHUNK_PAGES..) {
            for (index, page) in chunk.iter().enumerate() {
                let page_number = number * CHUNK_PAGES + index as u64;
                if page_number >= first && matches!(page, Page::Data(_)) {
                    let found = (page_number * PAGE_BYTES).max(offset);
                    return (found < self.len).then_some(found);
                }
            }
        }
        None
    }

    /// Forgets every byte behind the end.
    pub fn clip(&mut self) {
        let keep = self.len.div_ceil(PAGE_BYTES);
        let mut gone = self.chunks.split_off(&keep.div_ceil(CHUNK_PAGES));
        for chunk in gone.values_mut() {
            self.pages -= chunk.iter().filter(|page| !matches!(page, Page::Hole)).count() as u64;
        }
        let last = keep / CHUNK_PAGES;
        if !keep.is_multiple_of(CHUNK_PAGES)
            && let Some(chunk) = self.chunks.get_mut(&last)
        {
            let behind = (keep % CHUNK_PAGES) as usize..;
            if chunk[behind.clone()].iter().any(|page| !matches!(page, Page::Hole)) {
                for page in &mut Arc::make_mut(chunk)[behind] {
                    self.pages -= u64::from(!matches!(page, Page::Hole));
                    *page = Page::Hole;
                }
            }
        }
        let within = (self.len % PAGE_BYTES) as usize;
        if within != 0
            && let Page::Data(bytes) = self.page(self.len / PAGE_BYTES)
            && bytes[within..].iter().any(|&byte| byte != 0)
            && let Page::Data(bytes) = self.page_mut(self.len / PAGE_BYTES)
        {
            Arc::make_mut(bytes)[within..].fill(0);
        }
    }

    /// Numbers of the pages that hold written bytes.
    pub fn data_pages(&self) -> Vec<u64> {
        let mut found = Vec::new();
        for (&number, chunk) in &self.chunks {
            for (index, page) in chunk.iter().enumerate() {
                if matches!(page, Page::Data(_)) {
                    found.push(number * CHUNK_PAGES + index as u64);
                }
            }
        }
        found
    }

    /// Makes one page what it is in `other`.
    pub fn take_page(&mut self, other: &Image, page: u64) {
        let theirs = other.page(page).clone();
        let taken = !matches!(theirs, Page::Hole);
        let ours = self.page_mut(page);
        let was_taken = !matches!(ours, Page::Hole);
        *ours = theirs;
        self.pages = self.pages + u64::from(taken) - u64::from(was_taken);
    }

    fn page(&self, page: u64) -> &Page {
        match self.chunks.get(&(page / CHUNK_PAGES)) {
            Some(chunk) => &chunk[(page % CHUNK_PAGES) as usize],
            None => &Page::Hole,
        }
    }

    fn page_mut(&mut self, page: u64) -> &mut Page {
        let chunk = self
            .chunks
            .entry(page / CHUNK_PAGES)
            .or_insert_with(|| Arc::new(std::array::from_fn(|_| Page::Hole)));
        &mut Arc::make_mut(chunk)[(page % CHUNK_PAGES) as usize]
    }
}

/// The pages that a range touches.
fn page_range(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 {
        return 0..0;
    }
    offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES)
}

/// Cuts a range at page borders: page, offset in it, part of the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = offset + done as u64;
        let within = (position % PAGE_BYTES) as usize;
        let part = done..len.min(done + PAGE_BYTES as usize - within);
        done = part.end;
        Some((position / PAGE_BYTES, within, part))
    })
}
