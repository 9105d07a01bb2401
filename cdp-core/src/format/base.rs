//! The checksum file beside a piece of the base: a header block, then four bytes for each 4-KiB block of the piece. They
//! are the block's CRC-32, or 0 where the base does not have it, mixed with the block's *place*: whose they are, and for
//! which block. So zeros, and what was written for another block or another volume, are never "the base does not have it".

use std::sync::LazyLock;

use super::bytes::*;
use crate::ids::{BLOCK_BYTES, VolumeId};

const MAGIC: [u8; 8] = *b"CDPBSUMS";
const VERSION: u16 = 2;
/// Length of the header.
pub const SUMS_HEADER_BYTES: usize = BLOCK_BYTES as usize;
/// Entries of a page of 4 KiB.
pub const SUMS_PAGE_BLOCKS: u64 = BLOCK_BYTES / 4;

/// The header of a checksum file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SumsHeader {
    /// Whose base.
    pub volume: VolumeId,
    /// Which piece.
    pub piece: u32,
}

impl SumsHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Box<[u8; SUMS_HEADER_BYTES]> {
        let mut b = Box::new([0; SUMS_HEADER_BYTES]);
        put(&mut b[..], 0, MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        put(&mut b[..], 12, self.piece.to_le_bytes());
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a header; `None` if it is not one.
    pub fn decode(b: &[u8; SUMS_HEADER_BYTES]) -> Option<SumsHeader> {
        (b[..8] == MAGIC && get_u16(b, 8) == VERSION && crc_fits(b))
            .then(|| SumsHeader { piece: get_u32(b, 12), volume: VolumeId(get_u128(b, 16)) })
    }
}

/// The sum of a block that is present.
pub fn block_sum(block: &[u8]) -> u32 {
    present_sum(crc32(block))
}

/// The sum of a block that is present and has this CRC: never 0, which says that the base does not have the block.
pub fn present_sum(crc: u32) -> u32 {
    if crc == 0 { u32::MAX } else { crc }
}

/// The places of one volume's blocks: what their entries are mixed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    // That of block 0, before it is kept from being 0.
    first: u32,
}

/// How the place of a block differs from that of the first block of its page. The CRC of a sum (without carry) of two texts of the
/// same length is the sum of theirs and of the CRC of zeros, so this is the same in every page.
static IN_PAGE: LazyLock<Box<[u32]>> =
    LazyLock::new(|| (0..SUMS_PAGE_BLOCKS).map(|block| number_crc(block) ^ number_crc(0)).collect());

fn number_crc(number: u64) -> u32 {
    crc32(&number.to_le_bytes())
}

impl Places {
    /// Those of this volume.
    pub fn of(volume: VolumeId) -> Places {
        let mut text = [0; 24];
        put(&mut text, 0, volume.0.to_le_bytes());
        Places { first: crc32(&text) }
    }

    /// Mixes entries with their places, or takes that apart again: both are the same. `first` is the block of the volume that
    /// the first one is of.
    pub fn mix(self, first: u64, entries: &mut [u32]) {
        let mut at = first;
        let mut rest = entries;
        while !rest.is_empty() {
            let begin = (at % SUMS_PAGE_BLOCKS) as usize;
            let count = (SUMS_PAGE_BLOCKS as usize - begin).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            let page = self.first ^ number_crc(at - begin as u64) ^ number_crc(0);
            for (entry, in_page) in now.iter_mut().zip(&IN_PAGE[begin..]) {
                let place = page ^ in_page;
                // A zero must be the entry of nothing.
                *entry ^= if place == 0 { u32::MAX } else { place };
            }
            rest = later;
            at += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    /// A base outlives every version of the program that wrote it: these bytes never change for version 2. The zeros
    /// between the last field and the CRC are left out of the golden text.
    #[test]
    fn golden_bytes_of_version_2() {
        let header = SumsHeader { volume: VOLUME, piece: 3 };
        let bytes = header.encode();
        assert_eq!(SumsHeader::decode(&bytes), Some(header));
        let (fields, rest) = bytes.split_at(32);
        let (zeros, crc) = rest.split_at(rest.len() - 4);
        assert!(zeros.iter().all(|byte| *byte == 0), "fields that no document names");
        let hex: String = fields.iter().chain(crc).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/base-sums-v2.hex").trim());
    }

    /// The sum of a block: its CRC-32, but never 0, which says that the base does not have the block.
    #[test]
    fn golden_sums_of_blocks() {
        assert_eq!(block_sum(&[0; 4096]), 0xc71c_0011);
        assert_eq!(block_sum(&[]), u32::MAX, "a CRC of 0 is stored as all ones");
    }

    /// Entries as they stand in the file: of a block with a CRC, of one that is absent, at both ends of a page.
    #[test]
    fn golden_entries() {
        let mut entries = [0xc71c_0011, 0, 0x1234_5678, 0];
        Places::of(VOLUME).mix(1022, &mut entries);
        let hex: String = entries.iter().map(|entry| format!("{entry:08x}\n")).collect();
        assert_eq!(hex, include_str!("golden/base-entries-v2.hex"));
    }

    /// The shortcut by pages is the CRC that the format names, and no place is 0: a page of zeros would be a page of absent
    /// blocks again.
    #[test]
    fn a_place_is_the_crc_of_volume_and_block() {
        for volume in [VOLUME, VolumeId(0), VolumeId(u128::MAX)] {
            for first in [0, 1, 1000, 1023, 1024, (1 << 28) - 3, (1 << 34) - 2000] {
                let mut entries = [0; 2000];
                Places::of(volume).mix(first, &mut entries);
                for (number, entry) in entries.iter().enumerate() {
                    let mut text = volume.0.to_le_bytes().to_vec();
                    text.extend((first + number as u64).to_le_bytes());
                    let place = crc32(&text);
                    assert_eq!(*entry, if place == 0 { u32::MAX } else { place });
                }
            }
        }
        // A volume whose block 0 would have the place 0.
        let places = Places { first: 0 };
        let mut entries = [0];
        places.mix(0, &mut entries);
        assert_ne!(entries[0], 0);
    }
}
