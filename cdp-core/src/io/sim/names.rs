//! The names of the simulated disk: directories as a process sees them, as the disk has them, and the
//! changes that no sync of a directory has covered yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use super::chance::Chance;

/// The directory that everything stands in.
pub(super) const ROOT: u64 = 0;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(u64),
    Directory(u64),
}

/// Which of the two faces of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Cached,
    Durable,
}

/// Which unsynced changes of names a power loss may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameOrder {
    /// Of each directory the first so many, as a filesystem with a journal does.
    PerDirectory,
    /// Any of them, as long as no change of a name comes without the earlier ones of the same name.
    PerName,
}

type Entries = BTreeMap<Arc<str>, Node>;

#[derive(Clone, Default)]
struct Directory {
    cached: Entries,
    durable: Entries,
}

/// A name in a directory.
type Place = (u64, Arc<str>);

#[derive(Clone)]
struct Change {
    order: u64,
    node: Node,
    /// The name that goes.
    from: Option<Place>,
    /// The name that comes.
    to: Option<Place>,
}

#[derive(Clone)]
pub(super) struct Names {
    directories: BTreeMap<u64, Directory>,
    pending: Vec<Change>,
}

impl Names {
    pub fn new() -> Names {
        Names { directories: BTreeMap::from([(ROOT, Directory::default())]), pending: Vec::new() }
    }

    /// What stands at a path.
    pub fn find(&self, path: &Path, face: Face) -> io::Result<Node> {
        let mut node = Node::Directory(ROOT);
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => utf8(name)?,
                _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
            };
            let Node::Directory(directory) = node else {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            };
            node = self
                .look(directory, name, face)
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))?;
        }
        Ok(node)
    }

    /// The directory a path's last name belongs in, and that name.
    pub fn place(&self, path: &Path) -> io::Result<(u64, Arc<str>)> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match self.find(path.parent().unwrap_or(Path::new("")), Face::Cached)? {
            Node::Directory(directory) => Ok((directory, utf8(name)?.into())),
            Node::File(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    pub fn at(&self, place: &Place) -> Option<Node> {
        self.look(place.0, &place.1, Face::Cached)
    }

    fn look(&self, directory: u64, name: &str, face: Face) -> Option<Node> {
        self.face(directory, face)?.get(name).copied()
    }

    fn face(&self, directory: u64, face: Face) -> Option<&Entries> {
        let directory = self.directories.get(&directory)?;
        Some(match face {
            Face::Cached => &directory.cached,
            Face::Durable => &directory.durable,
        })
    }

    /// Names and nodes of a directory, sorted by name.
    pub fn list(&self, directory: u64, face: Face) -> Vec<(Arc<str>, Node)> {
        let entries = self.face(directory, face).into_iter().flatten();
        entries.map(|(name, node)| (name.clone(), *node)).collect()
    }

    /// Every file below the root with its path.
    pub fn files(&self, face: Face) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        self.collect(ROOT, "", face, &mut found);
        found
    }

    fn collect(&self, directory: u64, prefix: &str, face: Face, found: &mut Vec<(String, u64)>) {
        for (name, node) in self.face(directory, face).into_iter().flatten() {
            let path = format!("{prefix}/{name}");
            match node {
                Node::File(inode) => found.push((path, *inode)),
                Node::Directory(inner) => self.collect(*inner, &path, face, found),
            }
        }
    }

    /// Gives a node a name, takes its name, or both in one.
    pub fn change(&mut self, from: Option<Place>, to: Option<Place>, node: Node, order: &mut u64) {
        if let (None, Node::Directory(fresh)) = (&from, node) {
            self.directories.insert(fresh, Directory::default());
        }
        *order += 1;
        let change = Change { order: *order, node, from, to };
        self.apply(&change, Face::Cached);
        self.pending.push(change);
    }

    fn apply(&mut self, change: &Change, face: Face) {
        let mut edit = |place: &Place, act: &dyn Fn(&mut Entries)| {
            if let Some(directory) = self.directories.get_mut(&place.0) {
                act(match face {
                    Face::Cached => &mut directory.cached,
                    Face::Durable => &mut directory.durable,
                });
            }
        };
        if let Some(from) = &change.from {
            edit(from, &|names| {
                if names.get(&from.1) == Some(&change.node) {
                    names.remove(&from.1);
                }
            });
        }
        if let Some(to) = &change.to {
            edit(to, &|names| {
                names.insert(to.1.clone(), change.node);
            });
        }
    }

    /// Makes a directory's names durable. A move between directories is covered by syncing its target.
    pub fn sync(&mut self, directory: u64) {
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.home() == directory);
        self.pending = later;
        for change in &now {
            self.apply(change, Face::Durable);
        }
        self.forget_unreachable();
    }

    /// Orders of the changes that are not durable.
    pub fn pending_orders(&self) -> impl Iterator<Item = u64> + '_ {
        self.pending.iter().map(|change| change.order)
    }

    /// The power goes: each unsynced change for which `keep` holds survives, as far as `rule` allows. Returns
    /// how many were kept and how many lost.
    pub fn lose_power(
        &mut self,
        rule: NameOrder,
        mut keep: impl FnMut(u64, &mut Chance) -> bool,
        chance: &mut Chance,
    ) -> (u64, u64) {
        let mut cut_directories = BTreeSet::new();
        let mut cut_names: BTreeSet<Place> = BTreeSet::new();
        let (mut kept, mut lost) = (0, 0);
        for change in std::mem::take(&mut self.pending) {
            let places = || change.from.iter().chain(&change.to);
            let allowed = match rule {
                NameOrder::PerDirectory => !places().any(|place| cut_directories.contains(&place.0)),
                NameOrder::PerName => !places().any(|place| cut_names.contains(place)),
            };
            if allowed && keep(change.order, chance) {
                self.apply(&change, Face::Durable);
                kept += 1;
            } else {
                cut_directories.extend(places().map(|place| place.0));
                cut_names.extend(places().cloned());
                lost += 1;
            }
        }
        for directory in self.directories.values_mut() {
            directory.cached = directory.durable.clone();
        }
        self.forget_unreachable();
        (kept, lost)
    }

    /// Takes a name away on both faces at once, as if it had never been.
    pub fn erase(&mut self, place: &Place) {
        if let Some(directory) = self.directories.get_mut(&place.0) {
            directory.cached.remove(&place.1);
            directory.durable.remove(&place.1);
        }
        self.pending
            .retain(|change| change.from.as_ref() != Some(place) && change.to.as_ref() != Some(place));
    }

    /// Files that have a name, may get one back, or have one on the disk only.
    pub fn files_in_use(&self) -> BTreeSet<u64> {
        self.nodes_in_use().1
    }

    fn nodes_in_use(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let (mut directories, mut files) = (BTreeSet::from([ROOT]), BTreeSet::new());
        let mut rest = vec![ROOT];
        while let Some(directory) = rest.pop() {
            let names = self.directories.get(&directory).into_iter();
            let named = names.flat_map(|names| names.cached.values().chain(names.durable.values()));
            let moving = self.pending.iter().filter(|change| change.touches(directory));
            for node in named.copied().chain(moving.map(|change| change.node)) {
                match node {
                    Node::File(inode) => {
                        files.insert(inode);
                    }
                    Node::Directory(inner) if directories.insert(inner) => rest.push(inner),
                    Node::Directory(_) => {}
                }
            }
        }
        (directories, files)
    }

    fn forget_unreachable(&mut self) {
        let (directories, _) = self.nodes_in_use();
        self.directories.retain(|directory, _| directories.contains(directory));
        self.pending.retain(|change| directories.contains(&change.home()));
    }
}

impl Change {
    /// The directory whose sync makes it durable.
    fn home(&self) -> u64 {
        self.to.as_ref().or(self.from.as_ref()).map_or(ROOT, |place| place.0)
    }

    fn touches(&self, directory: u64) -> bool {
        self.from.iter().chain(&self.to).any(|place| place.0 == directory)
    }
}

fn utf8(name: &std::ffi::OsStr) -> io::Result<&str> {
    name.to_str().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
