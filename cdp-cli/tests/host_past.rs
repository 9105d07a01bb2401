//! Mounting past views of filesystems that were in use, beside the live one.

mod host;

use cdp_cli::host::attach::{AttachOptions, attach, detach, list};
use cdp_cli::host::past::{PastOptions, mount_past, umount};
use cdp_core::error::Kind;
use host::{Bench, Server};
use std::path::PathBuf;

/// A live, mounted filesystem and a server of its past: a copy of the disk at this instant, as a read-only view
/// and as a throw-away clone.
struct Past {
    live: Server,
    live_dir: PathBuf,
    view: Server,
    clone: Server,
}

impl Past {
    fn of(bench: &Bench, mkfs: &str) -> Past {
        let live = Server::start(bench, "live", 320 << 20);
        bench.make_filesystem(mkfs, "live", &live.uri());
        let live_dir = bench.path("now");
        let options = AttachOptions { dir: Some(live_dir.clone()), ..bench.options("live", &live.uri()) };
        attach(&options).unwrap();
        std::fs::write(live_dir.join("file"), "as it was").unwrap();
        cdp_cli::host::attach::sync_dir(&live_dir).unwrap();
        // A file that is only in the filesystem's journal: a view without replay would not have it.
        let young = std::fs::File::create(live_dir.join("young")).unwrap();
        young.sync_all().unwrap();
        let copy = bench.path("past.img");
        bench.run("cp", &["--sparse=always", live.image().to_str().unwrap(), copy.to_str().unwrap()]);
        std::fs::write(live_dir.join("file"), "as it is").unwrap();
        let view = Server::of_image(bench, "view", copy.clone(), &["--read-only"]);
        let clone = Server::of_image(bench, "clone", copy, &["--snapshot"]);
        Past { live, live_dir, view, clone }
    }

    fn options(&self, bench: &Bench) -> PastOptions {
        PastOptions {
            called: None,
            name: "live@-5m".into(),
            view_uri: self.view.uri(),
            clone_uri: self.clone.uri(),
            dir: bench.path("then"),
            state_dir: bench.state(),
            keeper: bench.keeper(),
            ..Default::default()
        }
    }
}

// 3 a.m.: the file from five minutes ago, from a filesystem that was busy then and is busy now. No fsck, no
// UUID quarrel, nothing written to the past, on any of the three filesystems.
#[test]
fn the_past_of_a_busy_filesystem_is_mounted_beside_the_live_one() {
    for mkfs in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"] {
        let Some(bench) = Bench::new() else { return };
        if !bench.has(mkfs) {
            continue;
        }
        let past = Past::of(&bench, mkfs);
        let before = std::fs::read(bench.path("past.img")).unwrap();
        let options = past.options(&bench);
        let mounted = mount_past(&options).unwrap_or_else(|error| panic!("{mkfs}: {error}"));
        println!("{mkfs}: through a clone: {}", mounted.through_clone);
        assert!(mounted.read_only);
        assert_eq!(std::fs::read_to_string(options.dir.join("file")).unwrap(), "as it was", "{mkfs}");
        assert!(options.dir.join("young").exists(), "{mkfs}: its journal was not replayed");
        assert!(std::fs::write(options.dir.join("x"), "x").is_err(), "{mkfs}: the past was written to");
        assert_eq!(std::fs::read_to_string(past.live_dir.join("file")).unwrap(), "as it is");

        umount(&bench.state(), options.dir.to_str().unwrap(), false).unwrap();
        assert!(std::fs::read(bench.path("past.img")).unwrap() == before, "{mkfs}: the past has changed");
        assert_eq!(list(&bench.state()).unwrap().len(), 1, "only the live one stays");
        detach(&bench.state(), "live", false).unwrap();
        bench.assert_nothing_left();
    }
}

// Somebody wants to try a repair on the past: writable, and thrown away afterwards.
#[test]
fn a_writable_past_takes_writes_and_forgets_them() {
    let Some(bench) = Bench::new() else { return };
    let past = Past::of(&bench, "mkfs.ext4");
    let options = PastOptions { writable: true, ..past.options(&bench) };
    let mounted = mount_past(&options).unwrap();
    assert!(mounted.through_clone && !mounted.read_only);
    std::fs::write(options.dir.join("file"), "tried").unwrap();
    umount(&bench.state(), "live@-5m", false).unwrap();
    mount_past(&PastOptions { writable: false, ..options.clone() }).unwrap();
    detach(&bench.state(), "live@-5m", false).unwrap();
    assert_eq!(std::fs::read_to_string(past.live_dir.join("file")).unwrap(), "as it is");
    detach(&bench.state(), "live", false).unwrap();
    bench.assert_nothing_left();
}

// A filesystem that was unmounted cleanly needs no clone: the view itself is mounted.
#[test]
fn a_clean_past_is_mounted_as_it_is() {
    let Some(bench) = Bench::new() else { return };
    let mut past = Past::of(&bench, "mkfs.ext4");
    detach(&bench.state(), "live", false).unwrap();
    past.view = Server::of_image(&bench, "quiet", past.live.image(), &["--read-only"]);
    let options = past.options(&bench);
    let mounted = mount_past(&options).unwrap();
    assert!(!mounted.through_clone && mounted.read_only);
    assert_eq!(std::fs::read_to_string(options.dir.join("file")).unwrap(), "as it is");
    umount(&bench.state(), "live@-5m", false).unwrap();
    bench.assert_nothing_left();
}

// The server goes away while the past is looked at: umount must still give the machine back, without force.
#[test]
fn a_past_without_its_server_can_be_unmounted() {
    let Some(bench) = Bench::new() else { return };
    let mut past = Past::of(&bench, "mkfs.ext4");
    mount_past(&past.options(&bench)).unwrap();
    past.clone.kill();
    past.view.kill();
    umount(&bench.state(), "live@-5m", false).unwrap();
    detach(&bench.state(), "live", false).unwrap();
    bench.assert_nothing_left();
}

// A clone that refuses writing cannot replay anything; the error comes before the mount and says so.
#[test]
fn a_clone_that_cannot_be_written_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let past = Past::of(&bench, "mkfs.ext4");
    let options = PastOptions { clone_uri: past.view.uri(), ..past.options(&bench) };
    assert_eq!(mount_past(&options).unwrap_err().kind(), Kind::ReadOnly);
    detach(&bench.state(), "live", false).unwrap();
    bench.assert_nothing_left();
}
