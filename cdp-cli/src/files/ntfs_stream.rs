//! The content of a file on NTFS: the unnamed stream, out of all the records that it is spread over.
//!
//! The crate `ntfs` finds attributes and their runs. It does not know how far a stream is initialized, and follows one
//! over several records only if they number it alike; so the runs are put together here.

use cdp_core::error::{Error, Result};
use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::structured_values::NtfsAttributeList;
use ntfs::{Ntfs, NtfsAttribute, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek};

use super::ByteSink;
use super::disk::Disk;

/// Read at a time, in bytes.
const STEP_BYTES: u64 = 256 << 10;
/// Of every so many bytes of a record the last two lie elsewhere, to tell a torn write.
const FIXUP_BYTES: usize = 512;
const COMPRESSED_MASK: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;

/// A file's unnamed stream.
pub struct Stream {
    /// Length in bytes.
    pub bytes: u64,
    /// So many bytes were written; the others are zeros, whatever lies on the disk.
    initialized: u64,
    /// In its record, for a short one.
    resident: Option<Vec<u8>>,
    flags: u16,
    runs: Vec<Run>,
}

/// Bytes that lie together, `None` for a hole.
struct Run {
    place: Option<u64>,
    bytes: u64,
}

/// One record's share of it.
struct Part {
    lowest_cluster: u64,
    stream: Stream,
}

impl Stream {
    /// A file's. A file without one is empty.
    pub fn of(ntfs: &Ntfs, file: &NtfsFile<'_>, disk: &mut Disk) -> Result<Stream, NtfsError> {
        let mut parts = Vec::new();
        for attribute in file.attributes_raw() {
            let attribute = attribute?;
            match attribute.ty() {
                Ok(NtfsAttributeType::Data) if attribute.name()?.is_empty() => {
                    parts.push(Part::of(file, &attribute, disk)?);
                }
                Ok(NtfsAttributeType::AttributeList) => {
                    let mut entries =
                        attribute.structured_value::<_, NtfsAttributeList<'_, '_>>(disk)?.entries();
                    while let Some(entry) = entries.next(disk) {
                        let entry = entry?;
                        let is_other =
                            entry.base_file_reference().file_record_number() != file.file_record_number();
                        if is_other && entry.ty()? == NtfsAttributeType::Data && entry.name_length() == 0 {
                            let other = entry.to_file(ntfs, disk)?;
                            parts.push(Part::of(&other, &entry.to_attribute(&other)?, disk)?);
                        }
                    }
                }
                _ => {}
            }
        }
        parts.sort_by_key(|part| part.lowest_cluster);
        let mut parts = parts.into_iter();
        let empty = Stream { bytes: 0, initialized: 0, resident: None, flags: 0, runs: Vec::new() };
        let Some(first) = parts.next() else { return Ok(empty) };
        let mut end: u64 = 0;
        let mut whole = Stream { runs: Vec::new(), ..first.stream };
        let rest = parts.map(|part| (part.lowest_cluster, part.stream.flags, part.stream.runs));
        for (lowest, flags, runs) in std::iter::once((first.lowest_cluster, 0, first.stream.runs)).chain(rest)
        {
            if lowest.checked_mul(ntfs.cluster_size().into()) != Some(end) {
                return Err(torn("the records of its content do not follow each other"));
            }
            whole.flags |= flags;
            end = runs.iter().fold(end, |end, run| end.saturating_add(run.bytes));
            whole.runs.extend(runs);
        }
        Ok(whole)
    }

    /// The content in order; `wrong` says of whose.
    pub fn read(
        &self,
        disk: &Disk,
        take: &mut ByteSink<'_>,
        wrong: &dyn Fn(NtfsError) -> Error,
    ) -> Result<()> {
        if let Some(bytes) = &self.resident {
            return if bytes.is_empty() { Ok(()) } else { take(bytes) };
        }
        let mut buffer = Vec::new();
        let mut at: u64 = 0;
        let rest = Run { place: None, bytes: u64::MAX };
        for run in self.runs.iter().chain([&rest]) {
            let end = at.saturating_add(run.bytes).min(self.bytes);
            let start = at;
            while at < end {
                let border = if at < self.initialized { end.min(self.initialized) } else { end };
                let step = (border - at).min(STEP_BYTES);
                buffer.clear();
                buffer.resize(step as usize, 0);
                if at < self.initialized {
                    if std::ptr::eq(run, &rest) {
                        return Err(wrong(torn("its content is shorter than its length")));
                    }
                    if let Some(place) = run.place {
                        let place = place.saturating_add(at - start);
                        disk.read_exact_at(place, &mut buffer).map_err(|error| wrong(error.into()))?;
                    }
                }
                take(&buffer)?;
                at += step;
            }
        }
        Ok(())
    }

    /// Why its bytes are not its content, if they are not.
    pub fn obstacle(&self) -> Option<&'static str> {
        match self.flags {
            flags if flags & ENCRYPTED != 0 => Some("encrypted"),
            flags if flags & COMPRESSED_MASK != 0 => Some("compressed"),
            _ => None,
        }
    }
}

impl Part {
    fn of(
        file: &NtfsFile<'_>,
        attribute: &NtfsAttribute<'_, '_>,
        disk: &mut Disk,
    ) -> Result<Part, NtfsError> {
        let header = header(file, attribute, disk)?;
        let u64_at = |at: usize| {
            let part = header.get(at..).and_then(|rest| rest.first_chunk());
            part.map(|part| u64::from_le_bytes(*part)).ok_or_else(|| torn("an attribute of it is cut off"))
        };
        let flags = u16_at(&header, 0xc)?;
        let (lowest_cluster, stream) = match attribute.value(disk)? {
            NtfsAttributeValue::NonResident(value) => {
                let mut runs = Vec::new();
                for run in value.data_runs() {
                    let run = run?;
                    let place = run.data_position().value().map(|place| place.get());
                    runs.push(Run { place, bytes: run.allocated_size() });
                }
                let (bytes, initialized) = (u64_at(0x30)?, u64_at(0x38)?);
                (u64_at(0x10)?, Stream { bytes, initialized, resident: None, flags, runs })
            }
            mut value => {
                let bytes = value.len();
                let mut content = vec![0; usize::from(u16::try_from(bytes).unwrap_or(u16::MAX))];
                let mut filled = 0;
                while filled < content.len() {
                    match value.read(disk, &mut content[filled..])? {
                        0 => return Err(torn("its content is shorter than its length")),
                        count => filled += count,
                    }
                }
                (0, Stream { bytes, initialized: bytes, resident: Some(content), flags, runs: Vec::new() })
            }
        };
        Ok(Part { lowest_cluster, stream })
    }
}

/// An attribute's own bytes: the crate shows a part of them only.
fn header(file: &NtfsFile<'_>, attribute: &NtfsAttribute<'_, '_>, disk: &Disk) -> Result<Vec<u8>, NtfsError> {
    let place = |position: ntfs::types::NtfsPosition| position.value().map_or(0, |place| place.get());
    let start = place(file.position());
    let within = place(attribute.position()).checked_sub(start).and_then(|at| usize::try_from(at).ok());
    let mut record = vec![0; usize::from(u16::try_from(file.allocated_size()).unwrap_or(u16::MAX))];
    disk.read_exact_at(start, &mut record)?;
    let (fixups, count) = (usize::from(u16_at(&record, 4)?), usize::from(u16_at(&record, 6)?));
    for number in 1..count {
        let value = u16_at(&record, fixups + 2 * number)?.to_le_bytes();
        let place = record.get_mut(number * FIXUP_BYTES - 2..number * FIXUP_BYTES);
        place.ok_or_else(|| torn("a record of it makes no sense"))?.copy_from_slice(&value);
    }
    let end = within.and_then(|at| at.checked_add(attribute.attribute_length() as usize));
    let header = within.zip(end).and_then(|(start, end)| record.get(start..end));
    header.map(<[u8]>::to_vec).ok_or_else(|| torn("an attribute of it is cut off"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, NtfsError> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.map(|part| u16::from_le_bytes(*part)).ok_or_else(|| torn("a record of it is cut off"))
}

fn torn(what: &'static str) -> NtfsError {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what).into()
}
