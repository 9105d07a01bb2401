//! The seam over the simulated disk: directories, files and locks for the code under test.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::SimDisk;
use super::boundary::Operation;
use super::machine::{Machine, Part};
use super::names::{Face, Node};
use crate::io::{DirEntry, File, FileStat, Files, GatheredRead, Lock, Space, ZEROS_STEP_BYTES};

/// What a disk without a limit says it has, in bytes.
const UNLIMITED_BYTES: u64 = 1 << 50;

pub(super) type Shared = Arc<Mutex<Machine>>;

/// A test that panicked elsewhere must not hide its message behind a poisoned lock.
pub(super) fn hold(shared: &Shared) -> MutexGuard<'_, Machine> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct SimFile {
    shared: Shared,
    generation: u64,
    inode: u64,
    path: String,
    writable: bool,
}

struct SimLock {
    shared: Shared,
    inode: u64,
    holding: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = hold(&self.shared);
        if machine.locks.get(&self.inode) == Some(&self.holding) {
            machine.locks.remove(&self.inode);
        }
    }
}

impl SimDisk {
    fn handle(&self, machine: &mut Machine, inode: u64, path: &Path, writable: bool) -> Arc<dyn File> {
        if machine.generation == self.generation {
            *machine.open.entry(inode).or_default() += 1;
        }
        Arc::new(SimFile {
            shared: self.shared.clone(),
            generation: self.generation,
            inode,
            path: path.display().to_string(),
            writable,
        })
    }

    fn operate<T>(
        &self,
        what: Operation,
        path: &Path,
        act: impl Fn(&mut Machine, Part) -> io::Result<T>,
    ) -> io::Result<T> {
        hold(&self.shared).operate(self.generation, what, &path.display().to_string(), act)
    }

    fn operate_on_names<T>(
        &self,
        what: Operation,
        path: &Path,
        act: impl Fn(&mut Machine) -> io::Result<T>,
    ) -> io::Result<T> {
        self.operate(what, path, |machine, _| {
            machine.strike_names(&path.display().to_string())?;
            act(machine)
        })
    }
}

impl Files for SimDisk {
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let mut machine = hold(&self.shared);
        machine.check(self.generation)?;
        let inode = machine.state.file(path, Face::Cached)?;
        Ok(self.handle(&mut machine, inode, path, writable))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode =
            self.operate_on_names(Operation::Create, path, |machine| machine.state.create(path, Node::File))?;
        Ok(self.handle(&mut hold(&self.shared), inode, path, true))
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let machine = hold(&self.shared);
        machine.check(self.generation)?;
        let inode = machine.state.file(path, Face::Cached)?;
        let file = machine.state.inode(inode)?;
        Ok(FileStat { len: file.cached.len(), inode, changed_ns: file.changed + 1 })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate_on_names(Operation::Remove, path, |machine| machine.state.remove(path, false))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate_on_names(Operation::Rename, from, |machine| machine.state.rename(from, to))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.operate_on_names(Operation::CreateDir, path, |machine| {
            machine.state.create(path, Node::Directory).map(|_| ())
        })
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for entry in self.list(path)? {
            let inner = path.join(&entry.name);
            if entry.is_dir {
                self.remove_dir_all(&inner)?;
            } else {
                self.remove(&inner)?;
            }
        }
        self.operate_on_names(Operation::RemoveDir, path, |machine| machine.state.remove(path, true))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let machine = hold(&self.shared);
        machine.check(self.generation)?;
        let directory = machine.state.directory(path)?;
        let entries = machine.state.names.list(directory, Face::Cached).into_iter();
        Ok(entries
            .map(|(name, node)| DirEntry {
                name: name.to_string(),
                is_dir: matches!(node, Node::Directory(_)),
            })
            .collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(Operation::SyncDir, path, |machine, _| machine.sync_dir(path))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let machine = hold(&self.shared);
        machine.check(self.generation)?;
        machine.state.names.find(path, Face::Cached)?;
        let total = machine.capacity.unwrap_or(UNLIMITED_BYTES);
        Ok(Space { total, available: total.saturating_sub(machine.state.used()) })
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>> {
        let (inode, holding) =
            self.operate(Operation::Lock, path, |machine, _| machine.lock(path, holder))?;
        Ok(Box::new(SimLock { shared: self.shared.clone(), inode, holding }))
    }

    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]) {
        for read in reads {
            read.result = read.file.read_at(read.offset, read.buffer);
        }
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "sim"
    }
}

impl SimFile {
    fn operate<T>(
        &self,
        what: Operation,
        act: impl Fn(&mut Machine, &str, Part) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut machine = hold(&self.shared);
        if !self.writable && what != Operation::Sync {
            machine.check(self.generation)?;
            return Err(Errno::BADF.into());
        }
        let path = self.path_for_faults(&machine);
        machine.operate(self.generation, what, &path, |machine, part| act(machine, &path, part))
    }

    /// Finding the present name takes a walk, so it is done only where somebody asks for it.
    fn path_for_faults(&self, machine: &Machine) -> String {
        if machine.faults.is_empty() && machine.boundaries.is_none() {
            return String::new();
        }
        machine.path_of(self.inode, &self.path)
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut machine = hold(&self.shared);
        machine.check(self.generation)?;
        let path = self.path_for_faults(&machine);
        machine.read(self.inode, &path, offset, buffer)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let data = match buffers {
            [single] => std::borrow::Cow::Borrowed(&**single),
            many => many.iter().flat_map(|buffer| buffer.iter().copied()).collect::<Vec<u8>>().into(),
        };
        self.operate(Operation::Write, |machine, path, part| {
            machine.write(self.inode, path, offset, &data, part)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(Operation::Sync, |machine, path, part| machine.sync(self.inode, path, part))
    }

    fn len(&self) -> io::Result<u64> {
        let machine = hold(&self.shared);
        machine.check(self.generation)?;
        Ok(machine.state.inode(self.inode)?.cached.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Operation::SetLen, |machine, _, _| machine.state.set_len(self.inode, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.operate(Operation::Allocate, |machine, _, _| machine.allocate(self.inode, offset, len))
    }

    // Zeros are written, also over holes, and may be lost like anything that is written; they take no space, and what was there gives
    // its own back.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = [0; ZEROS_STEP_BYTES];
        let end = self.len()?.min(offset.saturating_add(len));
        let mut at = offset;
        while at < end {
            let step = (end - at).min(zeros.len() as u64);
            self.operate(Operation::Write, |machine, path, part| {
                let limits = (machine.capacity.take(), machine.quota.take());
                let written = machine.write(self.inode, path, at, &zeros[..step as usize], part);
                (machine.capacity, machine.quota) = limits;
                written?;
                machine.state.inode_mut(self.inode)?.cached.free(at, step);
                Ok(())
            })?;
            at += step;
        }
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {
        // A hint changes nothing that may be relied on: a power loss chooses among all unsynced effects anyway.
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let machine = hold(&self.shared);
        machine.check(self.generation)?;
        Ok(machine.state.inode(self.inode)?.cached.next_data(offset))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut machine = hold(&self.shared);
        if machine.generation != self.generation {
            return;
        }
        if let Some(handles) = machine.open.get_mut(&self.inode) {
            *handles -= 1;
            if *handles == 0 {
                machine.open.remove(&self.inode);
            }
        }
    }
}
