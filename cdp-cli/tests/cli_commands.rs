//! The other commands on the real binary, with and without a server: what they do, print and exit with.

mod cli;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli::*;
use rustix::process::{Pid, Signal, kill_process};

fn script(home: &Home, name: &str, body: &str) -> String {
    let path = home.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A list of what changed goes to a full disk, and a backup is made by it: half of a list must not look like one.
#[test]
fn what_could_not_be_written_is_no_success() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "64M"]);
    for arguments in [
        &["list"][..],
        &["log", "disk"],
        &["verify", "disk"],
        &["diff", "disk", "start", "latest"],
        &["--json", "list"],
        &["--json", "diff", "disk", "start", "latest"],
        &["help", "exit-codes"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let out = home.command(arguments).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains("No space left"), "{arguments:?}: {said}");
        // Who has read enough is nobody's failure.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = home.command(arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && !said.contains("standard output"), "{arguments:?}: {said}");
    }
}

/// Scripts branch on exit codes: each kind of trouble has its own, with and without a server.
#[test]
fn exit_codes_say_what_kind_of_trouble_it_is() {
    let home = Home::new();
    assert_eq!(home.run(&["list"]).code, 5, "no store yet");
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let check = || {
        let cases: &[(&[&str], i32)] = &[
            (&["list"], 0),
            (&["status"], 0),
            (&["status", "disk"], 0),
            (&["verify"], 0),
            (&["fly"], 2),
            (&["create", "x"], 2),
            (&["create", "x", "--size", "ten"], 2),
            (&["create", "x", "--size", "1K"], 2),
            (&["create", "a@b", "--size", "1G"], 2),
            (&["create", "disk", "--size", "1G"], 4),
            (&["status", "nope"], 5),
            (&["mark", "nope", "m"], 5),
            (&["mark", "disk", "10:03"], 2),
            (&["restore", "disk", "x.img"], 2),
            (&["restore", "disk@nope", "x.img"], 5),
            (&["restore", "disk@2999-01-01T00:00:00Z", "x.img"], 5),
            (&["restore", "disk@2001-01-01T00:00:00Z", "x.img"], 5),
            (&["restore", "disk@-5", "x.img"], 2),
            (&["restore", "disk@lsn:999999", "x.img"], 5),
            (&["restore", "disk@latest+rw", "x.img"], 2),
            (&["group", "create", "g", "nope"], 5),
            (&["delete", "disk"], 4),
            (&["undelete", "nope"], 5),
            (&["log", "nope"], 5),
        ];
        for (arguments, code) in cases {
            let ran = home.run(arguments);
            assert_eq!(ran.code, *code, "{arguments:?}: {ran:?}");
            assert!(*code == 0 || (!ran.err.is_empty() && ran.out.is_empty()), "talk on stderr: {ran:?}");
        }
    };
    check();
    let served = home.serve(&[]);
    check();
    served.stop();
    assert!(!home.path("x.img").exists());
}

/// `--json` also when it fails: a program reads the kind and the hint, not a sentence.
#[test]
fn errors_are_json_where_json_is_wanted() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "64M"]);
    home.json(&["mark", "disk", "upgrade"]);
    let ran = home.run(&["restore", "disk@upgrad", "x.img", "--json"]);
    assert_eq!(ran.code, 5);
    let error: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(error["error"]["kind"], "not-found");
    assert!(error["error"]["hint"].as_str().unwrap().contains("upgrade"), "the nearest name: {error}");
}

/// Every command explains itself with a line to copy.
#[test]
fn every_help_has_an_example() {
    let home = Home::new();
    let words = "serve create list status group mark log attach detach mount umount ls cat cp history bisect prove restore verify repair delete \
                 undelete demo doctor";
    for word in words.split_whitespace() {
        let ran = home.run(&[word, "--help"]);
        assert_eq!(ran.code, 0, "{word}");
        assert!(ran.out.contains("Example"), "{word}: {}", ran.out);
    }
    assert!(home.run(&["help", "exit-codes"]).out.contains("somebody should act"));
    assert!(home.run(&["help", "points"]).out.contains("before:NAME"));
}

/// A misspelt key is refused, and flags and environment win over the file.
#[test]
fn the_configuration_is_checked_and_overridden() {
    let home = Home::new();
    let dir = home.path(".config/cdp");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.toml"), "stor = \"/x\"\n").unwrap();
    let ran = home.run(&["list"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("stor") && ran.err.contains("config.toml"), "{ran:?}");
    let (a, b, c) = (home.path("a"), home.path("b"), home.path("c"));
    std::fs::write(dir.join("config.toml"), format!("store = {a:?}\n")).unwrap();
    home.json(&["create", "from-file", "--size", "1M"]);
    let status = home.command(&["create", "from-env", "--size", "1M"]).env("CDP_STORE", &b).output().unwrap();
    assert!(status.status.success());
    let mut command = home.command(&["create", "from-flag", "--size", "1M", "--store", c.to_str().unwrap()]);
    assert!(command.env("CDP_STORE", &b).output().unwrap().status.success());
    for (store, name) in [(&a, "from-file"), (&b, "from-env"), (&c, "from-flag")] {
        assert!(store.join("volumes").join(name).is_dir(), "{name}");
    }

    // A name with a slip in it would be noticed on the day when nothing fails over.
    let automatic = "peer = \"127.0.0.1:1\"\nwitness = \"127.0.0.1:2\"\n";
    let keys = format!("store = {a:?}\n[automatic.from-file]\n{automatic}[automatic.from-fiel]\n{automatic}");
    std::fs::write(dir.join("config.toml"), keys).unwrap();
    let ran = home.run(&["status"]);
    assert!(ran.code == 3 && ran.out.contains("ACT: [automatic.from-fiel]"), "{ran:?}");
    assert!(!ran.out.contains("[automatic.from-file]"), "{ran:?}");
}

/// A store where nobody wanted one, and a marker that means another state than yesterday, are told, and asked for they work.
#[test]
fn a_new_store_and_a_name_given_anew_are_told() {
    let home = Home::new();
    let made = home.run(&["create", "disk", "--size", "1M"]);
    assert!(made.code == 0 && made.err.contains("made the store "), "{made:?}");
    let again = home.run(&["create", "other", "--size", "1M"]);
    assert!(again.code == 0 && !again.err.contains("made the store"), "{again:?}");
    let first = home.json(&["mark", "disk", "m1"])[0].clone();
    assert_eq!(first["before_lsn"], serde_json::Value::Null, "{first}");
    let ran = home.run(&["mark", "disk", "m1"]);
    let told = format!("m1 was also the name of disk@lsn:{}: it means this one from now on", first["lsn"]);
    assert!(ran.code == 0 && ran.err.contains(&told), "{ran:?}");
    assert!(home.json(&["mark", "disk", "m1"])[0]["before_lsn"].as_u64() > first["lsn"].as_u64());
}

/// An old disk image comes in and goes out again: the same bytes, and holes stay holes.
#[test]
fn an_image_goes_in_and_comes_out_the_same() {
    let home = Home::new();
    let image = home.path("old.img");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(256 << 20).unwrap();
    use std::os::unix::fs::FileExt;
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    file.write_all_at(&data, 5_000_001).unwrap();
    file.write_all_at(b"at the very end", (256 << 20) - 15).unwrap();
    drop(file);
    let created = home.json(&["create", "disk", "--from", "old.img"]);
    assert_eq!(created["size_bytes"], 256 << 20);
    assert!(created["imported_bytes"].as_u64().unwrap() < 8 << 20, "holes are not read: {created}");
    let served = home.serve(&[]);
    put(&mut served.connect("disk").unwrap(), 6_000_000, b"changed since").unwrap();
    let ran = home.run(&["restore", "disk@start", "out.img"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("disk@start is ") && ran.err.contains("lsn:0"), "what it resolved to: {ran:?}");
    assert!(std::fs::read(&image).unwrap() == std::fs::read(home.path("out.img")).unwrap());
    assert!(std::fs::metadata(home.path("out.img")).unwrap().blocks() * 512 < 16 << 20, "sparse");

    let again = home.run(&["restore", "disk@latest", "out.img"]);
    assert_eq!(again.code, 4, "{again:?}");
    assert_eq!(home.run(&["restore", "disk@latest", "out.img", "--force"]).code, 0);
    let out = std::fs::read(home.path("out.img")).unwrap();
    assert_eq!(&out[6_000_000..6_000_013], b"changed since");
    // Nothing half done lies around.
    let names: Vec<_> = std::fs::read_dir(&home.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("restoring")), "{names:?}");
    served.stop();
    assert_eq!(home.json(&["verify"])[0]["good"], true);
}

/// The hooks around an application marker: their order, what they know, and what the marker keeps.
#[test]
fn an_application_marker_is_set_between_its_hooks() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "64M"]);
    let log = home.path("log");
    let hook = script(
        &home,
        "hook",
        &format!("echo \"$1 $CDP_TARGET $CDP_MARKER\" >> {}; echo hook says $1", log.display()),
    );
    let marked = home.json(&["mark", "disk", "nightly", "--app", "--quiesce", &hook, "--thaw", &hook]);
    assert_eq!(marked[0]["name"], "nightly");
    assert_eq!(read(&log), "quiesce disk nightly\nthaw disk nightly\n");
    let ran = home.run(&["restore", "disk@latest-app", "x.img"]);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("at marker nightly"), "{ran:?}");
}

/// The application must never be left standing still: whatever happens to the quiesce hook or to us, thaw runs.
#[test]
fn thaw_runs_whatever_happens() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "64M"]);
    let thawed = home.path("thawed");
    let thaw = script(&home, "thaw", &format!("echo thawed >> {}", thawed.display()));
    let hangs = script(&home, "hangs", "echo freezing; sleep 60");
    let fails = script(&home, "fails", "echo it is broken >&2; exit 3");
    let mark = |quiesce: &str, timeout: &str| {
        let begin = Instant::now();
        let ran = home.run(&[
            "mark",
            "disk",
            "m",
            "--app",
            "--quiesce",
            quiesce,
            "--thaw",
            &thaw,
            "--timeout",
            timeout,
        ]);
        (ran, begin.elapsed())
    };
    let (ran, took) = mark(&hangs, "500ms");
    assert!(ran.code == 1 && took < Duration::from_secs(20), "{ran:?} {took:?}");
    assert!(ran.err.contains("killed"), "{ran:?}");
    assert_eq!(read(&thawed), "thawed\n");
    let (ran, _) = mark(&fails, "30s");
    assert!(ran.code == 1 && ran.err.contains("it is broken"), "{ran:?}");
    assert_eq!(read(&thawed), "thawed\nthawed\n");
    let (ran, _) = mark("/nowhere/hook", "30s");
    assert_ne!(ran.code, 0);
    assert_eq!(read(&thawed).lines().count(), 3);
    // No marker was set by any of them.
    assert_eq!(home.run(&["restore", "disk@m", "x.img"]).code, 5);

    // Ctrl-C while it hangs.
    let mut command = home.command(&[
        "mark",
        "disk",
        "m",
        "--app",
        "--quiesce",
        &hangs,
        "--thaw",
        &thaw,
        "--timeout",
        "50s",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let code = wait(&mut child);
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert_eq!(read(&thawed).lines().count(), 4);

    // And a thaw that fails is not passed over in silence, although the marker stands.
    let ran = home.run(&["mark", "disk", "stands", "--app", "--thaw", &fails]);
    assert!(ran.code == 1 && ran.err.contains("stand still"), "{ran:?}");
    assert_eq!(home.run(&["restore", "disk@stands", "x.img"]).code, 0);
}

/// Who zooms to an instant must not read that nothing was written in the hours behind it, nor what happened then.
#[test]
fn a_zoomed_log_ends_where_its_window_ends() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, &[1; 4096]).unwrap();
    let at = home.json(&["mark", "disk", "m1"])[0]["ns"].as_u64().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    put(&mut disk, 0, &[2; 4096]).unwrap();
    home.json(&["retention", "set", "disk", "every-write 24h"]);
    let rows = home.json(&["log", "disk@m1", "--step", "10ms"])[0]["rows"].clone();
    for row in rows.as_array().unwrap() {
        let ends = [&row["quiet"]["to_ns"], &row["interval"]["to_ns"], &row["event"]["ns"]];
        let end = ends.iter().find_map(|end| end.as_u64()).unwrap();
        assert!(end <= at + 200_000_000, "{row} is not within 200 ms of {at}");
    }
    let whole = home.json(&["log", "disk"]).to_string();
    let has_policy = |text: &str| text.contains("\"kind\":\"retention\"");
    assert!(has_policy(&whole) && !has_policy(&rows.to_string()), "{whole}");
    served.stop();
}

/// A script that asked for JSON gets JSON, also where it misspelt something; and people get a line that works.
#[test]
fn what_is_wrong_is_told_with_a_line_to_copy() {
    let home = Home::new();
    for arguments in [&["--json", "ls"][..], &["fly", "--json"], &["--json", "create"]] {
        let ran = home.run(arguments);
        let error: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"));
        assert_eq!((ran.code, &error["error"]["kind"]), (2, &"invalid".into()), "{ran:?}");
    }
    assert!(home.run(&["--help", "--json"]).out.contains("cdp demo"));
    let refused = home.run(&["create", "x"]);
    assert!(
        refused.code == 2 && refused.err.contains("--size 10G") && refused.err.contains("--from"),
        "{refused:?}"
    );
    assert!(!home.store().exists(), "no store is made for that");
    home.json(&["create", "disk", "--size", "16M"]);
    let refused = home.run(&["failover", "disk", "--to", "-1h", "--dry-run"]);
    assert!(!refused.err.contains("unexpected argument"), "{refused:?}");
    let empty = home.run(&["ls", "disk@start:/"]);
    assert!(empty.code == 2 && empty.err.contains("cdp log disk"), "{empty:?}");
    home.json(&["create", "my disk", "--size", "1M"]);
    let deleted = home.run(&["delete", "my disk", "--yes"]);
    assert!(deleted.out.contains("`cdp undelete 'my disk'`"), "{deleted:?}");

    // Many connections of one client are one client.
    let served = home.serve(&[]);
    let clients = [served.connect("disk").unwrap(), served.connect("disk").unwrap()];
    let refused = home.run(&["delete", "disk", "--yes"]);
    assert!(
        refused.err.contains("(2 connections)") && refused.err.matches("pid ").count() == 1,
        "{refused:?}"
    );
    drop(clients);

    // Another store on the same socket was not meant, and is not left behind.
    let socket = served.socket();
    let other = Home::new();
    let refused = other.run(&["serve", "--socket", socket.to_str().unwrap()]);
    assert!(refused.code == 4 && !other.store().exists(), "{refused:?}");

    // What a restore that was killed has left is no image, and nobody else's business.
    std::fs::write(home.path("x.img.restoring-999999999"), "half").unwrap();
    std::fs::write(home.path("x.img.restoring-notes"), "mine").unwrap();
    assert_eq!(home.run(&["restore", "disk@latest", "x.img"]).code, 0);
    assert!(!home.path("x.img.restoring-999999999").exists() && home.path("x.img.restoring-notes").exists());
    served.stop();

    if rustix::process::geteuid().is_root() {
        let there = home.path("rescue");
        std::fs::create_dir(&there).unwrap();
        let mount = |arguments: &[&str]| {
            std::process::Command::new("mount").args(arguments).status().unwrap().success()
        };
        let (store, there) = (home.store(), there.to_str().unwrap().to_owned());
        if mount(&["--bind", store.to_str().unwrap(), &there]) {
            let is_read_only = mount(&["-o", "remount,bind,ro", &there]);
            let refused = home.run(&["status", "--store", &there]);
            let _ = std::process::Command::new("umount").arg(&there).status();
            let is_told = refused.err.contains("mounted read-only") && refused.err.contains("cp -a");
            assert!(!is_read_only || refused.code == 4 && is_told, "{refused:?}");
        }
    }
}

/// Somebody looks for the instant before it went wrong, and must find it by looking.
#[test]
fn the_log_shows_what_went_wrong_and_what_was_before_it() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, &vec![1; 1 << 20]).unwrap();
    home.json(&["mark", "disk", "good one", "--note", "all is well"]);
    std::thread::sleep(Duration::from_millis(400));
    disk.trim_all().unwrap();
    let rows = home.json(&["log", "disk", "--around", "latest", "--step", "100ms"]);
    let rows = rows[0]["rows"].as_array().unwrap().clone();
    let trim = rows
        .iter()
        .find(|row| row["interval"]["trimmed_bytes"].as_u64().is_some_and(|bytes| bytes == 1 << 30))
        .unwrap_or_else(|| panic!("{rows:#?}"));
    let before = trim["interval"]["point_before"].as_str().unwrap();
    assert_eq!(get(&mut served.connect(before).unwrap(), 1000, 4).unwrap(), [1; 4], "{before}");
    assert_eq!(get(&mut disk, 1000, 4).unwrap(), [0; 4]);
    let text = home.run(&["log", "disk"]).out;
    for part in ["good one", "all is well", "disk@good one", "disk@good%20one", "attached", "----"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let records = home.json(&["log", "disk", "--records"]);
    let kinds: Vec<&str> =
        records[0]["records"].as_array().unwrap().iter().map(|r| r["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"write") && kinds.contains(&"trim") && kinds.contains(&"marker"), "{kinds:?}");
    served.stop();
}

/// A flipped bit on the disk: verify names the file, the byte, the record and the blocks, and says so by its code.
#[test]
fn verify_names_the_place_of_the_damage() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, &[3; 4096]).unwrap();
    put(&mut disk, 40960, &[5; 8192]).unwrap();
    drop(disk);
    served.stop();
    assert_eq!(home.run(&["verify"]).code, 0);
    let dir = home.store().join("volumes/disk");
    let segment = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .find(|path| std::fs::read(path).unwrap().windows(4096).any(|w| w == [5; 4096]))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(4096).position(|window| window == [5; 4096]).unwrap();
    bytes[at + 5000] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let ran = home.run(&["verify", "disk", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let place = found[0]["damages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|place| place["lba"] == 10)
        .unwrap_or_else(|| panic!("{found:#}"));
    assert_eq!(place["file"], segment.to_str().unwrap());
    assert_eq!((place["offset"].as_u64(), place["blocks"].as_u64()), (Some(at as u64), Some(2)));
    assert!(place["lsn"].as_u64().is_some());
}

/// Deleting asks, spares what is in use, and can be taken back.
#[test]
fn a_deleted_volume_comes_back() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, b"mine").unwrap();
    let busy = home.run(&["delete", "disk", "--yes"]);
    assert_eq!(busy.code, 4, "{busy:?}");
    assert!(busy.err.contains(&std::process::id().to_string()), "names the client: {busy:?}");
    drop(disk);
    wait_until("the client has left", || home.run(&["delete", "disk", "--yes"]).code == 0);
    assert!(served.connect("disk").is_err());
    assert_eq!(home.json(&["list"])[0]["state"], "deleted");
    home.json(&["undelete", "disk"]);
    assert_eq!(get(&mut served.connect("disk").unwrap(), 0, 4).unwrap(), b"mine");
    assert_eq!(home.run(&["delete", "disk", "--yes", "--force"]).code, 0);
    // One name never means two things.
    home.json(&["create", "member", "--size", "16M"]);
    home.json(&["group", "create", "disk", "member"]);
    let taken = home.run(&["undelete", "disk"]);
    assert!(taken.code != 0 && taken.err.contains("there is a group named \"disk\""), "{taken:?}");
    home.json(&["group", "delete", "disk"]);
    home.json(&["undelete", "disk"]);
    home.json(&["delete", "disk", "--yes"]);
    home.json(&["delete", "member", "--yes"]);
    home.json(&["delete", "member", "--purge", "--yes"]);
    // For good, at once.
    let unasked = home.run(&["delete", "disk", "--purge"]);
    assert!(unasked.code != 0 && unasked.err.contains("--yes"), "{unasked:?}");
    assert_eq!(home.json(&["delete", "disk", "--purge", "--yes"])["removed"], 1);
    assert_eq!(home.json(&["list"]), serde_json::json!([]));
    assert!(std::fs::read_dir(home.store().join("trash")).unwrap().next().is_none());
    let gone = home.run(&["delete", "disk", "--purge", "--yes"]);
    assert!(gone.code != 0 && gone.err.contains("no deleted volume"), "{gone:?}");
    served.stop();
}

/// The demo is what people try first: it needs no client, no root, and 15 seconds at most.
#[test]
fn the_demo_destroys_and_rewinds() {
    let home = Home::new();
    let begin = Instant::now();
    let ran = home.run(&["demo"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(ran.out.contains("disk@before-accident") && ran.out.contains("Chapter 2"), "{}", ran.out);
    assert!(!home.store().exists());
}

/// `status` begins with a verdict; the figures are those of this server.
#[test]
fn status_knows_clients_latencies_and_the_journal() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, &[1; 4096]).unwrap();
    use std::io::Write;
    disk.flush().unwrap();
    get(&mut disk, 0, 4096).unwrap();
    // What was answered is counted a moment later.
    wait_until("the read is counted", || {
        home.json(&["status"])["server"]["read"]["count"].as_u64() >= Some(1)
    });
    let status = home.json(&["status"]);
    let server = &status["server"];
    assert_eq!(server["pid"], served.child.id());
    assert_eq!(server["clients"][0]["export"], "disk");
    assert!(server["clients"][0]["peer"].as_str().unwrap().contains(&std::process::id().to_string()));
    for class in ["acknowledge", "flush", "read"] {
        assert!(server[class]["count"].as_u64().unwrap() >= 1, "{class}: {server}");
        assert!(server[class]["p999_ns"].as_u64().unwrap() >= server[class]["p50_ns"].as_u64().unwrap());
    }
    let volume = &status["volumes"][0];
    assert!(
        volume["durable"]["lsn"].as_u64().unwrap() >= 1 && volume["journal_cap_bytes"].as_u64().unwrap() > 0
    );
    assert!(["posix", "io_uring"].contains(&status["io"].as_str().unwrap()));
    let text = home.run(&["status"]).out;
    assert!(text.starts_with("All is well"), "{text}");
    drop(disk);
    served.stop();
    let plain = home.command(&["status", "--json"]).env("CDP_NO_IO_URING", "1").output().unwrap();
    let plain: serde_json::Value = serde_json::from_slice(&plain.stdout).unwrap();
    assert_eq!(plain["io"], "posix");
}

/// Whoever is told to raise the cap of a full journal must be able to, with and without a server.
#[test]
fn a_journal_cap_can_be_changed_and_stays() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M", "--journal-cap", "1G"]).code, 0);
    let cap = || {
        let status: serde_json::Value =
            serde_json::from_str(&home.run(&["status", "--json"]).out).expect("JSON");
        status["volumes"][0]["journal_cap_bytes"].as_u64().expect("a number")
    };
    assert_eq!(cap(), 1 << 30);
    assert_eq!(home.run(&["set", "disk", "--journal-cap", "2G"]).code, 0);
    assert_eq!(cap(), 2 << 30);
    let served = home.serve(&[]);
    assert_eq!(home.run(&["set", "disk", "--journal-cap", "3G"]).code, 0);
    assert_eq!(cap(), 3 << 30);
    assert_eq!(home.run(&["set", "disk", "--journal-cap", "much"]).code, 2);
    assert_eq!(home.run(&["set", "nope", "--journal-cap", "none"]).code, 5);
    // Less than a segment can never be kept to, and one that drops its oldest history needs some to turn round in.
    assert_eq!(home.run(&["set", "disk", "--journal-cap", "10M"]).code, 2);
    assert_eq!(home.run(&["create", "other", "--size", "64M", "--journal-cap", "10M"]).code, 2);
    assert_eq!(home.run(&["retention", "set", "disk", "at cap drop-oldest"]).code, 0);
    let refused = home.run(&["set", "disk", "--journal-cap", "200M"]);
    assert!(refused.code == 2 && refused.err.contains("384 MiB"), "{refused:?}");
    served.stop();
    assert_eq!(cap(), 3 << 30);
}

/// A variable that is unset is no wish to keep everything; and a cap that the policy undoes is no cap.
#[test]
fn settings_that_say_nothing_are_refused() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "1M"]);
    let kept = "every-write 24h, named 30d, at most 384MiB, at cap block";
    home.json(&["retention", "set", "disk", kept]);
    for empty in ["", "  "] {
        let refused = home.run(&["retention", "set", "disk", empty]);
        assert!(refused.code == 2 && refused.err.contains("empty policy"), "{refused:?}");
    }
    let policy = home.json(&["retention", "show", "disk"])["policy"].as_str().unwrap().to_owned();
    assert!(policy.contains("every-write 1d"), "{policy}");
    for larger in ["20G", "none"] {
        let refused = home.run(&["set", "disk", "--journal-cap", larger]);
        assert!(refused.code != 0 && refused.err.contains("at most 384 MiB"), "{refused:?}");
    }
    home.json(&["set", "disk", "--journal-cap", "256M"]);
}

/// A server that hangs must not take the shell with it: who waits for it can stop waiting, also between quiesce and thaw, and the
/// thaw comes.
#[test]
fn a_server_that_hangs_can_be_left() {
    let home = Home::new();
    let served = home.serve(&[]);
    let thawed = home.path("thawed");
    let thaw = script(&home, "thaw", &format!("touch {}", thawed.display()));
    let quiesce = script(&home, "quiesce", "true");
    served.signal(Signal::STOP);
    for application in [false, true] {
        let mut arguments = vec!["mark", "disk", "m1"];
        if application {
            arguments.extend(["--app", "--quiesce", &quiesce, "--thaw", &thaw]);
        }
        let mut command = home.command(&arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(child.try_wait().unwrap(), None, "it did not wait");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        wait(&mut child);
        assert_eq!(thawed.exists(), application);
    }
    served.signal(Signal::CONT);
    served.stop();
}
