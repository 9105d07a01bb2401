//! Instants that the store told to be over: its clock never goes back behind them, also not after a crash.
//!
//! A replica is told that it is complete through an instant (`COMPLETE`), also where nothing is written for hours, so that it
//! holds no group back. Records remember the timestamps that were given; nothing else remembers an instant at which none was.
//! With the process gone, and the wall clock behind (set back, or wrong after a reboot), a record could get a timestamp
//! that was told to be over. So an instant is durable in the file `time` before it is told: a little more than it, so that one write
//! does for a while.
//!
//! Legal states after a crash: an instant, of which everything told is at most as late; or a later one that nobody was told yet.
//! A clock that begins above either gives no timestamp that was promised away.

use std::io::{IoSlice, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::format::promise::{Promise, SLOT_BYTES};
use crate::ids::Timestamp;
use crate::io::{File, Files};
use crate::limits::PROMISED_AHEAD_NS;

/// Name of the file in a store.
pub const TIME_FILE: &str = "time";

/// What was told.
pub struct Promises {
    files: Arc<dyn Files>,
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    // Made with the first promise: a store that feeds nobody has none.
    file: Option<Arc<dyn File>>,
    sequence: u64,
    // Durable, so instants up to it may be told.
    through: Timestamp,
    // What was read at the opening: a process that died may have left it in the cache only.
    unsettled: Option<Promise>,
    // Nothing could be read at the opening, so nobody knows how old what stands in the slots is: it must not outlive the next
    // promise, whose sequence may be a lower one.
    is_blind: bool,
}

impl Promises {
    /// Reads what the store at `store` promised; gives what its clock begins above. A file that is damaged or cannot be read
    /// promises nothing: where the wall clock is good that is no loss, and it is no reason to serve nobody.
    pub fn open(files: Arc<dyn Files>, store: &Path) -> (Promises, Timestamp) {
        let path = store.join(TIME_FILE);
        let file = files.open(&path, true).ok();
        let mut best: Option<Promise> = None;
        for slot in 0..2u64 {
            let mut bytes = [0; SLOT_BYTES];
            if let Some(file) = &file
                && file.read_at(slot * SLOT_BYTES as u64, &mut bytes).is_ok()
                && let Some(promise) = Promise::decode(&bytes)
                && best.is_none_or(|best| best.sequence < promise.sequence)
            {
                best = Some(promise);
            }
        }
        let state = State {
            file,
            sequence: best.map_or(0, |best| best.sequence),
            through: Timestamp(0),
            unsettled: best,
            is_blind: best.is_none(),
        };
        (Promises { files, path, state: Mutex::new(state) }, best.map_or(Timestamp(0), |best| best.through))
    }

    /// How much of "everything through `at` is over", which is true now, may be told: all of it where that can be made durable,
    /// else what is.
    pub fn reach(&self, at: Timestamp) -> Timestamp {
        let mut state = self.state.lock().expect("no panics under this lock");
        if at > state.through {
            let through = Timestamp(at.0.saturating_add(PROMISED_AHEAD_NS));
            // A disk that refuses: the other site hears of completeness no further, and of records it does.
            let _ = self.write(&mut state, through);
        }
        at.min(state.through)
    }

    /// A clean stop: nothing is told any more, and the next opening need not begin ahead of the wall clock. `now` is at least
    /// as late as all that was told.
    pub fn settle(&self, now: Timestamp) {
        let mut state = self.state.lock().expect("no panics under this lock");
        if now < state.through {
            let _ = self.write(&mut state, now);
        }
    }

    fn write(&self, state: &mut State, through: Timestamp) -> Result<()> {
        let file = match state.file.clone() {
            Some(file) => file,
            None => self.create()?,
        };
        state.file = Some(file.clone());
        let write = |promise: &Promise| {
            let offset = promise.sequence % 2 * SLOT_BYTES as u64;
            file.write_at(offset, &[IoSlice::new(&promise.encode()[..])]).and_then(|()| file.sync())
        };
        // If it never reached the disk, the slot that is about to be overwritten is the only good one there.
        if let Some(best) = &state.unsettled {
            write(best)?;
            state.unsettled = None;
        }
        // One that fails may have torn its slot, and the other is then the only good one: it is tried again in the same place.
        let mut sequence = state.sequence + 1;
        write(&Promise { sequence, through })?;
        if state.is_blind {
            sequence += 1;
            write(&Promise { sequence, through })?;
            state.is_blind = false;
        }
        (state.sequence, state.through) = (sequence, through);
        Ok(())
    }

    fn create(&self) -> Result<Arc<dyn File>> {
        // One that is there and could not be read at the opening may hold promises: nothing is written over it.
        let file = self.files.create(&self.path)?;
        let made = self.fill(&*file);
        if made.is_err() {
            // Made a moment ago, it holds nothing; left there, no later try could make it.
            let _ = self.files.remove(&self.path);
        }
        made.map(|()| file)
    }

    fn fill(&self, file: &dyn File) -> Result<()> {
        // Both slots have their space from here on: a full disk is in nobody's way later.
        file.write_at(0, &[IoSlice::new(&[0; 2 * SLOT_BYTES])])?;
        file.sync()?;
        match self.path.parent() {
            Some(store) => self.files.sync_dir(store),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::{Fault, FaultKind, PowerLoss, SimDisk, When};

    fn opened(disk: &SimDisk) -> (Promises, Timestamp) {
        Promises::open(Arc::new(disk.clone()), Path::new("/"))
    }

    /// Whoever was told that an instant is over believes it for ever: the machine dies at any write, and it must not be given
    /// away again.
    #[test]
    fn what_was_told_survives_every_crash() {
        let disk = SimDisk::new(1);
        disk.record_boundaries(true);
        let mut told = vec![(disk.operations(), Timestamp(0))];
        for round in 0..4u64 {
            let (promises, _) = opened(&disk);
            for step in 1..4 {
                let at = Timestamp((10 * round + step) * PROMISED_AHEAD_NS);
                assert_eq!(promises.reach(at), at);
                assert_eq!(
                    promises.reach(Timestamp(at.0 + 5)),
                    Timestamp(at.0 + 5),
                    "no write for a moment later"
                );
                told.push((disk.operations(), Timestamp(at.0 + 5)));
            }
            if round == 2 {
                promises.settle(told[told.len() - 1].1);
            }
        }
        let mut looked = 0;
        for boundary in disk.take_boundaries() {
            // What had been told when this operation was under way.
            let known = told
                .iter()
                .rev()
                .find(|(operations, _)| *operations < boundary.operation)
                .map_or(Timestamp(0), |told| told.1);
            for seed in 0..6 {
                let disk = boundary.snapshot.mount(seed).crash_power_with(PowerLoss::seeded(seed));
                let (again, through) = opened(&disk);
                assert!(
                    through >= known,
                    "{through:?} of {known:?} before {:?} of {}",
                    boundary.what,
                    boundary.path
                );
                // A second crash, in the middle of the next promise, takes nothing of it either.
                disk.set_crash_after(1 + seed % 4, crate::io::sim::CrashAt::During);
                again.reach(Timestamp(u64::MAX / 2));
                let disk = disk.crash_power_with(PowerLoss::seeded(seed + 9));
                assert!(
                    opened(&disk).1 >= known,
                    "{known:?} before {:?} of {}, then another",
                    boundary.what,
                    boundary.path
                );
                looked += 1;
            }
        }
        assert!(looked > 100, "{looked}");
    }

    /// A disk that could not read for a moment, when the store was opened: what it showed later, an older promise with a higher
    /// sequence, won over what was told since.
    #[test]
    fn what_could_not_be_read_does_not_come_back() {
        for before in 1..6u64 {
            let disk = SimDisk::new(before);
            let (promises, _) = opened(&disk);
            for step in 1..=before {
                promises.reach(Timestamp(step * PROMISED_AHEAD_NS * 2));
            }
            drop(promises);
            disk.inject(Fault::new(FaultKind::ReadError, When::From(1)).on("time"));
            let (promises, through) = opened(&disk);
            assert_eq!(through, Timestamp(0), "the fault did not strike");
            disk.clear_faults();
            let told = promises.reach(Timestamp(100 * PROMISED_AHEAD_NS));
            assert_eq!(told, Timestamp(100 * PROMISED_AHEAD_NS));
            let (_, through) = opened(&disk.crash_power(before));
            assert!(through >= told, "{told:?} was told, and behind {before} promises {through:?} is known");
        }
    }

    /// A disk that refuses to keep it: nothing is told that a crash would take.
    #[test]
    fn what_cannot_be_kept_is_not_told() {
        let disk = SimDisk::new(2);
        let (promises, _) = opened(&disk);
        let first = promises.reach(Timestamp(1000));
        for kind in [FaultKind::WriteError, FaultKind::SyncError, FaultKind::SyncErrorPartial] {
            disk.inject(Fault::new(kind, When::From(1)));
            let later = promises.reach(Timestamp(u64::MAX / 4));
            assert!(later >= first && later.0 <= 1000 + PROMISED_AHEAD_NS, "{kind:?}: {later:?}");
            disk.clear_faults();
        }
        let last = promises.reach(Timestamp(u64::MAX / 4));
        assert_eq!(last, Timestamp(u64::MAX / 4));
        assert!(opened(&disk.crash_power(3)).1 >= last);
    }

    /// A disk that is full for a moment, just when the file is made: with a file without promises left there, nothing could be told
    /// until the next start.
    #[test]
    fn the_first_one_is_tried_again() {
        for kind in [FaultKind::WriteError, FaultKind::NameError, FaultKind::SyncError] {
            let disk = SimDisk::new(3);
            let (promises, _) = opened(&disk);
            disk.inject(Fault::new(kind, When::From(1)));
            assert_eq!(promises.reach(Timestamp(1000)), Timestamp(0), "{kind:?}");
            disk.clear_faults();
            assert_eq!(promises.reach(Timestamp(1000)), Timestamp(1000), "{kind:?}");
            assert!(opened(&disk.crash_power(4)).1 >= Timestamp(1000), "{kind:?}");
        }
    }
}
