//! Loop devices: making one from a file, finding it again by that file, giving it back.

use crate::host::command::{self, wait_until};
use crate::host::partitions::Partition;
use cdp_core::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may take to let go of a loop device.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// Makes a loop device of a file, with its partitions. Direct: what the loop device answered is with the file's
/// server, and no second copy of it fills the page cache.
pub fn create(file: &Path, read_only: bool) -> Result<PathBuf> {
    let mut arguments: Vec<&OsStr> =
        ["--find", "--show", "--partscan", "--direct-io=on"].map(OsStr::new).to_vec();
    if read_only {
        arguments.push("--read-only".as_ref());
    }
    arguments.push(file.as_os_str());
    let device = command::run("losetup", arguments)?;
    Ok(PathBuf::from(device.trim()))
}

/// Makes a loop device of one partition of a file: for kernels that do not read its table.
pub fn create_partition(file: &Path, partition: Partition, read_only: bool) -> Result<PathBuf> {
    let window = [format!("--offset={}", partition.start), format!("--sizelimit={}", partition.bytes)];
    let mut arguments: Vec<&OsStr> = ["--find", "--show", "--direct-io=on"].map(OsStr::new).to_vec();
    arguments.extend(window.iter().map(OsStr::new));
    if read_only {
        arguments.push("--read-only".as_ref());
    }
    arguments.push(file.as_os_str());
    let device = command::run("losetup", arguments)?;
    Ok(PathBuf::from(device.trim()))
}

/// Every loop device that stands on this file, also when the file is gone by now.
pub fn find(file: &Path) -> Vec<PathBuf> {
    let gone = format!("{} (deleted)", file.display());
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with("loop"))
        .filter(|name| {
            let backing = format!("/sys/block/{name}/loop/backing_file");
            std::fs::read_to_string(backing).is_ok_and(|text| {
                let text = text.trim_end_matches('\n');
                Path::new(text) == file || text == gone
            })
        })
        .map(|name| Path::new("/dev").join(name))
        .collect()
}

/// Gives every loop device on this file back; `Busy` while somebody still has one open.
pub fn remove(file: &Path) -> Result<()> {
    for device in find(file) {
        command::run("losetup", [OsStr::new("--detach"), device.as_os_str()])?;
    }
    if wait_until(RELEASE_PATIENCE, || find(file).is_empty()) {
        return Ok(());
    }
    let held = find(file).first().map(|device| device.display().to_string()).unwrap_or_default();
    let error = Error::new(Kind::Busy, format!("{held} is still open in a program"));
    Err(error.hint(format!("see which: fuser -v {held}")))
}
