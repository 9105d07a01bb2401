//! The few numbers of the NBD protocol that a relay needs, and its messages as bytes. Big-endian throughout.

use std::io::{self, Read};

pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const REPLY_MAGIC: u32 = 0x6744_6698;

pub(super) const HANDSHAKE_FIXED: u16 = 1;
pub(super) const HANDSHAKE_NO_ZEROES: u16 = 2;

pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_ABORT: u32 = 2;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;
pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_UNSUPPORTED: u32 = (1 << 31) | 1;
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// What is passed on: read-only, flush, FUA, trim, zeroes, multi-conn, cache, fast zeroes. Not DF, which belongs to
/// structured replies.
pub(super) const TRANSMISSION_FLAGS: u16 = 0b1101_0110_1111;

pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISCONNECT: u16 = 2;

pub(super) const ENOSPC: u32 = 28;
pub(super) const ESHUTDOWN: u32 = 108;

/// The most bytes of one request or answer that is relayed.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// The most bytes of one option or its reply.
pub(super) const OPTION_BYTES_MAX: u32 = 64 << 10;

/// A request of 28 bytes without its cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub flags: u16,
    pub command: u16,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub fn encode(self, cookie: u64) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// The request and its cookie.
    pub fn read(source: &mut impl Read) -> io::Result<(Request, u64)> {
        want(u32(source)?, REQUEST_MAGIC, "request magic")?;
        let (flags, command) = (u16(source)?, u16(source)?);
        let (cookie, offset) = (u64(source)?, u64(source)?);
        let request = Request { flags, command, offset, length: u32(source)? };
        if request.payload_bytes().max(request.answer_bytes()) > PAYLOAD_BYTES_MAX as usize {
            return Err(wrong(format!("a request of {} bytes", request.length)));
        }
        Ok((request, cookie))
    }

    /// How many bytes follow the request.
    pub fn payload_bytes(self) -> usize {
        if self.command == COMMAND_WRITE { self.length as usize } else { 0 }
    }

    /// How many bytes follow an answer without an error.
    pub fn answer_bytes(self) -> usize {
        if self.command == COMMAND_READ { self.length as usize } else { 0 }
    }
}

/// A simple reply's header.
pub(super) fn reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// An option with its data.
pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// A reply to an option with its data.
pub(super) fn option_reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let magic = OPTION_REPLY_MAGIC.to_be_bytes();
    [&magic[..], &number.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

pub(super) fn u16(source: &mut impl Read) -> io::Result<u16> {
    array(source).map(u16::from_be_bytes)
}

pub(super) fn u32(source: &mut impl Read) -> io::Result<u32> {
    array(source).map(u32::from_be_bytes)
}

pub(super) fn u64(source: &mut impl Read) -> io::Result<u64> {
    array(source).map(u64::from_be_bytes)
}

fn array<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// So many bytes; the caller has checked the number.
pub(super) fn bytes(source: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn want<T: PartialEq + std::fmt::Debug>(found: T, wanted: T, what: &str) -> io::Result<()> {
    if found == wanted { Ok(()) } else { Err(wrong(format!("{what}: {found:x?}"))) }
}

pub(super) fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    // One field in the wrong place writes somewhere else on the disk.
    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request = Request { flags: 1, command: COMMAND_WRITE, offset: 1 << 40, length: 4096 };
        let bytes = request.encode(77);
        assert_eq!(Request::read(&mut &bytes[..]).unwrap(), (request, 77));
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
        let huge = Request { length: u32::MAX, ..request };
        assert!(Request::read(&mut &huge.encode(1)[..]).is_err(), "allocated by a peer's word");
    }
}
