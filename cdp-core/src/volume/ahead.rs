//! Segments made ahead of their use: when, and whether their space is written or only reserved
//! (docs/decisions/0003).

use std::sync::atomic::Ordering;

use super::Volume;
use crate::error::{IoContext, Result};
use crate::format::segment::segment_file_name;
use crate::ids::BLOCK_BYTES;
use crate::journal::append::Appender;
use crate::journal::segment::{self, Fill};

/// Mean bytes per sync from which a load counts as a stream, for which segments are not pre-written.
const STREAM_BYTES_PER_SYNC: u64 = 1 << 20;
/// So many syncs within [`LOOK_NS`], with less than [`COMMIT_BYTES`] for each on the mean, are somebody who commits in
/// small steps. What nobody flushes is synced eight times meanwhile.
const COMMITS: u64 = 25;
const COMMIT_BYTES: u64 = 256 << 10;
const LOOK_NS: u64 = 250_000_000;

/// The open segment at an instant.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    ordinal: u64,
    end: u64,
    // Since it was opened.
    syncs: u64,
}

/// Looking for small commits.
#[derive(Default)]
pub(super) struct Look {
    from: Seen,
    since_ns: u64,
    // There were some in this segment.
    found: bool,
}

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

    /// A quick duty. A stream left a segment whose space is only reserved, and now somebody commits in small steps,
    /// which takes half as long again there: goes on in a written one. The old one is cut behind its seal, so that its
    /// rest is free again. Once for each stream: what follows is written ahead.
    pub(super) fn serve_commits_from_written_space(&self, now_ns: u64) -> Result<()> {
        let Some(open) = self.open_reserved() else { return Ok(()) };
        {
            let mut state = self.upkeep.lock().expect("no panics under this lock");
            let look = &mut state.look;
            let commits = open.syncs.saturating_sub(look.from.syncs);
            let bytes = open.end.saturating_sub(look.from.end);
            let is_over = now_ns.saturating_sub(look.since_ns) >= LOOK_NS;
            let is_other = open.ordinal != look.from.ordinal;
            if is_other || is_over || bytes / commits.max(1) >= COMMIT_BYTES {
                *look = Look { from: open, since_ns: now_ns, found: look.found && !is_other };
                return Ok(());
            }
            if commits < COMMITS {
                return Ok(());
            }
            look.found = true;
        }
        let mut append = self.append.lock().expect("no panics under this lock");
        let is_same = |appender: &&mut Appender| appender.segment.header.ordinal == open.ordinal;
        let Some(appender) = append.as_mut().filter(is_same) else { return Ok(()) };
        {
            let mut pool = self.pool.lock().expect("no panics under this lock");
            // If there is none, the slow duties make one.
            let Some(removed) = pool.prefer_written() else { return Ok(()) };
            self.journal_bytes.fetch_sub(removed * pool.segment_bytes(), Ordering::Relaxed);
        }
        self.roll(appender)
    }

    /// A slow duty: has a written segment ready where a stream came to rest, since small commits may follow, and
    /// where they do already.
    pub(super) fn write_segment_behind_stream(&self) -> Result<()> {
        let Some(open) = self.open_reserved() else { return Ok(()) };
        let (before, commits) = {
            let mut state = self.upkeep.lock().expect("no panics under this lock");
            (std::mem::replace(&mut state.seen_before, open), state.look.found)
        };
        let was_stream = (open.end - BLOCK_BYTES) / open.syncs.max(1) >= STREAM_BYTES_PER_SYNC;
        let rests = before.ordinal == open.ordinal && before.end == open.end;
        let is_written = self.pool.lock().expect("no panics under this lock").has_written();
        if !is_written && (commits || was_stream && rests) {
            self.make_segment(Fill::Written)?;
        }
        Ok(())
    }

    /// The open segment, if its space is only reserved and much of it is left: near its end the ordinary way
    /// is as quick.
    fn open_reserved(&self) -> Option<Seen> {
        // Asked a hundred times a second: as a rule this is all, and writers are not held up for it.
        if self.pool.lock().expect("no panics under this lock").newest_fill() == Fill::Written {
            return None;
        }
        let (ordinal, end) = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map(|appender| (appender.segment.header.ordinal, appender.end))?
        };
        if end >= self.identity.segment_bytes / 4 * 3 {
            return None;
        }
        let syncs = self.staged.lock().expect("no panics under this lock").syncs;
        Some(Seen { ordinal, end, syncs })
    }

    /// Makes a segment, if the cap allows one more. Whether it can be used.
    pub(super) fn make_segment(&self, fill: Fill) -> Result<bool> {
        let (ordinal, bytes, used) = {
            let mut pool = self.pool.lock().expect("no panics under this lock");
            if self.refuse_beyond_cap(pool.segment_bytes()).is_err() {
                return Ok(false);
            }
            (pool.claim_ordinal(), pool.segment_bytes(), self.journal_bytes())
        };
        segment::prepare(&*self.shared.files, &self.dir, ordinal, bytes, fill)?;
        let append = self.append.lock().expect("no panics under this lock");
        // A writer who could not wait made one meanwhile: then two may be one more than the cap allows.
        if self.journal_bytes() > used && self.refuse_beyond_cap(bytes).is_err() {
            let path = self.dir.join(segment_file_name(ordinal));
            self.shared.files.remove(&path).at(|| format!("removing {}", path.display()))?;
            return Ok(false);
        }
        let is_ready = self.add_to_pool_under(&append, ordinal, fill);
        if is_ready {
            self.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(is_ready)
    }

    /// A segment is there for use. Whether it came in time.
    pub(super) fn add_to_pool(&self, ordinal: u64, fill: Fill) -> bool {
        self.add_to_pool_under(&self.append.lock().expect("no panics under this lock"), ordinal, fill)
    }

    fn add_to_pool_under(&self, append: &Option<Appender>, ordinal: u64, fill: Fill) -> bool {
        let newest_used = append.as_ref().map_or(u64::MAX, |appender| appender.segment.header.ordinal);
        let mut pool = self.pool.lock().expect("no panics under this lock");
        let before = pool.ready();
        pool.add(ordinal, fill, newest_used);
        pool.ready() > before
    }
}
