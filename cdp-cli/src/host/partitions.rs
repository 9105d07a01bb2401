//! Partition tables, told from a disk's first bytes: GPT and the four primary entries of an MBR.
//!
//! Read here and not by the kernel alone: not every kernel is built with these tables, and a partition can be
//! looked into before any device for it exists. Logical partitions inside an extended one are left out.

/// Sectors in the tables, in bytes. Loop devices have the same.
const SECTOR_BYTES: u64 = 512;

/// The most partitions that are looked at.
const PARTITIONS_MAX: usize = 128;

const MBR_ENTRIES_AT: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
const MBR_PROTECTIVE: u8 = 0xee;
const MBR_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// One partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partition {
    /// As the kernel counts them, from 1.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
}

/// The partitions in the order of the table. What makes no sense is left out.
pub fn read(bytes: &[u8]) -> Vec<Partition> {
    if bytes.get(512..520) == Some(b"EFI PART") { gpt(bytes) } else { mbr(bytes) }.unwrap_or_default()
}

fn mbr(bytes: &[u8]) -> Option<Vec<Partition>> {
    if bytes.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let entries = bytes.get(MBR_ENTRIES_AT..MBR_ENTRIES_AT + 4 * MBR_ENTRY_BYTES)?;
    let read = |(number, entry): (u32, &[u8])| {
        let kind = *entry.get(4)?;
        let usable = kind != 0 && kind != MBR_PROTECTIVE && !MBR_EXTENDED.contains(&kind);
        let (start, count) = (u32_at(entry, 8)?, u32_at(entry, 12)?);
        partition(number, u64::from(start), u64::from(count)).filter(|_| usable)
    };
    Some((1..).zip(entries.chunks(MBR_ENTRY_BYTES)).filter_map(read).collect())
}

fn gpt(bytes: &[u8]) -> Option<Vec<Partition>> {
    let header = bytes.get(512..1024)?;
    let at = usize::try_from(u64_at(header, 72)?.checked_mul(SECTOR_BYTES)?).ok()?;
    let count = usize::try_from(u32_at(header, 80)?).ok()?.min(PARTITIONS_MAX);
    let size = usize::try_from(u32_at(header, 84)?).ok()?;
    let read = |number: usize| {
        let entry = bytes.get(at.checked_add(size.checked_mul(number - 1)?)?..)?;
        let used = entry.get(..16)?.iter().any(|&byte| byte != 0);
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        partition(u32::try_from(number).ok()?, first, count).filter(|_| used)
    };
    Some((1..=count).filter_map(read).collect())
}

fn partition(number: u32, start: u64, count: u64) -> Option<Partition> {
    let (start, bytes) = (start.checked_mul(SECTOR_BYTES)?, count.checked_mul(SECTOR_BYTES)?);
    (bytes > 0 && start > 0).then_some(Partition { number, start, bytes })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    fn gpt_disk() -> Vec<u8> {
        let mut disk = vec![0; 8192];
        put(&mut disk, 450, &[MBR_PROTECTIVE]);
        put(&mut disk, 510, &[0x55, 0xaa]);
        put(&mut disk, 512, b"EFI PART");
        put(&mut disk, 512 + 72, &2u64.to_le_bytes());
        put(&mut disk, 512 + 80, &128u32.to_le_bytes());
        put(&mut disk, 512 + 84, &128u32.to_le_bytes());
        // The first entry is unused, the second one runs from 2048 to 4095.
        put(&mut disk, 1024 + 128, &[7; 16]);
        put(&mut disk, 1024 + 128 + 32, &2048u64.to_le_bytes());
        put(&mut disk, 1024 + 128 + 40, &4095u64.to_le_bytes());
        disk
    }

    // A wrong start would mount another partition, or corrupt one.
    #[test]
    fn both_tables_give_numbers_starts_and_lengths() {
        assert_eq!(read(&gpt_disk()), [Partition { number: 2, start: 1 << 20, bytes: 1 << 20 }]);
        let mut disk = vec![0; 512];
        put(&mut disk, 446 + 16 + 4, &[0x83]);
        put(&mut disk, 446 + 16 + 8, &2048u32.to_le_bytes());
        put(&mut disk, 446 + 16 + 12, &8u32.to_le_bytes());
        put(&mut disk, 510, &[0x55, 0xaa]);
        assert_eq!(read(&disk), [Partition { number: 2, start: 1 << 20, bytes: 4096 }]);
    }

    // A guest writes what it likes into its table.
    #[test]
    fn hostile_tables_are_survived() {
        let disk = gpt_disk();
        for length in 0..disk.len() {
            read(&disk[..length]);
        }
        for field in [72, 80, 84, 512 + 128 + 32, 512 + 128 + 40] {
            let mut disk = gpt_disk();
            put(&mut disk, 512 + field, &[0xff; 8]);
            assert!(read(&disk).len() <= PARTITIONS_MAX);
        }
    }
}
