//! Copying out of an image to the filesystem of this machine.
//!
//! The image may have been made to do harm: every name is checked, every directory is held open and entered
//! without following links, so nothing is written outside of the target; links are made, never followed; set-uid
//! bits are left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cdp_core::error::{Error, IoContext, Kind, Result};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use serde::Serialize;

use super::contain::Contained;
use super::{DEPTH_MAX, Entry, EntryKind, Names, shown};

/// Permission bits that are copied.
const MODE_MASK: u16 = 0o777;
/// What a file gets where the filesystem knows no permissions.
const MODE_FILE: u16 = 0o644;
/// The same for a directory.
const MODE_DIRECTORY: u16 = 0o755;
/// Zeros of this length are left out: a hole.
const HOLE_BYTES: usize = 4096;

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What could not be copied, with the reason.
    pub problems: Vec<String>,
}

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Directories with all that is in them.
    pub recursive: bool,
    /// Replace what is there.
    pub force: bool,
    /// Give what is copied the owners that it has there. Only root may.
    pub owners: bool,
}

/// Copies the file or directory at `path` to `target`, or into it if that is a directory. Trouble with a single
/// file of a directory is noted, and the others go on; `watch` is told the bytes so far.
pub fn copy(
    tree: &mut Contained,
    path: &Names,
    entry: &Entry,
    target: &Path,
    options: CopyOptions,
    watch: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Copied> {
    if entry.is_dir() && !options.recursive {
        return Err(Error::new(Kind::Invalid, format!("{} is a directory", shown(path)))
            .hint("-r copies it with all that is in it"));
    }
    if let EntryKind::Special(what) = entry.kind {
        let context = format!("{} is a {what} and has no content", shown(path));
        return Err(Error::new(Kind::Invalid, context));
    }
    let into = target.is_dir() && !path.is_empty();
    let (dir, name) = if into {
        (target, OsStr::from_bytes(&entry.name))
    } else if target.is_dir() || target.file_name().is_none() {
        // The root has no name: its content goes into a directory that is named.
        let context = format!("{} is there already", target.display());
        if !options.force {
            return Err(
                Error::new(Kind::Exists, context).hint("name a new directory, or --force to add to it")
            );
        }
        (target, OsStr::new("."))
    } else {
        let parent = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")), target.file_name().unwrap_or_default())
    };
    // The user's own path may go through links: it is the user's.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir, flags, Mode::empty());
    let dir =
        dir.map_err(std::io::Error::from).at(|| format!("opening the directory for {}", target.display()))?;
    let mut work = Work { tree, options, copied: Copied::default(), watch, ownerless: false };
    let entry = Entry { name: name.as_bytes().to_vec(), ..entry.clone() };
    work.one(dir.as_fd(), path, &entry)?;
    Ok(work.copied)
}

struct Work<'a> {
    tree: &'a mut Contained,
    options: CopyOptions,
    copied: Copied,
    watch: &'a mut dyn FnMut(u64) -> Result<()>,
    /// An owner could not be kept, and that was said.
    ownerless: bool,
}

impl Work<'_> {
    fn one(&mut self, dir: BorrowedFd<'_>, path: &Names, entry: &Entry) -> Result<()> {
        match &entry.kind {
            EntryKind::File => self.file(dir, path, entry),
            EntryKind::Directory => self.directory(dir, path, entry),
            EntryKind::Symlink(text) => self.symlink(dir, path, entry, text),
            EntryKind::Special(what) => {
                self.copied.problems.push(format!("{}: a {what} is left out", shown(path)));
                Ok(())
            }
        }
    }

    /// Whose it is to be; nobody's that the kernel does not know.
    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        let (user, group) = entry.owner.filter(|_| self.options.owners)?;
        let is_somebody = user != u32::MAX && group != u32::MAX;
        is_somebody.then(|| (Uid::from_raw(user), Gid::from_raw(group)))
    }

    /// Not every filesystem has owners: the content is worth more, and the first one is named.
    fn note_owner(&mut self, path: &Names, outcome: rustix::io::Result<()>) {
        if let (Err(error), false) = (outcome, self.ownerless) {
            self.ownerless = true;
            self.copied.problems.push(format!("{}: its owner cannot be kept here: {error}", shown(path)));
        }
    }

    fn refuse_if_there(&self, dir: BorrowedFd<'_>, path: &Names, name: &OsStr) -> Result<()> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(std::io::Error::from(error)).at(|| format!("looking for {}", shown(path))),
            Ok(found) => {
                let there = format!("{} is there already", name.display());
                if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
                    return Err(Error::new(Kind::Exists, format!("{there}, and it is a directory")));
                }
                match self.options.force {
                    true => Ok(()),
                    false => Err(Error::new(Kind::Exists, there).hint("--force replaces it")),
                }
            }
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, path: &Names, entry: &Entry) -> Result<()> {
        let name = OsStr::from_bytes(&entry.name);
        self.refuse_if_there(dir, path, name)?;
        let place = || format!("writing {}", shown(path));
        // Whole under its name or not at all.
        let draft = format!(".cdp-cp-{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, &draft, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(std::io::Error::from).at(place)?);
        let written = self.content(&file, path, entry);
        let named = written.and_then(|bytes| {
            if let Some((user, group)) = self.owner(entry) {
                self.note_owner(path, rustix::fs::fchown(&file, Some(user), Some(group)));
            }
            let mode = entry.mode.unwrap_or(MODE_FILE) & MODE_MASK;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode.into()))
                .map_err(std::io::Error::from)
                .at(place)?;
            if let Some(times) = times(entry) {
                rustix::fs::futimens(&file, &times).map_err(std::io::Error::from).at(place)?;
            }
            rustix::fs::renameat(dir, &draft, dir, name).map_err(std::io::Error::from).at(place)?;
            Ok(bytes)
        });
        match named {
            Ok(bytes) => {
                self.copied.files += 1;
                self.copied.bytes += bytes;
                Ok(())
            }
            Err(error) => {
                let _ = rustix::fs::unlinkat(dir, &draft, AtFlags::empty());
                Err(error)
            }
        }
    }

    fn content(&mut self, file: &File, path: &Names, entry: &Entry) -> Result<u64> {
        let place = || format!("writing {}", shown(path));
        let mut at = 0;
        let (before, watch) = (self.copied.bytes, &mut *self.watch);
        self.tree.read(path, &mut |bytes| {
            for part in bytes.chunks(HOLE_BYTES) {
                if part.iter().any(|&byte| byte != 0) {
                    file.write_all_at(part, at).at(place)?;
                }
                at += part.len() as u64;
            }
            watch(before + at)
        })?;
        file.set_len(at).at(place)?;
        if at != entry.bytes {
            let context = format!("{} has {at} bytes and should have {}", shown(path), entry.bytes);
            return Err(Error::new(Kind::Damaged, context));
        }
        Ok(at)
    }

    fn symlink(&mut self, dir: BorrowedFd<'_>, path: &Names, entry: &Entry, text: &[u8]) -> Result<()> {
        let name = OsStr::from_bytes(&entry.name);
        self.refuse_if_there(dir, path, name)?;
        let place = || format!("making the link {}", shown(path));
        if self.options.force {
            // What stays in the way fails the next call.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        let made = rustix::fs::symlinkat(OsStr::from_bytes(text), dir, name);
        made.map_err(std::io::Error::from).at(place)?;
        if let Some((user, group)) = self.owner(entry) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            self.note_owner(path, rustix::fs::chownat(dir, name, Some(user), Some(group), flags));
        }
        if let Some(times) = times(entry) {
            // Not every filesystem keeps times of links.
            let _ = rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        self.copied.symlinks += 1;
        Ok(())
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &Names, entry: &Entry) -> Result<()> {
        if path.len() > DEPTH_MAX {
            let context = format!("{} lies deeper than {DEPTH_MAX} directories", shown(path));
            return Err(Error::new(Kind::Invalid, context));
        }
        let name = OsStr::from_bytes(&entry.name);
        let place = || format!("making the directory {}", shown(path));
        match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if self.options.force => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(Error::new(Kind::Exists, format!("{} is there already", name.display()))
                    .hint("--force adds to it"));
            }
            Err(error) => return Err(std::io::Error::from(error)).at(place),
        }
        // A link in its place, of the image or of anybody, is not entered.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made: OwnedFd =
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(std::io::Error::from).at(place)?;
        for below in self.tree.list(path)? {
            let mut at = path.to_vec();
            at.push(below.name.clone());
            let done = check_name(&below.name).and_then(|()| self.one(made.as_fd(), &at, &below));
            match done {
                Ok(()) => {}
                // These end everything: the target is full, or somebody said stop.
                Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::Closed) => return Err(error),
                Err(error) => self.copied.problems.push(error.to_string()),
            }
        }
        // Last of all: until then nobody but us can enter it.
        if let Some((user, group)) = self.owner(entry) {
            self.note_owner(path, rustix::fs::fchown(&made, Some(user), Some(group)));
        }
        let mode = entry.mode.unwrap_or(MODE_DIRECTORY) & MODE_MASK;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode.into()))
            .map_err(std::io::Error::from)
            .at(place)?;
        if let Some(times) = times(entry) {
            rustix::fs::futimens(&made, &times).map_err(std::io::Error::from).at(place)?;
        }
        self.copied.directories += 1;
        Ok(())
    }
}

/// A name that stays in its directory.
fn check_name(name: &[u8]) -> Result<()> {
    let strange = matches!(name, b"" | b"." | b"..") || name.iter().any(|&byte| byte == b'/' || byte == 0);
    match strange {
        true => Err(Error::new(Kind::Damaged, format!("{:?} is no name", String::from_utf8_lossy(name)))),
        false => Ok(()),
    }
}

fn times(entry: &Entry) -> Option<Timestamps> {
    let ns = entry.modified_ns?;
    let seconds = i64::try_from(ns.div_euclid(1_000_000_000)).ok()?;
    let nanoseconds = ns.rem_euclid(1_000_000_000) as i64;
    let modified = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Some(Timestamps { last_access: modified, last_modification: modified })
}
