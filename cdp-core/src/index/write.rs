//! Making the run of a sealed segment.

use super::paged::Pages;
use super::{Live, Run, bloom};
use crate::error::{IoContext, Result};
use crate::format::run::{
    BLOOM_BLOCK_BYTES, DamageRow, Fence, Header, KIND_SEGMENT, Layout, MarkerRow, Row, Source, Summary,
};
use crate::ids::{SegmentId, Timestamp, VolumeId};
use crate::io::{File, Files};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// What its records did.
    pub summary: Summary,
}

impl Run {
    /// Writes a run so that after a crash it is there whole or not at all: under a temporary name beside
    /// `path`, synced, renamed, the directory synced. Takes little memory beside the region.
    pub fn write(files: &dyn Files, path: &Path, source: &RunSource<'_>) -> Result<()> {
        let context = || format!("write run {}", path.display());
        let (fresh, file) = create_fresh(files, path).at(context)?;
        write_pages(&file, source).at(context)?;
        publish(files, &fresh, &file, path).at(context)
    }
}

/// An empty file under the temporary name of `path`; what an earlier try left there goes.
pub(super) fn create_fresh(files: &dyn Files, path: &Path) -> std::io::Result<(PathBuf, Arc<dyn File>)> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    match files.remove(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = files.create(&fresh)?;
    Ok((fresh, file))
}

/// Gives a written file its name. After a crash it is there whole or not at all.
pub(super) fn publish(
    files: &dyn Files,
    fresh: &Path,
    file: &Arc<dyn File>,
    path: &Path,
) -> std::io::Result<()> {
    file.sync()?;
    files.rename(fresh, path)?;
    files.sync_dir(path.parent().unwrap_or(Path::new(".")))
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
        summary: source.summary,
    };
    let layout = Layout::of(&header);
    let mut region = vec![0; layout.region_bytes() as usize];
    let segment = Source { segment: source.segment, first_lsn: live.first_lsn(), log_end: source.log_end };
    segment.encode(&mut region[..Source::BYTES]);

    let mut pages = Pages::new(file.clone(), header.run_id, layout.entries_page);
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
