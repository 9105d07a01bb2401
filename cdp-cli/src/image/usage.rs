//! Who else uses a file or a block device: mounts, swap, loop devices, and the kernel's own exclusive holders.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cdp_core::error::{Error, IoContext, Kind, Result};
use rustix::fs::{FlockOperation, fcntl_lock, major, makedev, minor};

/// How something uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Use {
    /// In words, with the place.
    pub what: String,
    /// It may be written to through that.
    pub writes: bool,
    /// Where it is mounted, if it is.
    pub mount: Option<PathBuf>,
}

/// Whether a path is a block device. A path that is not there is none.
pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Everything that is seen to use this file or block device, or partitions of it, or loop devices on it.
pub fn uses(path: &Path) -> Result<Vec<Use>> {
    let found = std::fs::metadata(path).at(|| format!("looking at {}", path.display()))?;
    let full = path.canonicalize().at(|| format!("looking at {}", path.display()))?;
    let mut devices: Vec<u64> = Vec::new();
    let mut uses = Vec::new();
    if found.file_type().is_block_device() {
        devices.push(found.rdev());
        devices.extend(partitions_of(&full));
    } else {
        for (name, device) in loops_on(&full) {
            let what = format!("the loop device /dev/{name}");
            uses.push(Use { what, writes: !is_read_only(&name), mount: None });
            devices.push(device);
        }
    }
    uses.extend(mounts_of(&devices)?);
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    for swap in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        let same = Path::new(swap) == full
            || std::fs::metadata(swap).is_ok_and(|other| is_same(&other, &found, &devices));
        if same {
            uses.push(Use { what: "swap".to_owned(), writes: true, mount: None });
        }
    }
    Ok(uses)
}

fn is_same(other: &std::fs::Metadata, found: &std::fs::Metadata, devices: &[u64]) -> bool {
    match other.file_type().is_block_device() {
        true => devices.contains(&other.rdev()),
        false => (other.dev(), other.ino()) == (found.dev(), found.ino()),
    }
}

/// Mounts of these devices, by the kernel's own numbers.
fn mounts_of(devices: &[u64]) -> Result<Vec<Use>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(path).at(|| format!("reading {path}"))?;
    let mut uses = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(numbers), Some(_root), Some(dir), Some(options)) =
            (fields.nth(2), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let by_number =
            devices.iter().any(|device| numbers == format!("{}:{}", major(*device), minor(*device)));
        // btrfs and others mount under a number of their own; their source names the device.
        let source = line.split(" - ").nth(1).and_then(|behind| behind.split(' ').nth(1)).unwrap_or_default();
        let by_source = source.starts_with('/')
            && std::fs::metadata(source)
                .is_ok_and(|found| found.file_type().is_block_device() && devices.contains(&found.rdev()));
        if by_number || by_source {
            // The superblock's own options stand last: a read-only bind of a writable mount still writes.
            let super_options = line.rsplit(' ').next().unwrap_or_default();
            let read_only =
                options.split(',').any(|o| o == "ro") && super_options.split(',').any(|o| o == "ro");
            uses.push(Use {
                what: format!("mounted {} at {dir}", if read_only { "read-only" } else { "read-write" }),
                writes: !read_only,
                mount: Some(PathBuf::from(unescape(dir))),
            });
        }
    }
    Ok(uses)
}

/// Blanks and the like stand in octal there.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// How many sectors were written to a block device since the system started, as the kernel counts; `None` if it does
/// not say.
pub fn sectors_written(device: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)));
    stat.ok()?.split_whitespace().nth(6)?.parse().ok()
}

fn partitions_of(device: &Path) -> Vec<u64> {
    let Some(name) = device.file_name() else { return Vec::new() };
    let dir = Path::new("/sys/class/block").join(name);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|e| number(&e.path()))
        .collect()
}

fn loops_on(file: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let on_file = |dir: &PathBuf| {
        std::fs::read_to_string(dir.join("loop/backing_file"))
            .is_ok_and(|text| Path::new(text.trim_end()) == file)
    };
    entries
        .map(|entry| entry.path())
        .filter(on_file)
        .filter_map(|dir| Some((dir.file_name()?.to_string_lossy().into_owned(), number(&dir)?)))
        .collect()
}

fn is_read_only(name: &str) -> bool {
    std::fs::read_to_string(Path::new("/sys/block").join(name).join("ro")).is_ok_and(|ro| ro.trim() == "1")
}

fn number(dir: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Opens a file or a block device; a block device so that nobody else can mount or open it so at the same time.
/// One that is held is [`Kind::Busy`].
pub fn open_alone(path: &Path, write: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    if is_block_device(path) {
        options.custom_flags(rustix::fs::OFlags::EXCL.bits() as i32);
    }
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            let context = format!("{} is in use: the kernel does not give it to us alone", path.display());
            Err(Error::new(Kind::Busy, context)
                .hint("it is mounted, part of a RAID or LVM, or open in another program"))
        }
        other => other.at(|| format!("opening {}", path.display())),
    }
}

/// [`Kind::Busy`] if something is seen to use it.
pub fn refuse_if_used(path: &Path) -> Result<()> {
    let Some(used) = uses(path)?.into_iter().next() else { return Ok(()) };
    let context = format!("{} is in use: {}", path.display(), used.what);
    Err(Error::new(Kind::Busy, context).hint("unmount or detach it first"))
}

/// Locks an existing file that is about to be replaced, as long as the answer lives. QEMU's own locks are of the same kind:
/// neither of us opens what the other one writes. One that somebody holds a lock on is [`Kind::Busy`].
pub fn lock_alone(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).at(|| format!("opening {}", path.display()))?;
    take_lock(&file, path)?;
    Ok(file)
}

/// As [`lock_alone`], of a file that is open.
pub fn take_lock(file: &File, path: &Path) -> Result<()> {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        // A filesystem without locks.
        Err(rustix::io::Errno::NOLCK | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(_) => {
            let context = format!("{} is in use: another program holds a lock on it", path.display());
            Err(Error::new(Kind::Busy, context)
                .hint("a virtual machine, or another `cdp restore --follow`: end it first"))
        }
    }
}

/// The size of a file or a block device, in bytes.
pub fn size_of(file: &mut File, path: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0)).at(|| format!("asking for the size of {}", path.display()))
}
