//! What the index of a volume takes of memory, and what it gives back when that is too much.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::parts::{Part, PartIndex};
use crate::error::Result;
use crate::index::Used;
use crate::limits::LIVE_BYTES_SHORT;

/// What a segment takes in lists, whatever is in it: the part, the segment's header, its path and file.
const SEGMENT_BYTES_LISTED: usize = 1024;

impl Volume {
    /// What its index takes now.
    pub fn memory_used(&self) -> Used {
        let mut used = Used::default();
        let list = self.parts.list();
        let mut before = None;
        for part in list.iter() {
            used.runs_bytes += SEGMENT_BYTES_LISTED;
            match &part.index {
                PartIndex::Live(_) => used.parts_bytes += part.memory_bytes(),
                // Neighbours share a merged one.
                PartIndex::Run(run) if before.is_none_or(|before| !Arc::ptr_eq(before, run)) => {
                    used.runs_bytes += run.memory_bytes();
                    before = Some(run);
                }
                PartIndex::Run(_) => {}
            }
            if let Some(repaired) = part.repaired.get() {
                used.parts_bytes += repaired.memory_bytes();
            }
            if let Some(fold) = &part.segment.fold {
                used.names_bytes += size_of_val(fold.points.as_slice());
            }
        }
        used.names_bytes += self.names_memory_bytes();
        // One that is being worked on was looked at before.
        used.merges_bytes = match self.merging.try_lock() {
            Ok(merging) => merging.memory_bytes(),
            Err(_) => 0,
        };
        used.merges_bytes += self.thinning_bytes.load(Ordering::Relaxed);
        used
    }

    /// Tells the store what it takes.
    pub fn note_memory(&self) {
        self.memory.set(self.memory_used());
    }

    /// Gives full segments their runs, which take little memory.
    pub(super) fn write_runs_ahead(&self) -> Result<()> {
        let list = self.parts.list();
        for part in list.iter().filter(|part| waits_for_its_run(part)) {
            self.write_run_ahead(part)?;
        }
        Ok(())
    }

    /// Where parts take too much memory, the open segment, too, is to get its run soon, if its part is not small.
    pub(super) fn begin_segment_for_memory(&self) {
        let memory = &self.shared.memory;
        let is_large = || self.parts.list().last().is_some_and(|open| open.memory_bytes() > LIVE_BYTES_SHORT);
        if !memory.is_short_of_parts() || !is_large() {
            return;
        }
        let mut append = self.append.lock().expect("no panics under this lock");
        if let Some(appender) = append.as_mut()
            && is_large()
        {
            // If there is no next segment to be had, memory has to give.
            let _ = self.roll(appender);
        }
    }

    /// Where parts take too much memory, whoever writes gives those of this volume that are full their runs first. Holds no lock.
    pub(super) fn wait_for_memory(&self) -> Result<()> {
        let waits = || self.parts.list().iter().rev().skip(1).any(|part| waits_for_its_run(part));
        if !self.shared.memory.is_short_of_parts() || !waits() {
            return Ok(());
        }
        let _duties = self.duties.lock().expect("no panics under this lock");
        // It may have been closed meanwhile, and its files be another instance's; or it takes no more writes.
        self.refuse_unless_healthy()?;
        let written = self.write_runs_ahead();
        self.note_memory();
        if let Err(error) = written {
            // Upkeep tries again.
            self.note_error(format!("writing the index of a full segment: {error}"));
        }
        Ok(())
    }
}

fn waits_for_its_run(part: &Part) -> bool {
    part.run().is_none()
        && part.frozen.get().is_some_and(|frozen| frozen.may_seal && frozen.seal_hash.is_none())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::{Change, Device};
    use crate::error::Kind;
    use crate::ids::*;
    use crate::io::sim::{SimClock, SimDisk};
    use crate::store::{CreateOptions, Store};

    // Who waits for upkeep may find the volume closed, and its files another instance's, or given up for a bad disk: writing runs
    // there would be writing into somebody else's directory.
    #[test]
    fn who_waited_for_upkeep_looks_again_before_he_writes() {
        let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
        Store::create(&disk, &clock, Path::new("/s")).unwrap();
        let store = Store::open(Arc::new(disk.clone()), Arc::new(clock), Path::new("/s"), "a test").unwrap();
        let options = CreateOptions { segment_bytes: 64 << 10, ..CreateOptions::new(1 << 20) };
        let volume = store.create_volume("disk", &options, None).unwrap();
        for number in 1..40u8 {
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &[number; 4096] }], &mut results);
            results.remove(0).unwrap();
        }
        let waiting = || volume.parts.list().iter().filter(|part| waits_for_its_run(part)).count();
        let before = waiting();
        assert!(before > 1);
        let others = volume.shared.memory.share();
        others.set(Used { parts_bytes: 1 << 40, ..Used::default() });
        volume.become_read_only("a bad disk".to_owned(), "");
        assert_eq!(volume.wait_for_memory().unwrap_err().kind(), Kind::ReadOnly);
        assert_eq!(waiting(), before, "something was written");
    }
}
