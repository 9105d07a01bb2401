//! Rates of the index: inserts, lookups in memory and in a run. `cargo run --release -p cdp-core --example index_rates`

use cdp_core::ids::{Extent, Lba, Lsn, SegmentId, Timestamp, VolumeId};
use cdp_core::index::{Live, PageCache, Run, RunSource, Search, Visible};
use cdp_core::io::posix::Posix;
use std::time::Duration;

/// Blocks of payload that fit into a segment.
const ENTRIES: u64 = 32_000;
const ROUNDS: u64 = 8;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

fn fill(mut lba: impl FnMut() -> u64) -> Live {
    let mut live = Live::new(Lsn(1));
    for n in 1..=ENTRIES {
        live.insert_record(Lsn(n), Timestamp(n));
        live.insert_payload(Lsn(n), Lba(lba()), [(n as u32, 0)]);
    }
    live
}

/// Time of this thread alone: the machine may be busy.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Prints nanoseconds for each of `count` steps, the best of some rounds.
fn measure<T>(what: &str, count: u64, mut round: impl FnMut() -> T) {
    let best = (0..ROUNDS)
        .map(|_| {
            let start = cpu_time();
            let made = round();
            let spent = cpu_time() - start;
            drop(made);
            spent
        })
        .min()
        .unwrap_or_default();
    println!("{what:52} {:9.1} ns", best.as_nanos() as f64 / count as f64);
}

fn main() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for (name, blocks) in [("2 GiB", 1u64 << 19), ("1 TiB", 1 << 28)] {
        println!("random blocks of a volume of {name}, {ENTRIES} records");
        measure("  insert", ENTRIES, || fill(|| random(&mut state) % blocks));
        let live = fill(|| random(&mut state) % blocks);
        println!("  {} bytes of memory for each entry", live.memory_bytes() as u64 / live.entries());
        let tip = Visible::through(Lsn(ENTRIES));
        let mut search = Search::new(Extent::new(0, 1));
        for length in [1, 32] {
            measure(&format!("  live: look up {length} at random"), ENTRIES, || {
                for _ in 0..ENTRIES {
                    let start = random(&mut state) % (blocks - length);
                    search.reset(Extent::new(start, start + length));
                    live.resolve(&tip, &mut search);
                }
            });
        }
        let files = Posix;
        let path = &std::env::temp_dir().join(format!("index-rates-{}", std::process::id()));
        let source = RunSource {
            volume: VolumeId(1),
            segment: SegmentId(1),
            log_end: 0,
            chain: [0; 16],
            seal: [0; 32],
            codec: 0,
            live: &live,
            markers: &[],
            damages: &[],
            summary: Default::default(),
        };
        measure("  run: write, for each entry", ENTRIES, || Run::write(&files, path, &source).unwrap());
        println!(
            "  {:.1} bytes of file for each entry",
            std::fs::metadata(path).unwrap().len() as f64 / ENTRIES as f64
        );
        let pages = PageCache::new(4 << 20);
        measure("  run: open, in all", 1, || drop(Run::open(&files, path, &pages).unwrap()));
        let run = Run::open(&files, path, &pages).unwrap();
        println!(
            "  {:.2} bytes of memory for each entry of an opened run",
            run.memory_bytes() as f64 / ENTRIES as f64
        );
        for length in [1, 32] {
            measure(&format!("  run: look up {length} at random, pages cached"), ENTRIES, || {
                for _ in 0..ENTRIES {
                    let start = random(&mut state) % (blocks - length);
                    search.reset(Extent::new(start, start + length));
                    run.resolve(&tip, &mut search).unwrap();
                }
            });
        }
        let mut held: Vec<u64> = Vec::new();
        let mut all = Search::new(Extent::new(0, blocks));
        measure("  run: all of it at once, for each entry", ENTRIES, || {
            all.reset(Extent::new(0, blocks));
            run.resolve(&tip, &mut all).unwrap();
        });
        all.finish();
        held.extend(all.found().iter().map(|version| version.extent.start.0));
        measure("  run: look up 1 that is there, pages cached", ENTRIES, || {
            for _ in 0..ENTRIES {
                let lba = held[random(&mut state) as usize % held.len()];
                search.reset(Extent::new(lba, lba + 1));
                run.resolve(&tip, &mut search).unwrap();
            }
        });
        let uncached = PageCache::new(0);
        let run = Run::open(&files, path, &uncached).unwrap();
        measure("  run: look up 1 that is there, page read", ENTRIES, || {
            for _ in 0..ENTRIES {
                let lba = held[random(&mut state) as usize % held.len()];
                search.reset(Extent::new(lba, lba + 1));
                run.resolve(&tip, &mut search).unwrap();
            }
        });
    }
    let _ = std::fs::remove_file(std::env::temp_dir().join(format!("index-rates-{}", std::process::id())));
    let mut next = 0;
    measure("sequential insert", ENTRIES, || {
        fill(|| {
            next += 1;
            next % (1 << 28)
        })
    });
}
