//! The index's reader: a run file as a rotten disk or somebody's hand may have left it.
//!
//! The first byte: bit 0, every checksum is mended after the changes, so that nonsense arrives with all its seals intact; bit 1,
//! it is a merged run. Then a count of records and three bytes for each. What follows are changes of the file, five bytes
//! each. Unmended, every answer is an error or what was written; mended, it only has to be an answer.

use std::path::Path;
use std::sync::Arc;

use cdp_core::error::Result;
use cdp_core::format::run::{Header, Layout, MergedSource, PAGE_BYTES, Page, Summary, seal_page};
use cdp_core::ids::{Extent, Lba, Lsn, SegmentId, Timestamp, VolumeId};
use cdp_core::index::{Live, Merge, PageCache, Run, RunSource, Search, Version, Visible};
use cdp_core::io::Files;
use cdp_core::io::sim::SimDisk;

const VOLUME: VolumeId = VolumeId(7);
const RECORDS_MAX: usize = 64;
const CHANGES_MAX: usize = 32;
const TOP: u64 = 1 << 34;
/// What is looked for, from a search that may come across nonsense.
const VERSIONS_MAX: usize = 4096;
const RUN: &str = "/run";

/// Runs one input.
pub fn run(data: &[u8]) {
    let [mode, count, rest @ ..] = data else { return };
    let count = (usize::from(*count) % RECORDS_MAX).min(rest.len() / 3);
    let (records, changes) = rest.split_at(count * 3);
    let (records, _) = records.as_chunks::<3>();
    let lives = match mode & 2 {
        0 => vec![live(1, records)],
        _ => {
            let (older, newer) = records.split_at(count / 2);
            vec![live(1, older), live(1 + older.len() as u64, newer)]
        }
    };
    let disk = SimDisk::new(1);
    if let Err(error) = write(&disk, &lives) {
        panic!("a run cannot be written: {error}");
    }
    let mended = mode & 1 != 0;
    let is_changed = match disk.contents(RUN) {
        Ok(before) => {
            let mut bytes = before.clone();
            changes.chunks_exact(5).take(CHANGES_MAX).for_each(|change| bend(&mut bytes, change));
            if mended {
                mend(&mut bytes);
            }
            if let Err(error) = disk.mutate(RUN, |file| file.clone_from(&bytes)) {
                panic!("a file in memory cannot be changed: {error}");
            }
            before != bytes
        }
        Err(error) => panic!("a file in memory cannot be read: {error}"),
    };
    let run = match Run::open(&disk, Path::new(RUN), &PageCache::new(0)) {
        Ok(run) => run,
        Err(error) => return assert!(is_changed, "an unchanged run cannot be opened: {error}"),
    };
    ask(&run, &lives, !mended, is_changed);
}

/// Records from `first` on: what they do and where, three bytes each.
fn live(first: u64, records: &[[u8; 3]]) -> Live {
    let mut live = Live::new(Lsn(first));
    for (lsn, &[what, place, size]) in (first..).map(Lsn).zip(records) {
        live.insert_record(lsn, Timestamp(lsn.0 * 10));
        let start = u64::from(place) << (what >> 4);
        let blocks = u64::from(size % 40) + 1;
        match what & 3 {
            0 => {}
            1 => live.insert_range(
                lsn,
                Extent::new(start, start + blocks * u64::from(place | 1)),
                what & 4 != 0,
            ),
            _ => live.insert_payload(
                lsn,
                Lba(start),
                (0..blocks as u32).map(|block| (block + 1, lsn.0 as u32)),
            ),
        }
    }
    live
}

fn write(disk: &SimDisk, lives: &[Live]) -> Result<()> {
    let mut inputs = Vec::new();
    let mut sources = Vec::new();
    for (number, live) in (1..).zip(lives) {
        let source = RunSource {
            volume: VOLUME,
            segment: SegmentId(number),
            log_end: 4096,
            chain: [1; 16],
            seal: [2; 32],
            codec: 0,
            live,
            markers: &[],
            damages: &[],
            summary: Summary::default(),
        };
        let path = if lives.len() == 1 { RUN.to_owned() } else { format!("/input-{number}") };
        Run::write(disk, Path::new(&path), &source)?;
        inputs.push(Arc::new(Run::open(disk, Path::new(&path), &PageCache::new(0))?));
        sources.push(MergedSource {
            segment: SegmentId(number),
            ordinal: number,
            first_lsn: live.first_lsn(),
            last_lsn: live.last_lsn(),
            log_end: 4096,
            last_timestamp: Timestamp(live.last_lsn().0 * 10),
            chain: [1; 16],
            seal: [2; 32],
            summary: Summary::default(),
        });
    }
    if lives.len() > 1 {
        let pages = PageCache::new(0);
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let mut merge = Merge::begin(files, Path::new(RUN), 99, inputs, sources, 1 << 20)?;
        while merge.step(1000, &pages)?.is_none() {}
    }
    Ok(())
}

/// What, where (three bytes, little-endian) and with which value.
fn bend(bytes: &mut Vec<u8>, change: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let (what, value) = (change[0], change[4]);
    let place = usize::from(change[1]) | usize::from(change[2]) << 8 | usize::from(change[3]) << 16;
    let at = place % bytes.len();
    match what % 6 {
        0 => bytes[at] ^= value,
        // A field of the header.
        1 => {
            let end = bytes.len().min(256);
            bytes[place % end] = value;
        }
        2 => bytes.truncate(at),
        3 => {
            let pages = bytes.len() / PAGE_BYTES;
            if pages > 0 {
                let from = at / PAGE_BYTES % pages * PAGE_BYTES;
                bytes.copy_within(from..from + PAGE_BYTES, usize::from(value) % pages * PAGE_BYTES);
            }
        }
        4 => {
            let end = bytes.len().min(at + usize::from(value) * 16);
            bytes[at..end].fill(value);
        }
        _ => bytes.resize(bytes.len() + usize::from(value % 3) * PAGE_BYTES, value),
    }
}

/// Makes every checksum right for what stands there now.
fn mend(bytes: &mut [u8]) {
    let len = bytes.len() as u64;
    let (pages, _) = bytes.as_chunks_mut::<PAGE_BYTES>();
    let Some((first, rest)) = pages.split_first_mut() else { return };
    let crc_of = |page: &Page| cdp_core::format::bytes::crc32(&page[..PAGE_BYTES - 4]).to_le_bytes();
    let crc = crc_of(first);
    first[PAGE_BYTES - 4..].copy_from_slice(&crc);
    let Ok(header) = Header::decode(first, len) else { return };
    let layout = Layout::of(&header);
    let region = layout.region_page..layout.region_page + layout.region_pages;
    let mut content = Vec::new();
    for (number, page) in (1..).zip(rest) {
        match region.contains(&number) {
            true => content.extend_from_slice(page),
            false => seal_page(page, header.run_id, number),
        }
    }
    let mended = Header { region_crc: cdp_core::format::bytes::crc32(&content), ..header };
    *first = mended.encode();
}

/// Asks everything that can be asked. Where `is_exact`, an answer must be the one that was written.
fn ask(run: &Run, lives: &[Live], is_exact: bool, is_changed: bool) {
    let first = lives.first().map_or(Lsn(1), Live::first_lsn);
    let last = lives.last().map_or(Lsn::ZERO, Live::last_lsn);
    let middle = Lsn((first.0 + last.0) / 2);
    for visible in [Visible::through(Lsn::MAX), Visible::through(middle)] {
        for extent in [Extent::new(0, TOP), Extent::new(0, 300), Extent::new(17, 18)] {
            let found = look(extent, |search| run.resolve(&visible, search));
            let Some(found) = told(found, is_changed) else { continue };
            if is_exact {
                let written = look(extent, |search| {
                    lives.iter().rev().for_each(|live| live.resolve(&visible, search));
                    Ok(())
                });
                assert_eq!(Some(found), written.ok(), "{extent:?} of {visible:?}");
            }
        }
    }
    for lsn in [first, middle, last, Lsn(last.0 + 1), Lsn::MAX] {
        let told = told(run.timestamp_of(lsn), is_changed);
        let written = lives.iter().find_map(|live| live.timestamp_of(lsn));
        assert!(!is_exact || told.is_none_or(|at| at == written), "{lsn:?}");
    }
    for at in [0, 9, middle.0 * 10 + 5, u64::MAX] {
        let told = told(run.lsn_at(Timestamp(at)), is_changed);
        let written = lives.iter().rev().find_map(|live| live.lsn_at(Timestamp(at)));
        assert!(!is_exact || told.is_none_or(|lsn| lsn == written), "{at}");
    }
    let _ = (run.markers(), run.damages(), run.merged_sources(), run.summary_of(first), run.newest(Lba(17)));
    let _ = (run.markers_of(first, last), run.sources());
    assert!(run.verify().is_ok() || is_changed, "an unchanged run does not verify");
}

fn look(extent: Extent, resolve: impl Fn(&mut Search) -> Result<()>) -> Result<Vec<Version>> {
    let mut search = Search::bounded(extent, VERSIONS_MAX);
    resolve(&mut search)?;
    search.finish();
    Ok(search.found().to_vec())
}

fn told<T>(answer: Result<T>, is_changed: bool) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            assert!(is_changed, "an unchanged run cannot answer: {error}");
            None
        }
    }
}
