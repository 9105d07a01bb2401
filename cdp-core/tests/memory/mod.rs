//! Files in memory that count reads, for tests of what is read and of what damage does.
#![allow(dead_code)]

use cdp_core::io::{DirEntry, File, Files, GatheredRead, Lock, Space};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Memory {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
    reads: Arc<AtomicU64>,
}

#[derive(Default)]
pub struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    reads: Arc<AtomicU64>,
}

impl Memory {
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub fn content(&self, path: &Path) -> Vec<u8> {
        self.files.lock().unwrap()[path].bytes.lock().unwrap().clone()
    }

    pub fn put(&self, path: &Path, content: Vec<u8>) {
        let file = MemoryFile { bytes: Mutex::new(content), reads: self.reads.clone() };
        self.files.lock().unwrap().insert(path.to_owned(), Arc::new(file));
    }

    pub fn names(&self) -> Vec<PathBuf> {
        self.files.lock().unwrap().keys().cloned().collect()
    }
}

impl Files for Memory {
    fn open(&self, path: &Path, _writable: bool) -> Result<Arc<dyn File>> {
        match self.files.lock().unwrap().get(path) {
            Some(file) => Ok(file.clone()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        if self.files.lock().unwrap().contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.put(path, Vec::new());
        self.open(path, true)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.files.lock().unwrap().remove(path).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> Result<()> {
        Ok(())
    }

    fn create_dir(&self, _path: &Path) -> Result<()> {
        unimplemented!()
    }

    fn remove_dir_all(&self, _path: &Path) -> Result<()> {
        unimplemented!()
    }

    fn list(&self, _path: &Path) -> Result<Vec<DirEntry>> {
        unimplemented!()
    }

    fn space(&self, _path: &Path) -> Result<Space> {
        unimplemented!()
    }

    fn lock(&self, _path: &Path, _holder: &str) -> Result<Box<dyn Lock>> {
        unimplemented!()
    }

    fn read_gathered(&self, _reads: &mut [GatheredRead<'_>]) {
        unimplemented!()
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

impl File for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.lock().unwrap();
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = offset as usize;
        for buffer in buffers {
            let end = at + buffer.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(buffer);
            at = end;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn set_len(&self, _len: u64) -> Result<()> {
        unimplemented!()
    }

    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        unimplemented!()
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn next_data(&self, _offset: u64) -> Result<Option<u64>> {
        unimplemented!()
    }
}
