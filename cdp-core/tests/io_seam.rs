//! One suite for all implementations of the file seam: whoever swaps one for another must notice nothing.

use std::io::{self, ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;

use cdp_core::io::posix::Posix;
use cdp_core::io::sim::{Chance, SimDisk};
use cdp_core::io::uring::Uring;
use cdp_core::io::{Clock, File, Files, GatheredRead, SystemClock, native, read_file, replace_file};

/// The suite, in a directory that is empty and goes away afterwards.
fn conforms(files: &dyn Files, root: &Path) {
    bytes_come_back(files, root);
    many_buffers_are_one_write(files, root);
    bulk_is_written_like_anything_else(files, root);
    names_behave(files, root);
    renaming_replaces(files, root);
    lengths_and_holes(files, root);
    allocation_keeps_what_is_there(files, root);
    locks_exclude_and_name_their_holder(files, root);
    gathered_reads_each_have_a_result(files, root);
    random_writes_match_a_model(files, root);
    small_files_are_replaced(files, root);
    removed_files_stay_readable_for_who_has_them(files, root);
    assert!(files.space(root).unwrap().available <= files.space(root).unwrap().total);
}

fn write(file: &dyn File, offset: u64, data: &[u8]) {
    file.write_at(offset, &[IoSlice::new(data)]).unwrap();
}

fn read(file: &dyn File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0xee; len];
    file.read_at(offset, &mut buffer)?;
    Ok(buffer)
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// The journal reads back what it wrote, through this handle and others, and learns where a file ends.
fn bytes_come_back(files: &dyn Files, root: &Path) {
    let path = root.join("bytes");
    let file = files.create(&path).unwrap();
    assert_eq!(file.len().unwrap(), 0);
    write(&*file, 10, b"hello");
    assert_eq!(file.len().unwrap(), 15);
    assert_eq!(read(&*file, 8, 7).unwrap(), b"\0\0hello");
    assert_eq!(kind(read(&*file, 10, 6)), ErrorKind::UnexpectedEof);
    assert_eq!(kind(read(&*file, 1000, 1)), ErrorKind::UnexpectedEof);
    assert_eq!(read(&*file, 15, 0).unwrap(), b"");
    file.sync().unwrap();
    let other = files.open(&path, false).unwrap();
    assert_eq!(read(&*other, 10, 5).unwrap(), b"hello");
    assert!(other.write_at(0, &[IoSlice::new(b"x")]).is_err(), "a read-only handle must not write");
    write(&*files.open(&path, true).unwrap(), 11, b"u");
    assert_eq!(read(&*other, 10, 5).unwrap(), b"hullo");
    file.start_writeback(0, 15);
}

/// A batch goes out as header and payload pieces; more of them than one system call takes, some empty.
fn many_buffers_are_one_write(files: &dyn Files, root: &Path) {
    let file = files.create(&root.join("buffers")).unwrap();
    let parts: Vec<Vec<u8>> = (0..3000usize).map(|n| vec![n as u8; n % 7]).collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.write_at(5, &slices).unwrap();
    assert_eq!(read(&*file, 5, parts.concat().len()).unwrap(), parts.concat());
    file.write_at(0, &[]).unwrap();
    file.write_at(0, &[IoSlice::new(b""), IoSlice::new(b"")]).unwrap();
    assert_eq!(file.len().unwrap(), 5 + parts.concat().len() as u64);
}

/// Opening a store depends on telling "missing" from "there already" from "not a directory".
/// A stream goes another way to the disk (past the page cache, where the system can), beside small writes that do
/// not: whoever reads gets the newest bytes, before and after the sync, and an error stays an error.
fn bulk_is_written_like_anything_else(files: &dyn Files, root: &Path) {
    let path = root.join("bulk");
    let file = files.create(&path).unwrap();
    let parts: Vec<Vec<u8>> = (1..=8u8).map(|n| vec![n; 64 << 10]).collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.write_bulk_at(4096, &slices).unwrap();
    assert_eq!(read(&*file, 4096, 512 << 10).unwrap(), parts.concat());
    write(&*file, 8192, &[9; 4096]);
    file.write_bulk_at(12288, &[IoSlice::new(&[10; 4096])]).unwrap();
    file.sync().unwrap();
    let mut expected = parts.concat();
    expected[4096..8192].fill(9);
    expected[8192..12288].fill(10);
    assert_eq!(read(&*file, 4096, 512 << 10).unwrap(), expected);
    assert_eq!(file.len().unwrap(), 4096 + (512 << 10));
    assert!(files.open(&path, false).unwrap().write_bulk_at(0, &slices).is_err());
}

fn names_behave(files: &dyn Files, root: &Path) {
    let directory = root.join("names");
    files.create_dir(&directory).unwrap();
    assert_eq!(kind(files.create_dir(&directory)), ErrorKind::AlreadyExists);
    assert_eq!(kind(files.create_dir(&root.join("missing/inner"))), ErrorKind::NotFound);
    files.create(&directory.join("b")).unwrap();
    files.create(&directory.join("a")).unwrap();
    files.create_dir(&directory.join("c")).unwrap();
    files.create(&directory.join("c/inner")).unwrap();
    assert_eq!(kind(files.create(&directory.join("a"))), ErrorKind::AlreadyExists);
    assert_eq!(kind(files.open(&directory.join("z"), true)), ErrorKind::NotFound);
    assert_eq!(kind(files.open(&directory.join("a/inner"), true)), ErrorKind::NotADirectory);
    assert_eq!(kind(files.open(&directory, false)), ErrorKind::IsADirectory);
    assert_eq!(kind(files.remove(&directory.join("z"))), ErrorKind::NotFound);
    assert_eq!(kind(files.list(&directory.join("z"))), ErrorKind::NotFound);
    assert_eq!(kind(files.sync_dir(&directory.join("z"))), ErrorKind::NotFound);
    assert_eq!(kind(files.sync_dir(&directory.join("a"))), ErrorKind::NotADirectory);
    files.sync_dir(&directory).unwrap();
    let list = || -> Vec<(String, bool)> {
        files.list(&directory).unwrap().into_iter().map(|entry| (entry.name, entry.is_dir)).collect()
    };
    assert_eq!(list(), [("a".into(), false), ("b".into(), false), ("c".into(), true)]);
    files.remove(&directory.join("a")).unwrap();
    assert_eq!(list(), [("b".into(), false), ("c".into(), true)]);
    files.remove_dir_all(&directory).unwrap();
    assert_eq!(kind(files.list(&directory)), ErrorKind::NotFound);
    assert_eq!(kind(files.remove_dir_all(&directory)), ErrorKind::NotFound);
}

/// Segments are recycled and manifests replaced by renaming: open handles follow the file, the target goes.
fn renaming_replaces(files: &dyn Files, root: &Path) {
    let (old, new) = (root.join("old"), root.join("new"));
    let first = files.create(&old).unwrap();
    write(&*first, 0, b"first");
    write(&*files.create(&new).unwrap(), 0, b"second");
    files.rename(&old, &new).unwrap();
    assert_eq!(kind(files.open(&old, false)), ErrorKind::NotFound);
    write(&*first, 5, b"!");
    assert_eq!(read_file(files, &new, 100).unwrap(), b"first!");
    assert_eq!(kind(files.rename(&old, &new)), ErrorKind::NotFound);

    let (here, there) = (root.join("here"), root.join("there"));
    files.create_dir(&here).unwrap();
    files.rename(&new, &here.join("moved")).unwrap();
    files.rename(&here, &there).unwrap();
    assert_eq!(read_file(files, &there.join("moved"), 100).unwrap(), b"first!");
    write(&*first, 0, b"F");
    assert_eq!(read_file(files, &there.join("moved"), 100).unwrap(), b"First!");
    assert_eq!(kind(read_file(files, &there.join("moved"), 5)), ErrorKind::InvalidData);
}

/// The base is a sparse file: its holes cost nothing and are skipped when it is read.
fn lengths_and_holes(files: &dyn Files, root: &Path) {
    let file = files.create(&root.join("holes")).unwrap();
    file.set_len(8 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 8 << 20);
    assert!(read(&*file, 0, 8 << 20).unwrap().iter().all(|&byte| byte == 0));
    write(&*file, 5 << 20, &[1; 4096]);
    file.sync().unwrap();
    let found = file.next_data(0).unwrap().expect("there is data");
    assert!(found <= 5 << 20, "data at 5 MiB was skipped: {found}");
    assert_eq!(file.next_data((5 << 20) + 7).unwrap(), Some((5 << 20) + 7));
    assert_eq!(file.next_data(8 << 20).unwrap(), None);
    assert_eq!(file.next_data(9 << 20).unwrap(), None);
    write(&*file, 0, &[7; 10_000]);
    file.set_len(5000).unwrap();
    file.set_len(10_000).unwrap();
    let bytes = read(&*file, 0, 10_000).unwrap();
    assert!(bytes[..5000].iter().all(|&byte| byte == 7) && bytes[5000..].iter().all(|&byte| byte == 0));
}

/// A segment is allocated when the pool makes it, so that an acknowledged write never meets a full disk.
fn allocation_keeps_what_is_there(files: &dyn Files, root: &Path) {
    let file = files.create(&root.join("allocated")).unwrap();
    write(&*file, 100, b"kept");
    file.allocate(0, 1 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20);
    let bytes = read(&*file, 0, 1 << 20).unwrap();
    assert_eq!(&bytes[100..104], b"kept");
    assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 4);
    file.allocate(4096, 4096).unwrap();
    file.allocate(0, 0).unwrap_or(());
    assert_eq!(file.len().unwrap(), 1 << 20);
}

/// A second server on the same store must be refused, and told who has it.
fn locks_exclude_and_name_their_holder(files: &dyn Files, root: &Path) {
    let path = root.join("lock");
    let first = files.lock(&path, "pid 1 on host a").unwrap();
    let refused = files.lock(&path, "pid 2").err().expect("a second lock must be refused");
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    assert!(refused.to_string().contains("pid 1 on host a"), "{refused}");
    drop(first);
    let second = files.lock(&path, "pid 3").unwrap();
    assert_eq!(read_file(files, &path, 100).unwrap(), b"pid 3");
    drop(second);
}

/// One bad piece of a large read must not spoil the others, and more pieces than the ring is deep must all come.
fn gathered_reads_each_have_a_result(files: &dyn Files, root: &Path) {
    const COUNT: usize = 700;
    let (one, two) = (files.create(&root.join("one")).unwrap(), files.create(&root.join("two")).unwrap());
    let content: Vec<u8> = (0..COUNT * 600).map(|at| (at / 600 + at % 251) as u8).collect();
    write(&*one, 0, &content);
    write(&*two, 100, &content);
    let short = (COUNT * 600 - 10) as u64;
    for count in [0, 1, 2, 3, 127, 128, 129, COUNT] {
        let mut buffers = vec![vec![0xee; 600]; count];
        let mut reads = Vec::new();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let (file, offset) = match index % 5 {
                0 => (&one, index as u64 * 600),
                1 => (&two, index as u64 * 600 + 100),
                2 => (&one, short),
                3 => (&two, u64::MAX),
                _ => (&one, index as u64 * 600),
            };
            let buffer: &mut [u8] = if index % 5 == 4 { &mut buffer[..0] } else { buffer };
            reads.push(GatheredRead { file: file.clone(), offset, buffer, result: Ok(()) });
        }
        files.read_gathered(&mut reads);
        let results: Vec<_> = reads.into_iter().map(|read| read.result).collect();
        for (index, result) in results.into_iter().enumerate() {
            match index % 5 {
                0 | 1 => {
                    result.unwrap();
                    assert_eq!(buffers[index], content[index * 600..][..600], "read {index} of {count}");
                }
                2 => assert_eq!(kind(result), ErrorKind::UnexpectedEof, "read {index} of {count}"),
                3 => assert!(result.is_err(), "read {index} of {count} at an impossible offset"),
                _ => result.unwrap(),
            }
        }
    }
    let mut large = vec![0; COUNT * 600];
    let (left, right) = large.split_at_mut(100_000);
    let mut reads = [(0, left), (100_000, right)].map(|(offset, buffer)| GatheredRead {
        file: one.clone(),
        offset,
        buffer,
        result: Ok(()),
    });
    files.read_gathered(&mut reads);
    assert!(reads.iter().all(|read| read.result.is_ok()));
    assert_eq!(large, content);
}

/// Whatever the order of writes, cuts and allocations, the file is what a plain array would be.
fn random_writes_match_a_model(files: &dyn Files, root: &Path) {
    const SEED: u64 = 0x5eed_0010;
    let mut chance = Chance::new(SEED);
    let file = files.create(&root.join("random")).unwrap();
    let mut model: Vec<u8> = Vec::new();
    for step in 0..400 {
        let offset = chance.below(200_000);
        let len = chance.below(20_000);
        match chance.below(10) {
            0 => {
                file.set_len(offset).unwrap();
                model.resize(offset as usize, 0);
            }
            1 if len > 0 => {
                file.allocate(offset, len).unwrap();
                model.resize(model.len().max((offset + len) as usize), 0);
            }
            2 => file.sync().unwrap(),
            _ => {
                let data: Vec<u8> = (0..len).map(|_| chance.bits() as u8).collect();
                let cut = chance.below(len + 1) as usize;
                file.write_at(offset, &[IoSlice::new(&data[..cut]), IoSlice::new(&data[cut..])]).unwrap();
                if len > 0 {
                    model.resize(model.len().max((offset + len) as usize), 0);
                    model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                }
            }
        }
        assert_eq!(file.len().unwrap(), model.len() as u64, "seed {SEED:#x} step {step}");
        let from = chance.below(model.len() as u64 + 1) as usize;
        let to = from + chance.below((model.len() - from) as u64 + 1) as usize;
        assert!(
            read(&*file, from as u64, to - from).unwrap() == model[from..to],
            "seed {SEED:#x} step {step}"
        );
    }
    assert!(read(&*file, 0, model.len()).unwrap() == model, "seed {SEED:#x}");
}

/// Manifests are replaced whole; what an interrupted attempt left behind is no obstacle.
fn small_files_are_replaced(files: &dyn Files, root: &Path) {
    let path = root.join("manifest");
    replace_file(files, &path, b"one").unwrap();
    files.create(&root.join("manifest.new")).unwrap();
    replace_file(files, &path, b"two").unwrap();
    assert_eq!(read_file(files, &path, 3).unwrap(), b"two");
    assert_eq!(kind(files.open(&root.join("manifest.new"), false)), ErrorKind::NotFound);
}

/// A reader of a segment that expires goes on to its end.
fn removed_files_stay_readable_for_who_has_them(files: &dyn Files, root: &Path) {
    let path = root.join("removed");
    let file = files.create(&path).unwrap();
    write(&*file, 0, b"still here");
    files.remove(&path).unwrap();
    files.sync_dir(root).unwrap();
    assert_eq!(read(&*file, 0, 10).unwrap(), b"still here");
    files.create(&path).unwrap();
    assert_eq!(read_file(files, &path, 10).unwrap(), b"");
}

#[test]
fn posix_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&Posix, directory.path());
}

/// io_uring, or null where this machine refuses it. In CI that is a failure: it would test nothing for ever.
fn uring() -> Option<Uring> {
    match Uring::probe() {
        Ok(uring) => Some(uring),
        Err(error) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "io_uring is refused in CI: {error}");
            eprintln!("\n*** SKIPPED: io_uring is refused on this machine: {error} ***\n");
            None
        }
    }
}

#[test]
fn uring_conforms() {
    let Some(uring) = uring() else { return };
    let directory = tempfile::tempdir().unwrap();
    conforms(&uring, directory.path());
}

/// Reads of many threads share the pool of rings; none may get another's bytes.
#[test]
fn uring_serves_many_threads() {
    let Some(uring) = uring() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = uring.create(&directory.path().join("shared")).unwrap();
    for block in 0..512u64 {
        write(&*file, block * 4096, &[block as u8; 4096]);
    }
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (uring, file) = (&uring, &file);
            scope.spawn(move || {
                let mut chance = Chance::new(thread);
                for _ in 0..50 {
                    let blocks: Vec<u64> = (0..40).map(|_| chance.below(512)).collect();
                    let mut buffers = vec![[0u8; 4096]; blocks.len()];
                    let mut reads: Vec<_> = blocks
                        .iter()
                        .zip(&mut buffers)
                        .map(|(block, buffer)| GatheredRead {
                            file: file.clone(),
                            offset: block * 4096,
                            buffer,
                            result: Ok(()),
                        })
                        .collect();
                    uring.read_gathered(&mut reads);
                    assert!(reads.iter().all(|read| read.result.is_ok()));
                    drop(reads);
                    for (block, buffer) in blocks.iter().zip(&buffers) {
                        assert!(buffer.iter().all(|&byte| byte == *block as u8), "thread {thread}");
                    }
                }
            });
        }
    });
}

#[test]
fn the_simulated_disk_conforms() {
    let disk = SimDisk::new(1);
    let root = Path::new("/store");
    disk.create_dir(root).unwrap();
    conforms(&disk, root);
}

/// `status` and the server ask for the machine's files by preference only; both answers must work.
#[test]
fn native_files_work_either_way() {
    assert_eq!(native(false).name(), "posix");
    let preferred: Arc<dyn Files> = native(true);
    assert!(["posix", "io_uring"].contains(&preferred.name()));
    assert_eq!(preferred.name() == "io_uring", Uring::probe().is_ok());
}

/// Timestamps come from here: nanoseconds since 1970, and elapsed time that only grows.
#[test]
fn the_system_clock_runs() {
    let clock = SystemClock;
    let reference = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(u128::from(clock.wall_ns()).abs_diff(reference.as_nanos()) < 60_000_000_000);
    let before = clock.elapsed_ns();
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert!(clock.elapsed_ns() >= before + 2_000_000);
    assert_ne!(clock.random(), clock.random());
}
