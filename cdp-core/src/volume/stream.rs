//! The journal as a stream: durable records in LSN order to read on from any of them, and records of another store to
//! append as they are.
//!
//! The chain value of a record depends on the records alone, not on segments and batches: so two stores that hold the
//! same history agree on it, whatever their files look like, and a stream is joined where they agree.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::parts::{OpenPart, part_of};
use super::pins::PinGuard;
use super::role::Role;
use super::{Volume, read_visible};
use crate::device::{Device, Read};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::epoch::EpochPayload;
use crate::format::marker::{MarkerClass, MarkerPayload};
use crate::format::record::{RecordHeader, RecordKind, block_crcs, chain_value, payload_crc};
use crate::format::turn::Turn;
use crate::history::course::TurnAt;
use crate::history::epochs::Epochs;
use crate::history::point::Timeline;
use crate::ids::*;
use crate::journal::append::{Appender, Position, Verbatim};
use crate::journal::follow::Follow;
use crate::journal::scan;

impl Verbatim {
    /// A record from outside, if its payload is the one that its header tells of.
    pub fn checked(header: RecordHeader, payload: Vec<u8>) -> Option<Verbatim> {
        if payload.len() != header.payload_bytes as usize {
            return None;
        }
        let mut crcs = Vec::new();
        block_crcs(&payload, &mut crcs);
        (payload_crc(&crcs) == header.payload_crc).then_some(Verbatim { header, payload, crcs })
    }
}

/// Reads a volume's durable records in the order of their LSNs. Holds nothing: what it reads has to be pinned by
/// whoever has it, or it may be gone, which is said.
pub struct LogReader {
    volume: Arc<Volume>,
    position: Position,
    follow: Option<Follow>,
}

impl LogReader {
    /// Begins behind the record `lsn`, which is durable, or stands where the journal begins.
    /// [`Kind::OutOfRange`] if it is not durable, or not in the journal any more.
    pub fn behind(volume: &Arc<Volume>, lsn: Lsn) -> Result<LogReader> {
        let _using = volume.use_files()?;
        let base = volume.base_point();
        let mut reader = LogReader {
            volume: volume.clone(),
            position: Position { lsn: base.lsn, chain: base.chain, timestamp: base.timestamp },
            follow: None,
        };
        if lsn < base.lsn {
            return Err(reader.gone(lsn.next()));
        }
        if lsn > volume.durable_lsn() {
            let context =
                format!("{lsn:?} of volume {} is not durable: {:?} is", volume.name(), volume.durable_lsn());
            return Err(Error::new(Kind::OutOfRange, context));
        }
        if lsn > base.lsn {
            let parts = volume.part_list();
            let part = part_of(&parts, lsn).map_err(|_| reader.gone(lsn))?;
            match part.frozen.get().filter(|frozen| frozen.last.lsn == lsn) {
                Some(frozen) => reader.position = frozen.last,
                None if part.segment.fold.is_some() => return Err(reader.gone(lsn)),
                None => {
                    let mut follow = Follow::new(part.segment.clone(), part.before);
                    skip_to(&mut follow, lsn, volume)?;
                    reader.position = follow.position();
                    reader.follow = Some(follow);
                }
            }
        }
        Ok(reader)
    }

    /// The newest record that was handed out, or the one it began behind; with its chain value.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The next durable records, as many as make `bytes_max` of payload, at least one if there is one, at most
    /// `records_max`. Their payload was held against their checksums: damage is an error that names the record.
    pub fn read(&mut self, bytes_max: u64, records_max: usize) -> Result<Vec<Verbatim>> {
        let _using = self.volume.use_files()?;
        let durable = self.volume.durable_lsn();
        // As long as the list is held, no segment in it is used for anything else.
        let parts = self.volume.part_list();
        let mut records = Vec::new();
        let mut bytes = 0;
        while self.position.lsn < durable && bytes < bytes_max && records.len() < records_max {
            let next = self.position.lsn.next();
            if self.volume.base_point().lsn >= next {
                return Err(self.gone(next));
            }
            let part = part_of(&parts, next).map_err(|_| self.gone(next))?;
            if part.segment.fold.is_some() {
                // Thinned: its records are not all there any more.
                return Err(self.gone(next));
            }
            if part.last_lsn() < next {
                // A list from before the segment that has it: the next call sees it.
                break;
            }
            let follow = match self.follow.take() {
                Some(follow) if follow.segment().header.id == part.segment.header.id => follow,
                _ => {
                    let mut follow = Follow::new(part.segment.clone(), part.before);
                    skip_to(&mut follow, self.position.lsn, &self.volume)?;
                    if follow.position().chain != self.position.chain {
                        return Err(self.unreadable(next, "it is not on the chain"));
                    }
                    follow
                }
            };
            let follow = self.follow.insert(follow);
            let place = || format!("reading {next:?} in {}", part.segment.path.display());
            let found = follow.next_record().at(place)?.filter(|(header, _)| header.lsn == next);
            let Some((header, payload_block)) = found else {
                self.follow = None;
                return Err(self.unreadable(next, "its header is damaged"));
            };
            let mut crcs = Vec::new();
            let payload = scan::read_payload(&part.segment, &header, payload_block, &mut crcs).at(place);
            let Some(payload) = payload.inspect_err(|_| self.follow = None)? else {
                self.follow = None;
                return Err(self.unreadable(next, "its payload is damaged"));
            };
            bytes += u64::from(header.payload_bytes).max(1);
            self.position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
            records.push(Verbatim { header, payload, crcs });
        }
        Ok(records)
    }

    fn gone(&self, lsn: Lsn) -> Error {
        let context = format!("{lsn:?} of volume {} is not in its journal any more", self.volume.name());
        Error::new(Kind::OutOfRange, context)
    }

    fn unreadable(&self, lsn: Lsn, why: &str) -> Error {
        let context = format!("{lsn:?} of volume {} cannot be read: {why}", self.volume.name());
        Error::new(Kind::Damaged, context).hint("`cdp verify` tells what is damaged")
    }
}

impl Volume {
    /// Whole blocks as they were after the record `lsn`, also the one that the volume's end cuts. Holds nothing: an error
    /// if the state is not there any more.
    pub fn read_blocks_at(&self, lsn: Lsn, reads: &mut [Read<'_>]) -> Result<()> {
        // The list first: as long as it is held, nothing in it is folded away.
        let parts = self.parts.list();
        if self.base_point().lsn > lsn {
            return Err(self.is_gone(lsn));
        }
        let visible = self.visible(lsn);
        read_visible(self, &self.reader_of(parts, &visible), u64::MAX, reads);
        reads.iter_mut().try_for_each(|read| std::mem::replace(&mut read.result, Ok(())))
    }
}

/// Goes forward to `lsn`, which the segment has.
fn skip_to(follow: &mut Follow, lsn: Lsn, volume: &Volume) -> Result<()> {
    while follow.position().lsn < lsn {
        let place = || format!("reading {}", follow.segment().path.display());
        let context = || format!("{lsn:?} of volume {} is not where it should be", volume.name());
        let path_error = place();
        if follow.next_record().at(|| path_error)?.is_none() {
            return Err(Error::new(Kind::Damaged, context()));
        }
    }
    Ok(())
}

/// A foreign record's effects besides its blocks.
enum Learnt {
    Turn(TurnAt),
    Marker(Lsn, Timestamp, MarkerPayload),
}

/// What foreign records that may be appended bring with them.
struct Foreign {
    learnt: Vec<Learnt>,
    epochs: Epochs,
    // The states that they set the volume back to.
    _pins: Vec<PinGuard>,
}

impl Volume {
    /// An instant up to which everything has happened, and the newest record then: no record above it gets a
    /// timestamp up to this one. At a replica: what its origin said, once it is durable here.
    pub fn complete_through(&self) -> (Lsn, Timestamp) {
        let append = self.append.lock().expect("no panics under this lock");
        let tip = self.tip_lsn();
        if self.is_replica() {
            let newest = append.as_ref().map_or(Timestamp(0), |appender| appender.position.timestamp);
            let own = match self.role() {
                Role::Replica { since, ended } if ended == Some(tip) => since,
                _ => Timestamp(0),
            };
            return (tip, self.source_complete().max(newest).max(own));
        }
        let now = self.shared.clock.now();
        self.shared.clock.pass(now);
        (tip, now)
    }

    /// As [`Volume::complete_through`], to be told to another site: of a primary, as far as a crash cannot take it back.
    pub fn promise_complete(&self) -> (Lsn, Timestamp) {
        let (lsn, at) = self.complete_through();
        if self.is_replica() {
            // Its own instant stands in its manifest, and every other is that of another site.
            return (lsn, at);
        }
        // A record that could not be appended may turn up at the next opening all the same, with the timestamp that it got.
        if self.refuse_unless_healthy().is_err() || self.awaits_group() {
            return Timeline::tip(self);
        }
        (lsn, self.shared.promises.reach(at))
    }

    /// The chain value after this record, which is in the journal, and its timestamp.
    pub fn position_at(self: &Arc<Volume>, lsn: Lsn) -> Result<Position> {
        Ok(LogReader::behind(self, lsn)?.position())
    }

    /// About what the records behind `lsn` take in the journal, in bytes: of the segment that holds it, its share.
    pub fn bytes_behind(&self, lsn: Lsn) -> u64 {
        let tip = self.tip_lsn();
        let open_end = {
            let append = self.append.lock().expect("no panics under this lock");
            append.as_ref().map_or(0, |appender| appender.end)
        };
        let mut bytes = 0;
        for part in self.part_list().iter().rev() {
            let (first, last) = (part.segment.header.first_lsn, part.last_lsn().min(tip));
            if last < first {
                // The open segment, before its first record.
                continue;
            }
            if last <= lsn {
                break;
            }
            let end = part.frozen.get().map_or(open_end, |frozen| frozen.end);
            let used = u128::from(end.saturating_sub(BLOCK_BYTES));
            let (records, wanted) = (last.0 + 1 - first.0, last.0 - lsn.0.max(first.0 - 1));
            bytes += (used * u128::from(wanted) / u128::from(records)) as u64;
        }
        bytes
    }

    /// Where the journal ends: what a foreign record has to follow. `None` once it takes no more.
    pub fn end_position(&self) -> Option<Position> {
        self.append.lock().expect("no panics under this lock").as_ref().map(|appender| appender.position)
    }

    /// Appends records of another store as they are: same LSNs, timestamps, chain values. They follow the newest
    /// record, or nothing of the first that does not fit, and of those behind it, is appended.
    ///
    /// They are staged when this returns; [`Device::flush`] makes them durable. On the journal of a replica only.
    /// Legal states after a crash: any prefix of them, as with a client's writes.
    pub fn append_foreign(&self, records: &[Verbatim]) -> Result<()> {
        let mut done = 0;
        let mut tries = 0;
        while done < records.len() {
            let outcome = {
                let mut append = self.append.lock().expect("no panics under this lock");
                self.append_foreign_front(&mut append, &records[done..])
            };
            match outcome {
                Ok(count) => done += count,
                Err(error) if error.kind() == Kind::NoSpace && self.make_room_for(&mut tries) => {}
                Err(error) if error.kind() == Kind::NoSpace && self.give_up_coalesced_for_room() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn append_foreign_front(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        records: &[Verbatim],
    ) -> Result<usize> {
        self.refuse_unless_replica()?;
        let Some(appender) = append.as_mut() else {
            return Err(Error::new(Kind::Closed, format!("volume {} is closed", self.name())));
        };
        let mut count = appender.fitting_verbatim(records);
        let is_full = self
            .part_list()
            .last()
            .is_some_and(|open| open.memory_bytes() > self.shared.memory.open_part_bytes_max());
        if count == 0 || is_full {
            match self.roll(appender) {
                Err(error) if count == 0 => return Err(error),
                _ => count = appender.fitting_verbatim(records),
            }
        }
        if count == 0 {
            let context = format!("a record of {} bytes", records[0].header.payload_bytes);
            return Err(Error::new(Kind::Invalid, format!("{context} does not fit into a segment")));
        }
        let records = &records[..count];
        let Foreign { learnt, epochs, _pins } = self.check_foreign(appender.position, records)?;
        let newest = records[count - 1].header.timestamp;
        let parts = self.part_list();
        let open = parts.last().expect("an open volume has an open part");
        let (before, durable) = (appender.end, self.durable_lsn());
        match appender.append_verbatim(records, durable, &mut OpenPart(open)) {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::NoSpace && appender.void_failed_append().is_ok() => {
                return Err(error);
            }
            Err(error) => {
                self.leave_poisoned_segment(append, &error);
                return Err(error);
            }
        }
        self.learn_epochs(appender, epochs);
        // Whatever this store stamps from here on is newer.
        self.shared.clock.pass(newest);
        self.sessions.fetch_max(appender.position.lsn.0 + 1, Ordering::Relaxed);
        for one in learnt {
            match one {
                Learnt::Turn(turn) => self.learn_turn(turn),
                Learnt::Marker(lsn, at, marker) => {
                    self.learn_name(lsn, at, &marker);
                }
            }
        }
        self.publish_staged(appender, appender.end - before);
        Ok(count)
    }

    /// Everything that outside bytes could be wrong about, before anything is written.
    fn check_foreign(&self, before: Position, records: &[Verbatim]) -> Result<Foreign> {
        let mut position = before;
        let mut course = self.course();
        let mut epochs = self.epochs();
        let mut size_bytes = self.size_bytes();
        let mut learnt = Vec::new();
        let mut pins = Vec::new();
        for Verbatim { header, payload, .. } in records {
            let wrong = |why: &str| {
                let context = format!("{:?} for volume {}: {why}", header.lsn, self.name());
                Err(Error::new(Kind::Invalid, context))
            };
            if header.volume != self.identity.journal_id() {
                return wrong("it is of another volume");
            }
            if header.lsn != position.lsn.next() {
                let newest = position.lsn;
                return wrong(&format!("it does not follow {newest:?}"));
            }
            if header.chain != chain_value(position.chain, &header.encode()) {
                return wrong("its chain value does not continue the history that is here");
            }
            if self.parts_from_coalesced(header.lsn, header.chain) {
                return wrong("it is not the one whose state is shown here already");
            }
            if header.timestamp <= position.timestamp {
                return wrong("it is not newer than the record before it");
            }
            if header.kind.changes_blocks() && header.extent().end() > size_bytes.div_ceil(BLOCK_BYTES) {
                return wrong("it reaches behind the end of the volume");
            }
            self.check_foreign_epoch(&mut epochs, position.chain, header, payload)?;
            position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
            match header.kind {
                RecordKind::Rollback | RecordKind::Resize => {
                    let Some(turn) = Turn::decode(header.kind, payload) else {
                        return wrong("what it turns the volume to cannot be read");
                    };
                    if let Turn::Rollback { to, .. } = turn {
                        // Held until the record says that it is needed. This site's retention is its own: the state
                        // may be gone here that the other site still had. What is one is told by the records in front
                        // of it, of which some may have come together with it.
                        let pin = match course.gap_of(to) {
                            None => self.pin_what_is_there(to, "a rollback of the other site"),
                            Some(_) => Err(self.is_gone(to)),
                        };
                        let pin = pin.map_err(|error| {
                            let context = format!(
                                "{:?} sets volume {} back to {to:?}, which is not here any more",
                                header.lsn,
                                self.name()
                            );
                            Error::new(error.kind(), context).hint(format!(
                                "`cdp replica reseed {}` at the site of the replica: only what differs is sent again, and what it has stays there",
                                self.name()
                            ))
                        })?;
                        pins.push(pin);
                    }
                    let turn = TurnAt { lsn: header.lsn, at: header.timestamp, turn };
                    size_bytes = turn.turn.size_bytes();
                    if !course.push(turn.clone()) {
                        return wrong("it turns the volume to a state that it cannot have");
                    }
                    learnt.push(Learnt::Turn(turn));
                }
                RecordKind::Epoch => {
                    let begun = EpochPayload::decode(payload);
                    if let Some(turn) = begun.and_then(|begun| begun.turn()) {
                        let turn = TurnAt { lsn: header.lsn, at: header.timestamp, turn };
                        size_bytes = turn.turn.size_bytes();
                        if !course.push(turn.clone()) {
                            return wrong("the state that it goes on from makes no sense");
                        }
                        learnt.push(Learnt::Turn(turn));
                    }
                }
                RecordKind::Marker if header.flags > MarkerClass::Periodic as u8 => {
                    // One that cannot be read has no name here, as at the next opening.
                    if let Some(marker) = MarkerPayload::decode(payload) {
                        learnt.push(Learnt::Marker(header.lsn, header.timestamp, marker));
                    }
                }
                _ => {}
            }
        }
        Ok(Foreign { learnt, epochs, _pins: pins })
    }
}
