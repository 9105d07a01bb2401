//! What a crash leaves of the bytes of files.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::Path;

use super::{disk_with, read, write};
use crate::io::Files;
use crate::io::sim::{Chance, CrashAt, Fault, FaultKind, PowerLoss, SimDisk, When, WriteOrder, is_crash};

const SEEDS: u64 = 400;

/// A disk that lost synced bytes would make every crash test cry wolf: no style of power loss may touch them.
#[test]
fn what_was_synced_survives_every_power_loss() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let (disk, file) = disk_with(&[0; 8192]);
        for _ in 0..10 {
            let at = chance.below(50_000);
            write(&*file, at, &vec![chance.bits() as u8; chance.below(5000) as usize]);
        }
        file.sync().unwrap();
        let promised = disk.contents("/file").unwrap();
        assert_eq!(disk.durable_contents("/file").unwrap(), promised);
        write(&*file, promised.len() as u64, &[9; 3000]);
        let disk = disk.crash_power(seed);
        assert_eq!(disk.contents("/file").unwrap()[..promised.len()], promised, "seed {seed}");
    }
}

/// After a power loss the cache knows nothing that the disk does not, whatever went wrong before: recovery
/// would otherwise be tested on bytes that no real machine could read.
#[test]
fn after_a_power_loss_only_the_disk_counts() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(seed);
        for kind in [
            FaultKind::WriteError,
            FaultKind::SyncError,
            FaultKind::SyncErrorPartial,
            FaultKind::LostWrite,
            FaultKind::MisdirectedWrite,
        ] {
            disk.inject(Fault::new(kind, When::PerMille(100)));
        }
        let files = ["/a", "/b"].map(|path| disk.create(Path::new(path)).unwrap());
        disk.sync_dir(Path::new("/")).unwrap();
        for _ in 0..40 {
            let file = chance.pick(&[&files[0], &files[1]]);
            let at = chance.below(30_000);
            match chance.below(8) {
                0 => _ = file.sync(),
                1 => file.set_len(at).unwrap(),
                2 => file.allocate(at, 5000).unwrap(),
                3 => _ = disk.evict(seed),
                _ => _ = file.write_at(at, &[IoSlice::new(&[chance.bits() as u8; 3000])]),
            }
        }
        let before = ["/a", "/b"].map(|path| disk.durable_contents(path).unwrap());
        let untouched = disk.snapshot().mount(0).crash_power_with(PowerLoss::all_lost());
        let disk = disk.crash_power(seed);
        for (path, before) in ["/a", "/b"].iter().zip(before) {
            assert!(disk.contents(path).unwrap() == disk.durable_contents(path).unwrap(), "seed {seed}");
            assert!(untouched.contents(path).unwrap() == before, "seed {seed}");
        }
        assert_eq!(disk.unsynced(), 0);
    }
}

/// Recovery must meet every kind of half-written tail: kept, lost, torn between sectors, reordered.
#[test]
fn unsynced_sectors_are_each_old_or_new() {
    let mut seen = BTreeSet::new();
    let mut reordered = 0;
    for seed in 0..SEEDS {
        let (disk, file) = disk_with(&[1; 4096]);
        write(&*file, 0, &[2; 2048]);
        write(&*file, 2048, &[2; 2048]);
        let disk = disk.crash_power(seed);
        let bytes = disk.contents("/file").unwrap();
        assert_eq!(bytes.len(), 4096, "seed {seed}");
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside a sector, seed {seed}");
        }
        assert!(sectors.iter().all(|byte| [1, 2].contains(byte)), "seed {seed}");
        reordered += disk.counts().effects_reordered;
        seen.insert(sectors);
    }
    assert!(reordered > 10);
    for whole in [[1; 8], [2; 8], [1, 1, 1, 1, 2, 2, 2, 2], [2, 2, 2, 2, 1, 1, 1, 1]] {
        assert!(seen.contains(whole.as_slice()), "{whole:?} never came");
    }
    assert!(seen.len() > 20, "only {} different outcomes", seen.len());
}

/// A log that grows may come back with its length and zeros, or without the length: both are met in the field.
#[test]
fn length_and_bytes_arrive_apart() {
    let (mut zeros, mut short, mut between) = (0, 0, 0);
    for seed in 0..SEEDS {
        let (disk, file) = disk_with(&[1; 1000]);
        write(&*file, 1000, &[2; 9000]);
        let bytes = disk.crash_power(seed).contents("/file").unwrap();
        assert!((1000..=10_000).contains(&bytes.len()) && bytes[..1000] == [1; 1000], "seed {seed}");
        assert!(bytes[1000..].iter().all(|byte| [0, 2].contains(byte)), "seed {seed}");
        zeros += u32::from(bytes.len() == 10_000 && bytes[5000] == 0);
        short += u32::from(bytes.len() == 1000);
        between += u32::from((1001..10_000).contains(&bytes.len()));
    }
    assert!(zeros > 10 && short > 10 && between > 10, "{zeros} {short} {between}");
}

/// The cache writes a sector out with all that is in it; small records behind one another rely on that.
#[test]
fn a_sector_never_has_the_later_small_write_without_the_earlier() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, file) = disk_with(&[0; 512]);
        write(&*file, 0, b"A");
        write(&*file, 100, b"B");
        let bytes = disk.crash_power(seed).contents("/file").unwrap();
        outcomes.insert((bytes[0], bytes[100]));
    }
    assert_eq!(outcomes, BTreeSet::from([(0, 0), (b'A', 0), (b'A', b'B')]));
}

/// Where writes overlap the newest that was kept wins, except on a drive that is told to misbehave.
#[test]
fn an_older_write_wins_only_when_asked_for() {
    let outcomes = |order| -> BTreeSet<u8> {
        let leaves = |seed| {
            let (disk, file) = disk_with(&[0; 512]);
            write(&*file, 0, &[1; 512]);
            write(&*file, 0, &[2; 512]);
            let plan = PowerLoss { order, keep_percent: 100, ..PowerLoss::seeded(seed) };
            disk.crash_power_with(plan).contents("/file").unwrap()[0]
        };
        (0..50).map(leaves).collect()
    };
    assert_eq!(outcomes(WriteOrder::Any), BTreeSet::from([2]));
    assert_eq!(outcomes(WriteOrder::Overlapping), BTreeSet::from([1, 2]));
}

/// The kindest disk stops at one instant, over all files and names.
#[test]
fn a_prefix_loss_is_one_instant() {
    let mut cuts = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(1);
        let files = ["/a", "/b", "/c"].map(|path| disk.create(Path::new(path)).unwrap());
        disk.sync_dir(Path::new("/")).unwrap();
        for round in 0..9u8 {
            write(&*files[usize::from(round) % 3], u64::from(round / 3) * 512, &[round + 1; 512]);
        }
        let plan = PowerLoss { order: WriteOrder::Prefix, ..PowerLoss::seeded(seed) };
        let disk = disk.crash_power_with(plan);
        let there = |round: u8| {
            let bytes = disk.contents(["/a", "/b", "/c"][usize::from(round) % 3]).unwrap();
            bytes.get(usize::from(round / 3) * 512) == Some(&(round + 1))
        };
        let count = (0..9).take_while(|&round| there(round)).count();
        assert!((count as u8..9).all(|round| !there(round)), "seed {seed}");
        cuts.insert(count);
    }
    assert_eq!(cuts.len(), 10);
}

/// Process death forgets nothing but handles and locks.
#[test]
fn process_death_keeps_the_cache() {
    let (disk, file) = disk_with(b"synced");
    write(&*file, 6, b" and not");
    let lock = disk.lock(Path::new("/lock"), "first").unwrap();
    let next = disk.crash_process();
    assert!(is_crash(&file.read_at(0, &mut [0]).unwrap_err()));
    assert!(is_crash(&file.write_at(0, &[IoSlice::new(b"x")]).unwrap_err()));
    assert!(is_crash(&disk.open(Path::new("/file"), false).err().unwrap()));
    let reopened = next.open(Path::new("/file"), true).unwrap();
    assert_eq!(read(&*reopened, 0, 14), b"synced and not");
    let second = next.lock(Path::new("/lock"), "second").unwrap();
    drop(lock);
    assert!(next.lock(Path::new("/lock"), "third").is_err(), "a dead holder let go of another's lock");
    drop(second);
    let after = next.crash_power_with(PowerLoss::all_lost());
    assert_eq!(after.contents("/file").unwrap(), b"synced");
    assert_eq!((after.counts().process_deaths, after.counts().power_losses), (1, 1));
}

/// Tests that stop at every operation rely on all three variants and on nothing working afterwards.
#[test]
fn a_planned_crash_comes_before_during_or_after() {
    let run = |at, seed| {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/file")).unwrap();
        disk.set_crash_after(2, at);
        write(&*file, 0, &[1; 4096]);
        let error = file.write_at(4096, &[IoSlice::new(&[2; 4096])]).unwrap_err();
        assert!(is_crash(&error) && disk.is_crashed());
        assert!(is_crash(&file.sync().unwrap_err()) && is_crash(&file.len().unwrap_err()));
        assert!(is_crash(&disk.list(Path::new("/")).unwrap_err()));
        let disk = disk.crash_process();
        assert!(!disk.is_crashed());
        assert_eq!(disk.operations(), 3);
        let bytes = disk.contents("/file").unwrap();
        assert_eq!(bytes[..4096], [1; 4096]);
        bytes[4096..].iter().filter(|&&byte| byte == 2).count()
    };
    assert_eq!(run(CrashAt::Before, 1), 0);
    assert_eq!(run(CrashAt::After, 1), 4096);
    let parts: BTreeSet<usize> = (0..50).map(|seed| run(CrashAt::During, seed)).collect();
    assert!(parts.len() > 3 && parts.iter().all(|part| part % 512 == 0), "{parts:?}");
}

/// A sync that never returned may have stored anything; but what it stored, an older write must not replace.
#[test]
fn a_sync_cut_short_never_goes_back() {
    let mut newest = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/file")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        write(&*file, 0, &[1; 512]);
        write(&*file, 0, &[2; 512]);
        disk.set_crash_after(1, CrashAt::During);
        assert!(file.sync().is_err());
        let stored = disk.durable_contents("/file").unwrap().first().copied().unwrap_or(0);
        let left = disk.crash_power(seed).contents("/file").unwrap().first().copied().unwrap_or(0);
        assert!(left >= stored, "seed {seed}: the disk had {stored}, after the power loss {left}");
        newest += u32::from(stored == 2);
    }
    assert!(newest > 10);
}

/// A failure must be found again from its seed.
#[test]
fn the_same_seeds_leave_the_same_bytes() {
    let run = |seed| {
        let (disk, file) = disk_with(&[0; 20_000]);
        for round in 0..20 {
            write(&*file, round * 777, &[round as u8; 3000]);
        }
        disk.create(Path::new("/other")).unwrap();
        let disk = disk.crash_power(seed);
        (disk.paths(), disk.contents("/file").unwrap(), disk.counts())
    };
    for seed in 0..20 {
        assert!(run(seed) == run(seed), "seed {seed}");
    }
}

/// One run branches into thousands of crashes: branches must not see one another, and end where the run did.
#[test]
fn boundaries_branch_from_one_run() {
    let disk = SimDisk::new(3);
    disk.record_boundaries(true);
    let file = disk.create(Path::new("/file")).unwrap();
    for round in 1..=3u8 {
        write(&*file, u64::from(round - 1) * 4096, &[round; 4096]);
        file.sync().unwrap();
    }
    disk.sync_dir(Path::new("/")).unwrap();
    let boundaries = disk.take_boundaries();
    // Eight operations, six of them also seen from the middle.
    assert_eq!((disk.operations(), boundaries.len()), (8, 14));
    for boundary in &boundaries {
        let branch = boundary.snapshot.mount(1).crash_process();
        // Operation 1 is the create, then come write and sync in turn.
        let written = boundary.operation / 2;
        let len = branch.contents("/file").map_or(0, |bytes| bytes.len() as u64 / 4096);
        if boundary.operation < 8 && !boundary.during {
            assert_eq!(
                len,
                written.saturating_sub(u64::from(boundary.operation % 2 == 0)),
                "{}",
                boundary.operation
            );
        }
        if let Ok(file) = branch.open(Path::new("/file"), true) {
            write(&*file, 0, &[99; 8192]);
        }
    }
    assert_eq!(disk.contents("/file").unwrap()[..4096], [1; 4096]);
    let before = disk.snapshot();
    file.set_len(0).unwrap();
    let disk = disk.restore(&before);
    assert!(file.len().is_err());
    assert_eq!(disk.contents("/file").unwrap().len(), 3 * 4096);
    assert_eq!(disk.crash_power_with(PowerLoss::all_lost()).contents("/file").unwrap().len(), 3 * 4096);
}

/// Cuts and allocations are effects like writes: unsynced, they may or may not have happened.
#[test]
fn cuts_and_allocations_wait_for_a_sync() {
    let (mut cut, mut allocated) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        let (disk, file) = disk_with(&[1; 8192]);
        file.set_len(100).unwrap();
        cut.insert(disk.crash_power(seed).contents("/file").unwrap().len());
        let (disk, file) = disk_with(&[1; 8192]);
        file.allocate(8192, 8192).unwrap();
        let disk = disk.crash_power(seed);
        allocated.insert((disk.contents("/file").unwrap().len() == 16_384, disk.used_bytes() == 16_384));
    }
    assert_eq!(cut, BTreeSet::from([100, 8192]));
    assert!(allocated.contains(&(true, true)) && allocated.contains(&(false, false)), "{allocated:?}");
    let (disk, file) = disk_with(&[1; 8192]);
    file.set_len(100).unwrap();
    file.sync().unwrap();
    assert_eq!(disk.crash_power_with(PowerLoss::all_lost()).contents("/file").unwrap(), [1; 100]);
}
