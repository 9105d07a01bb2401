//! Three sites on the real binary: who may go on feeding whom, and who may stop whom.

mod cli;
mod sites;

use cli::*;
use serde_json::Value;
use sites::address_of;

fn homes(sites: [&str; 3]) -> [Home; 3] {
    let homes = [Home::new(), Home::new(), Home::new()];
    assert_eq!(homes[0].run(&["pki", "init", "authority"]).code, 0);
    for (home, site) in homes.iter().zip(sites) {
        let to = home.path("pki");
        assert_eq!(homes[0].run(&["pki", "issue", "authority", site, "--to", to.to_str().unwrap()]).code, 0);
    }
    homes
}

fn serve(home: &Home) -> Served {
    home.serve(&["--pki", "pki", "--replica-listen", "127.0.0.1:0"])
}

/// Whatever its exit code says.
fn status(home: &Home) -> Value {
    let ran = home.run(&["status", "disk", "--json"]);
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn tip(home: &Home) -> Value {
    status(home)["volumes"][0]["tip"]["lsn"].clone()
}

fn role(home: &Home) -> Value {
    status(home)["volumes"][0]["role"].clone()
}

fn says(home: &Home, what: &str) -> bool {
    status(home)["verdict"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(what))
}

fn write(served: &Served, block: u64, byte: u8) {
    put(&mut served.connect("disk").unwrap(), block * 4096, &[byte; 4096]).unwrap();
}

fn first(served: &Served) -> Vec<u8> {
    get(&mut served.connect("disk").unwrap(), 0, 2 * 4096).unwrap()
}

/// A feeds B and C, and is lost for good. People fail over to B, and want C behind it: it must be told what to do, and be
/// brought up when that was done, or the site that was left would be without a replica.
#[test]
fn the_other_replica_follows_the_one_that_went_on() {
    let [a, b, c] = homes(["site-a", "site-b", "site-c"]);
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let (server_a, server_b, server_c) = (serve(&a), serve(&b), serve(&c));
    for replica in [&server_b, &server_c] {
        assert_eq!(a.run(&["replica", "add", "disk", &address_of(replica)]).code, 0);
    }
    write(&server_a, 0, 1);
    wait_until("both have it", || {
        a.json(&["replica", "list"]).as_array().unwrap().iter().all(|replica| replica["lag_records"] == 0)
            && [&b, &c].iter().all(|home| home.run(&["status", "disk"]).code == 0 && tip(home) == tip(&a))
    });
    drop(server_a);
    assert_eq!(b.run(&["failover", "disk"]).code, 0);
    write(&server_b, 1, 2);
    assert_eq!(b.run(&["replica", "add", "disk", &address_of(&server_c)]).code, 0);
    wait_until("C says what to do", || says(&c, "`cdp resync disk`"));
    assert!(says(&c, "site-b sends volume disk in epoch 2"), "{}", status(&c));
    let done = c.json(&["resync", "disk"]);
    assert_eq!((&done[0]["done"], &done[0]["site"]), (&true.into(), &"site-b".into()), "{done}");
    let state = status(&c);
    assert_eq!(state["volumes"][0]["fed"]["site"], "site-b", "{state}");
    wait_until("C is brought up", || tip(&c) == tip(&b));
    assert_eq!(first(&server_c), [[1; 4096], [2; 4096]].concat());
    assert!(!says(&c, "resync"), "{}", status(&c));
}

/// Somebody takes a copy of the replica's store to a laboratory, with a certificate of its own, and tries a failover there.
/// The primary in production must not stop for that; it says who claims what, and believes it when somebody says so.
#[test]
fn a_site_that_has_nothing_to_do_with_a_volume_stops_nobody() {
    let [a, b, x] = homes(["site-a", "site-b", "site-x"]);
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let (server_a, server_b) = (serve(&a), serve(&b));
    assert_eq!(a.run(&["replica", "add", "disk", &address_of(&server_b)]).code, 0);
    write(&server_a, 0, 1);
    wait_until("B has it", || b.run(&["status", "disk"]).code == 0 && tip(&b) == tip(&a));
    drop(server_b);
    copy_tree(&b.store(), &x.store());
    let server_x = serve(&x);
    assert_eq!(x.run(&["failover", "disk"]).code, 0);
    assert_eq!(x.run(&["replica", "add", "disk", &address_of(&server_a)]).code, 0);
    wait_until("A says who claims what", || {
        says(&a, "site-x says that volume disk goes on there in epoch 2")
    });
    assert_eq!(role(&a), "primary");
    write(&server_a, 1, 2);
    let refused = a.run(&["resync", "disk"]);
    assert!(refused.code != 0 && refused.err.contains("--site site-x"), "{refused:?}");
    // It was meant so after all.
    write(&server_x, 1, 3);
    let done = a.json(&["resync", "disk", "--site", "site-x"]);
    assert_eq!((&done[0]["done"], &done[0]["orphan"]), (&true.into(), &"disk-orphan-1".into()), "{done}");
    wait_until("A is brought up", || tip(&a) == tip(&x));
    assert_eq!(first(&server_a), [[1; 4096], [3; 4096]].concat());
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        let there = to.join(entry.file_name().unwrap());
        if kind.is_dir() {
            copy_tree(&entry, &there);
        } else if kind.is_file() {
            std::fs::copy(&entry, &there).unwrap();
        }
    }
}
