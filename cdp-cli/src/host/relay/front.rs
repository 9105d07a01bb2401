//! The relay's half of the handshake with its own client: one export, simple replies.

use super::link::Export;
use super::wire;
use std::io::{self, Read, Write};

/// The most options before the export is chosen.
const OPTIONS_MAX: usize = 64;

/// What the client did at the end of the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chosen {
    /// It sends requests now.
    Export,
    /// It went away again.
    Nothing,
}

/// Answers options until the client has chosen; whatever name it asks for is our one export.
pub(super) fn shake_hands(client: &mut (impl Read + Write), export: Export) -> io::Result<Chosen> {
    let flags = wire::HANDSHAKE_FIXED | wire::HANDSHAKE_NO_ZEROES;
    let hello = [&wire::MAGIC.to_be_bytes()[..], &wire::OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()];
    client.write_all(&hello.concat())?;
    let no_zeroes = wire::u32(client)? & u32::from(wire::HANDSHAKE_NO_ZEROES) != 0;
    let size_and_flags = [&export.bytes.to_be_bytes()[..], &export.flags.to_be_bytes()].concat();
    for _ in 0..OPTIONS_MAX {
        wire::want(wire::u64(client)?, wire::OPTION_MAGIC, "option magic")?;
        let (number, length) = (wire::u32(client)?, wire::u32(client)?);
        if length > wire::OPTION_BYTES_MAX {
            return Err(wire::wrong(format!("an option of {length} bytes")));
        }
        wire::bytes(client, length as usize)?;
        match number {
            wire::OPTION_EXPORT_NAME => {
                client.write_all(&size_and_flags)?;
                client.write_all(if no_zeroes { &[] } else { &[0; 124] })?;
                return Ok(Chosen::Export);
            }
            wire::OPTION_GO | wire::OPTION_INFO => {
                let about = [&wire::INFO_EXPORT.to_be_bytes()[..], &size_and_flags].concat();
                client.write_all(&wire::option_reply(number, wire::REPLY_INFO, &about))?;
                if let Some(sizes) = export.block_sizes {
                    let sizes: Vec<u8> = sizes.into_iter().flat_map(u32::to_be_bytes).collect();
                    let about = [&wire::INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat();
                    client.write_all(&wire::option_reply(number, wire::REPLY_INFO, &about))?;
                }
                client.write_all(&wire::option_reply(number, wire::REPLY_ACK, &[]))?;
                if number == wire::OPTION_GO {
                    return Ok(Chosen::Export);
                }
            }
            wire::OPTION_ABORT => {
                client.write_all(&wire::option_reply(number, wire::REPLY_ACK, &[]))?;
                return Ok(Chosen::Nothing);
            }
            _ => client.write_all(&wire::option_reply(number, wire::REPLY_UNSUPPORTED, &[]))?,
        }
    }
    Err(wire::wrong("too many options".into()))
}
