//! The record header and the batch that carries records into a segment.
//!
//! ```text
//! batch     at a multiple of 4096 in the segment
//!   0       batch header, 64 bytes
//!   64      record headers, 120 bytes each, then zeros to the next multiple of 4096
//!   …       the records' payloads in order, each padded with zeros to a multiple of 4096
//! ```
//!
//! A record is its header's first 112 bytes and its payload: these travel to replicas unchanged. The batch
//! around it belongs to this store only.

use super::bytes::*;
use crate::ids::{BLOCK_BYTES, EpochNumber, Extent, Lba, Lsn, SegmentId, SessionId, Timestamp, VolumeId};
use crate::limits::{BATCH_RECORDS_MAX, REQUEST_BYTES_MAX, VOLUME_BYTES_MAX};

/// Length of a record header.
pub const RECORD_HEADER_BYTES: usize = 120;
/// So many bytes at the front of a record header are the record, wherever it stands.
pub const RECORD_IDENTITY_BYTES: usize = 112;
/// Length of a batch header.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Version of the record header.
pub const RECORD_VERSION: u16 = 1;
/// Version of the batch header.
pub const BATCH_VERSION: u16 = 1;

const RECORD_MAGIC: [u8; 4] = *b"CDPR";
const BATCH_MAGIC: [u8; 4] = *b"CDPB";
/// What the chain value covers: the header up to the chain field.
const CHAINED_BYTES: usize = 96;
/// The longest payload: a whole request and the two blocks its unaligned ends may touch.
pub const PAYLOAD_BYTES_MAX: u64 = REQUEST_BYTES_MAX + 2 * BLOCK_BYTES;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordKind {
    /// New content of whole blocks: the payload.
    Write = 1,
    /// Zeros. The payload holds the edge blocks that are zeroed only in part.
    Zero = 2,
    /// Discarded, reads as zeros. Payload as for `Zero`.
    Trim = 3,
    /// A marker; payload as in [`super::marker`].
    Marker = 4,
    /// The state from here on is that of an older LSN.
    Rollback = 5,
    /// The volume's size changed.
    Resize = 6,
    /// A new epoch begins.
    Epoch = 7,
    /// The wall clock stepped.
    ClockStep = 8,
    /// A client session began.
    SessionOpen = 9,
    /// A client session ended.
    SessionClose = 10,
}

impl RecordKind {
    /// The kind with this number.
    pub fn from_u8(number: u8) -> Option<RecordKind> {
        use RecordKind::*;
        [Write, Zero, Trim, Marker, Rollback, Resize, Epoch, ClockStep, SessionOpen, SessionClose]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    /// Whether the record changes blocks.
    pub fn changes_blocks(self) -> bool {
        matches!(self, RecordKind::Write | RecordKind::Zero | RecordKind::Trim)
    }

    /// The word for it in `log`.
    pub fn word(self) -> &'static str {
        match self {
            RecordKind::Write => "write",
            RecordKind::Zero => "zero",
            RecordKind::Trim => "trim",
            RecordKind::Marker => "marker",
            RecordKind::Rollback => "rollback",
            RecordKind::Resize => "resize",
            RecordKind::Epoch => "epoch",
            RecordKind::ClockStep => "clock-step",
            RecordKind::SessionOpen => "session-open",
            RecordKind::SessionClose => "session-close",
        }
    }
}

/// Record flags.
pub mod flags {
    /// A zeroed range may be reported as a hole.
    pub const HOLE: u8 = 1 << 0;
    /// The client sent zeros as data; they were not stored.
    pub const ZEROS_WRITTEN: u8 = 1 << 1;
    /// All flags of this version.
    pub const KNOWN: u8 = HOLE | ZEROS_WRITTEN;
}

/// Chain value: the first 16 bytes of BLAKE3(previous chain value ‖ header bytes 0..96).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Chain(pub [u8; 16]);

/// One record's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// What it says.
    pub kind: RecordKind,
    /// See [`flags`]; of a marker its [class](super::marker::MarkerClass).
    pub flags: u8,
    /// Whose record.
    pub volume: VolumeId,
    /// Its ordinal.
    pub lsn: Lsn,
    /// When.
    pub timestamp: Timestamp,
    /// The epoch it was first appended in.
    pub epoch: EpochNumber,
    /// Who asked for it.
    pub session: SessionId,
    /// First block, for records that change blocks; for others the elapsed clock in nanoseconds.
    pub lba: Lba,
    /// How many blocks it changes; 0 for records that change none.
    pub blocks: u64,
    /// Length of the payload in bytes, without padding.
    pub payload_bytes: u32,
    /// Bytes at the front of the first block that the client did not write.
    pub head_skip: u16,
    /// Bytes at the back of the last block that the client did not write.
    pub tail_skip: u16,
    /// Checksum of the payload, see [`payload_crc`].
    pub payload_crc: u32,
    /// How the payload is coded; 0 = as it is.
    pub codec: u8,
    /// Key the payload is encrypted with; 0 = none.
    pub key_id: u16,
    /// Authentication tag when encrypted.
    pub tag: [u8; 16],
    /// Chain value after this record.
    pub chain: Chain,
}

impl RecordHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut b = [0; RECORD_HEADER_BYTES];
        put(&mut b, 0, RECORD_MAGIC);
        put(&mut b, 4, RECORD_VERSION.to_le_bytes());
        b[6] = self.kind as u8;
        b[7] = self.flags;
        put(&mut b, 8, self.volume.0.to_le_bytes());
        put(&mut b, 24, self.lsn.0.to_le_bytes());
        put(&mut b, 32, self.timestamp.0.to_le_bytes());
        put(&mut b, 40, self.epoch.0.to_le_bytes());
        put(&mut b, 44, self.session.0.to_le_bytes());
        put(&mut b, 48, self.lba.0.to_le_bytes());
        put(&mut b, 56, self.blocks.to_le_bytes());
        put(&mut b, 64, self.payload_bytes.to_le_bytes());
        put(&mut b, 68, self.head_skip.to_le_bytes());
        put(&mut b, 70, self.tail_skip.to_le_bytes());
        put(&mut b, 72, self.payload_crc.to_le_bytes());
        b[76] = self.codec;
        put(&mut b, 78, self.key_id.to_le_bytes());
        put(&mut b, 80, self.tag);
        put(&mut b, 96, self.chain.0);
        seal_crc(&mut b);
        b
    }

    /// Sets the chain value and gives the bytes: the last step before a record is appended.
    pub fn link(&mut self, previous: Chain) -> [u8; RECORD_HEADER_BYTES] {
        let mut b = self.encode();
        self.chain = chain_value(previous, &b);
        put(&mut b, 96, self.chain.0);
        seal_crc(&mut b);
        b
    }

    /// Reads a header; `None` if it is not one or its fields contradict each other.
    pub fn decode(b: &[u8; RECORD_HEADER_BYTES]) -> Option<RecordHeader> {
        if b[..4] != RECORD_MAGIC || get_u16(b, 4) != RECORD_VERSION || !crc_fits(b) {
            return None;
        }
        let header = RecordHeader {
            kind: RecordKind::from_u8(b[6])?,
            flags: b[7],
            volume: VolumeId(get_u128(b, 8)),
            lsn: Lsn(get_u64(b, 24)),
            timestamp: Timestamp(get_u64(b, 32)),
            epoch: EpochNumber(get_u32(b, 40)),
            session: SessionId(get_u32(b, 44)),
            lba: Lba(get_u64(b, 48)),
            blocks: get_u64(b, 56),
            payload_bytes: get_u32(b, 64),
            head_skip: get_u16(b, 68),
            tail_skip: get_u16(b, 70),
            payload_crc: get_u32(b, 72),
            codec: b[76],
            key_id: get_u16(b, 78),
            tag: get(b, 80),
            chain: Chain(get(b, 96)),
        };
        header.is_sound().then_some(header)
    }

    /// The bytes that are its identity: all but the reserved ones and the checksum behind them.
    pub fn identity(&self) -> [u8; RECORD_IDENTITY_BYTES] {
        get(&self.encode(), 0)
    }

    /// Reads a header from the bytes that are its identity.
    pub fn of_identity(identity: &[u8; RECORD_IDENTITY_BYTES]) -> Option<RecordHeader> {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        put(&mut bytes, 0, *identity);
        seal_crc(&mut bytes);
        // Bytes that no field has would be lost on the way through one.
        RecordHeader::decode(&bytes).filter(|header| header.identity() == *identity)
    }

    fn is_sound(&self) -> bool {
        let skips = self.head_skip as u64 + self.tail_skip as u64;
        let blocks_max = VOLUME_BYTES_MAX / BLOCK_BYTES;
        if self.codec != 0
            || self.key_id != 0
            || self.lsn == Lsn::ZERO
            || self.payload_bytes as u64 > PAYLOAD_BYTES_MAX
            || self.head_skip as u64 >= BLOCK_BYTES
            || self.tail_skip as u64 >= BLOCK_BYTES
        {
            return false;
        }
        if !self.kind.changes_blocks() {
            // For markers the flags are the class.
            let flags_max = if self.kind == RecordKind::Marker { 3 } else { 0 };
            return self.flags <= flags_max && self.blocks == 0 && skips == 0;
        }
        if self.flags & !flags::KNOWN != 0 {
            return false;
        }
        if self.blocks == 0 || self.blocks > blocks_max || self.lba.0 > blocks_max - self.blocks {
            return false;
        }
        if skips >= self.blocks * BLOCK_BYTES {
            return false;
        }
        let stored = match self.kind {
            RecordKind::Write => self.blocks,
            _ => self.edges().stored(),
        };
        self.payload_bytes as u64 == stored * BLOCK_BYTES
    }

    /// The blocks it changes.
    pub fn extent(&self) -> Extent {
        Extent { start: self.lba, blocks: self.blocks }
    }

    /// For a zero or trim: which edge blocks are stored because only a part of them is zeroed.
    pub fn edges(&self) -> Edges {
        Edges {
            head: self.head_skip > 0 || (self.blocks == 1 && self.tail_skip > 0),
            tail: self.blocks > 1 && self.tail_skip > 0,
        }
    }

    /// Length of the payload with its padding, in blocks.
    pub fn payload_blocks(&self) -> u64 {
        (self.payload_bytes as u64).div_ceil(BLOCK_BYTES)
    }
}

/// Edge blocks stored with a zero or trim record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edges {
    /// The first block is stored.
    pub head: bool,
    /// The last block, another one than the first, is stored.
    pub tail: bool,
}

impl Edges {
    /// How many blocks.
    pub fn stored(self) -> u64 {
        self.head as u64 + self.tail as u64
    }
}

/// The chain value of the record with these header bytes.
pub fn chain_value(previous: Chain, header: &[u8; RECORD_HEADER_BYTES]) -> Chain {
    let mut input = [0; 16 + CHAINED_BYTES];
    input[..16].copy_from_slice(&previous.0);
    input[16..].copy_from_slice(&header[..CHAINED_BYTES]);
    Chain(get(blake3::hash(&input).as_bytes(), 0))
}

/// CRC-32 of every 4-KiB block of a payload; the last one is padded with zeros.
pub fn block_crcs(payload: &[u8], crcs: &mut Vec<u32>) {
    crcs.clear();
    for block in payload.chunks(BLOCK_BYTES as usize) {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(block);
        if block.len() < BLOCK_BYTES as usize {
            hasher.update(&[0; BLOCK_BYTES as usize][block.len()..]);
        }
        crcs.push(hasher.finalize());
    }
}

/// The checksum of a payload from those of its blocks: the block's own when there is one block, else the CRC
/// of the list. So that a block can be checked by itself, and the header still covers all of them.
pub fn payload_crc(crcs: &[u32]) -> u32 {
    match crcs {
        [] => 0,
        [one] => *one,
        many => {
            let mut hasher = crc32fast::Hasher::new();
            for crc in many {
                hasher.update(&crc.to_le_bytes());
            }
            hasher.finalize()
        }
    }
}

/// The batch's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// How many records, 1..=[`BATCH_RECORDS_MAX`].
    pub records: u16,
    /// The use of the segment this batch belongs to.
    pub segment: SegmentId,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// The newest LSN whose sync had returned when this batch was submitted.
    pub durable_lsn: Lsn,
    /// Chain value before its first record.
    pub chain_before: Chain,
    /// Length of the whole batch in blocks.
    pub blocks: u32,
}

impl BatchHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut b = [0; BATCH_HEADER_BYTES];
        put(&mut b, 0, BATCH_MAGIC);
        put(&mut b, 4, BATCH_VERSION.to_le_bytes());
        put(&mut b, 6, self.records.to_le_bytes());
        put(&mut b, 8, self.segment.0.to_le_bytes());
        put(&mut b, 16, self.first_lsn.0.to_le_bytes());
        put(&mut b, 24, self.durable_lsn.0.to_le_bytes());
        put(&mut b, 32, self.chain_before.0);
        put(&mut b, 48, self.blocks.to_le_bytes());
        seal_crc(&mut b);
        b
    }

    /// Reads a header; `None` if it is not one.
    pub fn decode(b: &[u8; BATCH_HEADER_BYTES]) -> Option<BatchHeader> {
        if b[..4] != BATCH_MAGIC || get_u16(b, 4) != BATCH_VERSION || !crc_fits(b) {
            return None;
        }
        let header = BatchHeader {
            records: get_u16(b, 6),
            segment: SegmentId(get_u64(b, 8)),
            first_lsn: Lsn(get_u64(b, 16)),
            durable_lsn: Lsn(get_u64(b, 24)),
            chain_before: Chain(get(b, 32)),
            blocks: get_u32(b, 48),
        };
        let records = header.records as usize;
        let sound = (1..=BATCH_RECORDS_MAX).contains(&records)
            && header.first_lsn > Lsn::ZERO
            && header.durable_lsn < header.first_lsn
            && header.blocks as u64 >= batch_header_blocks(records);
        sound.then_some(header)
    }
}

/// Length, in blocks, of the batch header with so many record headers.
pub fn batch_header_blocks(records: usize) -> u64 {
    ((BATCH_HEADER_BYTES + records * RECORD_HEADER_BYTES) as u64).div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Write,
            flags: 0,
            volume: VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            lsn: Lsn(7),
            timestamp: Timestamp(1_763_719_200_000_000_000),
            epoch: EpochNumber(3),
            session: SessionId(9),
            lba: Lba(100),
            blocks: 2,
            payload_bytes: 8192,
            head_skip: 512,
            tail_skip: 1024,
            payload_crc: 0xdead_beef,
            codec: 0,
            key_id: 0,
            tag: [0; 16],
            chain: Chain::default(),
        }
    }

    /// An upgrade that moves a byte would make old journals unreadable: these bytes never change for version 1.
    #[test]
    fn golden_bytes_of_version_1() {
        let mut record = header();
        let bytes = record.link(Chain([1; 16]));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/record-v1.hex").trim());
        let batch = BatchHeader {
            records: 2,
            segment: SegmentId(0x0102_0304_0506_0708),
            first_lsn: Lsn(7),
            durable_lsn: Lsn(5),
            chain_before: Chain([1; 16]),
            blocks: 5,
        };
        let hex: String = batch.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/batch-v1.hex").trim());
    }

    /// A flipped bit in a header must never be read as another record.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut record = header();
        let bytes = record.link(Chain([1; 16]));
        assert_eq!(RecordHeader::decode(&bytes), Some(record));
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let mut rotten = bytes;
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&rotten), None, "bit {bit}");
        }
    }

    /// A hostile but well-checksummed header must not send anybody outside the volume or the payload limit.
    #[test]
    fn contradictions_are_refused() {
        let spoil: [fn(&mut RecordHeader); 8] = [
            |r| r.blocks = 0,
            |r| r.lba = Lba(u64::MAX),
            |r| r.blocks = u64::MAX,
            |r| r.payload_bytes = 4096,
            |r| r.head_skip = 4096,
            |r| r.lsn = Lsn::ZERO,
            |r| r.flags = 0x80,
            |r| r.kind = RecordKind::Marker,
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut record = header();
            spoil(&mut record);
            assert_eq!(RecordHeader::decode(&record.encode()), None, "spoiler {number}");
        }
    }

    /// A zero that touches one block at both ends stores that block once.
    #[test]
    fn edges_of_a_partial_zero() {
        let edges = |blocks, head_skip, tail_skip| {
            RecordHeader { kind: RecordKind::Zero, blocks, head_skip, tail_skip, ..header() }.edges().stored()
        };
        assert_eq!(edges(1, 0, 0), 0);
        assert_eq!(edges(1, 1, 0), 1);
        assert_eq!(edges(1, 0, 1), 1);
        assert_eq!(edges(1, 1, 1), 1);
        assert_eq!(edges(2, 1, 1), 2);
        assert_eq!(edges(2, 0, 1), 1);
    }
}
