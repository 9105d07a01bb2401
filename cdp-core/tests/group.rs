//! What a group is to the person who made it: its volumes in their order, and one instant of all of them.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use cdp_core::device::{Change, Device};
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::{Back, How};
use cdp_core::volume::together::at_common;

const STORE: &str = "/store";
const MEMBERS: usize = 8;

fn group() -> (Store, Vec<String>) {
    let (disk, clock) = (SimDisk::new(7), SimClock::new(7));
    Store::create(&disk, &clock, Path::new(STORE)).unwrap();
    let store = Store::open(Arc::new(disk), Arc::new(clock), Path::new(STORE), "a test").unwrap();
    let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
    let names: Vec<String> = (0..MEMBERS).map(|number| format!("disk-{number}")).collect();
    for name in &names {
        store.create_volume(name, &options, None).unwrap();
    }
    store.add_to_group("all", &names, true).unwrap();
    (store, names)
}

fn marker(name: &str) -> MarkerPayload {
    MarkerPayload {
        class: MarkerClass::Manual,
        group: 0,
        name: name.to_owned(),
        note: String::new(),
        tags: Vec::new(),
        hook_output: String::new(),
    }
}

/// Whoever marks or lists a group reads its volumes in the order in which they were added, not in that of their random ids.
#[test]
fn members_come_in_the_groups_order() {
    let (store, names) = group();
    let listed: Vec<String> =
        store.members("all").unwrap().iter().map(|volume| volume.name().to_owned()).collect();
    assert_eq!(listed, names);
    let marked = store.mark("all", &marker("lunch")).unwrap();
    let in_order: Vec<&str> = marked.iter().map(|(volume, ..)| volume.name()).collect();
    assert_eq!(in_order, names);
}

/// A group's marker is one instant: every member has it at the same nanosecond, between the records that the member
/// has before and after, and so the instant itself is a point that finds it on each.
#[test]
fn a_marker_is_one_instant_under_load() {
    let (store, names) = group();
    thread::scope(|scope| {
        for name in &names {
            let volume = store.volume(name).unwrap();
            scope.spawn(move || {
                for number in 0..200u64 {
                    let mut results = Vec::new();
                    let data = [number as u8; 512];
                    volume.apply(
                        SessionId(1),
                        &[Change::Write { offset: number * 512, data: &data }],
                        &mut results,
                    );
                    assert!(results[0].is_ok());
                }
            });
        }
        for number in 0..20 {
            let marked = store.mark("all", &marker(&format!("marker-{number}"))).unwrap();
            let (_, _, at) = marked[0];
            for (volume, lsn, there) in &marked {
                assert_eq!(*there, at, "{}", volume.name());
                assert_eq!(volume.timestamp_of(*lsn).unwrap(), at);
                assert_eq!(volume.lsn_at(at).unwrap(), *lsn, "{}", volume.name());
                assert!(volume.timestamp_of(lsn.previous()).unwrap() < at);
            }
        }
    });
}

/// A group steps down as a whole in whatever order its volumes were added, which is not that of their random ids.
#[test]
fn a_group_steps_down_in_any_order() {
    let (store, _) = group();
    let mut volumes = store.members("all").unwrap();
    for backwards in [false, true] {
        volumes.sort_by_key(|volume| volume.identity().id);
        if backwards {
            volumes.reverse();
        }
        let parts: Vec<&Volume> = volumes.iter().map(|volume| &**volume).collect();
        let through = Volume::demote_all(&parts).unwrap();
        assert!(volumes.iter().all(|volume| volume.is_replica() && volume.tip().1 <= through), "{through:?}");
    }
}

/// Whether each member stands behind its newest rollback at this instant.
fn are_back(volumes: &[Arc<Volume>], at: Timestamp) -> Vec<bool> {
    let found = at_common(volumes, at).unwrap();
    found.iter().map(|(volume, lsn)| *lsn >= volume.rolled_back()).collect()
}

/// A group is rolled back, and the other site fails over to an instant a few nanoseconds around that, as it does while it
/// has heard of nothing later: with a database set back and its log not, nobody could start it.
#[test]
fn a_group_goes_back_and_comes_again_at_one_instant() {
    let (store, _) = group();
    let good: Vec<_> = store.mark("all", &marker("good")).unwrap();
    let back: Vec<_> = good.iter().map(|(volume, lsn, _)| (volume.clone(), Back::To(*lsn))).collect();
    let again: Vec<_> = good.iter().map(|(volume, ..)| (volume.clone(), Back::Undo)).collect();
    let volumes = store.members("all").unwrap();
    for members in [back, again] {
        let done = store.rollback("all", &members, "good").unwrap();
        let instants: Vec<Timestamp> = done.iter().map(|one| one.at).collect();
        assert!(instants.iter().all(|at| *at == instants[0]), "{instants:?}");
        for at in (instants[0].0 - 2..instants[0].0 + 20).map(Timestamp) {
            let states = are_back(&volumes, at);
            assert!(states.iter().all(|is_back| *is_back == (at >= instants[0])), "{at:?}: {states:?}");
        }
    }
}

/// Journals in which the members went back one after the other are still read: an instant between them is none of the group,
/// and means the one at which all had gone back. Members that were added since, and volumes set back alone, change nothing.
#[test]
fn a_rollback_of_several_instants_is_seen_by_all_or_none() {
    let (store, names) = group();
    let volumes = store.members("all").unwrap();
    let members = &volumes[..3];
    for volume in members {
        let how = How { group: 77, asked: "start".to_owned(), at: None };
        Volume::rollback_all(&[(volume.clone(), Back::To(Lsn::ZERO))], &how).unwrap();
    }
    let instants: Vec<Timestamp> = members.iter().map(|volume| volume.tip().1).collect();
    assert!(instants.windows(2).all(|pair| pair[0] < pair[1]), "{instants:?}");
    for at in (instants[0].0 - 5..instants[2].0 + 5).map(Timestamp) {
        let states = are_back(members, at);
        assert!(states.iter().all(|is_back| *is_back == (at >= instants[0])), "{at:?}: {states:?}");
    }
    let alone = store.volume(&names[5]).unwrap().rollback(Back::To(Lsn::ZERO), "start").unwrap().at;
    for at in [Timestamp(alone.0 - 1), alone, Timestamp(alone.0 + 1)] {
        let found = at_common(&volumes, at).unwrap();
        assert!(found.iter().all(|(volume, lsn)| *lsn == volume.lsn_at(at).unwrap()), "{at:?}");
    }
}
