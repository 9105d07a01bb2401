//! RECORDS and PAYLOAD bodies. PROTOCOL.md, "Records".

use cdp_core::format::bytes::Cursor;
use cdp_core::format::record::{Chain, RECORD_IDENTITY_BYTES, RecordHeader};
use cdp_core::ids::Lsn;
use cdp_core::journal::append::Verbatim;

use super::frame::{FrameType, FrameWriter};
use crate::fault::Fault;
use crate::limits::{FRAME_PAYLOAD_BYTES, RECORDS_PER_FRAME};

const CODING_PLAIN: u8 = 0;
/// What stands before the records.
const HEAD_BYTES: usize = 32;

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
/// [`FRAME_PAYLOAD_BYTES`] of payload together; what does not fit of the last one's is given back.
pub fn send(
    writer: &mut FrameWriter,
    out: &mut Vec<u8>,
    chain_before: Chain,
    mut records: Vec<Verbatim>,
) -> Option<Rest> {
    assert!((1..=RECORDS_PER_FRAME).contains(&records.len()));
    let mut body = Vec::with_capacity(HEAD_BYTES + FRAME_PAYLOAD_BYTES);
    body.extend_from_slice(&(records.len() as u32).to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&records[0].header.lsn.0.to_le_bytes());
    body.extend_from_slice(&chain_before.0);
    let mut room = FRAME_PAYLOAD_BYTES;
    let last = records.pop().expect("at least one");
    for record in &records {
        put_head(&mut body, &record.header);
        body.extend_from_slice(&record.payload);
        room = room.checked_sub(record.payload.len()).expect("the caller asked for no more");
    }
    put_head(&mut body, &last.header);
    let first = last.payload.len().min(room);
    body.extend_from_slice(&last.payload[..first]);
    writer.frame(out, FrameType::Records, &body);
    (first < last.payload.len()).then_some(Rest { payload: last.payload, at: first })
}

fn put_head(body: &mut Vec<u8>, header: &RecordHeader) {
    body.extend_from_slice(&header.identity());
    body.extend_from_slice(&[CODING_PLAIN, 0, 0, 0]);
    body.extend_from_slice(&header.payload_bytes.to_le_bytes());
}

/// A record of which some payload is still to come.
struct Partial {
    header: RecordHeader,
    payload: Vec<u8>,
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

    /// Takes a RECORDS body in that should follow the record `after`, with this chain value. Whole records are pushed to
    /// `whole`, checked by themselves; whether they continue the history is for whoever appends them.
    pub fn records(
        &mut self,
        body: &[u8],
        after: (Lsn, Chain),
        whole: &mut Vec<Verbatim>,
    ) -> Result<(), Fault> {
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
        for number in 0..count {
            let identity = body.take(RECORD_IDENTITY_BYTES).and_then(|bytes| bytes.first_chunk());
            let header = RecordHeader::of_identity(identity.ok_or_else(short)?)
                .ok_or_else(|| wrong("with a record that is none"))?;
            let coding = body.u32().ok_or_else(short)?;
            let len = body.u32().ok_or_else(short)?;
            if coding != u32::from(CODING_PLAIN) || len != header.payload_bytes {
                return Err(wrong(&format!("with {len} bytes of payload in coding {coding}")));
            }
            let rest = body.rest();
            let here = (len as usize).min(rest);
            if here < len as usize && number + 1 < count {
                return Err(short());
            }
            let payload = body.take(here).ok_or_else(short)?.to_vec();
            if here == len as usize {
                whole.push(checked(header, payload)?);
            } else {
                self.partial = Some(Partial { header, payload });
            }
        }
        if body.is_empty() { Ok(()) } else { Err(wrong("with something behind the records")) }
    }

    /// Takes a PAYLOAD body in.
    pub fn payload(&mut self, body: &[u8], whole: &mut Vec<Verbatim>) -> Result<(), Fault> {
        let Some(partial) = &mut self.partial else {
            return Err(Fault::protocol("a PAYLOAD frame without a record"));
        };
        let left = partial.header.payload_bytes as usize - partial.payload.len();
        if body.is_empty() || body.len() > left {
            return Err(Fault::protocol("a PAYLOAD frame that is longer than its record"));
        }
        // Grows with what came, whatever length was named.
        partial.payload.extend_from_slice(body);
        if body.len() == left {
            let partial = self.partial.take().expect("it was just there");
            whole.push(checked(partial.header, partial.payload)?);
        }
        Ok(())
    }
}

fn checked(header: RecordHeader, payload: Vec<u8>) -> Result<Verbatim, Fault> {
    let lsn = header.lsn;
    Verbatim::checked(header, payload)
        .ok_or_else(|| Fault::protocol(format!("the payload of {lsn:?} is not what its header tells of")))
}
