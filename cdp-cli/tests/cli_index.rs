//! A long history and what it takes: memory, as an outsider sees it, and an index that can be thrown away at any time.

mod cli;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ChildStderr;

use cdp_cli::commands::demo::client::Client;
use cdp_core::generate::{HistoryOptions, history};
use cdp_core::io::native;
use cli::*;

/// What the budget is not for: a server with as many connections and an empty volume takes this much more at one time than at
/// another, in bytes.
const LEEWAY_BYTES: u64 = 12 << 20;
const VIEWS: u64 = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below
    }
}

/// A store with the volume `disk`, of so many generated changes.
fn generate(home: &Home, changes: u64, size_bytes: u64, marker_every: u64) {
    let options = HistoryOptions {
        changes,
        size_bytes,
        segment_bytes: 128 << 20,
        seed: 3,
        duration_ns: 24 * 3_600_000_000_000,
        marker_every,
    };
    std::fs::create_dir_all(home.store().parent().unwrap()).unwrap();
    history(native(false), &home.store(), &options, &mut |_| {}).unwrap();
}

fn set_budget(home: &Home, budget: Option<&str>) {
    let dir = home.path(".config/cdp");
    std::fs::create_dir_all(&dir).unwrap();
    let text = budget.map_or(String::new(), |budget| format!("index_memory = \"{budget}\"\n"));
    std::fs::write(dir.join("config.toml"), text).unwrap();
}

/// A line of `/proc/PID/status`, in bytes.
fn memory_bytes(served: &Served, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Opens all views, reads from all of them and from the volume in turn; gives resident and most bytes.
fn use_views(served: &Served, tip: u64, size_bytes: u64, rounds: usize) -> (u64, u64) {
    let exports = (1..=VIEWS).map(|number| format!("disk@lsn:{}", tip / VIEWS * number));
    let mut clients: Vec<Client> = exports.map(|export| served.connect(&export).unwrap()).collect();
    clients.push(served.connect("disk").unwrap());
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..rounds {
        for client in &mut clients {
            let block = random.below(size_bytes / 4096);
            assert_eq!(get(client, block * 4096, 4096).unwrap(), [0; 4096]);
        }
    }
    (memory_bytes(served, "VmRSS:"), memory_bytes(served, "VmHWM:"))
}

/// Who gave the index a part of a small machine finds the rest of it taken, too, if the budget counts some of the index only.
#[test]
fn a_million_writes_and_64_views_keep_the_budget_as_an_outsider_sees_it() {
    const CHANGES: u64 = 1_000_000;
    const SIZE: u64 = 1 << 40;
    let home = Home::new();
    set_budget(&home, None);
    let created = home.run(&["create", "disk", "--size", "1T"]);
    assert_eq!(created.code, 0, "{created:?}");
    let served = home.serve(&[]);
    let (_, empty) = use_views(&served, 0, SIZE, 10);
    served.stop();
    std::fs::remove_dir_all(home.store()).unwrap();
    generate(&home, CHANGES, SIZE, 1000);
    for (budget, bytes) in [(Some("16M"), 16 << 20), (None, 256 << 20)] {
        set_budget(&home, budget);
        let served = home.serve(&[]);
        // Each takes many nodes, and none of them space in the journal.
        let (mut client, mut random) = (served.connect("disk").unwrap(), Random(11));
        for _ in 0..24_000 {
            let len = (1 + 2 * random.below(1 << 18)) as u32 * 4096;
            client.trim((1 + 2 * random.below((SIZE >> 13) - (1 << 19))) * 4096, len).unwrap();
        }
        drop(client);
        let (resident, most) = use_views(&served, CHANGES, SIZE, 300);
        let memory = home.json(&["status"])["memory"].clone();
        eprintln!("budget {budget:?}: {resident} resident, at most {most}, empty {empty}; {memory}");
        assert!(
            most <= empty + bytes + LEEWAY_BYTES,
            "{most} bytes with a budget of {budget:?}, {empty} without a history"
        );
        let told: u64 = memory
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "budget_bytes")
            .map(|(_, bytes)| bytes.as_u64().unwrap())
            .sum();
        assert_eq!(memory["budget_bytes"], bytes);
        assert!(told <= bytes && told > 1 << 20, "{memory}");
        let parts = memory["parts_bytes"].as_u64().unwrap();
        // Else there is nothing that the smaller budget could keep out, and this test tells nothing.
        assert!(budget.is_some() || parts > 24 << 20, "{memory}");
        served.stop();
    }
}

fn index_files(home: &Home) -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(home.store().join("volumes/disk")).unwrap();
    let paths = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "run"));
    paths.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path)).collect()
}

/// What a run says; without the header of a segment's own, which may know the seal or may have been written before it.
fn content(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let is_merged = path.file_name().unwrap().to_string_lossy().contains('-');
    bytes[if is_merged { 0 } else { 4096 }..].to_vec()
}

/// What anybody can see of the volume, at instants drawn from a seed.
fn seen(home: &Home, served: &Served, tip: u64) -> Vec<(String, u64)> {
    let mut random = Random(77);
    let mut seen = Vec::new();
    let hash = |what: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        what(&mut hasher);
        hasher.finish()
    };
    for number in 0..24 {
        let lsn = if number < 12 { 1 + random.below(tip) } else { tip - random.below(600) };
        let mut client = served.connect(&format!("disk@lsn:{lsn}")).unwrap();
        let data: Vec<Vec<u8>> =
            (0..12).map(|_| get(&mut client, random.below(4000) << 20, 1 << 16).unwrap()).collect();
        seen.push((format!("view at {lsn}"), hash(&|hasher| data.hash(hasher))));
        let other = (lsn + 1 + random.below(40_000)).min(tip);
        let (from, to) = (format!("disk@lsn:{lsn}"), format!("disk@lsn:{other}"));
        let diff = home.json(&["diff", &from, &to]).to_string();
        seen.push((format!("{from} and {to}"), hash(&|hasher| diff.hash(hasher))));
    }
    for _ in 0..8 {
        let around = format!("lsn:{}", 1000 + random.below(tip - 2000));
        let log = home.json(&["log", "disk", "--around", &around, "--records", "--count", "40"]).to_string();
        seen.push((format!("log around {around}"), hash(&|hasher| log.hash(hasher))));
        // Names come from the catalog, or from the journal.
        let name = 1 + random.below(990);
        let (from, to) = (format!("disk@mark-{name:06}"), format!("disk@mark-{:06}", name + 1));
        let diff = home.json(&["diff", &from, &to]).to_string();
        seen.push((format!("{from} and {to}"), hash(&|hasher| diff.hash(hasher))));
    }
    seen
}

/// Lines that the server says on stderr from its start on, once it is ready.
fn said(stderr: ChildStderr) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).collect())
}

/// Whoever loses the index, by a bad disk or his own hand, must lose nothing but time, and see how it passes.
#[test]
fn the_whole_index_and_the_catalog_are_made_again_as_they_were() {
    const CHANGES: u64 = 500_000;
    let home = Home::new();
    generate(&home, CHANGES, 4 << 30, 500);
    set_budget(&home, None);
    let tip = {
        let served = home.serve(&[]);
        let mut client = served.connect("disk").unwrap();
        let mut random = Random(5);
        for number in 0..300u64 {
            let data: Vec<u8> = (0..1 << 16).map(|at: u64| (at * (number + 3) % 251) as u8 + 1).collect();
            put(&mut client, random.below(4000) << 20, &data).unwrap();
        }
        drop(client);
        wait_for_merges(&home);
        served.stop();
        let served = home.serve(&[]);
        let tip = home.json(&["status"])["volumes"][0]["tip"]["lsn"].as_u64().unwrap();
        served.stop();
        tip
    };
    let before: BTreeMap<String, Vec<u8>> =
        index_files(&home).into_iter().map(|(name, path)| (name, content(&path))).collect();
    assert!(before.keys().any(|name| name.contains('-')), "else no run was merged: {:?}", before.keys());
    let served = home.serve(&[]);
    let seen_before = seen(&home, &served, tip);
    served.stop();
    index_files(&home).values().for_each(|path| std::fs::remove_file(path).unwrap());
    std::fs::remove_dir_all(home.store().join("catalog")).unwrap();

    let mut served = home.serve(&[]);
    let said = said(served.child.stderr.take().unwrap());
    wait_for_merges(&home);
    for (before, now) in seen_before.iter().zip(seen(&home, &served, tip)) {
        assert_eq!(*before, now);
    }
    served.signal(rustix::process::Signal::TERM);
    assert_eq!(cli::wait(&mut served.child), Some(0));
    let said = said.join().unwrap();
    let progress: Vec<&String> = said.iter().filter(|line| line.contains("making the index again")).collect();
    assert!(progress.len() >= 2, "{said:#?}");
    assert!(
        progress.iter().any(|line| line.contains("disk: ") && line.contains("segment 1 of ")),
        "{progress:#?}"
    );
    let now = index_files(&home);
    for (name, before) in before {
        let now = now.get(&name).unwrap_or_else(|| panic!("{name} was not made again: {:?}", now.keys()));
        assert!(content(now) == before, "{name} was made otherwise");
    }
}

/// Until the same runs are there for a while.
fn wait_for_merges(home: &Home) {
    let names = || index_files(home).into_keys().collect::<Vec<_>>();
    let (mut before, mut same) = (names(), 0);
    wait_until("merges end", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = names();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 8
    });
}
