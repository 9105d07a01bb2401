//! Clones: a volume whose base is a view of another, and how it lets go of that.
//!
//! The clone's manifest names its parent and the LSN; that is the pin, there exactly as long as the clone reads from
//! the parent. While a volume has a parent nothing may be folded into its base: what stands in its directory as base
//! does not count.
//!
//! Hydration copies the parent's view into the clone's own base. Legal states after a crash: the manifest names the
//! parent, and whatever part of a base stands there is thrown away by the next attempt; or it does not, and the whole
//! base stands there, synced before the manifest was.

use std::sync::{Arc, RwLockWriteGuard};

use super::Volume;
use super::pins::Pin;
use crate::base::{Base, BaseWriter, remove_pieces};
use crate::device::{Content, Device};
use crate::error::{Error, Kind, Result};
use crate::ids::*;

/// Bytes copied at a time.
const STEP_BYTES: u64 = 1 << 20;
/// Stretches of the parent looked at in one go.
const STRETCHES_PER_LOOK: usize = 256;

/// Who holds what a clone reads from, for people.
pub(crate) fn holder_of_clone(name: &str) -> String {
    format!("the clone {name}")
}

/// What a clone reads from.
pub(super) struct HeldByClone {
    /// Which state.
    pub lsn: Lsn,
    /// The clone's name, for people.
    pub name: String,
}

/// Whose view a clone's base is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    /// The volume.
    pub id: VolumeId,
    /// The state of it.
    pub lsn: Lsn,
}

/// Told of the bytes that were looked at and of all there are; an error from it ends the work.
pub type Watch<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

impl Volume {
    /// Of a clone: whose view its base is, until it is hydrated. Nothing is folded into the base of such a volume.
    pub fn parent(&self) -> Option<Parent> {
        self.manifest.lock().expect("no panics under this lock").parent
    }

    /// The states that clones read from, whether or not those are open: in the trash, or not to be opened. Whatever
    /// ages history has to keep them.
    pub fn held_by_clones(&self) -> Vec<(VolumeId, Lsn)> {
        let clones = self.door.clones.lock().expect("no panics under this lock");
        clones.iter().map(|(id, held)| (*id, held.lsn)).collect()
    }

    /// As pins, with their names.
    pub(super) fn pins_of_clones(&self) -> Vec<Pin> {
        let clones = self.door.clones.lock().expect("no panics under this lock");
        let pin =
            |held: &HeldByClone| Pin { lsn: held.lsn, holder: holder_of_clone(&held.name), all_above: false };
        clones.values().map(pin).collect()
    }

    /// A clone reads from this state, or is about to.
    pub(crate) fn hold_for_clone(&self, clone: VolumeId, name: &str, lsn: Lsn) {
        let held = HeldByClone { lsn, name: name.to_owned() };
        self.door.clones.lock().expect("no panics under this lock").insert(clone, held);
    }

    /// It does not any more.
    pub(crate) fn release_clone(&self, clone: VolumeId) {
        self.door.clones.lock().expect("no panics under this lock").remove(&clone);
    }

    /// See [`Base::parent_slot`].
    pub(crate) fn parent_slot(&self) -> RwLockWriteGuard<'_, Option<Arc<dyn Device>>> {
        self.base.parent_slot()
    }

    /// Makes everything up to this record survive power loss: a clone will stand on it.
    pub fn settle(&self, lsn: Lsn) -> Result<()> {
        if lsn > self.durable_lsn() { self.sync_through(lsn) } else { Ok(()) }
    }

    /// Copies what is the parent's into a base of the volume's own, and lets go of the parent. The volume is in use
    /// meanwhile. Gives the bytes that were copied; 0 if it has no parent.
    pub fn hydrate(&self, watch: &mut Watch<'_>) -> Result<u64> {
        let Some(_alone) = self.door.hydrating.try_lock().ok() else {
            let context = format!("volume {} is being hydrated already", self.identity.name);
            return Err(Error::new(Kind::Busy, context));
        };
        // The clone itself may have grown; its parent's view has not.
        let Some(bytes) = self.base.parent().map(|parent| parent.size_bytes()) else { return Ok(0) };
        let (files, id) = (&self.shared.files, self.identity.journal_id());
        {
            let _using = self.use_files()?;
            remove_pieces(&**files, &self.dir)?;
        }
        let mut writer = BaseWriter::new(files.clone(), &self.dir, id, bytes);
        let mut copied = 0;
        let mut at = 0;
        let mut buffer = vec![0; STEP_BYTES as usize];
        while at < bytes {
            // By way of the base: the parent may be opened anew meanwhile, in another place.
            let stretches = {
                let _using = self.use_files()?;
                self.base.extents_of_parent(at, bytes - at, STRETCHES_PER_LOOK)?
            };
            for stretch in stretches {
                let end = at + stretch.len;
                while at < end {
                    // In whole blocks, so that the next step begins on one.
                    let step =
                        if stretch.content == Content::Data { (end - at).min(STEP_BYTES) } else { end - at };
                    if stretch.content == Content::Data {
                        let _using = self.use_files()?;
                        let blocks = &mut buffer[..step.next_multiple_of(BLOCK_BYTES) as usize];
                        self.base.read(at / BLOCK_BYTES, blocks)?;
                        writer.write(at / BLOCK_BYTES, blocks)?;
                        copied += step;
                    }
                    at += step;
                    watch(at, bytes)?;
                }
            }
        }
        let using = self.use_files()?;
        writer.finish()?;
        drop(using);
        self.change_manifest(|manifest| manifest.parent = None)?;
        self.base.let_go(Base::open(files, &self.dir, id, bytes)?);
        Ok(copied)
    }
}
