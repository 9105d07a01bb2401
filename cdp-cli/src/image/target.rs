//! A raw file or block device that a view is written to.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cdp_core::device::{Content, Device, Read};
use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::view::View;
use rustix::fs::FallocateFlags;

use super::source::next_data;
use super::usage;
use crate::work::{Progress, Watch};

/// Copied at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;
/// Stretches asked for at a time.
const STRETCHES_MAX: usize = 256;
/// A hole looked for at a time, in bytes.
const HOLE_BYTES_MAX: u64 = 1 << 40;

/// The target, opened and found fit.
pub struct Target {
    path: PathBuf,
    file: File,
    // A file gets its name when everything in it was read back; until then it has this one.
    draft: Option<PathBuf>,
    // The file that it replaces, so that nobody begins to use that meanwhile.
    _replaced: Option<File>,
}

impl Target {
    /// Opens a block device, or begins a file beside `path`. What is there already is overwritten only with
    /// `force`, and never while somebody uses it. A device that is too small is [`Kind::OutOfRange`].
    pub fn open(path: &Path, size_bytes: u64, force: bool) -> Result<Target> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Target::draft(path, size_bytes, None);
            }
            Err(error) => return Err(Error::io(error, format!("looking at {}", path.display()))),
        };
        let device = usage::is_block_device(path);
        if !device && !found.is_file() {
            let context = format!("{} is neither a file nor a block device", path.display());
            return Err(Error::new(Kind::Invalid, context));
        }
        usage::refuse_if_used(path)?;
        if !device {
            if !force {
                let context = format!("{} exists", path.display());
                return Err(Error::new(Kind::Exists, context).hint("--force replaces it"));
            }
            let path = path.canonicalize().at(|| format!("finding {}", path.display()))?;
            let replaced = usage::lock_alone(&path)?;
            return Target::draft(&path, size_bytes, Some(replaced));
        }
        let mut file = usage::open_alone(path, true)?;
        let bytes = usage::size_of(&mut file, path)?;
        if bytes < size_bytes {
            let context =
                format!("{} is too small: {bytes} bytes, the volume has {size_bytes}", path.display());
            return Err(Error::new(Kind::Invalid, context));
        }
        if !force {
            let context = format!("everything on {} would be overwritten", path.display());
            return Err(Error::new(Kind::Exists, context).hint("--force does it"));
        }
        Ok(Target { path: path.to_owned(), file, draft: None, _replaced: None })
    }

    fn draft(path: &Path, size_bytes: u64, replaced: Option<File>) -> Result<Target> {
        let draft = draft_of(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft);
        let file = file.at(|| format!("making {}", draft.display()))?;
        // Whoever cleans up on another machine sees that somebody is at it.
        usage::take_lock(&file, &draft)?;
        let target = Target { path: path.to_owned(), file, draft: Some(draft), _replaced: replaced };
        target.file.set_len(size_bytes).at(|| format!("extending {}", target.path.display()))?;
        Ok(target)
    }

    /// Writes the view, reads it back, and gives a file its name. Gives the bytes of data that were written.
    pub fn fill(mut self, view: &View, watch: &mut Watch<'_>) -> Result<u64> {
        let written = self.write(view, watch)?;
        self.file.sync_all().at(|| format!("syncing {}", self.path.display()))?;
        // What is read back should come from the disk.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        self.compare(view, watch)?;
        if let Some(draft) = &self.draft {
            let name = || format!("naming {}", self.path.display());
            std::fs::rename(draft, &self.path).at(name)?;
            self.draft = None;
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir).and_then(|dir| dir.sync_all()).at(name)?;
        }
        Ok(written)
    }

    fn write(&self, view: &View, watch: &mut Watch<'_>) -> Result<u64> {
        let mut buffer = vec![0; STEP_BYTES as usize];
        let mut written = 0;
        let is_new = self.draft.is_some();
        let what = format!("restoring to {}", self.path.display());
        each_stretch(view, &mut |at, len, content| {
            if content == Content::Data {
                let part = &mut buffer[..len as usize];
                read(view, at, part)?;
                self.file
                    .write_all_at(part, at)
                    .at(|| format!("writing byte {at} of {}", self.path.display()))?;
                written += len;
            } else if !is_new {
                self.zero(at, len)?;
            }
            watch(Progress { what: what.clone(), done: at + len, total: view.size_bytes() })
        })?;
        Ok(written)
    }

    /// A device holds something else before: its holes have to be made.
    fn zero(&self, at: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, flags, at, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; STEP_BYTES.min(len) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(STEP_BYTES);
            let place = || format!("writing byte {} of {}", at + done, self.path.display());
            self.file.write_all_at(&zeros[..step as usize], at + done).at(place)?;
            done += step;
        }
        Ok(())
    }

    fn compare(&self, view: &View, watch: &mut Watch<'_>) -> Result<()> {
        let mut wanted = vec![0; STEP_BYTES as usize];
        let mut stored = vec![0; STEP_BYTES as usize];
        let what = format!("reading back {}", self.path.display());
        each_stretch(view, &mut |at, len, content| {
            let end = at + len;
            let mut from = at;
            while from < end {
                if content != Content::Data {
                    // Holes of the view are zeros, and most are holes of the file too.
                    let data =
                        next_data(&self.file, from).at(|| format!("reading {}", self.path.display()))?;
                    from = data.unwrap_or(end).clamp(from, end);
                }
                let step = (end - from).min(STEP_BYTES) as usize;
                let (wanted, stored) = (&mut wanted[..step], &mut stored[..step]);
                match content {
                    Content::Data => read(view, from, wanted)?,
                    _ => wanted.fill(0),
                }
                let place = || format!("reading back byte {from} of {}", self.path.display());
                self.file.read_exact_at(stored, from).at(place)?;
                if let Some(differs) = wanted.iter().zip(stored.iter()).position(|(a, b)| a != b) {
                    let at = from + differs as u64;
                    let context = format!("byte {at} of {} is not what was written", self.path.display());
                    return Err(Error::new(Kind::Damaged, context).hint(
                        "the target is bad, or somebody else writes to it; the volume is not touched",
                    ));
                }
                from += step as u64;
            }
            watch(Progress { what: what.clone(), done: end, total: view.size_bytes() })
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = std::fs::remove_file(draft);
        }
    }
}

const DRAFT_INFIX: &str = ".restoring-";

/// Where a file stands until it has its name. Those of commands that were killed are removed.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(DRAFT_INFIX);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let other = entry.file_name();
        let process = other.to_str().and_then(|text| text.strip_prefix(name.to_str()?)?.parse::<u32>().ok());
        // Our own number may be that of one that is gone: it was ours in another life.
        let is_left = process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        if is_left && usage::lock_alone(&entry.path()).is_ok() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    name.push(std::process::id().to_string());
    path.with_file_name(name)
}

/// Visits the view in order; data in pieces of at most [`STEP_BYTES`].
fn each_stretch(view: &View, visit: &mut dyn FnMut(u64, u64, Content) -> Result<()>) -> Result<()> {
    let size = view.size_bytes();
    let mut at = 0;
    while at < size {
        for stretch in view.extents(at, (size - at).min(HOLE_BYTES_MAX), STRETCHES_MAX)? {
            let end = at + stretch.len;
            while at < end {
                let step = match stretch.content {
                    Content::Data => (end - at).min(STEP_BYTES),
                    _ => end - at,
                };
                visit(at, step, stretch.content)?;
                at += step;
            }
        }
    }
    Ok(())
}

fn read(view: &View, at: u64, buffer: &mut [u8]) -> Result<()> {
    let mut reads = [Read { offset: at, buffer, result: Ok(()) }];
    view.read(&mut reads);
    let [read] = reads;
    read.result
}
