//! Cloning a group: all members or none, whatever happens in between.
//!
//! Each clone is made whole under its unfinished name, of which an opening knows only that it is to be removed. Then the
//! file `cloning` says which of them become volumes, and what their group is called; it goes when that is done. Legal
//! states after a crash, and what the next opening makes of them:
//!
//! | the file | clones under their own names | then |
//! |---|---|---|
//! | missing | none | nothing was done: what is unfinished goes |
//! | there | none, some or all, with their group or without | the others get their names, then the group, then the file goes |
//! | missing | all, with their group | nothing |
//!
//! This is settled before any volume is opened, so nobody ever sees half a group. Where it could not be settled at once (the disk
//! failed), the store goes on, and nobody else gets a name that was decided (`Store::refuse_if_decided`). A name that is another
//! volume's all the same (files were moved by hand) stays his: the clone gets the same with the beginning of its id behind it.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use super::clones::When;
use super::groups::{Group, write_groups};
use super::{Store, VERSION, VOLUMES_DIR};
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::history::point::validate_volume_name;
use crate::ids::*;
use crate::io::{read_file, replace_file};
use crate::view::View;
use crate::volume::identity::{create_mark, read_manifest, write_manifest};
use crate::volume::open::{Accept, open_on};
use crate::volume::{Identity, Shared, Volume};

const CLONING_FILE: &str = "cloning";
const CLONING_KIND: &str = "cdp-cloning";

/// Which clones become volumes.
struct Cloning {
    group: String,
    clones: Vec<(VolumeId, String)>,
}

impl Cloning {
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new(CLONING_KIND, VERSION);
        manifest.set("group", &self.group);
        for (number, (id, name)) in self.clones.iter().enumerate() {
            // Names hold no slash, so it separates.
            manifest.set(&format!("clone.{number:06}"), format!("{id}/{name}"));
        }
        manifest
    }

    fn from_manifest(manifest: &Manifest) -> Option<Cloning> {
        if manifest.kind != CLONING_KIND || manifest.version != VERSION {
            return None;
        }
        let lines = manifest.values.iter().filter(|(key, _)| key.starts_with("clone."));
        let clones = lines.map(|(_, line)| {
            let (id, name) = line.split_once('/')?;
            // It becomes part of a path.
            validate_volume_name(name).ok()?;
            Some((VolumeId(u128::from_str_radix(id, 16).ok()?), name.to_owned()))
        });
        Some(Cloning { group: manifest.get("group")?, clones: clones.collect::<Option<_>>()? })
    }
}

/// One that is being made.
struct Draft {
    parent: Arc<Volume>,
    identity: Identity,
    view: View,
}

/// What the clone of a member is called.
pub fn clone_name(group: &str, member: &str) -> String {
    format!("{group}-{member}")
}

impl Store {
    /// Makes a clone of each of these states, and a group `group` of them; see [`clone_name`] for their names. All or
    /// none, also after a crash; durable when this returns. Nothing is copied.
    pub fn clone_group(&self, group: &str, members: &[(Arc<Volume>, Lsn)]) -> Result<Vec<Arc<Volume>>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        // Of one that failed half way: its clones are there before others are made.
        for (name, dir) in self.finish_cloning()? {
            if !self.volumes.lock().expect("no panics under this lock").contains_key(&name) {
                self.open_by_dir(&name, &dir, When::Live);
            }
        }
        // Until they have their names, nobody else gets one of them.
        let naming = self.naming.lock().expect("no panics under this lock");
        self.free_dir(group)?;
        let mut drafts = Vec::with_capacity(members.len());
        for (parent, lsn) in members {
            let (identity, view) = self.plan_clone(parent, *lsn, &clone_name(group, parent.name()))?;
            self.free_dir(&identity.name)?;
            drafts.push(Draft { parent: parent.clone(), identity, view });
        }
        for draft in &drafts {
            draft.parent.hold_for_clone(draft.identity.id, &draft.identity.name, draft.view.lsn());
        }
        let decided = self.fill_drafts(&drafts).and_then(|()| self.decide(group, &drafts));
        if let Err(error) = decided {
            // If it could not be taken back, the next opening goes on with it, and needs them.
            if self.remove_cloning().is_ok() {
                for draft in &drafts {
                    let _ = self.shared.files.remove_dir_all(&self.unfinished_dir(draft.identity.id));
                    draft.parent.release_clone(draft.identity.id);
                }
            }
            return Err(error);
        }
        self.finish_decided(&naming)?;
        drop(naming);
        let opened: Vec<Result<Arc<Volume>>> =
            drafts.into_iter().map(|draft| self.open_draft(draft)).collect();
        opened.into_iter().collect()
    }

    fn fill_drafts(&self, drafts: &[Draft]) -> Result<()> {
        for Draft { identity, .. } in drafts {
            let fresh = self.unfinished_dir(identity.id);
            self.fill_dir(&fresh, identity, None, None, &mut |dir| create_mark(&self.shared, dir, identity))?;
        }
        let dir = self.path.join(VOLUMES_DIR);
        self.shared.files.sync_dir(&dir).at(|| format!("syncing {}", dir.display()))
    }

    /// From here on they all become volumes.
    fn decide(&self, group: &str, drafts: &[Draft]) -> Result<()> {
        let clones = drafts.iter().map(|draft| (draft.identity.id, draft.identity.name.clone())).collect();
        let cloning = Cloning { group: group.to_owned(), clones };
        let path = self.path.join(CLONING_FILE);
        replace_file(&*self.shared.files, &path, &cloning.manifest().encode())
            .at(|| format!("writing {}", path.display()))
    }

    fn open_draft(&self, draft: Draft) -> Result<Arc<Volume>> {
        let name = draft.identity.name;
        let dir = self.path.join(VOLUMES_DIR).join(&name);
        // As for a single clone: its first segment is only reserved.
        let shared = Shared { prewrite: false, ..self.shared.clone() };
        let parent: Arc<dyn Device> = Arc::new(draft.view);
        let opened = open_on(&shared, &dir, Accept::default(), Some(parent));
        match opened {
            Ok(volume) => {
                self.volumes.lock().expect("no panics under this lock").insert(name, volume.clone());
                Ok(volume)
            }
            Err(error) => {
                let told = error.duplicate();
                self.failed.lock().expect("no panics under this lock").insert(name, error);
                Err(told)
            }
        }
    }

    /// Gives a clone that was decided its name, if it has none yet: this one, or one like it where that is another volume's. The
    /// name, and where it stands; nowhere if it had its name and was moved to the trash since.
    fn name_clone(&self, id: VolumeId, name: &str) -> Result<(String, Option<PathBuf>)> {
        let files = &self.shared.files;
        let is_its_own = |dir: &PathBuf| read_manifest(&self.shared, dir).is_ok_and(|found| found.id == id);
        let names = [name.to_owned(), format!("{name}-{:08x}", id.0 >> 96)];
        let places = names.map(|name| (self.path.join(VOLUMES_DIR).join(&name), name));
        if let Some((dir, name)) = places.iter().find(|(dir, _)| is_its_own(dir)) {
            return Ok((name.clone(), Some(dir.clone())));
        }
        let fresh = self.unfinished_dir(id);
        let is_free =
            |dir: &PathBuf| matches!(files.list(dir), Err(error) if error.kind() == ErrorKind::NotFound);
        if is_free(&fresh) {
            return Ok((name.to_owned(), None));
        }
        let Some((dir, free)) = places.into_iter().find(|(dir, _)| is_free(dir)) else {
            let context =
                format!("the clone of a group is to be named {name}, and another volume has that name");
            return Err(Error::new(Kind::Exists, context).hint("rename the other volume's directory"));
        };
        if free != name {
            let mut identity = read_manifest(&self.shared, &fresh)?;
            identity.name = free.clone();
            write_manifest(&self.shared, &fresh, &identity)?;
        }
        self.name_dir(&fresh, &dir)?;
        Ok((free, Some(dir)))
    }

    /// Nobody gets a name that a clone, or its group, was decided to have and could not be given yet.
    pub(super) fn refuse_if_decided(&self, name: &str) -> Result<()> {
        let path = self.path.join(CLONING_FILE);
        // What cannot be read now is read at the next opening, and there a name that is taken does no harm.
        let Ok(bytes) = read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) else { return Ok(()) };
        let cloning = Manifest::decode(&bytes).as_ref().and_then(Cloning::from_manifest);
        let is_decided = |cloning: &Cloning| {
            cloning.group == name || cloning.clones.iter().any(|(_, clone)| clone == name)
        };
        if !cloning.as_ref().is_some_and(is_decided) {
            return Ok(());
        }
        let context = format!("the name {name:?} is kept for the clone of a group, which is half done");
        Err(Error::new(Kind::Exists, context).hint("the next start of the server finishes it"))
    }

    fn remove_cloning(&self) -> Result<()> {
        let path = self.path.join(CLONING_FILE);
        let files = &self.shared.files;
        let removed = match files.remove(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        removed.and_then(|()| files.sync_dir(&self.path)).at(|| format!("removing {}", path.display()))
    }

    /// Goes on with what was decided, if anything was: names the clones and makes their group. Gives their names and
    /// where they stand.
    pub(super) fn finish_cloning(&self) -> Result<Vec<(String, PathBuf)>> {
        self.finish_decided(&self.naming.lock().expect("no panics under this lock"))
    }

    fn finish_decided(&self, _naming: &MutexGuard<'_, ()>) -> Result<Vec<(String, PathBuf)>> {
        let path = self.path.join(CLONING_FILE);
        let bytes = match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at(|| format!("reading {}", path.display()))?,
        };
        let cloning = Manifest::decode(&bytes).as_ref().and_then(Cloning::from_manifest);
        let cloning = cloning.ok_or_else(|| {
            Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display()))
                .hint("a clone of a group may be half done: move the file away, and its clones are dropped")
        })?;
        let mut places = Vec::new();
        let mut members = Vec::new();
        for (id, name) in &cloning.clones {
            let (name, place) = self.name_clone(*id, name)?;
            members.push(name.clone());
            places.extend(place.map(|dir| (name, dir)));
        }
        let mut groups = self.groups.lock().expect("no panics under this lock");
        if !groups.contains_key(&cloning.group) {
            let mut changed = groups.clone();
            changed.insert(cloning.group, Group { members, awaited: Vec::new() });
            write_groups(&*self.shared.files, &self.path, &changed)?;
            *groups = changed;
        }
        drop(groups);
        self.remove_cloning()?;
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that an upgrade opens in the middle of a group's clone must understand what was decided.
    #[test]
    fn golden_text_of_version_1() {
        let cloning = Cloning {
            group: "try".to_owned(),
            clones: vec![(VolumeId(0x0a), "try-db".to_owned()), (VolumeId(0x0b), "try-log".to_owned())],
        };
        let text = "cdp-cloning 1\n\
                    clone.000000 = 0000000000000000000000000000000a/try-db\n\
                    clone.000001 = 0000000000000000000000000000000b/try-log\n\
                    group = try\n";
        let crc = crate::format::bytes::crc32(text.as_bytes());
        let golden = format!("{text}crc32 = {crc:08x}\n");
        assert_eq!(String::from_utf8(cloning.manifest().encode()).unwrap(), golden);
        let read = Cloning::from_manifest(&Manifest::decode(golden.as_bytes()).unwrap()).unwrap();
        assert_eq!((read.group, read.clones), (cloning.group, cloning.clones));
    }

    /// A name in the file becomes part of a path.
    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["../x", "a/b", "", "."] {
            let mut manifest = Manifest::new(CLONING_KIND, VERSION);
            manifest.set("group", "g");
            manifest.set("clone.000000", format!("{}/{name}", VolumeId(1)));
            assert!(Cloning::from_manifest(&manifest).is_none(), "{name}");
        }
    }
}
