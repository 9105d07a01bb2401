//! The newest state of another site that stands beside a replica's history: its manifest, and a row of its list of
//! zeros. FORMAT.md, "Newest state".

use super::bytes::*;
use super::manifest::Manifest;
use super::record::Chain;
use crate::ids::{Extent, Lba, Lsn, Timestamp, VolumeId};

const KIND: &str = "cdp-coalesced";
const VERSION: u32 = 1;
/// Length of a row of the list of zeros.
pub const ZERO_ROW_BYTES: usize = 24;

/// How much of it has come: what of its files counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Come {
    /// Everything before this block.
    pub blocks: u64,
    /// So many pieces may be there.
    pub pieces: u64,
    /// So many runs of zeros are listed.
    pub zero_runs: u64,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Its blocks come.
    Begun,
    /// All of them are there.
    Whole,
    /// It was given up here: it is not to come again before the history has arrived at it.
    GivenUp,
}

impl Progress {
    fn word(self) -> &'static str {
        match self {
            Progress::Begun => "begun",
            Progress::Whole => "whole",
            Progress::GivenUp => "given-up",
        }
    }
}

/// What the manifest says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoalescedState {
    /// The record over whose state the blocks lie.
    pub from: Lsn,
    /// The chain value after that record.
    pub from_chain: Chain,
    /// The record whose state it is.
    pub lsn: Lsn,
    /// Its timestamp.
    pub at: Timestamp,
    /// The chain value after it.
    pub chain: Chain,
    /// The volume's size after it.
    pub size_bytes: u64,
    /// What has come, durably.
    pub come: Come,
    /// How far it is.
    pub progress: Progress,
}

fn hex(chain: Chain) -> String {
    format!("{:032x}", u128::from_be_bytes(chain.0))
}

impl CoalescedState {
    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("from_lsn", self.from.0);
        manifest.set("from_chain", hex(self.from_chain));
        manifest.set("lsn", self.lsn.0);
        manifest.set("ns", self.at.0);
        manifest.set("chain", hex(self.chain));
        manifest.set("size_bytes", self.size_bytes);
        manifest.set("come_blocks", self.come.blocks);
        manifest.set("pieces", self.come.pieces);
        manifest.set("zero_runs", self.come.zero_runs);
        manifest.set("progress", self.progress.word());
        manifest.encode()
    }

    /// Reads a manifest; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<CoalescedState> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
        let chain = |key: &str| Some(Chain(manifest.get_hex(key)?.to_be_bytes()));
        let word: String = manifest.get("progress")?;
        let all = [Progress::Begun, Progress::Whole, Progress::GivenUp];
        Some(CoalescedState {
            from: Lsn(manifest.get("from_lsn")?),
            from_chain: chain("from_chain")?,
            lsn: Lsn(manifest.get("lsn")?),
            at: Timestamp(manifest.get("ns")?),
            chain: chain("chain")?,
            size_bytes: manifest.get("size_bytes")?,
            come: Come {
                blocks: manifest.get("come_blocks")?,
                pieces: manifest.get("pieces")?,
                zero_runs: manifest.get("zero_runs")?,
            },
            progress: all.into_iter().find(|progress| progress.word() == word)?,
        })
    }
}

/// Blocks that are zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroRow(pub Extent);

impl ZeroRow {
    /// The bytes of row `number`.
    pub fn encode(&self, volume: VolumeId, number: u64) -> [u8; ZERO_ROW_BYTES] {
        let mut b = [0; ZERO_ROW_BYTES];
        put(&mut b, 0, self.0.start.0.to_le_bytes());
        put(&mut b, 8, self.0.blocks.to_le_bytes());
        let crc = sum(&b, volume, number);
        put(&mut b, 16, crc.to_le_bytes());
        b
    }

    /// Reads row `number`; `None` if it is not that one.
    pub fn decode(b: &[u8; ZERO_ROW_BYTES], volume: VolumeId, number: u64) -> Option<ZeroRow> {
        let fits = get_u32(b, 16) == sum(b, volume, number) && get_u32(b, 20) == 0;
        fits.then(|| ZeroRow(Extent { start: Lba(get_u64(b, 0)), blocks: get_u64(b, 8) }))
    }
}

fn sum(b: &[u8; ZERO_ROW_BYTES], volume: VolumeId, number: u64) -> u32 {
    crc32(&[&volume.0.to_le_bytes()[..], &number.to_le_bytes(), &b[..16]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    /// An upgrade in the middle of an outage's end must not lose the state that the second site shows.
    #[test]
    fn golden_manifest_of_version_1() {
        let state = CoalescedState {
            from: Lsn(40),
            from_chain: Chain([1; 16]),
            lsn: Lsn(900),
            at: Timestamp(1_763_719_200_000_000_001),
            chain: Chain([2; 16]),
            size_bytes: 1 << 30,
            come: Come { blocks: 262_144, pieces: 1, zero_runs: 2 },
            progress: Progress::Whole,
        };
        let bytes = state.encode();
        assert_eq!(CoalescedState::decode(&bytes), Some(state.clone()));
        assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("golden/coalesced-v1.txt"));
        for progress in [Progress::Begun, Progress::GivenUp] {
            let state = CoalescedState { progress, ..state.clone() };
            assert_eq!(CoalescedState::decode(&state.encode()), Some(state));
        }
    }

    /// A row at another place, of another volume or with a bit of it changed is no row.
    #[test]
    fn golden_row_of_zeros() {
        let row = ZeroRow(Extent { start: Lba(512), blocks: 1 << 28 });
        let bytes = row.encode(VOLUME, 3);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/zero-row-v1.hex").trim());
        assert_eq!(ZeroRow::decode(&bytes, VOLUME, 3), Some(row));
        assert_eq!(ZeroRow::decode(&bytes, VOLUME, 4), None);
        assert_eq!(ZeroRow::decode(&bytes, VolumeId(7), 3), None);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ZeroRow::decode(&bytes, VOLUME, 3), None, "bit {bit}");
        }
    }
}
