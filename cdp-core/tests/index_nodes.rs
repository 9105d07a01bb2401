//! Lookups of single blocks in merged runs with many trims, against a naive replay: all nodes over some blocks are gathered once, and
//! asked for ever after. Who is shown the wrong one of them sees, as of an instant, what was trimmed before it, or zeros for
//! what was only trimmed later.

#[path = "shared/runs.rs"]
mod runs;

use cdp_core::format::run::{Page, seal_page};
use cdp_core::ids::{Extent, Lba, Lsn, Timestamp};
use cdp_core::index::{Found, Live, PageCache, Run, Search, Visible};
use cdp_core::io::sim::{Chance, SimDisk};
use runs::{merged, run_of};
use std::path::Path;
use std::sync::Arc;

/// Blocks of the largest volume.
const TOP: u64 = 1 << 34;
const SEGMENTS: u64 = 8;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u64),
    Range(Extent, bool),
}

impl Op {
    fn answer(&self, lsn: u64, block: u64) -> Option<(Lsn, Found)> {
        match self {
            Op::Write(at) if *at == block => Some((Lsn(lsn), Found::Payload { block: lsn as u32, crc: 9 })),
            Op::Range(extent, hole) if (extent.start.0..extent.end()).contains(&block) => {
                Some((Lsn(lsn), if *hole { Found::Hole } else { Found::Zero }))
            }
            _ => None,
        }
    }
}

/// The newest visible one of all operations, looked for from the end.
fn replay(ops: &[Op], visible: &Visible, block: u64) -> Option<(Lsn, Found)> {
    let is_seen = |lsn: &u64| visible.contains(Lsn(*lsn));
    (1..=ops.len() as u64).rev().filter(is_seen).find_map(|lsn| ops[lsn as usize - 1].answer(lsn, block))
}

/// Runs of eighths of the history, made one.
fn merged_run(files: &SimDisk, pages: &Arc<PageCache>, ops: &[Op]) -> Run {
    let per_segment = ops.len().div_ceil(SEGMENTS as usize);
    let mut lsn = 0;
    let runs = ops.chunks(per_segment).map(|ops| {
        let mut live = Live::new(Lsn(lsn + 1));
        for op in ops {
            lsn += 1;
            live.insert_record(Lsn(lsn), Timestamp(lsn));
            match op {
                Op::Write(at) => live.insert_payload(Lsn(lsn), Lba(*at), [(lsn as u32, 9)]),
                Op::Range(extent, hole) => live.insert_range(Lsn(lsn), *extent, *hole),
            }
        }
        Arc::new(run_of(files, pages, &live))
    });
    let runs = runs.collect();
    merged(files, pages, runs, 9000)
}

fn asked(run: &Run, visible: &Visible, block: u64) -> Option<(Lsn, Found)> {
    let mut search = Search::new(Extent::new(block, block + 1));
    run.resolve(visible, &mut search).unwrap();
    search.finish();
    search.found().first().map(|version| (version.lsn, version.found))
}

/// What a client might do: `count` changes below block `blocks`, one in `writes` of them a write, ranges of at most `longest` blocks
/// at multiples of `grain`.
fn history(chance: &mut Chance, count: usize, blocks: u64, writes: u64, longest: u64, grain: u64) -> Vec<Op> {
    let mut op = || {
        let start = chance.below(blocks / grain) * grain;
        if chance.below(writes) == 0 {
            return Op::Write(start);
        }
        let end = start + (1 + chance.below(longest / grain)) * grain;
        Op::Range(Extent::new(start, end.min(blocks)), chance.below(3) > 0)
    };
    (0..count).map(|_| op()).collect()
}

fn histories(chance: &mut Chance) -> Vec<(&'static str, Vec<Op>)> {
    let mut everything = history(chance, 3000, 1 << 28, 3, 1 << 18, 1);
    for at in (0..everything.len()).step_by(17) {
        everything[at] = Op::Range(Extent::new(0, [1 << 28, TOP][at % 2]), at % 3 == 0);
    }
    let mut crowded = history(chance, 20_000, 1 << 12, 4, 8, 1);
    crowded.extend(history(chance, 500, 1 << 24, 4, 1 << 20, 1));
    vec![
        ("ragged trims over 1 TiB", history(chance, 6000, 1 << 28, 3, 1 << 18, 1)),
        ("few trims over 64 TiB", history(chance, 300, TOP, 3, 1 << 30, 1)),
        ("trims of whole regions only", history(chance, 3000, 1 << 28, 3, 1 << 22, 1 << 17)),
        ("everything again and again", everything),
        ("more of one region than is kept", crowded),
        ("the last blocks of the largest volume", {
            let shift = |op: Op| match op {
                Op::Write(at) => Op::Write(TOP - (1 << 18) + at),
                Op::Range(extent, hole) => {
                    let begin = TOP - (1 << 18);
                    Op::Range(Extent::new(begin + extent.start.0, begin + extent.end()), hole)
                }
            };
            history(chance, 1000, 1 << 18, 3, 1 << 17, 1).into_iter().map(shift).collect()
        }),
        ("writes only", history(chance, 1000, 1 << 20, 1, 1, 1)),
    ]
}

#[test]
fn every_block_at_random_instants_is_that_of_a_replay() {
    let seed = 0x0047;
    println!("seed {seed:#x}");
    let mut chance = Chance::new(seed);
    for (name, ops) in histories(&mut chance) {
        for cache_bytes in [0, 200 << 10, 64 << 20] {
            let (files, pages) = (SimDisk::new(1), PageCache::new(cache_bytes));
            let run = merged_run(&files, &pages, &ops);
            let records = ops.len() as u64;
            for sample in 0..1500 {
                let block = match ops[chance.below(records) as usize] {
                    Op::Write(at) => at,
                    Op::Range(extent, _) => match sample % 4 {
                        0 => extent.start.0.saturating_sub(1),
                        1 => extent.start.0,
                        2 => extent.end().min(TOP - 1),
                        _ => extent.start.0 + chance.below(extent.blocks),
                    },
                };
                let lsn = 1 + chance.below(records);
                let visible = match sample % 3 {
                    0 => {
                        let back = 1 + chance.below(lsn);
                        Visible::of(vec![(Lsn(1), Lsn(back)), (Lsn(lsn.max(back + 2)), Lsn(records + 5))])
                    }
                    _ => Visible::through(Lsn(lsn)),
                };
                let expected = replay(&ops, &visible, block);
                assert_eq!(asked(&run, &visible, block), expected, "{name}: block {block}, {visible:?}");
                if sample % 10 == 0 {
                    let newest = replay(&ops, &Visible::through(Lsn::MAX), block).map(|(lsn, _)| lsn);
                    assert_eq!(run.newest(Lba(block)).unwrap(), newest, "{name}: block {block}");
                }
            }
            assert!(pages.memory_bytes() <= pages.limit_bytes(), "{name}: {}", pages.memory_bytes());
        }
    }
}

/// Many trees have nodes over a block. A lookup that went to each of them read some fifteen pages, and that is what made views
/// in old history slow.
#[test]
fn a_block_below_many_trees_costs_few_pages_and_its_neighbours_none() {
    let mut chance = Chance::new(7);
    let ops = history(&mut chance, 40_000, 1 << 28, 10, 1 << 18, 1);
    let (files, pages) = (SimDisk::new(1), PageCache::new(64 << 20));
    let run = merged_run(&files, &pages, &ops);
    let path = run.path().to_str().unwrap().to_owned();
    let reads_at = |block: u64, lsn: u64| {
        files.reset_reads();
        asked(&run, &Visible::through(Lsn(lsn)), block);
        files.reads_of(&path).reads
    };
    let mut most = 0;
    for region in (0..1 << 12).step_by(64) {
        let block = (region << 16) + chance.below(1 << 16);
        most = most.max(reads_at(block, 1 + chance.below(40_000)));
        for _ in 0..20 {
            // The page of payload, and of the filter, may be another one.
            let neighbour = (region << 16) + chance.below(1 << 16);
            let again = reads_at(neighbour, 1 + chance.below(40_000));
            assert!(again <= 2, "{again} pages for a neighbour");
        }
    }
    println!("at most {most} reads for a block of a region that nobody asked for before");
    // Fences, payload, filter; of nodes two pages at once and one more; fences and a page for each of few trees of large ones.
    assert!(most <= 12, "{most} reads");
}

/// Pages full of nonsense with right checksums: any answer or an error, but an answer, and soon.
#[test]
fn hostile_pages_of_a_merged_run_neither_panic_nor_hang() {
    let seed = 0x0470;
    println!("seed {seed:#x}");
    let mut chance = Chance::new(seed);
    let ops = history(&mut chance, 700, 1 << 24, 3, 1 << 20, 1);
    let (files, pages) = (SimDisk::new(1), PageCache::new(0));
    let run = merged_run(&files, &pages, &ops);
    let (path, id, region_pages) = (run.path().to_owned(), run.header().run_id, 1);
    let whole = files.contents(path.to_str().unwrap()).unwrap();
    let mut refused = 0;
    for _ in 0..600 {
        let mut bytes = whole.clone();
        let count = bytes.len() / 4096;
        let end = (count - region_pages) * 4096;
        for _ in 0..1 + chance.below(20) {
            let at = 4096 + chance.below(end as u64 - 4096) as usize;
            match chance.below(4) {
                0 => bytes[at] = 0xff,
                1 => bytes[at] = 0,
                2 => bytes[at] ^= 1 << chance.below(8),
                _ => {
                    let from = 4096 + chance.below(end as u64 - 4096 - 500) as usize;
                    bytes.copy_within(from..from + 400, at.min(end - 500));
                }
            }
        }
        for number in 1..count - region_pages {
            let page: &mut Page = (&mut bytes[number * 4096..][..4096]).try_into().unwrap();
            seal_page(page, id, number as u64);
        }
        files.mutate(path.to_str().unwrap(), |content| *content = bytes).unwrap();
        let Ok(run) = Run::open(&files, Path::new(&path), &pages) else {
            refused += 1;
            continue;
        };
        for _ in 0..40 {
            let mut search = Search::new(Extent::new(0, 1));
            let block = chance.below(1 << 24);
            search.reset(Extent::new(block, block + 1));
            let _ = run.resolve(&Visible::through(Lsn(1 + chance.below(700))), &mut search);
            let _ = run.newest(Lba(block));
        }
    }
    assert!(refused < 600, "all were refused at opening");
}
