//! The blocks of an ext2, ext3 or ext4 filesystem with its journal laid over them, as the kernel leaves them when it
//! mounts it; and the blocks of an inode.
//!
//! The crate `ext4-view` knows names and attributes. What it makes of extents that were never written, of holes below
//! indirect blocks and of a journal that revokes or wraps is not what the kernel reads, so the bytes come from here.

use std::collections::BTreeMap;
use std::io;

use cdp_core::error::{Error, Kind, Result};

use super::disk::Disk;
use super::ext4_journal;

/// Where the superblock lies, and how long it is.
pub const SUPERBLOCK: std::ops::Range<u64> = 1024..2048;
/// An inode's own room for the beginning of its block map.
const ROOT_BYTES: usize = 60;
/// Flags of an inode, then of the superblock.
const EXTENTS_FLAG: u32 = 0x8_0000;
const ENCRYPTED_FLAG: u32 = 0x800;
const INLINE_FLAG: u32 = 0x1000_0000;
const FEATURE_RECOVER: u32 = 0x4;
const FEATURE_64BIT: u32 = 0x80;
const FEATURE_SEED: u32 = 0x2000;
const FEATURE_METADATA_CHECKSUMS: u32 = 0x400;
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_BYTES: usize = 12;
const DEPTH_MAX: u16 = 5;
/// A longer extent is one that was never written: so much longer is it.
const WRITTEN_MAX: u16 = 32_768;

/// A stretch of a file: what lies there, `None` for zeros. Stretches come in order and may leave gaps: zeros too.
pub struct Stretch {
    /// The first block, counted in the file.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The first block, counted in the filesystem.
    pub place: Option<u64>,
}

/// Takes stretches; false ends the walk.
type StretchSink<'a> = dyn FnMut(Stretch) -> Result<bool> + 'a;

/// What an inode says of its content.
pub struct Inode {
    number: u32,
    generation: u32,
    flags: u32,
    /// Length of the content in bytes.
    pub bytes: u64,
    root: Vec<u8>,
}

/// Blocks as they are once the journal has been replayed.
#[derive(Clone)]
pub struct Blocks {
    disk: Disk,
    superblock: Vec<u8>,
    /// Bytes of a block.
    pub block_bytes: u64,
    blocks: u64,
    replaced: BTreeMap<u64, u64>,
}

impl Blocks {
    /// Reads the superblock, and the journal if it was in use.
    pub fn open(disk: Disk) -> Result<Blocks> {
        let mut superblock = vec![0; 1024];
        disk.read_exact_at(SUPERBLOCK.start, &mut superblock).map_err(|error| unreadable(&error))?;
        let shift = u32_at(&superblock, 0x18)?;
        if shift > 6 {
            return Err(damaged("its superblock names no block size"));
        }
        let mut blocks =
            Blocks { disk, superblock, block_bytes: 1024 << shift, blocks: 0, replaced: BTreeMap::new() };
        blocks.count()?;
        if blocks.feature(0x60, FEATURE_RECOVER)? {
            blocks.replaced = ext4_journal::replay(&blocks, u32_at(&blocks.superblock, 0xe0)?)?;
            let mut superblock = vec![0; 1024];
            blocks.read_replayed(SUPERBLOCK.start, &mut superblock).map_err(|error| unreadable(&error))?;
            // Nothing is left to be replayed by whoever reads it from here.
            let features = u32_at(&superblock, 0x60)? & !FEATURE_RECOVER;
            superblock[0x60..0x64].copy_from_slice(&features.to_le_bytes());
            let checksum = crc32c(!0, &superblock[..0x3fc]);
            superblock[0x3fc..].copy_from_slice(&checksum.to_le_bytes());
            blocks.superblock = superblock;
            blocks.count()?;
        }
        Ok(blocks)
    }

    fn count(&mut self) -> Result<()> {
        let high = if self.feature(0x60, FEATURE_64BIT)? { u32_at(&self.superblock, 0x150)? } else { 0 };
        self.blocks = u64::from(high) << 32 | u64::from(u32_at(&self.superblock, 0x4)?);
        Ok(())
    }

    fn feature(&self, at: usize, bit: u32) -> Result<bool> {
        Ok(u32_at(&self.superblock, at)? & bit != 0)
    }

    /// Fills the buffer from this offset on, of the replayed filesystem.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_replayed(start, buffer)?;
        // The one that was made, not the one that lies there.
        let end = start + buffer.len() as u64;
        let (from, to) = (start.max(SUPERBLOCK.start), end.min(SUPERBLOCK.end));
        if from < to {
            let part = &self.superblock[(from - SUPERBLOCK.start) as usize..(to - SUPERBLOCK.start) as usize];
            buffer[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    fn read_replayed(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = start.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.replaced.range(start / self.block_bytes..=end / self.block_bytes).next().is_none() {
            return self.disk.read_exact_at(start, buffer);
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = start + done as u64;
            let (block, within) = (at / self.block_bytes, at % self.block_bytes);
            let count = ((self.block_bytes - within) as usize).min(buffer.len() - done);
            let place = self.replaced.get(&block).copied().unwrap_or(block);
            let from = place.checked_mul(self.block_bytes).ok_or(io::ErrorKind::UnexpectedEof)? + within;
            self.disk.read_exact_at(from, &mut buffer[done..done + count])?;
            done += count;
        }
        Ok(())
    }

    /// Fills the buffer from the beginning of a block of the filesystem on.
    pub fn read_block(&self, block: u64, buffer: &mut [u8]) -> Result<()> {
        let reach = (buffer.len() as u64).div_ceil(self.block_bytes);
        if block == 0 || block.checked_add(reach).is_none_or(|end| end > self.blocks) {
            return Err(damaged(&format!("it names block {block} of {}", self.blocks)));
        }
        self.read(block * self.block_bytes, buffer).map_err(|error| unreadable(&error))
    }

    /// Reads an inode. Its checksum is the crate's concern, which read it before.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        let superblock = &self.superblock;
        let (per_group, inode_bytes) = (u32_at(superblock, 0x28)?, u64::from(u16_at(superblock, 0x58)?));
        let index = number.checked_sub(1).ok_or_else(|| damaged("it names inode 0"))?;
        let group = index.checked_div(per_group).ok_or_else(|| damaged("its groups hold no inodes"))?;
        let is_64bit = self.feature(0x60, FEATURE_64BIT)?;
        let descriptor_bytes = if is_64bit { u64::from(u16_at(superblock, 0xfe)?) } else { 32 };
        if inode_bytes < 128 || inode_bytes > self.block_bytes || (is_64bit && descriptor_bytes < 64) {
            return Err(damaged("its superblock makes no sense"));
        }
        let per_block = self.block_bytes / descriptor_bytes;
        let table = if self.block_bytes == 1024 { 2 } else { 1 };
        let at = u64::from(group).checked_div(per_block).ok_or_else(|| damaged("its groups have no room"))?;
        let at = (table + at) * self.block_bytes + u64::from(group) % per_block * descriptor_bytes;
        let mut descriptor = vec![0; descriptor_bytes as usize];
        self.read(at, &mut descriptor).map_err(|error| unreadable(&error))?;
        let high = if is_64bit { u32_at(&descriptor, 0x28)? } else { 0 };
        let first = u64::from(high) << 32 | u64::from(u32_at(&descriptor, 0x8)?);
        let within = u64::from(index % per_group) * inode_bytes;
        let mut data = vec![0; self.block_bytes as usize];
        self.read_block(first.saturating_add(within / self.block_bytes), &mut data)?;
        let data = &data[(within % self.block_bytes) as usize..];
        let flags = u32_at(data, 0x20)?;
        if flags & ENCRYPTED_FLAG != 0 {
            return Err(Error::new(Kind::Invalid, "it is encrypted"));
        }
        if flags & INLINE_FLAG != 0 {
            return Err(Error::new(Kind::Invalid, "its content lies in its inode, which is not read here")
                .hint("the kernel reads it: cdp mount VOL@POINT DIR"));
        }
        Ok(Inode {
            number,
            generation: u32_at(data, 0x64)?,
            flags,
            bytes: u64::from(u32_at(data, 0x6c)?) << 32 | u64::from(u32_at(data, 0x4)?),
            root: data[0x28..0x28 + ROOT_BYTES].to_vec(),
        })
    }

    /// The stretches of an inode's content. They may reach beyond its length.
    pub fn stretches(&self, inode: &Inode, take: &mut StretchSink<'_>) -> Result<()> {
        let end = inode.bytes.div_ceil(self.block_bytes);
        if inode.flags & EXTENTS_FLAG == 0 {
            return self.mapped(inode, end, take);
        }
        let mut next = 0;
        self.extents(inode, &inode.root, None, &mut next, &mut |stretch| {
            Ok(stretch.first < end && take(stretch)?)
        })
        .map(|_| ())
    }

    /// A node of the tree of extents; false where the walk is over.
    fn extents(
        &self,
        inode: &Inode,
        node: &[u8],
        depth: Option<u16>,
        next: &mut u64,
        take: &mut StretchSink<'_>,
    ) -> Result<bool> {
        let (entries, own_depth) = (u16_at(node, 2)?, u16_at(node, 6)?);
        let is_fitting = depth.map_or(own_depth <= DEPTH_MAX, |depth| depth == own_depth);
        if u16_at(node, 0)? != EXTENT_MAGIC || !is_fitting {
            return Err(damaged("its extents make no sense"));
        }
        for number in 1..=usize::from(entries) {
            let entry = node.get(number * EXTENT_BYTES..(number + 1) * EXTENT_BYTES);
            let entry = entry.ok_or_else(|| damaged("its extents do not fit their block"))?;
            let first = u64::from(u32_at(entry, 0)?);
            if first < *next {
                return Err(damaged("its extents overlap"));
            }
            if own_depth > 0 {
                let child = u64::from(u16_at(entry, 8)?) << 32 | u64::from(u32_at(entry, 4)?);
                let mut block = vec![0; self.block_bytes as usize];
                self.read_block(child, &mut block)?;
                self.check_node(inode, &block)?;
                if !self.extents(inode, &block, Some(own_depth - 1), next, take)? {
                    return Ok(false);
                }
                // A tree that goes in circles advances all the same.
                *next = (*next).max(first + 1);
                continue;
            }
            let length = u16_at(entry, 4)?;
            let place = u64::from(u16_at(entry, 6)?) << 32 | u64::from(u32_at(entry, 8)?);
            let (count, place) = match length {
                0 => return Err(damaged("it has an extent without a length")),
                1..=WRITTEN_MAX => (u64::from(length), Some(place)),
                // Room that was set aside: on the disk lies what somebody deleted.
                _ => (u64::from(length - WRITTEN_MAX), None),
            };
            *next = first + count;
            if !take(Stretch { first, count, place })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_node(&self, inode: &Inode, block: &[u8]) -> Result<()> {
        if !self.feature(0x64, FEATURE_METADATA_CHECKSUMS)? {
            return Ok(());
        }
        let seed = match self.feature(0x60, FEATURE_SEED)? {
            true => u32_at(&self.superblock, 0x270)?,
            false => crc32c(!0, &self.superblock[0x68..0x78]),
        };
        let seed = crc32c(crc32c(seed, &inode.number.to_le_bytes()), &inode.generation.to_le_bytes());
        let tail = (usize::from(u16_at(block, 4)?) + 1) * EXTENT_BYTES;
        let covered = block.get(..tail).ok_or_else(|| damaged("its extents do not fit their block"))?;
        match crc32c(seed, covered) == u32_at(block, tail)? {
            true => Ok(()),
            false => Err(damaged("a block of its extents has a wrong checksum")),
        }
    }

    /// The content of an inode of ext2 or ext3: blocks by number, blocks of numbers, blocks of those, and of those.
    fn mapped(&self, inode: &Inode, end: u64, take: &mut StretchSink<'_>) -> Result<()> {
        let mut next = 0;
        for index in 0..ROOT_BYTES / 4 {
            let level = index.saturating_sub(11) as u32;
            if !self.indirect(u32_at(&inode.root, index * 4)?, level, end, &mut next, take)? {
                break;
            }
        }
        Ok(())
    }

    fn indirect(
        &self,
        place: u32,
        level: u32,
        end: u64,
        next: &mut u64,
        take: &mut StretchSink<'_>,
    ) -> Result<bool> {
        if *next >= end {
            return Ok(false);
        }
        let first = *next;
        if place == 0 {
            *next += (self.block_bytes / 4).pow(level);
            return Ok(true);
        }
        if level == 0 {
            *next += 1;
            return take(Stretch { first, count: 1, place: Some(place.into()) });
        }
        let mut block = vec![0; self.block_bytes as usize];
        self.read_block(place.into(), &mut block)?;
        for at in (0..block.len()).step_by(4) {
            if !self.indirect(u32_at(&block, at)?, level - 1, end, next, take)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.map(|part| u16::from_le_bytes(*part)).ok_or_else(|| damaged("a structure of it is cut off"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.map(|part| u32::from_le_bytes(*part)).ok_or_else(|| damaged("a structure of it is cut off"))
}

pub fn damaged(what: &str) -> Error {
    Error::new(Kind::Damaged, what.to_owned())
        .hint("it was damaged at that instant: `cdp mount` lets the kernel try; an earlier point may be good")
}

fn unreadable(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it names a block behind the end of the disk"),
        _ => Error::new(Kind::Io, error.to_string()),
    }
}

/// The checksum of ext4 and its journal: CRC-32C without the final complement, so that it can be continued.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut value, mut bit) = (byte as u32, 0);
            while bit < 8 {
                value = (value >> 1) ^ (0x82f6_3b78 & (value & 1).wrapping_neg());
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    // The known value of the field: nine digits.
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
    }
}
