//! A file or block device whose content a new volume begins with.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cdp_core::base::BaseWriter;
use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::ids::BLOCK_BYTES;
use rustix::fs::SeekFrom;

use super::foreign::{Format, Opened};
use super::usage;
use crate::work::{Progress, Watch};

/// Read at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;

enum Content {
    Raw(File),
    Image(Opened),
}

/// The opened source.
pub struct Source {
    path: PathBuf,
    content: Content,
    // Of the disk, and of the file it is in.
    bytes: u64,
    file_bytes: u64,
    // A file that somebody writes meanwhile gives a state that never was.
    changed: Option<SystemTime>,
    device: bool,
}

impl Source {
    /// Opens it, unless somebody may write to it: a copy of that would be a state that never was. Without a
    /// format the first bytes tell it.
    pub fn open(path: &Path, format: Option<Format>) -> Result<Source> {
        let found = std::fs::metadata(path).at(|| format!("looking at {}", path.display()))?;
        let device = usage::is_block_device(path);
        if !device && !found.is_file() {
            let context = format!("{} is neither a file nor a block device", path.display());
            return Err(Error::new(Kind::Invalid, context));
        }
        let uses = usage::uses(path)?;
        if let Some(writer) = uses.iter().find(|used| used.writes) {
            let context = format!(
                "{} may be written to while it is copied ({}), and the copy would be a state that never was",
                path.display(),
                writer.what
            );
            return Err(Error::new(Kind::Busy, context).hint("unmount it first, or mount it read-only"));
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
        let changed = found.modified().ok().filter(|_| !device);
        let format = format.map_or_else(|| Format::of_content(path), Ok)?;
        let (content, disk_bytes) = match format {
            Format::Raw => (Content::Raw(file), bytes),
            format => {
                let image = Opened::open(path, format)?;
                let bytes = image.bytes();
                (Content::Image(image), bytes)
            }
        };
        let path = path.to_owned();
        Ok(Source { path, content, bytes: disk_bytes, file_bytes: bytes, changed, device })
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
        let path = self.path.clone();
        let place = |at: u64| format!("reading byte {at} of {}", path.display());
        let mut buffer = vec![0; STEP_BYTES as usize];
        let (mut at, mut read) = (0, 0);
        while at < self.bytes {
            if let Content::Raw(file) = &self.content {
                let Some(data) = next_data(file, at).at(|| place(at))? else { break };
                at = data / BLOCK_BYTES * BLOCK_BYTES;
            }
            let step = (self.bytes - at).min(STEP_BYTES) as usize;
            let whole = step.next_multiple_of(BLOCK_BYTES as usize);
            buffer[step..whole].fill(0);
            match &mut self.content {
                Content::Raw(file) => file.read_exact_at(&mut buffer[..step], at),
                Content::Image(image) => image.read_at(at, &mut buffer[..step]),
            }
            .at(|| place(at))?;
            base.write(at / BLOCK_BYTES, &buffer[..whole])?;
            // An image tells nothing of its holes: what is zeros counts as one.
            let is_hole =
                matches!(self.content, Content::Image(_)) && buffer[..step].iter().all(|byte| *byte == 0);
            at += step as u64;
            read += if is_hole { 0 } else { step as u64 };
            watch(Progress {
                what: format!("importing {}", self.path.display()),
                done: at,
                total: self.bytes,
            })?;
        }
        watch(Progress {
            what: format!("importing {}", self.path.display()),
            done: self.bytes,
            total: self.bytes,
        })?;
        self.refuse_if_changed()?;
        Ok(read)
    }

    fn refuse_if_changed(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path).at(|| format!("looking at {}", self.path.display()))?;
        if !self.device && (now.modified().ok() != self.changed || now.size() != self.file_bytes) {
            let context = format!("{} was written to while it was copied", self.path.display());
            return Err(Error::new(Kind::Busy, context)
                .hint("stop whoever writes to it, and say it again: such a copy is a state that never was"));
        }
        Ok(())
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
