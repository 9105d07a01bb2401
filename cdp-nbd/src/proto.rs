//! The numbers of the NBD protocol and its fixed headers, as bytes. All integers are big-endian.

/// Greets the client: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Begins the greeting's second half and every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Begins a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Begins an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flags of server and client (the client's are 32 bits wide).
pub mod handshake_flag {
    /// Options get replies; the client may send several.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zero bytes after EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What a client can ask during the handshake.
pub mod option {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod reply {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// What INFO and GO tell.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Request types.
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Marks the last chunk of a structured reply.
pub const CHUNK_DONE: u16 = 1 << 0;

/// Types of reply chunks.
pub mod chunk {
    #![allow(missing_docs)]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Error numbers of replies.
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const ESHUTDOWN: u32 = 108;
}

/// The metadata context that every export has.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number on the wire.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Asks for a list of all contexts of QEMU's namespace.
pub const QEMU_NAMESPACE: &str = "qemu:";
/// Begins the name of a dirty bitmap, as QEMU defined it; alone, asks for a list of them.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// Number of the first bitmap that was selected; the others follow.
pub const BITMAP_ID_FIRST: u32 = 2;
/// qemu:dirty-bitmap: changed.
pub const STATE_DIRTY: u32 = 1 << 0;
/// base:allocation: a hole.
pub const STATE_HOLE: u32 = 1 << 0;
/// base:allocation: reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// Bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a compact request's header.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of an extended request's header.
pub const EXTENDED_REQUEST_HEADER_BYTES: usize = 32;
/// Bytes of a simple reply without its data.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured chunk's header.
pub const STRUCTURED_HEADER_BYTES: usize = 20;
/// Bytes of an extended chunk's header.
pub const EXTENDED_HEADER_BYTES: usize = 32;
/// Zero bytes after EXPORT_NAME for clients that did not ask to leave them out.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Reads integers from the front of a slice; `None` when it is too short.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next 2 bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 4 bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 8 bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// A request's header as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// Opaque; goes back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes: of the payload, if there is one, else of what the request is about.
    pub len: u64,
}

impl RequestHeader {
    /// Bytes of the header on the wire.
    pub fn wire_bytes(extended: bool) -> usize {
        if extended { EXTENDED_REQUEST_HEADER_BYTES } else { REQUEST_HEADER_BYTES }
    }

    /// The first four bytes of a request.
    pub fn magic(extended: bool) -> u32 {
        if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC }
    }

    /// Reads a header; `None` if the bytes are too few or the magic is another.
    pub fn decode(bytes: &[u8], extended: bool) -> Option<RequestHeader> {
        let mut cursor = Cursor(bytes);
        let magic = cursor.u32()?;
        if magic != RequestHeader::magic(extended) {
            return None;
        }
        let flags = cursor.u16()?;
        let command = cursor.u16()?;
        let cookie = cursor.u64()?;
        let offset = cursor.u64()?;
        let len = if extended { cursor.u64()? } else { u64::from(cursor.u32()?) };
        Some(RequestHeader { flags, command, cookie, offset, len })
    }

    /// The header as a client sends it.
    pub fn encode(&self, extended: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(EXTENDED_REQUEST_HEADER_BYTES);
        out.extend(RequestHeader::magic(extended).to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match extended {
            true => out.extend(self.len.to_be_bytes()),
            false => out.extend((self.len as u32).to_be_bytes()),
        }
        out
    }
}
