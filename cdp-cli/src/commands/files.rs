//! `cdp ls`, `cdp cat` and `cdp cp`: files out of a view, without mounting it.

use std::io::Write;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::format_utc;
use cdp_core::ids::Timestamp;
use serde::Serialize;

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::files::contain::Contained;
use crate::files::copy::{CopyOptions, copy};
use crate::files::table::{self, Slot};
use crate::files::target::FileTarget;
use crate::files::{self, Entry, EntryKind, shown, walk};
use crate::reach::Reach;
use crate::report;
use crate::units::size;
use crate::work::{PointInfo, Progress};

/// The most bytes of a file that `cat --json` shows.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// An entry as `--json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct EntryLine {
    /// Where it is, from the root of its filesystem.
    pub path: String,
    /// file, directory, symlink or special.
    pub kind: &'static str,
    /// What a special one is: pipe, socket, block device, character device, reparse point.
    pub special: Option<&'static str>,
    /// Length of its content.
    pub bytes: u64,
    /// Permission bits in octal, where there are any.
    pub mode: Option<String>,
    /// User and group, where there are any.
    pub owner: Option<(u32, u32)>,
    /// When its content was changed, RFC 3339 in UTC.
    pub modified: Option<String>,
    /// The text of a link.
    pub link: Option<String>,
}

impl EntryLine {
    /// Of an entry at a path.
    pub fn new(path: &files::Names, entry: &Entry) -> EntryLine {
        let (kind, link) = match &entry.kind {
            EntryKind::File => ("file", None),
            EntryKind::Directory => ("directory", None),
            EntryKind::Symlink(text) => ("symlink", Some(String::from_utf8_lossy(text).into_owned())),
            EntryKind::Special(_) => ("special", None),
        };
        let special = match entry.kind {
            EntryKind::Special(what) => Some(what),
            _ => None,
        };
        EntryLine {
            path: shown(path),
            kind,
            special,
            bytes: entry.bytes,
            mode: entry.mode.map(|mode| format!("{mode:04o}")),
            owner: entry.owner,
            modified: entry
                .modified_ns
                .and_then(|ns| u64::try_from(ns).ok())
                .map(|ns| format_utc(Timestamp(ns))),
            link,
        }
    }
}

/// A view of one volume at one point, opened.
pub struct Past {
    /// Which.
    pub point: PointInfo,
    /// What the user called it.
    pub what: String,
    slots: Vec<Slot>,
    disk: files::disk::Disk,
}

impl Past {
    /// Opens it and looks what is on it.
    pub fn open(reach: &mut Reach, target: &FileTarget) -> Result<Past> {
        let point = reach.point(&target.disk)?;
        let disk = reach.disk(&point.export)?;
        let slots = table::read(&disk)?;
        let what = match target.disk.contains('@') {
            true => target.disk.clone(),
            false => format!("{}@latest", target.disk),
        };
        Ok(Past { point, what, slots, disk })
    }

    /// The filesystem that is meant.
    pub fn tree(&self, partition: Option<u32>) -> Result<Contained> {
        files::open(&self.disk, table::choose(&self.slots, partition, &self.what)?)
    }
}

/// Opens the store, works, and closes it whatever came of it.
pub fn within<T>(context: &Context, work: impl FnOnce(&mut Reach) -> Result<T>) -> Result<T> {
    let mut reach = Reach::open(&context.config)?;
    let done = work(&mut reach);
    let closed = reach.close();
    let done = done?;
    closed.map(|()| done)
}

/// `cdp ls`.
pub fn ls(context: &Context, arguments: &cli::Ls) -> Result<u8> {
    let target = FileTarget::parse(&arguments.target)?;
    within(context, |reach| {
        let past = Past::open(reach, &target)?;
        point::tell([&past.point]);
        let Some(path) = &target.path else {
            let slots: Vec<_> = past.slots.iter().map(slot_json).collect();
            context.show(&serde_json::json!({ "point": past.point, "disk": slots }), || {
                slots_text(&past.what, &past.slots)
            });
            return Ok(report::DONE);
        };
        let mut tree = past.tree(arguments.partition)?;
        let (path, entry) = walk::follow(&mut tree, path)?;
        let mut found = Vec::new();
        match entry.is_dir() {
            true if arguments.recursive => walk::each_below(&mut tree, &path, &mut |path, entry| {
                found.push((path.to_vec(), entry.clone()));
                if found.len() > files::ENTRIES_MAX {
                    let context = format!("there are more than {} files", files::ENTRIES_MAX);
                    return Err(Error::new(Kind::Invalid, context).hint("list a directory of it"));
                }
                Ok(())
            })?,
            true => found.extend(tree.list(&path)?.into_iter().map(|entry| {
                let path = [&path[..], std::slice::from_ref(&entry.name)].concat();
                (path, entry)
            })),
            false => found.push((path.clone(), entry)),
        }
        let lines: Vec<EntryLine> = found.iter().map(|(path, entry)| EntryLine::new(path, entry)).collect();
        let json = serde_json::json!({
            "point": past.point, "filesystem": tree.kind(), "path": shown(&path), "entries": lines,
        });
        let name = |(path, entry): &(Vec<Vec<u8>>, Entry)| match arguments.recursive {
            true => printable(&shown(path)),
            false => printable(&entry.shown()),
        };
        context.show(&json, || match arguments.long {
            true => long(&lines, &found.iter().map(name).collect::<Vec<_>>()),
            false => found.iter().map(name).collect::<Vec<_>>().join("\n"),
        });
        Ok(report::DONE)
    })
}

/// Control characters of a name would be commands to the terminal.
pub fn printable(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_unicode().collect(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

fn slot_json(slot: &Slot) -> serde_json::Value {
    serde_json::json!({
        "partition": slot.partition, "start": slot.start, "bytes": slot.bytes,
        "holds": slot.holds.to_string(), "readable": slot.holds.is_readable(),
    })
}

fn slots_text(what: &str, slots: &[Slot]) -> String {
    let line = |slot: &Slot| {
        let place =
            slot.partition.map_or("the whole disk".to_owned(), |number| format!("partition {number}"));
        let flag = slot.partition.map(|number| format!(" --partition {number}")).unwrap_or_default();
        let how = match &slot.holds {
            holds if holds.is_readable() => format!("cdp ls{flag} {what}:/"),
            files::table::Holds::Mountable(_) => format!("cdp mount{flag} {what} DIR"),
            _ => String::new(),
        };
        format!("{place:16} {:>10}  {:24} {how}", size(slot.bytes), slot.holds.to_string())
            .trim_end()
            .to_owned()
    };
    match slots {
        [] => "a partition table without partitions".to_owned(),
        slots => slots.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

fn long(lines: &[EntryLine], names: &[String]) -> String {
    let width = lines.iter().map(|line| line.bytes.to_string().len()).max().unwrap_or(0);
    let owner =
        |line: &EntryLine| line.owner.map(|(user, group)| format!("{user}:{group}")).unwrap_or_default();
    let owners = lines.iter().map(|line| owner(line).len()).max().unwrap_or(0);
    let one = |(line, name): (&EntryLine, &String)| {
        let kind = match (line.kind, line.special) {
            ("directory", _) => 'd',
            ("symlink", _) => 'l',
            (_, Some("pipe")) => 'p',
            (_, Some("socket")) => 's',
            (_, Some("block device")) => 'b',
            (_, Some("character device")) => 'c',
            (_, Some(_)) => '?',
            _ => '-',
        };
        let mode = line.mode.as_deref().and_then(|mode| u16::from_str_radix(mode, 8).ok());
        let mode = mode.map_or("---------".to_owned(), permissions);
        let time = line.modified.as_deref().unwrap_or("-");
        let time: String = time.chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect();
        let link = line.link.as_deref().map(|link| format!(" -> {}", printable(link))).unwrap_or_default();
        format!("{kind}{mode} {:owners$} {:>width$} {time:19} {name}{link}", owner(line), line.bytes)
    };
    lines.iter().zip(names).map(one).collect::<Vec<_>>().join("\n")
}

/// As `ls -l` of coreutils has them, with set-user-id, set-group-id and sticky bits.
fn permissions(mode: u16) -> String {
    let bit = |n: u16| mode >> n & 1 == 1;
    let letter = |n: u16| match (n % 3, bit(n)) {
        // Execution by its class, and the special bit that stands in the same place.
        (0, is_set) => match (bit(9 + n / 3), is_set, if n == 0 { 't' } else { 's' }) {
            (true, true, special) => special,
            (true, false, special) => special.to_ascii_uppercase(),
            (false, true, _) => 'x',
            (false, false, _) => '-',
        },
        (_, false) => '-',
        (1, true) => 'w',
        (_, true) => 'r',
    };
    (0..9).rev().map(letter).collect()
}

/// `cdp cat`.
pub fn cat(context: &Context, arguments: &cli::Cat) -> Result<u8> {
    let target = FileTarget::parse(&arguments.target)?;
    let path = target.need_path()?;
    within(context, |reach| {
        let past = Past::open(reach, &target)?;
        point::tell([&past.point]);
        let mut tree = past.tree(arguments.partition)?;
        let (path, entry) = file(&mut tree, path)?;
        if context.json {
            return cat_json(&past.point, &mut tree, &path, &entry);
        }
        let mut out = std::io::stdout().lock();
        let mut gone = false;
        let read = tree.read(&path, &mut |bytes| match out.write_all(bytes) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                gone = true;
                Err(Error::new(Kind::Closed, "nobody reads"))
            }
            written => written.at(|| "writing to standard output".to_owned()),
        });
        match read {
            Err(_) if gone => Ok(report::DONE),
            other => other.map(|()| report::DONE),
        }
    })
}

fn file(tree: &mut Contained, path: &files::Names) -> Result<(Vec<Vec<u8>>, Entry)> {
    let (path, entry) = walk::follow(tree, path)?;
    match entry.kind {
        EntryKind::File => Ok((path, entry)),
        _ => Err(Error::new(Kind::Invalid, format!("{} is not a regular file", shown(&path)))),
    }
}

fn cat_json(point: &PointInfo, tree: &mut Contained, path: &files::Names, entry: &Entry) -> Result<u8> {
    let mut text = Vec::new();
    let mut hash = blake3::Hasher::new();
    tree.read(path, &mut |bytes| {
        hash.update(bytes);
        if text.len() <= TEXT_BYTES_MAX {
            text.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    let text = String::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX);
    report::print_json(&serde_json::json!({
        "point": point, "entry": EntryLine::new(path, entry),
        "blake3": hash.finalize().to_hex().as_str(), "text": text,
    }));
    Ok(report::DONE)
}

/// `cdp cp`.
pub fn cp(context: &Context, arguments: &cli::Cp) -> Result<u8> {
    let target = FileTarget::parse(&arguments.source)?;
    let path = target.need_path()?;
    within(context, |reach| {
        let past = Past::open(reach, &target)?;
        point::tell([&past.point]);
        let mut tree = past.tree(arguments.partition)?;
        let name = path.last().cloned();
        let (path, mut entry) = walk::follow(&mut tree, path)?;
        // A link that was named itself stands for what it means, under its own name.
        entry.name = name.unwrap_or_default();
        let total = entry.bytes;
        let bar = Bar::default();
        let options = CopyOptions {
            recursive: arguments.recursive,
            force: arguments.force,
            owners: rustix::process::geteuid().is_root() && !arguments.no_owners,
        };
        let copied = copy(&mut tree, &path, &entry, &arguments.target, options, &mut |done| {
            bar.show(Progress { what: "copying".to_owned(), done, total: total.max(done) });
            Ok(())
        });
        bar.clear();
        let copied = copied?;
        for problem in &copied.problems {
            report::say(&format!("cdp: {}", printable(problem)));
        }
        let json = serde_json::json!({ "point": past.point, "target": arguments.target, "copied": copied });
        context.show(&json, || {
            let count = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
            let mut parts = vec![count(copied.files, "file", "files")];
            if copied.directories > 0 {
                parts.push(count(copied.directories, "directory", "directories"));
            }
            if copied.symlinks > 0 {
                parts.push(count(copied.symlinks, "link", "links"));
            }
            format!("{}: {}, {}", arguments.target.display(), parts.join(", "), size(copied.bytes))
        });
        Ok(if copied.problems.is_empty() { report::DONE } else { report::FAILED })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Whoever looks for the day on which a shell became set-user-id has to see it.
    #[test]
    fn modes_read_as_they_do_in_ls() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2640, "rw-r-S---"),
            (0o2711, "rwx--s--x"),
            (0o4644, "rwSr--r--"),
            (0o1777, "rwxrwxrwt"),
            (0o1770, "rwxrwx--T"),
            (0, "---------"),
        ] {
            assert_eq!(permissions(mode), text, "{mode:o}");
        }
    }
}
