//! What happened when: markers, the timeline, the points people type, rollbacks and resizes, epochs.

pub mod course;
pub mod epochs;
pub mod point;
pub mod retention;
