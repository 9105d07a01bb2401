//! Memory is held for bytes that came, not for bytes that were promised. One test alone in its process, since it looks at
//! all of the process's memory.

#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cdp_nbd::proto::command;
use cdp_nbd::{Options, Server};
use support::client::Client;
use support::{MemoryDevice, MemoryExports};

const SIZE: u64 = 96 << 20;

struct Setup {
    disk: Arc<MemoryDevice>,
    open: Arc<AtomicUsize>,
    path: PathBuf,
    _server: Server,
    _directory: tempfile::TempDir,
}

fn setup(options: Options) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let disk = Arc::new(MemoryDevice::new(SIZE));
    let exports = MemoryExports::new(vec![("disk", Arc::clone(&disk))]);
    let open = Arc::clone(&exports.open);
    let server = Server::start(Arc::new(exports), options);
    server.listen_unix(&path).unwrap();
    Setup { disk, open, path, _server: server, _directory: directory }
}

/// An honest client can still work.
fn honest(path: &Path) {
    let mut client = Client::structured(path, "disk");
    assert_eq!(client.write(SIZE - 4096, b"honest"), 0);
    assert_eq!(client.read(SIZE - 4096, 6).unwrap(), b"honest");
    client.disconnect();
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come true in 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of memory that this process really has.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_follows_what_clients_send() {
    hundreds_of_open_clients_cost_little();
    a_payload_that_is_only_announced_takes_no_memory();
}

fn hundreds_of_open_clients_cost_little() {
    let setup = setup(Options::default());
    let before = resident_bytes();
    let mut clients: Vec<Client> = (0..300).map(|_| Client::simple(&setup.path, "disk")).collect();
    for client in &mut clients {
        assert_eq!(client.write(0, &vec![1; 512 << 10]), 0);
    }
    // After a second of silence their buffers are given back.
    eventually("little memory", || resident_bytes().saturating_sub(before) < 40 << 20);
    for client in &mut clients {
        assert_eq!(client.read(0, 3).unwrap(), [1; 3]);
    }
}

fn a_payload_that_is_only_announced_takes_no_memory() {
    let setup = setup(Options::default());
    honest(&setup.path);
    let before = resident_bytes();
    let mut liars = Vec::new();
    for _ in 0..50 {
        let mut client = Client::simple(&setup.path, "disk");
        client.request(0, command::WRITE, 0, 64 << 20, &[1; 3 << 20]);
        liars.push(client);
    }
    eventually("the bytes are received", || {
        let mut unread = liars.iter().filter(|client| {
            let queued = rustix::io::ioctl_fionread(&client.stream).unwrap_or(1);
            queued > 0
        });
        unread.next().is_none()
    });
    std::thread::sleep(Duration::from_millis(200));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 * (5 << 20), "50 clients that sent 3 MiB each hold {grown} bytes");
    honest(&setup.path);
    drop(liars);
    eventually("all gone", || setup.open.load(Ordering::SeqCst) == 0);
    assert!(setup.disk.contents(0, 3 << 20).iter().all(|byte| *byte == 0), "nothing in part was applied");
}
