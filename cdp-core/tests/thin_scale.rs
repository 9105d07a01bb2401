//! To thin a long stretch of history must cost what is in it, not what is in it times the states that are kept: a store that keeps a
//! state of each second would never be done with a day.

use std::path::Path;
use std::sync::Arc;

use cdp_core::catalog::Catalog;
use cdp_core::device::{Change, Device, Read};
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::index::IndexOptions;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;

const BLOCKS: u64 = 1 << 14;
/// A named marker after so many writes.
const MARKER_EVERY: u64 = 4;

fn place(number: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % BLOCKS
}

fn content(number: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for (at, byte) in block.iter_mut().enumerate() {
        *byte = (number.wrapping_mul(31) >> (at % 8)) as u8 ^ at as u8;
    }
    block
}

fn marker(number: u64) -> MarkerPayload {
    let (note, hook_output) = (String::new(), String::new());
    let (class, tags, group) = (MarkerClass::Manual, Vec::new(), 0);
    MarkerPayload { class, name: format!("m{number}"), note, tags, group, hook_output }
}

/// A history of so many writes in eight segments, and the LSN behind every marker.
fn history(store: &Store, writes: u64) -> (Arc<Volume>, Vec<(Lsn, u64)>) {
    let segment_bytes = (writes / 7 * 4096 * 3 / 2).next_multiple_of(64 << 10);
    let options = CreateOptions { segment_bytes, ..CreateOptions::new(BLOCKS * BLOCK_BYTES) };
    let volume = store.create_volume("disk", &options, None).unwrap();
    let mut marks = Vec::new();
    for number in 0..writes {
        let data = content(number);
        let mut results = Vec::new();
        let change = match number % 50 {
            7 => Change::Trim { offset: place(number) / 2 * BLOCK_BYTES, len: 64 * BLOCK_BYTES },
            _ => Change::Write { offset: place(number) * BLOCK_BYTES, data: &data },
        };
        volume.apply(SessionId(1), &[change], &mut results);
        results.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        if number % MARKER_EVERY == MARKER_EVERY - 1 {
            marks.push((volume.mark(&marker(number)).unwrap().0, number + 1));
        }
        if number % 64 == 0 {
            volume.maintain().unwrap();
        }
    }
    (volume, marks)
}

/// What block `block` holds after so many writes.
fn replay(writes: u64, block: u64) -> [u8; 4096] {
    for number in (0..writes).rev() {
        let trimmed = place(number) / 2..place(number) / 2 + 64;
        match number % 50 {
            7 if trimmed.contains(&block) => return [0; 4096],
            7 => {}
            _ if place(number) == block => return content(number),
            _ => {}
        }
    }
    [0; 4096]
}

/// Thins it all: reads of the disk that this took, and how many states stayed.
fn thin(writes: u64) -> (u64, usize) {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    clock.set_tick(1000);
    Store::create(&disk, &clock, Path::new("/store")).unwrap();
    // Pages that were read are not there when they are wanted again.
    let index = IndexOptions { budget_bytes: 0, ..IndexOptions::default() };
    let none = &|_: &Path| Catalog::none();
    let options = OpenOptions { holder: "a test", index, catalog: none, ..OpenOptions::default() };
    let files = Arc::new(disk.clone());
    let store = Store::open_with(files, Arc::new(clock.clone()), Path::new("/store"), &options).unwrap();
    let (volume, marks) = history(&store, writes);
    for _ in 0..20 {
        volume.maintain().unwrap();
    }
    clock.advance(3_600_000_000_000);
    volume.set_retention(retention::parse("every-write 60s, named 1000h").unwrap()).unwrap();
    disk.reset_reads();
    let folds = || volume.part_list().iter().filter(|part| part.segment.fold.is_some()).count();
    for _ in 0..100_000 {
        if folds() > 0 {
            break;
        }
        clock.advance(1_000_000_000);
        let errors = store.maintain();
        assert!(errors.is_empty(), "{errors:?}");
    }
    let reads = disk.reads().reads;
    let list = volume.part_list();
    let fold = list.iter().find_map(|part| part.segment.fold.clone()).expect("nothing was thinned");
    let (first, last) = fold.header.lsns;
    let mut kept = 0;
    for (lsn, done) in marks.iter().filter(|(lsn, _)| first <= *lsn && *lsn <= last) {
        kept += 1;
        let view = View::new(volume.clone(), *lsn);
        for block in [place(*done - 1), place(*done / 2), place(*done + 3), *done % BLOCKS] {
            let mut buffer = [0; 4096];
            let mut read = [Read { offset: block * BLOCK_BYTES, buffer: &mut buffer, result: Ok(()) }];
            view.read(&mut read);
            assert!(read[0].result.is_ok(), "{:?}", read[0].result);
            assert!(buffer == replay(*done, block), "block {block} behind {done} writes");
        }
    }
    (reads, kept)
}

#[test]
fn four_times_the_history_costs_four_times_the_reads() {
    let (short, few) = thin(1400);
    let (long, many) = thin(5600);
    println!("{short} reads for {few} states, {long} for {many}");
    assert!(many > 3 * few && few > 200, "{few} and {many} states in the folds");
    let (each, each_long) = (short as f64 / few as f64, long as f64 / many as f64);
    assert!(each_long < each * 1.3, "{each} reads for each state, {each_long} where there are more of them");
}
