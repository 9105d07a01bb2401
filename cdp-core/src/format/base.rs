//! The checksum file beside a piece of the base: a header block, then four bytes for each 4-KiB block of the
//! piece: 0 = the base does not have this block, else its CRC-32 (a CRC of 0 is stored as all ones).

use super::bytes::*;
use crate::ids::{BLOCK_BYTES, Lsn, VolumeId};

const MAGIC: [u8; 8] = *b"CDPBSUMS";
const VERSION: u16 = 1;
/// Length of the header.
pub const SUMS_HEADER_BYTES: usize = BLOCK_BYTES as usize;

/// The header of a checksum file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SumsHeader {
    /// Whose base.
    pub volume: VolumeId,
    /// Which piece.
    pub piece: u32,
    /// The LSN whose state the base holds.
    pub base_lsn: Lsn,
}

impl SumsHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Box<[u8; SUMS_HEADER_BYTES]> {
        let mut b = Box::new([0; SUMS_HEADER_BYTES]);
        put(&mut b[..], 0, MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        put(&mut b[..], 12, self.piece.to_le_bytes());
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        put(&mut b[..], 32, self.base_lsn.0.to_le_bytes());
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a header; `None` if it is not one.
    pub fn decode(b: &[u8; SUMS_HEADER_BYTES]) -> Option<SumsHeader> {
        (b[..8] == MAGIC && get_u16(b, 8) == VERSION && crc_fits(b)).then(|| SumsHeader {
            piece: get_u32(b, 12),
            volume: VolumeId(get_u128(b, 16)),
            base_lsn: Lsn(get_u64(b, 32)),
        })
    }
}

/// The stored sum of a block that is present.
pub fn block_sum(block: &[u8]) -> u32 {
    stored_sum(crc32(block))
}

/// How the CRC of a block that is present is stored.
pub fn stored_sum(crc: u32) -> u32 {
    if crc == 0 { u32::MAX } else { crc }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A base outlives every version of the program that wrote it: these bytes never change for version 1. The zeros
    /// between the last field and the CRC are left out of the golden text.
    #[test]
    fn golden_bytes_of_version_1() {
        let volume = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let header = SumsHeader { volume, piece: 3, base_lsn: Lsn::ZERO };
        let bytes = header.encode();
        assert_eq!(SumsHeader::decode(&bytes), Some(header));
        let (fields, rest) = bytes.split_at(40);
        let (zeros, crc) = rest.split_at(rest.len() - 4);
        assert!(zeros.iter().all(|byte| *byte == 0), "fields that no document names");
        let hex: String = fields.iter().chain(crc).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/base-sums-v1.hex").trim());
    }

    /// The sum of a block: its CRC-32, but never 0, which says that the base does not have the block.
    #[test]
    fn golden_sums_of_blocks() {
        assert_eq!(block_sum(&[0; 4096]), 0xc71c_0011);
        assert_eq!(block_sum(&[]), u32::MAX, "a CRC of 0 is stored as all ones");
    }
}
