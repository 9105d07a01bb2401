//! What the catalog keeps under its keys, as bytes.

use super::{CatalogName, Complete};
use crate::format::bytes::{Cursor, crc32, put_text};
use crate::format::record::{Chain, RecordKind};
use crate::format::turn::Turn;
use crate::history::course::TurnAt;
use crate::ids::*;

/// Names of earlier versions stood in a row each.
pub(super) const VERSION: u8 = 3;
/// Keys: volume id, then this byte for the completeness value, the next one and an LSN for a row of names, or the last one
/// for all rollbacks and resizes.
pub(super) const KEY_COMPLETE: u8 = 0;
/// See [`KEY_COMPLETE`].
pub(super) const KEY_NAMES: u8 = 1;
/// See [`KEY_COMPLETE`].
pub(super) const KEY_TURNS: u8 = 2;

pub(super) fn prefix(volume: VolumeId, what: u8) -> [u8; 17] {
    let mut prefix = [what; 17];
    prefix[..16].copy_from_slice(&volume.0.to_be_bytes());
    prefix
}

pub(super) fn key(volume: VolumeId, what: u8, lsn: Lsn) -> [u8; 25] {
    let mut key = [0; 25];
    key[..17].copy_from_slice(&prefix(volume, what));
    key[17..].copy_from_slice(&lsn.0.to_be_bytes());
    key
}

/// The LSN of a key.
pub(super) fn lsn_of(key: &[u8]) -> Option<Lsn> {
    key.last_chunk::<8>().map(|lsn| Lsn(u64::from_be_bytes(*lsn)))
}

/// Whether a value is of this version, whatever else is wrong with it.
pub(super) fn is_of_this_version(value: &[u8]) -> bool {
    value.first() == Some(&VERSION)
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let crc = crc32(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    body
}

fn unsealed(value: &[u8]) -> Option<Cursor<'_>> {
    let (body, crc) = value.split_last_chunk::<4>()?;
    (crc32(body) == u32::from_le_bytes(*crc)).then_some(())?;
    let mut cursor = Cursor::new(body);
    (cursor.take(1)? == [VERSION]).then_some(cursor)
}

pub(super) fn encode_complete(complete: Complete, names: u64) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&complete.segment.0.to_le_bytes());
    body.extend_from_slice(&complete.lsn.0.to_le_bytes());
    body.extend_from_slice(&complete.chain.0);
    body.extend_from_slice(&names.to_le_bytes());
    sealed(body)
}

pub(super) fn decode_complete(value: &[u8]) -> Option<(Complete, u64)> {
    let mut cursor = unsealed(value)?;
    let complete = Complete {
        segment: SegmentId(cursor.u64()?),
        lsn: Lsn(cursor.u64()?),
        chain: Chain(cursor.take(16)?.try_into().ok()?),
    };
    Some((complete, cursor.u64()?))
}

/// For each name: LSN, timestamp, class, text.
pub(super) fn encode_names(names: &[CatalogName]) -> Vec<u8> {
    let mut body = vec![VERSION];
    for name in names {
        body.extend_from_slice(&name.lsn.0.to_le_bytes());
        body.extend_from_slice(&name.at.0.to_le_bytes());
        body.push(name.class);
        put_text(&mut body, &name.name);
    }
    sealed(body)
}

pub(super) fn decode_names(value: &[u8]) -> Option<Vec<CatalogName>> {
    let mut cursor = unsealed(value)?;
    let mut names = Vec::new();
    while !cursor.is_empty() {
        names.push(CatalogName {
            lsn: Lsn(cursor.u64()?),
            at: Timestamp(cursor.u64()?),
            class: *cursor.take(1)?.first()?,
            name: cursor.text()?.to_owned(),
        });
    }
    Some(names)
}

/// The chain value of the end they are complete through, then for each: LSN, timestamp, kind, length, bytes.
pub(super) fn encode_turns(turns: &[TurnAt], complete: Complete) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&complete.chain.0);
    for turn in turns.iter().filter(|turn| turn.lsn <= complete.lsn) {
        let copy = turn.turn.encode_copy();
        body.extend_from_slice(&turn.lsn.0.to_le_bytes());
        body.extend_from_slice(&turn.at.0.to_le_bytes());
        body.push(turn.turn.kind() as u8);
        body.extend_from_slice(&(copy.len() as u16).to_le_bytes());
        body.extend_from_slice(&copy);
    }
    sealed(body)
}

pub(super) fn decode_turns(value: &[u8], complete: Complete) -> Option<Vec<TurnAt>> {
    let mut cursor = unsealed(value)?;
    (cursor.take(16)? == complete.chain.0).then_some(())?;
    let mut turns = Vec::new();
    while !cursor.is_empty() {
        let (lsn, at) = (Lsn(cursor.u64()?), Timestamp(cursor.u64()?));
        let kind = RecordKind::from_u8(*cursor.take(1)?.first()?)?;
        let len = usize::from(cursor.u16()?);
        turns.push(TurnAt { lsn, at, turn: Turn::decode_copy(kind, cursor.take(len)?)? });
    }
    Some(turns)
}
