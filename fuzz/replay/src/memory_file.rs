//! A file in memory, without faults of its own: the input makes them.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cdp_core::io::File;

pub(crate) struct MemoryFile(Mutex<Vec<u8>>);

impl MemoryFile {
    pub(crate) fn new(len: usize) -> MemoryFile {
        MemoryFile(Mutex::new(vec![0; len]))
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes();
        let part = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = self.bytes();
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

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().resize(len as usize, 0);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len) as usize;
        let mut bytes = self.bytes();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.bytes().len() as u64).then_some(offset))
    }
}
