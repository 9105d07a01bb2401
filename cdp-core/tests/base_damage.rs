//! A file of the base is gone, cut, zeroed, rotten or not where it belongs, and a restore gives zeros in the place of a machine's
//! files and calls them good; or a crash while history is folded makes such damage of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cdp_core::base::{Base, BaseWriter};
use cdp_core::error::Kind;
use cdp_core::format::base_map::BaseMap;
use cdp_core::ids::{BLOCK_BYTES, VolumeId};
use cdp_core::io::Files;
use cdp_core::io::sim::{Boundary, Chance, PowerLoss, SimDisk};

const BLOCK: usize = BLOCK_BYTES as usize;
const DIR: &str = "/volume";
const VOLUME: VolumeId = VolumeId(7);
const IMAGE: &str = "/volume/base.0000";
const SUMS: &str = "/volume/base.0000.sums";
const MAP: &str = "/volume/base.map";
/// Blocks of a page of the checksum file.
const PAGE: u64 = 1024;
const BLOCKS: u64 = 5 * PAGE;

type Content = BTreeMap<u64, Vec<u8>>;

fn block(seed: u64) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    (0..BLOCK / 8).flat_map(|_| chance.bits().to_le_bytes()).collect()
}

/// Page 1 has no block, page 3 one, the others some, dense and scattered, up to their ends.
fn content() -> Content {
    let lbas = (0..40).chain([100, 1023]).chain((2 * PAGE..2 * PAGE + 9).map(|lba| lba + 500));
    lbas.chain([3 * PAGE + 77, 4 * PAGE, 5 * PAGE - 1]).map(|lba| (lba, block(lba + 1))).collect()
}

fn made(disk: &SimDisk, content: &Content) {
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    files.create_dir(Path::new(DIR)).unwrap();
    let mut writer = BaseWriter::new(files.clone(), Path::new(DIR), VOLUME, BLOCKS * BLOCK_BYTES);
    for (lba, bytes) in content {
        writer.write(*lba, bytes).unwrap();
    }
    writer.finish().unwrap();
    files.sync_dir(Path::new("/")).unwrap();
}

fn opened(disk: &SimDisk) -> Base {
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    Base::open(&files, Path::new(DIR), VOLUME, BLOCKS * BLOCK_BYTES).unwrap()
}

/// Reads every block: it is what was written, or an error, and what was written is never called absent. Gives the blocks that are
/// errors.
fn judge(base: &Base, content: &Content, but: &BTreeSet<u64>) -> Result<BTreeSet<u64>, String> {
    let mut errors = BTreeSet::new();
    let zeros = vec![0; BLOCK];
    for first in (0..BLOCKS).step_by(64) {
        // Together where that works, else one by one.
        let mut bytes = vec![0xee; 64 * BLOCK];
        let together = but.range(first..first + 64).next().is_none() && base.read(first, &mut bytes).is_ok();
        for lba in (first..first + 64).filter(|lba| !but.contains(lba)) {
            let bytes = &mut bytes[(lba - first) as usize * BLOCK..][..BLOCK];
            if !together && let Err(error) = base.read(lba, bytes) {
                if error.kind() != Kind::Damaged {
                    return Err(format!("block {lba}: {error}"));
                }
                errors.insert(lba);
            } else if bytes != &content.get(&lba).unwrap_or(&zeros)[..] {
                return Err(format!("block {lba} is not what was written"));
            }
        }
    }
    let mut at = 0;
    while at < BLOCKS {
        let (end, present) = base.stretch(at, BLOCKS).map_err(|error| error.to_string())?;
        if let Some((lba, _)) = content.range(at..end).find(|(lba, _)| !present && !but.contains(lba)) {
            return Err(format!("block {lba} is called absent"));
        }
        at = end;
    }
    Ok(errors)
}

/// Damage of a kind: what it does, and blocks of which at least one has to be an error, no other but these.
struct Damage<'a> {
    name: String,
    doing: Box<dyn Fn(&SimDisk) + 'a>,
    hit: std::ops::Range<u64>,
}

fn damage<'a>(name: String, hit: std::ops::Range<u64>, doing: impl Fn(&SimDisk) + 'a) -> Damage<'a> {
    Damage { name, doing: Box::new(doing), hit }
}

fn every_damage(disk: &SimDisk) -> Vec<Damage<'static>> {
    let mut all = Vec::new();
    let blocks = |page: u64| page * PAGE..(page + 1) * PAGE;
    let at = |page: u64| ((page + 1) * BLOCK_BYTES) as usize;
    for page in [0, 2, 3, 4] {
        all.push(damage(format!("page {page} of the sums zeroed"), blocks(page), move |disk| {
            disk.mutate(SUMS, |bytes| bytes[at(page)..at(page) + BLOCK].fill(0)).unwrap();
        }));
        all.push(damage(format!("page {page} of the sums all ones"), blocks(page), move |disk| {
            disk.mutate(SUMS, |bytes| bytes[at(page)..at(page) + BLOCK].fill(0xff)).unwrap();
        }));
        all.push(damage(format!("the sums cut at page {page}"), page * PAGE..BLOCKS, move |disk| {
            disk.truncate(SUMS, at(page) as u64).unwrap();
        }));
        all.push(damage(format!("the sums cut in page {page}"), page * PAGE..BLOCKS, move |disk| {
            disk.truncate(SUMS, at(page) as u64 + 2050).unwrap();
        }));
        for other in (0..5).filter(|other| *other != page) {
            let name = format!("page {page} of the sums written over with page {other}");
            all.push(damage(name, blocks(page), move |disk| {
                disk.mutate(SUMS, |bytes| bytes.copy_within(at(other)..at(other) + BLOCK, at(page))).unwrap();
            }));
        }
        let name = format!("page {page} of the sums of another volume's empty base");
        all.push(damage(name, blocks(page), move |disk| {
            disk.mutate(SUMS, |bytes| {
                let mut entries = vec![0; PAGE as usize];
                cdp_core::format::base::Places::of(VolumeId(8)).mix(page * PAGE, &mut entries);
                let entries: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                bytes[at(page)..at(page) + BLOCK].copy_from_slice(&entries);
            })
            .unwrap();
        }));
        // A write that was lost: from before anything was in the page.
        let name = format!("page {page} of the sums as it was when nothing was there");
        all.push(damage(name, blocks(page), move |disk| {
            disk.mutate(SUMS, |bytes| {
                let mut entries = vec![0; PAGE as usize];
                cdp_core::format::base::Places::of(VOLUME).mix(page * PAGE, &mut entries);
                let entries: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                bytes[at(page)..at(page) + BLOCK].copy_from_slice(&entries);
            })
            .unwrap();
        }));
    }
    for lba in content().into_keys() {
        for bit in [0, 13, 31] {
            all.push(damage(format!("bit {bit} of the entry of block {lba}"), lba..lba + 1, move |disk| {
                disk.rot(SUMS, BLOCK_BYTES + lba * 4 + bit / 8, 1 << (bit % 8)).unwrap();
            }));
        }
        all.push(damage(format!("a bit of block {lba}"), lba..lba + 1, move |disk| {
            disk.rot(IMAGE, lba * BLOCK_BYTES + 1000, 4).unwrap();
        }));
    }
    all.push(damage("the entry of an absent block zeroed".into(), 500..501, |disk| {
        disk.mutate(SUMS, |bytes| bytes[BLOCK + 2000..BLOCK + 2004].fill(0)).unwrap();
    }));
    all.push(damage("the image cut".into(), 2 * PAGE..BLOCKS, |disk| {
        disk.truncate(IMAGE, 2 * PAGE * BLOCK_BYTES).unwrap();
    }));
    all.push(damage("the image empty".into(), 0..BLOCKS, |disk| disk.truncate(IMAGE, 0).unwrap()));
    all.push(damage("the image zeroed".into(), 0..BLOCKS, |disk| {
        disk.truncate(IMAGE, 0).unwrap();
        disk.truncate(IMAGE, BLOCKS * BLOCK_BYTES).unwrap();
    }));
    all.push(damage("the image written to where it has nothing".into(), 3000..3001, |disk| {
        disk.rot(IMAGE, 3000 * BLOCK_BYTES + 5, 1).unwrap();
    }));
    for path in [IMAGE, SUMS, MAP] {
        all.push(damage(format!("{path} missing"), 0..BLOCKS, move |disk| disk.disappear(path).unwrap()));
    }
    all.push(damage("all files missing".into(), 0..BLOCKS, |disk| {
        [IMAGE, SUMS, MAP].into_iter().for_each(|path| disk.disappear(path).unwrap());
    }));
    let len = disk.contents(MAP).unwrap().len() as u64;
    for byte in 0..len {
        all.push(damage(format!("byte {byte} of the map"), 0..BLOCKS, move |disk| {
            disk.rot(MAP, byte, 0x10).unwrap();
        }));
        all.push(damage(format!("the map cut to {byte} bytes"), 0..BLOCKS, move |disk| {
            disk.truncate(MAP, byte).unwrap();
        }));
    }
    all
}

#[test]
fn no_damage_reads_as_zeros() {
    let content = content();
    let disk = SimDisk::new(1);
    made(&disk, &content);
    let whole = disk.snapshot();
    assert_eq!(judge(&opened(&disk), &content, &BTreeSet::new()), Ok(BTreeSet::new()));
    assert!(opened(&disk).problems().is_empty());
    let all = every_damage(&disk);
    for Damage { name, doing, hit } in &all {
        let disk = disk.restore(&whole);
        doing(&disk);
        let errors = judge(&opened(&disk), &content, &BTreeSet::new());
        let errors = errors.unwrap_or_else(|broken| panic!("{name}: {broken}"));
        assert!(!errors.is_empty(), "{name}: nobody saw it");
        assert!(
            errors.iter().all(|lba| hit.contains(lba)),
            "{name}: {errors:?} are errors, damaged is {hit:?}"
        );
        // What was there and is not served has to be an error, not only something beside it.
        if hit.end - hit.start >= PAGE {
            let lost = content.range(hit.clone()).filter(|(lba, _)| errors.contains(lba)).count();
            assert!(lost > 0, "{name}");
        }
    }
    println!("{} kinds of damage", all.len());
}

/// The header is there for people and other programs: each entry proves itself.
#[test]
fn a_damaged_header_is_told_and_harms_nobody() {
    let disk = SimDisk::new(2);
    made(&disk, &content());
    disk.mutate(SUMS, |bytes| bytes[..BLOCK].fill(0)).unwrap();
    let base = opened(&disk);
    assert_eq!(judge(&base, &content(), &BTreeSet::new()), Ok(BTreeSet::new()));
    let problems = base.problems();
    assert_eq!((problems.len(), problems[0].extent), (1, None));
    assert!(base.takes_folds());
    base.sync().unwrap();
    assert!(opened(&disk).problems().is_empty(), "folding writes it again");
}

/// The judge itself: were absence to be believed as it once was, from files that say nothing, it would see it.
#[test]
fn absence_that_is_believed_would_be_found() {
    let disk = SimDisk::new(3);
    made(&disk, &content());
    let pieces = BTreeMap::new();
    disk.mutate(MAP, |bytes| *bytes = BaseMap { volume: VOLUME, pieces }.encode()).unwrap();
    assert!(judge(&opened(&disk), &content(), &BTreeSet::new()).is_err());
    // And whoever verifies sees what such a map hides.
    let strays = opened(&disk).strays().unwrap();
    let (end, present) = strays.stretch(0, BLOCKS).unwrap();
    assert!(present && end == 40, "{end}");
    assert!(strays.read(0, &mut vec![0; BLOCK]).is_err());
}

/// One fold: blocks that are put, ranges that are erased.
struct Fold {
    put: Content,
    erased: Vec<(u64, u64)>,
}

impl Fold {
    fn random(chance: &mut Chance) -> Fold {
        let puts = 1 + chance.below(12);
        let near = chance.below(BLOCKS);
        let lba = |chance: &mut Chance| match chance.percent(50) {
            true => chance.below(BLOCKS),
            false => (near + chance.below(30)).min(BLOCKS - 1),
        };
        let mut put = Content::new();
        for _ in 0..puts {
            put.insert(lba(chance), block(chance.bits()));
        }
        let mut erased = Vec::new();
        for _ in 0..chance.below(3) {
            let from = lba(chance);
            let most = if chance.percent(20) { 3000 } else { 20 };
            let to = (from + 1 + chance.below(most)).min(BLOCKS);
            put.retain(|lba, _| !(from..to).contains(lba));
            erased.push((from, to));
        }
        Fold { put, erased }
    }

    fn touched(&self) -> BTreeSet<u64> {
        self.put.keys().copied().chain(self.erased.iter().flat_map(|(from, to)| *from..*to)).collect()
    }

    fn carry_out(&self, base: &Base) -> cdp_core::error::Result<()> {
        for (lba, bytes) in &self.put {
            base.put(*lba, bytes, &[cdp_core::format::bytes::crc32(bytes)])?;
        }
        for (from, to) in &self.erased {
            base.erase(*from, *to)?;
        }
        base.sync()?;
        for (lba, bytes) in &self.put {
            base.check_put(*lba, &[cdp_core::format::bytes::crc32(bytes)], &[true])?;
        }
        self.erased.iter().try_for_each(|(from, to)| base.check_erased(*from, *to))
    }

    fn apply(&self, content: &mut Content) {
        content.extend(self.put.clone());
        for (from, to) in &self.erased {
            content.retain(|lba, _| !(*from..*to).contains(lba));
        }
    }
}

/// Whoever loses power while history is folded: blocks that the fold does not touch are what they were, and carried out again it is
/// whole. A page that came into use, a map that names it and the blocks in it go to the disk in any order that is not enforced.
#[test]
fn every_boundary_of_folding() {
    let mut crashes = 0;
    for seed in 0..24 {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(seed);
        let mut before = if chance.percent(30) { Content::new() } else { content() };
        made(&disk, &before);
        let first = Fold::random(&mut chance);
        first.carry_out(&opened(&disk)).unwrap();
        first.apply(&mut before);
        let (fold, base) = (Fold::random(&mut chance), opened(&disk));
        disk.record_boundaries(true);
        fold.carry_out(&base).unwrap();
        let boundaries: Vec<Boundary> = disk.take_boundaries();
        disk.record_boundaries(false);
        drop(base);
        let (touched, mut after) = (fold.touched(), before.clone());
        fold.apply(&mut after);
        let after_all = disk.crash_power_with(PowerLoss::all_lost());
        assert_eq!(judge(&opened(&after_all), &after, &BTreeSet::new()), Ok(BTreeSet::new()), "seed {seed}");
        let mut disk = after_all;
        for (number, boundary) in boundaries.iter().enumerate() {
            for loss in
                [PowerLoss::seeded(chance.bits()), PowerLoss::seeded(chance.bits()), PowerLoss::all_lost()]
            {
                crashes += 1;
                let at = format!("seed {seed}, boundary {number} of {}, {loss:?}", boundaries.len());
                disk = disk.restore(&boundary.snapshot);
                disk = disk.crash_power_with(loss);
                let base = opened(&disk);
                assert!(base.problems().is_empty(), "{at}");
                assert_eq!(judge(&base, &before, &touched), Ok(BTreeSet::new()), "{at}");
                fold.carry_out(&base).unwrap_or_else(|error| panic!("{at}: {error}"));
                disk = disk.crash_power_with(PowerLoss::all_lost());
                assert_eq!(judge(&opened(&disk), &after, &BTreeSet::new()), Ok(BTreeSet::new()), "{at}");
            }
        }
    }
    println!("{crashes} crashes");
}

/// A sync that failed leaves the cache lying; what is folded again after it must not count on a page that never came to the disk.
#[test]
fn a_failed_sync_is_not_believed() {
    use cdp_core::io::sim::{Fault, FaultKind, When};
    for seed in 0..40 {
        for file in ["base.0000", ".sums", "base.map"] {
            for kind in [FaultKind::SyncError, FaultKind::SyncErrorPartial, FaultKind::WriteError] {
                let mut chance = Chance::new(seed);
                let disk = SimDisk::new(seed);
                let mut content = content();
                made(&disk, &content);
                let (fold, base) = (Fold::random(&mut chance), opened(&disk));
                disk.inject(Fault::new(kind, When::Nth(1 + chance.below(2))).on(file));
                let _ = fold.carry_out(&base);
                disk.clear_faults();
                fold.carry_out(&base).unwrap();
                fold.apply(&mut content);
                let disk = disk.crash_power_with(PowerLoss::all_lost());
                let judged = judge(&opened(&disk), &content, &BTreeSet::new());
                assert_eq!(judged, Ok(BTreeSet::new()), "seed {seed}, {kind:?} of {file}");
            }
        }
    }
}

/// A first copy loses power anywhere, between its settlements too: what was settled is there, and going on makes it whole.
#[test]
fn every_boundary_of_filling() {
    let mut crashes = 0;
    for seed in 0..6 {
        let mut chance = Chance::new(seed);
        let disk = SimDisk::new(seed);
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        files.create_dir(Path::new(DIR)).unwrap();
        files.sync_dir(Path::new("/")).unwrap();
        let content = content();
        disk.record_boundaries(true);
        let mut writer = BaseWriter::new(files, Path::new(DIR), VOLUME, BLOCKS * BLOCK_BYTES);
        // Which blocks were settled, and with how many pieces, after so many operations of the disk.
        let mut settled = vec![(0, 0, 0)];
        let mut waiting = None;
        for (lba, bytes) in &content {
            writer.write(*lba, bytes).unwrap();
            // Synced by somebody else, while more is written.
            if let Some((unsynced, end, pieces)) = waiting.take_if(|_| chance.percent(60)) {
                let unsynced: cdp_core::base::Unsynced = unsynced;
                unsynced.sync().unwrap();
                settled.push((disk.operations(), end, pieces));
            }
            if waiting.is_none() && chance.percent(20) {
                waiting = Some((writer.take_unsynced(), *lba + 1, writer.pieces()));
            }
        }
        drop(waiting);
        let boundaries: Vec<Boundary> = disk.take_boundaries();
        disk.record_boundaries(false);
        let mut disk = disk.crash_process();
        for (number, boundary) in boundaries.iter().enumerate().step_by(3) {
            for loss in [PowerLoss::seeded(chance.bits()), PowerLoss::all_lost()] {
                crashes += 1;
                let at = format!("seed {seed}, boundary {number} of {}, {loss:?}", boundaries.len());
                disk = disk.restore(&boundary.snapshot);
                disk = disk.crash_power_with(loss);
                let (_, end, pieces) =
                    settled.iter().rfind(|(operations, ..)| *operations < boundary.operation).unwrap();
                let files: Arc<dyn Files> = Arc::new(disk.clone());
                let size_bytes = BLOCKS * BLOCK_BYTES;
                let mut writer =
                    BaseWriter::resume(files.clone(), Path::new(DIR), VOLUME, size_bytes, *pieces)
                        .unwrap_or_else(|error| panic!("{at}: {error}"));
                for (lba, bytes) in content.range(*end..) {
                    writer.write(*lba, bytes).unwrap();
                }
                writer.finish().unwrap();
                disk = disk.crash_power_with(PowerLoss::all_lost());
                assert_eq!(judge(&opened(&disk), &content, &BTreeSet::new()), Ok(BTreeSet::new()), "{at}");
            }
        }
    }
    println!("{crashes} crashes");
}
