//! Bytes on the wire, without I/O: frames, control messages, records.

pub mod ahead;
pub mod control;
pub mod copy;
pub mod delta;
pub mod frame;
pub mod ranges;
pub mod records;
pub mod references;
