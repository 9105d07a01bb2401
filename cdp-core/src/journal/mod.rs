//! The journal: an append-only stream of records in segment files.
//!
//! Two steps, *staged* (safe from process death) and *durable* (safe from power loss), and one reader of what
//! they left behind. What a record means for blocks is nobody's business here: a [`Placement`] is told
//! where each record came to stand.

pub mod append;
pub mod commit;
pub mod fold;
pub mod follow;
pub mod looked;
pub mod mark;
pub mod pool;
pub mod reappend;
pub mod recover;
pub mod scan;
pub mod segment;
pub mod verdict;

use std::sync::Arc;

use crate::format::record::RecordHeader;
use segment::Segment;

/// Learns where records stand. Called inside the journal's critical section, in LSN order.
pub trait Placement {
    /// Records from here on go to this segment.
    fn opened(&mut self, segment: &Arc<Segment>);
    /// A record stands in the newest opened segment: its payload begins at block `payload_block` of the
    /// file, and these are the CRCs of the payload's blocks. `damaged` payload must never be shown.
    fn placed(&mut self, record: &RecordHeader, payload_block: u32, crcs: &[u32], damaged: bool);
}
