//! Compressing and decompressing a frame: the only file of this crate that names the crates which do.

use crate::format::codec::Codec;

/// Beyond this level a frame of 64 KiB gets hardly smaller, and takes several times as long.
const ZSTD_LEVEL: i32 = 3;

/// A frame compressed, if that makes it smaller.
pub fn pack(codec: Codec, frame: &[u8]) -> Option<Vec<u8>> {
    let packed = match codec {
        Codec::None => return None,
        Codec::Lz4 => lz4_flex::block::compress(frame),
        Codec::Zstd => zstd::bulk::compress(frame, ZSTD_LEVEL).ok()?,
    };
    (packed.len() < frame.len()).then_some(packed)
}

/// A frame of just so many bytes, as it was before it was compressed; `None` if it is none. Allocates no more than that.
pub fn unpack(codec: Codec, stored: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut frame = vec![0; bytes];
    let len = match codec {
        Codec::None => return (stored.len() == bytes).then(|| stored.to_vec()),
        Codec::Lz4 => lz4_flex::block::decompress_into(stored, &mut frame).ok()?,
        Codec::Zstd => zstd::bulk::decompress_to_buffer(stored, &mut frame).ok()?,
    };
    (len == bytes).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::Chance;

    /// What was thinned is there only in this form: each codec gives back what it got, and nothing that was damaged on the
    /// medium makes it panic or ask for more memory than a frame has.
    #[test]
    fn frames_come_back_and_damage_is_no_panic() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            for seed in 0..60 {
                let mut chance = Chance::new(seed);
                let letters = 1 + chance.below(200);
                let frame: Vec<u8> = (0..16 * 4096).map(|_| chance.below(letters) as u8).collect();
                let packed = pack(codec, &frame);
                // Letters that need fewer bits than a byte has leave room.
                assert!(packed.is_some() == (codec != Codec::None) || letters > 8, "seed {seed}");
                let Some(mut packed) = packed else { continue };
                assert_eq!(unpack(codec, &packed, frame.len()).as_ref(), Some(&frame), "seed {seed}");
                assert_eq!(unpack(codec, &packed, frame.len() - 1), None, "seed {seed}");
                let at = chance.below(packed.len() as u64) as usize;
                packed[at] ^= 1 << chance.below(8);
                let _ = unpack(codec, &packed, frame.len());
                packed.truncate(at);
                assert!(
                    unpack(codec, &packed, frame.len()).is_none_or(|other| other != frame),
                    "seed {seed}"
                );
            }
        }
    }

    /// Whoever asks for zstd wants it smaller.
    #[test]
    fn zstd_is_smaller() {
        let text: Vec<u8> = (0..4000)
            .flat_map(|n: u32| format!("row {n} of a table, {}; ", n * 7919 % 1000).into_bytes())
            .collect();
        let frame = &text[..16 * 4096];
        let bytes = |codec| pack(codec, frame).unwrap().len();
        assert!(bytes(Codec::Zstd) < bytes(Codec::Lz4), "{} {}", bytes(Codec::Zstd), bytes(Codec::Lz4));
    }
}
