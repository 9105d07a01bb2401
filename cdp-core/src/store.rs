//! A store: a directory of volumes, one process at a time.
//!
//! ```text
//! STORE/store            manifest of the store
//! STORE/lock             held while a process has it open; names the holder
//! STORE/groups           manifest of the groups
//! STORE/operation        what is being done to a group, until all members have it
//! STORE/cloning          which clones of a group become volumes, until all have
//! STORE/promotion        which volumes are being made primaries, until all are
//! STORE/time             what other sites were told to be over
//! STORE/seeds/           what the next copies of replicas are compared with
//! STORE/volumes/NAME/    a volume
//! STORE/trash/NAME.NS/   a deleted volume, and when it was deleted
//! STORE/tmp/             nameless files of throw-away clones
//! ```

mod clones;
pub mod copies;
pub mod group_clone;
pub mod groups;
mod make;
mod operation;
pub mod promotion;
mod reopen;
pub mod replicas;
pub mod resync;
pub mod seeds;
mod swap;
mod trash;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use self::clones::When;
use crate::catalog::Catalog;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::marker::MarkerPayload;
use crate::history::point::{validate_marker_name, validate_volume_name};
use crate::ids::*;
use crate::index::{IndexOptions, Memory, Used};
use crate::io::{Clock, FilePool, Files, Lock, read_file, replace_file};
use crate::limits::*;
use crate::promises::Promises;
use crate::time::StoreClock;
use crate::volume::open::Accept;
use crate::volume::{Shared, Volume};

const STORE_FILE: &str = "store";
const LOCK_FILE: &str = "lock";
const VOLUMES_DIR: &str = "volumes";
const TRASH_DIR: &str = "trash";
const TMP_DIR: &str = "tmp";
/// The trash is looked into so often, in nanoseconds: every hour.
const TRASH_LOOK_NS: u64 = 3600 * 1_000_000_000;
const STORE_KIND: &str = "cdp-store";
const VERSION: u32 = 1;
/// A volume that is being made; leftovers are removed when the store is opened.
const UNFINISHED_PREFIX: &str = ".new-";

pub use make::{CreateOptions, FillBase};
pub use trash::{TRASH_NS, Trashed};

/// Told the names of volumes that nobody can open any more and that are about to be closed.
pub type Leaving = dyn Fn(&[String]) + Send + Sync;

/// An opened store.
pub struct Store {
    path: PathBuf,
    shared: Shared,
    volumes: Mutex<BTreeMap<String, Arc<Volume>>>,
    failed: Mutex<BTreeMap<String, Error>>,
    // Those of them of which it is not settled which copy has the name (`swap.rs`).
    withheld: Mutex<BTreeSet<String>>,
    groups: Mutex<groups::Groups>,
    // Deleted volumes that clones read from, by their ids.
    hidden: Mutex<BTreeMap<VolumeId, Arc<Volume>>>,
    // Held while volumes are cloned, deleted, or a group is rolled back. Taken before `naming`.
    changing: Mutex<()>,
    // Held while a volume that was made gets its name. Taken before `groups`.
    naming: Mutex<()>,
    copying: copies::Active,
    // Told of volumes that are about to be closed.
    leaving: OnceLock<Box<Leaving>>,
    // When idle copies were looked for.
    copies_looked_ns: AtomicU64,
    // When what could not be opened was tried again.
    unopened_looked_ns: AtomicU64,
    // When the trash was looked into.
    trash_looked_ns: AtomicU64,
    // Held until the store is dropped.
    _lock: Box<dyn Lock>,
}

/// How a store is opened.
#[derive(Clone, Copy)]
pub struct OpenOptions<'a> {
    /// What another process reads when it finds the store taken.
    pub holder: &'a str,
    /// Opens the catalog of the store at this path, once the store is locked.
    pub catalog: &'a dyn Fn(&Path) -> Catalog,
    /// What somebody accepted for a volume of this name.
    pub accept: &'a dyn Fn(&str) -> Accept,
    /// Whether volumes are opened to be written to for long: see [`Shared::prewrite`].
    pub prewrite: bool,
    /// What the indexes of its volumes may take.
    pub index: IndexOptions,
    /// See [`Shared::rebuilding`].
    pub rebuilding: fn(&str, usize, usize),
}

impl Default for OpenOptions<'_> {
    fn default() -> Self {
        OpenOptions {
            holder: "",
            catalog: &|_| Catalog::none(),
            accept: &|_| Accept::default(),
            prewrite: false,
            index: IndexOptions::default(),
            rebuilding: |_, _, _| {},
        }
    }
}

impl Store {
    /// Whether a store stands at `path`.
    pub fn exists(files: &dyn Files, path: &Path) -> bool {
        files.open(&path.join(STORE_FILE), false).is_ok()
    }

    /// Makes an empty store; the directory may exist, but must not be a store.
    pub fn create(files: &dyn Files, clock: &dyn Clock, path: &Path) -> Result<()> {
        if Store::exists(files, path) {
            return Err(Error::new(Kind::Exists, format!("{} is a store already", path.display())));
        }
        let made = (|| {
            make_dir(files, path)?;
            for dir in [VOLUMES_DIR, TRASH_DIR, TMP_DIR] {
                make_dir(files, &path.join(dir))?;
            }
            let mut manifest = Manifest::new(STORE_KIND, VERSION);
            manifest.set("id", VolumeId(clock.random()));
            manifest.set("created_ns", clock.wall_ns());
            replace_file(files, &path.join(STORE_FILE), &manifest.encode())
        })();
        made.at(|| format!("making a store in {}", path.display()))
    }

    /// Opens a store and all its volumes, without a catalog. `holder` is what another process reads when it finds the store
    /// taken. A volume that cannot be opened does not keep the others from service: see [`Store::failed`].
    pub fn open(files: Arc<dyn Files>, clock: Arc<dyn Clock>, path: &Path, holder: &str) -> Result<Store> {
        Store::open_with(files, clock, path, &OpenOptions { holder, ..OpenOptions::default() })
    }

    /// As [`Store::open`], with options.
    pub fn open_with(
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
        path: &Path,
        options: &OpenOptions<'_>,
    ) -> Result<Store> {
        let OpenOptions { holder, catalog, accept, prewrite, index, rebuilding } = *options;
        let manifest = match read_file(&*files, &path.join(STORE_FILE), MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let context = format!("there is no store in {}", path.display());
                return Err(Error::new(Kind::NotFound, context)
                    .hint("`cdp create VOL --size 10G --store DIR` makes one"));
            }
            other => other.at(|| format!("reading {}", path.join(STORE_FILE).display()))?,
        };
        let known = Manifest::decode(&manifest).filter(|m| m.kind == STORE_KIND && m.version == VERSION);
        if known.is_none() {
            let context = format!("{} is damaged or of a newer version", path.join(STORE_FILE).display());
            return Err(Error::new(Kind::Damaged, context));
        }
        let lock_path = path.join(LOCK_FILE);
        let lock = match files.lock(&lock_path, holder) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let context = format!("the store {} is in use by {}", path.display(), error);
                return Err(Error::new(Kind::Busy, context)
                    .hint("stop that process, or talk to it: commands find its control socket by --store"));
            }
            // Also who only reads opens it under the lock, and ends first what a crash left half done.
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                let context = format!(
                    "the store {} is on a filesystem that is mounted read-only, where it cannot be locked or recovered",
                    path.display()
                );
                return Err(Error::new(Kind::Refused, context).hint(
                    "mount that read-write, or open a copy: cp -a --sparse=always STORE COPY; cdp --store COPY …; an overlay that is mounted over it does, too",
                ));
            }
            other => other.at(|| format!("locking {}", lock_path.display()))?,
        };
        // A process that died while it made or moved something may have left names that no sync covers: what
        // is promised from now on must not go with them.
        for dir in [path.to_owned(), path.join(VOLUMES_DIR), path.join(TRASH_DIR)] {
            files.sync_dir(&dir).at(|| format!("syncing {}", dir.display()))?;
        }
        let memory = Memory::new(index.budget_bytes);
        let (promises, promised) = Promises::open(files.clone(), path);
        // A little more was promised than was told. Farther behind, the wall clock was set back.
        let ahead_ns = promised.0.saturating_sub(clock.wall_ns());
        if ahead_ns <= PROMISED_AHEAD_NS {
            clock.wait(ahead_ns);
        }
        let shared = Shared {
            files: files.clone(),
            clock: Arc::new(StoreClock::new(clock, promised)),
            promises: Arc::new(promises),
            pages: memory.pages().clone(),
            memory,
            segments: FilePool::new(files.clone(), SEGMENT_FILES_MAX),
            prewrite,
            catalog: Arc::new(catalog(path)),
            index,
            rebuilding,
        };
        let store = Store {
            path: path.to_owned(),
            shared,
            volumes: Mutex::new(BTreeMap::new()),
            failed: Mutex::new(BTreeMap::new()),
            withheld: Mutex::default(),
            groups: Mutex::new(groups::read_groups(&*files, path)?),
            hidden: Mutex::new(BTreeMap::new()),
            changing: Mutex::new(()),
            naming: Mutex::new(()),
            copying: Mutex::default(),
            leaving: OnceLock::new(),
            copies_looked_ns: AtomicU64::new(0),
            unopened_looked_ns: AtomicU64::new(0),
            trash_looked_ns: AtomicU64::new(0),
            _lock: lock,
        };
        store.finish_cloning()?;
        store.settle_reseeds()?;
        store.open_volumes(accept)?;
        // What follows may make room in a journal: not with what clones read from.
        store.note_clones()?;
        store.finish_operation()?;
        store.finish_promotion()?;
        // A file that cannot be removed keeps nobody from service: upkeep tries it again, and says why.
        let _ = store.empty_trash();
        store.note_clones()?;
        Ok(store)
    }

    fn open_volumes(&self, accept: &dyn Fn(&str) -> Accept) -> Result<()> {
        let dir = self.path.join(VOLUMES_DIR);
        let entries = self.shared.files.list(&dir).at(|| format!("listing {}", dir.display()))?;
        for entry in entries.into_iter().filter(|entry| entry.is_dir) {
            let volume_dir = dir.join(&entry.name);
            if entry.name.starts_with(UNFINISHED_PREFIX) {
                self.shared
                    .files
                    .remove_dir_all(&volume_dir)
                    .at(|| format!("removing {}", volume_dir.display()))?;
                continue;
            }
            // A clone that came before it has opened it already, or found that it cannot be.
            let is_known = self.volumes.lock().expect("no panics under this lock").contains_key(&entry.name)
                || self.failed.lock().expect("no panics under this lock").contains_key(&entry.name);
            if !is_known {
                self.open_by_dir(&entry.name, &volume_dir, When::AtStart(accept));
            }
        }
        Ok(())
    }

    /// From now on `tell` is told before volumes are closed while the store stays open: to be deleted, replaced, or opened anew.
    /// Who has one open is refused a moment later, so whoever serves them sends his clients away in order. It must not
    /// change volumes. Once for a store.
    pub fn tell_of_leaving(&self, tell: Box<Leaving>) {
        assert!(self.leaving.set(tell).is_ok(), "somebody is told already");
    }

    fn send_away(&self, names: &[String]) {
        if let Some(tell) = self.leaving.get() {
            tell(names);
        }
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files it uses.
    pub fn files(&self) -> &Arc<dyn Files> {
        &self.shared.files
    }

    /// Its one clock.
    pub fn clock(&self) -> &Arc<StoreClock> {
        &self.shared.clock
    }

    /// What its indexes may take of memory, and what they take now but for cached pages, in bytes.
    pub fn index_memory(&self) -> (&Arc<Memory>, Used) {
        self.volumes().iter().for_each(|volume| volume.note_memory());
        (&self.shared.memory, self.shared.memory.used())
    }

    /// Directory for nameless files.
    pub fn tmp_dir(&self) -> PathBuf {
        self.path.join(TMP_DIR)
    }

    /// All volumes that could be opened, by name.
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.lock().expect("no panics under this lock").values().cloned().collect()
    }

    /// Volumes that could not be opened at all, and why.
    pub fn failed(&self) -> Vec<(String, Error)> {
        let failed = self.failed.lock().expect("no panics under this lock");
        failed.iter().map(|(name, error)| (name.clone(), error.duplicate())).collect()
    }

    /// The volume with this name.
    pub fn volume(&self, name: &str) -> Result<Arc<Volume>> {
        if let Some(volume) = self.volumes.lock().expect("no panics under this lock").get(name) {
            return Ok(volume.clone());
        }
        if let Some(error) = self.failed.lock().expect("no panics under this lock").get(name) {
            return Err(error.duplicate());
        }
        if let Some(members) = self.groups().get(name) {
            let context =
                format!("{name} is a group of {}, and this is about one volume", members.join(", "));
            return Err(Error::new(Kind::NotFound, context).hint("say one of them"));
        }
        let names: Vec<String> = self.volumes().iter().map(|volume| volume.name().to_owned()).collect();
        let hint = if names.is_empty() {
            "the store has no volumes yet".to_owned()
        } else {
            format!("the store has {}", names.join(", "))
        };
        Err(Error::new(Kind::NotFound, format!("there is no volume {name:?}")).hint(hint))
    }

    /// Sets a marker on a volume or, at one instant, on all members of a group.
    pub fn mark(&self, name: &str, marker: &MarkerPayload) -> Result<Vec<(Arc<Volume>, Lsn, Timestamp)>> {
        validate_marker_name(&marker.name)?;
        let volumes = self.members(name)?;
        let marker = MarkerPayload {
            group: if volumes.len() > 1 { self.shared.clock.random() } else { 0 },
            ..marker.clone()
        };
        in_lock_order(&volumes, Arc::clone, |volumes| {
            let (at, lsns) = Volume::mark_group(volumes, &marker)?;
            Ok(volumes.iter().zip(lsns).map(|(volume, lsn)| (volume.clone(), lsn, at)).collect())
        })
    }

    /// The quick duties of all volumes, and the look for clock steps. Gives the errors that occurred.
    pub fn tick(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let volumes = self.volumes();
        if let Some(step) = self.shared.clock.look_for_step() {
            // The history of a replica is that of its primary, its clock's steps too.
            let primaries = volumes.iter().filter(|volume| volume.is_primary());
            errors.extend(primaries.filter_map(|volume| volume.note_clock_step(step).err()));
        }
        errors.extend(volumes.iter().filter_map(|volume| volume.tick().err()));
        errors
    }

    /// The slow duties of all volumes. Gives the errors that occurred.
    pub fn maintain(&self) -> Vec<Error> {
        self.reopen_where_space_is_back();
        let mut errors: Vec<Error> = self.retry_unopened().err().into_iter().collect();
        errors.extend(self.volumes().iter().filter_map(|volume| volume.maintain().err()));
        let now_ns = self.shared.clock.elapsed_ns();
        if now_ns.saturating_sub(self.copies_looked_ns.load(Ordering::Relaxed)) >= COPIES_LOOK_NS {
            self.copies_looked_ns.store(now_ns, Ordering::Relaxed);
            errors.extend(self.drop_idle_copies());
        }
        if now_ns.saturating_sub(self.trash_looked_ns.load(Ordering::Relaxed)) >= TRASH_LOOK_NS {
            self.trash_looked_ns.store(now_ns, Ordering::Relaxed);
            errors.extend(self.empty_trash().err());
        }
        errors
    }

    /// Ends service: every volume is synced, sealed and marked.
    pub fn close(&self) -> Result<()> {
        let mut volumes = self.volumes();
        volumes.extend(self.hidden.lock().expect("no panics under this lock").values().cloned());
        let outcomes: Vec<Result<()>> = volumes.iter().map(|volume| volume.close()).collect();
        self.shared.promises.settle(self.shared.clock.now());
        outcomes.into_iter().collect()
    }
}

/// Has `act` done with the members in the order in which their locks are taken, the rising one of their ids; gives its
/// results in the order of `members`.
fn in_lock_order<M: Clone, R>(
    members: &[M],
    volume: impl Fn(&M) -> Arc<Volume>,
    act: impl FnOnce(&[M]) -> Result<Vec<R>>,
) -> Result<Vec<R>> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|place| volume(&members[*place]).identity().id);
    let sorted: Vec<M> = order.iter().map(|place| members[*place].clone()).collect();
    let mut results: Vec<(usize, R)> = order.into_iter().zip(act(&sorted)?).collect();
    results.sort_by_key(|(place, _)| *place);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn make_dir(files: &dyn Files, path: &Path) -> std::io::Result<()> {
    match files.create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => other?,
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => files.sync_dir(parent),
        _ => files.sync_dir(Path::new(".")),
    }
}
