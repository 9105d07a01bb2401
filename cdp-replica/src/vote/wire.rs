//! Messages between a site and a voter. PROTOCOL.md, "Votes".

use cdp_core::format::bytes::{Cursor, crc32, get_u32, put_text};
use cdp_core::ids::VolumeId;

use super::board::{Ask, Said};
use super::{Answer, Ballot, Claim, SiteId, Verdict};
use crate::fault::Fault;
use crate::limits::{CLAIM_EPOCH_MAX, CLAIM_VOLUMES_MAX, NAME_BYTES_MAX, VOTE_BYTES_MAX};

/// Length of what stands before a body.
pub const HEADER_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"CDPV";
/// Version of the messages, and of [`crate::limits::LEASE_NS`].
const VERSION: u8 = 1;
const CLAIM: u8 = 1;
const ANSWER: u8 = 2;
const RELEASE: u8 = 3;
const TRIAL: u8 = 1;

/// What a site sends.
pub fn encode_ask(Ask { volumes, claim, gives_up }: &Ask) -> Vec<u8> {
    let mut body = Vec::with_capacity(40 + volumes.len() * 16);
    body.extend_from_slice(&claim.round.to_le_bytes());
    body.extend_from_slice(&claim.ballot.epoch.to_le_bytes());
    body.extend_from_slice(&claim.ballot.site.0.to_le_bytes());
    body.extend_from_slice(&(volumes.len() as u32).to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    volumes.iter().for_each(|id| body.extend_from_slice(&id.0.to_le_bytes()));
    frame(if *gives_up { RELEASE } else { CLAIM }, claim.trial, 0, &body)
}

/// What a voter sends.
pub fn encode_said(Said { answer, holder }: &Said) -> Vec<u8> {
    let (verdict, epoch, wait_ns) = match answer.verdict {
        Verdict::Granted => (0, 0, 0),
        Verdict::Superseded { by } => (1, by, 0),
        Verdict::Promised { wait_ns, epoch } => (2, epoch, wait_ns),
        Verdict::Broken => (3, 0, 0),
    };
    let mut body = Vec::with_capacity(32 + holder.len());
    body.extend_from_slice(&answer.round.to_le_bytes());
    body.extend_from_slice(&epoch.to_le_bytes());
    body.extend_from_slice(&wait_ns.to_le_bytes());
    put_text(&mut body, holder);
    frame(ANSWER, answer.trial, verdict, &body)
}

fn frame(kind: u8, trial: bool, verdict: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, kind, u8::from(trial), verdict]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The length of the message at the front of these bytes, header and all, once its header is there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    if bytes[..4] != MAGIC {
        return Err(Fault::protocol("this is no message of the votes"));
    }
    if bytes[4] != VERSION {
        return Err(Fault::protocol(format!(
            "version {} of the votes; this side speaks {VERSION}",
            bytes[4]
        )));
    }
    match get_u32(bytes, 8) as usize {
        length if length > VOTE_BYTES_MAX => Err(Fault::protocol(format!("a message of {length} bytes"))),
        length => Ok(Some(HEADER_BYTES + length)),
    }
}

fn body(message: &[u8], kind: u8) -> Option<(bool, u8, Cursor<'_>)> {
    let body = message.get(HEADER_BYTES..)?;
    let is_whole = message[5] == kind && message[6] <= TRIAL && crc32(body) == get_u32(message, 12);
    is_whole.then(|| (message[6] == TRIAL, message[7], Cursor::new(body)))
}

/// Reads a whole message of a site.
pub fn decode_ask(message: &[u8]) -> Result<Ask, Fault> {
    read_ask(message).ok_or_else(|| Fault::protocol("a claim that makes no sense"))
}

fn read_ask(message: &[u8]) -> Option<Ask> {
    let gives_up = message.get(5) == Some(&RELEASE);
    let (trial, _, mut cursor) = body(message, if gives_up { RELEASE } else { CLAIM })?;
    let round = cursor.u64()?;
    let ballot = Ballot { epoch: cursor.u64()?, site: SiteId(cursor.u128()?) };
    // Were a voter bound to the last epoch there is, nobody could ever go on from it.
    if ballot.epoch > CLAIM_EPOCH_MAX {
        return None;
    }
    let count = cursor.u32()? as usize;
    if cursor.u32()? != 0 || !(1..=CLAIM_VOLUMES_MAX).contains(&count) || cursor.rest() != count * 16 {
        return None;
    }
    let volumes: Vec<VolumeId> = (0..count).map(|_| cursor.u128().map(VolumeId)).collect::<Option<_>>()?;
    Some(Ask { volumes, claim: Claim { ballot, trial, round }, gives_up })
}

/// Reads a whole message of a voter.
pub fn decode_said(message: &[u8]) -> Result<Said, Fault> {
    read_said(message).ok_or_else(|| Fault::protocol("an answer of a voter that makes no sense"))
}

fn read_said(message: &[u8]) -> Option<Said> {
    let (trial, verdict, mut cursor) = body(message, ANSWER)?;
    let (round, epoch, wait_ns) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    let holder = cursor.text().filter(|name| name.len() <= NAME_BYTES_MAX)?.to_owned();
    let verdict = match verdict {
        0 => Verdict::Granted,
        1 => Verdict::Superseded { by: epoch },
        2 => Verdict::Promised { wait_ns, epoch },
        3 => Verdict::Broken,
        _ => return None,
    };
    cursor.is_empty().then_some(Said { answer: Answer { round, trial, verdict }, holder })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        let claim = Claim { ballot: Ballot { epoch: 3, site: SiteId(0x22) }, trial: true, round: 0x11 };
        Ask { volumes: vec![VolumeId(0x33), VolumeId(0x44)], claim, gives_up: false }
    }

    fn said() -> Said {
        let verdict = Verdict::Promised { wait_ns: 0x55, epoch: 3 };
        Said { answer: Answer { round: 0x11, trial: false, verdict }, holder: "site-a".to_owned() }
    }

    // A witness is updated on another day than the sites: the bytes of version 1 are these.
    #[test]
    fn golden() {
        let bytes = encode_ask(&ask());
        let mut wanted = b"CDPV\x01\x01\x01\x00\x48\x00\x00\x00".to_vec();
        let mut rest = vec![0x11, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        for id in [0x22u128, 2, 0x33, 0x44] {
            rest.extend_from_slice(&id.to_le_bytes()[..if id == 2 { 8 } else { 16 }]);
        }
        wanted.extend_from_slice(&crc32fast::hash(&rest).to_le_bytes());
        wanted.extend_from_slice(&rest);
        assert_eq!(bytes, wanted);
        wanted[5] = 3;
        assert_eq!(encode_ask(&Ask { gives_up: true, ..ask() }), wanted);
        assert!(decode_ask(&wanted).unwrap().gives_up);
        let bytes = encode_said(&said());
        assert_eq!(&bytes[..12], b"CDPV\x01\x02\x00\x02\x20\x00\x00\x00");
        assert_eq!(&bytes[16..40], [&0x11u64, &3, &0x55].map(|n| n.to_le_bytes()).concat());
        assert_eq!(&bytes[40..], b"\x06\x00site-a");
    }

    // Bytes of anybody who reaches the port: an error, and no memory by their word.
    #[test]
    fn what_is_wrong_is_an_error() {
        let (ask_bytes, said_bytes) = (encode_ask(&ask()), encode_said(&said()));
        assert_eq!(decode_ask(&ask_bytes).unwrap(), ask());
        assert_eq!(decode_said(&said_bytes).unwrap(), said());
        assert_eq!(length(&ask_bytes).unwrap(), Some(ask_bytes.len()));
        assert!(decode_said(&ask_bytes).is_err() && decode_ask(&said_bytes).is_err());
        for bytes in [&ask_bytes, &said_bytes] {
            for len in 0..bytes.len() {
                assert!(decode_ask(&bytes[..len]).is_err() && decode_said(&bytes[..len]).is_err());
            }
            for at in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[at / 8] ^= 1 << (at % 8);
                if matches!(length(&flipped), Ok(Some(len)) if len == flipped.len()) {
                    // Nothing, or what one bit of the header stands for: TLS is what keeps these bytes whole.
                    let _ = (decode_ask(&flipped), decode_said(&flipped));
                }
                if at >= HEADER_BYTES * 8 {
                    assert!(decode_ask(&flipped).is_err() && decode_said(&flipped).is_err());
                }
            }
        }
        for (epoch, is_taken) in [(CLAIM_EPOCH_MAX, true), (CLAIM_EPOCH_MAX + 1, false), (u64::MAX, false)] {
            let mut last = ask();
            last.claim.ballot.epoch = epoch;
            assert_eq!(decode_ask(&encode_ask(&last)).is_ok(), is_taken, "{epoch}");
        }
        let mut long = ask_bytes;
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(length(&long).is_err());
    }
}
