//! The fault plan: what shall go wrong, when and where; and the count of what did.

use std::ops::AddAssign;

use super::chance::Chance;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A read answers EIO.
    ReadError,
    /// A write answers EIO; some of its sectors were written.
    WriteError,
    /// A file's sync answers EIO. What was unsynced never reaches the disk, but the cache goes on showing it
    /// until it is evicted; the next sync succeeds and proves nothing.
    SyncError,
    /// Like [`FaultKind::SyncError`], but some sectors did reach the disk.
    SyncErrorPartial,
    /// The sync of a directory answers EIO; its names stay unsynced.
    DirectorySyncError,
    /// Making, renaming or removing a file or directory answers EIO and does nothing.
    NameError,
    /// The disk acknowledges and "syncs" a write that it never stores.
    LostWrite,
    /// The disk stores a write in another place: of the same or another file, where there is data.
    MisdirectedWrite,
    /// A read, write or sync takes so many nanoseconds on the clock given with
    /// [`super::SimDisk::set_clock`].
    Slow {
        /// How long.
        ns: u64,
    },
}

/// When it goes wrong, counted over the operations that the fault fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At the n-th from now (1 is the next), once.
    Nth(u64),
    /// At the n-th from now and every later one.
    From(u64),
    /// At each with this probability in thousandths.
    PerMille(u16),
}

/// One line of the fault plan.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    when: When,
    path_part: Option<String>,
    seen: u64,
}

impl Fault {
    /// A fault of any file.
    pub fn new(kind: FaultKind, when: When) -> Fault {
        Fault { kind, when, path_part: None, seen: 0 }
    }

    /// Only files whose path contains this.
    pub fn on(mut self, path_part: impl Into<String>) -> Fault {
        self.path_part = Some(path_part.into());
        self
    }

    fn strikes(&mut self, path: &str, chance: &mut Chance) -> bool {
        if self.path_part.as_ref().is_some_and(|part| !path.contains(part.as_str())) {
            return false;
        }
        self.seen += 1;
        match self.when {
            When::Nth(n) => self.seen == n,
            When::From(n) => self.seen >= n,
            When::PerMille(thousandths) => chance.below(1000) < u64::from(thousandths),
        }
    }
}

/// All lines of it.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultPlan {
    faults: Vec<Fault>,
}

impl FaultPlan {
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub fn clear(&mut self) {
        self.faults.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// What strikes an operation on `path` for which `fits` names the kinds that can.
    pub fn strike(
        &mut self,
        path: &str,
        chance: &mut Chance,
        fits: impl Fn(FaultKind) -> bool,
    ) -> Vec<FaultKind> {
        let fitting = self.faults.iter_mut().filter(|fault| fits(fault.kind));
        fitting.filter_map(|fault| fault.strikes(path, chance).then_some(fault.kind)).collect()
    }
}

/// How often each thing went wrong, so that a test can assert that its faults happened at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says it")]
pub struct FaultCounts {
    pub read_errors: u64,
    pub write_errors: u64,
    pub sync_errors: u64,
    pub directory_sync_errors: u64,
    pub name_errors: u64,
    pub lost_writes: u64,
    pub misdirected_writes: u64,
    pub out_of_space: u64,
    pub slow: u64,
    pub rotten_bytes: u64,
    pub unreadable_reads: u64,
    pub evicted_pages: u64,
    pub process_deaths: u64,
    pub power_losses: u64,
    /// Crashes that [`super::SimDisk::set_crash_after`] brought about inside an operation.
    pub crashes_during: u64,
    /// Unsynced effects that a power loss kept, lost, or kept in part.
    pub effects_kept: u64,
    pub effects_lost: u64,
    pub effects_torn: u64,
    /// Effects kept though an earlier one of the same file was lost.
    pub effects_reordered: u64,
    /// Unsynced changes of names that a power loss kept or lost.
    pub names_kept: u64,
    pub names_lost: u64,
}

impl AddAssign for FaultCounts {
    fn add_assign(&mut self, other: FaultCounts) {
        self.read_errors += other.read_errors;
        self.write_errors += other.write_errors;
        self.sync_errors += other.sync_errors;
        self.directory_sync_errors += other.directory_sync_errors;
        self.name_errors += other.name_errors;
        self.lost_writes += other.lost_writes;
        self.misdirected_writes += other.misdirected_writes;
        self.out_of_space += other.out_of_space;
        self.slow += other.slow;
        self.rotten_bytes += other.rotten_bytes;
        self.unreadable_reads += other.unreadable_reads;
        self.evicted_pages += other.evicted_pages;
        self.process_deaths += other.process_deaths;
        self.power_losses += other.power_losses;
        self.crashes_during += other.crashes_during;
        self.effects_kept += other.effects_kept;
        self.effects_lost += other.effects_lost;
        self.effects_torn += other.effects_torn;
        self.effects_reordered += other.effects_reordered;
        self.names_kept += other.names_kept;
        self.names_lost += other.names_lost;
    }
}
