//! The trash: deleted volumes stay there for a while and can be brought back, and as long as clones read from them.
//!
//! ```text
//! STORE/trash/NAME.INSTANT   a deleted volume, as it was
//! STORE/trash/.gone-…        one that is being removed for good
//! ```
//!
//! Legal states after a crash: deleting, bringing back and removing for good are a rename each; the volume is in the one
//! place or the other. What is left of one that was being removed goes when the trash is emptied next.

use std::path::Path;
use std::sync::Arc;

use super::clones::{Place, When};
use super::{Store, TRASH_DIR, VOLUMES_DIR};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::*;
use crate::volume::Volume;

/// Keeps deleted volumes so long, in nanoseconds: seven days.
pub const TRASH_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;

/// A volume that is being removed for good: no name of a volume begins like that.
const GONE_PREFIX: &str = ".gone-";

/// A volume in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// Its name.
    pub name: String,
    /// When it was deleted.
    pub deleted: Timestamp,
    dir: String,
}

impl Store {
    /// Closes a volume and moves it to the trash, where it stays for [`TRASH_NS`], and as long as clones read from it.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        let files = &*self.shared.files;
        let dir = self.path.join(VOLUMES_DIR).join(name);
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.refuse_if_withheld(name)?;
        let volume = self.volumes.lock().expect("no panics under this lock").remove(name);
        self.send_away(&[name.to_owned()]);
        match &volume {
            // Clones that read from it go on.
            Some(volume) => volume.end_service().inspect_err(|error| {
                // Whatever becomes of its files, nobody reads from them any more.
                let _ = volume.close();
                let context = format!("closing {name} to delete it: {error}");
                let unclosed =
                    Error::new(Kind::Refused, context).hint("delete it again, or restart the server");
                self.failed.lock().expect("no panics under this lock").insert(name.to_owned(), unclosed);
            })?,
            None if self.failed.lock().expect("no panics under this lock").remove(name).is_some() => {}
            None => return self.volume(name).map(drop),
        }
        let deleted = self.shared.clock.take(1);
        let trash = self.path.join(TRASH_DIR);
        let to = trash.join(format!("{name}.{}", deleted.0));
        let mut rename = || {
            files
                .rename(&dir, &to)
                .and_then(|()| files.sync_dir(&trash))
                .and_then(|()| files.sync_dir(&self.path.join(VOLUMES_DIR)))
                .at(|| format!("moving {} to the trash", dir.display()))
        };
        match volume {
            Some(volume) => self.move_parent(volume, &mut rename),
            None => rename(),
        }
    }

    /// What is in the trash, newest first.
    pub fn trash(&self) -> Result<Vec<Trashed>> {
        let dir = self.path.join(TRASH_DIR);
        let entries = self.shared.files.list(&dir).at(|| format!("listing {}", dir.display()))?;
        let mut trashed: Vec<Trashed> = entries
            .into_iter()
            .filter(|entry| !entry.name.starts_with(GONE_PREFIX))
            .filter_map(|entry| {
                let (name, deleted) = entry.name.rsplit_once('.')?;
                let deleted = Timestamp(deleted.parse().ok()?);
                Some(Trashed { name: name.to_owned(), deleted, dir: entry.name.clone() })
            })
            .collect();
        trashed.sort_by_key(|trashed| std::cmp::Reverse(trashed.deleted));
        Ok(trashed)
    }

    /// Brings the newest deleted volume of this name back.
    pub fn undelete_volume(&self, name: &str) -> Result<Arc<Volume>> {
        let files = &*self.shared.files;
        let to = self.path.join(VOLUMES_DIR).join(name);
        if files.list(&to).is_ok() {
            return Err(Error::new(Kind::Exists, format!("there is a volume {name:?} already"))
                .hint("delete it first, then undelete brings back the older one by its age"));
        }
        let trashed = self
            .trash()?
            .into_iter()
            .find(|trashed| trashed.name == name)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no deleted volume {name:?}")))?;
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.refuse_if_withheld(name)?;
        self.refuse_if_decided(name)?;
        self.refuse_if_group(name)?;
        let trash = self.path.join(TRASH_DIR);
        let from = trash.join(&trashed.dir);
        let hidden = self.take_hidden(&from);
        if let Some(volume) = &hidden {
            volume.end_service().inspect_err(|_| drop(volume.close()))?;
        }
        let mut rename = || {
            files
                .rename(&from, &to)
                .and_then(|()| files.sync_dir(&self.path.join(VOLUMES_DIR)))
                .and_then(|()| files.sync_dir(&trash))
                .at(|| format!("bringing {} back", to.display()))
        };
        match hidden {
            Some(volume) => self.move_parent(volume, &mut rename)?,
            None => rename()?,
        }
        if !self.volumes.lock().expect("no panics under this lock").contains_key(name) {
            self.open_by_dir(name, &to, When::Live);
        }
        self.note_clones()?;
        self.volume(name)
    }

    /// Removes for good what was deleted longer ago than [`TRASH_NS`] and what no clone, itself in the trash or not,
    /// reads from any more.
    pub fn empty_trash(&self) -> Result<()> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        let now = self.shared.clock.now();
        self.remove_gone()?;
        // A clone that was removed may have been the last one to read from its parent.
        loop {
            let places = self.places()?;
            if places.iter().any(|place| place.identity.is_none()) {
                // It may be a clone of anything.
                return Ok(());
            }
            let expired = self.trash()?.into_iter().find_map(|trashed| {
                let place = place_of(&places, &self.path.join(TRASH_DIR).join(&trashed.dir))?;
                let is_old = now.0.saturating_sub(trashed.deleted.0) > TRASH_NS;
                (is_old && readers_of(&places, place).is_empty()).then_some(place)
            });
            let Some(place) = expired else { return Ok(()) };
            self.remove_for_good(place)?;
        }
    }

    /// Removes all deleted volumes of this name for good, however young. Refused where a clone reads from one of them. How
    /// many there were.
    pub fn purge_volume(&self, name: &str) -> Result<usize> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.remove_gone()?;
        let places = self.places()?;
        let deleted: Vec<Trashed> =
            self.trash()?.into_iter().filter(|trashed| trashed.name == name).collect();
        if deleted.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("there is no deleted volume {name:?}")));
        }
        let doomed = deleted.iter().map(|trashed| self.path.join(TRASH_DIR).join(&trashed.dir));
        let doomed: Vec<&Place> = doomed.filter_map(|dir| place_of(&places, &dir)).collect();
        let unread = places
            .iter()
            .find(|place| place.identity.is_none() && !doomed.iter().any(|doomed| doomed.dir == place.dir));
        if let Some(unread) = unread {
            let context = format!("{} cannot be read: it may be a clone of {name:?}", unread.dir.display());
            return Err(
                Error::new(Kind::Refused, context).hint("what is wrong with it has to be put right first")
            );
        }
        // Of one that cannot be read nobody knows whether it is somebody's parent.
        let ids: Vec<VolumeId> =
            places.iter().filter_map(|place| Some(place.identity.as_ref()?.id)).collect();
        let parents = places.iter().filter_map(|place| place.identity.as_ref()?.parent);
        if doomed.iter().any(|place| place.identity.is_none())
            && parents.into_iter().any(|parent| !ids.contains(&parent.id))
        {
            let context = format!("the deleted volume {name:?} cannot be read, and a clone may read from it");
            return Err(
                Error::new(Kind::Refused, context).hint("what is wrong with it has to be put right first")
            );
        }
        for place in &doomed {
            let is_doomed = |reader: &&Place| doomed.iter().any(|doomed| doomed.dir == reader.dir);
            let readers = readers_of(&places, place);
            let others: Vec<&str> =
                readers.iter().filter(|reader| !is_doomed(reader)).map(|reader| &reader.name[..]).collect();
            if !others.is_empty() {
                let context = format!("clones read from the deleted volume {name:?}: {}", others.join(", "));
                return Err(Error::new(Kind::Busy, context).hint(
                    "`cdp hydrate CLONE` makes it a volume of its own; one that is deleted has to go first",
                ));
            }
        }
        doomed.iter().try_for_each(|place| self.remove_for_good(place))?;
        Ok(doomed.len())
    }

    fn remove_for_good(&self, place: &Place) -> Result<()> {
        let files = &*self.shared.files;
        if let Some(volume) = self.take_hidden(&place.dir) {
            volume.close()?;
        }
        let trash = self.path.join(TRASH_DIR);
        let gone = trash.join(format!("{GONE_PREFIX}{}", place.name));
        files
            .rename(&place.dir, &gone)
            .and_then(|()| files.sync_dir(&trash))
            .at(|| format!("removing {}", place.dir.display()))?;
        if let Some((id, parent)) = place.identity.as_ref().and_then(|one| Some((one.id, one.parent?))) {
            let parents = self.opened().into_iter().filter(|volume| volume.identity().id == parent.id);
            parents.for_each(|volume| volume.release_clone(id));
        }
        files.remove_dir_all(&gone).at(|| format!("removing {}", gone.display()))
    }

    /// What a crash left of volumes that were being removed.
    fn remove_gone(&self) -> Result<()> {
        let trash = self.path.join(TRASH_DIR);
        let entries = self.shared.files.list(&trash).at(|| format!("listing {}", trash.display()))?;
        let mut gone =
            entries.into_iter().filter(|entry| entry.is_dir && entry.name.starts_with(GONE_PREFIX));
        gone.try_for_each(|entry| {
            let dir = trash.join(&entry.name);
            self.shared.files.remove_dir_all(&dir).at(|| format!("removing {}", dir.display()))
        })
    }
}

fn place_of<'a>(places: &'a [Place], dir: &Path) -> Option<&'a Place> {
    places.iter().find(|place| place.dir == dir)
}

/// The clones that read from this volume.
fn readers_of<'a>(places: &'a [Place], volume: &Place) -> Vec<&'a Place> {
    let Some(id) = volume.identity.as_ref().map(|identity| identity.id) else { return Vec::new() };
    let parent = |place: &Place| place.identity.as_ref().and_then(|identity| identity.parent);
    places.iter().filter(|place| parent(place).is_some_and(|parent| parent.id == id)).collect()
}
