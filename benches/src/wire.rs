//! The NBD protocol as a client speaks it: numbers, the newstyle handshake, request headers.

use std::io::{self, Read, Write};

const GREETING: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// The last chunk of a structured reply.
pub const CHUNK_DONE: u16 = 1;
/// Chunk types: nothing, data at an offset, a hole at an offset; errors have the top bit.
pub const CHUNK_NONE: u16 = 0;
/// See [`CHUNK_NONE`].
pub const CHUNK_DATA: u16 = 1;
/// See [`CHUNK_NONE`].
pub const CHUNK_HOLE: u16 = 2;
/// See [`CHUNK_NONE`].
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Length of a request header, in bytes.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// An option reply longer than this, in bytes, is not something a sane server sends.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;
/// So many replies to one option at most.
const OPTION_REPLIES_MAX: usize = 64;

/// What a client asks of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bytes of a range.
    Read,
    /// New bytes for a range.
    Write,
    /// Everything answered so far survives power loss.
    Flush,
    /// The range is not needed any more.
    Trim,
    /// The range reads as zeros from now on.
    WriteZeroes,
}

/// One request. Offset and length in bytes; both 0 for a flush.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Answer only when it survives power loss.
    pub fua: bool,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u32,
}

impl Request {
    /// The header as it goes over the wire.
    pub fn header(&self, cookie: u64) -> [u8; REQUEST_HEADER_BYTES] {
        let command: u16 = match self.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
        };
        let mut header = [0; REQUEST_HEADER_BYTES];
        header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&u16::from(self.fua).to_be_bytes());
        header[6..8].copy_from_slice(&command.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..28].copy_from_slice(&self.len.to_be_bytes());
        header
    }
}

/// What the server said of the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Whether structured replies were agreed on.
    pub structured: bool,
}

impl ExportInfo {
    /// Whether the export refuses changes.
    pub fn is_read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Whether FUA may be sent.
    pub fn takes_fua(&self) -> bool {
        self.flags & 8 != 0
    }

    /// Whether TRIM may be sent.
    pub fn takes_trim(&self) -> bool {
        self.flags & 32 != 0
    }
}

/// An error about what the server sent.
pub fn protocol_error(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Newstyle handshake up to the transmission phase of `export`.
pub fn handshake<S: Read + Write>(stream: &mut S, export: &str, structured: bool) -> io::Result<ExportInfo> {
    let greeting = u64::from_be_bytes(read_array(stream)?);
    let newstyle = u64::from_be_bytes(read_array(stream)?);
    if greeting != GREETING || newstyle != OPTION_MAGIC {
        return Err(protocol_error("the server does not greet as newstyle NBD"));
    }
    let offered = u16::from_be_bytes(read_array(stream)?);
    if offered & FIXED_NEWSTYLE == 0 {
        return Err(protocol_error("the server does not offer fixed newstyle"));
    }
    stream.write_all(&u32::from(FIXED_NEWSTYLE | (offered & NO_ZEROES)).to_be_bytes())?;

    let structured = structured && negotiate_structured(stream)?;
    let (size, flags) = go(stream, export)?;
    Ok(ExportInfo { size, flags, structured })
}

fn negotiate_structured<S: Read + Write>(stream: &mut S) -> io::Result<bool> {
    send_option(stream, OPT_STRUCTURED_REPLY, &[])?;
    let (kind, _) = read_option_reply(stream, OPT_STRUCTURED_REPLY)?;
    Ok(kind == REPLY_ACK)
}

fn go<S: Read + Write>(stream: &mut S, export: &str) -> io::Result<(u64, u16)> {
    let mut data = Vec::with_capacity(export.len() + 6);
    data.extend_from_slice(&(export.len() as u32).to_be_bytes());
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&0u16.to_be_bytes());
    send_option(stream, OPT_GO, &data)?;

    let mut info = None;
    for _ in 0..OPTION_REPLIES_MAX {
        let (kind, data) = read_option_reply(stream, OPT_GO)?;
        if kind & REPLY_ERROR_BIT != 0 {
            let text = String::from_utf8_lossy(&data).into_owned();
            return Err(protocol_error(format!("export {export:?} refused ({kind:#x}): {text}")));
        }
        if kind == REPLY_ACK {
            return info.ok_or_else(|| protocol_error("GO was acknowledged without INFO_EXPORT"));
        }
        if kind == REPLY_INFO && data.len() == 12 && data[0..2] == INFO_EXPORT.to_be_bytes() {
            let mut size = [0; 8];
            size.copy_from_slice(&data[2..10]);
            info = Some((u64::from_be_bytes(size), u16::from_be_bytes([data[10], data[11]])));
        }
    }
    Err(protocol_error("GO is answered without end"))
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

fn read_option_reply(stream: &mut impl Read, option: u32) -> io::Result<(u32, Vec<u8>)> {
    if u64::from_be_bytes(read_array(stream)?) != OPTION_REPLY_MAGIC {
        return Err(protocol_error("wrong magic in an option reply"));
    }
    let to = u32::from_be_bytes(read_array(stream)?);
    let kind = u32::from_be_bytes(read_array(stream)?);
    let len = u32::from_be_bytes(read_array(stream)?);
    if to != option || len > OPTION_REPLY_BYTES_MAX {
        return Err(protocol_error(format!(
            "reply to option {to} of {len} bytes while waiting for {option}"
        )));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}
