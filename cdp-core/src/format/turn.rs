//! Payloads of rollback and resize records. Nothing behind such a record can be read without it, so that each
//! payload stands there twice, in two blocks, and each copy ends with a hash of its own. Not with a CRC: the CRC-32 of
//! bytes that end with their own CRC-32 is the same for all of one length, so the record's checksum, which covers
//! the payload, would take an older payload in recycled space for this one.
//!
//! ```text
//! payload   0       a copy, then zeros to 4096
//!           4096    the same copy
//! ```

use super::bytes::{Cursor, put_text};
use super::record::RecordKind;
use crate::ids::{BLOCK_BYTES, Lsn, Timestamp};
use crate::limits::{POINT_BYTES_MAX, VOLUME_BYTES_MAX};

const VERSION: u8 = 1;
/// Bytes of a copy's hash.
const HASH_BYTES: usize = 8;
const FLAG_UNDO: u8 = 1;

/// What a rollback or resize record carries; and what an epoch record says of the state that its epoch goes on from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The state after this record is the one at an older LSN.
    Rollback {
        /// That LSN; below the record's own.
        to: Lsn,
        /// How many rollbacks of this volume there are with this one: the N of the marker `before-rollback-N`.
        number: u32,
        /// The volume's size in bytes at that LSN, and so after this record.
        size_bytes: u64,
        /// It takes back the rollback before it.
        undo: bool,
        /// The same on all members when a group was rolled back; 0 otherwise.
        group: u128,
        /// The point as somebody asked for it; at most [`POINT_BYTES_MAX`] bytes.
        asked: String,
    },
    /// The volume's size changed.
    Resize {
        /// Its size in bytes after this record.
        size_bytes: u64,
    },
    /// An epoch goes on from a state whose history is not there: from here on no record shows a state, until a resize says
    /// that it is whole. Its record is the epoch's, with a payload of its own ([`super::epoch::EpochPayload`]); the
    /// catalog keeps it in this form.
    Ahead {
        /// The newest record before the epoch.
        behind: Lsn,
        /// Up to then its state is the one.
        complete: Timestamp,
        /// The record of the other site whose state the epoch goes on from.
        lsn: Lsn,
        /// Its timestamp.
        at: Timestamp,
        /// The volume's size in bytes until the state is whole.
        size_bytes: u64,
    },
}

impl Turn {
    /// The kind of its record.
    pub fn kind(&self) -> RecordKind {
        match self {
            Turn::Rollback { .. } => RecordKind::Rollback,
            Turn::Resize { .. } => RecordKind::Resize,
            Turn::Ahead { .. } => RecordKind::Epoch,
        }
    }

    /// The volume's size in bytes after it.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Turn::Rollback { size_bytes, .. }
            | Turn::Resize { size_bytes }
            | Turn::Ahead { size_bytes, .. } => *size_bytes,
        }
    }

    /// The payload: both copies.
    pub fn encode(&self) -> Vec<u8> {
        twice(&self.encode_copy())
    }

    /// Reads a payload of a record of this kind; one good copy will do.
    pub fn decode(kind: RecordKind, payload: &[u8]) -> Option<Turn> {
        either(payload, |copy| Turn::decode_copy(kind, copy))
    }

    /// One copy, with its hash.
    pub fn encode_copy(&self) -> Vec<u8> {
        let mut b = vec![VERSION];
        match self {
            Turn::Rollback { to, number, size_bytes, undo, group, asked } => {
                b.push(if *undo { FLAG_UNDO } else { 0 });
                b.extend_from_slice(&[0; 2]);
                b.extend_from_slice(&number.to_le_bytes());
                b.extend_from_slice(&size_bytes.to_le_bytes());
                b.extend_from_slice(&to.0.to_le_bytes());
                b.extend_from_slice(&group.to_le_bytes());
                let mut end = asked.len().min(POINT_BYTES_MAX);
                while !asked.is_char_boundary(end) {
                    end -= 1;
                }
                put_text(&mut b, &asked[..end]);
            }
            Turn::Resize { size_bytes } => {
                b.extend_from_slice(&[0; 7]);
                b.extend_from_slice(&size_bytes.to_le_bytes());
            }
            Turn::Ahead { behind, complete, lsn, at, size_bytes } => {
                b.extend_from_slice(&[0; 7]);
                for number in [*size_bytes, behind.0, complete.0, lsn.0, at.0] {
                    b.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        let hash = hash(&b);
        b.extend_from_slice(&hash);
        b
    }

    /// Reads one copy; `None` if it is not one.
    pub fn decode_copy(kind: RecordKind, copy: &[u8]) -> Option<Turn> {
        let (content, own) = copy.split_last_chunk()?;
        if hash(content) != *own {
            return None;
        }
        let mut cursor = Cursor::new(content);
        let [VERSION, flags, 0, 0] = *cursor.take(4)? else { return None };
        let number = cursor.u32()?;
        let size_bytes = cursor.u64()?;
        if size_bytes > VOLUME_BYTES_MAX {
            return None;
        }
        let turn = match kind {
            RecordKind::Rollback if flags & !FLAG_UNDO == 0 => Turn::Rollback {
                to: Lsn(cursor.u64()?),
                number,
                size_bytes,
                undo: flags & FLAG_UNDO != 0,
                group: cursor.u128()?,
                asked: cursor.text()?.to_owned(),
            },
            RecordKind::Resize if flags == 0 && number == 0 => Turn::Resize { size_bytes },
            RecordKind::Epoch if flags == 0 && number == 0 => Turn::Ahead {
                size_bytes,
                behind: Lsn(cursor.u64()?),
                complete: Timestamp(cursor.u64()?),
                lsn: Lsn(cursor.u64()?),
                at: Timestamp(cursor.u64()?),
            },
            _ => return None,
        };
        cursor.is_empty().then_some(turn)
    }
}

/// A payload of two copies, each in a block of its own; a copy is at most a block long.
pub(super) fn twice(copy: &[u8]) -> Vec<u8> {
    let mut payload = copy.to_vec();
    payload.resize(BLOCK_BYTES as usize, 0);
    payload.extend_from_slice(copy);
    payload
}

/// What the first good copy of such a payload says.
pub(super) fn either<T>(payload: &[u8], decode: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let (first, second) = payload.split_at_checked(BLOCK_BYTES as usize)?;
    let first = first.get(..second.len())?;
    decode(first).or_else(|| decode(second))
}

/// What a copy ends with: the first bytes of the BLAKE3 hash of what is before.
pub(super) fn hash(content: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&blake3::hash(content).as_bytes()[..HASH_BYTES]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollback() -> Turn {
        Turn::Rollback {
            to: Lsn(0x0102_0304),
            number: 7,
            size_bytes: 1 << 30,
            undo: true,
            group: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
            asked: "before:upgrade".to_owned(),
        }
    }

    /// A journal that was rolled back must be read alike by every later version.
    #[test]
    fn golden_bytes_of_version_1() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(rollback().encode_copy()), include_str!("golden/rollback-v1.hex").trim());
        let resize = Turn::Resize { size_bytes: 2 << 30 };
        assert_eq!(hex(resize.encode_copy()), include_str!("golden/resize-v1.hex").trim());
    }

    /// A crash in the middle of a rollback may leave its header in front of an older rollback's payload. The record's
    /// checksum must tell them apart, or the volume goes to where somebody wanted it long ago.
    #[test]
    fn payloads_of_one_length_have_different_checksums() {
        let crc = |turn: &Turn| {
            let mut crcs = Vec::new();
            crate::format::record::block_crcs(&turn.encode(), &mut crcs);
            crate::format::record::payload_crc(&crcs)
        };
        let mut seen = std::collections::BTreeSet::new();
        for to in 1..200 {
            let Turn::Rollback { number, size_bytes, undo, group, asked, .. } = rollback() else {
                unreachable!()
            };
            assert!(
                seen.insert(crc(&Turn::Rollback { to: Lsn(to), number, size_bytes, undo, group, asked })),
                "{to}"
            );
            assert!(seen.insert(crc(&Turn::Resize { size_bytes: to << 20 })), "{to}");
        }
    }

    /// Rot in one block of a rollback must not make the whole volume unreadable; in both, nothing is guessed.
    #[test]
    fn one_good_copy_is_enough() {
        for turn in [rollback(), Turn::Resize { size_bytes: 4096 << 20 }] {
            let good = turn.encode();
            assert_eq!(Turn::decode(turn.kind(), &good), Some(turn.clone()));
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert_eq!(Turn::decode(turn.kind(), &bad), Some(turn.clone()), "byte {at}");
                bad[at % 4096] ^= 1;
                bad[4096 + at % 4096 % (good.len() - 4096)] ^= 1;
                if at % 4096 < good.len() - 4096 {
                    assert_eq!(Turn::decode(turn.kind(), &bad), None, "byte {at}");
                }
            }
            for len in 0..good.len() {
                assert_eq!(Turn::decode(turn.kind(), &good[..len]), None, "{len} bytes");
            }
        }
    }
}
