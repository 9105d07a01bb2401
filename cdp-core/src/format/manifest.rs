//! Manifests: small text files of `key = value` lines that a person can read, closed by a checksum line.
//!
//! ```text
//! cdp-volume 1
//! name = disk
//! size = 10737418240
//! crc32 = 0123abcd
//! ```

use std::collections::BTreeMap;

use super::bytes::crc32;

/// Longest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A manifest's kind, version and lines. Values are free of line breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// First word: what it describes.
    pub kind: String,
    /// Second word.
    pub version: u32,
    /// Keys are unique and sorted.
    pub values: BTreeMap<String, String>,
}

impl Manifest {
    /// An empty manifest.
    pub fn new(kind: &str, version: u32) -> Manifest {
        Manifest { kind: kind.to_owned(), version, values: BTreeMap::new() }
    }

    /// Sets a line.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        debug_assert!(!value.contains('\n') && !key.contains(['=', '\n']));
        self.values.insert(key.to_owned(), value);
    }

    /// The value of a line, parsed; `None` if the line is missing or does not parse.
    pub fn get<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.values.get(key)?.parse().ok()
    }

    /// The value of a line of hexadecimal digits.
    pub fn get_hex(&self, key: &str) -> Option<u128> {
        u128::from_str_radix(self.values.get(key)?, 16).ok()
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{} {}\n", self.kind, self.version);
        for (key, value) in &self.values {
            text.push_str(&format!("{key} = {value}\n"));
        }
        text.push_str(&format!("crc32 = {:08x}\n", crc32(text.as_bytes())));
        text.into_bytes()
    }

    /// Reads a file's bytes; `None` if the checksum or the form is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Manifest> {
        let text = std::str::from_utf8(bytes).ok()?;
        let body_end = text.strip_suffix('\n')?.rfind('\n')? + 1;
        let (body, last) = text.split_at(body_end);
        let crc = last.trim_end().strip_prefix("crc32 = ")?;
        if u32::from_str_radix(crc, 16).ok()? != crc32(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        let (kind, version) = lines.next()?.split_once(' ')?;
        let mut manifest = Manifest::new(kind, version.parse().ok()?);
        for line in lines {
            let (key, value) = line.split_once(" = ")?;
            manifest.values.insert(key.to_owned(), value.to_owned());
        }
        Some(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A torn or edited manifest must not be believed.
    #[test]
    fn survives_the_round_trip_and_nothing_else() {
        let mut manifest = Manifest::new("cdp-volume", 1);
        manifest.set("name", "disk");
        manifest.set("size", 42);
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert_eq!(Manifest::decode(&bad), None, "byte {at}");
            assert_eq!(Manifest::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
