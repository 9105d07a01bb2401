//! The plain real implementation of the seam: system calls, one at a time, through `std` and `rustix`.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::{DirEntry, File, FileStat, Files, GatheredRead, Lock, Space, write_zeros};

/// A store belongs to who made it: its files hold other people's disks.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// The most buffers one `pwritev` takes (IOV_MAX).
const BUFFERS_PER_CALL_MAX: usize = 1024;
/// The most of a lock file that is read to name its holder, in bytes.
const HOLDER_BYTES_MAX: usize = 4096;
/// `RWF_DONTCACHE` (Linux 6.14, `include/uapi/linux/fs.h`): through the page cache, but written out at once and
/// dropped from it then. A long stream so goes through the same few pages instead of ever new ones.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Piece in which zeros are written where the filesystem cannot allocate, in bytes.
const ZEROS_BYTES: usize = 64 << 10;

/// Files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Posix;

/// An open file of the operating system.
#[derive(Debug)]
struct PosixFile {
    inner: fs::File,
    write_out: WriteOut,
}

/// Starts writing a range of a file out. The system call for it has no safe wrapper, so it is handed in by
/// whoever has one.
pub(super) type WriteOut = fn(&fs::File, u64, u64);

/// POSIX_FADV_DONTNEED would start it too, but also waits for every processor and ages the pages: no hint is better.
fn no_write_out(_file: &fs::File, _offset: u64, _len: u64) {}

/// Holds the lock of a lock file.
#[derive(Debug)]
struct PosixLock {
    file: fs::File,
}

impl Lock for PosixLock {}

impl Drop for PosixLock {
    fn drop(&mut self) {
        // Closing alone would keep the lock while a child that is just being started has a copy of the descriptor.
        let _ = retry(|| rustix::fs::flock(&self.file, FlockOperation::Unlock));
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Opens an existing file.
pub(super) fn open(path: &Path, writable: bool, write_out: WriteOut) -> io::Result<Arc<dyn File>> {
    let inner = fs::OpenOptions::new().read(true).write(writable).open(path)?;
    if inner.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok(Arc::new(PosixFile { inner, write_out }))
}

/// Makes a new file.
pub(super) fn create(path: &Path, write_out: WriteOut) -> io::Result<Arc<dyn File>> {
    let inner = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
    Ok(Arc::new(PosixFile { inner, write_out }))
}

impl Files for Posix {
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        open(path, writable, no_write_out)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        create(path, no_write_out)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let data = fs::metadata(path)?;
        let seconds = u64::try_from(data.ctime()).unwrap_or(0);
        let changed_ns =
            seconds.saturating_mul(1_000_000_000).saturating_add(data.ctime_nsec().unsigned_abs());
        Ok(FileStat { len: data.len(), inode: data.ino(), changed_ns })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir: entry.file_type()?.is_dir(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let directory = fs::File::open(path)?;
        if !directory.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        directory.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = retry(|| rustix::fs::statvfs(path))?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)?;
        match retry(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, holder_of(&file)));
            }
            Err(error) => return Err(error),
        }
        file.set_len(0)?;
        file.write_all_at(holder.as_bytes(), 0)?;
        Ok(Box::new(PosixLock { file }))
    }

    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]) {
        read_one_by_one(reads);
    }

    fn is_for_many_threads(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "posix"
    }
}

/// Carries out reads in their order, each with a call of its own.
pub(super) fn read_one_by_one(reads: &mut [GatheredRead<'_>]) {
    for read in reads {
        read.result = read.file.read_at(read.offset, read.buffer);
    }
}

/// What the lock file says about its holder. Only a help for people: it may just be changing hands.
fn holder_of(file: &fs::File) -> String {
    let mut text = vec![0; HOLDER_BYTES_MAX];
    let read = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..read]).into_owned()
}

impl File for PosixFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if let [single] = buffers {
            return self.inner.write_all_at(single, offset);
        }
        self.write_all(offset, buffers, ReadWriteFlags::empty())
    }

    fn write_bulk_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        match self.write_all(offset, buffers, DONTCACHE) {
            // An older kernel, or a filesystem that cannot. The same bytes go to the same place.
            Err(error) if is(&error, &[Errno::OPNOTSUPP, Errno::INVAL]) => self.write_at(offset, buffers),
            other => other,
        }
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync: leaves out timestamps, never a length that a read needs.
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match retry(|| rustix::fs::fallocate(&self.inner, FallocateFlags::empty(), offset, len)) {
            Err(error) if is(&error, &[Errno::OPNOTSUPP, Errno::NOSYS]) => self.fill_holes(offset, len),
            other => other,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry(|| rustix::fs::fallocate(&self.inner, flags, offset, len)) {
            Err(error) if is(&error, &[Errno::OPNOTSUPP, Errno::NOSYS]) => write_zeros(self, offset, len),
            other => other,
        }
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        (self.write_out)(&self.inner, offset, len);
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match retry(|| rustix::fs::seek(&self.inner, SeekFrom::Data(offset))) {
            Ok(found) => Ok(Some(found)),
            Err(error) if is(&error, &[Errno::NXIO]) => Ok(None),
            Err(error) if is(&error, &[Errno::OPNOTSUPP, Errno::INVAL]) => {
                Ok((offset < self.len()?).then_some(offset))
            }
            Err(error) => Err(error),
        }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.inner.as_raw_fd())
    }
}

impl PosixFile {
    /// Writes all buffers, in as many calls as it takes.
    fn write_all(&self, offset: u64, buffers: &[IoSlice<'_>], flags: ReadWriteFlags) -> io::Result<()> {
        let mut rest = buffers.to_vec();
        let mut rest = rest.as_mut_slice();
        let mut position = offset;
        // Dropping what is empty at the front keeps "nothing was written" apart from "nothing was asked".
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let now = &rest[..rest.len().min(BUFFERS_PER_CALL_MAX)];
            let written = retry(|| rustix::io::pwritev2(&self.inner, now, position, flags))?;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero));
            }
            position += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    /// Stands in for `fallocate`: writes zeros over whatever reads as zeros already, so that no byte changes.
    /// The file must not be written to meanwhile.
    fn fill_holes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = [0u8; ZEROS_BYTES];
        let mut found = [0u8; ZEROS_BYTES];
        let end = offset
            .checked_add(len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "allocation ends past 2^64"))?;
        let mut position = offset;
        while position < end {
            let piece = ZEROS_BYTES.min((end - position) as usize);
            let mut filled = 0;
            while filled < piece {
                match self.inner.read_at(&mut found[filled..piece], position + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if found[..filled] == zeros[..filled] {
                self.inner.write_all_at(&zeros[..piece], position)?;
            } else {
                self.inner.write_all_at(&zeros[filled..piece], position + filled as u64)?;
            }
            position += piece as u64;
        }
        Ok(())
    }
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On filesystems without fallocate (NFS, some FUSE) the stand-in must reserve space and change no byte:
    /// a recycled segment's records are still needed by whoever verifies it.
    #[test]
    fn filling_holes_changes_nothing_that_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let inner = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        inner.write_all_at(b"kept", 70_000).unwrap();
        inner.set_len(100_000).unwrap();
        let file = PosixFile { inner, write_out: no_write_out };
        file.fill_holes(10, 300_000).unwrap();
        assert_eq!(file.len().unwrap(), 300_010);
        let mut all = vec![0; 300_010];
        file.read_at(0, &mut all).unwrap();
        assert_eq!(&all[70_000..70_004], b"kept");
        assert_eq!(all.iter().filter(|&&byte| byte != 0).count(), 4);
    }
}
