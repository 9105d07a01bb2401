//! Writing a fold: payload as it comes, in frames; then the tables; the header last.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::pack;
use crate::format::bytes::crc32;
use crate::format::codec::Codec;
use crate::format::fold::{FRAME_BLOCKS, FoldHeader, FrameRow, PointRow, fold_file_name};
use crate::format::run::{DamageRow, Entry, MarkerRow, Row};
use crate::ids::*;
use crate::io::{File, Files};

const FRAME_BYTES: usize = (FRAME_BLOCKS * BLOCK_BYTES) as usize;
/// Rows of a table are written in pieces of about so many bytes.
const TABLE_STEP_BYTES: usize = 64 << 10;

/// A fold that is being written, under a temporary name.
///
/// Legal states after a crash: no file, any part of it under its temporary name (removed at the next opening), or,
/// once [`FoldWriter::publish`] has returned, the whole fold. From then on it counts, and the segments it was made of
/// do not.
pub struct FoldWriter {
    files: Arc<dyn Files>,
    fresh: PathBuf,
    path: PathBuf,
    file: Arc<dyn File>,
    codec: Codec,
    end: u64,
    frame: Vec<u8>,
    frames: Vec<FrameRow>,
    blocks: u64,
    hash: blake3::Hasher,
}

impl FoldWriter {
    /// Begins a fold whose last segment has this ordinal, with frames compressed like that.
    pub fn begin(
        files: &Arc<dyn Files>,
        dir: &Path,
        ordinal: u64,
        id: SegmentId,
        codec: Codec,
    ) -> io::Result<FoldWriter> {
        let name = fold_file_name(ordinal, id);
        let (path, fresh) = (dir.join(&name), dir.join(format!("{name}.new")));
        let file = files.create(&fresh)?;
        Ok(FoldWriter {
            files: files.clone(),
            fresh,
            path,
            file,
            codec,
            end: BLOCK_BYTES,
            frame: Vec::with_capacity(FRAME_BYTES),
            frames: Vec::new(),
            blocks: 0,
            hash: blake3::Hasher::new(),
        })
    }

    /// Where it stands until it is published.
    pub fn fresh_path(&self) -> &Path {
        &self.fresh
    }

    /// Where it will stand.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a block of payload; gives its number.
    pub fn block(&mut self, bytes: &[u8]) -> io::Result<u32> {
        debug_assert_eq!(bytes.len() as u64, BLOCK_BYTES);
        self.frame.extend_from_slice(bytes);
        self.blocks += 1;
        if self.frame.len() == FRAME_BYTES {
            self.end_frame()?;
        }
        Ok(self.blocks as u32)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let packed = pack(self.codec, &self.frame);
        let (stored, codec) = match &packed {
            Some(packed) => (packed, self.codec),
            None => (&self.frame, Codec::None),
        };
        let codec = u32::from(codec.number());
        self.frames.push(FrameRow { at: self.end, bytes: stored.len() as u32, codec });
        self.file.write_bulk_at(self.end, &[IoSlice::new(stored)])?;
        self.hash.update(stored);
        self.end += stored.len() as u64;
        self.frame.clear();
        Ok(())
    }

    /// Writes tables and header, and syncs; `header` as far as the caller knows it. The file is whole afterwards.
    pub fn finish(
        &mut self,
        header: FoldHeader,
        points: &[PointRow],
        entries: impl Iterator<Item = Entry>,
        events: &[MarkerRow],
        damages: &[DamageRow],
    ) -> io::Result<FoldHeader> {
        self.end_frame()?;
        let mut header = FoldHeader {
            is_twice: true,
            codec: self.codec,
            payload_blocks: self.blocks,
            tables_at: self.end,
            points: points.len() as u64,
            events: events.len() as u64,
            damages: damages.len() as u64,
            ..header
        };
        let points: Vec<u8> = points.iter().flat_map(PointRow::encode).collect();
        header.points_crc = crc32(&points);
        self.put(&points)?;
        let mut crc = crc32fast::Hasher::new();
        let frames: Vec<u8> = self.frames.iter().flat_map(FrameRow::encode).collect();
        crc.update(&frames);
        self.put(&frames)?;
        header.entries = self.rows(entries, &mut crc)?;
        self.rows(events.iter().copied(), &mut crc)?;
        self.rows(damages.iter().copied(), &mut crc)?;
        header.tables_crc = crc.finalize();
        header.hash = *self.hash.finalize().as_bytes();
        let block = header.encode();
        // Without header and points nothing of a fold can be read: they stand at both of its ends.
        self.file.write_at(header.copies_at(), &[IoSlice::new(&points), IoSlice::new(&block[..])])?;
        self.file.write_at(0, &[IoSlice::new(&block[..])])?;
        self.file.sync()?;
        Ok(header)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.file.write_at(self.end, &[IoSlice::new(bytes)])?;
        }
        self.hash.update(bytes);
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn rows<R: Row>(
        &mut self,
        rows: impl Iterator<Item = R>,
        crc: &mut crc32fast::Hasher,
    ) -> io::Result<u64> {
        let mut count = 0;
        let mut buffer: Vec<u8> = Vec::with_capacity(TABLE_STEP_BYTES);
        for row in rows {
            let at = buffer.len();
            buffer.resize(at + R::BYTES, 0);
            row.encode(&mut buffer[at..]);
            count += 1;
            if buffer.len() + R::BYTES > TABLE_STEP_BYTES {
                crc.update(&buffer);
                self.put(&buffer)?;
                buffer.clear();
            }
        }
        crc.update(&buffer);
        self.put(&buffer)?;
        Ok(count)
    }

    /// Gives it its name: from here on it counts.
    pub fn publish(&self) -> io::Result<()> {
        self.files.rename(&self.fresh, &self.path)?;
        self.files.sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }

    /// Gives the space back. What cannot be removed is removed by the next opening.
    pub fn abandon(&self) {
        let _ = self.files.remove(&self.fresh);
    }
}
