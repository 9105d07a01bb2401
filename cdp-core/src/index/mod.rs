//! The index, block × LSN: for any extent, what was its newest version among the visible records.
//!
//! One *part* per journal segment: [`Live`] in memory for the open segment (frozen when it is sealed, until
//! its run stands), [`Run`] an immutable file for a sealed segment, or for several neighbouring ones whose runs
//! were made one ([`Merge`]). Segments hold disjoint, rising LSN ranges,
//! so a newer part always wins: a lookup is a [`Search`] handed from the newest part to the oldest, each
//! answering what it can and leaving the rest as gaps. What no part answers is the base's.

mod bloom;
mod difference;
mod entries;
mod find;
mod gathered;
mod keys;
mod live;
mod memory;
mod merge;
mod nodes;
mod options;
mod overlay;
mod paged;
mod pages;
mod rows;
mod run;
mod search;
mod tree;
mod visible;
mod write;

pub use difference::Difference;
pub use live::Live;
pub use memory::{Memory, Share, Used};
pub use merge::Merge;
pub use options::IndexOptions;
pub use pages::PageCache;
pub use rows::RunEntries;
pub use run::Run;
pub use search::Search;
pub use visible::Visible;
pub use write::RunSource;

use crate::ids::{Extent, Lsn};

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
