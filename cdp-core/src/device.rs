//! What an export can be: a volume's tip, a view of the past, a throw-away clone.

use crate::error::Result;
use crate::ids::{Lsn, SessionId};

/// A change a client asks for. Offsets and lengths are in bytes, of any alignment, and already checked
/// against the device's size by nobody: the device does it.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// These bytes from `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// What to put there; at most [`crate::limits::REQUEST_BYTES_MAX`].
        data: &'a [u8],
    },
    /// Zeros, however long; no payload is stored.
    Zero {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether the range may be reported as a hole afterwards (NBD: NO_HOLE not set).
        hole: bool,
    },
    /// Discarded; reads as zeros from now on.
    Trim {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// One read of many.
pub struct Read<'a> {
    /// First byte.
    pub offset: u64,
    /// Filled whole, or the result is an error.
    pub buffer: &'a mut [u8],
    /// Callers set `Ok(())` beforehand.
    pub result: Result<()>,
}

/// What a range holds, as block status tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Stored bytes.
    Data,
    /// Zeros that a client wants kept as allocated space.
    Zero,
    /// Nothing was ever written there, or it was trimmed: reads as zeros.
    Hole,
}

/// A run of bytes with the same content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Length in bytes, never 0.
    pub len: u64,
    /// What is there.
    pub content: Content,
}

/// A block device that exports serve. All methods may be called from many threads at once.
pub trait Device: Send + Sync {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Whether changes are refused with [`crate::error::Kind::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Applies changes in their order; `results` gets one entry for each, in the same order. When this
    /// returns, every change that succeeded survives process death and is seen by every later read.
    /// A change that failed had no effect and took no LSN. One that succeeded but covers no byte, and so
    /// needs no record, answers with the newest LSN.
    fn apply(&self, session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>);

    /// Returns when every change applied before the call survives power loss. Concurrent callers share syncs.
    fn flush(&self) -> Result<()>;

    /// Carries out many reads; each has its own result.
    fn read(&self, reads: &mut [Read<'_>]);

    /// The content of `offset..offset + len`, in order, at most `stretches_max` entries; may end early but
    /// covers at least one byte. Neighbouring entries differ.
    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>>;

    /// Whether each call may wait until somebody else allows an answer. Then an answer that is had is to go out before the
    /// next call, because what allows it holds for a time only.
    fn is_gated(&self) -> bool {
        false
    }
}
