//! Making volumes: whole under an unfinished name, then renamed.
//!
//! Legal states after a crash: no volume, or the whole one. What is left under an unfinished name goes when the store is
//! opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, UNFINISHED_PREFIX, VOLUMES_DIR};
use crate::base::BaseWriter;
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::{HISTORY_FILE, HistoryState};
use crate::history::epochs::Epochs;
use crate::history::point::validate_volume_name;
use crate::ids::*;
use crate::io::replace_file;
use crate::limits::*;
use crate::volume::epoch::write_epochs;
use crate::volume::identity::{create_mark, write_manifest};
use crate::volume::open::{Accept, open_on};
use crate::volume::role::Role;
use crate::volume::{Identity, Shared, Volume};

/// Puts a base under a volume that is being made.
pub type FillBase<'a> = dyn FnMut(&mut BaseWriter) -> Result<()> + 'a;

/// How a volume is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size in bytes, [`VOLUME_BYTES_MIN`] to [`VOLUME_BYTES_MAX`].
    pub size_bytes: u64,
    /// See [`Identity::journal_cap_bytes`].
    pub journal_cap_bytes: Option<u64>,
    /// See [`Identity::marker_interval_ns`].
    pub marker_interval_ns: u64,
    /// Size of journal segments in bytes; [`SEGMENT_BYTES`] but in simulations.
    pub segment_bytes: u64,
}

impl CreateOptions {
    /// The defaults for a volume of this size.
    pub fn new(size_bytes: u64) -> CreateOptions {
        CreateOptions {
            size_bytes,
            journal_cap_bytes: None,
            marker_interval_ns: 1_000_000_000,
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

impl Store {
    /// Makes a volume. `fill` may put a base under it before anybody sees it.
    ///
    /// Legal states after a crash: no volume (an unfinished directory is removed at the next opening) or the
    /// whole one.
    pub fn create_volume(
        &self,
        name: &str,
        options: &CreateOptions,
        fill: Option<&mut FillBase<'_>>,
    ) -> Result<Arc<Volume>> {
        check_options(options)?;
        let identity = Identity {
            name: name.to_owned(),
            id: VolumeId(self.shared.clock.random()),
            first_size_bytes: options.size_bytes,
            created: self.shared.clock.take(1),
            segment_bytes: options.segment_bytes,
            journal_cap_bytes: options.journal_cap_bytes,
            marker_interval_ns: options.marker_interval_ns,
            held: None,
            parent: None,
            role: Role::Primary,
            cut: None,
            orphan: None,
            journal_of: None,
        };
        self.make_volume(&identity, fill, None, None)
    }

    /// Makes a volume with this identity; `parent` is the view that a clone's base is; `begin` says where the journal
    /// begins, if not at the beginning, and what epochs there were by then.
    pub(super) fn make_volume(
        &self,
        identity: &Identity,
        fill: Option<&mut FillBase<'_>>,
        parent: Option<Arc<dyn Device>>,
        begin: Option<&(HistoryState, Epochs)>,
    ) -> Result<Arc<Volume>> {
        self.make_volume_with(identity, fill, parent, begin, &mut |dir| {
            create_mark(&self.shared, dir, identity)
        })
    }

    /// As [`Store::make_volume`]; `journal` makes the mark, and the journal if there is one already.
    pub(super) fn make_volume_with(
        &self,
        identity: &Identity,
        fill: Option<&mut FillBase<'_>>,
        parent: Option<Arc<dyn Device>>,
        begin: Option<&(HistoryState, Epochs)>,
        journal: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<Arc<Volume>> {
        let name = &identity.name[..];
        let dir = self.free_dir(name)?;
        let fresh = self.unfinished_dir(identity.id);
        let made = self.fill_dir(&fresh, identity, fill, begin, journal).and_then(|()| {
            // Until it is open: a volume that stands there and is not is opened by whoever comes by (`reopen.rs`).
            let naming = self.naming.lock().expect("no panics under this lock");
            // Somebody may have been quicker.
            self.free_dir(name)?;
            self.name_dir(&fresh, &dir).map(|()| naming)
        });
        let _naming = match made {
            Ok(naming) => naming,
            Err(error) => {
                // The next opening removes what is left.
                let _ = self.shared.files.remove_dir_all(&fresh);
                return Err(error);
            }
        };
        // Whoever makes a volume waits: its first segment is only reserved, not written.
        let shared = Shared { prewrite: self.shared.prewrite && parent.is_none(), ..self.shared.clone() };
        let volume = open_on(&shared, &dir, Accept::default(), parent)?;
        self.volumes.lock().expect("no panics under this lock").insert(name.to_owned(), volume.clone());
        Ok(volume)
    }

    /// One name never means two things.
    pub(super) fn refuse_if_group(&self, name: &str) -> Result<()> {
        match self.groups.lock().expect("no panics under this lock").contains_key(name) {
            true => Err(Error::new(Kind::Exists, format!("there is a group named {name:?}"))
                .hint(format!("take another name, or forget the group: `cdp group delete {name}`"))),
            false => Ok(()),
        }
    }

    /// Where a volume of this name would stand, if the name is legal and nobody has it.
    pub(super) fn free_dir(&self, name: &str) -> Result<PathBuf> {
        validate_volume_name(name)?;
        self.refuse_if_withheld(name)?;
        self.refuse_if_decided(name)?;
        self.refuse_if_group(name)?;
        let dir = self.path.join(VOLUMES_DIR).join(name);
        if self.shared.files.list(&dir).is_ok() {
            return Err(Error::new(Kind::Exists, format!("there is a volume {name:?} already")));
        }
        Ok(dir)
    }

    /// Where a volume stands while it is made.
    pub(super) fn unfinished_dir(&self, id: VolumeId) -> PathBuf {
        self.path.join(VOLUMES_DIR).join(format!("{UNFINISHED_PREFIX}{id}"))
    }

    /// Makes the directory of a volume, whole, under its unfinished name. Durable but for that name.
    pub(super) fn fill_dir(
        &self,
        fresh: &Path,
        identity: &Identity,
        fill: Option<&mut FillBase<'_>>,
        begin: Option<&(HistoryState, Epochs)>,
        journal: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<()> {
        let files = &*self.shared.files;
        files.create_dir(fresh).at(|| format!("making {}", fresh.display()))?;
        // One that is empty says so. A clone's base is its parent's view.
        if fill.is_some() || identity.parent.is_none() {
            let bytes = begin.map_or(identity.first_size_bytes, |(history, _)| history.base.size_bytes);
            let mut base = BaseWriter::new(self.shared.files.clone(), fresh, identity.id, bytes);
            fill.map_or(Ok(()), |fill| fill(&mut base))?;
            base.finish()?;
        }
        if let Some((history, epochs)) = begin {
            write_epochs(&self.shared, fresh, epochs)?;
            let path = fresh.join(HISTORY_FILE);
            replace_file(files, &path, &history.encode()).at(|| format!("writing {}", path.display()))?;
        }
        journal(fresh)?;
        write_manifest(&self.shared, fresh, identity)
    }

    /// Gives a volume that was made its name. Durable when this returns.
    pub(super) fn name_dir(&self, fresh: &Path, dir: &Path) -> Result<()> {
        let files = &self.shared.files;
        files
            .rename(fresh, dir)
            .and_then(|()| files.sync_dir(&self.path.join(VOLUMES_DIR)))
            .at(|| format!("naming {}", dir.display()))
    }
}

fn check_options(options: &CreateOptions) -> Result<()> {
    let size = options.size_bytes;
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size) || !size.is_multiple_of(512) {
        let context = format!(
            "a size of {size} bytes; it must be a multiple of 512 between {VOLUME_BYTES_MIN} (1 MiB) and {VOLUME_BYTES_MAX} (64 TiB)"
        );
        return Err(Error::new(Kind::Invalid, context));
    }
    Ok(())
}
