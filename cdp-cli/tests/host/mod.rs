//! A bench for tests that need root, FUSE and loop: a scratch directory, a stock NBD server, and a look at what is
//! left behind.

#![allow(dead_code)] // each test binary uses its part

use cdp_cli::host::attach::{AttachOptions, attach, detach};
use cdp_cli::host::command::{find, wait_until};
use cdp_cli::host::keeper::Keeper;
use cdp_cli::host::{mounts, process};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A directory of one test.
pub struct Bench {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Bench {
    /// None where the machine cannot do it; in CI that is a failure.
    pub fn new() -> Option<Bench> {
        let needed = ["nbdfuse", "nbdkit", "nbdinfo", "qemu-nbd", "fusermount3", "mkfs.ext4"];
        let missing: Vec<&str> = needed.into_iter().filter(|program| find(program).is_none()).collect();
        let root = rustix::process::geteuid().is_root();
        let devices = Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
        if !root || !devices || !missing.is_empty() {
            let why = format!("root {root}, FUSE and loop {devices}, missing {missing:?}");
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI: {why}");
            eprintln!("SKIP: {why}");
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        Some(Bench { dir: temp.path().canonicalize().unwrap(), _temp: temp })
    }

    /// Whether an optional program is there; in CI everything is.
    pub fn has(&self, program: &str) -> bool {
        let has = find(program).is_some();
        assert!(has || std::env::var_os("CI").is_none(), "{program} is missing in CI");
        has
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("store/attachments")
    }

    pub fn options(&self, name: &str, uri: &str) -> AttachOptions {
        AttachOptions {
            name: name.into(),
            uri: uri.into(),
            state_dir: self.state(),
            keeper: self.keeper(),
            ..Default::default()
        }
    }

    /// Our relay; with CDP_TEST_KEEPER=nbdkit the other one.
    pub fn keeper(&self) -> Keeper {
        match std::env::var("CDP_TEST_KEEPER").as_deref() {
            Ok("nbdkit") => Keeper::Nbdkit,
            _ => Keeper::Relay(env!("CARGO_BIN_EXE_cdp").into()),
        }
    }

    pub fn run(&self, program: &str, arguments: &[&str]) {
        self.run_with_input(program, arguments, "");
    }

    pub fn run_with_input(&self, program: &str, arguments: &[&str], input: &str) {
        let path = find(program).unwrap_or_else(|| panic!("{program} is not installed"));
        let mut child = Command::new(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    }

    /// Makes a filesystem the way a user does: through the attached device.
    pub fn make_filesystem(&self, mkfs: &str, name: &str, uri: &str) {
        let attached = attach(&self.options(name, uri)).unwrap();
        let quiet = if mkfs == "mkfs.ext4" { "-q" } else { "-f" };
        self.run(mkfs, &[quiet, attached.device.to_str().unwrap()]);
        detach(&self.state(), name, false).unwrap();
    }

    /// No process, mount, loop device or state of this bench.
    pub fn assert_nothing_left(&self) {
        let state = self.state();
        let entries: Vec<_> = std::fs::read_dir(&state).into_iter().flatten().flatten().collect();
        let entries: Vec<_> =
            entries.iter().map(|entry| entry.file_name()).filter(|name| name != ".lock").collect();
        assert!(entries.is_empty(), "state is left: {entries:?}");
        let inside = state.to_string_lossy().into_owned();
        assert_eq!(process::find_ours(&inside), Vec::<u32>::new(), "processes are left");
        let left = mounts::list().unwrap().into_iter().filter(|mount| mount.dir.starts_with(&self.dir));
        assert_eq!(left.collect::<Vec<_>>(), vec![], "mounts are left");
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            assert!(!backing.starts_with(self.dir.to_str().unwrap()), "{:?} is left", entry.file_name());
        }
    }
}

impl Drop for Bench {
    /// A failed test must not leave the machine full of devices.
    fn drop(&mut self) {
        for attached in cdp_cli::host::attach::list(&self.state()).unwrap_or_default() {
            let _ = detach(&self.state(), &attached.id, true);
        }
    }
}

/// A stock NBD server on a Unix socket.
pub struct Server {
    name: String,
    socket: PathBuf,
    image: PathBuf,
    log: Option<PathBuf>,
    extra: Vec<String>,
    child: Child,
}

impl Server {
    pub fn start(bench: &Bench, name: &str, bytes: u64) -> Server {
        let image = bench.path(&format!("{name}.img"));
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        Server::of_image(bench, name, image, &[])
    }

    /// An image that is there, with options of qemu-nbd.
    pub fn of_image(bench: &Bench, name: &str, image: PathBuf, extra: &[&str]) -> Server {
        let socket = bench.path(&format!("{name}.sock"));
        let extra: Vec<String> = extra.iter().map(|&option| option.to_owned()).collect();
        let child = Server::spawn(name, &socket, &image, &extra);
        Server { name: name.into(), socket, image, log: None, extra, child }
    }

    fn spawn(name: &str, socket: &Path, image: &Path, extra: &[String]) -> Child {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new(find("qemu-nbd").unwrap());
        command.args([
            "--persistent",
            "--shared=16",
            "--format=raw",
            "--discard=unmap",
            "--export-name",
            name,
        ]);
        command.args(extra).arg("--socket").arg(socket).arg(image);
        let child = command.spawn().unwrap();
        assert!(wait_until(PATIENCE, || socket.exists()), "qemu-nbd does not listen");
        child
    }

    /// A server that notes every request with its answer.
    pub fn start_logging(bench: &Bench, name: &str, bytes: u64) -> Server {
        let image = bench.path(&format!("{name}.img"));
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let socket = bench.path(&format!("{name}.sock"));
        let log = bench.path(&format!("{name}.log"));
        let child = Command::new(find("nbdkit").unwrap())
            .args(["--foreground", "--filter=log", "file"])
            .arg(&image)
            .arg(format!("logfile={}", log.display()))
            .arg("--unix")
            .arg(&socket)
            .spawn()
            .unwrap();
        assert!(wait_until(PATIENCE, || socket.exists()), "nbdkit does not listen");
        Server { name: name.into(), socket, image, log: Some(log), extra: Vec::new(), child }
    }

    /// A server whose every answer comes from a shell script (nbdkit-sh-plugin).
    pub fn start_script(bench: &Bench, name: &str, script: &str) -> Server {
        let image = bench.path(&format!("{name}.sh"));
        std::fs::write(&image, script).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&image, permissions).unwrap();
        let socket = bench.path(&format!("{name}.sock"));
        let mut command = Command::new(find("nbdkit").unwrap());
        command.args(["--foreground", "--unix"]).arg(&socket).arg("sh").arg(&image);
        let child = command.spawn().unwrap();
        assert!(wait_until(PATIENCE, || socket.exists()), "nbdkit does not listen");
        Server { name: name.into(), socket, image, log: None, extra: Vec::new(), child }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, self.socket.display())
    }

    pub fn image(&self) -> PathBuf {
        self.image.clone()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.as_ref().unwrap()).unwrap()
    }

    pub fn log_lines(&self) -> usize {
        self.log().lines().count()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = Server::spawn(&self.name, &self.socket, &self.image, &self.extra);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
