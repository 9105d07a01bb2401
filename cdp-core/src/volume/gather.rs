//! Parts of the index made while recovery reads the segments, so that they are read once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{OnceLock, RwLock};

use super::parts::{Frozen, LivePart, Part, PartIndex};
use crate::ids::{Lsn, SegmentId};
use crate::journal::recover::Found;
use crate::journal::scan;
use crate::journal::segment::Segment;

/// What was read, by segment.
#[derive(Default)]
pub(super) struct Gathered {
    parts: RefCell<HashMap<SegmentId, LivePart>>,
}

impl Gathered {
    /// Takes a record in; the first one of a segment begins it anew.
    pub(super) fn visit(&self, segment: &Segment, found: &scan::Found<'_>) {
        let mut parts = self.parts.borrow_mut();
        let first = segment.header.first_lsn;
        if found.header.lsn == first {
            parts.insert(segment.header.id, LivePart::new(first));
        }
        if let Some(part) = parts.get_mut(&segment.header.id) {
            part.insert(found.header, found.payload_block, found.crcs, !found.intact);
        }
    }

    /// The part of a segment, if just these records of it were read.
    pub(super) fn take(&self, found: &Found) -> Option<Part> {
        let live = self.parts.borrow_mut().remove(&found.segment.header.id)?;
        if live.live.last_lsn() != found.last.lsn || found.last.lsn == Lsn::ZERO {
            return None;
        }
        let frozen = Frozen { last: found.last, end: found.end, may_seal: false, seal_hash: None };
        Some(Part {
            segment: found.segment.clone(),
            before: found.before,
            frozen: OnceLock::from(frozen),
            index: PartIndex::Live(Box::new(RwLock::new(live))),
            repaired: OnceLock::new(),
        })
    }
}
