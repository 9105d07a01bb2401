//! The mark file: writes its two slots in turn, reads the better one.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::error::{IoContext, Result};
use crate::format::mark::{MARK_FILE_BYTES, Mark, SLOT_BYTES};
use crate::io::{File, Files};

/// Name of the file in a volume's directory.
pub const MARK_FILE: &str = "mark";

/// The open mark file.
pub struct MarkFile {
    file: Arc<dyn File>,
    sequence: u64,
    // The slot that was read at the opening: a process that died may have left it in the cache only.
    unsettled: Option<Mark>,
}

impl MarkFile {
    /// Makes the file with a first mark in both slots. Durable when this returns.
    pub fn create(files: &dyn Files, dir: &Path, mark: Mark) -> Result<()> {
        let path = dir.join(MARK_FILE);
        let made = (|| {
            let file = files.create(&path)?;
            file.allocate(0, MARK_FILE_BYTES)?;
            let bytes = mark.encode();
            file.write_at(0, &[IoSlice::new(&bytes[..]), IoSlice::new(&bytes[..])])?;
            file.sync()?;
            files.sync_dir(dir)
        })();
        made.at(|| format!("making {}", path.display()))
    }

    /// Opens the file, made anew if it is missing, and reads the newer good slot.
    pub fn open(files: &dyn Files, dir: &Path) -> Result<(MarkFile, Option<Mark>)> {
        let path = dir.join(MARK_FILE);
        let file = match files.open(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => files.create(&path),
            other => other,
        }
        .at(|| format!("opening {}", path.display()))?;
        let mut best: Option<Mark> = None;
        for slot in 0..2u64 {
            let mut bytes = [0; SLOT_BYTES];
            // A slot that cannot be read is a bad slot.
            if file.read_at(slot * SLOT_BYTES as u64, &mut bytes).is_ok()
                && let Some(mark) = Mark::decode(&bytes)
                && best.is_none_or(|best| best.sequence < mark.sequence)
            {
                best = Some(mark);
            }
        }
        let sequence = best.map_or(0, |mark| mark.sequence);
        Ok((MarkFile { file, sequence, unsettled: best }, best))
    }

    /// Writes the next slot and syncs it; the sequence number is filled in here.
    ///
    /// The first time in an opening the other slot is written once more before, byte for byte, and synced: if it never
    /// reached the disk, the one that is about to be overwritten is the only good one there.
    pub fn write(&mut self, mut mark: Mark) -> Result<()> {
        if let Some(best) = &self.unsettled {
            let slot = best.sequence % 2;
            self.file
                .write_at(slot * SLOT_BYTES as u64, &[IoSlice::new(&best.encode()[..])])
                .and_then(|()| self.file.sync())
                .at(|| "writing the durable mark again".to_owned())?;
            self.unsettled = None;
        }
        mark.sequence = self.sequence + 1;
        let slot = mark.sequence % 2;
        let written = (|| {
            self.file.write_at(slot * SLOT_BYTES as u64, &[IoSlice::new(&mark.encode()[..])])?;
            self.file.sync()
        })();
        // Only a mark that is known to be written moves on to the other slot: a failed write may have torn
        // this one, and the other is then the only good one.
        written.at(|| "writing the durable mark".to_owned())?;
        self.sequence = mark.sequence;
        Ok(())
    }
}
