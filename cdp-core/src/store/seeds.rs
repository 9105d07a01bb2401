//! Seeds: what stands at this site of a volume that is going to be copied from another one, so that only what differs is sent;
//! and the old copy that steps aside when the new one is whole.
//!
//! ```text
//! STORE/seeds/NAME.seed  manifest: what the copy of NAME is compared with, and whose place it takes
//! ```
//!
//! The file is written when somebody asks for a reseed, and goes when the new copy is a volume. What it says of the seed
//! need not be true for ever: whatever is taken from there is held against a hash first.
//!
//! Where a volume's place is taken, the *decision* is one replacement of the file. Legal states after a crash, and what the
//! next opening makes of them, before it opens any volume:
//!
//! | the file | `volumes/NAME` | `copies/HEX` | then |
//! |---|---|---|---|
//! | without `aside_*` | the old copy | missing, begun, or whole | nothing: the old copy stays, the new one is gone on with |
//! | with `aside_*` | the old copy, under its old id or its new one | whole | the old copy gets its new id, then its new name; then the next row |
//! | with `aside_*` | missing | whole | the new copy gets its name; then the next row |
//! | with `aside_*` | the new copy | missing | the file goes |

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copies::ReplicaCopy;
use super::{Store, VERSION, VOLUMES_DIR, make_dir, validate_volume_name};
use crate::device::{Device, Read};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ids::*;
use crate::io::{File, read_file, replace_file};
use crate::view::View;
use crate::volume::Volume;
use crate::volume::identity::{RETENTION_FILE, read_manifest, write_manifest};
use crate::volume::open::Accept;
use crate::volume::replicas::REPLICAS_FILE;
use crate::volume::source::SOURCE_FILE;

const SEEDS_DIR: &str = "seeds";
const SEED_KIND: &str = "cdp-seed";
/// Behind the volume's name.
const SUFFIX: &str = ".seed";
/// What the old copy leaves to the new one.
pub(super) const INHERITED: [&str; 2] = [RETENTION_FILE, REPLICAS_FILE];
/// The most names that are tried for an old copy.
const NAMES_MAX: u32 = 1000;

/// What a copy is compared with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SeedFrom {
    /// A volume of this store.
    Volume {
        /// Which.
        id: VolumeId,
        /// Its state after this record; without one, the newest whenever somebody looks.
        at: Option<Lsn>,
    },
    /// A file with the disk's bytes.
    File(PathBuf),
}

/// A volume that is going to be copied here, though much of it is here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeedPlan {
    /// The volume's name.
    pub name: String,
    /// What is here of it.
    pub from: SeedFrom,
    /// The volume whose place the copy takes.
    pub replaces: Option<VolumeId>,
    // Decided: the id and the name that the old copy gets.
    aside: Option<(VolumeId, String)>,
}

impl SeedPlan {
    fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(SEED_KIND, VERSION);
        match &self.from {
            SeedFrom::Volume { id, at } => {
                manifest.set("from_id", id);
                if let Some(lsn) = at {
                    manifest.set("from_lsn", lsn);
                }
            }
            SeedFrom::File(path) => manifest.set("from_file", path.display()),
        }
        if let Some(id) = self.replaces {
            manifest.set("replaces", id);
        }
        if let Some((id, name)) = &self.aside {
            manifest.set("aside_id", id);
            manifest.set("aside_name", name);
        }
        manifest.encode()
    }

    fn decode(name: &str, bytes: &[u8]) -> Option<SeedPlan> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == SEED_KIND && m.version == VERSION)?;
        let from = match manifest.get::<String>("from_file") {
            Some(path) => SeedFrom::File(PathBuf::from(path)),
            None => SeedFrom::Volume {
                id: VolumeId(manifest.get_hex("from_id")?),
                at: manifest.get("from_lsn").map(Lsn),
            },
        };
        let aside = match manifest.get_hex("aside_id") {
            Some(id) => Some((VolumeId(id), manifest.get("aside_name")?)),
            None => None,
        };
        let replaces = manifest.get_hex("replaces").map(VolumeId);
        Some(SeedPlan { name: name.to_owned(), from, replaces, aside })
    }
}

/// Bytes to compare with. As long as it lives, the state of a volume is held.
pub enum Seed {
    /// A volume's state.
    State(View),
    /// A file, and its size in bytes.
    Bytes(Arc<dyn File>, u64),
}

impl Seed {
    /// Reads from byte `offset` on; what is behind its end reads as zeros.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let size_bytes = match self {
            Seed::State(view) => view.size_bytes(),
            Seed::Bytes(_, size_bytes) => *size_bytes,
        };
        let there = size_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (inside, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        match self {
            Seed::State(view) => {
                let mut reads = [Read { offset, buffer: inside, result: Ok(()) }];
                view.read(&mut reads);
                let [read] = reads;
                read.result
            }
            Seed::Bytes(file, _) => {
                file.read_at(offset, inside).at(|| "reading the file to compare with".to_owned())
            }
        }
    }
}

impl Store {
    fn seed_path(&self, name: &str) -> PathBuf {
        self.path.join(SEEDS_DIR).join(format!("{name}{SUFFIX}"))
    }

    fn write_seed(&self, plan: &SeedPlan) -> Result<()> {
        let files = &*self.shared.files;
        let path = self.seed_path(&plan.name);
        make_dir(files, &self.path.join(SEEDS_DIR))
            .and_then(|()| replace_file(files, &path, &plan.encode()))
            .at(|| format!("writing {}", path.display()))
    }

    fn remove_seed(&self, name: &str) -> Result<()> {
        let (files, path) = (&self.shared.files, self.seed_path(name));
        match files.remove(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed
                .and_then(|()| files.sync_dir(&self.path.join(SEEDS_DIR)))
                .at(|| format!("removing {}", path.display())),
        }
    }

    /// What the copy of a volume of this name is going to be compared with, if somebody asked for that.
    pub fn seed_plan(&self, name: &str) -> Result<Option<SeedPlan>> {
        let path = self.seed_path(name);
        let bytes = match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.at(|| format!("reading {}", path.display()))?,
        };
        let damaged = || {
            let context = format!("{} is damaged or of a newer version", path.display());
            Error::new(Kind::Damaged, context).hint("remove it and ask for the reseed again")
        };
        SeedPlan::decode(name, &bytes).map(Some).ok_or_else(damaged)
    }

    /// All of them.
    pub fn seed_plans(&self) -> Result<Vec<SeedPlan>> {
        let dir = self.path.join(SEEDS_DIR);
        let entries = match self.shared.files.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at(|| format!("listing {}", dir.display()))?,
        };
        let mut plans = Vec::new();
        for name in entries.iter().filter_map(|entry| entry.name.strip_suffix(SUFFIX)) {
            plans.extend(self.seed_plan(name)?);
        }
        Ok(plans)
    }

    /// The next copy of a volume of this name that another site sends is compared with `from`, or with what is here of it
    /// where that is nothing; a volume of this name gives its place to it when it is whole. Durable when this returns.
    ///
    /// # Errors
    /// `Refused` for a primary, for an old copy, and where clones read from what would step aside; `NotFound` if nothing is
    /// there to compare with; `Exists` if a group has this name.
    pub fn plan_reseed(&self, name: &str, from: Option<SeedFrom>) -> Result<SeedPlan> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        validate_volume_name(name)?;
        if self.groups().contains_key(name) {
            return Err(Error::new(
                Kind::Exists,
                format!("{name} is a group: reseed its members one by one"),
            ));
        }
        if self.seed_plan(name)?.is_some_and(|plan| plan.aside.is_some()) {
            return Err(Error::new(Kind::Busy, format!("the new copy of volume {name} is taking its place")));
        }
        let old = match self.volume(name) {
            Ok(volume) => Some(volume),
            Err(error) if error.kind() == Kind::NotFound && from.is_some() => None,
            Err(error) => return Err(error),
        };
        if let Some(volume) = &old {
            self.refuse_to_replace(volume)?;
        }
        let replaces = old.map(|volume| volume.identity().id);
        let from = match (from, replaces) {
            (Some(from), _) => from,
            (None, Some(id)) => SeedFrom::Volume { id, at: None },
            (None, None) => return Err(Error::new(Kind::NotFound, format!("there is no volume {name:?}"))),
        };
        let plan = SeedPlan { name: name.to_owned(), from, replaces, aside: None };
        // Whether it is there at all.
        self.open_seed(&plan)?;
        self.write_seed(&plan)?;
        Ok(plan)
    }

    /// No reseed, then. What was copied of it stays as an unfinished copy; whether there was one to end.
    pub fn withdraw_reseed(&self, name: &str) -> Result<bool> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        match self.seed_plan(name)? {
            None => Ok(false),
            Some(plan) if plan.aside.is_some() => {
                Err(Error::new(Kind::Busy, format!("the new copy of volume {name} is taking its place")))
            }
            Some(_) => self.remove_seed(name).map(|()| true),
        }
    }

    fn refuse_to_replace(&self, volume: &Volume) -> Result<()> {
        let name = volume.name();
        volume.refuse_if_aside()?;
        if volume.is_primary() {
            let context = format!("volume {name} is a primary: no copy of another site's takes its place");
            return Err(Error::new(Kind::Refused, context).hint("`cdp demote` makes it a replica"));
        }
        if volume.parent().is_some() {
            let context = format!("volume {name} is a clone");
            return Err(Error::new(Kind::Refused, context)
                .hint(format!("`cdp hydrate {name}` makes it a volume of its own")));
        }
        match &self.clones_of(volume)?[..] {
            [] => Ok(()),
            clones => {
                let context = format!("{} read from volume {name}, deleted ones too", clones.join(", "));
                Err(Error::new(Kind::Refused, context).hint("`cdp hydrate` them, or delete them for good"))
            }
        }
    }

    /// Opens what a copy is to be compared with.
    pub fn open_seed(&self, plan: &SeedPlan) -> Result<Seed> {
        let gone = |error: Error| {
            let context = format!("what volume {} is to be compared with cannot be had: {error}", plan.name);
            Error::new(error.kind(), context)
                .hint("`cdp replica reseed` again, with another one; or end it with --cancel")
        };
        match &plan.from {
            SeedFrom::Volume { id, at } => {
                let volume = self.volume_by_id(*id).ok_or_else(|| {
                    gone(Error::new(Kind::NotFound, format!("there is no volume with the id {id}")))
                })?;
                let at = at.unwrap_or_else(|| volume.tip_lsn());
                View::open(volume, at, "a reseed").map(Seed::State).map_err(gone)
            }
            SeedFrom::File(path) => {
                let opened = self.shared.files.open(path, false).and_then(|file| {
                    let size_bytes = file.len()?;
                    Ok(Seed::Bytes(file, size_bytes))
                });
                opened.at(|| format!("opening {}", path.display())).map_err(gone)
            }
        }
    }

    /// The old copy of what is being copied, if the copy is going to take its place.
    pub(super) fn replaced_by(&self, name: &str, id: VolumeId) -> Result<Option<(SeedPlan, Arc<Volume>)>> {
        let plan = self.seed_plan(name)?.filter(|plan| plan.replaces == Some(id));
        let old = self.volume_by_id(id).filter(|volume| volume.name() == name);
        Ok(plan.zip(old))
    }

    /// The new copy is whole: it takes the old one's place. The caller holds `changing` and `naming`.
    pub(super) fn replace_volume(
        &self,
        plan: SeedPlan,
        old: Arc<Volume>,
        copy: ReplicaCopy,
    ) -> Result<Arc<Volume>> {
        self.refuse_to_replace(&old)?;
        let identity = read_manifest(&self.shared, old.dir())?;
        let cap_and_interval = (identity.journal_cap_bytes, identity.marker_interval_ns);
        let dir = self.complete_copy(&plan.name, copy, Some(cap_and_interval))?;
        for name in INHERITED {
            let path = old.dir().join(name);
            match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => {
                    let bytes = other.at(|| format!("reading {}", path.display()))?;
                    replace_file(&*self.shared.files, &dir.join(name), &bytes)
                        .at(|| format!("writing {}", dir.join(name).display()))?;
                }
            }
        }
        let aside = (VolumeId(self.shared.clock.random()), self.name_aside(&plan.name, old.tip_lsn())?);
        let decided = SeedPlan { aside: Some(aside), ..plan };
        // From here on it is done, by the next opening if not now.
        self.write_seed(&decided)?;
        self.volumes.lock().expect("no panics under this lock").remove(&decided.name);
        // Where that fails it is said, but the new copy does not wait: what the old one had not synced it acknowledged to
        // nobody.
        let closed = old.close();
        drop(old);
        self.swap(&decided)?;
        let volume = self.open_swapped(&decided)?;
        closed.map(|()| volume)
    }

    fn open_swapped(&self, plan: &SeedPlan) -> Result<Arc<Volume>> {
        let aside = plan.aside.as_ref().map(|(_, name)| name);
        for name in [Some(&plan.name), aside].into_iter().flatten() {
            let is_open = self.volumes.lock().expect("no panics under this lock").contains_key(name);
            let dir = self.path.join(VOLUMES_DIR).join(name);
            if !is_open && self.shared.files.list(&dir).is_ok() {
                self.failed.lock().expect("no panics under this lock").remove(name);
                self.open_by_dir(name, &dir, &|_| Accept::default(), 0);
            }
        }
        self.volume(&plan.name)
    }

    /// A copy that took nobody's place is a volume: what it was compared with is of no use any more.
    pub(super) fn forget_seed(&self, name: &str) -> Result<()> {
        match self.seed_plan(name)? {
            Some(plan) if plan.replaces.is_none() => self.remove_seed(name),
            _ => Ok(()),
        }
    }

    /// Where it was decided that a copy of this volume takes the place of the old one, and that could not be carried out, it
    /// is now.
    pub fn settle_reseed(&self, id: VolumeId) -> Result<()> {
        let is_it = |plan: &SeedPlan| plan.aside.is_some() && plan.replaces == Some(id);
        let decided = |store: &Store| Ok::<_, Error>(store.seed_plans()?.into_iter().find(is_it));
        if decided(self)?.is_none() {
            return Ok(());
        }
        let _changing = self.changing.lock().expect("no panics under this lock");
        let _naming = self.naming.lock().expect("no panics under this lock");
        let Some(plan) = decided(self)? else { return Ok(()) };
        let taken = self.volumes.lock().expect("no panics under this lock").remove(&plan.name);
        taken.map_or(Ok(()), |volume| volume.close())?;
        self.swap(&plan)?;
        self.open_swapped(&plan).map(drop)
    }

    /// Before any volume is opened: what was decided is carried out.
    pub(super) fn settle_reseeds(&self) -> Result<()> {
        for plan in self.seed_plans()?.iter().filter(|plan| plan.aside.is_some()) {
            self.swap(plan)?;
        }
        Ok(())
    }

    /// Whether the copy of this volume is whole and about to get its name.
    pub(super) fn is_decided(&self, id: VolumeId) -> Result<bool> {
        Ok(self.seed_plans()?.iter().any(|plan| plan.aside.is_some() && plan.replaces == Some(id)))
    }

    /// The table above. Nobody has either copy open.
    fn swap(&self, plan: &SeedPlan) -> Result<()> {
        let (Some((aside_id, aside_name)), Some(id)) = (&plan.aside, plan.replaces) else { return Ok(()) };
        let files = &self.shared.files;
        let volumes_dir = self.path.join(VOLUMES_DIR);
        let (place, copy) = (volumes_dir.join(&plan.name), self.copy_dir(id));
        let is_there = |dir: &Path| match files.list(dir) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(error, format!("listing {}", dir.display()))),
        };
        if is_there(&copy)? {
            if is_there(&place)? {
                let mut identity = read_manifest(&self.shared, &place)?;
                if identity.id == id {
                    identity.id = *aside_id;
                    identity.journal_of = Some(id);
                    identity.name = aside_name.clone();
                    write_manifest(&self.shared, &place, &identity)?;
                }
                // It feeds nobody and is fed by nobody any more: that is the new copy's part.
                for name in [REPLICAS_FILE, SOURCE_FILE] {
                    let path = place.join(name);
                    match files.remove(&path) {
                        Err(error) if error.kind() != ErrorKind::NotFound => {
                            return Err(Error::io(error, format!("removing {}", path.display())));
                        }
                        _ => {}
                    }
                }
                files.sync_dir(&place).at(|| format!("syncing {}", place.display()))?;
                files
                    .rename(&place, &volumes_dir.join(aside_name))
                    .and_then(|()| files.sync_dir(&volumes_dir))
                    .at(|| format!("moving {} aside", place.display()))?;
            }
            self.name_copy(&copy, &place)?;
        }
        self.remove_seed(&plan.name)
    }

    /// A name for an old copy that is free.
    fn name_aside(&self, name: &str, tip: Lsn) -> Result<String> {
        let first = format!("{name}-until-{}", tip.0);
        let others = (2..NAMES_MAX).map(|number| format!("{first}-{number}"));
        let is_free = |name: &String| {
            let taken = self.groups.lock().expect("no panics under this lock").contains_key(name);
            !taken && self.shared.files.list(&self.path.join(VOLUMES_DIR).join(name)).is_err()
        };
        let name = std::iter::once(first.clone())
            .chain(others)
            .find(is_free)
            .ok_or_else(|| Error::new(Kind::Exists, format!("there are too many volumes named {first}-…")))?;
        validate_volume_name(&name)?;
        Ok(name)
    }
}
