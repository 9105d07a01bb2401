//! The file seam: everything the crate asks of a filesystem, of time and of chance.
//!
//! Between two syncs the order in which writes reach the disk is unknown: *a batch is a set, a sync is the
//! only order*. There are two real implementations behind the seam ([`posix`], and [`uring`] which adds
//! gathered reads) and one simulated disk ([`sim`]) that may do everything a real disk may do.

pub mod clock;
pub mod pooled;
pub mod posix;
pub mod sim;
pub mod uring;

pub use clock::SystemClock;
pub use pooled::FilePool;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Zeros are written in pieces of this size, in bytes.
const ZEROS_STEP_BYTES: usize = 64 << 10;

/// The files of this machine: with gathered reads through io_uring where that is wanted and allowed, else plain
/// ones. [`Files::name`] tells which; [`uring::Uring::probe`] tells why not.
pub fn native(prefer_uring: bool) -> Arc<dyn Files> {
    if prefer_uring && let Ok(uring) = uring::Uring::probe() {
        return Arc::new(uring);
    }
    Arc::new(posix::Posix)
}

/// Space of the filesystem that holds a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What we could still take.
    pub available: u64,
}

/// What stands in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The entry's own name.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What a filesystem says of a file without opening it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Its length in bytes.
    pub len: u64,
    /// The number of its inode; 0 where that is not known.
    pub inode: u64,
    /// When its content, length or name was changed last (ctime), in nanoseconds; 0 where that is not known. Nobody
    /// can set it, so a file that was replaced, restored from a copy or written to has another one.
    pub changed_ns: u64,
}

impl FileStat {
    /// Whether it tells this state of this file from all others.
    pub fn is_identity(&self) -> bool {
        self.inode != 0 && self.changed_ns != 0
    }
}

/// Held while a store is open; dropping it (or dying) lets go.
pub trait Lock: Send + Sync {}

/// Directories and files.
///
/// Names made by `create`, `rename`, `remove`, `create_dir` survive power loss only after [`Files::sync_dir`]
/// of the directory that holds them. `rename` replaces its target atomically.
pub trait Files: Send + Sync + 'static {
    /// Opens an existing file for reading and, if `writable`, for writing.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>>;
    /// Makes a new, empty, writable file; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// What the filesystem says of a file. Where the implementation cannot tell it is no identity.
    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        Ok(FileStat { len: self.open(path, false)?.len()?, ..FileStat::default() })
    }
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or directory a new name, replacing a file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a directory; its parent must exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all it holds. Not atomic.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// What stands in a directory, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes the names in a directory survive power loss.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Space of the filesystem that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Takes the lock file at `path` (made if missing) for this process and writes `holder` into it.
    /// If another process has it: `WouldBlock`, with the other's holder text as the error's message.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>>;
    /// Carries out many reads at once, each with its own result.
    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]);
    /// Whether one read may be shared out to many threads.
    fn is_for_many_threads(&self) -> bool {
        false
    }
    /// Whether nothing of it is on any disk: there small segments make short histories long.
    fn is_simulated(&self) -> bool {
        false
    }
    /// The word for this implementation in `status`: `posix`, `io_uring`, `sim`.
    fn name(&self) -> &'static str;
}

/// One of many reads handed to [`Files::read_gathered`].
pub struct GatheredRead<'a> {
    /// Where to read.
    pub file: Arc<dyn File>,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Filled whole, or the result is an error.
    pub buffer: &'a mut [u8],
    /// `Ok` when the buffer was filled. Callers set `Ok(())` beforehand.
    pub result: io::Result<()>,
}

/// An open file. Offsets and lengths are in bytes.
#[expect(clippy::len_without_is_empty, reason = "nobody asks a file whether it is empty")]
pub trait File: Send + Sync {
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes the buffers one behind the other from `offset`. When this returns, the bytes survive process
    /// death. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()>;
    /// As [`File::write_at`], for bulk: the disk begins with it at once, and it need not stay in the page cache.
    fn write_bulk_at(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.write_at(offset, buffers)
    }
    /// Makes all earlier writes and the file's length survive power loss. After an error nothing is known of
    /// what was not synced before, and a later `Ok` proves nothing about it.
    fn sync(&self) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends (with a hole) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space so that writes there cannot run out of it; reads give zeros; extends the file.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeros, and gives its space back where the filesystem can. Never makes the file longer.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        write_zeros(self, offset, len)
    }
    /// Asks the system to start writing this range out; only a hint.
    fn start_writeback(&self, offset: u64, len: u64);
    /// The first offset ≥ `offset` that may hold something other than a hole; `None` if there is none.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// The file behind this one, held open, where the two are not the same: for many reads at once.
    fn held(&self) -> io::Result<Option<Arc<dyn File>>> {
        Ok(None)
    }
    /// The descriptor, where there is one.
    fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

/// Time, and the chance that random names are drawn from.
pub trait Clock: Send + Sync + 'static {
    /// Wall time in nanoseconds since 1970 UTC. May step, in both directions.
    fn wall_ns(&self) -> u64;
    /// Nanoseconds that went by since an arbitrary start, suspended time included (CLOCK_BOOTTIME). Never steps.
    fn elapsed_ns(&self) -> u64;
    /// Random bits for names.
    fn random(&self) -> u128;
    /// Lets so many nanoseconds go by.
    fn wait(&self, ns: u64);
}

/// Overwrites a range with zeros, as far as the file goes.
pub(crate) fn write_zeros<F: File + ?Sized>(file: &F, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0; ZEROS_STEP_BYTES];
    let end = file.len()?.min(offset.saturating_add(len));
    let mut at = offset;
    while at < end {
        let step = (end - at).min(zeros.len() as u64);
        file.write_at(at, &[io::IoSlice::new(&zeros[..step as usize])])?;
        at += step;
    }
    Ok(())
}

/// Writes a small file so that after a crash either the old or the new content is there: a temporary name
/// beside it, sync, rename, sync of the directory.
pub fn replace_file(files: &dyn Files, path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = write_beside(files, path, content)?;
    put_in_place(files, &fresh, path)
}

/// The first half of [`replace_file`]: the content under a temporary name. Where it fails, the old content is there.
pub fn write_beside(files: &dyn Files, path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh: PathBuf = directory.join(name);
    match files.remove(&fresh) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = files.create(&fresh)?;
    file.write_at(0, &[io::IoSlice::new(content)])?;
    file.sync()?;
    Ok(fresh)
}

/// The second half. Where it fails, the new content may be there or come to be.
pub fn put_in_place(files: &dyn Files, fresh: &Path, path: &Path) -> io::Result<()> {
    files.rename(fresh, path)?;
    files.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Reads a whole small file; one longer than `bytes_max` is `InvalidData`.
pub fn read_file(files: &dyn Files, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = files.open(path, false)?;
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is {len} bytes long, at most {bytes_max} expected", path.display()),
        ));
    }
    let mut content = vec![0; len as usize];
    file.read_at(0, &mut content)?;
    Ok(content)
}
