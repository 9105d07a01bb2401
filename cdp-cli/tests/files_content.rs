//! The bytes of a file are those that the kernel reads: zeros where nothing was written, whatever lies on the disk.
//! They were the contents of deleted files, with exit code 0.

mod cli;
mod images;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cdp_cli::files::contain::Contained;
use cdp_cli::files::disk::Disk;
use cdp_cli::files::{self, EntryKind, table, walk};
use cdp_cli::host::command::run;
use cdp_core::error::{Error, Kind, Result};
use cli::Home;

const SECRET: &[u8] = b"SECRET--";

/// A mounted image; gone with it.
struct Mounted(PathBuf);

impl Mounted {
    /// None where the machine cannot do it; in CI that is a failure.
    fn new(image: &Path, dir: &Path) -> Option<Mounted> {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root || !Path::new("/dev/loop-control").exists() {
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI: root {is_root}, or no loop");
            eprintln!("SKIP: root {is_root}, or no loop devices");
            return None;
        }
        fs::create_dir_all(dir).unwrap();
        run("mount", ["-o", "loop", text(image), text(dir)]).unwrap();
        Some(Mounted(dir.to_owned()))
    }

    /// Every file below it, as the kernel reads it.
    fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let (mut found, mut open) = (BTreeMap::new(), vec![self.0.clone()]);
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => open.push(entry.path()),
                    kind if kind.is_file() => {
                        let name = entry.path().strip_prefix(&self.0).unwrap().to_owned();
                        found.insert(format!("/{}", name.display()), fs::read(entry.path()).unwrap());
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", [text(&self.0)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn open(image: &Path) -> Contained {
    let disk = Disk::new(fs::read(image).unwrap());
    let slots = table::read(&disk).unwrap();
    files::open(&disk, table::choose(&slots, None, "disk").unwrap()).unwrap()
}

fn read(tree: &mut Contained, path: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    tree.read(path, &mut |bytes| {
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(content)
}

/// Every file in it, as we read it.
fn content(image: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tree = open(image);
    let mut paths = Vec::new();
    walk::each_below(&mut tree, &[], &mut |path, entry| {
        if entry.kind == EntryKind::File {
            paths.push((path.to_vec(), entry.bytes));
        }
        Ok(())
    })
    .unwrap();
    let mut found = BTreeMap::new();
    for (path, bytes) in paths {
        let content =
            read(&mut tree, &path).unwrap_or_else(|error| panic!("{}: {error}", files::shown(&path)));
        assert_eq!(content.len() as u64, bytes, "{}", files::shown(&path));
        found.insert(files::shown(&path), content);
    }
    found
}

#[track_caller]
fn assert_same(ours: &BTreeMap<String, Vec<u8>>, kernels: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), kernels.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in kernels {
        let differs = bytes.iter().zip(&ours[name]).position(|(a, b)| a != b);
        assert!(bytes.len() == ours[name].len() && differs.is_none(), "{what}: {name} at {differs:?}");
    }
}

/// An image on which somebody's secrets lay before, all over it.
fn secret(path: &Path, bytes: usize) {
    fs::write(path, SECRET.repeat(bytes / SECRET.len())).unwrap();
}

fn written(path: &Path, at: impl IntoIterator<Item = u64>, bytes: usize) {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    for (number, at) in (1u8..=250).cycle().zip(at) {
        file.write_all_at(&vec![number; bytes], at).unwrap();
    }
}

/// A database sets its log aside, a download its length: what is printed of it must not be what others deleted.
#[test]
fn room_set_aside_and_holes_are_zeros_as_the_kernel_reads_them() {
    let temp = tempfile::tempdir().unwrap();
    let (image, dir) = (temp.path().join("disk.img"), temp.path().join("mounted"));
    for (kind, block) in
        [("ext4", "4096"), ("ext4", "1024"), ("ext3", "1024"), ("ext2", "1024"), ("ext2", "4096")]
    {
        secret(&image, 64 << 20);
        let mkfs = format!("mkfs.{kind}");
        run(&mkfs, ["-q", "-F", "-b", block, "-E", "nodiscard", text(&image)]).unwrap();
        let Some(mounted) = Mounted::new(&image, &dir) else { return };
        let at = |name: &str| mounted.0.join(name);
        if kind == "ext4" {
            let set_aside = |arguments: &[&str], name: &str| {
                run("fallocate", arguments.iter().copied().chain([text(&at(name))])).unwrap();
            };
            set_aside(&["-l", "1M"], "aside");
            set_aside(&["-l", "1M"], "begun");
            written(&at("begun"), [4096, 400_000, 1_000_000], 5000);
            written(&at("longer"), [0], 5000);
            set_aside(&["-n", "-l", "1M"], "longer");
            // More than one extent can hold: those that are never written are one block shorter.
            set_aside(&["-l", "36M"], "wide");
            written(&at("wide"), [35 << 20], 5000);
            set_aside(&["-p", "-o", "8K", "-l", "8K"], "begun");
        }
        // Many stretches: the tree has more than one level.
        written(&at("many"), (0..700).map(|i| i * 3 * 4096), 4096);
        written(&at("unaligned"), [10, 70_000, 300_001], 777);
        // Holes in place of whole blocks of numbers, of each kind.
        for (name, start) in
            [("once", 13 << 10), ("twice", 300 << 10), ("thrice", 68 << 20), ("far", 5 << 20)]
        {
            written(&at(name), [start + 100, start + (2 << 20)], 3000);
        }
        File::create(at("hole")).unwrap().set_len(3_000_001).unwrap();
        File::create(at("empty")).unwrap();
        let kernels = mounted.content();
        drop(mounted);
        assert_same(&content(&image), &kernels, &format!("{kind} {block}"));

        if (kind, block) == ("ext4", "4096") {
            let home = Home::new();
            home.json(&["create", "disk", "--from", text(&image)]);
            let printed = home.command(&["cat", "disk:/aside"]).output().unwrap();
            assert!(printed.status.success() && printed.stdout == vec![0; 1 << 20]);
            home.json(&["cp", "disk:/begun", "begun"]);
            assert!(fs::read(home.path("begun")).unwrap() == kernels["/begun"]);
            let told = home.json(&["cat", "disk:/wide"]);
            assert_eq!(told["blake3"], blake3::hash(&kernels["/wide"]).to_hex().as_str());
        }
    }
}

/// Nearly every instant of a live disk has its journal in use, and the journal goes round. A directory's block that
/// became a file's must be the file's.
#[test]
fn a_journal_in_use_is_read_as_the_kernel_replays_it() {
    let temp = tempfile::tempdir().unwrap();
    let (image, dir) = (temp.path().join("disk.img"), temp.path().join("mounted"));
    secret(&image, 24 << 20);
    let arguments = ["-q", "-F", "-b", "1024", "-J", "size=1", "-E", "nodiscard", text(&image)];
    run("mkfs.ext4", arguments).unwrap();
    // The journal is described at the first mount.
    let Some(first) = Mounted::new(&image, &dir) else { return };
    fs::write(dir.join("stays"), "stays\n").unwrap();
    drop(first);
    let mounted = Mounted::new(&image, &dir).unwrap();
    for round in 0..12 {
        let names = dir.join("names");
        fs::create_dir(&names).unwrap();
        for number in 0..150 {
            fs::write(names.join(format!("a-long-name-for-a-small-file-{number}")), "x").unwrap();
        }
        run("sync", ["-f", text(&dir)]).unwrap();
        fs::remove_dir_all(&names).unwrap();
        run("sync", ["-f", text(&dir)]).unwrap();
        // It takes all the room there is, also the directory's.
        let full = File::create(dir.join("full")).unwrap();
        let mut at = 0;
        while full.write_all_at(&[round; 1024], at).is_ok() {
            at += 1024;
        }
        drop(full);
        run("sync", ["-f", text(&dir)]).unwrap();
        let (copy, again) = (temp.path().join("copy.img"), temp.path().join("again"));
        fs::copy(&image, &copy).unwrap();
        let ours = content(&copy);
        assert_same(&ours, &mounted.content(), &format!("round {round}"));
        let replayed = Mounted::new(&copy, &again).unwrap();
        assert_same(&ours, &replayed.content(), &format!("round {round}, replayed"));
        drop(replayed);
        fs::remove_file(dir.join("full")).unwrap();
    }
}

/// The $DATA attribute of the file with this name, where it is in the image.
fn ntfs_data(image: &[u8], name: &str) -> usize {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let u32_at = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    for record in (0..image.len()).step_by(1024).filter(|at| image[*at..].starts_with(b"FILE")) {
        if !image[record..record + 1024].windows(name.len()).any(|part| part == name) {
            continue;
        }
        let mut at = record + usize::from(image[record + 20]);
        while u32_at(at) != u32::MAX as usize {
            if u32_at(at) == 0x80 && image[at + 8] == 1 {
                return at;
            }
            at += u32_at(at + 4);
        }
    }
    panic!("no such file");
}

/// Windows lengthens a file without writing it; the clusters hold what was there. And what is compressed or encrypted
/// is not its clusters.
#[test]
fn ntfs_is_zeros_beyond_what_was_initialized() {
    if !images::has("mkntfs") || !images::has("ntfscat") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = images::ntfs(temp.path(), 32 << 20);
    let good = fs::read(&image).unwrap();
    let data = ntfs_data(&good, "large");
    let large = [b"large".to_vec()];
    for valid in [0, 100, 4096, (2 << 20) + 513, 3 << 20] {
        let mut bytes = good.clone();
        bytes[data + 0x38..data + 0x40].copy_from_slice(&(valid as u64).to_le_bytes());
        fs::write(&image, &bytes).unwrap();
        let mut expected = images::large();
        expected[valid..].fill(0);
        let other =
            std::process::Command::new("ntfscat").arg("-f").arg(&image).arg("large").output().unwrap();
        assert!(other.status.success() && other.stdout == expected, "{valid}: another implementation");
        assert!(read(&mut open(&image), &large).unwrap() == expected, "{valid}");
    }
    for (flag, word) in [(1u16, "compressed"), (2, "compressed"), (0x4000, "encrypted")] {
        let mut bytes = good.clone();
        bytes[data + 0xc..data + 0xe].copy_from_slice(&flag.to_le_bytes());
        fs::write(&image, &bytes).unwrap();
        let error: Error = read(&mut open(&image), &large).unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.to_string().contains(word), "{error}");
    }
}

/// A file in a thousand pieces has its map in several records. It was cut off, or came out empty, without an error.
#[test]
fn ntfs_files_in_many_pieces_are_whole() {
    if !images::has("mkntfs") || !images::has("ntfs-3g") {
        return;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI: root and FUSE are wanted");
        eprintln!("SKIP: root and FUSE are wanted");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (image, dir) = (temp.path().join("disk.img"), temp.path().join("mounted"));
    fs::create_dir(&dir).unwrap();
    secret(&image, 16 << 20);
    run("mkntfs", ["--force", "--fast", "--quiet", text(&image)]).unwrap();
    run("ntfs-3g", [text(&image), text(&dir)]).unwrap();
    let mounted = Mounted(dir.clone());
    let (a, b) = (File::create(dir.join("pieces")).unwrap(), File::create(dir.join("others")).unwrap());
    for number in 0..1500u64 {
        let byte = [(number % 251) as u8 + 1; 4096];
        a.write_all_at(&byte, number * 4096 * if number > 900 { 2 } else { 1 }).unwrap();
        b.write_all_at(&byte, number * 4096).unwrap();
        if number % 2 == 0 {
            a.sync_all().unwrap();
        }
    }
    drop((a, b));
    let kernels = mounted.content();
    drop(mounted);
    let mut ours = content(&image);
    ours.retain(|name, _| kernels.contains_key(name));
    assert_same(&ours, &kernels, "NTFS");
}
