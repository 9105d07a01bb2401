//! Mounts: what is mounted where (mountinfo), mounting and unmounting.

use crate::host::command::{self, outcome};
use crate::host::superblock::Filesystem;
use cdp_core::error::{Error, IoContext, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Exit code of mount(8): "mount failure".
const NOT_MOUNTED: i32 = 32;

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// The filesystem's name.
    pub filesystem: String,
    /// What is mounted: for a disk filesystem, a device.
    pub source: PathBuf,
}

/// Everything that is mounted in our namespace, oldest first.
pub fn list() -> Result<Vec<Mount>> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(file).at(|| format!("cannot read {file}"))?;
    Ok(text.lines().filter_map(parse_line).collect())
}

fn parse_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let dir = unescape(front.split(' ').nth(4)?);
    let mut back = back.split(' ');
    let filesystem = back.next()?.to_owned();
    let source = unescape(back.next()?);
    Some(Mount { dir: dir.into(), filesystem, source: source.into() })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(text: &str) -> OsString {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Whether something is mounted exactly here.
pub fn is_mountpoint(dir: &Path) -> Result<bool> {
    Ok(list()?.iter().any(|mount| mount.dir == dir))
}

/// Mounts of a device and of its partitions.
pub fn of_device(device: &Path) -> Result<Vec<Mount>> {
    let name = device.to_string_lossy().into_owned();
    let is_it = |source: &Path| {
        let source = source.to_string_lossy();
        match source.strip_prefix(name.as_str()) {
            Some("") => true,
            Some(rest) => {
                rest.strip_prefix('p').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            }
            None => false,
        }
    };
    Ok(list()?.into_iter().filter(|mount| is_it(&mount.source)).collect())
}

/// Mounts a filesystem of a known kind; `options` are joined by commas.
pub fn mount(device: &Path, dir: &Path, filesystem: &Filesystem, options: &[String]) -> Result<()> {
    let mut arguments: Vec<&OsStr> = vec!["-t".as_ref(), filesystem.mount_name().as_ref()];
    let joined = options.join(",");
    if !joined.is_empty() {
        arguments.extend(["-o".as_ref(), OsStr::new(&joined)]);
    }
    arguments.extend([device.as_os_str(), dir.as_os_str()]);
    let arguments: Vec<OsString> = arguments.into_iter().map(OsStr::to_owned).collect();
    let outcome = outcome("mount", &arguments, command::PATIENCE)?;
    if outcome.status.success() {
        return Ok(());
    }
    // It is mount(8) that could not mount this, not something around it.
    let kind = if outcome.status.code() == Some(NOT_MOUNTED) { Kind::Damaged } else { Kind::Io };
    let context = format!("mount {} failed ({}): {}", device.display(), outcome.status, outcome.stderr);
    Err(Error::new(kind, context))
}

/// Unmounts; `Busy` with a hint when files in there are still open.
pub fn unmount(dir: &Path) -> Result<()> {
    let outcome = outcome("umount", &[dir.as_os_str().to_owned()], command::PATIENCE)?;
    if outcome.status.success() || !is_mountpoint(dir)? {
        return Ok(());
    }
    let error = Error::new(Kind::Busy, format!("cannot unmount {}: {}", dir.display(), outcome.stderr));
    Err(error.hint(format!("see who uses it: fuser -vm {}", dir.display())))
}

/// Takes a mount out of the tree even if it is busy; the kernel lets go of it when its last user does.
pub fn unmount_lazily(dir: &Path) -> Result<()> {
    command::run("umount", [OsStr::new("-l"), dir.as_os_str()]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    // A mount point with a space in its name would never be found again, and its device never be given back.
    #[test]
    fn mountinfo_lines_are_read_with_escapes_and_optional_fields() {
        let line = r"36 35 98:0 /mnt1 /mnt/my\040disk rw,noatime master:1 - ext4 /dev/loop3p1 rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.dir, Path::new("/mnt/my disk"));
        assert_eq!((mount.filesystem.as_str(), mount.source.as_path()), ("ext4", Path::new("/dev/loop3p1")));
        assert_eq!(unescape(r"back\134slash\"), r"back\slash\");
        assert_eq!(parse_line("garbage"), None);
    }

    // /dev/loop1 and /dev/loop12 are different disks.
    #[test]
    fn the_root_is_mounted_and_found() {
        assert!(is_mountpoint(Path::new("/")).unwrap());
        assert!(of_device(Path::new("/dev/does-not-exist")).unwrap().is_empty());
    }
}
