//! Big-endian numbers of the protocol.

pub(crate) fn be16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u16::from(byte))
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

pub(crate) fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
