//! Making the run of a sealed segment.

use super::{Live, Run, bloom};
use crate::error::{IoContext, Result};
use crate::format::run::{
    BLOOM_BLOCK_BYTES, DamageRow, Fence, Header, KIND_SEGMENT, Layout, MarkerRow, PAGE_BYTES, Page, Row,
    Source, seal_page,
};
use crate::ids::{SegmentId, Timestamp, VolumeId};
use crate::io::{File, Files};
use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;

/// So many pages are written at once.
const WRITE_PAGES: usize = 64;

/// What a run is made from.
#[derive(Clone, Copy)]
pub struct RunSource<'a> {
    /// Whose history.
    pub volume: VolumeId,
    /// The sealed segment.
    pub segment: SegmentId,
    /// Where the log ends in it, in bytes.
    pub log_end: u64,
    /// Chain value at the last LSN.
    pub chain: [u8; 16],
    /// Seal hash of the segment.
    pub seal: [u8; 32],
    /// Codec of the segment's payload: 0 as appended.
    pub codec: u8,
    /// All its records.
    pub live: &'a Live,
    /// Its markers, by LSN.
    pub markers: &'a [MarkerRow],
    /// Payload known to be damaged, by LSN.
    pub damages: &'a [DamageRow],
}

impl Run {
    /// Writes a run so that after a crash it is there whole or not at all: under a temporary name beside
    /// `path`, synced, renamed, the directory synced. Takes little memory beside the region.
    pub fn write(files: &dyn Files, path: &Path, source: &RunSource<'_>) -> Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".new");
        let fresh = directory.join(name);
        let context = || format!("write run {}", path.display());
        match files.remove(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at(context),
            _ => {}
        }
        let file = files.create(&fresh).at(context)?;
        write_pages(&file, source).at(context)?;
        file.sync().at(context)?;
        files.rename(&fresh, path).at(context)?;
        files.sync_dir(directory).at(context)
    }
}

fn write_pages(file: &Arc<dyn File>, source: &RunSource<'_>) -> std::io::Result<()> {
    let live = source.live;
    let timestamps = live.timestamps();
    let mut header = Header {
        kind: KIND_SEGMENT,
        level: 0,
        codec: source.codec,
        volume: source.volume,
        run_id: source.segment.0,
        first_lsn: live.first_lsn(),
        last_lsn: live.last_lsn(),
        first_timestamp: Timestamp(timestamps.first().copied().unwrap_or(0)),
        last_timestamp: Timestamp(timestamps.last().copied().unwrap_or(0)),
        log_end: source.log_end,
        chain: source.chain,
        seal: source.seal,
        key_id: [0; 16],
        region_tag: [0; 16],
        sources: 1,
        entries: live.entries(),
        timestamps: timestamps.len() as u64,
        markers: source.markers.len() as u64,
        damages: source.damages.len() as u64,
        bloom_blocks: bloom::blocks_for(live.keys()),
        trees: live.tree_mask(),
        region_crc: 0,
    };
    let layout = Layout::of(&header);
    let mut region = vec![0; layout.region_bytes() as usize];
    let segment = Source { segment: source.segment, first_lsn: live.first_lsn(), log_end: source.log_end };
    segment.encode(&mut region[..Source::BYTES]);

    let mut pages = Pages::new(file, header.run_id, layout.entries_page);
    let (fences, filter) = region.split_at_mut(layout.bloom_at);
    let filter = &mut filter[..header.bloom_blocks as usize * BLOOM_BLOCK_BYTES];
    let mut fence_at = layout.entry_fences_at;
    pages.section(live.iter(), |entry, starts_page| {
        if starts_page {
            let fence = Fence { key: entry.key, lsn_delta: entry.lsn_delta };
            fence.encode(&mut fences[fence_at..fence_at + Fence::BYTES]);
            fence_at += Fence::BYTES;
        }
        bloom::insert(filter, entry.key);
    })?;
    let mut fence_at = layout.timestamp_fences_at;
    pages.section(timestamps.iter().map(|&timestamp| Timestamp(timestamp)), |timestamp, starts_page| {
        if starts_page {
            timestamp.encode(&mut fences[fence_at..fence_at + Timestamp::BYTES]);
            fence_at += Timestamp::BYTES;
        }
    })?;
    pages.section(source.markers.iter().copied(), |_, _| {})?;
    pages.section(source.damages.iter().copied(), |_, _| {})?;
    let file_pages = pages.finish()?;
    debug_assert_eq!(file_pages, layout.file_pages);

    header.region_crc = crc32fast::hash(&region);
    file.write_at(0, &[IoSlice::new(&header.encode()), IoSlice::new(&region)])
}

/// Pages behind the region, written in order through a small buffer.
struct Pages<'a> {
    file: &'a Arc<dyn File>,
    run_id: u64,
    /// Number in the file of the first page in the buffer.
    number: u64,
    buffer: Vec<Page>,
}

impl<'a> Pages<'a> {
    fn new(file: &'a Arc<dyn File>, run_id: u64, number: u64) -> Pages<'a> {
        Pages { file, run_id, number, buffer: Vec::with_capacity(WRITE_PAGES) }
    }

    /// Writes rows from a new page on; `seen` hears of each, and whether it begins a page.
    fn section<R: Row>(
        &mut self,
        rows: impl Iterator<Item = R>,
        mut seen: impl FnMut(&R, bool),
    ) -> std::io::Result<()> {
        let mut page = [0; PAGE_BYTES];
        let mut slot = 0;
        for row in rows {
            if slot == R::PER_PAGE {
                self.put(page)?;
                page = [0; PAGE_BYTES];
                slot = 0;
            }
            seen(&row, slot == 0);
            row.encode(&mut page[slot * R::BYTES..(slot + 1) * R::BYTES]);
            slot += 1;
        }
        if slot > 0 { self.put(page) } else { Ok(()) }
    }

    fn put(&mut self, mut page: Page) -> std::io::Result<()> {
        seal_page(&mut page, self.run_id, self.number + self.buffer.len() as u64);
        self.buffer.push(page);
        if self.buffer.len() == WRITE_PAGES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if !self.buffer.is_empty() {
            let offset = self.number * PAGE_BYTES as u64;
            self.file.write_at(offset, &[IoSlice::new(self.buffer.as_flattened())])?;
            self.number += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the rest; the number of the page behind the last.
    fn finish(mut self) -> std::io::Result<u64> {
        self.flush()?;
        Ok(self.number)
    }
}
