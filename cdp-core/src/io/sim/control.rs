//! What a test does to a simulated disk: crash it, damage it, limit it, look into it.

use std::io;
use std::path::Path;

use super::SimDisk;
use super::boundary::{Boundary, CrashAt, Snapshot};
use super::chance::Chance;
use super::clock::SimClock;
use super::faults::{Fault, FaultCounts};
use super::file::hold;
use super::image::SECTOR_BYTES;
use super::inode::Inode;
use super::machine::{Machine, ReadCount};
use super::names::Face;
use super::power::PowerLoss;

/// Crashes.
impl SimDisk {
    /// The process dies: the cache stays, all handles and locks are gone. Returns the next life's handle.
    #[must_use = "the old handle is dead"]
    pub fn crash_process(&self) -> SimDisk {
        self.restart(|machine| machine.counts.process_deaths += 1)
    }

    /// The power goes, in a style drawn from the seed. Returns the next life's handle.
    #[must_use = "the old handle is dead"]
    pub fn crash_power(&self, seed: u64) -> SimDisk {
        self.crash_power_with(PowerLoss::seeded(seed))
    }

    /// The power goes, in just this style. Returns the next life's handle.
    #[must_use = "the old handle is dead"]
    pub fn crash_power_with(&self, plan: PowerLoss) -> SimDisk {
        self.restart(|machine| {
            machine.counts.power_losses += 1;
            machine.state.lose_power(&plan, &mut machine.counts);
        })
    }

    /// The disk is again as it was when the snapshot was taken. Returns the next life's handle.
    #[must_use = "the old handle is dead"]
    pub fn restore(&self, snapshot: &Snapshot) -> SimDisk {
        self.restart(|machine| machine.state = snapshot.state.clone())
    }

    fn restart(&self, change: impl FnOnce(&mut Machine)) -> SimDisk {
        let mut machine = hold(&self.shared);
        machine.restart();
        change(&mut machine);
        SimDisk { shared: self.shared.clone(), generation: machine.generation }
    }

    /// The n-th changing or syncing operation from now (1 is the next) fails, and with it every later operation
    /// of any kind, until [`SimDisk::crash_process`] or [`SimDisk::crash_power`].
    pub fn set_crash_after(&self, n: u64, at: CrashAt) {
        hold(&self.shared).set_crash(n, at);
    }

    /// Takes back [`SimDisk::set_crash_after`], if it has not come about.
    pub fn clear_crash(&self) {
        hold(&self.shared).clear_crash();
    }

    /// Whether the planned crash has come about and the disk is down.
    pub fn is_crashed(&self) -> bool {
        hold(&self.shared).crashed
    }

    /// How many operations there were that change something or make it durable, those that failed included.
    pub fn operations(&self) -> u64 {
        hold(&self.shared).operations
    }

    /// From now on keeps a snapshot of the disk before every such operation, and one in the middle of each
    /// write and sync; or stops that.
    pub fn record_boundaries(&self, on: bool) {
        hold(&self.shared).boundaries = on.then(Vec::new);
    }

    /// The boundaries so far, oldest first; recording goes on.
    pub fn take_boundaries(&self) -> Vec<Boundary> {
        hold(&self.shared).boundaries.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All that the disk holds now, unsynced effects included.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { state: hold(&self.shared).state.clone() }
    }
}

/// Faults.
impl SimDisk {
    /// Adds to the fault plan. Plans outlive crashes.
    pub fn inject(&self, fault: Fault) {
        hold(&self.shared).faults.add(fault);
    }

    /// Empties the fault plan. What has struck stays.
    pub fn clear_faults(&self) {
        hold(&self.shared).faults.clear();
    }

    /// What went wrong so far.
    pub fn counts(&self) -> FaultCounts {
        hold(&self.shared).counts
    }

    /// The disk has so many bytes, `None` for no limit. Files take 4-KiB blocks as they are written or
    /// allocated; writing where a file has its blocks never runs out.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        hold(&self.shared).capacity = bytes;
    }

    /// Likewise, and nobody is told: a quota, or others who take what a filesystem says to be free.
    pub fn set_quota(&self, bytes: Option<u64>) {
        hold(&self.shared).quota = bytes;
    }

    /// The clock that slow operations advance.
    pub fn set_clock(&self, clock: SimClock) {
        hold(&self.shared).clock = Some(clock);
    }

    /// The cache forgets about half of its clean pages, those that the seed chooses: reads show what the disk
    /// has. Unsynced pages stay. Returns how many were forgotten.
    pub fn evict(&self, seed: u64) -> u64 {
        let mut chance = Chance::new(seed);
        self.evict_where(|| chance.percent(50))
    }

    /// The cache forgets all its clean pages.
    pub fn evict_all(&self) -> u64 {
        self.evict_where(|| true)
    }

    fn evict_where(&self, mut pick: impl FnMut() -> bool) -> u64 {
        let mut machine = hold(&self.shared);
        let evicted = machine.state.inodes_mut().map(|file| file.evict(&mut pick)).sum();
        machine.counts.evicted_pages += evicted;
        evicted
    }

    /// Flips the bits of `mask` in the byte at `offset`, in the cache and on the disk.
    /// `UnexpectedEof` behind the end of the file.
    pub fn rot(&self, path: impl AsRef<Path>, offset: u64, mask: u8) -> io::Result<()> {
        self.damage(path, |file, counts| {
            if offset >= file.cached.len() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            for image in [&mut file.cached, &mut file.durable] {
                let mut byte = [0];
                image.read(offset, &mut byte);
                image.write(offset, &[byte[0] ^ mask]);
                image.clip();
            }
            counts.rotten_bytes += 1;
            Ok(())
        })
    }

    /// Reads that touch these bytes answer EIO until their sectors are written again.
    pub fn make_unreadable(&self, path: impl AsRef<Path>, offset: u64, len: u64) -> io::Result<()> {
        self.damage(path, |file, _| {
            file.unreadable.extend(offset / SECTOR_BYTES..offset.saturating_add(len).div_ceil(SECTOR_BYTES));
            Ok(())
        })
    }

    /// Changes a whole small file behind everybody's back, in the cache and on the disk. What was unsynced in
    /// it becomes durable as it is left here.
    pub fn mutate(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.touch(&path)?;
        self.damage(path, |file, _| {
            let before = file.cached.to_vec();
            let mut after = before.clone();
            change(&mut after);
            file.sync_away();
            file.cached.set_len(after.len() as u64);
            for (index, page) in after.chunks(super::image::PAGE_BYTES as usize).enumerate() {
                let at = index * super::image::PAGE_BYTES as usize;
                if before.get(at..at + page.len()) != Some(page) {
                    file.cached.write(at as u64, page);
                }
            }
            file.durable = file.cached.clone();
            Ok(())
        })
    }

    /// Cuts or extends a file behind everybody's back, in the cache and on the disk.
    pub fn truncate(&self, path: impl AsRef<Path>, len: u64) -> io::Result<()> {
        self.touch(&path)?;
        self.damage(path, |file, _| {
            file.sync_away();
            file.cached.set_len(len);
            file.durable = file.cached.clone();
            Ok(())
        })
    }

    /// Takes a file away, in the cache and on the disk. Those who have it open still see it.
    pub fn disappear(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut machine = hold(&self.shared);
        machine.state.file(path.as_ref(), Face::Cached)?;
        let place = machine.state.names.place(path.as_ref())?;
        std::sync::Arc::make_mut(&mut machine.state.names).erase(&place);
        Ok(())
    }

    /// Unlike rot, a change by somebody leaves its trace in the file's ctime.
    fn touch(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let machine = &mut *hold(&self.shared);
        let inode = machine.state.file(path.as_ref(), Face::Cached)?;
        machine.state.touch(inode)
    }

    fn damage<T>(
        &self,
        path: impl AsRef<Path>,
        change: impl FnOnce(&mut Inode, &mut FaultCounts) -> io::Result<T>,
    ) -> io::Result<T> {
        let machine = &mut *hold(&self.shared);
        let inode = machine.state.file(path.as_ref(), Face::Cached)?;
        change(machine.state.inode_mut(inode)?, &mut machine.counts)
    }
}

/// Looking in; none of this counts as reading.
impl SimDisk {
    /// What a process would read.
    pub fn contents(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let machine = hold(&self.shared);
        let inode = machine.state.file(path.as_ref(), Face::Cached)?;
        Ok(machine.state.inode(inode)?.cached.to_vec())
    }

    /// What would be left if the power went now and nothing unsynced survived; `NotFound` if not even the name.
    pub fn durable_contents(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let machine = hold(&self.shared);
        let inode = machine.state.file(path.as_ref(), Face::Durable)?;
        Ok(machine.state.inode(inode)?.durable.to_vec())
    }

    /// Paths of all files, sorted by directory and name.
    pub fn paths(&self) -> Vec<String> {
        hold(&self.shared).state.names.files(Face::Cached).into_iter().map(|(path, _)| path).collect()
    }

    /// How many effects and changes of names a power loss could undo now.
    pub fn unsynced(&self) -> usize {
        hold(&self.shared).state.unsynced()
    }

    /// Bytes of space taken by files that have a name.
    pub fn used_bytes(&self) -> u64 {
        hold(&self.shared).state.used()
    }

    /// Reads of all files since the last [`SimDisk::reset_reads`].
    pub fn reads(&self) -> ReadCount {
        hold(&self.shared).reads
    }

    /// Reads of one file since then; nothing if there is no such file.
    pub fn reads_of(&self, path: impl AsRef<Path>) -> ReadCount {
        let machine = hold(&self.shared);
        let inode = machine.state.file(path.as_ref(), Face::Cached);
        inode.ok().and_then(|inode| machine.reads_of.get(&inode).copied()).unwrap_or_default()
    }

    /// Counts reads from 0 again.
    pub fn reset_reads(&self) {
        let mut machine = hold(&self.shared);
        machine.reads = ReadCount::default();
        machine.reads_of.clear();
    }
}
