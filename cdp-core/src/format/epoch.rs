//! The payload of an epoch record, and the manifest `epochs` that keeps what such records said.
//!
//! ```text
//! payload   0       a copy, then zeros to 4096
//!           4096    the same copy
//! ```

use super::bytes::{Cursor, put_text};
use super::manifest::Manifest;
use super::record::Chain;
use super::turn::{Turn, either, hash, twice};
use crate::ids::{EpochNumber, Lsn, Timestamp, VolumeId};
use crate::limits::{EPOCHS_MAX, POINT_BYTES_MAX, VOLUME_BYTES_MAX};

/// Name of the file in a volume's directory; missing while the volume never changed its epoch.
pub const EPOCHS_FILE: &str = "epochs";
const KIND: &str = "cdp-epochs";
const MANIFEST_VERSION: u32 = 1;
const VERSION: u8 = 1;
/// It goes on from a state whose history is not there.
const FLAG_AHEAD: u8 = 1;

/// A stretch of a volume's history that was written by one primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epoch {
    /// Grows at each promotion.
    pub number: EpochNumber,
    /// Random; of the first epoch the volume's id. Two histories with the same number and different ids are a split
    /// brain. All members of a group that were promoted together have the same.
    pub id: u128,
    /// Its first record: the epoch record, or 1.
    pub start: Lsn,
    /// Chain value after the record before that.
    pub chain: Chain,
}

impl Epoch {
    /// The epoch in which a volume is made.
    pub fn first(volume: VolumeId) -> Epoch {
        Epoch { number: EpochNumber(1), id: volume.0, start: Lsn(1), chain: Chain::default() }
    }
}

/// The state of another site from which an epoch goes on although the history up to it is not there. The records behind the
/// epoch's own make that state out of the newest one of the history; the resize record that ends them says that it is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// The record of the other site whose state it is.
    pub lsn: Lsn,
    /// Its timestamp; below that of the epoch's record.
    pub at: Timestamp,
    /// The chain value after it.
    pub chain: Chain,
    /// Up to when the history before the epoch is complete.
    pub complete: Timestamp,
    /// The volume's size in bytes from the epoch's record on until the state is whole: the larger one of both states.
    pub size_bytes: u64,
}

/// What an epoch record carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochPayload {
    /// The epoch that begins with it.
    pub epoch: Epoch,
    /// The point as somebody asked for it, and who; at most [`POINT_BYTES_MAX`] bytes.
    pub asked: String,
    /// Where it does not go on from the history.
    pub ahead: Option<Ahead>,
}

impl EpochPayload {
    /// What it does to the course of the volume.
    pub fn turn(&self) -> Option<Turn> {
        let Ahead { lsn, at, complete, size_bytes, .. } = self.ahead?;
        Some(Turn::Ahead { behind: self.epoch.start.previous(), complete, lsn, at, size_bytes })
    }

    /// The payload: both copies.
    pub fn encode(&self) -> Vec<u8> {
        twice(&self.encode_copy())
    }

    /// Reads a payload; one good copy will do.
    pub fn decode(payload: &[u8]) -> Option<EpochPayload> {
        either(payload, EpochPayload::decode_copy)
    }

    fn encode_copy(&self) -> Vec<u8> {
        let Epoch { number, id, start, chain } = self.epoch;
        let flags = if self.ahead.is_some() { FLAG_AHEAD } else { 0 };
        let mut b = vec![VERSION, flags, 0, 0];
        b.extend_from_slice(&number.0.to_le_bytes());
        b.extend_from_slice(&start.0.to_le_bytes());
        b.extend_from_slice(&id.to_le_bytes());
        b.extend_from_slice(&chain.0);
        let mut end = self.asked.len().min(POINT_BYTES_MAX);
        while !self.asked.is_char_boundary(end) {
            end -= 1;
        }
        put_text(&mut b, &self.asked[..end]);
        if let Some(Ahead { lsn, at, chain, complete, size_bytes }) = self.ahead {
            b.extend_from_slice(&lsn.0.to_le_bytes());
            b.extend_from_slice(&at.0.to_le_bytes());
            b.extend_from_slice(&chain.0);
            b.extend_from_slice(&complete.0.to_le_bytes());
            b.extend_from_slice(&size_bytes.to_le_bytes());
        }
        let hash = hash(&b);
        b.extend_from_slice(&hash);
        b
    }

    fn decode_copy(copy: &[u8]) -> Option<EpochPayload> {
        let (content, own) = copy.split_last_chunk()?;
        if hash(content) != *own {
            return None;
        }
        let mut cursor = Cursor::new(content);
        let [VERSION, flags @ (0 | FLAG_AHEAD), 0, 0] = *cursor.take(4)? else { return None };
        let number = EpochNumber(cursor.u32()?);
        let start = Lsn(cursor.u64()?);
        let id = cursor.u128()?;
        let chain = Chain(cursor.take(16)?.try_into().ok()?);
        let asked = cursor.text()?.to_owned();
        let ahead = match flags {
            FLAG_AHEAD => Some(Ahead {
                lsn: Lsn(cursor.u64()?),
                at: Timestamp(cursor.u64()?),
                chain: Chain(cursor.take(16)?.try_into().ok()?),
                complete: Timestamp(cursor.u64()?),
                size_bytes: cursor.u64()?,
            }),
            _ => None,
        };
        let is_ahead = |ahead: &Ahead| {
            ahead.lsn >= start && ahead.complete < ahead.at && ahead.size_bytes <= VOLUME_BYTES_MAX
        };
        let fits = number > EpochNumber(1) && start > Lsn::ZERO && ahead.as_ref().is_none_or(is_ahead);
        (cursor.is_empty() && fits).then_some(EpochPayload {
            epoch: Epoch { number, id, start, chain },
            asked,
            ahead,
        })
    }
}

/// The manifest's bytes; the epochs without the first one, which the volume's id tells.
pub fn encode_epochs(epochs: &[Epoch]) -> Vec<u8> {
    let mut manifest = Manifest::new(KIND, MANIFEST_VERSION);
    for Epoch { number, id, start, chain } in epochs {
        let chain = u128::from_be_bytes(chain.0);
        manifest.set(&format!("epoch.{:010}", number.0), format!("{id:032x}/{start}/{chain:032x}"));
    }
    manifest.encode()
}

/// Reads the manifest's bytes; `None` if they are not such a manifest.
pub fn decode_epochs(bytes: &[u8]) -> Option<Vec<Epoch>> {
    let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == MANIFEST_VERSION)?;
    let mut epochs = Vec::new();
    for (key, value) in &manifest.values {
        let number = EpochNumber(key.strip_prefix("epoch.")?.parse().ok()?);
        let mut fields = value.split('/');
        let id = u128::from_str_radix(fields.next()?, 16).ok()?;
        let start = Lsn(fields.next()?.parse().ok()?);
        let chain = Chain(u128::from_str_radix(fields.next()?, 16).ok()?.to_be_bytes());
        epochs.push(Epoch { number, id, start, chain });
    }
    (epochs.len() <= EPOCHS_MAX).then_some(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> EpochPayload {
        EpochPayload {
            epoch: Epoch {
                number: EpochNumber(3),
                id: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
                start: Lsn(0x0102_0304),
                chain: Chain([0xc5; 16]),
            },
            asked: "latest".to_owned(),
            ahead: None,
        }
    }

    fn payload_ahead() -> EpochPayload {
        let ahead = Ahead {
            lsn: Lsn(0x0203_0405),
            at: Timestamp(1_763_719_200_000_000_001),
            chain: Chain([0x3a; 16]),
            complete: Timestamp(1_763_719_100_000_000_002),
            size_bytes: 1 << 30,
        };
        EpochPayload { ahead: Some(ahead), ..payload() }
    }

    /// Both sites decide by these bytes which history goes on: every later version must read them alike.
    #[test]
    fn golden_bytes_of_version_1() {
        let hex: String = payload().encode_copy().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/epoch-v1.hex").trim());
        let hex: String = payload_ahead().encode_copy().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/epoch-ahead-v1.hex").trim());
        let text = String::from_utf8(encode_epochs(&[payload().epoch])).unwrap();
        assert_eq!(text, include_str!("golden/epochs-v1.txt"));
        assert_eq!(decode_epochs(text.as_bytes()), Some(vec![payload().epoch]));
    }

    /// Rot in one block of an epoch record must not make a site forget who may write; in both, nothing is guessed.
    #[test]
    fn one_good_copy_is_enough() {
        for payload in [payload(), payload_ahead()] {
            let good = payload.encode();
            assert_eq!(EpochPayload::decode(&good), Some(payload.clone()));
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert_eq!(EpochPayload::decode(&bad), Some(payload.clone()), "byte {at}");
            }
            for at in 0..good.len() - 4096 {
                let mut bad = good.clone();
                bad[at] ^= 1;
                bad[4096 + at] ^= 1;
                assert_eq!(EpochPayload::decode(&bad), None, "byte {at}");
            }
            for len in 0..good.len() {
                assert_eq!(EpochPayload::decode(&good[..len]), None, "{len} bytes");
            }
        }
    }
}
