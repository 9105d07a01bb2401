//! NTFS, by the crate `ntfs`; contents by `ntfs_stream`. Its log is not replayed: what Windows had not written out yet is not seen.

use cdp_core::error::{Error, Kind, Result};
use ntfs::indexes::NtfsFileNameIndex;
use ntfs::structured_values::{NtfsFileName, NtfsFileNamespace};
use ntfs::{Ntfs, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek};

use super::disk::Disk;
use super::ntfs_stream::Stream;
use super::{ByteSink, Entry, EntryKind, EntrySink, Names, Tree, not_found, shown};

/// Files below belong to the filesystem itself: `$MFT` and others.
const FIRST_USER_RECORD: u64 = 24;
/// The root directory's record.
const ROOT_RECORD: u64 = 5;
/// From 1601 to 1970, in units of 100 ns.
const UNIX_EPOCH: i128 = 116_444_736_000_000_000;
/// Reparse tags of what has a target and no content.
const REPARSE_SYMLINK: u32 = 0xa000_000c;
const REPARSE_MOUNT_POINT: u32 = 0xa000_0003;
/// The most bytes of a reparse point.
const REPARSE_BYTES_MAX: usize = 16 << 10;

/// An opened filesystem.
pub struct NtfsTree {
    ntfs: Ntfs,
    disk: Disk,
}

impl NtfsTree {
    /// Reads the boot sector and the table of upper case letters.
    pub fn open(mut disk: Disk) -> Result<NtfsTree> {
        let opened = Ntfs::new(&mut disk).and_then(|mut ntfs| {
            ntfs.read_upcase_table(&mut disk)?;
            Ok(ntfs)
        });
        let ntfs = opened.map_err(|error| translate(error, &[]))?;
        Ok(NtfsTree { ntfs, disk })
    }
}

/// The file at a path, walked from the root.
fn find<'n>(ntfs: &'n Ntfs, disk: &mut Disk, path: &Names) -> Result<NtfsFile<'n>> {
    let wrong = |error| translate(error, path);
    let mut file = ntfs.root_directory(disk).map_err(wrong)?;
    for depth in 0..path.len() {
        let name = String::from_utf8_lossy(&path[depth]).into_owned();
        let next = {
            if !file.is_directory() {
                let context = format!("{}: not a directory", shown(&path[..depth]));
                return Err(Error::new(Kind::NotFound, context));
            }
            let index = file.directory_index(disk).map_err(wrong)?;
            let mut finder = index.finder();
            let found = NtfsFileNameIndex::find(&mut finder, ntfs, disk, &name);
            let found = found.ok_or_else(|| not_found(&path[..=depth]))?.map_err(wrong)?;
            found.to_file(ntfs, disk).map_err(wrong)?
        };
        file = next;
    }
    Ok(file)
}

fn nanoseconds(time: ntfs::NtfsTime) -> Option<i128> {
    Some((i128::from(time.nt_timestamp()) - UNIX_EPOCH) * 100)
}

fn describe(ntfs: &Ntfs, file: &NtfsFile<'_>, disk: &mut Disk, name: &[u8]) -> Result<Entry, NtfsError> {
    let (bytes, reparse) = (Stream::of(ntfs, file, disk)?.bytes, reparse(file, disk)?);
    let kind = match (reparse, file.is_directory()) {
        (Some(target), _) => target,
        (None, true) => EntryKind::Directory,
        (None, false) => EntryKind::File,
    };
    let modified_ns = file.info().ok().and_then(|info| nanoseconds(info.modification_time()));
    Ok(Entry { name: name.to_vec(), kind, bytes, mode: None, owner: None, modified_ns })
}

/// What a reparse point makes of the file.
fn reparse(file: &NtfsFile<'_>, disk: &mut Disk) -> Result<Option<EntryKind>, NtfsError> {
    let mut reparse = None;
    let mut attributes = file.attributes();
    while let Some(item) = attributes.next(disk) {
        let item = item?;
        let attribute = item.to_attribute()?;
        if let Ok(NtfsAttributeType::ReparsePoint) = attribute.ty() {
            let mut value = attribute.value(disk)?;
            let mut data = vec![0; value.len().min(REPARSE_BYTES_MAX as u64) as usize];
            let mut filled = 0;
            while filled < data.len() {
                match value.read(disk, &mut data[filled..])? {
                    0 => break,
                    count => filled += count,
                }
            }
            reparse = Some(reparse_kind(&data));
        }
    }
    Ok(reparse)
}

/// A symbolic link or junction by its printable target; anything else is special.
fn reparse_kind(data: &[u8]) -> EntryKind {
    let u16_at = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?) as usize);
    let target = || {
        let tag = u32::from_le_bytes(data.get(..4)?.try_into().ok()?);
        let names = match tag {
            REPARSE_SYMLINK => 20,
            REPARSE_MOUNT_POINT => 16,
            _ => return None,
        };
        let start = names + u16_at(12)?;
        let name = data.get(start..start + u16_at(14)?)?;
        let units = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let text: String =
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        Some(text.replace('\\', "/").into_bytes())
    };
    target().map_or(EntryKind::Special("reparse point"), EntryKind::Symlink)
}

impl Tree for NtfsTree {
    fn entry(&mut self, path: &Names) -> Result<Entry> {
        let NtfsTree { ntfs, disk } = self;
        let file = find(ntfs, disk, path)?;
        let name = path.last().map_or(&[][..], Vec::as_slice);
        describe(ntfs, &file, disk, name).map_err(|error| translate(error, path))
    }

    fn list(&mut self, path: &Names, take: &mut EntrySink<'_>) -> Result<()> {
        let wrong = |error| translate(error, path);
        let NtfsTree { ntfs, disk } = self;
        let directory = find(ntfs, disk, path)?;
        if !directory.is_directory() {
            return Err(Error::new(Kind::NotFound, format!("{}: not a directory", shown(path))));
        }
        let index = directory.directory_index(disk).map_err(wrong)?;
        let mut found = index.entries();
        while let Some(item) = found.next(disk) {
            let item = item.map_err(wrong)?;
            let Some(key) = item.key() else { continue };
            let key: NtfsFileName = key.map_err(wrong)?;
            let record = item.file_reference().file_record_number();
            let own = record < FIRST_USER_RECORD && (record != ROOT_RECORD || path.is_empty());
            // A file with a long name has a second, short one.
            if own || key.namespace() == NtfsFileNamespace::Dos {
                continue;
            }
            let name = key.name().to_string_lossy().into_bytes();
            let file = item.to_file(ntfs, disk).map_err(wrong)?;
            take(describe(ntfs, &file, disk, &name).map_err(wrong)?)?;
        }
        Ok(())
    }

    fn read(&mut self, path: &Names, take: &mut ByteSink<'_>) -> Result<()> {
        let wrong = |error| translate(error, path);
        let NtfsTree { ntfs, disk } = self;
        let file = find(ntfs, disk, path)?;
        if file.is_directory() {
            return Err(Error::new(Kind::Invalid, format!("{} is a directory", shown(path))));
        }
        if reparse(&file, disk).map_err(wrong)?.is_some() {
            // Windows keeps the content of some elsewhere, and zeros here.
            return Err(Error::new(Kind::Invalid, format!("{} is a reparse point", shown(path)))
                .hint("the kernel may read it: cdp mount"));
        }
        let stream = Stream::of(ntfs, &file, disk).map_err(wrong)?;
        if let Some(how) = stream.obstacle() {
            return Err(Error::new(Kind::Invalid, format!("{} is {how} by NTFS", shown(path)))
                .hint("the kernel may read it: cdp mount"));
        }
        stream.read(disk, take, &wrong)
    }
}

fn translate(error: NtfsError, path: &Names) -> Error {
    match error {
        NtfsError::Io(error) if error.raw_os_error().is_some() => {
            Error::io(error, format!("reading {}", shown(path)))
        }
        NtfsError::NotADirectory { .. } => {
            Error::new(Kind::NotFound, format!("{}: not a directory", shown(path)))
        }
        other => Error::new(Kind::Damaged, format!("{}: {other}", shown(path))),
    }
}
