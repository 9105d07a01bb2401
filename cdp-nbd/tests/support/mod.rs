//! A disk in memory, its exports, and a client that speaks raw bytes.

#![allow(dead_code, missing_docs)]

pub mod client;
pub mod stand;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use cdp_core::device::{Change, Content, Device, Read, Stretch};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{BLOCK_BYTES, Lsn, SessionId};
use cdp_nbd::{Bitmap, BitmapInfo, Bitmaps, ExportInfo, ExportSummary, Exports, OpenExport, Peer};

/// `None` is a zero that is kept allocated.
type Block = Option<Box<[u8]>>;

/// A sparse disk in memory, with faults on order.
#[derive(Default)]
pub struct MemoryDevice {
    size: u64,
    read_only: bool,
    blocks: RwLock<BTreeMap<u64, Block>>,
    lsn: AtomicU64,
    pub applies: AtomicUsize,
    pub flushes: AtomicUsize,
    pub full: AtomicBool,
    pub flush_fails: AtomicBool,
    pub flush_takes: Mutex<Duration>,
    pub bad: Mutex<Vec<Range<u64>>>,
}

impl MemoryDevice {
    pub fn new(size: u64) -> MemoryDevice {
        MemoryDevice { size, ..MemoryDevice::default() }
    }

    pub fn read_only(size: u64) -> MemoryDevice {
        MemoryDevice { size, read_only: true, ..MemoryDevice::default() }
    }

    /// Puts bytes there, past every check.
    pub fn fill(&self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }

    pub fn contents(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        self.copy_out(offset, &mut buffer);
        buffer
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) {
        let mut blocks = self.blocks.write().unwrap();
        while !data.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let n = data.len().min(BLOCK_BYTES as usize - within);
            let block = blocks.entry(offset / BLOCK_BYTES).or_default();
            let block = block.get_or_insert_with(|| vec![0; BLOCK_BYTES as usize].into());
            block[within..within + n].copy_from_slice(&data[..n]);
            data = &data[n..];
            offset += n as u64;
        }
    }

    fn clear(&self, offset: u64, len: u64, hole: bool) {
        let end = offset + len;
        let whole = offset.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES;
        for part in [offset..end.min(whole.start * BLOCK_BYTES), offset.max(whole.end * BLOCK_BYTES)..end] {
            if part.start < part.end && self.is_data(part.start) {
                self.write(part.start, &vec![0; (part.end - part.start) as usize]);
            }
        }
        let mut blocks = self.blocks.write().unwrap();
        if whole.start >= whole.end {
            return;
        }
        let mut tail = blocks.split_off(&whole.start);
        blocks.append(&mut tail.split_off(&whole.end));
        if !hole {
            for block in whole {
                if let Entry::Vacant(vacant) = blocks.entry(block) {
                    vacant.insert(None);
                }
            }
        }
    }

    fn is_data(&self, offset: u64) -> bool {
        matches!(self.blocks.read().unwrap().get(&(offset / BLOCK_BYTES)), Some(Some(_)))
    }

    fn copy_out(&self, mut offset: u64, mut buffer: &mut [u8]) {
        let blocks = self.blocks.read().unwrap();
        while !buffer.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let n = buffer.len().min(BLOCK_BYTES as usize - within);
            let (head, tail) = buffer.split_at_mut(n);
            match blocks.get(&(offset / BLOCK_BYTES)) {
                Some(Some(block)) => head.copy_from_slice(&block[within..within + n]),
                _ => head.fill(0),
            }
            buffer = tail;
            offset += n as u64;
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len).is_some_and(|end| end <= self.size) {
            true => Ok(()),
            false => Err(Error::new(Kind::OutOfRange, "past the end")),
        }
    }

    fn change(&self, change: &Change<'_>) -> Result<Lsn> {
        if self.read_only {
            return Err(Error::new(Kind::ReadOnly, "read-only"));
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::NoSpace, "the journal is full"));
        }
        match *change {
            Change::Write { offset, data } => {
                self.check(offset, data.len() as u64)?;
                self.write(offset, data);
            }
            Change::Zero { offset, len, hole } => {
                self.check(offset, len)?;
                self.clear(offset, len, hole);
            }
            Change::Trim { offset, len } => {
                self.check(offset, len)?;
                self.clear(offset, len, true);
            }
        }
        Ok(Lsn(self.lsn.fetch_add(1, Ordering::SeqCst) + 1))
    }
}

impl Device for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn apply(&self, _: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        self.applies.fetch_add(1, Ordering::SeqCst);
        results.extend(changes.iter().map(|change| self.change(change)));
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let takes = *self.flush_takes.lock().unwrap();
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        match self.flush_fails.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Io, "the sync failed")),
            false => Ok(()),
        }
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        let bad = self.bad.lock().unwrap().clone();
        for read in reads {
            let end = read.offset + read.buffer.len() as u64;
            if bad.iter().any(|range| range.start < end && read.offset < range.end) {
                read.result = Err(Error::new(Kind::Io, "a bad sector"));
                continue;
            }
            read.result = self.check(read.offset, read.buffer.len() as u64);
            if read.result.is_ok() {
                self.copy_out(read.offset, read.buffer);
            }
        }
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        self.check(offset, len)?;
        let end = offset + len;
        let blocks = self.blocks.read().unwrap();
        let mut found: Vec<Stretch> = Vec::new();
        let mut push = |len: u64, content| {
            let full = found.len() == stretches_max;
            match found.last_mut() {
                _ if len == 0 => true,
                Some(last) if last.content == content => {
                    last.len += len;
                    true
                }
                _ if full => false,
                _ => {
                    found.push(Stretch { len, content });
                    true
                }
            }
        };
        let mut at = offset;
        for (number, block) in blocks.range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)) {
            let start = (number * BLOCK_BYTES).max(offset);
            let stop = ((number + 1) * BLOCK_BYTES).min(end);
            let content = if block.is_some() { Content::Data } else { Content::Zero };
            if !push(start - at, Content::Hole) || !push(stop - start, content) {
                return Ok(found);
            }
            at = stop;
        }
        push(end - at, Content::Hole);
        Ok(found)
    }
}

/// Exports by name; the first is the default one too.
pub struct MemoryExports {
    pub devices: Vec<(String, Arc<MemoryDevice>)>,
    pub opened: Arc<AtomicUsize>,
    pub open: Arc<AtomicUsize>,
    pub looked_for: Arc<AtomicUsize>,
}

struct Closed(Arc<AtomicUsize>);

/// Bitmaps in which every second stretch of so many bytes is dirty; the first is.
struct Stripes;

struct Stripe(u64);

impl Bitmaps for Stripes {
    fn open(&self, key: &str) -> Result<Arc<dyn Bitmap>> {
        let bytes = key.strip_prefix("every ").and_then(|bytes| bytes.parse().ok());
        let bytes = bytes.ok_or_else(|| Error::new(Kind::NotFound, format!("no key {key}")))?;
        Ok(Arc::new(Stripe(bytes)))
    }
}

impl Bitmap for Stripe {
    fn stretches(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<(u64, bool)>> {
        let (mut at, end) = (offset, offset + len);
        let mut found = Vec::new();
        while at < end && found.len() < stretches_max {
            let until = end.min((at / self.0 + 1) * self.0);
            found.push((until - at, (at / self.0).is_multiple_of(2)));
            at = until;
        }
        Ok(found)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MemoryExports {
    pub fn new(devices: Vec<(&str, Arc<MemoryDevice>)>) -> MemoryExports {
        let devices = devices.into_iter().map(|(name, device)| (name.to_owned(), device)).collect();
        MemoryExports { devices, opened: Arc::default(), open: Arc::default(), looked_for: Arc::default() }
    }

    fn find(&self, name: &str) -> Result<&(String, Arc<MemoryDevice>)> {
        match name {
            "" => self.devices.first(),
            _ => self.devices.iter().find(|(known, _)| known == name),
        }
        .ok_or_else(|| Error::new(Kind::NotFound, format!("no export named {name}")))
    }
}

impl Exports for MemoryExports {
    fn list(&self) -> Vec<ExportSummary> {
        self.devices
            .iter()
            .map(|(name, _)| ExportSummary { name: name.clone(), description: "in memory".to_owned() })
            .collect()
    }

    fn info(&self, name: &str, _: &Peer) -> Result<ExportInfo> {
        let (name, device) = self.find(name)?;
        Ok(ExportInfo {
            size_bytes: device.size,
            read_only: device.read_only,
            multi_conn: true,
            canonical_name: name.clone(),
            description: "in memory".to_owned(),
        })
    }

    fn open(&self, name: &str, _: &Peer) -> Result<OpenExport> {
        let (name, device) = self.find(name)?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(OpenExport {
            device: Arc::clone(device) as Arc<dyn Device>,
            session: SessionId(1),
            canonical_name: name.clone(),
            description: "in memory".to_owned(),
            multi_conn: true,
            bitmaps: device.read_only.then(|| Arc::new(Stripes) as Arc<dyn Bitmaps>),
            on_close: Some(Box::new(Closed(Arc::clone(&self.open)))),
        })
    }

    /// A bitmap is called by a number of bytes; what cannot be a number cannot be one.
    fn bitmap(&self, export: &str, name: &str, _: &Peer) -> Result<Option<BitmapInfo>> {
        self.looked_for.fetch_add(1, Ordering::SeqCst);
        let (_, device) = self.find(export)?;
        if !device.read_only {
            return Ok(None);
        }
        let bytes: u64 =
            name.parse().map_err(|_| Error::new(Kind::Invalid, format!("{name:?} is no number")))?;
        match bytes {
            0 => Err(Error::new(Kind::NotFound, "there is no bitmap 0").hint("there is 4096")),
            _ => Ok(Some(BitmapInfo { name: name.to_owned(), key: format!("every {bytes}") })),
        }
    }

    fn bitmaps(&self, export: &str, _: &Peer) -> Result<Vec<String>> {
        let (_, device) = self.find(export)?;
        Ok(if device.read_only { vec!["4096".to_owned(), "8192".to_owned()] } else { Vec::new() })
    }
}
