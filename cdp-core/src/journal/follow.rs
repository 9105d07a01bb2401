//! Reads one segment's records one after the other, from a place in it, without looking at what lies behind.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::append::Position;
use super::segment::Segment;
use crate::format::record::*;
use crate::ids::*;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A place in a segment.
pub struct Follow {
    segment: Arc<Segment>,
    // The newest record handed out.
    position: Position,
    // Where the next batch begins.
    at: u64,
    // Records of the batch that was read last, and where their payload begins, in blocks of the file.
    ahead: VecDeque<(RecordHeader, u32)>,
}

impl Follow {
    /// Begins in front of the segment's first record, which follows `before`.
    pub fn new(segment: Arc<Segment>, before: Position) -> Follow {
        Follow { segment, position: before, at: BLOCK_BYTES, ahead: VecDeque::new() }
    }

    /// The segment.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The newest record handed out, or the one in front of the segment.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next record, and where its payload begins, in blocks of the file; `None` where nothing stands that
    /// continues the chain. Whoever asks knows that the record was written: what is not yet is not looked for.
    pub fn next_record(&mut self) -> io::Result<Option<(RecordHeader, u32)>> {
        if self.ahead.is_empty() && !self.read_batch()? {
            return Ok(None);
        }
        let next = self.ahead.pop_front();
        if let Some((header, _)) = &next {
            self.position = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
        }
        Ok(next)
    }

    fn read_batch(&mut self) -> io::Result<bool> {
        let mut region = vec![0; BLOCK];
        self.segment.file.read_at(self.at, &mut region)?;
        let Some(batch) = region.first_chunk().and_then(BatchHeader::decode) else { return Ok(false) };
        if batch.segment != self.segment.header.id
            || batch.first_lsn != self.position.lsn.next()
            || batch.chain_before != self.position.chain
        {
            return Ok(false);
        }
        let records = batch.records as usize;
        let header_bytes = BATCH_HEADER_BYTES + records * RECORD_HEADER_BYTES;
        if header_bytes > BLOCK {
            region.resize(header_bytes.next_multiple_of(BLOCK), 0);
            self.segment.file.read_at(self.at, &mut region)?;
        }
        let mut payload_at = self.at + batch_header_blocks(records) * BLOCK_BYTES;
        let mut before = self.position;
        let (chunks, _) = region[BATCH_HEADER_BYTES..header_bytes].as_chunks::<RECORD_HEADER_BYTES>();
        for bytes in chunks {
            let Some(header) = RecordHeader::decode(bytes).filter(|header| {
                header.lsn == before.lsn.next() && header.chain == chain_value(before.chain, bytes)
            }) else {
                break;
            };
            self.ahead.push_back((header, (payload_at / BLOCK_BYTES) as u32));
            payload_at += header.payload_blocks() * BLOCK_BYTES;
            before = Position { lsn: header.lsn, chain: header.chain, timestamp: header.timestamp };
        }
        self.at = payload_at;
        Ok(!self.ahead.is_empty())
    }
}
