//! Codes payloads for a link, against what their blocks held before, where that pays.

use cdp_core::device::Read;
use cdp_core::ids::{BLOCK_BYTES, Lsn};
use cdp_core::journal::append::Verbatim;
use cdp_core::volume::Volume;

use crate::wire::delta::{self, Coding};
use crate::wire::records::Coded;

/// After so many payloads in a row that did not shrink, so many are not tried: what has nothing in common with what was
/// there before costs little.
const MISSES_MAX: u32 = 8;
const SKIPPED_AFTER_MISSES: u32 = 56;

/// What a link may code.
#[derive(Default)]
pub struct Coder {
    /// Whether the other side can undo codings 1 and 2.
    pub is_on: bool,
    /// And coding 3.
    pub differences: bool,
    /// Records that were coded.
    pub coded: u64,
    misses: u32,
    skip: u32,
}

impl Coder {
    /// A record for the wire. What its blocks held before is read from the state in front of it, which whoever reads the
    /// journal for a replica has pinned. Where it cannot be read, the payload goes as it is.
    pub fn code(&mut self, volume: &Volume, record: Verbatim) -> Coded {
        if !self.is_on || !Coded::may_be_coded(&record.header) {
            return Coded::plain(record);
        }
        if delta::is_zeros(&record.payload) {
            self.coded += 1;
            return Coded { header: record.header, coding: Coding::Zeros, payload: Vec::new() };
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Coded::plain(record);
        }
        match code_against_older(volume, &record, self.differences) {
            Some((coding, payload)) => {
                self.misses = 0;
                self.coded += 1;
                Coded { header: record.header, coding, payload }
            }
            None => {
                self.misses += 1;
                if self.misses >= MISSES_MAX {
                    self.misses = 0;
                    self.skip = SKIPPED_AFTER_MISSES;
                }
                Coded::plain(record)
            }
        }
    }
}

fn code_against_older(volume: &Volume, record: &Verbatim, differences: bool) -> Option<(Coding, Vec<u8>)> {
    let mut older = vec![0; record.payload.len()];
    let offset = record.header.lba.0 * BLOCK_BYTES;
    let mut reads = [Read { offset, buffer: &mut older, result: Ok(()) }];
    volume.read_blocks_at(Lsn(record.header.lsn.0 - 1), &mut reads).ok()?;
    delta::code(&record.payload, &older, differences)
}
