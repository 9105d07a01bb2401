//! A new copy takes the place of an old one, which steps aside and stays.
//!
//! The *decision* is one replacement of `seeds/NAME.seed`. Legal states after a crash, and what the next opening makes of
//! them, before it opens any volume:
//!
//! | the file | `volumes/NAME` | `copies/HEX` | then |
//! |---|---|---|---|
//! | without `aside_*` | the old copy | missing, begun, or whole | nothing: the old copy stays, the new one is gone on with |
//! | with `aside_*` | the old copy, under its old id or its new one | whole | the old copy gets its new id, then its new name; then the next row |
//! | with `aside_*` | missing | whole | the new copy gets its name; then the next row |
//! | with `aside_*` | the new copy | missing | the file goes |
//! | cannot be read, or damaged | any of these | any of these | nothing: see below |
//!
//! Where that cannot be carried out, because the disk refuses a step or the file cannot be read, the volume is *withheld*: nobody
//! has it open under this name, nobody else gets the name, and the copy stays where it is, so that the table holds. The other
//! volumes are served. It is tried again by upkeep, whenever the other site connects, and at the next opening. A file that is
//! damaged stays withheld until somebody withdraws the reseed: then the manifests decide. Who is named otherwise than his directory has
//! stepped aside already, and the rest follows; a volume that is missing and that stepped aside already gives its name to the
//! copy; in the first row and the second, under the old id, the old copy stays.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::clones::When;
use super::copies::ReplicaCopy;
use super::seeds::{SeedFrom, SeedPlan};
use super::{Store, VOLUMES_DIR, validate_volume_name};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::MANIFEST_BYTES_MAX;
use crate::ids::*;
use crate::io::{read_file, replace_file};
use crate::volume::Volume;
use crate::volume::identity::{RETENTION_FILE, read_manifest, write_manifest};
use crate::volume::replicas::REPLICAS_FILE;
use crate::volume::source::SOURCE_FILE;

/// What the old copy leaves to the new one.
pub(super) const INHERITED: [&str; 2] = [RETENTION_FILE, REPLICAS_FILE];
/// The most names that are tried for an old copy.
const NAMES_MAX: u32 = 1000;

impl Store {
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
        mut copy: ReplicaCopy,
    ) -> Result<Arc<Volume>> {
        self.refuse_to_replace(&old)?;
        let identity = read_manifest(&self.shared, old.dir())?;
        let cap_and_interval = (identity.journal_cap_bytes, identity.marker_interval_ns);
        let dir = self.complete_copy(&plan.name, &mut copy, Some(cap_and_interval))?;
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
        let decided = SeedPlan { aside: Some(aside), ..plan.clone() };
        if let Err(error) = self.write_seed(&decided) {
            // It may say either now. It has to say that nothing was decided, or the old copy must not go on.
            if self.write_seed(&plan).is_err() {
                self.volumes.lock().expect("no panics under this lock").remove(&plan.name);
                self.send_away(std::slice::from_ref(&plan.name));
                let _ = old.close();
                return Err(self.withhold(&plan.name, error));
            }
            return Err(error);
        }
        // From here on it is done, by the next opening if not now.
        self.volumes.lock().expect("no panics under this lock").remove(&decided.name);
        self.send_away(std::slice::from_ref(&decided.name));
        // Where that fails it is said, but the new copy does not wait: what the old one had not synced it acknowledged to
        // nobody.
        let closed = old.close();
        drop(old);
        self.swap(&decided).map_err(|error| self.withhold(&decided.name, error))?;
        let volume = self.open_swapped(&decided)?;
        closed.map(|()| volume)
    }

    fn open_swapped(&self, plan: &SeedPlan) -> Result<Arc<Volume>> {
        let aside = plan.aside.as_ref().map(|(_, name)| name);
        for name in [Some(&plan.name), aside].into_iter().flatten() {
            self.open_if_there(name);
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

    /// Before any volume is opened: what was decided is carried out, and whose copies cannot be settled is withheld.
    pub(super) fn settle_reseeds(&self) -> Result<()> {
        let plans = self.seed_plans()?;
        if plans.is_empty() {
            return Ok(());
        }
        let synced = self.sync_seeds();
        for (name, plan) in plans {
            let settled = match (&synced, plan) {
                (Err(error), _) => Err(error.duplicate()),
                (Ok(()), plan) => plan.and_then(|plan| self.swap(&plan)),
            };
            if let Err(error) = settled {
                self.withhold(&name, error);
            }
        }
        Ok(())
    }

    /// What is read there must not be undone by a power cut that comes behind what was done about it.
    fn sync_seeds(&self) -> Result<()> {
        let dir = self.seeds_dir();
        self.shared.files.sync_dir(&dir).at(|| format!("syncing {}", dir.display()))
    }

    /// Notes that nobody gets a volume of this name before its copies are settled; gives what to say about it.
    fn withhold(&self, name: &str, error: Error) -> Error {
        let hint = match error.hint_text() {
            Some(hint) => hint.to_owned(),
            None => "it is tried again by itself, and at the next start; both copies stay where they are"
                .to_owned(),
        };
        let context = format!("volume {name}: its new copy cannot take the place of the old one: {error}");
        let error = Error::new(error.kind(), context).hint(hint);
        self.failed.lock().expect("no panics under this lock").insert(name.to_owned(), error.duplicate());
        self.withheld.lock().expect("no panics under this lock").insert(name.to_owned());
        error
    }

    /// Nobody makes, removes or brings back a volume of a name of which it is not settled who has it.
    pub(super) fn refuse_if_withheld(&self, name: &str) -> Result<()> {
        if !self.withheld.lock().expect("no panics under this lock").contains(name) {
            return Ok(());
        }
        match self.failed.lock().expect("no panics under this lock").get(name) {
            Some(error) => Err(error.duplicate()),
            None => Ok(()),
        }
    }

    /// Where the copies of this volume are not settled, they are now. The other site is about to send something for it.
    pub fn settle_reseed(&self, id: VolumeId) -> Result<()> {
        let withheld = self.withheld.lock().expect("no panics under this lock").clone();
        for name in withheld {
            // Without a file it is not known which volume it is about: its removal may be what failed.
            if self.seed_plan(&name).is_ok_and(|plan| plan.is_none_or(|plan| plan.replaces == Some(id))) {
                self.settle_withheld(&name)?;
            }
        }
        Ok(())
    }

    /// A slow duty: what could not be settled may be, now. What cannot is said by the volume.
    pub(super) fn settle_all_withheld(&self) {
        let withheld = self.withheld.lock().expect("no panics under this lock").clone();
        for name in withheld {
            let _ = self.settle_withheld(&name);
        }
    }

    fn settle_withheld(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        let _naming = self.naming.lock().expect("no panics under this lock");
        if !self.withheld.lock().expect("no panics under this lock").contains(name) {
            return Ok(());
        }
        let settled = self.sync_seeds().and_then(|()| match self.seed_plan(name)? {
            Some(plan) => self.swap(&plan).map(|()| Some(plan)),
            // Somebody removed it.
            None => self.swap_without_file(name),
        });
        let plan = settled.map_err(|error| self.withhold(name, error))?;
        self.release(name, plan.as_ref());
        Ok(())
    }

    /// A reseed whose file is damaged is withdrawn. The caller holds `changing`.
    pub(super) fn settle_without_file(&self, name: &str) -> Result<()> {
        let _naming = self.naming.lock().expect("no panics under this lock");
        if !self.withheld.lock().expect("no panics under this lock").contains(name) {
            // It was good when the store was opened, or written since: nothing was decided then that was not carried out.
            return self.remove_seed(name);
        }
        let plan = self.swap_without_file(name)?;
        self.release(name, plan.as_ref());
        Ok(())
    }

    /// A volume is served again, and the old copy that stepped aside with it.
    fn release(&self, name: &str, plan: Option<&SeedPlan>) {
        self.withheld.lock().expect("no panics under this lock").remove(name);
        self.failed.lock().expect("no panics under this lock").remove(name);
        let aside = plan.and_then(|plan| plan.aside.as_ref()).map(|(_, aside)| &aside[..]);
        for name in [Some(name), aside].into_iter().flatten() {
            self.open_if_there(name);
        }
        // It may be what a promotion waited for; whatever is still in the way is said by the volumes.
        let _ = self.note_clones().and_then(|()| self.finish_promotion());
    }

    fn open_if_there(&self, name: &str) {
        let is_open = self.volumes.lock().expect("no panics under this lock").contains_key(name);
        let dir = self.path.join(VOLUMES_DIR).join(name);
        if !is_open && self.shared.files.list(&dir).is_ok() {
            self.failed.lock().expect("no panics under this lock").remove(name);
            self.open_by_dir(name, &dir, When::Live);
        }
    }

    /// Goes by what the copies say of themselves, and removes the file; what was decided, if anything was.
    fn swap_without_file(&self, name: &str) -> Result<Option<SeedPlan>> {
        let decided = self.decided_by_manifests(name)?;
        match &decided {
            Some(plan) => self.swap(plan)?,
            None => self.remove_seed(name)?,
        }
        Ok(decided)
    }

    fn decided_by_manifests(&self, name: &str) -> Result<Option<SeedPlan>> {
        let place = self.path.join(VOLUMES_DIR).join(name);
        let plan = |id: VolumeId, aside: (VolumeId, String)| SeedPlan {
            name: name.to_owned(),
            from: SeedFrom::Volume { id, at: None },
            replaces: Some(id),
            source_before: None,
            aside: Some(aside),
        };
        if self.is_there(&place)? {
            let identity = read_manifest(&self.shared, &place)?;
            let stepped_aside = identity.journal_of.filter(|_| identity.name != name);
            let Some(id) = stepped_aside else { return Ok(None) };
            if !self.is_there(&self.copy_dir(id))? {
                let context =
                    format!("{} is volume {}, and no copy takes its place", place.display(), identity.name);
                return Err(Error::new(Kind::Damaged, context));
            }
            return Ok(Some(plan(id, (identity.id, identity.name))));
        }
        let mut found = Vec::new();
        for aside in self.stepped_aside()? {
            let Some(id) = aside.journal_of else { continue };
            let copy = self.copy_dir(id);
            if self.place_of(id)?.is_none()
                && read_manifest(&self.shared, &copy).is_ok_and(|copy| copy.id == id && copy.name == name)
            {
                found.push(plan(id, (aside.id, aside.name)));
            }
        }
        Ok(found.pop())
    }

    /// Whether the copy of this volume is whole and about to get its name, or may be.
    pub(super) fn is_decided(&self, id: VolumeId) -> Result<bool> {
        let may_be = |plan: &SeedPlan| plan.aside.is_some() && plan.replaces == Some(id);
        let is_whole = || read_manifest(&self.shared, &self.copy_dir(id)).is_ok();
        let plans = self.seed_plans()?;
        Ok(plans.iter().any(|(_, plan)| plan.as_ref().map_or_else(|_| is_whole(), may_be)))
    }

    fn is_there(&self, dir: &Path) -> Result<bool> {
        match self.shared.files.list(dir) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(error, format!("listing {}", dir.display()))),
        }
    }

    /// The table above. Nobody has either copy open.
    fn swap(&self, plan: &SeedPlan) -> Result<()> {
        let (Some((aside_id, aside_name)), Some(id)) = (&plan.aside, plan.replaces) else { return Ok(()) };
        let files = &self.shared.files;
        let volumes_dir = self.path.join(VOLUMES_DIR);
        let (place, copy) = (volumes_dir.join(&plan.name), self.copy_dir(id));
        if self.is_there(&copy)? {
            if self.is_there(&place)? {
                let mut identity = read_manifest(&self.shared, &place)?;
                if identity.id != id && identity.id != *aside_id {
                    let context = format!("{} is another volume, {}", place.display(), identity.id);
                    return Err(Error::new(Kind::Damaged, context).hint("move that directory away"));
                }
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
