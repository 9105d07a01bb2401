//! The base: the volume's state under all records, as plain sparse images in pieces of 1 TiB, each with a
//! presence map and block checksums beside it, and one map of all that there is. A clone's is a view of its parent instead,
//! until it is hydrated; what stands in its directory does not count before.
//!
//! - `map`: which pieces there are, and which pages of their checksums are in use. It alone says that a block is not there: what
//!   it names and is missing, short or zeros is damage.
//! - `piece`: image and checksums of one piece; `pages`: which of its pages are in use.
//! - `writer`: how a base is filled; `fold`: what is folded into it; `overlay`: blocks that are read over another state.

mod fold;
mod map;
mod overlay;
mod pages;
mod piece;
mod writer;

pub use overlay::{Overlay, OverlayUnsynced, OverlayWriter, Source};
pub use writer::{BaseWriter, Unsynced};

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};

use self::piece::Piece;
use crate::device::{Content, Device, Read, Stretch};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::{BLOCK_BYTES, Extent, VolumeId};
use crate::io::Files;
use crate::limits::{BASE_PIECE_BYTES, VOLUME_BYTES_MAX};

const BLOCK: usize = BLOCK_BYTES as usize;
const PIECE_BLOCKS: u64 = BASE_PIECE_BYTES / BLOCK_BYTES;
/// Blocks are looked at in so many at a time.
const BLOCKS_PER_LOOK: u64 = 16 << 10;
/// Stretches of a parent looked at in one go.
const STRETCHES_PER_LOOK: usize = 64;

type Pieces = BTreeMap<u64, Arc<Piece>>;

/// The opened base. A volume has nothing in it as long as it began as zeros and nothing was folded.
pub struct Base {
    files: Arc<dyn Files>,
    dir: PathBuf,
    volume: VolumeId,
    // Of the volume, as far as pieces are made for it.
    size_bytes: AtomicU64,
    // Taken behind the parent's lock, never before it.
    held: RwLock<Held>,
    // A sync failed: what the files show may not be what the disk has, for as long as they are open.
    doubted: AtomicBool,
    // A clone reads here, as long as it is set; it has no pieces then.
    parent: RwLock<Option<Arc<dyn Device>>>,
}

/// What a base has of its own.
#[derive(Default)]
struct Held {
    pieces: Pieces,
    // What is wrong with the map: then nobody knows what there is.
    broken: Option<String>,
}

/// Something that the base should have and has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The blocks that cannot be read; none where it does no harm.
    pub extent: Option<Extent>,
    /// What is wrong with it.
    pub what: String,
}

fn image_path(dir: &Path, piece: u64) -> PathBuf {
    dir.join(format!("base.{piece:04}"))
}

fn sums_path(dir: &Path, piece: u64) -> PathBuf {
    dir.join(format!("base.{piece:04}.sums"))
}

impl Base {
    /// Opens what there is. A map or a file that is missing or cannot be used is no error here: [`Base::problems`] tells, and reading
    /// what it is about is one.
    pub fn open(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId, size_bytes: u64) -> Result<Base> {
        let held = match map::load(&**files, dir, volume)? {
            Ok(pieces) => Held { pieces, broken: None },
            Err(what) => Held { pieces: Pieces::new(), broken: Some(what) },
        };
        Ok(Base { held: RwLock::new(held), ..Base::bare(files, dir, volume, size_bytes) })
    }

    /// One without anything.
    fn bare(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId, size_bytes: u64) -> Base {
        Base {
            files: files.clone(),
            dir: dir.to_owned(),
            volume,
            size_bytes: AtomicU64::new(size_bytes),
            held: RwLock::default(),
            doubted: AtomicBool::new(false),
            parent: RwLock::new(None),
        }
    }

    /// One without anything, at the same place.
    fn beside(&self) -> Base {
        Base::bare(&self.files, &self.dir, self.volume, self.size_bytes.load(Ordering::Relaxed))
    }

    /// The base of a clone: a view of its parent. Behind the parent's end it is zeros. What stands in `dir` does not
    /// count before [`Base::let_go`].
    pub fn on(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId, parent: Arc<dyn Device>) -> Base {
        Base { parent: RwLock::new(Some(parent)), ..Base::bare(files, dir, volume, 0) }
    }

    /// The parent that it reads from.
    pub fn parent(&self) -> Option<Arc<dyn Device>> {
        self.parent.read().expect("no panics under this lock").clone()
    }

    /// What the parent has from byte `offset` on, as [`Device::extents`]; nothing without one. It is not moved meanwhile.
    pub fn extents_of_parent(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        match &*self.parent.read().expect("no panics under this lock") {
            Some(parent) => parent.extents(offset, len, stretches_max),
            None => Ok(Vec::new()),
        }
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
        *self.held.write().expect("no panics under this lock") =
            own.held.into_inner().expect("no panics under this lock");
        *parent = None;
    }

    /// Whether history can be folded into it: not into one that is a view of a parent, and not into one whose map or files are
    /// missing, so that they can still be brought back.
    pub fn takes_folds(&self) -> bool {
        if self.parent().is_some() {
            return false;
        }
        let held = self.held.read().expect("no panics under this lock");
        held.broken.is_none() && held.pieces.values().all(|piece| piece.missing().is_empty())
    }

    /// What is missing or cannot be used of its files, as far as opening them told.
    pub fn problems(&self) -> Vec<Problem> {
        let held = self.held.read().expect("no panics under this lock");
        let mut problems = Vec::new();
        if let Some(what) = &held.broken {
            let extent = Some(Extent::new(0, self.size_bytes.load(Ordering::Relaxed).div_ceil(BLOCK_BYTES)));
            problems.push(Problem { file: map::map_path(&self.dir), extent, what: what.clone() });
        }
        for piece in held.pieces.values() {
            for file in piece.missing() {
                let first = piece.number * PIECE_BLOCKS;
                let extent = Some(Extent::new(first, first + PIECE_BLOCKS));
                let what = "the file is missing: what the base has in it cannot be read".to_owned();
                problems.push(Problem { file: file.clone(), extent, what });
            }
            if !piece.has_header() && !piece.missing().contains(&piece.sums_path()) {
                let what = "the header is not what was written; nothing depends on it".to_owned();
                problems.push(Problem { file: piece.sums_path().clone(), extent: None, what });
            }
        }
        problems
    }

    /// Up to which block nothing can be read from block `at` on, because a whole file or the map is missing.
    pub fn lost_until(&self, at: u64) -> Option<u64> {
        let held = self.held.read().expect("no panics under this lock");
        if held.broken.is_some() {
            return Some(u64::MAX);
        }
        let piece = held.pieces.get(&(at / PIECE_BLOCKS))?;
        (!piece.missing().is_empty()).then_some((piece.number + 1) * PIECE_BLOCKS)
    }

    /// What stands beside it in images of which its map knows nothing, as a base in which no block is said to be present: a fold that
    /// a crash ended leaves some, or a map that is not the newest one.
    pub fn strays(&self) -> Result<Base> {
        let strays = self.beside();
        let is_own = self.parent().is_none();
        let held = self.held.read().expect("no panics under this lock");
        if held.broken.is_none() && is_own {
            let mut found = strays.held.write().expect("no panics under this lock");
            for number in (0..VOLUME_BYTES_MAX / BASE_PIECE_BYTES).filter(|n| !held.pieces.contains_key(n)) {
                let path = image_path(&self.dir, number);
                match self.files.open(&path, false) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    other => other.at(|| format!("opening {}", path.display()))?,
                };
                let place = piece::Place { dir: &self.dir, volume: self.volume, number };
                found.pieces.insert(number, Arc::new(Piece::open(&*self.files, &place, Vec::new())?));
            }
        }
        drop(held);
        Ok(strays)
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
        if self.parent().is_some() {
            return false;
        }
        let held = self.held.read().expect("no panics under this lock");
        held.pieces.is_empty() && held.broken.is_none()
    }

    /// # Errors
    /// `Damaged` where nobody knows what pieces there are.
    fn piece(&self, number: u64) -> Result<Option<Arc<Piece>>> {
        let held = self.held.read().expect("no panics under this lock");
        match &held.broken {
            None => Ok(held.pieces.get(&number).cloned()),
            Some(what) => {
                let hint = "bring the map back; without it nobody can tell what the base has";
                let context = format!("{}: {what}", map::map_path(&self.dir).display());
                Err(Error::new(Kind::Damaged, context).hint(hint))
            }
        }
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
            let blocks = (piece_end - at).min((rest.len() / BLOCK) as u64).min(BLOCKS_PER_LOOK);
            let (front, back) = rest.split_at_mut(blocks as usize * BLOCK);
            match self.piece(at / PIECE_BLOCKS)? {
                None => front.fill(0),
                Some(piece) => piece.read(at, front)?,
            }
            rest = back;
            at += blocks;
        }
        Ok(())
    }

    /// Up to which block, at most `to`, the blocks from `from` on are alike, and whether they are present. What is damaged counts as
    /// present: reading it says so.
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
            // Nobody knows what there is: all of it may be.
            let Ok(piece) = self.piece(number) else { return Ok((to, true)) };
            let Some(piece) = piece else {
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
