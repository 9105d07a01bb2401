//! `cdp serve` as its users meet it: the first run, a second one, the end of it, and what strangers send.

mod cli;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use cdp_cli::commands::demo::client::Client;
use cli::*;
use rustix::process::Signal;

/// The first command of the README, typed by somebody who has read nothing else.
#[test]
fn without_arguments_it_makes_a_disk_and_prints_what_works() {
    let home = Home::new();
    let mut child = home.command(&["serve"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.starts_with("Ctrl-C")) {
        said.push(lines.next().expect("it goes on until it is ready").unwrap());
    }
    let uri = said.iter().find(|line| line.contains("nbd+unix:///disk?socket=")).expect("a ready URI").trim();
    let socket = std::path::PathBuf::from(uri.split_once("socket=").unwrap().1);
    let tcp = said.iter().find(|line| line.contains("nbd://127.0.0.1:")).expect("loopback");
    let address = tcp.trim().strip_prefix("nbd://").unwrap().strip_suffix("/disk").unwrap();
    assert!(std::net::TcpStream::connect(address).is_ok(), "{address}");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(said.iter().any(|line| line.contains("disk@start")), "{said:#?}");

    let mut disk = connect(&socket, "disk").unwrap();
    put(&mut disk, 12345, b"kept").unwrap();
    assert_eq!(get(&mut connect(&socket, "disk@start").unwrap(), 12345, 4).unwrap(), [0; 4]);
    drop(disk);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(wait(&mut child), Some(0));

    // Run again, it is the same store.
    let again = home.serve(&[]);
    assert_eq!(get(&mut again.connect("").unwrap(), 12345, 4).unwrap(), b"kept");
    again.stop();
}

/// Two servers on one journal would destroy it; whoever starts the second wants to know where the first is.
#[test]
fn a_second_server_is_refused_and_told_who_has_the_store() {
    let home = Home::new();
    let first = home.serve(&[]);
    let second = home.run(&["serve"]);
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.err.contains(&format!("pid {}", first.child.id())), "{second:?}");
    assert!(second.err.contains(first.socket().to_str().unwrap()), "{second:?}");
    // The first one never noticed.
    assert!(first.connect("disk").is_ok());
    first.stop();
}

/// After an update of the machine, services are stopped with SIGTERM: no client may lose an answer, and nothing
/// may be left to recover.
#[test]
fn sigterm_leaves_a_clean_store() {
    let home = Home::new();
    let served = home.serve(&[]);
    let socket = served.socket();
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, &[7; 8192]).unwrap();
    let marked = home.json(&["mark", "disk", "v1"]);
    assert_eq!(marked[0]["export"], "disk@v1");
    served.stop();
    assert!(!socket.exists() && !home.store().join("control.sock").exists());
    let status = home.json(&["status"]);
    assert_eq!(status["act"], false);
    assert!(status["verdict"][0].as_str().unwrap().contains("no server is running"), "{status}");
    assert!(status["volumes"][0]["recovery"].as_str().unwrap().starts_with("clean"), "{status}");
    let served = home.serve(&[]);
    assert_eq!(get(&mut served.connect("disk@v1").unwrap(), 4096, 4096).unwrap(), [7; 4096]);
    served.stop();
}

/// kill -9, the socket file still there: what was acknowledged is there, and the next server takes over.
#[test]
fn after_kill_9_the_next_server_has_everything() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    for number in 0..100u8 {
        put(&mut disk, u64::from(number) * 10_000, &[number + 1; 5000]).unwrap();
    }
    served.signal(Signal::KILL);
    let socket = served.socket();
    let (code, _) = served.wait();
    assert!(code.is_none() && socket.exists());
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    for number in 0..100u8 {
        assert_eq!(get(&mut disk, u64::from(number) * 10_000, 5000).unwrap(), [number + 1; 5000], "{number}");
    }
    served.stop();
}

/// A store deep in somebody's home: sockets have short names, and the server must still come up.
#[test]
fn a_deep_store_is_served_on_a_short_socket() {
    let home = Home::new();
    let store = home.path(&"deep/".repeat(30));
    let store = store.to_str().unwrap();
    let served = home.serve(&["--store", store]);
    assert!(served.socket().as_os_str().len() <= 107);
    assert!(served.ready["news"].to_string().contains("too long"), "{}", served.ready);
    assert!(served.connect("disk").is_ok());
    // Commands find it all the same.
    assert_eq!(home.json(&["list", "--store", store])[0]["name"], "disk");
    let socket = served.socket();
    served.stop();
    assert!(!socket.parent().unwrap().exists(), "{socket:?}");
}

/// The usual port belongs to another server: this one takes another and says so.
#[test]
fn two_servers_get_along_on_one_machine() {
    let (one, two) = (Home::new(), Home::new());
    let (first, second) = (one.serve(&[]), two.serve(&[]));
    let tcp = |served: &Served| served.ready["endpoints"]["tcp"].as_str().unwrap().to_owned();
    assert_ne!(tcp(&first), tcp(&second));
    for served in [&first, &second] {
        let said = served.ready["news"].to_string().contains("10809");
        assert_eq!(said, !tcp(served).ends_with(":10809"), "{}", served.ready);
    }
    first.stop();
    second.stop();
}

/// Plain text on a network is a decision, not a default.
#[test]
fn beyond_loopback_somebody_has_to_insist() {
    let home = Home::new();
    let refused = home.run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("--insecure-plaintext"), "{refused:?}");
    home.serve(&["--listen", "0.0.0.0:0", "--insecure-plaintext"]).stop();
}

/// `nbdcopy -- [ cdp serve --stdio ] …`: one client, no socket, no word on standard output but the protocol.
#[test]
fn stdio_serves_one_client() {
    let home = Home::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut command = home.command(&["serve", "--stdio"]);
    command.stdin(Stdio::from(theirs.try_clone().unwrap())).stdout(Stdio::from(theirs));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let mut disk = Client::connect(ours, "disk").unwrap();
    put(&mut disk, 0, b"through a pipe").unwrap();
    drop(disk);
    assert_eq!(wait(&mut child), Some(0));
    let served = home.serve(&[]);
    assert_eq!(get(&mut served.connect("disk").unwrap(), 0, 14).unwrap(), b"through a pipe");
    served.stop();
}

/// The past over NBD: nothing there can be changed, but a clone of it can, and nobody sees that.
#[test]
fn the_past_is_read_only_and_its_clone_is_not() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    put(&mut disk, 0, b"old").unwrap();
    home.json(&["mark", "disk", "v1", "--note", "a note"]);
    put(&mut disk, 0, b"new").unwrap();
    let mut past = served.connect("disk@v1").unwrap();
    assert_eq!(get(&mut past, 0, 3).unwrap(), b"old");
    assert_eq!(put(&mut past, 0, b"xxx").unwrap_err().raw_os_error(), Some(1), "EPERM");
    let mut clone = served.connect("disk@v1+rw").unwrap();
    put(&mut clone, 1, b"!").unwrap();
    assert_eq!(get(&mut clone, 0, 3).unwrap(), b"o!d");
    assert_eq!(get(&mut served.connect("disk@v1+rw").unwrap(), 0, 3).unwrap(), b"old");
    assert_eq!(get(&mut served.connect("disk@before:v1").unwrap(), 0, 3).unwrap(), b"old");
    assert_eq!(get(&mut disk, 0, 3).unwrap(), b"new");
    assert!(served.connect("disk@nope").is_err() && served.connect("nope").is_err());
    served.stop();
}

/// Anything may be written to the control socket by a broken program of the same user.
#[test]
fn the_control_socket_survives_what_makes_no_sense() {
    let home = Home::new();
    let served = home.serve(&[]);
    let control = home.store().join("control.sock");
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let deep = "[".repeat(500_000) + "\n";
    let long = "x".repeat(3 << 20);
    let hello = |version: u32| format!("{{\"version\":{version},\"tz\":null,\"request\":\"hello\"}}\n");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no JSON", b"hello\n".to_vec(), "failed"),
        ("not UTF-8", b"\xff\xfe\n".to_vec(), "failed"),
        ("another version", hello(2).into_bytes(), "version 2"),
        ("too deep", deep.into_bytes(), "failed"),
        ("too long", long.into_bytes(), "failed"),
        ("an unknown request", b"{\"version\":1,\"tz\":null,\"request\":{\"fly\":{}}}\n".to_vec(), "fly"),
        (
            "an unknown field",
            b"{\"version\":1,\"x\":1,\"tz\":null,\"request\":\"hello\"}\n".to_vec(),
            "failed",
        ),
        ("a sane one", hello(1).into_bytes(), "done"),
    ];
    for (what, bytes, wanted) in cases {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may have had enough before it took everything.
        let _ = stream.write_all(&bytes);
        let mut answer = String::new();
        let _ = BufReader::new(stream.try_clone().unwrap()).read_line(&mut answer);
        assert!(answer.contains(wanted) || (what == "too long" && answer.is_empty()), "{what}: {answer:?}");
    }
    // Half a line and silence, many times over, keep nobody out.
    let idle: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = UnixStream::connect(&control).unwrap();
            stream.write_all(b"{\"version\":1").unwrap();
            stream
        })
        .collect();
    assert_eq!(home.json(&["list"])[0]["name"], "disk");
    drop(idle);
    served.stop();
}

/// The morning after a bad night: the mark is gone, the verdict says so before anything else, the alarm was run,
/// and repair says what each choice costs before it does anything.
#[test]
fn a_volume_that_refuses_is_told_alarmed_and_repaired() {
    let home = Home::new();
    let served = home.serve(&[]);
    put(&mut served.connect("disk").unwrap(), 0, b"precious").unwrap();
    served.signal(Signal::KILL);
    served.wait();
    let mark = home.store().join("volumes/disk/mark");
    std::fs::write(&mark, vec![0xff; std::fs::metadata(&mark).unwrap().len() as usize]).unwrap();

    let status = home.run(&["status"]);
    assert_eq!(status.code, 3, "{status:?}");
    assert!(status.out.starts_with("ACT: volume disk takes no writes"), "{}", status.out);

    let alarm = home.path("alarm.sh");
    let said = home.path("alarm.txt");
    std::fs::write(&alarm, format!("#!/bin/sh\necho \"$1\" > {0}.new && mv {0}.new {0}\n", said.display()))
        .unwrap();
    std::fs::set_permissions(&alarm, std::fs::Permissions::from_mode(0o755)).unwrap();
    let served = home.serve(&["--on-alarm", alarm.to_str().unwrap()]);
    // It still serves what can be read.
    assert_eq!(get(&mut served.connect("disk").unwrap(), 0, 8).unwrap(), b"precious");
    wait_until("the alarm", || said.exists());
    assert!(std::fs::read_to_string(&said).unwrap().contains("disk"));
    assert_eq!(home.run(&["repair", "disk"]).code, 4, "not while it is served");
    served.stop();

    let choices = home.run(&["repair", "disk"]);
    assert_eq!(choices.code, 3, "{choices:?}");
    assert!(choices.out.contains("--accept-mark-loss") && choices.out.contains("loses:"), "{}", choices.out);
    let again = home.run(&["status"]);
    assert_eq!(again.code, 3, "listing the choices did nothing: {again:?}");
    let repaired = home.run(&["repair", "disk", "--accept-mark-loss"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    assert_eq!(home.run(&["status"]).code, 0);
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    assert_eq!(get(&mut disk, 0, 8).unwrap(), b"precious");
    put(&mut disk, 0, b"written!").unwrap();
    drop(disk);
    served.stop();
}

/// A client that hangs on to its connection must not keep the machine from shutting down.
#[test]
fn an_idle_client_does_not_hold_up_the_end() {
    let home = Home::new();
    let served = home.serve(&[]);
    let mut silent = UnixStream::connect(served.socket()).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut greeting = [0; 18];
    silent.read_exact(&mut greeting).unwrap();
    let _disk = served.connect("disk").unwrap();
    served.stop();
}
