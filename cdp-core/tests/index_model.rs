//! The index against a naive model: a list of what was written, searched from its end.
//!
//! If these fail, somebody's disk as of an instant holds bytes of another instant.

#[path = "shared/runs.rs"]
mod runs;

use cdp_core::ids::{Extent, Lba, Lsn, Timestamp};
use cdp_core::index::{Found, Live, PageCache, Run, Search, Version, Visible};
use cdp_core::io::sim::SimDisk;
use proptest::prelude::*;
use runs::{merged, run_of};
use std::sync::Arc;

/// Blocks of the largest volume.
const TOP: u64 = 1 << 34;
/// Where the writes fall: around powers of two and at both ends.
const PLACES: [u64; 5] = [0, 1 << 12, TOP / 2 - 24, TOP - 1024 - 24, TOP - 48];
const PLACE_BLOCKS: u64 = 48;

#[derive(Clone, Debug)]
enum Op {
    Write(Extent),
    Range(Extent, bool),
    /// A zero record with payload for its first and last block.
    Edged(Extent, bool),
    /// A marker or the like: an LSN and nothing else.
    Note,
}

impl Op {
    fn covers(&self, lba: u64) -> bool {
        match self {
            Op::Write(extent) | Op::Range(extent, _) | Op::Edged(extent, _) => {
                (extent.start.0..extent.end()).contains(&lba)
            }
            Op::Note => false,
        }
    }

    /// What a block that it covers is; payload is recognised by the record's LSN and the block's number.
    fn found(&self, lsn: u64, lba: u64) -> Found {
        let payload = Found::Payload { block: lsn as u32, crc: lba as u32 };
        match self {
            Op::Write(_) | Op::Note => payload,
            Op::Edged(extent, _) if lba == extent.start.0 || lba + 1 == extent.end() => payload,
            Op::Range(_, true) | Op::Edged(_, true) => Found::Hole,
            Op::Range(_, false) | Op::Edged(_, false) => Found::Zero,
        }
    }

    fn insert(&self, live: &mut Live, lsn: Lsn) {
        let payload = |lba: u64| (lsn.0 as u32, lba as u32);
        match self {
            Op::Write(extent) => {
                live.insert_payload(lsn, extent.start, (extent.start.0..extent.end()).map(payload));
            }
            Op::Range(extent, hole) => live.insert_range(lsn, *extent, *hole),
            Op::Edged(extent, hole) => {
                // Before and after, as a volume may do it.
                live.insert_payload(lsn, extent.start, [payload(extent.start.0)]);
                live.insert_range(lsn, *extent, *hole);
                let last = extent.end() - 1;
                live.insert_payload(lsn, Lba(last), [payload(last)]);
            }
            Op::Note => {}
        }
    }
}

fn model(ops: &[Op], visible: &Visible, lba: u64) -> Option<(Lsn, Found)> {
    (1..=ops.len() as u64)
        .rev()
        .find(|&lsn| visible.contains(Lsn(lsn)) && ops[lsn as usize - 1].covers(lba))
        .map(|lsn| (Lsn(lsn), ops[lsn as usize - 1].found(lsn, lba)))
}

fn near() -> impl Strategy<Value = Extent> {
    (0..PLACES.len(), 0..PLACE_BLOCKS, 1..20u64).prop_map(|(place, offset, blocks)| {
        let start = PLACES[place] + offset;
        Extent::new(start, (start + blocks).min(PLACES[place] + PLACE_BLOCKS))
    })
}

/// From near one place to near another.
fn far() -> impl Strategy<Value = Extent> {
    (near(), near()).prop_map(|(a, b)| Extent::new(a.start.0.min(b.start.0), a.end().max(b.end())))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => near().prop_map(Op::Write),
        2 => (near(), any::<bool>()).prop_map(|(extent, hole)| Op::Range(extent, hole)),
        1 => (far(), any::<bool>()).prop_map(|(extent, hole)| Op::Range(extent, hole)),
        1 => (near(), any::<bool>()).prop_map(|(extent, hole)| Op::Edged(extent, hole)),
        1 => Just(Op::Note),
        1 => any::<bool>().prop_map(|hole| Op::Range(Extent::new(0, TOP), hole)),
    ]
}

enum Part {
    Live(Live),
    Run(Box<Run>),
}

impl Part {
    fn resolve(&self, visible: &Visible, search: &mut Search) {
        match self {
            Part::Live(live) => live.resolve(visible, search),
            Part::Run(run) => run.resolve(visible, search).unwrap(),
        }
    }
}

/// The ops as parts of so many records each, oldest first; timestamps are 10 · LSN.
fn lives(ops: &[Op], cuts: &[usize]) -> Vec<Live> {
    let mut lives = vec![Live::new(Lsn(1))];
    for (index, op) in ops.iter().enumerate() {
        let lsn = Lsn(index as u64 + 1);
        if cuts.contains(&index) {
            lives.push(Live::new(lsn));
        }
        let live = lives.last_mut().unwrap();
        live.insert_record(lsn, Timestamp(lsn.0 * 10));
        op.insert(live, lsn);
    }
    lives
}

fn search(parts: &[Part], visible: &Visible, mut search: Search) -> Search {
    for part in parts.iter().rev() {
        if search.is_done() {
            break;
        }
        part.resolve(visible, &mut search);
    }
    search.finish();
    search
}

/// Found versions and gaps cover the answer exactly once; then what they say at any block can be compared.
fn check_whole(search: &Search) {
    let mut stretches: Vec<Extent> = search.found().iter().map(|version| version.extent).collect();
    assert!(stretches.is_sorted_by_key(|extent| extent.start));
    for (index, version) in search.found().iter().enumerate() {
        let payload = matches!(version.found, Found::Payload { .. });
        assert!(!payload || version.extent.blocks == 1, "payload is answered block by block");
        if let Some(next) = search.found().get(index + 1) {
            let joins = !payload && version.lsn == next.lsn && version.found == next.found;
            assert!(!joins || version.extent.end() < next.extent.start.0, "one stretch in two: {search:?}");
        }
    }
    stretches.extend(search.gaps());
    stretches.sort_by_key(|extent| extent.start);
    let mut at = search.extent().start.0;
    for stretch in stretches {
        assert_eq!(stretch.start.0, at, "in {search:?}");
        assert!(stretch.blocks > 0);
        at = stretch.end();
    }
    assert_eq!(at, search.extent().end());
}

fn answer_at(found: &[Version], lba: u64) -> Option<(Lsn, Found)> {
    let index = found.partition_point(|version| version.extent.end() <= lba);
    found
        .get(index)
        .filter(|version| version.extent.start.0 <= lba)
        .map(|version| (version.lsn, version.found))
}

fn check(ops: &[Op], parts: &[Part], visible: &Visible, extent: Extent) {
    let whole = search(parts, visible, Search::new(extent));
    check_whole(&whole);
    assert_eq!(whole.extent(), extent);
    let edges = [extent.start.0, extent.end() - 1];
    let near = PLACES.iter().flat_map(|place| place.saturating_sub(2)..(place + PLACE_BLOCKS + 2).min(TOP));
    for lba in edges.into_iter().chain(near).filter(|lba| (extent.start.0..extent.end()).contains(lba)) {
        assert_eq!(answer_at(whole.found(), lba), model(ops, visible, lba), "block {lba}, {visible:?}");
    }
    // Bit by bit gives the same as at once.
    for versions_max in [1, 3] {
        let mut at = extent.start.0;
        while at < extent.end() {
            let piece = search(parts, visible, Search::bounded(Extent::new(at, extent.end()), versions_max));
            check_whole(&piece);
            assert!(piece.found().len() <= versions_max.saturating_mul(parts.len()) + parts.len() * 2);
            for version in piece.found() {
                for lba in [version.extent.start.0, version.extent.end() - 1] {
                    assert_eq!(answer_at(whole.found(), lba), Some((version.lsn, version.found)));
                }
            }
            for gap in piece.gaps() {
                assert_eq!(answer_at(whole.found(), gap.start.0), None);
                assert_eq!(answer_at(whole.found(), gap.end() - 1), None);
            }
            assert!(piece.extent().blocks > 0, "no progress at {at}");
            at = piece.extent().end();
        }
    }
}

fn visibles(records: u64, picks: &[u64]) -> Vec<Visible> {
    let at = |pick: usize| picks[pick] % (records + 2);
    let mut bounds: Vec<u64> = (0..4).map(at).collect();
    bounds.sort_unstable();
    bounds.dedup();
    // Rollbacks leave holes: pairs of bounds are ranges.
    let ranges = bounds.chunks_exact(2).map(|pair| (Lsn(pair[0]), Lsn(pair[1]))).collect();
    vec![
        Visible::through(Lsn::MAX),
        Visible::through(Lsn(at(4).max(1))),
        Visible::of(ranges),
        Visible::of((1..=records).step_by(2).map(|lsn| (Lsn(lsn), Lsn(lsn))).collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Live parts, runs and any mix of them say what the list of writes says, at every instant and along
    /// every chain of rollbacks.
    #[test]
    fn every_state_is_that_of_the_list_of_writes(
        ops in prop::collection::vec(op(), 1..60),
        cuts in prop::collection::vec(1..60usize, 0..4),
        as_run in any::<u8>(),
        picks in prop::collection::vec(any::<u64>(), 5),
        extents in prop::collection::vec(prop_oneof![near(), far(), Just(Extent::new(0, TOP))], 3),
        single in (0..PLACES.len(), 0..PLACE_BLOCKS),
    ) {
        let files = SimDisk::new(1);
        let pages = PageCache::new(64 << 10);
        let parts: Vec<Part> = lives(&ops, &cuts)
            .into_iter()
            .enumerate()
            .map(|(index, live)| match as_run >> index & 1 {
                0 => Part::Live(live),
                _ => Part::Run(Box::new(run_of(&files, &pages, &live))),
            })
            .collect();
        let block = PLACES[single.0] + single.1;
        for visible in visibles(ops.len() as u64, &picks) {
            for &extent in &extents {
                check(&ops, &parts, &visible, extent);
            }
            check(&ops, &parts, &visible, Extent::new(block, block + 1));
        }
    }

    /// Runs that were merged, and merged runs that were merged again, say what the list of writes says: no version
    /// may get lost in a merge, and none may be taken for a newer one.
    #[test]
    fn merged_runs_say_the_same(
        ops in prop::collection::vec(op(), 1..60),
        cuts in prop::collection::vec(1..60usize, 0..6),
        join in 1..6usize,
        rows in 1..50u64,
        picks in prop::collection::vec(any::<u64>(), 5),
        extents in prop::collection::vec(prop_oneof![near(), far(), Just(Extent::new(0, TOP))], 2),
    ) {
        let files = SimDisk::new(1);
        let pages = PageCache::new(64 << 10);
        let runs: Vec<Arc<Run>> =
            lives(&ops, &cuts).iter().map(|live| Arc::new(run_of(&files, &pages, live))).collect();
        let once: Vec<Arc<Run>> = runs
            .chunks(join)
            .map(|runs| Arc::new(merged(&files, &pages, runs.to_vec(), rows)))
            .collect();
        let twice = merged(&files, &pages, once.clone(), rows + 1);
        for timestamp in (0..ops.len() as u64 * 10 + 20).map(Timestamp) {
            let expected = match timestamp.0 / 10 {
                0 => None,
                tens => Some(Lsn(tens.min(ops.len() as u64))),
            };
            prop_assert_eq!(twice.lsn_at(timestamp).unwrap(), expected);
        }
        for lsn in (0..ops.len() as u64 + 3).map(Lsn) {
            let inside = lsn.0 >= 1 && lsn.0 <= ops.len() as u64;
            prop_assert_eq!(twice.timestamp_of(lsn).unwrap(), inside.then_some(Timestamp(lsn.0 * 10)));
        }
        let entries: u64 = runs.iter().map(|run| run.header().entries).sum();
        prop_assert_eq!(twice.header().entries, entries);
        let once: Vec<Part> = once
            .iter()
            .map(|run| Part::Run(Box::new(Run::open(&files, run.path(), &pages).unwrap())))
            .collect();
        for parts in [once, vec![Part::Run(Box::new(twice))]] {
            for visible in visibles(ops.len() as u64, &picks) {
                for &extent in &extents {
                    check(&ops, &parts, &visible, extent);
                }
            }
        }
    }

    /// A run answers exactly as the live part it was made from, in every question it can be asked.
    #[test]
    fn a_run_answers_as_the_live_part_did(
        ops in prop::collection::vec(op(), 0..60),
        lba in near(),
    ) {
        let files = SimDisk::new(1);
        let live = lives(&ops, &[]).remove(0);
        let run = run_of(&files, &PageCache::new(64 << 10), &live);
        prop_assert_eq!(run.first_lsn(), live.first_lsn());
        prop_assert_eq!(run.last_lsn(), live.last_lsn());
        prop_assert_eq!(run.header().entries, live.entries());
        prop_assert_eq!(run.newest(lba.start).unwrap(), live.newest(lba.start));
        let newest = (1..=ops.len() as u64).rev().find(|&lsn| ops[lsn as usize - 1].covers(lba.start.0));
        prop_assert_eq!(live.newest(lba.start), newest.map(Lsn));
        for timestamp in (0..ops.len() as u64 * 10 + 20).map(Timestamp) {
            let expected = match timestamp.0 / 10 {
                0 => None,
                tens => (!ops.is_empty()).then_some(Lsn(tens.min(ops.len() as u64))),
            };
            prop_assert_eq!(live.lsn_at(timestamp), expected);
            prop_assert_eq!(run.lsn_at(timestamp).unwrap(), expected);
        }
        for lsn in (0..ops.len() as u64 + 3).map(Lsn) {
            let inside = lsn.0 >= 1 && lsn.0 <= ops.len() as u64;
            prop_assert_eq!(live.timestamp_of(lsn), inside.then_some(Timestamp(lsn.0 * 10)));
            prop_assert_eq!(run.timestamp_of(lsn).unwrap(), live.timestamp_of(lsn));
        }
    }
}

/// A hot block has more versions than pages hold; a view of any instant must still find its own.
#[test]
fn a_block_written_thousands_of_times_has_every_state() {
    let mut live = Live::new(Lsn(1));
    for lsn in 1..=3000u64 {
        live.insert_record(Lsn(lsn), Timestamp(lsn));
        live.insert_payload(Lsn(lsn), Lba(if lsn % 10 == 0 { lsn } else { 5 }), [(lsn as u32, 0)]);
    }
    let files = SimDisk::new(1);
    let run = run_of(&files, &PageCache::new(1 << 20), &live);
    for lsn in 1..=3000u64 {
        let mut search = Search::new(Extent::new(0, 8));
        run.resolve(&Visible::through(Lsn(lsn)), &mut search).unwrap();
        search.finish();
        let newest = if lsn % 10 == 0 { lsn - 1 } else { lsn };
        assert_eq!(search.found().iter().map(|version| version.lsn).collect::<Vec<_>>(), [Lsn(newest)]);
        assert_eq!(search.gaps(), [Extent::new(0, 5), Extent::new(6, 8)]);
    }
}

/// A hot block, and so many others that there are several pages of fences: every state must be found through all
/// of them, or a view of an old instant shows a newer one.
#[test]
fn a_large_merged_run_has_every_state() {
    let (files, pages) = (SimDisk::new(1), PageCache::new(256 << 10));
    // 100,000 entries are 443 pages of entries, so two pages of fences.
    let records = 100_000u64;
    let place =
        |lsn: u64| if lsn.is_multiple_of(10) { 5 } else { lsn.wrapping_mul(0x9e37_79b9) % 60_000 + 6 };
    let mut runs = Vec::new();
    for first in (1..=records).step_by(records as usize / 8) {
        let mut live = Live::new(Lsn(first));
        for lsn in first..first + records / 8 {
            live.insert_record(Lsn(lsn), Timestamp(lsn * 3));
            live.insert_payload(Lsn(lsn), Lba(place(lsn)), [(lsn as u32, 9)]);
        }
        runs.push(Arc::new(run_of(&files, &pages, &live)));
    }
    let run = merged(&files, &pages, runs, 10_000);
    assert_eq!(run.header().entries, records);
    let mut history = std::collections::BTreeMap::<u64, Vec<u64>>::new();
    (1..=records).for_each(|lsn| history.entry(place(lsn)).or_default().push(lsn));
    for sample in 0..3000u64 {
        let lsn = sample.wrapping_mul(0x9e37_79b9_7f4a_7c15) % records + 1;
        let lba = if sample % 3 == 0 { 5 } else { place(lsn.wrapping_mul(31) % records + 1) };
        let expected = history[&lba].iter().rfind(|version| **version <= lsn);
        let mut search = Search::new(Extent::new(lba, lba + 1));
        run.resolve(&Visible::through(Lsn(lsn)), &mut search).unwrap();
        search.finish();
        let found = search.found().first().map(|version| version.lsn.0);
        assert_eq!(found, expected.copied(), "block {lba} at {lsn}");
        assert_eq!(run.timestamp_of(Lsn(lsn)).unwrap(), Some(Timestamp(lsn * 3)));
        assert_eq!(run.lsn_at(Timestamp(lsn * 3 + 2)).unwrap(), Some(Lsn(lsn)));
    }
    assert!(run.memory_bytes() < 8192, "{} bytes in memory", run.memory_bytes());
}

/// Trimming 64 TiB must not cost memory or time by its size, nor may asking for its status.
#[test]
fn a_trim_of_everything_is_one_entry() {
    let mut live = Live::new(Lsn(1));
    live.insert_record(Lsn(1), Timestamp(1));
    live.insert_range(Lsn(1), Extent::new(0, TOP), true);
    assert_eq!(live.entries(), 1);
    live.insert_record(Lsn(2), Timestamp(2));
    live.insert_range(Lsn(2), Extent::new(1, TOP - 1), false);
    assert!(live.entries() <= 1 + 2 * 34, "{} entries", live.entries());
    let files = SimDisk::new(1);
    let run = run_of(&files, &PageCache::new(1 << 20), &live);
    for part in [Part::Live(live), Part::Run(Box::new(run))] {
        let whole = search(&[part], &Visible::through(Lsn(2)), Search::new(Extent::new(0, TOP)));
        let stretches: Vec<_> = whole.found().iter().map(|version| (version.extent, version.found)).collect();
        let expected = [
            (Extent::new(0, 1), Found::Hole),
            (Extent::new(1, TOP - 1), Found::Zero),
            (Extent::new(TOP - 1, TOP), Found::Hole),
        ];
        assert_eq!(stretches, expected);
    }
}
