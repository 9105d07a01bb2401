//! Images that were damaged or made to do harm: an error or an answer, never a crash, a hang or all the memory.

mod images;

use std::path::Path;
use std::time::{Duration, Instant};

use cdp_cli::files::contain::Contained;
use cdp_cli::files::disk::Disk;
use cdp_cli::files::{self, Entry, EntryKind, table, walk};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Rounds for each filesystem; more with CDP_TEST_ROUNDS.
const ROUNDS: u64 = 150;
/// One round may take so long, on a busy machine.
const ROUND_TIME: Duration = Duration::from_secs(30);
/// Bytes read of each file; a hostile size is not worth reading to its end.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// All the memory this process may have: an allocation by the image's word fails the test.
const MEMORY_BYTES: u64 = 3 << 30;

struct Chance(u64);

impl Chance {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn all(tree: &mut Contained) -> (u64, u64) {
    let mut found: Vec<(Vec<Vec<u8>>, Entry)> = Vec::new();
    let walked = walk::each_below(tree, &[], &mut |path, entry| {
        found.push((path.to_vec(), entry.clone()));
        let full = || cdp_core::error::Error::new(cdp_core::error::Kind::Closed, "enough");
        if found.len() > 20_000 { Err(full()) } else { Ok(()) }
    });
    let mut errors = u64::from(walked.is_err());
    let mut bytes = 0;
    for (path, _) in found.iter().filter(|(_, entry)| entry.kind == EntryKind::File).take(2000) {
        let mut read = 0;
        let done = tree.read(path, &mut |part| {
            read += part.len() as u64;
            let full = || cdp_core::error::Error::new(cdp_core::error::Kind::Closed, "enough");
            if read > FILE_BYTES_MAX { Err(full()) } else { Ok(()) }
        });
        errors += u64::from(done.is_err());
        bytes += read;
    }
    (bytes, errors)
}

fn look(image: Vec<u8>) -> (u64, u64) {
    let disk = Disk::new(image);
    let Ok(slots) = table::read(&disk) else { return (0, 1) };
    let Ok(slot) = table::choose(&slots, None, "disk") else { return (0, 1) };
    match files::open(&disk, slot) {
        Ok(mut tree) => all(&mut tree),
        Err(_) => (0, 1),
    }
}

fn batter(name: &str, image: &Path) {
    let before = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY_BYTES), ..before }).unwrap();
    let good = std::fs::read(image).unwrap();
    let (bytes, errors) = look(good.clone());
    assert!(bytes > 3 << 20 && errors == 0, "{name}: a good image gives its files: {bytes}, {errors}");
    // Where a structure is: damage to nothing, to content or to an empty log tells nothing.
    let large = images::large();
    let is_structure = |at: &usize| {
        let part = &good[*at..*at + 512];
        part.iter().any(|&b| b != 0)
            && part.iter().any(|&b| b != 0xff)
            && !large.windows(512).step_by(512).any(|content| content == part)
    };
    let used: Vec<usize> = (0..good.len()).step_by(512).filter(is_structure).collect();
    let rounds = std::env::var("CDP_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut with_errors = 0;
    for round in 0..rounds {
        let seed = round * 7919 + name.len() as u64;
        let mut chance = Chance(seed);
        let mut bad = good.clone();
        for _ in 0..1 + chance.next(40) {
            let at = used[chance.next(used.len() as u64) as usize] + chance.next(512) as usize;
            match chance.next(4) {
                0 => bad[at] ^= 1 << chance.next(8),
                1 => bad[at] = 0xff,
                2 => bad[at] = 0,
                _ => {
                    let end = (at + 4).min(bad.len());
                    bad[at..end].fill(0xff);
                }
            }
        }
        let begun = Instant::now();
        let (_, errors) = look(bad);
        assert!(begun.elapsed() < ROUND_TIME, "{name}: seed {seed} takes {:?}", begun.elapsed());
        with_errors += u64::from(errors > 0);
    }
    println!("{name}: {with_errors} of {rounds} gave errors");
    assert!(with_errors > rounds / 10, "{name}: hardly any damage was noticed, so little was done");
}

/// A guest writes what it likes on its disk; whoever lists the files of its past must be told so and live on.
#[test]
fn bent_ext4_gives_errors() {
    let temp = tempfile::tempdir().unwrap();
    batter("ext4", &images::ext4(temp.path(), 16 << 20));
}

#[test]
fn bent_fat_gives_errors() {
    if images::has("mkfs.vfat") {
        let temp = tempfile::tempdir().unwrap();
        batter("fat", &images::fat(temp.path(), 16 << 20));
    }
}

#[test]
fn bent_ntfs_gives_errors() {
    if images::has("mkntfs") {
        let temp = tempfile::tempdir().unwrap();
        batter("ntfs", &images::ntfs(temp.path(), 16 << 20));
    }
}
