//! The open end of the journal: gives LSNs and timestamps, builds batches, writes them.

use std::io::IoSlice;
use std::sync::Arc;

use super::Placement;
use super::segment::Segment;
use crate::error::{Error, Kind, Result};
use crate::format::record::*;
use crate::ids::*;

const BLOCK: usize = BLOCK_BYTES as usize;
/// The most records a batch gets here: with three parts and a padding each, its buffers stay below the 1024
/// that one `pwritev` takes.
const RECORDS_PER_BATCH: usize = 250;

/// From so many bytes of payload in a batch on, and on the mean in each of its records, a batch counts as a piece
/// of a stream: what is written in such large requests is rarely read again soon. Small writes stay in the page
/// cache, where databases look for them.
const STREAM_BATCH_BYTES: u64 = 256 << 10;
const STREAM_RECORD_BYTES: u64 = 32 << 10;

/// A record before it has its LSN.
#[derive(Clone)]
pub struct Draft<'a> {
    /// What it says.
    pub kind: RecordKind,
    /// See [`flags`].
    pub flags: u8,
    /// Who asked for it.
    pub session: SessionId,
    /// First block, or the elapsed clock for records that change none.
    pub lba: u64,
    /// Blocks that are changed.
    pub blocks: u64,
    /// See [`RecordHeader::head_skip`].
    pub head_skip: u16,
    /// See [`RecordHeader::tail_skip`].
    pub tail_skip: u16,
    /// The payload in up to three parts, each but the last a multiple of 4096 bytes long.
    pub parts: [&'a [u8]; 3],
    /// CRCs of the payload's blocks.
    pub crcs: Vec<u32>,
}

impl<'a> Draft<'a> {
    /// A record that changes no blocks.
    pub fn event(kind: RecordKind, session: SessionId, elapsed_ns: u64, payload: &'a [u8]) -> Draft<'a> {
        Draft {
            kind,
            flags: 0,
            session,
            lba: elapsed_ns,
            blocks: 0,
            head_skip: 0,
            tail_skip: 0,
            parts: [payload, &[], &[]],
            crcs: Vec::new(),
        }
        .checksummed()
    }

    /// Fills in the CRCs. Outside the critical section, because it reads the whole payload.
    pub fn checksummed(mut self) -> Draft<'a> {
        let mut crcs = Vec::new();
        let mut all = Vec::with_capacity(self.payload_bytes().div_ceil(BLOCK));
        for part in self.parts {
            block_crcs(part, &mut crcs);
            all.append(&mut crcs);
        }
        self.crcs = all;
        self
    }

    fn payload_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    pub(crate) fn payload_blocks(&self) -> u64 {
        self.payload_bytes().div_ceil(BLOCK) as u64
    }
}

/// Where the stream stands: the next record continues from here.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// LSN of the newest record.
    pub lsn: Lsn,
    /// Chain value after it.
    pub chain: Chain,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// The open segment and the place in it where the next batch goes. Owned by the volume's append lock.
pub struct Appender {
    /// The segment that takes records.
    pub segment: Arc<Segment>,
    /// Offset in the segment behind the last batch.
    pub end: u64,
    /// The newest record.
    pub position: Position,
    /// Epoch for new records.
    pub epoch: EpochNumber,
    // The newest record is a rollback: segments end there, so that no part of the index straddles one.
    is_ended: bool,
    header_buffer: Vec<u8>,
}

/// A record that exists already, to be appended again.
pub struct Verbatim {
    /// Its header, chain value included.
    pub header: RecordHeader,
    /// Its payload, without padding.
    pub payload: Vec<u8>,
    /// CRCs of the payload's blocks.
    pub crcs: Vec<u32>,
}

static ZEROS: [u8; BLOCK] = [0; BLOCK];

impl Appender {
    /// Continues in `segment` at `end`.
    pub fn new(segment: Arc<Segment>, end: u64, position: Position, epoch: EpochNumber) -> Appender {
        Appender { segment, end, position, epoch, is_ended: false, header_buffer: Vec::new() }
    }

    /// Whether nothing was appended to the segment.
    pub fn is_empty(&self) -> bool {
        self.end == BLOCK_BYTES && !self.is_ended
    }

    /// How many drafts of the front fit into one batch in this segment, and the batch's length in blocks.
    /// The last block of the segment is kept for the seal. Nothing fits behind a rollback.
    pub fn fitting(&self, drafts: &[Draft<'_>]) -> (usize, u64) {
        if self.is_ended {
            return (0, 0);
        }
        let room = (self.segment.header.bytes - BLOCK_BYTES).saturating_sub(self.end) / BLOCK_BYTES;
        let mut payload_blocks = 0;
        let mut fit = (0, 0);
        for (number, draft) in drafts.iter().take(RECORDS_PER_BATCH).enumerate() {
            payload_blocks += draft.payload_blocks();
            let blocks = batch_header_blocks(number + 1) + payload_blocks;
            if blocks > room {
                break;
            }
            fit = (number + 1, blocks);
        }
        fit
    }

    /// Appends these drafts as one batch; they fit. `first_timestamp` and the nanoseconds behind it were
    /// taken for them. On success every record survives process death. After an error nothing was
    /// appended and no LSN was taken, but the space behind `end` may hold anything.
    pub fn append_batch(
        &mut self,
        drafts: &[Draft<'_>],
        blocks: u64,
        first_timestamp: Timestamp,
        durable: Lsn,
        placement: &mut dyn Placement,
    ) -> Result<()> {
        let header_blocks = batch_header_blocks(drafts.len());
        let mut position = self.position;
        let batch = BatchHeader {
            records: drafts.len() as u16,
            segment: self.segment.header.id,
            first_lsn: position.lsn.next(),
            durable_lsn: durable,
            chain_before: position.chain,
            blocks: blocks as u32,
        };
        self.header_buffer.clear();
        self.header_buffer.extend_from_slice(&batch.encode());
        let mut records = Vec::with_capacity(drafts.len());
        for (number, draft) in drafts.iter().enumerate() {
            let mut record = RecordHeader {
                kind: draft.kind,
                flags: draft.flags,
                volume: self.segment.header.volume,
                lsn: position.lsn.next(),
                timestamp: Timestamp(first_timestamp.0 + number as u64),
                epoch: self.epoch,
                session: draft.session,
                lba: Lba(draft.lba),
                blocks: draft.blocks,
                payload_bytes: draft.payload_bytes() as u32,
                head_skip: draft.head_skip,
                tail_skip: draft.tail_skip,
                payload_crc: payload_crc(&draft.crcs),
                codec: 0,
                key_id: 0,
                tag: [0; 16],
                chain: Chain::default(),
            };
            self.header_buffer.extend_from_slice(&record.link(position.chain));
            position = Position { lsn: record.lsn, chain: record.chain, timestamp: record.timestamp };
            records.push(record);
        }
        self.header_buffer.resize(header_blocks as usize * BLOCK, 0);
        self.write(drafts.iter().map(|draft| &draft.parts[..]))?;

        let mut payload_block = (self.end / BLOCK_BYTES + header_blocks) as u32;
        for (record, draft) in records.iter().zip(drafts) {
            placement.placed(record, payload_block, &draft.crcs, false);
            payload_block += draft.payload_blocks() as u32;
        }
        self.end += blocks * BLOCK_BYTES;
        self.position = position;
        self.is_ended = records.last().is_some_and(|record| record.kind == RecordKind::Rollback);
        Ok(())
    }

    /// How many records of the front fit into one batch in this segment, as they are. Nothing fits behind a rollback,
    /// which ends its batch.
    pub fn fitting_verbatim(&self, records: &[Verbatim]) -> usize {
        if self.is_ended {
            return 0;
        }
        let room = (self.segment.header.bytes - BLOCK_BYTES).saturating_sub(self.end) / BLOCK_BYTES;
        let mut payload_blocks = 0;
        for (number, record) in records.iter().take(RECORDS_PER_BATCH).enumerate() {
            payload_blocks += record.header.payload_blocks();
            if batch_header_blocks(number + 1) + payload_blocks > room {
                return number;
            }
            if record.header.kind == RecordKind::Rollback {
                return number + 1;
            }
        }
        records.len().min(RECORDS_PER_BATCH)
    }

    /// Appends records that exist already, byte for byte, as one batch. The first one follows `position`.
    /// `NoSpace` if they do not fit into the segment.
    pub fn append_verbatim(
        &mut self,
        records: &[Verbatim],
        durable: Lsn,
        placement: &mut dyn Placement,
    ) -> Result<()> {
        let header_blocks = batch_header_blocks(records.len());
        let blocks = header_blocks + records.iter().map(|r| r.header.payload_blocks()).sum::<u64>();
        let first_lsn = self.position.lsn.next();
        if self.is_ended || self.end + (blocks + 1) * BLOCK_BYTES > self.segment.header.bytes {
            return Err(Error::new(Kind::NoSpace, format!("no room to append {first_lsn:?} again")));
        }
        let batch = BatchHeader {
            records: records.len() as u16,
            segment: self.segment.header.id,
            first_lsn,
            durable_lsn: durable,
            chain_before: self.position.chain,
            blocks: blocks as u32,
        };
        self.header_buffer.clear();
        self.header_buffer.extend_from_slice(&batch.encode());
        for record in records {
            self.header_buffer.extend_from_slice(&record.header.encode());
        }
        self.header_buffer.resize(header_blocks as usize * BLOCK, 0);
        let payloads: Vec<[&[u8]; 1]> = records.iter().map(|record| [&record.payload[..]]).collect();
        self.write(payloads.iter().map(|parts| &parts[..]))?;
        let mut payload_block = (self.end / BLOCK_BYTES + header_blocks) as u32;
        for Verbatim { header, crcs, .. } in records {
            assert_eq!(header.lsn, self.position.lsn.next(), "records are appended again in their order");
            placement.placed(header, payload_block, crcs, false);
            payload_block += header.payload_blocks() as u32;
            self.position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
        }
        self.is_ended = records.last().is_some_and(|record| record.header.kind == RecordKind::Rollback);
        self.end += blocks * BLOCK_BYTES;
        Ok(())
    }

    fn write<'p>(&self, payloads: impl Iterator<Item = &'p [&'p [u8]]>) -> Result<()> {
        let mut buffers = vec![IoSlice::new(&self.header_buffer)];
        let (mut records, mut total) = (0, 0);
        for parts in payloads {
            let mut bytes = 0;
            for part in parts.iter().filter(|part| !part.is_empty()) {
                buffers.push(IoSlice::new(part));
                bytes += part.len();
            }
            let padding = bytes.next_multiple_of(BLOCK) - bytes;
            if padding > 0 {
                buffers.push(IoSlice::new(&ZEROS[..padding]));
            }
            records += 1;
            total += bytes as u64;
        }
        let file = &self.segment.file;
        let written = if total >= STREAM_BATCH_BYTES && total >= records * STREAM_RECORD_BYTES {
            file.write_bulk_at(self.end, &buffers)
        } else {
            file.write_at(self.end, &buffers)
        };
        written.map_err(|error| {
            let lsn = self.position.lsn.next();
            Error::io(error, format!("appending {lsn:?} to {}", self.segment.path.display()))
        })
    }

    /// After a failed append: makes sure that nothing of it can be taken for a record later.
    pub fn void_failed_append(&self) -> Result<()> {
        self.segment.file.write_at(self.end, &[IoSlice::new(&ZEROS)]).map_err(|error| {
            Error::io(error, format!("voiding a failed append in {}", self.segment.path.display()))
        })
    }
}
