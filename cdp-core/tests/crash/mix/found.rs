//! What the mixture found, each by its shortest way.

use cdp_core::device::{Change, Device};
use cdp_core::error::Kind;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::volume::rollback::Back;

use crate::clones::{content, each_crash, fill, fresh, open};

/// A group was rolled back to an instant that one member had not on the disk yet. The power went when another had
/// followed: the one had nothing to go back to any more, and stayed closed for ever.
#[test]
fn a_group_goes_back_to_what_was_never_flushed() {
    let (disk, store) = fresh(1, &["a", "b"]);
    store.add_to_group("g", &["a".to_owned(), "b".to_owned()], true).unwrap();
    let members: Vec<_> = store.members("g").unwrap();
    for volume in &members {
        fill(volume, 1, 0, 4);
        for byte in [2, 3] {
            let data = vec![byte; 4096];
            let mut results = Vec::new();
            volume.apply(SessionId(1), &[Change::Write { offset: 0, data: &data }], &mut results);
            results.remove(0).unwrap();
        }
    }
    let back: Vec<_> = members.iter().map(|volume| (volume.clone(), Back::To(Lsn(2)))).collect();
    disk.record_boundaries(true);
    store.rollback("g", &back, "lsn").unwrap();
    let (mut done, mut open) = (0, 0);
    each_crash(&disk, 2, |_, store| {
        let first: Vec<u8> = store.volumes().iter().map(|volume| content(&**volume)[0]).collect();
        let turned: Vec<bool> =
            store.volumes().iter().map(|volume| volume.rolled_back() > Lsn::ZERO).collect();
        ensure!(turned[0] == turned[1], "half of it: {turned:?}");
        ensure!(!turned[0] || first == [2, 2], "rolled back to {first:?}");
        ensure!(store.volumes().iter().all(|volume| volume.held().is_none()), "a member stays closed");
        if turned[0] {
            done += 1
        } else {
            open += 1
        }
        Ok(())
    });
    assert!(done > 5 && open > 5, "{done}, {open}");
}

/// Files that were taken away, seed 71002: without `history` the base, which held the state after some hundredth record, was shown as
/// the state before the first, by a volume that said that records are lost. It says that nobody knows, and shows nothing.
#[test]
fn a_base_without_its_history_is_not_the_beginning() {
    for taken in [&["history"][..], &["history", "mark"]] {
        let (disk, store) = fresh(2, &["a", "b"]);
        let volume = store.volume("a").unwrap();
        let policy = format!("at most {}B, at cap drop-oldest", 5 * (64 << 10));
        volume.set_retention(retention::parse(&policy).unwrap()).unwrap();
        for byte in 0..200u8 {
            fill(&volume, byte | 1, u64::from(byte) % 8, 8);
            store.maintain();
        }
        assert!(volume.base_point().lsn > Lsn(10));
        fill(&store.volume("b").unwrap(), 3, 0, 4);
        drop((volume, store));
        let disk = disk.crash_process();
        for file in taken {
            disk.disappear(format!("/store/volumes/a/{file}")).unwrap();
        }
        let store = open(&disk, 3);
        assert_eq!(store.volume("a").map(|_| ()).unwrap_err().kind(), Kind::Damaged, "without {taken:?}");
        assert_eq!(content(&*store.volume("b").unwrap())[..4], [3; 4], "the others are served");
    }
}
