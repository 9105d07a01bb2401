//! What the machine tells: CPU time of processes, bytes written to a disk, and what machine it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this process.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// User and system time of a process, its threads included, in steps of a clock tick (10 ms). Zero when the
/// process is gone.
pub fn process_cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything but ends at the last parenthesis; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The block device under a directory.
pub struct Disk {
    stat: PathBuf,
}

impl Disk {
    /// The disk that holds `path`; `None` where the filesystem has no block device of its own.
    pub fn under(path: &Path) -> Option<Disk> {
        let device = fs::metadata(path).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        stat.exists().then_some(Disk { stat })
    }

    /// Bytes written since boot, by everybody.
    pub fn bytes_written(&self) -> Option<u64> {
        let stat = fs::read_to_string(&self.stat).ok()?;
        let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
        Some(sectors * 512)
    }
}

/// Which machine this is.
pub struct Machine {
    /// Model of the first CPU.
    pub cpu: String,
    /// CPUs usable.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// Type and source of the filesystem with the devices.
    pub filesystem: String,
    /// Load average before the start.
    pub load: String,
}

impl Machine {
    /// This machine, with devices kept under `path`.
    pub fn here(path: &Path) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Machine {
            cpu: cpu.trim_start_matches([' ', '\t', ':']).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            filesystem: filesystem(path),
            load: load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

/// Type and source of the mount that holds `path`: the longest mount point that is a prefix of it.
fn filesystem(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = (0, "unknown".to_owned());
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [source, point, kind, ..] = fields[..]
            && path.starts_with(point)
            && point.len() >= best.0
        {
            best = (point.len(), format!("{kind} on {source}"));
        }
    }
    best.1
}
