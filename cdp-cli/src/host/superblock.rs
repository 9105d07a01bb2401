//! What is on a device, told from its first bytes: which filesystem, and whether its journal needs replay.

use std::fmt;

/// So many bytes from the start of a device decide; fewer are fine on a small one.
pub const PROBE_BYTES: usize = 128 << 10;

const EXT_AT: usize = 1024;
const EXT_MAGIC: u16 = 0xef53;
const EXT_COMPAT_HAS_JOURNAL: u32 = 0x4;
const EXT_INCOMPAT_RECOVER: u32 = 0x4;
const EXT_INCOMPAT_EXTENTS: u32 = 0x40;
const BTRFS_AT: usize = 64 << 10;

/// A filesystem by the kernel's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Filesystem {
    /// ext2, ext3 or ext4.
    Ext(&'static str),
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// Another one that can be mounted.
    Other(&'static str),
}

impl Filesystem {
    /// What `mount -t` wants.
    pub fn mount_name(&self) -> &'static str {
        match self {
            Filesystem::Ext(name) | Filesystem::Other(name) => name,
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mount_name())
    }
}

/// Whether the filesystem was in use at that instant, so that mounting it has to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// Its journal has to be replayed.
    Needed,
    /// It was unmounted cleanly.
    Clean,
    /// The superblock does not tell; a mount will.
    Unknown,
}

/// What a device holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing but zeros where anything would begin.
    Blank,
    /// A filesystem over the whole device.
    Filesystem {
        /// Which.
        filesystem: Filesystem,
        /// Whether it was in use.
        replay: Replay,
        /// Its UUID in the usual form, where it has one; two mounts of one UUID disturb each other.
        uuid: Option<String>,
    },
    /// A partition table; filesystems are in the partitions.
    Partitions,
    /// Something that is no filesystem, by name.
    Other(&'static str),
    /// Bytes that we do not know.
    Unknown,
}

/// Tells from a device's first [`PROBE_BYTES`] what it holds. Reads past the end of a short slice find nothing.
pub fn identify(bytes: &[u8]) -> Content {
    if let Some(found) = ext(bytes).or_else(|| xfs(bytes)).or_else(|| btrfs(bytes)) {
        return found;
    }
    let has = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    let other = |name| Content::Filesystem {
        filesystem: Filesystem::Other(name),
        replay: Replay::Unknown,
        uuid: None,
    };
    // FAT and NTFS boot sectors end like a partition table, so they are looked at first.
    if has(3, b"NTFS    ") {
        return other("ntfs3");
    }
    if has(82, b"FAT32") || has(54, b"FAT1") {
        return other("vfat");
    }
    if has(32769, b"CD001") {
        return other("iso9660");
    }
    if has(0, b"hsqs") {
        return other("squashfs");
    }
    if has(0, b"LUKS\xba\xbe") {
        return Content::Other("an encrypted volume (LUKS)");
    }
    if has(512, b"LABELONE") {
        return Content::Other("an LVM physical volume");
    }
    if has(4086, b"SWAPSPACE2") {
        return Content::Other("swap space");
    }
    if has(512, b"EFI PART") || has(4096, b"EFI PART") || has(510, &[0x55, 0xaa]) {
        return Content::Partitions;
    }
    if bytes.iter().all(|&byte| byte == 0) { Content::Blank } else { Content::Unknown }
}

fn ext(bytes: &[u8]) -> Option<Content> {
    if u16_at(bytes, EXT_AT + 0x38)? != EXT_MAGIC {
        return None;
    }
    let compat = u32_at(bytes, EXT_AT + 0x5c)?;
    let incompat = u32_at(bytes, EXT_AT + 0x60)?;
    let name = match (compat & EXT_COMPAT_HAS_JOURNAL != 0, incompat & EXT_INCOMPAT_EXTENTS != 0) {
        (_, true) => "ext4",
        (true, false) => "ext3",
        (false, false) => "ext2",
    };
    // Set for as long as it is mounted for writing.
    let replay = if incompat & EXT_INCOMPAT_RECOVER != 0 { Replay::Needed } else { Replay::Clean };
    Some(Content::Filesystem {
        filesystem: Filesystem::Ext(name),
        replay,
        uuid: uuid_at(bytes, EXT_AT + 0x68),
    })
}

fn xfs(bytes: &[u8]) -> Option<Content> {
    if bytes.get(..4)? != b"XFSB" {
        return None;
    }
    // Only the log itself tells whether it is clean.
    Some(Content::Filesystem {
        filesystem: Filesystem::Xfs,
        replay: Replay::Unknown,
        uuid: uuid_at(bytes, 32),
    })
}

fn btrfs(bytes: &[u8]) -> Option<Content> {
    if bytes.get(BTRFS_AT + 0x40..BTRFS_AT + 0x48)? != b"_BHRfS_M" {
        return None;
    }
    let log_root = bytes.get(BTRFS_AT + 0x60..BTRFS_AT + 0x68)?;
    let replay = if log_root.iter().any(|&byte| byte != 0) { Replay::Needed } else { Replay::Clean };
    Some(Content::Filesystem { filesystem: Filesystem::Btrfs, replay, uuid: uuid_at(bytes, BTRFS_AT + 0x20) })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<String> {
    let digits: String = bytes.get(at..at + 16)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros() -> Vec<u8> {
        vec![0; PROBE_BYTES]
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    // A past view taken under a mounted ext4 must go through a clone, or the mount fails at 3 a.m.
    #[test]
    fn an_ext4_in_use_needs_replay_and_a_clean_one_does_not() {
        let mut disk = zeros();
        put(&mut disk, EXT_AT + 0x38, &[0x53, 0xef]);
        put(&mut disk, EXT_AT + 0x5c, &[4]);
        put(&mut disk, EXT_AT + 0x60, &[0x44]);
        let replay = |disk: &[u8]| match identify(disk) {
            Content::Filesystem { filesystem, replay, .. } => (filesystem.mount_name(), replay),
            other => panic!("{other:?}"),
        };
        assert_eq!(replay(&disk), ("ext4", Replay::Needed));
        put(&mut disk, EXT_AT + 0x60, &[0x40]);
        assert_eq!(replay(&disk), ("ext4", Replay::Clean));
        put(&mut disk, EXT_AT + 0x60, &[0]);
        assert_eq!(replay(&disk), ("ext3", Replay::Clean));
    }

    // A blank disk gets the hint to make a filesystem; anything else must never get it.
    #[test]
    fn blank_partitioned_and_foreign_disks_are_told_apart() {
        assert_eq!(identify(&zeros()), Content::Blank);
        assert_eq!(identify(&[]), Content::Blank);
        let with = |at: usize, what: &[u8]| {
            let mut disk = zeros();
            put(&mut disk, at, what);
            identify(&disk)
        };
        assert_eq!(with(510, &[0x55, 0xaa]), Content::Partitions);
        assert_eq!(with(512, b"EFI PART"), Content::Partitions);
        assert_eq!(with(70_000, b"x"), Content::Unknown);
        assert!(matches!(with(4086, b"SWAPSPACE2"), Content::Other(_)));
        assert!(matches!(with(BTRFS_AT + 0x40, b"_BHRfS_M"), Content::Filesystem { .. }));
        assert!(matches!(with(0, b"XFSB"), Content::Filesystem { replay: Replay::Unknown, .. }));
    }

    // Whatever a guest wrote at the start of its disk, looking at it must not end the command.
    #[test]
    fn short_and_odd_prefixes_never_panic() {
        let mut disk = zeros();
        put(&mut disk, EXT_AT + 0x38, &[0x53, 0xef]);
        put(&mut disk, BTRFS_AT + 0x40, b"_BHRfS_M");
        for length in (0..2048).chain(BTRFS_AT - 4..BTRFS_AT + 128) {
            identify(&disk[..length]);
        }
    }
}
