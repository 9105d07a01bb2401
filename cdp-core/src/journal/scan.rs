//! Reads a segment's records in order and says where and why they end. Never writes, believes nothing.

use std::io;

use super::append::Position;
use super::segment::Segment;
use crate::format::record::*;
use crate::ids::*;
use crate::io::File;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Bytes read at a time.
const WINDOW_BYTES: u64 = 4 << 20;

/// Why a scan ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// At the LSN it was asked to stop behind, or at the end of the segment's space.
    Complete,
    /// No batch begins here: the space was never written, or holds something older.
    NoBatch,
    /// A batch begins here, but does not continue the chain.
    OffChain,
    /// A record header in the batch is not readable or not the expected one.
    BadRecord,
    /// The file is shorter than it should be.
    Short,
    /// The disk does not give the headers that should stand here.
    Unreadable,
}

/// What a scan found.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The last record that is on the chain (its payload may be damaged, see `damaged`).
    pub position: Position,
    /// Offset behind that record's batch; when the batch holds more than what is valid, behind the record.
    pub end: u64,
    /// Why it ended.
    pub stop: Stop,
    /// Records whose payload is not what was written, in rising order.
    pub damaged: Vec<Lsn>,
    /// The newest `durable_lsn` of the batch headers that were read.
    pub durable: Lsn,
    /// Records of which the disk would not give the header or the payload, in rising order.
    pub unreadable: Vec<Lsn>,
}

/// One record found by a scan.
pub struct Found<'a> {
    /// Its header.
    pub header: &'a RecordHeader,
    /// Where its payload begins, as a block number of the file.
    pub payload_block: u32,
    /// CRCs of the payload's blocks as they are now.
    pub crcs: &'a [u32],
    /// Whether the payload is what was written.
    pub intact: bool,
}

/// A window over a file that moves forward.
struct Window<'a> {
    segment: &'a Segment,
    file_bytes: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `offset`; `None` behind the end of the file. `len` is at most the window's size.
    fn get(&mut self, offset: u64, len: u64) -> io::Result<Option<&[u8]>> {
        debug_assert!(len <= WINDOW_BYTES);
        if offset + len > self.file_bytes {
            return Ok(None);
        }
        let have = self.start..self.start + self.bytes.len() as u64;
        if offset < have.start || offset + len > have.end {
            let fresh = (self.file_bytes - offset).min(WINDOW_BYTES);
            self.bytes.resize(fresh as usize, 0);
            self.start = offset;
            if self.segment.file.read_at(offset, &mut self.bytes).is_err() {
                // A bad sector somewhere ahead says nothing of these bytes.
                self.bytes.resize(len as usize, 0);
                if let Err(error) = self.segment.file.read_at(offset, &mut self.bytes) {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&self.bytes[at..at + len as usize]))
    }
}

/// Reads the records of `segment` from its first one, which must follow `before`, up to and including
/// `through`. `sink` sees every record that is on the chain.
pub fn scan(
    segment: &Segment,
    before: Position,
    through: Lsn,
    sink: &mut dyn FnMut(Found<'_>),
) -> io::Result<Scan> {
    let file_bytes = segment.file.len()?;
    let space_end = file_bytes.min(segment.header.bytes);
    let mut window = Window { segment, file_bytes: space_end, start: 0, bytes: Vec::new() };
    let mut scan = Scan {
        position: before,
        end: BLOCK_BYTES,
        stop: Stop::Complete,
        damaged: Vec::new(),
        durable: Lsn::ZERO,
        unreadable: Vec::new(),
    };
    let mut headers = Vec::new();
    let mut crcs = Vec::new();
    while scan.position.lsn < through {
        let start = scan.end;
        let first = match window.get(start, BLOCK_BYTES) {
            Ok(Some(first)) => first,
            Ok(None) => {
                // Behind the last whole block: the ordinary end of a full segment, or of a file that was cut.
                scan.stop = if file_bytes < segment.header.bytes { Stop::Short } else { Stop::NoBatch };
                break;
            }
            Err(_) => {
                scan.stop = Stop::Unreadable;
                scan.unreadable.push(scan.position.lsn.next());
                break;
            }
        };
        let batch = match first.first_chunk().and_then(BatchHeader::decode) {
            Some(batch) if batch.segment == segment.header.id => batch,
            _ => {
                scan.stop = Stop::NoBatch;
                break;
            }
        };
        scan.durable = scan.durable.max(batch.durable_lsn);
        if batch.first_lsn != scan.position.lsn.next() || batch.chain_before != scan.position.chain {
            scan.stop = Stop::OffChain;
            break;
        }
        let header_bytes = BATCH_HEADER_BYTES + batch.records as usize * RECORD_HEADER_BYTES;
        let region = match window.get(start, (header_bytes as u64).next_multiple_of(BLOCK_BYTES)) {
            Ok(Some(region)) => region,
            Ok(None) => {
                scan.stop = Stop::Short;
                break;
            }
            Err(_) => {
                scan.stop = Stop::Unreadable;
                scan.unreadable.push(scan.position.lsn.next());
                break;
            }
        };
        headers.clear();
        headers.extend_from_slice(&region[BATCH_HEADER_BYTES..header_bytes]);
        let mut payload_at = start + batch_header_blocks(batch.records as usize) * BLOCK_BYTES;
        let (chunks, _) = headers.as_chunks::<RECORD_HEADER_BYTES>();
        for bytes in chunks {
            let header = match RecordHeader::decode(bytes) {
                Some(header)
                    if header.lsn == scan.position.lsn.next()
                        && header.volume == segment.header.volume
                        && header.timestamp > scan.position.timestamp
                        && header.chain == chain_value(scan.position.chain, bytes) =>
                {
                    header
                }
                _ => {
                    scan.stop = Stop::BadRecord;
                    return Ok(scan);
                }
            };
            let payload_end = payload_at + header.payload_blocks() * BLOCK_BYTES;
            let intact = match read_crcs(&mut window, payload_at, header.payload_bytes, &mut crcs) {
                Ok(true) => payload_crc(&crcs) == header.payload_crc,
                // The file ends before the payload does.
                Ok(false) => false,
                // The disk cannot read it: damage of this payload, not the end of the log.
                Err(_) => {
                    scan.unreadable.push(header.lsn);
                    false
                }
            };
            if !intact {
                crcs.resize(header.payload_blocks() as usize, 0);
                scan.damaged.push(header.lsn);
            }
            sink(Found {
                header: &header,
                payload_block: (payload_at / BLOCK_BYTES) as u32,
                crcs: &crcs,
                intact,
            });
            scan.position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
            scan.end = payload_end;
            payload_at = payload_end;
            if scan.position.lsn == through {
                return Ok(scan);
            }
        }
    }
    Ok(scan)
}

/// Visits the headers of the records up to and including `through`, as long as they are on the chain. Reads no
/// payload, so it is for showing history, not for believing it.
pub fn headers(
    segment: &Segment,
    before: Position,
    through: Lsn,
    sink: &mut dyn FnMut(&RecordHeader),
) -> io::Result<()> {
    let (mut position, mut at) = (before, BLOCK_BYTES);
    let mut region = vec![0; BLOCK];
    while position.lsn < through {
        region.resize(BLOCK, 0);
        segment.file.read_at(at, &mut region)?;
        let Some(batch) = region.first_chunk().and_then(BatchHeader::decode) else { break };
        if batch.segment != segment.header.id || batch.first_lsn != position.lsn.next() {
            break;
        }
        let header_bytes = BATCH_HEADER_BYTES + batch.records as usize * RECORD_HEADER_BYTES;
        if header_bytes > BLOCK {
            region.resize(header_bytes.next_multiple_of(BLOCK), 0);
            segment.file.read_at(at, &mut region)?;
        }
        at += batch_header_blocks(batch.records as usize) * BLOCK_BYTES;
        let (chunks, _) = region[BATCH_HEADER_BYTES..header_bytes].as_chunks::<RECORD_HEADER_BYTES>();
        for bytes in chunks {
            let Some(header) = RecordHeader::decode(bytes) else { return Ok(()) };
            if header.lsn != position.lsn.next() || header.chain != chain_value(position.chain, bytes) {
                return Ok(());
            }
            sink(&header);
            at += header.payload_blocks() * BLOCK_BYTES;
            position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
            if position.lsn == through {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_crcs(window: &mut Window<'_>, mut at: u64, bytes: u32, crcs: &mut Vec<u32>) -> io::Result<bool> {
    crcs.clear();
    let mut left = bytes as u64;
    let mut piece = Vec::new();
    while left > 0 {
        // Always whole blocks, so that a window never splits one.
        let step = left.min(WINDOW_BYTES);
        let stored = step.next_multiple_of(BLOCK_BYTES);
        let Some(content) = window.get(at, stored)? else { return Ok(false) };
        block_crcs(&content[..step as usize], &mut piece);
        crcs.append(&mut piece);
        at += stored;
        left -= step;
    }
    Ok(true)
}

/// The newest `durable_lsn` in any batch header of this segment from `offset` on, wherever it stands: what
/// lies behind a gap still tells what was once synced.
pub fn harvest_durable(segment: &Segment, offset: u64) -> io::Result<Lsn> {
    let end = segment.file.len()?.min(segment.header.bytes);
    harvest(&*segment.file, offset, end, &|batch, _| batch.segment == segment.header.id)
}

/// The same of a segment file whose own header is gone, so that nobody knows which use of it the batches
/// belong to. An earlier use cannot tell more than what was durable either, so all of this volume's count.
pub fn harvest_headless(file: &dyn File, volume: VolumeId) -> io::Result<Lsn> {
    harvest(file, BLOCK_BYTES, file.len()?, &|_, block| {
        let record = block[BATCH_HEADER_BYTES..].first_chunk().and_then(RecordHeader::decode);
        record.is_some_and(|record| record.volume == volume)
    })
}

/// Whether a batch stands where the first one of a segment would.
pub fn begins_with_batch(file: &dyn File) -> bool {
    let mut block = [0; BLOCK];
    file.read_at(BLOCK_BYTES, &mut block).is_ok()
        && block.first_chunk().and_then(BatchHeader::decode).is_some()
}

fn harvest(
    file: &dyn File,
    offset: u64,
    end: u64,
    counts: &dyn Fn(&BatchHeader, &[u8]) -> bool,
) -> io::Result<Lsn> {
    let mut durable = Lsn::ZERO;
    let mut at = offset.next_multiple_of(BLOCK_BYTES);
    let mut buffer = Vec::new();
    while at + BLOCK_BYTES <= end {
        // A hole holds no batches; a filesystem that cannot tell says "data".
        match file.next_data(at)? {
            None => break,
            Some(data) => at = at.max(data / BLOCK_BYTES * BLOCK_BYTES),
        }
        let step = end.saturating_sub(at).min(WINDOW_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        if step == 0 {
            break;
        }
        buffer.resize(step as usize, 0);
        if file.read_at(at, &mut buffer).is_err() {
            // What cannot be read bears no witness; its neighbours still may.
            read_block_by_block(file, at, &mut buffer);
        }
        for block in buffer.chunks_exact(BLOCK) {
            if let Some(batch) = block.first_chunk().and_then(BatchHeader::decode)
                && counts(&batch, block)
            {
                durable = durable.max(batch.durable_lsn);
            }
        }
        at += step;
    }
    Ok(durable)
}

fn read_block_by_block(file: &dyn File, start: u64, buffer: &mut [u8]) {
    for (number, block) in buffer.chunks_exact_mut(BLOCK).enumerate() {
        if file.read_at(start + (number * BLOCK) as u64, block).is_err() {
            block.fill(0);
        }
    }
}

/// The payload of one record, checked; `Ok(None)` if it is not what was written.
pub fn read_payload(
    segment: &Segment,
    header: &RecordHeader,
    payload_block: u32,
    crcs: &mut Vec<u32>,
) -> io::Result<Option<Vec<u8>>> {
    let mut payload = vec![0; header.payload_bytes as usize];
    segment.file.read_at(payload_block as u64 * BLOCK_BYTES, &mut payload)?;
    block_crcs(&payload, crcs);
    Ok((payload_crc(crcs) == header.payload_crc).then_some(payload))
}
