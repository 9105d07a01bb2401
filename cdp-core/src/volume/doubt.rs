//! Segments whose first and last blocks were believed at the opening without a look, because a cache remembered them: they
//! are read now, a few in each step of upkeep. Nobody but rot can have changed them, and rot there is what recovery would
//! have refused.

use std::sync::{Arc, Weak};

use super::Volume;
use crate::format::segment::Seal;
use crate::journal::segment::{self, FirstBlock, Segment};
use crate::limits::DOUBTED_PER_STEP;

/// A segment that was believed, and the seal it should have.
pub(super) struct Doubted {
    /// Not held: it may be folded and recycled meanwhile.
    segment: Weak<Segment>,
    seal: Option<Seal>,
}

impl Doubted {
    pub(super) fn new(segment: &Arc<Segment>, seal: Option<Seal>) -> Doubted {
        Doubted { segment: Arc::downgrade(segment), seal }
    }

    /// What is wrong with it, if something is.
    fn fault(&self) -> Option<String> {
        let segment = self.segment.upgrade()?;
        let place = segment.path.display();
        match segment::read_first_block(&*segment.file) {
            Ok(FirstBlock::Header(header)) if *header == segment.header => {}
            Ok(_) => return Some(format!("the header of {place} is not what was written")),
            // It was folded or thinned, and somebody still holds it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("the header of {place} cannot be read: {error}")),
        }
        let seal = self.seal?;
        match segment::read_seal(&segment) {
            Ok(Some(read)) if read == seal => None,
            Ok(_) => Some(format!("the seal of {place} is not what was written")),
            Err(error) => Some(format!("the seal of {place} cannot be read: {error}")),
        }
    }
}

impl Volume {
    /// Looks at some of the segments that were believed at the opening. If one is not what it was taken for the volume
    /// takes no more writes, as if that had been found at the opening; and the next opening believes nothing. The caller
    /// holds the duties' lock, so that no segment is recycled meanwhile.
    pub(super) fn doubt_some(&self) {
        let some: Vec<Doubted> = {
            let mut doubted = self.doubted.lock().expect("no panics under this lock");
            let keep = doubted.len().saturating_sub(DOUBTED_PER_STEP);
            doubted.split_off(keep)
        };
        let Some(fault) = some.iter().find_map(Doubted::fault) else { return };
        self.looked.lock().expect("no panics under this lock").forget_all();
        self.note_error(fault.clone());
        self.become_read_only(
            fault,
            "bring that file back from a copy, then restart the server; `cdp verify` reads everything",
        );
    }

    /// How many segments were believed at the opening and not looked at yet.
    pub fn doubted(&self) -> usize {
        self.doubted.lock().expect("no panics under this lock").len()
    }
}
