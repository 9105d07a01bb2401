//! Going back on the real binary: with nobody looking, with clients attached, without a server, and across
//! restarts.

mod cli;

use cli::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// A disk with 1s, marked `good`, then 2s over them.
fn spoilt(home: &Home) -> Served {
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 1000, &[1; 9000]).unwrap();
    home.json(&["mark", "disk", "good"]);
    put(&mut disk, 1000, &[2; 9000]).unwrap();
    served
}

fn bytes(served: &Served, export: &str) -> Vec<u8> {
    get(&mut served.connect(export).unwrap(), 1000, 9000).unwrap()
}

/// Somebody upgraded, it went wrong, and they want the disk of before; then it turns out that the upgrade was fine.
#[test]
fn back_and_forth_and_everything_can_still_be_seen() {
    let home = Home::new();
    let served = spoilt(&home);
    let began = Instant::now();
    let back = home.json(&["rollback", "disk@good"]);
    assert!(began.elapsed().as_secs() < 5);
    assert_eq!((&back[0]["marker"], &back[0]["held"]), (&"before-rollback-1".into(), &false.into()));
    assert_eq!(bytes(&served, "disk"), [1; 9000]);
    assert_eq!(bytes(&served, "disk@before-rollback-1"), [2; 9000]);
    assert_eq!(bytes(&served, "disk@good"), [1; 9000]);
    put(&mut served.connect("disk").unwrap(), 1000, &[3; 100]).unwrap();

    let undone = home.run(&["undo", "disk"]);
    assert_eq!(undone.code, 0, "{undone:?}");
    assert!(undone.out.contains("cdp undo disk"), "{undone:?}");
    assert_eq!(bytes(&served, "disk"), [2; 9000]);
    let before = bytes(&served, "disk@before-rollback-2");
    assert_eq!((&before[..100], &before[100..]), (&[3; 100][..], &[1; 8900][..]));
    // A second undo takes the first back.
    home.json(&["undo", "disk"]);
    assert_eq!(bytes(&served, "disk"), before);

    let log = home.run(&["log", "disk"]).out;
    assert!(log.contains("rolled back to good"), "{log}");
    assert!(log.contains("the rollback before was undone"), "{log}");
    // What is offered beside a rollback is the state that it took away.
    let rows = home.json(&["log", "disk"])[0]["rows"].clone();
    let mut left = rows.as_array().unwrap().iter().filter(|row| row["event"]["kind"] == "rollback");
    let mut left_bytes = || bytes(&served, left.next().unwrap()["event"]["point"].as_str().unwrap());
    assert_eq!(left_bytes(), [2; 9000], "{rows}");
    assert_eq!(left_bytes()[..100], [3; 100], "{rows}");
    let status = home.json(&["status", "disk"]);
    assert_eq!(status["volumes"][0]["rolled_back"]["marker"], "before-rollback-3");
    assert_eq!(home.run(&["verify"]).code, 0);
    let restored = home.run(&["restore", "disk@before-rollback-1", "old.img"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(std::fs::read(home.path("old.img")).unwrap()[1000..10_000], [2; 9000]);
    served.stop();
    let served = home.serve(&[]);
    assert_eq!(bytes(&served, "disk"), before);
    assert_eq!(bytes(&served, "disk@before-rollback-1"), [2; 9000]);
    served.stop();
}

/// A guest that runs on the disk holds half of it in its caches: it must be told to go, must not write another byte,
/// and must not come back by itself, not even when the server is restarted in between.
#[test]
fn with_a_client_attached_it_needs_force_and_stays_closed() {
    let home = Home::new();
    let served = spoilt(&home);
    let mut disk = served.connect("disk").unwrap();
    let mut past = served.connect("disk@good").unwrap();
    put(&mut disk, 0, &[7; 10]).unwrap();
    let refused = home.run(&["rollback", "disk@good"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains(&format!("pid {}", std::process::id())), "{refused:?}");
    assert!(refused.err.contains("--force"), "{refused:?}");
    assert_eq!(get(&mut disk, 0, 10).unwrap(), [7; 10], "nothing happened to it");

    let forced = home.json(&["rollback", "disk@good", "--force"]);
    assert_eq!(forced[0]["held"], true);
    assert!(forced[0]["disconnected"][0].as_str().unwrap().contains("pid"), "{forced}");
    assert!(put(&mut disk, 0, &[8; 10]).and_then(|()| get(&mut disk, 0, 10)).is_err());
    // Who looks at the past is not disturbed.
    assert_eq!(get(&mut past, 1000, 9000).unwrap(), [1; 9000]);
    let closed = |served: &Served| {
        let error = served.connect("disk").err().expect("it is closed").to_string();
        assert!(error.contains("closed") && error.contains("cdp resume disk"), "{error}");
        assert_eq!(bytes(served, "disk@good"), [1; 9000]);
        assert_eq!(bytes(served, "disk@latest"), [1; 9000]);
        let status = home.run(&["status"]);
        assert_eq!(status.code, 3, "{status:?}");
        assert!(status.out.contains("cdp resume disk"), "{status:?}");
    };
    closed(&served);
    served.stop();
    let served = home.serve(&[]);
    closed(&served);
    // Meanwhile somebody thinks again.
    let again = home.json(&["undo", "disk"]);
    assert_eq!(again[0]["held"], true);
    home.json(&["undo", "disk"]);
    assert_eq!(home.json(&["resume", "disk"])[0]["state"], "good");
    assert_eq!(bytes(&served, "disk"), [1; 9000]);
    assert_eq!(home.run(&["status"]).code, 0);
    served.stop();
}

/// The server is down, the disk has to go back before it comes up.
#[test]
fn without_a_server_too() {
    let home = Home::new();
    spoilt(&home).stop();
    let back = home.run(&["rollback", "disk@before:good"]);
    assert_eq!(back.code, 0, "{back:?}");
    let served = home.serve(&[]);
    assert_eq!(bytes(&served, "disk"), [1; 9000]);
    served.stop();
    home.json(&["undo", "disk"]);
    let served = home.serve(&[]);
    assert_eq!(bytes(&served, "disk"), [2; 9000]);
    served.stop();
}

/// What makes no sense is refused, and says what would.
#[test]
fn refusals() {
    let home = Home::new();
    home.run(&["create", "disk", "--size", "64M"]);
    for (arguments, code) in [
        (&["rollback", "disk"][..], 2),
        (&["rollback", "disk@nope"], 5),
        (&["rollback", "disk@lsn:99999"], 5),
        (&["rollback", "disk@start+rw"], 2),
        (&["rollback", "nope@start"], 5),
        (&["undo", "disk"], 5),
        (&["undo", "disk@start"], 2),
        (&["resume", "nope"], 5),
        (&["resume", "disk"], 0),
        (&["grow", "disk", "32M"], 4),
        (&["grow", "disk", "100T"], 2),
        (&["grow", "nope", "1G"], 5),
    ] {
        let ran = home.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
    }
}

/// The disk is full: it grows while somebody uses it, who sees it after connecting again; its past keeps its size,
/// and so does the disk when it goes back to then.
#[test]
fn a_disk_grows_and_its_past_does_not() {
    let home = Home::new();
    let served = spoilt(&home);
    let mut disk = served.connect("disk").unwrap();
    assert_eq!(home.json(&["grow", "disk", "96M"])["size_bytes"], 96 << 20);
    put(&mut disk, 0, &[9; 10]).unwrap();
    assert!(put(&mut disk, 80 << 20, &[9; 10]).is_err(), "it was told 64 MiB");
    drop(disk);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 80 << 20, &[9; 10]).unwrap();
    drop(disk);
    home.run(&["restore", "disk@good", "small.img"]);
    assert_eq!(std::fs::metadata(home.path("small.img")).unwrap().len(), 64 << 20);
    home.run(&["restore", "disk@latest", "large.img"]);
    assert_eq!(std::fs::metadata(home.path("large.img")).unwrap().len(), 96 << 20);
    let back = home.json(&["rollback", "disk@good"]);
    assert_eq!(
        (&back[0]["size_before_bytes"], &back[0]["size_bytes"]),
        (&(96 << 20).into(), &(64 << 20).into())
    );
    assert!(get(&mut served.connect("disk").unwrap(), 80 << 20, 10).is_err());
    // It grows again: what was there is of another line of history.
    home.json(&["grow", "disk", "96M"]);
    assert_eq!(get(&mut served.connect("disk").unwrap(), 80 << 20, 10).unwrap(), [0; 10]);
    home.json(&["undo", "disk"]);
    home.json(&["undo", "disk"]);
    served.stop();
    assert_eq!(home.json(&["list"])[0]["size_bytes"], 96 << 20);
}

/// An upgrade is tried on a clone while the disk is in use; the disk is deleted, and the clone goes on, now as
/// a volume of its own.
#[test]
fn a_clone_outlives_its_parent() {
    let home = Home::new();
    let served = spoilt(&home);
    let cloned = home.json(&["clone", "disk@good", "trial"]);
    assert_eq!((&cloned["name"], &cloned["size_bytes"]), (&"trial".into(), &(64 << 20).into()));
    assert_eq!(bytes(&served, "trial"), [1; 9000]);
    put(&mut served.connect("trial").unwrap(), 1000, &[5; 100]).unwrap();
    assert_eq!(bytes(&served, "disk"), [2; 9000]);
    assert_eq!(bytes(&served, "trial@start"), [1; 9000]);
    let status = home.json(&["status", "trial"]);
    assert!(status["volumes"][0]["clone_of"].as_str().unwrap().starts_with("disk@lsn:"), "{status}");
    for (arguments, code) in [
        (&["clone", "disk@good", "trial"][..], 4),
        (&["clone", "disk", "other"], 2),
        (&["clone", "disk@nope", "other"], 5),
        (&["clone", "disk@good", "a@b"], 2),
        (&["hydrate", "nope"], 5),
        (&["hydrate", "disk"], 0),
    ] {
        let ran = home.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
    }
    assert_eq!(home.run(&["delete", "disk", "--yes"]).code, 0);
    let expected: Vec<u8> = [vec![5; 100], vec![1; 8900]].concat();
    assert_eq!(bytes(&served, "trial"), expected);
    served.stop();
    let served = home.serve(&[]);
    assert_eq!(bytes(&served, "trial"), expected);
    assert!(home.json(&["hydrate", "trial"])["copied_bytes"].as_u64().unwrap() >= 9000);
    assert_eq!(bytes(&served, "trial"), expected);
    assert_eq!(home.json(&["hydrate", "trial"])["copied_bytes"], 0);
    assert_eq!(home.run(&["verify"]).code, 0);
    served.stop();
}

/// An upgrade of a database and its log is tried on clones of both, of one instant; half of them would be of no use.
#[test]
fn a_group_is_cloned_as_one() {
    let home = Home::new();
    for name in ["data", "wal"] {
        home.json(&["create", name, "--size", "64M"]);
    }
    home.json(&["group", "create", "db", "data", "wal"]);
    let served = home.serve(&[]);
    let write = |name: &str, byte: u8| put(&mut served.connect(name).unwrap(), 1000, &[byte; 9000]).unwrap();
    write("wal", 1);
    write("data", 1);
    home.json(&["mark", "db", "good"]);
    write("wal", 2);
    write("data", 2);
    let made = home.json(&["clone", "db@good", "try"]);
    assert_eq!((&made["group"], made["clones"].as_array().unwrap().len()), (&"try".into(), 2), "{made}");
    write("try-wal", 3);
    for (name, byte) in [("try-data", 1), ("try-wal", 3), ("data", 2), ("wal", 2)] {
        assert_eq!(bytes(&served, name), [byte; 9000], "{name}");
    }
    // It is a group like any other.
    home.json(&["mark", "try", "tried"]);
    for (arguments, code) in [
        (&["clone", "db@good", "try"][..], 4),
        (&["clone", "db@good", "data"], 4),
        (&["clone", "db@nope", "other"], 5),
        (&["clone", "db@lsn:3", "other"], 2),
        (&["clone", "db", "other"], 2),
    ] {
        let ran = home.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
    }
    assert_eq!(home.json(&["list"]).as_array().unwrap().len(), 4);
    served.signal(rustix::process::Signal::KILL);
    served.wait();
    let served = home.serve(&[]);
    for (name, byte) in [("try-data", 1), ("try-wal", 3)] {
        assert_eq!(bytes(&served, name), [byte; 9000], "{name} after a kill");
    }
    served.stop();
}

/// Whoever lets a whole group of clones go on by itself must know of each member whether it does, before he deletes the parents.
#[test]
fn a_group_of_clones_is_hydrated_or_it_is_said_which_member_is_not() {
    let home = Home::new();
    for name in ["data", "wal"] {
        home.json(&["create", name, "--size", "64M"]);
    }
    home.json(&["group", "create", "db", "data", "wal"]);
    let served = home.serve(&[]);
    for name in ["data", "wal"] {
        put(&mut served.connect(name).unwrap(), 8192, &[7; 8192]).unwrap();
    }
    home.json(&["mark", "db", "good"]);
    home.json(&["clone", "db@good", "try"]);
    // One of the parents cannot be read.
    let segments =
        std::fs::read_dir(home.store().join("volumes/data")).unwrap().map(|entry| entry.unwrap().path());
    let mut spoiled = 0;
    for path in segments.filter(|path| path.extension().is_some_and(|end| end == "seg")) {
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        for block in 1..64u64 {
            let mut bytes = [0; 4096];
            if file.read_exact_at(&mut bytes, block * 4096).is_ok() && bytes == [7; 4096] {
                file.write_all_at(&[6], block * 4096).unwrap();
                spoiled += 1;
            }
        }
    }
    assert!(spoiled > 0);
    let ran = home.run(&["hydrate", "try"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    for said in ["1 of 2 members of group try", "try-wal stands on its own", "try-data does not"] {
        assert!(ran.err.contains(said), "{said}: {ran:?}");
    }
    assert_eq!(home.json(&["hydrate", "try-wal"])["copied_bytes"], 0);
    // Without that damage both do.
    home.json(&["clone", "db@start", "again"]);
    put(&mut served.connect("wal").unwrap(), 8192, &[8; 8192]).unwrap();
    home.json(&["clone", "db@latest", "more"]).as_object().unwrap();
    let made = home.json(&["hydrate", "again"]);
    assert_eq!(made["clones"].as_array().unwrap().len(), 2, "{made}");
    // The damage that was met on the way is known.
    let status = home.run(&["status", "--json"]);
    assert_ne!(status.code, 0, "{status:?}");
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let clones = status["volumes"].as_array().unwrap().clone();
    let parent =
        |name: &str| clones.iter().find(|volume| volume["name"] == name).unwrap()["clone_of"].clone();
    assert!(parent("again-data").is_null() && parent("again-wal").is_null());
    assert!(parent("more-data").is_string() && parent("try-data").is_string());
    served.stop();
}

/// Tables on one disk and their log on another go back to one instant, and forth again.
#[test]
fn a_group_goes_back_as_one() {
    let home = Home::new();
    for name in ["data", "wal"] {
        home.json(&["create", name, "--size", "64M"]);
    }
    home.json(&["group", "create", "db", "data", "wal"]);
    let served = home.serve(&[]);
    let write = |byte: u8| {
        for name in ["wal", "data"] {
            put(&mut served.connect(name).unwrap(), 1000, &[byte; 9000]).unwrap();
        }
    };
    write(1);
    home.json(&["mark", "db", "good"]);
    write(2);
    let both = |byte: u8| ["wal", "data"].iter().all(|name| bytes(&served, name) == [byte; 9000]);
    let open = served.connect("wal").unwrap();
    assert_eq!(home.run(&["rollback", "db@good"]).code, 4, "one of them is in use");
    assert!(both(2));
    drop(open);
    wait_until("it has left", || home.json(&["status"])["server"]["clients"].as_array().unwrap().is_empty());
    assert_eq!(home.json(&["rollback", "db@good"]).as_array().unwrap().len(), 2);
    assert!(both(1));
    home.json(&["undo", "db"]);
    assert!(both(2));
    home.json(&["undo", "wal"]);
    assert_eq!(home.run(&["undo", "db"]).code, 4, "they have no rollback in common any more");
    served.stop();
}

/// A disk that was attached while its volume was set back holds what must not be written any more: that is what has to be
/// said, not that a server that runs should be started.
#[test]
fn an_attached_disk_is_told_to_go() {
    let devices = Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    let is_there = |program: &str| cdp_cli::host::command::find(program).is_some();
    if !rustix::process::geteuid().is_root() || !devices || !is_there("nbdfuse") || !is_there("nbdinfo") {
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI");
        return;
    }
    let home = Home::new();
    let served = spoilt(&home);
    // An empty past stays empty: nobody can make a filesystem there.
    let blank = home.run(&["mount", "disk@start", "there"]);
    assert!(blank.code == 5 && blank.err.contains("cdp log disk"), "{blank:?}");
    assert_eq!(home.run(&["attach", "disk"]).code, 0);
    home.json(&["rollback", "disk@good", "--force"]);
    let listed = home.run(&["attach"]);
    assert!(listed.code == 3 && listed.out.contains("cdp resume disk"), "{listed:?}");
    let refused = home.run(&["detach", "disk"]);
    assert!(refused.code == 4 && refused.err.contains("rolled back"), "{refused:?}");
    assert!(refused.err.contains("--force") && !refused.err.contains("start it again"), "{refused:?}");
    home.json(&["resume", "disk"]);
    wait_until("the relay gives the device up", || {
        let all = home.run(&["attach", "--json"]);
        all.code == 3 && all.out.contains("rolled back")
    });
    assert_eq!(home.run(&["detach", "disk", "--force"]).code, 0);
    assert_eq!(home.json(&["attach"]), serde_json::json!([]));
    served.stop();
}
