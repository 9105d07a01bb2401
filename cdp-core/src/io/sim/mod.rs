//! The simulated disk: a filesystem in memory that may do everything a real one may do, and forgets what was
//! never synced when its power goes.
//!
//! # What it models
//!
//! Of each file there are the *cached* bytes (what every process sees), the *durable* bytes (what is on the
//! disk) and the ordered list of *unsynced effects* between them: sectors of 512 bytes written, lengths set,
//! space allocated. `sync` carries the effects of one file over. Names work the same way, one directory at a
//! time, by `sync_dir`; syncing a file does not make its name durable. A rename is one change of names: it
//! happened or it did not. A move between directories is covered by syncing the target directory.
//!
//! Two deaths:
//! - [`SimDisk::crash_process`]: the cache survives. Everything written is there.
//! - [`SimDisk::crash_power`]: of the unsynced effects any may be kept, lost or torn, a later one kept while an
//!   earlier one is lost. A write that made the file longer has two effects, bytes and length, so the bytes may
//!   arrive without the length and the other way round. What was synced is always kept.
//!
//! Both give a new handle; everything opened through older ones answers with an error that [`is_crash`] knows.
//! All choices come from seeds: the same calls with the same seeds leave the same bytes.
//!
//! # A crash test
//!
//! Three ways, from plain to fast:
//!
//! ```
//! use std::io::IoSlice;
//! use std::path::Path;
//! use cdp_core::io::Files;
//! use cdp_core::io::sim::{CrashAt, SimDisk, is_crash};
//!
//! // The code under test: two writes, the first one synced.
//! fn work(files: &dyn Files) -> std::io::Result<()> {
//!     let file = files.create(Path::new("/log"))?;
//!     files.sync_dir(Path::new("/"))?;
//!     file.write_at(0, &[IoSlice::new(b"first")])?;
//!     file.sync()?;
//!     file.write_at(5, &[IoSlice::new(b"second")])
//! }
//!
//! // 1. At the end of the work.
//! let disk = SimDisk::new(1);
//! work(&disk).unwrap();
//! let disk = disk.crash_power(7);
//! assert!(disk.contents("/log").unwrap().starts_with(b"first"));
//!
//! // 2. At each operation, by running the work again and again.
//! for n in 1.. {
//!     let disk = SimDisk::new(1);
//!     disk.set_crash_after(n, CrashAt::During);
//!     match work(&disk) {
//!         Ok(()) => break,
//!         Err(error) => assert!(is_crash(&error)),
//!     }
//!     let _recovered = disk.crash_process();
//! }
//!
//! // 3. At each operation of one single run: the disk keeps a snapshot of every boundary.
//! let disk = SimDisk::new(1);
//! disk.record_boundaries(true);
//! work(&disk).unwrap();
//! let synced_at = 4; // `disk.operations()` after the sync was answered
//! for boundary in disk.take_boundaries() {
//!     for seed in 0..20 {
//!         let disk = boundary.snapshot.mount(seed).crash_power(seed);
//!         let promised = boundary.operation > synced_at;
//!         assert!(!promised || disk.contents("/log").unwrap().starts_with(b"first"));
//!     }
//! }
//! ```
//!
//! The third runs the work once: at an acknowledgement note `disk.operations()` as k; in every boundary with
//! `operation > k` that acknowledgement had been given, in the others it had not.
//!
//! # Faults
//!
//! [`SimDisk::inject`] adds a line to the fault plan ([`Fault`], [`FaultKind`], [`When`]);
//! [`SimDisk::set_capacity`] limits the space; [`SimDisk::rot`], [`SimDisk::make_unreadable`],
//! [`SimDisk::mutate`], [`SimDisk::truncate`] and [`SimDisk::disappear`] damage what is stored;
//! [`SimDisk::evict`] makes the cache forget, which is when lost, misdirected and failed writes show.
//! [`SimDisk::counts`] tells what struck, so that a test can assert that its faults happened at all.
//!
//! # Left out on purpose
//!
//! Permissions, links and timestamps; a copy-on-write filesystem's habit of needing space to overwrite; reading
//! stale bytes of other files after a power loss (journalling filesystems give zeros).

mod boundary;
mod chance;
mod clock;
mod control;
mod faults;
mod file;
mod image;
mod inode;
mod machine;
mod names;
mod power;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use boundary::{Boundary, CrashAt, Operation, Snapshot, is_crash};
pub use chance::Chance;
pub use clock::{SimClock, WALL_START_NS};
pub use faults::{Fault, FaultCounts, FaultKind, When};
pub use machine::ReadCount;
pub use names::NameOrder;
pub use power::{PowerLoss, WriteOrder};

use file::Shared;
use machine::Machine;
use state::State;

/// A simulated disk. Clones are handles to the same disk, of the same life: after a crash they are dead as
/// [`crate::io::Files`], while their methods for tests go on working.
#[derive(Clone)]
pub struct SimDisk {
    shared: Shared,
    generation: u64,
}

impl SimDisk {
    /// An empty disk without limit of space. `seed` decides what faults and partial operations do.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::of(State::new(), seed)
    }

    fn of(state: State, seed: u64) -> SimDisk {
        SimDisk { shared: Arc::new(Mutex::new(Machine::new(state, seed))), generation: 0 }
    }
}

impl Snapshot {
    /// A disk of its own that begins with this content, with no fault planned. What was unsynced still is.
    pub fn mount(&self, seed: u64) -> SimDisk {
        SimDisk::of(self.state.clone(), seed)
    }
}
