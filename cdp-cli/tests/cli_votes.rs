//! Two sites and a witness on the real binary: who may answer, and what happens by itself when one of the three is gone.

mod cli;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cli::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than a lease and every promise behind it.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(8);

struct Witness(Child);

impl Witness {
    fn start(home: &Home, address: &str) -> Witness {
        let arguments =
            ["witness", "--dir", "witness", "--listen", address, "--pki", "witness-pki", "--json"];
        let mut child = home.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().trim_end() == "}"), "the witness ended before it was ready");
        Witness(child)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Sites {
    a: Home,
    b: Home,
    address_a: String,
    address_b: String,
    witness: String,
}

impl Sites {
    fn new() -> Sites {
        Sites::of("disk")
    }

    fn of(target: &str) -> Sites {
        let [address_a, address_b, witness] = {
            let sockets = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
            sockets.map(|socket| socket.local_addr().unwrap().to_string())
        };
        let sites = Sites { a: Home::new(), b: Home::new(), address_a, address_b, witness };
        let Sites { a, b, .. } = &sites;
        assert_eq!(a.run(&["pki", "init", "authority"]).code, 0);
        for (home, site) in [(a, "site-a"), (b, "site-b")] {
            let to = home.path("pki");
            assert_eq!(a.run(&["pki", "issue", "authority", site, "--to", to.to_str().unwrap()]).code, 0);
        }
        let issued = a.run(&["pki", "issue", "authority", "arbiter", "--witness", "--to", "witness-pki"]);
        assert!(issued.code == 0 && issued.out.contains("may vote and nothing else"), "{issued:?}");
        for (home, peer) in [(a, &sites.address_b), (b, &sites.address_a)] {
            let dir = home.path(".config/cdp");
            std::fs::create_dir_all(&dir).unwrap();
            let text = format!("[automatic.{target}]\npeer = \"{peer}\"\nwitness = \"{}\"\n", sites.witness);
            std::fs::write(dir.join("config.toml"), text).unwrap();
        }
        sites
    }

    fn serve(&self, home: &Home) -> Served {
        let address = if std::ptr::eq(home, &self.a) { &self.address_a } else { &self.address_b };
        wait_until("the port is free", || TcpListener::bind(address).is_ok());
        home.serve(&["--pki", "pki", "--replica-listen", address])
    }
}

/// Whatever its exit code says.
fn status(home: &Home) -> Value {
    let ran = home.run(&["status", "--json"]);
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn seat(home: &Home) -> Value {
    status(home)["server"]["votes"][0].clone()
}

fn is(home: &Home, state: &str) -> bool {
    seat(home)["state"] == state
}

fn role(home: &Home) -> Value {
    status(home)["volumes"][0]["role"].clone()
}

fn write(served: &Served, block: u64, byte: u8) -> std::io::Result<()> {
    put(&mut served.connect("disk")?, block * 4096, &[byte; 4096])
}

fn first_bytes(served: &Served, blocks: u64) -> Vec<u8> {
    let mut client = served.connect("disk").unwrap();
    (0..blocks).map(|block| get(&mut client, block * 4096, 1).unwrap()[0]).collect()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// All three, with a volume `disk` of 64 MiB that the first site answers.
fn started(sites: &Sites) -> (Witness, Served, Served) {
    let witness = Witness::start(&sites.a, &sites.witness);
    assert_eq!(sites.a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let servers = (sites.serve(&sites.a), sites.serve(&sites.b));
    wait_until("the first site answers", || is(&sites.a, "holds"));
    (witness, servers.0, servers.1)
}

/// The first site feeds the second; `limit` is how fast.
fn feed(sites: &Sites, target: &str, limit: &[&str]) {
    let add = [&["replica", "add", target, &sites.address_b], limit].concat();
    assert_eq!(sites.a.run(&add).code, 0);
}

/// As [`started`], and the second stands by.
fn paired(sites: &Sites) -> (Witness, Served, Served) {
    let all = started(sites);
    feed(sites, "disk", &[]);
    wait_until("the second stands by", || is(&sites.b, "stands-by"));
    all
}

/// The primary dies at three in the morning, and nobody is there to say `failover`; what it had answered, and had arrived,
/// must be at the other site, which answers by itself, and the first one must not answer any more when it comes back.
#[test]
fn the_replica_takes_over_by_itself() {
    let sites = Sites::new();
    let Sites { a, b, .. } = &sites;
    let (witness, server_a, server_b) = started(&sites);
    feed(&sites, "disk", &[]);
    for block in 0..8 {
        write(&server_a, block, 1).unwrap();
    }
    wait_until("the second stands by", || is(b, "stands-by") && seat(b)["holder"] == "site-a");
    wait_until("all of it has arrived", || a.json(&["replica", "list"])[0]["lag_records"] == 0);
    let shown = a.run(&["status"]);
    assert!(
        shown.out.contains("automatic disk: holds") && shown.out.contains("the witness (arbiter)"),
        "{shown:?}"
    );
    assert!(!is(b, "holds") && role(b) == "replica");

    // Another store with the same ballots would be a fourth voter.
    let second = a.run(&["witness", "--dir", "witness", "--listen", "127.0.0.1:0", "--pki", "witness-pki"]);
    assert!(second.code != 0 && second.err.contains("in use by"), "{second:?}");

    let began = Instant::now();
    drop(server_a);
    wait_until("the second site answers", || is(b, "holds"));
    write(&server_b, 9, 2).unwrap();
    println!("kill -9 to the first answered write at the other site: {:?}", began.elapsed());
    assert_eq!(role(b), "primary");
    assert_eq!(first_bytes(&server_b, 10), [1, 1, 1, 1, 1, 1, 1, 1, 0, 2]);

    // The first comes back, believes that it is the primary, and answers nobody.
    let server_a = sites.serve(a);
    assert!(write(&server_a, 0, 9).is_err());
    assert_eq!(b.run(&["replica", "add", "disk", &sites.address_a]).code, 0);
    wait_until("it hears of it", || role(a) == "fenced");
    wait_until("it is resynced", || a.run(&["resync", "disk"]).code == 0);
    wait_until("it stands by now", || is(a, "stands-by") && seat(a)["holder"] == "site-b");
    assert_eq!(first_bytes(&server_b, 1), [1]);

    // And back, as planned: whoever steps down hands over.
    wait_until("nobody has it open", || b.run(&["demote", "disk", "--drain", "20"]).code == 0);
    let drained = Instant::now();
    wait_until("the first site answers again", || is(a, "holds"));
    // A lease and its promises would last for more than five seconds from here on.
    println!("drained, to the lease at the other site: {:?}", drained.elapsed());
    write(&server_a, 0, 3).unwrap();
    assert_eq!(first_bytes(&server_a, 10), [3, 1, 1, 1, 1, 1, 1, 1, 0, 2]);
    drop(witness);
    server_a.stop();
    server_b.stop();
}

/// A witness that is away for maintenance must stop nobody; and a site that hears neither of the others must not answer a
/// single request, because one of them may answer by now.
#[test]
fn two_of_three_answer_and_one_alone_does_not() {
    let sites = Sites::new();
    let Sites { a, b, .. } = &sites;
    let (witness, server_a, server_b) = paired(&sites);

    drop(witness);
    let until = Instant::now() + LONGER_THAN_A_LEASE;
    while Instant::now() < until {
        write(&server_a, 1, 1).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let warned = a.run(&["status"]);
    assert!(warned.out.contains("the witness has no vote to give"), "{warned:?}");

    // Nobody is left to agree.
    signal(&server_b.child, Signal::STOP);
    let mut open = server_a.connect("disk").unwrap();
    wait_until("the lease ends", || is(a, "waits"));
    let act = a.run(&["status"]);
    assert!(act.code == 3 && act.out.contains("disk is not answered here: no lease"), "{act:?}");
    assert!(server_a.connect("disk").is_err(), "whoever has another address to try hears it soon");
    // Nor is a command that would write records: what it did would be in a history that nobody goes on with.
    std::thread::scope(|scope| {
        for arguments in
            [&["mark", "disk", "late"][..], &["grow", "disk", "128M"], &["rollback", "disk@lsn:1"]]
        {
            scope.spawn(move || {
                let ran = a.run(arguments);
                assert!(ran.code != 0 && ran.err.contains("disk is not answered here: no lease"), "{ran:?}");
            });
        }
    });
    assert!(!a.run(&["log", "disk"]).out.contains("late"), "it was refused, and is there");
    // What is kept here is this site's business.
    assert_eq!(a.run(&["retention", "set", "disk", "every-write 12h"]).code, 0);
    let (told, answered) = mpsc::channel();
    let client = std::thread::spawn(move || {
        let written = put(&mut open, 4096, &[2; 4096]);
        told.send(()).unwrap();
        written
    });
    assert!(answered.recv_timeout(Duration::from_secs(3)).is_err(), "it was answered without a lease");
    // The past needs no lease: it says which instant it is of.
    assert_eq!(get(&mut server_a.connect("disk@lsn:1").unwrap(), 0, 1).unwrap(), [0]);
    // A witness that starts again is one voter more, and what waited is answered.
    let witness = Witness::start(a, &sites.witness);
    client.join().unwrap().unwrap();
    wait_until("the lease is back", || is(a, "holds"));
    assert_eq!(a.run(&["mark", "disk", "in-time"]).code, 0);
    signal(&server_b.child, Signal::CONT);
    wait_until("the second stands by again", || is(b, "stands-by"));
    assert_eq!((role(a), role(b)), ("primary".into(), "replica".into()));
    assert_eq!(first_bytes(&server_a, 2), [0, 2]);
    drop(witness);
    server_a.stop();
    server_b.stop();
    // Without a server nobody asks the voters.
    let ran = a.run(&["mark", "disk", "alone"]);
    assert!(ran.code != 0 && ran.err.contains("only `cdp serve` asks the voters"), "{ran:?}");
}

/// A database on three volumes: half of it at one site and half at the other is no database. They go as one, from one instant.
#[test]
fn a_group_is_taken_over_as_one() {
    const VOLUMES: [&str; 3] = ["data", "log", "temp"];
    let sites = Sites::of("db");
    let Sites { a, b, .. } = &sites;
    let _witness = Witness::start(a, &sites.witness);
    for name in VOLUMES {
        assert_eq!(a.run(&["create", name, "--size", "1M"]).code, 0);
    }
    assert_eq!(a.run(&[&["group", "create", "db"], &VOLUMES[..]].concat()).code, 0);
    let server_a = sites.serve(a);
    let server_b = sites.serve(b);
    wait_until("the first site answers", || is(a, "holds"));
    feed(&sites, "db", &[]);
    for (byte, name) in (1..).zip(VOLUMES) {
        put(&mut server_a.connect(name).unwrap(), 0, &[byte; 4096]).unwrap();
    }
    wait_until("the second knows all of the group", || {
        let planned = b.run(&["--json", "failover", "db", "--dry-run"]);
        planned.code == 0 && planned.out.matches("\"complete_utc\"").count() == VOLUMES.len()
    });
    wait_until("the second stands by", || is(b, "stands-by"));
    wait_until("all of it has arrived", || {
        let replicas = a.json(&["replica", "list"]);
        replicas.as_array().unwrap().iter().all(|replica| replica["lag_records"] == 0)
    });
    drop(server_a);
    wait_until("the second site answers", || is(b, "holds"));
    for (byte, name) in (1..).zip(VOLUMES) {
        let mut client = server_b.connect(name).unwrap();
        assert_eq!(get(&mut client, 0, 1).unwrap(), [byte], "{name}");
        put(&mut client, 4096, &[9; 4096]).unwrap();
    }
    let volumes = status(b)["volumes"].clone();
    assert!(volumes.as_array().unwrap().iter().all(|volume| volume["role"] == "primary"), "{volumes}");
    server_b.stop();
}

/// Somebody writes the lines into the configuration of the replica first, and goes for lunch: it must not take over from a
/// primary that lives and asks nobody, and both would answer.
#[test]
fn a_primary_that_asks_nobody_is_not_taken_over() {
    let sites = Sites::new();
    let Sites { a, b, .. } = &sites;
    let _witness = Witness::start(a, &sites.witness);
    let config = a.path(".config/cdp/config.toml");
    let lines = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let server_a = sites.serve(a);
    let server_b = sites.serve(b);
    feed(&sites, "disk", &[]);
    let says = |words: &str| seat(b)["text"].as_str().is_some_and(|text| text.contains(words));
    wait_until("it is fed, and says why it waits", || says("held epoch 1"));
    std::thread::sleep(LONGER_THAN_A_LEASE);
    assert!(is(b, "out") && role(b) == "replica", "{}", seat(b));
    write(&server_a, 1, 1).unwrap();
    server_a.stop();
    std::fs::write(&config, lines).unwrap();
    let server_a = sites.serve(a);
    wait_until("now it stands by", || is(a, "holds") && is(b, "stands-by"));
    wait_until("its own new voter has a vote", || seat(a)["voters"][0]["text"] == "granted");
    server_b.stop();
    server_a.stop();
    // And lost again, at the next start: nobody would notice before the other site takes over.
    std::fs::remove_file(&config).unwrap();
    let mut server_a = sites.serve(a);
    server_a.child.kill().unwrap();
    let mut told = String::new();
    server_a.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("volume disk failed over by itself before"), "{told}");
}

/// A planned change to a site that is far behind: everything that was answered before has to be there before it goes on,
/// however long that takes; and nobody answers meanwhile.
#[test]
fn whoever_steps_down_keeps_the_epoch_until_all_has_arrived() {
    let sites = Sites::new();
    let Sites { a, b, .. } = &sites;
    let (_witness, server_a, server_b) = started(&sites);
    feed(&sites, "disk", &["--limit", "400KiB"]);
    wait_until("the second stands by", || is(b, "stands-by"));
    // What does not compress, for some fifteen seconds of the line.
    let mut client = server_a.connect("disk").unwrap();
    let mut noise = 88172645463325252u64;
    for block in 0..6 {
        let mut bytes = vec![0; 1 << 20];
        for word in bytes.chunks_exact_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.copy_from_slice(&noise.to_le_bytes());
        }
        put(&mut client, block << 20, &bytes).unwrap();
    }
    put(&mut client, 63 << 20, &[7; 4096]).unwrap();
    drop(client);

    let began = Instant::now();
    wait_until("nobody has it open", || a.run(&["demote", "disk", "--drain", "90"]).code == 0);
    let took = began.elapsed();
    println!("drained in {took:?}");
    assert!(took > LONGER_THAN_A_LEASE, "the line was too fast for this to show anything");
    assert!(!is(a, "holds") && role(b) == "replica", "it went on before all was there");
    wait_until("the second site answers", || is(b, "holds"));
    let mut client = server_b.connect("disk").unwrap();
    assert_eq!(get(&mut client, 63 << 20, 4096).unwrap(), [7; 4096], "what was answered last is lost");
    drop(client);
    server_a.stop();
    server_b.stop();
}

/// A third site, with a certificate of the same authority, must not end the lease of a volume that is none of its business.
#[test]
fn a_site_votes_on_its_own_volumes_with_their_other_site_only() {
    use cdp_core::ids::VolumeId;
    use cdp_replica::net::tls::Tls;
    use cdp_replica::net::votes::{Line, Which};
    use cdp_replica::vote::{Ask, Ballot, Claim, SiteId, Verdict};

    let sites = Sites::new();
    let Sites { a, b, .. } = &sites;
    let _witness = Witness::start(a, &sites.witness);
    let issued = a.run(&["pki", "issue", "authority", "stranger", "--to", "stranger-pki"]);
    assert_eq!(issued.code, 0);
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let server_a = sites.serve(a);
    let server_b = sites.serve(b);
    wait_until("the first site answers", || is(a, "holds"));
    feed(&sites, "disk", &[]);
    wait_until("the second stands by", || is(b, "stands-by"));
    let manifest = std::fs::read_to_string(a.store().join("volumes/disk/volume")).unwrap();
    let id = manifest.lines().find_map(|line| line.strip_prefix("id = ")).unwrap();
    let id = VolumeId(u128::from_str_radix(id.trim(), 16).unwrap());

    let (post, answers) = mpsc::channel();
    let tls = Tls::load(&a.path("stranger-pki")).unwrap();
    let line = Line::open(Which::Peer, &sites.address_a, tls, 1, post).unwrap();
    let said = |epoch, volume| {
        let claim = Claim { ballot: Ballot { epoch, site: SiteId(99) }, trial: true, round: epoch };
        line.ask(Ask { volumes: vec![volume], claim, gives_up: false });
        answers.recv_timeout(Duration::from_secs(20)).unwrap().1.answer.verdict
    };
    assert_eq!(said(2, id), Verdict::Broken);
    // Of a volume that is not here it may ask: its own.
    assert_eq!(said(3, VolumeId(7)), Verdict::Granted);
    assert!(is(a, "holds"));
    drop(line);
    server_a.stop();
    server_b.stop();
}

/// One configuration for both sites, so that `peer` is the site itself: its voter would be two of three, and the site would
/// answer alone, also when it is cut off and the other site and the witness have agreed on another.
#[test]
fn a_site_does_not_count_its_own_voter_twice() {
    let sites = Sites::new();
    let Sites { a, .. } = &sites;
    let config = a.path(".config/cdp/config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace(&sites.address_b, &sites.address_a);
    std::fs::write(&config, text).unwrap();
    assert_eq!(a.run(&["create", "disk", "--size", "64M"]).code, 0);
    let server_a = sites.serve(a);
    let says = || seat(a)["voters"][1]["text"].as_str().is_some_and(|text| text.contains("count twice"));
    wait_until("it says that it met itself", says);
    // Longer than a new voter keeps silent, too.
    let until = Instant::now() + 2 * LONGER_THAN_A_LEASE;
    while Instant::now() < until {
        assert!(!is(a, "holds"), "it holds the lease alone: {}", seat(a));
        std::thread::sleep(Duration::from_millis(200));
    }
    server_a.stop();
}

/// A configuration that cannot work is refused by name, not when the site is needed.
#[test]
fn what_cannot_work_is_refused() {
    let sites = Sites::new();
    let Sites { a, .. } = &sites;
    let ran = a.run(&["serve"]);
    assert!(ran.code != 0 && ran.err.contains("--replica-listen"), "{ran:?}");
    assert!(!a.store().exists(), "nothing was made");
    let config = a.path(".config/cdp/config.toml");
    std::fs::write(&config, "[automatic.disk]\npeer = \"h:1\"\nwitness = \"h:1\"\n").unwrap();
    let ran = a.run(&["list"]);
    assert!(ran.code != 0 && ran.err.contains("third machine"), "{ran:?}");
    std::fs::write(&config, "[automatic.disk]\npeer = \"h:1\"\n").unwrap();
    let ran = a.run(&["list"]);
    assert!(ran.code != 0 && ran.err.contains("witness"), "{ran:?}");

    // A certificate with which it could never claim.
    let only = ["pki", "issue", "authority", "site-c", "--replica-only", "--to", "only-pki"];
    let lines = "peer = \"h:1\"\nwitness = \"h:2\"\n";
    std::fs::write(&config, format!("[automatic.disk]\n{lines}")).unwrap();
    assert_eq!(a.run(&only).code, 0);
    let ran = a.run(&["serve", "--pki", "only-pki", "--replica-listen", "127.0.0.1:0"]);
    assert!(ran.code != 0 && ran.err.contains("for a replica only"), "{ran:?}");

    // A group and one of its members, both by themselves: half a group would be promoted.
    std::fs::remove_file(&config).unwrap();
    for volume in ["disk", "logs"] {
        assert_eq!(a.run(&["create", volume, "--size", "64M"]).code, 0);
    }
    assert_eq!(a.run(&["group", "create", "shop", "disk", "logs"]).code, 0);
    std::fs::write(&config, format!("[automatic.shop]\n{lines}[automatic.disk]\n{lines}")).unwrap();
    let ran = a.run(&["serve", "--pki", "pki", "--replica-listen", "127.0.0.1:0"]);
    assert!(ran.code != 0 && ran.err.contains("both mean volume disk"), "{ran:?}");
}
