//! What each fuzz target does with its bytes. Both `cargo fuzz` and the ordinary tests call it, so an input
//! that once broke something stays a test.

mod bytes;
pub mod journal_scan;
pub mod link;
mod memory_file;
pub mod nbd_handshake;
pub mod nbd_requests;
pub mod point;
mod ram;
pub mod run_file;
pub mod votes;

/// A function that panics when the bytes break a promise.
pub type Run = fn(&[u8]);

/// All targets; the corpus of each is the directory of its name.
pub const TARGETS: &[(&str, Run)] = &[
    ("journal_scan", journal_scan::run),
    ("link", link::run),
    ("nbd_handshake", nbd_handshake::run),
    ("nbd_requests", nbd_requests::run),
    ("point", point::run),
    ("run_file", run_file::run),
    ("votes", votes::run),
];
