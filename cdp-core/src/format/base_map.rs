//! The map of a base, file `base.map`: which pieces there are, and which pages of their checksum files are in use. What it does
//! not name the base does not have; what it names has to be there.

use std::collections::BTreeMap;

use super::base::SUMS_PAGE_BLOCKS;
use super::bytes::*;
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::limits::{BASE_PIECE_BYTES, VOLUME_BYTES_MAX};

const MAGIC: [u8; 8] = *b"CDPBMAPS";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 32;
const ROW_BYTES: usize = 8;
/// Pages of a piece, 64 to a word.
const WORDS_MAX: usize = (BASE_PIECE_BYTES / BLOCK_BYTES / SUMS_PAGE_BLOCKS / 64) as usize;
const PIECES_MAX: u64 = VOLUME_BYTES_MAX / BASE_PIECE_BYTES;
/// The longest such file, in bytes.
pub const MAP_BYTES_MAX: u64 = (HEADER_BYTES + 4) as u64 + PIECES_MAX * (ROW_BYTES + 8 * WORDS_MAX) as u64;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseMap {
    /// Whose base.
    pub volume: VolumeId,
    /// The pieces that there are, and of each the pages in use: bit b of word w is page 64 · w + b.
    pub pieces: BTreeMap<u32, Vec<u64>>,
}

impl BaseMap {
    /// The file's bytes. A piece without a page in use is left out.
    pub fn encode(&self) -> Vec<u8> {
        let rows: Vec<(u32, &[u64])> = self
            .pieces
            .iter()
            .map(|(piece, words)| (*piece, trimmed(words)))
            .filter(|(_, words)| !words.is_empty())
            .collect();
        let mut bytes = vec![0; HEADER_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, VERSION.to_le_bytes());
        put(&mut bytes, 12, (rows.len() as u32).to_le_bytes());
        put(&mut bytes, 16, self.volume.0.to_le_bytes());
        for (piece, words) in rows {
            bytes.extend(piece.to_le_bytes());
            bytes.extend((words.len() as u32).to_le_bytes());
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        bytes.extend([0; 4]);
        seal_crc(&mut bytes);
        bytes
    }

    /// Reads the file's bytes; `None` if they are not such a map.
    pub fn decode(bytes: &[u8]) -> Option<BaseMap> {
        if bytes.len() < HEADER_BYTES + 4 || bytes.len() as u64 > MAP_BYTES_MAX || !crc_fits(bytes) {
            return None;
        }
        if bytes[..8] != MAGIC || get_u16(bytes, 8) != VERSION {
            return None;
        }
        let volume = VolumeId(get_u128(bytes, 16));
        let mut pieces = BTreeMap::new();
        let mut rest = Cursor::new(&bytes[HEADER_BYTES..bytes.len() - 4]);
        for _ in 0..get_u32(bytes, 12) {
            let (piece, count) = (rest.u32()?, rest.u32()? as usize);
            let is_next = pieces.last_key_value().is_none_or(|(last, _)| *last < piece);
            if !is_next || u64::from(piece) >= PIECES_MAX || count == 0 || count > WORDS_MAX {
                return None;
            }
            let (words, _) = rest.take(count * 8)?.as_chunks::<8>();
            pieces.insert(piece, words.iter().map(|word| u64::from_le_bytes(*word)).collect());
        }
        rest.is_empty().then_some(BaseMap { volume, pieces })
    }
}

fn trimmed(words: &[u64]) -> &[u64] {
    let end = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
    &words[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> BaseMap {
        let volume = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        BaseMap { volume, pieces: BTreeMap::from([(0, vec![0b1001]), (3, vec![0, 1 << 63])]) }
    }

    /// A base outlives every version of the program that wrote it: these bytes never change for version 1.
    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = map().encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/base-map-v1.hex").trim());
        assert_eq!(BaseMap::decode(&bytes), Some(map()));
    }

    /// A map that lost a bit or its end must not make blocks of the base absent.
    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = map().encode();
        for bit in 0..bytes.len() * 8 {
            let mut rotten = bytes.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BaseMap::decode(&rotten), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(BaseMap::decode(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(BaseMap::decode(&vec![0; 4096]), None);
    }

    /// The largest volume, every page of it in use, has a map that can be read again.
    #[test]
    fn the_largest_map_is_within_its_bound() {
        let pieces = (0..PIECES_MAX as u32).map(|piece| (piece, vec![u64::MAX; WORDS_MAX])).collect();
        let map = BaseMap { volume: VolumeId(1), pieces };
        let bytes = map.encode();
        assert_eq!(bytes.len() as u64, MAP_BYTES_MAX);
        assert_eq!(BaseMap::decode(&bytes), Some(map));
    }

    /// Empty pieces, and words without a page, take no room, so that the same pages are the same bytes.
    #[test]
    fn what_is_not_in_use_is_left_out() {
        let pieces = BTreeMap::from([(0, vec![0, 0]), (1, vec![7, 0, 0])]);
        let bytes = BaseMap { volume: VolumeId(1), pieces }.encode();
        let read = BaseMap::decode(&bytes).unwrap();
        assert_eq!(read.pieces, BTreeMap::from([(1, vec![7])]));
    }
}
