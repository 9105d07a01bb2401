//! Making a replica anew without sending it all again, on the real binary.

mod cli;
mod sites;

use std::time::{Duration, Instant};

use cli::*;
use serde_json::Value;
use sites::*;

const BYTES: usize = 12 << 20;

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = seed | 1;
    (0..bytes / 8)
        .flat_map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_be_bytes()
        })
        .collect()
}

fn replica(sites: &Sites, volume: &str) -> Value {
    sites.a.json(&["replica", "list", volume])[0].clone()
}

fn wait_for(sites: &Sites, volume: &str, what: &str, is_there: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE * 2;
    loop {
        let replica = replica(sites, volume);
        if is_there(&replica) {
            return replica;
        }
        assert!(Instant::now() < until, "waited for {what}: {replica}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn has_all(replica: &Value) -> bool {
    replica["lag_records"] == 0 && replica["newest"] != Value::Null
}

fn all_of(served: &Served, export: &str) -> Vec<u8> {
    get(&mut served.connect(export).unwrap(), 0, BYTES).unwrap()
}

/// The second site was away for so long that the first one's journal does not go back to where it stands. It gets the blocks
/// that differ, through a line that takes minutes for all of it, and through a kill in the middle; and what it had before is
/// still there to be looked at.
#[test]
fn a_replica_that_fell_behind_gets_what_differs() {
    let sites = Sites::new();
    std::fs::write(sites.a.path("old.img"), noise(BYTES, 7)).unwrap();
    assert_eq!(sites.a.run(&["create", "vm", "--from", "old.img"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    let add = ["replica", "add", "vm", &address, "--limit", "none"];
    assert_eq!(sites.a.run(&add).code, 0);
    put(&mut a.connect("vm").unwrap(), 70_000, b"seen by both").unwrap();
    wait_for(&sites, "vm", "the first copy", has_all);
    let old = all_of(&b, "vm");
    // It is away, nothing is kept for it, and the first site keeps a second of history.
    drop(b);
    assert_eq!(sites.a.run(&["replica", "remove", "vm", &address]).code, 0);
    let mut disk = a.connect("vm").unwrap();
    for block in 0..40u64 {
        put(&mut disk, block * 71 % 3000 * 4096, &noise(4096, block)).unwrap();
    }
    drop(disk);
    assert_eq!(sites.a.run(&["retention", "set", "vm", "every-write 1s"]).code, 0);
    a.stop();
    let a = sites.serve_a();
    let mut disk = a.connect("vm").unwrap();
    wait_until("the journal to go back less far", || {
        put(&mut disk, 9 << 20, b"some more").unwrap();
        let history = std::fs::read_to_string(sites.a.store().join("volumes/vm/history")).unwrap_or_default();
        let base = history.lines().find_map(|line| line.strip_prefix("base_lsn = "));
        base.is_some_and(|lsn| lsn.parse::<u64>().unwrap() > 40)
    });
    drop(disk);
    let b = sites.serve_b(&address);
    let add = ["replica", "add", "vm", &address, "--limit", "60K/s"];
    assert_eq!(sites.a.run(&add).code, 0);
    let stopped = wait_for(&sites, "vm", "the refusal", |replica| replica["state"] == "stopped");
    assert!(stopped["text"].as_str().unwrap().contains("cdp replica reseed"), "{stopped}");
    // Somebody at the second site says so; before, with a mistake.
    assert_ne!(sites.b.run(&["replica", "reseed", "other"]).code, 0);
    assert_ne!(sites.a.run(&["replica", "reseed", "vm"]).code, 0, "a primary");
    let asked = sites.b.json(&["replica", "reseed", "vm"]);
    assert_eq!((&asked[0]["compared_with"], &asked[0]["replaces"]), (&Value::from("vm"), &Value::from(true)));
    let half = wait_for(&sites, "vm", "half of it", |replica| {
        assert!(!has_all(replica), "{replica}");
        replica["state"] == "comparing" && replica["sent_bytes"].as_u64().unwrap() > 30_000
    });
    let status: Value = serde_json::from_str(&sites.b.run(&["status", "vm", "--json"]).out).unwrap();
    assert_eq!(status["volumes"][0]["reseed"]["size_bytes"], BYTES, "{status}");
    assert!(half["text"].as_str().unwrap().starts_with("compared with what is there"), "{half}");
    assert!(all_of(&b, "vm") == old, "the old copy changed before the new one was whole");
    drop(b);
    let b = sites.serve_b(&address);
    assert!(all_of(&b, "vm") == old);
    assert_eq!(sites.a.run(&["replica", "limit", "vm", &address, "none"]).code, 0);
    put(&mut a.connect("vm").unwrap(), 8192, b"while it goes on").unwrap();
    assert_eq!(sites.a.run(&["mark", "vm", "end"]).code, 0);
    let done = wait_for(&sites, "vm", "all of it", has_all);
    let sent = done["sent_bytes"].as_u64().unwrap();
    assert!(sent < 60 * 4096 + 150_000, "{sent} bytes of {BYTES} were sent");
    assert!(all_of(&a, "vm@end") == all_of(&b, "vm@end"), "the two disks differ");
    assert_eq!(sites.b.json(&["replica", "reseed"]), Value::Array(Vec::new()));
    assert_eq!(sites.b.json(&["replica", "copies"]), Value::Array(Vec::new()));
    // What was there before, with all of it.
    let volumes = sites.b.json(&["list"]);
    let names: Vec<&str> =
        volumes.as_array().unwrap().iter().filter_map(|volume| volume["name"].as_str()).collect();
    let aside = names.into_iter().find(|name| name.starts_with("vm-until-")).expect("it steps aside");
    assert!(all_of(&b, aside) == old);
    assert!(put(&mut b.connect(aside).unwrap(), 0, b"no").is_err());
    for volume in ["vm", aside] {
        let verified = sites.b.run(&["verify", volume]);
        assert_eq!(verified.code, 0, "{verified:?}");
    }
    assert_ne!(sites.b.run(&["failover", aside]).code, 0);
    assert!(sites.b.run(&["status", aside]).out.contains("a newer one took its place"));
    assert_eq!(sites.b.run(&["delete", aside, "--yes"]).code, 0);
    a.stop();
    b.stop();
}

/// A disk of terabytes goes by car, and the line carries what changed since: compared with a file as it came, or with a volume
/// that was made of it.
#[test]
fn an_image_that_was_carried_there_counts() {
    let sites = Sites::new();
    let image = noise(BYTES, 11);
    for (home, name) in [(&sites.a, "old.img"), (&sites.b, "carried.raw")] {
        std::fs::write(home.path(name), &image).unwrap();
    }
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let address = address_of(&b);
    assert_eq!(sites.b.run(&["create", "carried", "--from", "carried.raw"]).code, 0);
    for (volume, from) in [("one", "./carried.raw"), ("two", "carried@latest")] {
        assert_eq!(sites.a.run(&["create", volume, "--from", "old.img"]).code, 0);
        let mut disk = a.connect(volume).unwrap();
        for block in 0..20u64 {
            put(&mut disk, block * 131 % 3000 * 4096, &noise(4096, block)).unwrap();
        }
        drop(disk);
        let asked = sites.b.json(&["replica", "reseed", volume, "--from", from]);
        assert_eq!(asked[0]["replaces"], false, "{asked}");
        assert_eq!(sites.b.json(&["replica", "reseed", volume, "--cancel"]), Value::Array(Vec::new()));
        assert_ne!(sites.b.run(&["replica", "reseed", volume, "--cancel"]).code, 0);
        sites.b.json(&["replica", "reseed", volume, "--from", from]);
        assert_eq!(sites.a.run(&["replica", "add", volume, &address]).code, 0);
        let done = wait_for(&sites, volume, "all of it", has_all);
        let sent = done["sent_bytes"].as_u64().unwrap();
        assert!(sent < 20 * 4096 + 100_000, "{volume}: {sent} bytes of {BYTES} were sent");
        assert!(all_of(&a, volume) == all_of(&b, volume), "{volume}: the two disks differ");
    }
    assert!(all_of(&b, "carried") == image);
    // All members of a group, or none: one that is no replica is among them.
    assert_eq!(sites.b.run(&["group", "create", "pair", "one", "two"]).code, 0);
    assert_eq!(sites.b.json(&["replica", "reseed", "pair"]).as_array().unwrap().len(), 2);
    assert_eq!(sites.b.json(&["replica", "reseed", "pair", "--cancel"]), Value::Array(Vec::new()));
    assert_eq!(sites.b.run(&["group", "add", "pair", "carried"]).code, 0);
    assert_ne!(sites.b.run(&["replica", "reseed", "pair"]).code, 0);
    assert_eq!(sites.b.json(&["replica", "reseed"]), Value::Array(Vec::new()));
    a.stop();
    b.stop();
}

/// Up to where the second site has folded the past of a volume.
fn base_lsn(sites: &Sites, volume: &str) -> u64 {
    let path = sites.b.store().join("volumes").join(volume).join("history");
    let history = std::fs::read_to_string(path).unwrap_or_default();
    history.lines().find_map(|line| line.strip_prefix("base_lsn = ")?.parse().ok()).unwrap_or(0)
}

/// A client has the replica open while that is made anew, and its retention folds away what the client sees. He is sent away, or
/// gets errors; he never reads what was written behind the state that he opened.
#[test]
fn an_open_view_of_a_replica_ends_with_it() {
    let sites = Sites::new();
    std::fs::write(sites.a.path("old.img"), noise(BYTES, 13)).unwrap();
    assert_eq!(sites.a.run(&["create", "vm", "--from", "old.img"]).code, 0);
    let a = sites.serve_a();
    let b = sites.serve_b("127.0.0.1:0");
    let add = ["replica", "add", "vm", &address_of(&b), "--limit", "none"];
    assert_eq!(sites.a.run(&add).code, 0);
    wait_for(&sites, "vm", "the first copy", has_all);
    assert_eq!(sites.b.run(&["retention", "set", "vm", "every-write 1s"]).code, 0);
    let mut views =
        ["vm", "vm@latest", "vm@latest+rw", "vm@latest+rw:shared"].map(|export| b.connect(export).unwrap());
    let before = get(&mut views[0], 100 * 4096, 4096).unwrap();
    put(&mut a.connect("vm").unwrap(), 100 * 4096, &[0xab; 4096]).unwrap();
    wait_for(&sites, "vm", "the write", has_all);
    for view in &mut views {
        assert!(get(view, 100 * 4096, 4096).unwrap() == before);
    }
    let base_before = base_lsn(&sites, "vm");
    sites.b.json(&["replica", "reseed", "vm"]);
    let aside = || {
        let volumes = sites.b.json(&["list"]);
        let names: Vec<String> = volumes
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| volume["name"].as_str().unwrap().to_owned())
            .collect();
        names.into_iter().find(|name| name.starts_with("vm-until-"))
    };
    let mut refused = [false; 4];
    let mut look = |refused: &mut [bool; 4]| {
        for (view, refused) in views.iter_mut().zip(refused) {
            match get(view, 100 * 4096, 4096) {
                Ok(bytes) => assert!(bytes == before, "an open view reads what was written later"),
                Err(_) => *refused = true,
            }
        }
    };
    wait_until("the old copy to fold its past away", || {
        look(&mut refused);
        aside().is_some_and(|aside| base_lsn(&sites, &aside) > base_before)
    });
    look(&mut refused);
    assert_eq!(refused, [true; 4], "some of them answer");
    let clones: Value = serde_json::from_str(&sites.b.run(&["status", "--json"]).out).unwrap();
    assert!(!clones.to_string().contains("+rw:shared"), "{clones}");
    // Whoever connects again sees what there is.
    for export in ["vm", &aside().unwrap()] {
        assert!(get(&mut b.connect(export).unwrap(), 100 * 4096, 4096).unwrap() == [0xab; 4096]);
    }
    a.stop();
    b.stop();
}
