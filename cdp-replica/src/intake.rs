//! What a receiver does with records: puts them together, undoes their codings, appends them, makes them durable, and
//! says what is.
//!
//! A payload may be coded against what blocks held before its record. That is the newest of the records that wait
//! for their append, or what the volume shows: the state behind the newest appended record. Both are what the chain says
//! they are, whatever connection they came by; nothing is remembered of what some sender believes to be here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::device::Read;
use cdp_core::format::record::{Chain, RecordKind};
use cdp_core::ids::*;
use cdp_core::journal::append::{Position, Verbatim};
use cdp_core::volume::Volume;

use crate::fault::{Fault, FaultKind};
use crate::limits::*;
use crate::receiver::Feeding;
use crate::syncer::Syncer;
use crate::wire::control::Ack;
use crate::wire::records::{Assembler, Coded};

const BLOCK: usize = BLOCK_BYTES as usize;

/// The records of one connection.
pub struct Intake {
    pub(crate) volume: Arc<Volume>,
    number: u64,
    assembler: Assembler,
    // Whole records that were not appended yet, and how many bytes they have.
    waiting: Vec<Verbatim>,
    waiting_bytes: usize,
    // What those of them have that were looked at.
    newest: Newest,
    // Where the newest record that came stands.
    end: (Lsn, Chain),
    // Appended since a sync was begun.
    unsynced_bytes: u64,
    // When the first and the newest of them were.
    unsynced_since_ns: u64,
    appended_at_ns: u64,
    // Up to when all was sent, as of the records that came before it.
    complete: Option<(Lsn, Timestamp)>,
    is_ack_due: bool,
    acknowledged: Lsn,
    acknowledged_at_ns: u64,
    // Of the first copy that it began with.
    copied_bytes: u64,
}

/// Where the newest content of blocks is among the waiting records.
#[derive(Default)]
struct Newest {
    // So many of them were looked at.
    looked: usize,
    // The record's place among them, and the block's in its payload.
    blocks: HashMap<u64, (usize, usize)>,
    // One of them changes blocks in another way than by its payload.
    turned: bool,
}

impl Newest {
    fn look(&mut self, waiting: &[Verbatim]) {
        for (place, Verbatim { header, .. }) in waiting.iter().enumerate().skip(self.looked) {
            match header.kind {
                RecordKind::Write => {
                    let first = header.lba.0;
                    self.blocks.extend((0..header.blocks).map(|n| (first + n, (place, n as usize))));
                }
                kind => self.turned |= turns(kind),
            }
        }
        self.looked = waiting.len();
    }
}

/// Whether blocks read otherwise behind such a record, though it has no payload for each.
fn turns(kind: RecordKind) -> bool {
    kind.changes_blocks() && kind != RecordKind::Write
        || matches!(kind, RecordKind::Rollback | RecordKind::Resize)
}

/// Where a volume's journal ends, if it takes records.
pub(crate) fn end_of(volume: &Volume) -> Result<Position, Fault> {
    volume.end_position().ok_or_else(|| {
        let text = format!("volume {} takes no records: {:?}", volume.name(), volume.health());
        Fault::new(FaultKind::Storage, text)
    })
}

impl Intake {
    /// Takes records behind the newest one of `volume`, as the connection of this number.
    pub(crate) fn new(volume: Arc<Volume>, number: u64, copied_bytes: u64) -> Result<Intake, Fault> {
        let end = end_of(&volume)?;
        Ok(Intake {
            volume,
            number,
            assembler: Assembler::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            newest: Newest::default(),
            end: (end.lsn, end.chain),
            unsynced_bytes: 0,
            unsynced_since_ns: 0,
            appended_at_ns: 0,
            complete: None,
            is_ack_due: true,
            acknowledged: Lsn::ZERO,
            acknowledged_at_ns: 0,
            copied_bytes,
        })
    }

    /// Takes a RECORDS body.
    pub(crate) fn records(&mut self, body: &[u8], feeding: &Feeding, now_ns: u64) -> Result<(), Fault> {
        let mut came = Vec::new();
        self.assembler.records(body, self.end, &mut came)?;
        self.take(came, feeding, now_ns)
    }

    /// Takes a PAYLOAD body.
    pub(crate) fn payload(&mut self, body: &[u8], feeding: &Feeding, now_ns: u64) -> Result<(), Fault> {
        let mut came = Vec::new();
        self.assembler.payload(body, &mut came)?;
        self.take(came, feeding, now_ns)
    }

    /// Notes up to when all was sent.
    pub(crate) fn complete(&mut self, at: Timestamp) -> Result<(), Fault> {
        if self.assembler.is_within_record() {
            return Err(Fault::protocol("a COMPLETE frame inside of a record"));
        }
        self.complete = Some((self.end.0, at));
        Ok(())
    }

    fn take(&mut self, came: Vec<Coded>, feeding: &Feeding, now_ns: u64) -> Result<(), Fault> {
        let mut came = came.into_iter();
        while !came.as_slice().is_empty() {
            if came.as_slice().iter().any(|record| record.coding.needs_older()) {
                self.newest.look(&self.waiting);
                let (count, wanted) = self.plan(came.as_slice())?;
                if count == 0 {
                    // What the next one is against stands behind a record that has to be appended first.
                    self.append(feeding, now_ns)?;
                    continue;
                }
                let fetched = self.fetch(&wanted, feeding)?;
                for record in came.by_ref().take(count) {
                    self.undo(record, &fetched)?;
                }
            } else {
                for record in came.by_ref() {
                    let whole = record.undo(&[])?;
                    self.took(whole);
                }
            }
            if self.waiting_bytes >= BATCH_BYTES {
                self.append(feeding, now_ns)?;
            }
        }
        Ok(())
    }

    /// How many of these records can be undone as things stand, and which of the volume's blocks that takes.
    fn plan(&self, came: &[Coded]) -> Result<(usize, Vec<u64>), Fault> {
        let mut turned = self.newest.turned;
        let mut known = HashSet::new();
        let mut wanted = Vec::new();
        for (number, record) in came.iter().enumerate() {
            let header = &record.header;
            if record.coding.needs_older() {
                if turned {
                    return Ok((number, wanted));
                }
                for block in record.older_blocks()? {
                    if !self.newest.blocks.contains_key(&block) && known.insert(block) {
                        wanted.push(block);
                    }
                }
            }
            match header.kind {
                RecordKind::Write => known.extend(header.lba.0..header.lba.0 + header.blocks),
                kind => turned |= turns(kind),
            }
        }
        Ok((came.len(), wanted))
    }

    /// Blocks as the volume shows them, by number.
    fn fetch(&self, wanted: &[u64], feeding: &Feeding) -> Result<HashMap<u64, Vec<u8>>, Fault> {
        self.refuse_older(feeding)?;
        let mut blocks: Vec<Vec<u8>> = wanted.iter().map(|_| vec![0; BLOCK]).collect();
        let mut reads: Vec<Read<'_>> = wanted
            .iter()
            .zip(&mut blocks)
            .map(|(block, buffer)| Read { offset: block * BLOCK_BYTES, buffer, result: Ok(()) })
            .collect();
        let read = self.volume.read_blocks_at(self.volume.tip_lsn(), &mut reads);
        read.map_err(|error| Fault::new(FaultKind::Coding, error.to_string()))?;
        Ok(wanted.iter().copied().zip(blocks).collect())
    }

    fn undo(&mut self, record: Coded, fetched: &HashMap<u64, Vec<u8>>) -> Result<(), Fault> {
        let mut older = Vec::new();
        if record.coding.needs_older() {
            self.newest.look(&self.waiting);
            for block in record.older_blocks()? {
                match self.newest.blocks.get(&block) {
                    Some((place, number)) => {
                        older.extend_from_slice(&self.waiting[*place].payload[number * BLOCK..][..BLOCK])
                    }
                    None => older.extend_from_slice(&fetched[&block]),
                }
            }
        }
        let whole = record.undo(&older)?;
        self.took(whole);
        Ok(())
    }

    fn took(&mut self, record: Verbatim) {
        self.waiting_bytes += record.payload.len() + size_of::<Verbatim>();
        self.end = (record.header.lsn, record.header.chain);
        self.waiting.push(record);
    }

    fn refuse_older(&self, feeding: &Feeding) -> Result<(), Fault> {
        if feeding.is_newest(self.volume.identity().id, self.number) {
            return Ok(());
        }
        let text = format!("another connection feeds volume {} now", self.volume.name());
        Err(Fault::new(FaultKind::Closing, text))
    }

    /// Appends what waits.
    pub(crate) fn append(&mut self, feeding: &Feeding, now_ns: u64) -> Result<(), Fault> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.refuse_older(feeding)?;
        let parts =
            |record: &&Verbatim| self.volume.parts_from_coalesced(record.header.lsn, record.header.chain);
        if let Some(record) = self.waiting.iter().find(parts) {
            let text = format!(
                "a fork: volume {} shows the state after {:?} ahead of its history, and the history that comes is another one; both are kept. `cdp replica newest {0} --drop` here lets that state go",
                self.volume.name(),
                record.header.lsn
            );
            return Err(Fault::new(FaultKind::Fork, text));
        }
        self.volume.append_foreign(&self.waiting)?;
        if self.unsynced_bytes == 0 {
            self.unsynced_since_ns = now_ns;
        }
        self.unsynced_bytes += self.waiting_bytes as u64;
        self.appended_at_ns = now_ns;
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.newest = Newest::default();
        Ok(())
    }

    /// Rarely while records come in: each sync is one that others on the same disk wait for. What came is acknowledged a
    /// little later for that; it is seen, and survives the death of the process, at once.
    pub(crate) fn sync(&mut self, syncer: &mut Syncer, now_ns: u64) -> Result<(), Fault> {
        let is_free = syncer.look()?;
        let is_at_rest = now_ns.saturating_sub(self.appended_at_ns) >= SYNC_REST_NS;
        let is_time = now_ns.saturating_sub(self.unsynced_since_ns) >= SYNC_NS;
        let is_much = self.unsynced_bytes >= SYNC_BYTES;
        if is_free && self.unsynced_bytes > 0 && (is_at_rest || is_time || is_much) {
            // A volume that was closed meanwhile needs no sync.
            let volume = Arc::downgrade(&self.volume);
            syncer.begin(Box::new(move || volume.upgrade().map_or(Ok(()), |volume| volume.flush())))?;
            self.unsynced_bytes = 0;
        }
        self.is_ack_due |= self.volume.durable_lsn() > self.acknowledged;
        if let Some((lsn, at)) = self.complete
            && self.volume.durable_lsn() >= lsn
        {
            self.volume.note_complete(at, end_of(&self.volume)?.timestamp)?;
            self.complete = None;
            self.is_ack_due = true;
        }
        Ok(())
    }

    /// What is durable, if it is time to say that.
    pub(crate) fn acknowledge(&mut self, now_ns: u64) -> Result<Option<Ack>, Fault> {
        let is_time = now_ns.saturating_sub(self.acknowledged_at_ns) >= ACK_NS_MAX;
        if !self.is_ack_due && !is_time {
            return Ok(None);
        }
        self.is_ack_due = false;
        self.acknowledged_at_ns = now_ns;
        let ack = self.ack()?;
        self.acknowledged = Lsn(ack.durable_lsn);
        Ok(Some(ack))
    }

    fn ack(&self) -> Result<Ack, Fault> {
        let durable = self.volume.durable_lsn();
        // Rarely asked for anything but the end.
        let end = end_of(&self.volume)?;
        let at = if end.lsn == durable { end } else { self.volume.position_at(durable)? };
        // Not what a crash could take: the other site gives up what it has once all is acknowledged.
        let complete = self.volume.durable_complete();
        let oldest = self.volume.oldest();
        Ok(Ack {
            durable_lsn: durable.0,
            chain: at.chain.0,
            complete_ns: complete.max(at.timestamp).0,
            oldest_lsn: oldest.0.0,
            oldest_ns: oldest.1.0,
            window_bytes: WINDOW_BYTES,
            copied_bytes: self.copied_bytes,
        })
    }
}
