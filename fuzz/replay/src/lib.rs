//! What each fuzz target does with its bytes. Both `cargo fuzz` and the ordinary tests call it, so an input
//! that once broke something stays a test.

pub mod point;

/// A function that panics when the bytes break a promise.
pub type Run = fn(&[u8]);

/// All targets; the corpus of each is the directory of its name.
pub const TARGETS: &[(&str, Run)] = &[("point", point::run)];
