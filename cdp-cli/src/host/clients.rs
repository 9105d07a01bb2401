//! Which stock program comes in which Debian package.

use cdp_core::error::{Error, Kind};

/// A program that users or we ourselves run, and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Name of the executable.
    pub program: &'static str,
    /// The Debian package that holds it.
    pub package: &'static str,
    /// What it is wanted for.
    pub purpose: &'static str,
    /// Whether `attach` and `mount` cannot do without it.
    pub needed: bool,
}

const fn client(program: &'static str, package: &'static str, purpose: &'static str, needed: bool) -> Client {
    Client { program, package, purpose, needed }
}

/// Every outside program that is used or recommended.
pub const CLIENTS: &[Client] = &[
    client("nbdfuse", "libnbd-bin", "attach: an export as a file", true),
    client("nbdinfo", "libnbd-bin", "look at an export", true),
    client("nbdcopy", "libnbd-bin", "copy an export", false),
    client("nbdkit", "nbdkit", "attach: wait for a server that restarts", true),
    client("fusermount3", "fuse3", "detach: give a FUSE mount back", true),
    client("losetup", "mount", "attach: a block device from a file", true),
    client("mount", "mount", "mount a filesystem", true),
    client("setsid", "util-linux", "attach: leave the terminal", true),
    client("qemu-img", "qemu-utils", "restore to qcow2, vmdk, vhdx; convert and compare images", false),
    client(
        "qemu-nbd",
        "qemu-utils",
        "create from qcow2, vmdk, vhdx; attach by the kernel's NBD client",
        false,
    ),
    client("qemu-io", "qemu-utils", "single reads and writes by hand", false),
    client("nbd-client", "nbd-client", "attach where the kernel has an NBD client", false),
    client("mkfs.ext4", "e2fsprogs", "make an ext4 filesystem", false),
    client("mkfs.xfs", "xfsprogs", "make an XFS filesystem", false),
    client("mkfs.btrfs", "btrfs-progs", "make a btrfs filesystem", false),
];

/// The line that installs these packages, each named once.
pub fn install_line<'a>(packages: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = packages.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    // Without recommendations: they pull in hundreds of megabytes, and qemu's extra block drivers clash.
    format!("apt-get install -y --no-install-recommends {}", names.join(" "))
}

/// The error for a program that is not there, with the line that installs it where we know it.
pub fn missing(program: &str) -> Error {
    let error = Error::new(Kind::NotFound, format!("the program `{program}` is not installed"));
    match CLIENTS.iter().find(|client| client.program == program) {
        Some(client) => error.hint(install_line([client.package])),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Somebody copies the line at 3 a.m.: a package named twice or an unknown one would make them doubt it.
    #[test]
    fn the_remedy_names_each_package_once() {
        let line = install_line(["nbdkit", "libnbd-bin", "libnbd-bin"]);
        assert_eq!(line, "apt-get install -y --no-install-recommends libnbd-bin nbdkit");
        assert!(missing("nbdfuse").hint_text().is_some_and(|hint| hint.ends_with("libnbd-bin")));
        assert!(missing("no-such-program").hint_text().is_none());
    }
}
