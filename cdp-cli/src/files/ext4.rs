//! ext2, ext3 and ext4: names and attributes by the crate `ext4-view`, contents and the journal by our own
//! `ext4_blocks`.

use cdp_core::error::{Error, Kind, Result};
use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, PathBuf};

use super::disk::Disk;
use super::ext4_blocks::{Blocks, Stretch, damaged};
use super::{ByteSink, Entry, EntryKind, EntrySink, Names, Tree, not_found, shown};

/// Read at a time, in bytes.
const STEP_BYTES: usize = 256 << 10;

struct Replayed(Blocks);

impl Ext4Read for Replayed {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(start, buffer)?)
    }
}

/// An opened filesystem.
pub struct Ext4Tree {
    fs: Ext4,
    blocks: Blocks,
}

struct AsItLies(Disk);

impl Ext4Read for AsItLies {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read_exact_at(start, buffer)?)
    }
}

impl Ext4Tree {
    /// Reads superblock and journal.
    pub fn open(disk: Disk) -> Result<Ext4Tree> {
        let wrong = |error| translate(error, &[]);
        // What the crate cannot read is refused by its words: features, checksums, kinds of journals.
        Ext4::load(Box::new(AsItLies(disk.clone()))).map_err(wrong)?;
        let blocks = Blocks::open(disk)?;
        let fs = Ext4::load(Box::new(Replayed(blocks.clone()))).map_err(wrong)?;
        Ok(Ext4Tree { fs, blocks })
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
        let file = self.fs.open(&Self::path(path)?).map_err(|error| translate(error, path))?;
        let bytes = file.metadata().len();
        let mut content =
            Content { blocks: &self.blocks, left: bytes, next: 0, buffer: Vec::new(), take, refused: false };
        let mut read = || {
            let inode = self.blocks.inode(inode_number(&file)?)?;
            if inode.bytes != bytes {
                return Err(damaged("its inode is another one"));
            }
            self.blocks.stretches(&inode, &mut |stretch| content.stretch(&stretch))?;
            content.zeros(u64::MAX)
        };
        let done = read();
        done.map_err(|error| match content.refused {
            true => error,
            false => named(&error, path),
        })
    }
}

fn named(error: &Error, path: &Names) -> Error {
    let named = Error::new(error.kind(), format!("{}: {error}", shown(path)));
    match error.hint_text() {
        Some(hint) => named.hint(hint),
        None => named,
    }
}

/// The crate tells the number of an inode to those only who print it.
fn inode_number(file: &ext4_view::File) -> Result<u32> {
    let text = format!("{file:?}");
    let number = text.split_once("inode: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    number.ok_or_else(|| Error::new(Kind::Invalid, "the number of its inode cannot be found out"))
}

/// The content of a file on its way out.
struct Content<'a, 'b> {
    blocks: &'a Blocks,
    /// Bytes that are still to come.
    left: u64,
    /// The next block, counted in the file.
    next: u64,
    buffer: Vec<u8>,
    take: &'a mut ByteSink<'b>,
    /// What went wrong went wrong where the bytes go.
    refused: bool,
}

impl Content<'_, '_> {
    /// Takes the next stretch and what is missing before it; false once the file is at its end.
    fn stretch(&mut self, stretch: &Stretch) -> Result<bool> {
        self.zeros(stretch.first.saturating_sub(self.next))?;
        match stretch.place {
            None => self.zeros(stretch.count)?,
            Some(place) => self.data(place, stretch.count)?,
        }
        Ok(self.left > 0)
    }

    fn give(&mut self, bytes: usize) -> Result<()> {
        let taken = (self.take)(&self.buffer[..bytes]);
        self.refused = taken.is_err();
        taken
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let mut bytes = count.saturating_mul(self.blocks.block_bytes).min(self.left);
        self.next = self.next.saturating_add(count);
        self.buffer.clear();
        self.buffer.resize(bytes.min(STEP_BYTES as u64) as usize, 0);
        while bytes > 0 {
            let part = bytes.min(STEP_BYTES as u64);
            self.give(part as usize)?;
            bytes -= part;
            self.left -= part;
        }
        Ok(())
    }

    fn data(&mut self, place: u64, count: u64) -> Result<()> {
        let mut bytes = count.saturating_mul(self.blocks.block_bytes).min(self.left);
        self.next += count;
        let mut place = place;
        while bytes > 0 {
            let part = bytes.min(STEP_BYTES as u64);
            self.buffer.resize(part as usize, 0);
            self.blocks.read_block(place, &mut self.buffer)?;
            self.give(part as usize)?;
            place = place.saturating_add(part / self.blocks.block_bytes);
            bytes -= part;
            self.left -= part;
        }
        Ok(())
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
