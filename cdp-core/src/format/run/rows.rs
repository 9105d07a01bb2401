//! The fixed-width rows of a run's sections.

use super::page::PAGE_ROWS_BYTES;
use crate::ids::{Extent, Lba, Lsn, SegmentId, Timestamp};
use crate::limits::LBA_BITS;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has that length")
}

/// Tree and index of an entry.
///
/// Payload comes first, by block. Then, region by region, the nodes of up to [`REGION_BITS`] levels that lie in an aligned
/// region of the volume, so that whoever asks what covers a block finds all of them in one place; by tree, then index.
/// Last the larger nodes, by tree, then index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

/// A region is an aligned node of so many levels: 2^16 blocks.
pub const REGION_BITS: u32 = 16;

const INDEX_BITS: u32 = 40;
/// Where the parts of a key stand in the number that it orders by: which of the three groups it belongs to, region and level of
/// a node within one, level of a larger one.
const GROUP_AT: u32 = 46;
const REGION_AT: u32 = 22;
const LEVEL_AT: u32 = 17;
const LARGE_LEVEL_AT: u32 = INDEX_BITS;
const IN_REGIONS: u64 = 1;
const LARGE: u64 = 2;
/// What no volume can have. Orders behind all others.
const IMPOSSIBLE: Key = Key(3 << GROUP_AT);

const _: () = assert!(LEVEL_AT > REGION_BITS && REGION_AT >= LEVEL_AT + 5);
const _: () = assert!(LBA_BITS - REGION_BITS + REGION_AT <= GROUP_AT);

impl Key {
    /// Orders behind all keys that there can be.
    pub const BEHIND_ALL: Key = Key(u64::MAX);

    /// The key of a node; one that lies beyond the largest volume has tree 255.
    pub fn new(tree: u8, index: u64) -> Key {
        let Some(level) = tree.checked_sub(1).map(u32::from) else {
            return if index < 1 << LBA_BITS { Key(index) } else { IMPOSSIBLE };
        };
        if level > LBA_BITS || index >> (LBA_BITS - level) != 0 {
            return IMPOSSIBLE;
        }
        if level > REGION_BITS {
            return Key(LARGE << GROUP_AT | u64::from(level) << LARGE_LEVEL_AT | index);
        }
        let (region, within) = (index >> (REGION_BITS - level), index & ((1 << (REGION_BITS - level)) - 1));
        Key(IN_REGIONS << GROUP_AT | region << REGION_AT | u64::from(level) << LEVEL_AT | within)
    }

    /// The key with this stored value, of which the lower 48 bits count.
    pub fn from_value(value: u64) -> Key {
        Key::new((value >> INDEX_BITS) as u8, value & ((1 << INDEX_BITS) - 1))
    }

    /// The stored value, below 2^48.
    pub fn value(self) -> u64 {
        u64::from(self.tree()) << INDEX_BITS | self.index()
    }

    /// 0 for payload, else 1 + the binary logarithm of the node's blocks.
    pub fn tree(self) -> u8 {
        match self.0 >> GROUP_AT {
            0 => 0,
            IN_REGIONS => 1 + (self.0 >> LEVEL_AT & 31) as u8,
            LARGE => 1 + (self.0 >> LARGE_LEVEL_AT & 63) as u8,
            _ => u8::MAX,
        }
    }

    /// Number of the node in its tree.
    pub fn index(self) -> u64 {
        match self.0 >> GROUP_AT {
            0 => self.0,
            IN_REGIONS => {
                let level = self.0 >> LEVEL_AT & 31;
                self.region() << (u64::from(REGION_BITS) - level) | self.0 & ((1 << LEVEL_AT) - 1)
            }
            _ => self.0 & ((1 << INDEX_BITS) - 1),
        }
    }

    /// Number of the region, of a node of up to [`REGION_BITS`] levels.
    pub fn region_of_node(self) -> Option<u64> {
        (self.0 >> GROUP_AT == IN_REGIONS).then(|| self.region())
    }

    /// The first key that a node of this region can have.
    pub fn first_of_region(region: u64) -> Key {
        Key::new(1, region << REGION_BITS)
    }

    fn region(self) -> u64 {
        self.0 >> REGION_AT & ((1 << (LBA_BITS - REGION_BITS)) - 1)
    }

    /// The next node of the same tree.
    pub fn next_in_tree(self) -> Key {
        Key::new(self.tree(), self.index() + 1)
    }

    /// The first node of `tree` that orders behind `place`.
    pub fn of_tree_behind(tree: u8, place: Key) -> Key {
        if tree == place.tree() {
            return place.next_in_tree();
        }
        let first = Key::new(tree, 0);
        if first > place {
            return first;
        }
        let level = u32::from(tree.saturating_sub(1));
        if tree == 0 || level > REGION_BITS || place.0 >> GROUP_AT != IN_REGIONS {
            return IMPOSSIBLE;
        }
        let region = place.region() + u64::from(tree < place.tree());
        Key::new(tree, region << (REGION_BITS - level))
    }

    /// A number that orders as the keys do.
    pub fn order(self) -> u64 {
        self.0
    }

    /// What orders right behind it, which need not be a key of anything.
    pub fn place_behind(self) -> Key {
        Key(self.0 + 1)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.tree(), self.index())
    }
}

/// A fixed-width row of a section.
pub trait Row: Sized {
    /// Its width.
    const BYTES: usize;
    /// How many stand in a page.
    const PER_PAGE: usize = PAGE_ROWS_BYTES / Self::BYTES;
    /// Writes it into `BYTES` bytes, which are zeros.
    fn encode(&self, bytes: &mut [u8]);
    /// Reads it from `BYTES` bytes; every value decodes.
    fn decode(bytes: &[u8]) -> Self;
}

/// A version at a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it hangs.
    pub key: Key,
    /// Its LSN less the run's first.
    pub lsn_delta: u32,
    /// Place of the payload in the segment; for a range [`RANGE_ZERO`] or [`RANGE_HOLE`].
    pub block: u32,
    /// CRC-32 of the block's payload; 0 in a range.
    pub crc: u32,
}

/// `block` of a range that became zeros kept as allocated space.
pub const RANGE_ZERO: u32 = 1;
/// `block` of a range that became a hole.
pub const RANGE_HOLE: u32 = 2;

impl Row for Entry {
    const BYTES: usize = 18;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..6].copy_from_slice(&self.key.value().to_le_bytes()[..6]);
        bytes[6..10].copy_from_slice(&self.lsn_delta.to_le_bytes());
        bytes[10..14].copy_from_slice(&self.block.to_le_bytes());
        bytes[14..18].copy_from_slice(&self.crc.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Entry {
        Entry {
            key: Key::from_value(u64_at(bytes, 0)),
            lsn_delta: u32_at(bytes, 6),
            block: u32_at(bytes, 10),
            crc: u32_at(bytes, 14),
        }
    }
}

impl Row for Timestamp {
    const BYTES: usize = 8;

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Timestamp {
        Timestamp(u64_at(bytes, 0))
    }
}

/// A marker, and where in the segment the rest of it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MarkerRow {
    /// Its record.
    pub lsn: Lsn,
    /// When.
    pub timestamp: Timestamp,
    /// Elapsed time of the store, in nanoseconds.
    pub elapsed_ns: u64,
    /// Kind, as the marker's record has it.
    pub kind: u8,
    /// Flags, as the marker's record has them.
    pub flags: u8,
    /// Number of the 4-KiB block in the segment where its payload begins.
    pub block: u32,
    /// Length of its payload in bytes.
    pub payload_bytes: u32,
    /// Checksum of its payload, as the record's header has it.
    pub payload_crc: u32,
}

impl Row for MarkerRow {
    const BYTES: usize = 40;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.timestamp.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.elapsed_ns.to_le_bytes());
        bytes[24] = self.kind;
        bytes[25] = self.flags;
        bytes[28..32].copy_from_slice(&self.block.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.payload_crc.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> MarkerRow {
        MarkerRow {
            lsn: Lsn(u64_at(bytes, 0)),
            timestamp: Timestamp(u64_at(bytes, 8)),
            elapsed_ns: u64_at(bytes, 16),
            kind: bytes[24],
            flags: bytes[25],
            block: u32_at(bytes, 28),
            payload_bytes: u32_at(bytes, 32),
            payload_crc: u32_at(bytes, 36),
        }
    }
}

/// Blocks whose payload in the segment was found to be damaged when the run was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamageRow {
    /// The record.
    pub lsn: Lsn,
    /// Its blocks.
    pub extent: Extent,
    /// What is wrong: 0 the payload does not fit its checksum.
    pub kind: u8,
}

impl Row for DamageRow {
    const BYTES: usize = 32;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.extent.start.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.extent.blocks.to_le_bytes());
        bytes[24] = self.kind;
    }

    fn decode(bytes: &[u8]) -> DamageRow {
        DamageRow {
            lsn: Lsn(u64_at(bytes, 0)),
            extent: Extent { start: Lba(u64_at(bytes, 8)), blocks: u64_at(bytes, 16) },
            kind: bytes[24],
        }
    }
}

/// A segment whose records a run indexes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The segment.
    pub segment: SegmentId,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// Where the log ends in it, in bytes.
    pub log_end: u64,
}

impl Row for Source {
    const BYTES: usize = 24;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.log_end.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Source {
        Source {
            segment: SegmentId(u64_at(bytes, 0)),
            first_lsn: Lsn(u64_at(bytes, 8)),
            log_end: u64_at(bytes, 16),
        }
    }
}

/// What the records of a segment did, in sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Records that wrote.
    pub writes: u64,
    /// Bytes that they wrote, as the client asked for.
    pub written_bytes: u64,
    /// Records that zeroed or trimmed.
    pub trims: u64,
    /// Bytes that they zeroed or trimmed.
    pub trimmed_bytes: u64,
}

impl Summary {
    /// Bytes it takes in a file.
    pub const BYTES: usize = 32;

    /// Adds what another one says.
    pub fn add(&mut self, other: &Summary) {
        self.writes = self.writes.saturating_add(other.writes);
        self.written_bytes = self.written_bytes.saturating_add(other.written_bytes);
        self.trims = self.trims.saturating_add(other.trims);
        self.trimmed_bytes = self.trimmed_bytes.saturating_add(other.trimmed_bytes);
    }

    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.writes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.written_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.trims.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.trimmed_bytes.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Summary {
        Summary {
            writes: u64_at(bytes, 0),
            written_bytes: u64_at(bytes, 8),
            trims: u64_at(bytes, 16),
            trimmed_bytes: u64_at(bytes, 24),
        }
    }
}

/// A segment whose records a merged run indexes, and all that its own run would say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergedSource {
    /// The segment.
    pub segment: SegmentId,
    /// Its ordinal.
    pub ordinal: u64,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// LSN of its last record; the one before `first_lsn` if it has none.
    pub last_lsn: Lsn,
    /// Where the log ends in it, in bytes.
    pub log_end: u64,
    /// Timestamp of its last record; of the one before it if it has none.
    pub last_timestamp: Timestamp,
    /// Chain value at its last LSN.
    pub chain: [u8; 16],
    /// Its seal hash.
    pub seal: [u8; 32],
    /// What its records did.
    pub summary: Summary,
}

impl Row for MergedSource {
    const BYTES: usize = 128;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.last_lsn.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.log_end.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.last_timestamp.0.to_le_bytes());
        bytes[48..64].copy_from_slice(&self.chain);
        bytes[64..96].copy_from_slice(&self.seal);
        self.summary.encode(&mut bytes[96..128]);
    }

    fn decode(bytes: &[u8]) -> MergedSource {
        MergedSource {
            segment: SegmentId(u64_at(bytes, 0)),
            ordinal: u64_at(bytes, 8),
            first_lsn: Lsn(u64_at(bytes, 16)),
            last_lsn: Lsn(u64_at(bytes, 24)),
            log_end: u64_at(bytes, 32),
            last_timestamp: Timestamp(u64_at(bytes, 40)),
            chain: array_at(bytes, 48),
            seal: array_at(bytes, 64),
            summary: Summary::decode(&bytes[96..128]),
        }
    }
}

/// A block of a merged run's bloom filter.
pub struct BloomBlock(pub [u8; 64]);

impl Row for BloomBlock {
    const BYTES: usize = 64;

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }

    fn decode(bytes: &[u8]) -> BloomBlock {
        BloomBlock(array_at(bytes, 0))
    }
}

/// The first entry of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fence {
    /// Its key.
    pub key: Key,
    /// Its LSN less the run's first.
    pub lsn_delta: u32,
}

impl Row for Fence {
    const BYTES: usize = 12;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.key.value().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.lsn_delta.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Fence {
        Fence { key: Key::from_value(u64_at(bytes, 0)), lsn_delta: u32_at(bytes, 8) }
    }
}

/// What the bloom filter hashes a key's value to.
pub fn bloom_hash(value: u64) -> u64 {
    let mut x = value;
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that reads back as another one shows a stranger's block; one in the wrong place is not found at all.
    #[test]
    fn keys_are_what_they_were_made_of_and_in_order() {
        let mut keys = Vec::new();
        for tree in 0..=1 + LBA_BITS as u8 {
            let count = 1u64 << (LBA_BITS - u32::from(tree.saturating_sub(1)));
            for index in
                [0, 1, 2, 65_535, 65_536, 65_537, 1 << 20, count / 2, count.saturating_sub(2), count - 1]
            {
                if index < count {
                    let key = Key::new(tree, index);
                    assert_eq!((key.tree(), key.index()), (tree, index));
                    assert_eq!(Key::from_value(key.value() | 0xfffe << 48), key);
                    assert_eq!(key.value(), u64::from(tree) << 40 | index);
                    keys.push(key);
                }
            }
            assert_eq!(Key::new(tree, count).tree(), u8::MAX);
            assert!(Key::new(tree, count) > Key::new(tree, count - 1));
        }
        let group = |key: &Key| {
            let level = u32::from(key.tree().saturating_sub(1));
            match key.tree() {
                0 => (0, 0, 0, key.index()),
                tree if level <= REGION_BITS => (1, key.index() >> (REGION_BITS - level), tree, key.index()),
                tree => (2, 0, tree, key.index()),
            }
        };
        keys.sort();
        keys.dedup();
        assert!(keys.windows(2).all(|pair| group(&pair[0]) < group(&pair[1])));
        for tree in 0..=1 + LBA_BITS as u8 {
            for place in &keys {
                let behind = Key::of_tree_behind(tree, *place);
                assert!(behind > *place && [tree, u8::MAX].contains(&behind.tree()), "{place:?} {behind:?}");
                let next = keys.iter().find(|key| *key > place && key.tree() == tree);
                assert!(next.is_none_or(|next| *next >= behind), "{place:?}: {next:?} is before {behind:?}");
                let before = behind.index().checked_sub(1).map(|index| Key::new(tree, index));
                assert!(behind.tree() != tree || before.is_none_or(|before| before <= *place), "{place:?}");
            }
        }
    }
}
