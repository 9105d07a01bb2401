//! Codes payloads for a link, against what their blocks held before, or others, where that pays.

use cdp_core::device::Read;
use cdp_core::format::record::RecordKind;
use cdp_core::ids::{BLOCK_BYTES, Lsn};
use cdp_core::journal::append::Verbatim;
use cdp_core::volume::Volume;

use crate::contents::Contents;
use crate::wire::delta::{self, Coding};
use crate::wire::records::Coded;
use crate::wire::references;

const BLOCK: usize = BLOCK_BYTES as usize;
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
    /// And coding 4.
    pub references: bool,
    /// Records that were coded.
    pub coded: u64,
    contents: Contents,
    misses: u32,
    skip: u32,
}

impl Coder {
    /// A record for the wire. What blocks held before is read from the state in front of it, which whoever reads the
    /// journal for a replica has pinned. Where it cannot be read, the payload goes as it is.
    pub fn code(&mut self, volume: &Volume, record: Verbatim) -> Coded {
        if !self.is_on || !Coded::may_be_coded(&record.header) {
            self.note(&record);
            return Coded::plain(record);
        }
        if delta::is_zeros(&record.payload) {
            self.coded += 1;
            return Coded { header: record.header, coding: Coding::Zeros, payload: Vec::new() };
        }
        let elsewhere = self.code_by_references(volume, &record);
        // Whatever the same blocks held, it could not be said with less.
        let is_all = elsewhere.as_ref().is_some_and(|coded| coded.len() < BLOCK);
        let older = if is_all { None } else { self.code_against_older(volume, &record) };
        self.note(&record);
        let elsewhere = elsewhere.map(|payload| (Coding::References, payload));
        let Some((coding, payload)) = older.into_iter().chain(elsewhere).min_by_key(|(_, coded)| coded.len())
        else {
            return Coded::plain(record);
        };
        self.coded += 1;
        Coded { header: record.header, coding, payload }
    }

    fn note(&mut self, record: &Verbatim) {
        let header = &record.header;
        if self.references
            && header.kind == RecordKind::Write
            && record.payload.len() as u64 == header.blocks * BLOCK_BYTES
        {
            for (number, block) in (header.lba.0..).zip(record.payload.chunks_exact(BLOCK)) {
                self.contents.note(number, block);
            }
        }
    }

    fn code_by_references(&self, volume: &Volume, record: &Verbatim) -> Option<Vec<u8>> {
        if !self.references {
            return None;
        }
        let blocks = || record.payload.chunks_exact(BLOCK);
        let mut found: Vec<Option<u64>> = blocks().map(|block| self.contents.find(block)).collect();
        let mut bytes = vec![0; found.iter().flatten().count() * BLOCK];
        if bytes.is_empty() {
            return None;
        }
        let mut reads: Vec<Read<'_>> = found
            .iter()
            .flatten()
            .zip(bytes.chunks_exact_mut(BLOCK))
            .map(|(number, buffer)| Read { offset: number * BLOCK_BYTES, buffer, result: Ok(()) })
            .collect();
        volume.read_blocks_at(Lsn(record.header.lsn.0 - 1), &mut reads).ok()?;
        let mut there = bytes.chunks_exact(BLOCK);
        for (number, block) in found.iter_mut().zip(blocks()).filter(|(number, _)| number.is_some()) {
            if there.next() != Some(block) {
                *number = None;
            }
        }
        references::code(&record.payload, &found)
    }

    fn code_against_older(&mut self, volume: &Volume, record: &Verbatim) -> Option<(Coding, Vec<u8>)> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let coded = code_against_older(volume, record, self.differences);
        match coded {
            Some(_) => self.misses = 0,
            None => self.misses += 1,
        }
        if self.misses >= MISSES_MAX {
            self.misses = 0;
            self.skip = SKIPPED_AFTER_MISSES;
        }
        coded
    }
}

fn code_against_older(volume: &Volume, record: &Verbatim, differences: bool) -> Option<(Coding, Vec<u8>)> {
    let mut older = vec![0; record.payload.len()];
    let offset = record.header.lba.0 * BLOCK_BYTES;
    let mut reads = [Read { offset, buffer: &mut older, result: Ok(()) }];
    volume.read_blocks_at(Lsn(record.header.lsn.0 - 1), &mut reads).ok()?;
    delta::code(&record.payload, &older, differences)
}
