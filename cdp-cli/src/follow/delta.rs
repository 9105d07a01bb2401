//! The delta file: the next step of a target, whole and checked before the first byte of it goes to the target.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::format::bytes::{crc_fits, get, get_u32, get_u64, get_u128, put, seal_crc};
use cdp_core::io::{File, Files};

use super::state::Position;

const MAGIC: [u8; 8] = *b"CDPDELTA";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
const ENTRY_BYTES: usize = 24;
const HASH_BYTES: usize = 32;
/// Data of one entry, in bytes at most.
pub const DATA_BYTES_MAX: u64 = 1 << 20;
/// Collected before it is written, in bytes.
const BUFFER_BYTES: usize = 1 << 20;

const KIND_DATA: u32 = 1;
const KIND_ZEROS: u32 = 2;
const KIND_END: u32 = 3;

/// Which step it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Of which volume.
    pub volume_id: u128,
    /// What the target holds before it.
    pub from: Position,
    /// And after it.
    pub to: Position,
}

/// Something to do to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// Bytes from this offset on.
    Data(u64, &'a [u8]),
    /// Zeros from this offset on, so many.
    Zeros(u64, u64),
}

/// A delta file that is being written.
pub struct DeltaWriter {
    file: Arc<dyn File>,
    place: String,
    buffer: Vec<u8>,
    at: u64,
    hash: blake3::Hasher,
    entries: u64,
    data_bytes: u64,
}

impl DeltaWriter {
    /// Begins one, in place of what an earlier step left.
    pub fn create(files: &dyn Files, path: &Path, step: &Step) -> Result<DeltaWriter> {
        let place = format!("writing {}", path.display());
        let file = match files.open(path, true) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => files.create(path),
            other => other,
        }
        .at(|| place.clone())?;
        file.set_len(0).at(|| place.clone())?;
        let mut writer = DeltaWriter {
            file,
            place,
            buffer: Vec::with_capacity(BUFFER_BYTES + ENTRY_BYTES),
            at: 0,
            hash: blake3::Hasher::new(),
            entries: 0,
            data_bytes: 0,
        };
        writer.put(&header(step))?;
        Ok(writer)
    }

    /// Adds an entry; data of at most [`DATA_BYTES_MAX`].
    pub fn add(&mut self, entry: Entry<'_>) -> Result<()> {
        self.entries += 1;
        match entry {
            Entry::Data(offset, data) => {
                debug_assert!(data.len() as u64 <= DATA_BYTES_MAX);
                self.data_bytes += data.len() as u64;
                self.put(&head(KIND_DATA, offset, data.len() as u64))?;
                self.put(data)
            }
            Entry::Zeros(offset, len) => self.put(&head(KIND_ZEROS, offset, len)),
        }
    }

    /// Bytes of data so far.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Ends it. When this returns, it survives power loss.
    pub fn finish(mut self, files: &dyn Files, path: &Path) -> Result<()> {
        self.put(&head(KIND_END, self.entries, self.data_bytes))?;
        let hash = self.hash.finalize();
        self.buffer.extend_from_slice(hash.as_bytes());
        self.write_out()?;
        self.file.sync().at(|| self.place.clone())?;
        files.sync_dir(path.parent().unwrap_or(Path::new("."))).at(|| self.place.clone())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<()> {
        self.file.write_at(self.at, &[IoSlice::new(&self.buffer)]).at(|| self.place.clone())?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn header(step: &Step) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    put(&mut header, 0, MAGIC);
    put(&mut header, 8, VERSION.to_le_bytes());
    put(&mut header, 16, step.volume_id.to_le_bytes());
    for (at, position) in [(32, &step.from), (56, &step.to)] {
        put(&mut header, at, position.lsn.to_le_bytes());
        put(&mut header, at + 8, position.ns.to_le_bytes());
        put(&mut header, at + 16, position.size_bytes.to_le_bytes());
    }
    seal_crc(&mut header);
    header
}

fn head(kind: u32, offset: u64, len: u64) -> [u8; ENTRY_BYTES] {
    let mut head = [0; ENTRY_BYTES];
    put(&mut head, 0, kind.to_le_bytes());
    put(&mut head, 8, offset.to_le_bytes());
    put(&mut head, 16, len.to_le_bytes());
    head
}

/// A delta file that was read through and found whole.
pub struct Delta {
    file: Arc<dyn File>,
    place: String,
    /// Which step it is.
    pub step: Step,
}

impl Delta {
    /// Opens one. `None` if there is none, or not a whole one: then nothing of it went to the target.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Option<Delta>> {
        let place = format!("reading {}", path.display());
        let file = match files.open(path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(error, place)),
        };
        let mut header = [0; HEADER_BYTES];
        let len = file.len().at(|| place.clone())?;
        if len < HEADER_BYTES as u64 {
            return Ok(None);
        }
        file.read_at(0, &mut header).at(|| place.clone())?;
        if get::<8>(&header, 0) != MAGIC || !crc_fits(&header) {
            return Ok(None);
        }
        if get_u32(&header, 8) != VERSION {
            let context = format!("{} is of version {}", path.display(), get_u32(&header, 8));
            return Err(Error::new(Kind::Invalid, context));
        }
        let position = |at| Position {
            lsn: get_u64(&header, at),
            ns: get_u64(&header, at + 8),
            size_bytes: get_u64(&header, at + 16),
        };
        let step = Step { volume_id: get_u128(&header, 16), from: position(32), to: position(56) };
        let delta = Delta { file, place, step };
        let mut hash = blake3::Hasher::new();
        hash.update(&header);
        Ok(delta.walk(len, &mut Some(hash), &mut |_| Ok(()))?.then_some(delta))
    }

    /// Visits its entries in their order.
    pub fn each(&self, visit: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        let len = self.file.len().at(|| self.place.clone())?;
        match self.walk(len, &mut None, visit)? {
            true => Ok(()),
            // It was whole a moment ago.
            false => Err(Error::new(Kind::Damaged, format!("{}: it changed meanwhile", self.place))),
        }
    }

    /// Whether it is whole.
    fn walk(
        &self,
        len: u64,
        hash: &mut Option<blake3::Hasher>,
        visit: &mut dyn FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<bool> {
        let mut at = HEADER_BYTES as u64;
        let (mut entries, mut data_bytes) = (0, 0);
        let mut data = Vec::new();
        let read = |at: u64, buffer: &mut [u8]| self.file.read_at(at, buffer).at(|| self.place.clone());
        loop {
            let mut head = [0; ENTRY_BYTES];
            if at + ENTRY_BYTES as u64 > len {
                return Ok(false);
            }
            read(at, &mut head)?;
            at += ENTRY_BYTES as u64;
            if let Some(hash) = hash {
                hash.update(&head);
            }
            let (kind, first, second) = (get_u32(&head, 0), get_u64(&head, 8), get_u64(&head, 16));
            match kind {
                KIND_DATA if second <= DATA_BYTES_MAX && second <= len - at => {
                    if !self.is_inside(first, second) {
                        return Ok(false);
                    }
                    data.resize(second as usize, 0);
                    read(at, &mut data)?;
                    at += second;
                    if let Some(hash) = hash {
                        hash.update(&data);
                    }
                    data_bytes += second;
                    visit(Entry::Data(first, &data))?;
                }
                KIND_ZEROS if self.is_inside(first, second) => visit(Entry::Zeros(first, second))?,
                KIND_END => {
                    if (first, second) != (entries, data_bytes) || len - at < HASH_BYTES as u64 {
                        return Ok(false);
                    }
                    let mut stored = [0; HASH_BYTES];
                    read(at, &mut stored)?;
                    return Ok(hash.as_ref().is_none_or(|hash| *hash.finalize().as_bytes() == stored));
                }
                _ => return Ok(false),
            }
            entries += 1;
        }
    }

    fn is_inside(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.step.to.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::io::sim::SimDisk;

    const PATH: &str = "/x.cdp-delta";

    fn step() -> Step {
        let position = |lsn| Position { lsn, ns: lsn * 1000, size_bytes: 1 << 20 };
        Step { volume_id: 7, from: position(3), to: position(5) }
    }

    fn write(disk: &SimDisk, entries: &[Entry<'_>]) {
        let mut writer = DeltaWriter::create(disk, Path::new(PATH), &step()).unwrap();
        entries.iter().for_each(|entry| writer.add(*entry).unwrap());
        writer.finish(disk, Path::new(PATH)).unwrap();
    }

    fn read(disk: &SimDisk) -> Option<Vec<(u64, Vec<u8>)>> {
        let delta = Delta::open(disk, Path::new(PATH)).unwrap()?;
        assert_eq!(delta.step, step());
        let mut found = Vec::new();
        delta
            .each(&mut |entry| {
                found.push(match entry {
                    Entry::Data(offset, data) => (offset, data.to_vec()),
                    Entry::Zeros(offset, len) => (offset, vec![0; len as usize]),
                });
                Ok(())
            })
            .unwrap();
        Some(found)
    }

    // Half a step on the target, and nothing that says so, is a disk that never was.
    #[test]
    fn a_delta_is_read_whole_or_not_at_all() {
        let disk = SimDisk::new(1);
        assert_eq!(read(&disk), None);
        write(&disk, &[Entry::Zeros(0, 8), Entry::Data(4096, b"data"), Entry::Zeros(1 << 19, 1 << 19)]);
        let whole = read(&disk).unwrap();
        assert_eq!(whole.len(), 3);
        assert_eq!(whole[1], (4096, b"data".to_vec()));
        let len = disk.contents(PATH).unwrap().len() as u64;
        for at in 0..len {
            // The version alone is told apart: a later program wrote it.
            if (8..12).contains(&at) {
                continue;
            }
            disk.rot(PATH, at, 1).unwrap();
            assert_eq!(read(&disk), None, "byte {at}");
            disk.rot(PATH, at, 1).unwrap();
        }
        for cut in 0..len {
            let cut_off = disk.snapshot().mount(1);
            cut_off.truncate(PATH, cut).unwrap();
            assert_eq!(read(&cut_off), None, "cut at {cut}");
        }
        // A shorter one in its place.
        write(&disk, &[]);
        assert_eq!(read(&disk), Some(Vec::new()));
    }

    #[test]
    fn what_lies_outside_of_the_disk_is_no_delta() {
        let disk = SimDisk::new(1);
        for entry in
            [Entry::Zeros(1 << 20, 1), Entry::Zeros(u64::MAX, 2), Entry::Data((1 << 20) - 3, b"data")]
        {
            write(&disk, &[entry]);
            assert_eq!(read(&disk), None, "{entry:?}");
        }
    }

    #[test]
    fn golden_bytes() {
        let disk = SimDisk::new(1);
        write(&disk, &[Entry::Zeros(0, 8), Entry::Data(4096, b"data")]);
        let bytes = disk.contents(PATH).unwrap();
        assert_eq!(bytes.len(), 96 + 24 + 24 + 4 + 24 + 32);
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN);
    }

    const GOLDEN: &str = "aaa6e47611f775d521c712aa29d31e5742a54c1dd885d1df7d1ccc84c33a4381";
}
