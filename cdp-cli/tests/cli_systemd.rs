//! Under a service manager, which this test plays: it holds the socket, is told when the server is ready and when it
//! ends, and clients that come meanwhile wait. And the units that are shipped make sense to systemd itself.

mod cli;

use cli::*;
use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What systemd does before it starts a service with a socket.
struct Manager {
    told: UnixDatagram,
    notify: PathBuf,
}

impl Manager {
    fn new(home: &Home) -> Manager {
        let notify = home.path("notify.sock");
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { told, notify }
    }

    /// Runs `cdp` with this socket as the first one that is passed.
    fn start(&self, home: &Home, socket: OwnedFd, arguments: &str) -> Child {
        let script = format!(
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec {} {arguments}",
            env!("CARGO_BIN_EXE_cdp")
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .current_dir(&home.dir)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &home.dir);
        command.env("NOTIFY_SOCKET", &self.notify).stdin(Stdio::from(socket));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until it was told something that begins so.
    fn hears(&self, state: &str) -> String {
        loop {
            let mut buffer = [0; 4096];
            let len = self.told.recv(&mut buffer).unwrap_or_else(|error| panic!("no {state}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if text.starts_with(state) {
                return text;
            }
        }
    }
}

fn end(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(0));
}

#[test]
fn the_socket_is_the_managers_and_outlives_the_server() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let path = home.path("held.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let pass = || OwnedFd::from(listener.try_clone().unwrap());
    assert_eq!(home.run(&["create", "disk", "--size", "64M"]).code, 0);

    let server = manager.start(&home, pass(), "serve");
    manager.hears("READY=1");
    put(&mut connect(&path, "disk").unwrap(), 4096, &[7; 4096]).unwrap();
    // Other commands find it there.
    let status = home.json(&["status"]);
    assert_eq!(status["server"]["endpoints"]["socket"], path.to_str().unwrap());
    assert_eq!(status["server"]["endpoints"]["tcp"], serde_json::Value::Null);
    let listed = home.run(&["ls", "disk@latest:"]);
    assert_eq!(listed.code, 0, "{listed:?}");

    // Killed, and a client comes before it is there again.
    let mut server = server;
    server.kill().unwrap();
    server.wait().unwrap();
    let early = std::thread::spawn({
        let path = path.clone();
        move || get(&mut connect(&path, "disk").unwrap(), 4096, 4096).unwrap()
    });
    std::thread::sleep(Duration::from_millis(50));
    let server = manager.start(&home, pass(), "serve");
    assert_eq!(early.join().unwrap(), [7; 4096]);
    manager.hears("READY=1");

    // A follower is told of in the same way.
    let arguments = "restore disk@latest plain.img --follow --every 50ms";
    let follower =
        manager.start(&home, UnixListener::bind(home.path("other.sock")).unwrap().into(), arguments);
    let said = manager.hears("STATUS=/");
    assert!(said.contains("plain.img stands at"), "{said}");
    end(follower);
    manager.hears("STOPPING=1");

    end(server);
    manager.hears("STOPPING=1");
    assert!(path.exists(), "the manager's socket was removed");
}

// A socket unit that somebody opened to the world must not bypass what the command line refuses.
#[test]
fn a_socket_that_other_machines_reach_is_refused() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let open = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut server = manager.start(&home, open.try_clone().unwrap().into(), "serve");
    assert_eq!(wait(&mut server), Some(4));
    let server = manager.start(&home, open.into(), "serve --insecure-plaintext");
    manager.hears("READY=1");
    end(server);
}

#[test]
fn the_units_make_sense_to_systemd() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    if cdp_cli::host::command::find("systemd-analyze").is_none() {
        eprintln!("systemd-analyze is not here: the units are not verified");
        return;
    }
    // The program and its user need not be installed here.
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(units).unwrap().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains("ExecStart=") || text.contains("ExecStart=/usr/bin/cdp "), "{entry:?}");
        let text = text.replace("/usr/bin/cdp", env!("CARGO_BIN_EXE_cdp"));
        let text = text.replace("User=cdp", "User=root").replace("Group=cdp", "Group=root");
        let name = entry.file_name().into_string().unwrap().replace("@.", "@test.");
        std::fs::write(dir.path().join(&name), text).unwrap();
        names.push(dir.path().join(name));
    }
    assert_eq!(names.len(), 4);
    let verified =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&names).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // Other units of this machine are none of our business.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("cdp")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}
