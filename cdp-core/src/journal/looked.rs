//! Remembers the first and last blocks of segments that take no more records, so that opening a volume does not read
//! them all. A cache: an entry counts only for the very state of the very file that it was read from.
//!
//! What a file's length, inode and ctime cannot show is rot: bits that changed on the medium without anybody writing.
//! Whoever believes an entry reads the file's own blocks soon afterwards (`volume/doubt.rs`).
//!
//! Legal states after a crash: no file, a file without the newest entries, or one whose newest entries are torn (each has
//! its checksum). Entries are appended without a sync: nothing depends on one being there. An entry may also say less than
//! the disk (a ctime that a power loss took back): then the blocks are read. It never says more, because a segment file
//! with an entry is written to again only when its records are the base's.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::segment::{self, FirstBlock, Segment};
use crate::format::looked::{LOOKED_ENTRY_BYTES, LOOKED_FILE, Looked, encode_head, is_head};
use crate::ids::VolumeId;
use crate::io::{File, FileStat, Files, read_file, replace_file};
use crate::limits::LOOKED_BYTES_MAX;

const ENTRY_BYTES: u64 = LOOKED_ENTRY_BYTES as u64;
/// A file with more than twice the entries that count, and so many more, is written anew.
const SLACK_ENTRIES: u64 = 64;

/// The file `looked` of a volume.
pub struct LookedFile {
    files: Arc<dyn Files>,
    path: PathBuf,
    volume: VolumeId,
    entries: BTreeMap<u64, Looked>,
    file: Option<Arc<dyn File>>,
    // Where the next entry goes; 0: there is no usable file.
    end: u64,
    // Something went wrong: nothing more is written in this opening.
    is_off: bool,
}

impl LookedFile {
    /// One that remembers nothing; the first entry makes the file anew.
    pub fn empty(files: Arc<dyn Files>, dir: &Path, volume: VolumeId) -> LookedFile {
        let path = dir.join(LOOKED_FILE);
        LookedFile { files, path, volume, entries: BTreeMap::new(), file: None, end: 0, is_off: false }
    }

    /// What the file says. Whatever is wrong with it is not there.
    pub fn load(files: Arc<dyn Files>, dir: &Path, volume: VolumeId) -> LookedFile {
        let mut looked = LookedFile::empty(files, dir, volume);
        let Ok(bytes) = read_file(&*looked.files, &looked.path, LOOKED_BYTES_MAX) else { return looked };
        let (blocks, _) = bytes.as_chunks::<LOOKED_ENTRY_BYTES>();
        let Some((head, entries)) = blocks.split_first() else { return looked };
        if !is_head(head, volume) {
            return looked;
        }
        for entry in entries.iter().filter_map(Looked::decode) {
            if entry.header.volume == volume {
                looked.entries.insert(entry.header.ordinal, entry);
            }
        }
        looked.end = blocks.len() as u64 * ENTRY_BYTES;
        looked
    }

    /// What stood in the segment file with this ordinal, if it is the same file in the same state.
    pub fn get(&self, ordinal: u64, stat: &FileStat) -> Option<&Looked> {
        self.entries.get(&ordinal).filter(|entry| stat.is_identity() && entry.stat == *stat)
    }

    /// Remembers these; forgets those with other ordinals than `counts` tells, and gives their space back where they are
    /// many.
    pub fn settle(&mut self, fresh: Vec<Looked>, counts: impl Fn(u64) -> bool) {
        let fresh_bytes: Vec<u8> = fresh.iter().flat_map(Looked::encode).collect();
        self.entries.extend(fresh.into_iter().map(|entry| (entry.header.ordinal, entry)));
        self.entries.retain(|ordinal, _| counts(*ordinal));
        let slots = self.end / ENTRY_BYTES;
        if self.end == 0 || slots > 2 * self.entries.len() as u64 + SLACK_ENTRIES {
            self.write_anew();
        } else {
            self.append(&fresh_bytes);
        }
        // They are asked for while a volume is opened only.
        self.entries = BTreeMap::new();
    }

    /// Remembers what stands in a segment file now, if it stands still.
    pub fn look(&mut self, segment: &Segment) {
        if let Ok(Some(entry)) = look(&*self.files, segment) {
            if self.end == 0 {
                self.entries.insert(entry.header.ordinal, entry);
                self.write_anew();
                self.entries = BTreeMap::new();
            } else {
                self.append(&entry.encode());
            }
        }
    }

    /// Something in it cannot be believed: the next opening reads all segments again.
    pub fn forget_all(&mut self) {
        self.is_off = true;
        self.file = None;
        let _ = self.files.remove(&self.path);
    }

    fn write_anew(&mut self) {
        if self.is_off || self.entries.is_empty() {
            return;
        }
        let mut bytes = encode_head(self.volume).to_vec();
        bytes.extend(self.entries.values().flat_map(Looked::encode));
        self.file = None;
        match replace_file(&*self.files, &self.path, &bytes) {
            Ok(()) => self.end = bytes.len() as u64,
            Err(_) => self.is_off = true,
        }
    }

    fn append(&mut self, entries: &[u8]) {
        if self.is_off || entries.is_empty() {
            return;
        }
        let end = self.end + entries.len() as u64;
        // Without it opening takes longer; that is all.
        self.is_off = end > LOOKED_BYTES_MAX || self.try_append(entries).is_err();
        self.end = end;
    }

    fn try_append(&mut self, entries: &[u8]) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(self.files.open(&self.path, true)?).clone(),
        };
        file.write_at(self.end, &[IoSlice::new(entries)])
    }
}

/// What stands in a segment file; `None` if that is not the segment, or changes meanwhile, or its filesystem cannot tell.
fn look(files: &dyn Files, segment: &Segment) -> io::Result<Option<Looked>> {
    let stat = files.stat(&segment.path)?;
    let FirstBlock::Header(header) = segment::read_first_block(&*segment.file)? else { return Ok(None) };
    let seal = segment::read_seal(segment)?;
    let stands = stat.is_identity() && files.stat(&segment.path)? == stat && *header == segment.header;
    Ok(stands.then_some(Looked { stat, header: *header, seal }))
}
