//! The rows of the benchmark, in the order in which they run on a freshly filled device.

use crate::load::{Load, Place, Step, Unit};

/// One row.
pub struct Row {
    /// Short name, for `--rows` and JSON.
    pub id: &'static str,
    /// For the table.
    pub title: &'static str,
    /// What runs.
    pub load: Load,
    /// Ours ÷ the best peer must not be below this.
    pub bar: Option<f64>,
    /// Runs on ours only, against a view of the newest instant; its ratio is to this row of ours.
    pub view_of: Option<&'static str>,
}

const K4: u32 = 4 << 10;
const K8: u32 = 8 << 10;
const K64: u32 = 64 << 10;
const M1: u32 = 1 << 20;

const fn load(connections: usize, depth: usize, unit: Unit, cycle: &'static [Step]) -> Load {
    Load { connections, depth, cycle, unit }
}

const fn row(id: &'static str, title: &'static str, bar: f64, load: Load) -> Row {
    Row { id, title, load, bar: Some(bar), view_of: None }
}

const SEQ_READ: Load = load(1, 4, Unit::Bytes, &[Step::Read(1, Place::Sequential, M1)]);
const RAND_READ_QD32: Load = load(1, 32, Unit::Requests, &[Step::Read(1, Place::Random, K4)]);

/// Four page reads one after the other, a page write that nobody waits for until the commit, a log write, its flush.
const OLTP: &[Step] = &[
    Step::Read(1, Place::Random, K8),
    Step::Wait,
    Step::Read(1, Place::Random, K8),
    Step::Wait,
    Step::Read(1, Place::Random, K8),
    Step::Wait,
    Step::Read(1, Place::Random, K8),
    Step::Wait,
    Step::Write(1, Place::Random, K8),
    Step::Write(1, Place::Log, K8),
    Step::Wait,
    Step::Flush,
    Step::Wait,
];
const COMMIT: &[Step] = &[Step::Write(1, Place::Random, K4), Step::Wait, Step::Flush, Step::Wait];
const COMMIT_32: &[Step] = &[Step::Write(32, Place::Random, K4), Step::Wait, Step::Flush, Step::Wait];

/// All rows. The bars are those of the first speed bar: commits and writes at least as fast as the best plain
/// server, large sequential writes at half its speed, warm reads at 0.9 (but see the scattered one), a view at 0.8 of
/// the live volume.
pub const ROWS: &[Row] = &[
    row("seq-read-1m", "sequential read 1M QD4, warm, written in order", 0.9, SEQ_READ),
    row(
        "rand-read-qd1",
        "random read 4k QD1, warm",
        0.9,
        load(1, 1, Unit::Requests, &[Step::Read(1, Place::Random, K4)]),
    ),
    row("rand-read-qd32", "random read 4k QD32, warm", 0.9, RAND_READ_QD32),
    row(
        "rand-write-qd1",
        "random write 4k QD1",
        1.0,
        load(1, 1, Unit::Requests, &[Step::Write(1, Place::Random, K4)]),
    ),
    row(
        "rand-write-qd32",
        "random write 4k QD32, lean",
        1.0,
        load(1, 32, Unit::Requests, &[Step::Write(1, Place::Random, K4)]),
    ),
    row("write-flush-qd1", "write 4k + FLUSH QD1", 1.0, load(1, 1, Unit::Cycles, COMMIT)),
    row("write32-flush", "32 writes 4k + FLUSH QD32", 1.0, load(1, 32, Unit::Cycles, COMMIT_32)),
    row("write-flush-8", "write 4k + FLUSH on 8 connections", 1.0, load(8, 1, Unit::Cycles, COMMIT)),
    row(
        "fua-qd16",
        "FUA write 4k QD16",
        1.0,
        load(1, 16, Unit::Requests, &[Step::WriteFua(Place::Random, K4)]),
    ),
    row("mix-70-30", "mix 70/30 4k QD16", 1.0, load(1, 16, Unit::Requests, &[Step::Mixed(70, K4)])),
    row("oltp", "OLTP-like mix, 4 connections, commits", 1.0, load(4, 2, Unit::Cycles, OLTP)),
    // Nearly all blocks were overwritten at random: a read of 1 MiB is 256 reads here and one at the peers. What is asked
    // of that at once is a quarter of a plain file; 0.9 after the blocks were put in order again.
    row("scattered-read-1m", "sequential read 1M QD4, warm, after random writes", 0.25, SEQ_READ),
    row("scattered-read-qd32", "random read 4k QD32, warm, after random writes", 0.9, RAND_READ_QD32),
    Row {
        id: "view-read-1m",
        title: "the same sequential read from a view, against live",
        load: SEQ_READ,
        bar: Some(0.8),
        view_of: Some("scattered-read-1m"),
    },
    Row {
        id: "view-read-qd32",
        title: "the same random read from a view, against live",
        load: RAND_READ_QD32,
        bar: Some(0.8),
        view_of: Some("scattered-read-qd32"),
    },
    row(
        "seq-write-64k",
        "sequential write 64k QD8",
        0.5,
        load(1, 8, Unit::Bytes, &[Step::Write(1, Place::Sequential, K64)]),
    ),
    row(
        "seq-write-1m",
        "sequential write 1M QD4",
        0.5,
        load(1, 4, Unit::Bytes, &[Step::Write(1, Place::Sequential, M1)]),
    ),
    row("trim-1m", "trim 1M QD4", 1.0, load(1, 4, Unit::Bytes, &[Step::Trim(M1)])),
];
