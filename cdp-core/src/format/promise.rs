//! What a store told to be over: one instant, in two slots that are written in turn.

use super::bytes::*;
use crate::ids::{BLOCK_BYTES, Timestamp};

const MAGIC: [u8; 8] = *b"CDPTIME\0";
const VERSION: u16 = 1;
/// A slot is a block of its own, so that writing one can never tear the other.
pub const SLOT_BYTES: usize = BLOCK_BYTES as usize;

/// One slot of the file `time`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// Rises with every write; the slot is `sequence % 2`.
    pub sequence: u64,
    /// Nothing that is written from now on gets a timestamp up to this one.
    pub through: Timestamp,
}

impl Promise {
    /// The slot's bytes.
    pub fn encode(&self) -> Box<[u8; SLOT_BYTES]> {
        let mut b = Box::new([0; SLOT_BYTES]);
        put(&mut b[..], 0, MAGIC);
        put(&mut b[..], 8, VERSION.to_le_bytes());
        put(&mut b[..], 16, self.sequence.to_le_bytes());
        put(&mut b[..], 24, self.through.0.to_le_bytes());
        seal_crc(&mut b[..]);
        b
    }

    /// Reads a slot; `None` if it is not one.
    pub fn decode(b: &[u8; SLOT_BYTES]) -> Option<Promise> {
        if b[..8] != MAGIC || get_u16(b, 8) != VERSION || !crc_fits(b) {
            return None;
        }
        Some(Promise { sequence: get_u64(b, 16), through: Timestamp(get_u64(b, 24)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A promise that an upgrade cannot read is forgotten: these bytes never change for version 1. The zeros between the last
    /// field and the CRC are left out of the golden text.
    #[test]
    fn golden_bytes_of_version_1() {
        let promise = Promise { sequence: 7, through: Timestamp(1_763_719_200_000_000_001) };
        let bytes = promise.encode();
        assert_eq!(Promise::decode(&bytes), Some(promise));
        let end = SLOT_BYTES - 4;
        assert!(bytes[32..end].iter().all(|byte| *byte == 0), "only zeros between the fields and the CRC");
        let hex: String = bytes[..32].iter().chain(&bytes[end..]).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/promise-v1.hex").trim());
    }
}
