//! The servers that are measured: how each is started on a fresh device of the same size, and stopped.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Address;

/// Name of the volume and export on every server.
pub const EXPORT: &str = "disk";
/// How a view of the newest instant is called on ours.
pub const VIEW: &str = "disk@latest";

const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(20);
/// Connections a server must take at once.
const CONNECTIONS_MAX: usize = 32;

/// Which server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `qemu-nbd` on a raw file through the page cache.
    QemuWriteback,
    /// `qemu-nbd` on a raw file with O_DIRECT and io_uring.
    QemuUring,
    /// `nbdkit` with its file plugin.
    Nbdkit,
    /// Ours: the path of the binary.
    Cdp(PathBuf),
}

impl Kind {
    /// Short name for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::QemuWriteback => "qemu-nbd",
            Kind::QemuUring => "qemu-direct",
            Kind::Nbdkit => "nbdkit",
            Kind::Cdp(_) => "cdp",
        }
    }

    /// Whether this is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self, Kind::Cdp(_))
    }

    /// First line of `--version`; `None` when it cannot be run.
    pub fn version(&self) -> Option<String> {
        let program = match self {
            Kind::QemuWriteback | Kind::QemuUring => Path::new("qemu-nbd"),
            Kind::Nbdkit => Path::new("nbdkit"),
            Kind::Cdp(path) => path,
        };
        let output = Command::new(program).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned())
    }

    /// The command that serves a device of `size` bytes from `dir` (made fresh) on `socket`.
    fn command(&self, dir: &Path, socket: &Path, size: u64) -> Result<Command, String> {
        let raw = || -> Result<PathBuf, String> {
            let path = dir.join("disk.raw");
            let made = File::create(&path).and_then(|file| file.set_len(size));
            made.map(|()| path.clone()).map_err(|error| format!("{}: {error}", path.display()))
        };
        let qemu = |options: &[&str]| -> Result<Command, String> {
            let mut command = Command::new("qemu-nbd");
            command.args(["--persistent", "--format=raw", "--discard=unmap", "--export-name", EXPORT]);
            command.arg(format!("--shared={CONNECTIONS_MAX}")).args(options);
            command.arg("--socket").arg(socket).arg(raw()?);
            Ok(command)
        };
        match self {
            Kind::QemuWriteback => qemu(&["--cache=writeback"]),
            Kind::QemuUring => qemu(&["--cache=none", "--aio=io_uring"]),
            Kind::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
                command.arg("file").arg(raw()?);
                Ok(command)
            }
            Kind::Cdp(program) => {
                let store = dir.join("store");
                let mut create = Command::new(program);
                create.args(["create", EXPORT, "--size"]).arg(size.to_string()).arg("--store").arg(&store);
                let output = create.output().map_err(|error| format!("{}: {error}", program.display()))?;
                if !output.status.success() {
                    return Err(format!("`cdp create`: {}", last_line(&output.stderr)));
                }
                let mut command = Command::new(program);
                command.arg("serve").arg("--store").arg(&store).arg("--socket").arg(socket);
                Ok(command)
            }
        }
    }
}

/// A running server; stopped, and its device removed, when dropped.
pub struct Server {
    /// Which.
    pub kind: Kind,
    /// Where it listens.
    pub address: Address,
    child: Child,
    dir: PathBuf,
}

impl Server {
    /// Starts a server on a fresh device of `size` bytes in `dir`, with its socket in `sockets`.
    pub fn start(kind: &Kind, dir: &Path, sockets: &Path, size: u64) -> Result<Server, String> {
        let dir = dir.join(kind.name());
        let socket = sockets.join(kind.name());
        let said = dir.join("stderr");
        let prepare = || -> io::Result<File> {
            remove(&dir)?;
            if socket.exists() {
                fs::remove_file(&socket)?;
            }
            fs::create_dir_all(&dir)?;
            File::create(&said)
        };
        let stderr = prepare().map_err(|error| format!("{}: {error}", dir.display()))?;
        let mut command = kind.command(&dir, &socket, size)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let child = child.map_err(|error| format!("cannot start {}: {error}", kind.name()))?;
        let mut server = Server { kind: kind.clone(), address: Address::Unix(socket.clone()), child, dir };

        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if let Ok(Some(status)) = server.child.try_wait() {
                let said = fs::read(&said).unwrap_or_default();
                return Err(format!("{} ended with {status}: {}", kind.name(), last_line(&said)));
            }
            if started.elapsed() > START_MAX {
                return Err(format!("{} did not listen within {START_MAX:?}", kind.name()));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < STOP_MAX {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = remove(&self.dir);
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("(it said nothing)").to_owned()
}
