//! `doctor`: what of the machine is missing, and the line that mends it.

use crate::host::clients::{CLIENTS, install_line};
use crate::host::command;
use cdp_core::io::uring::Uring;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// Below so much free space under the store, in bytes, `doctor` complains: a few segments and room to seal them.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Below so much `/dev/shm`, in bytes, a ring for the speed of commits does not fit.
const SHM_BYTES_MIN: u64 = 256 << 20;

/// Below so many open files a server with many clients and a long history comes to its end.
const OPEN_FILES_MIN: u64 = 4096;

/// How long a question to a clock service may take.
const CLOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Programs that set the clock, by their process names (the kernel cuts them at 15 bytes).
const CLOCK_SERVICES: [&str; 5] = ["chronyd", "ntpd", "ntpsec", "openntpd", "systemd-timesyn"];

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// It is as it should be.
    pub ok: bool,
    /// Without it `cdp` still serves; what it is good for stands in the detail.
    pub optional: bool,
    /// What was found.
    pub detail: String,
    /// A line to copy that mends it, where there is one.
    pub remedy_line: Option<String>,
}

impl Finding {
    fn new(name: &str, ok: bool, detail: impl Into<String>) -> Finding {
        Finding { name: name.to_owned(), ok, optional: false, detail: detail.into(), remedy_line: None }
    }

    fn remedy(mut self, line: impl Into<String>) -> Finding {
        if !self.ok {
            self.remedy_line = Some(line.into());
        }
        self
    }

    fn optional(mut self) -> Finding {
        self.optional = true;
        self
    }
}

/// Looks at the machine. `store` is where the journal is or will be.
pub fn diagnose(store: &Path) -> Vec<Finding> {
    let mut findings = vec![root(), fuse(), loop_devices(), kernel_nbd(), io_uring()];
    findings.extend(clients());
    findings.extend([clock(), shared_memory(), free_space(store), open_files()]);
    findings
}

/// One line that installs every missing client, if one is missing.
pub fn install_all(findings: &[Finding]) -> Option<String> {
    let missing = |program: &str| findings.iter().any(|finding| finding.name == program && !finding.ok);
    let packages: Vec<&str> =
        CLIENTS.iter().filter(|client| missing(client.program)).map(|client| client.package).collect();
    (!packages.is_empty()).then(|| install_line(packages))
}

fn root() -> Finding {
    let ok = rustix::process::geteuid().is_root();
    let detail = if ok { "yes" } else { "no: serving works, attach and mount do not" };
    Finding::new("root", ok, detail).remedy("sudo cdp attach VOLUME").optional()
}

fn fuse() -> Finding {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Finding::new("FUSE", false, "/dev/fuse is not there: attach and mount need it")
            .remedy("modprobe fuse");
    }
    if let Err(error) = File::options().read(true).write(true).open(device) {
        return Finding::new("FUSE", false, format!("/dev/fuse cannot be opened: {error}"))
            .remedy("sudo chmod 0666 /dev/fuse");
    }
    let helper = command::find("fusermount3").is_some();
    let detail = if helper { "/dev/fuse and fusermount3 are there" } else { "fusermount3 is not installed" };
    Finding::new("FUSE", helper, detail).remedy(install_line(["fuse3"]))
}

fn loop_devices() -> Finding {
    let device = Path::new("/dev/loop-control");
    if !device.exists() {
        let detail = "/dev/loop-control is not there: attach and mount need it";
        return Finding::new("loop devices", false, detail).remedy("modprobe loop");
    }
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Finding::new("loop devices", true, "/dev/loop-control can be opened"),
        Err(error) => Finding::new("loop devices", false, format!("/dev/loop-control: {error}"))
            .remedy("sudo cdp doctor"),
    }
}

fn kernel_nbd() -> Finding {
    let ok = Path::new("/dev/nbd0").exists();
    let detail = if ok {
        "/dev/nbd0 is there"
    } else {
        "no /dev/nbd0: attach goes through FUSE and loop, which is slower"
    };
    Finding::new("kernel NBD client", ok, detail).remedy("modprobe nbd").optional()
}

fn io_uring() -> Finding {
    let name = "io_uring";
    let Err(error) = Uring::probe() else {
        return Finding::new(name, true, "a ring can be set up").optional();
    };
    let slower = format!("refused ({error}): plain reads and writes are used instead, which is slower");
    let finding = Finding::new(name, false, slower).optional();
    // 1 and 2 forbid it; 0 or no such file means that a container's seccomp filter does.
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match setting.trim() {
        "1" | "2" => finding.remedy("sysctl kernel.io_uring_disabled=0"),
        _ => finding,
    }
}

fn clients() -> Vec<Finding> {
    let look = |client: &crate::host::clients::Client| {
        let found = command::find(client.program);
        let detail = match &found {
            Some(path) => format!("{} ({})", path.display(), client.purpose),
            None => format!("not installed ({})", client.purpose),
        };
        let finding =
            Finding::new(client.program, found.is_some(), detail).remedy(install_line([client.package]));
        if client.needed { finding } else { finding.optional() }
    };
    CLIENTS.iter().map(look).collect()
}

/// Points are wall time: a clock that drifts makes `@10:03` mean something else than the user's watch says.
fn clock() -> Finding {
    let name = "clock synchronisation";
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Finding::new(name, true, "systemd-timesyncd has set the clock");
    }
    let property = ["show", "--property=NTPSynchronized", "--value"];
    if command::run_within("timedatectl", property, CLOCK_PATIENCE).is_ok_and(|answer| answer.trim() == "yes")
    {
        return Finding::new(name, true, "timedatectl says that the clock is synchronised");
    }
    if let Some(service) = running(&CLOCK_SERVICES) {
        let detail = format!("{service} runs, but nobody confirms that the clock is set yet");
        return Finding::new(name, true, detail);
    }
    Finding::new(name, false, "no service sets the clock: points in wall time are only as good as it is")
        .remedy("apt-get install -y --no-install-recommends chrony")
        .optional()
}

fn running(names: &[&'static str]) -> Option<&'static str> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let mut found =
        entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    found.find_map(|comm| names.iter().find(|name| **name == comm.trim()).copied())
}

fn shared_memory() -> Finding {
    let dir = Path::new("/dev/shm");
    match rustix::fs::statvfs(dir) {
        Ok(space) => {
            let bytes = space.f_blocks.saturating_mul(space.f_frsize);
            let detail = format!("{} MiB at /dev/shm", bytes >> 20);
            Finding::new("shared memory", bytes >= SHM_BYTES_MIN, detail)
                .remedy("mount -o remount,size=1G /dev/shm")
        }
        Err(error) => Finding::new("shared memory", false, format!("/dev/shm: {error}"))
            .remedy("mount -t tmpfs -o size=1G tmpfs /dev/shm"),
    }
    .optional()
}

fn free_space(store: &Path) -> Finding {
    // The store may not be made yet: then where it would be.
    let existing = store.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(existing) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let total = space.f_blocks.saturating_mul(space.f_frsize);
            let detail = format!("{} of {} MiB free at {}", free >> 20, total >> 20, existing.display());
            Finding::new("free space", free >= FREE_BYTES_MIN, detail)
        }
        Err(error) => Finding::new("free space", false, format!("{}: {error}", existing.display())),
    }
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    // The server raises its soft limit to the hard one; none at all is the best.
    let ok = limit.maximum.is_none_or(|hard| hard >= OPEN_FILES_MIN);
    let shown = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
    let detail = format!("{} now, {} at most", shown(limit.current), shown(limit.maximum));
    Finding::new("open files", ok, detail).remedy(format!("ulimit -Hn {OPEN_FILES_MIN}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // A finding without a way out leaves the user where they were.
    #[test]
    fn what_is_missing_comes_with_a_line_and_what_is_there_without() {
        let findings = diagnose(Path::new("/surely/not/made/yet"));
        for finding in &findings {
            assert!(!finding.ok || finding.remedy_line.is_none(), "{finding:?}");
            assert!(!finding.detail.is_empty(), "{finding:?}");
        }
        for name in
            ["FUSE", "loop devices", "io_uring", "nbdinfo", "nbdcopy", "nbdfuse", "clock synchronisation"]
        {
            assert!(findings.iter().any(|finding| finding.name == name), "{name} was not looked at");
        }
    }

    // One line for everything: nobody wants to run apt ten times.
    #[test]
    fn one_line_installs_all_that_is_missing() {
        let missing = |name: &str| Finding::new(name, false, "not installed");
        let line = install_all(&[missing("nbdinfo"), missing("nbdcopy"), missing("nbdkit")]).unwrap();
        assert!(line.ends_with("libnbd-bin nbdkit"), "{line}");
        assert_eq!(install_all(&[Finding::new("nbdinfo", true, "there")]), None);
    }
}
