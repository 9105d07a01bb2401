//! The index, block × LSN: for any extent, what was its newest version among the visible records.

use crate::ids::{Extent, Lsn};

/// The records a view sees: disjoint LSN ranges, ends included, in rising order. A volume that was never
/// rolled back sees one range, `1..=lsn`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visible {
    ranges: Vec<(Lsn, Lsn)>,
}

impl Visible {
    /// All records up to and including `lsn`.
    pub fn through(lsn: Lsn) -> Visible {
        Visible { ranges: vec![(Lsn(1), lsn)] }
    }

    /// The ranges, in rising order.
    pub fn ranges(&self) -> &[(Lsn, Lsn)] {
        &self.ranges
    }
}

/// What the newest visible version of some blocks is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Zeros without storage.
    Hole,
    /// Zeros that a client wants kept as allocated space.
    Zero,
    /// One block of payload: the `block`-th 4-KiB block of the segment file, with this CRC-32.
    Payload {
        /// Number of the 4-KiB block within the segment file, as first appended.
        block: u32,
        /// CRC-32 (IEEE) of the block's 4096 bytes.
        crc: u32,
    },
}

/// A version that was found for an extent. A payload version covers exactly one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Which blocks.
    pub extent: Extent,
    /// The record that made it.
    pub lsn: Lsn,
    /// What it is.
    pub found: Found,
}
