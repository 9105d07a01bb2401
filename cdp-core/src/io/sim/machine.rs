//! The one owner of a simulated disk at run time: its state, who has it open, and what shall go wrong.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::boundary::{Boundary, CrashAt, Operation, Snapshot, crash};
use super::chance::Chance;
use super::clock::SimClock;
use super::faults::{FaultCounts, FaultKind, FaultPlan};
use super::inode::Fate;
use super::names::{Face, Node};
use super::state::State;

/// How many reads there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCount {
    /// Calls of `read_at`, and reads within `read_gathered`.
    pub reads: u64,
    /// Bytes asked for.
    pub bytes: u64,
}

/// How much of an operation to carry out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Half,
}

pub(super) struct Machine {
    pub state: State,
    pub generation: u64,
    pub crashed: bool,
    crash_at: Option<(u64, CrashAt)>,
    pub operations: u64,
    pub capacity: Option<u64>,
    pub quota: Option<u64>,
    pub faults: FaultPlan,
    pub counts: FaultCounts,
    pub reads: ReadCount,
    pub reads_of: BTreeMap<u64, ReadCount>,
    /// Lock files that are held: by inode, with the number of the holding.
    pub locks: BTreeMap<u64, u64>,
    pub locks_taken: u64,
    /// How many handles each file has.
    pub open: BTreeMap<u64, u64>,
    pub boundaries: Option<Vec<Boundary>>,
    pub clock: Option<SimClock>,
    pub chance: Chance,
}

impl Machine {
    pub fn new(state: State, seed: u64) -> Machine {
        Machine {
            state,
            generation: 0,
            crashed: false,
            crash_at: None,
            operations: 0,
            capacity: None,
            quota: None,
            faults: FaultPlan::default(),
            counts: FaultCounts::default(),
            reads: ReadCount::default(),
            reads_of: BTreeMap::new(),
            locks: BTreeMap::new(),
            locks_taken: 0,
            open: BTreeMap::new(),
            boundaries: None,
            clock: None,
            chance: Chance::new(seed),
        }
    }

    /// Refuses handles from before a crash, and everybody while the disk is down.
    pub fn check(&self, generation: u64) -> io::Result<()> {
        if generation != self.generation {
            return Err(crash("this handle is from before the crash"));
        }
        if self.crashed {
            return Err(crash("the disk is down"));
        }
        Ok(())
    }

    /// Plans a crash at the n-th operation from now.
    pub fn set_crash(&mut self, n: u64, at: CrashAt) {
        self.crash_at = Some((self.operations.saturating_add(n.max(1)), at));
    }

    pub fn clear_crash(&mut self) {
        self.crash_at = None;
    }

    /// All handles so far are dead, and the disk answers again.
    pub fn restart(&mut self) {
        self.generation += 1;
        self.crashed = false;
        self.crash_at = None;
        self.locks.clear();
        self.open.clear();
    }

    /// Carries out one operation that changes the disk, or crashes at it.
    pub fn operate<T>(
        &mut self,
        generation: u64,
        what: Operation,
        path: &str,
        act: impl Fn(&mut Machine, Part) -> io::Result<T>,
    ) -> io::Result<T> {
        self.check(generation)?;
        self.operations += 1;
        if self.boundaries.is_some() {
            self.record(what, path, &act);
        }
        let Some((_, at)) = self.crash_at.filter(|(operation, _)| *operation == self.operations) else {
            return act(self, Part::Whole);
        };
        // What the operation answers is never seen: the process is gone.
        match at {
            CrashAt::Before => {}
            CrashAt::After => _ = act(self, Part::Whole),
            CrashAt::During => {
                self.counts.crashes_during += 1;
                _ = self.act_in_part(what, &act);
            }
        }
        self.crashed = true;
        Err(crash("the disk is down"))
    }

    fn act_in_part<T>(
        &mut self,
        what: Operation,
        act: &impl Fn(&mut Machine, Part) -> io::Result<T>,
    ) -> io::Result<()> {
        let divisible = matches!(what, Operation::Write | Operation::Sync);
        if divisible {
            act(self, Part::Half)?;
        } else if self.chance.percent(50) {
            act(self, Part::Whole)?;
        }
        Ok(())
    }

    fn record<T>(&mut self, what: Operation, path: &str, act: &impl Fn(&mut Machine, Part) -> io::Result<T>) {
        let boundary = |operation, state, during| Boundary {
            operation,
            what,
            path: path.to_owned(),
            during,
            snapshot: Snapshot { state },
        };
        let mut fresh = vec![boundary(self.operations, self.state.clone(), false)];
        if matches!(what, Operation::Write | Operation::Sync) {
            let mut branch = Machine::new(self.state.clone(), self.chance.bits());
            if act(&mut branch, Part::Half).is_ok() {
                fresh.push(boundary(self.operations, branch.state, true));
            }
        }
        self.boundaries.get_or_insert_default().extend(fresh);
    }

    /// What the fault plan does to an operation on a path; slowness takes its time here.
    pub fn strike(&mut self, path: &str, fits: impl Fn(FaultKind) -> bool) -> Vec<FaultKind> {
        if self.faults.is_empty() {
            return Vec::new();
        }
        let struck = self.faults.strike(path, &mut self.chance, fits);
        for kind in &struck {
            if let FaultKind::Slow { ns } = kind {
                self.counts.slow += 1;
                if let Some(clock) = &self.clock {
                    clock.advance(*ns);
                }
            }
        }
        struck
    }

    /// Where a file is now, or `opened` where it has no name any more.
    pub fn path_of(&self, inode: u64, opened: &str) -> String {
        let files = self.state.names.files(Face::Cached);
        files.into_iter().find(|(_, there)| *there == inode).map_or(opened.to_owned(), |(path, _)| path)
    }

    pub fn read(&mut self, inode: u64, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = buffer.len() as u64;
        for count in [&mut self.reads, self.reads_of.entry(inode).or_default()] {
            count.reads += 1;
            count.bytes += len;
        }
        let struck = self.strike(path, |kind| matches!(kind, FaultKind::ReadError | FaultKind::Slow { .. }));
        if struck.contains(&FaultKind::ReadError) {
            self.counts.read_errors += 1;
            return Err(Errno::IO.into());
        }
        let file = self.state.inode(inode)?;
        if offset.checked_add(len).is_none_or(|end| end > file.cached.len()) && len > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        if file.is_unreadable(offset, len) {
            self.counts.unreadable_reads += 1;
            return Err(Errno::IO.into());
        }
        file.cached.read(offset, buffer);
        Ok(())
    }

    pub fn write(&mut self, inode: u64, path: &str, offset: u64, data: &[u8], part: Part) -> io::Result<()> {
        if part == Part::Half {
            return self.state.write_partly(inode, offset, data, &mut self.chance);
        }
        let struck = self.strike(path, |kind| {
            use FaultKind::{LostWrite, MisdirectedWrite, Slow, WriteError};
            matches!(kind, WriteError | LostWrite | MisdirectedWrite | Slow { .. })
        });
        if struck.contains(&FaultKind::WriteError) {
            self.counts.write_errors += 1;
            self.state.write_partly(inode, offset, data, &mut self.chance)?;
            return Err(Errno::IO.into());
        }
        let mut fate = Fate::Stored;
        if struck.contains(&FaultKind::LostWrite) {
            self.counts.lost_writes += 1;
            fate = Fate::Lost;
        } else if struck.contains(&FaultKind::MisdirectedWrite)
            && let Some(wrong) = self.state.wrong_place(inode, offset, data.len() as u64, &mut self.chance)
        {
            self.counts.misdirected_writes += 1;
            fate = wrong;
        }
        let result = self.state.write(inode, offset, data, fate, self.limit());
        self.note_space(result)
    }

    pub fn allocate(&mut self, inode: u64, offset: u64, len: u64) -> io::Result<()> {
        let result = self.state.allocate(inode, offset, len, self.limit());
        self.note_space(result)
    }

    fn limit(&self) -> Option<u64> {
        self.capacity.into_iter().chain(self.quota).min()
    }

    fn note_space(&mut self, result: io::Result<()>) -> io::Result<()> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            self.counts.out_of_space += 1;
        }
        result
    }

    pub fn sync(&mut self, inode: u64, path: &str, part: Part) -> io::Result<()> {
        if part == Part::Half {
            return self.state.sync_partly(inode, &mut self.chance);
        }
        let struck = self.strike(path, |kind| {
            use FaultKind::{Slow, SyncError, SyncErrorPartial};
            matches!(kind, SyncError | SyncErrorPartial | Slow { .. })
        });
        for (kind, percent) in [(FaultKind::SyncError, 0), (FaultKind::SyncErrorPartial, 50)] {
            if struck.contains(&kind) {
                self.counts.sync_errors += 1;
                self.state.sync_failed(inode, percent, &mut self.chance)?;
                return Err(Errno::IO.into());
            }
        }
        self.state.sync(inode)
    }

    /// EIO for an operation on names, if the plan says so.
    pub fn strike_names(&mut self, path: &str) -> io::Result<()> {
        if self.strike(path, |kind| kind == FaultKind::NameError).is_empty() {
            return Ok(());
        }
        self.counts.name_errors += 1;
        Err(Errno::IO.into())
    }

    pub fn sync_dir(&mut self, path: &std::path::Path) -> io::Result<()> {
        let text = path.display().to_string();
        if !self.strike(&text, |kind| kind == FaultKind::DirectorySyncError).is_empty() {
            self.counts.directory_sync_errors += 1;
            return Err(Errno::IO.into());
        }
        self.state.sync_dir(path)?;
        let open = &self.open;
        self.state.forget_nameless(|inode| open.contains_key(&inode));
        Ok(())
    }

    /// The inode of a lock file, made if missing, if nobody holds it; else `WouldBlock` with its text.
    pub fn lock(&mut self, path: &std::path::Path, holder: &str) -> io::Result<(u64, u64)> {
        let inode = match self.state.file(path, Face::Cached) {
            Ok(inode) => inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.state.create(path, Node::File)?,
            Err(error) => return Err(error),
        };
        if self.locks.contains_key(&inode) {
            let text = self.state.inode(inode)?.cached.to_vec();
            let text = String::from_utf8_lossy(&text).into_owned();
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        self.state.set_len(inode, 0)?;
        self.state.write(inode, 0, holder.as_bytes(), Fate::Stored, None)?;
        self.locks_taken += 1;
        self.locks.insert(inode, self.locks_taken);
        Ok((inode, self.locks_taken))
    }
}
