//! What happened when: markers, the timeline, the points people type, rollbacks and resizes.

pub mod course;
pub mod point;
pub mod retention;
