//! Files out of a disk image, without mounting it: one trait for what a filesystem can tell, an implementation for
//! each kind, and one place where their panics end.
//!
//! What is on the image was written by somebody else. So every call goes through [`contain::Contained`], reads are
//! counted ([`disk::Disk`]), and lists and depths have bounds.

pub mod compare;
pub mod contain;
pub mod copy;
pub mod disk;
pub mod ext4;
mod ext4_blocks;
mod ext4_journal;
pub mod fat;
pub mod ntfs;
mod ntfs_stream;
pub mod table;
pub mod target;
pub mod versions;
pub mod walk;

use cdp_core::error::{Error, Kind, Result};

use contain::Contained;
use disk::Disk;
use table::{Holds, Slot};

/// The most entries of a directory.
pub const ENTRIES_MAX: usize = 2_000_000;
/// The deepest directory that is entered.
pub const DEPTH_MAX: usize = 128;
/// The longest path inside an image, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// What an entry of a directory is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, with its text.
    Symlink(Vec<u8>),
    /// Something that has no content: a device, a pipe, a socket.
    Special(&'static str),
}

/// A file or directory, as the filesystem describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name in its directory; bytes, as Linux has them. The root's is empty.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Length of its content in bytes.
    pub bytes: u64,
    /// Permission bits, where the filesystem has them.
    pub mode: Option<u16>,
    /// User and group, where the filesystem has them.
    pub owner: Option<(u32, u32)>,
    /// When its content was changed, in nanoseconds since 1970 in UTC, where the filesystem says.
    pub modified_ns: Option<i128>,
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == EntryKind::Directory
    }

    /// The name for people; what is not UTF-8 is replaced.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// A path inside a filesystem: its names from the root on. `.`, `..` and empty names have been resolved.
pub type Names = [Vec<u8>];

/// Takes what is listed, one by one; its error ends the work.
pub type EntrySink<'a> = dyn FnMut(Entry) -> Result<()> + 'a;

/// Takes what is read, piece by piece; its error ends the work.
pub type ByteSink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// What every filesystem can tell. Paths have no symbolic links before their last name unless the filesystem
/// follows them within itself.
pub trait Tree {
    /// The entry at a path; a symbolic link at its end is not followed.
    fn entry(&mut self, path: &Names) -> Result<Entry>;

    /// The entries of a directory in no particular order, without `.` and `..`.
    fn list(&mut self, path: &Names, take: &mut EntrySink<'_>) -> Result<()>;

    /// The content of a regular file, in order.
    fn read(&mut self, path: &Names, take: &mut ByteSink<'_>) -> Result<()>;
}

/// Opens the filesystem in a part of a disk.
pub fn open(disk: &Disk, slot: &Slot) -> Result<Contained> {
    let part = disk.part(slot.start, slot.bytes)?;
    match &slot.holds {
        Holds::Ext(name) => Contained::new(name, part.fuel(), || Ok(Box::new(ext4::Ext4Tree::open(part)?))),
        Holds::Fat => Contained::new("FAT", part.fuel(), || Ok(Box::new(fat::FatTree::open(part)?))),
        Holds::Ntfs => Contained::new("NTFS", part.fuel(), || Ok(Box::new(ntfs::NtfsTree::open(part)?))),
        other => Err(Error::new(Kind::Invalid, format!("{other} cannot be looked into without mounting it"))),
    }
}

/// An entry that is not there.
pub(crate) fn not_found(path: &Names) -> Error {
    Error::new(Kind::NotFound, format!("there is no {}", shown(path)))
}

/// A path for people.
pub fn shown(path: &Names) -> String {
    let names: Vec<_> = path.iter().map(|name| String::from_utf8_lossy(name)).collect();
    format!("/{}", names.join("/"))
}
