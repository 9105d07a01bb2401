//! The blocks that differ between two states, against a list of what was written to each block.
//!
//! A block that is left out is one that an incremental backup does not hold: its restore gives a disk that never was.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::ids::*;
use cdp_core::index::{Difference, Visible};
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::changed::Changes;
use cdp_core::volume::rollback::Back;
use proptest::prelude::*;

const BLOCKS: u64 = 256;
const BLOCK: usize = BLOCK_BYTES as usize;
/// What fits into a segment of these tests.
const WRITE_BYTES_MAX: u64 = 100 << 10;
const STORE: &str = "/store";

#[derive(Clone, Debug)]
enum Op {
    Write {
        offset: u64,
        len: u64,
        byte: u8,
    },
    Zero {
        offset: u64,
        len: u64,
        hole: bool,
    },
    Trim {
        offset: u64,
        len: u64,
    },
    /// Seals what can be sealed and writes runs.
    Maintain,
    /// Merges all runs that can be merged.
    Merge,
    /// Sets the volume back to so far along its history, or takes the newest rollback back.
    Rollback(u64),
    Undo,
    /// Kills the server and starts it again.
    Restart,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let aligned = (0..BLOCKS, 1..24u64)
        .prop_map(|(start, blocks)| (start * BLOCK_BYTES, blocks.min(BLOCKS - start) * BLOCK_BYTES));
    let any = (0..BLOCKS * BLOCK_BYTES - 1, 1..40_000u64)
        .prop_map(|(offset, len)| (offset, len.min(BLOCKS * BLOCK_BYTES - offset)));
    let all = Just((0, BLOCKS * BLOCK_BYTES));
    prop_oneof![8 => aligned, 4 => any, 1 => all]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        // Few different bytes, so that the same ones are often written again.
        8 => (range(), 0..3u8).prop_map(|((offset, len), byte)| Op::Write {
            offset,
            len: len.min(WRITE_BYTES_MAX),
            byte,
        }),
        2 => (range(), any::<bool>()).prop_map(|((offset, len), hole)| Op::Zero { offset, len, hole }),
        2 => range().prop_map(|(offset, len)| Op::Trim { offset, len }),
        3 => Just(Op::Maintain),
        1 => Just(Op::Merge),
        1 => any::<u64>().prop_map(Op::Rollback),
        1 => Just(Op::Undo),
        1 => Just(Op::Restart),
    ]
}

/// Every LSN that changed each block, and the whole disk after each change.
struct Model {
    changed: Vec<Vec<Lsn>>,
    states: Vec<(Lsn, Vec<u8>)>,
    /// Rollbacks, and each block's newest record behind them.
    turns: Vec<(Lsn, Vec<Option<Lsn>>)>,
}

impl Model {
    fn new(base: Vec<u8>) -> Model {
        Model {
            changed: vec![Vec::new(); BLOCKS as usize],
            states: vec![(Lsn::ZERO, base)],
            turns: Vec::new(),
        }
    }

    fn put(&mut self, lsn: Lsn, offset: u64, len: u64, byte: u8) {
        let mut state = self.states.last().unwrap().1.clone();
        state[offset as usize..(offset + len) as usize].fill(byte);
        self.states.push((lsn, state));
        for block in offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES) {
            self.changed[block as usize].push(lsn);
        }
    }

    /// From `lsn` on the disk is what it was at `to`.
    fn set_back(&mut self, lsn: Lsn, to: Lsn) {
        let state = self.state(to).to_vec();
        let newest = (0..BLOCKS).map(|block| self.newest_at(to, block)).collect();
        self.states.push((lsn, state));
        self.turns.push((lsn, newest));
    }

    /// The record that made the block what it is after `lsn`: told by what was written, and rollbacks, alone.
    fn newest_at(&self, lsn: Lsn, block: u64) -> Option<Lsn> {
        let turn = self.turns.iter().rev().find(|turn| turn.0 <= lsn);
        let since = turn.map_or(Lsn::ZERO, |turn| turn.0);
        let written = self.changed[block as usize].iter().rev().find(|written| **written <= lsn);
        match (written, turn) {
            (Some(written), _) if *written > since => Some(*written),
            (_, Some(turn)) => turn.1[block as usize],
            _ => None,
        }
    }

    fn newest(&self, visible: &Visible, block: u64) -> Option<Lsn> {
        self.changed[block as usize].iter().rev().copied().find(|lsn| visible.contains(*lsn))
    }

    fn state(&self, lsn: Lsn) -> &[u8] {
        &self.states[self.states.partition_point(|state| state.0 <= lsn) - 1].1
    }
}

fn open(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap()
}

fn blocks(extents: &[Extent]) -> Vec<u64> {
    assert!(extents.iter().all(|extent| extent.blocks > 0), "{extents:?}");
    assert!(extents.windows(2).all(|pair| pair[0].end() < pair[1].start.0), "rising, apart: {extents:?}");
    extents.iter().flat_map(|extent| extent.start.0..extent.end()).collect()
}

/// By pages of so many extents, joined.
fn by_pages(volume: &Volume, difference: &Difference, extents_max: usize) -> Vec<u64> {
    let (mut at, mut found) = (0, Vec::new());
    while at < BLOCKS {
        let page = volume.changed_page(difference, Extent::new(at, BLOCKS), extents_max).unwrap();
        assert!(page.end > at && page.end <= BLOCKS, "no progress at {at}");
        assert!(page.extents.len() <= extents_max);
        let inside = blocks(&page.extents);
        assert!(inside.iter().all(|block| (at..page.end).contains(block)));
        found.extend(inside);
        at = page.end;
    }
    found
}

fn check_lsns(model: &Model, volume: &Arc<Volume>, a: Lsn, b: Lsn) {
    let changes = volume.changed(a, b).unwrap();
    let found: Vec<Extent> = changes.extents().map(Result::unwrap).collect();
    let expected: Vec<u64> =
        (0..BLOCKS).filter(|block| model.newest_at(a, *block) != model.newest_at(b, *block)).collect();
    assert_eq!(blocks(&found), expected, "{a:?} to {b:?}");

    let found: Vec<Extent> =
        volume.changed(b, a).unwrap().with_content().extents().map(Result::unwrap).collect();
    let block_of = |lsn, block: u64| &model.state(lsn)[block as usize * BLOCK..][..BLOCK];
    let expected: Vec<u64> = (0..BLOCKS).filter(|block| block_of(a, *block) != block_of(b, *block)).collect();
    assert_eq!(blocks(&found), expected, "by content, {a:?} to {b:?}");
}

fn check_visibles(model: &Model, volume: &Volume, a: &Visible, b: &Visible) {
    let difference = Difference::between(a, b);
    let expected: Vec<u64> =
        (0..BLOCKS).filter(|block| model.newest(a, *block) != model.newest(b, *block)).collect();
    for extents_max in [1, 3, 1000] {
        assert_eq!(by_pages(volume, &difference, extents_max), expected, "{a:?} to {b:?}");
    }
}

/// Bounds of ranges as a rollback leaves them.
fn visible(bounds: &[u64], tip: u64) -> Visible {
    let mut bounds: Vec<u64> = bounds.iter().map(|bound| bound % (tip + 2)).collect();
    bounds.sort_unstable();
    bounds.dedup();
    Visible::of(bounds.chunks_exact(2).map(|pair| (Lsn(pair[0]), Lsn(pair[1]))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// At all pairs of points, and along any chains of rollbacks, what differs is what the list says.
    #[test]
    fn what_differs_is_what_the_list_of_writes_says(
        seed in any::<u64>(),
        based in any::<bool>(),
        ops in prop::collection::vec(op(), 1..50),
        picks in prop::collection::vec((any::<u64>(), any::<u64>()), 6),
        bounds in prop::collection::vec(prop::collection::vec(any::<u64>(), 2..8), 4),
    ) {
        let (mut disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        let mut store = open(&disk, &clock);
        let options =
            CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(BLOCKS * BLOCK_BYTES) };
        let mut base = vec![0; BLOCKS as usize * BLOCK];
        if based {
            base[BLOCK * 10..BLOCK * 60].fill(1);
            let fill = base.clone();
            store.create_volume("disk", &options, Some(&mut |writer| writer.write(0, &fill))).unwrap();
        } else {
            store.create_volume("disk", &options, None).unwrap();
        }
        let mut model = Model::new(base);
        for op in &ops {
            let volume = store.volume("disk").unwrap();
            let data;
            let (change, byte) = match *op {
                Op::Write { offset, len, byte } => {
                    data = vec![byte; len as usize];
                    ((Change::Write { offset, data: &data }, offset, len), byte)
                }
                Op::Zero { offset, len, hole } => ((Change::Zero { offset, len, hole }, offset, len), 0),
                Op::Trim { offset, len } => ((Change::Trim { offset, len }, offset, len), 0),
                Op::Maintain => {
                    volume.flush().unwrap();
                    volume.maintain().unwrap();
                    continue;
                }
                Op::Merge => {
                    volume.merge_all(&mut |_, _| {}).unwrap();
                    continue;
                }
                Op::Rollback(pick) => {
                    let to = Lsn(pick % (volume.tip_lsn().0 + 1));
                    let done = volume.rollback(Back::To(to), "a test").unwrap();
                    model.set_back(done.lsn, to);
                    continue;
                }
                Op::Undo => {
                    if let Ok(done) = volume.rollback(Back::Undo, "a test") {
                        model.set_back(done.lsn, done.to);
                    }
                    continue;
                }
                Op::Restart => {
                    drop((volume, store));
                    disk = disk.crash_process();
                    store = open(&disk, &clock);
                    continue;
                }
            };
            let (change, offset, len) = change;
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[change], &mut results);
            model.put(results.pop().unwrap().unwrap(), offset, len, byte);
        }
        let volume = store.volume("disk").unwrap();
        let tip = volume.tip_lsn().0;
        check_lsns(&model, &volume, Lsn::ZERO, Lsn(tip));
        for (a, b) in picks {
            check_lsns(&model, &volume, Lsn(a % (tip + 1)), Lsn(b % (tip + 1)));
        }
        for a in &bounds {
            for b in &bounds {
                check_visibles(&model, &volume, &visible(a, tip), &visible(b, tip));
            }
            check_visibles(&model, &volume, &visible(a, tip), &Visible::through(Lsn(a[0] % (tip + 1))));
        }
    }
}

/// Two volumes have nothing in common that could be compared, whatever their LSNs are.
#[test]
fn two_volumes_without_common_history_are_refused() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, &clock);
    let views = ["one", "two"].map(|name| {
        let volume = store.create_volume(name, &CreateOptions::new(BLOCKS * BLOCK_BYTES), None).unwrap();
        Arc::new(View::new(volume, Lsn::ZERO))
    });
    let [one, two] = views;
    let Err(error) = Changes::between(one, two) else { panic!("compared") };
    assert_eq!(error.kind(), cdp_core::error::Kind::Invalid);
}

/// A trim of everything on the largest volume is one extent, found at once; so is that its content did not change.
#[test]
fn a_trim_of_64_tib_is_one_extent() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, &clock);
    let volume = store.create_volume("disk", &CreateOptions::new(64 << 40), None).unwrap();
    let mut results = Vec::new();
    let far = (64 << 40) - 4096;
    let changes = [
        Change::Trim { offset: 0, len: 64 << 40 },
        Change::Write { offset: far, data: &[7; 4096] },
        Change::Zero { offset: 4096, len: (64 << 40) - 4096, hole: false },
    ];
    volume.apply(SessionId(1), &changes, &mut results);
    let all =
        |a, b| volume.changed(Lsn(a), Lsn(b)).unwrap().extents().map(Result::unwrap).collect::<Vec<_>>();
    let top = 64u64 << 28;
    assert_eq!(all(0, 1), [Extent::new(0, top)]);
    assert_eq!(all(1, 3), [Extent::new(1, top)]);
    let content = |a, b| {
        let changes = volume.changed(Lsn(a), Lsn(b)).unwrap().with_content();
        changes.extents().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(content(0, 3), []);
    assert_eq!(content(0, 2), [Extent::new(top - 1, top)]);
    let mut buffer = [0; 4096];
    let mut read = [Read { offset: far, buffer: &mut buffer, result: Ok(()) }];
    View::new(volume, Lsn(2)).read(&mut read);
    assert_eq!(buffer, [7; 4096]);
}

/// Whoever tries something on a clone wants to see what it changed, and what the original changed meanwhile; what
/// neither did must not be among it.
#[test]
fn a_clone_and_its_parent_differ_by_what_either_did_since() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = open(&disk, &clock);
    let parent = store.create_volume("parent", &CreateOptions::new(BLOCKS * BLOCK_BYTES), None).unwrap();
    let write = |volume: &Arc<Volume>, block: u64, byte: u8| {
        let (offset, mut results) = (block * BLOCK_BYTES, Vec::new());
        volume.apply(SessionId(1), &[Change::Write { offset, data: &[byte; 4096] }], &mut results);
        results.pop().unwrap().unwrap()
    };
    write(&parent, 1, 1);
    write(&parent, 2, 1);
    let at = write(&parent, 3, 1);
    let clone = store.clone_volume(&parent, at, "clone").unwrap();
    let other = store.clone_volume(&parent, parent.tip_lsn(), "other").unwrap();
    let behind = store.clone_volume(&clone, clone.tip_lsn(), "behind").unwrap();
    // The same bytes on both sides, others, and on one side only.
    for (volume, block, byte) in
        [(&parent, 2, 7), (&clone, 2, 7), (&parent, 3, 8), (&clone, 3, 9), (&clone, 9, 1), (&parent, 20, 2)]
    {
        write(volume, block, byte);
    }
    write(&other, 1, 5);
    write(&behind, 30, 5);
    let line = |volumes: &[(&Arc<Volume>, Lsn)]| -> Vec<Arc<View>> {
        volumes.iter().map(|(volume, lsn)| Arc::new(View::new((*volume).clone(), *lsn))).collect()
    };
    let of_parent = line(&[(&parent, parent.tip_lsn())]);
    let of_clone = line(&[(&clone, clone.tip_lsn()), (&parent, at)]);
    let of_other = line(&[(&other, other.tip_lsn()), (&parent, other.parent().unwrap().lsn)]);
    let of_behind =
        line(&[(&behind, behind.tip_lsn()), (&clone, behind.parent().unwrap().lsn), (&parent, at)]);
    let all = |from: &[Arc<View>], to: &[Arc<View>], content: bool| {
        let changes = Changes::across(from, to).unwrap();
        let changes = if content { changes.with_content() } else { changes };
        blocks(&changes.extents().map(Result::unwrap).collect::<Vec<_>>())
    };
    assert_eq!(all(&of_parent, &of_clone, false), [2, 3, 9, 20]);
    assert_eq!(all(&of_clone, &of_parent, true), [3, 9, 20]);
    assert_eq!(all(&of_clone, &of_other, false), [1, 2, 3, 9]);
    assert_eq!(all(&of_behind, &of_parent, false), [2, 3, 20, 30]);
    assert_eq!(all(&of_behind, &of_clone, true), [2, 3, 9, 30]);
    let then = line(&[(&parent, at)]);
    assert_eq!(all(&then, &of_clone, false), [2, 3, 9]);
    clone.hydrate(&mut |_, _| Ok(())).unwrap();
    let alone = line(&[(&clone, clone.tip_lsn())]);
    assert!(Changes::across(&of_parent, &alone).is_err(), "it has let go of its parent");
}
