//! Payloads of which some blocks stand in other places already: pure bytes. PROTOCOL.md, "Codings of a payload".

use cdp_core::ids::BLOCK_BYTES;
use cdp_core::limits::VOLUME_BYTES_MAX;

use super::delta::may_code;

const BLOCK: usize = BLOCK_BYTES as usize;
/// What is said of each block of the payload: the number of a block that has its content, or [`COMES`].
const NUMBER_BYTES: usize = size_of::<u64>();
/// The content comes behind the numbers.
const COMES: u64 = u64::MAX;
/// A payload is sent coded if that saves at least one part in so many.
const SAVED_PARTS_MIN: usize = 8;

/// Codes a payload of which `found` tells, for each block, which block had this content before; `None` if that does not pay.
pub fn code(payload: &[u8], found: &[Option<u64>]) -> Option<Vec<u8>> {
    assert!(may_code(payload.len()) && payload.len() == found.len() * BLOCK);
    let coming = found.iter().filter(|number| number.is_none()).count();
    let bytes = found.len() * NUMBER_BYTES + coming * BLOCK;
    if bytes > payload.len() - payload.len() / SAVED_PARTS_MIN {
        return None;
    }
    let mut coded = Vec::with_capacity(bytes);
    for number in found {
        coded.extend_from_slice(&number.unwrap_or(COMES).to_le_bytes());
    }
    for (block, _) in payload.chunks_exact(BLOCK).zip(found).filter(|(_, number)| number.is_none()) {
        coded.extend_from_slice(block);
    }
    Some(coded)
}

/// The longest that a payload of so many bytes can be.
pub fn coded_bytes_max(bytes: usize) -> usize {
    bytes + bytes / BLOCK * NUMBER_BYTES
}

/// For each block of a payload of `bytes` bytes, the number of the block that has its content, if it does not come; `None` if
/// nobody coded that.
pub fn places(coded: &[u8], bytes: usize) -> Option<impl Iterator<Item = Option<u64>>> {
    let is_whole = may_code(bytes) && bytes.is_multiple_of(BLOCK);
    let (numbers, _) = coded.split_at_checked(bytes / BLOCK * NUMBER_BYTES).filter(|_| is_whole)?;
    let (numbers, _) = numbers.as_chunks();
    let number = |number: &[u8; NUMBER_BYTES]| u64::from_le_bytes(*number);
    let is_known = |number: u64| number == COMES || number < VOLUME_BYTES_MAX / BLOCK_BYTES;
    let are_known = numbers.iter().all(|bytes| is_known(number(bytes)));
    are_known.then(|| numbers.iter().map(move |bytes| Some(number(bytes)).filter(|number| *number != COMES)))
}

/// The payload of `bytes` bytes that this is the coding of; `older` is what the blocks of [`places`] have, in their order;
/// `None` if there is none.
pub fn undo(coded: &[u8], older: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut came = coded.get(bytes / BLOCK * NUMBER_BYTES..)?;
    let mut older = older;
    let mut payload = Vec::with_capacity(bytes);
    for number in places(coded, bytes)? {
        let from = if number.is_some() { &mut older } else { &mut came };
        payload.extend_from_slice(from.split_off(..BLOCK)?);
    }
    (came.is_empty() && older.is_empty()).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Vec<u8> {
        vec![byte; BLOCK]
    }

    /// A file that somebody copied must not travel again, and whatever is coded comes out as it was.
    #[test]
    fn what_is_coded_comes_out_as_it_was() {
        let payload = [block(1), block(2), block(3)].concat();
        let coded = code(&payload, &[Some(7), None, Some(9)]).expect("it pays");
        assert_eq!(coded.len(), 3 * NUMBER_BYTES + BLOCK);
        let numbers: Vec<_> = places(&coded, payload.len()).unwrap().collect();
        assert_eq!(numbers, [Some(7), None, Some(9)]);
        assert_eq!(undo(&coded, &[block(1), block(3)].concat(), payload.len()), Some(payload.clone()));
        assert_eq!(code(&payload, &[None, None, None]), None);
    }

    /// Bytes that no sender makes are refused, and never take more memory than their record has payload.
    #[test]
    fn what_nobody_coded_is_refused() {
        let number = |number: u64| number.to_le_bytes().to_vec();
        let bytes = 2 * BLOCK;
        assert!(places(&number(1), bytes).is_none(), "a number is missing");
        let beyond = [number(1), number(VOLUME_BYTES_MAX / BLOCK_BYTES)].concat();
        assert!(places(&beyond, bytes).is_none(), "no volume has that block");
        let both = [number(1), number(2)].concat();
        assert!(places(&both, bytes - 512).is_none(), "half a block");
        assert_eq!(undo(&both, &block(1), bytes), None, "a block is missing");
        assert_eq!(undo(&both, &vec![1; 3 * BLOCK], bytes), None, "one is left");
        let one = [number(1), number(COMES)].concat();
        assert_eq!(undo(&one, &block(1), bytes), None, "nothing comes");
        assert_eq!(undo(&[one, vec![2; BLOCK + 1]].concat(), &block(1), bytes), None, "something is left");
    }
}
