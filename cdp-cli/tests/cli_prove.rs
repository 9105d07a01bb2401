//! Proofs on the real binary: what a program said of a state is kept, is a point, and is seen in the status; by hand
//! and on a schedule.

mod cli;

use cli::*;
use serde_json::Value;

/// A server, a volume, and a judge that looks for `BROKEN` through a second command.
fn begin(home: &Home) -> (Served, String) {
    home.json(&["create", "disk", "--size", "16M", "--marker-interval", "0s"]);
    let cdp = env!("CARGO_BIN_EXE_cdp");
    let judge = format!(
        "{cdp} --store $CDP_STORE restore --force $CDP_VOLUME@$CDP_POINT {0}/state >/dev/null 2>&1 || exit 255; \
         ! head -c 6 {0}/state | grep -q BROKEN",
        home.dir.display()
    );
    (home.serve(&[]), judge)
}

fn write(home: &Home, served: &Served, text: &str) -> u64 {
    put(&mut served.connect("disk").unwrap(), 0, text.as_bytes()).unwrap();
    home.json(&["mark", "disk"])[0]["lsn"].as_u64().unwrap()
}

fn status(home: &Home) -> Value {
    let ran = home.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&ran.out).unwrap();
    status["volumes"][0].clone()
}

/// After an outage: which state is the newest that is known to be good? Not the newest one.
#[test]
fn the_newest_good_state_is_a_point() {
    let home = Home::new();
    let (served, judge) = begin(&home);
    let first = write(&home, &served, "fine");
    let prove = |target: &str| home.run(&["prove", target, "--json", "--", "sh", "-c", &judge]);
    assert_eq!(home.run(&["restore", "disk@latest-proven", "x.img"]).code, 5, "nothing is proved yet");
    assert_eq!(prove("disk").code, 0);
    assert_eq!(home.run(&["status"]).code, 0);
    let second = write(&home, &served, "BROKEN");
    let ran = prove("disk@latest");
    assert_eq!(ran.code, 3, "{ran:?}");
    let proven = |home: &Home| {
        let restored = home.json(&["restore", "--force", "disk@latest-proven", "x.img"]);
        restored[0]["point"]["lsn"].as_u64().unwrap()
    };
    let check = |home: &Home| {
        assert!((first..second).contains(&proven(home)));
        assert_eq!(std::fs::read(home.path("x.img")).unwrap()[..4], *b"fine");
        let told = status(home);
        assert_eq!(told["proven"]["good"], true, "{told}");
        assert!(told["proven_age_ns"].as_u64().unwrap() > 0);
        assert!(told["disproven"]["lsn"].as_u64().unwrap() >= second, "{told}");
    };
    check(&home);
    assert_eq!(home.run(&["status"]).code, 3, "somebody should look at the newest state");
    let log = home.run(&["log", "disk"]).out;
    assert!(log.contains("= proof good") && log.contains("= proof NOT good"), "{log}");
    served.stop();
    check(&home);
    // Without a server too, and the program finds its store.
    let third = home.json(&["mark", "disk", "third"])[0]["lsn"].as_u64().unwrap();
    assert_eq!(prove("disk@third").code, 3);
    assert_eq!(prove(&format!("disk@lsn:{first}")).code, 0);
    assert!(third > second);
    assert_eq!(home.run(&["prove", "disk", "--", "sh", "-c", "exit 125"]).code, 1);
    // An old state that is bad is no alarm once a newer one is good.
    assert_eq!(home.run(&["prove", "disk@latest", "--", "true"]).code, 0);
    assert_eq!(prove(&format!("disk@lsn:{second}")).code, 3);
    assert_eq!(home.run(&["status"]).code, 0);
    assert_eq!(home.run(&["prove", "disk@nope", "--", "true"]).code, 5);
    // A file that cannot be believed is said, and is no proof.
    let file = home.store().join("volumes/disk/proofs");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(home.run(&["restore", "--force", "disk@latest-proven", "x.img"]).code, 3);
    assert_eq!(home.run(&["verify"]).code, 0, "the volume itself is good");
}

/// Nobody remembers to prove by hand: the server does it, and a bad verdict is in the status.
#[test]
fn the_server_proves_on_a_schedule() {
    let home = Home::new();
    let dir = home.path(".config/cdp");
    std::fs::create_dir_all(&dir).unwrap();
    let marks = home.path("asked");
    let config = format!(
        "[volume.disk.prove]\nevery = \"1s\"\nprogram = [\"sh\", \"-c\", \"echo $CDP_POINT >>{}; test ! -e {}\"]\n",
        marks.display(),
        home.path("bad").display()
    );
    std::fs::write(dir.join("config.toml"), &config).unwrap();
    home.json(&["create", "disk", "--size", "16M"]);
    let served = home.serve(&[]);
    wait_until("a proof", || status(&home)["proven"].is_object());
    std::fs::write(home.path("bad"), "").unwrap();
    wait_until("a bad verdict", || status(&home)["disproven"].is_object());
    assert_eq!(home.run(&["status"]).code, 3);
    std::fs::remove_file(home.path("bad")).unwrap();
    wait_until("a good one again", || status(&home)["disproven"].is_null());
    served.stop();
    std::fs::write(dir.join("config.toml"), config.replace("every", "evry")).unwrap();
    assert_eq!(home.run(&["list"]).code, 2, "a misspelt key proves nothing, silently");
}

/// A program that hangs must not keep the server from stopping.
#[test]
fn a_hanging_program_ends_with_the_server() {
    let home = Home::new();
    let dir = home.path(".config/cdp");
    std::fs::create_dir_all(&dir).unwrap();
    let begun = home.path("begun");
    let config = format!(
        "[volume.disk.prove]\nevery = \"1s\"\nprogram = [\"sh\", \"-c\", \"touch {}; exec sleep 1000\"]\n",
        begun.display()
    );
    std::fs::write(dir.join("config.toml"), config).unwrap();
    home.json(&["create", "disk", "--size", "16M"]);
    let served = home.serve(&[]);
    wait_until("the program", || begun.exists());
    served.stop();
}

/// What cannot be mounted is named as it was asked for, and the hint is a line that works.
#[test]
fn a_blank_state_is_named_as_it_was_asked_for() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIP: root and FUSE are needed");
        return;
    }
    let home = Home::new();
    let (served, _) = begin(&home);
    let ran = home.run(&["prove", "disk@lsn:0", "--mount", "--", "true"]);
    assert!(ran.code != 0 && ran.err.contains("disk@lsn:0 is blank"), "{ran:?}");
    assert!(ran.err.contains("cdp log disk shows") && !ran.err.contains("probe"), "{ran:?}");
    served.stop();
}
