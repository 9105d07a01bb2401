//! Segments made ahead of their use: when, and whether their space is written or only reserved
//! (docs/decisions/0003).

use std::sync::atomic::Ordering;

use super::Volume;
use crate::error::Result;
use crate::ids::BLOCK_BYTES;
use crate::journal::segment::{self, Fill};

/// Mean bytes per sync from which a load counts as a stream, for which segments are not pre-written.
const STREAM_BYTES_PER_SYNC: u64 = 1 << 20;
/// So many syncs from one call of [`Volume::maintain`] to the next, with less than this for each on the mean, are
/// somebody who commits in small steps. What nobody flushes is synced four or eight times meanwhile.
const COMMITS: u64 = 25;
const COMMIT_BYTES: u64 = 256 << 10;

impl Volume {
    /// Makes the next segment when half of the open one is used.
    pub(super) fn make_segment_ahead(&self) -> Result<()> {
        let fill = {
            let append = self.append.lock().expect("no panics under this lock");
            let Some(appender) = append.as_ref() else { return Ok(()) };
            let used = appender.end - BLOCK_BYTES;
            if used * 2 < self.identity.segment_bytes {
                return Ok(());
            }
            let syncs = self.staged.lock().expect("no panics under this lock").syncs;
            if used / syncs.max(1) >= STREAM_BYTES_PER_SYNC { Fill::Reserved } else { Fill::Written }
        };
        if self.pool.lock().expect("no panics under this lock").ready() == 0 {
            self.make_segment(fill)?;
        }
        Ok(())
    }

    /// A stream left a segment whose space is only reserved, and now somebody commits in small steps, which takes
    /// half as long again there: goes on in a written one. The old one is cut behind its seal, so that its rest
    /// is free again. Once for each stream: what follows is written ahead.
    pub(super) fn serve_commits_from_written_space(&self) -> Result<()> {
        let (ordinal, end) = {
            let append = self.append.lock().expect("no panics under this lock");
            let Some(appender) = append.as_ref() else { return Ok(()) };
            (appender.segment.header.ordinal, appender.end)
        };
        let syncs = self.staged.lock().expect("no panics under this lock").syncs;
        let before = {
            let mut state = self.upkeep.lock().expect("no panics under this lock");
            std::mem::replace(&mut state.commits_before, (ordinal, end, syncs))
        };
        let (bytes, commits) = (end.saturating_sub(before.1), syncs.saturating_sub(before.2));
        let are_small = commits >= COMMITS && bytes / commits < COMMIT_BYTES;
        // Near its end the ordinary way is as quick.
        let has_room = end < self.identity.segment_bytes / 4 * 3;
        let (is_reserved, has_written) = {
            let pool = self.pool.lock().expect("no panics under this lock");
            (pool.newest_fill() == Fill::Reserved, pool.has_written())
        };
        if before.0 != ordinal || !are_small || !has_room || !is_reserved {
            return Ok(());
        }
        if !has_written && !self.make_segment(Fill::Written)? {
            return Ok(());
        }
        let mut append = self.append.lock().expect("no panics under this lock");
        let Some(appender) = append.as_mut().filter(|appender| appender.segment.header.ordinal == ordinal)
        else {
            return Ok(());
        };
        {
            let mut pool = self.pool.lock().expect("no panics under this lock");
            let removed = pool.prefer_written().unwrap_or(0);
            self.journal_bytes.fetch_sub(removed * pool.segment_bytes(), Ordering::Relaxed);
        }
        self.roll(appender)
    }

    /// Makes a segment, if the cap allows one more. Whether it can be used.
    fn make_segment(&self, fill: Fill) -> Result<bool> {
        let (ordinal, bytes) = {
            let mut pool = self.pool.lock().expect("no panics under this lock");
            if self.refuse_beyond_cap(pool.segment_bytes()).is_err() {
                return Ok(false);
            }
            (pool.claim_ordinal(), pool.segment_bytes())
        };
        segment::prepare(&*self.shared.files, &self.dir, ordinal, bytes, fill)?;
        let is_ready = self.add_to_pool(ordinal, fill);
        if is_ready {
            self.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(is_ready)
    }

    /// A segment is there for use. Whether it came in time.
    pub(super) fn add_to_pool(&self, ordinal: u64, fill: Fill) -> bool {
        let append = self.append.lock().expect("no panics under this lock");
        let newest_used = append.as_ref().map_or(u64::MAX, |appender| appender.segment.header.ordinal);
        let mut pool = self.pool.lock().expect("no panics under this lock");
        let before = pool.ready();
        pool.add(ordinal, fill, newest_used);
        pool.ready() > before
    }
}
