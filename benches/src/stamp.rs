//! Stamped blocks: data that says where it belongs and which write put it there, and a ledger of what every
//! block must hold, so that a benchmark run can also prove that the device kept what it was given.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A block of the ledger, in bytes; requests that are verified are aligned to it.
pub const BLOCK_BYTES: usize = 4096;
/// Every sector carries its own stamp, so that a torn or misplaced one is seen.
const SECTOR_BYTES: usize = 512;
const STAMP_BYTES: usize = 16;
/// The bytes between the stamps repeat with this period over the device.
const BODY_BYTES: usize = 64 << 10;

/// What nobody wrote yet reads as zeros; so does what was trimmed.
const ZEROS: u64 = 0;

/// Makes the data of writes. One per connection.
pub struct Stamper {
    body: Vec<u8>,
}

impl Default for Stamper {
    fn default() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut body = Vec::with_capacity(BODY_BYTES);
        while body.len() < BODY_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            body.extend_from_slice(&state.to_le_bytes());
        }
        Stamper { body }
    }
}

/// Write buffer of one request in flight. It remembers which part of the body it holds, so that large
/// aligned requests only need fresh stamps.
#[derive(Default)]
pub struct Payload {
    bytes: Vec<u8>,
    phase: usize,
}

impl Payload {
    /// The bytes to send, as [`Stamper::fill`] left them.
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.bytes[..len]
    }
}

impl Stamper {
    /// Makes the data of a write of `len` bytes at `offset` (both multiples of 512) with this sequence number.
    pub fn fill(&self, payload: &mut Payload, offset: u64, len: usize, sequence: u64) {
        let phase = (offset % BODY_BYTES as u64) as usize;
        if payload.bytes.len() < len || payload.phase != phase {
            payload.bytes.clear();
            let mut at = phase;
            while payload.bytes.len() < len {
                let piece = (BODY_BYTES - at).min(len - payload.bytes.len());
                payload.bytes.extend_from_slice(&self.body[at..at + piece]);
                at = 0;
            }
            payload.phase = phase;
        }
        let first = offset / SECTOR_BYTES as u64;
        for (index, sector) in payload.bytes[..len].chunks_exact_mut(SECTOR_BYTES).enumerate() {
            sector[0..8].copy_from_slice(&(first + index as u64).to_le_bytes());
            sector[8..16].copy_from_slice(&sequence.to_le_bytes());
        }
    }

    /// Checks one block read from `offset` against the sequence number that must be there.
    fn check(&self, block: &[u8], offset: u64, expected: u64) -> Result<(), Mismatch> {
        let fail = |what| Err(Mismatch { offset, expected, what });
        if expected == ZEROS {
            return if block.iter().all(|&byte| byte == 0) { Ok(()) } else { fail(What::NotZero) };
        }
        for (index, sector) in block.chunks_exact(SECTOR_BYTES).enumerate() {
            let at = offset + (index * SECTOR_BYTES) as u64;
            let place = u64::from_le_bytes(sector[0..8].try_into().unwrap_or_default());
            let sequence = u64::from_le_bytes(sector[8..16].try_into().unwrap_or_default());
            if place != at / SECTOR_BYTES as u64 {
                return fail(What::Place(place * SECTOR_BYTES as u64));
            }
            if sequence != expected {
                return fail(What::Sequence(sequence));
            }
            let body = (at % BODY_BYTES as u64) as usize;
            if sector[STAMP_BYTES..] != self.body[body + STAMP_BYTES..body + SECTOR_BYTES] {
                return fail(What::Body);
            }
        }
        Ok(())
    }
}

/// A block that does not hold what it must.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// First byte of the block.
    pub offset: u64,
    /// Sequence number of the write that must be there; 0 for zeros.
    pub expected: u64,
    /// What is wrong.
    pub what: What,
}

/// What is wrong with a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// It must be zeros.
    NotZero,
    /// A sector says that it belongs to this offset.
    Place(u64),
    /// A sector is from this other write.
    Sequence(u64),
    /// The bytes between the stamps differ.
    Body,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at byte {} must hold write {}, but ", self.offset, self.expected)?;
        match self.what {
            What::NotZero => write!(f, "is not zeros"),
            What::Place(offset) => write!(f, "holds data of byte {offset}"),
            What::Sequence(sequence) => write!(f, "holds write {sequence}"),
            What::Body => write!(f, "its bytes are changed"),
        }
    }
}

/// What every block of a device must hold, by the answers its writers got.
pub struct Ledger {
    blocks: Vec<AtomicU64>,
    sequence: AtomicU64,
}

impl Ledger {
    /// A device of `size` bytes, all zeros.
    pub fn new(size: u64) -> Ledger {
        let blocks = (size / BLOCK_BYTES as u64) as usize;
        Ledger { blocks: (0..blocks).map(|_| AtomicU64::new(ZEROS)).collect(), sequence: AtomicU64::new(1) }
    }

    /// The first of `count` fresh sequence numbers.
    pub fn take_sequences(&self, count: u64) -> u64 {
        self.sequence.fetch_add(count, Ordering::Relaxed)
    }

    /// Notes that a write of this range was answered.
    pub fn written(&self, offset: u64, len: usize, sequence: u64) {
        let first = (offset / BLOCK_BYTES as u64) as usize;
        for block in &self.blocks[first..first + len.div_ceil(BLOCK_BYTES)] {
            block.store(sequence, Ordering::Relaxed);
        }
    }

    /// Notes that the range reads as zeros now.
    pub fn zeroed(&self, offset: u64, len: usize) {
        self.written(offset, len, ZEROS);
    }

    /// Checks what was read from `offset`; whole blocks. The first mismatch, if any.
    pub fn check(&self, stamper: &Stamper, offset: u64, data: &[u8]) -> Result<(), Mismatch> {
        let first = (offset / BLOCK_BYTES as u64) as usize;
        for (index, block) in data.chunks_exact(BLOCK_BYTES).enumerate() {
            let expected = self.blocks[first + index].load(Ordering::Relaxed);
            stamper.check(block, offset + (index * BLOCK_BYTES) as u64, expected)?;
        }
        Ok(())
    }
}
