//! The borders between operations, where a crash can come; and the error it leaves.

use std::fmt;
use std::io;

use super::state::State;

/// The kinds of operation that change the disk or make a change durable: those at which a crash can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the method of the seam")]
pub enum Operation {
    Create,
    Remove,
    Rename,
    CreateDir,
    RemoveDir,
    SyncDir,
    Lock,
    Write,
    Sync,
    SetLen,
    Allocate,
}

/// Where in an operation a crash comes. The operation fails in all three cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashAt {
    /// It has no effect.
    Before,
    /// A write reaches the cache in part, a sync makes a part durable; any other operation happens or not.
    During,
    /// It has all its effect, and only the answer is missing.
    After,
}

/// The state of the disk just before an operation, or in the middle of it; see
/// [`super::SimDisk::record_boundaries`].
#[derive(Clone)]
pub struct Boundary {
    /// Number of the operation that was about to begin: as [`super::SimDisk::operations`] counts, from 1.
    pub operation: u64,
    /// What it was.
    pub what: Operation,
    /// The file or directory it was about.
    pub path: String,
    /// Whether a part of the operation had happened already.
    pub during: bool,
    /// The disk at that moment.
    pub snapshot: Snapshot,
}

/// All that a disk holds at one moment: cached, durable and unsynced. Cheap to make and to clone.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) state: State,
}

/// The error of every operation at and after a crash.
#[derive(Debug)]
struct Crash(&'static str);

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated crash: {}", self.0)
    }
}

impl std::error::Error for Crash {}

/// Whether an error comes from a simulated crash and not from a simulated fault.
pub fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Crash>())
}

pub(super) fn crash(what: &'static str) -> io::Error {
    io::Error::other(Crash(what))
}
