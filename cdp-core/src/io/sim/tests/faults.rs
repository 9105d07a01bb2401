//! Each kind of fault does what its description says, and is counted.

use std::io::{ErrorKind, IoSlice};
use std::path::Path;

use super::{disk_with, read, write};
use crate::io::sim::{Fault, FaultKind, PowerLoss, SimClock, SimDisk, WALL_START_NS, When};
use crate::io::{Clock, File, Files};

fn is_eio<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(5))
}

fn try_write(file: &dyn File, offset: u64, data: &[u8]) -> std::io::Result<()> {
    file.write_at(offset, &[IoSlice::new(data)])
}

/// Plans say when and where: the n-th, from the n-th on, with a probability; one file or all.
#[test]
fn faults_strike_when_and_where_planned() {
    let (disk, file) = disk_with(&[0; 512]);
    let other = disk.create(Path::new("/other")).unwrap();
    write(&*other, 0, &[0; 512]);
    disk.inject(Fault::new(FaultKind::ReadError, When::Nth(3)).on("other"));
    let pattern = |file: &dyn File, count: usize| -> Vec<bool> {
        (0..count).map(|_| is_eio(file.read_at(0, &mut [0; 4]))).collect()
    };
    assert_eq!(pattern(&*file, 5), [false; 5]);
    assert_eq!(pattern(&*other, 5), [false, false, true, false, false]);
    disk.clear_faults();
    disk.inject(Fault::new(FaultKind::ReadError, When::From(2)));
    assert_eq!(pattern(&*file, 4), [false, true, true, true]);
    disk.clear_faults();
    disk.inject(Fault::new(FaultKind::ReadError, When::PerMille(300)));
    let struck = pattern(&*file, 1000).into_iter().filter(|&struck| struck).count();
    assert!((200..400).contains(&struck), "{struck}");
    assert_eq!(disk.counts().read_errors, 1 + 3 + struck as u64);
}

/// After EIO any part of a write may be there.
#[test]
fn a_failed_write_leaves_a_part() {
    let mut parts = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/file")).unwrap();
        write(&*file, 0, &[1; 4096]);
        disk.inject(Fault::new(FaultKind::WriteError, When::Nth(1)));
        assert!(is_eio(try_write(&*file, 0, &[2; 4096])));
        try_write(&*file, 4096, &[3; 10]).unwrap();
        assert_eq!(disk.counts().write_errors, 1);
        parts.insert(read(&*file, 0, 4096).iter().filter(|&&byte| byte == 2).count());
    }
    assert!(parts.len() > 3, "{parts:?}");
}

/// The trap of ext4, xfs and btrfs: the second fsync succeeds and the cache shows what the disk does not have.
#[test]
fn a_failed_sync_forgets_while_the_cache_still_shows() {
    let (disk, file) = disk_with(&[1; 8192]);
    write(&*file, 0, &[2; 4096]);
    disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)));
    assert!(is_eio(file.sync()));
    file.sync().unwrap();
    assert_eq!(read(&*file, 0, 4096), [2; 4096]);
    assert_eq!(disk.durable_contents("/file").unwrap(), [1; 8192]);
    write(&*file, 4096, &[3; 4096]);
    assert_eq!(disk.evict_all(), 2);
    assert_eq!(read(&*file, 0, 4096), [1; 4096], "the evicted page comes from the disk");
    assert_eq!(read(&*file, 4096, 4096), [3; 4096], "what is unsynced is never evicted");
    write(&*file, 0, &[4; 4096]);
    file.sync().unwrap();
    let disk = disk.crash_power_with(PowerLoss::all_lost());
    assert_eq!(disk.contents("/file").unwrap(), [[4; 4096], [3; 4096]].concat(), "rewriting helps");
    assert_eq!(disk.counts().sync_errors, 1);
}

/// Rewriting what a failed sync forgot makes the length durable as well.
#[test]
fn rewriting_after_a_failed_sync_restores_the_length() {
    let (disk, file) = disk_with(&[1; 4096]);
    write(&*file, 4096, &[2; 8192]);
    disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)));
    assert!(file.sync().is_err());
    write(&*file, 4096, &[3; 4096]);
    file.sync().unwrap();
    let bytes = disk.crash_power_with(PowerLoss::all_lost()).contents("/file").unwrap();
    assert_eq!(bytes, [[1; 4096], [3; 4096]].concat());
}

/// The milder failure: some of it arrived.
#[test]
fn a_sync_can_fail_in_part() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/file")).unwrap();
        write(&*file, 0, &[1; 4096]);
        file.sync().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        write(&*file, 0, &[2; 4096]);
        disk.inject(Fault::new(FaultKind::SyncErrorPartial, When::Nth(1)));
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let bytes = disk.crash_power(seed).contents("/file").unwrap();
        outcomes.insert(bytes.iter().filter(|&&byte| byte == 2).count());
    }
    assert!(outcomes.len() > 3 && outcomes.contains(&0), "{outcomes:?}");
}

/// Failed names: nothing happened, and a failed sync of a directory leaves them as unsafe as before.
#[test]
fn names_and_directory_syncs_fail() {
    let (disk, _file) = disk_with(b"");
    disk.inject(Fault::new(FaultKind::NameError, When::Nth(1)));
    assert!(is_eio(disk.create(Path::new("/new"))));
    assert_eq!(disk.paths(), ["/file"]);
    disk.create(Path::new("/new")).unwrap();
    disk.inject(Fault::new(FaultKind::DirectorySyncError, When::Nth(1)));
    assert!(is_eio(disk.sync_dir(Path::new("/"))));
    assert_eq!((disk.counts().name_errors, disk.counts().directory_sync_errors), (1, 1));
    assert_eq!(disk.crash_power_with(PowerLoss::all_lost()).paths(), ["/file"]);
}

/// A disk that says yes and stores nothing is found out only when the cache is gone.
#[test]
fn lost_writes_are_missing_afterwards() {
    let (disk, file) = disk_with(&[1; 8192]);
    disk.inject(Fault::new(FaultKind::LostWrite, When::Nth(1)));
    write(&*file, 0, &[2; 4096]);
    write(&*file, 4096, &[2; 4096]);
    file.sync().unwrap();
    assert_eq!(read(&*file, 0, 8192), [2; 8192]);
    let disk = disk.crash_power_with(PowerLoss::all_kept());
    assert_eq!(disk.contents("/file").unwrap(), [[1; 4096], [2; 4096]].concat());
    assert_eq!(disk.counts().lost_writes, 1);
}

/// A misdirected write is missing in its place and has destroyed another.
#[test]
fn misdirected_writes_land_elsewhere() {
    let (disk, file) = disk_with(&[1; 8192]);
    let other = disk.create(Path::new("/other")).unwrap();
    write(&*other, 0, &[7; 8192]);
    other.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.inject(Fault::new(FaultKind::MisdirectedWrite, When::Nth(1)));
    write(&*file, 0, &[2; 4096]);
    file.sync().unwrap();
    assert_eq!(read(&*file, 0, 4096), [2; 4096]);
    assert_eq!(disk.counts().misdirected_writes, 1);
    let disk = disk.crash_process();
    disk.evict_all();
    let [file, other] = ["/file", "/other"].map(|path| disk.contents(path).unwrap());
    assert_eq!(file[..4096], [1; 4096]);
    assert_eq!([file, other].concat().iter().filter(|&&byte| byte == 2).count(), 4096);
}

/// ENOSPC comes only where new blocks are needed; a preallocated segment never meets it.
#[test]
fn space_runs_out_only_for_new_blocks() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(8 * 4096));
    let segment = disk.create(Path::new("/segment")).unwrap();
    segment.allocate(0, 4 * 4096).unwrap();
    let log = disk.create(Path::new("/log")).unwrap();
    write(&*log, 0, &[1; 3 * 4096]);
    assert_eq!(disk.space(Path::new("/")).unwrap().available, 4096);
    let error = try_write(&*log, 3 * 4096 - 10, &[2; 3 * 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(log.len().unwrap(), 4 * 4096, "what fitted was written");
    assert_eq!(try_write(&*log, 4 * 4096, &[1]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(segment.allocate(0, 5 * 4096).unwrap_err().kind(), ErrorKind::StorageFull);
    write(&*segment, 0, &[3; 4 * 4096]);
    write(&*log, 0, &[4; 4 * 4096]);
    assert_eq!(disk.counts().out_of_space, 3);
    disk.remove(Path::new("/log")).unwrap();
    segment.allocate(0, 8 * 4096).unwrap();
    assert_eq!(disk.used_bytes(), 8 * 4096);
}

/// A slow disk takes its time on the test's clock.
#[test]
fn slow_operations_advance_the_clock() {
    let (disk, file) = disk_with(&[0; 512]);
    let clock = SimClock::new(1);
    disk.set_clock(clock.clone());
    disk.inject(Fault::new(FaultKind::Slow { ns: 1_000 }, When::From(1)));
    read(&*file, 0, 1);
    write(&*file, 0, &[1]);
    file.sync().unwrap();
    assert_eq!((clock.elapsed_ns(), clock.wall_ns()), (3_000, WALL_START_NS + 3_000));
    assert_eq!(disk.counts().slow, 3);
}

/// Damage done behind everybody's back: bits, sectors, lengths, whole files.
#[test]
fn stored_bytes_are_damaged_on_demand() {
    let (disk, file) = disk_with(&[1; 8192]);
    disk.rot("/file", 5000, 0x81).unwrap();
    assert_eq!(read(&*file, 5000, 1), [0x80]);
    assert_eq!(disk.durable_contents("/file").unwrap()[5000], 0x80);
    assert!(disk.rot("/file", 8192, 1).is_err());

    disk.make_unreadable("/file", 1000, 100).unwrap();
    assert!(is_eio(file.read_at(0, &mut [0; 8192])));
    read(&*file, 0, 512);
    read(&*file, 1536, 512);
    write(&*file, 512, &[2; 1024]);
    assert_eq!(read(&*file, 0, 4096).len(), 4096);

    disk.mutate("/file", |bytes| bytes.truncate(600)).unwrap();
    assert_eq!(disk.contents("/file").unwrap(), [vec![1; 512], vec![2; 88]].concat());
    disk.truncate("/file", 700).unwrap();
    assert_eq!((file.len().unwrap(), disk.unsynced()), (700, 0));
    let disk = disk.crash_power_with(PowerLoss::all_lost());
    assert_eq!(disk.contents("/file").unwrap().len(), 700);
    disk.disappear("/file").unwrap();
    assert!(disk.crash_power_with(PowerLoss::all_kept()).paths().is_empty());
    assert_eq!((disk.counts().rotten_bytes, disk.counts().unreadable_reads), (1, 1));
}

/// "Opening a point reads no payload" is asserted with these.
#[test]
fn reads_are_counted() {
    let (disk, file) = disk_with(&[1; 8192]);
    read(&*file, 0, 100);
    read(&*file, 0, 50);
    disk.contents("/file").unwrap();
    assert_eq!((disk.reads().reads, disk.reads().bytes), (2, 150));
    assert_eq!(disk.reads_of("/file"), disk.reads());
    assert_eq!(disk.reads_of("/missing").reads, 0);
    disk.reset_reads();
    assert_eq!((disk.reads().reads, disk.reads_of("/file").reads), (0, 0));
}

/// Clocks step in both directions, and elapsed time goes on by itself; names come out the same for each seed.
#[test]
fn the_clock_is_in_the_tests_hand() {
    let clock = SimClock::new(5);
    assert_eq!((clock.wall_ns(), clock.elapsed_ns()), (WALL_START_NS, 0));
    clock.advance(10);
    clock.step_wall(-3);
    assert_eq!((clock.wall_ns(), clock.elapsed_ns()), (WALL_START_NS + 7, 10));
    clock.step_wall(100);
    assert_eq!((clock.wall_ns(), clock.elapsed_ns()), (WALL_START_NS + 107, 10));
    clock.set_tick(2);
    assert_eq!(clock.wall_ns() + 2, clock.wall_ns());
    assert_eq!(clock.elapsed_ns(), 14);
    let (one, two) = (SimClock::new(5), SimClock::new(6));
    let first = one.random();
    assert_ne!(first, one.random());
    assert_ne!(first, two.random());
    assert_eq!(first, clock.random());
}
