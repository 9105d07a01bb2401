//! Writing a view out to a raw file or a block device; a group to a directory of files.

use std::path::PathBuf;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::{CloneRequest, Zone};
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

use super::points::{self, PointInfo};
use super::{Watch, points::Target};
use crate::image::target;

/// What to write where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// `VOL@POINT` or `GROUP@POINT`.
    pub target: String,
    /// A file or a block device; for a group a directory. Absolute.
    pub path: PathBuf,
    /// Replace what is there.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Which state.
    pub point: PointInfo,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of data; the rest are zeros.
    pub written_bytes: u64,
}

/// Writes it and reads it back.
pub fn restore(
    store: &Store,
    request: &Restore,
    zone: &Zone,
    watch: &mut Watch<'_>,
) -> Result<Vec<Restored>> {
    let targets = points::shown_targets(store, &request.target, zone)?;
    let (name, _) = cdp_core::history::point::split_export(&request.target);
    let is_group = store.groups().contains_key(name);
    if let Some(Target { request: asked, .. }) = targets.first()
        && let Some(CloneRequest::Private | CloneRequest::Shared(_)) = asked.clone
    {
        return Err(Error::new(Kind::Invalid, "a clone cannot be restored: `+rw` has no meaning here"));
    }
    if is_group {
        std::fs::create_dir_all(&request.path).at(|| format!("making {}", request.path.display()))?;
    }
    // All of them are held before the first is written: that may take long.
    let hold = |target: Target| {
        let view = target.view("cdp restore")?;
        Ok((target, view))
    };
    let held = targets.into_iter().map(hold).collect::<Result<Vec<_>>>()?;
    let mut restored = Vec::new();
    for (target, view) in held {
        let path = match is_group {
            true => request.path.join(format!("{}.img", target.volume.name())),
            false => request.path.clone(),
        };
        let point = target.info()?;
        let size_bytes = target.size_bytes();
        let written_bytes = target::Target::open(&path, size_bytes, request.force)?.fill(&view, watch)?;
        restored.push(Restored { point, path, size_bytes, written_bytes });
    }
    Ok(restored)
}
