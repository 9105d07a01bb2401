//! One attachment's block device: made step by step, taken down in the opposite order, and that at any step.

use crate::host::attachment::{Attachment, Front, boot_id};
use crate::host::keeper::Keeper;
use crate::host::partitions::Partition;
use crate::host::{command, keeper, loopdev, mounts};
use cdp_core::error::{Error, IoContext, Kind, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a device may take to write out what it holds when it is given back.
const FLUSH_PATIENCE: Duration = Duration::from_secs(600);

/// The kernel's NBD client where it can be used, otherwise FUSE and loop.
pub fn best_front() -> Front {
    let kernel = Path::new("/dev/nbd0").exists() && command::find("nbd-client").is_some();
    if kernel { Front::Kernel } else { Front::Fuse }
}

/// Makes the device. Without a keeper (a throw-away clone lives and dies with its one connection) an ended server is
/// an I/O error.
pub fn open(attachment: &mut Attachment, keeper: &Keeper) -> Result<PathBuf> {
    let places = attachment.places();
    let kept = *keeper != Keeper::Nobody;
    // The kernel's client always speaks to a keeper: it would need a helper of its own to connect again.
    let keeper = if attachment.front == Front::Kernel && !kept { &Keeper::Nbdkit } else { keeper };
    keeper::start_keeper(&places, keeper, &attachment.uri, attachment.read_only)?;
    let device = match attachment.front {
        Front::Kernel => open_kernel(attachment)?,
        Front::Fuse => {
            keeper::start_fuse(&places, &attachment.uri, kept, attachment.read_only)?;
            loopdev::create(&places.fuse_file(), attachment.read_only)?
        }
    };
    attachment.device = Some(device.clone());
    attachment.save()?;
    Ok(device)
}

/// The first free /dev/nbdN. Remembered before it is connected: the kernel does not tell whose it is.
fn open_kernel(attachment: &mut Attachment) -> Result<PathBuf> {
    let free = (0..)
        .map(|number| format!("nbd{number}"))
        .take_while(|name| Path::new("/sys/block").join(name).exists())
        .find(|name| !Path::new("/sys/block").join(name).join("pid").exists());
    let free = free.ok_or_else(|| Error::new(Kind::Busy, "every /dev/nbdN is in use"))?;
    let device = Path::new("/dev").join(free);
    attachment.device = Some(device.clone());
    attachment.save()?;
    // One connection: with more, the kernel drops one that does not answer for 30 s instead of waiting.
    let mut arguments: Vec<&OsStr> =
        vec!["-unix".as_ref(), attachment.socket.as_os_str(), device.as_os_str()];
    arguments.extend(["-name", "", "-connections", "1"].map(OsStr::new));
    if attachment.read_only {
        arguments.push("-readonly".as_ref());
    }
    command::run("nbd-client", arguments)?;
    Ok(device)
}

/// Up to `count` bytes of a device from `start`, fewer at its end.
pub fn bytes_at(device: &Path, start: u64, count: usize) -> Result<Vec<u8>> {
    let mut file = File::open(device).at(|| format!("cannot open {}", device.display()))?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.take(count as u64).read_to_end(&mut bytes))
        .at(|| format!("cannot read {}", device.display()))?;
    Ok(bytes)
}

/// A device for one partition: the kernel's where it reads the table, otherwise one more loop device.
pub fn partition(attachment: &Attachment, partition: Partition) -> Result<PathBuf> {
    let whole = attachment.device.as_deref().unwrap_or(Path::new("")).display();
    let node = PathBuf::from(format!("{whole}p{}", partition.number));
    if node.exists() {
        return Ok(node);
    }
    match attachment.front {
        Front::Fuse => {
            loopdev::create_partition(&attachment.places().fuse_file(), partition, attachment.read_only)
        }
        Front::Kernel => Err(Error::new(Kind::NotFound, format!("{} did not appear", node.display()))),
    }
}

/// How careful to be when taking down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// Whatever is in the way is an error, and everything stays in use.
    Full,
    /// What was not written is lost; nothing waits for a server.
    Force,
}

/// Takes everything down that stands of this attachment, and forgets it. May be called again after it failed.
pub fn close(attachment: &Attachment, care: Care) -> Result<()> {
    if attachment.boot_id != boot_id() {
        // The machine was restarted: only files are left, and devices of that name are somebody else's.
        return attachment.forget();
    }
    let places = attachment.places();
    if care == Care::Force {
        keeper::stop_keeper(&places, true)?;
    }
    let devices = devices(attachment);
    for device in &devices {
        unmount_all(attachment, device, care)?;
        if care == Care::Full && !attachment.read_only && keeper::fuse_runs(&places) {
            flush(device)?;
        }
    }
    match attachment.front {
        Front::Fuse => loopdev::remove(&places.fuse_file())?,
        Front::Kernel => close_kernel(attachment)?,
    }
    keeper::stop_fuse(&places)?;
    keeper::stop_keeper(&places, care == Care::Force)?;
    attachment.forget()
}

/// By the file they stand on: a crash may have come before the name was remembered.
fn devices(attachment: &Attachment) -> Vec<PathBuf> {
    match attachment.front {
        Front::Fuse => loopdev::find(&attachment.places().fuse_file()),
        Front::Kernel => attachment.device.iter().cloned().collect(),
    }
}

fn unmount_all(attachment: &Attachment, device: &Path, care: Care) -> Result<()> {
    // Last mounted, first unmounted.
    for mount in mounts::of_device(device)?.into_iter().rev() {
        let ours = attachment.dir.as_deref() == Some(&mount.dir);
        match care {
            Care::Full if !ours => {
                let error = Error::new(
                    Kind::Busy,
                    format!("{} is mounted at {}", device.display(), mount.dir.display()),
                );
                return Err(error.hint(format!("umount {}", mount.dir.display())));
            }
            Care::Full => mounts::unmount(&mount.dir)?,
            Care::Force => {
                if mounts::unmount(&mount.dir).is_err() {
                    mounts::unmount_lazily(&mount.dir)?;
                }
            }
        }
    }
    Ok(())
}

/// After this everything that was written to the device is durable.
fn flush(device: &Path) -> Result<()> {
    let arguments = [OsStr::new("--flushbufs"), device.as_os_str()];
    command::run_within("blockdev", arguments, FLUSH_PATIENCE)?;
    let file = File::open(device).at(|| format!("cannot open {}", device.display()))?;
    file.sync_all().at(|| format!("cannot flush {}", device.display()))
}

fn close_kernel(attachment: &Attachment) -> Result<()> {
    let Some(device) = &attachment.device else {
        return Ok(());
    };
    let name = device.file_name().unwrap_or_default();
    if !Path::new("/sys/block").join(name).join("pid").exists() {
        return Ok(());
    }
    command::run("nbd-client", [OsStr::new("-d"), device.as_os_str()]).map(drop)
}
