//! FAT12, FAT16 and FAT32, by the crate `fatfs`.

use std::io::{ErrorKind, Read};

use cdp_core::error::{Error, IoContext, Kind, Result};
use fatfs::{DateTime, Dir, FileSystem, FsOptions};

use super::disk::Disk;
use super::{ByteSink, Entry, EntryKind, EntrySink, Names, Tree, not_found, shown};

/// Read at a time, in bytes.
const STEP_BYTES: usize = 256 << 10;
/// A directory cannot hold more: 2 MiB of entries.
const ENTRIES_MAX: usize = 65_536;

/// An opened filesystem.
pub struct FatTree {
    fs: FileSystem<Disk>,
}

type Found<'a> = fatfs::DirEntry<'a, Disk>;

impl FatTree {
    /// Reads the boot sector.
    pub fn open(disk: Disk) -> Result<FatTree> {
        let fs = FileSystem::new(disk, FsOptions::new()).map_err(|error| translate(error, &[]))?;
        Ok(FatTree { fs })
    }

    fn directory(&self, path: &Names) -> Result<Dir<'_, Disk>> {
        let mut dir = self.fs.root_dir();
        for depth in 0..path.len() {
            let found = find(&dir, &path[..=depth])?;
            if !found.is_dir() {
                let context = format!("{}: not a directory", shown(&path[..=depth]));
                return Err(Error::new(Kind::NotFound, context));
            }
            dir = found.to_dir();
        }
        Ok(dir)
    }

    fn found(&self, path: &Names) -> Result<Option<Found<'_>>> {
        match path.split_last() {
            None => Ok(None),
            Some((_, parent)) => find(&self.directory(parent)?, path).map(Some),
        }
    }
}

/// The entry that the last name of a path means in its directory. Names are compared as FAT does: without case.
fn find<'a>(dir: &Dir<'a, Disk>, path: &Names) -> Result<Found<'a>> {
    let name = path.last().map(|name| String::from_utf8_lossy(name).to_lowercase()).unwrap_or_default();
    for found in dir.iter().take(ENTRIES_MAX) {
        let found = found.map_err(|error| translate(error, path))?;
        if found.file_name().to_lowercase() == name || found.short_file_name().to_lowercase() == name {
            return Ok(found);
        }
    }
    Err(not_found(path))
}

fn describe(found: &Found<'_>) -> Entry {
    Entry {
        name: found.file_name().into_bytes(),
        kind: if found.is_dir() { EntryKind::Directory } else { EntryKind::File },
        bytes: if found.is_dir() { 0 } else { found.len() },
        mode: None,
        owner: None,
        modified_ns: nanoseconds(found.modified()),
    }
}

/// FAT has local time and no zone; like Linux without a `tz` option it is taken for UTC. `None` for no date.
fn nanoseconds(time: DateTime) -> Option<i128> {
    let (year, month, day) =
        (i64::from(time.date.year), i64::from(time.date.month), i64::from(time.date.day));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 in the Gregorian calendar; a year that begins in March has its odd day at the end.
    let shifted = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468;
    let clock = &time.time;
    let seconds = (i64::from(clock.hour) * 60 + i64::from(clock.min)) * 60 + i64::from(clock.sec);
    Some(i128::from(days * 86_400 + seconds) * 1_000_000_000 + i128::from(clock.millis) * 1_000_000)
}

impl Tree for FatTree {
    fn entry(&mut self, path: &Names) -> Result<Entry> {
        Ok(match self.found(path)? {
            Some(found) => describe(&found),
            None => Entry {
                name: Vec::new(),
                kind: EntryKind::Directory,
                bytes: 0,
                mode: None,
                owner: None,
                modified_ns: None,
            },
        })
    }

    fn list(&mut self, path: &Names, take: &mut EntrySink<'_>) -> Result<()> {
        let dir = self.directory(path)?;
        for (count, found) in dir.iter().enumerate() {
            let found = found.map_err(|error| translate(error, path))?;
            if count > ENTRIES_MAX {
                return Err(Error::new(Kind::Damaged, format!("{} has no end", shown(path))));
            }
            if !matches!(found.file_name().as_str(), "." | "..") {
                take(describe(&found))?;
            }
        }
        Ok(())
    }

    fn read(&mut self, path: &Names, take: &mut ByteSink<'_>) -> Result<()> {
        let found = self.found(path)?.filter(|found| !found.is_dir());
        let found =
            found.ok_or_else(|| Error::new(Kind::Invalid, format!("{} is a directory", shown(path))))?;
        let mut left = found.len();
        let mut file = found.to_file();
        let mut buffer = vec![0; STEP_BYTES];
        while left > 0 {
            let step = left.min(STEP_BYTES as u64) as usize;
            match file.read(&mut buffer[..step]).map_err(|error| translate(error, path))? {
                0 => {
                    let context = format!("{} is shorter than its directory says", shown(path));
                    return Err(Error::new(Kind::Damaged, context));
                }
                count => {
                    take(&buffer[..count])?;
                    left -= count as u64;
                }
            }
        }
        Ok(())
    }
}

fn translate(error: std::io::Error, path: &Names) -> Error {
    match error.kind() {
        ErrorKind::NotFound => not_found(path),
        // The crate has no kinds of its own: what it does not like is of the kind `Other`.
        ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            Error::new(Kind::Damaged, format!("{}: {error}", shown(path)))
        }
        _ => Err::<(), _>(error).at(|| format!("reading {}", shown(path))).unwrap_err(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A restored file with a wrong date is sorted to the wrong place by whoever looks for the newest.
    #[test]
    fn dates_are_seconds_since_1970() {
        let at = |year, month, day, hour| {
            let date = fatfs::Date { year, month, day };
            let time = fatfs::Time { hour, min: 0, sec: 0, millis: 0 };
            nanoseconds(DateTime { date, time }).map(|ns| ns / 1_000_000_000)
        };
        assert_eq!(at(1980, 1, 1, 0), Some(315_532_800));
        assert_eq!(at(2000, 2, 29, 12), Some(951_825_600));
        assert_eq!(at(2024, 12, 31, 23), Some(1_735_686_000));
        assert_eq!(at(1980, 0, 0, 0), None);
    }
}
