//! Memory is held for bytes that came, not for bytes that were promised. One test alone in its process, since it looks at
//! all of the process's memory.

#![allow(missing_docs)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cdp_nbd::Options;
use cdp_nbd::proto::command;
use support::client::Client;
use support::stand::{eventually, honest, setup};

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
