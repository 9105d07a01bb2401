//! A plain disk behind a volume, on the real binary: whoever starts a machine from it must find the instant that was
//! printed, whatever was killed before.

mod cli;

use cli::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

const MIB: u64 = 1 << 20;

/// `cdp restore --follow --json`; killed with the test.
struct Following {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Following {
    fn start(home: &Home, arguments: &[&str]) -> Following {
        let all = [&["restore", "disk@latest", "vm.img", "--follow", "--every", "50ms", "--json"], arguments]
            .concat();
        let mut child = home.command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Following { child, out }
    }

    /// The next event.
    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?} {}", self.said()))
    }

    fn said(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut said).unwrap();
        said
    }

    /// Waits until it stands at this record or a later one.
    fn reaches(&mut self, lsn: u64) -> Value {
        loop {
            let event = self.event();
            if event["lsn"].as_u64().unwrap() >= lsn {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tip(home: &Home) -> u64 {
    home.json(&["status", "disk"])["volumes"][0]["tip"]["lsn"].as_u64().unwrap()
}

/// The disk is, to the byte, the state that was said.
fn check(home: &Home, at: &Value) {
    let lsn = at["lsn"].as_u64().unwrap();
    let point = format!("disk@lsn:{lsn}");
    let restored = home.run(&["restore", &point, "exact.img", "--force"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    let (found, wanted) = (read(&home.path("vm.img")), read(&home.path("exact.img")));
    assert_eq!(found.len(), wanted.len());
    let differs = found.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "vm.img is not {point}");
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn written(served: &Served, seed: u8) {
    let mut disk = served.connect("disk").unwrap();
    for i in 0..40u64 {
        put(&mut disk, (i * 7919 + u64::from(seed) * 13) % 63 * MIB + i * 512, &[seed ^ i as u8; 3000])
            .unwrap();
    }
}

#[test]
fn followed_through_kills_and_finished() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    written(&served, 1);
    let mut following = Following::start(&home, &[]);
    let first = following.reaches(tip(&home));
    assert_eq!(first["event"], "standing");
    assert!(home.path("vm.img").exists() && !home.path("vm.img.copying").exists());
    // Two of them would write over each other.
    let second = home.run(&["restore", "disk", "vm.img", "--finish"]);
    assert_eq!(second.code, 4, "{second:?}");
    // Nor may anybody put another file in its place under its hands.
    let replaced = home.run(&["restore", "disk@start", "vm.img", "--force"]);
    assert_eq!(replaced.code, 4, "{replaced:?}");
    assert!(replaced.err.contains("holds a lock"), "{replaced:?}");
    // A rollback and a larger disk are steps like any other.
    written(&served, 2);
    home.json(&["rollback", &format!("disk@lsn:{}", first["lsn"])]);
    home.json(&["grow", "disk", "72M"]);
    written(&served, 3);
    following.reaches(tip(&home));
    // Killed at some moment, while somebody writes.
    for seed in 4..8 {
        written(&served, seed);
        following.signal(Signal::KILL);
        drop(following);
        following = Following::start(&home, &[]);
        written(&served, seed + 50);
        assert_eq!(following.event()["event"], "standing");
    }
    // The server goes and comes back.
    served.signal(Signal::KILL);
    drop(served);
    let served = home.serve(&[]);
    written(&served, 9);
    following.reaches(tip(&home));
    // The end: what was written last is on it.
    written(&served, 10);
    let newest = tip(&home);
    following.signal(Signal::TERM);
    let ended = following.reaches(newest);
    let mut event = ended.clone();
    while event["event"] != "ended" {
        event = following.event();
    }
    assert_eq!(wait(&mut following.child), Some(0));
    check(&home, &event);
    // Goes on where it was, and is killed once more before it is finished.
    written(&served, 11);
    let mut following = Following::start(&home, &[]);
    following.reaches(tip(&home));
    written(&served, 12);
    following.signal(Signal::KILL);
    drop(following);
    // A marker, or the end of a session, may come at any time; no write does any more.
    let newest = tip(&home);
    let finished = home.json(&["restore", "disk", "vm.img", "--finish"]);
    assert_eq!(finished["event"], "handed-over");
    assert!(finished["lsn"].as_u64().is_some_and(|lsn| (newest..=tip(&home)).contains(&lsn)), "{finished}");
    check(&home, &finished);
    // From now on it is somebody else's.
    let again = home.run(&["restore", "disk@latest", "vm.img", "--follow"]);
    assert_eq!(again.code, 4, "{again:?}");
    served.stop();
}

// The night in which the server does not come back: its store is still there, or not even that.
#[test]
fn finished_without_a_server() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    written(&served, 1);
    home.json(&["mark", "disk", "good"]);
    let mut following = Following::start(&home, &[]);
    following.reaches(tip(&home));
    following.signal(Signal::KILL);
    drop(following);
    written(&served, 2);
    let newest = tip(&home);
    served.signal(Signal::KILL);
    drop(served);
    std::fs::copy(home.path("vm.img"), home.path("copy")).unwrap();

    let nothing = home.run(&["restore", "disk", "other.img", "--finish"]);
    assert_eq!(nothing.code, 5, "{nothing:?}");
    let finished = home.json(&["restore", "disk", "vm.img", "--finish"]);
    assert!(finished["lsn"].as_u64() >= Some(newest), "{finished}");
    check(&home, &finished);

    // An older instant than it stands at, which the same road leads to; and with force from anything.
    let forced = home.run(&["restore", "disk@latest", "vm.img", "--follow"]);
    assert_eq!(forced.code, 4, "{forced:?}");
    let served = home.serve(&[]);
    let mut following = Following::start(&home, &["--force"]);
    following.reaches(newest);
    following.signal(Signal::INT);
    assert_eq!(wait(&mut following.child), Some(0));
    let good = home.json(&["restore", "disk@good", "vm.img", "--finish"]);
    assert!(good["lsn"].as_u64() < Some(newest), "{good}");
    check(&home, &good);
    served.stop();
}

#[test]
fn only_the_disk_is_left() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    written(&served, 1);
    let mut following = Following::start(&home, &[]);
    let stood = following.reaches(tip(&home));
    following.signal(Signal::KILL);
    drop(following);
    served.stop();
    std::fs::rename(home.store(), home.path("burnt")).unwrap();
    std::fs::write(home.path("not-a-directory"), "").unwrap();
    let store = ["--store", "not-a-directory/store"];
    let gone = home.run(&[&store[..], &["restore", "disk", "vm.img", "--finish"]].concat());
    assert_ne!(gone.code, 0, "{gone:?}");
    assert!(gone.err.contains("--no-store"), "{gone:?}");
    let finished =
        home.json(&[&store[..], &["restore", "disk", "vm.img", "--finish", "--no-store"]].concat());
    assert!(finished["lsn"].as_u64() >= stood["lsn"].as_u64(), "{finished}");
    std::fs::rename(home.path("burnt"), home.store()).unwrap();
    check(&home, &finished);
}

// Somebody's machine ran from the disk after all: what it wrote must not be mixed with the volume.
#[test]
fn a_disk_that_somebody_wrote_to_is_refused() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    written(&served, 1);
    std::fs::write(home.path("vm.img"), "mine").unwrap();
    let there = home.run(&["restore", "disk@latest", "vm.img", "--follow"]);
    assert_eq!((there.code, read(&home.path("vm.img"))), (4, b"mine".to_vec()), "{there:?}");
    std::fs::remove_file(home.path("vm.img")).unwrap();
    let mut following = Following::start(&home, &[]);
    following.reaches(tip(&home));
    following.signal(Signal::TERM);
    assert_eq!(wait(&mut following.child), Some(0));
    let file = std::fs::OpenOptions::new().write(true).open(home.path("vm.img")).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"a machine", 1 << 20).unwrap();
    drop(file);
    for arguments in [&["--follow"][..], &["--finish"]] {
        let refused = home.run(&[&["restore", "disk@latest", "vm.img"], arguments].concat());
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.err.contains("--force"), "{refused:?}");
    }
    let mut following = Following::start(&home, &["--force"]);
    let stood = following.reaches(tip(&home));
    following.signal(Signal::TERM);
    assert_eq!(wait(&mut following.child), Some(0));
    check(&home, &stood);
    served.stop();
}

/// The image of a running machine: whoever replaced it would take the machine's disk away, and nobody would notice until it
/// is started anew. And a follower that lost its file must not say that the file stands anywhere.
#[test]
fn a_file_in_use_is_not_replaced_and_a_replaced_one_is_not_followed() {
    let home = Home::new();
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);
    let served = home.serve(&[]);
    written(&served, 1);
    for (name, format) in [("run.img", "raw"), ("run.qcow2", "qcow2")] {
        std::fs::write(home.path(name), "a machine's").unwrap();
        let image = std::fs::File::options().read(true).write(true).open(home.path(name)).unwrap();
        rustix::fs::fcntl_lock(&image, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let refused = home.run(&["restore", "disk@latest", name, "--force", "--format", format]);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert_eq!(read(&home.path(name)), b"a machine's");
        drop(image);
        assert_eq!(
            home.run(&["restore", "disk@latest", name, "--force", "--format", format]).code,
            0,
            "{name}"
        );
    }

    for arguments in [["disk@start", "vm.img"], ["disk@latest", "vm.qcow2"]] {
        let refused = home.run(&["restore", arguments[0], arguments[1], "--follow"]);
        assert_eq!(refused.code, 2, "{arguments:?}: {refused:?}");
    }
    let mut following = Following::start(&home, &[]);
    following.reaches(tip(&home));
    std::fs::rename(home.path("run.img"), home.path("vm.img")).unwrap();
    let there = read(&home.path("vm.img"));
    written(&served, 2);
    assert_eq!(wait(&mut following.child), Some(4));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut following.out, &mut rest).unwrap();
    assert!(rest.contains("replaced by another file"), "{rest}");
    assert!(read(&home.path("vm.img")) == there, "what is there now is somebody else's");
    served.stop();
}
