//! Mounting a past view: as it is where that can be, through a writable clone where its filesystem was in use.

use crate::host::attach::{self, Attached, Found};
use crate::host::attachment::{Attachment, Front};
use crate::host::keeper::Keeper;
use crate::host::superblock::{Filesystem, Replay};
use crate::host::{device, keeper, mounts};
use cdp_core::error::{Error, Kind, Result};
use std::path::{Path, PathBuf};

/// Which past to mount, and how.
#[derive(Clone, Debug, Default)]
pub struct PastOptions {
    /// What the user calls it: `VOL@POINT`.
    pub name: String,
    /// What errors call it, where the name is one of our own.
    pub called: Option<String>,
    /// The read-only view. Asked again after a restart of the server, so the point has to be absolute.
    pub view_uri: String,
    /// A writable clone of the same instant (`+rw` or `+rw:NAME`).
    pub clone_uri: String,
    /// The clone has a name and is there again after a restart of the server. A throw-away clone ends with its
    /// connection, so for one of those the mount does not wait for a server: it would get another disk.
    pub clone_is_named: bool,
    /// The user wants to write into it; nothing of that reaches the volume.
    pub writable: bool,
    /// Where to mount it; made if it is not there.
    pub dir: PathBuf,
    /// Which partition; see [`attach::AttachOptions::partition`].
    pub partition: Option<u32>,
    /// Added to the mount's options.
    pub mount_options: Vec<String>,
    /// Where the state is kept: `attachments` in the store.
    pub state_dir: PathBuf,
    /// Who waits for a server that restarts.
    pub keeper: Keeper,
}

impl PastOptions {
    fn called(&self) -> &str {
        self.called.as_ref().unwrap_or(&self.name)
    }
}

/// Mounts a past view. Nothing asks for fsck: a journal that needs replay is replayed in a clone that is thrown
/// away at [`umount`]. On an error nothing stays behind.
pub fn mount_past(options: &PastOptions) -> Result<Attached> {
    let room = attach::ready(&options.state_dir)?;
    if !options.writable {
        keeper::ask(&options.view_uri)?;
        // FUSE always: what the kernel's client needs longer for is many small writes.
        let mut attachment = room.begin(&options.name, &options.view_uri, true, Front::Fuse)?;
        let mut in_use = false;
        let mounted =
            attach::finish(&mut attachment, |attachment| mount_view(attachment, options, &mut in_use));
        match mounted {
            Err(_) if in_use => {}
            other => return other,
        }
    }
    let export = keeper::ask(&options.clone_uri)?;
    if export.read_only {
        return Err(Error::new(Kind::ReadOnly, format!("{} is no writable clone", options.clone_uri)));
    }
    let mut attachment = room.begin(&options.name, &options.clone_uri, false, Front::Fuse)?;
    attachment.through_clone = true;
    attachment.mounted_read_only = !options.writable;
    attach::finish(&mut attachment, |attachment| mount_clone(attachment, options))
}

/// Mounts the view itself; `in_use` is set where that cannot be because a journal needs replay.
fn mount_view(attachment: &mut Attachment, options: &PastOptions, in_use: &mut bool) -> Result<()> {
    let device = device::open(attachment, &options.keeper)?;
    let found = attach::find_filesystem(&device, options.partition, options.called())?;
    refuse_btrfs_twin(&found)?;
    if found.replay == Replay::Needed {
        *in_use = true;
        return Err(Error::new(Kind::ReadOnly, "its journal needs replay"));
    }
    let mounted = mount_checked(attachment, &found, options, None);
    if mounted.is_err() && found.replay == Replay::Unknown {
        // XFS only tells when it is mounted.
        *in_use = true;
    }
    mounted
}

fn mount_clone(attachment: &mut Attachment, options: &PastOptions) -> Result<()> {
    let device =
        device::open(attachment, if options.clone_is_named { &options.keeper } else { &Keeper::Nobody })?;
    let found = attach::find_filesystem(&device, options.partition, options.called())?;
    refuse_btrfs_twin(&found)?;
    // Read-only is the mount, not the device: the kernel replays the journal into the clone either way.
    mount_checked(attachment, &found, options, (!options.writable).then_some("ro"))
}

fn mount_checked(
    attachment: &mut Attachment,
    found: &Found,
    options: &PastOptions,
    extra: Option<&str>,
) -> Result<()> {
    let mut all: Vec<String> = extra.map(str::to_owned).into_iter().collect();
    all.extend(options.mount_options.iter().cloned());
    let device = attach::mount_on(attachment, found, &options.dir, &all)?;
    let dir = attachment.dir.clone().unwrap_or_default();
    let is_it = mounts::list()?.iter().any(|mount| mount.dir == dir && mount.source == device);
    if is_it {
        return Ok(());
    }
    // An older btrfs mounts the disk it knows under that UUID: the live one. Anything but that.
    let error = Error::new(Kind::Refused, "the kernel mounted another disk with the same filesystem UUID");
    Err(error.hint(BTRFS_TWIN_HINT))
}

const BTRFS_TWIN_HINT: &str =
    "unmount the live one first, or mount a writable clone after `btrfstune -u` on it";

/// Two btrfs devices of one UUID are one filesystem to kernels before 6.7: they would mix past and present.
fn refuse_btrfs_twin(found: &Found) -> Result<()> {
    if found.filesystem != Filesystem::Btrfs || kernel_keeps_twins_apart() {
        return Ok(());
    }
    for mount in mounts::list()?.iter().filter(|mount| mount.filesystem == "btrfs") {
        let other = attach::uuid_of(&mount.source);
        if other.is_some() && other == found.uuid {
            let what = format!("the same btrfs is mounted at {}", mount.dir.display());
            let what = format!("{what}, and this kernel would mix the two up");
            return Err(Error::new(Kind::Refused, what).hint(BTRFS_TWIN_HINT));
        }
    }
    Ok(())
}

/// Linux 6.7 gives the second one a temporary UUID (single-device filesystems).
fn kernel_keeps_twins_apart() -> bool {
    Path::new("/sys/fs/btrfs/features/temp_fsid").exists()
}

/// Unmounts what [`mount_past`] mounted, given by its directory, name or id.
pub fn umount(state_dir: &Path, which: &str, force: bool) -> Result<Attached> {
    attach::detach(state_dir, which, force)
}
