//! The payload of marker records: `u8` version, `u8` class, `u16` tag count, `u128` group, then texts with a
//! `u16` length each: name, note, hook output, tags.

use super::bytes::{Cursor, put_text};
use crate::limits::{NAME_BYTES_MAX, NOTE_BYTES_MAX, TAGS_MAX};

const VERSION: u8 = 1;
/// Length of the hook output that is kept, in bytes.
pub const HOOK_OUTPUT_BYTES_MAX: usize = 8192;

/// Why a marker was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MarkerClass {
    /// By the store, every second in which something was written. Has no payload.
    Periodic = 1,
    /// By a person or program.
    Manual = 2,
    /// Between the application's quiesce and thaw.
    Application = 3,
}

/// What a marker carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkerPayload {
    /// Why it was set.
    pub class: MarkerClass,
    /// The same on all members when it spans volumes; 0 otherwise.
    pub group: u128,
    /// Its name; unique within a volume by use, the newest one wins.
    pub name: String,
    /// Free text.
    pub note: String,
    /// Labels.
    pub tags: Vec<String>,
    /// What the quiesce hook printed.
    pub hook_output: String,
}

impl MarkerPayload {
    /// The payload's bytes; texts beyond their limits are cut at a character boundary.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![VERSION, self.class as u8];
        let tags = &self.tags[..self.tags.len().min(TAGS_MAX)];
        b.extend_from_slice(&(tags.len() as u16).to_le_bytes());
        b.extend_from_slice(&self.group.to_le_bytes());
        put_text(&mut b, cut(&self.name, NAME_BYTES_MAX));
        put_text(&mut b, cut(&self.note, NOTE_BYTES_MAX));
        put_text(&mut b, cut(&self.hook_output, HOOK_OUTPUT_BYTES_MAX));
        for tag in tags {
            put_text(&mut b, cut(tag, NAME_BYTES_MAX));
        }
        b
    }

    /// Reads a payload; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<MarkerPayload> {
        let mut cursor = Cursor::new(bytes);
        let [version, class] = cursor.take(2)? else { return None };
        let class = match (version, class) {
            (&VERSION, 1) => MarkerClass::Periodic,
            (&VERSION, 2) => MarkerClass::Manual,
            (&VERSION, 3) => MarkerClass::Application,
            _ => return None,
        };
        let tags = cursor.u16()? as usize;
        if tags > TAGS_MAX {
            return None;
        }
        let group = cursor.u128()?;
        let name = cursor.text()?.to_owned();
        let note = cursor.text()?.to_owned();
        let hook_output = cursor.text()?.to_owned();
        let tags = (0..tags).map(|_| cursor.text().map(str::to_owned)).collect::<Option<_>>()?;
        cursor.is_empty().then_some(MarkerPayload { class, group, name, note, tags, hook_output })
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Markers are what people find their way by, years later: these bytes never change for version 1.
    #[test]
    fn golden_bytes_of_version_1() {
        let marker = MarkerPayload {
            class: MarkerClass::Application,
            group: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
            name: "before-upgrade".to_owned(),
            note: "a note, ä".to_owned(),
            tags: vec!["db".to_owned(), String::new()],
            hook_output: "frozen\n".to_owned(),
        };
        let bytes = marker.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/marker-v1.hex").trim());
        for len in 0..bytes.len() {
            assert_eq!(MarkerPayload::decode(&bytes[..len]), None, "cut to {len} bytes");
        }
        assert_eq!(MarkerPayload::decode(&bytes), Some(marker));
    }
}
