//! Files out of the past, with and without a server: what is listed, printed and copied, and what is refused.

mod cli;
mod images;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use cli::*;
use images::{LETTER, LETTER_TIME};

fn home_with(image: &Path) -> Home {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--from", image.to_str().unwrap()]).code, 0);
    home
}

fn names(listing: &serde_json::Value) -> Vec<String> {
    let entries = listing["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect()
}

fn bytes_of(home: &Home, target: &str) -> Vec<u8> {
    let output = home.command(&["cat", target]).output().unwrap();
    assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// 3 a.m.: a deleted file, out of the minute before, without root and without a mount.
#[test]
fn a_file_that_was_destroyed_is_read_from_before() {
    let temp = tempfile::tempdir().unwrap();
    let image = images::ext4(temp.path(), 32 << 20);
    let home = home_with(&image);
    home.json(&["mark", "disk", "good"]);
    let served = home.serve(&[]);
    put(&mut served.connect("disk").unwrap(), 0, &vec![0xff; 8 << 20]).unwrap();
    let check = || {
        assert_eq!(home.run(&["ls", "disk:/"]).code, 2, "the live disk holds nothing any more");
        assert_eq!(bytes_of(&home, "disk@good:/letter"), LETTER);
        assert_eq!(bytes_of(&home, "disk@before:good:/large"), images::large());
        assert_eq!(bytes_of(&home, "disk@good:/link"), b"a note\n", "a link inside is followed");
        let listing = home.json(&["ls", "disk@good:/"]);
        assert_eq!(listing["filesystem"], "ext4");
        let all = names(&listing);
        for name in ["/letter", "/large", "/deep", "/link", "/away", "/many", "/lost+found"] {
            assert!(all.contains(&name.to_owned()), "{name} in {all:?}");
        }
        assert_eq!(names(&home.json(&["ls", "disk@good:/many"])).len(), 300);
        assert!(names(&home.json(&["ls", "-R", "disk@good:/"])).contains(&"/deep/er/note".to_owned()));
        let long = home.run(&["ls", "-l", "disk@good:/letter"]);
        assert!(
            long.out.contains("-rw-r--r--") && long.out.contains("12 2024-01-02 03:04:05 letter"),
            "{long:?}"
        );
        for (target, code) in [("disk@good:/nope", 5), ("disk@nope:/letter", 5), ("disk@good:/letter/x", 5)] {
            assert_eq!(home.run(&["ls", target]).code, code, "{target}");
        }
        // The image's /etc is not ours.
        assert_eq!(home.run(&["cat", "disk@good:/away/passwd"]).code, 5);
        assert_eq!(home.run(&["cat", "disk@good:/deep"]).code, 2);
        assert_eq!(home.run(&["cat", "disk@good"]).code, 2);
    };
    check();
    served.stop();
    check();
}

/// Root brings a directory back for people who have to be able to use it; nobody else can give files away, and root need not.
#[test]
fn owners_come_back_with_root() {
    let temp = tempfile::tempdir().unwrap();
    let image = images::ext4(temp.path(), 32 << 20);
    for (name, field, value) in [
        ("/letter", "uid", "1234"),
        ("/letter", "gid", "1235"),
        ("/deep", "uid", "4321"),
        ("/large", "uid", "4294967295"),
    ] {
        let set = format!("set_inode_field {name} {field} {value}");
        let ran =
            std::process::Command::new("debugfs").args(["-w", "-R", &set]).arg(&image).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }
    let home = home_with(&image);
    let mine = rustix::process::geteuid().as_raw();
    let owners = |dir: &str| -> Vec<u32> {
        let of = |name: &str| home.path(dir).join(name).symlink_metadata().unwrap().uid();
        ["letter", "deep", "large", "deep/er/note"].map(of).to_vec()
    };
    let copied = home.json(&["cp", "-r", "disk:/", "out"]);
    assert_eq!(copied["copied"]["problems"].as_array().unwrap().len(), 0, "{copied}");
    let listed = home.json(&["ls", "disk:/letter"])["entries"][0]["owner"].clone();
    assert_eq!(listed, serde_json::json!([1234, 1235]));
    // The kernel has no user with the last number.
    let there = [1234, 4321, mine, std::fs::metadata(&image).unwrap().uid()];
    assert_eq!(owners("out"), if mine == 0 { there.to_vec() } else { vec![mine; 4] });
    assert_eq!(home.path("out/letter").metadata().unwrap().gid() == 1235, mine == 0);
    home.json(&["cp", "-r", "--no-owners", "disk:/", "plain"]);
    assert_eq!(owners("plain"), [mine; 4]);
}

/// A whole directory comes back with its times and permissions, and nothing that is there is lost without a word.
#[test]
fn directories_are_copied_with_times_and_nothing_is_overwritten_unasked() {
    let temp = tempfile::tempdir().unwrap();
    let home = home_with(&images::ext4(temp.path(), 32 << 20));
    let out = home.path("out");
    assert_eq!(home.run(&["cp", "disk:/", "out"]).code, 2, "-r is wanted");
    let copied = home.json(&["cp", "-r", "disk:/", "out"]);
    assert_eq!(copied["copied"]["files"], 303);
    assert_eq!(copied["copied"]["problems"].as_array().unwrap().len(), 0);
    for name in ["letter", "large", "deep/er/note", "many/file-299"] {
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            std::fs::read(temp.path().join("tree").join(name)).unwrap(),
            "{name}"
        );
    }
    let letter = out.join("letter").metadata().unwrap();
    assert_eq!((letter.mtime() as u64, letter.mode() & 0o7777), (LETTER_TIME, 0o644));
    assert!(out.join("large").metadata().unwrap().blocks() * 512 < 3 << 20, "holes stay holes");
    assert_eq!(std::fs::read_link(out.join("away")).unwrap(), Path::new("/etc"));

    std::fs::write(home.path("letter"), "mine").unwrap();
    assert_eq!(home.run(&["cp", "disk:/letter", "letter"]).code, 4);
    assert_eq!(home.run(&["cp", "disk:/letter", "."]).code, 4);
    assert_eq!(std::fs::read(home.path("letter")).unwrap(), b"mine");
    assert_eq!(home.run(&["cp", "--force", "disk:/letter", "."]).code, 0);
    assert_eq!(std::fs::read(home.path("letter")).unwrap(), LETTER);
    assert_eq!(home.run(&["cp", "-r", "disk:/deep", "out"]).code, 4);
    assert_eq!(home.run(&["cp", "-r", "--force", "disk:/deep", "out"]).code, 0);
}

/// An image with a directory where the target has a link out of it: nothing is written through the link.
#[test]
fn a_copy_does_not_leave_its_target_through_links() {
    let temp = tempfile::tempdir().unwrap();
    let home = home_with(&images::ext4(temp.path(), 32 << 20));
    std::fs::create_dir_all(home.path("outside/er")).unwrap();
    std::fs::create_dir(home.path("out")).unwrap();
    std::os::unix::fs::symlink(home.path("outside"), home.path("out/deep")).unwrap();
    let ran = home.run(&["cp", "-r", "--force", "disk:/", "out"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("deep"), "{ran:?}");
    assert!(!home.path("outside/er/note").exists(), "written through the link");
    assert!(home.path("out/letter").exists(), "the others are copied");
    // A set-uid program of the image must not become one here.
    assert_eq!(home.path("out/letter").metadata().unwrap().permissions().mode() & 0o7000, 0);
}

/// A disk as virtual machines have it: partitions. One filesystem is found by itself, of several one is named, and
/// what is not read here is named with the line that mounts it.
#[test]
fn partitions_are_found_and_other_filesystems_named() {
    if !images::has("mkfs.vfat") || !images::has("mkfs.xfs") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let ext4 = images::ext4(temp.path(), 32 << 20);
    let fat = images::fat(temp.path(), 16 << 20);
    let xfs = temp.path().join("xfs.img");
    std::fs::File::create(&xfs).unwrap().set_len(320 << 20).unwrap();
    cdp_cli::host::command::run("mkfs.xfs", ["-q", "-f", xfs.to_str().unwrap()]).unwrap();
    let home = home_with(&images::partitioned(temp.path(), &[&fat, &ext4, &xfs]));
    let slots = home.json(&["ls", "disk@latest:"]);
    let held: Vec<_> = slots["disk"].as_array().unwrap().iter().map(|slot| slot["holds"].clone()).collect();
    assert_eq!(held, ["FAT", "ext4", "xfs"]);
    let ran = home.run(&["ls", "disk:/"]);
    assert!(ran.code == 2 && ran.err.contains("--partition 1"), "{ran:?}");
    let ran = home.run(&["ls", "--partition", "3", "disk@latest:/"]);
    assert!(ran.code == 2 && ran.err.contains("cdp mount --partition 3 disk@latest DIR"), "{ran:?}");
    assert_eq!(home.run(&["ls", "--partition", "4", "disk:/"]).code, 5);
    let get = |partition: &str, path: &str| {
        let output = home.command(&["cat", "--partition", partition, path]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    assert_eq!(get("2", "disk:/letter"), LETTER);
    assert_eq!(get("1", "disk:/DEEP/er/note"), b"a note\n", "FAT knows no case");
    assert_eq!(get("1", "disk:/a long name of a file.text"), images::large());
    let home = home_with(&images::partitioned(temp.path(), &[&xfs, &fat]));
    assert_eq!(bytes_of(&home, "disk:/letter"), LETTER, "the only one that can be read");
}

/// A Windows disk.
#[test]
fn ntfs_is_read() {
    if !images::has("mkntfs") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let home = home_with(&images::ntfs(temp.path(), 32 << 20));
    assert_eq!(bytes_of(&home, "disk:/letter"), LETTER);
    assert_eq!(bytes_of(&home, "disk:/large"), images::large());
    let all = home.json(&["ls", "disk:/"]);
    assert_eq!((all["filesystem"].as_str().unwrap(), names(&all).len()), ("NTFS", 42));
    assert!(all["entries"][0]["modified"].as_str().unwrap().starts_with("20"), "{all}");
}

/// Neither nothing nor swap space is a filesystem, and a group has no files of its own.
#[test]
fn what_is_no_filesystem_is_named() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "16M"]);
    let ran = home.run(&["ls", "disk:/"]);
    assert!(ran.code == 2 && ran.err.contains("empty"), "{ran:?}");
    home.json(&["group", "create", "all", "disk"]);
    assert_eq!(home.run(&["ls", "all@latest:/"]).code, 2);
    assert_eq!(home.run(&["ls", "nope:/"]).code, 5);
    let served = home.serve(&[]);
    put(&mut served.connect("disk").unwrap(), 4086, b"SWAPSPACE2").unwrap();
    let ran = home.run(&["ls", "disk:/"]);
    assert!(ran.code == 2 && ran.err.contains("swap"), "{ran:?}");
}

/// A disk that comes from another hypervisor, and one that goes there: the same bytes.
#[test]
fn images_of_other_formats_come_in_and_go_out() {
    if !images::has("qemu-img") || !images::has("qemu-nbd") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let raw = images::ext4(temp.path(), 32 << 20);
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let qemu =
        |arguments: &[&str]| cdp_cli::host::command::run("qemu-img", arguments.iter().copied()).unwrap();
    let home = Home::new();
    home.json(&["create", "raw", "--from", raw.to_str().unwrap()]);
    for (format, options) in
        [("qcow2", "compat=1.1"), ("vmdk", "subformat=streamOptimized"), ("vhdx", "subformat=dynamic")]
    {
        let image = path(&format!("in.{format}"));
        qemu(&["convert", "-f", "raw", "-O", format, "-o", options, raw.to_str().unwrap(), &image]);
        let created = home.json(&["create", format, "--from", &image]);
        assert_eq!(created["size_bytes"], 32 << 20, "{format}");
        assert!(created["imported_bytes"].as_u64().unwrap() < 16 << 20, "holes are holes: {created}");
        home.json(&["restore", &format!("{format}@latest"), &path("back.img"), "--force"]);
        assert!(std::fs::read(path("back.img")).unwrap() == std::fs::read(&raw).unwrap(), "{format}");
        // And out again, with the format by its name or by the flag.
        let out = path(&format!("out.{format}"));
        home.json(&["restore", "raw@latest", &out]);
        qemu(&["compare", "-f", format, "-F", "raw", &out, raw.to_str().unwrap()]);
        assert_eq!(home.run(&["restore", "raw@latest", &out]).code, 4, "it is there");
        home.json(&["restore", "raw@latest", "--format", format, "--force", &path("x")]);
        qemu(&["compare", "-f", format, "-F", "raw", &path("x"), raw.to_str().unwrap()]);
    }
    // Whoever made the image would choose which of our files come into the volume.
    let over = path("over.qcow2");
    qemu(&["create", "-q", "-f", "qcow2", "-b", raw.to_str().unwrap(), "-F", "raw", &over]);
    let ran = home.run(&["create", "over", "--from", &over]);
    assert!(ran.code == 4 && ran.err.contains("ext4.img"), "{ran:?}");
    // Asked for as raw, it is a file like any other.
    assert_eq!(home.run(&["create", "over", "--from", &over, "--format", "raw", "--size", "4M"]).code, 0);
    let ran = home
        .command(&["create", "no", "--from", &path("in.qcow2")])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && said.contains("qemu-utils"), "{said}");
}
