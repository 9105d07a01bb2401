//! What a long history costs. `cargo run --release -p cdp-core --example history -- generate DIR CHANGES`, then
//! `… -- merge DIR`, then `… -- measure DIR`. As root, `measure` drops the kernel's caches for the cold figures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::catalog::Catalog;
use cdp_core::device::{Change, Device, Read};
use cdp_core::generate::{HistoryOptions, history};
use cdp_core::history::point::Timeline;
use cdp_core::ids::{BLOCK_BYTES, Lsn, SessionId, Timestamp};
use cdp_core::index::IndexOptions;
use cdp_core::io::{SystemClock, native};
use cdp_core::limits::MERGE_RUNS;
use cdp_core::store::{OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const VIEWS: u64 = 64;
const WARM_ROUNDS_MAX: usize = 12;
const WRITE_TIME: Duration = Duration::from_secs(6);
const WRITE_ROUNDS: usize = 5;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn drop_caches() -> bool {
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn open(path: &Path) -> Outcome<(Store, Arc<Volume>)> {
    open_with(path, IndexOptions::default())
}

fn open_with(path: &Path, index: IndexOptions) -> Outcome<(Store, Arc<Volume>)> {
    let options =
        OpenOptions { holder: "a measurement", index, catalog: &Catalog::open, ..OpenOptions::default() };
    let store = Store::open_with(native(true), Arc::new(SystemClock), path, &options)?;
    let volume = store.volume("disk")?;
    Ok((store, volume))
}

fn read_4k(device: &dyn Device, block: u64) -> Outcome {
    let mut buffer = [0; 4096];
    let mut reads = [Read { offset: block * BLOCK_BYTES, buffer: &mut buffer, result: Ok(()) }];
    device.read(&mut reads);
    let [read] = reads;
    Ok(read.result?)
}

/// Sorted; the middle, the 99th of a hundred, and the worst.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {:?}, p99 {:?}, worst {:?}", at(50), at(99), at(100))
}

/// Reads in a second, and in a second of a processor, which is the same on a busy machine.
#[derive(Clone, Copy, Default)]
struct Rate {
    by_clock: f64,
    by_processor: f64,
}

fn reads_per_second(device: &dyn Device, state: &mut u64) -> Outcome<Rate> {
    let blocks = device.size_bytes() / BLOCK_BYTES;
    let (began, used) = (Instant::now(), processor_seconds());
    let mut done = 0u64;
    while began.elapsed() < Duration::from_secs(2) {
        for _ in 0..64 {
            read_4k(device, random(state) % blocks)?;
        }
        done += 64;
    }
    Ok(Rate {
        by_clock: done as f64 / began.elapsed().as_secs_f64(),
        by_processor: done as f64 / (processor_seconds() - used),
    })
}

fn processor_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn generate(path: &Path, changes: u64, marker_every: u64) -> Outcome {
    let options = HistoryOptions {
        changes,
        size_bytes: 1 << 40,
        segment_bytes: 128 << 20,
        seed: 1,
        duration_ns: 30 * 24 * 3_600_000_000_000,
        marker_every,
    };
    let began = Instant::now();
    let mut told = 0;
    history(native(false), path, &options, &mut |done| {
        if done >= told + changes / 10 {
            told = done;
            eprintln!("{done} changes, {:?}", began.elapsed());
        }
    })?;
    println!("| generate {changes} changes | {:?} |", began.elapsed());
    Ok(())
}

fn merge(path: &Path, merge_runs: usize) -> Outcome {
    let index = IndexOptions { merge_runs, ..IndexOptions::default() };
    let (store, volume) = open_with(path, index)?;
    let began = Instant::now();
    let layers = volume.part_list().layers().len();
    let mut most = 0;
    volume.merge_all(&mut |_, _| most = most.max(rss_mib()))?;
    println!(
        "| merge {layers} runs to {} | {:?}, at most {most} MiB resident |",
        volume.part_list().layers().len(),
        began.elapsed()
    );
    store.close()?;
    Ok(())
}

fn index_bytes(path: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path.join("volumes/disk"))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "run") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

/// What an opening costs, with the kernel's caches dropped before it where that is allowed.
fn reopen(path: &Path) -> Outcome {
    let is_cold = drop_caches();
    let (began, used) = (Instant::now(), processor_ms());
    let (_store, volume) = open(path)?;
    println!(
        "| open {} segments{} | {:?}, {} ms of a processor |",
        volume.part_list().len(),
        if is_cold { ", caches dropped" } else { "" },
        began.elapsed(),
        processor_ms() - used,
    );
    println!("| what it found | {} |", volume.notes().recovery);
    println!(
        "| after opening | {} MiB resident, of which names of {} markers are {} MiB |",
        rss_mib(),
        volume.named_markers().len(),
        volume.names_memory_bytes() >> 20
    );
    Ok(())
}

/// Of this process, all its threads, in user and system mode.
fn processor_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = behind_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    // A hundred ticks a second, on every Linux that there is.
    ticks.sum::<u64>() * 10
}

/// Random reads of the live volume and of views, each side warmed until it does not get faster, one after the other.
fn reads(path: &Path, percents: &[u64]) -> Outcome {
    let (_store, volume) = open(path)?;
    let tip = volume.tip_lsn().0;
    let mut state = 0x1234_5678_9abc_def1;
    let mut settled = |device: &dyn Device| -> Outcome<Rate> {
        let mut best = Rate::default();
        for _ in 0..WARM_ROUNDS_MAX {
            let rate = reads_per_second(device, &mut state)?;
            let is_settled = rate.by_processor < best.by_processor * 1.05;
            best.by_clock = rate.by_clock.max(best.by_clock);
            best.by_processor = rate.by_processor.max(best.by_processor);
            if is_settled {
                break;
            }
        }
        Ok(best)
    };
    for &percent in percents {
        let live = settled(&*volume)?;
        let view = settled(&View::new(volume.clone(), Lsn(tip / 100 * percent)))?;
        println!(
            "| random 4 KiB reads at {percent} % of the history, warm, of live | {:.0} % of {:.0}/s; for each second of a processor {:.0} % of {:.0} |",
            view.by_clock / live.by_clock * 100.0,
            live.by_clock,
            view.by_processor / live.by_processor * 100.0,
            live.by_processor,
        );
    }
    println!("| afterwards | {} MiB resident |", rss_mib());
    Ok(())
}

/// So many random reads of one view and nothing else, for a profiler: as many again before, to warm up.
fn only(path: &Path, percent: u64, count: u64) -> Outcome {
    let (_store, volume) = open(path)?;
    let view = View::new(volume.clone(), Lsn(volume.tip_lsn().0 / 100 * percent));
    let blocks = volume.size_bytes() / BLOCK_BYTES;
    let mut state = 0x1234_5678_9abc_def1;
    for name in ["warming up", "warm"] {
        let used = processor_seconds();
        for _ in 0..count {
            read_4k(&view, random(&mut state) % blocks)?;
        }
        println!(
            "| {name}, of a processor for each read | {:.0} ns |",
            (processor_seconds() - used) * 1e9 / count as f64
        );
    }
    Ok(())
}

fn measure(path: &Path) -> Outcome {
    let is_cold = drop_caches();
    let began = Instant::now();
    let (_store, volume) = open(path)?;
    let opened = began.elapsed();
    let tip = volume.tip_lsn().0;
    let mut state = 0x1234_5678_9abc_def1;
    println!(
        "| history | {tip} records, {} segments, {} layers |",
        volume.part_list().len(),
        volume.part_list().layers().len()
    );
    println!("| open the store{} | {opened:?} |", if is_cold { ", caches dropped" } else { "" });
    println!("| after opening | {} MiB resident, {} descriptors |", rss_mib(), descriptors());
    println!("| index on disk | {:.1} bytes for each record |", index_bytes(path)? as f64 / tip as f64);
    let begin = volume.timestamp_of(Lsn(1))?.0;
    let end = volume.timestamp_of(Lsn(tip))?.0;
    let blocks = volume.size_bytes() / BLOCK_BYTES;
    let first_byte = |state: &mut u64| -> Outcome<Duration> {
        let at = Timestamp(begin + random(state) % (end - begin));
        let block = random(state) % (blocks / 16);
        let began = Instant::now();
        let view = View::new(volume.clone(), volume.lsn_at(at)?);
        read_4k(&view, block)?;
        Ok(began.elapsed())
    };
    if is_cold {
        let mut cold = Vec::new();
        for _ in 0..20 {
            drop_caches();
            cold.push(first_byte(&mut state)?);
        }
        println!("| any instant to its first byte, caches dropped | {} |", spread(cold));
    }
    let warm = (0..1000).map(|_| first_byte(&mut state)).collect::<Outcome<Vec<_>>>()?;
    println!("| any instant to its first byte, warm | {} |", spread(warm[500..].to_vec()));
    reads_per_second(&*volume, &mut state)?;
    let live = reads_per_second(&*volume, &mut state)?.by_clock;
    println!("| random 4 KiB reads, live | {live:.0}/s |");
    for percent in [99, 90, 50, 10] {
        let view = View::new(volume.clone(), Lsn(tip / 100 * percent));
        reads_per_second(&view, &mut state)?;
        let rate = reads_per_second(&view, &mut state)?.by_clock;
        println!("| at {percent} % of the history | {rate:.0}/s, {:.0} % of live |", rate / live * 100.0);
    }
    let views: Vec<View> = (1..=VIEWS).map(|n| View::new(volume.clone(), Lsn(tip / VIEWS * n))).collect();
    for view in &views {
        for _ in 0..500 {
            read_4k(view, random(&mut state) % blocks)?;
        }
    }
    println!(
        "| {VIEWS} views open and read from | {} MiB resident, {} descriptors |",
        rss_mib(),
        descriptors()
    );
    Ok(())
}

/// Writes a second: by the clock, for each second of a processor that their thread took, and for each that the process took.
#[derive(Clone, Copy)]
struct WriteRate {
    by_clock: f64,
    by_writer: f64,
    by_process: f64,
}

fn writer_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// 32 at a time, for [`WRITE_TIME`].
fn write_for_a_while(volume: &Volume, data: &[u8], blocks: u64, state: &mut u64) -> Outcome<WriteRate> {
    let (began, writer, process) = (Instant::now(), writer_seconds(), processor_seconds());
    let mut done = 0;
    let mut results = Vec::new();
    while began.elapsed() < WRITE_TIME {
        let changes: Vec<Change<'_>> =
            (0..32).map(|_| Change::Write { offset: random(state) % blocks * BLOCK_BYTES, data }).collect();
        results.clear();
        volume.apply(SessionId(1), &changes, &mut results);
        results.drain(..).collect::<Result<Vec<_>, _>>()?;
        done += changes.len();
        if done % 256 == 0 {
            volume.flush()?;
        }
    }
    let done = done as f64;
    Ok(WriteRate {
        by_clock: done / began.elapsed().as_secs_f64(),
        by_writer: done / (writer_seconds() - writer),
        by_process: done / (processor_seconds() - process),
    })
}

/// Writes 4 KiB at random for some seconds, flushing each 256 writes, with upkeep beside it four times a second.
fn write_rate(path: &Path, merge_runs: usize) -> Outcome<(WriteRate, usize)> {
    let index = IndexOptions { merge_runs, ..IndexOptions::default() };
    let options =
        OpenOptions { holder: "a measurement", index, catalog: &Catalog::open, ..OpenOptions::default() };
    let store = Store::open_with(native(true), Arc::new(SystemClock), path, &options)?;
    let volume = store.volume("disk")?;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let mut state = 0x9e37_79b9_97f4_a7c1;
    let data: Vec<u8> = (0..4096).map(|at| (at % 251) as u8 + 1).collect();
    let blocks = volume.size_bytes() / BLOCK_BYTES;
    let rate = std::thread::scope(|scope| -> Outcome<WriteRate> {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                if let Err(error) = volume.maintain() {
                    eprintln!("{error}");
                }
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        let rate = write_for_a_while(&volume, &data, blocks, &mut state);
        // Also where a write failed: the other thread goes on until it is told.
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        rate
    })?;
    let layers = volume.part_list().layers().len();
    store.close()?;
    Ok((rate, layers))
}

fn write(path: &Path) -> Outcome {
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for round in 1..=WRITE_ROUNDS {
        // The other one first each time, so that neither always gets what the other left to write out.
        let first = if round % 2 == 1 { usize::MAX >> 1 } else { 2 };
        let second = if round % 2 == 1 { 2 } else { usize::MAX >> 1 };
        let outcomes = [(first, write_rate(path, first)?), (second, write_rate(path, second)?)];
        // Two by two is more merging than a store ever does by itself.
        let of = |is_merging: bool| outcomes.iter().find(|outcome| (outcome.0 == 2) == is_merging);
        let (Some((_, (without, many))), Some((_, (merging, few)))) = (of(false), of(true)) else { continue };
        println!(
            "| round {round}: writes without merging, {many} layers; while merging, down to {few} | {:.0}/s; {:.0}/s |",
            without.by_clock, merging.by_clock
        );
        ratios[0].push(merging.by_clock / without.by_clock * 100.0);
        ratios[1].push(merging.by_writer / without.by_writer * 100.0);
        ratios[2].push(merging.by_process / without.by_process * 100.0);
    }
    let by = ["the clock", "the writer's processor time", "the process's, merging included"];
    for (by, ratios) in by.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        println!(
            "| writes while merging, of without, by {by} | {least:.0} – {:.0} – {most:.0} % |",
            ratios[ratios.len() / 2]
        );
    }
    Ok(())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["generate", dir, changes] => {
            let changes = changes.parse::<u64>()?;
            generate(&PathBuf::from(dir), changes, changes.div_ceil(1000).max(1))
        }
        ["generate", dir, changes, marker_every] => {
            generate(&PathBuf::from(dir), changes.parse()?, marker_every.parse()?)
        }
        ["merge", dir] => merge(&PathBuf::from(dir), MERGE_RUNS),
        ["merge", dir, runs] => merge(&PathBuf::from(dir), runs.parse()?),
        ["measure", dir] => measure(&PathBuf::from(dir)),
        ["open", dir] => reopen(&PathBuf::from(dir)),
        ["reads", dir] => reads(&PathBuf::from(dir), &[100, 99, 90, 75, 50, 25, 10]),
        ["reads", dir, percent] => reads(&PathBuf::from(dir), &[percent.parse()?]),
        ["only", dir, percent, count] => only(&PathBuf::from(dir), percent.parse()?, count.parse()?),
        ["write", dir] => write(&PathBuf::from(dir)),
        _ => {
            Err("generate DIR CHANGES [MARKER_EVERY] | merge DIR [RUNS] | measure DIR | open DIR | reads DIR [PERCENT] | only DIR PERCENT COUNT | write DIR"
                .into())
        }
    }
}
