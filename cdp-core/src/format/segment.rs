//! The first and the last block of a segment file: header and seal.

use super::bytes::*;
use super::record::Chain;
use crate::ids::{BLOCK_BYTES, EpochNumber, Incarnation, Lsn, SegmentId, Timestamp, VolumeId};

const HEADER_MAGIC: [u8; 8] = *b"CDPSEGMT";
const SEAL_MAGIC: [u8; 8] = *b"CDPSEAL\0";
const VERSION: u16 = 1;
const BLOCK: usize = BLOCK_BYTES as usize;

/// The first block of a segment. Written when the segment is taken into use; zeros before that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whose segment.
    pub volume: VolumeId,
    /// This use of the file.
    pub id: SegmentId,
    /// Rises by at least one from segment to segment.
    pub ordinal: u64,
    /// LSN of its first record. What the predecessor holds from here on is void.
    pub first_lsn: Lsn,
    /// Chain value before that record.
    pub chain_before: Chain,
    /// The file's size while the segment is open, in bytes.
    pub bytes: u64,
    /// The opening of the volume that made it.
    pub incarnation: Incarnation,
    /// The opening before that one.
    pub previous_incarnation: Incarnation,
    /// The segment before it; 0 for the first one.
    pub predecessor: SegmentId,
    /// Where the predecessor's valid records end, as an offset in its file.
    pub predecessor_end: u64,
    /// Timestamp of the record before its first one, or of the volume's creation.
    pub timestamp_before: Timestamp,
    /// Epoch when it was made.
    pub epoch: EpochNumber,
    /// How payloads are coded; 0 = as they are.
    pub codec: u8,
    /// Key of the payloads; 0 = none.
    pub key_id: u16,
    /// Random input of the key derivation for this segment.
    pub key_salt: [u8; 16],
}

impl SegmentHeader {
    /// The block's bytes.
    pub fn encode(&self) -> Box<[u8; BLOCK]> {
        let mut b = Box::new([0; BLOCK]);
        put(&mut b[..], 0, HEADER_MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        put(&mut b[..], 12, self.epoch.0.to_le_bytes());
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        put(&mut b[..], 32, self.id.0.to_le_bytes());
        put(&mut b[..], 40, self.ordinal.to_le_bytes());
        put(&mut b[..], 48, self.first_lsn.0.to_le_bytes());
        put(&mut b[..], 56, self.bytes.to_le_bytes());
        put(&mut b[..], 64, self.incarnation.0.to_le_bytes());
        put(&mut b[..], 72, self.previous_incarnation.0.to_le_bytes());
        put(&mut b[..], 80, self.predecessor.0.to_le_bytes());
        put(&mut b[..], 88, self.predecessor_end.to_le_bytes());
        put(&mut b[..], 96, self.chain_before.0);
        put(&mut b[..], 112, self.timestamp_before.0.to_le_bytes());
        b[120] = self.codec;
        put(&mut b[..], 122, self.key_id.to_le_bytes());
        put(&mut b[..], 128, self.key_salt);
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a header; `None` if it is not one.
    pub fn decode(b: &[u8; BLOCK]) -> Option<SegmentHeader> {
        if b[..8] != HEADER_MAGIC || get_u16(b, 8) != VERSION || !crc_fits(b) {
            return None;
        }
        let header = SegmentHeader {
            epoch: EpochNumber(get_u32(b, 12)),
            volume: VolumeId(get_u128(b, 16)),
            id: SegmentId(get_u64(b, 32)),
            ordinal: get_u64(b, 40),
            first_lsn: Lsn(get_u64(b, 48)),
            bytes: get_u64(b, 56),
            incarnation: Incarnation(get_u64(b, 64)),
            previous_incarnation: Incarnation(get_u64(b, 72)),
            predecessor: SegmentId(get_u64(b, 80)),
            predecessor_end: get_u64(b, 88),
            chain_before: Chain(get(b, 96)),
            timestamp_before: Timestamp(get_u64(b, 112)),
            codec: b[120],
            key_id: get_u16(b, 122),
            key_salt: get(b, 128),
        };
        let sound = header.first_lsn > Lsn::ZERO && header.codec == 0 && header.key_id == 0;
        sound.then_some(header)
    }
}

/// The block behind the last batch of a sealed segment; the file ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Whose segment.
    pub volume: VolumeId,
    /// Which use of the file.
    pub segment: SegmentId,
    /// The segment's ordinal.
    pub ordinal: u64,
    /// The opening that sealed it.
    pub incarnation: Incarnation,
    /// Its first record.
    pub first_lsn: Lsn,
    /// Its last record; `first_lsn − 1` if it has none.
    pub last_lsn: Lsn,
    /// Timestamp of its last record, or of the one before the segment.
    pub last_timestamp: Timestamp,
    /// Where its last batch ends; the seal stands here.
    pub end: u64,
    /// Chain value after its last record.
    pub chain: Chain,
    /// Written by a clean stop: nothing follows this segment.
    pub clean_stop: bool,
    /// Hash of the seal before it, zeros for the first.
    pub previous_hash: [u8; 32],
    /// BLAKE3(previous hash ‖ the file's bytes 0..end).
    pub hash: [u8; 32],
}

impl Seal {
    /// The block's bytes.
    pub fn encode(&self) -> Box<[u8; BLOCK]> {
        let mut b = Box::new([0; BLOCK]);
        put(&mut b[..], 0, SEAL_MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        b[10] = self.clean_stop as u8;
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        put(&mut b[..], 32, self.segment.0.to_le_bytes());
        put(&mut b[..], 40, self.ordinal.to_le_bytes());
        put(&mut b[..], 48, self.first_lsn.0.to_le_bytes());
        put(&mut b[..], 56, self.last_lsn.0.to_le_bytes());
        put(&mut b[..], 64, self.last_timestamp.0.to_le_bytes());
        put(&mut b[..], 72, self.end.to_le_bytes());
        put(&mut b[..], 80, self.incarnation.0.to_le_bytes());
        put(&mut b[..], 96, self.chain.0);
        put(&mut b[..], 112, self.hash);
        put(&mut b[..], 144, self.previous_hash);
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a seal; `None` if it is not one.
    pub fn decode(b: &[u8; BLOCK]) -> Option<Seal> {
        if b[..8] != SEAL_MAGIC || get_u16(b, 8) != VERSION || !crc_fits(b) {
            return None;
        }
        let seal = Seal {
            clean_stop: b[10] != 0,
            volume: VolumeId(get_u128(b, 16)),
            segment: SegmentId(get_u64(b, 32)),
            ordinal: get_u64(b, 40),
            first_lsn: Lsn(get_u64(b, 48)),
            last_lsn: Lsn(get_u64(b, 56)),
            last_timestamp: Timestamp(get_u64(b, 64)),
            end: get_u64(b, 72),
            incarnation: Incarnation(get_u64(b, 80)),
            chain: Chain(get(b, 96)),
            hash: get(b, 112),
            previous_hash: get(b, 144),
        };
        let sound = seal.first_lsn > Lsn::ZERO
            && seal.last_lsn.0 >= seal.first_lsn.0 - 1
            && seal.end.is_multiple_of(BLOCK_BYTES)
            && seal.end >= BLOCK_BYTES;
        sound.then_some(seal)
    }
}

/// The name of the segment file with this ordinal.
pub fn segment_file_name(ordinal: u64) -> String {
    format!("{ordinal:012}.seg")
}

/// The name of its run.
pub fn run_file_name(ordinal: u64) -> String {
    format!("{ordinal:012}.run")
}

/// The name of the run of the segments with these ordinals and all between.
pub fn merged_run_file_name(first: u64, last: u64) -> String {
    format!("{first:012}-{last:012}.run")
}

/// Whether this is the name of a run of several segments.
pub fn is_merged_run_name(name: &str) -> bool {
    let ordinals = name.strip_suffix(".run").and_then(|name| name.split_once('-'));
    let is_ordinal = |text: &str| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    ordinals.is_some_and(|(first, last)| is_ordinal(first) && is_ordinal(last))
}

/// The ordinal in a segment file's name; `None` if it is no such name.
pub fn segment_ordinal(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(block: &[u8]) -> String {
        let end = block.len() - 4;
        assert!(block[176..end].iter().all(|byte| *byte == 0), "only zeros between the fields and the CRC");
        block[..176].iter().chain(&block[end..]).map(|byte| format!("{byte:02x}")).collect()
    }

    /// An upgrade that moves a byte would make old journals unreadable: these bytes never change for version 1.
    /// The zeros between the last field and the CRC are left out of the golden text.
    #[test]
    fn golden_bytes_of_version_1() {
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
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        assert_eq!(hex(&bytes[..]), include_str!("golden/segment-v1.hex").trim());
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
        let bytes = seal.encode();
        assert_eq!(Seal::decode(&bytes), Some(seal));
        assert_eq!(hex(&bytes[..]), include_str!("golden/seal-v1.hex").trim());
    }
}
