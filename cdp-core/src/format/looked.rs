//! What stood in a segment's first and last block when it was looked at: bytes of a cache, so that opening a long history
//! reads one file instead of two blocks of each segment.
//!
//! A file is a head of 512 bytes and entries of 512 bytes. **Head**: magic `CDPLOOK`, one zero byte 8, version 2, zeros 6,
//! volume id 16, zeros, at 508 the CRC of the bytes before. **Entry**:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `CDPK` |
//! | 4 | 2 | version, 1 |
//! | 6 | 1 | 1 = the file ended with the segment's seal, 0 = it did not |
//! | 7 | 1 | zero |
//! | 8 | 8 | length of the file |
//! | 16 | 8 | number of its inode |
//! | 24 | 8 | its ctime, nanoseconds |
//! | 32 | 176 | the first bytes of its header |
//! | 208 | 176 | the first bytes of its seal, zeros without one |
//! | 384 | 124 | zeros |
//! | 508 | 4 | CRC of the bytes before |

use super::bytes::*;
use super::segment::{Seal, SegmentHeader};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::io::FileStat;

/// Name of the file in a volume's directory.
pub const LOOKED_FILE: &str = "looked";
/// Bytes of the head and of each entry: what a disk writes whole.
pub const LOOKED_ENTRY_BYTES: usize = 512;

const HEAD_MAGIC: [u8; 8] = *b"CDPLOOK\0";
const MAGIC: [u8; 4] = *b"CDPK";
const VERSION: u16 = 1;
const HEADER_AT: usize = 32;
const SEAL_AT: usize = 208;
/// Behind this, header and seal are zeros up to their checksum.
const PREFIX_BYTES: usize = 176;
const BLOCK: usize = BLOCK_BYTES as usize;

/// The file's first bytes.
pub fn encode_head(volume: VolumeId) -> [u8; LOOKED_ENTRY_BYTES] {
    let mut bytes = [0; LOOKED_ENTRY_BYTES];
    put(&mut bytes, 0, HEAD_MAGIC);
    put(&mut bytes, 8, VERSION.to_le_bytes());
    put(&mut bytes, 16, volume.0.to_le_bytes());
    seal_crc(&mut bytes);
    bytes
}

/// Whether these are the first bytes of a file about this volume.
pub fn is_head(bytes: &[u8; LOOKED_ENTRY_BYTES], volume: VolumeId) -> bool {
    bytes[..8] == HEAD_MAGIC
        && get_u16(bytes, 8) == VERSION
        && VolumeId(get_u128(bytes, 16)) == volume
        && crc_fits(bytes)
}

/// What stood in a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Looked {
    /// Which state of which file.
    pub stat: FileStat,
    /// Its first block.
    pub header: SegmentHeader,
    /// Its last block, if that was the segment's seal.
    pub seal: Option<Seal>,
}

impl Looked {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; LOOKED_ENTRY_BYTES] {
        let mut bytes = [0; LOOKED_ENTRY_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 4, VERSION.to_le_bytes());
        bytes[6] = u8::from(self.seal.is_some());
        put(&mut bytes, 8, self.stat.len.to_le_bytes());
        put(&mut bytes, 16, self.stat.inode.to_le_bytes());
        put(&mut bytes, 24, self.stat.changed_ns.to_le_bytes());
        put::<PREFIX_BYTES>(&mut bytes, HEADER_AT, get(&self.header.encode()[..], 0));
        if let Some(seal) = &self.seal {
            put::<PREFIX_BYTES>(&mut bytes, SEAL_AT, get(&seal.encode()[..], 0));
        }
        seal_crc(&mut bytes);
        bytes
    }

    /// Reads an entry; `None` if it is not one.
    pub fn decode(bytes: &[u8; LOOKED_ENTRY_BYTES]) -> Option<Looked> {
        if bytes[..4] != MAGIC || get_u16(bytes, 4) != VERSION || bytes[6] > 1 || !crc_fits(bytes) {
            return None;
        }
        let header = SegmentHeader::decode(&block(bytes, HEADER_AT))?;
        let seal = match bytes[6] {
            0 => None,
            _ => Some(Seal::decode(&block(bytes, SEAL_AT))?),
        };
        let (len, inode, changed_ns) = (get_u64(bytes, 8), get_u64(bytes, 16), get_u64(bytes, 24));
        Some(Looked { stat: FileStat { len, inode, changed_ns }, header, seal })
    }
}

/// The block whose first bytes stand at `at`.
fn block(bytes: &[u8; LOOKED_ENTRY_BYTES], at: usize) -> Box<[u8; BLOCK]> {
    let mut block = Box::new([0; BLOCK]);
    block[..PREFIX_BYTES].copy_from_slice(&bytes[at..at + PREFIX_BYTES]);
    seal_crc(&mut block[..]);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Chain;
    use crate::ids::*;

    fn looked() -> Looked {
        let header = SegmentHeader {
            volume: VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            id: SegmentId(0x0102_0304_0506_0708),
            ordinal: 3,
            first_lsn: Lsn(7),
            chain_before: Chain([1; 16]),
            bytes: 128 << 20,
            incarnation: Incarnation(0x1111),
            previous_incarnation: Incarnation(0x2222),
            predecessor: SegmentId(0x0908_0706_0504_0302),
            predecessor_end: 8192,
            timestamp_before: Timestamp(1_763_719_200_000_000_000),
            epoch: EpochNumber(1),
            codec: 0,
            key_id: 0,
            key_salt: [2; 16],
        };
        let seal = Seal {
            volume: header.volume,
            segment: header.id,
            ordinal: 3,
            incarnation: header.incarnation,
            first_lsn: Lsn(7),
            last_lsn: Lsn(9),
            last_timestamp: Timestamp(1_763_719_200_000_000_001),
            end: 16384,
            chain: Chain([3; 16]),
            clean_stop: true,
            previous_hash: [4; 32],
            hash: [5; 32],
        };
        let stat = FileStat { len: 20480, inode: 77, changed_ns: 1_763_719_200_000_000_002 };
        Looked { stat, header, seal: Some(seal) }
    }

    /// What is remembered of a segment must be what stood in it: a field of the header or the seal that grew beyond what
    /// an entry holds would be lost here.
    #[test]
    fn golden_bytes_of_version_1() {
        let sealed = looked();
        assert_eq!(Looked::decode(&sealed.encode()), Some(sealed));
        let open = Looked { seal: None, ..sealed };
        assert_eq!(Looked::decode(&open.encode()), Some(open));
        for block in [sealed.header.encode(), sealed.seal.expect("it has one").encode()] {
            assert!(block[PREFIX_BYTES..BLOCK - 4].iter().all(|byte| *byte == 0), "fields behind the prefix");
        }
        let hex: String = sealed.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/looked-v1.hex").trim());
        let head = encode_head(VolumeId(7));
        assert!(is_head(&head, VolumeId(7)) && !is_head(&head, VolumeId(8)));
        let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/looked-head-v1.hex").trim());
    }

    /// The entry may be torn or rot: whichever bit it is, it is no entry.
    #[test]
    fn any_bad_bit_is_noticed() {
        let bytes = looked().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Looked::decode(&bent), None, "bit {bit}");
        }
    }
}
