//! A volume that found no space when it was opened serves its past and refuses writes. Once there is space again it is
//! opened anew, so that nobody has to restart a server whose disk was full when it started.
//!
//! That happens only while nobody has the volume in hand, no connection, view or clone: what they read from stays as it
//! is until they let go of it.
//!
//! A volume that could not be opened at all because the storage answered with an error, or that got its name and then
//! could not be opened, is tried again now and then: a cable that is back in its place needs no restart either. Damage,
//! and whatever somebody has to decide, waits for somebody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::clones::When;
use super::{Store, UNFINISHED_PREFIX, VOLUMES_DIR};
use crate::error::{Error, IoContext, Kind, Result};
use crate::volume::Volume;

/// Segments of which there must be room: the one that is begun, and one ahead.
const SEGMENTS_NEEDED: u64 = 2;
/// What could not be opened is tried again after so long, in nanoseconds.
const RETRY_NS: u64 = 30 * 1_000_000_000;

impl Store {
    /// A slow duty.
    pub(super) fn reopen_where_space_is_back(&self) {
        let lacking = self.volumes().into_iter().filter(|volume| volume.lacks_space());
        for volume in lacking.collect::<Vec<_>>() {
            let needed = SEGMENTS_NEEDED * volume.identity().segment_bytes;
            let space = self.shared.files.space(volume.dir());
            if space.is_ok_and(|space| space.available >= needed) {
                self.reopen(volume);
            }
        }
    }

    fn reopen(&self, volume: Arc<Volume>) {
        let _changing = self.changing.lock().expect("no panics under this lock");
        let (name, dir) = (volume.name().to_owned(), volume.dir().to_owned());
        drop(volume);
        {
            let mut volumes = self.volumes.lock().expect("no panics under this lock");
            // Under this lock nobody else gets hold of it.
            if volumes.get(&name).is_none_or(|volume| Arc::strong_count(volume) > 1) {
                return;
            }
            volumes.remove(&name);
        }
        self.open_by_dir(&name, &dir, When::Live);
        // It may be what a promotion waited for; whatever is still in the way is said by the volumes.
        let _ = self.finish_promotion();
    }

    /// A slow duty.
    pub(super) fn retry_unopened(&self) -> Result<()> {
        let now_ns = self.shared.clock.elapsed_ns();
        if now_ns.saturating_sub(self.unopened_looked_ns.load(Ordering::Relaxed)) < RETRY_NS {
            return Ok(());
        }
        self.unopened_looked_ns.store(now_ns, Ordering::Relaxed);
        self.settle_all_withheld();
        if self.unopened()?.is_empty() {
            return Ok(());
        }
        let _changing = self.changing.lock().expect("no panics under this lock");
        let _naming = self.naming.lock().expect("no panics under this lock");
        let dir = self.path.join(VOLUMES_DIR);
        // The name itself may be what could not be synced.
        self.shared.files.sync_dir(&dir).at(|| format!("syncing {}", dir.display()))?;
        for name in self.unopened()? {
            self.open_by_dir(&name, &dir.join(&name), When::Live);
        }
        // As above.
        let _ = self.finish_promotion();
        Ok(())
    }

    /// Volumes that stand there and are not open, for a reason that may pass.
    fn unopened(&self) -> Result<Vec<String>> {
        let dir = self.path.join(VOLUMES_DIR);
        let entries = self.shared.files.list(&dir).at(|| format!("listing {}", dir.display()))?;
        let may_pass = |error: &Error| matches!(error.kind(), Kind::Io | Kind::NoSpace);
        let volumes = self.volumes.lock().expect("no panics under this lock");
        let failed = self.failed.lock().expect("no panics under this lock");
        // Of these it is not settled yet which copy has the name.
        let withheld = self.withheld.lock().expect("no panics under this lock");
        let is_unopened = |name: &String| {
            let is_free = !volumes.contains_key(name) && !withheld.contains(name);
            is_free && failed.get(name).is_none_or(may_pass)
        };
        let dirs = entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name);
        Ok(dirs.filter(|name| !name.starts_with(UNFINISHED_PREFIX) && is_unopened(name)).collect())
    }
}
