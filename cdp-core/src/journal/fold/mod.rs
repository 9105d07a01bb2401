//! A fold's file, opened: which stretch of history it is, what it keeps, and its payload as a file of blocks.

mod codec;
mod payload;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use codec::pack;
pub use payload::FoldPayload;
pub use write::FoldWriter;

use crate::error::{Error, IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::format::fold::{FoldHeader, POINT_ROW_BYTES, PointRow};
use crate::format::run::{DamageRow, Entry, MarkerRow, Row};
use crate::format::segment::SegmentHeader;
use crate::ids::*;
use crate::io::{File, FilePool};
use crate::journal::append::Position;
use crate::journal::segment::Segment;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Rows of a table read at a time.
const ROWS_PER_READ: u64 = 4096;
/// Bytes hashed at a time.
const HASH_STEP_BYTES: u64 = 1 << 20;

/// What is known of a fold without looking anything up.
pub struct Fold {
    /// Its first block.
    pub header: FoldHeader,
    /// The states that it keeps, rising.
    pub points: Vec<PointRow>,
    /// Where it stands.
    pub path: PathBuf,
    file: Arc<dyn File>,
}

/// The tables that a fold's run is made from.
pub struct Tables {
    /// In the order of a run.
    pub entries: Vec<Entry>,
    /// Records that change no blocks.
    pub events: Vec<MarkerRow>,
    /// Payload that was damaged when the fold was made.
    pub damages: Vec<DamageRow>,
}

impl Fold {
    /// Opens what stands at `path`; `None` if that is no whole fold. Two reads; where header or points are bad, more: they
    /// stand at the end once more.
    pub fn open(path: &Path, pool: &Arc<FilePool>) -> io::Result<Option<Arc<Fold>>> {
        let file = pool.file(path);
        let bytes = file.len()?;
        if bytes < BLOCK_BYTES {
            return Ok(None);
        }
        let header = match read_header(&*file, 0, bytes) {
            Ok(Some(header)) => Some(header),
            // What cannot be read is as bad as what reads wrong.
            first => match read_header(&*file, bytes - BLOCK_BYTES, bytes) {
                Ok(Some(copy)) => Some(copy),
                _ => first?,
            },
        };
        let Some(header) = header else { return Ok(None) };
        let mut points = read_points(&*file, &header, header.tables_at);
        if header.is_twice && !matches!(points, Ok(Some(_))) {
            points = read_points(&*file, &header, header.copies_at());
        }
        Ok(points?.map(|points| Arc::new(Fold { header, points, path: path.to_owned(), file })))
    }

    /// Whether header and points are what was written, both times they stand there.
    pub fn ends_are_whole(&self) -> bool {
        let (file, header) = (&*self.file, &self.header);
        let fits = |at: u64, points_at: u64| {
            read_header(file, at, header.file_bytes()).is_ok_and(|other| other == Some(*header))
                && read_points(file, header, points_at)
                    .is_ok_and(|points| points.as_ref() == Some(&self.points))
        };
        fits(0, header.tables_at)
            && (!header.is_twice || fits(header.file_bytes() - BLOCK_BYTES, header.copies_at()))
    }

    /// The segment that it stands for: the last one of those it was made of, with the payload in this fold.
    pub fn segment(self: &Arc<Fold>) -> Arc<Segment> {
        let fold = &self.header;
        let header = SegmentHeader {
            volume: fold.volume,
            id: fold.segment,
            ordinal: fold.ordinals.1,
            first_lsn: fold.lsns.0,
            chain_before: fold.chains.0,
            bytes: fold.file_bytes(),
            incarnation: fold.incarnations.0,
            previous_incarnation: fold.incarnations.1,
            predecessor: fold.predecessor,
            predecessor_end: fold.predecessor_end,
            timestamp_before: fold.timestamps.0,
            epoch: fold.epoch,
            codec: 0,
            key_id: 0,
            key_salt: [0; 16],
        };
        let file = Arc::new(FoldPayload::new(self.clone()));
        Arc::new(Segment { header, path: self.path.clone(), file, fold: Some(self.clone()) })
    }

    /// The position behind its last record.
    pub fn last(&self) -> Position {
        let header = &self.header;
        Position { lsn: header.lsns.1, chain: header.chains.1, timestamp: header.timestamps.1 }
    }

    /// Whether the state after this record of its stretch is kept.
    pub fn keeps(&self, lsn: Lsn) -> bool {
        self.instants().any(|(kept, _)| kept == lsn)
    }

    /// The kept states and the instants of their records, rising.
    pub fn instants(&self) -> impl DoubleEndedIterator<Item = (Lsn, Timestamp)> {
        self.points.iter().flat_map(|point| {
            let before = (point.before > Timestamp(0)).then_some((point.lsn.previous(), point.before));
            before.into_iter().chain([(point.lsn, point.at)])
        })
    }

    /// When this record was, if that is still known.
    pub fn timestamp_of(&self, lsn: Lsn) -> Option<Timestamp> {
        if lsn == self.header.lsns.1 {
            return Some(self.header.timestamps.1);
        }
        self.instants().find(|(kept, _)| *kept == lsn).map(|(_, at)| at)
    }

    /// The newest known record that is not after `at`.
    pub fn lsn_at(&self, at: Timestamp) -> Option<Lsn> {
        if at >= self.header.timestamps.1 {
            return Some(self.header.lsns.1);
        }
        self.instants().take_while(|(_, instant)| *instant <= at).last().map(|(lsn, _)| lsn)
    }

    /// The file as it stands on the disk.
    pub fn stored(&self) -> &dyn File {
        &*self.file
    }

    /// Position before its first record.
    pub fn before(&self) -> Position {
        let header = &self.header;
        Position { lsn: header.lsns.0.previous(), chain: header.chains.0, timestamp: header.timestamps.0 }
    }

    /// Whether all bytes between its ends are what was written.
    pub fn is_whole(&self) -> io::Result<bool> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_STEP_BYTES as usize];
        let (mut at, end) = (BLOCK_BYTES, self.header.tables_end());
        while at < end {
            let step = (end - at).min(HASH_STEP_BYTES) as usize;
            self.file.read_at(at, &mut buffer[..step])?;
            hasher.update(&buffer[..step]);
            at += step as u64;
        }
        Ok(*hasher.finalize().as_bytes() == self.header.hash)
    }

    /// Reads the tables, and checks them.
    pub fn tables(&self) -> Result<Tables> {
        let (file, path) = (&*self.file, &self.path);
        let context = || format!("reading {}", path.display());
        let header = &self.header;
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; (header.entries_at() - header.frames_at()) as usize];
        file.read_at(header.frames_at(), &mut buffer).at(context)?;
        crc.update(&buffer);
        let mut entries = Vec::with_capacity(header.entries as usize);
        read_rows(file, header.entries_at(), header.entries, &mut crc, &mut entries).at(context)?;
        let mut events = Vec::with_capacity(header.events as usize);
        read_rows(file, header.events_at(), header.events, &mut crc, &mut events).at(context)?;
        let mut damages = Vec::with_capacity(header.damages as usize);
        read_rows(file, header.damages_at(), header.damages, &mut crc, &mut damages).at(context)?;
        if crc.finalize() != header.tables_crc {
            let context = format!("the tables of {} are not what was written", path.display());
            return Err(Error::new(Kind::Damaged, context));
        }
        Ok(Tables { entries, events, damages })
    }
}

/// The header at one of the ends of a file of so many bytes, if one is there.
fn read_header(file: &dyn File, at: u64, bytes: u64) -> io::Result<Option<FoldHeader>> {
    let mut block = [0; BLOCK];
    file.read_at(at, &mut block)?;
    Ok(FoldHeader::decode(&block, bytes))
}

/// The points that stand at `at`, if those are what the header says.
fn read_points(file: &dyn File, header: &FoldHeader, at: u64) -> io::Result<Option<Vec<PointRow>>> {
    let mut table = vec![0; (header.points * POINT_ROW_BYTES) as usize];
    file.read_at(at, &mut table)?;
    let (rows, _) = table.as_chunks::<{ POINT_ROW_BYTES as usize }>();
    let points: Vec<PointRow> = rows.iter().map(PointRow::decode).collect();
    let within = |point: &PointRow| header.lsns.0 <= point.lsn && point.lsn <= header.lsns.1;
    let rises = points.windows(2).all(|pair| pair[0].lsn < pair[1].lsn && pair[0].at < pair[1].at);
    let is_sound = crc32(&table) == header.points_crc && points.iter().all(within) && rises;
    Ok(is_sound.then_some(points))
}

fn read_rows<R: Row>(
    file: &dyn File,
    at: u64,
    count: u64,
    crc: &mut crc32fast::Hasher,
    rows: &mut Vec<R>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut done = 0;
    while done < count {
        let step = (count - done).min(ROWS_PER_READ);
        buffer.resize(step as usize * R::BYTES, 0);
        file.read_at(at + done * R::BYTES as u64, &mut buffer)?;
        crc.update(&buffer);
        rows.extend(buffer.chunks_exact(R::BYTES).map(R::decode));
        done += step;
    }
    Ok(())
}
