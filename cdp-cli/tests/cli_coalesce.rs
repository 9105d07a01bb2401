//! After an outage on a thin line: the newest state first, history behind it, on the real binary.

mod cli;
mod sites;

use std::io::Write;
use std::time::{Duration, Instant};

use cli::*;
use serde_json::Value;
use sites::*;

const BYTES: usize = 4 << 20;
/// What the history of the outage takes through this is minutes, what differs is seconds: a test that is slow sees the same.
const THIN: &str = "160KiB/s";

struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.0.to_be_bytes()
        };
        (0..count / 8).flat_map(|_| next()).collect()
    }
}

fn all_of(served: &Served, export: &str) -> Vec<u8> {
    get(&mut served.connect(export).unwrap(), 0, BYTES).unwrap()
}

fn refused(served: &Served, export: &str) -> String {
    match served.connect(export) {
        Ok(_) => panic!("{export} is shown"),
        Err(error) => error.to_string(),
    }
}

fn newest(sites: &Sites) -> Value {
    sites.b.json(&["replica", "newest", "vm"])[0].clone()
}

fn wait_for(what: &str, mut look: impl FnMut() -> Value, is_there: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE * 2;
    loop {
        let value = look();
        if is_there(&value) {
            return value;
        }
        assert!(Instant::now() < until, "waited for {what}: {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both sites behind an outage, on a line that is thin from then on.
struct Outage {
    // What the disk held before.
    before: Vec<u8>,
    // An instant in it.
    middle_ns: u64,
    // Where the second site listens.
    address: String,
    a: Served,
    b: Served,
}

fn after_an_outage(sites: &Sites, how: &[&str]) -> Outage {
    let mut noise = Noise(7);
    assert_eq!(sites.a.run(&["create", "vm", "--size", "4MiB"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    assert_eq!(sites.a.run(&[&["replica", "add", "vm", &address][..], how].concat()).code, 0);
    let mut disk = a.connect("vm").unwrap();
    put(&mut disk, 0, &noise.bytes(1 << 20)).unwrap();
    assert_eq!(sites.a.run(&["mark", "vm", "before"]).code, 0);
    let before = all_of(&a, "vm");
    let all_there = |replica: &Value| replica["lag_records"] == 0 && replica["newest"] != Value::Null;
    wait_for("the replica", || sites.a.json(&["replica", "list", "vm"])[0].clone(), all_there);
    drop(b);
    // 64 blocks, again and again: 20 MiB of history, 256 KiB that differ.
    let mut middle_ns = 0;
    for round in 0..80 {
        put(&mut disk, 64 << 10, &noise.bytes(256 << 10)).unwrap();
        if round == 40 {
            middle_ns = sites.a.json(&["mark", "vm", "middle"])[0]["ns"].as_u64().unwrap();
        }
    }
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(sites.a.run(&["replica", "limit", "vm", &address, THIN]).code, 0);
    let b = sites.serve_b(&address);
    Outage { before, middle_ns, address, a, b }
}

/// A second site was away for a day, on a line that carries that day's writes in hours. It shows the newest state soon, as a
/// disk that can be used, says what it does not have yet, also over a restart; and ends with every instant.
#[test]
fn the_newest_state_is_usable_while_history_is_filled_in() {
    let sites = Sites::new();
    let Outage { before, middle_ns, address, a, b } =
        after_an_outage(&sites, &["--coalesce=1MiB", "--codec", "none"]);
    let latest = all_of(&a, "vm");
    let middle = all_of(&a, "vm@middle");
    let shown = wait_for("the newest state", || newest(&sites), |line| line["state"] == "shown");
    let lsn = shown["place"]["lsn"].as_u64().unwrap();
    let (records, of_records) = (shown["records"].as_u64().unwrap(), shown["of_records"].as_u64().unwrap());
    assert!(records < of_records, "{shown}");
    for export in ["vm", "vm@latest", &format!("vm@lsn:{lsn}")] {
        assert!(all_of(&b, export) == latest, "{export}");
    }
    assert!(all_of(&b, "vm@before") == before, "the history that is here");
    let between = refused(&b, &format!("vm@lsn:{}", lsn - 1));
    assert!(between.contains("filling"), "{between}");
    let between = refused(&b, &format!("vm@ns:{middle_ns}"));
    assert!(between.contains("filling"), "{between}");
    assert!(refused(&b, &format!("vm@lsn:{}", lsn + 1)).contains("beyond"));
    // A trial on it, a copy of it; what needs its history is refused.
    let mut trial = b.connect("vm@latest+rw").unwrap();
    put(&mut trial, 70_000, b"trial").unwrap();
    assert_eq!(get(&mut trial, 70_000, 5).unwrap(), b"trial");
    assert_eq!(get(&mut trial, 0, 4096).unwrap(), latest[..4096]);
    assert_eq!(sites.b.run(&["restore", "vm@latest", "saved.img"]).code, 0);
    assert!(std::fs::read(sites.b.path("saved.img")).unwrap() == latest);
    let cloned = sites.b.run(&["clone", &format!("vm@lsn:{lsn}"), "copy"]);
    assert!(cloned.code != 0, "{cloned:?}");
    let diff = sites.b.run(&["diff", "vm@before", "vm@latest"]);
    assert!(diff.code != 0 && diff.err.contains("filling"), "{diff:?}");
    // In words, on both sides.
    let status = sites.b.run(&["status", "vm"]).out;
    assert!(status.contains(&format!("shows       LSN {lsn} of")), "{status}");
    assert!(
        status.contains("filling, ") && status.contains(&format!(" of {of_records} records")),
        "{status}"
    );
    let at_a = || sites.a.json(&["replica", "list", "vm"])[0].clone();
    let replica = wait_for("what the first site says", at_a, |replica| replica["state"] == "filling");
    assert_eq!(replica["shown"]["lsn"], lsn, "{replica}");
    assert_eq!(replica["coalesce_bytes"], 1 << 20, "{replica}");
    drop((trial, b));
    let b = sites.serve_b(&address);
    assert!(all_of(&b, "vm") == latest, "over a restart");
    assert!(refused(&b, &format!("vm@lsn:{}", lsn - 1)).contains("filling"));
    assert_eq!(sites.a.run(&["replica", "limit", "vm", &address, "none"]).code, 0);
    sites.caught_up();
    wait_for("the end", || newest(&sites), Value::is_null);
    assert!(all_of(&b, "vm") == latest);
    assert!(all_of(&b, "vm@middle") == middle, "history has a gap");
    for back in 1..=of_records {
        let point = format!("vm@lsn:{}", lsn + 1 - back);
        assert!(all_of(&b, &point) == all_of(&a, &point), "{point}");
    }
    assert!(!sites.b.store().join("volumes/vm/coalesced").exists());
    a.stop();
    b.stop();
}

/// The first site is lost while history is filled in. The second one has its newest state: people go on with that, and are told
/// which instants are lost. When the first site comes back, what only it had is kept beside, and both disks become the same.
#[test]
fn a_failover_goes_on_from_the_newest_state() {
    let sites = Sites::both_ways();
    let Outage { before, middle_ns, address, a, b } =
        after_an_outage(&sites, &["--coalesce=1MiB", "--codec", "none"]);
    let latest = all_of(&a, "vm");
    let shown = wait_for("the newest state", || newest(&sites), |line| line["state"] == "shown");
    let lsn = shown["place"]["lsn"].as_u64().unwrap();
    put(&mut a.connect("vm").unwrap(), 2 << 20, &[5; 70_000]).unwrap();
    let unseen = all_of(&a, "vm");
    drop(a);
    let planned = sites.b.json(&["failover", "vm", "--dry-run"]);
    assert_eq!((&planned[0]["to_lsn"], &planned[0]["newest"]), (&lsn.into(), &Value::Null), "{planned}");
    assert!(planned[0]["ahead"]["write_bytes"].as_u64() >= Some(256 << 10), "{planned}");
    let said = sites.b.run(&["failover", "vm", "--dry-run"]).out;
    assert!(said.contains("would be the primary") && said.contains("are lost as points in time"), "{said}");
    assert_eq!(newest(&sites)["state"], "shown", "a dry run changed something");
    let done = sites.b.json(&["failover", "vm"])[0].clone();
    assert_eq!((&done["done"], &done["to_lsn"]), (&true.into(), &lsn.into()), "{done}");
    let behind = done["ahead"]["behind"]["lsn"].as_u64().unwrap();
    let whole = done["ahead"]["here_lsn"].as_u64().unwrap();
    assert_eq!(done["ahead"]["lost_records"], lsn - behind, "{done}");
    assert!(all_of(&b, "vm") == latest, "it does not go on from the newest state");
    let check = |served: &Served| {
        assert!(all_of(served, &format!("vm@lsn:{whole}")) == latest);
        assert!(all_of(served, &format!("vm@ns:{}", shown["place"]["ns"])) == latest);
        assert!(all_of(served, "vm@before") == before);
        for between in [format!("vm@lsn:{}", behind + 2), format!("vm@ns:{middle_ns}")] {
            let says = refused(served, &between);
            assert!(says.contains("gap"), "{between}: {says}");
        }
    };
    check(&b);
    put(&mut b.connect("vm").unwrap(), 0, &[7; 4096]).unwrap();
    let log = sites.b.run(&["log", "vm"]).out;
    assert!(log.contains("was not here when this site took over"), "{log}");
    assert!(newest(&sites).is_null());
    assert!(!sites.b.store().join("volumes/vm/coalesced").exists());
    assert_eq!(sites.b.run(&["verify"]).code, 0);
    drop(b);
    let b = sites.serve_b(&address);
    check(&b);
    let went_on = all_of(&b, "vm");
    assert!(went_on[..4096] == [7; 4096] && went_on[4096..] == latest[4096..]);

    let a = sites.a.serve(&["--pki", "pki", "--replica-listen", "127.0.0.1:0"]);
    let role = || sites.a.run(&["status", "vm", "--json"]).out;
    wait_until("the old primary is fenced", || role().contains("\"fenced\""));
    assert_eq!(sites.b.run(&["replica", "add", "vm", &address_of(&a)]).code, 0);
    wait_until("it knows what the other site has", || sites.a.run(&["resync", "vm", "--dry-run"]).code == 0);
    let resynced = sites.a.json(&["resync", "vm"]);
    assert_eq!((&resynced[0]["common_lsn"], &resynced[0]["orphan"]), (&behind.into(), &"vm-orphan-1".into()));
    wait_until("it is brought up", || {
        let replica = sites.b.json(&["replica", "list", "vm"])[0].clone();
        replica["lag_records"] == 0 && replica["newest"] != Value::Null
    });
    assert!(all_of(&a, "vm") == went_on, "the sites differ");
    assert!(all_of(&a, "vm-orphan-1") == unseen, "what only the first site had");
    assert!(all_of(&a, &format!("vm-orphan-1@lsn:{lsn}")) == latest);
    check(&a);
    a.stop();
    b.stop();
}

/// A database on two disks, of which one is filled in behind its newest state: both go on from one instant, or it is said why
/// that cannot be.
#[test]
fn a_group_goes_on_from_one_instant() {
    let sites = Sites::new();
    let mut noise = Noise(9);
    for name in ["vm", "log"] {
        assert_eq!(sites.a.run(&["create", name, "--size", "4MiB"]).code, 0);
    }
    assert_eq!(sites.a.run(&["group", "create", "db", "vm", "log"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    assert_eq!(sites.a.run(&["replica", "add", "db", &address, "--codec", "none"]).code, 0);
    let caught_up = || {
        let replicas = sites.a.json(&["replica", "list"]);
        let all_there = |replica: &Value| replica["lag_records"] == 0 && replica["newest"] != Value::Null;
        replicas.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(all_there))
    };
    for name in ["vm", "log"] {
        put(&mut a.connect(name).unwrap(), 1 << 20, &noise.bytes(8192)).unwrap();
    }
    wait_until("both are there", caught_up);
    drop(b);
    for name in ["vm", "log"] {
        let mut disk = a.connect(name).unwrap();
        for _ in 0..40 {
            put(&mut disk, 0, &noise.bytes(256 << 10)).unwrap();
        }
        disk.flush().unwrap();
        assert_eq!(sites.a.run(&["replica", "limit", name, &address, THIN]).code, 0);
    }
    assert_eq!(sites.a.run(&["replica", "coalesce", "vm", &address, "1MiB"]).code, 0);
    let latest = all_of(&a, "vm");
    let b = sites.serve_b(&address);
    wait_for("the newest state", || newest(&sites), |line| line["state"] == "shown");
    let ran = sites.b.run(&["failover", "db"]);
    assert!(ran.code != 0, "{ran:?}");
    for word in ["vm shows the state of", "log is complete through", "--give-up-newest"] {
        assert!(ran.err.contains(word), "{word}: {}", ran.err);
    }
    assert_eq!(sites.b.json(&["status", "vm"])["volumes"][0]["role"], "replica");
    assert_eq!(sites.a.run(&["replica", "limit", "log", &address, "none"]).code, 0);
    wait_until("the other member has caught up", || sites.b.run(&["failover", "db", "--dry-run"]).code == 0);
    assert_eq!(newest(&sites)["state"], "shown", "the test is too slow for its line");
    let log = all_of(&a, "log");
    drop(a);
    let done = sites.b.json(&["failover", "db"]);
    let ahead: Vec<bool> = (0..2).map(|place| done[place]["ahead"] != Value::Null).collect();
    assert_eq!(ahead, [true, false], "{done}");
    assert!(all_of(&b, "vm") == latest && all_of(&b, "log") == log);
    b.stop();
}

/// Somebody wants what history has, and not the newer state: that has to be said, and the newer one can be saved before.
#[test]
fn giving_the_newest_state_up_has_to_be_meant() {
    let sites = Sites::new();
    let Outage { before, a, b, .. } = after_an_outage(&sites, &["--coalesce=1MiB", "--codec", "none"]);
    let latest = all_of(&a, "vm");
    let shown = wait_for("the newest state", || newest(&sites), |line| line["state"] == "shown");
    let lsn = shown["place"]["lsn"].as_u64().unwrap();
    drop(a);
    let ran = sites.b.run(&["failover", "vm", "--to", "before"]);
    assert!(ran.code != 0, "{ran:?}");
    for word in [&format!("lsn:{lsn}"), "restore", "--give-up-newest"] {
        assert!(ran.err.contains(word), "{word}: {}", ran.err);
    }
    assert_eq!(sites.b.json(&["status", "vm"])["volumes"][0]["role"], "replica");
    let planned = sites.b.json(&["failover", "vm", "--dry-run", "--give-up-newest"]);
    assert_eq!(planned[0]["newest"]["lsn"], lsn, "{planned}");
    assert!(planned[0]["to_lsn"].as_u64().unwrap() < lsn, "{planned}");
    let status = sites.b.json(&["status", "vm"]);
    assert!(status["volumes"][0]["sizes"]["newest"].as_u64() >= Some(256 << 10), "{status}");
    assert_eq!(sites.b.run(&["restore", "vm@latest", "saved.img"]).code, 0);
    let done = sites.b.run(&["failover", "vm", "--give-up-newest"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains("given up"), "{done:?}");
    assert!(std::fs::read(sites.b.path("saved.img")).unwrap() == latest);
    let mut disk = b.connect("vm").unwrap();
    assert!(get(&mut disk, 0, 64 << 10).unwrap() == before[..64 << 10], "what nobody changed");
    put(&mut disk, 0, &[7; 4096]).unwrap();
    assert!(newest(&sites).is_null());
    drop(disk);
    b.stop();
    let b = sites.serve_b("127.0.0.1:0");
    assert_eq!(all_of(&b, "vm")[..4096], [7; 4096]);
    assert!(!sites.b.store().join("volumes/vm/coalesced").exists());
    b.stop();
}

/// Who did not ask for it gets history in its order, as ever; and can ask for it on a link that is there, and let a state
/// go that is shown.
#[test]
fn it_is_off_until_somebody_wants_it() {
    let sites = Sites::new();
    let Outage { before, address, a, b, .. } = after_an_outage(&sites, &["--codec", "none"]);
    let at_a = || sites.a.json(&["replica", "list", "vm"])[0].clone();
    assert_eq!(at_a()["coalesce_bytes"], Value::Null);
    wait_for("records", at_a, |replica| {
        replica["state"] == "behind" && replica["sent_bytes"].as_u64() > Some(0)
    });
    assert!(newest(&sites).is_null());
    assert_ne!(sites.a.run(&["replica", "coalesce", "vm", &address, "much"]).code, 0);
    assert_eq!(sites.a.run(&["replica", "coalesce", "vm", &address, "1MiB"]).code, 0);
    wait_for("the newest state", || newest(&sites), |line| line["state"] == "shown");
    assert!(all_of(&b, "vm") == all_of(&a, "vm"));
    assert_eq!(sites.a.run(&["replica", "coalesce", "vm", &address, "off"]).code, 0);
    assert_eq!(at_a()["coalesce_bytes"], Value::Null);
    assert_eq!(newest(&sites)["state"], "shown", "it stays until history is there");
    assert_eq!(sites.b.json(&["replica", "newest", "vm", "--drop"]), Value::Array(Vec::new()));
    assert_ne!(sites.b.run(&["replica", "newest", "vm", "--drop"]).code, 0);
    let there = all_of(&b, "vm");
    assert!(there[..64 << 10] == before[..64 << 10] && there != all_of(&a, "vm"), "only history is shown");
    assert_eq!(sites.a.run(&["replica", "limit", "vm", &address, "none"]).code, 0);
    sites.caught_up();
    assert!(all_of(&b, "vm") == all_of(&a, "vm"));
    a.stop();
    b.stop();
}
