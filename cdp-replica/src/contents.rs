//! Which blocks had which content, as far as a link sent it lately: people copy files. A guess in a fixed amount of memory; who goes
//! by it holds it against the state itself.

use cdp_core::format::bytes::crc32;
use cdp_core::ids::BLOCK_BYTES;
use cdp_core::limits::VOLUME_BYTES_MAX;

use crate::limits::CONTENTS_BLOCKS;

/// Bits of a block's number, plus one.
const NUMBER_BITS: u32 = (VOLUME_BYTES_MAX / BLOCK_BYTES).ilog2() + 1;

/// Contents and their places.
#[derive(Default)]
pub struct Contents {
    // In the place that a content's hash names: more of the hash, and the block's number plus one; 0 = nothing.
    slots: Vec<u64>,
}

impl Contents {
    /// This block has this content now. Whatever had this place is forgotten.
    pub fn note(&mut self, number: u64, content: &[u8]) {
        if self.slots.is_empty() {
            self.slots = vec![0; CONTENTS_BLOCKS];
        }
        let (place, tag) = place_of(content);
        self.slots[place] = tag << NUMBER_BITS | (number + 1);
    }

    /// A block that may have this content.
    pub fn find(&self, content: &[u8]) -> Option<u64> {
        let (place, tag) = place_of(content);
        let slot = self.slots.get(place)?;
        let number = slot & ((1 << NUMBER_BITS) - 1);
        (slot >> NUMBER_BITS == tag).then(|| number.checked_sub(1)).flatten()
    }
}

fn place_of(content: &[u8]) -> (usize, u64) {
    let (front, back) = content.split_at(content.len() / 2);
    let (place, tag) = (crc32(front) ^ crc32(back).rotate_left(16), crc32(back));
    (place as usize % CONTENTS_BLOCKS, u64::from(tag) & ((1 << (u64::BITS - NUMBER_BITS)) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_place_of_a_content_is_found() {
        let (one, other) = (vec![1; 4096], vec![2; 4096]);
        let mut contents = Contents::default();
        assert_eq!(contents.find(&one), None);
        let last = VOLUME_BYTES_MAX / BLOCK_BYTES - 1;
        contents.note(last, &one);
        contents.note(0, &other);
        assert_eq!((contents.find(&one), contents.find(&other)), (Some(last), Some(0)));
        contents.note(5, &one);
        assert_eq!(contents.find(&one), Some(5));
    }
}
