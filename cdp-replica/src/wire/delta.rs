//! Payloads coded against what blocks held before: pure bytes. PROTOCOL.md, "Codings of a payload".

use super::references;
use crate::limits::CODED_PAYLOAD_BYTES_MAX;

/// What is told apart in a payload, in bytes.
pub const SECTOR_BYTES: usize = 512;
/// A payload is sent coded if that saves at least one part in so many, before anything compresses it.
const SAVED_PARTS_MIN: usize = 8;
/// Sectors are sent as differences if at least one in so many of their words is the same as before: such rows of zeros
/// are what a compressor lives on. Others it may find something in by themselves.
const SAME_WORDS_PARTS_MIN: usize = 4;

/// How a payload is coded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Coding {
    /// As it is.
    Plain = 0,
    /// The sectors that differ, as they are now.
    Sectors = 1,
    /// Nothing but zeros.
    Zeros = 2,
    /// The sectors that differ, each XOR what it was before.
    Differences = 3,
    /// Numbers of blocks that have the content, and those blocks that no other has: see [`references`].
    References = 4,
}

impl Coding {
    /// The coding with this number.
    pub fn from_u8(number: u8) -> Option<Coding> {
        use Coding::*;
        [Plain, Sectors, Zeros, Differences, References].into_iter().find(|coding| *coding as u8 == number)
    }

    /// Whether what blocks held before is needed to undo it.
    pub fn needs_older(self) -> bool {
        matches!(self, Coding::Sectors | Coding::Differences | Coding::References)
    }
}

/// Whether a payload of so many bytes may be coded at all.
pub fn may_code(bytes: usize) -> bool {
    bytes > 0 && bytes <= CODED_PAYLOAD_BYTES_MAX && bytes.is_multiple_of(SECTOR_BYTES)
}

/// Whether there is nothing but zeros.
pub fn is_zeros(payload: &[u8]) -> bool {
    payload.iter().all(|byte| *byte == 0)
}

/// Codes a payload against what its blocks held before, as many bytes; `None` if that does not pay. `differences`: also as
/// [`Coding::Differences`].
pub fn code(payload: &[u8], older: &[u8], differences: bool) -> Option<(Coding, Vec<u8>)> {
    assert!(may_code(payload.len()) && payload.len() == older.len());
    let sectors = payload.len() / SECTOR_BYTES;
    let mut coded = vec![0; sectors.div_ceil(8)];
    let (mut differing, mut same_words) = (0, 0);
    let pairs = || payload.chunks_exact(SECTOR_BYTES).zip(older.chunks_exact(SECTOR_BYTES)).enumerate();
    for (number, (now, before)) in pairs() {
        if now != before {
            coded[number / 8] |= 1 << (number % 8);
            differing += 1;
            let (now, _) = now.as_chunks::<8>();
            let (before, _) = before.as_chunks::<8>();
            same_words += now.iter().zip(before).filter(|(now, before)| now == before).count();
        }
    }
    let words = differing * SECTOR_BYTES / 8;
    let are_close = differences && same_words * SAME_WORDS_PARTS_MIN >= words;
    let bytes = coded.len() + differing * SECTOR_BYTES;
    if !are_close && bytes > payload.len() - payload.len() / SAVED_PARTS_MIN {
        return None;
    }
    coded.reserve(differing * SECTOR_BYTES);
    for (_, (now, before)) in pairs().filter(|(_, (now, before))| now != before) {
        match are_close {
            true => coded.extend(now.iter().zip(before).map(|(now, before)| now ^ before)),
            false => coded.extend_from_slice(now),
        }
    }
    Some((if are_close { Coding::Differences } else { Coding::Sectors }, coded))
}

/// The longest that a payload of so many bytes can be in a coding.
pub fn coded_bytes_max(coding: Coding, bytes: usize) -> usize {
    match coding {
        Coding::Plain => bytes,
        Coding::Zeros => 0,
        Coding::Sectors | Coding::Differences => bytes + (bytes / SECTOR_BYTES).div_ceil(8),
        Coding::References => references::coded_bytes_max(bytes),
    }
}

/// The payload of `bytes` bytes that this is the coding of, against `older`: as many bytes, of the same blocks; or of those
/// of [`references::places`]; where they are needed. `None` if there is none.
pub fn undo(coding: Coding, coded: Vec<u8>, older: &[u8], bytes: usize) -> Option<Vec<u8>> {
    match coding {
        Coding::Plain => (coded.len() == bytes).then_some(coded),
        Coding::References => references::undo(&coded, older, bytes),
        Coding::Zeros => (coded.is_empty() && may_code(bytes)).then(|| vec![0; bytes]),
        Coding::Sectors | Coding::Differences => {
            if !may_code(bytes) || older.len() != bytes {
                return None;
            }
            let (bitmap, mut rest) = coded.split_at_checked((bytes / SECTOR_BYTES).div_ceil(8))?;
            let mut payload = older.to_vec();
            for (number, sector) in payload.chunks_exact_mut(SECTOR_BYTES).enumerate() {
                if bitmap[number / 8] & 1 << (number % 8) == 0 {
                    continue;
                }
                let (came, behind) = rest.split_at_checked(SECTOR_BYTES)?;
                rest = behind;
                match coding {
                    Coding::Sectors => sector.copy_from_slice(came),
                    _ => sector.iter_mut().zip(came).for_each(|(byte, came)| *byte ^= came),
                }
            }
            rest.is_empty().then_some(payload)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database page in which a row was changed must not travel whole, and whatever is coded comes out as it was.
    #[test]
    fn what_is_coded_comes_out_as_it_was() {
        let older: Vec<u8> = (0..16384u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut row = older.clone();
        row[5000..5040].fill(7);
        let mut rewritten = older.clone();
        rewritten[8192..10000].iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * n / 3) as u8);
        let mut counters = older.clone();
        counters.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        for (now, coding) in [
            (&row, Coding::Differences),
            (&rewritten, Coding::Sectors),
            (&counters, Coding::Differences),
            (&older, Coding::Differences),
        ] {
            let (found, coded) = code(now, &older, true).expect("it pays");
            assert_eq!(found, coding);
            assert!(coded.len() <= coded_bytes_max(coding, now.len()));
            assert_eq!(undo(coding, coded, &older, now.len()).as_ref(), Some(now));
        }
        let (_, coded) = code(&row, &older, true).unwrap();
        assert_eq!(coded.len(), 4 + SECTOR_BYTES);
        let other: Vec<u8> = older.iter().map(|byte| byte ^ 0x5a).collect();
        assert_eq!(code(&other, &older, true), None, "nothing of it is the same");
        assert_eq!(code(&row, &older, false).unwrap().0, Coding::Sectors);
        assert_eq!(code(&counters, &older, false), None);
    }

    /// Bytes that no sender makes are refused, and never take more memory than their record has payload.
    #[test]
    fn what_nobody_coded_is_refused() {
        let older = vec![1; 4096];
        for coding in [Coding::Sectors, Coding::Differences] {
            assert_eq!(undo(coding, vec![1], &older, 4096), None, "a sector is missing");
            assert_eq!(undo(coding, vec![0, 9], &older, 4096), None, "something is left");
            assert_eq!(undo(coding, vec![], &older, 4096), None);
            assert_eq!(undo(coding, vec![0], &older[..512], 4096), None);
            assert_eq!(undo(coding, vec![0], &older[..100], 100), None);
            assert_eq!(undo(coding, vec![0], &older, 4096).unwrap(), older);
        }
        assert_eq!(undo(Coding::Zeros, vec![0], &[], 4096), None);
        assert_eq!(undo(Coding::Zeros, vec![], &[], CODED_PAYLOAD_BYTES_MAX + 512), None);
        assert_eq!(undo(Coding::Plain, vec![1, 2], &[], 3), None);
    }
}
