//! Numbers that must not mix: LSN, LBA, timestamps and the identities of volumes, segments, sessions.

use std::fmt;

/// The unit that is tracked, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// Ordinal of a record within one volume: dense, from 1. `Lsn::ZERO` stands before the first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record.
    pub const ZERO: Lsn = Lsn(0);
    /// No record is newer than this.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The LSN that follows.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The LSN before; `ZERO` stays `ZERO`.
    pub fn previous(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn:{}", self.0)
    }
}

/// Number of a block of [`BLOCK_BYTES`] on a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lba:{}", self.0)
    }
}

/// A half-open range of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// First block.
    pub start: Lba,
    /// How many blocks; never 0 in an extent that means something.
    pub blocks: u64,
}

impl Extent {
    /// The blocks `start..end`.
    pub fn new(start: u64, end: u64) -> Extent {
        debug_assert!(start <= end);
        Extent { start: Lba(start), blocks: end - start }
    }

    /// The first block behind the extent.
    pub fn end(&self) -> u64 {
        self.start.0 + self.blocks
    }
}

/// UTC in nanoseconds since 1970-01-01, as the store's clock gave it. Strictly rising within a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ns:{}", self.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:0width$x}", self.0, width = size_of::<$inner>() * 2)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// Random name of a volume for its whole life, on every site.
    VolumeId, u128
);
id!(
    /// Random name of one use of a segment file. Every batch carries it, so that what an earlier use of the
    /// same space left behind is never taken for a record.
    SegmentId, u64
);
id!(
    /// Random name of one opening of a volume for writing.
    Incarnation, u64
);

/// Number of a client session on a volume, as its session-open record gave it; 0 is the store itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SessionId(pub u32);

impl SessionId {
    /// The store itself: markers, clock steps.
    pub const STORE: SessionId = SessionId(0);
}

/// Grows at each promotion of a replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct EpochNumber(pub u32);
