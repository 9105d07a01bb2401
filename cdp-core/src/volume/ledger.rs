//! The ledger file of a volume: appended to and synced, bounded, and shown by `log`.
//!
//! Legal states after a crash: with or without the entry that was being appended; a torn one is none, and the next
//! entry makes the file anew. Nothing that keeps history safe depends on it: the horizon itself stands in the
//! manifest `history`.

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{IoContext, Result};
use crate::format::ledger::{Entry, Fact};
use crate::ids::*;
use crate::io::{File, Files, read_file, replace_file};
use crate::limits::LEDGER_BYTES_MAX;

/// Name of the file in a volume's directory.
pub const LEDGER_FILE: &str = "ledger";

/// The opened ledger.
pub(super) struct Ledger {
    files: Arc<dyn Files>,
    path: PathBuf,
    volume: VolumeId,
    entries: Vec<Entry>,
    // None: the file is missing, or its end is not known to be good; it is made anew with the next entry.
    file: Option<Arc<dyn File>>,
    bytes: u64,
}

impl Ledger {
    /// Reads what there is. Whatever is wrong with it: what can be read is taken.
    pub(super) fn open(files: &Arc<dyn Files>, dir: &Path, volume: VolumeId) -> Result<Ledger> {
        let path = dir.join(LEDGER_FILE);
        let content = match read_file(&**files, &path, 2 * LEDGER_BYTES_MAX) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Vec::new(),
            other => other.at(|| format!("reading {}", path.display()))?,
        };
        let mut ledger =
            Ledger { files: files.clone(), path, volume, entries: Vec::new(), file: None, bytes: 0 };
        let mut rest = &content[..];
        while let Some((entry, len)) = Entry::decode(rest).filter(|(entry, _)| entry.volume == volume) {
            ledger.entries.push(entry);
            ledger.bytes += len as u64;
            rest = &rest[len..];
        }
        if rest.is_empty() && !content.is_empty() {
            ledger.file = ledger.files.open(&ledger.path, true).ok();
        }
        Ok(ledger)
    }

    /// What it says, oldest first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes a fact down; durable when this returns. Facts of markers up to `base` may be forgotten when the file
    /// has to get shorter. After an error it is remembered, and written with the next one.
    pub(super) fn append(&mut self, at: Timestamp, fact: Fact, base: Lsn) -> Result<()> {
        let sequence = self.entries.last().map_or(1, |last| last.sequence + 1);
        let entry = Entry { volume: self.volume, sequence, at, fact };
        let bytes = entry.encode();
        self.entries.push(entry);
        match self.file.take() {
            Some(file) if self.bytes + bytes.len() as u64 <= LEDGER_BYTES_MAX => {
                file.write_at(self.bytes, &[IoSlice::new(&bytes)])
                    .and_then(|()| file.sync())
                    .at(|| format!("writing {}", self.path.display()))?;
                self.bytes += bytes.len() as u64;
                self.file = Some(file);
                Ok(())
            }
            _ => self.rewrite(base),
        }
    }

    /// Makes the file anew: the newest half, and what still counts of the rest.
    fn rewrite(&mut self, base: Lsn) -> Result<()> {
        let mut kept: Vec<&Entry> = Vec::new();
        let mut bytes = 0;
        for entry in self.entries.iter().rev() {
            let counts = matches!(entry.fact, Fact::LetGo { lsn, .. } if lsn > base);
            let len = entry.encode().len() as u64;
            if counts || bytes + len <= LEDGER_BYTES_MAX / 2 {
                bytes += len;
                kept.push(entry);
            }
        }
        let content: Vec<u8> = kept.iter().rev().flat_map(|entry| entry.encode()).collect();
        let place = || format!("writing {}", self.path.display());
        replace_file(&*self.files, &self.path, &content).at(place)?;
        let file = self.files.open(&self.path, true).at(place)?;
        let kept: Vec<Entry> = kept.into_iter().rev().cloned().collect();
        self.entries = kept;
        self.bytes = content.len() as u64;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ledger::Reason;
    use crate::io::sim::SimDisk;

    fn moved(to: u64) -> Fact {
        Fact::Horizon { from: (Lsn(0), Timestamp(0)), to: (Lsn(to), Timestamp(to)), reason: Reason::Cap }
    }

    fn let_go(lsn: u64) -> Fact {
        Fact::LetGo { lsn: Lsn(lsn), at: Timestamp(lsn), name: format!("m{lsn}") }
    }

    fn open(disk: &SimDisk) -> Ledger {
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        Ledger::open(&files, Path::new("/"), VolumeId(5)).unwrap()
    }

    /// Whoever loses power while an entry is written keeps all that were answered, and can go on writing.
    #[test]
    fn answered_entries_survive_every_power_loss() {
        let disk = SimDisk::new(1);
        disk.record_boundaries(true);
        let mut answered = vec![];
        let mut ledger = open(&disk);
        for number in 1..12 {
            ledger.append(Timestamp(number), moved(number), Lsn(0)).unwrap();
            answered.push((disk.operations(), number));
        }
        for (number, boundary) in disk.take_boundaries().into_iter().enumerate() {
            for seed in 0..6 {
                let disk = boundary.snapshot.mount(seed).crash_power(seed);
                let promised =
                    answered.iter().filter(|(operation, _)| *operation < boundary.operation).count();
                let mut ledger = open(&disk);
                let there = ledger.entries().len();
                assert!(
                    there == promised || there == promised + 1,
                    "boundary {number}: {there} of {promised}"
                );
                ledger.append(Timestamp(99), let_go(1), Lsn(0)).unwrap();
                let again = open(&disk.crash_power_with(crate::io::sim::PowerLoss::all_lost()));
                assert_eq!(again.entries().len(), there + 1, "boundary {number}");
            }
        }
    }

    /// It stays small for ever, and keeps what still counts.
    #[test]
    fn it_is_bounded() {
        let disk = SimDisk::new(2);
        let mut ledger = open(&disk);
        ledger.append(Timestamp(1), let_go(50), Lsn(0)).unwrap();
        ledger.append(Timestamp(1), let_go(2), Lsn(0)).unwrap();
        for number in 0..40_000 {
            ledger.append(Timestamp(number), moved(number), Lsn(10)).unwrap();
        }
        assert!(disk.contents("/ledger").unwrap().len() as u64 <= LEDGER_BYTES_MAX);
        let ledger = open(&disk);
        assert_eq!(ledger.entries()[0].fact, let_go(50));
        assert!(ledger.entries().iter().all(|entry| entry.fact != let_go(2)));
        assert_eq!(ledger.entries().last().unwrap().fact, moved(39_999));
    }
}
