//! A reading client of an export: one connection, one request at a time.

use super::link::{self, Link};
use super::uri::Address;
use super::wire::{self, Request};
use std::io::{self, Read, Write};
use std::time::Duration;

/// How long the server may take for an answer. A read of a busy disk takes its time; one of a dead server for ever.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// The most bytes of one request; longer reads are cut.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// A connection to an export that reads.
pub struct Reader {
    link: Link,
    bytes: u64,
    cookie: u64,
}

impl Reader {
    /// Connects to the export of this URI.
    pub fn connect(uri: &str) -> io::Result<Reader> {
        let address = Address::parse(uri).map_err(|error| io::Error::other(error.to_string()))?;
        let (link, export) = link::connect(&address)?;
        link.set_patience(Some(ANSWER_PATIENCE))?;
        Ok(Reader { link, bytes: export.bytes, cookie: 0 })
    }

    /// Size of the export in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills the buffer from this offset on. After an error the connection is of no use, unless the error came
    /// from the server as an answer (it has an OS number then).
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for part in buffer.chunks_mut(REQUEST_BYTES_MAX) {
            self.cookie += 1;
            let length = part.len() as u32;
            let request = Request { flags: 0, command: wire::COMMAND_READ, offset: at, length };
            let mut link = &self.link;
            link.write_all(&request.encode(self.cookie))?;
            wire::want(wire::u32(&mut link)?, wire::REPLY_MAGIC, "reply magic")?;
            let error = wire::u32(&mut link)?;
            wire::want(wire::u64(&mut link)?, self.cookie, "cookie")?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error.try_into().unwrap_or(5)));
            }
            link.read_exact(part)?;
            at += u64::from(length);
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let request = Request { flags: 0, command: wire::COMMAND_DISCONNECT, offset: 0, length: 0 };
        // Politeness; the server notices anyway.
        let _ = (&self.link).write_all(&request.encode(0));
    }
}
