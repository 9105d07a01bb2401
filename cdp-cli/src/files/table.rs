//! What lies where on a disk: one filesystem over all of it, or partitions with what each holds.

use std::fmt;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::split_export;

use super::disk::Disk;
use crate::host::partitions;
use crate::host::superblock::{Content, Filesystem, PROBE_BYTES, identify};

/// What is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holds {
    /// ext2, ext3 or ext4, by its name.
    Ext(&'static str),
    /// FAT.
    Fat,
    /// NTFS.
    Ntfs,
    /// A filesystem that only a kernel reads, by the name for `mount`.
    Mountable(String),
    /// No filesystem, in words.
    Other(&'static str),
    /// Nothing but zeros at its beginning.
    Blank,
    /// Bytes that we do not know.
    Unknown,
}

impl Holds {
    /// Whether its files can be read here.
    pub fn is_readable(&self) -> bool {
        matches!(self, Holds::Ext(_) | Holds::Fat | Holds::Ntfs)
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Holds::Ext(name) | Holds::Other(name) => name,
            Holds::Fat => "FAT",
            Holds::Ntfs => "NTFS",
            Holds::Mountable(name) => name,
            Holds::Blank => "nothing",
            Holds::Unknown => "something unknown",
        })
    }
}

/// A place on a disk with what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Number of the partition; `None` for the whole disk.
    pub partition: Option<u32>,
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// What is there.
    pub holds: Holds,
}

/// Looks at a disk. Gives the whole disk as the only slot, or the partitions.
pub fn read(disk: &Disk) -> Result<Vec<Slot>> {
    let prefix = disk.prefix(PROBE_BYTES)?;
    if let Some(holds) = holds(&prefix) {
        return Ok(vec![Slot { partition: None, start: 0, bytes: disk.bytes(), holds }]);
    }
    let slot = |found: partitions::Partition| {
        let part = disk
            .part(found.start, found.bytes)
            .and_then(|part| Ok((part.bytes(), part.prefix(PROBE_BYTES)?)));
        let (bytes, holds) = match part {
            // A table inside a partition is nothing that could be looked into.
            Ok((bytes, prefix)) => (bytes, holds(&prefix).unwrap_or(Holds::Unknown)),
            Err(_) => (found.bytes, Holds::Unknown),
        };
        Slot { partition: Some(found.number), start: found.start, bytes, holds }
    };
    let mut sector = |at| {
        let mut bytes = vec![0; 512];
        disk.read_exact_at(at, &mut bytes).ok().map(|()| bytes)
    };
    Ok(partitions::read(&prefix, &mut sector).into_iter().map(slot).collect())
}

/// `None` for a partition table.
fn holds(prefix: &[u8]) -> Option<Holds> {
    Some(match identify(prefix) {
        Content::Partitions => return None,
        Content::Blank => Holds::Blank,
        Content::Unknown => Holds::Unknown,
        Content::Other(what) => Holds::Other(what),
        Content::Filesystem { filesystem: Filesystem::Ext(name), .. } => Holds::Ext(name),
        Content::Filesystem { filesystem, .. } => match filesystem.mount_name() {
            "vfat" => Holds::Fat,
            "ntfs3" => Holds::Ntfs,
            other => Holds::Mountable(other.to_owned()),
        },
    })
}

/// The slot to look into: the one that was asked for, else the only one whose files can be read. `what` names the
/// disk as the user did, with its point.
pub fn choose<'a>(slots: &'a [Slot], partition: Option<u32>, what: &str) -> Result<&'a Slot> {
    let mount = |number: Option<u32>| {
        let partition = number.map(|number| format!(" --partition {number}")).unwrap_or_default();
        format!("mount it: cdp mount{partition} {what} DIR")
    };
    let slot = match partition {
        Some(number) => slots.iter().find(|slot| slot.partition == Some(number)).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{what} has no partition {number}"))
                .hint(format!("cdp ls {what}: shows what is there"))
        })?,
        None => {
            let readable: Vec<&Slot> = slots.iter().filter(|slot| slot.holds.is_readable()).collect();
            match readable.as_slice() {
                [only] => only,
                [] => match slots {
                    [only] => only,
                    [] => {
                        let context = format!("there is no partition on {what}");
                        return Err(Error::new(Kind::Invalid, context));
                    }
                    several => {
                        let names: Vec<String> = several.iter().map(|slot| slot.holds.to_string()).collect();
                        let context =
                            format!("no partition of {what} can be looked into: {}", names.join(", "));
                        let first = several.iter().find(|slot| matches!(slot.holds, Holds::Mountable(_)));
                        return Err(Error::new(Kind::Invalid, context)
                            .hint(mount(first.or(several.first()).and_then(|slot| slot.partition))));
                    }
                },
                several => {
                    let numbers: Vec<String> = several
                        .iter()
                        .map(|slot| format!("{} ({})", slot.partition.unwrap_or(0), slot.holds))
                        .collect();
                    let context =
                        format!("{what} has several filesystems: partitions {}", numbers.join(", "));
                    return Err(Error::new(Kind::Invalid, context)
                        .hint(format!("say which: --partition {}", several[0].partition.unwrap_or(0))));
                }
            }
        }
    };
    let place = slot.partition.map(|number| format!("partition {number} of ")).unwrap_or_default();
    let no = |what_is_there: String| Error::new(Kind::Invalid, format!("{place}{what} {what_is_there}"));
    match &slot.holds {
        holds if holds.is_readable() => Ok(slot),
        Holds::Mountable(name) => {
            Err(no(format!("holds {name}, which is not read without mounting it"))
                .hint(mount(slot.partition)))
        }
        Holds::Other(name) => Err(no(format!("holds no filesystem but {name}"))
            .hint(format!("as a device: cdp attach, or restore it: cdp restore {what} FILE"))),
        Holds::Blank => {
            let (volume, _) = split_export(what);
            Err(no("is empty at that instant".to_owned())
                .hint(format!("an earlier or later point may not be: cdp log {volume}")))
        }
        _ => Err(no("holds nothing that is known here".to_owned()).hint(mount(slot.partition))),
    }
}
