//! Clones: making them, opening them behind their parents, and keeping deleted parents as long as they are read from.
//!
//! Whose view a clone's base is stands in the clone's manifest, and nowhere else: the hold on the parent is there
//! when the clone is, in the trash too, and ends when the clone is hydrated or gone for good.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Store, TRASH_DIR, VOLUMES_DIR};
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::*;
use crate::view::View;
use crate::volume::clone::{Parent, Watch, holder_of_clone};
use crate::volume::cut::Orphan;
use crate::volume::identity::{read_manifest, write_manifest};
use crate::volume::open::{Accept, open_on};
use crate::volume::role::Role;
use crate::volume::{Identity, Volume};

/// Clones of clones of clones: so many at most, one behind the other. Each reads through all its parents.
pub const CLONE_DEPTH_MAX: usize = 32;
/// So long clones are kept from their parent at a time while others finish reading from it.
const SLOTS_HELD: Duration = Duration::from_millis(100);
/// And so long they are let in between.
const SLOTS_PAUSE: Duration = Duration::from_millis(1);

/// When a volume is opened.
#[derive(Clone, Copy)]
pub(super) enum When<'a> {
    /// With the store, before anybody is served; this says what somebody accepted for a volume of a name.
    AtStart(&'a dyn Fn(&str) -> Accept),
    /// While others are served and upkeep goes on.
    Live,
}

impl When<'_> {
    fn accept(self, name: &str) -> Accept {
        match self {
            When::AtStart(accept) => accept(name),
            When::Live => Accept::default(),
        }
    }
}

/// A volume's directory, whether it is in the trash, and what its manifest says, if it can be read.
pub(super) struct Place {
    pub dir: PathBuf,
    pub name: String,
    pub is_trash: bool,
    pub identity: Option<Identity>,
}

impl Store {
    /// Makes a volume that begins as `parent` was at `lsn`. Nothing is copied; the parent's history is held from that
    /// record on as long as the clone reads from it.
    ///
    /// Legal states after a crash: no clone, or the whole one.
    pub fn clone_volume(&self, parent: &Arc<Volume>, lsn: Lsn, name: &str) -> Result<Arc<Volume>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.free_dir(name)?;
        let (identity, view) = self.plan_clone(parent, lsn, name)?;
        parent.hold_for_clone(identity.id, name, lsn);
        let made = self.make_volume(&identity, None, Some(Arc::new(view)), None);
        // One that stands there and could not be opened is a clone all the same.
        if made.is_err() && matches!(self.place_of(identity.id), Ok(None)) {
            parent.release_clone(identity.id);
        }
        made
    }

    /// What a clone would be, and its parent's state, which is held from here on and there after a power cut.
    pub(super) fn plan_clone(&self, parent: &Arc<Volume>, lsn: Lsn, name: &str) -> Result<(Identity, View)> {
        if lsn > parent.tip_lsn() {
            let context = format!("volume {} has no {lsn:?}", parent.name());
            return Err(Error::new(Kind::OutOfRange, context));
        }
        let depth = self.depth_of(parent)?;
        if depth >= CLONE_DEPTH_MAX {
            let context = format!("volume {} is a clone of a clone, {depth} deep", parent.name());
            return Err(Error::new(Kind::Refused, context)
                .hint(format!("`cdp hydrate {}` makes it a volume of its own", parent.name())));
        }
        let view = View::open(parent.clone(), lsn, &holder_of_clone(name))?;
        parent.settle(lsn)?;
        let identity = Identity {
            name: name.to_owned(),
            id: VolumeId(self.shared.clock.random()),
            first_size_bytes: view.size_bytes(),
            created: self.shared.clock.take(1),
            segment_bytes: parent.identity().segment_bytes,
            journal_cap_bytes: None,
            marker_interval_ns: parent.identity().marker_interval_ns,
            held: None,
            parent: Some(Parent { id: parent.identity().id, lsn }),
            role: Role::Primary,
            cut: None,
            orphan: None,
            journal_of: None,
        };
        Ok((identity, view))
    }

    /// Copies what a clone reads from its parent, and lets go of that; see [`Volume::hydrate`].
    pub fn hydrate_volume(&self, name: &str, watch: &mut Watch<'_>) -> Result<u64> {
        let volume = self.volume(name)?;
        let parent = volume.parent();
        let copied = volume.hydrate(watch)?;
        let id = volume.identity().id;
        for other in self.opened().iter().filter(|other| parent.is_some_and(|p| p.id == other.identity().id))
        {
            other.release_clone(id);
        }
        Ok(copied)
    }

    /// Every volume that is open, hidden ones too.
    pub(super) fn opened(&self) -> Vec<Arc<Volume>> {
        let mut opened = self.volumes();
        opened.extend(self.hidden.lock().expect("no panics under this lock").values().cloned());
        opened
    }

    /// Tells each volume which clones read from it, by the manifests: of those in the trash, and of those that cannot
    /// be opened, too.
    pub(super) fn note_clones(&self) -> Result<()> {
        self.note_clones_of(&self.opened())
    }

    fn note_clones_of(&self, opened: &[Arc<Volume>]) -> Result<()> {
        for place in self.places()? {
            let Some(identity) = place.identity else {
                // It may be a clone of anything.
                let holder = format!("{}, whose manifest cannot be read", place.name);
                opened.iter().for_each(|volume| volume.hold_while_open(volume.oldest().0, &holder));
                continue;
            };
            let Some(parent) = identity.parent else { continue };
            for volume in opened.iter().filter(|volume| volume.identity().id == parent.id) {
                volume.hold_for_clone(identity.id, &place.name, parent.lsn);
            }
        }
        Ok(())
    }

    pub(super) fn depth_of(&self, volume: &Volume) -> Result<usize> {
        let places = self.places()?;
        let mut depth = 0;
        let mut parent = volume.parent();
        while let (Some(above), true) = (parent, depth < CLONE_DEPTH_MAX) {
            depth += 1;
            let identities = places.iter().filter_map(|place| place.identity.as_ref());
            parent = identities.into_iter().find(|identity| identity.id == above.id).and_then(|i| i.parent);
        }
        Ok(depth)
    }

    /// Opens a volume and, before it, whatever it is a clone of; notes it, or why it cannot be opened.
    pub(super) fn open_by_dir(&self, name: &str, dir: &Path, when: When<'_>) {
        self.open_at_depth(name, dir, when, 0);
    }

    fn open_at_depth(&self, name: &str, dir: &Path, when: When<'_>, depth: usize) {
        match self.open_with_parent(name, dir, when, depth) {
            Ok(volume) => {
                self.volumes.lock().expect("no panics under this lock").insert(name.to_owned(), volume);
                self.failed.lock().expect("no panics under this lock").remove(name);
            }
            Err(error) => {
                self.failed.lock().expect("no panics under this lock").insert(name.to_owned(), error);
            }
        }
    }

    fn open_with_parent(&self, name: &str, dir: &Path, when: When<'_>, depth: usize) -> Result<Arc<Volume>> {
        let identity = read_manifest(&self.shared, dir)?;
        let parent = match identity.parent {
            None => None,
            Some(_) if depth > CLONE_DEPTH_MAX => {
                return Err(Error::new(Kind::Damaged, format!("volume {name} is a clone of itself")));
            }
            Some(parent) => Some(self.parent_of(name, parent, when, depth + 1)?),
        };
        let volume = open_on(&self.shared, dir, when.accept(name), parent)?;
        if let When::Live = when {
            // The start sees to both when it has opened everything; here, somebody may use it at once.
            self.note_clones_of(std::slice::from_ref(&volume))?;
            self.hold_if_operated_on(&volume)?;
        }
        Ok(volume)
    }

    fn parent_of(&self, name: &str, parent: Parent, when: When<'_>, depth: usize) -> Result<Arc<dyn Device>> {
        let volume = self.by_id(parent.id, when, depth).map_err(|error| {
            let context = format!("volume {name} is a clone, and its parent cannot be had: {error}");
            Error::new(error.kind(), context).hint("what is wrong with the parent has to be put right first")
        })?;
        if volume.tip_lsn() < parent.lsn {
            let context = format!(
                "volume {name} is a clone of {} at {:?}, which has lost that record",
                volume.name(),
                parent.lsn
            );
            return Err(Error::new(Kind::Damaged, context));
        }
        Ok(Arc::new(View::for_clone(volume, parent.lsn, name)))
    }

    /// An opened volume, or one that is opened now; one in the trash stays hidden.
    fn by_id(&self, id: VolumeId, when: When<'_>, depth: usize) -> Result<Arc<Volume>> {
        let opened = self.volumes().into_iter().find(|volume| volume.identity().id == id);
        let hidden = self.hidden.lock().expect("no panics under this lock").get(&id).cloned();
        if let Some(volume) = opened.or(hidden) {
            return Ok(volume);
        }
        let is_it = |place: &Place| place.identity.as_ref().is_some_and(|identity| identity.id == id);
        let place =
            self.places()?.into_iter().find(is_it).ok_or_else(|| {
                Error::new(Kind::NotFound, format!("no volume of this store has the id {id}"))
            })?;
        if !place.is_trash {
            self.refuse_if_withheld(&place.name)?;
            self.open_at_depth(&place.name, &place.dir, when, depth);
            return self.volume(&place.name);
        }
        let volume = self.open_with_parent(&place.name, &place.dir, when, depth)?;
        self.hidden.lock().expect("no panics under this lock").insert(id, volume.clone());
        Ok(volume)
    }

    /// All volumes, and those in the trash.
    pub(super) fn places(&self) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for (parent, is_trash) in [(VOLUMES_DIR, false), (TRASH_DIR, true)] {
            let parent = self.path.join(parent);
            let entries = self.shared.files.list(&parent).at(|| format!("listing {}", parent.display()))?;
            for entry in entries {
                // What is being made, or removed.
                if !entry.is_dir || entry.name.starts_with('.') {
                    continue;
                }
                let dir = parent.join(&entry.name);
                let identity = read_manifest(&self.shared, &dir).ok();
                places.push(Place { dir, name: entry.name, is_trash, identity });
            }
        }
        Ok(places)
    }

    /// Where a volume with this id stands in this store, in the trash too: its directory's name.
    pub(super) fn place_of(&self, id: VolumeId) -> Result<Option<String>> {
        let is_it = |place: &Place| place.identity.as_ref().is_some_and(|identity| identity.id == id);
        Ok(self.places()?.into_iter().find(is_it).map(|place| place.name))
    }

    /// Old copies whose place a newer one took, or is about to take.
    pub(super) fn stepped_aside(&self) -> Result<Vec<Identity>> {
        let identities = self.places()?.into_iter().filter_map(|place| place.identity);
        Ok(identities.filter(|identity| identity.journal_of.is_some()).collect())
    }

    /// A volume that was made for just this tail.
    pub(super) fn orphan_like(&self, orphan: &Orphan) -> Result<Option<VolumeId>> {
        let places = self.places()?;
        let identities = places.iter().filter_map(|place| place.identity.as_ref());
        Ok(identities.filter(|identity| identity.orphan.as_ref() == Some(orphan)).map(|i| i.id).next())
    }

    /// A volume and all that read from it, and from those.
    pub(super) fn with_descendants(&self, id: VolumeId) -> Result<BTreeSet<VolumeId>> {
        let places = self.places()?;
        let mut all = BTreeSet::from([id]);
        loop {
            let known = all.len();
            for identity in places.iter().filter_map(|place| place.identity.as_ref()) {
                if identity.parent.is_some_and(|parent| all.contains(&parent.id)) {
                    all.insert(identity.id);
                }
            }
            if all.len() == known {
                return Ok(all);
            }
        }
    }

    /// Clones of the tail behind `fork`, in the trash too, read from the orphan from now on: it shows the same at the same
    /// records.
    pub(super) fn reparent_clones(&self, of: VolumeId, fork: Lsn, orphan: VolumeId) -> Result<()> {
        for place in self.places()? {
            let Some(mut identity) = place.identity else {
                let context = format!("the manifest of {} cannot be read; it may be a clone", place.name);
                return Err(Error::new(Kind::Refused, context));
            };
            let is_of_tail = |parent: &Parent| parent.id == of && parent.lsn > fork;
            let Some(parent) = identity.parent.filter(is_of_tail) else { continue };
            identity.parent = Some(Parent { id: orphan, lsn: parent.lsn });
            write_manifest(&self.shared, &place.dir, &identity)?;
        }
        Ok(())
    }

    /// A volume in the trash that clones read from, taken out of everybody's sight.
    pub(super) fn take_hidden(&self, dir: &Path) -> Option<Arc<Volume>> {
        let mut hidden = self.hidden.lock().expect("no panics under this lock");
        let id = hidden.iter().find(|(_, volume)| volume.dir() == dir).map(|(id, _)| *id)?;
        hidden.remove(&id)
    }

    /// Moves the directory of a volume whose service has ended. Clones that read from it wait meanwhile, and go on with the
    /// volume as it is opened in its new place; whatever else was opened from it is refused from here on.
    pub(super) fn move_parent(
        &self,
        volume: Arc<Volume>,
        rename: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let id = volume.identity().id;
        let clones: Vec<(Arc<Volume>, Lsn)> = self
            .opened()
            .into_iter()
            .filter_map(|volume| {
                let parent = volume.parent().filter(|parent| parent.id == id)?;
                Some((volume, parent.lsn))
            })
            .collect();
        let mut slots = loop {
            let slots: Vec<_> = clones.iter().map(|(clone, _)| clone.parent_slot()).collect();
            if volume.end_uses_within(SLOTS_HELD) {
                break slots;
            }
            // Somebody who compares a clone with its parent has the parent in hand while he waits for the clone.
            drop(slots);
            std::thread::sleep(SLOTS_PAUSE);
        };
        volume.end_coalesced();
        drop(volume);
        let renamed = rename();
        if clones.is_empty() {
            return renamed;
        }
        // Wherever it stands now.
        let moved = self.by_id(id, When::Live, 0)?;
        for ((clone, lsn), slot) in clones.iter().zip(&mut slots) {
            // One that was hydrated meanwhile needs nothing any more.
            if slot.is_some() {
                **slot = Some(Arc::new(View::for_clone(moved.clone(), *lsn, clone.name())));
            }
        }
        drop(slots);
        renamed.and_then(|()| self.note_clones())
    }

    /// The clones, of any age, that read from this volume: their names; those in the trash with the instant of their
    /// deletion.
    pub fn clones_of(&self, volume: &Volume) -> Result<Vec<String>> {
        let id = volume.identity().id;
        let is_clone = |place: &Place| {
            let parent = place.identity.as_ref().and_then(|identity| identity.parent);
            parent.is_some_and(|parent| parent.id == id)
        };
        Ok(self.places()?.into_iter().filter(is_clone).map(|place| place.name).collect())
    }
}
