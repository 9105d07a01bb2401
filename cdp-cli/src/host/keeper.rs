//! The processes between a server and a device: a keeper waits for a server that restarts, `nbdfuse` makes a file.
//!
//! Both keepers hold a request until the server is back and ask again, so that the filesystem above sees a pause
//! and not an error. Ours is the [relay]. `nbdkit`'s retry filter
//! follows every kind of URI, but cannot tell one error from another: it asks again after EIO too, so that one
//! damaged block stops a quarter of all requests for as long as its patience lasts.

use crate::host::command::{self, wait_until};
use crate::host::process;
use crate::host::relay::{self, RelayOptions};
use cdp_core::error::{Error, IoContext, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How long a server may be away before the filesystem sees an error, in seconds: a week. The filter asks once
/// a second.
const SERVER_AWAY_SECONDS: u32 = 7 * 24 * 3600;

/// How long the processes may take to be ready.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// How long a server may take to answer a first question.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What a server says about an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export {
    /// Writes are refused.
    pub read_only: bool,
}

/// Asks the server for an export before anything is built on it: an export that is not there shall be an error
/// now, not a wait for a server that comes back.
pub fn ask(uri: &str) -> Result<Export> {
    let answer = command::run_within("nbdinfo", ["--json", "--no-content", uri], ANSWER_PATIENCE)?;
    let no_sense =
        |error| Error::new(Kind::Invalid, format!("nbdinfo's answer about {uri} makes no sense: {error}"));
    let answer: serde_json::Value =
        serde_json::from_str(&answer).map_err(|error| no_sense(error.to_string()))?;
    let export = answer.get("exports").and_then(|exports| exports.get(0));
    let read_only = export.and_then(|export| export.get("is_read_only")).and_then(|value| value.as_bool());
    Ok(Export { read_only: read_only.ok_or_else(|| no_sense("no is_read_only".into()))? })
}

/// Where the processes of one attachment have their files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The directory of the attachment.
    pub dir: PathBuf,
    /// The private socket between the two processes.
    pub socket: PathBuf,
}

impl Places {
    /// The FUSE mount point.
    pub fn fuse_dir(&self) -> PathBuf {
        self.dir.join("fuse")
    }

    /// The export as a file.
    pub fn fuse_file(&self) -> PathBuf {
        self.fuse_dir().join("disk")
    }

    /// What the processes said.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn keeper_pid(&self) -> PathBuf {
        self.dir.join("keeper.pid")
    }

    fn fuse_pid(&self) -> PathBuf {
        self.dir.join("fuse.pid")
    }

    /// What the command line of our `nbdfuse` holds and no other.
    fn fuse_needle(&self) -> String {
        format!("--pidfile {}", self.fuse_pid().display())
    }

    /// What the command line of our `nbdkit` holds and no other.
    fn keeper_needle(&self) -> String {
        format!("--pidfile {}", self.keeper_pid().display())
    }

    /// The private socket as a URI.
    fn private_uri(&self) -> String {
        format!("nbd+unix:///?socket={}", percent_encode(&self.socket.to_string_lossy()))
    }
}

/// Who waits for a server that restarts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Keeper {
    /// `nbdkit` with its retry filter.
    #[default]
    Nbdkit,
    /// Our own relay, run by this program (the `cdp` binary); `nbdkit` where it cannot follow the URI.
    Relay(PathBuf),
    /// Nobody: an ended server is an I/O error.
    Nobody,
}

/// Starts the process that keeps the export through restarts of its server; it serves on the private socket.
pub fn start_keeper(places: &Places, keeper: &Keeper, uri: &str, read_only: bool) -> Result<()> {
    match keeper {
        Keeper::Relay(program) if relay::Address::parse(uri).is_ok() => start_relay(places, program, uri),
        Keeper::Relay(_) | Keeper::Nbdkit => start_nbdkit(places, uri, read_only),
        Keeper::Nobody => Ok(()),
    }
}

fn start_relay(places: &Places, program: &Path, uri: &str) -> Result<()> {
    let options =
        RelayOptions { pidfile: places.keeper_pid(), socket: places.socket.clone(), uri: uri.to_owned() };
    let mut arguments: Vec<OsString> = vec![program.into(), relay::SUBCOMMAND.into()];
    arguments.extend(options.arguments());
    let mut child = daemon(places, &arguments)?;
    let listens = || process::read_pid(&places.keeper_pid()).is_some();
    if wait_until(START_PATIENCE, || listens() || ended_badly(&mut child)) && listens() {
        return Ok(());
    }
    Err(not_started("the relay", places))
}

fn start_nbdkit(places: &Places, uri: &str, read_only: bool) -> Result<()> {
    let mut arguments: Vec<OsString> = vec!["nbdkit".into(), "--pidfile".into(), places.keeper_pid().into()];
    arguments.extend(["--unix".into(), places.socket.clone().into()]);
    if read_only {
        arguments.push("--readonly".into());
    }
    arguments.extend(["--filter=retry".into(), "nbd".into(), format!("uri={uri}").into()]);
    arguments.push(format!("retries={SERVER_AWAY_SECONDS}").into());
    arguments.extend(["retry-delay=1".into(), "retry-exponential=no".into()]);
    command::program("nbdkit")?;
    let mut child = daemon(places, &arguments)?;
    // It puts itself into the background once it listens; its child goes on.
    let ready = wait_until(START_PATIENCE, || {
        process::read_pid(&places.keeper_pid()).is_some() || ended_badly(&mut child)
    });
    if ready && process::read_pid(&places.keeper_pid()).is_some() {
        // The front half has ended by now; collected so that no zombie stays.
        let _ = child.wait();
        return Ok(());
    }
    Err(not_started("nbdkit", places))
}

/// Starts `nbdfuse`, behind the keeper or straight on the server; the export is a file from then on.
pub fn start_fuse(places: &Places, uri: &str, kept: bool, read_only: bool) -> Result<()> {
    let dir = places.fuse_dir();
    std::fs::create_dir_all(&dir).at(|| format!("cannot create {}", dir.display()))?;
    let mut arguments: Vec<OsString> = vec!["nbdfuse".into(), "--pidfile".into(), places.fuse_pid().into()];
    if read_only {
        arguments.push("--readonly".into());
    }
    let private = places.private_uri();
    if !kept {
        // A throw-away clone belongs to one connection.
        arguments.extend(["--connections".into(), "1".into()]);
    }
    arguments.extend([places.fuse_file().into(), if kept { private.into() } else { uri.into() }]);
    command::program("nbdfuse")?;
    let mut child = daemon(places, &arguments)?;
    let ready = wait_until(START_PATIENCE, || {
        places.fuse_pid().exists() && places.fuse_file().exists() || ended_badly(&mut child)
    });
    if ready && places.fuse_file().exists() { Ok(()) } else { Err(not_started("nbdfuse", places)) }
}

/// A process of its own session, with its talk in the attachment's log.
fn daemon(places: &Places, arguments: &[OsString]) -> Result<Child> {
    let log = places.log();
    let file = File::options().create(true).append(true).open(&log);
    let file = file.at(|| format!("cannot open {}", log.display()))?;
    let again = file.try_clone().at(|| format!("cannot open {}", log.display()))?;
    let mut command = command::program("setsid")?;
    command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(file).stderr(again);
    command.spawn().at(|| format!("cannot start {}", arguments[0].to_string_lossy()))
}

fn ended_badly(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(Some(status)) if !status.success())
}

fn not_started(program: &str, places: &Places) -> Error {
    let log = std::fs::read_to_string(places.log()).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(3).collect();
    let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
    Error::new(Kind::Io, format!("{program} did not start: {last}"))
}

/// Whether the process that makes the file still runs.
pub fn fuse_runs(places: &Places) -> bool {
    runs(&places.fuse_pid(), &places.fuse_needle())
}

/// Whether the process that waits for the server still runs.
pub fn keeper_runs(places: &Places) -> bool {
    runs(&places.keeper_pid(), &places.keeper_needle())
}

fn runs(pid_file: &Path, needle: &str) -> bool {
    process::read_pid(pid_file).is_some_and(|pid| process::is_ours(pid, needle))
}

/// Ends `nbdfuse` by giving its mount back. The file must not be in use any more.
pub fn stop_fuse(places: &Places) -> Result<()> {
    let dir = places.fuse_dir();
    if crate::host::mounts::is_mountpoint(&dir)? {
        let unmounted = command::run("fusermount3", [OsStr::new("-u"), dir.as_os_str()]);
        if unmounted.is_err() {
            crate::host::mounts::unmount_lazily(&dir)?;
        }
    }
    let needle = places.fuse_needle();
    wait_until(START_PATIENCE, || process::find_ours(&needle).is_empty());
    end_all(&needle, process::end)
}

/// Ends the keeper. With `at_once` it gets no time: requests that wait for a server fail.
pub fn stop_keeper(places: &Places, at_once: bool) -> Result<()> {
    let needle = places.keeper_needle();
    end_all(&needle, if at_once { process::kill } else { process::end })
}

/// By command line and not by pid file: a crash may have come between the start and the file.
fn end_all(needle: &str, end: fn(u32, &str) -> bool) -> Result<()> {
    for pid in process::find_ours(needle) {
        if !end(pid, needle) {
            return Err(Error::new(Kind::Busy, format!("process {pid} ({needle}) does not end")));
        }
    }
    Ok(())
}

/// Escapes what has a meaning in a URI's query.
pub fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let encode = |byte: u8| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A store in a directory with a space or an ampersand would be attached somewhere else or not at all.
    #[test]
    fn socket_paths_are_escaped() {
        assert_eq!(percent_encode("/a b&c=d/ü"), "/a%20b%26c%3Dd/%C3%BC");
    }
}
