//! Long histories made quickly, for benches and tests: a real volume with real segments, seals and runs, in which the
//! payload of every write is zeros that stand in the files as holes, with true checksums.
//!
//! What is written is drawn from a seed, so that a test can draw it again and know what every state is.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::format::marker::{MarkerClass, MarkerPayload};
use crate::ids::*;
use crate::io::{Clock, DirEntry, File, FileStat, Files, GatheredRead, Lock, Space};
use crate::store::{CreateOptions, OpenOptions, Store};
use crate::volume::Volume;
use crate::volume::parts::Part;

/// Blocks of the largest generated write.
pub const WRITE_BLOCKS_MAX: u64 = 16;
/// The payload of all generated writes. Files tell it by its address.
pub(crate) static ZERO_PAYLOAD: [u8; (WRITE_BLOCKS_MAX * BLOCK_BYTES) as usize] =
    [0; (WRITE_BLOCKS_MAX * BLOCK_BYTES) as usize];
/// Changes handed to the volume at once.
const ROUND: u64 = 250;
/// The hot part of a volume is this fraction of it, and takes most random writes.
const HOT_FRACTION: u64 = 16;
/// Blocks of the longest generated trim: 1 GiB.
const TRIM_BLOCKS_MAX: u64 = 1 << 18;

/// One generated change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generated {
    /// A write of at most [`WRITE_BLOCKS_MAX`] blocks.
    Write(Extent),
    /// A trim.
    Trim(Extent),
}

/// What a client might do to a disk, drawn from a seed: random writes to a hot part and to all of it, streams,
/// trims.
#[derive(Clone, Debug)]
pub struct Workload {
    state: u64,
    blocks: u64,
    stream: Extent,
}

impl Workload {
    /// Of a volume of so many blocks, at least [`WRITE_BLOCKS_MAX`].
    pub fn new(seed: u64, blocks: u64) -> Workload {
        Workload { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, blocks, stream: Extent::new(0, 0) }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn within(&mut self, blocks: u64, len: u64) -> Extent {
        let len = len.min(blocks);
        let start = self.random() % (blocks - len + 1);
        Extent::new(start, start + len)
    }
}

impl Iterator for Workload {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        if self.stream.blocks > 0 {
            let start = self.stream.start.0;
            self.stream = Extent::new(start + 1, self.stream.end());
            return Some(Generated::Write(Extent::new(start, start + 1)));
        }
        Some(match self.random() % 1000 {
            // Streams are 32 blocks on average, so about a third of all writes.
            0..15 => {
                let blocks = 1 + self.random() % 64;
                self.stream = self.within(self.blocks, blocks);
                return self.next();
            }
            15..20 => {
                let blocks = 1 + self.random() % TRIM_BLOCKS_MAX.min(self.blocks / 4);
                Generated::Trim(self.within(self.blocks, blocks))
            }
            20..30 => Generated::Write(self.within(self.blocks, WRITE_BLOCKS_MAX)),
            30..700 => Generated::Write(self.within((self.blocks / HOT_FRACTION).max(1), 1)),
            _ => Generated::Write(self.within(self.blocks, 1)),
        })
    }
}

/// Which history is to be made.
#[derive(Clone, Copy, Debug)]
pub struct HistoryOptions {
    /// How many changes.
    pub changes: u64,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Size of its segments in bytes.
    pub segment_bytes: u64,
    /// For [`Workload`].
    pub seed: u64,
    /// How long it took, in nanoseconds; it ends about now.
    pub duration_ns: u64,
    /// After so many changes a marker with a name is set; 0 = never.
    pub marker_every: u64,
}

/// Makes a store at `path` with one volume, `disk`, and its history; a clean stop ends it. `watch` is told how many
/// changes are done. The files must be real ones: nothing is synced.
pub fn history(
    files: Arc<dyn Files>,
    path: &Path,
    options: &HistoryOptions,
    watch: &mut dyn FnMut(u64),
) -> Result<()> {
    let files: Arc<dyn Files> = Arc::new(SparseFiles { inner: files });
    let clock = Arc::new(HistoryClock::ending_now(options.duration_ns));
    Store::create(&*files, &*clock, path)?;
    let store = Store::open_with(files, clock.clone(), path, &OpenOptions::default())?;
    let create =
        CreateOptions { segment_bytes: options.segment_bytes, ..CreateOptions::new(options.size_bytes) };
    let volume = store.create_volume("disk", &create, None)?;
    let mut workload = Workload::new(options.seed, options.size_bytes / BLOCK_BYTES);
    let mut done = 0;
    let mut round = Vec::with_capacity(ROUND as usize);
    while done < options.changes {
        let until = match options.marker_every {
            0 => options.changes,
            every => (done / every + 1) * every,
        };
        let count = ROUND.min(options.changes - done).min(until - done);
        round.clear();
        round.extend(workload.by_ref().take(count as usize));
        volume.apply_generated(&round)?;
        done += count;
        clock.set(options.duration_ns / options.changes.max(1) * done);
        if options.marker_every > 0 && done.is_multiple_of(options.marker_every) {
            volume.mark(&marker(done / options.marker_every))?;
        }
        if (done / ROUND).is_multiple_of(128) {
            volume.maintain()?;
            watch(done);
        }
    }
    settle(&volume)?;
    watch(done);
    store.close()
}

/// Until all full segments have their runs.
fn settle(volume: &Volume) -> Result<()> {
    let is_waiting = |part: &Arc<Part>| part.frozen.get().is_some_and(|frozen| frozen.seal_hash.is_none());
    while volume.part_list().iter().any(is_waiting) {
        volume.maintain()?;
    }
    Ok(())
}

fn marker(number: u64) -> MarkerPayload {
    MarkerPayload {
        class: MarkerClass::Manual,
        name: format!("mark-{number:06}"),
        note: String::new(),
        tags: Vec::new(),
        group: 0,
        hook_output: String::new(),
    }
}

/// A clock that is set.
struct HistoryClock {
    begin_ns: u64,
    elapsed_ns: AtomicU64,
    random: AtomicU64,
}

impl HistoryClock {
    fn ending_now(duration_ns: u64) -> HistoryClock {
        let now = crate::io::SystemClock;
        HistoryClock {
            begin_ns: now.wall_ns().saturating_sub(duration_ns),
            elapsed_ns: AtomicU64::new(1),
            random: AtomicU64::new(now.random() as u64),
        }
    }

    fn set(&self, elapsed_ns: u64) {
        self.elapsed_ns.fetch_max(elapsed_ns, Ordering::Relaxed);
    }
}

impl Clock for HistoryClock {
    fn wait(&self, _ns: u64) {}

    fn wall_ns(&self) -> u64 {
        self.begin_ns + self.elapsed_ns()
    }

    fn elapsed_ns(&self) -> u64 {
        self.elapsed_ns.load(Ordering::Relaxed)
    }

    fn random(&self) -> u128 {
        let number = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let spread = number.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        u128::from(spread ^ spread >> 31) << 64 | u128::from(number ^ spread >> 29)
    }
}

/// Files in which the zeros of generated payloads, and space that is only reserved, are holes.
struct SparseFiles {
    inner: Arc<dyn Files>,
}

struct SparseFile {
    inner: Arc<dyn File>,
}

fn is_payload(buffer: &[u8]) -> bool {
    ZERO_PAYLOAD.as_ptr_range().contains(&buffer.as_ptr())
}

impl Files for SparseFiles {
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        self.inner.open(path, writable).map(|inner| Arc::new(SparseFile { inner }) as Arc<dyn File>)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.inner.create(path).map(|inner| Arc::new(SparseFile { inner }) as Arc<dyn File>)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        self.inner.stat(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(path)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        // Holes are not counted: a history may be longer than the disk.
        self.inner.space(path).map(|space| Space { total: space.total, available: u64::MAX / 4 })
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(path, holder)
    }

    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]) {
        for read in reads {
            read.result = read.file.read_at(read.offset, read.buffer);
        }
    }

    fn name(&self) -> &'static str {
        "sparse"
    }
}

impl File for SparseFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = buffers;
        while let [first, ..] = rest {
            let payload = is_payload(first);
            let same = rest.iter().take_while(|buffer| is_payload(buffer) == payload).count();
            let (now, behind) = rest.split_at(same);
            if !payload {
                self.inner.write_at(at, now)?;
            }
            at += now.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
            rest = behind;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).max(self.inner.len()?);
        self.inner.set_len(end)
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }
}
