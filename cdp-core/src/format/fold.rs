//! A fold: what is left of a thinned stretch of history. Its header block and its tables; `docs/FORMAT.md` has the
//! offsets.

use super::bytes::*;
use super::codec::Codec;
use super::record::Chain;
use super::run::{DamageRow, Entry, MarkerRow, Row, Summary};
use crate::ids::*;
use crate::limits::{FOLD_BLOCKS_MAX, FOLD_LEVEL_MAX, FOLD_POINTS_MAX};

const MAGIC: [u8; 8] = *b"CDPFOLD\0";
/// The header once, frames of LZ4 only.
const VERSION_ONCE: u16 = 1;
/// The points and the header again at the end.
const VERSION: u16 = 2;
const BLOCK: usize = BLOCK_BYTES as usize;
const CRC_AT: usize = BLOCK - 4;
const SUFFIX: &str = ".fold";

/// Blocks of payload that are stored, and compressed, together.
pub const FRAME_BLOCKS: u64 = 16;
/// Bytes of a row of the table of frames.
pub const FRAME_ROW_BYTES: u64 = 16;
/// Bytes of a row of the table of points.
pub const POINT_ROW_BYTES: u64 = 24;

/// The first block of a fold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoldHeader {
    /// Whether points and header stand at the end of the file once more: version 2.
    pub is_twice: bool,
    /// How its frames were compressed, where that made them smaller.
    pub codec: Codec,
    /// Whose history.
    pub volume: VolumeId,
    /// This fold; random.
    pub id: SegmentId,
    /// How often what stands in it was made of folds.
    pub level: u8,
    /// Of two folds of the same segments the one with the higher generation counts.
    pub generation: u64,
    /// Ordinals of the first and the last of its segments.
    pub ordinals: (u64, u64),
    /// Its first and its last record.
    pub lsns: (Lsn, Lsn),
    /// Timestamp of the record before the first, and of the last.
    pub timestamps: (Timestamp, Timestamp),
    /// Chain value before the first record, and after the last.
    pub chains: (Chain, Chain),
    /// The segment before the first of its segments; 0 for none.
    pub predecessor: SegmentId,
    /// Where that one's records end, as an offset in its file.
    pub predecessor_end: u64,
    /// The last of its segments: what follows names it as its predecessor.
    pub segment: SegmentId,
    /// The opening that made that segment, and the one before.
    pub incarnations: (Incarnation, Incarnation),
    /// Epoch of that segment.
    pub epoch: EpochNumber,
    /// Hash of that segment's seal.
    pub seal: [u8; 32],
    /// What all its records did, also those that are gone.
    pub summary: Summary,
    /// Bytes of the files that it was made of.
    pub made_of_bytes: u64,
    /// Blocks of payload; they are numbered from 1.
    pub payload_blocks: u64,
    /// Where the tables begin: points, frames, entries, events, damages, one behind the other; the file ends with them.
    pub tables_at: u64,
    /// Number of points.
    pub points: u64,
    /// Number of entries.
    pub entries: u64,
    /// Number of events.
    pub events: u64,
    /// Number of damage rows.
    pub damages: u64,
    /// CRC of the table of points.
    pub points_crc: u32,
    /// CRC of the other tables.
    pub tables_crc: u32,
    /// BLAKE3 of the file behind this block, up to where points and header stand again.
    pub hash: [u8; 32],
}

impl FoldHeader {
    /// The block's bytes.
    pub fn encode(&self) -> Box<[u8; BLOCK]> {
        let mut b = Box::new([0; BLOCK]);
        put(&mut b[..], 0, MAGIC);
        let version = if self.is_twice { VERSION } else { VERSION_ONCE };
        put(&mut b[..], 8, version.to_le_bytes());
        b[10] = self.level;
        if self.is_twice {
            b[11] = self.codec.number();
        }
        put(&mut b[..], 16, self.volume.0.to_le_bytes());
        put(&mut b[..], 32, self.id.0.to_le_bytes());
        put(&mut b[..], 40, self.generation.to_le_bytes());
        put(&mut b[..], 48, self.ordinals.0.to_le_bytes());
        put(&mut b[..], 56, self.ordinals.1.to_le_bytes());
        put(&mut b[..], 64, self.lsns.0.0.to_le_bytes());
        put(&mut b[..], 72, self.lsns.1.0.to_le_bytes());
        put(&mut b[..], 80, self.timestamps.0.0.to_le_bytes());
        put(&mut b[..], 88, self.timestamps.1.0.to_le_bytes());
        put(&mut b[..], 96, self.chains.0.0);
        put(&mut b[..], 112, self.chains.1.0);
        put(&mut b[..], 128, self.predecessor.0.to_le_bytes());
        put(&mut b[..], 136, self.predecessor_end.to_le_bytes());
        put(&mut b[..], 144, self.segment.0.to_le_bytes());
        put(&mut b[..], 152, self.incarnations.0.0.to_le_bytes());
        put(&mut b[..], 160, self.incarnations.1.0.to_le_bytes());
        put(&mut b[..], 168, self.epoch.0.to_le_bytes());
        put(&mut b[..], 176, self.seal);
        self.summary.encode(&mut b[208..208 + Summary::BYTES]);
        put(&mut b[..], 240, self.made_of_bytes.to_le_bytes());
        put(&mut b[..], 248, self.payload_blocks.to_le_bytes());
        put(&mut b[..], 256, self.tables_at.to_le_bytes());
        put(&mut b[..], 264, self.points.to_le_bytes());
        put(&mut b[..], 272, self.entries.to_le_bytes());
        put(&mut b[..], 280, self.events.to_le_bytes());
        put(&mut b[..], 288, self.damages.to_le_bytes());
        put(&mut b[..], 296, self.points_crc.to_le_bytes());
        put(&mut b[..], 300, self.tables_crc.to_le_bytes());
        put(&mut b[..], 304, self.hash);
        seal_crc(&mut b[..]);
        b
    }

    /// Reads the header of a file of `file_bytes` bytes; `None` if it is not one, or the file is not whole.
    pub fn decode(b: &[u8; BLOCK], file_bytes: u64) -> Option<FoldHeader> {
        if b[..8] != MAGIC || !crc_fits(b) {
            return None;
        }
        debug_assert_eq!(CRC_AT + 4, b.len());
        let (is_twice, codec) = match get_u16(b, 8) {
            VERSION_ONCE => (false, Codec::Lz4),
            VERSION => (true, Codec::from_number(b[11])?),
            _ => return None,
        };
        let header = FoldHeader {
            is_twice,
            codec,
            level: b[10],
            volume: VolumeId(get_u128(b, 16)),
            id: SegmentId(get_u64(b, 32)),
            generation: get_u64(b, 40),
            ordinals: (get_u64(b, 48), get_u64(b, 56)),
            lsns: (Lsn(get_u64(b, 64)), Lsn(get_u64(b, 72))),
            timestamps: (Timestamp(get_u64(b, 80)), Timestamp(get_u64(b, 88))),
            chains: (Chain(get(b, 96)), Chain(get(b, 112))),
            predecessor: SegmentId(get_u64(b, 128)),
            predecessor_end: get_u64(b, 136),
            segment: SegmentId(get_u64(b, 144)),
            incarnations: (Incarnation(get_u64(b, 152)), Incarnation(get_u64(b, 160))),
            epoch: EpochNumber(get_u32(b, 168)),
            seal: get(b, 176),
            summary: Summary::decode(&b[208..208 + Summary::BYTES]),
            made_of_bytes: get_u64(b, 240),
            payload_blocks: get_u64(b, 248),
            tables_at: get_u64(b, 256),
            points: get_u64(b, 264),
            entries: get_u64(b, 272),
            events: get_u64(b, 280),
            damages: get_u64(b, 288),
            points_crc: get_u32(b, 296),
            tables_crc: get_u32(b, 300),
            hash: get(b, 304),
        };
        header.is_sound(file_bytes).then_some(header)
    }

    fn is_sound(&self, file_bytes: u64) -> bool {
        // Every count is below the file's length, so that no sum below can overflow.
        let counts = [self.points, self.entries, self.events, self.damages, self.tables_at];
        self.lsns.0 > Lsn::ZERO
            && self.lsns.0 <= self.lsns.1
            && self.lsns.1.0 - self.lsns.0.0 < u64::from(u32::MAX)
            && self.ordinals.0 <= self.ordinals.1
            && self.level <= FOLD_LEVEL_MAX
            && self.points <= FOLD_POINTS_MAX
            && self.payload_blocks <= FOLD_BLOCKS_MAX
            && file_bytes < 1 << 48
            && counts.iter().all(|count| *count <= file_bytes)
            && self.file_bytes() == file_bytes
    }

    /// How many frames its payload takes.
    pub fn frames(&self) -> u64 {
        self.payload_blocks.div_ceil(FRAME_BLOCKS)
    }

    /// How many blocks this frame has.
    pub fn frame_blocks(&self, frame: u64) -> u64 {
        self.payload_blocks.saturating_sub(frame * FRAME_BLOCKS).min(FRAME_BLOCKS)
    }

    /// Offset of the table of frames.
    pub fn frames_at(&self) -> u64 {
        self.tables_at + self.points * POINT_ROW_BYTES
    }

    /// Offset of the table of entries.
    pub fn entries_at(&self) -> u64 {
        self.frames_at() + self.frames() * FRAME_ROW_BYTES
    }

    /// Offset of the table of events.
    pub fn events_at(&self) -> u64 {
        self.entries_at() + self.entries * Entry::BYTES as u64
    }

    /// Offset of the table of damage.
    pub fn damages_at(&self) -> u64 {
        self.events_at() + self.events * MarkerRow::BYTES as u64
    }

    /// Where the tables end.
    pub fn tables_end(&self) -> u64 {
        self.damages_at() + self.damages * DamageRow::BYTES as u64
    }

    /// Where points and header stand again, if they do: in no block of the disk in which they stand first.
    pub fn copies_at(&self) -> u64 {
        self.tables_end().next_multiple_of(BLOCK_BYTES)
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        match self.is_twice {
            true => self.copies_at() + self.points * POINT_ROW_BYTES + BLOCK_BYTES,
            false => self.tables_end(),
        }
    }
}

/// A state that a fold keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PointRow {
    /// The record.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
    /// Of a record that changes no block: when the record before it was, if that is one of the fold's; the state after
    /// that one is kept, too. Else 0.
    pub before: Timestamp,
}

impl PointRow {
    /// The row's bytes.
    pub fn encode(&self) -> [u8; POINT_ROW_BYTES as usize] {
        let mut b = [0; POINT_ROW_BYTES as usize];
        put(&mut b, 0, self.lsn.0.to_le_bytes());
        put(&mut b, 8, self.at.0.to_le_bytes());
        put(&mut b, 16, self.before.0.to_le_bytes());
        b
    }

    /// Reads a row.
    pub fn decode(b: &[u8; POINT_ROW_BYTES as usize]) -> PointRow {
        PointRow { lsn: Lsn(get_u64(b, 0)), at: Timestamp(get_u64(b, 8)), before: Timestamp(get_u64(b, 16)) }
    }
}

/// Where a frame stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRow {
    /// Offset in the file.
    pub at: u64,
    /// Bytes stored; as many as the payload has: not compressed.
    pub bytes: u32,
    /// The number of its codec.
    pub codec: u32,
}

impl FrameRow {
    /// The row's bytes.
    pub fn encode(&self) -> [u8; FRAME_ROW_BYTES as usize] {
        let mut b = [0; FRAME_ROW_BYTES as usize];
        put(&mut b, 0, self.at.to_le_bytes());
        put(&mut b, 8, self.bytes.to_le_bytes());
        put(&mut b, 12, self.codec.to_le_bytes());
        b
    }

    /// Reads a row.
    pub fn decode(b: &[u8; FRAME_ROW_BYTES as usize]) -> FrameRow {
        FrameRow { at: get_u64(b, 0), bytes: get_u32(b, 8), codec: get_u32(b, 12) }
    }
}

/// Length of the file of a fold with so many bytes of stored payload, and so much in its tables.
pub fn fold_file_bytes(
    stored_bytes: u64,
    payload_blocks: u64,
    points: u64,
    entries: u64,
    events: u64,
    damages: u64,
) -> u64 {
    let tables_end = BLOCK_BYTES
        + stored_bytes
        + points * POINT_ROW_BYTES
        + payload_blocks.div_ceil(FRAME_BLOCKS) * FRAME_ROW_BYTES
        + entries * Entry::BYTES as u64
        + events * MarkerRow::BYTES as u64
        + damages * DamageRow::BYTES as u64;
    tables_end.next_multiple_of(BLOCK_BYTES) + points * POINT_ROW_BYTES + BLOCK_BYTES
}

/// Name of a fold's file: the ordinal of its last segment, and its id.
pub fn fold_file_name(ordinal: u64, id: SegmentId) -> String {
    format!("{ordinal:012}-{:016x}{SUFFIX}", id.0)
}

/// Whether this is the name of a fold.
pub fn is_fold_name(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

/// Whether this is the name of a fold that was being written.
pub fn is_unfinished_fold_name(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(is_fold_name)
}

/// Name of the run of a fold with this name.
pub fn fold_run_name(fold: &str) -> String {
    format!("{fold}.run")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FoldHeader {
        let mut header = FoldHeader {
            is_twice: false,
            codec: Codec::Lz4,
            volume: VolumeId(7),
            id: SegmentId(0x1122_3344_5566_7788),
            level: 2,
            generation: 3,
            ordinals: (4, 11),
            lsns: (Lsn(100), Lsn(900)),
            timestamps: (Timestamp(5), Timestamp(6)),
            chains: (Chain([1; 16]), Chain([2; 16])),
            predecessor: SegmentId(8),
            predecessor_end: 8192,
            segment: SegmentId(9),
            incarnations: (Incarnation(10), Incarnation(11)),
            epoch: EpochNumber(1),
            seal: [3; 32],
            summary: Summary { writes: 12, written_bytes: 13, trims: 14, trimmed_bytes: 15 },
            made_of_bytes: 16,
            payload_blocks: 33,
            tables_at: 4096 + 1000,
            points: 2,
            entries: 33,
            events: 1,
            damages: 1,
            points_crc: 17,
            tables_crc: 18,
            hash: [4; 32],
        };
        header.tables_at = 4096 + 1000;
        header
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Thinned history that an upgrade cannot read is lost: these bytes never change for version 1.
    #[test]
    fn golden_bytes_of_version_1() {
        let header = header();
        let block = header.encode();
        assert!(block[336..CRC_AT].iter().all(|byte| *byte == 0));
        let text = format!(
            "{}\n{}\n{}\n{}\n",
            hex(&block[..336]),
            hex(&block[CRC_AT..]),
            hex(&PointRow { lsn: Lsn(1), at: Timestamp(2), before: Timestamp(3) }.encode()),
            hex(&FrameRow { at: 4096, bytes: 77, codec: 1 }.encode())
        );
        assert_eq!(text, include_str!("golden/fold-v1.hex"));
        assert_eq!(FoldHeader::decode(&block, header.file_bytes()), Some(header));
    }

    /// The same of version 2, whose length has room for the copies.
    #[test]
    fn golden_bytes_of_version_2() {
        let header = FoldHeader { is_twice: true, codec: Codec::Zstd, ..header() };
        let block = header.encode();
        let text = format!("{}\n{}\n", hex(&block[..336]), hex(&block[CRC_AT..]));
        assert_eq!(text, include_str!("golden/fold-v2.hex"));
        assert_eq!(FoldHeader::decode(&block, header.file_bytes()), Some(header));
        assert_eq!(header.file_bytes(), self::header().file_bytes().next_multiple_of(4096) + 4096 + 48);
        assert_eq!(FoldHeader::decode(&block, self::header().file_bytes()), None);
        let stored = header.tables_at - BLOCK_BYTES;
        assert_eq!(fold_file_bytes(stored, 33, 2, 33, 1, 1), header.file_bytes());
    }

    /// A fold that is cut short, or whose numbers lie, must not be taken for history.
    #[test]
    fn what_does_not_fit_is_no_fold() {
        let good = header();
        assert_eq!(FoldHeader::decode(&good.encode(), good.file_bytes() - 1), None);
        let bad = [
            FoldHeader { lsns: (Lsn(9), Lsn(8)), ..good },
            FoldHeader { points: u64::MAX, ..good },
            FoldHeader { entries: 1 << 60, ..good },
            FoldHeader { payload_blocks: u64::MAX, ..good },
            FoldHeader { level: 99, ..good },
        ];
        for header in bad {
            let bytes = [good.file_bytes(), u64::MAX];
            assert!(bytes.iter().all(|bytes| FoldHeader::decode(&header.encode(), *bytes).is_none()));
        }
    }
}
