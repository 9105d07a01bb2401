//! Files that do not quite do what they are asked: bugs of the layer above, planted behind the seam.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex};

use cdp_core::io::sim::SimDisk;
use cdp_core::io::{DirEntry, File, FileStat, Files, GatheredRead, Lock, Space};

use crate::harness::wrap::Wrap;

/// What is bent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bend {
    /// Nothing: the control.
    Nothing,
    /// A batch is still in our memory when its write is answered.
    AcknowledgeBeforeWrite,
    /// A segment's sync is answered without being done.
    FlushWithoutSync,
    /// Writes of the durable mark are left out.
    NoDurableMark,
    /// Errors of writes and syncs are taken for success.
    IgnoreErrors,
    /// A batch is written after the one that follows it.
    SwapBatches,
    /// The sync of the volume's directory is left out.
    SkipDirectorySync,
}

impl Bend {
    pub fn wrap(self) -> Wrap {
        Arc::new(move |disk| Arc::new(BentFiles { disk: disk.clone(), bend: self }))
    }
}

struct BentFiles {
    disk: SimDisk,
    bend: Bend,
}

impl BentFiles {
    fn bent(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        let is_segment = path.extension().is_some_and(|extension| extension == "seg");
        let is_mark = path.ends_with("mark");
        Arc::new(BentFile { file, bend: self.bend, is_segment, is_mark, held: Mutex::new(None) })
    }
}

impl Files for BentFiles {
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        Ok(self.bent(path, self.disk.open(path, writable)?))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        // What is being made is left alone.
        self.disk.create(path)
    }
    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        self.disk.stat(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.bend == Bend::SkipDirectorySync && path.ends_with("v0") {
            return Ok(());
        }
        self.disk.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>> {
        self.disk.lock(path, holder)
    }
    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]) {
        for read in reads {
            read.result = read.file.read_at(read.offset, read.buffer);
        }
    }
    fn name(&self) -> &'static str {
        "bent"
    }
}

struct BentFile {
    file: Arc<dyn File>,
    bend: Bend,
    is_segment: bool,
    is_mark: bool,
    /// A write that was answered and not done.
    held: Mutex<Option<(u64, Vec<u8>)>>,
}

impl BentFile {
    fn settle(&self) -> io::Result<()> {
        match self.held.lock().expect("one thread").take() {
            Some((offset, data)) => self.file.write_at(offset, &[IoSlice::new(&data)]),
            None => Ok(()),
        }
    }

    fn ignored<T>(&self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(_) if self.bend == Bend::IgnoreErrors => Ok(instead),
            other => other,
        }
    }
}

impl File for BentFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.settle()?;
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        match self.bend {
            Bend::NoDurableMark if self.is_mark => Ok(()),
            Bend::AcknowledgeBeforeWrite | Bend::SwapBatches if self.is_segment => {
                let data: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
                let earlier = self.held.lock().expect("one thread").take();
                match earlier {
                    None => *self.held.lock().expect("one thread") = Some((offset, data)),
                    Some((at, bytes)) if self.bend == Bend::SwapBatches => {
                        self.file.write_at(offset, &[IoSlice::new(&data)])?;
                        self.file.write_at(at, &[IoSlice::new(&bytes)])?;
                    }
                    Some((at, bytes)) => {
                        self.file.write_at(at, &[IoSlice::new(&bytes)])?;
                        *self.held.lock().expect("one thread") = Some((offset, data));
                    }
                }
                Ok(())
            }
            _ => self.ignored(self.file.write_at(offset, buffers), ()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.bend == Bend::FlushWithoutSync && self.is_segment {
            return Ok(());
        }
        self.settle()?;
        self.ignored(self.file.sync(), ())
    }

    fn len(&self) -> io::Result<u64> {
        self.settle()?;
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.settle()?;
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.file.start_writeback(offset, len);
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.settle()?;
        self.file.next_data(offset)
    }
}
