//! Runs on a simulated disk, for tests that ask them.

use cdp_core::format::run::MergedSource;
use cdp_core::ids::{SegmentId, VolumeId};
use cdp_core::index::{Live, Merge, PageCache, Run, RunSource};
use cdp_core::io::Files;
use cdp_core::io::sim::SimDisk;
use std::path::Path;
use std::sync::Arc;

/// The run of a part in memory.
pub fn run_of(files: &SimDisk, pages: &Arc<PageCache>, live: &Live) -> Run {
    let path = format!("/{}.run", live.first_lsn());
    let source = RunSource {
        volume: VolumeId(7),
        segment: SegmentId(live.first_lsn().0),
        log_end: 4096,
        chain: [1; 16],
        seal: [2; 32],
        codec: 0,
        live,
        markers: &[],
        damages: &[],
        summary: Default::default(),
    };
    Run::write(files, Path::new(&path), &source).unwrap();
    Run::open(files, Path::new(&path), pages).unwrap()
}

/// One run of neighbours, `rows` rows at a time.
pub fn merged(files: &SimDisk, pages: &Arc<PageCache>, runs: Vec<Arc<Run>>, rows: u64) -> Run {
    // One in three has a filter of all keys, one of ranges only, one none.
    let filter_bytes_max = [1 << 20, 64, 0][rows as usize % 3];
    let mut sources = Vec::new();
    for run in &runs {
        sources.extend(run.merged_sources().unwrap());
        if !run.is_merged() {
            sources.push(MergedSource {
                segment: SegmentId(run.header().run_id),
                ordinal: run.first_lsn().0,
                first_lsn: run.first_lsn(),
                last_lsn: run.last_lsn(),
                log_end: 4096,
                last_timestamp: run.header().last_timestamp,
                chain: [1; 16],
                seal: [2; 32],
                summary: run.header().summary,
            });
        }
    }
    let path = format!("/{}-{}.run", runs[0].first_lsn(), runs.len());
    let files: Arc<dyn Files> = Arc::new(files.clone());
    let mut merge =
        Merge::begin(files, Path::new(&path), 77, runs, sources.clone(), filter_bytes_max).unwrap();
    for _ in 0..100_000 {
        if let Some(run) = merge.step(rows, pages).unwrap() {
            assert_eq!(run.merged_sources().unwrap(), sources);
            run.verify().unwrap();
            return run;
        }
    }
    panic!("the merge does not end");
}
