//! All short histories.

use crate::harness::check::{Crash, Death};
use crate::harness::model::Edit;
use crate::harness::workload::{Step, content};
use crate::harness::{Depth, Outcome, Rig, Tally};
use cdp_core::ids::BLOCK_BYTES;
use cdp_core::io::sim::{PowerLoss, WriteOrder};

const REQUESTS_MAX: usize = 4;
const BLOCKS: u64 = 3;

/// One request of a history. A flush of its own and FUA are the same calls at this seam.
#[derive(Clone, Copy, Debug)]
struct Request {
    block: u64,
    zeroes: bool,
    synced: bool,
}

/// Blocks are called 0, 1, 2 in the order of their first use: other names give the same histories.
fn extend(history: &mut Vec<Request>, each: &mut impl FnMut(&[Request])) {
    if !history.is_empty() {
        each(history);
    }
    if history.len() == REQUESTS_MAX {
        return;
    }
    let fresh = history.iter().map(|request| request.block + 1).max().unwrap_or(0);
    for block in 0..(fresh + 1).min(BLOCKS) {
        for (zeroes, synced) in [(false, false), (false, true), (true, false), (true, true)] {
            history.push(Request { block, zeroes, synced });
            extend(history, each);
            history.pop();
        }
    }
}

fn step(number: usize, request: Request) -> Step {
    let offset = request.block * BLOCK_BYTES;
    let edit = match (request.zeroes, number % 2) {
        (false, _) => Edit::Write { offset, data: content(number as u64 + 1, BLOCK_BYTES as usize) },
        (true, 0) => Edit::Zero { offset, len: BLOCK_BYTES, hole: false },
        (true, _) => Edit::Trim { offset, len: BLOCK_BYTES },
    };
    Step::Apply { volume: 0, edits: vec![edit], fua: request.synced }
}

fn losses() -> [PowerLoss; 4] {
    let some =
        PowerLoss { keep_percent: 50, tear_percent: 50, names_keep_percent: 50, ..PowerLoss::all_lost() };
    [
        PowerLoss::all_lost(),
        PowerLoss::all_kept(),
        some,
        PowerLoss { order: WriteOrder::Prefix, tear_percent: 100, ..some },
    ]
}

/// Crashes in the last request only: those before it are the last of a shorter history.
fn check(number: u64, history: &[Request], tally: &mut Tally) -> Outcome {
    let mut rig = Rig::new(7, 1, 64 << 10)?;
    let (last, before) = history.split_last().expect("not empty");
    for (number, request) in before.iter().enumerate() {
        rig.step(&step(number, *request))?;
    }
    rig.disk.record_boundaries(true);
    rig.step(&step(before.len(), *last))?;
    let mut ends: Vec<_> =
        rig.disk.take_boundaries().into_iter().map(|b| (b.operation, b.snapshot)).collect();
    ends.push((u64::MAX, rig.disk.snapshot()));
    for (operation, snapshot) in ends {
        for (style, loss) in losses().into_iter().enumerate() {
            let seed = number << 3 | style as u64;
            let crash = Crash {
                models: &rig.models,
                wrap: &rig.wrap,
                seed,
                depth: Depth::Quick,
                nested: false,
                writes_on: false,
            };
            let promise = rig.promise_at(operation, true);
            let death = Death::Power(PowerLoss { seed, ..loss });
            crash
                .check(snapshot.mount(seed), death, &promise, tally)
                .map_err(|broken| format!("{broken}\n  {history:?}, operation {operation}, {death:?}"))?;
        }
    }
    Ok(())
}

/// Whatever short thing a client does, and wherever the power goes in it: a mistake that long random workloads
/// hide behind luck shows in one of these.
#[test]
fn all_short_histories() {
    let mut tally = Tally::default();
    let mut histories = 0;
    extend(&mut Vec::new(), &mut |history| {
        histories += 1;
        if let Err(broken) = check(histories, history, &mut tally) {
            panic!("{broken}");
        }
    });
    println!("short histories: {histories} of up to {REQUESTS_MAX} requests; {tally}");
    assert_eq!(histories, 4 + 2 * 16 + 5 * 64 + 14 * 256);
}
