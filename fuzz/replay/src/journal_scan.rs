//! The journal's reader: a segment file as a crash, a rotten disk or somebody's hand may have left it.
//!
//! The first bytes are a little journal: a count of batches, then a byte for each. What follows are changes of
//! the file, five bytes each. An odd first byte has every checksum and chain value mended after the changes,
//! so that nonsense arrives with all its seals intact; otherwise what is found must be what was written.

use std::path::PathBuf;
use std::sync::Arc;

use cdp_core::format::bytes::seal_crc;
use cdp_core::format::record::{
    BATCH_HEADER_BYTES, Chain, RECORD_HEADER_BYTES, RecordHeader, RecordKind, chain_value,
};
use cdp_core::format::segment::SegmentHeader;
use cdp_core::ids::{BLOCK_BYTES, EpochNumber, Incarnation, Lsn, SegmentId, SessionId, Timestamp, VolumeId};
use cdp_core::journal::Placement;
use cdp_core::journal::append::{Appender, Draft, Position};
use cdp_core::journal::scan::{Stop, harvest_durable, read_payload, scan};
use cdp_core::journal::segment::Segment;

use crate::memory_file::MemoryFile;

const SEGMENT_BYTES: u64 = 256 << 10;
const BATCHES_MAX: u8 = 6;
const CHANGES_MAX: usize = 64;
const VOLUME: VolumeId = VolumeId(7);
const CREATED: Timestamp = Timestamp(1_000_000);
const BLOCK: usize = BLOCK_BYTES as usize;
/// Where a record header holds its chain value; the checksum is at its end.
const CHAIN_AT: usize = 96;
const BEFORE: Position = Position { lsn: Lsn::ZERO, chain: Chain([0; 16]), timestamp: CREATED };

/// Runs one input.
pub fn run(data: &[u8]) {
    let [mode, batches, rest @ ..] = data else { return };
    let count = usize::from(batches % BATCHES_MAX + 1).min(rest.len());
    let (batches, changes) = rest.split_at(count);
    let journal = Journal::write(batches);
    for change in changes.chunks_exact(5).take(CHANGES_MAX) {
        journal.change(change);
    }
    let mended = mode & 1 != 0;
    if mended {
        journal.mend();
    }
    journal.read(mended, changes.len() < 5);
}

/// A segment and what was written to it.
struct Journal {
    file: Arc<MemoryFile>,
    segment: Arc<Segment>,
    records: Vec<(RecordHeader, Vec<u8>)>,
    /// Offset and number of records of every batch.
    batches: Vec<(u64, usize)>,
}

struct Notes(Vec<RecordHeader>);

impl Placement for Notes {
    fn opened(&mut self, _segment: &Arc<Segment>) {}

    fn placed(&mut self, record: &RecordHeader, _payload_block: u32, _crcs: &[u32], _damaged: bool) {
        self.0.push(*record);
    }
}

impl Journal {
    /// A batch for each byte: its low bits say how many records, the others of which kinds.
    fn write(batches: &[u8]) -> Journal {
        let file = Arc::new(MemoryFile::new(SEGMENT_BYTES as usize));
        let header = SegmentHeader {
            volume: VOLUME,
            id: SegmentId(42),
            ordinal: 1,
            first_lsn: Lsn(1),
            chain_before: BEFORE.chain,
            bytes: SEGMENT_BYTES,
            incarnation: Incarnation(1),
            previous_incarnation: Incarnation(0),
            predecessor: SegmentId(0),
            predecessor_end: 0,
            timestamp_before: CREATED,
            epoch: EpochNumber(1),
            codec: 0,
            key_id: 0,
            key_salt: [0; 16],
        };
        let segment =
            Arc::new(Segment { header, path: PathBuf::from("segment"), file: file.clone(), fold: None });
        let mut appender = Appender::new(segment.clone(), BLOCK_BYTES, BEFORE, EpochNumber(1));
        let mut journal = Journal { file, segment, records: Vec::new(), batches: Vec::new() };
        let mut notes = Notes(Vec::new());
        for (number, &byte) in batches.iter().enumerate() {
            let payloads: Vec<Vec<u8>> =
                (0..byte % 40).map(|index| payload(byte.wrapping_mul(31).wrapping_add(index))).collect();
            let drafts: Vec<Draft<'_>> =
                payloads.iter().enumerate().map(|(i, p)| draft(i as u64, p)).collect();
            let (fit, blocks) = appender.fitting(&drafts);
            if fit == 0 {
                continue;
            }
            let start = appender.end;
            let at = Timestamp(CREATED.0 + (number as u64 + 1) * 1000);
            let durable = if byte & 0x80 != 0 { appender.position.lsn } else { Lsn::ZERO };
            if let Err(error) = appender.append_batch(&drafts[..fit], blocks, at, durable, &mut notes) {
                panic!("a batch that fits cannot be appended: {error}");
            }
            journal.batches.push((start, fit));
            journal.records.extend(notes.0.drain(..).zip(payloads));
        }
        journal
    }

    /// What, where (three bytes, little-endian) and with which value.
    fn change(&self, change: &[u8]) {
        let mut bytes = self.file.bytes();
        if bytes.is_empty() {
            return;
        }
        let (what, value) = (change[0], change[4]);
        let place = usize::from(change[1]) | usize::from(change[2]) << 8 | usize::from(change[3]) << 16;
        let at = place % bytes.len();
        match what % 6 {
            0 => bytes[at] ^= value,
            // Near the front, where the headers are.
            1 => bytes[BLOCK + place % BLOCK] = value,
            2 => bytes.truncate(at),
            3 => {
                let (from, to) = (at / BLOCK * BLOCK, usize::from(value) * BLOCK % bytes.len());
                let end = bytes.len().min(from + BLOCK).min(from + bytes.len() - to);
                bytes.copy_within(from..end, to);
            }
            4 => {
                let end = bytes.len().min(at + usize::from(value) * 16);
                bytes[at..end].fill(0);
            }
            // A field of a header of a batch.
            _ => {
                if let Some(&(start, records)) =
                    self.batches.get(usize::from(change[3]) % BATCHES_MAX as usize)
                {
                    let headers = BATCH_HEADER_BYTES + records * RECORD_HEADER_BYTES;
                    let at = start as usize + (place & 0xffff) % headers;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
        }
        if bytes.len() < 2 * BLOCK {
            bytes.resize(2 * BLOCK, 0);
        }
    }

    /// Makes every checksum and chain value right for what stands there now.
    fn mend(&self) {
        let mut bytes = self.file.bytes();
        let mut chain = BEFORE.chain;
        for &(start, records) in &self.batches {
            let start = start as usize;
            let end = start + BATCH_HEADER_BYTES + records * RECORD_HEADER_BYTES;
            let Some(headers) = bytes.get_mut(start..end) else { return };
            let (batch, headers) = headers.split_at_mut(BATCH_HEADER_BYTES);
            batch[32..48].copy_from_slice(&chain.0);
            seal_crc(batch);
            for header in headers.as_chunks_mut::<RECORD_HEADER_BYTES>().0 {
                chain = chain_value(chain, header);
                header[CHAIN_AT..CHAIN_AT + 16].copy_from_slice(&chain.0);
                seal_crc(header);
            }
        }
    }

    fn read(&self, mended: bool, unchanged: bool) {
        let segment = &*self.segment;
        let mut found: Vec<(RecordHeader, u32, bool)> = Vec::new();
        let result = scan(segment, BEFORE, Lsn::MAX, &mut |record| {
            assert_eq!(record.crcs.len() as u64, record.header.payload_blocks());
            found.push((*record.header, record.payload_block, record.intact));
        });
        let result = match result {
            Ok(result) => result,
            Err(error) => panic!("a file in memory cannot be read: {error}"),
        };
        let mut timestamp = CREATED;
        let mut damaged = Vec::new();
        for (number, (header, payload_block, intact)) in found.iter().enumerate() {
            assert_eq!(header.lsn, Lsn(number as u64 + 1), "the LSNs found have a gap");
            assert!(header.timestamp > timestamp, "time does not rise");
            timestamp = header.timestamp;
            if *intact {
                self.payload_is_there(header, *payload_block);
            } else {
                damaged.push(header.lsn);
            }
            if !mended {
                let (written, payload) = &self.records[number];
                assert_eq!(header, written, "a record that nobody wrote");
                let at = *payload_block as usize * BLOCK;
                let bytes = self.file.bytes();
                let there = bytes.get(at..at + payload.len());
                assert!(!intact || payload.is_empty() || there == Some(payload), "changed, but intact");
            }
        }
        assert_eq!(result.damaged, damaged);
        assert_eq!(result.position.lsn, Lsn(found.len() as u64));
        if unchanged && !mended {
            assert_eq!(found.len(), self.records.len(), "records are missing");
            assert!(damaged.is_empty() && matches!(result.stop, Stop::NoBatch), "{:?}", result.stop);
        }
        match harvest_durable(segment, BLOCK_BYTES) {
            Ok(durable) => assert!(mended || durable.0 <= self.records.len() as u64),
            Err(error) => panic!("a file in memory cannot be read: {error}"),
        }
    }

    fn payload_is_there(&self, header: &RecordHeader, payload_block: u32) {
        match read_payload(&self.segment, header, payload_block, &mut Vec::new()) {
            Ok(Some(payload)) => assert_eq!(payload.len(), header.payload_bytes as usize),
            Ok(None) => panic!("record {} is called intact and is not", header.lsn),
            Err(error) => panic!("record {} is called intact and cannot be read: {error}", header.lsn),
        }
    }
}

/// The kind follows from the length: whole blocks are a write, none a trim, anything else a marker's.
fn payload(seed: u8) -> Vec<u8> {
    let len = match seed % 4 {
        0 => 0,
        1 => BLOCK,
        2 => 2 * BLOCK,
        _ => usize::from(seed),
    };
    (0..len).map(|index| (index as u8).wrapping_mul(seed | 1)).collect()
}

fn draft(number: u64, payload: &[u8]) -> Draft<'_> {
    let (kind, blocks) = match payload.len() {
        0 => (RecordKind::Trim, 3),
        len if len.is_multiple_of(BLOCK) => (RecordKind::Write, (len / BLOCK) as u64),
        _ => return Draft::event(RecordKind::Marker, SessionId::STORE, number, payload),
    };
    Draft {
        kind,
        flags: 0,
        session: SessionId(1),
        lba: number * 10,
        blocks,
        head_skip: 0,
        tail_skip: 0,
        parts: [payload, &[], &[]],
        crcs: Vec::new(),
    }
    .checksummed()
}
