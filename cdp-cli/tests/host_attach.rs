//! Attaching, detaching and mounting on the real machine: FUSE, loop, filesystems and a stock NBD server.

mod host;

use cdp_cli::host::attach::{AttachOptions, attach, detach, list};
use cdp_cli::host::attachment::{Front, Room};
use cdp_cli::host::{device, keeper, loopdev, mounts, process};
use cdp_core::error::Kind;
use host::{Bench, Server};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

// A device that cannot be given back, or leaves processes and loop devices behind, fills the machine in a week.
#[test]
fn a_device_comes_and_goes_without_a_trace() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    let attached = attach(&bench.options("disk", &server.uri())).unwrap();
    assert!(attached.healthy && !attached.read_only);
    let mut file = File::options().read(true).write(true).open(&attached.device).unwrap();
    file.write_all(b"written through the device").unwrap();
    drop(file);
    assert_eq!(list(&bench.state()).unwrap().len(), 1);

    detach(&bench.state(), "disk", false).unwrap();
    let mut bytes = [0; 26];
    File::open(server.image()).unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"written through the device");
    bench.assert_nothing_left();
}

// `attach VOL DIR` on a new volume: people need to hear what to do, and nothing may stay half attached.
#[test]
fn a_blank_disk_is_refused_with_the_line_that_helps() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    let error = attach(&options).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint_text().unwrap().contains("mkfs.ext4"), "{error}");
    assert!(!dir.exists(), "a directory was left");
    bench.assert_nothing_left();
}

// What is written into the mounted directory has to be there at the next attach: ext4, XFS and btrfs.
#[test]
fn filesystems_are_mounted_and_keep_their_files() {
    let Some(bench) = Bench::new() else { return };
    for (mkfs, name) in [("mkfs.ext4", "ext4"), ("mkfs.xfs", "xfs"), ("mkfs.btrfs", "btrfs")] {
        if !bench.has(mkfs) {
            continue;
        }
        let server = Server::start(&bench, name, 512 << 20);
        bench.make_filesystem(mkfs, name, &server.uri());
        let dir = bench.path("with space");
        let options = AttachOptions { dir: Some(dir.clone()), ..bench.options(name, &server.uri()) };
        let attached = attach(&options).unwrap();
        assert_eq!(attached.filesystem.as_deref(), Some(name));
        std::fs::write(dir.join("note"), "kept").unwrap();
        // By directory this time: what a person remembers.
        detach(&bench.state(), dir.to_str().unwrap(), false).unwrap();
        assert!(!dir.exists(), "the directory was ours and stays");

        std::fs::create_dir(&dir).unwrap();
        let read_only = AttachOptions { read_only: true, ..options };
        attach(&read_only).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("note")).unwrap(), "kept");
        assert!(std::fs::write(dir.join("other"), "x").is_err());
        detach(&bench.state(), name, false).unwrap();
        assert!(dir.exists(), "the user's directory was removed");
        std::fs::remove_dir(&dir).unwrap();
        bench.assert_nothing_left();
    }
}

// VM disks have partition tables; the filesystem is in one of them.
#[test]
fn the_first_partition_with_a_filesystem_is_mounted() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 128 << 20);
    let attached = attach(&bench.options("disk", &server.uri())).unwrap();
    std::fs::write(&attached.device, two_partitions()).unwrap();
    let device = attached.device.to_str().unwrap();
    bench.run("mkfs.ext4", &["-q", "-E", &format!("offset={}", 9 << 20), device, "64M"]);
    detach(&bench.state(), "disk", false).unwrap();

    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    attach(&options).unwrap();
    assert!(dir.join("lost+found").exists());
    detach(&bench.state(), "disk", false).unwrap();
    let first = AttachOptions { partition: Some(1), ..options };
    assert_eq!(attach(&first).unwrap_err().kind(), Kind::NotFound);
    bench.assert_nothing_left();
}

/// A boot sector with two partitions: 8 MiB that stay blank, and 64 MiB.
fn two_partitions() -> Vec<u8> {
    let mut sector = vec![0; 512];
    let parts: [(usize, u32, u32); 2] = [(446, 2048, 16 << 10), (462, 2048 + (16 << 10), 128 << 10)];
    for (at, start, count) in parts {
        sector[at + 4] = 0x83;
        sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

// kill -9 of the server under a busy filesystem: its users see a pause, never an I/O error, and lose nothing.
#[test]
fn a_killed_server_is_a_pause_for_the_filesystem() {
    let Some(bench) = Bench::new() else { return };
    let mut server = Server::start(&bench, "disk", 256 << 20);
    bench.make_filesystem("mkfs.ext4", "disk", &server.uri());
    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    let device = attach(&options).unwrap().device;

    let stop = std::sync::atomic::AtomicBool::new(false);
    let seed = 0x5eed_u64;
    println!("seed {seed:#x}");
    let (rounds, longest) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| load(&dir, &device, seed, &stop));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            server.kill();
            std::thread::sleep(Duration::from_millis(300));
            server.restart();
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        worker.join().unwrap()
    });
    println!("{rounds} rounds, the longest {longest:?}");
    assert!(rounds > 20, "only {rounds} rounds: the load did not go on");
    assert!(longest > Duration::from_millis(300), "no round met a dead server: the test tested nothing");

    detach(&bench.state(), "disk", false).unwrap();
    bench.run("e2fsck", &["-fn", server.image().to_str().unwrap()]);
    bench.assert_nothing_left();
}

/// Writes with fsync, reads back past the page cache, and wants every call to succeed.
fn load(dir: &Path, device: &Path, seed: u64, stop: &std::sync::atomic::AtomicBool) -> (u32, Duration) {
    let mut file = File::options().create_new(true).read(true).write(true).open(dir.join("load")).unwrap();
    let (mut rounds, mut longest, mut random) = (0, Duration::ZERO, seed);
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let started = Instant::now();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (random >> 33) % 1000 * 4096;
        let block = random.to_le_bytes().repeat(512);
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&block).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut again = vec![0; 4096];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut again).unwrap();
        assert_eq!(again, block);
        File::open(device).unwrap().read_exact(&mut [0; 4096]).unwrap();
        rounds += 1;
        longest = longest.max(started.elapsed());
    }
    (rounds, longest)
}

// fsync in the mounted directory is a promise of durability: a FLUSH has to reach the server before it returns.
#[test]
fn an_fsync_reaches_the_server_as_a_flush() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start_logging(&bench, "disk", 64 << 20);
    bench.make_filesystem("mkfs.ext4", "disk", &server.uri());
    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    attach(&options).unwrap();
    for round in 0..5 {
        let mut file = File::create(dir.join("file")).unwrap();
        file.write_all(&vec![round; 10_000]).unwrap();
        let before = server.log_lines();
        file.sync_all().unwrap();
        let seen = server.log().lines().skip(before).map(str::to_owned).collect::<Vec<_>>();
        let last_answer = |what: &str| seen.iter().rposition(|line| line.contains(&format!("...{what}")));
        let (write, flush) = (last_answer("Write"), last_answer("Flush"));
        assert!(write.is_some() && flush.is_some(), "no write or no flush before fsync returned: {seen:#?}");
        assert!(flush > write, "the last write was not flushed: {seen:#?}");
    }
    detach(&bench.state(), "disk", false).unwrap();
    bench.assert_nothing_left();
}

// The machine's owner kills `cdp attach`, or the OOM killer does: the next command cleans up, at every step.
#[test]
fn an_attach_that_died_halfway_is_cleaned_up() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    bench.make_filesystem("mkfs.ext4", "disk", &server.uri());
    for step in 0..5 {
        let room = Room::lock(&bench.state()).unwrap();
        let mut half = room.begin("disk", &server.uri(), false, Front::Fuse).unwrap();
        let places = half.places();
        if step >= 1 {
            keeper::start_keeper(&places, &bench.options("", "").keeper, &server.uri(), false).unwrap();
        }
        if step >= 2 {
            keeper::start_fuse(&places, &server.uri(), true, false).unwrap();
        }
        if step >= 3 {
            // Its name is not remembered: the crash came first.
            let device = loopdev::create(&places.fuse_file(), false).unwrap();
            if step >= 4 {
                let dir = bench.path("half");
                std::fs::create_dir_all(&dir).unwrap();
                half.dir = Some(dir.clone());
                half.dir_is_ours = true;
                half.save().unwrap();
                bench.run("mount", &[device.to_str().unwrap(), dir.to_str().unwrap()]);
            }
        }
        drop(room);
        // The same name: it must not count as attached.
        attach(&bench.options("disk", &server.uri())).unwrap_or_else(|error| panic!("step {step}: {error}"));
        detach(&bench.state(), "disk", false).unwrap();
        bench.assert_nothing_left();
    }
}

// A typing error in a volume's name, or a server that is down, is an error at once and not a wait.
#[test]
fn an_export_that_is_not_there_fails_at_once() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    let started = Instant::now();
    let wrong = server.uri().replace("/disk", "/dusk");
    attach(&bench.options("dusk", &wrong)).unwrap_err();
    attach(&bench.options("x", "nbd+unix:///x?socket=/no/such/socket")).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(20));
    bench.assert_nothing_left();
}

// Two caches over one ext4 destroy it; the second writer is refused, a second reader of the past is not.
#[test]
fn a_second_writer_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    let options = bench.options("disk", &server.uri());
    attach(&options).unwrap();
    assert_eq!(attach(&options).unwrap_err().kind(), Kind::Busy);
    let other = AttachOptions { name: "other".into(), read_only: true, ..options };
    attach(&other).unwrap();
    attach(&other).unwrap();
    for which in ["other-1", "other", "disk"] {
        detach(&bench.state(), which, false).unwrap();
    }
    assert_eq!(detach(&bench.state(), "disk", false).unwrap_err().kind(), Kind::NotFound);
    bench.assert_nothing_left();
}

// A shell still stands in the directory: detach says so and leaves everything as it was; force takes it anyway.
#[test]
fn a_busy_directory_stays_until_force() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    bench.make_filesystem("mkfs.ext4", "disk", &server.uri());
    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    attach(&options).unwrap();
    let mut open = File::create(dir.join("open")).unwrap();
    assert_eq!(detach(&bench.state(), "disk", false).unwrap_err().kind(), Kind::Busy);
    open.write_all(b"still works").unwrap();
    open.sync_all().unwrap();
    drop(open);
    detach(&bench.state(), "disk", false).unwrap();
    bench.assert_nothing_left();
}

// The server is gone for good. A plain detach would lose writes, and says so; force gives the machine back.
#[test]
fn force_gives_the_device_back_when_the_server_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let mut server = Server::start(&bench, "disk", 64 << 20);
    bench.make_filesystem("mkfs.ext4", "disk", &server.uri());
    let dir = bench.path("mnt");
    let options = AttachOptions { dir: Some(dir.clone()), ..bench.options("disk", &server.uri()) };
    attach(&options).unwrap();
    std::fs::write(dir.join("lost"), "never written out").unwrap();
    server.kill();
    let started = Instant::now();
    assert_eq!(detach(&bench.state(), "disk", false).unwrap_err().kind(), Kind::Busy);
    assert!(mounts::is_mountpoint(&dir).unwrap(), "it was unmounted after all");
    detach(&bench.state(), "disk", true).unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    bench.assert_nothing_left();
}

// Somebody kills nbdfuse. `list` says that it is broken, and detach still cleans up.
#[test]
fn a_broken_attachment_is_told_and_can_be_taken_away() {
    let Some(bench) = Bench::new() else { return };
    let server = Server::start(&bench, "disk", 64 << 20);
    attach(&bench.options("disk", &server.uri())).unwrap();
    let needle = format!("nbdfuse --pidfile {}", bench.state().canonicalize().unwrap().display());
    for pid in process::find_ours(&needle) {
        assert!(process::kill(pid, &needle));
    }
    assert!(!list(&bench.state()).unwrap()[0].healthy);
    detach(&bench.state(), "disk", false).unwrap();
    bench.assert_nothing_left();
}

// The probe of a device must read past the first sector of any device, and not fail on a tiny one.
#[test]
fn the_first_bytes_of_a_short_file_are_what_there_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"short").unwrap();
    assert_eq!(device::bytes_at(file.path(), 0, 4096).unwrap(), b"short");
}
