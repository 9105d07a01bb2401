//! A tiny NBD client: enough for the demo to need no other. Newstyle, GO, simple replies, one request at a time.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
/// An option reply longer than this is not something our server sends.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// A connection to an export, as a file that can be read, written and sought in.
pub struct Client {
    stream: UnixStream,
    size: u64,
    at: u64,
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server answered strangely: {what}"))
}

impl Client {
    /// Goes to an export.
    pub fn connect(mut stream: UnixStream, export: &str) -> io::Result<Client> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if greeting[..8] != *b"NBDMAGIC" {
            return Err(strange("no greeting"));
        }
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend_from_slice(&OPT_GO.to_be_bytes());
        option.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        option.extend_from_slice(&(export.len() as u32).to_be_bytes());
        option.extend_from_slice(export.as_bytes());
        option.extend_from_slice(&0u16.to_be_bytes());
        stream.write_all(&option)?;
        let mut size = None;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let (magic, rest) = head.split_first_chunk::<8>().ok_or_else(|| strange("short"))?;
            let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let (kind, len) = (word(4), word(8));
            if u64::from_be_bytes(*magic) != OPTION_REPLY_MAGIC || len > REPLY_BYTES_MAX {
                return Err(strange("no option reply"));
            }
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data)?;
            match kind {
                REPLY_ACK => break,
                REPLY_INFO if data.starts_with(&INFO_EXPORT.to_be_bytes()) && data.len() >= 10 => {
                    size = data[2..10].try_into().ok().map(u64::from_be_bytes);
                }
                REPLY_INFO => {}
                _ => return Err(io::Error::other(String::from_utf8_lossy(&data).into_owned())),
            }
        }
        let size = size.ok_or_else(|| strange("an export without a size"))?;
        Ok(Client { stream, size, at: 0 })
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        let mut header = REQUEST_MAGIC.to_be_bytes().to_vec();
        header.extend_from_slice(&0u16.to_be_bytes());
        header.extend_from_slice(&command.to_be_bytes());
        header.extend_from_slice(&0u64.to_be_bytes());
        header.extend_from_slice(&offset.to_be_bytes());
        header.extend_from_slice(&len.to_be_bytes());
        self.stream.write_all(&header)?;
        self.stream.write_all(data)?;
        if command == DISCONNECT {
            return Ok(());
        }
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let (magic, rest) = reply.split_first_chunk::<4>().ok_or_else(|| strange("short"))?;
        let (error, _) = rest.split_first_chunk::<4>().ok_or_else(|| strange("short"))?;
        if u32::from_be_bytes(*magic) != REPLY_MAGIC {
            return Err(strange("no reply"));
        }
        match u32::from_be_bytes(*error) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    /// Discards so many bytes.
    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(TRIM, offset, len, &[])
    }

    /// Discards everything.
    pub fn trim_all(&mut self) -> io::Result<()> {
        let len = u32::try_from(self.size).map_err(|_| strange("too large for a demo"))?;
        self.request(TRIM, 0, len, &[])
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (buffer.len() as u64).min(self.size.saturating_sub(self.at)).min(1 << 20) as usize;
        if len > 0 {
            self.request(READ, self.at, len as u32, &[])?;
            self.stream.read_exact(&mut buffer[..len])?;
            self.at += len as u64;
        }
        Ok(len)
    }
}

impl Write for Client {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = (buffer.len() as u64).min(self.size.saturating_sub(self.at)).min(1 << 20) as usize;
        if len > 0 {
            self.request(WRITE, self.at, len as u32, &buffer[..len])?;
            self.at += len as u64;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])
    }
}

impl Seek for Client {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the beginning"))?;
        Ok(self.at)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.request(DISCONNECT, 0, 0, &[]);
    }
}
