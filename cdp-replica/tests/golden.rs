//! Two sites that were upgraded at different times must still understand each other: the bytes of version 1 never
//! change. `CDP_WRITE_GOLDEN=1` writes them where they are missing.

use std::path::Path;

use cdp_core::format::bytes::crc32;
use cdp_core::format::codec::Codec;
use cdp_core::format::record::{Chain, RecordHeader, RecordKind, block_crcs, payload_crc};
use cdp_core::ids::*;
use cdp_core::journal::append::Verbatim;
use cdp_replica::fault::{Fault, FaultKind};
use cdp_replica::wire::ahead::{self, Ahead};
use cdp_replica::wire::control::{
    self, Ack, Complete, Control, Groups, Hello, Open, Start, State, WireAhead, WireEpoch, WireGroup,
    WireProgress,
};
use cdp_replica::wire::copy;
use cdp_replica::wire::delta::{self, Coding};
use cdp_replica::wire::frame::{FrameReader, FrameType, FrameWriter};
use cdp_replica::wire::ranges::{self, Differs, Grid, Ranges};
use cdp_replica::wire::records::{self, Assembler, Coded};
use cdp_replica::wire::references;

/// Of a volume with two ranges, and three blocks of a third.
const GRID_BYTES: u64 = (2 << 20) + 3 * 4096;

fn epoch() -> WireEpoch {
    WireEpoch { number: 2, id: 0x0102_0304, start_lsn: 77, chain: [7; 16] }
}

fn frame<M: Control>(message: &M) -> Vec<u8> {
    let mut out = Vec::new();
    control::send(&mut FrameWriter::default(), &mut out, message);
    out
}

fn coding() -> FrameWriter {
    let mut writer = FrameWriter::default();
    writer.codec = Codec::Lz4;
    writer
}

fn record(lsn: u64, before: Chain, payload: Vec<u8>) -> Verbatim {
    let mut crcs = Vec::new();
    block_crcs(&payload, &mut crcs);
    let mut header = RecordHeader {
        kind: RecordKind::Write,
        flags: 0,
        volume: VolumeId(9),
        lsn: Lsn(lsn),
        timestamp: Timestamp(1_763_719_200_000_000_000 + lsn),
        epoch: EpochNumber(1),
        session: SessionId(3),
        lba: Lba(5),
        blocks: payload.len() as u64 / 4096,
        payload_bytes: payload.len() as u32,
        head_skip: 0,
        tail_skip: 0,
        payload_crc: payload_crc(&crcs),
        codec: 0,
        key_id: 0,
        tag: [0; 16],
        chain: Chain::default(),
    };
    header.link(before);
    Verbatim::checked(header, payload).unwrap()
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let here = State::Here {
        durable_lsn: 4711,
        durable_ns: 1_763_719_200_000_000_000,
        chain: [1; 16],
        oldest_lsn: 3,
        epochs: vec![epoch()],
    };
    let open = Open {
        volume: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        name: "disk".to_owned(),
        created_ns: 1_763_719_200_000_000_000,
        first_size_bytes: 1 << 30,
        segment_bytes: 128 << 20,
        marker_interval_ns: 1_000_000_000,
        oldest_lsn: 0,
        durable_lsn: 4711,
        epochs: Vec::new(),
    };
    let ack = Ack {
        durable_lsn: 4711,
        chain: [2; 16],
        complete_ns: 1_763_719_200_000_000_000,
        oldest_lsn: 3,
        oldest_ns: 1_763_719_100_000_000_000,
        window_bytes: 16 << 20,
        copied_bytes: 0,
    };
    let start = Start::Log { from_lsn: 4712, chain_before: [1; 16] };
    let copy = Start::Copy { lsn: 5, ns: 6, chain: [3; 16], size_bytes: 1 << 30, from_byte: 4096 };
    let copying = State::Copying { lsn: 5, chain: [3; 16], done_bytes: 4096 };
    let hello = Hello { lowest: 1, highest: 1, codings: 1, program: "cdp 0.1.0".to_owned() };
    let group = |name: &str, members: &[u128]| WireGroup { name: name.to_owned(), members: members.to_vec() };
    let groups = Groups { list: vec![group("base", &[0x0011_2233, 7]), group("solo", &[7])] };
    let mut fault = Vec::new();
    let forked = Fault::new(FaultKind::Fork, "a fork");
    control::send_fault(&mut FrameWriter::default(), &mut fault, &forked);
    let mut several = Vec::new();
    let first = record(8, Chain([4; 16]), vec![0x5a; 4096]);
    let second = record(9, first.header.chain, (0..8192u32).map(|n| (n * 7 % 251) as u8).collect());
    let mut writer = coding();
    assert!(
        records::send(
            &mut writer,
            &mut several,
            Chain([4; 16]),
            vec![Coded::plain(first), Coded::plain(second)]
        )
        .is_none()
    );
    let mut large = Vec::new();
    let mut writer = coding();
    let rest = records::send(
        &mut writer,
        &mut large,
        Chain([5; 16]),
        vec![Coded::plain(record(3, Chain([5; 16]), vec![1; 300 << 10]))],
    );
    assert!(rest.unwrap().send(&mut writer, &mut large));
    let first = record(3, Chain([6; 16]), [vec![3; 4096], vec![4; 4096]].concat());
    let second = record(4, first.header.chain, vec![0; 4096]);
    let older = [vec![3; 4096], vec![4; 512], vec![5; 512], vec![4; 3072]].concat();
    let (coding, payload) = delta::code(&first.payload, &older, true).unwrap();
    assert_eq!(coding, Coding::Sectors);
    let third = record(5, second.header.chain, vec![0; 4096]);
    let zeros = Coded { header: third.header, coding: Coding::Zeros, payload: Vec::new() };
    let differences = Coded { header: second.header, coding: Coding::Differences, payload: vec![0] };
    let sectors = Coded { header: first.header, coding, payload };
    let mut coded = Vec::new();
    let records = vec![sectors, differences, zeros];
    assert!(records::send(&mut FrameWriter::default(), &mut coded, Chain([6; 16]), records).is_none());
    let again = record(3, Chain([7; 16]), [vec![3; 4096], vec![4; 4096], vec![5; 4096]].concat());
    let payload = references::code(&again.payload, &[Some(17), None, Some(1 << 33)]).unwrap();
    let again = Coded { header: again.header, coding: Coding::References, payload };
    let mut referring = Vec::new();
    assert!(
        records::send(&mut FrameWriter::default(), &mut referring, Chain([7; 16]), vec![again]).is_none()
    );
    let mut copied = Vec::new();
    copy::send(&mut FrameWriter::default(), &mut copied, Lba(17), &[0x5a; 8192]);
    let seeded = State::Seeded { lsn: 5, chain: [3; 16], done_bytes: 1 << 20 };
    let compare =
        Start::Compare { lsn: 5, ns: 6, chain: [3; 16], size_bytes: GRID_BYTES, from_byte: 1 << 20 };
    let (mut told, mut differs, mut patch) = (Vec::new(), Vec::new(), Vec::new());
    let bytes = [vec![0x5a; 8192], vec![0x5b; 4096]].concat();
    let of_ranges = Ranges { through: 515, ranges: vec![(1, [7; 32]), (2, ranges::hash_range(&bytes))] };
    ranges::send_ranges(&mut FrameWriter::default(), &mut told, &of_ranges);
    let there = ranges::hash_blocks(&[vec![0x5a; 4096], vec![0x5c; 8192]].concat());
    let two = [Differs { range: 1, there: Vec::new() }, Differs { range: 2, there: there.clone() }];
    ranges::send_differs(&mut FrameWriter::default(), &mut differs, &two);
    ranges::send_patch(&mut FrameWriter::default(), &mut patch, 2, &bytes, &there);
    let of_ahead = State::Ahead {
        durable_lsn: 4711,
        durable_ns: 1_763_719_200_000_000_000,
        chain: [1; 16],
        oldest_lsn: 3,
        epochs: vec![epoch()],
        ahead: WireAhead {
            lsn: 9000,
            chain: [8; 16],
            from_lsn: 4700,
            done_block: 77,
            progress: WireProgress::Whole,
        },
    };
    let start_ahead = Start::Ahead {
        lsn: 9000,
        ns: 1_763_719_300_000_000_000,
        chain: [8; 16],
        size_bytes: 1 << 30,
        from_lsn: 4711,
        chain_before: [1; 16],
        from_block: 77,
    };
    let mut aheads = Vec::new();
    for one in [Ahead::Bytes(Lba(17), &[0x5a; 8192]), Ahead::Zeros(Lba(19), 1 << 28), Ahead::End] {
        ahead::send(&mut FrameWriter::default(), &mut aheads, one);
    }
    vec![
        ("hello", frame(&hello)),
        ("open", frame(&open)),
        ("state-absent", frame(&State::Absent)),
        ("state-here", frame(&here)),
        ("state-copying", frame(&copying)),
        ("start-log", frame(&start)),
        ("start-copy", frame(&copy)),
        ("ack", frame(&ack)),
        ("complete", frame(&Complete { ns: 1_763_719_200_000_000_000 })),
        ("epoch", frame(&epoch())),
        ("error", fault),
        ("groups", frame(&groups)),
        ("records", several),
        ("payload", large),
        ("coded", coded),
        ("references", referring),
        ("copy", copied),
        ("state-seeded", frame(&seeded)),
        ("start-compare", frame(&compare)),
        ("ranges", told),
        ("differs", differs),
        ("patch", patch),
        ("state-ahead", frame(&of_ahead)),
        ("start-ahead", frame(&start_ahead)),
        ("ahead", aheads),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_version_1() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/golden");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/link");
    for (name, bytes) in frames() {
        let path = dir.join(format!("{name}-v1.hex"));
        if std::env::var_os("CDP_WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, hex(&bytes) + "\n").unwrap();
            std::fs::create_dir_all(&corpus).unwrap();
            std::fs::write(corpus.join(name), [&[3], &bytes[..]].concat()).unwrap();
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            let (kind, body) = reader.next_frame().unwrap().unwrap();
            let what = u8::from(kind != FrameType::Records);
            std::fs::write(corpus.join(format!("body-{name}")), [&[what], body].concat()).unwrap();
        }
        assert_eq!(hex(&bytes), std::fs::read_to_string(&path).unwrap().trim(), "{name}");
    }
}

/// A thin link is to carry less, and whatever comes over it may be bent: zstd bodies come back as they were, one that was
/// made by another version of the library too, and damaged ones end the connection without taking memory by their word.
#[test]
fn bodies_in_zstd() {
    let body: Vec<u8> =
        (0..9000u32).flat_map(|n| format!("row {}; ", n * 7919 % 1000).into_bytes()).collect();
    let bytes_with = |codec| {
        let (mut writer, mut out) = (FrameWriter::default(), Vec::new());
        writer.codec = codec;
        writer.frame(&mut out, FrameType::Records, &body);
        out
    };
    let read = |frame: &[u8]| {
        let mut reader = FrameReader::default();
        reader.push(frame);
        reader.next_frame().map(|found| found.map(|(_, body)| body.to_vec()))
    };
    let zstd = bytes_with(Codec::Zstd);
    assert!(zstd.len() < bytes_with(Codec::Lz4).len());
    assert_eq!(read(&zstd).unwrap().as_ref(), Some(&body));
    // 1000 times "a", packed by zstd 1.5.4.
    let known = "e803000028b52ffd60e8024d00001061610100e32b8005";
    let known: Vec<u8> =
        (0..known.len()).step_by(2).map(|at| u8::from_str_radix(&known[at..at + 2], 16).unwrap()).collect();
    assert_eq!(read(&frame_of(FrameType::Records, 2, &known)).unwrap(), Some(vec![b'a'; 1000]));
    // Only bodies that may be long have one.
    assert!(read(&frame_of(FrameType::Ack, 2, &known)).is_err());
    assert!(read(&frame_of(FrameType::Records, 3, &known)).is_err());
    for at in 0..known.len() {
        for bit in 0..8 {
            let mut bent = known.clone();
            bent[at] ^= 1 << bit;
            let found = read(&frame_of(FrameType::Records, 2, &bent));
            assert!(found.is_err() || found.is_ok_and(|body| body.is_some_and(|b| b.len() <= 1000)));
        }
        assert!(read(&frame_of(FrameType::Records, 2, &known[..at])).is_err(), "{at}");
    }
}

/// A frame whose checksums are good, whatever it carries.
fn frame_of(kind: FrameType, coding: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = b"CDPL\x01".to_vec();
    frame.extend([kind as u8, coding, 0]);
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(crc32(body).to_le_bytes());
    frame.extend(crc32(&frame).to_le_bytes());
    frame.extend(body);
    frame
}

/// What one side says the other understands, whole records byte for byte.
#[test]
fn what_is_sent_is_what_is_read() {
    let grid = Grid::of(GRID_BYTES);
    let mut reader = FrameReader::default();
    let mut kinds = Vec::new();
    let mut assembler = Assembler::default();
    for (name, bytes) in frames() {
        let mut whole = Vec::new();
        for piece in bytes.chunks(1000) {
            reader.push(piece);
            while let Some((kind, body)) = reader.next_frame().unwrap() {
                kinds.push(kind);
                match kind {
                    FrameType::Records if name == "records" => {
                        assembler.records(body, (Lsn(7), Chain([4; 16])), &mut whole).unwrap();
                    }
                    FrameType::Records => {
                        let chain = match name {
                            "coded" => 6,
                            "references" => 7,
                            _ => 5,
                        };
                        let chain = Chain([chain; 16]);
                        assembler.records(body, (Lsn(2), chain), &mut whole).unwrap();
                    }
                    FrameType::Payload => assembler.payload(body, &mut whole).unwrap(),
                    FrameType::Ranges => {
                        let told = ranges::read_ranges(body, grid).unwrap();
                        assert_eq!((told.through, told.ranges.len(), told.ranges[0]), (515, 2, (1, [7; 32])));
                        // Of a smaller volume they are not.
                        assert!(ranges::read_ranges(body, Grid::of(GRID_BYTES - 4096)).is_err());
                    }
                    FrameType::Differs => {
                        let differs = ranges::read_differs(body, grid).unwrap();
                        assert_eq!((differs[0].there.len(), differs[1].there.len()), (0, 3));
                        assert!(ranges::read_differs(body, Grid::of(GRID_BYTES - 4096)).is_err());
                    }
                    FrameType::Ahead => {
                        let read = ahead::read(body).unwrap();
                        match kinds.iter().filter(|kind| **kind == FrameType::Ahead).count() {
                            1 => assert_eq!(read, Ahead::Bytes(Lba(17), &[0x5a; 8192])),
                            2 => assert_eq!(read, Ahead::Zeros(Lba(19), 1 << 28)),
                            _ => assert_eq!(read, Ahead::End),
                        }
                        assert!(ahead::read(&body[..body.len() - 1]).is_err());
                        assert!(ahead::read(&[body, &[0]].concat()).is_err());
                    }
                    FrameType::Patch => {
                        let patch = ranges::read_patch(body, grid).unwrap();
                        assert!(!patch.is_all() && patch.range == 2 && body.len() == 40 + 8192);
                        let mut bytes = [vec![0x5a; 4096], vec![0x5c; 8192]].concat();
                        patch.apply(&mut bytes);
                        assert_eq!(bytes, [vec![0x5a; 8192], vec![0x5b; 4096]].concat());
                        assert!(ranges::read_patch(body, Grid::of(GRID_BYTES - 4096)).is_err());
                        assert!(ranges::read_patch(&body[..body.len() - 1], grid).is_err());
                    }
                    _ => {}
                }
            }
        }
        match name {
            "records" => assert_eq!((whole.len(), whole[1].payload.len()), (2, 8192)),
            "payload" => assert_eq!((whole.len(), whole[0].payload.len()), (1, 300 << 10)),
            "coded" => {
                let older = [vec![3; 4096], vec![0; 4096]].concat();
                let wrong = whole.remove(0).undo(&older).err().unwrap();
                assert_eq!(wrong.kind, FaultKind::Coding, "against other blocks than it was made from");
                assert_eq!(whole.remove(0).undo(&[0; 4096]).unwrap().payload, [0; 4096]);
                assert_eq!(whole.remove(0).undo(&[]).unwrap().payload, [0; 4096]);
            }
            "references" => {
                assert_eq!(whole[0].older_blocks().unwrap(), [17, 1 << 33]);
                let older = [vec![3; 4096], vec![5; 4096]].concat();
                let payload = whole.remove(0).undo(&older).unwrap().payload;
                assert_eq!(payload, [vec![3; 4096], vec![4; 4096], vec![5; 4096]].concat());
            }
            _ => assert!(whole.is_empty()),
        }
        assert!(!assembler.is_within_record());
    }
    assert_eq!(kinds.len(), 28);
}

/// Frames are put together where they leave from. Were one of those not the frame that version 1 describes, or did a block that
/// cannot be read leave the beginning of a frame behind, the other side would understand nothing that follows.
#[test]
fn frames_in_place_are_frames() {
    let texts =
        [vec![], vec![7; 100 << 10], (0..100_u32 << 10).map(|n| crc32(&n.to_le_bytes()) as u8).collect()];
    for make in [FrameWriter::default, coding] {
        let (mut writer, mut in_place) = (make(), make());
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for body in texts.iter().chain(&texts).chain([&texts[1]; 20]) {
            writer.frame(&mut one, FrameType::Copy, body);
            let put = |out: &mut Vec<u8>| {
                out.extend_from_slice(body);
                Ok::<(), ()>(())
            };
            in_place.frame_in_place(&mut other, FrameType::Copy, put).unwrap();
            let fails = |blocks: &mut [u8]| {
                blocks.fill(9);
                Err("a bad block")
            };
            let failed = copy::send_filled(&mut in_place, &mut other, Lba(3), 2, fails);
            assert_eq!(failed, Err("a bad block"));
            assert!(one == other);
        }
    }
}
