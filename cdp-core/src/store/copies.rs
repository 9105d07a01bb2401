//! First copies of replicas: a state of another site that is received piece by piece, across restarts, until it is whole
//! and becomes a volume.
//!
//! ```text
//! STORE/copies/HEX/     the copy of the volume with this id: base, and
//! STORE/copies/HEX/copy manifest: which state it is, and up to where it is durable
//! STORE/copies/.gone-HEX/   one that is being removed
//! ```
//!
//! One that nobody goes on with for a week is removed, or when somebody says so: it is no history, only bytes that come
//! again.
//!
//! Legal states after a crash: the copy up to what its manifest says, whatever stands behind that; or the whole volume.
//! Of the same state the same bytes come again, so what stands behind is written over. One that is removed is renamed first:
//! a manifest that outlived some of its blocks would count them, and nobody would send them again.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use super::replicas::{Copied, Origin};
use super::swap::INHERITED;
use super::{Store, VOLUMES_DIR, make_dir, validate_volume_name};
use crate::base::{BaseWriter, Unsynced};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::HISTORY_FILE;
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::record::Chain;
use crate::ids::*;
use crate::io::{Files, read_file, replace_file};
use crate::journal::mark::MARK_FILE;
use crate::time::StoreClock;
use crate::volume::epoch::write_epochs;
use crate::volume::identity::{MANIFEST_FILE, create};
use crate::volume::open::{Accept, open_on};
use crate::volume::{Identity, Volume};

const COPIES_DIR: &str = "copies";
const COPY_FILE: &str = "copy";
const KIND: &str = "cdp-copy";
const VERSION: u32 = 1;
/// A copy that is being removed: no id begins like that.
const GONE_PREFIX: &str = ".gone-";
/// A copy that nobody went on with for so long is removed, in nanoseconds.
const IDLE_NS_MAX: u64 = 7 * 86_400 * 1_000_000_000;
/// Copies that come in now.
pub(super) type Active = Mutex<BTreeMap<VolumeId, Weak<()>>>;

/// How far a first copy has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyState {
    /// Which state it is.
    pub copied: Copied,
    /// It is durable up to this byte.
    pub done_bytes: u64,
    /// The volume's name where it comes from; empty if it was begun by an earlier version.
    pub name: String,
    /// When it last went on; zero likewise.
    pub touched: Timestamp,
    // So many pieces of the base may be there.
    pieces: u64,
}

/// A first copy that is not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedCopy {
    /// Of which volume.
    pub volume: VolumeId,
    /// How far it has come.
    pub state: CopyState,
    /// Somebody is sending it now.
    pub is_active: bool,
}

impl CopyState {
    fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("lsn", self.copied.lsn);
        manifest.set("ns", self.copied.at.0);
        manifest.set("chain", format!("{:032x}", u128::from_be_bytes(self.copied.chain.0)));
        manifest.set("size_bytes", self.copied.size_bytes);
        manifest.set("done_bytes", self.done_bytes);
        manifest.set("pieces", self.pieces);
        manifest.set("name", &self.name);
        manifest.set("touched_ns", self.touched.0);
        manifest.encode()
    }

    fn decode(bytes: &[u8]) -> Option<CopyState> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
        Some(CopyState {
            copied: Copied {
                lsn: Lsn(manifest.get("lsn")?),
                at: Timestamp(manifest.get("ns")?),
                chain: Chain(manifest.get_hex("chain")?.to_be_bytes()),
                size_bytes: manifest.get("size_bytes")?,
            },
            done_bytes: manifest.get("done_bytes")?,
            pieces: manifest.get("pieces")?,
            name: manifest.get("name").unwrap_or_default(),
            touched: Timestamp(manifest.get("touched_ns").unwrap_or(0)),
        })
    }
}

/// A first copy that is being received.
pub struct ReplicaCopy {
    files: Arc<dyn Files>,
    dir: PathBuf,
    origin: Origin,
    state: CopyState,
    writer: BaseWriter,
    clock: Arc<StoreClock>,
    _active: Hold,
}

/// As long as this lives nobody else takes, names or removes the copy.
pub(super) type Hold = Arc<()>;

impl ReplicaCopy {
    /// How far it has come.
    pub fn state(&self) -> &CopyState {
        &self.state
    }

    /// Writes whole blocks; those of zeros need not be.
    pub fn write(&mut self, first: Lba, blocks: &[u8]) -> Result<()> {
        let end = first.0.saturating_mul(BLOCK_BYTES).saturating_add(blocks.len() as u64);
        if end > self.state.copied.size_bytes.next_multiple_of(BLOCK_BYTES) {
            let context = format!("blocks at {first:?} reach behind the end of the copied state");
            return Err(Error::new(Kind::Invalid, context));
        }
        self.writer.write(first.0, blocks)
    }

    /// Everything up to this byte was written: makes that durable.
    pub fn settle(&mut self, done_bytes: u64) -> Result<()> {
        let settlement = self.begin_settling(done_bytes);
        settlement.carry_out()?;
        self.note_settled(done_bytes);
        Ok(())
    }

    /// As [`ReplicaCopy::settle`], in two halves: what this gives may be carried out on another thread while more is written.
    /// One at a time; where it fails, the copy goes on from what its manifest says only after [`Store::take_copy`].
    pub fn begin_settling(&mut self, done_bytes: u64) -> Settlement {
        let (pieces, touched) = (self.writer.pieces(), self.clock.now());
        Settlement {
            unsynced: self.writer.take_unsynced(),
            files: self.files.clone(),
            dir: self.dir.clone(),
            state: CopyState { done_bytes, pieces, touched, ..self.state.clone() },
            _active: self._active.clone(),
        }
    }

    /// What was begun for this byte was carried out.
    pub fn note_settled(&mut self, done_bytes: u64) {
        self.state.done_bytes = done_bytes;
    }
}

/// What makes a first copy durable up to a byte.
pub struct Settlement {
    unsynced: Unsynced,
    files: Arc<dyn Files>,
    dir: PathBuf,
    state: CopyState,
    _active: Hold,
}

impl Settlement {
    /// The blocks first, then the manifest that counts on them.
    pub fn carry_out(&self) -> Result<()> {
        self.unsynced.sync()?;
        write_state(&*self.files, &self.dir, &self.state)
    }
}

fn write_state(files: &dyn Files, dir: &Path, state: &CopyState) -> Result<()> {
    let path = dir.join(COPY_FILE);
    replace_file(files, &path, &state.encode()).at(|| format!("writing {}", path.display()))
}

fn remove_if_there(files: &dyn Files, path: &Path) -> Result<()> {
    match files.remove(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.at(|| format!("removing {}", path.display())),
    }
}

impl Store {
    pub(super) fn copy_dir(&self, id: VolumeId) -> PathBuf {
        self.path.join(COPIES_DIR).join(id.to_string())
    }

    /// The first copy of this volume that was begun here, if there is one.
    pub fn copy_state(&self, id: VolumeId) -> Result<Option<CopyState>> {
        let path = self.copy_dir(id).join(COPY_FILE);
        match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // One that cannot be read is begun anew.
            other => Ok(CopyState::decode(&other.at(|| format!("reading {}", path.display()))?)),
        }
    }

    /// Begins a first copy of the state that `origin` names, or goes on with it. One of another state is thrown away.
    ///
    /// # Errors
    /// `Busy` while somebody else has it, or is still making some of it durable: what is removed here, that manifest would count.
    pub fn take_copy(&self, name: &str, origin: &Origin) -> Result<ReplicaCopy> {
        self.refuse_if_withheld(name)?;
        let active = self.hold_copy(origin.id).ok_or_else(|| {
            let context = format!("somebody else has the first copy of volume {name} in hand");
            Error::new(Kind::Busy, context)
        })?;
        let copied = origin.copied.ok_or_else(|| Error::new(Kind::Invalid, "a copy of no state"))?;
        origin.check_sizes(&*self.shared.files)?;
        let files = self.shared.files.clone();
        let dir = self.copy_dir(origin.id);
        let known = self.copy_state(origin.id)?.filter(|state| state.copied == copied);
        let resume = |state: CopyState| {
            let resumed = BaseWriter::resume(files.clone(), &dir, origin.id, copied.size_bytes, state.pieces)
                .map(BaseWriter::stream);
            match resumed {
                // Something of it is gone: it comes again.
                Err(error) if error.kind() == Kind::Damaged => Ok(None),
                other => other.map(|writer| Some((state, writer))),
            }
        };
        let (state, writer) = match known.map(resume).transpose()?.flatten() {
            Some(known) => known,
            None => {
                make_dir(&*files, &self.path.join(COPIES_DIR))
                    .at(|| format!("making {}", self.path.join(COPIES_DIR).display()))?;
                self.remove_copy(&dir)?;
                make_dir(&*files, &dir).at(|| format!("making {}", dir.display()))?;
                let touched = self.shared.clock.now();
                let name = name.to_owned();
                let state = CopyState { copied, done_bytes: 0, name, touched, pieces: 0 };
                write_state(&*files, &dir, &state)?;
                (state, BaseWriter::new(files.clone(), &dir, origin.id, copied.size_bytes).stream())
            }
        };
        let clock = self.shared.clock.clone();
        Ok(ReplicaCopy { files, dir, origin: origin.clone(), state, writer, clock, _active: active })
    }

    /// The first copies that are not whole.
    pub fn copies(&self) -> Result<Vec<UnfinishedCopy>> {
        let dir = self.path.join(COPIES_DIR);
        let entries = match self.shared.files.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at(|| format!("listing {}", dir.display()))?,
        };
        let mut copies = Vec::new();
        for entry in entries.iter().filter(|entry| entry.is_dir) {
            let Ok(volume) = u128::from_str_radix(&entry.name, 16).map(VolumeId) else { continue };
            // One without a manifest that can be read is begun anew by whoever sends it.
            let Some(state) = self.copy_state(volume)? else { continue };
            copies.push(UnfinishedCopy { volume, state, is_active: self.is_copying(volume) });
        }
        Ok(copies)
    }

    fn is_copying(&self, volume: VolumeId) -> bool {
        let copying = self.copying.lock().expect("no panics under this lock");
        copying.get(&volume).is_some_and(|active| active.strong_count() > 0)
    }

    /// Removes a first copy that is not whole.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while it is sent.
    pub fn drop_copy(&self, volume: VolumeId) -> Result<()> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        let _hold = self.hold_copy(volume).ok_or_else(|| {
            let context = format!("the first copy of the volume {volume} is being sent");
            Error::new(Kind::Busy, context).hint("`cdp replica remove` at the other site first")
        })?;
        if self.is_decided(volume)? {
            let context =
                format!("the first copy of the volume {volume} is whole and takes the old one's place");
            return Err(Error::new(Kind::Busy, context));
        }
        match self.remove_copy(&self.copy_dir(volume))? {
            true => Ok(()),
            false => Err(Error::new(Kind::NotFound, format!("there is no first copy of a volume {volume}"))),
        }
    }

    /// Nobody else takes, names or removes the copy of this volume as long as what this gives lives. Nothing while
    /// somebody else has that.
    fn hold_copy(&self, volume: VolumeId) -> Option<Hold> {
        let mut copying = self.copying.lock().expect("no panics under this lock");
        copying.retain(|_, active| active.strong_count() > 0);
        if copying.contains_key(&volume) {
            return None;
        }
        let hold = Hold::default();
        copying.insert(volume, Arc::downgrade(&hold));
        Some(hold)
    }

    /// Removes what stands there of a copy that somebody holds, and what is left of one that was being removed. Whether
    /// there was one.
    fn remove_copy(&self, dir: &Path) -> Result<bool> {
        let (files, copies) = (&self.shared.files, self.path.join(COPIES_DIR));
        let id = dir.file_name().unwrap_or_default().to_string_lossy();
        let gone = copies.join(format!("{GONE_PREFIX}{id}"));
        let remove_gone = || match files.remove_dir_all(&gone) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io(error, format!("removing {}", gone.display())))
            }
            _ => Ok(()),
        };
        remove_gone()?;
        match files.rename(dir, &gone).and_then(|()| files.sync_dir(&copies)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(error, format!("removing {}", dir.display()))),
            Ok(()) => remove_gone().map(|()| true),
        }
    }

    /// Removes those that nobody went on with for a week. Gives the errors that occurred.
    pub(super) fn drop_idle_copies(&self) -> Vec<Error> {
        let now = self.shared.clock.now();
        let copies = match self.copies() {
            Ok(copies) => copies,
            Err(error) => return vec![error],
        };
        // What a crash left of one that was being removed.
        let entries = self.shared.files.list(&self.path.join(COPIES_DIR)).unwrap_or_default();
        for entry in entries.iter().filter(|entry| entry.name.starts_with(GONE_PREFIX)) {
            let _ = self.shared.files.remove_dir_all(&self.path.join(COPIES_DIR).join(&entry.name));
        }
        // A time of zero is one that nobody wrote down: somebody has to say so.
        let is_idle = |copy: &&UnfinishedCopy| {
            let touched = copy.state.touched;
            !copy.is_active && touched > Timestamp(0) && now.0.saturating_sub(touched.0) > IDLE_NS_MAX
        };
        copies.iter().filter(is_idle).filter_map(|copy| self.drop_copy(copy.volume).err()).collect()
    }

    /// A copy that is whole becomes a volume. Where somebody asked for that, it takes the place of an old copy, which steps
    /// aside (`swap.rs`).
    ///
    /// Legal states after a crash: the copy, whole, or the volume.
    pub fn finish_copy(&self, name: &str, mut copy: ReplicaCopy) -> Result<Arc<Volume>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        let _naming = self.naming.lock().expect("no panics under this lock");
        validate_volume_name(name)?;
        self.refuse_if_withheld(name)?;
        self.refuse_if_decided(name)?;
        if let Some((plan, old)) = self.replaced_by(name, copy.origin.id)? {
            return self.replace_volume(plan, old, copy);
        }
        let to = self.path.join(VOLUMES_DIR).join(name);
        if self.shared.files.list(&to).is_ok()
            || self.groups.lock().expect("no panics under this lock").contains_key(name)
        {
            return Err(Error::new(Kind::Exists, format!("there is a volume {name:?} already")));
        }
        self.refuse_second(copy.origin.id)?;
        let dir = self.complete_copy(name, &mut copy, None)?;
        self.name_copy(&dir, &to)?;
        let volume = open_on(&self.shared, &to, Accept::default(), None)?;
        self.volumes.lock().expect("no panics under this lock").insert(name.to_owned(), volume.clone());
        self.forget_seed(name)?;
        Ok(volume)
    }

    /// Puts beside the base of a copy that is whole what makes it a volume. Durable when this returns; where it stands. `settings`
    /// are those of an old copy: its journal cap and marker interval. Whoever calls keeps `copy` until it has its name.
    pub(super) fn complete_copy(
        &self,
        name: &str,
        copy: &mut ReplicaCopy,
        settings: Option<(Option<u64>, u64)>,
    ) -> Result<PathBuf> {
        let files = &*self.shared.files;
        copy.settle(copy.state.copied.size_bytes)?;
        let (mut identity, begin) = copy.origin.identity(name, self.shared.clock.now());
        if let Some((journal_cap_bytes, marker_interval_ns)) = settings {
            identity = Identity { journal_cap_bytes, marker_interval_ns, ..identity };
        }
        // What an attempt before left half done.
        for left in [MARK_FILE, MANIFEST_FILE, HISTORY_FILE].into_iter().chain(INHERITED) {
            remove_if_there(files, &copy.dir.join(left))?;
        }
        if let Some((history, epochs)) = begin {
            write_epochs(&self.shared, &copy.dir, &epochs)?;
            let path = copy.dir.join(HISTORY_FILE);
            replace_file(files, &path, &history.encode()).at(|| format!("writing {}", path.display()))?;
        }
        create(&self.shared, &copy.dir, &identity)?;
        Ok(copy.dir.clone())
    }

    /// A copy that was made complete gets its name. Durable when this returns.
    pub(super) fn name_copy(&self, dir: &Path, to: &Path) -> Result<()> {
        let files = &*self.shared.files;
        files
            .rename(dir, to)
            .and_then(|()| files.sync_dir(&self.path.join(VOLUMES_DIR)))
            .and_then(|()| files.sync_dir(&self.path.join(COPIES_DIR)))
            .at(|| format!("naming {}", to.display()))?;
        // It says nothing any more, and nobody reads it there.
        let _ = files.remove(&to.join(COPY_FILE));
        Ok(())
    }
}
