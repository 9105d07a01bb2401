//! Small images of real filesystems, made without mounting anything.

#![allow(dead_code)] // each test binary uses its part

use cdp_cli::host::command::{find, run};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub const LETTER: &[u8] = b"Dear reader\n";
/// 2024-01-02T03:04:05Z
pub const LETTER_TIME: u64 = 1_704_164_645;

/// Whether a program is there; in CI everything is.
pub fn has(program: &str) -> bool {
    let has = find(program).is_some();
    assert!(has || std::env::var_os("CI").is_none(), "{program} is missing in CI");
    if !has {
        eprintln!("SKIP: {program} is missing");
    }
    has
}

/// Content whose every 4 KiB differ, with a hole of a MiB in the middle.
pub fn large() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes[1 << 20..2 << 20].fill(0);
    bytes
}

/// A directory: `letter`, `large`, `deep/er/note`, `link` to the note, `away` out of the image, 300 small files.
pub fn tree(dir: &Path) -> PathBuf {
    let root = dir.join("tree");
    std::fs::create_dir_all(root.join("deep/er")).unwrap();
    std::fs::create_dir(root.join("many")).unwrap();
    std::fs::write(root.join("letter"), LETTER).unwrap();
    std::fs::write(root.join("large"), large()).unwrap();
    std::fs::write(root.join("deep/er/note"), "a note\n").unwrap();
    std::os::unix::fs::symlink("deep/er/note", root.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("away")).unwrap();
    for number in 0..300 {
        std::fs::write(root.join(format!("many/file-{number:03}")), format!("{number}\n")).unwrap();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(LETTER_TIME);
    File::open(root.join("letter")).unwrap().set_modified(time).unwrap();
    root
}

fn blank(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

pub fn ext4(dir: &Path, bytes: u64) -> PathBuf {
    let image = dir.join("ext4.img");
    blank(&image, bytes);
    let (tree, image_text) = (tree(dir), image.to_str().unwrap());
    run("mkfs.ext4", ["-q", "-d", tree.to_str().unwrap(), image_text]).unwrap();
    image
}

/// Written by another implementation than the one that reads it would be better still; `mtools` is not everywhere.
pub fn fat(dir: &Path, bytes: u64) -> PathBuf {
    let image = dir.join("fat.img");
    blank(&image, bytes);
    run("mkfs.vfat", ["-n", "PAST", image.to_str().unwrap()]).unwrap();
    let disk = File::options().read(true).write(true).open(&image).unwrap();
    let fs = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
    let root = fs.root_dir();
    let put = |name: &str, bytes: &[u8]| root.create_file(name).unwrap().write_all(bytes).unwrap();
    root.create_dir("deep").unwrap().create_dir("er").unwrap();
    put("letter", LETTER);
    put("a long name of a file.text", &large());
    put("deep/er/note", b"a note\n");
    drop(root);
    fs.unmount().unwrap();
    image
}

pub fn ntfs(dir: &Path, bytes: u64) -> PathBuf {
    let image = dir.join("ntfs.img");
    blank(&image, bytes);
    let text = image.to_str().unwrap();
    run("mkntfs", ["--force", "--fast", "--quiet", text]).unwrap();
    let source = dir.join("content");
    for (name, bytes) in [("letter", LETTER.to_vec()), ("large", large())] {
        std::fs::write(&source, bytes).unwrap();
        run("ntfscp", ["--force", "--quiet", text, source.to_str().unwrap(), name]).unwrap();
    }
    std::fs::write(&source, "small").unwrap();
    for number in 0..40 {
        let name = format!("file-{number:03}");
        run("ntfscp", ["--force", "--quiet", text, source.to_str().unwrap(), &name]).unwrap();
    }
    image
}

/// A disk with an MBR and a partition for each image, in order.
pub fn partitioned(dir: &Path, images: &[&Path]) -> PathBuf {
    const MIB: u64 = 1 << 20;
    let disk = dir.join("disk.img");
    let mut file = File::create(&disk).unwrap();
    let mut at = MIB;
    let mut table = vec![0; 512];
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    for (number, image) in images.iter().enumerate() {
        let mut bytes = Vec::new();
        File::open(image).unwrap().read_to_end(&mut bytes).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes).unwrap();
        let entry = &mut table[446 + 16 * number..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&((at / 512) as u32).to_le_bytes());
        entry[12..].copy_from_slice(&((bytes.len() / 512) as u32).to_le_bytes());
        at += (bytes.len() as u64).next_multiple_of(MIB);
    }
    file.set_len(at).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&table).unwrap();
    disk
}
