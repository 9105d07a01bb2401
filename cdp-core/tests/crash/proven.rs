//! What a program proved good can be opened as long as nothing newer was proved, while history around it ages.

use cdp_core::device::Device;
use cdp_core::history::point::Timeline;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::view::View;

use crate::harness::check::read_blocks;
use crate::harness::model::Edit;
use crate::harness::workload::{Step, content};
use crate::harness::{Rig, rig};

const SEGMENT_BYTES: u64 = 64 << 10;

fn write(rig: &mut Rig, number: u64) {
    let edits = vec![Edit::Write { offset: number % 12 * 4096, data: content(number, 4096) }];
    rig.step(&Step::Apply { volume: 0, edits, fua: false }).unwrap();
    rig.step(&Step::Advance { ns: 300_000_000 }).unwrap();
    rig.step(&Step::Maintain).unwrap();
}

fn shows(rig: &Rig, lsn: Lsn) {
    let view = View::open(rig.volumes[0].clone(), lsn, "a test").unwrap();
    let bytes = read_blocks(&view, 0, view.size_bytes() / BLOCK_BYTES).unwrap();
    assert_eq!(rig.models[0].state(lsn).differs(0, &bytes), None, "at {lsn:?}");
}

/// The check of last night said that all is well, the ones since then say that it is not. By the morning the policy's time for
/// that state is over: it must be there all the same, or there is nothing known to be good to go back to.
#[test]
fn the_newest_proven_state_outlives_its_time() {
    let policies = [
        "every-write 5s".to_owned(),
        "every-write 5s, every 4s for 30s, named 1s".to_owned(),
        format!("every-write 1h, at most {}B, at cap thin", 16 * SEGMENT_BYTES),
        // As long as thinning makes room, as for a name.
        format!("at most {}B, at cap drop-oldest", 16 * SEGMENT_BYTES),
    ];
    for (seed, policy) in policies.iter().enumerate() {
        let mut rig = Rig::new(400 + seed as u64, 1, SEGMENT_BYTES).unwrap();
        let parsed = retention::parse(policy).unwrap();
        rig.volumes[0].set_retention(parsed).unwrap();
        for number in 0..20 {
            write(&mut rig, number);
        }
        let (older, proven, bad) = (Lsn(9), Lsn(13), Lsn(17));
        for (lsn, good) in [(older, true), (proven, true), (bad, false)] {
            rig.volumes[0].keep_proof(lsn, good, "fsck").unwrap();
        }
        for number in 20..800 {
            write(&mut rig, number);
            if number == 150 {
                rig.step(&Step::Die).unwrap();
            }
        }
        let volume = rig.volumes[0].clone();
        let found = volume.latest_proven().unwrap().map(|found| found.0);
        assert_eq!(found, Some(proven), "{policy}: {:?}, {:?}", volume.oldest(), volume.ledger());
        shows(&rig, proven);
        let gone = [older, bad].iter().filter(|lsn| !volume.keeps(**lsn)).count();
        assert_eq!(gone, 2, "{policy}: what nobody asks for stays, so nothing aged");
        // A newer one takes its place.
        let newer = volume.tip_lsn();
        volume.keep_proof(newer, true, "fsck").unwrap();
        for number in 800..1600 {
            write(&mut rig, number);
        }
        let found = volume.latest_proven().unwrap().map(|found| found.0);
        assert_eq!(found, Some(newer), "{policy}: {:?}", volume.ledger());
        shows(&rig, newer);
        assert!(!volume.keeps(proven), "{policy}: the old one stays for ever");
        assert!(rig.volumes[0].size_bytes() == rig::VOLUME_BYTES);
    }
}
