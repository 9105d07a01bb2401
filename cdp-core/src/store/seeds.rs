//! Seeds: what stands at this site of a volume that is going to be copied from another one, so that only what differs is sent.
//!
//! ```text
//! STORE/seeds/NAME.seed  manifest: what the copy of NAME is compared with, and whose place it takes
//! ```
//!
//! The file is written when somebody asks for a reseed, and goes when the new copy is a volume. What it says of the seed
//! need not be true for ever: whatever is taken from there is held against a hash first.
//!
//! How a new copy takes the place of the old one: `swap.rs`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Store, VERSION, make_dir, validate_volume_name};
use crate::device::{Device, Read};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ids::*;
use crate::io::{File, read_file, replace_file};
use crate::view::View;
use crate::volume::Volume;

const SEEDS_DIR: &str = "seeds";
const SEED_KIND: &str = "cdp-seed";
/// Behind the volume's name.
const SUFFIX: &str = ".seed";

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
    // The site whose records the volume took when another one was named for the copy.
    pub(super) source_before: Option<String>,
    // Decided: the id and the name that the old copy gets.
    pub(super) aside: Option<(VolumeId, String)>,
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
        if let Some(site) = &self.source_before {
            manifest.set("source_before", site);
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
        let source_before = manifest.get("source_before");
        Some(SeedPlan { name: name.to_owned(), from, replaces, source_before, aside })
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
    pub(super) fn seed_path(&self, name: &str) -> PathBuf {
        self.seeds_dir().join(format!("{name}{SUFFIX}"))
    }

    pub(super) fn seeds_dir(&self) -> PathBuf {
        self.path.join(SEEDS_DIR)
    }

    pub(super) fn write_seed(&self, plan: &SeedPlan) -> Result<()> {
        let files = &*self.shared.files;
        let path = self.seed_path(&plan.name);
        make_dir(files, &self.seeds_dir())
            .and_then(|()| replace_file(files, &path, &plan.encode()))
            .at(|| format!("writing {}", path.display()))
    }

    pub(super) fn remove_seed(&self, name: &str) -> Result<()> {
        let (files, path) = (&self.shared.files, self.seed_path(name));
        match files.remove(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed
                .and_then(|()| files.sync_dir(&self.seeds_dir()))
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
            Error::new(Kind::Damaged, context).hint(format!(
                "`cdp replica reseed {name} --cancel` goes by what the volume and the copy say of themselves, and removes it"
            ))
        };
        SeedPlan::decode(name, &bytes).map(Some).ok_or_else(damaged)
    }

    /// All of them, by name; and of those that cannot be read why.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn seed_plans(&self) -> Result<Vec<(String, Result<SeedPlan>)>> {
        let dir = self.seeds_dir();
        let entries = match self.shared.files.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at(|| format!("listing {}", dir.display()))?,
        };
        let mut plans = Vec::new();
        for name in entries.iter().filter_map(|entry| entry.name.strip_suffix(SUFFIX)) {
            if let Some(plan) = self.seed_plan(name).transpose() {
                plans.push((name.to_owned(), plan));
            }
        }
        Ok(plans)
    }

    /// The next copy of a volume of this name that another site sends is compared with `from`, or with what is here of it
    /// where that is nothing; a volume of this name gives its place to it when it is whole. `site` sends it: without a name the
    /// one whose records the volume takes, or where it went on, if that is one that it believes. Durable when this returns.
    ///
    /// Legal states after a crash: no reseed; or one, with the site that sends it named or not yet: then its link is refused
    /// until somebody asks again.
    ///
    /// # Errors
    /// `Refused` for a primary, for an old copy, where clones read from what would step aside, and where a site that the volume
    /// does not believe says that it went on there; `NotFound` if nothing is there to compare with, or nothing was heard of
    /// the site; `Exists` if a group has this name.
    pub fn plan_reseed(&self, name: &str, from: Option<SeedFrom>, site: Option<&str>) -> Result<SeedPlan> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        validate_volume_name(name)?;
        if self.groups().contains_key(name) {
            return Err(Error::new(
                Kind::Exists,
                format!("{name} is a group: reseed its members one by one"),
            ));
        }
        let planned = self.seed_plan(name)?;
        if planned.as_ref().is_some_and(|plan| plan.aside.is_some()) {
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
        let replaces = old.as_ref().map(|volume| volume.identity().id);
        let from = match (from, replaces) {
            (Some(from), _) => from,
            (None, Some(id)) => SeedFrom::Volume { id, at: None },
            (None, None) => return Err(Error::new(Kind::NotFound, format!("there is no volume {name:?}"))),
        };
        let source = old.as_ref().map(|volume| volume.source_of_copy(site)).transpose()?.flatten();
        let source_before = match (planned.and_then(|plan| plan.source_before), &source, &old) {
            (None, Some(_), Some(volume)) => volume.source().map(|source| source.peer),
            (before, ..) => before,
        };
        let plan = SeedPlan { name: name.to_owned(), from, replaces, source_before, aside: None };
        // Whether it is there at all.
        self.open_seed(&plan)?;
        self.write_seed(&plan)?;
        if let (Some(volume), Some(source)) = (&old, &source) {
            volume.set_source(source)?;
        }
        Ok(plan)
    }

    /// No reseed, then. What was copied of it stays as an unfinished copy; whether there was one to end. Where its file is
    /// damaged, what the volume and the copy say of themselves decides which of the two has the name.
    pub fn withdraw_reseed(&self, name: &str) -> Result<bool> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        match self.seed_plan(name) {
            Ok(None) => Ok(false),
            Ok(Some(plan)) if plan.aside.is_some() => {
                Err(Error::new(Kind::Busy, format!("the new copy of volume {name} is taking its place")))
            }
            Ok(Some(plan)) => {
                if let (Some(before), Ok(volume)) = (&plan.source_before, self.volume(name))
                    && plan.replaces == Some(volume.identity().id)
                {
                    volume.set_source(before)?;
                }
                self.remove_seed(name).map(|()| true)
            }
            Err(error) if error.kind() == Kind::Damaged => self.settle_without_file(name).map(|()| true),
            Err(error) => Err(error),
        }
    }

    pub(super) fn refuse_to_replace(&self, volume: &Volume) -> Result<()> {
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
}
