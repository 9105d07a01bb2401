//! A second site as people set it up: certificates, a replica, links and sites that die at any moment.

mod cli;
mod sites;

use std::time::{Duration, Instant};

use cli::*;
use serde_json::Value;
use sites::*;

/// The machine of either site is switched off again and again while somebody writes: the replica catches up by
/// itself, and at every marker both sites show the same disk.
#[test]
fn either_side_killed_at_any_time_converges() {
    let sites = Sites::new();
    let mut a = sites.serve_a();
    let mut b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    assert_eq!(sites.a.run(&["replica", "add", "disk", &address]).code, 0);
    let mut marks = Vec::new();
    for round in 0..6u8 {
        let mut disk = a.connect("disk").unwrap();
        for block in 0..40u64 {
            put(&mut disk, (block * 7919 % 997) * 4096 + u64::from(round), &[round + 1; 9000]).unwrap();
        }
        drop(disk);
        let name = format!("round-{round}");
        assert_eq!(sites.a.run(&["mark", "disk", &name]).code, 0);
        marks.push(name);
        std::thread::sleep(Duration::from_millis(u64::from(round) * 37 % 150));
        match round % 3 {
            // Killed by dropping it.
            0 => {
                drop(b);
                b = sites.serve_b(&address);
            }
            1 => {
                drop(a);
                a = sites.serve_a();
            }
            _ => {}
        }
    }
    let replica = sites.caught_up();
    assert_eq!(replica["state"], "up-to-date", "{replica}");
    assert_eq!(replica["site"], "site-b", "{replica}");
    for mark in &marks {
        let point = format!("disk@{mark}");
        let (mut here, mut there) = (a.connect(&point).unwrap(), b.connect(&point).unwrap());
        for at in (0..1000u64).map(|block| block * 4096) {
            assert_eq!(
                get(&mut here, at, 4096).unwrap(),
                get(&mut there, at, 4096).unwrap(),
                "{mark}, byte {at}"
            );
        }
    }
    // It is a replica: nobody writes to it, but whoever wants to try something can.
    assert!(put(&mut b.connect("disk").unwrap(), 0, b"no").is_err());
    let mut trial = b.connect("disk@round-3+rw").unwrap();
    put(&mut trial, 0, b"trial").unwrap();
    assert_eq!(get(&mut trial, 0, 5).unwrap(), b"trial");
    let status = sites.b.json(&["status", "disk"]);
    assert_eq!(status["volumes"][0]["role"], "replica", "{status}");
    assert_eq!(status["volumes"][0]["fed"]["site"], "site-a", "{status}");
    let refused = sites.b.run(&["mark", "disk", "mine"]);
    assert_eq!(refused.code, 4, "refused, not failed: {refused:?}");
    // Both sites are in one epoch: there is nothing to resync, and a primary is not called a replica.
    let resync = sites.a.run(&["resync", "disk"]);
    assert!(!resync.out.contains("is a replica now"), "{resync:?}");
    assert_eq!(sites.a.json(&["status", "disk"])["volumes"][0]["role"], "primary");
    assert!(sites.a.run(&["replica", "list"]).out.contains("compressed by lz4"));
    // Where nobody is, or only we are ourselves, is no second site.
    sites.b.json(&["create", "own", "--size", "1M"]);
    for (wrong, code) in
        [("127.0.0.1", 2), ("127.0.0.1:0", 2), (":4711", 2), ("::1:4711", 2), (&address[..], 4)]
    {
        let refused = sites.b.run(&["replica", "add", "own", wrong]);
        assert_eq!(refused.code, code, "{wrong}: {refused:?}");
    }
    assert_eq!(sites.b.json(&["replica", "list", "own"]), Value::Array(Vec::new()));
    // Let go of it: nothing is held any more.
    assert_eq!(sites.a.json(&["replica", "remove", "disk", &address]), Value::Array(Vec::new()));
    let status = sites.a.json(&["status", "disk"]);
    assert_eq!(status["volumes"][0]["pins"], Value::Array(Vec::new()), "{status}");
    a.stop();
    b.stop();
}

/// A stranger's certificate, or one that may only receive, must not get a byte in.
#[test]
fn rights_are_bound_to_certificates() {
    let sites = Sites::new();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    // Of the same authority, but without the right to send.
    let ran = sites.a.run(&["pki", "issue", "authority", "other", "--replica-only", "--to", "pki-other"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // What was issued is not overwritten, and each kind of certificate has its place.
    for again in [&["pki", "init", "authority"][..], &["pki", "issue", "authority", "site-a", "--to", "pki"]]
    {
        let ran = sites.a.run(again);
        assert!(ran.code == 4 && ran.err.contains("another directory"), "{ran:?}");
    }
    let ran = sites.a.run(&["pki", "issue", "authority", "third", "--witness", "--to", "pki-witness"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = sites.a.run(&["serve", "--pki", "pki-witness", "--replica-listen", "127.0.0.1:0"]);
    assert!(ran.code == 4 && ran.err.contains("not that of a site"), "{ran:?}");
    let ran = sites.a.run(&["witness", "--dir", "votes", "--pki", "pki", "--listen", "127.0.0.1:0"]);
    assert!(ran.code == 4 && ran.err.contains("not that of a witness"), "{ran:?}");
    // Of another authority, with the same names.
    assert_eq!(sites.a.run(&["pki", "init", "strangers"]).code, 0);
    assert_eq!(sites.a.run(&["pki", "issue", "strangers", "site-a", "--to", "pki-stranger"]).code, 0);
    for pki in ["pki-other", "pki-stranger"] {
        let a = sites.a.serve(&["--pki", pki]);
        let _ = sites.a.run(&["replica", "add", "disk", &address]);
        let until = Instant::now() + PATIENCE;
        loop {
            let replicas = sites.a.json(&["replica", "list"]);
            let state = replicas[0]["state"].as_str().unwrap();
            if ["stopped", "waiting"].contains(&state) {
                assert_eq!(replicas[0]["newest"], Value::Null, "{replicas}");
                let is_told = replicas[0]["text"].as_str().unwrap().contains("one authority");
                assert_eq!(is_told, pki == "pki-stranger", "{replicas}");
                break;
            }
            assert!(Instant::now() < until, "{replicas}");
            std::thread::sleep(Duration::from_millis(50));
        }
        a.stop();
    }
    b.stop();
}

/// A disk that was made from an image has no history that goes back to zeros: its state is copied while somebody writes to
/// it, through a line that is limited and a receiver that is killed in the middle; then the log follows.
#[test]
fn a_disk_from_an_image_is_copied_while_it_is_in_use() {
    let sites = Sites::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let image: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_be_bytes()
        })
        .collect();
    std::fs::write(sites.a.path("old.img"), &image).unwrap();
    assert_eq!(sites.a.run(&["create", "vm", "--from", "old.img"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    let add = ["replica", "add", "vm", &address, "--limit", "4MiB/s", "--codec"];
    assert_ne!(sites.a.run(&[&add[..], &["zip"]].concat()).code, 0);
    assert_eq!(sites.a.json(&[&add[..], &["none"]].concat())[0]["codec"], "none");
    let mut disk = a.connect("vm").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let replicas = sites.a.json(&["replica", "list", "vm"]);
        if replicas[0]["state"] == "copying" && replicas[0]["sent_bytes"].as_u64().unwrap() > 2 << 20 {
            break;
        }
        assert!(replicas[0]["state"] != "up-to-date" && Instant::now() < until, "{replicas}");
        put(&mut disk, noise % 1000 * 4096, &noise.to_be_bytes()).unwrap();
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(b);
    // The link begins anew with it, where the copy was.
    let changed = sites.a.json(&["replica", "codec", "vm", &address, "zstd"]);
    assert_eq!(changed[0]["codec"], "zstd", "{changed}");
    let b = sites.serve_b(&address);
    for block in 0..200u64 {
        put(&mut disk, block * 8192, &[block as u8; 300]).unwrap();
    }
    drop(disk);
    assert_eq!(sites.a.run(&["mark", "vm", "end"]).code, 0);
    let replica = sites.caught_up();
    assert_eq!(replica["limit_bytes_per_s"], 4 << 20, "{replica}");
    let (mut here, mut there) = (a.connect("vm@end").unwrap(), b.connect("vm@end").unwrap());
    let len = image.len();
    assert!(get(&mut here, 0, len).unwrap() == get(&mut there, 0, len).unwrap(), "the two disks differ");
    let verified = sites.b.run(&["verify", "vm"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    a.stop();
    b.stop();
}

/// A first copy that nobody will end any more fills the second site's disk, and nobody knows of it: it is shown there,
/// and goes when somebody says so, but not while it is being sent. And the limit that holds it up is changed at once.
#[test]
fn what_is_left_of_a_first_copy_is_seen_and_removed() {
    let sites = Sites::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let image: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_be_bytes()
        })
        .collect();
    std::fs::write(sites.a.path("old.img"), &image).unwrap();
    assert_eq!(sites.a.run(&["create", "vm", "--from", "old.img"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    let wrong = sites.a.run(&["replica", "add", "vm", &address, "--limit", "1M@8-18"]);
    assert_ne!(wrong.code, 0, "{wrong:?}");
    let added = sites.a.json(&["replica", "add", "vm", &address, "--limit", "64K/s@00:00-24:00,none"]);
    assert_eq!(added[0]["limit"], "64 KiB/s@00:00-24:00,none", "{added}");
    assert_eq!(added[0]["limit_bytes_per_s"], 64 << 10, "{added}");
    let copies = || sites.b.json(&["replica", "copies"]);
    let until = Instant::now() + PATIENCE;
    while copies()[0]["active"] != true {
        assert!(Instant::now() < until, "{}", copies());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(copies()[0]["name"], "vm", "{}", copies());
    let refused = sites.b.run(&["replica", "copies", "--drop", "vm"]);
    assert!(refused.code != 0 && refused.err.contains("being sent"), "{refused:?}");
    assert_eq!(sites.a.run(&["replica", "remove", "vm", &address]).code, 0);
    let until = Instant::now() + PATIENCE;
    while copies()[0]["active"] == true {
        assert!(Instant::now() < until, "{}", copies());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(sites.b.run(&["replica", "copies", "--drop", "other"]).code, 0);
    assert_eq!(sites.b.json(&["replica", "copies", "--drop", "vm"]), Value::Array(Vec::new()));
    // Again, and without a limit in the middle of it.
    assert_eq!(sites.a.run(&["replica", "add", "vm", &address, "--limit", "64K/s"]).code, 0);
    let limited = sites.a.json(&["replica", "limit", "vm", &address, "none"]);
    assert_eq!(limited[0]["limit"], Value::Null, "{limited}");
    sites.caught_up();
    assert_eq!(copies(), Value::Array(Vec::new()));
    a.stop();
    b.stop();
}

/// A replica is deleted by mistake: the one who is told at the first site needs to know that, and how it comes back.
#[test]
fn a_deleted_replica_is_called_deleted() {
    let sites = Sites::new();
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    assert_eq!(sites.a.run(&["replica", "add", "disk", &address_of(&b)]).code, 0);
    sites.caught_up();
    assert_eq!(sites.b.run(&["delete", "disk", "--yes", "--force"]).code, 0);
    let wait_for = |what: &str| {
        let until = Instant::now() + PATIENCE;
        while !sites.a.run(&["status"]).out.contains(what) {
            assert!(Instant::now() < until, "{:?}", sites.a.run(&["status"]));
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    wait_for("disk was deleted at the replica's site");
    assert!(sites.a.run(&["status"]).out.contains("`cdp undelete disk` there brings it back"));
    assert_eq!(sites.b.run(&["undelete", "disk"]).code, 0);
    wait_for("All is well");
    a.stop();
    b.stop();
}

/// Whoever may lose ten seconds and no more has to hear of it when a replica is further behind.
#[test]
fn a_lag_beyond_the_limit_is_an_alarm() {
    let sites = Sites::new();
    std::fs::create_dir_all(sites.a.path(".config/cdp")).unwrap();
    std::fs::write(sites.a.path(".config/cdp/config.toml"), "lag_alarm = \"1s\"\n").unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let a = sites.serve_a();
    assert_eq!(sites.a.run(&["replica", "add", "disk", &address]).code, 0);
    // Nothing is behind yet, and nobody is there: a slip in the address is told long before the alarm for the lag.
    let until = Instant::now() + PATIENCE;
    loop {
        let ran = sites.a.run(&["status"]);
        if ran.code == 3
            && (ran.out.contains("was never reached: connecting to") || ran.out.contains("more than"))
        {
            break;
        }
        assert!(Instant::now() < until, "{ran:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    put(&mut a.connect("disk").unwrap(), 0, &[1; 4096]).unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let ran = sites.a.run(&["status"]);
        if ran.out.contains("more than 1.0 s") {
            assert_ne!(ran.code, 0, "{ran:?}");
            break;
        }
        assert!(Instant::now() < until, "{ran:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(sites.a.json(&["replica", "list"])[0]["lag_alarm_ns"], 1_000_000_000);
    a.stop();
}

/// A database with its log on another disk is one thing to whoever replicates it: its group is fed, shown, and promoted as
/// a whole, at an instant that is complete for all of it though one member has nothing to send.
#[test]
fn a_group_is_fed_and_shown_as_one() {
    let sites = Sites::new();
    for name in ["data", "log"] {
        assert_eq!(sites.a.run(&["create", name, "--size", "16M"]).code, 0);
    }
    assert_eq!(sites.a.run(&["group", "create", "base", "data", "log"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    assert_eq!(sites.a.run(&["replica", "add", "log", &address]).code, 0);
    let refused = sites.a.run(&["replica", "add", "base", &address]);
    assert_ne!(refused.code, 0, "one of them has it already: {refused:?}");
    let before = sites.a.json(&["replica", "list"]);
    assert_eq!(before.as_array().unwrap().len(), 1, "none or all: {before}");
    assert_eq!(sites.a.json(&["replica", "remove", "base", &address]), Value::Array(Vec::new()));
    let added = sites.a.json(&["replica", "add", "base", &address]);
    assert_eq!(added.as_array().unwrap().len(), 2, "{added}");
    put(&mut a.connect("data").unwrap(), 0, &[3; 5000]).unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = sites.a.run(&["replica", "list", "base"]);
        let head = shown.out.lines().next().unwrap_or_default().to_owned();
        let written =
            head.contains("2 volumes, all up-to-date") && head.contains("complete for all of them through");
        let replicas = sites.a.json(&["replica", "list", "base"]);
        if written && replicas.as_array().unwrap().iter().all(|one| one["lag_records"] == 0) {
            assert!(head.starts_with("group base  at "), "{head}");
            break;
        }
        assert!(Instant::now() < until, "{shown:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // The group comes with its volumes: nobody makes it there.
    let until = Instant::now() + PATIENCE;
    let members = || match sites.b.run(&["failover", "base", "--dry-run"]).code {
        0 => sites.b.json(&["failover", "base", "--dry-run"]).as_array().unwrap().len(),
        _ => 0,
    };
    while members() != 2 {
        assert!(Instant::now() < until, "{}", sites.b.json(&["status"]));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(sites.a.json(&["replica", "limit", "base", &address, "1M"])[1]["limit_bytes_per_s"], 1 << 20);
    assert_eq!(sites.a.json(&["replica", "remove", "base", &address]), Value::Array(Vec::new()));
    a.stop();
    b.stop();
}
