//! A volume that found no space when it was opened serves its past and refuses writes. Once there is space again it is
//! opened anew, so that nobody has to restart a server whose disk was full when it started.
//!
//! That happens only while nobody has the volume in hand, no connection, view or clone: what they read from stays as it
//! is until they let go of it.

use std::sync::Arc;

use super::Store;
use crate::volume::Volume;
use crate::volume::open::Accept;

/// Segments of which there must be room: the one that is begun, and one ahead.
const SEGMENTS_NEEDED: u64 = 2;

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
        self.open_by_dir(&name, &dir, &|_| Accept::default(), 0);
        // It may be what a promotion waited for; whatever is still in the way is said by the volumes.
        let _ = self.finish_promotion();
    }
}
