//! Who may write: a primary its clients, a replica nobody but its primary, a fenced volume nobody.

use std::path::Path;
use std::sync::Arc;

use cdp_core::device::{Change, Device, Read};
use cdp_core::error::{Kind, Result};
use cdp_core::format::epoch::Epoch;
use cdp_core::format::marker::{MarkerClass, MarkerPayload};
use cdp_core::history::epochs::Epochs;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::io::SystemClock;
use cdp_core::io::posix::Posix;
use cdp_core::io::sim::{Fault, FaultKind, SimClock, SimDisk, When};
use cdp_core::limits::SEGMENT_BYTES;
use cdp_core::store::replicas::{Copied, Origin};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::Volume;
use cdp_core::volume::client::Client;
use cdp_core::volume::role::Role;
use cdp_core::volume::rollback::Back;

const STORE: &str = "/store";

fn create(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::create(disk, clock, Path::new(STORE)).unwrap();
    let store = open(disk, clock);
    let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
    store.create_volume("disk", &options, None).unwrap();
    store
}

fn open(disk: &SimDisk, clock: &SimClock) -> Store {
    Store::open(Arc::new(disk.clone()), Arc::new(clock.clone()), Path::new(STORE), "a test").unwrap()
}

fn write(device: &dyn Device, byte: u8) -> Result<Lsn> {
    let mut results = Vec::new();
    device.apply(SessionId(1), &[Change::Write { offset: 100, data: &[byte; 5000] }], &mut results);
    results.pop().unwrap()
}

fn read(device: &dyn Device) -> Result<u8> {
    let mut buffer = [0; 1];
    let mut reads = [Read { offset: 200, buffer: &mut buffer, result: Ok(()) }];
    device.read(&mut reads);
    std::mem::replace(&mut reads[0].result, Ok(()))?;
    Ok(buffer[0])
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

/// Nothing of its own may get into the history of a replica, or the two sites would differ at an LSN that both have:
/// neither writes nor markers, sessions, rollbacks, growth, nor what the timers do.
fn takes_nothing_of_its_own(store: &Store, clock: &SimClock, volume: &Arc<Volume>) {
    let tip = volume.tip_lsn();
    assert!(volume.is_read_only(), "the export says so");
    let refused = |outcome: Result<()>| {
        let error = outcome.expect_err("it takes no writes");
        assert_eq!(error.kind(), Kind::ReadOnly, "{error:?}");
        assert!(error.hint_text().is_some(), "it says what to do: {error:?}");
    };
    refused(write(&**volume, 9).map(drop));
    refused(write(&Client::admit(volume.clone()).unwrap(), 9).map(drop));
    refused(volume.mark(&marker("here")).map(drop));
    refused(store.mark("disk", &marker("there")).map(drop));
    refused(volume.rollback(Back::To(Lsn(1)), "lsn:1").map(drop));
    refused(volume.grow(2 << 20).map(drop));
    let session = volume.open_session("somebody").unwrap();
    volume.close_session(session).unwrap();
    clock.advance(5_000_000_000);
    clock.step_wall(-3_000_000_000);
    assert!(store.tick().is_empty() && store.maintain().is_empty());
    clock.advance(5_000_000_000);
    assert!(store.tick().is_empty() && store.maintain().is_empty());
    assert_eq!(volume.tip_lsn(), tip, "its history is as it was");
}

/// Whoever moves over to the other site counts on it that the old one takes nothing more, restarted or not.
#[test]
fn a_demoted_volume_takes_nothing_more() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    let client = Client::admit(volume.clone()).unwrap();
    write(&client, 1).unwrap();
    write(&client, 2).unwrap();
    assert!(volume.refuse_unless_replica().is_err_and(|error| error.kind() == Kind::Refused));
    let (last, _) = volume.demote().unwrap();
    assert_eq!((last, volume.durable_lsn()), (volume.tip_lsn(), last), "all it took is durable");
    assert!(write(&client, 3).is_err_and(|error| error.kind() == Kind::ReadOnly));
    assert!(read(&client).is_err_and(|error| error.kind() == Kind::Closed), "what it caches gets old");
    assert_eq!(read(&Client::admit(volume.clone()).unwrap()).unwrap(), 2);
    takes_nothing_of_its_own(&store, &clock, &volume);
    volume.refuse_unless_replica().unwrap();
    assert_eq!(volume.demote().unwrap().0, last, "a second time is no error");

    drop((store, volume, client));
    let mut disk = disk;
    for power in [true, false] {
        disk = if power { disk.crash_power(7) } else { disk.crash_process() };
        let store = open(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        assert!(matches!(volume.role(), Role::Replica { .. }));
        assert_eq!(volume.tip_lsn(), last);
        takes_nothing_of_its_own(&store, &clock, &volume);
        store.close().unwrap();
    }
}

/// A primary that was cut off and hears of another one must not answer another write, nor take what the other has: its
/// own unseen writes are still to be kept.
#[test]
fn a_fenced_volume_takes_nothing_from_anybody() {
    let (disk, clock) = (SimDisk::new(2), SimClock::new(2));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    write(&*volume, 1).unwrap();
    volume.fence(EpochNumber(2), "site-b says so\nand more").unwrap();
    volume.fence(EpochNumber(1), "an old story").unwrap();
    let is_fenced = |volume: &Volume| {
        let Role::Fenced { by, why, .. } = volume.role() else { return false };
        by == EpochNumber(2) && why.starts_with("site-b says so")
    };
    assert!(is_fenced(&volume));
    takes_nothing_of_its_own(&store, &clock, &volume);
    assert!(volume.refuse_unless_replica().is_err_and(|error| error.kind() == Kind::Refused));
    assert!(volume.demote().is_err_and(|error| error.kind() == Kind::ReadOnly), "that would lose its tail");

    drop((store, volume));
    let disk = disk.crash_power(3);
    let store = open(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    assert!(is_fenced(&volume));
    takes_nothing_of_its_own(&store, &clock, &volume);
}

/// A demotion that could not be written down must not leave a site without any primary, and a fence must hold all the
/// same.
#[test]
fn a_disk_that_fails_does_not_undo_a_fence() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new(3));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    write(&*volume, 1).unwrap();
    volume.flush().unwrap();
    disk.set_capacity(Some(0));
    assert!(volume.demote().is_err());
    assert!(volume.is_primary());
    assert!(volume.fence(EpochNumber(2), "somebody").is_err());
    assert!(write(&*volume, 2).is_err_and(|error| error.kind() == Kind::ReadOnly));
    disk.set_capacity(None);
    volume.fence(EpochNumber(2), "somebody").unwrap();
    drop((store, volume));
    let store = open(&disk.crash_power(4), &clock);
    assert!(matches!(store.volume("disk").unwrap().role(), Role::Fenced { .. }));
}

/// A replica begins with the primary's id and nothing of its own, also where a first copy put a state under it; and a
/// store never holds two copies of one volume.
#[test]
fn a_replica_is_made_once() {
    let (disk, clock) = (SimDisk::new(4), SimClock::new(4));
    let store = create(&disk, &clock);
    let id = VolumeId(0x77);
    let copied = Copied {
        lsn: Lsn(41),
        at: Timestamp(clock_now(&store) + 5),
        chain: cdp_core::format::record::Chain([7; 16]),
        size_bytes: 2 << 20,
    };
    let epoch = Epoch {
        number: EpochNumber(2),
        id: 5,
        start: Lsn(30),
        chain: cdp_core::format::record::Chain([6; 16]),
    };
    let origin = Origin {
        id,
        first_size_bytes: 1 << 20,
        created: Timestamp(clock_now(&store)),
        marker_interval_ns: 1_000_000_000,
        segment_bytes: 256 << 10,
        journal_cap_bytes: None,
        copied: Some(copied),
        epochs: Epochs::of(id, &[epoch]).unwrap(),
    };
    let replica = store.create_replica("copy", &origin, Some(&mut |base| base.write(0, &[5; 4096]))).unwrap();
    let check = |store: &Store, replica: &Arc<Volume>| {
        assert_eq!(replica.identity().id, id);
        assert_eq!(replica.tip(), (copied.lsn, copied.at));
        assert_eq!(replica.horizon(), (copied.lsn, copied.at));
        assert_eq!(replica.size_bytes(), 2 << 20);
        assert_eq!(replica.epochs().newest(), epoch);
        assert_eq!(read(&**replica).unwrap(), 5);
        replica.refuse_unless_replica().unwrap();
        assert!(write(&**replica, 1).is_err_and(|error| error.kind() == Kind::ReadOnly));
        let again = store.create_replica("other", &Origin { copied: None, ..origin.clone() }, None);
        assert!(again.is_err_and(|error| error.kind() == Kind::Exists));
    };
    check(&store, &replica);
    drop((store, replica));
    let store = open(&disk.crash_power(5), &clock);
    check(&store, &store.volume("copy").unwrap());
    store.delete_volume("copy").unwrap();
    let again = store.create_replica("other", &origin, None);
    assert!(again.is_err_and(|error| error.kind() == Kind::Exists), "in the trash it is still there");
}

/// The other site says how large the segments of a replica are. Ones that a request does not fit into would end the server at the
/// first large write after a promotion.
#[test]
fn a_replica_has_segments_that_every_request_fits_into() {
    let dir = tempfile::tempdir().unwrap();
    let (files, clock, path) = (Arc::new(Posix), Arc::new(SystemClock), dir.path().join("store"));
    Store::create(&*files, &*clock, &path).unwrap();
    let store = Store::open(files, clock, &path, "a test").unwrap();
    for segment_bytes in [0, 4096, 64 << 10, 64 << 20, SEGMENT_BYTES - 4096, SEGMENT_BYTES + 4096, u64::MAX] {
        let origin = Origin {
            id: VolumeId(1),
            first_size_bytes: 1 << 20,
            created: Timestamp(clock_now(&store)),
            marker_interval_ns: 1_000_000_000,
            segment_bytes,
            journal_cap_bytes: None,
            copied: None,
            epochs: Epochs::of(VolumeId(1), &[]).unwrap(),
        };
        let refused = store.create_replica("copy", &origin, None).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{segment_bytes}: {refused}");
    }
    assert!(store.volumes().is_empty() && store.failed().is_empty());
}

fn clock_now(store: &Store) -> u64 {
    store.clock().now().0
}

/// A database on two volumes: one goes on with the other site's history, the other stands where this site's parted from it. No
/// instant shows both as they were together, and a promotion of the two must not make one.
#[test]
fn members_of_different_standing_are_not_promoted_together() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new(1));
    let store = create(&disk, &clock);
    let options = CreateOptions { segment_bytes: 256 << 10, ..CreateOptions::new(1 << 20) };
    store.create_volume("log", &options, None).unwrap();
    let volumes = ["disk", "log"].map(|name| store.volume(name).unwrap());
    volumes.iter().for_each(|volume| assert!(write(&**volume, 1).is_ok()));
    volumes[0].demote().unwrap();
    volumes[1].fence(EpochNumber(4), "another site has it").unwrap();
    let members = volumes.clone().map(|volume| {
        let tip = volume.tip_lsn();
        (volume, tip)
    });
    let error = store.promote("all", &members, EpochNumber(0), "a test").unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("log stands where another site's history parted"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("resync")), "{error:?}");
    let roles = volumes.clone().map(|volume| volume.role().word());
    assert_eq!(roles, ["replica", "fenced"], "nothing was done");
    assert!(volumes.iter().all(|volume| volume.epochs().newest().number == EpochNumber(1)));
    // Each by itself, as it is; the fenced one above the epoch that it heard of.
    let numbers = members.map(|member| {
        store.promote(member.0.name(), std::slice::from_ref(&member), EpochNumber(0), "a test").unwrap()[0]
            .epoch
            .number
    });
    assert_eq!(numbers, [EpochNumber(2), EpochNumber(5)]);
    volumes.iter().for_each(|volume| assert!(write(&**volume, 2).is_ok()));
}

/// A replica was told that everything through an instant is there, though nothing was written for a while. The machine dies, and
/// comes back with a wall clock that is behind: a record within that instant would be one that the replica says it has.
#[test]
fn what_was_told_to_be_over_stays_over() {
    for (seed, power) in [(1, false), (2, true)] {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        let store = create(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        write(&*volume, 1).unwrap();
        volume.flush().unwrap();
        clock.advance(40_000_000_000);
        let (lsn, told) = volume.promise_complete();
        assert!(
            told.0 >= wall_of(&clock) && lsn == volume.tip_lsn(),
            "an idle volume is complete through now"
        );
        drop((volume, store));
        let disk = if power { disk.crash_power(seed) } else { disk.crash_process() };
        clock.step_wall(-3_600_000_000_000);
        let store = open(&disk, &clock);
        let volume = store.volume("disk").unwrap();
        let next = write(&*volume, 2).unwrap();
        assert!(volume.timestamp_of(next).unwrap() > told, "power {power}: {next:?} is within {told:?}");
        // A clean stop leaves nothing ahead of the wall clock.
        clock.step_wall(3_600_000_000_000);
        clock.advance(100_000_000_000);
        let (_, told) = volume.promise_complete();
        store.close().unwrap();
        drop((volume, store));
        let store = open(&disk, &clock);
        assert_eq!(store.clock().now(), told.max(Timestamp(wall_of(&clock))));
    }
}

fn wall_of(clock: &SimClock) -> u64 {
    cdp_core::io::Clock::wall_ns(clock)
}

/// An append that the disk refused may be there after a restart, with the timestamp that it got: until then no instant behind it
/// is told.
#[test]
fn a_refused_record_is_within_no_instant_that_is_told() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new(3));
    let store = create(&disk, &clock);
    let volume = store.volume("disk").unwrap();
    write(&*volume, 1).unwrap();
    volume.flush().unwrap();
    disk.inject(Fault::new(FaultKind::WriteError, When::From(1)).on(".seg"));
    assert!(write(&*volume, 2).is_err());
    clock.advance(10_000_000_000);
    let (lsn, told) = volume.promise_complete();
    assert_eq!((lsn, told), volume.tip());
}

/// A replica is fed by another site from now on. What the first one said of completeness was of its own history, and would
/// have this one give an answer for an instant of which the other still has records.
#[test]
fn another_site_begins_with_nothing_complete() {
    let (disk, clock) = (SimDisk::new(31), SimClock::new(31));
    let volume = create(&disk, &clock).volume("disk").unwrap();
    write(&*volume, 1).unwrap();
    volume.demote().unwrap();
    let tip = volume.tip().1;
    let said = Timestamp(tip.0 + 3_600_000_000_000);
    volume.set_source("site-a").unwrap();
    volume.note_complete(said, tip).unwrap();
    assert_eq!(volume.complete_through().1, said);
    volume.set_source("site-a").unwrap();
    assert_eq!(volume.complete_through().1, said, "it is the same site");
    volume.set_source("site-b").unwrap();
    assert!(volume.complete_through().1 < said && volume.durable_complete() < said);
    assert!(volume.lsn_at(said).is_err());
    assert!(volume.may_be_fed_by("site-b") && !volume.may_be_fed_by("site-c"));
}
