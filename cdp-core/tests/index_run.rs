//! Run files: their bytes, what is read of them, and that damage of any kind is an error, never a wrong answer.
//!
//! If these fail, a rotten sector in an index shows somebody another block's data, or a server dies at a file.

use cdp_core::error::Kind;
use cdp_core::format::run::{DamageRow, Header, MarkerRow, PAGE_BYTES, Page, Summary, seal_page};
use cdp_core::ids::{Extent, Lba, Lsn, SegmentId, Timestamp, VolumeId};
use cdp_core::index::{Live, PageCache, Run, RunSource, Search, Version, Visible};
use cdp_core::io::Files;
use cdp_core::io::sim::{CrashAt, Fault, FaultKind, SimDisk, When, is_crash};
use std::path::Path;

const TOP: u64 = 1 << 34;
const PATH: &str = "/a.run";

fn path() -> &'static Path {
    Path::new(PATH)
}

const MARKERS: [MarkerRow; 2] = [
    MarkerRow {
        lsn: Lsn(102),
        timestamp: Timestamp(1_020),
        elapsed_ns: 5,
        kind: 1,
        flags: 2,
        block: 77,
        payload_bytes: 300,
        payload_crc: 0,
    },
    MarkerRow {
        lsn: Lsn(103),
        timestamp: Timestamp(1_030),
        elapsed_ns: 6,
        kind: 3,
        flags: 4,
        block: 78,
        payload_bytes: 0,
        payload_crc: 0,
    },
];
const DAMAGES: [DamageRow; 1] =
    [DamageRow { lsn: Lsn(101), extent: Extent { start: Lba(9), blocks: 2 }, kind: 0 }];

/// Writes, zeros, trims and markers from LSN 101 on: `records` in all, at least 4.
fn live(records: u64) -> Live {
    let mut live = Live::new(Lsn(101));
    for n in 0..records {
        let lsn = Lsn(101 + n);
        live.insert_record(lsn, Timestamp(lsn.0 * 10));
        match n {
            0 => live.insert_payload(lsn, Lba(8), [(16, 0xa1), (17, 0xa2), (18, 0xa3)]),
            1 | 2 => {}
            3 => live.insert_range(lsn, Extent::new(3, 10), true),
            n if n % 50 == 0 => live.insert_range(lsn, Extent::new(n * 3, n * 3 + 70), n % 100 == 0),
            n => live.insert_payload(lsn, Lba((n * 7919) % 4096), [(n as u32 * 2, n as u32)]),
        }
    }
    live
}

fn source(live: &Live) -> RunSource<'_> {
    RunSource {
        volume: VolumeId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00),
        segment: SegmentId(0x0123_4567_89ab_cdef),
        log_end: 0x1_0000,
        chain: *b"chain value 16 b",
        seal: *b"seal hash of thirty-two bytes ..",
        codec: 0,
        live,
        markers: &MARKERS,
        damages: &DAMAGES,
        summary: Summary { writes: 7, written_bytes: 8, trims: 9, trimmed_bytes: 10 },
    }
}

fn disk_with_run(records: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    Run::write(&disk, path(), &source(&live(records))).unwrap();
    disk
}

fn open(disk: &SimDisk) -> cdp_core::error::Result<Run> {
    Run::open(disk, path(), &PageCache::new(0))
}

/// Everything that can be asked of a run.
fn answers(run: &Run) -> cdp_core::error::Result<(Vec<Version>, Vec<Version>, String)> {
    let ask = |visible: &Visible, extent| {
        let mut search = Search::new(extent);
        run.resolve(visible, &mut search)?;
        search.finish();
        cdp_core::error::Result::Ok(search.found().to_vec())
    };
    let tip = ask(&Visible::through(Lsn::MAX), Extent::new(0, TOP))?;
    let past = ask(&Visible::through(Lsn((run.first_lsn().0 + run.last_lsn().0) / 2)), Extent::new(5, 4000))?;
    let header = run.header();
    let rest = format!(
        "{header:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        run.sources(),
        run.newest(Lba(9))?,
        run.lsn_at(Timestamp((run.first_lsn().0 + 3) * 10))?,
        run.timestamp_of(run.last_lsn())?,
        run.markers()?,
        run.damages()?,
    );
    Ok((tip, past, rest))
}

/// A change of these bytes is a change of the format: it needs a new version and a line in its document.
#[test]
fn golden_bytes() {
    let disk = disk_with_run(4);
    let bytes = disk.contents(PATH).unwrap();
    let hex =
        |range: std::ops::Range<usize>| bytes[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(bytes.len(), 6 * PAGE_BYTES, "header, region, entries, timestamps, markers, damage");
    assert_eq!(&bytes[..8], b"CDP-RUN\n");
    assert_eq!(hex(8..16), "0200000000000000", "version, kind, level, codec");
    assert_eq!(hex(16..32), "00ffeeddccbbaa998877665544332211", "volume");
    assert_eq!(hex(32..40), "efcdab8967452301", "run id");
    assert_eq!(
        hex(40..80),
        "65000000000000006800000000000000f20300000000000010040000000000000000010000000000"
    );
    assert_eq!(&bytes[80..128], b"chain value 16 bseal hash of thirty-two bytes ..");
    assert_eq!(hex(128..160), "0".repeat(64), "key id and tag");
    assert_eq!(
        hex(160..216),
        "01000000000000000600000000000000040000000000000002000000000000000100000000000000\
         01000000000000000f00000000000000"
    );
    assert_eq!(hex(220..252), "0700000000000000080000000000000009000000000000000a00000000000000", "summary");
    assert_eq!(hex(4096..4120), "efcdab896745230165000000000000000000010000000000", "source");
    assert_eq!(hex(4120..4132), "080000000000000000000000", "fence of entries");
    assert_eq!(hex(4132..4140), "f203000000000000", "fence of timestamps");
    assert_eq!(hex(8192..8210), "080000000000".to_owned() + "00000000" + "10000000" + "a1000000");
    assert_eq!(hex(8210..8228), "090000000000".to_owned() + "00000000" + "11000000" + "a2000000");
    // The hole over 3..10: block 3, blocks 4..8, blocks 8..10.
    assert_eq!(hex(8246..8264), "030000000001".to_owned() + "03000000" + "02000000" + "00000000");
    assert_eq!(hex(8264..8282), "040000000002".to_owned() + "03000000" + "02000000" + "00000000");
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "119127f5eeee05a37e6f7f85ea0f34f47f994c2708203d123eb896770663a2ea"
    );
}

/// Opening a volume with a long history must not take the longer the more was written.
#[test]
fn opening_takes_two_reads_whatever_the_run_holds() {
    for records in [4, 400, 40_000] {
        let disk = disk_with_run(records);
        disk.reset_reads();
        let run = open(&disk).unwrap();
        assert_eq!(disk.reads_of(PATH).reads, 2, "{records} records");
        run.verify().unwrap();
    }
}

/// The index must stay small beside the data: at most 30 bytes for each 4-KiB write.
#[test]
fn a_write_costs_at_most_30_bytes() {
    let mut live = Live::new(Lsn(1));
    for n in 1..=32_000u64 {
        live.insert_record(Lsn(n), Timestamp(n));
        live.insert_payload(Lsn(n), Lba(n * 7919 % 100_000_007), [(n as u32, 0)]);
    }
    let disk = SimDisk::new(1);
    Run::write(&disk, path(), &source(&live)).unwrap();
    let bytes = disk.contents(PATH).unwrap().len();
    assert!(bytes <= 30 * 32_000, "{bytes} bytes");
    let run = open(&disk).unwrap();
    assert!(run.memory_bytes() <= 2 * 32_000, "{} bytes of memory", run.memory_bytes());
    // A block that was not written costs no page, mostly.
    disk.reset_reads();
    for lba in 200_000_000..200_001_000 {
        let mut search = Search::new(Extent::new(lba, lba + 1));
        run.resolve(&Visible::through(Lsn::MAX), &mut search).unwrap();
        assert!(search.found().is_empty());
    }
    assert!(disk.reads_of(PATH).reads < 30, "{:?}", disk.reads_of(PATH));
}

/// A client that asks for the status of the whole disk bit by bit must get each bit at its price.
#[test]
fn a_bounded_question_reads_little() {
    let disk = disk_with_run(40_000);
    let run = Run::open(&disk, path(), &PageCache::new(1 << 20)).unwrap();
    let pages = disk.contents(PATH).unwrap().len() / PAGE_BYTES;
    assert!(pages > 150, "{pages} pages");
    disk.reset_reads();
    let mut search = Search::bounded(Extent::new(0, TOP), 8);
    run.resolve(&Visible::through(Lsn::MAX), &mut search).unwrap();
    search.finish();
    assert!(search.extent().blocks >= 1 && search.extent().end() < 100, "{search:?}");
    assert!((1..=9).contains(&search.found().len()), "{search:?}");
    let reads = disk.reads_of(PATH).reads;
    assert!(reads <= 30, "{reads} pages read for 8 versions");
    // What a trim of everything hides is no part of the answer.
    let mut live = live(40_000);
    live.insert_record(Lsn(101 + 40_000), Timestamp(u64::MAX));
    live.insert_range(Lsn(101 + 40_000), Extent::new(0, TOP), true);
    let mut search = Search::new(Extent::new(0, TOP));
    live.resolve(&Visible::through(Lsn::MAX), &mut search);
    assert_eq!(search.found().len(), 1, "one stretch, whatever lies under it");
}

/// Rot in any byte: the run is refused, or the question that meets it is; no answer is ever another one.
#[test]
fn a_flipped_byte_anywhere_is_found() {
    let disk = disk_with_run(700);
    let right = answers(&open(&disk).unwrap()).unwrap();
    let len = disk.contents(PATH).unwrap().len() as u64;
    let (mut refused, mut met) = (0, 0);
    for offset in 0..len {
        let mask = 1 << (offset % 8);
        disk.rot(PATH, offset, mask).unwrap();
        match open(&disk) {
            Err(error) => {
                assert_eq!(error.kind(), Kind::Damaged, "at {offset}: {error}");
                refused += 1;
            }
            Ok(run) => {
                assert_eq!(run.verify().unwrap_err().kind(), Kind::Damaged, "at {offset}");
                match answers(&run) {
                    Err(error) => assert_eq!(error.kind(), Kind::Damaged, "at {offset}: {error}"),
                    Ok(answers) => assert_eq!(answers, right, "at {offset}"),
                }
                met += 1;
            }
        }
        disk.rot(PATH, offset, mask).unwrap();
    }
    assert!(refused > 4096 && met > 3 * 4096, "{refused} refused, {met} met");
    assert_eq!(answers(&open(&disk).unwrap()).unwrap(), right);
}

/// A file that is cut, too long, empty, or has a page in another one's place.
#[test]
fn a_file_of_another_shape_is_refused() {
    let whole = disk_with_run(700).contents(PATH).unwrap();
    let refuse = |what: &str, bytes: Vec<u8>| {
        let disk = disk_with_run(4);
        disk.mutate(PATH, |content| *content = bytes).unwrap();
        let error = open(&disk).and_then(|run| run.verify()).expect_err(what);
        assert_eq!(error.kind(), Kind::Damaged, "{what}: {error}");
    };
    for len in [0, 1, 8, 4095, 4096, 4097, 8192, whole.len() - 4096, whole.len() - 1] {
        refuse("cut", whole[..len].to_vec());
    }
    refuse("too long", [&whole[..], &[0; PAGE_BYTES]].concat());
    let pages = whole.len() / PAGE_BYTES;
    for number in 1..pages {
        let mut moved = whole.clone();
        let other = if number + 1 < pages { number + 1 } else { 1 };
        moved.copy_within(other * PAGE_BYTES..(other + 1) * PAGE_BYTES, number * PAGE_BYTES);
        refuse("a page at a wrong place", moved);
    }
    // The same page of another run: space that was used before.
    let disk = SimDisk::new(1);
    let live = live(700);
    Run::write(&disk, path(), &RunSource { segment: SegmentId(5), ..source(&live) }).unwrap();
    let other = disk.contents(PATH).unwrap();
    let mut mixed = whole.clone();
    let last = (pages - 1) * PAGE_BYTES;
    mixed[last..].copy_from_slice(&other[last..]);
    refuse("a page of another run", mixed);
}

fn header_of(bytes: &[u8]) -> Header {
    Header::decode(bytes[..PAGE_BYTES].try_into().unwrap(), bytes.len() as u64).unwrap()
}

/// A header that lies with a right checksum must not make the server allocate by its word, loop or panic.
#[test]
fn a_hostile_header_is_refused() {
    let whole = disk_with_run(700).contents(PATH).unwrap();
    let fields: [fn(&mut Header) -> &mut u64; 8] = [
        |header| &mut header.sources,
        |header| &mut header.entries,
        |header| &mut header.timestamps,
        |header| &mut header.markers,
        |header| &mut header.damages,
        |header| &mut header.bloom_blocks,
        |header| &mut header.first_lsn.0,
        |header| &mut header.last_lsn.0,
    ];
    for (index, field) in fields.iter().enumerate() {
        for value in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 48, 1 << 40, 1 << 32, whole.len() as u64, 1 << 20]
        {
            let mut header = header_of(&whole);
            *field(&mut header) = value;
            let disk = disk_with_run(4);
            let bytes = [&header.encode()[..], &whole[PAGE_BYTES..]].concat();
            disk.mutate(PATH, |content| *content = bytes).unwrap();
            let error = open(&disk).err().unwrap_or_else(|| panic!("field {index} = {value}"));
            assert_eq!(error.kind(), Kind::Damaged);
        }
    }
    for (offset, what) in [(8, "version 2"), (10, "kind 1")] {
        let mut page: Page = whole[..PAGE_BYTES].try_into().unwrap();
        page[offset] += 1;
        let crc = crc32fast::hash(&page[..PAGE_BYTES - 4]);
        page[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        let disk = disk_with_run(4);
        disk.mutate(PATH, |content| *content = [&page[..], &whole[PAGE_BYTES..]].concat()).unwrap();
        assert_eq!(open(&disk).err().expect(what).kind(), Kind::Damaged);
    }
}

/// Pages full of nonsense with right checksums: any answer or an error, but an answer, and soon.
#[test]
fn hostile_pages_neither_panic_nor_hang() {
    let whole = disk_with_run(700).contents(PATH).unwrap();
    let mut state = 0x5eed_u64;
    println!("seed {state:#x}");
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    for round in 0..2000 {
        let mut bytes = whole.clone();
        let mut header = header_of(&bytes);
        let pages = bytes.len() / PAGE_BYTES;
        let region_end = 2 * PAGE_BYTES;
        for _ in 0..1 + random() % 20 {
            let at = PAGE_BYTES + random() as usize % (bytes.len() - PAGE_BYTES);
            match random() % 4 {
                0 => bytes[at] = 0xff,
                1 => bytes[at] = 0,
                2 => bytes[at] ^= 1 << (random() % 8),
                _ => {
                    // Repeat a stretch: keys that fall back, or never end.
                    let to = at.min(bytes.len() - 500);
                    let from = PAGE_BYTES + random() as usize % (bytes.len() - PAGE_BYTES - 500);
                    bytes.copy_within(from..from + 400, to);
                }
            }
        }
        if round % 3 == 0 {
            header.trees = random() << 33 | random();
        }
        header.region_crc = crc32fast::hash(&bytes[PAGE_BYTES..region_end]);
        bytes[..PAGE_BYTES].copy_from_slice(&header.encode());
        for number in 2..pages {
            let page: &mut Page = (&mut bytes[number * PAGE_BYTES..][..PAGE_BYTES]).try_into().unwrap();
            seal_page(page, header.run_id, number as u64);
        }
        let disk = disk_with_run(4);
        disk.mutate(PATH, |content| *content = bytes).unwrap();
        let run = open(&disk).unwrap();
        let _ = answers(&run);
        for lba in 0..64 {
            let mut search = Search::bounded(Extent::new(lba, TOP), 1);
            let _ = run.resolve(&Visible::through(Lsn(150)), &mut search);
            let _ = run.newest(Lba(lba));
        }
    }
}

/// A run that is there is whole: whenever the power fails while it is written, it opens or it is not there.
#[test]
fn power_loss_while_writing_leaves_a_whole_run_or_none() {
    let live = live(700);
    let (mut absent, mut present) = (0, 0);
    for (n, seed) in (1..).flat_map(|n| (0..20).map(move |seed| (n, seed))) {
        let disk = SimDisk::new(n);
        disk.set_crash_after(n, CrashAt::During);
        match Run::write(&disk, path(), &source(&live)) {
            Ok(()) => break,
            Err(error) => {
                let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
                assert!(source.is_some_and(is_crash), "{error}");
            }
        }
        let disk = disk.crash_power(seed);
        match open(&disk) {
            Ok(run) => {
                run.verify().unwrap();
                present += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::NotFound, "{error}");
                absent += 1;
            }
        }
        // What was left behind is in nobody's way.
        Run::write(&disk, path(), &source(&live)).unwrap();
        open(&disk).unwrap().verify().unwrap();
    }
    assert!(absent > 20 && present > 0, "{absent} absent, {present} present");
}

/// A disk that fails while a run is written: an error, and no run.
#[test]
fn a_failing_disk_leaves_no_run() {
    for kind in [FaultKind::WriteError, FaultKind::SyncError] {
        let disk = SimDisk::new(1);
        disk.inject(Fault::new(kind, When::Nth(1)));
        assert_eq!(Run::write(&disk, path(), &source(&live(700))).unwrap_err().kind(), Kind::Io);
        assert!(disk.open(path(), false).is_err());
    }
}
