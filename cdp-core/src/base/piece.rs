//! A piece of the base: an image, and what tells which blocks of it count.

use std::io::{ErrorKind, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use super::pages::Pages;
use super::{BLOCK, PIECE_BLOCKS, image_path, sums_path};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::base::{Places, SUMS_HEADER_BYTES, SUMS_PAGE_BLOCKS, SumsHeader, block_sum};
use crate::ids::{BLOCK_BYTES, VolumeId};
use crate::io::{File, Files};

/// The image is looked through for content in portions of this size, in bytes.
const LOOK_BYTES: u64 = 64 << 10;

/// Block numbers are those of the volume; a range lies within the piece.
pub(super) struct Piece {
    pub number: u64,
    pub path: PathBuf,
    sums_path: PathBuf,
    header: SumsHeader,
    places: Places,
    // None where the file is missing.
    image: Option<Arc<dyn File>>,
    sums: Option<Arc<dyn File>>,
    // Whether the header of the checksum file is what it has to be. Nothing depends on it: entries prove themselves.
    has_header: AtomicBool,
    pub pages: RwLock<Pages>,
}

/// Where a piece belongs.
pub(super) struct Place<'a> {
    pub dir: &'a std::path::Path,
    pub volume: VolumeId,
    pub number: u64,
}

impl Piece {
    /// Of files that were just made, with nothing in them.
    pub fn fresh(place: &Place<'_>, image: Arc<dyn File>, sums: Arc<dyn File>) -> Piece {
        Piece {
            number: place.number,
            path: image_path(place.dir, place.number),
            sums_path: sums_path(place.dir, place.number),
            header: SumsHeader { volume: place.volume, piece: place.number as u32 },
            places: Places::of(place.volume),
            image: Some(image),
            sums: Some(sums),
            has_header: AtomicBool::new(true),
            pages: RwLock::default(),
        }
    }

    /// Of the files that a map names. One that is missing makes what is in it an error, not the opening.
    pub fn open(files: &dyn Files, place: &Place<'_>, words: Vec<u64>) -> Result<Piece> {
        let open = |path: PathBuf| match files.open(&path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some).at(|| format!("opening {}", path.display())),
        };
        let image = open(image_path(place.dir, place.number))?;
        let sums = open(sums_path(place.dir, place.number))?;
        let header = SumsHeader { volume: place.volume, piece: place.number as u32 };
        let mut bytes = [0; SUMS_HEADER_BYTES];
        let read = sums.as_ref().is_some_and(|sums| sums.read_at(0, &mut bytes).is_ok());
        Ok(Piece {
            number: place.number,
            path: image_path(place.dir, place.number),
            sums_path: sums_path(place.dir, place.number),
            header,
            places: Places::of(place.volume),
            image,
            sums,
            has_header: AtomicBool::new(read && SumsHeader::decode(&bytes) == Some(header)),
            pages: RwLock::new(Pages::of(words)),
        })
    }

    /// The files of it that are missing, if it has anything in them.
    pub fn missing(&self) -> Vec<&PathBuf> {
        if self.pages.read().expect("no panics under this lock").is_empty() {
            return Vec::new();
        }
        let image = self.image.is_none().then_some(&self.path);
        image.into_iter().chain(self.sums.is_none().then_some(&self.sums_path)).collect()
    }

    /// Its checksum file.
    pub fn sums_path(&self) -> &PathBuf {
        &self.sums_path
    }

    fn image(&self) -> Result<&Arc<dyn File>> {
        self.image.as_ref().ok_or_else(|| gone(&self.path))
    }

    fn sums_file(&self) -> Result<&Arc<dyn File>> {
        self.sums.as_ref().ok_or_else(|| gone(&self.sums_path))
    }

    /// The first block.
    fn first(&self) -> u64 {
        self.number * PIECE_BLOCKS
    }

    fn image_offset(&self, block: u64) -> u64 {
        (block - self.first()) * BLOCK_BYTES
    }

    fn sum_offset(&self, block: u64) -> u64 {
        SUMS_HEADER_BYTES as u64 + (block - self.first()) * 4
    }

    /// Up to which block, at most `to`, the blocks from `from` on are in pages that are alike, and whether those are in use.
    pub fn paged(&self, from: u64, to: u64) -> (u64, bool) {
        let page = |block: u64| (block - self.first()) / SUMS_PAGE_BLOCKS;
        let pages = self.pages.read().expect("no panics under this lock");
        let (end, used) = pages.alike(page(from), page(to - 1) + 1);
        ((self.first() + end * SUMS_PAGE_BLOCKS).min(to), used)
    }

    /// The sums of blocks; 0 for those that it does not have. What is not what was written is some other sum, or an error.
    pub fn sums(&self, first: u64, blocks: u64) -> Result<Vec<u32>> {
        let mut sums = vec![0; blocks as usize];
        let end = first + blocks;
        let mut at = first;
        while at < end {
            let (to, used) = self.paged(at, end);
            if used {
                self.load(at, &mut sums[(at - first) as usize..(to - first) as usize])?;
            }
            at = to;
        }
        Ok(sums)
    }

    fn load(&self, first: u64, sums: &mut [u32]) -> Result<()> {
        let mut bytes = vec![0; sums.len() * 4];
        read_whole(&**self.sums_file()?, self.sum_offset(first), &mut bytes, &self.sums_path)?;
        let (entries, _) = bytes.as_chunks::<4>();
        for (sum, entry) in sums.iter_mut().zip(entries) {
            *sum = u32::from_le_bytes(*entry);
        }
        self.places.mix(first, sums);
        Ok(())
    }

    /// Reads whole blocks; zeros where it has none; every block is checked.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let sums = self.sums(first, (buffer.len() / BLOCK) as u64)?;
        let mut at = 0;
        while at < sums.len() {
            let present = sums[at] != 0;
            let len = sums[at..].iter().take_while(|sum| (**sum != 0) == present).count();
            let lba = first + at as u64;
            let part = &mut buffer[at * BLOCK..(at + len) * BLOCK];
            if !present {
                if let Some(lba) = self.content(lba, lba + len as u64)? {
                    let context = format!(
                        "block {lba} is absent by {}, and {} has something there",
                        self.sums_path.display(),
                        self.path.display()
                    );
                    return Err(Error::new(Kind::Damaged, context));
                }
                part.fill(0);
            } else {
                read_whole(&**self.image()?, self.image_offset(lba), part, &self.path)?;
                for (number, block) in part.chunks_exact(BLOCK).enumerate() {
                    if block_sum(block) != sums[at + number] {
                        let context = format!(
                            "block {} in {} does not fit its checksum in {}",
                            lba + number as u64,
                            self.path.display(),
                            self.sums_path.display()
                        );
                        return Err(Error::new(Kind::Damaged, context));
                    }
                }
            }
            at += len;
        }
        Ok(())
    }

    /// The first of the blocks that is something other than zeros in the image, whatever the sums say. Costs what is there, however
    /// many they are.
    pub fn content(&self, from: u64, to: u64) -> Result<Option<u64>> {
        let Some(image) = &self.image else { return Ok(None) };
        let place = || format!("looking for content of {}", self.path.display());
        let end = self.image_offset(to);
        let mut at = self.image_offset(from);
        while let Some(data) = image.next_data(at).at(place)?.filter(|data| *data < end) {
            let begin = data / BLOCK_BYTES * BLOCK_BYTES;
            let len = image.len().at(place)?.min(end).saturating_sub(begin).min(LOOK_BYTES);
            if len == 0 {
                break;
            }
            let mut bytes = vec![0; len as usize];
            read_whole(&**image, begin, &mut bytes, &self.path)?;
            if let Some(byte) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(self.first() + (begin + byte as u64) / BLOCK_BYTES));
            }
            at = begin + len.next_multiple_of(BLOCK_BYTES);
        }
        Ok(None)
    }

    /// Up to which block, at most `to`, the blocks from `from` on are alike, and whether they are present; at once where the first
    /// one is not as `wanted`. What cannot be told counts as present: reading it says what is wrong.
    pub fn stretch(&self, from: u64, to: u64, wanted: Option<bool>) -> Result<(u64, bool)> {
        let mut at = from;
        let mut present = wanted;
        while at < to {
            let (end, here) = self.alike(at, to)?;
            if *present.get_or_insert(here) != here {
                break;
            }
            at = end;
        }
        Ok((at, present.unwrap_or(false)))
    }

    /// Some of the stretch that begins with `from`.
    fn alike(&self, from: u64, to: u64) -> Result<(u64, bool)> {
        let (mut end, used) = self.paged(from, to);
        if used {
            // One page at a time, so that many short stretches read little.
            let page_end = self.first() + ((from - self.first()) / SUMS_PAGE_BLOCKS + 1) * SUMS_PAGE_BLOCKS;
            end = end.min(page_end);
            let Ok(sums) = self.sums(from, end - from) else { return Ok((end, true)) };
            let here = sums[0] != 0;
            end = from + sums.iter().take_while(|sum| (**sum != 0) == here).count() as u64;
            if here {
                return Ok((end, true));
            }
        }
        match self.content(from, end)? {
            None => Ok((end, false)),
            Some(lba) if lba == from => Ok((from + 1, true)),
            Some(lba) => Ok((lba, false)),
        }
    }

    /// Writes blocks into the image.
    pub fn write_blocks(&self, first: u64, bytes: &[u8]) -> Result<()> {
        self.image()?
            .write_at(self.image_offset(first), &[IoSlice::new(bytes)])
            .at(|| format!("writing {}", self.path.display()))
    }

    /// As [`Piece::write_blocks`]: the disk begins with it at once, and it need not stay in the page cache.
    pub fn write_bulk(&self, first: u64, bytes: &[u8]) -> Result<()> {
        self.image()?
            .write_bulk_at(self.image_offset(first), &[IoSlice::new(bytes)])
            .at(|| format!("writing {}", self.path.display()))
    }

    /// Writes sums, 0 for blocks that are absent from now on. A page that was not in use is written whole, and is from here on.
    pub fn write_sums(&self, first: u64, sums: &[u32]) -> Result<()> {
        let file = self.sums_file()?;
        let end = first + sums.len() as u64;
        let mut at = first;
        while at < end {
            let page = (at - self.first()) / SUMS_PAGE_BLOCKS;
            let page_first = self.first() + page * SUMS_PAGE_BLOCKS;
            let to = (page_first + SUMS_PAGE_BLOCKS).min(end);
            let now = &sums[(at - first) as usize..(to - first) as usize];
            let used = self.pages.read().expect("no panics under this lock").has(page);
            let (begin, mut entries) = match used {
                true => (at, now.to_vec()),
                false => {
                    let mut whole = vec![0; SUMS_PAGE_BLOCKS as usize];
                    whole[(at - page_first) as usize..][..now.len()].copy_from_slice(now);
                    (page_first, whole)
                }
            };
            self.places.mix(begin, &mut entries);
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            file.write_at(self.sum_offset(begin), &[IoSlice::new(&bytes)])
                .at(|| format!("writing {}", self.sums_path.display()))?;
            if !used {
                // Whoever finds it in use finds it whole.
                self.pages.write().expect("no panics under this lock").add(page);
            }
            at = to;
        }
        Ok(())
    }

    /// Makes blocks absent.
    pub fn erase(&self, from: u64, to: u64) -> Result<()> {
        let (offset, len) = (self.image_offset(from), (to - from) * BLOCK_BYTES);
        self.image()?.punch(offset, len).at(|| format!("erasing in {}", self.path.display()))?;
        let mut at = from;
        while at < to {
            let (end, used) = self.paged(at, to);
            if used {
                self.write_sums(at, &vec![0; (end - at) as usize])?;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes everything that was written durable. The image is `bytes` long at least then.
    pub fn sync(&self, bytes: u64) -> Result<()> {
        let place = || format!("syncing {}", self.path.display());
        let (Some(image), Some(sums)) = (&self.image, &self.sums) else { return Ok(()) };
        // A volume that grew, or a crash while it was made, leaves it short; its end is a hole then.
        if image.len().at(place)? < bytes {
            image.set_len(bytes).at(place)?;
        }
        let had_header = self.has_header.swap(false, Ordering::Relaxed);
        if !had_header {
            sums.write_at(0, &[IoSlice::new(&self.header.encode()[..])]).at(place)?;
        }
        image.sync().and_then(|()| sums.sync()).at(place)?;
        // After an error nobody knows: it is written again.
        self.has_header.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the header of its checksum file is what it has to be.
    pub fn has_header(&self) -> bool {
        self.has_header.load(Ordering::Relaxed)
    }
}

fn gone(path: &std::path::Path) -> Error {
    Error::new(Kind::Damaged, format!("{} is missing", path.display()))
        .hint("bring the file back; what is in it cannot be told without it")
}

fn read_whole(file: &dyn File, offset: u64, buffer: &mut [u8], path: &std::path::Path) -> Result<()> {
    match file.read_at(offset, buffer) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            let context = format!("{} ends before byte {}", path.display(), offset + buffer.len() as u64);
            Err(Error::new(Kind::Damaged, context))
        }
        other => other.at(|| format!("reading byte {offset} of {}", path.display())),
    }
}
