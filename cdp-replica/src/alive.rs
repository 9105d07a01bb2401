//! That the sending side lives, where it has nothing to send for a while: it looks through a state that is zeros, or waits for
//! the other side's disk.

use crate::limits::COMPLETE_NS;
use crate::wire::control::{self, Complete};
use crate::wire::frame::FrameWriter;

/// When it was said last.
#[derive(Default)]
pub(crate) struct Alive {
    said_at_ns: u64,
}

impl Alive {
    /// Says so, if that was long ago: nothing is complete through the beginning of time.
    pub(crate) fn say(&mut self, writer: &mut FrameWriter, out: &mut Vec<u8>, now_ns: u64) {
        if now_ns.saturating_sub(self.said_at_ns) >= COMPLETE_NS {
            self.said_at_ns = now_ns;
            control::send(writer, out, &Complete { ns: 0 });
        }
    }
}
