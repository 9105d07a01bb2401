//! `attach` and `detach`: a live volume as a block device or a mounted filesystem that outlives its server's
//! restarts.

use crate::host::attachment::{Attachment, Front, Phase, Room, boot_id};
use crate::host::device::{self, Care};
use crate::host::keeper::Keeper;
use crate::host::partitions::Partition;
use crate::host::superblock::{self, Content, Filesystem, Replay};
use crate::host::{command, keeper, loopdev, mounts, partitions, relay};
use cdp_core::error::{Error, IoContext, Kind, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What to attach, and how.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// What the user calls it: a volume, or a volume and a point.
    pub name: String,
    /// Where it is served, with the export's name. Asked again after each restart of the server, so it has to
    /// mean the same then: never a relative point.
    pub uri: String,
    /// Where to mount the filesystem that is on it; made if it is not there. Without it there is only a device.
    pub dir: Option<PathBuf>,
    /// Refuse writing.
    pub read_only: bool,
    /// Which partition to mount; without it the whole disk, else the first partition with a filesystem.
    pub partition: Option<u32>,
    /// Added to the mount's options.
    pub mount_options: Vec<String>,
    /// Where the state is kept: `attachments` in the store.
    pub state_dir: PathBuf,
    /// How to make the device; without it the best there is.
    pub front: Option<Front>,
    /// Who waits for a server that restarts.
    pub keeper: Keeper,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    /// Name of the attachment, unique in its store.
    pub id: String,
    /// What the user calls it.
    pub name: String,
    /// The block device.
    pub device: PathBuf,
    /// Where it is mounted.
    pub dir: Option<PathBuf>,
    /// What is mounted.
    pub filesystem: Option<String>,
    /// Writing is refused.
    pub read_only: bool,
    /// A past view is opened through a writable clone, because its filesystem was in use at that instant or
    /// because the user wants to write.
    pub through_clone: bool,
    /// It works: its processes run, its device is there, and its volume is served.
    pub healthy: bool,
    /// Why not, where that is known.
    pub why: Option<String>,
}

impl Attached {
    pub(crate) fn of(attachment: &Attachment) -> Attached {
        Attached {
            id: attachment.id.clone(),
            name: attachment.name.clone(),
            device: attachment.device.clone().unwrap_or_default(),
            dir: attachment.dir.clone(),
            filesystem: attachment.filesystem.clone(),
            read_only: attachment.mounted_read_only,
            through_clone: attachment.through_clone,
            healthy: is_healthy(attachment),
            why: None,
        }
    }
}

fn is_healthy(attachment: &Attachment) -> bool {
    let places = attachment.places();
    let file = places.fuse_file();
    attachment.boot_id == boot_id()
        && match attachment.front {
            Front::Kernel => keeper::keeper_runs(&places),
            Front::Fuse => keeper::fuse_runs(&places) && !loopdev::find(&file).is_empty(),
        }
}

/// Whether its relay met a volume that was rolled back, and ended the device for good.
fn ended(attachment: &Attachment) -> bool {
    std::fs::read(attachment.places().log())
        .is_ok_and(|log| String::from_utf8_lossy(&log).contains(relay::ENDED))
}

/// Makes a block device of an export and mounts it if a directory is given. On an error nothing stays behind.
pub fn attach(options: &AttachOptions) -> Result<Attached> {
    let room = ready(&options.state_dir)?;
    let export = keeper::ask(&options.uri)?;
    let read_only = options.read_only || export.read_only;
    refuse_second_writer(&room, &options.name, read_only)?;
    let front = options.front.unwrap_or_else(device::best_front);
    let mut attachment = room.begin(&options.name, &options.uri, read_only, front)?;
    let steps = |attachment: &mut Attachment| {
        device::open(attachment, &options.keeper)?;
        if let Some(dir) = &options.dir {
            mount_found(attachment, dir, options.partition, &options.mount_options)?;
        }
        Ok(())
    };
    finish(&mut attachment, steps)
}

/// Runs the steps of a new attachment and keeps it, or takes it down again when one fails.
pub(crate) fn finish(
    attachment: &mut Attachment,
    steps: impl FnOnce(&mut Attachment) -> Result<()>,
) -> Result<Attached> {
    let done = steps(attachment).and_then(|()| {
        attachment.phase = Phase::Ready;
        attachment.save()
    });
    let Err(error) = done else {
        return Ok(Attached::of(attachment));
    };
    match device::close(attachment, Care::Force) {
        Ok(()) => Err(error),
        Err(left) => Err(error.hint(format!("and something stays behind, see `cdp detach`: {left}"))),
    }
}

/// What every change of attachments begins with: root, the lock, and crashed ones taken away.
pub(crate) fn ready(state_dir: &Path) -> Result<Room> {
    if !rustix::process::geteuid().is_root() {
        let error = Error::new(Kind::Refused, "making a block device and mounting need root");
        return Err(
            error.hint("say it again with sudo, or look at the export with nbdcopy, qemu-img or nbdfuse")
        );
    }
    let room = Room::lock(state_dir)?;
    for attachment in room.list()? {
        // We hold the lock, so whoever was making it is dead.
        if attachment.phase == Phase::Starting || attachment.boot_id != boot_id() {
            device::close(&attachment, Care::Force)?;
        }
    }
    Ok(room)
}

/// Two writable devices of one volume would be two caches of one filesystem: that destroys it.
fn refuse_second_writer(room: &Room, name: &str, read_only: bool) -> Result<()> {
    let others = room.list()?;
    let other = others.iter().find(|other| other.name == name && !(read_only && other.read_only));
    let Some(other) = other else {
        return Ok(());
    };
    let device = other.device.as_deref().unwrap_or(Path::new("?")).display();
    let error = Error::new(Kind::Busy, format!("{name} is attached already, as {device}"));
    Err(error.hint(format!("cdp detach {name}")))
}

/// Finds the filesystem on an attachment's device and mounts it.
pub(crate) fn mount_found(
    attachment: &mut Attachment,
    dir: &Path,
    partition: Option<u32>,
    options: &[String],
) -> Result<()> {
    let device = attachment.device.clone().unwrap_or_default();
    let found = find_filesystem(&device, partition, &attachment.name)?;
    mount_on(attachment, &found, dir, options).map(drop)
}

/// A filesystem and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub filesystem: Filesystem,
    pub replay: Replay,
    pub uuid: Option<String>,
    /// Where it begins and ends; without it, the whole disk.
    pub partition: Option<Partition>,
}

fn look(device: &Path, partition: Option<Partition>) -> Result<(Content, Option<Found>)> {
    let start = partition.map_or(0, |partition| partition.start);
    let content = superblock::identify(&device::bytes_at(device, start, superblock::PROBE_BYTES)?);
    let found = match content.clone() {
        Content::Filesystem { filesystem, replay, uuid } => {
            Some(Found { filesystem, replay, uuid, partition })
        }
        _ => None,
    };
    Ok((content, found))
}

/// The whole disk, else the first partition that holds a filesystem; `NotFound` says what is there instead.
pub(crate) fn find_filesystem(device: &Path, number: Option<u32>, name: &str) -> Result<Found> {
    let prefix = device::bytes_at(device, 0, superblock::PROBE_BYTES)?;
    let partitions = partitions::read(&prefix, &mut |at| device::bytes_at(device, at, 512).ok());
    if let Some(number) = number {
        let wanted = partitions.into_iter().find(|partition| partition.number == number);
        let wanted =
            wanted.ok_or_else(|| Error::new(Kind::NotFound, format!("{name} has no partition {number}")))?;
        let (content, found) = look(device, Some(wanted))?;
        return found.ok_or_else(|| no_filesystem(&format!("partition {number} of {name}"), &content));
    }
    let (content, found) = look(device, None)?;
    if let Some(found) = found {
        return Ok(found);
    }
    if content == Content::Partitions {
        for partition in partitions {
            if let (_, Some(found)) = look(device, Some(partition))? {
                return Ok(found);
            }
        }
    }
    let error = no_filesystem(name, &content);
    Err(match (content, name.split_once('@')) {
        // What was not there then cannot be put there now.
        (Content::Blank, Some((volume, _))) => {
            error.hint(format!("cdp log {volume} shows when something was written"))
        }
        (Content::Blank, None) => {
            error.hint(format!("mkfs.ext4 \"$(cdp attach {name})\"; cdp detach {name}"))
        }
        _ => error,
    })
}

fn no_filesystem(name: &str, content: &Content) -> Error {
    let what = match content {
        Content::Blank => {
            return Error::new(Kind::NotFound, format!("{name} is blank: there is no filesystem on it"));
        }
        Content::Partitions => "partitions, and none with a filesystem that we know",
        Content::Other(what) => what,
        Content::Filesystem { .. } | Content::Unknown => "bytes that are no filesystem that we know",
    };
    Error::new(Kind::NotFound, format!("{name} holds {what}"))
}

/// The UUID of the filesystem on a device, where both can be read.
pub(crate) fn uuid_of(device: &Path) -> Option<String> {
    look(device, None).ok()?.1?.uuid
}

/// Mounts, and remembers it before: a crash in between leaves nothing mounted that is not known. Gives the device
/// that is mounted.
pub(crate) fn mount_on(
    attachment: &mut Attachment,
    found: &Found,
    dir: &Path,
    options: &[String],
) -> Result<PathBuf> {
    attachment.dir_is_ours = !dir.exists();
    std::fs::create_dir_all(dir).at(|| format!("cannot create {}", dir.display()))?;
    let dir = dir.canonicalize().at(|| format!("cannot find {}", dir.display()))?;
    attachment.dir = Some(dir.clone());
    if mounts::is_mountpoint(&dir)? {
        attachment.dir = None;
        return Err(Error::new(Kind::Exists, format!("something is mounted at {} already", dir.display())));
    }
    attachment.filesystem = Some(found.filesystem.to_string());
    attachment.save()?;
    let mut all = vec![if attachment.read_only { "ro".to_owned() } else { "rw".to_owned() }];
    if found.filesystem == Filesystem::Xfs {
        // A past view of the same filesystem has the same UUID, and both may be looked at.
        all.push("nouuid".to_owned());
    }
    all.extend(options.iter().cloned());
    let device = match found.partition {
        Some(partition) => device::partition(attachment, partition)?,
        None => attachment.device.clone().unwrap_or_default(),
    };
    mounts::mount(&device, &dir, &found.filesystem, &all)?;
    Ok(device)
}

/// Which attachment: by id, by name, by device or by mount point.
fn pick(attachments: Vec<Attachment>, which: &str) -> Result<Attachment> {
    let path = Path::new(which);
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_it = |attachment: &Attachment| {
        let paths = [&attachment.device, &attachment.dir];
        attachment.name == which
            || attachment.id == which
            || paths.into_iter().flatten().any(|known| known == path || *known == full)
    };
    let known: Vec<String> = attachments.iter().map(|attachment| attachment.id.clone()).collect();
    // The id is exact; names may stand for several.
    let mut found: Vec<Attachment> = attachments.into_iter().filter(is_it).collect();
    if let Some(exact) = found.iter().position(|attachment| attachment.id == which) {
        return Ok(found.swap_remove(exact));
    }
    match found.len() {
        0 if known.is_empty() => Err(Error::new(Kind::NotFound, "nothing is attached")),
        0 => {
            let error = Error::new(Kind::NotFound, format!("{which} is not attached"));
            Err(error.hint(format!("attached: {}", known.join(", "))))
        }
        1 => Ok(found.swap_remove(0)),
        _ => {
            let ids: Vec<&str> = found.iter().map(|attachment| attachment.id.as_str()).collect();
            let error = Error::new(Kind::Invalid, format!("{which} is attached {} times", ids.len()));
            Err(error.hint(format!("say which: {}", ids.join(", "))))
        }
    }
}

/// Takes an attachment down, given by its id, name, device or directory. Without `force` everything written is
/// durable when this returns, and whatever is in the way is an error that leaves it in use. With `force` nothing
/// waits for the server, and what was not written yet is lost.
pub fn detach(state_dir: &Path, which: &str, force: bool) -> Result<Attached> {
    let room = ready(state_dir)?;
    let attachment = pick(room.list()?, which)?;
    let was = Attached::of(&attachment);
    // A clone that is only read has nothing to lose.
    let only_read = attachment.read_only || (attachment.through_clone && attachment.mounted_read_only);
    let careful = !only_read && was.healthy && !force;
    if careful {
        // Unmounting writes. Without a server that would wait, and could not be called off.
        keeper::ask(&attachment.uri).map_err(|error| {
            let what = format!(
                "the server of {} does not answer, and what was written could be lost",
                attachment.name
            );
            Error::new(Kind::Busy, format!("{what}: {error}"))
                .hint("start it again; or lose what was not written yet: cdp detach --force")
        })?;
    }
    // A device without its processes, or a view without its server, answers nothing; there is nothing to wait for.
    let dead = !was.healthy || (!careful && keeper::ask(&attachment.uri).is_err());
    let care = if force || dead { Care::Force } else { Care::Full };
    device::close(&attachment, care)?;
    Ok(was)
}

/// One attachment of a store, given as to [`detach`].
pub fn find(state_dir: &Path, which: &str) -> Result<Attached> {
    pick(Room::lock(state_dir)?.list()?, which).map(|attachment| Attached::of(&attachment))
}

/// Every attachment of a store.
pub fn list(state_dir: &Path) -> Result<Vec<Attached>> {
    if !state_dir.exists() {
        return Ok(Vec::new());
    }
    let room = Room::lock(state_dir)?;
    let mounts = mounts::list()?;
    let as_it_is = |attachment: &Attachment| {
        let mut attached = Attached::of(attachment);
        // Somebody may have unmounted it by hand.
        attached.dir = attached.dir.filter(|dir| mounts.iter().any(|mount| mount.dir == *dir));
        if ended(attachment) {
            attached.healthy = false;
            attached.why =
                Some("its volume was rolled back: what it holds is of the state that was left".to_owned());
        }
        attached
    };
    Ok(room.list()?.iter().map(as_it_is).collect())
}

/// Asks the machine to write out what a mounted directory holds, as `sync -f` does.
pub fn sync_dir(dir: &Path) -> Result<()> {
    command::run("sync", [std::ffi::OsStr::new("-f"), dir.as_os_str()]).map(drop)
}
