//! What is different between the files of two states of a filesystem, told from what the directories and the files'
//! descriptions say; by content too, if that is asked for.

use std::cmp::Ordering;

use cdp_core::error::{Error, Kind, Result};
use serde::Serialize;

use super::contain::Contained;
use super::{DEPTH_MAX, ENTRIES_MAX, Entry, EntryKind, Names, shown};

/// What happened to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// It is only in the second state.
    Created,
    /// It is only in the first state.
    Removed,
    /// It is in both, and not the same.
    Changed,
}

/// A file that is not the same in both states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where it is.
    pub path: Vec<Vec<u8>>,
    /// What happened.
    pub happened: Happened,
    /// In what it is different, if it is in both: kind, size, time, permissions, owner, link, content.
    pub what: Vec<&'static str>,
    /// As it is in the first state.
    pub before: Option<Entry>,
    /// As it is in the second state.
    pub after: Option<Entry>,
}

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// Read files that look the same in both states.
    pub content: bool,
    /// So many entries are looked at, in both states together; more are [`Kind::Invalid`].
    pub entries_max: usize,
}

impl Default for CompareOptions {
    fn default() -> CompareOptions {
        CompareOptions { content: false, entries_max: ENTRIES_MAX }
    }
}

/// Visits what is different under a directory, in the order of names.
pub fn compare(
    before: &mut Contained,
    after: &mut Contained,
    path: &Names,
    options: CompareOptions,
    take: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    Comparison { before, after, options, looked: 0, take }.directory(path, true, true)
}

struct Comparison<'a> {
    before: &'a mut Contained,
    after: &'a mut Contained,
    options: CompareOptions,
    looked: usize,
    take: &'a mut dyn FnMut(Difference) -> Result<()>,
}

impl Comparison<'_> {
    fn directory(&mut self, path: &Names, in_before: bool, in_after: bool) -> Result<()> {
        if path.len() > DEPTH_MAX {
            let context = format!("{} lies deeper than {DEPTH_MAX} directories", shown(path));
            return Err(Error::new(Kind::Invalid, context));
        }
        let old = if in_before { self.before.list(path)? } else { Vec::new() };
        let new = if in_after { self.after.list(path)? } else { Vec::new() };
        self.looked += old.len() + new.len();
        if self.looked > self.options.entries_max {
            let context = format!("there are more than {} files to compare", self.options.entries_max);
            return Err(Error::new(Kind::Invalid, context));
        }
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.name.cmp(&b.name),
            };
            let a = if order.is_le() { old.next() } else { None };
            let b = if order.is_ge() { new.next() } else { None };
            self.pair(path, a, b)?;
        }
    }

    fn pair(&mut self, parent: &Names, before: Option<Entry>, after: Option<Entry>) -> Result<()> {
        let Some(name) = before.as_ref().or(after.as_ref()).map(|entry| entry.name.clone()) else {
            return Ok(());
        };
        let path = [parent, &[name]].concat();
        let is_dir = |entry: &Option<Entry>| entry.as_ref().is_some_and(Entry::is_dir);
        let (dir_before, dir_after) = (is_dir(&before), is_dir(&after));
        let (happened, what) = match (&before, &after) {
            (Some(a), Some(b)) => (Happened::Changed, self.differs(&path, a, b)?),
            (None, _) => (Happened::Created, Vec::new()),
            (_, None) => (Happened::Removed, Vec::new()),
        };
        if happened != Happened::Changed || !what.is_empty() {
            (self.take)(Difference { path: path.clone(), happened, what, before, after })?;
        }
        match dir_before || dir_after {
            true => self.directory(&path, dir_before, dir_after),
            false => Ok(()),
        }
    }

    fn differs(&mut self, path: &Names, a: &Entry, b: &Entry) -> Result<Vec<&'static str>> {
        let mut what = Vec::new();
        let same_kind = std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind);
        let is_dir = a.is_dir() && b.is_dir();
        for (differs, word) in [
            (!same_kind, "kind"),
            // A directory's size and time follow from what is in it, which is told by itself.
            (a.bytes != b.bytes && !is_dir, "size"),
            (a.modified_ns != b.modified_ns && !is_dir, "time"),
            (a.mode != b.mode, "permissions"),
            (a.owner != b.owner, "owner"),
            (same_kind && a.kind != b.kind, "link"),
        ] {
            if differs {
                what.push(word);
            }
        }
        if self.options.content && what.is_empty() && a.kind == EntryKind::File {
            let (a, b) = (hash(self.before, path)?, hash(self.after, path)?);
            if a != b {
                what.push("content");
            }
        }
        Ok(what)
    }
}

fn hash(tree: &mut Contained, path: &Names) -> Result<blake3::Hash> {
    let mut hash = blake3::Hasher::new();
    tree.read(path, &mut |bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hash.finalize())
}
