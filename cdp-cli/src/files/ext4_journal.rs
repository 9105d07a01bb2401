//! The journal of ext3 and ext4: which blocks of the filesystem it holds newer ones of. Nothing is written.
//!
//! A transaction counts if its commit block is whole. A block that a transaction revokes is not taken from it nor from
//! those before it: its place belongs to something else by then, as a rule to a file's content.

use std::collections::BTreeMap;

use cdp_core::error::Result;

use super::ext4_blocks::{Blocks, crc32c, damaged};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;
const HEADER_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const UUID_BYTES: usize = 16;
/// 16 GiB of journal in blocks of 4 KiB; they have one at most.
const BLOCKS_MAX: u64 = 4 << 20;

struct Ring<'a> {
    blocks: &'a Blocks,
    /// Stretches: first block in the journal, how many, first block in the filesystem.
    places: Vec<(u64, u64, u64)>,
    first: u64,
    end: u64,
    at: u64,
    /// What is left until everything was read once.
    left: u64,
}

impl Ring<'_> {
    fn place(&self, block: u64) -> Result<u64> {
        let index = self.places.partition_point(|(first, ..)| *first <= block);
        let found = index.checked_sub(1).and_then(|index| self.places.get(index));
        let found = found.filter(|(first, count, _)| block - first < *count);
        found
            .map(|(first, _, place)| place + (block - first))
            .ok_or_else(|| damaged("its journal has a hole"))
    }

    /// The place and content of the next block; nothing once all were read.
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let place = self.place(self.at)?;
        self.at = if self.at + 1 >= self.end { self.first } else { self.at + 1 };
        let mut block = vec![0; self.blocks.block_bytes as usize];
        self.blocks.read_block(place, &mut block)?;
        Ok(Some((place, block)))
    }
}

#[derive(Default)]
struct Transaction {
    written: Vec<(u64, u64)>,
    revoked: Vec<u64>,
    /// A block in it is not the one that was meant.
    is_wrong: bool,
}

/// For each block of the filesystem that the journal holds, where the newest lies. The kind of journal is one that
/// the crate accepts: with 64-bit numbers and checksums of the third version.
pub fn replay(blocks: &Blocks, inode: u32) -> Result<BTreeMap<u64, u64>> {
    let inode = blocks.inode(inode)?;
    // Before its stretches are kept: blocks of numbers may name each other for ever.
    if inode.bytes.div_ceil(blocks.block_bytes) > BLOCKS_MAX {
        return Err(damaged("its journal makes no sense"));
    }
    let mut places = Vec::new();
    blocks.stretches(&inode, &mut |stretch| {
        let place = stretch.place.ok_or_else(|| damaged("its journal has a hole"))?;
        places.push((stretch.first, stretch.count, place));
        Ok(true)
    })?;
    let mut ring = Ring { blocks, places, first: 0, end: 1, at: 0, left: 1 };
    let Some((_, head)) = ring.next()? else { return Ok(BTreeMap::new()) };
    if be32(&head, 0)? != MAGIC || u64::from(be32(&head, 0xc)?) != blocks.block_bytes {
        return Err(damaged("its journal makes no sense"));
    }
    ring.first = be32(&head, 0x14)?.into();
    ring.end = u64::from(be32(&head, 0x10)?);
    ring.at = be32(&head, 0x1c)?.into();
    if ring.at == 0 {
        return Ok(BTreeMap::new());
    }
    if ring.first == 0 || ring.at < ring.first || ring.at >= ring.end || ring.end > BLOCKS_MAX {
        return Err(damaged("its journal makes no sense"));
    }
    ring.left = ring.end - ring.first;
    let seed = crc32c(!0, &head[0x30..0x40]);
    let transactions = read(&mut ring, be32(&head, 0x18)?, seed)?;
    let mut revoked = BTreeMap::new();
    for (number, transaction) in transactions.iter().enumerate() {
        revoked.extend(transaction.revoked.iter().map(|block| (*block, number)));
    }
    let mut replaced = BTreeMap::new();
    for (number, transaction) in transactions.iter().enumerate() {
        let counts = |block: &u64| revoked.get(block).is_none_or(|last| *last < number);
        replaced.extend(transaction.written.iter().filter(|(block, _)| counts(block)).copied());
    }
    Ok(replaced)
}

/// The transactions that were committed, in order.
fn read(ring: &mut Ring<'_>, mut sequence: u32, seed: u32) -> Result<Vec<Transaction>> {
    let mut transactions = Vec::new();
    let mut open = Transaction::default();
    while let Some((_, block)) = ring.next()? {
        // What follows is older: the ring's last round.
        if be32(&block, 0)? != MAGIC || be32(&block, 8)? != sequence {
            break;
        }
        match be32(&block, 4)? {
            DESCRIPTOR if has_tail(&block, seed)? => {
                if !described(ring, &block, sequence, seed, &mut open)? {
                    break;
                }
            }
            REVOKE if has_tail(&block, seed)? => {
                // The count is of bytes, and its own header's are among them.
                let end = (be32(&block, HEADER_BYTES)? as usize).min(block.len() - 4);
                let numbers = block.get(HEADER_BYTES + 4..end).unwrap_or_default().chunks_exact(8);
                open.revoked
                    .extend(numbers.filter_map(|part| Some(u64::from_be_bytes(*part.first_chunk()?))));
            }
            COMMIT => {
                let crc = crc32c(crc32c(seed, &block[..16]), &[0; 4]);
                if crc32c(crc, &block[20..]) != be32(&block, 16)? {
                    break;
                }
                if open.is_wrong {
                    return Err(damaged("a block in its journal has a wrong checksum"));
                }
                transactions.push(std::mem::take(&mut open));
                sequence = sequence.wrapping_add(1);
            }
            _ => break,
        }
    }
    Ok(transactions)
}

/// The blocks that a descriptor names, which follow it; false where the journal ends before.
fn described(
    ring: &mut Ring<'_>,
    block: &[u8],
    sequence: u32,
    seed: u32,
    open: &mut Transaction,
) -> Result<bool> {
    let mut at = HEADER_BYTES;
    while at + TAG_BYTES <= block.len() - 4 {
        let flags = be32(block, at + 4)?;
        let number = u64::from(be32(block, at + 8)?) << 32 | u64::from(be32(block, at)?);
        let Some((place, data)) = ring.next()? else { return Ok(false) };
        let crc = crc32c(crc32c(seed, &sequence.to_be_bytes()), &data);
        // One that begins like a block of the journal has those bytes in its tag.
        open.is_wrong |= crc != be32(block, at + 12)? || flags & TAG_ESCAPED != 0;
        open.written.push((number, place));
        if flags & TAG_LAST != 0 {
            break;
        }
        at += TAG_BYTES + if flags & TAG_SAME_UUID == 0 { UUID_BYTES } else { 0 };
    }
    Ok(true)
}

/// Whether the checksum in a block's last four bytes is right.
fn has_tail(block: &[u8], seed: u32) -> Result<bool> {
    let tail = block.len() - 4;
    Ok(crc32c(crc32c(seed, &block[..tail]), &[0; 4]) == be32(block, tail)?)
}

fn be32(bytes: &[u8], at: usize) -> Result<u32> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.map(|part| u32::from_be_bytes(*part)).ok_or_else(|| damaged("its journal is cut off"))
}
