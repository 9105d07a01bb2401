//! What a follower writes to: a file or a block device that nobody else uses.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::io::{File, Files};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::image::source::next_data;
use crate::image::usage::{self, lock_alone, refuse_if_used, take_lock};

/// Behind the name of a file whose first copy is not finished.
const DRAFT_SUFFIX: &str = ".copying";
/// Zeros are written in pieces of this size where nothing better is to be had, in bytes.
const ZEROS_BYTES: usize = 1 << 20;

/// The target.
pub trait Disk {
    /// Its bytes.
    fn file(&self) -> &dyn File;

    /// Makes it as large as the volume. A block device only has to be large enough, else it is [`Kind::Invalid`].
    fn set_size(&self, bytes: u64) -> Result<()>;

    /// [`Kind::Busy`] if somebody else uses it.
    fn check_alone(&self) -> Result<()>;

    /// Tells whether somebody wrote to it since another look, as far as the system knows.
    fn witness(&self) -> Result<Option<String>>;

    /// Asks the system to forget what it has in memory of it, so that reading it back reads the medium. A hint.
    fn forget(&self);

    /// Gives a first copy its name.
    fn name_it(&mut self) -> Result<()>;

    /// For messages.
    fn name(&self) -> String;
}

/// How to open a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// What stands under its name.
    Existing,
    /// A first copy that was begun; also if it has its name already.
    Begun,
    /// Begin a first copy.
    Fresh,
}

/// Opens the target; `None` if there is nothing to open.
pub type Opener<'a> = dyn Fn(How) -> Result<Option<Box<dyn Disk>>> + 'a;

/// A regular file.
pub struct FileDisk {
    files: Arc<dyn Files>,
    file: Arc<dyn File>,
    path: PathBuf,
    draft: Option<PathBuf>,
    // None on a simulated disk. Held as long as it is open: QEMU's own locks are of the same kind, so that
    // neither of us opens what the other one writes.
    guard: Option<fs::File>,
}

impl FileDisk {
    /// Opens it in that way. With `alone`, under a lock and only if nobody uses it.
    pub fn open(files: &Arc<dyn Files>, path: &Path, how: How, alone: bool) -> Result<Option<Box<dyn Disk>>> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(DRAFT_SUFFIX);
        let draft = path.with_file_name(name);
        let opening = |path: &Path| format!("opening {}", path.display());
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let existing = |path: &Path| match files.open(path, true) {
            Ok(file) => Ok(Some(file)),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(Error::io(error, opening(path))),
        };
        if alone {
            for path in [path, &draft].into_iter().filter(|path| path.exists()) {
                refuse_if_used(path)?;
            }
        }
        let (file, draft) = match how {
            How::Existing => (existing(path)?, None),
            How::Begun => match existing(&draft)? {
                Some(file) => (Some(file), Some(draft)),
                None => (existing(path)?, None),
            },
            How::Fresh => {
                match files.remove(&draft) {
                    Err(error) if !missing(&error) => return Err(Error::io(error, opening(&draft))),
                    _ => {}
                }
                (Some(files.create(&draft).at(|| opening(&draft))?), Some(draft))
            }
        };
        let Some(file) = file else { return Ok(None) };
        let now = draft.as_deref().unwrap_or(path);
        let guard = if alone { Some(lock_alone(now)?) } else { None };
        Ok(Some(Box::new(FileDisk { files: files.clone(), file, path: path.to_owned(), draft, guard })))
    }
}

impl Disk for FileDisk {
    fn file(&self) -> &dyn File {
        &*self.file
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        let place = || format!("setting the length of {}", self.path.display());
        if self.file.len().at(place)? == bytes { Ok(()) } else { self.file.set_len(bytes).at(place) }
    }

    fn check_alone(&self) -> Result<()> {
        match (&self.guard, &self.draft) {
            (Some(guard), None) => {
                refuse_if_replaced(guard, &self.path)?;
                refuse_if_used(&self.path)
            }
            _ => Ok(()),
        }
    }

    fn witness(&self) -> Result<Option<String>> {
        let Some(guard) = &self.guard else { return Ok(None) };
        let found = guard.metadata().at(|| format!("looking at {}", self.path.display()))?;
        let (seconds, rest) = (found.mtime(), found.mtime_nsec());
        Ok(Some(format!("file {}:{} {} {seconds}.{rest:09}", found.dev(), found.ino(), found.size())))
    }

    fn forget(&self) {
        if let Some(guard) = &self.guard {
            let _ = fadvise(guard, 0, None, Advice::DontNeed);
        }
    }

    fn name_it(&mut self) -> Result<()> {
        let Some(draft) = &self.draft else { return Ok(()) };
        let place = || format!("naming {}", self.path.display());
        self.files.rename(draft, &self.path).at(place)?;
        self.files.sync_dir(self.path.parent().unwrap_or(Path::new("."))).at(place)?;
        self.draft = None;
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// What has no name any more is nobody's copy: it must not be said that the one of this name stands anywhere.
fn refuse_if_replaced(file: &fs::File, path: &Path) -> Result<()> {
    let place = || format!("looking at {}", path.display());
    let ours = file.metadata().at(place)?;
    let is_ours = match fs::metadata(path) {
        Ok(found) => (found.dev(), found.ino()) == (ours.dev(), ours.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io(error, place())),
    };
    if is_ours {
        return Ok(());
    }
    let context =
        format!("{} was removed, or replaced by another file, while it was followed", path.display());
    Err(Error::new(Kind::Busy, context).hint("what is there now is left alone; --force begins anew"))
}

/// A block device, opened so that nobody can mount it or open it so.
pub struct DeviceDisk {
    file: DeviceFile,
    path: PathBuf,
    bytes: u64,
}

impl DeviceDisk {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Box<dyn Disk>> {
        refuse_if_used(path)?;
        let mut file = usage::open_alone(path, true)?;
        take_lock(&file, path)?;
        let bytes = usage::size_of(&mut file, path)?;
        Ok(Box::new(DeviceDisk { file: DeviceFile { file, bytes }, path: path.to_owned(), bytes }))
    }
}

impl Disk for DeviceDisk {
    fn file(&self) -> &dyn File {
        &self.file
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let context =
            format!("{} is too small: {} bytes, the volume has {bytes}", self.path.display(), self.bytes);
        Err(Error::new(Kind::Invalid, context)
            .hint("make it larger; what it holds stays as it is until then"))
    }

    fn check_alone(&self) -> Result<()> {
        // The kernel sees to it.
        Ok(())
    }

    fn witness(&self) -> Result<Option<String>> {
        // How many sectors were ever written to it, as the kernel counts since it was started.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let device = fs::metadata(&self.path).at(|| format!("looking at {}", self.path.display()))?.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(match (boot, usage::sectors_written(device)) {
            (Ok(boot), Some(written)) => {
                Some(format!("device {major}:{minor} boot {} written {written}", boot.trim()))
            }
            _ => None,
        })
    }

    fn forget(&self) {
        let _ = fadvise(&self.file.file, 0, None, Advice::DontNeed);
    }

    fn name_it(&mut self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// A block device behind the seam that files go through. Its length is its own.
struct DeviceFile {
    file: fs::File,
    bytes: u64,
}

impl File for DeviceFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers {
            self.file.write_all_at(buffer, at)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(len).unwrap_or(ZEROS_BYTES))];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        next_data(&self.file, offset)
    }
}
