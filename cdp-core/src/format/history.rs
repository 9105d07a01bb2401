//! The manifest `history` of a volume: from where on it can be viewed, and where its base stands.

use super::manifest::Manifest;
use super::record::Chain;
use crate::ids::{EpochNumber, Lsn, SegmentId, Timestamp};

/// Name of the file in a volume's directory. Without it nothing was ever folded into the base.
pub const HISTORY_FILE: &str = "history";
const KIND: &str = "cdp-history";
const VERSION: u32 = 1;

/// The end of what was folded into the base: the journal begins behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BasePoint {
    /// The base LSN: the base is the state after this record.
    pub lsn: Lsn,
    /// That record's timestamp.
    pub timestamp: Timestamp,
    /// Chain value after it.
    pub chain: Chain,
    /// The segment that ended with it; the first one of the journal names it as its predecessor.
    pub segment: SegmentId,
    /// That segment's ordinal.
    pub ordinal: u64,
    /// Hash of that segment's seal.
    pub seal: [u8; 32],
    /// How large the volume was then, in bytes; 0 where nothing was folded yet.
    pub size_bytes: u64,
    /// The epoch in which that record was written; 1 where nothing was folded yet.
    pub epoch: EpochNumber,
}

impl BasePoint {
    /// Nothing was folded yet.
    pub fn beginning(created: Timestamp) -> BasePoint {
        BasePoint {
            lsn: Lsn::ZERO,
            timestamp: created,
            chain: Chain::default(),
            segment: SegmentId(0),
            ordinal: 0,
            seal: [0; 32],
            size_bytes: 0,
            epoch: EpochNumber(1),
        }
    }
}

/// What the manifest says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryState {
    /// The oldest state that can be viewed.
    pub horizon: (Lsn, Timestamp),
    /// Where the base stands; not above the horizon.
    pub base: BasePoint,
}

impl HistoryState {
    /// Everything since the volume was made.
    pub fn beginning(created: Timestamp) -> HistoryState {
        HistoryState { horizon: (Lsn::ZERO, created), base: BasePoint::beginning(created) }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("horizon_lsn", self.horizon.0);
        manifest.set("horizon_ns", self.horizon.1.0);
        manifest.set("base_lsn", self.base.lsn);
        manifest.set("base_ns", self.base.timestamp.0);
        manifest.set("base_chain", hex(&self.base.chain.0));
        manifest.set("base_segment", self.base.segment);
        manifest.set("base_ordinal", self.base.ordinal);
        manifest.set("base_seal", hex(&self.base.seal));
        manifest.set("base_size_bytes", self.base.size_bytes);
        if self.base.epoch > EpochNumber(1) {
            manifest.set("base_epoch", self.base.epoch.0);
        }
        manifest.encode()
    }

    /// Reads the file's bytes; `None` if they are not such a manifest, or contradict each other.
    pub fn decode(bytes: &[u8]) -> Option<HistoryState> {
        let manifest = Manifest::decode(bytes)?;
        if manifest.kind != KIND || manifest.version != VERSION {
            return None;
        }
        let state = HistoryState {
            horizon: (Lsn(manifest.get("horizon_lsn")?), Timestamp(manifest.get("horizon_ns")?)),
            base: BasePoint {
                lsn: Lsn(manifest.get("base_lsn")?),
                timestamp: Timestamp(manifest.get("base_ns")?),
                chain: Chain(unhex(manifest.values.get("base_chain")?)?),
                segment: SegmentId(u64::try_from(manifest.get_hex("base_segment")?).ok()?),
                ordinal: manifest.get("base_ordinal")?,
                seal: unhex(manifest.values.get("base_seal")?)?,
                size_bytes: manifest.get("base_size_bytes")?,
                epoch: match manifest.values.get("base_epoch") {
                    None => EpochNumber(1),
                    Some(number) => EpochNumber(number.parse().ok()?),
                },
            },
        };
        (state.base.lsn <= state.horizon.0 && state.base.timestamp <= state.horizon.1).then_some(state)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HistoryState {
        HistoryState {
            horizon: (Lsn(12), Timestamp(1_763_719_200_000_000_007)),
            base: BasePoint {
                lsn: Lsn(9),
                timestamp: Timestamp(1_763_719_200_000_000_001),
                chain: Chain([3; 16]),
                segment: SegmentId(0x1122_3344_5566_7788),
                ordinal: 4,
                seal: [0xab; 32],
                size_bytes: 1 << 30,
                epoch: EpochNumber(1),
            },
        }
    }

    /// A history that an upgrade cannot read is a volume that does not open: this text never changes for version 1.
    #[test]
    fn golden_text_of_version_1() {
        let text = String::from_utf8(state().encode()).unwrap();
        assert_eq!(text, include_str!("golden/history-v1.txt"));
        assert_eq!(HistoryState::decode(text.as_bytes()), Some(state()));
        let mut later = state();
        later.base.epoch = EpochNumber(3);
        assert_eq!(HistoryState::decode(&later.encode()), Some(later));
    }

    /// A base above the horizon would show states that are gone as if they were there.
    #[test]
    fn a_base_above_the_horizon_is_refused() {
        let mut wrong = state();
        wrong.horizon.0 = Lsn(8);
        assert_eq!(HistoryState::decode(&wrong.encode()), None);
        assert_eq!(HistoryState::decode(b"cdp-history 1\n"), None);
    }
}
