//! Two sites on the real binary: one dies, the other takes over, the first comes back with what nobody saw, and takes
//! over again.

mod cli;

use std::time::{Duration, Instant};

use cli::*;
use serde_json::Value;

fn serve(home: &Home, address: &str) -> Served {
    let until = Instant::now() + PATIENCE;
    // The port of a server that was killed may be taken for a moment.
    while std::net::TcpListener::bind(address).is_err() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    home.serve(&["--pki", "pki", "--replica-listen", address])
}

fn address_of(server: &Served) -> String {
    server.ready["endpoints"]["replica"].as_str().expect("it listens").to_owned()
}

/// Whatever its exit code says.
fn status(home: &Home) -> Value {
    let ran = home.run(&["status", "disk", "--json"]);
    let status: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    status["volumes"][0].clone()
}

fn role(home: &Home) -> Value {
    status(home)["role"].clone()
}

fn tip(home: &Home) -> Value {
    status(home)["tip"]["lsn"].clone()
}

fn bytes(served: &Served, export: &str) -> Vec<u8> {
    get(&mut served.connect(export).unwrap(), 0, 16 * 4096).unwrap()
}

fn write(served: &Served, block: u64, byte: u8) {
    put(&mut served.connect("disk").unwrap(), block * 4096, &[byte; 4096]).unwrap();
}

/// A replica's link for the way back is no reason to act.
fn no_alarm(home: &Home) {
    let ran = home.run(&["status"]);
    assert!(!ran.out.contains("gets nothing"), "{ran:?}");
}

/// Somebody's work at the site that was cut off must be there afterwards, as must what was done at the other, and no
/// write may be lost when they change back as planned.
#[test]
fn there_and_back_again() {
    let (a, b) = (Home::new(), Home::new());
    assert_eq!(a.run(&["pki", "init", "authority"]).code, 0);
    for (home, site) in [(&a, "site-a"), (&b, "site-b")] {
        let to = home.path("pki");
        assert_eq!(a.run(&["pki", "issue", "authority", site, "--to", to.to_str().unwrap()]).code, 0);
    }
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let server_a = serve(&a, "127.0.0.1:0");
    let server_b = serve(&b, "127.0.0.1:0");
    let (address_a, address_b) = (address_of(&server_a), address_of(&server_b));
    assert_eq!(a.run(&["replica", "add", "disk", &address_b]).code, 0);
    for block in 0..5 {
        write(&server_a, block, 1);
    }
    wait_until("the replica has it", || {
        let replicas = a.json(&["replica", "list"]);
        replicas[0]["lag_records"] == 0 && replicas[0]["newest"] != Value::Null
    });
    assert_eq!((role(&a), role(&b)), ("primary".into(), "replica".into()));
    // It is not for everybody to give.
    assert_ne!(a.run(&["failover", "disk"]).code, 0, "it is the primary already");

    // B is gone for a while; what is written meanwhile only A has. Then A dies, and B comes back.
    let shared = bytes(&server_a, "disk");
    drop(server_b);
    for block in 3..9 {
        write(&server_a, block, 2);
    }
    assert_eq!(a.run(&["mark", "disk", "only-here"]).code, 0);
    let unseen = bytes(&server_a, "disk");
    drop(server_a);
    let server_b = serve(&b, &address_b);
    assert_eq!(bytes(&server_b, "disk"), shared);
    assert!(put(&mut server_b.connect("disk").unwrap(), 0, b"no").is_err());
    let planned = b.json(&["failover", "disk", "--dry-run"]);
    assert_eq!((&planned[0]["epoch"], &planned[0]["done"]), (&2.into(), &false.into()), "{planned}");
    assert_eq!(role(&b), "replica");
    let began = Instant::now();
    let done = b.json(&["failover", "disk"]);
    assert_eq!(done[0]["done"], true, "{done}");
    write(&server_b, 0, 3);
    println!("failover, command to first acknowledged write: {:?}", began.elapsed());
    write(&server_b, 12, 3);
    let went_on = bytes(&server_b, "disk");
    assert_eq!((&went_on[..4096], &went_on[4096..3 * 4096]), (&[3; 4096][..], &[1; 2 * 4096][..]));

    // A comes back, believes that it is the primary, and hears that it is not.
    let server_a = serve(&a, &address_a);
    wait_until("the old primary is fenced", || role(&a) == "fenced");
    assert!(put(&mut server_a.connect("disk").unwrap(), 0, b"no").is_err());
    assert_ne!(a.run(&["status"]).code, 0, "somebody has to act");
    // Taking over from a site that has gone on is no slip of the hand.
    for how in [&["failover", "disk"][..], &["failover", "disk", "--dry-run"]] {
        let refused = a.run(how);
        assert!(refused.code != 0 && refused.err.contains("cdp resync disk"), "{refused:?}");
    }
    assert_eq!(role(&a), "fenced");
    assert_eq!(b.run(&["replica", "add", "disk", &address_a]).code, 0);
    wait_until("it knows what the other site has", || a.run(&["resync", "disk", "--dry-run"]).code == 0);
    let fork = a.json(&["resync", "disk", "--dry-run"]);
    assert_eq!((&fork[0]["done"], &fork[0]["orphan"]), (&false.into(), &Value::Null), "{fork}");
    let resynced = a.json(&["resync", "disk"]);
    assert_eq!(resynced[0]["orphan"], "disk-orphan-1", "{resynced}");
    assert_eq!(resynced[0]["common_lsn"], fork[0]["common_lsn"]);
    wait_until("it is brought up", || {
        no_alarm(&a);
        role(&a) == "replica" && tip(&a) == tip(&b)
    });
    assert_eq!(bytes(&server_a, "disk"), went_on);
    assert_eq!(bytes(&server_a, "disk-orphan-1"), unseen);
    assert_eq!(bytes(&server_a, "disk-orphan-1@only-here"), unseen);
    assert_eq!(bytes(&server_a, "disk@lsn:1"), bytes(&server_b, "disk@lsn:1"));
    put(&mut server_a.connect("disk-orphan-1").unwrap(), 0, b"it is a volume like any other").unwrap();
    // The way back stays known; until then nothing knocks at the other site, and nothing is kept for it here.
    wait_until("the old primary's link rests", || a.json(&["replica", "list"])[0]["state"] == "resting");
    wait_until("nothing is held for it", || {
        !status(&a)["pins"].as_array().unwrap().iter().any(|pin| pin.to_string().contains("the replica at"))
    });

    // Back, as planned.
    let held = server_b.connect("disk").unwrap();
    assert_ne!(b.run(&["demote", "disk"]).code, 0, "somebody has it open");
    drop(held);
    // Another replica is behind: a site that is promoted by "no write is lost" must not be that one.
    assert_eq!(b.run(&["replica", "add", "disk", "127.0.0.1:1"]).code, 0);
    let unknown = b.run(&["demote", "disk", "--drain", "9", "--to", "127.0.0.1:2"]);
    assert!(unknown.code == 5 && role(&b) == "primary", "{unknown:?}");
    wait_until("nobody has it open", || {
        let ran = b.run(&["demote", "disk", "--drain", "3"]);
        let told = ran.err.contains("127.0.0.1:1 has not acknowledged") && ran.err.contains("go on at ");
        assert!(ran.code == 4 && (told || ran.err.contains("in use")), "{ran:?}");
        told
    });
    let demoted = b.json(&["demote", "disk", "--drain", "20", "--to", &address_a]);
    assert_eq!(
        (&demoted[0]["drained_to"], &demoted[0]["lacking"][0]),
        (&address_a.clone().into(), &"127.0.0.1:1".into())
    );
    assert_eq!(tip(&a), tip(&b), "no write is lost");
    assert_eq!(b.run(&["replica", "remove", "disk", "127.0.0.1:1"]).code, 0);
    let done = a.json(&["failover", "disk"]);
    assert_eq!(done[0]["epoch"], 3, "{done}");
    write(&server_a, 15, 4);
    wait_until("the other site follows again", || tip(&a) == tip(&b));
    assert_eq!(bytes(&server_a, "disk"), bytes(&server_b, "disk"));
    // Its link for the way back rests, also before it is fed again.
    server_b.signal(rustix::process::Signal::KILL);
    server_b.wait();
    let server_b = serve(&b, &address_b);
    wait_until("the link for the way back rests", || {
        no_alarm(&b);
        b.json(&["replica", "list"])[0]["state"] == "resting"
    });
    let log = b.run(&["log", "disk"]).out;
    assert!(log.contains("promoted") && log.contains("epoch 3"), "{log}");
    for home in [&a, &b] {
        assert_eq!(home.run(&["verify"]).code, 0);
    }
    server_a.stop();
    server_b.stop();
}

/// A database on several disks moves to the other site and back as planned: one command each, no volume left behind, whatever
/// order the disks were added in. The group is known there without anybody having made it.
#[test]
fn a_group_moves_as_one() {
    const VOLUMES: [&str; 5] = ["data", "log", "index", "temp", "queue"];
    let (a, b) = (Home::new(), Home::new());
    assert_eq!(a.run(&["pki", "init", "authority"]).code, 0);
    for (home, site) in [(&a, "site-a"), (&b, "site-b")] {
        let to = home.path("pki");
        assert_eq!(a.run(&["pki", "issue", "authority", site, "--to", to.to_str().unwrap()]).code, 0);
    }
    for name in VOLUMES {
        assert_eq!(a.run(&["create", name, "--size", "1M"]).code, 0);
    }
    assert_eq!(a.run(&[&["group", "create", "db"], &VOLUMES[..]].concat()).code, 0);
    let servers = [serve(&a, "127.0.0.1:0"), serve(&b, "127.0.0.1:0")];
    assert_eq!(a.run(&["replica", "add", "db", &address_of(&servers[1])]).code, 0);
    let step = |from: usize, byte: u8| {
        let (here, there) = if from == 0 { (&a, &b) } else { (&b, &a) };
        for (place, name) in VOLUMES.iter().enumerate() {
            put(&mut servers[from].connect(name).unwrap(), 0, &[byte + place as u8; 4096]).unwrap();
        }
        wait_until("the group is known there", || {
            let planned = there.run(&["--json", "failover", "db", "--dry-run"]);
            planned.code == 0 && planned.out.matches("\"complete_utc\"").count() == VOLUMES.len()
        });
        wait_until("nobody has it open", || here.run(&["demote", "db", "--drain", "20"]).code == 0);
        let done = there.json(&["failover", "db"]);
        assert!(done.as_array().unwrap().iter().all(|volume| volume["done"] == true), "{done}");
        for (place, name) in VOLUMES.iter().enumerate() {
            assert_eq!(bytes(&servers[1 - from], name)[..4096], [byte + place as u8; 4096], "{name}");
        }
    };
    step(0, 1);
    // The other site has no link back yet.
    assert_eq!(b.run(&["replica", "add", "db", &address_of(&servers[0])]).code, 0);
    step(1, 11);
    let [server_a, server_b] = servers;
    server_a.stop();
    server_b.stop();
}

/// Clients follow an address that a program moves: it must be told of each change of roles, whichever road it came by, also
/// of one that the server slept through; and whoever asked for the change must hear what the program said.
#[test]
fn programs_are_told_of_changed_roles() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let program = home.path("mover");
    let log = home.path("told");
    let text = format!(
        "#!/bin/sh\necho \"$1 $CDP_VOLUMES $CDP_EPOCH\" >>{}\necho \"moved for $1\"\n[ ! -e {} ]\n",
        log.display(),
        home.path("broken").display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let told = || std::fs::read_to_string(&log).unwrap_or_default();
    let program = program.to_str().unwrap();
    let options = ["--on-promote", program, "--on-demote", program];
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);

    let server = home.serve(&options);
    let demoted = home.json(&["demote", "disk"]);
    assert_eq!(demoted[0]["hooks"][0]["output"], "moved for demote\n", "{demoted}");
    assert_eq!(told(), "demote disk 1\n", "what there was at the start is not news");
    let ran = home.run(&["failover", "disk"]);
    assert!(ran.code == 0 && ran.out.contains("promote: moved for promote"), "{ran:?}");
    assert_eq!(told(), "demote disk 1\npromote disk 2\n");
    // It cannot do its work: the roles change all the same, and that is said.
    std::fs::write(home.path("broken"), "").unwrap();
    let ran = home.run(&["demote", "disk"]);
    assert!(ran.code == 1 && ran.err.contains("moved for demote"), "{ran:?}");
    assert_eq!(role(&home), "replica");
    std::fs::remove_file(home.path("broken")).unwrap();
    server.stop();

    // Nobody was there to be told.
    assert_eq!(home.run(&["failover", "disk"]).code, 0);
    assert!(!told().contains("promote disk 3"), "{}", told());
    let server = home.serve(&options);
    wait_until("it is told", || told().ends_with("promote disk 3\n"));
    server.stop();
    let before = told();
    let server = home.serve(&options);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(told(), before, "nothing has changed");
    server.stop();
}

/// Somebody looks at the past of the volume at the site that lost while that is brought back in line. He is told, and disconnected
/// where it is done all the same; he never reads what the winner wrote behind the state that he opened.
#[test]
fn an_open_view_ends_with_a_resync() {
    let (a, b) = (Home::new(), Home::new());
    assert_eq!(a.run(&["pki", "init", "authority"]).code, 0);
    for (home, site) in [(&a, "site-a"), (&b, "site-b")] {
        let to = home.path("pki");
        assert_eq!(a.run(&["pki", "issue", "authority", site, "--to", to.to_str().unwrap()]).code, 0);
    }
    std::fs::write(a.path("img"), vec![0x11; 4 << 20]).unwrap();
    assert_eq!(a.run(&["create", "disk", "--from", "img"]).code, 0);
    let server_a = serve(&a, "127.0.0.1:0");
    let server_b = serve(&b, "127.0.0.1:0");
    let (address_a, address_b) = (address_of(&server_a), address_of(&server_b));
    assert_eq!(a.run(&["replica", "add", "disk", &address_b, "--limit", "none"]).code, 0);
    assert_eq!(a.run(&["retention", "set", "disk", "every-write 1s"]).code, 0);
    let mut view = server_a.connect("disk@latest").unwrap();
    let before = get(&mut view, 0, 16 * 4096).unwrap();
    write(&server_a, 7, 2);
    wait_until("the replica has it", || {
        let replicas = a.json(&["replica", "list"]);
        replicas[0]["lag_records"] == 0 && replicas[0]["newest"] != Value::Null
    });
    drop(server_b);
    write(&server_a, 9, 3);
    // Before the link finds it again, and sends what was written meanwhile.
    assert_eq!(b.json(&["failover", "disk"])[0]["done"], true);
    let server_b = serve(&b, &address_b);
    wait_until("the old primary is fenced", || role(&a) == "fenced");
    assert_eq!(b.run(&["replica", "add", "disk", &address_a, "--limit", "none"]).code, 0);
    wait_until("it knows what the other site has", || a.run(&["resync", "disk", "--dry-run"]).code == 0);
    assert!(get(&mut view, 0, 16 * 4096).unwrap() == before);
    let refused = a.run(&["resync", "disk"]);
    assert!(refused.code != 0 && refused.err.contains("in use by"), "{refused:?}");
    assert!(get(&mut view, 0, 16 * 4096).unwrap() == before, "nothing was done");
    assert_eq!(a.json(&["resync", "disk", "--force"])[0]["done"], true);
    let history = a.store().join("volumes/disk/history");
    let mut block = 10;
    wait_until("it is folded", || {
        if let Ok(bytes) = get(&mut view, 0, 16 * 4096) {
            assert!(bytes == before, "an open view reads what was written later");
        }
        // Segments that are sealed can be folded.
        write(&server_b, 8 + block % 8, 4);
        block += 1;
        let history = std::fs::read_to_string(&history).unwrap_or_default();
        history.lines().any(|line| line.strip_prefix("base_lsn = ").is_some_and(|lsn| lsn != "0"))
    });
    assert!(get(&mut view, 0, 16 * 4096).is_err(), "it still answers");
    assert!(bytes(&server_a, "disk")[7 * 4096..8 * 4096] == [2; 4096]);
}
