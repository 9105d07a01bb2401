//! A file or block device whose content a new volume begins with.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cdp_core::base::BaseWriter;
use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::ids::BLOCK_BYTES;
use rustix::fs::SeekFrom;

use super::foreign::{Format, Opened};
use super::{frozen, usage};
use crate::work::{Progress, Watch};

/// Read at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;

enum Content {
    Raw(Raw),
    Image(Opened),
}

/// What may be done about those who write to a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writers {
    /// There must be none.
    None,
    /// There may be mounted filesystems if they are frozen, all the while.
    Frozen,
    /// There may be any: the copy is a state that never was, to be compared with the source later.
    Any,
}

/// A part of a source.
pub enum Piece<'a> {
    /// Bytes from this offset on; they begin on a block, and end on one or at the end of the source.
    Data(u64, &'a [u8]),
    /// Zeros from this offset on, so many.
    Zeros(u64, u64),
}

/// The opened source.
pub struct Source {
    path: PathBuf,
    content: Content,
    bytes: u64,
    // What is written meanwhile gives a state that never was.
    changed: Changed,
    writers: Writers,
    written_by: Option<String>,
}

/// What tells that somebody wrote.
#[derive(PartialEq, Eq, Debug)]
enum Changed {
    File(Option<SystemTime>, u64),
    Device(Option<u64>),
}

impl Source {
    /// Opens it. Without a format the first bytes tell it. [`Kind::Busy`] if somebody may write to it, unless `writers`
    /// allows that; [`Kind::Refused`] if frozen filesystems are allowed, and one is not.
    pub fn open(path: &Path, format: Option<Format>, writers: Writers) -> Result<Source> {
        let found = std::fs::metadata(path).at(|| format!("looking at {}", path.display()))?;
        let device = usage::is_block_device(path);
        if !device && !found.is_file() {
            let context = format!("{} is neither a file nor a block device", path.display());
            return Err(Error::new(Kind::Invalid, context));
        }
        let uses = usage::uses(path)?;
        let writing = |used: &&usage::Use| used.writes;
        match writers {
            Writers::Any => {}
            Writers::Frozen => {
                for used in uses.iter().filter(writing) {
                    frozen::check(path, used)?;
                }
            }
            Writers::None => {
                if let Some(writer) = uses.iter().find(writing) {
                    let context = format!(
                        "{} may be written to while it is copied ({}), and the copy would be a state that never was",
                        path.display(),
                        writer.what
                    );
                    return Err(
                        Error::new(Kind::Busy, context).hint("unmount it first, or mount it read-only")
                    );
                }
            }
        }
        // The kernel refuses exclusive opening of what is mounted read-only, too.
        let opened = if uses.is_empty() {
            usage::open_alone(path, false)
        } else {
            File::open(path).at(|| format!("opening {}", path.display()))
        };
        let mut file = opened?;
        let bytes = usage::size_of(&mut file, path)?;
        if bytes == 0 {
            return Err(Error::new(Kind::Invalid, format!("{} is empty", path.display())));
        }
        let changed = Changed::of(&found, device);
        let format = format.map_or_else(|| Format::of_content(path), Ok)?;
        let (content, disk_bytes) = match format {
            Format::Raw => (Content::Raw(Raw::new(file, path, device)), bytes),
            format => {
                let image = Opened::open(path, format)?;
                let bytes = image.bytes();
                (Content::Image(image), bytes)
            }
        };
        let written_by = uses.iter().find(|used| used.writes).map(|used| used.what.clone());
        let path = path.to_owned();
        Ok(Source { path, content, bytes: disk_bytes, changed, writers, written_by })
    }

    /// Its path, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies it; holes and zeros stay holes. Gives the bytes that were read.
    pub fn import(&mut self, base: &mut BaseWriter, watch: &mut Watch<'_>) -> Result<u64> {
        let what = format!("importing {}", self.path.display());
        self.walk(&what, watch, &mut |piece| {
            let Piece::Data(at, data) = piece else { return Ok(()) };
            let lba = at / BLOCK_BYTES;
            if (data.len() as u64).is_multiple_of(BLOCK_BYTES) {
                return base.write(lba, data);
            }
            let mut whole = data.to_vec();
            whole.resize(data.len().next_multiple_of(BLOCK_BYTES as usize), 0);
            base.write(lba, &whole)
        })
    }

    /// Goes through all of it, in order. Gives the bytes that were read. [`Kind::Busy`] if it turns out at the end that
    /// somebody wrote meanwhile, who was not allowed to.
    pub fn walk(
        &mut self,
        what: &str,
        watch: &mut Watch<'_>,
        visit: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<u64> {
        let path = self.path.clone();
        let place = |at: u64| format!("reading byte {at} of {}", path.display());
        let mut buffer = Aligned::new(STEP_BYTES as usize);
        let (mut at, mut read) = (0, 0);
        while at < self.bytes {
            if let Content::Raw(raw) = &self.content {
                let data = next_data(&raw.file, at).at(|| place(at))?.unwrap_or(self.bytes);
                let data = data / BLOCK_BYTES * BLOCK_BYTES;
                let data = if data < at { at } else { data.min(self.bytes) };
                if data > at {
                    visit(Piece::Zeros(at, data - at))?;
                    at = data;
                    continue;
                }
            }
            let step = (self.bytes - at).min(STEP_BYTES) as usize;
            let buffer = &mut buffer.bytes_mut()[..step];
            match &mut self.content {
                Content::Raw(raw) => raw.read_at(at, buffer),
                Content::Image(image) => image.read_at(at, buffer),
            }
            .at(|| place(at))?;
            // An image tells nothing of its holes: what is zeros counts as one.
            let is_hole = matches!(self.content, Content::Image(_)) && buffer.iter().all(|byte| *byte == 0);
            if is_hole {
                visit(Piece::Zeros(at, step as u64))?;
            } else {
                visit(Piece::Data(at, buffer))?;
                read += step as u64;
            }
            at += step as u64;
            watch(Progress { what: what.to_owned(), done: at, total: self.bytes })?;
        }
        watch(Progress { what: what.to_owned(), done: self.bytes, total: self.bytes })?;
        self.refuse_if_changed()?;
        Ok(read)
    }

    /// Why what was read is no state that the source ever had; `None` if it is one.
    pub fn inconsistency(&self) -> Result<Option<String>> {
        if self.writers != Writers::Any {
            return Ok(None);
        }
        if let Some(what) = &self.written_by {
            return Ok(Some(format!("{} is in use: {what}", self.path.display())));
        }
        let changed = self.changed_now()? != self.changed;
        Ok(changed.then(|| format!("{} was written to while it was copied", self.path.display())))
    }

    fn changed_now(&self) -> Result<Changed> {
        let now = std::fs::metadata(&self.path).at(|| format!("looking at {}", self.path.display()))?;
        Ok(Changed::of(&now, matches!(self.changed, Changed::Device(_))))
    }

    fn refuse_if_changed(&self) -> Result<()> {
        if self.writers == Writers::Any {
            return Ok(());
        }
        if self.writers == Writers::Frozen {
            for used in usage::uses(&self.path)?.iter().filter(|used| used.writes) {
                frozen::check(&self.path, used)?;
            }
        }
        if self.changed_now()? != self.changed {
            let context = format!("{} was written to while it was copied", self.path.display());
            return Err(Error::new(Kind::Busy, context)
                .hint("stop whoever writes to it, and say it again: such a copy is a state that never was"));
        }
        Ok(())
    }
}

impl Changed {
    fn of(found: &std::fs::Metadata, device: bool) -> Changed {
        match device {
            true => Changed::Device(usage::sectors_written(found.rdev())),
            false => Changed::File(found.modified().ok(), found.size()),
        }
    }
}

/// A raw file or a block device. What a mounted filesystem has written is on the device, but not in the memory that the
/// system keeps of the device: it is read past that.
struct Raw {
    file: File,
    direct: Option<File>,
}

impl Raw {
    fn new(file: File, path: &Path, device: bool) -> Raw {
        let direct = device.then(|| {
            let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
            std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
        });
        Raw { file, direct: direct.flatten() }
    }

    fn read_at(&mut self, at: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        if let Some(direct) = &self.direct {
            match direct.read_exact_at(buffer, at) {
                // A device with larger sectors, or one that cannot.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
                    self.direct = None;
                }
                other => return other,
            }
        }
        self.file.read_exact_at(buffer, at)
    }
}

/// Memory that begins where reads past the system's own memory want it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + BLOCK_BYTES as usize];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES as usize).min(BLOCK_BYTES as usize);
        Aligned { bytes, start, len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The first offset from `at` on that may hold data.
pub fn next_data(file: &File, at: u64) -> std::io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // Block devices and some filesystems do not tell.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) if std::io::Error::from(error).kind() == ErrorKind::Unsupported => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}
