//! What is remembered of an attachment, so that another process can take it down: one directory each.

use crate::host::keeper::Places;
use cdp_core::error::{Error, IoContext, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where attachments are noted, in a store.
pub const STATE_DIR: &str = "attachments";

/// Layout of the state file; another number is refused.
const FORMAT: u32 = 1;

/// The longest path that fits a Unix socket's address, with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How much of a volume's name goes into a directory's name.
const SLUG_BYTES_MAX: usize = 40;

/// The most attachments of one name.
const SAME_NAME_MAX: u32 = 1000;

/// How the device is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Front {
    /// `nbdfuse` and a loop device.
    Fuse,
    /// The kernel's NBD client.
    Kernel,
}

/// How far it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being made. Found by somebody who holds the lock: its maker died.
    Starting,
    /// In use.
    Ready,
}

/// One attached export.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    format: u32,
    /// Name of its directory.
    pub id: String,
    /// What the user attached: a volume, or a volume and a point.
    pub name: String,
    /// Where it is served.
    pub uri: String,
    /// How the device is made.
    pub front: Front,
    /// How far it came.
    pub phase: Phase,
    /// The device refuses writing.
    pub read_only: bool,
    /// A past view that is opened through a writable clone, because its filesystem was in use at that instant or
    /// because the user wants to write.
    pub through_clone: bool,
    /// The mount refuses writing, also where the device does not.
    pub mounted_read_only: bool,
    /// The block device, once there is one.
    pub device: Option<PathBuf>,
    /// Where a filesystem of it is mounted.
    pub dir: Option<PathBuf>,
    /// `dir` was made for it and goes with it.
    pub dir_is_ours: bool,
    /// What is mounted there.
    pub filesystem: Option<String>,
    /// Which boot of the machine it belongs to; after another one nothing of it is left.
    pub boot_id: String,
    /// When it was made, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// The private socket.
    pub socket: PathBuf,
    /// The directory of all attachments, absolute.
    #[serde(skip)]
    room: PathBuf,
}

impl Attachment {
    /// Where its processes have their files.
    pub fn places(&self) -> Places {
        Places { dir: self.room.join(&self.id), socket: self.socket.clone() }
    }

    /// Writes the state file: whole or not at all.
    pub fn save(&self) -> Result<()> {
        let file = self.room.join(&self.id).join("state.json");
        let draft = file.with_extension("draft");
        let text = serde_json::to_string_pretty(self);
        let text =
            text.map_err(|error| Error::new(Kind::Invalid, format!("attachment {}: {error}", self.id)))?;
        std::fs::write(&draft, text).at(|| format!("cannot write {}", draft.display()))?;
        std::fs::rename(&draft, &file).at(|| format!("cannot write {}", file.display()))
    }

    /// Forgets it: its directory and its socket.
    pub fn forget(&self) -> Result<()> {
        let dir = self.room.join(&self.id);
        remove_if_there(std::fs::remove_file(&self.socket), &self.socket)?;
        if let Some(parent) = self.socket.parent().filter(|parent| **parent != dir) {
            remove_if_there(std::fs::remove_dir(parent), parent)?;
        }
        if self.dir_is_ours
            && let Some(mount_dir) = &self.dir
        {
            // Not empty, or gone: then it is not ours to remove any more.
            let _ = std::fs::remove_dir(mount_dir);
        }
        // Not remove_dir_all: should the FUSE mount still be there, that would empty the disk's directory.
        for name in ["state.json", "state.draft", "keeper.pid", "fuse.pid", "log"] {
            let file = dir.join(name);
            remove_if_there(std::fs::remove_file(&file), &file)?;
        }
        let fuse = self.places().fuse_dir();
        remove_if_there(std::fs::remove_dir(&fuse), &fuse)?;
        remove_if_there(std::fs::remove_dir(&dir), &dir)
    }
}

fn remove_if_there(result: std::io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at(|| format!("cannot remove {}", path.display())),
    }
}

/// The directory of all attachments, locked: one attach or detach at a time.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    // Held until dropped.
    _lock: File,
}

impl Room {
    /// Opens the directory, making it if need be, and waits for its lock.
    pub fn lock(dir: &Path) -> Result<Room> {
        std::fs::create_dir_all(dir).at(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().at(|| format!("cannot find {}", dir.display()))?;
        let path = dir.join(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.at(|| format!("cannot open {}", path.display()))?;
        lock.lock().at(|| format!("cannot lock {}", path.display()))?;
        Ok(Room { dir, _lock: lock })
    }

    /// Every attachment that is remembered, in the order of their names.
    pub fn list(&self) -> Result<Vec<Attachment>> {
        let entries = std::fs::read_dir(&self.dir).at(|| format!("cannot list {}", self.dir.display()))?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let file = entry.path().join("state.json");
            match std::fs::read_to_string(&file) {
                Ok(text) => found.push(self.parse(&text, &file)?),
                // A directory without a state: nothing was started in there yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
                Err(error) => return Err(Error::io(error, format!("cannot read {}", file.display()))),
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn parse(&self, text: &str, file: &Path) -> Result<Attachment> {
        let damaged = |what: String| Error::new(Kind::Damaged, format!("{}: {what}", file.display()));
        let mut attachment: Attachment =
            serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        if attachment.format != FORMAT {
            return Err(damaged(format!("format {} is not known", attachment.format)));
        }
        // The directory's own name counts, so that a copied state file cannot point elsewhere.
        let id = file.parent().and_then(Path::file_name).unwrap_or_default();
        attachment.id = id.to_string_lossy().into_owned();
        attachment.room = self.dir.clone();
        Ok(attachment)
    }

    /// Begins a new attachment: its directory and its first state are on disk before anything is started.
    pub fn begin(&self, name: &str, uri: &str, read_only: bool, front: Front) -> Result<Attachment> {
        let id = self.new_dir(name)?;
        let attachment = Attachment {
            format: FORMAT,
            name: name.to_owned(),
            uri: uri.to_owned(),
            front,
            phase: Phase::Starting,
            read_only,
            through_clone: false,
            mounted_read_only: read_only,
            device: None,
            dir: None,
            dir_is_ours: false,
            filesystem: None,
            boot_id: boot_id(),
            since_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            socket: self.socket_for(&id)?,
            room: self.dir.clone(),
            id,
        };
        attachment.save()?;
        Ok(attachment)
    }

    fn new_dir(&self, name: &str) -> Result<String> {
        let slug = slug(name);
        for number in 0..SAME_NAME_MAX {
            let id = if number == 0 { slug.clone() } else { format!("{slug}-{number}") };
            match std::fs::create_dir(self.dir.join(&id)) {
                Ok(()) => return Ok(id),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    // Left by a crash before the state file: empty, so nothing was started, and it can be used.
                    if std::fs::remove_dir(self.dir.join(&id)).is_ok() {
                        std::fs::create_dir(self.dir.join(&id)).at(|| format!("cannot create {id}"))?;
                        return Ok(id);
                    }
                }
                Err(error) => {
                    return Err(Error::io(error, format!("cannot create {}", self.dir.join(&id).display())));
                }
            }
        }
        Err(Error::new(Kind::Exists, format!("{name} is attached {SAME_NAME_MAX} times already")))
    }

    /// In the attachment's own directory, unless that path is too long for a socket.
    fn socket_for(&self, id: &str) -> Result<PathBuf> {
        let near = self.dir.join(id).join("keeper");
        if near.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(near);
        }
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let dir = PathBuf::from(format!("/run/cdp-{}-{unique:x}", std::process::id()));
        std::fs::create_dir(&dir).at(|| format!("cannot create {}", dir.display()))?;
        Ok(dir.join("keeper"))
    }
}

/// A directory's name from a volume's: letters and digits stay, so that a person finds it.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_@".contains(c) { c } else { '_' };
    let slug: String = name.chars().map(plain).take(SLUG_BYTES_MAX).collect();
    if slug.is_empty() { "export".to_owned() } else { slug }
}

/// Names this run of the machine; empty where the kernel does not say.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    // detach is another process than attach: what is written must be what is read.
    #[test]
    fn an_attachment_is_found_again_and_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let room = Room::lock(&temp.path().join("attachments")).unwrap();
        let one = room.begin("my disk@-5m", "nbd://localhost/x", true, Front::Fuse).unwrap();
        let two = room.begin("my disk@-5m", "nbd://localhost/x", true, Front::Fuse).unwrap();
        assert_eq!((one.id.as_str(), two.id.as_str()), ("my_disk@-5m", "my_disk@-5m-1"));
        assert_eq!(room.list().unwrap(), vec![one.clone(), two.clone()]);
        one.forget().unwrap();
        one.forget().unwrap();
        assert_eq!(room.list().unwrap(), vec![two]);
    }

    // A store deep in somebody's home must not make attach fail with "path too long".
    #[test]
    fn a_deep_store_gets_its_socket_elsewhere() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(60)).join("e".repeat(60));
        let room = Room::lock(&deep).unwrap();
        let one = room.begin("disk", "nbd://localhost/x", true, Front::Fuse).unwrap();
        assert!(one.socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{:?}", one.socket);
        one.forget().unwrap();
        assert!(!one.socket.parent().unwrap().exists());
    }

    // A state file from a newer cdp is not guessed at.
    #[test]
    fn an_unknown_format_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let room = Room::lock(temp.path()).unwrap();
        let mut one = room.begin("disk", "nbd://localhost/x", true, Front::Fuse).unwrap();
        one.format = 99;
        one.save().unwrap();
        assert_eq!(room.list().unwrap_err().kind(), Kind::Damaged);
    }
}
