//! What a volume's history takes on the wire, coding by coding: a table of bytes.
//!
//! ```text
//! cargo run --release -p cdp-replica --example wire_bytes -- STORE VOLUME
//! ```
//!
//! Sends the whole journal from one store to a fresh one in a temporary directory, by the two sides of a link without a
//! socket, once for each set of codings, and checks that the histories end with the same chain value. Opens the store, so no server may run on it, and writes the replicas that it adds: take a copy.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cdp_core::device::Device;
use cdp_core::io::{SystemClock, native};
use cdp_core::store::Store;
use cdp_replica::receiver::Receiver;
use cdp_replica::sender::Sender;
use cdp_replica::status::LinkStatus;

const SETS: [(&str, u32); 11] = [
    ("as they are", 0),
    ("LZ4", 1),
    ("zstd", 2),
    ("sectors", 4),
    ("sectors, LZ4", 1 | 4),
    ("sectors, zstd", 2 | 4),
    ("sectors, XOR", 4 | 8),
    ("sectors, XOR, LZ4", 1 | 4 | 8),
    ("sectors, XOR, zstd", 2 | 4 | 8),
    ("all, LZ4", 1 | 4 | 8 | 128),
    ("all, zstd", 2 | 4 | 8 | 128),
];
const STEP_NS: u64 = 5_000_000;

fn open(path: &Path) -> Arc<Store> {
    let files = native(true);
    Arc::new(Store::open(files, Arc::new(SystemClock), path, "wire_bytes").expect("a store"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, name] = &arguments[..] else {
        eprintln!("wire_bytes STORE VOLUME");
        std::process::exit(2);
    };
    let store = open(Path::new(store));
    let volume = store.volume(name).expect("the volume");
    println!("{:<22}{:>12}{:>12}{:>9}{:>10}{:>9}", "codings", "journal", "wire", "part", "coded", "seconds");
    for (what, codings) in SETS {
        let dir = tempfile::tempdir().expect("a directory");
        let there = dir.path().join("there");
        Store::create(&*native(true), &SystemClock, &there).expect("a store");
        let there = open(&there);
        let address = format!("nowhere:{codings}");
        volume.add_replica(&address, 0, false).expect("a replica");
        let mut sender = Sender::new(volume.clone(), &address, 0);
        sender.restrict_codings(codings);
        let mut receiver = Receiver::new(there.clone(), Arc::default(), "here", 0);
        let (mut now_ns, mut sent) = (0, 0);
        let mut status = LinkStatus::default();
        let began = Instant::now();
        while status.acknowledged < volume.durable_lsn() {
            now_ns += STEP_NS;
            sender.poll(now_ns).expect("a sender");
            sent += sender.output().len();
            let bytes = std::mem::take(sender.output());
            receiver.receive(&bytes, now_ns).expect("a receiver");
            receiver.poll(now_ns).expect("a receiver");
            let bytes = std::mem::take(receiver.output());
            sender.receive(&bytes, now_ns).expect("a sender");
            sender.fill_status(&mut status);
        }
        let replica = there.volume(name).expect("the replica");
        replica.flush().expect("a sync");
        let (here, there) =
            (volume.position_at(volume.durable_lsn()), replica.position_at(replica.durable_lsn()));
        assert_eq!(here.expect("a place").chain, there.expect("a place").chain, "two histories");
        let journal = status.journal_bytes;
        println!(
            "{what:<22}{journal:>12}{sent:>12}{:>8.1}%{:>10}{:>9.1}",
            100.0 * sent as f64 / journal as f64,
            status.coded_records,
            began.elapsed().as_secs_f64()
        );
        volume.remove_replica(&address).expect("it was there");
    }
}
