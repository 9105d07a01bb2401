//! ext2, ext3 and ext4, by the crate `ext4-view`, which replays a journal that was in use in memory.

use cdp_core::error::{Error, Kind, Result};
use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, PathBuf};

use super::disk::Disk;
use super::{ByteSink, Entry, EntryKind, EntrySink, Names, Tree, not_found, shown};

/// Read at a time, in bytes.
const STEP_BYTES: usize = 256 << 10;

struct Blocks(Disk);

impl Ext4Read for Blocks {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read_exact_at(start, buffer)?)
    }
}

/// An opened filesystem.
pub struct Ext4Tree {
    fs: Ext4,
}

impl Ext4Tree {
    /// Reads superblock and journal.
    pub fn open(disk: Disk) -> Result<Ext4Tree> {
        let fs = Ext4::load(Box::new(Blocks(disk))).map_err(|error| translate(error, &[]))?;
        Ok(Ext4Tree { fs })
    }

    fn path(path: &Names) -> Result<PathBuf> {
        let mut joined = vec![b'/'];
        joined.extend_from_slice(&path.join(&b'/'));
        PathBuf::try_from(joined).map_err(|_| not_found(path))
    }

    fn describe(&self, path: &PathBuf, name: &[u8], found: &Metadata) -> Result<Entry, Ext4Error> {
        let kind = match found.file_type() {
            FileType::Regular => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink(self.fs.read_link(path)?.as_ref().to_vec()),
            FileType::BlockDevice => EntryKind::Special("block device"),
            FileType::CharacterDevice => EntryKind::Special("character device"),
            FileType::Fifo => EntryKind::Special("pipe"),
            FileType::Socket => EntryKind::Special("socket"),
        };
        let modified = found.modified();
        Ok(Entry {
            name: name.to_vec(),
            kind,
            bytes: found.len(),
            mode: Some(found.mode()),
            owner: Some((found.uid(), found.gid())),
            modified_ns: Some(
                i128::from(modified.seconds()) * 1_000_000_000 + i128::from(modified.nanoseconds()),
            ),
        })
    }
}

impl Tree for Ext4Tree {
    fn entry(&mut self, path: &Names) -> Result<Entry> {
        let whole = Self::path(path)?;
        let name = path.last().map_or(&[][..], Vec::as_slice);
        let found = self.fs.symlink_metadata(&whole);
        found.and_then(|found| self.describe(&whole, name, &found)).map_err(|error| translate(error, path))
    }

    fn list(&mut self, path: &Names, take: &mut EntrySink<'_>) -> Result<()> {
        let whole = Self::path(path)?;
        for found in self.fs.read_dir(&whole).map_err(|error| translate(error, path))? {
            let found = found.map_err(|error| translate(error, path))?;
            let name = found.file_name();
            if matches!(name.as_ref(), b"." | b"..") {
                continue;
            }
            let entry = found
                .metadata()
                .and_then(|data| self.describe(&found.path(), name.as_ref(), &data))
                .map_err(|error| translate(error, path))?;
            take(entry)?;
        }
        Ok(())
    }

    fn read(&mut self, path: &Names, take: &mut ByteSink<'_>) -> Result<()> {
        let mut file = self.fs.open(&Self::path(path)?).map_err(|error| translate(error, path))?;
        let mut buffer = vec![0; STEP_BYTES];
        loop {
            // The crate gives a block at a time; fewer and larger pieces go on.
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_bytes(&mut buffer[filled..]).map_err(|error| translate(error, path))? {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            take(&buffer[..filled])?;
        }
    }
}

fn translate(error: Ext4Error, path: &Names) -> Error {
    let what = shown(path);
    match error {
        Ext4Error::NotFound => not_found(path),
        Ext4Error::NotADirectory => Error::new(Kind::NotFound, format!("{what}: not a directory")),
        Ext4Error::IsADirectory => Error::new(Kind::Invalid, format!("{what} is a directory")),
        Ext4Error::IsASpecialFile => Error::new(Kind::Invalid, format!("{what} has no content")),
        Ext4Error::TooManySymlinks | Ext4Error::PathTooLong | Ext4Error::MalformedPath => {
            Error::new(Kind::Invalid, format!("{what}: {error}"))
        }
        Ext4Error::Encrypted => Error::new(Kind::Invalid, format!("{what} is encrypted")),
        Ext4Error::Io(error) => Error::new(Kind::Io, format!("{what}: {error}")),
        // Also one that was mounted for the first time a moment before: its journal is not described yet.
        Ext4Error::Incompatible(_) => {
            let context =
                format!("{what}: as it was at that instant this filesystem is not read here: {error}");
            Error::new(Kind::Invalid, context).hint("the kernel reads it: cdp mount VOL@POINT DIR")
        }
        other => Error::new(Kind::Damaged, format!("{what}: {other}")).hint(
            "it was damaged at that instant: `cdp mount` lets the kernel try; an earlier point may be good",
        ),
    }
}
