//! A first copy, and those who have it in hand.

use std::path::Path;
use std::sync::Arc;

use cdp_core::error::Kind;
use cdp_core::format::record::Chain;
use cdp_core::history::epochs::Epochs;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::Store;
use cdp_core::store::replicas::{Copied, Origin};

const SIZE_BYTES: u64 = 1 << 20;

/// A link is cut while some of the copy is being made durable, and the next connection comes before that is done. Were it let
/// in, it would remove what was not told to be durable, and the old one's manifest would count it all the same: blocks that
/// nobody sends again, zeros in the replica.
#[test]
fn nobody_goes_on_with_a_copy_before_the_last_one_let_go() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let path = Path::new("/store");
    Store::create(&disk, &clock, path).unwrap();
    let store = Store::open(Arc::new(disk.clone()), Arc::new(clock), path, "a test").unwrap();
    let copied = Copied { lsn: Lsn(3), at: Timestamp(5), chain: Chain([7; 16]), size_bytes: SIZE_BYTES };
    let origin = Origin {
        id: VolumeId(9),
        first_size_bytes: SIZE_BYTES,
        created: Timestamp(1),
        marker_interval_ns: 0,
        segment_bytes: 256 << 10,
        journal_cap_bytes: None,
        copied: Some(copied),
        epochs: Epochs::of(VolumeId(9), &[]).unwrap(),
    };
    let mut first = store.take_copy("disk", &origin).unwrap();
    first.write(Lba(0), &[1; 8192]).unwrap();
    let settlement = first.begin_settling(8192);
    assert_eq!(store.take_copy("disk", &origin).err().unwrap().kind(), Kind::Busy);
    drop(first);
    assert_eq!(
        store.take_copy("disk", &origin).err().unwrap().kind(),
        Kind::Busy,
        "it is still being synced"
    );
    settlement.carry_out().unwrap();
    drop(settlement);
    let mut second = store.take_copy("disk", &origin).unwrap();
    assert_eq!(second.state().done_bytes, 8192, "what was made durable is gone on with");
    second.write(Lba(2), &[2; 4096]).unwrap();
    let volume = store.finish_copy("disk", second).unwrap();
    let mut bytes = vec![0; 12288];
    let mut reads = [cdp_core::device::Read { offset: 0, buffer: &mut bytes, result: Ok(()) }];
    cdp_core::device::Device::read(&*volume, &mut reads);
    assert!(reads[0].result.is_ok());
    assert_eq!(bytes, [vec![1; 8192], vec![2; 4096]].concat());
}
