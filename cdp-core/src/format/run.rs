//! The bytes of a run, the immutable index of a sealed segment: header, entries, markers, checked pages.
//!
//! All numbers are little-endian. A run is a row of pages of 4096 bytes. That of one segment:
//!
//! | pages | what |
//! |---|---|
//! | 0 | the header |
//! | 1 … | the region, read whole at open: sources, fences of entries, fences of timestamps, bloom filter; one behind the other, rest zeros |
//! | … | entries, sorted by key, then LSN |
//! | … | timestamps: one u64 for every LSN from the first to the last |
//! | … | markers, by LSN |
//! | … | damage, by LSN |
//!
//! A merged run, of several segments:
//!
//! | pages | what |
//! |---|---|
//! | 0 | the header |
//! | 1 … | entries, timestamps, markers, damage, as above |
//! | … | segments: the merged run's own kind of source |
//! | … | fences of entries; fences of timestamps; blocks of the bloom filter |
//! | … | the region, read whole at open: the first fence of each page of fences of entries, then the same of timestamps; rest zeros |
//!
//! **Header**
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `CDP-RUN\n` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | kind: 0 the run of one sealed segment; 1 merged; 2 pointer image (not written yet) |
//! | 11 | 1 | level of merging, 0 for kind 0 |
//! | 12 | 1 | codec of the segment's payload: 0 as appended |
//! | 13 | 1 | lowest tree whose keys are in the bloom filter: 0, or 1 in a merged run with too many keys for all of them |
//! | 14 | 2 | zeros |
//! | 16 | 16 | volume id |
//! | 32 | 8 | run id: for kind 0 the segment id, for kind 1 a random number |
//! | 40 | 8 | first LSN |
//! | 48 | 8 | last LSN; first − 1 if the segment holds no record |
//! | 56 | 8 | first timestamp, 0 if there is no record |
//! | 64 | 8 | last timestamp, likewise |
//! | 72 | 8 | where the log ends in the (last) segment, in bytes |
//! | 80 | 16 | chain value at the last LSN |
//! | 96 | 32 | seal hash of the (last) segment |
//! | 128 | 16 | key id, zeros if not encrypted |
//! | 144 | 16 | tag of the region, zeros if not encrypted |
//! | 160 | 8 | number of sources |
//! | 168 | 8 | number of entries |
//! | 176 | 8 | number of timestamps |
//! | 184 | 8 | number of markers |
//! | 192 | 8 | number of damage rows |
//! | 200 | 8 | number of 64-byte blocks of the bloom filter |
//! | 208 | 8 | trees that have entries, as a bitmask |
//! | 216 | 4 | CRC-32 of the region, all its pages |
//! | 220 | 32 | summary |
//! | 252 | 3840 | zeros |
//! | 4092 | 4 | CRC-32 of the bytes before |
//!
//! **Every page behind the region**: rows from offset 0, as many as fit whole into 4072 bytes; zeros; 4 bytes
//! reserved at 4072; 16 bytes of tag at 4076 (zeros if not encrypted); at 4092 the CRC-32 of: run id (8 bytes),
//! page number in the file (8 bytes), bytes 0 … 4091. So a page at a wrong place, or of another run, is found.
//! Each section begins on a page of its own; the file ends with the last page.
//!
//! **Source**, 24 bytes: segment id 8, its first LSN 8, where its log ends 8. An entry's LSN tells its source.
//! **Summary**, 32 bytes: number of records that wrote 8, bytes that they wrote 8, number of records that zeroed or
//! trimmed 8, bytes that they did 8.
//! **Segment** of a merged run, 128 bytes: segment id 8, ordinal 8, first LSN 8, last LSN 8, where its log ends 8,
//! timestamp of its last record (or of the one before it, if it has none) 8, chain value at its last LSN 16, seal
//! hash 32, its summary 32. Rising, without a gap between the LSNs of one and the next.
//!
//! **Entry**, 18 bytes: key 6, LSN − first LSN 4, block 4, CRC-32 of the block's payload 4. A key is
//! `tree << 40 | index`. In tree 0 the index is a block number and `block` the place of its payload in the
//! segment, in blocks of 4096 bytes, as first appended. In tree 1 + L (L = 0 … 34) the index is that of an
//! aligned node of 2^L blocks which the record zeroed whole; `block` is 1 for zeros kept as allocated space, 2
//! for a hole; the CRC is 0. Of two entries with the same LSN for a block the one in the lower tree counts.
//! Keys order by [`Key`]: tree 0 by index; nodes of up to 2^16 blocks by aligned region of 2^16 blocks, tree, index;
//! larger ones by tree, index.
//!
//! **Fence of entries**, 12 bytes for each page of entries: key 8, LSN − first LSN 4 of its first entry.
//! **Fence of timestamps**, 8 bytes for each page of timestamps: its first.
//!
//! **Bloom filter** over all keys, in a merged run over those of tree 0: h = mix(key), where mix is x ^= x >> 30, x *= 0xbf58476d1ce4e5b9,
//! x ^= x >> 27, x *= 0x94d049bb133111eb, x ^= x >> 31. The 64-byte block is (h >> 32) · blocks >> 32; with
//! a = h mod 2^16 and b = (h >> 16) mod 2^16 | 1 the bits are (a + i · b) mod 512 for i = 0 … 7; bit n is bit
//! n mod 8 of byte n / 8.
//!
//! **Marker**, 40 bytes: LSN 8, timestamp 8, elapsed time 8, kind 1, flags 1, zeros 2, block of its payload in
//! the segment 4, bytes of payload 4, zeros 4.
//!
//! **Damage**, 32 bytes: LSN 8, first block 8, number of blocks 8, kind 1, zeros 7.

mod page;
mod rows;

pub use page::{PAGE_BYTES, PAGE_ROWS_BYTES, Page, check_page, pages_of, row_of, seal_page};
pub use rows::{
    BloomBlock, DamageRow, Entry, Fence, Key, MarkerRow, MergedSource, RANGE_HOLE, RANGE_ZERO, REGION_BITS,
    Row, Source, Summary, bloom_hash,
};

use crate::error::{Error, Kind, Result};
use crate::ids::{Lsn, Timestamp, VolumeId};
use page::CRC_AT;
use rows::{array_at, u16_at, u32_at, u64_at};

/// First bytes of a run.
pub const MAGIC: [u8; 8] = *b"CDP-RUN\n";
/// The version; runs of another one are made anew.
pub const VERSION: u16 = 2;
/// Kind of a run: the index of one sealed segment.
pub const KIND_SEGMENT: u8 = 0;
/// Kind of a run: the index of several sealed segments, one behind the other.
pub const KIND_MERGED: u8 = 1;
/// Bytes of a bloom filter's block.
pub const BLOOM_BLOCK_BYTES: usize = 64;
/// The largest region that is read, in bytes. A fence stands for 226 entries and a key takes 12 bits, so this
/// is far beyond what one segment can need.
pub const REGION_BYTES_MAX: u64 = 64 << 20;

/// The first page of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// [`KIND_SEGMENT`] or [`KIND_MERGED`].
    pub kind: u8,
    /// Level of merging.
    pub level: u8,
    /// Codec of the segment's payload: 0 as appended.
    pub codec: u8,
    /// Whose history.
    pub volume: VolumeId,
    /// The run's id: that of its segment.
    pub run_id: u64,
    /// LSN of the first record.
    pub first_lsn: Lsn,
    /// LSN of the last record; the one before `first_lsn` if there is none.
    pub last_lsn: Lsn,
    /// Timestamp of the first record, 0 if there is none.
    pub first_timestamp: Timestamp,
    /// Timestamp of the last record, 0 if there is none.
    pub last_timestamp: Timestamp,
    /// Where the log ends in the segment, in bytes.
    pub log_end: u64,
    /// Chain value at the last LSN.
    pub chain: [u8; 16],
    /// Seal hash of the segment.
    pub seal: [u8; 32],
    /// Key that the pages are encrypted with, zeros if none.
    pub key_id: [u8; 16],
    /// Tag of the region, zeros if not encrypted.
    pub region_tag: [u8; 16],
    /// Number of sources.
    pub sources: u64,
    /// Number of entries.
    pub entries: u64,
    /// Number of timestamps.
    pub timestamps: u64,
    /// Number of markers.
    pub markers: u64,
    /// Number of damage rows.
    pub damages: u64,
    /// Number of blocks of the bloom filter.
    pub bloom_blocks: u64,
    /// Trees that have entries, as a bitmask.
    pub trees: u64,
    /// CRC-32 of the region's pages.
    pub region_crc: u32,
    /// What the records did.
    pub summary: Summary,
}

impl Header {
    /// The header's page.
    pub fn encode(&self) -> Page {
        let mut page = [0; PAGE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &[self.kind, self.level, self.codec]);
        put(16, &self.volume.0.to_le_bytes());
        put(32, &self.run_id.to_le_bytes());
        put(40, &self.first_lsn.0.to_le_bytes());
        put(48, &self.last_lsn.0.to_le_bytes());
        put(56, &self.first_timestamp.0.to_le_bytes());
        put(64, &self.last_timestamp.0.to_le_bytes());
        put(72, &self.log_end.to_le_bytes());
        put(80, &self.chain);
        put(96, &self.seal);
        put(128, &self.key_id);
        put(144, &self.region_tag);
        put(160, &self.sources.to_le_bytes());
        put(168, &self.entries.to_le_bytes());
        put(176, &self.timestamps.to_le_bytes());
        put(184, &self.markers.to_le_bytes());
        put(192, &self.damages.to_le_bytes());
        put(200, &self.bloom_blocks.to_le_bytes());
        put(208, &self.trees.to_le_bytes());
        put(216, &self.region_crc.to_le_bytes());
        self.summary.encode(&mut page[220..220 + Summary::BYTES]);
        let crc = crc32fast::hash(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads and checks the header of a file of `file_bytes` bytes: after this the counts fit the file.
    pub fn decode(page: &Page, file_bytes: u64) -> Result<Header> {
        if page[..8] != MAGIC {
            return Err(damaged("it does not begin like a run"));
        }
        if u32_at(page, CRC_AT) != crc32fast::hash(&page[..CRC_AT]) {
            return Err(damaged("the header does not fit its checksum"));
        }
        let version = u16_at(page, 8);
        if version != VERSION {
            return Err(damaged(&format!("format version {version}, {VERSION} expected")));
        }
        let header = Header {
            kind: page[10],
            level: page[11],
            codec: page[12],
            volume: VolumeId(u128::from_le_bytes(array_at(page, 16))),
            run_id: u64_at(page, 32),
            first_lsn: Lsn(u64_at(page, 40)),
            last_lsn: Lsn(u64_at(page, 48)),
            first_timestamp: Timestamp(u64_at(page, 56)),
            last_timestamp: Timestamp(u64_at(page, 64)),
            log_end: u64_at(page, 72),
            chain: array_at(page, 80),
            seal: array_at(page, 96),
            key_id: array_at(page, 128),
            region_tag: array_at(page, 144),
            sources: u64_at(page, 160),
            entries: u64_at(page, 168),
            timestamps: u64_at(page, 176),
            markers: u64_at(page, 184),
            damages: u64_at(page, 192),
            bloom_blocks: u64_at(page, 200),
            trees: u64_at(page, 208),
            region_crc: u32_at(page, 216),
            summary: Summary::decode(&page[220..220 + Summary::BYTES]),
        };
        if header.kind != KIND_SEGMENT && header.kind != KIND_MERGED {
            return Err(damaged(&format!("a run of kind {}, which this version does not know", header.kind)));
        }
        // Every count is below the file's length, so that the sums of the layout cannot overflow.
        let counts = [
            header.sources,
            header.entries,
            header.timestamps,
            header.markers,
            header.damages,
            header.bloom_blocks,
        ];
        if counts.iter().any(|&count| count > file_bytes || count > u64::MAX >> 16) {
            return Err(damaged("it counts more rows than the file can hold"));
        }
        let records = header.last_lsn.0.checked_add(1).and_then(|end| end.checked_sub(header.first_lsn.0));
        // The run of a fold has no timestamps: most of its records are gone.
        let fits = records.is_some_and(|records| {
            [0, records].contains(&header.timestamps) && records <= u64::from(u32::MAX)
        });
        if !fits {
            return Err(damaged("its LSNs do not fit its timestamps"));
        }
        let layout = Layout::of(&header);
        if layout.file_pages * PAGE_BYTES as u64 != file_bytes {
            return Err(damaged(&format!(
                "{file_bytes} bytes long, {} expected",
                layout.file_pages * PAGE_BYTES as u64
            )));
        }
        if layout.region_bytes() > REGION_BYTES_MAX {
            return Err(damaged("its region is larger than any run needs"));
        }
        Ok(header)
    }
}

/// Where the sections of a run begin. Which fields mean anything depends on the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Number in the file of the region's first page, and how many it has.
    pub region_page: u64,
    /// Likewise.
    pub region_pages: u64,
    /// Offset within the region, in bytes: of the fences of entries, or of the first ones of their pages.
    pub entry_fences_at: usize,
    /// Likewise for timestamps.
    pub timestamp_fences_at: usize,
    /// Offset of the filter within the region of a segment's run.
    pub bloom_at: usize,
    /// Page number in the file.
    pub entries_page: u64,
    /// Page number in the file.
    pub timestamps_page: u64,
    /// Page number in the file.
    pub markers_page: u64,
    /// Page number in the file.
    pub damages_page: u64,
    /// Page number in the file of a merged run.
    pub sources_page: u64,
    /// Page number in the file of a merged run.
    pub entry_fences_page: u64,
    /// Page number in the file of a merged run.
    pub timestamp_fences_page: u64,
    /// Page number in the file of a merged run.
    pub bloom_page: u64,
    /// The page behind the last one that is neither header nor region.
    pub rows_end_page: u64,
    /// Pages of the whole file.
    pub file_pages: u64,
}

impl Layout {
    /// From the counts of a header, each below 2^48.
    pub fn of(header: &Header) -> Layout {
        if header.kind == KIND_MERGED { Layout::of_merged(header) } else { Layout::of_segment(header) }
    }

    fn of_segment(header: &Header) -> Layout {
        let entry_pages = pages_of::<Entry>(header.entries);
        let timestamp_pages = pages_of::<Timestamp>(header.timestamps);
        let entry_fences_at = header.sources * Source::BYTES as u64;
        let timestamp_fences_at = entry_fences_at + entry_pages * Fence::BYTES as u64;
        let bloom_at = timestamp_fences_at + timestamp_pages * Timestamp::BYTES as u64;
        let region_end = bloom_at + header.bloom_blocks * BLOOM_BLOCK_BYTES as u64;
        let region_pages = region_end.div_ceil(PAGE_BYTES as u64);
        let rows = Layout::rows_from(header, 1 + region_pages);
        Layout {
            region_page: 1,
            region_pages,
            entry_fences_at: entry_fences_at as usize,
            timestamp_fences_at: timestamp_fences_at as usize,
            bloom_at: bloom_at as usize,
            file_pages: rows.rows_end_page,
            ..rows
        }
    }

    fn of_merged(header: &Header) -> Layout {
        let entry_fences = pages_of::<Entry>(header.entries);
        let timestamp_fences = pages_of::<Timestamp>(header.timestamps);
        let rows = Layout::rows_from(header, 1);
        let sources_page = rows.rows_end_page;
        let entry_fences_page = sources_page + pages_of::<MergedSource>(header.sources);
        let timestamp_fences_page = entry_fences_page + pages_of::<Fence>(entry_fences);
        let bloom_page = timestamp_fences_page + pages_of::<Timestamp>(timestamp_fences);
        let region_page = bloom_page + pages_of::<BloomBlock>(header.bloom_blocks);
        let timestamp_fences_at = pages_of::<Fence>(entry_fences) * Fence::BYTES as u64;
        let region_end =
            timestamp_fences_at + pages_of::<Timestamp>(timestamp_fences) * Timestamp::BYTES as u64;
        let region_pages = region_end.div_ceil(PAGE_BYTES as u64);
        Layout {
            region_page,
            region_pages,
            entry_fences_at: 0,
            timestamp_fences_at: timestamp_fences_at as usize,
            bloom_at: 0,
            sources_page,
            entry_fences_page,
            timestamp_fences_page,
            bloom_page,
            rows_end_page: region_page,
            file_pages: region_page + region_pages,
            ..rows
        }
    }

    /// The sections that all kinds have, from this page on.
    fn rows_from(header: &Header, entries_page: u64) -> Layout {
        let timestamps_page = entries_page + pages_of::<Entry>(header.entries);
        let markers_page = timestamps_page + pages_of::<Timestamp>(header.timestamps);
        let damages_page = markers_page + pages_of::<MarkerRow>(header.markers);
        let rows_end_page = damages_page + pages_of::<DamageRow>(header.damages);
        Layout {
            entries_page,
            timestamps_page,
            markers_page,
            damages_page,
            rows_end_page,
            ..Layout::default()
        }
    }

    /// Length of the region.
    pub fn region_bytes(&self) -> u64 {
        self.region_pages * PAGE_BYTES as u64
    }
}

/// An error about the bytes of a run; whoever knows the file adds its name.
pub fn damaged(what: &str) -> Error {
    Error::new(Kind::Damaged, format!("run: {what}"))
}
