//! What happened when: markers, the timeline, and the points people type.

pub mod point;
