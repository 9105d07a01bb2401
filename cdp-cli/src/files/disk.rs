//! A disk as the filesystems read it: any source of blocks behind a cache of pages with read-ahead, and a meter.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use cdp_core::error::{Error, IoContext, Kind, Result};

use crate::host::relay::Reader;

/// Unit of the cache, in bytes.
const PAGE_BYTES: u64 = 64 << 10;
/// Pages that are kept: 16 MiB.
const PAGES_MAX: usize = 256;
/// Pages read at once when reading goes forward.
const AHEAD_PAGES: u64 = 16;
/// So many reads without anything coming of them, and the filesystem goes in circles.
pub const FRUITLESS_READS_MAX: u64 = 20_000_000;

/// Where the bytes come from.
pub trait Source {
    /// Size in bytes.
    fn bytes(&self) -> u64;
    /// Fills the buffer from this offset on.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for Reader {
    fn bytes(&self) -> u64 {
        Reader::bytes(self)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Reader::read_at(self, offset, buffer)
    }
}

impl Source for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).ok();
        let part = at.and_then(|at| self.get(at..at.checked_add(buffer.len())?));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

struct Cache {
    source: Box<dyn Source>,
    pages: HashMap<u64, (u64, Vec<u8>)>,
    // Counts up; a page carries its value when it was last used.
    used: u64,
    next: u64,
}

impl Cache {
    fn page(&mut self, number: u64) -> io::Result<&[u8]> {
        self.used += 1;
        if !self.pages.contains_key(&number) {
            self.load(number)?;
        }
        let used = self.used;
        let page = self.pages.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        page.0 = used;
        Ok(&page.1)
    }

    fn load(&mut self, number: u64) -> io::Result<()> {
        let size = self.source.bytes();
        let ahead = if number == self.next { AHEAD_PAGES } else { 1 };
        let start = number * PAGE_BYTES;
        let end = (start + ahead * PAGE_BYTES).min(size);
        let mut bytes = vec![0; end.checked_sub(start).ok_or(io::ErrorKind::UnexpectedEof)? as usize];
        let mut whole = self.source.read_at(start, &mut bytes);
        if whole.is_err() && ahead > 1 {
            // What lies further on may be damaged; what is wanted may not.
            bytes.truncate(PAGE_BYTES as usize);
            whole = self.source.read_at(start, &mut bytes);
        }
        whole?;
        for (number, page) in (number..).zip(bytes.chunks(PAGE_BYTES as usize)) {
            self.pages.insert(number, (self.used, page.to_vec()));
            self.next = number + 1;
        }
        while self.pages.len() > PAGES_MAX {
            let oldest = self.pages.iter().min_by_key(|(_, (used, _))| *used).map(|(number, _)| *number);
            oldest.and_then(|number| self.pages.remove(&number));
        }
        Ok(())
    }
}

/// Counts reads since the last fruit.
#[derive(Clone, Default)]
pub struct Fuel(Rc<Cell<u64>>);

impl Fuel {
    /// Something came of the reads.
    pub fn refill(&self) {
        self.0.set(0);
    }

    fn burn(&self) -> io::Result<()> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > FRUITLESS_READS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its structures go in circles"));
        }
        Ok(())
    }
}

/// A disk or a part of one. Clones share the cache and have positions of their own.
#[derive(Clone)]
pub struct Disk {
    cache: Rc<RefCell<Cache>>,
    fuel: Fuel,
    start: u64,
    bytes: u64,
    at: u64,
}

impl Disk {
    /// The whole of a source.
    pub fn new(source: impl Source + 'static) -> Disk {
        let bytes = source.bytes();
        let cache = Cache { source: Box::new(source), pages: HashMap::new(), used: 0, next: 0 };
        Disk { cache: Rc::new(RefCell::new(cache)), fuel: Fuel::default(), start: 0, bytes, at: 0 }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The meter of this disk and all its parts.
    pub fn fuel(&self) -> Fuel {
        self.fuel.clone()
    }

    /// A part of it; what reaches beyond the end is cut off, a start behind it is [`Kind::Invalid`].
    pub fn part(&self, start: u64, bytes: u64) -> Result<Disk> {
        if start >= self.bytes {
            return Err(Error::new(Kind::Invalid, "the partition begins behind the end of the disk"));
        }
        let bytes = bytes.min(self.bytes - start);
        Ok(Disk { start: self.start + start, bytes, at: 0, ..self.clone() })
    }

    /// The first bytes, fewer if the disk is shorter.
    pub fn prefix(&self, count: usize) -> Result<Vec<u8>> {
        let count = self.bytes.min(count as u64) as usize;
        let mut bytes = vec![0; count];
        self.read_exact_at(0, &mut bytes).at(|| "reading the beginning of the disk".to_owned())?;
        Ok(bytes)
    }

    /// Fills the buffer from this offset on.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.fuel.burn()?;
        let end = offset.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut cache = self.cache.borrow_mut();
        let mut done = 0;
        while done < buffer.len() {
            let at = self.start + offset + done as u64;
            let page = cache.page(at / PAGE_BYTES)?;
            let from = (at % PAGE_BYTES) as usize;
            let rest =
                page.get(from..).filter(|rest| !rest.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
            let count = rest.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
        Ok(())
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (buffer.len() as u64).min(self.bytes.saturating_sub(self.at)) as usize;
        self.read_exact_at(self.at, &mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

// A filesystem crate that can also write asks for this; the past cannot be written.
impl Write for Disk {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A read across pages, at the end or behind it: a wrong byte here is a wrong file in somebody's hands.
    #[test]
    fn any_read_gives_the_bytes_of_the_source() {
        let bytes: Vec<u8> = (0..3 * PAGE_BYTES as usize + 777).map(|i| (i * 31 % 251) as u8).collect();
        let disk = Disk::new(bytes.clone());
        let part = disk.part(4096, u64::MAX).unwrap();
        for (at, len) in [(0, 10), (65_530, 12), (1000, 190_000), (bytes.len() - 5, 5), (4096, 0)] {
            let mut read = vec![0; len];
            disk.read_exact_at(at as u64, &mut read).unwrap();
            assert_eq!(read, bytes[at..at + len]);
            if at >= 4096 {
                part.read_exact_at(at as u64 - 4096, &mut read).unwrap();
                assert_eq!(read, bytes[at..at + len]);
            }
        }
        assert!(disk.read_exact_at(bytes.len() as u64 - 4, &mut [0; 5]).is_err());
        assert!(part.read_exact_at(u64::MAX, &mut [0; 5]).is_err());
        assert!(disk.part(bytes.len() as u64, 1).is_err());
    }
}
