//! How the first site groups its volumes arrives with them at the second one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::sim::{SimClock, SimDisk};
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_replica::fault::{Fault, FaultKind};
use cdp_replica::receiver::Receiver;
use cdp_replica::sender::Sender;

const STORE: &str = "/store";
const TURNS: u64 = 40;

struct Site {
    disk: SimDisk,
    clock: SimClock,
}

impl Site {
    fn new(seed: u64) -> Site {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        Site { disk, clock }
    }

    fn open(&self) -> Arc<Store> {
        let options = OpenOptions { holder: "a test", ..OpenOptions::default() };
        let files = Arc::new(self.disk.clone());
        Arc::new(Store::open_with(files, Arc::new(self.clock.clone()), Path::new(STORE), &options).unwrap())
    }
}

/// A link for some turns, as the program runs one: the sender is told of the groups at each.
fn feed(from: &Arc<Store>, to: &Arc<Store>, name: &str) -> Result<(), Fault> {
    feed_as(from, to, name, &|store, name| store.groups_of(&store.volume(name).unwrap()))
}

type Told<'a> = &'a dyn Fn(&Arc<Store>, &str) -> Vec<(String, Vec<VolumeId>)>;

fn feed_as(from: &Arc<Store>, to: &Arc<Store>, name: &str, told: Told<'_>) -> Result<(), Fault> {
    let volume = from.volume(name).unwrap();
    if volume.replicas().is_empty() {
        volume.add_replica("b:1", 0, false).unwrap();
    }
    let mut sender = Sender::new(volume, "b:1", 0);
    let mut receiver = Receiver::new(to.clone(), Arc::default(), "site-a", 0);
    for turn in 0..TURNS {
        let now_ns = turn * 10_000_000;
        sender.set_groups(&told(from, name));
        sender.poll(now_ns)?;
        receiver.receive(&std::mem::take(sender.output()), now_ns)?;
        receiver.poll(now_ns)?;
        sender.receive(&std::mem::take(receiver.output()), now_ns)?;
    }
    Ok(())
}

fn groups(of: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let names = |members: &[&str]| members.iter().map(|name| (*name).to_owned()).collect();
    of.iter().map(|(group, members)| ((*group).to_owned(), names(members))).collect()
}

/// In the night of the failover nobody should have to remember which volumes make up a database: the group is there, in its
/// order, grows with what arrives and with what is added, survives a restart, and comes back with the roles exchanged.
#[test]
fn groups_arrive_with_their_volumes() {
    let (site_a, site_b) = (Site::new(1), Site::new(2));
    let (a, b) = (site_a.open(), site_b.open());
    for name in ["data", "log", "more"] {
        a.create_volume(name, &CreateOptions::new(1 << 20), None).unwrap();
    }
    a.add_to_group("base", &["data".to_owned(), "log".to_owned()], true).unwrap();
    feed(&a, &b, "log").unwrap();
    assert_eq!(b.groups(), groups(&[("base", &["log"])]));
    // A failover of it would leave one behind.
    assert_eq!(b.refuse_partial("base").unwrap_err().kind(), Kind::Refused);
    feed(&a, &b, "data").unwrap();
    assert_eq!(b.groups(), groups(&[("base", &["data", "log"])]));
    b.refuse_partial("base").unwrap();
    a.add_to_group("base", &["more".to_owned()], false).unwrap();
    feed(&a, &b, "log").unwrap();
    assert_eq!(b.groups(), groups(&[("base", &["data", "log"])]), "it is not here yet");
    drop(b);
    let b = site_b.open();
    assert!(b.refuse_partial("base").is_err(), "after a restart");
    feed(&a, &b, "more").unwrap();
    let whole = groups(&[("base", &["data", "log", "more"])]);
    assert_eq!(b.groups(), whole);
    drop(b);
    let b = site_b.open();
    assert_eq!(b.groups(), whole, "after a restart");
    feed(&a, &b, "more").unwrap();
    assert_eq!(b.groups(), whole);
}

/// A site may append and nothing else: what others own at the second site is in no group of its making, a group that was made
/// there of other volumes stays, and records go on arriving meanwhile.
#[test]
fn a_site_groups_only_what_it_feeds() {
    let (site_a, site_b) = (Site::new(3), Site::new(4));
    let (a, b) = (site_a.open(), site_b.open());
    for name in ["data", "log"] {
        a.create_volume(name, &CreateOptions::new(1 << 20), None).unwrap();
        feed(&a, &b, name).unwrap();
    }
    let own = b.create_volume("own", &CreateOptions::new(1 << 20), None).unwrap().identity().id;
    b.add_to_group("base", &["own".to_owned()], true).unwrap();
    let before = b.groups();
    a.add_to_group("base", &["data".to_owned()], true).unwrap();
    a.add_to_group("own", &["data".to_owned()], true).unwrap();
    feed(&a, &b, "data").unwrap();
    assert_eq!(b.groups(), before);
    let data = a.volume("data").unwrap().identity().id;
    assert_eq!(b.learn_group("site-a", "base", &[data]).unwrap_err().kind(), Kind::Exists);
    assert_eq!(b.learn_group("site-a", "own", &[data]).unwrap_err().kind(), Kind::Exists);
    // What is not fed by it is left out, whoever names it; a name that no volume could have is refused.
    assert!(!b.learn_group("site-a", "theirs", &[own]).unwrap());
    assert!(!b.learn_group("site-x", "theirs", &[data]).unwrap());
    assert!(b.learn_group("site-a", "the/irs", &[data]).is_err());
    assert_eq!(b.groups(), before);
    let fault = feed_as(&a, &b, "log", &|_, _| vec![("theirs".to_owned(), vec![data])]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Protocol, "{fault}");
    assert_eq!(b.groups(), before);
}

/// However often a site renames its groups, the second one's store can be opened again.
#[test]
fn groups_without_end_do_not_fill_the_file() {
    let (site_a, site_b) = (Site::new(5), Site::new(6));
    let (a, b) = (site_a.open(), site_b.open());
    a.create_volume("data", &CreateOptions::new(1 << 20), None).unwrap();
    feed(&a, &b, "data").unwrap();
    let data = a.volume("data").unwrap().identity().id;
    let refused =
        (0..5000).find_map(|number| b.learn_group("site-a", &format!("group-{number:0100}"), &[data]).err());
    assert_eq!(refused.unwrap().kind(), Kind::Invalid);
    let count = b.groups().len();
    drop(b);
    assert_eq!(site_b.open().groups().len(), count);
}
