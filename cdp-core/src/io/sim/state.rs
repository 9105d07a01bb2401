//! Everything the simulated disk holds, without handles and faults: what a snapshot copies.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::chance::Chance;
use super::image::{PAGE_BYTES, SECTOR_BYTES};
use super::inode::{Fate, Inode, Stray};
use super::names::{Face, Names, Node};

/// The largest file; more would overflow offsets.
const FILE_BYTES_MAX: u64 = 1 << 60;

/// Names and files. Cloning copies pointers only.
#[derive(Clone)]
pub(super) struct State {
    pub names: Arc<Names>,
    pub inodes: BTreeMap<u64, Arc<Inode>>,
    next_inode: u64,
    order: u64,
}

impl State {
    pub fn new() -> State {
        State { names: Arc::new(Names::new()), inodes: BTreeMap::new(), next_inode: 1, order: 0 }
    }

    pub fn file(&self, path: &Path, face: Face) -> io::Result<u64> {
        match self.names.find(path, face)? {
            Node::File(inode) => Ok(inode),
            Node::Directory(_) => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        }
    }

    pub fn directory(&self, path: &Path) -> io::Result<u64> {
        match self.names.find(path, Face::Cached)? {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    pub fn inode(&self, inode: u64) -> io::Result<&Inode> {
        self.inodes.get(&inode).map(|inode| &**inode).ok_or_else(|| Errno::STALE.into())
    }

    pub fn inode_mut(&mut self, inode: u64) -> io::Result<&mut Inode> {
        Ok(self.inode_and_order(inode)?.0)
    }

    fn inode_and_order(&mut self, inode: u64) -> io::Result<(&mut Inode, &mut u64)> {
        let found = self.inodes.get_mut(&inode).ok_or_else(|| io::Error::from(Errno::STALE))?;
        Ok((Arc::make_mut(found), &mut self.order))
    }

    /// Its ctime moves on, on the disk too, though no effect of ours did it.
    pub fn touch(&mut self, inode: u64) -> io::Result<()> {
        let (file, order) = self.inode_and_order(inode)?;
        *order += 1;
        (file.changed, file.durable_changed) = (*order, *order);
        Ok(())
    }

    pub fn inodes_mut(&mut self) -> impl Iterator<Item = &mut Inode> {
        self.inodes.values_mut().map(Arc::make_mut)
    }

    pub fn create(&mut self, path: &Path, make: impl Fn(u64) -> Node) -> io::Result<u64> {
        let place = self.names.place(path)?;
        if self.names.at(&place).is_some() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let fresh = self.next_inode;
        self.next_inode += 1;
        let node = make(fresh);
        if let Node::File(_) = node {
            self.inodes.insert(fresh, Arc::default());
        }
        Arc::make_mut(&mut self.names).change(None, Some(place), node, &mut self.order);
        Ok(fresh)
    }

    /// Removes a file, or a directory that is empty.
    pub fn remove(&mut self, path: &Path, directory: bool) -> io::Result<()> {
        let place = self.names.place(path)?;
        let node = self.names.at(&place).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        match node {
            Node::Directory(_) if !directory => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Node::Directory(inner) if !self.names.list(inner, Face::Cached).is_empty() => {
                return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
            }
            _ => {}
        }
        Arc::make_mut(&mut self.names).change(Some(place), None, node, &mut self.order);
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let source = self.names.place(from)?;
        let target = self.names.place(to)?;
        let node = self.names.at(&source).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if source == target {
            return Ok(());
        }
        match (node, self.names.at(&target)) {
            (Node::Directory(_), _) if to.starts_with(from) => {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            (Node::File(_), Some(Node::Directory(_))) => {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            (Node::Directory(_), Some(Node::File(_))) => {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            (Node::Directory(_), Some(Node::Directory(there)))
                if !self.names.list(there, Face::Cached).is_empty() =>
            {
                return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
            }
            _ => {}
        }
        Arc::make_mut(&mut self.names).change(Some(source), Some(target), node, &mut self.order);
        Ok(())
    }

    pub fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let directory = self.directory(path)?;
        Arc::make_mut(&mut self.names).sync(directory);
        Ok(())
    }

    /// Writes as much as there is room for; short of room it writes what fits and answers ENOSPC.
    pub fn write(
        &mut self,
        inode: u64,
        offset: u64,
        data: &[u8],
        fate: Fate,
        capacity: Option<u64>,
    ) -> io::Result<()> {
        check_range(offset, data.len() as u64)?;
        let room = self.room(capacity);
        let (file, order) = self.inode_and_order(inode)?;
        let mut fitting = data.len();
        if file.cached.holes_in(offset, data.len() as u64) > room / PAGE_BYTES {
            fitting = 0;
            let mut pages = 0;
            while fitting < data.len() {
                let position = offset + fitting as u64;
                pages += file.cached.holes_in(position, 1);
                if pages > room / PAGE_BYTES {
                    break;
                }
                fitting += (PAGE_BYTES - position % PAGE_BYTES) as usize;
            }
        }
        file.write(offset, &data[..fitting.min(data.len())], fate, order);
        if fitting < data.len() { Err(Errno::NOSPC.into()) } else { Ok(()) }
    }

    /// Writes some of the sectors only: the first so many, or any of them.
    pub fn write_partly(
        &mut self,
        inode: u64,
        offset: u64,
        data: &[u8],
        chance: &mut Chance,
    ) -> io::Result<()> {
        check_range(offset, data.len() as u64)?;
        let (file, order) = self.inode_and_order(inode)?;
        let in_order = chance.percent(75);
        let mut done = 0;
        let end = chance.below(data.len() as u64 + 1);
        while done < data.len() {
            let position = offset + done as u64;
            let next = data.len().min(done + (SECTOR_BYTES - position % SECTOR_BYTES) as usize);
            let arrives = if in_order { next as u64 <= end } else { chance.percent(50) };
            if arrives {
                file.write(position, &data[done..next], Fate::Stored, order);
            }
            done = next;
        }
        Ok(())
    }

    pub fn set_len(&mut self, inode: u64, len: u64) -> io::Result<()> {
        check_range(len, 0)?;
        let (file, order) = self.inode_and_order(inode)?;
        file.set_len(len, order);
        Ok(())
    }

    pub fn allocate(&mut self, inode: u64, offset: u64, len: u64, capacity: Option<u64>) -> io::Result<()> {
        check_range(offset, len)?;
        let room = self.room(capacity);
        let (file, order) = self.inode_and_order(inode)?;
        if file.cached.holes_in(offset, len) > room / PAGE_BYTES {
            return Err(Errno::NOSPC.into());
        }
        if len > 0 {
            file.allocate(offset, len, order);
        }
        Ok(())
    }

    pub fn sync(&mut self, inode: u64) -> io::Result<()> {
        let strays = self.inode_mut(inode)?.sync();
        self.put(strays);
        Ok(())
    }

    pub fn sync_partly(&mut self, inode: u64, chance: &mut Chance) -> io::Result<()> {
        let strays = self.inode_mut(inode)?.sync_partly(chance);
        self.put(strays);
        Ok(())
    }

    pub fn sync_failed(&mut self, inode: u64, percent: u8, chance: &mut Chance) -> io::Result<()> {
        let strays = self.inode_mut(inode)?.sync_failed(percent, chance);
        self.put(strays);
        Ok(())
    }

    /// What went astray arrives where it was not meant to.
    pub fn put(&mut self, strays: Vec<Stray>) {
        for stray in strays {
            if let Some(target) = self.inodes.get_mut(&stray.inode) {
                let target = Arc::make_mut(target);
                target.durable.write(stray.offset, &stray.data);
                target.durable.clip();
                target.cache_lies = true;
            }
        }
    }

    /// A place for a write that goes astray: data of some file that lies elsewhere.
    pub fn wrong_place(&self, inode: u64, offset: u64, len: u64, chance: &mut Chance) -> Option<Fate> {
        let sectors = len.div_ceil(SECTOR_BYTES) + 1;
        let mut places = Vec::new();
        for (&candidate, file) in &self.inodes {
            for page in file.durable.data_pages() {
                let sector = page * (PAGE_BYTES / SECTOR_BYTES);
                let first = offset / SECTOR_BYTES;
                if candidate != inode || sector + sectors <= first || sector >= first + sectors {
                    places.push(Fate::Misdirected { inode: candidate, sector });
                }
            }
        }
        (!places.is_empty()).then(|| chance.pick(&places))
    }

    /// Bytes of space taken by files that have a name.
    pub fn used(&self) -> u64 {
        let files = self.names.files(Face::Cached);
        files.iter().filter_map(|(_, inode)| self.inodes.get(inode)).map(|file| file.cached.space()).sum()
    }

    fn room(&self, capacity: Option<u64>) -> u64 {
        capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    /// Effects and changes of names that a power loss may undo.
    pub fn unsynced(&self) -> usize {
        self.inodes.values().map(|file| file.unsynced.len()).sum::<usize>()
            + self.names.pending_orders().count()
    }

    /// Drops files without a name that nobody has open.
    pub fn forget_nameless(&mut self, is_open: impl Fn(u64) -> bool) {
        let in_use = self.names.files_in_use();
        self.inodes.retain(|inode, _| in_use.contains(inode) || is_open(*inode));
    }
}

/// Answers EINVAL or EFBIG as a kernel would, before any arithmetic can overflow.
fn check_range(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_BYTES_MAX => Ok(()),
        _ => Err(Errno::FBIG.into()),
    }
}
