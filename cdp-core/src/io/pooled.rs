//! Many files behind few descriptors: those that were used last stay open, the others are opened again when they are
//! needed.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{File, Files};

/// Keeps at most so many of its files open, apart from those that somebody holds at the moment.
pub struct FilePool {
    files: Arc<dyn Files>,
    open: Mutex<Open>,
    open_max: usize,
    numbers: AtomicU64,
}

#[derive(Default)]
struct Open {
    slots: Vec<Slot>,
    by_number: HashMap<u64, usize>,
    /// The slot to look at next when one has to go.
    hand: usize,
}

struct Slot {
    number: u64,
    used: bool,
    file: Arc<dyn File>,
}

impl FilePool {
    /// At least one file is kept open.
    pub fn new(files: Arc<dyn Files>, open_max: usize) -> Arc<FilePool> {
        let open_max = open_max.max(1);
        Arc::new(FilePool { files, open: Mutex::default(), open_max, numbers: AtomicU64::new(0) })
    }

    /// The file at this path, which is opened writable when it is first used, and again whenever it has to be. For
    /// files that are only read, or whose writes are synced before the next call: a file that is closed between a
    /// write and its sync may forget that the write failed.
    pub fn file(self: &Arc<FilePool>, path: &Path) -> Arc<dyn File> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        Arc::new(PooledFile { pool: self.clone(), path: path.to_owned(), number })
    }

    /// How many are open now.
    pub fn open_count(&self) -> usize {
        self.lock().slots.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        // Nothing under this lock panics halfway through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, number: u64, path: &Path) -> io::Result<Arc<dyn File>> {
        {
            let mut open = self.lock();
            if let Some(&at) = open.by_number.get(&number) {
                let slot = &mut open.slots[at];
                slot.used = true;
                return Ok(slot.file.clone());
            }
        }
        let file = self.files.open(path, true)?;
        let mut open = self.lock();
        // Somebody else may have been as quick; then there are two for a while.
        open.put(Slot { number, used: true, file: file.clone() }, self.open_max);
        Ok(file)
    }

    fn forget(&self, number: u64) {
        let mut open = self.lock();
        let Some(at) = open.by_number.remove(&number) else { return };
        open.slots.swap_remove(at);
        if let Some(moved) = open.slots.get(at).map(|slot| slot.number) {
            open.by_number.insert(moved, at);
        }
        open.hand = 0;
    }
}

impl Open {
    fn put(&mut self, fresh: Slot, open_max: usize) {
        if let Some(&at) = self.by_number.get(&fresh.number) {
            self.slots[at] = fresh;
            return;
        }
        if self.slots.len() < open_max {
            self.by_number.insert(fresh.number, self.slots.len());
            self.slots.push(fresh);
            return;
        }
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            if !std::mem::take(&mut slot.used) {
                self.by_number.remove(&slot.number);
                self.by_number.insert(fresh.number, at);
                *slot = fresh;
                return;
            }
        }
    }
}

struct PooledFile {
    pool: Arc<FilePool>,
    path: PathBuf,
    number: u64,
}

impl PooledFile {
    fn get(&self) -> io::Result<Arc<dyn File>> {
        self.pool.get(self.number, &self.path)
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        self.pool.forget(self.number);
    }
}

impl File for PooledFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.get()?.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.get()?.write_at(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        self.get()?.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.get()?.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.get()?.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.get()?.allocate(offset, len)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        if let Ok(file) = self.get() {
            file.start_writeback(offset, len);
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.get()?.next_data(offset)
    }

    fn held(&self) -> io::Result<Option<Arc<dyn File>>> {
        self.get().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::SimDisk;

    // A history of thousands of segments must not run out of descriptors, nor read one file for another.
    #[test]
    fn few_are_open_and_each_reads_its_own() {
        let disk = SimDisk::new(1);
        let path = |number: usize| PathBuf::from(format!("/{number}"));
        for number in 0..50 {
            let file = disk.create(&path(number)).unwrap();
            file.write_at(0, &[IoSlice::new(&[number as u8; 16])]).unwrap();
        }
        let pool = FilePool::new(Arc::new(disk), 7);
        let mut files: Vec<_> = (0..50).map(|number| pool.file(&path(number))).collect();
        for step in 0..2000usize {
            let number = step * step % 50;
            let mut buffer = [0; 16];
            files[number].read_at(0, &mut buffer).unwrap();
            assert_eq!(buffer, [number as u8; 16]);
            assert!(pool.open_count() <= 7, "{} open", pool.open_count());
            if step % 100 == 0 {
                files[number] = pool.file(&path(number));
            }
        }
        assert_eq!(pool.open_count(), 7);
        drop(files);
        assert_eq!(pool.open_count(), 0);
    }
}
