//! The replication link: what another site may send. Frames, control messages, records, however they are cut.
//!
//! The first byte chooses: 0 a body of records, 1 bodies of all control messages (so that no checksum keeps changed bytes
//! out), others the sizes in which the rest arrives as frames.

use cdp_core::format::record::Chain;
use cdp_core::ids::Lsn;
use cdp_replica::fault::Fault;
use cdp_replica::limits::CODED_FRAME_BYTES_MAX;
use cdp_replica::wire::ahead;
use cdp_replica::wire::control::{self, Ack, Complete, Failed, Groups, Hello, Open, Start, State, WireEpoch};
use cdp_replica::wire::copy;
use cdp_replica::wire::delta::{self, Coding};
use cdp_replica::wire::frame::{FrameReader, FrameType};
use cdp_replica::wire::ranges::{self, Grid};
use cdp_replica::wire::records::Assembler;

/// Runs one input.
pub fn run(data: &[u8]) {
    match data {
        [0, body @ ..] => bodies(body),
        [1, body @ ..] => messages(body),
        [cut, bytes @ ..] => {
            let whole = frames(bytes, bytes.len().max(1));
            for cut in [1, usize::from(*cut)] {
                assert_eq!(frames(bytes, cut), whole, "other frames when {cut} bytes come at a time");
            }
        }
        [] => {}
    }
}

fn frames(bytes: &[u8], cut: usize) -> (Vec<(FrameType, Vec<u8>)>, Option<Fault>) {
    let mut reader = FrameReader::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(cut) {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some((kind, body))) => {
                    messages(body);
                    bodies(body);
                    found.push((kind, body.to_vec()));
                }
                Ok(None) => break,
                Err(fault) => return (found, Some(fault)),
            }
        }
    }
    (found, None)
}

fn bodies(body: &[u8]) {
    let mut assembler = Assembler::default();
    let mut whole = Vec::new();
    // The place that it claims to follow, so that the rest is looked at.
    let first = body.get(8..16).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let chain = body.get(16..32).map_or([0; 16], |b| b.try_into().expect("sixteen bytes"));
    let outcome = assembler.records(body, (Lsn(first.saturating_sub(1)), Chain(chain)), &mut whole);
    let bytes: usize = whole.iter().map(|record| record.payload.len()).sum();
    assert!(bytes <= body.len(), "more payload than came");
    if outcome.is_ok() && assembler.is_within_record() {
        let _ = assembler.payload(&[0; 100], &mut whole);
    }
    let mut undone = 0;
    for record in whole {
        let (coding, bytes) = (record.coding, record.header.payload_bytes as usize);
        let Ok(blocks) = record.older_blocks() else { continue };
        assert!(blocks.len() <= bytes.div_ceil(4096), "more is read than its blocks");
        let older = vec![0x5a; blocks.len() * 4096];
        if coding != Coding::Plain {
            undone += bytes;
        }
        if let Some(payload) = delta::undo(coding, record.payload, &older, bytes) {
            assert_eq!(payload.len(), bytes, "a payload of another length than its header tells of");
        }
    }
    assert!(undone <= CODED_FRAME_BYTES_MAX, "few bytes became {undone}");
}

fn messages(body: &[u8]) {
    let _ = control::read::<Hello>(body);
    let _ = control::read::<Open>(body);
    let _ = control::read::<State>(body);
    let _ = control::read::<Start>(body);
    let _ = control::read::<Ack>(body);
    let _ = control::read::<Complete>(body);
    let _ = control::read::<WireEpoch>(body);
    let _ = control::read::<Groups>(body);
    let _ = control::read::<Failed>(body);
    let _ = copy::read(body);
    let _ = ahead::read(body);
    for size_bytes in [4096 + 512, (2 << 20) + 3 * 4096, u64::MAX] {
        let grid = Grid::of(size_bytes);
        if let Ok(told) = ranges::read_ranges(body, grid) {
            assert!(
                told.ranges.iter().all(|(range, _)| grid.blocks_of(*range) > 0),
                "a range that is not there"
            );
        }
        let _ = ranges::read_differs(body, grid);
        if let Ok(patch) = ranges::read_patch(body, grid) {
            patch.apply(&mut vec![0; (patch.blocks * 4096) as usize]);
        }
    }
}
