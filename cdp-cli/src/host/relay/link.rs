//! The relay's connection to the server: sockets and the client's half of the handshake.

use super::uri::{Address, Place};
use super::wire;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the server may take for each step of the handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// What the server says of the export. After a restart it has to be the same, or it is another disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Export {
    pub bytes: u64,
    pub flags: u16,
    /// Minimum, preferred and maximum, where the server says.
    pub block_sizes: Option<[u32; 3]>,
    /// The record of its newest rollback, 0 without one: what a client knows from before is of another state.
    pub rolled_back: u64,
}

/// A connected socket of either kind.
#[derive(Debug)]
pub(super) enum Link {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Link {
    /// Wakes everybody who reads or writes on it.
    pub fn shut(&self) {
        // It may be shut already.
        let _ = match self {
            Link::Unix(stream) => stream.shutdown(Shutdown::Both),
            Link::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Link::Unix(stream) => {
                stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience))
            }
            Link::Tcp(stream) => {
                stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience))
            }
        }
    }
}

// Through a shared reference, as for the sockets themselves: one thread reads while another one writes.
impl Read for &Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Unix(stream) => (&*stream).read(buffer),
            Link::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Link {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Link::Unix(stream) => (&*stream).write(buffer),
            Link::Tcp(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects and shakes hands; the link is ready for requests.
pub(super) fn connect(address: &Address) -> io::Result<(Link, Export)> {
    let link = match &address.place {
        Place::Unix(path) => Link::Unix(UnixStream::connect(path)?),
        Place::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_nodelay(true)?;
            // A host that lost power sends nothing more, not even a reset.
            rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
            rustix::net::sockopt::set_tcp_keepidle(&stream, HANDSHAKE_PATIENCE)?;
            rustix::net::sockopt::set_tcp_keepintvl(&stream, HANDSHAKE_PATIENCE)?;
            Link::Tcp(stream)
        }
    };
    link.set_patience(Some(HANDSHAKE_PATIENCE))?;
    let export = shake_hands(&mut &link, &address.export)?;
    link.set_patience(None)?;
    Ok((link, export))
}

fn shake_hands(link: &mut (impl Read + Write), name: &str) -> io::Result<Export> {
    wire::want(wire::u64(link)?, wire::MAGIC, "magic")?;
    wire::want(wire::u64(link)?, wire::OPTION_MAGIC, "option magic")?;
    let both = wire::u16(link)? & (wire::HANDSHAKE_FIXED | wire::HANDSHAKE_NO_ZEROES);
    link.write_all(&u32::from(both).to_be_bytes())?;
    let length = u32::try_from(name.len()).map_err(|_| wire::wrong("an endless name".into()))?;
    let wishes: [u16; 3] = [2, wire::INFO_BLOCK_SIZE, wire::INFO_DESCRIPTION];
    let wishes: Vec<u8> = wishes.into_iter().flat_map(u16::to_be_bytes).collect();
    link.write_all(&wire::option(
        wire::OPTION_GO,
        &[&length.to_be_bytes()[..], name.as_bytes(), &wishes].concat(),
    ))?;
    let (mut export, mut block_sizes, mut rolled_back) = (None, None, 0);
    loop {
        wire::want(wire::u64(link)?, wire::OPTION_REPLY_MAGIC, "option reply magic")?;
        wire::want(wire::u32(link)?, wire::OPTION_GO, "answered option")?;
        let (kind, length) = (wire::u32(link)?, wire::u32(link)?);
        if length > wire::OPTION_BYTES_MAX {
            return Err(wire::wrong(format!("an option reply of {length} bytes")));
        }
        let data = wire::bytes(link, length as usize)?;
        let mut rest = &data[..];
        match kind {
            wire::REPLY_ACK => break,
            wire::REPLY_INFO => match wire::u16(&mut rest)? {
                wire::INFO_EXPORT => export = Some((wire::u64(&mut rest)?, wire::u16(&mut rest)?)),
                wire::INFO_DESCRIPTION => rolled_back = rollback_in(&String::from_utf8_lossy(rest)),
                wire::INFO_BLOCK_SIZE => {
                    block_sizes = Some([wire::u32(&mut rest)?, wire::u32(&mut rest)?, wire::u32(&mut rest)?]);
                }
                _ => {}
            },
            _ => {
                let said = String::from_utf8_lossy(&data).into_owned();
                return Err(io::Error::other(format!("the server refuses {name} ({kind:#x}): {said}")));
            }
        }
    }
    let (bytes, flags) = export.ok_or_else(|| wire::wrong("no word about the export".into()))?;
    Ok(Export { bytes, flags: flags & wire::TRANSMISSION_FLAGS, block_sizes, rolled_back })
}

/// The rollback that a description tells of.
fn rollback_in(description: &str) -> u64 {
    let behind = description.split(super::ROLLED_BACK).nth(1).unwrap_or_default();
    let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    behind[..digits].parse().unwrap_or(0)
}
