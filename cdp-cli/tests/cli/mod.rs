//! A home of one test's own, and the real binary in it.

#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cdp_cli::commands::demo::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// A HOME that nobody else uses.
pub struct Home {
    pub dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        let temp = tempfile::tempdir().unwrap();
        Home { dir: temp.path().canonicalize().unwrap(), _temp: temp }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join(".local/share/cdp")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The command, with nothing of the caller's environment that could change what it does.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdp"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CDP_") || text.starts_with("XDG_") || text == "TZ" {
                command.env_remove(name);
            }
        }
        command.env("HOME", &self.dir).current_dir(&self.dir).args(arguments).stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Runs what must succeed; gives its JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", ran.out))
    }

    /// Starts a server and waits until it is ready.
    pub fn serve(&self, arguments: &[&str]) -> Served {
        let mut command = self.command(&[&["serve", "--json"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("the server ended before it was ready: {error}");
            }
            text.push_str(&line);
            if line.trim_end() == "}" {
                break;
            }
        }
        Served { child, ready: serde_json::from_str(&text).unwrap() }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running server; killed with the test.
pub struct Served {
    pub child: Child,
    pub ready: Value,
}

impl Served {
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(self.ready["endpoints"]["socket"].as_str().unwrap())
    }

    pub fn connect(&self, export: &str) -> std::io::Result<Client> {
        connect(&self.socket(), export)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; gives the exit code and what it said on stderr.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child);
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }

    /// SIGTERM, and a clean end.
    pub fn stop(self) {
        self.signal(Signal::TERM);
        let (code, said) = self.wait();
        assert_eq!(code, Some(0), "{said}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn connect(socket: &Path, export: &str) -> std::io::Result<Client> {
    Client::connect(UnixStream::connect(socket)?, export)
}

pub fn put(client: &mut Client, offset: u64, data: &[u8]) -> std::io::Result<()> {
    client.seek(SeekFrom::Start(offset))?;
    client.write_all(data)
}

pub fn get(client: &mut Client, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut data = vec![0; len];
    client.seek(SeekFrom::Start(offset))?;
    client.read_exact(&mut data)?;
    Ok(data)
}
