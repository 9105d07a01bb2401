//! A small device in memory, so simple that it is right.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdp_core::device::{Change, Content, Device, Read, Stretch};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{Lsn, SessionId};
use cdp_nbd::contexts::{Bitmap, Bitmaps};

const BLOCK_BYTES: usize = 4096;

/// Bytes, and whether they may be changed.
pub(crate) struct Ram {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
}

impl Ram {
    pub(crate) fn new(size: usize, read_only: bool) -> Ram {
        Ram { bytes: Mutex::new(vec![0; size]), read_only }
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a change does, or `None` when it lies outside.
pub(crate) fn apply(bytes: &mut [u8], change: &Change<'_>) -> Option<()> {
    match *change {
        Change::Write { offset, data } => {
            let range = range(bytes.len(), offset, data.len() as u64)?;
            bytes[range].copy_from_slice(data);
        }
        Change::Zero { offset, len, .. } | Change::Trim { offset, len } => {
            let range = range(bytes.len(), offset, len)?;
            bytes[range].fill(0);
        }
    }
    Some(())
}

fn range(size: usize, offset: u64, len: u64) -> Option<Range<usize>> {
    let end = offset.checked_add(len).filter(|&end| end <= size as u64)?;
    Some(offset as usize..end as usize)
}

fn outside() -> Error {
    Error::new(Kind::OutOfRange, "behind the end of the device")
}

impl Device for Ram {
    fn size_bytes(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn apply(&self, _session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        let mut bytes = self.bytes();
        for change in changes {
            assert!(!self.read_only, "a change of a read-only device gets through");
            results.push(apply(&mut bytes, change).map(|()| Lsn(1)).ok_or_else(outside));
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        let bytes = self.bytes();
        for read in reads {
            match range(bytes.len(), read.offset, read.buffer.len() as u64) {
                Some(range) => read.buffer.copy_from_slice(&bytes[range]),
                None => read.result = Err(outside()),
            }
        }
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        let bytes = self.bytes();
        let range = range(bytes.len(), offset, len).ok_or_else(outside)?;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let empty = bytes[at..end].iter().all(|&byte| byte == 0);
            let content = if empty { Content::Hole } else { Content::Data };
            let full = stretches.len() == stretches_max;
            match stretches.last_mut() {
                Some(last) if last.content == content => last.len += (end - at) as u64,
                _ if full => break,
                _ => stretches.push(Stretch { len: (end - at) as u64, content }),
            }
            at = end;
        }
        Ok(stretches)
    }
}

/// Dirty bitmaps, and one of them, that say that everything changed.
pub(crate) struct AllDirty;

impl Bitmaps for AllDirty {
    fn open(&self, _key: &str) -> Result<Arc<dyn Bitmap>> {
        Ok(Arc::new(AllDirty))
    }
}

impl Bitmap for AllDirty {
    fn stretches(&self, _offset: u64, len: u64, _stretches_max: usize) -> Result<Vec<(u64, bool)>> {
        Ok(vec![(len, true)])
    }
}
