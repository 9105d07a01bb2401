//! Frames: what both directions of a connection are rows of. PROTOCOL.md, "Frames".

use cdp_core::format::bytes::{crc32, get_u32, put};
use cdp_core::format::codec::Codec;

use crate::fault::Fault;
use crate::limits::{BODY_BYTES_MAX, CONTROL_BYTES_MAX};

/// Length of what stands before a body.
pub const FRAME_HEADER_BYTES: usize = 20;
const MAGIC: [u8; 4] = *b"CDPL";
/// Version of the frames and of everything in them.
pub const VERSION: u8 = 1;
/// Beyond this level a frame gets hardly smaller, and takes several times as long.
const ZSTD_LEVEL: i32 = 3;
/// A body is sent coded if that saves at least one part in so many.
const SAVED_PARTS_MIN: usize = 8;
/// After one that did not shrink so many are not tried.
const SKIPPED_AFTER_MISS: u32 = 15;
/// Shorter bodies are not worth trying.
const CODED_BYTES_MIN: usize = 512;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameType {
    /// Who speaks.
    Hello = 1,
    /// Which volume.
    Open = 2,
    /// What the receiver has of it.
    State = 3,
    /// Where it begins.
    Start = 4,
    /// Records.
    Records = 5,
    /// More of the last record's payload.
    Payload = 6,
    /// What is durable at the receiver.
    Ack = 7,
    /// Up to when everything was sent.
    Complete = 8,
    /// Blocks of a first copy.
    Copy = 9,
    /// What ranges of a state hash to.
    Ranges = 10,
    /// Which of them differ.
    Differs = 11,
    /// A higher epoch exists.
    Epoch = 12,
    /// The connection ends.
    Error = 13,
    /// The groups of the volume.
    Groups = 14,
    /// Blocks of a range that differ.
    Patch = 15,
    /// Blocks of a newest state.
    Ahead = 16,
}

impl FrameType {
    fn from_u8(number: u8) -> Option<FrameType> {
        use FrameType::*;
        [
            Hello, Open, State, Start, Records, Payload, Ack, Complete, Copy, Ranges, Differs, Epoch, Error,
            Groups, Patch, Ahead,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// Whether its body is laid out by hand and may be long and coded.
    fn is_bulk(self) -> bool {
        use FrameType::*;
        matches!(self, Records | Payload | Copy | Ranges | Differs | Patch | Ahead)
    }
}

/// Makes frames.
pub struct FrameWriter {
    /// What bodies that are laid out by hand are compressed with; the other side can undo it.
    pub codec: Codec,
    skip: u32,
}

impl Default for FrameWriter {
    /// One that compresses nothing: what is said before the other side told what it can undo.
    fn default() -> FrameWriter {
        FrameWriter { codec: Codec::None, skip: 0 }
    }
}

impl FrameWriter {
    /// Appends a frame with this body, which is within its bound.
    pub fn frame(&mut self, out: &mut Vec<u8>, kind: FrameType, body: &[u8]) {
        assert!(body.len() <= if kind.is_bulk() { BODY_BYTES_MAX } else { CONTROL_BYTES_MAX });
        let at = begin(out);
        let coding = match self.coded(kind, body) {
            Some(coded) => {
                out.extend_from_slice(&coded);
                self.codec
            }
            None => {
                out.extend_from_slice(body);
                Codec::None
            }
        };
        seal(out, at, kind, coding);
    }

    /// As [`FrameWriter::frame`]; `put` appends the body where it is going to stand, and nothing else. After an error of its own
    /// nothing was appended.
    pub fn frame_in_place<E>(
        &mut self,
        out: &mut Vec<u8>,
        kind: FrameType,
        put: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = begin(out);
        if let Err(error) = put(out) {
            out.truncate(at);
            return Err(error);
        }
        let body = &out[at + FRAME_HEADER_BYTES..];
        assert!(body.len() <= if kind.is_bulk() { BODY_BYTES_MAX } else { CONTROL_BYTES_MAX });
        let coding = match self.coded(kind, body) {
            Some(coded) => {
                out.truncate(at + FRAME_HEADER_BYTES);
                out.extend_from_slice(&coded);
                self.codec
            }
            None => Codec::None,
        };
        seal(out, at, kind, coding);
        Ok(())
    }

    fn coded(&mut self, kind: FrameType, body: &[u8]) -> Option<Vec<u8>> {
        if self.codec == Codec::None || !kind.is_bulk() || body.len() < CODED_BYTES_MIN {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let packed = match self.codec {
            Codec::None => return None,
            Codec::Lz4 => lz4_flex::block::compress(body),
            Codec::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL).ok()?,
        };
        let coded = [&(body.len() as u32).to_le_bytes()[..], &packed].concat();
        if coded.len() <= body.len() - body.len() / SAVED_PARTS_MIN {
            return Some(coded);
        }
        self.skip = SKIPPED_AFTER_MISS;
        None
    }
}

/// Room for the header of a frame whose body is to follow; where it stands.
fn begin(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    at
}

/// Fills in the header of the frame that stands at `at`, the last one.
fn seal(out: &mut [u8], at: usize, kind: FrameType, coding: Codec) {
    let (header, body) = out[at..].split_at_mut(FRAME_HEADER_BYTES);
    put(header, 0, MAGIC);
    header[4] = VERSION;
    header[5] = kind as u8;
    header[6] = coding.number();
    put(header, 8, (body.len() as u32).to_le_bytes());
    put(header, 12, crc32(body).to_le_bytes());
    let crc = crc32(&header[..16]);
    put(header, 16, crc.to_le_bytes());
}

/// Cuts what comes in into frames. Holds less than one frame beyond what is taken out of it.
#[derive(Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    // Up to where it was taken.
    taken: usize,
    plain: Vec<u8>,
}

impl FrameReader {
    /// Takes bytes in. The caller takes all frames out before it comes again.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame and its body; `None` until more comes in.
    pub fn next_frame(&mut self) -> Result<Option<(FrameType, &[u8])>, Fault> {
        let rest = &self.buffer[self.taken..];
        let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        if header[..4] != MAGIC || get_u32(header, 16) != crc32(&header[..16]) {
            return Err(Fault::protocol("this is no frame of the replication protocol"));
        }
        if header[4] != VERSION {
            return Err(Fault::protocol(format!(
                "frames of version {}; version {VERSION} is known",
                header[4]
            )));
        }
        let Some(kind) = FrameType::from_u8(header[5]) else {
            return Err(Fault::protocol(format!("a frame of the unknown type {}", header[5])));
        };
        let (coding, len) = (Codec::from_number(header[6]), get_u32(header, 8) as usize);
        let len_max = if kind.is_bulk() { BODY_BYTES_MAX } else { CONTROL_BYTES_MAX };
        let is_known = coding.is_some_and(|codec| codec == Codec::None || kind.is_bulk());
        let (true, Some(codec), 0) = (is_known && len <= len_max, coding, header[7]) else {
            let text = format!("a {kind:?} frame of {len} bytes in coding {}", header[6]);
            return Err(Fault::protocol(text));
        };
        let Some(body) = rest[FRAME_HEADER_BYTES..].get(..len) else { return Ok(None) };
        if get_u32(header, 12) != crc32(body) {
            return Err(Fault::protocol(format!("a {kind:?} frame whose body is not what was sent")));
        }
        let from = self.taken + FRAME_HEADER_BYTES;
        self.taken = from + len;
        if codec == Codec::None {
            return Ok(Some((kind, &self.buffer[from..from + len])));
        }
        self.plain = undo(codec, &self.buffer[from..from + len])?;
        Ok(Some((kind, &self.plain)))
    }
}

/// A body as it was; takes no more memory than a body may have, whatever it says.
fn undo(codec: Codec, coded: &[u8]) -> Result<Vec<u8>, Fault> {
    let wrong = || Fault::protocol(format!("a body that {codec} cannot have made"));
    let (len, block) = coded.split_first_chunk::<4>().ok_or_else(wrong)?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > BODY_BYTES_MAX {
        return Err(wrong());
    }
    let mut plain = vec![0; len];
    let written = match codec {
        Codec::None => return Err(wrong()),
        Codec::Lz4 => lz4_flex::block::decompress_into(block, &mut plain).map_err(|_| wrong())?,
        Codec::Zstd => zstd::bulk::decompress_to_buffer(block, &mut plain).map_err(|_| wrong())?,
    };
    if written != len { Err(wrong()) } else { Ok(plain) }
}
