//! What records say that change no blocks: their payloads, read and taken apart.

use super::Volume;
use super::parts::Part;
use super::timeline::EventKind;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::epoch::EpochPayload;
use crate::format::marker::MarkerPayload;
use crate::format::record::{RecordKind, block_crcs, payload_crc};
use crate::format::run::MarkerRow;
use crate::format::turn::Turn;
use crate::ids::*;
use crate::io::GatheredRead;

/// Longest payload of an event that is read, in bytes.
const EVENT_BYTES_MAX: u32 = 1 << 20;
/// So many events are read at once, of at most so many bytes together or one: they lie scattered in the journal, and there may be
/// half a million.
const READ_AT_ONCE: usize = 256;
/// See [`READ_AT_ONCE`].
const READ_BYTES_AT_ONCE: u64 = 4 << 20;

impl Volume {
    /// What one event of a part says.
    pub(super) fn event_kind(&self, part: &Part, row: &MarkerRow) -> Result<EventKind> {
        let mut payload = buffer_for(row);
        if !payload.is_empty() {
            part.segment
                .file
                .read_at(row.block as u64 * BLOCK_BYTES, &mut payload)
                .at(|| format!("reading {:?}", row.lsn))?;
        }
        decode(row, &payload)
    }

    /// What many events of a part say, in their order.
    pub(super) fn event_kinds(
        &self,
        part: &Part,
        rows: &[MarkerRow],
        visit: &mut dyn FnMut(&MarkerRow, Result<EventKind>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = rows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |row: &&MarkerRow| {
                bytes += u64::from(row.payload_bytes.min(EVENT_BYTES_MAX));
                bytes <= READ_BYTES_AT_ONCE
            };
            let count = rest.iter().take(READ_AT_ONCE).take_while(fits).count().max(1);
            let (now, behind) = rest.split_at(count);
            let mut payloads: Vec<Vec<u8>> = now.iter().map(buffer_for).collect();
            // As an open file, so that all reads are handed over at once.
            let file = match part.segment.file.held() {
                Ok(Some(file)) => file,
                _ => part.segment.file.clone(),
            };
            let mut reads: Vec<GatheredRead<'_>> = now
                .iter()
                .zip(&mut payloads)
                .map(|(row, payload)| GatheredRead {
                    file: file.clone(),
                    offset: row.block as u64 * BLOCK_BYTES,
                    buffer: payload,
                    result: Ok(()),
                })
                .collect();
            self.shared.files.read_gathered(&mut reads);
            let results: Vec<std::io::Result<()>> = reads.into_iter().map(|read| read.result).collect();
            for ((row, payload), result) in now.iter().zip(&payloads).zip(results) {
                let read = match payload.is_empty() {
                    true => Ok(()),
                    false => result.at(|| format!("reading {:?}", row.lsn)),
                };
                visit(row, read.and_then(|()| decode(row, payload)))?;
            }
            rest = behind;
        }
        Ok(())
    }
}

fn buffer_for(row: &MarkerRow) -> Vec<u8> {
    vec![0; row.payload_bytes.min(EVENT_BYTES_MAX) as usize]
}

fn decode(row: &MarkerRow, payload: &[u8]) -> Result<EventKind> {
    let kind = RecordKind::from_u8(row.kind)
        .ok_or_else(|| Error::new(Kind::Damaged, format!("event {:?} has no known kind", row.lsn)))?;
    let damaged = || Error::new(Kind::Damaged, format!("the payload of {:?} is damaged", row.lsn));
    if matches!(kind, RecordKind::Rollback | RecordKind::Resize) {
        // It brings checksums of its own, and a second copy.
        return Turn::decode(kind, payload).map(EventKind::Turn).ok_or_else(damaged);
    }
    if kind == RecordKind::Epoch {
        // Likewise.
        return EpochPayload::decode(payload).map(EventKind::Epoch).ok_or_else(damaged);
    }
    let mut crcs = Vec::new();
    block_crcs(payload, &mut crcs);
    if payload_crc(&crcs) != row.payload_crc {
        return Err(damaged());
    }
    Ok(match kind {
        RecordKind::Marker if payload.is_empty() => EventKind::PeriodicMarker,
        RecordKind::Marker => EventKind::Marker(MarkerPayload::decode(payload).ok_or_else(damaged)?),
        RecordKind::ClockStep => {
            let (numbers, _) = payload.as_chunks::<8>();
            let [expected, wall] = numbers else { return Err(damaged()) };
            EventKind::ClockStep {
                expected: Timestamp(u64::from_le_bytes(*expected)),
                wall: Timestamp(u64::from_le_bytes(*wall)),
            }
        }
        RecordKind::SessionOpen | RecordKind::SessionClose => {
            let (number, peer) = payload.split_first_chunk::<4>().ok_or_else(damaged)?;
            let session = SessionId(u32::from_le_bytes(*number));
            let peer = String::from_utf8_lossy(peer).into_owned();
            match kind {
                RecordKind::SessionOpen => EventKind::SessionOpen { session, peer },
                _ => EventKind::SessionClose { session },
            }
        }
        other => EventKind::Other(other),
    })
}
