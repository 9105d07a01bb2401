//! Clones: volumes that begin as another was at an instant.

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Zone, split_export};
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

use super::points::{self, PointInfo};
use super::{Progress, Watch};

/// What to clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOf {
    /// `VOL@POINT`.
    pub target: String,
    /// Name of the clone.
    pub name: String,
}

/// A clone that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// Its name.
    pub name: String,
    /// Its identity everywhere.
    pub id: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it begins with.
    pub point: PointInfo,
}

/// A clone that has let go of its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydrated {
    /// Its name.
    pub name: String,
    /// Bytes that were copied; 0 if it had no parent any more.
    pub copied_bytes: u64,
}

/// Makes a clone. Nothing is copied.
pub fn clone(store: &Store, request: &CloneOf, zone: &Zone) -> Result<Cloned> {
    let (name, point) = split_export(&request.target);
    if point.is_none() {
        return Err(Error::new(Kind::Invalid, format!("{name} names no point"))
            .hint(format!("{name}@latest is the state now, {name}@-5m that of five minutes ago")));
    }
    if store.groups().contains_key(name) {
        let context = format!("{name:?} is a group");
        return Err(Error::new(Kind::Invalid, context)
            .hint("clone its members one by one, at the same instant or marker"));
    }
    let targets = points::targets(store, &request.target, zone)?;
    let [target] = &targets[..] else { return Err(Error::new(Kind::Invalid, "one volume at a time")) };
    if target.request.clone.is_some() {
        return Err(Error::new(Kind::Invalid, "`+rw` has no meaning here: the clone is writable, and stays"));
    }
    let point = target.info()?;
    let volume = store.clone_volume(&target.volume, target.resolved.lsn, &request.name)?;
    let identity = volume.identity();
    Ok(Cloned {
        name: identity.name.clone(),
        id: identity.id.to_string(),
        size_bytes: volume.size_bytes(),
        point,
    })
}

/// Copies what a clone still reads from its parent, and lets go of that. It can be used meanwhile.
pub fn hydrate(store: &Store, name: &str, watch: &mut Watch<'_>) -> Result<Hydrated> {
    let copied_bytes = store.hydrate_volume(name, &mut |done, total| {
        watch(Progress { what: format!("copying {name} from its parent"), done, total })
    })?;
    Ok(Hydrated { name: name.to_owned(), copied_bytes })
}
