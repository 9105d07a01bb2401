//! Appends a tail of records again, byte for byte, to fresh segments: after a crash, because what was never
//! synced may be in the cache and not on the disk, and after a failed sync for the same reason.
//!
//! Legal states after a crash in the middle: until the header of the *first* fresh segment is on the disk,
//! everything is as if nothing had happened; from then on the fresh segments are the stream, whole and
//! synced. So the records are written and synced first, then the headers from the last to the first.

use super::Placement;
use super::append::{Appender, Position, Verbatim};
use super::pool::{self, Pool};
use super::segment::{Fill, Segment};
use crate::error::{IoContext, Kind, Result};
use crate::format::record::{RecordKind, batch_header_blocks};
use crate::format::segment::SegmentHeader;
use crate::ids::*;

/// Records of a batch, at most; and bytes of payload that are collected before they are appended.
const RECORDS_PER_BATCH: usize = 250;
const BYTES_PER_BATCH: usize = 8 << 20;

/// Where the stream is cut, and who cuts it.
pub struct Cut {
    /// The segment that stays in front, or the last one that was folded into the base; 0 = neither: the journal
    /// begins.
    pub predecessor: SegmentId,
    /// Offset in it behind the newest record that stays.
    pub predecessor_end: u64,
    /// That record.
    pub position: Position,
    /// Whose journal.
    pub volume: VolumeId,
    /// The opening that does this.
    pub incarnation: Incarnation,
    /// The one before it.
    pub previous_incarnation: Incarnation,
    /// The epoch.
    pub epoch: EpochNumber,
}

/// The header of a segment that continues at `position`.
pub fn next_header(cut: &Cut, random: u128) -> SegmentHeader {
    SegmentHeader {
        volume: cut.volume,
        // Zero means "none".
        id: SegmentId((random as u64).max(1)),
        ordinal: 0,
        first_lsn: cut.position.lsn.next(),
        chain_before: cut.position.chain,
        bytes: 0,
        incarnation: cut.incarnation,
        previous_incarnation: cut.previous_incarnation,
        predecessor: cut.predecessor,
        predecessor_end: cut.predecessor_end,
        timestamp_before: cut.position.timestamp,
        epoch: cut.epoch,
        codec: 0,
        key_id: 0,
        key_salt: [0; 16],
    }
}

/// Gives the tail's records to a sink, in order.
pub type Tail<'a> = dyn FnMut(&mut dyn FnMut(Verbatim) -> Result<()>) -> Result<()> + 'a;

/// Appends `tail` behind `cut` to fresh segments and makes it durable. The appender that is returned goes on
/// behind it. The first fresh segment is made with `fill` if none is ready. `placement` learns of the fresh segments while they are filled; it must throw that away if
/// this fails.
pub fn reappend(
    mut cut: Cut,
    pool: &mut Pool,
    random: &dyn Fn() -> u128,
    tail: &mut Tail<'_>,
    placement: &mut dyn Placement,
    fill: Fill,
) -> Result<Appender> {
    let durable = cut.position.lsn;
    let mut fresh = Vec::new();
    let first = pool.take(next_header(&cut, random()), fill)?;
    placement.opened(&first);
    fresh.push(first.clone());
    let mut appender = Appender::new(first, BLOCK_BYTES, cut.position, cut.epoch);
    let mut collected: Vec<Verbatim> = Vec::new();
    let mut bytes = 0;
    let segment_bytes = pool_room(fresh[0].header.bytes);
    {
        let mut append = |collected: &mut Vec<Verbatim>| -> Result<()> {
            if collected.is_empty() {
                return Ok(());
            }
            match appender.append_verbatim(collected, durable, placement) {
                Err(error) if error.kind() == Kind::NoSpace && appender.end > BLOCK_BYTES => {
                    cut.predecessor = appender.segment.header.id;
                    cut.predecessor_end = appender.end;
                    cut.position = appender.position;
                    let next = pool.take(next_header(&cut, random()), Fill::Reserved)?;
                    placement.opened(&next);
                    fresh.push(next.clone());
                    appender = Appender::new(next, BLOCK_BYTES, cut.position, cut.epoch);
                    appender.append_verbatim(collected, durable, placement)?;
                }
                other => other?,
            }
            collected.clear();
            Ok(())
        };
        tail(&mut |record| {
            let payload = record.payload.len().next_multiple_of(BLOCK_BYTES as usize);
            // A rollback is the last record of its segment, so of its batch.
            let ended = collected.last().is_some_and(|last| last.header.kind == RecordKind::Rollback);
            let full = ended
                || collected.len() == RECORDS_PER_BATCH
                || bytes + payload > BYTES_PER_BATCH
                || bytes + payload > segment_bytes;
            if full {
                append(&mut collected)?;
                bytes = 0;
            }
            bytes += payload;
            collected.push(record);
            Ok(())
        })?;
        append(&mut collected)?;
    }
    for segment in &fresh {
        sync(segment)?;
    }
    for segment in fresh.iter().rev() {
        pool::publish(segment)?;
        sync(segment)?;
    }
    Ok(appender)
}

/// Payload that fits into a segment of this size whatever the number of its records.
fn pool_room(segment_bytes: u64) -> usize {
    let overhead = 2 + batch_header_blocks(RECORDS_PER_BATCH);
    (segment_bytes - overhead * BLOCK_BYTES) as usize
}

fn sync(segment: &Segment) -> Result<()> {
    segment.file.sync().at(|| format!("syncing {}", segment.path.display()))
}
