//! RECORDS and PAYLOAD bodies. PROTOCOL.md, "Records".

use std::convert::Infallible;

use cdp_core::format::bytes::Cursor;
use cdp_core::format::record::{Chain, RECORD_IDENTITY_BYTES, RecordHeader, RecordKind};
use cdp_core::ids::{BLOCK_BYTES, Lsn};
use cdp_core::journal::append::Verbatim;

use super::delta::{self, Coding};
use super::frame::{FrameType, FrameWriter};
use super::references;
use crate::fault::{Fault, FaultKind};
use crate::limits::{CODED_FRAME_BYTES_MAX, FRAME_PAYLOAD_BYTES, RECORDS_PER_FRAME};

/// What stands before the records.
const HEAD_BYTES: usize = 32;

/// A record as it travels.
pub struct Coded {
    /// Its header, as it stands in the journal.
    pub header: RecordHeader,
    /// How its payload is coded.
    pub coding: Coding,
    /// The coded payload.
    pub payload: Vec<u8>,
}

impl Coded {
    /// With its payload as it is.
    pub fn plain(record: Verbatim) -> Coded {
        Coded { header: record.header, coding: Coding::Plain, payload: record.payload }
    }

    /// Whether such a record's payload may be coded: what it writes are whole blocks, and not too many.
    pub fn may_be_coded(header: &RecordHeader) -> bool {
        header.kind == RecordKind::Write
            && u64::from(header.payload_bytes) == header.blocks * BLOCK_BYTES
            && delta::may_code(header.payload_bytes as usize)
    }

    /// The blocks of which it takes the content before the record to undo its coding, in this order.
    pub fn older_blocks(&self) -> Result<Vec<u64>, Fault> {
        let header = &self.header;
        match self.coding {
            Coding::Plain | Coding::Zeros => Ok(Vec::new()),
            Coding::Sectors | Coding::Differences => {
                Ok((header.lba.0..header.lba.0 + header.blocks).collect())
            }
            Coding::References => {
                let places = references::places(&self.payload, header.payload_bytes as usize);
                let wrong = || Fault::protocol(format!("references of {:?} that nobody made", header.lsn));
                Ok(places.ok_or_else(wrong)?.flatten().collect())
            }
        }
    }

    /// The record as it was, if that is the one which its header tells of; `older` is what its [`Coded::older_blocks`] held before.
    pub fn undo(self, older: &[u8]) -> Result<Verbatim, Fault> {
        let (header, coding) = (self.header, self.coding);
        let lsn = header.lsn;
        let wrong = || match coding.needs_older() {
            // The bytes came as they were sent; so the older ones are others than at the sender.
            true => Fault::new(
                FaultKind::Coding,
                format!("the payload of {lsn:?} cannot be made from what its blocks hold here"),
            ),
            false => Fault::protocol(format!("the payload of {lsn:?} is not what its header tells of")),
        };
        let payload = delta::undo(coding, self.payload, older, header.payload_bytes as usize);
        payload.and_then(|payload| Verbatim::checked(header, payload)).ok_or_else(wrong)
    }
}

/// The rest of a payload that did not fit into its RECORDS frame.
pub struct Rest {
    payload: Vec<u8>,
    at: usize,
}

impl Rest {
    /// Appends the next piece as a frame. Whether that was the last.
    pub fn send(&mut self, writer: &mut FrameWriter, out: &mut Vec<u8>) -> bool {
        let end = (self.at + FRAME_PAYLOAD_BYTES).min(self.payload.len());
        writer.frame(out, FrameType::Payload, &self.payload[self.at..end]);
        self.at = end;
        end == self.payload.len()
    }
}

/// Appends records, 1 to [`RECORDS_PER_FRAME`] that follow each other, as one frame. All but the last have at most
/// [`FRAME_PAYLOAD_BYTES`] of payload together before they were coded; what does not fit of the last one's is given back.
pub fn send(
    writer: &mut FrameWriter,
    out: &mut Vec<u8>,
    chain_before: Chain,
    mut records: Vec<Coded>,
) -> Option<Rest> {
    assert!((1..=RECORDS_PER_FRAME).contains(&records.len()));
    let count = records.len() as u32;
    let first_lsn = records[0].header.lsn;
    let last = records.pop().expect("at least one");
    // A coding may add a little: the body has room for that.
    let before: usize = records.iter().map(|record| record.payload.len()).sum();
    let first = last.payload.len().min(FRAME_PAYLOAD_BYTES.saturating_sub(before));
    let Ok(()) = writer.frame_in_place(out, FrameType::Records, |body| {
        body.reserve(HEAD_BYTES + FRAME_PAYLOAD_BYTES);
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&first_lsn.0.to_le_bytes());
        body.extend_from_slice(&chain_before.0);
        for record in &records {
            put_head(body, record);
            body.extend_from_slice(&record.payload);
        }
        put_head(body, &last);
        body.extend_from_slice(&last.payload[..first]);
        Ok::<(), Infallible>(())
    });
    (first < last.payload.len()).then_some(Rest { payload: last.payload, at: first })
}

fn put_head(body: &mut Vec<u8>, record: &Coded) {
    body.extend_from_slice(&record.header.identity());
    body.extend_from_slice(&[record.coding as u8, 0, 0, 0]);
    body.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
}

/// A record of which some payload is still to come.
struct Partial {
    record: Coded,
    // Of the whole coded payload.
    bytes: usize,
}

/// Puts records together from frames.
#[derive(Default)]
pub struct Assembler {
    partial: Option<Partial>,
}

impl Assembler {
    /// Whether a record's payload is incomplete.
    pub fn is_within_record(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes a RECORDS body in that should follow the record `after`, with this chain value. Records of which all came are
    /// pushed to `whole`; whether their payloads are theirs, and whether they continue the history, is for others to see.
    pub fn records(&mut self, body: &[u8], after: (Lsn, Chain), whole: &mut Vec<Coded>) -> Result<(), Fault> {
        let wrong = |what: &str| Fault::protocol(format!("a RECORDS frame {what}"));
        if self.partial.is_some() {
            return Err(wrong("inside of a record"));
        }
        let short = || Fault::protocol("a RECORDS frame that ends too early");
        let mut body = Cursor::new(body);
        let count = body.u32().ok_or_else(short)? as usize;
        body.u32().filter(|zeros| *zeros == 0).ok_or_else(short)?;
        let first = Lsn(body.u64().ok_or_else(short)?);
        let chain: [u8; 16] = body.take(16).and_then(|bytes| bytes.try_into().ok()).ok_or_else(short)?;
        if count == 0 || count > RECORDS_PER_FRAME {
            return Err(wrong(&format!("of {count} records")));
        }
        if first != after.0.next() || chain != after.1.0 {
            let newest = after.0;
            return Err(wrong(&format!("from {first:?} on, which does not join {newest:?}")));
        }
        let mut coded_bytes = 0;
        for number in 0..count {
            let identity = body.take(RECORD_IDENTITY_BYTES).and_then(|bytes| bytes.first_chunk());
            let header = RecordHeader::of_identity(identity.ok_or_else(short)?)
                .ok_or_else(|| wrong("with a record that is none"))?;
            let number_of_coding = body.u32().ok_or_else(short)?;
            let len = body.u32().ok_or_else(short)? as usize;
            let coding = u8::try_from(number_of_coding).ok().and_then(Coding::from_u8);
            let coding = coding.filter(|coding| is_fitting(&header, *coding, len));
            let Some(coding) = coding else {
                return Err(wrong(&format!("with {len} bytes of payload in coding {number_of_coding}")));
            };
            if coding != Coding::Plain {
                // What few bytes become is bounded, too.
                coded_bytes += header.payload_bytes as usize;
                if coded_bytes > CODED_FRAME_BYTES_MAX {
                    return Err(wrong("that becomes too much"));
                }
            }
            let here = len.min(body.rest());
            if here < len && number + 1 < count {
                return Err(short());
            }
            let payload = body.take(here).ok_or_else(short)?.to_vec();
            let record = Coded { header, coding, payload };
            if here == len {
                whole.push(record);
            } else {
                self.partial = Some(Partial { record, bytes: len });
            }
        }
        if body.is_empty() { Ok(()) } else { Err(wrong("with something behind the records")) }
    }

    /// Takes a PAYLOAD body in.
    pub fn payload(&mut self, body: &[u8], whole: &mut Vec<Coded>) -> Result<(), Fault> {
        let Some(partial) = &mut self.partial else {
            return Err(Fault::protocol("a PAYLOAD frame without a record"));
        };
        let left = partial.bytes - partial.record.payload.len();
        if body.is_empty() || body.len() > left {
            return Err(Fault::protocol("a PAYLOAD frame that is longer than its record"));
        }
        // Grows with what came, whatever length was named.
        partial.record.payload.extend_from_slice(body);
        if body.len() == left {
            whole.push(self.partial.take().expect("it was just there").record);
        }
        Ok(())
    }
}

/// Whether a record can have so many bytes of payload in this coding.
fn is_fitting(header: &RecordHeader, coding: Coding, len: usize) -> bool {
    match coding {
        Coding::Plain => len == header.payload_bytes as usize,
        _ => {
            Coded::may_be_coded(header)
                && len <= delta::coded_bytes_max(coding, header.payload_bytes as usize)
        }
    }
}
