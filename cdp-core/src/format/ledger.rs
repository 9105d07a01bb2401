//! The ledger of a volume: facts that are local to one store and stand in no journal, one entry behind the other.

use super::bytes::*;
use crate::ids::{Lsn, Timestamp, VolumeId};

const MAGIC: [u8; 4] = *b"CDPL";
const VERSION: u16 = 1;
/// Bytes of an entry in front of its payload.
pub const ENTRY_HEADER_BYTES: usize = 48;
/// The longest payload of an entry, in bytes.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 4096;
const CRC_BYTES: usize = 4;

const KIND_HORIZON: u8 = 1;
const KIND_POLICY: u8 = 2;
const KIND_LET_GO: u8 = 3;
const KIND_THINNED: u8 = 4;

/// Why a horizon moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// What the policy keeps was over.
    Policy = 1,
    /// The journal had no room left.
    Cap = 2,
}

/// A fact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// What can be viewed begins later now.
    Horizon {
        /// Where it began before.
        from: (Lsn, Timestamp),
        /// Where it begins.
        to: (Lsn, Timestamp),
        /// Why.
        reason: Reason,
    },
    /// Of a stretch only some states are left.
    Thinned {
        /// Its first record, and when the one before was.
        from: (Lsn, Timestamp),
        /// Its last record.
        to: (Lsn, Timestamp),
        /// How many states are left.
        kept: u64,
        /// What it took before, in bytes.
        bytes_before: u64,
        /// What it takes.
        bytes_after: u64,
        /// Why.
        reason: Reason,
    },
    /// Somebody set the retention policy.
    Policy(String),
    /// Somebody let a named marker go.
    LetGo {
        /// Its record.
        lsn: Lsn,
        /// When that was.
        at: Timestamp,
        /// Its name.
        name: String,
    },
}

/// An entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Whose ledger.
    pub volume: VolumeId,
    /// Rises by one.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// What.
    pub fact: Fact,
}

impl Entry {
    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let kind = match &self.fact {
            Fact::Horizon { from, to, reason } => {
                for (lsn, at) in [from, to] {
                    payload.extend_from_slice(&lsn.0.to_le_bytes());
                    payload.extend_from_slice(&at.0.to_le_bytes());
                }
                payload.push(*reason as u8);
                KIND_HORIZON
            }
            Fact::Thinned { from, to, kept, bytes_before, bytes_after, reason } => {
                for number in [from.0.0, from.1.0, to.0.0, to.1.0, *kept, *bytes_before, *bytes_after] {
                    payload.extend_from_slice(&number.to_le_bytes());
                }
                payload.push(*reason as u8);
                KIND_THINNED
            }
            Fact::Policy(text) => {
                put_text(&mut payload, text);
                KIND_POLICY
            }
            Fact::LetGo { lsn, at, name } => {
                payload.extend_from_slice(&lsn.0.to_le_bytes());
                payload.extend_from_slice(&at.0.to_le_bytes());
                put_text(&mut payload, name);
                KIND_LET_GO
            }
        };
        let mut bytes = vec![0; ENTRY_HEADER_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 4, VERSION.to_le_bytes());
        bytes[6] = kind;
        put(&mut bytes, 8, (payload.len() as u32).to_le_bytes());
        put(&mut bytes, 16, self.volume.0.to_le_bytes());
        put(&mut bytes, 32, self.sequence.to_le_bytes());
        put(&mut bytes, 40, self.at.0.to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        seal_crc(&mut bytes);
        bytes
    }

    /// Reads the entry at the front of `bytes`, and its length; `None` if there is none.
    pub fn decode(bytes: &[u8]) -> Option<(Entry, usize)> {
        let header = bytes.get(..ENTRY_HEADER_BYTES)?;
        if header[..4] != MAGIC || get_u16(header, 4) != VERSION {
            return None;
        }
        let payload_bytes = get_u32(header, 8) as usize;
        if payload_bytes > ENTRY_PAYLOAD_BYTES_MAX {
            return None;
        }
        let len = ENTRY_HEADER_BYTES + payload_bytes + CRC_BYTES;
        let whole = bytes.get(..len).filter(|whole| crc_fits(whole))?;
        let mut payload = Cursor::new(&whole[ENTRY_HEADER_BYTES..len - CRC_BYTES]);
        let fact = match header[6] {
            KIND_HORIZON => {
                let mut place = || Some((Lsn(payload.u64()?), Timestamp(payload.u64()?)));
                let (from, to) = (place()?, place()?);
                let reason = reason(payload.take(1)?)?;
                Fact::Horizon { from, to, reason }
            }
            KIND_THINNED => {
                let mut place = || Some((Lsn(payload.u64()?), Timestamp(payload.u64()?)));
                let (from, to) = (place()?, place()?);
                let (kept, bytes_before, bytes_after) = (payload.u64()?, payload.u64()?, payload.u64()?);
                let reason = reason(payload.take(1)?)?;
                Fact::Thinned { from, to, kept, bytes_before, bytes_after, reason }
            }
            KIND_POLICY => Fact::Policy(payload.text()?.to_owned()),
            KIND_LET_GO => {
                let (lsn, at) = (Lsn(payload.u64()?), Timestamp(payload.u64()?));
                Fact::LetGo { lsn, at, name: payload.text()?.to_owned() }
            }
            _ => return None,
        };
        let entry = Entry {
            volume: VolumeId(get_u128(header, 16)),
            sequence: get_u64(header, 32),
            at: Timestamp(get_u64(header, 40)),
            fact,
        };
        payload.is_empty().then_some((entry, len))
    }
}

fn reason(byte: &[u8]) -> Option<Reason> {
    match byte {
        [1] => Some(Reason::Policy),
        [2] => Some(Reason::Cap),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let volume = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let facts = [
            Fact::Horizon {
                from: (Lsn(1), Timestamp(10)),
                to: (Lsn(900), Timestamp(1_763_719_200_000_000_001)),
                reason: Reason::Cap,
            },
            Fact::Policy("every-write 24h".to_owned()),
            Fact::LetGo { lsn: Lsn(7), at: Timestamp(70), name: "before-upgrade".to_owned() },
        ];
        let entry = |(number, fact)| Entry { volume, sequence: number as u64 + 1, at: Timestamp(99), fact };
        facts.into_iter().enumerate().map(entry).collect()
    }

    /// What was written down about a volume's history must be readable after an upgrade: these bytes never change for
    /// version 1.
    #[test]
    fn golden_bytes_of_version_1() {
        let bytes: Vec<u8> = entries().iter().flat_map(Entry::encode).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/ledger-v1.hex").trim());
    }

    /// A torn or rotten entry is none, whichever byte of it.
    #[test]
    fn every_byte_counts() {
        for entry in entries() {
            let bytes = entry.encode();
            assert_eq!(Entry::decode(&bytes), Some((entry, bytes.len())));
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert_eq!(Entry::decode(&bad), None, "byte {at}");
                assert_eq!(Entry::decode(&bytes[..at]), None, "cut at {at}");
            }
        }
    }
}
