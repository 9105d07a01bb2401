//! Processes that outlive us: whether one is still there, and ending it.

use crate::host::command::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::Duration;

/// How long a process may take to end after it was asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// The number in a pid file, if there is one.
pub fn read_pid(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether this process runs and is the one we started: `needle` stands in its command line. Process numbers are
/// used again, so the number alone proves nothing. A zombie is dead.
pub fn is_ours(pid: u32, needle: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name in parentheses may hold anything; the state follows the last one.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    if matches!(state, None | Some('Z' | 'X')) {
        return false;
    }
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(needle))
}

/// Every process of ours by a text in its command line; also those whose pid file was never written.
pub fn find_ours(needle: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != std::process::id() && is_ours(pid, needle)).collect()
}

/// Asks a process to end, then makes it; `true` when it is gone.
pub fn end(pid: u32, needle: &str) -> bool {
    signal(pid, needle, Signal::TERM);
    if wait_until(PATIENCE, || !is_ours(pid, needle)) {
        return true;
    }
    kill(pid, needle)
}

/// Ends a process without asking; `true` when it is gone.
pub fn kill(pid: u32, needle: &str) -> bool {
    signal(pid, needle, Signal::KILL);
    wait_until(PATIENCE, || !is_ours(pid, needle))
}

fn signal(pid: u32, needle: &str, signal: Signal) {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let (true, Some(target)) = (is_ours(pid, needle), target) {
        // It may have ended in between, which is what is wanted.
        let _ = kill_process(target, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // After a reboot the pid file names somebody else's process: killing it would be a catastrophe.
    #[test]
    fn a_process_with_another_command_line_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("61.25").spawn().unwrap();
        assert!(wait_until(PATIENCE, || is_ours(child.id(), "61.25")));
        end(child.id(), "something else");
        assert!(is_ours(child.id(), "61.25"), "it was killed on another's behalf");
        assert_eq!(find_ours("sleep 61.25"), vec![child.id()]);
        assert!(end(child.id(), "61.25"), "a zombie counts as ended");
        child.wait().unwrap();
    }
}
