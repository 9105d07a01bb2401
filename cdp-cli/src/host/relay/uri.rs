//! NBD URIs, as far as a relay can follow them: a Unix socket or TCP in plain text.

use cdp_core::error::{Error, Kind, Result};
use std::path::PathBuf;

const PORT: u16 = 10809;

/// Where an export is served, and its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// How to get there.
    pub(super) place: Place,
    /// The name of the export.
    pub(super) export: String,
}

/// A socket's address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Unix(PathBuf),
    Tcp(String, u16),
}

impl Address {
    /// Reads `nbd+unix:///EXPORT?socket=PATH` and `nbd://HOST[:PORT]/EXPORT`; `Invalid` for anything else.
    pub fn parse(uri: &str) -> Result<Address> {
        Address::read(uri).ok_or_else(|| Error::new(Kind::Invalid, format!("the relay cannot follow {uri}")))
    }

    fn read(uri: &str) -> Option<Address> {
        let (front, query) = uri.split_once('?').unwrap_or((uri, ""));
        if let Some(export) = front.strip_prefix("nbd+unix:///") {
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="))?;
            return Some(Address { place: Place::Unix(decode(socket)?.into()), export: decode(export)? });
        }
        let rest = front.strip_prefix("nbd://").or_else(|| front.strip_prefix("nbd+tcp://"))?;
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        // A colon inside brackets belongs to an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (authority, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Address { place: Place::Tcp(host, port), export: decode(export)? }).filter(|_| query.is_empty())
    }
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            plain.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // An export or a socket with an escaped character would be looked for under another name.
    #[test]
    fn uris_are_taken_apart() {
        let read = |uri: &str| Address::parse(uri).ok().map(|address| (address.place, address.export));
        let unix = Place::Unix("/run/a b".into());
        assert_eq!(read("nbd+unix:///disk%40lsn:5?socket=/run/a%20b"), Some((unix, "disk@lsn:5".into())));
        let tcp = |host: &str, port| Place::Tcp(host.into(), port);
        assert_eq!(read("nbd://localhost/x"), Some((tcp("localhost", 10809), "x".into())));
        assert_eq!(read("nbd://[::1]:7/"), Some((tcp("::1", 7), String::new())));
        assert_eq!(read("nbd://[::1]/y"), Some((tcp("::1", 10809), "y".into())));
        for wrong in ["nbds://h/x", "nbd+unix:///x", "http://h", "nbd://h/%zz", "nbd://h:port/"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
