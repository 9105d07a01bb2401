//! From staged to durable: syncs, what to do when one fails, and going on to the next segment.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::open::measure;
use super::parts::{FreshParts, Frozen, Part, PartList};
use super::{Volume, parts};
use crate::error::{Error, IoContext, Kind, Result};
use crate::history::retention::AtCap;
use crate::ids::*;
use crate::journal::append::{Appender, Position, Verbatim};
use crate::journal::reappend::{self, Cut};
use crate::journal::segment::{Fill, Segment};
use crate::journal::{pool, scan};

impl Volume {
    /// Returns when everything up to `target` survives power loss.
    pub(super) fn sync_through(&self, target: Lsn) -> Result<()> {
        self.commit.wait(target, || self.sync_round())
    }

    /// One sync of what is staged now. Only the leader of a commit round is here.
    fn sync_round(&self) -> Result<Lsn> {
        let (through, dirty, bytes) = {
            let staged = self.staged.lock().expect("no panics under this lock");
            if let Some(error) = &staged.lost_sync {
                return Err(error.duplicate());
            }
            (staged.lsn, staged.dirty.clone(), staged.bytes)
        };
        let began_ns = self.shared.clock.elapsed_ns();
        for segment in &dirty {
            if let Err(error) = segment.file.sync() {
                let error = Error::io(error, format!("syncing {}", segment.path.display()));
                let mut append = self.append.lock().expect("no panics under this lock");
                self.leave_poisoned_segment(&mut append, &error);
                return Err(error);
            }
        }
        let newest = dirty.last().map_or(0, |segment| segment.header.ordinal);
        let mut staged = self.staged.lock().expect("no panics under this lock");
        // The open segment stays: the next record makes it dirty again.
        staged.dirty.retain(|segment| segment.header.ordinal >= newest);
        staged.bytes = staged.bytes.saturating_sub(bytes);
        staged.syncs += 1;
        // What came while this was under way has waited since then at most.
        staged.since_ns = (staged.lsn > through).then_some(began_ns);
        Ok(through)
    }

    /// Takes the next segment into use. The caller holds the append lock.
    ///
    /// Legal states after a crash: the new segment's header may or may not be there; without it the journal
    /// ends with the old segment. Its first records count only behind the old one's last record.
    pub(super) fn roll(&self, appender: &mut Appender) -> Result<()> {
        let cut = Cut {
            predecessor: appender.segment.header.id,
            predecessor_end: appender.end,
            position: appender.position,
            volume: self.identity.journal_id(),
            incarnation: self.incarnation,
            previous_incarnation: self.previous_incarnation,
            epoch: appender.epoch,
        };
        let mut pool = self.pool.lock().expect("no panics under this lock");
        let is_made_now = pool.ready() == 0;
        if is_made_now && !self.may_pass_cap(appender.position.lsn) {
            self.refuse_beyond_cap(pool.segment_bytes())
                .inspect_err(|_| self.refused_for_room.store(true, Ordering::Relaxed))?;
        }
        self.refused_for_room.store(false, Ordering::Relaxed);
        // Nobody waits for zeros to be written: if none is ready, space is only reserved.
        let next = pool.take(reappend::next_header(&cut, self.shared.clock.random()), Fill::Reserved)?;
        drop(pool);
        if is_made_now {
            self.journal_bytes.fetch_add(next.header.bytes, Ordering::Relaxed);
        }
        if let Err(error) = pool::publish(&next) {
            self.withdraw(&next, &error);
            return Err(error);
        }
        let frozen = Frozen { last: appender.position, end: appender.end, may_seal: true, seal_hash: None };
        self.parts.change(|parts| {
            if let Some(open) = parts.last() {
                open.frozen.set(frozen).expect("the open part is not frozen yet");
            }
            parts.push(Arc::new(Part::open(next.clone(), appender.position)));
        });
        {
            let mut staged = self.staged.lock().expect("no panics under this lock");
            staged.dirty.push(next.clone());
            staged.syncs = 0;
        }
        *appender = Appender::new(next, BLOCK_BYTES, appender.position, appender.epoch);
        self.note_memory();
        Ok(())
    }

    /// The header of a segment could not be written, but may stand there all the same: recovery would then cut
    /// its predecessor here. It has to go before anything more is appended behind that cut.
    fn withdraw(&self, segment: &Segment, cause: &Error) {
        let files = &self.shared.files;
        match files.remove(&segment.path).and_then(|()| files.sync_dir(&self.dir)) {
            Ok(()) => {
                self.forget_bytes(segment.header.bytes);
                self.note_error(format!("{cause}; that segment was removed, service goes on"));
            }
            Err(error) => {
                let reason = format!("{cause}, and that segment could not be removed: {error}");
                self.note_error(reason.clone());
                self.become_read_only(
                    reason,
                    "check the disk under the store, then restart the server: recovery keeps everything that was synced",
                );
            }
        }
    }

    /// Behind a rollback nothing of the branch that was left can be folded until the segment that ends with the
    /// rollback is full, which takes the next one: where the oldest history may go for it, that one may pass the
    /// cap, as long as the disk has room for it.
    fn may_pass_cap(&self, newest: Lsn) -> bool {
        let drops = self.retention().at_cap == AtCap::DropOldest;
        let is_behind_rollback = newest > Lsn::ZERO && newest == self.rolled_back();
        let has_space = |space: crate::io::Space| space.available > 2 * self.identity.segment_bytes;
        drops && is_behind_rollback && self.shared.files.space(&self.dir).is_ok_and(has_space)
    }

    /// An error before the filesystem is full, or the cap the user chose is passed.
    pub(super) fn refuse_beyond_cap(&self, more_bytes: u64) -> Result<()> {
        let (used, cap) = (self.journal_bytes(), self.journal_cap_bytes()?);
        if used + more_bytes > cap {
            let context = format!(
                "volume {}: the journal holds {used} bytes of at most {cap}, no room for another segment",
                self.identity.name
            );
            let hint = "free space on the store's filesystem or raise the journal cap; writing then goes on";
            let error = Error::new(Kind::NoSpace, context);
            return Err(match self.held_by() {
                Some(pin) => error.hint(format!("{:?} is held by {}; {hint}", pin.lsn, pin.holder)),
                None => error.hint(hint),
            });
        }
        Ok(())
    }

    /// After a failed write or sync nothing more goes to that segment: what was not synced is read back,
    /// checked, and appended again to a fresh segment. If that fails the volume takes no more writes.
    pub(super) fn leave_poisoned_segment(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        cause: &Error,
    ) {
        let Some(appender) = append.take() else {
            self.give_up_syncing(cause);
            return;
        };
        match self.reappend_unsynced(&appender) {
            Ok(fresh) => {
                let lsn = fresh.position.lsn;
                let mut staged = self.staged.lock().expect("no panics under this lock");
                staged.dirty = vec![fresh.segment.clone()];
                staged.bytes = 0;
                staged.since_ns = None;
                drop(staged);
                **append = Some(fresh);
                // A segment may have been made for it. A wrong sum would refuse writes that have room.
                if let Ok(bytes) = measure(&self.shared, &self.dir) {
                    self.journal_bytes.store(bytes, Ordering::Relaxed);
                }
                self.note_error(format!(
                    "{cause}; what was not synced was appended again to a fresh segment and synced, through {lsn:?}: nothing is lost, service goes on"
                ));
            }
            Err(error) => {
                self.give_up_syncing(cause);
                self.note_error(format!("{cause}; appending again failed: {error}"));
                self.become_read_only(
                    format!("{cause}, and what was not synced could not be appended again: {error}"),
                    "check the disk under the store, then restart the server: recovery keeps everything that was synced",
                );
            }
        }
    }

    /// From now on every flush of what is not durable yet fails: a second sync of the file would succeed and
    /// prove nothing.
    fn give_up_syncing(&self, cause: &Error) {
        let mut staged = self.staged.lock().expect("no panics under this lock");
        staged.lost_sync.get_or_insert_with(|| cause.duplicate());
    }

    fn reappend_unsynced(&self, appender: &Appender) -> Result<Appender> {
        let durable = self.commit.durable();
        let list = self.parts.list();
        let from =
            list.partition_point(|part| part.frozen.get().is_some_and(|frozen| frozen.last.lsn <= durable));
        let poisoned = list.get(from).ok_or_else(|| Error::new(Kind::Io, "no segment is open"))?;
        let kept = scan::scan(&poisoned.segment, poisoned.before, durable, &mut |_| {})
            .at(|| format!("reading {} back", poisoned.segment.path.display()))?;
        if kept.position.lsn != durable {
            let context = format!("{durable:?} was synced but cannot be read back");
            return Err(Error::new(Kind::Damaged, context));
        }
        let in_front = from.checked_sub(1).map(|at| &list[at]);
        let (predecessor, predecessor_end) = if durable > poisoned.before.lsn {
            (poisoned.segment.header.id, kept.end)
        } else {
            let end = in_front.and_then(|part| part.frozen.get()).map_or(0, |frozen| frozen.end);
            let base = self.base_point().segment;
            (in_front.map_or(base, |part| part.segment.header.id), end)
        };
        let cut = Cut {
            predecessor,
            predecessor_end,
            position: kept.position,
            volume: self.identity.journal_id(),
            incarnation: self.incarnation,
            previous_incarnation: self.previous_incarnation,
            epoch: appender.epoch,
        };
        let mut fresh_parts = FreshParts::behind(kept.position);
        let mut pool = self.pool.lock().expect("no panics under this lock");
        let random = || self.shared.clock.random();
        let tail_parts = &list[from..];
        let fresh = reappend::reappend(
            cut,
            &mut pool,
            &random,
            &mut |sink| read_tail(tail_parts, durable, sink),
            &mut fresh_parts,
            Fill::Reserved,
        )?;
        drop(pool);
        if fresh.position.lsn != appender.position.lsn {
            let context =
                format!("only {:?} of {:?} could be read back", fresh.position.lsn, appender.position.lsn);
            return Err(Error::new(Kind::Damaged, context));
        }
        let keeps_front = durable > poisoned.before.lsn;
        let front = keeps_front.then(|| self.rebuild_cut_part(poisoned, durable)).transpose()?;
        self.parts.change(|parts| {
            parts.truncate(from);
            parts.extend(front);
            parts.extend(fresh_parts.finish());
        });
        self.commit.advance(fresh.position.lsn);
        Ok(fresh)
    }

    /// The part anew, with the records up to `last` only.
    fn rebuild_cut_part(&self, part: &Part, last: Lsn) -> Result<Arc<Part>> {
        parts::rebuild(&part.segment, part.before, last, false).map(Arc::new)
    }

    /// The parts now, for those who walk over history.
    pub fn part_list(&self) -> PartList {
        self.parts.list()
    }
}

/// Hands every record behind `after` to `sink`, in order, read back from the segments and checked.
fn read_tail(parts: &[Arc<Part>], after: Lsn, sink: &mut dyn FnMut(Verbatim) -> Result<()>) -> Result<()> {
    for part in parts {
        let last = part.last_lsn();
        read_records(&part.segment, part.before, after, last, sink)?;
    }
    Ok(())
}

/// Hands the records `after + 1 ..= last` of a segment to `sink`. Damaged payload is an error.
pub(crate) fn read_records(
    segment: &Segment,
    before: Position,
    after: Lsn,
    last: Lsn,
    sink: &mut dyn FnMut(Verbatim) -> Result<()>,
) -> Result<()> {
    let mut outcome = ControlFlow::Continue(());
    let scan = scan::scan(segment, before, last, &mut |found| {
        if outcome.is_break() || found.header.lsn <= after {
            return;
        }
        let mut crcs = Vec::new();
        let read = scan::read_payload(segment, found.header, found.payload_block, &mut crcs)
            .at(|| format!("reading {} back", segment.path.display()))
            .and_then(|payload| {
                payload.ok_or_else(|| {
                    Error::new(Kind::Damaged, format!("the payload of {:?} is damaged", found.header.lsn))
                })
            })
            .and_then(|payload| sink(Verbatim { header: *found.header, payload, crcs }));
        if let Err(error) = read {
            outcome = ControlFlow::Break(error);
        }
    });
    if let ControlFlow::Break(error) = outcome {
        return Err(error);
    }
    let scan = scan.at(|| format!("reading {} back", segment.path.display()))?;
    if scan.position.lsn != last {
        let context = format!(
            "{} gives records up to {:?} only, {last:?} was expected",
            segment.path.display(),
            scan.position.lsn
        );
        return Err(Error::new(Kind::Damaged, context));
    }
    Ok(())
}
