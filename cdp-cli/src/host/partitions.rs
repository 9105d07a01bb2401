//! Partition tables: GPT with sectors of 512 or 4096 bytes, and MBR with its logical partitions.
//!
//! Read here and not by the kernel alone: not every kernel is built with these tables, and a partition can be
//! looked into before any device for it exists.

/// Sectors in the tables, in bytes. Loop devices have the same.
const SECTOR_BYTES: u64 = 512;
/// Sectors in the GPT of a disk that knows no smaller ones.
const LARGE_SECTOR_BYTES: u64 = 4096;

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

/// The partitions in the order of the table, told from a disk's first bytes; `sector` gives the 512 bytes at an
/// offset, for the chain of logical partitions. What makes no sense is left out.
pub fn read(bytes: &[u8], sector: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> Vec<Partition> {
    for size in [SECTOR_BYTES, LARGE_SECTOR_BYTES] {
        let at = size as usize;
        if bytes.get(at..at + 8) == Some(b"EFI PART") {
            return gpt(bytes, size).unwrap_or_default();
        }
    }
    let mut partitions = mbr(bytes).unwrap_or_default();
    partitions.extend(logical(bytes, sector));
    partitions
}

/// The logical partitions, from 5 on: each lies behind a table of its own, which names the next one.
fn logical(bytes: &[u8], sector: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> Vec<Partition> {
    let entry = |table: &[u8], number: usize| -> Option<(u8, u64, u64)> {
        let entry = table.get(MBR_ENTRIES_AT + number * MBR_ENTRY_BYTES..)?;
        Some((*entry.get(4)?, u32_at(entry, 8)?.into(), u32_at(entry, 12)?.into()))
    };
    let is_extended = |(kind, ..): &(u8, u64, u64)| MBR_EXTENDED.contains(kind);
    let mut found = Vec::new();
    let first = (0..4).filter_map(|number| entry(bytes, number)).find(is_extended);
    let Some((_, extended, _)) = first.filter(|_| bytes.get(510..512) == Some(&[0x55, 0xaa])) else {
        return found;
    };
    let mut at = extended;
    for number in 5..5 + PARTITIONS_MAX as u32 {
        let Some(table) = sector(at * SECTOR_BYTES) else { break };
        if table.get(510..512) != Some(&[0x55, 0xaa]) {
            break;
        }
        // Its own partition counts from this table, the next table from the extended partition.
        if let Some((_, start, count)) = entry(&table, 0).filter(|entry| entry.0 != 0 && !is_extended(entry))
        {
            found.extend(partition(number, at + start, count, SECTOR_BYTES));
        }
        match entry(&table, 1).filter(is_extended) {
            Some((_, next, _)) if extended + next > at => at = extended + next,
            _ => break,
        }
    }
    found
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
        partition(number, u64::from(start), u64::from(count), SECTOR_BYTES).filter(|_| usable)
    };
    Some((1..).zip(entries.chunks(MBR_ENTRY_BYTES)).filter_map(read).collect())
}

fn gpt(bytes: &[u8], sector: u64) -> Option<Vec<Partition>> {
    let header = bytes.get(sector as usize..sector as usize + 512)?;
    let at = usize::try_from(u64_at(header, 72)?.checked_mul(sector)?).ok()?;
    let count = usize::try_from(u32_at(header, 80)?).ok()?.min(PARTITIONS_MAX);
    let size = usize::try_from(u32_at(header, 84)?).ok()?;
    let read = |number: usize| {
        let entry = bytes.get(at.checked_add(size.checked_mul(number - 1)?)?..)?;
        let used = entry.get(..16)?.iter().any(|&byte| byte != 0);
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        partition(u32::try_from(number).ok()?, first, count, sector).filter(|_| used)
    };
    Some((1..=count).filter_map(read).collect())
}

fn partition(number: u32, start: u64, count: u64, sector: u64) -> Option<Partition> {
    let (start, bytes) = (start.checked_mul(sector)?, count.checked_mul(sector)?);
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

    fn all(disk: &[u8]) -> Vec<Partition> {
        read(disk, &mut |at| Some(disk.get(at as usize..at as usize + 512)?.to_vec()))
    }

    // An installer's default puts swap, and often /home, into logical partitions: 5, 6, …
    #[test]
    fn logical_partitions_follow_their_chain_and_a_ring_ends() {
        let mut disk = vec![0; 64 << 10];
        let mut entry = |table: usize, number: usize, kind: u8, start: u32, count: u32| {
            put(&mut disk, table * 512 + 510, &[0x55, 0xaa]);
            let at = table * 512 + MBR_ENTRIES_AT + number * MBR_ENTRY_BYTES;
            put(&mut disk, at + 4, &[kind]);
            put(&mut disk, at + 8, &start.to_le_bytes());
            put(&mut disk, at + 12, &count.to_le_bytes());
        };
        entry(0, 0, 0x83, 2, 4);
        entry(0, 1, 0x05, 10, 100);
        entry(10, 0, 0x82, 1, 5);
        entry(10, 1, 0x05, 20, 10);
        entry(30, 0, 0x83, 2, 6);
        let told = |disk: &[u8]| {
            all(disk).iter().map(|p| (p.number, p.start / 512, p.bytes / 512)).collect::<Vec<_>>()
        };
        let expected = [(1, 2, 4), (5, 11, 5), (6, 32, 6)];
        assert_eq!(told(&disk), expected);
        // The last one names the first as its next.
        let at = 30 * 512 + MBR_ENTRIES_AT + MBR_ENTRY_BYTES;
        put(&mut disk, at + 4, &[0x05]);
        assert_eq!(told(&disk), expected);
    }

    // A disk that knows only sectors of 4096 bytes.
    #[test]
    fn large_sectors_count_large() {
        let small = gpt_disk();
        let mut disk = vec![0; 64 << 10];
        put(&mut disk, 4096, &small[512..1024]);
        put(&mut disk, 8192, &small[1024..4096]);
        assert_eq!(all(&disk), [Partition { number: 2, start: 8 << 20, bytes: 8 << 20 }]);
    }

    // A wrong start would mount another partition, or corrupt one.
    #[test]
    fn both_tables_give_numbers_starts_and_lengths() {
        assert_eq!(all(&gpt_disk()), [Partition { number: 2, start: 1 << 20, bytes: 1 << 20 }]);
        let mut disk = vec![0; 512];
        put(&mut disk, 446 + 16 + 4, &[0x83]);
        put(&mut disk, 446 + 16 + 8, &2048u32.to_le_bytes());
        put(&mut disk, 446 + 16 + 12, &8u32.to_le_bytes());
        put(&mut disk, 510, &[0x55, 0xaa]);
        assert_eq!(all(&disk), [Partition { number: 2, start: 1 << 20, bytes: 4096 }]);
    }

    // A guest writes what it likes into its table.
    #[test]
    fn hostile_tables_are_survived() {
        let disk = gpt_disk();
        for length in 0..disk.len() {
            all(&disk[..length]);
        }
        for field in [72, 80, 84, 512 + 128 + 32, 512 + 128 + 40] {
            let mut disk = gpt_disk();
            put(&mut disk, 512 + field, &[0xff; 8]);
            assert!(all(&disk).len() <= PARTITIONS_MAX);
        }
    }
}
