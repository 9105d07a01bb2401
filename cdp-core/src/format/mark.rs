//! The durable mark: the newest LSN known to be synced, in two slots that are written in turn.

use super::bytes::*;
use super::record::Chain;
use crate::ids::{BLOCK_BYTES, Incarnation, Lsn, Timestamp, VolumeId};

const MAGIC: [u8; 8] = *b"CDPMARK\0";
const VERSION: u16 = 1;
/// A slot is a block of its own, so that writing one can never tear the other.
pub const SLOT_BYTES: usize = BLOCK_BYTES as usize;
/// The file's two slots.
pub const MARK_FILE_BYTES: u64 = 2 * BLOCK_BYTES;

/// One slot of the mark file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Whose mark.
    pub volume: VolumeId,
    /// The opening that wrote it.
    pub incarnation: Incarnation,
    /// Rises with every write; the slot is `sequence % 2`.
    pub sequence: u64,
    /// Every record up to here was synced when the mark was written.
    pub lsn: Lsn,
    /// Chain value after that record.
    pub chain: Chain,
    /// Timestamp of that record.
    pub timestamp: Timestamp,
    /// Written by a clean stop: nothing follows `lsn`.
    pub clean_stop: bool,
}

impl Mark {
    /// The slot's bytes.
    pub fn encode(&self) -> Box<[u8; SLOT_BYTES]> {
        let mut b = Box::new([0; SLOT_BYTES]);
        put(&mut b[..], 0, MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        b[10] = self.clean_stop as u8;
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        put(&mut b[..], 32, self.incarnation.0.to_le_bytes());
        put(&mut b[..], 40, self.sequence.to_le_bytes());
        put(&mut b[..], 48, self.lsn.0.to_le_bytes());
        put(&mut b[..], 56, self.timestamp.0.to_le_bytes());
        put(&mut b[..], 64, self.chain.0);
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a slot; `None` if it is not one.
    pub fn decode(b: &[u8; SLOT_BYTES]) -> Option<Mark> {
        if b[..8] != MAGIC || get_u16(b, 8) != VERSION || !crc_fits(b) {
            return None;
        }
        Some(Mark {
            clean_stop: b[10] != 0,
            volume: VolumeId(get_u128(b, 16)),
            incarnation: Incarnation(get_u64(b, 32)),
            sequence: get_u64(b, 40),
            lsn: Lsn(get_u64(b, 48)),
            timestamp: Timestamp(get_u64(b, 56)),
            chain: Chain(get(b, 64)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mark that an upgrade cannot read is a volume that refuses writes: these bytes never change for
    /// version 1. The zeros between the last field and the CRC are left out of the golden text.
    #[test]
    fn golden_bytes_of_version_1() {
        let mark = Mark {
            volume: VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            incarnation: Incarnation(0x1111),
            sequence: 5,
            lsn: Lsn(9),
            chain: Chain([3; 16]),
            timestamp: Timestamp(1_763_719_200_000_000_001),
            clean_stop: false,
        };
        let bytes = mark.encode();
        assert_eq!(Mark::decode(&bytes), Some(mark));
        let end = SLOT_BYTES - 4;
        assert!(bytes[80..end].iter().all(|byte| *byte == 0), "only zeros between the fields and the CRC");
        let hex: String = bytes[..80].iter().chain(&bytes[end..]).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/mark-v1.hex").trim());
    }
}
