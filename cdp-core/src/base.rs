//! The base: the volume's state under all records, as plain sparse images in pieces of 1 TiB, each with a
//! presence map and block checksums beside it. A clone's is a view of its parent instead, until it is hydrated; what
//! stands in its directory does not count before.
//! What is folded into it: `fold`. Blocks that are read over another state: `overlay`.

mod fold;
mod overlay;
mod writer;

pub use overlay::{Overlay, OverlayUnsynced, OverlayWriter, Source};
pub use writer::{BaseWriter, Unsynced};

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};

use crate::device::{Content, Device, Read};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::base::{SUMS_HEADER_BYTES, SumsHeader, block_sum};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::io::{File, Files};
use crate::limits::BASE_PIECE_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const PIECE_BLOCKS: u64 = BASE_PIECE_BYTES / BLOCK_BYTES;
/// Sums are looked at in so many blocks at a time.
const SUMS_PER_READ: u64 = 16 << 10;
/// Stretches of a parent looked at in one go.
const STRETCHES_PER_LOOK: usize = 64;

#[derive(Clone)]
struct Piece {
    path: PathBuf,
    image: Arc<dyn File>,
    sums: Arc<dyn File>,
}

/// The opened base. A volume has none as long as it began as zeros and nothing was folded.
pub struct Base {
    files: Arc<dyn Files>,
    dir: PathBuf,
    volume: VolumeId,
    // Of the volume, as far as pieces are made for it.
    size_bytes: AtomicU64,
    pieces: RwLock<BTreeMap<u64, Arc<Piece>>>,
    // A clone reads here, as long as it is set; it has no pieces then.
    parent: RwLock<Option<Arc<dyn Device>>>,
}

fn image_path(dir: &Path, piece: u64) -> PathBuf {
    dir.join(format!("base.{piece:04}"))
}

fn sums_path(dir: &Path, piece: u64) -> PathBuf {
    dir.join(format!("base.{piece:04}.sums"))
}

impl Base {
    /// Opens the pieces there are.
    pub fn open(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId, size_bytes: u64) -> Result<Base> {
        let mut pieces = BTreeMap::new();
        for number in 0..size_bytes.div_ceil(BASE_PIECE_BYTES) {
            let (path, sums) = (image_path(dir, number), sums_path(dir, number));
            let image = match files.open(&path, true) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.at(|| format!("opening {}", path.display()))?,
            };
            let sums = files.open(&sums, true).at(|| format!("opening {}", sums.display()))?;
            let mut header = [0; SUMS_HEADER_BYTES];
            sums.read_at(0, &mut header).at(|| format!("reading the checksums of {}", path.display()))?;
            if SumsHeader::decode(&header).is_none_or(|h| h.volume != volume || h.piece as u64 != number) {
                let context = format!("the checksum file of {} is not readable", path.display());
                return Err(Error::new(Kind::Damaged, context));
            }
            pieces.insert(number, Arc::new(Piece { path, image, sums }));
        }
        let pieces = RwLock::new(pieces);
        let size_bytes = AtomicU64::new(size_bytes);
        let parent = RwLock::new(None);
        Ok(Base { files: files.clone(), dir: dir.to_owned(), volume, size_bytes, pieces, parent })
    }

    /// The base of a clone: a view of its parent. Behind the parent's end it is zeros. What stands in `dir` does not
    /// count before [`Base::let_go`].
    pub fn on(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId, parent: Arc<dyn Device>) -> Base {
        Base {
            files: files.clone(),
            dir: dir.to_owned(),
            volume,
            size_bytes: AtomicU64::new(0),
            pieces: RwLock::default(),
            parent: RwLock::new(Some(parent)),
        }
    }

    /// The parent that it reads from.
    pub fn parent(&self) -> Option<Arc<dyn Device>> {
        self.parent.read().expect("no panics under this lock").clone()
    }

    /// Keeps everybody from reading from the parent, so that it can be moved; another view of the same state may take
    /// its place.
    pub fn parent_slot(&self) -> RwLockWriteGuard<'_, Option<Arc<dyn Device>>> {
        self.parent.write().expect("no panics under this lock")
    }

    /// Reads from the pieces of the volume's own from now on, and lets go of the parent.
    pub fn let_go(&self, own: Base) {
        // Whoever finds no parent finds the pieces: they are put in place while nobody can look.
        let mut parent = self.parent.write().expect("no panics under this lock");
        self.set_size(own.size_bytes.load(Ordering::Relaxed));
        *self.pieces.write().expect("no panics under this lock") =
            own.pieces.into_inner().expect("no panics under this lock");
        *parent = None;
    }

    /// Whether history can be folded into it: not into one that is a view of a parent.
    pub fn takes_folds(&self) -> bool {
        self.parent().is_none()
    }

    /// Pieces that are made from now on are those of a volume of this size.
    pub fn set_size(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
    }

    fn piece_bytes(&self, number: u64) -> u64 {
        let size_bytes = self.size_bytes.load(Ordering::Relaxed);
        size_bytes.saturating_sub(number * BASE_PIECE_BYTES).min(BASE_PIECE_BYTES)
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.parent().is_none() && self.pieces.read().expect("no panics under this lock").is_empty()
    }

    fn piece(&self, number: u64) -> Option<Arc<Piece>> {
        self.pieces.read().expect("no panics under this lock").get(&number).cloned()
    }

    /// Reads whole blocks from `first` on; zeros where the base has none; every block is checked.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        // Held while it is read from: it may be moved, and nobody must look for its files meanwhile.
        if let Some(parent) = &*self.parent.read().expect("no panics under this lock") {
            return read_parent(&**parent, first, buffer);
        }
        let mut at = first;
        let mut rest = buffer;
        while !rest.is_empty() {
            let piece_end = (at / PIECE_BLOCKS + 1) * PIECE_BLOCKS;
            let blocks = (piece_end - at).min((rest.len() / BLOCK) as u64).min(SUMS_PER_READ);
            let (front, back) = rest.split_at_mut(blocks as usize * BLOCK);
            match self.piece(at / PIECE_BLOCKS) {
                None => front.fill(0),
                Some(piece) => piece.read(at, front)?,
            }
            rest = back;
            at += blocks;
        }
        Ok(())
    }

    /// Up to which block, at most `to`, the blocks from `from` on are alike, and whether they are present.
    pub fn stretch(&self, from: u64, to: u64) -> Result<(u64, bool)> {
        debug_assert!(from < to);
        if let Some(parent) = &*self.parent.read().expect("no panics under this lock") {
            return stretch_of_parent(&**parent, from, to);
        }
        let mut at = from;
        let mut present = None;
        while at < to {
            let number = at / PIECE_BLOCKS;
            let end = ((number + 1) * PIECE_BLOCKS).min(to);
            let Some(piece) = self.piece(number) else {
                if present == Some(true) {
                    return Ok((at, true));
                }
                present = Some(false);
                at = end;
                continue;
            };
            let (alike, here) = piece.stretch(at, end, present)?;
            if alike == at {
                break;
            }
            present = Some(here);
            at = alike;
            if at < end {
                break;
            }
        }
        Ok((at, present.unwrap_or(false)))
    }
}

impl Piece {
    fn sums(&self, first: u64, blocks: u64) -> Result<Vec<u32>> {
        let mut bytes = vec![0; blocks as usize * 4];
        let offset = sum_offset(first);
        let mut read = || {
            // A piece that was made while the volume was smaller has none for what came later.
            let there = self.sums.len()?.saturating_sub(offset).min(bytes.len() as u64) / 4 * 4;
            self.sums.read_at(offset, &mut bytes[..there as usize])
        };
        read().at(|| format!("reading the checksums of {}", self.path.display()))?;
        let (sums, _) = bytes.as_chunks::<4>();
        Ok(sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let sums = self.sums(first, (buffer.len() / BLOCK) as u64)?;
        let mut at = 0;
        while at < sums.len() {
            let present = sums[at] != 0;
            let len = sums[at..].iter().take_while(|sum| (**sum != 0) == present).count();
            let part = &mut buffer[at * BLOCK..(at + len) * BLOCK];
            if !present {
                part.fill(0);
            } else {
                let offset = (first + at as u64) % PIECE_BLOCKS * BLOCK_BYTES;
                self.image
                    .read_at(offset, part)
                    .at(|| format!("reading byte {offset} of {}", self.path.display()))?;
                for (number, block) in part.chunks_exact(BLOCK).enumerate() {
                    if block_sum(block) != sums[at + number] {
                        let lba = first + (at + number) as u64;
                        let context = format!("block {lba} in {} is damaged", self.path.display());
                        return Err(Error::new(Kind::Damaged, context));
                    }
                }
            }
            at += len;
        }
        Ok(())
    }

    /// As [`Base::stretch`] within the piece; stops at once where the first block is not `wanted`.
    fn stretch(&self, from: u64, to: u64, wanted: Option<bool>) -> Result<(u64, bool)> {
        let mut at = from;
        let mut present = wanted;
        while at < to {
            // A hole in the checksum file is a range of absent blocks: no need to read it.
            let data = self
                .sums
                .next_data(sum_offset(at))
                .at(|| format!("looking for checksums of {}", self.path.display()))?;
            let first_data = match data {
                None => to,
                Some(offset) => {
                    let in_piece = offset.saturating_sub(SUMS_HEADER_BYTES as u64) / 4;
                    (at / PIECE_BLOCKS * PIECE_BLOCKS + in_piece).clamp(at, to)
                }
            };
            if first_data > at {
                if present == Some(true) {
                    return Ok((at, true));
                }
                present = Some(false);
                at = first_data;
                continue;
            }
            let sums = self.sums(at, (to - at).min(SUMS_PER_READ))?;
            let here = *present.get_or_insert(sums[0] != 0);
            let len = sums.iter().take_while(|sum| (**sum != 0) == here).count();
            at += len as u64;
            if len < sums.len() {
                break;
            }
        }
        Ok((at, present.unwrap_or(false)))
    }
}

/// Whole blocks; a parent may end within one, and the clone may have grown beyond it.
fn read_parent(parent: &dyn Device, first: u64, buffer: &mut [u8]) -> Result<()> {
    let offset = first * BLOCK_BYTES;
    let there = parent.size_bytes().saturating_sub(offset).min(buffer.len() as u64) as usize;
    let (inside, behind) = buffer.split_at_mut(there);
    behind.fill(0);
    if inside.is_empty() {
        return Ok(());
    }
    let mut reads = [Read { offset, buffer: inside, result: Ok(()) }];
    parent.read(&mut reads);
    let [read] = reads;
    read.result
}

fn stretch_of_parent(parent: &dyn Device, from: u64, to: u64) -> Result<(u64, bool)> {
    let end = (to * BLOCK_BYTES).min(parent.size_bytes());
    let mut at = from * BLOCK_BYTES;
    if at >= end {
        return Ok((to, false));
    }
    let mut present = None;
    for stretch in parent.extents(at, end - at, STRETCHES_PER_LOOK)? {
        let here = stretch.content == Content::Data;
        if *present.get_or_insert(here) != here {
            break;
        }
        at += stretch.len;
    }
    // Stretches change at blocks, but for the parent's end.
    Ok(((at.div_ceil(BLOCK_BYTES)).clamp(from + 1, to), present.unwrap_or(false)))
}

/// Removes what an earlier attempt to fill a base left in `dir`.
pub fn remove_pieces(files: &dyn Files, dir: &Path) -> Result<()> {
    let place = || format!("removing an unfinished base from {}", dir.display());
    for entry in files.list(dir).at(place)?.iter().filter(|entry| entry.name.starts_with("base.")) {
        files.remove(&dir.join(&entry.name)).at(place)?;
    }
    files.sync_dir(dir).at(place)
}

fn sum_offset(block: u64) -> u64 {
    SUMS_HEADER_BYTES as u64 + block % PIECE_BLOCKS * 4
}
