//! Clones: volumes that begin as another was at an instant.

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Zone, split_export};
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

use super::points::{self, PointInfo};
use super::{Progress, Response, Watch};

/// What to clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOf {
    /// `VOL@POINT` or `GROUP@POINT`.
    pub target: String,
    /// Name of the clone, or of the group of clones.
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

/// Clones of all members of a group, made together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClonedGroup {
    /// The group that they are.
    pub group: String,
    /// They.
    pub clones: Vec<Cloned>,
}

/// A clone that has let go of its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydrated {
    /// Its name.
    pub name: String,
    /// Bytes that were copied; 0 if it had no parent any more.
    pub copied_bytes: u64,
}

/// The members of a group, each of which has let go of its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HydratedGroup {
    /// The group.
    pub group: String,
    /// Its members, in its order.
    pub clones: Vec<Hydrated>,
}

/// Makes a clone, or one of each member of a group. Nothing is copied.
pub fn clone(store: &Store, request: &CloneOf, zone: &Zone) -> Result<Response> {
    let (name, point) = split_export(&request.target);
    if point.is_none() {
        return Err(Error::new(Kind::Invalid, format!("{name} names no point"))
            .hint(format!("{name}@latest is the state now, {name}@-5m that of five minutes ago")));
    }
    let targets = points::targets(store, &request.target, zone)?;
    if targets.iter().any(|target| target.request.clone.is_some()) {
        return Err(Error::new(Kind::Invalid, "`+rw` has no meaning here: the clone is writable, and stays"));
    }
    let infos = targets.iter().map(|target| target.info()).collect::<Result<Vec<_>>>()?;
    if !store.groups().contains_key(name) {
        let [target] = &targets[..] else { return Err(Error::new(Kind::Invalid, "one volume at a time")) };
        let volume = store.clone_volume(&target.volume, target.resolved.lsn, &request.name)?;
        let point = infos.into_iter().next().expect("one for each target");
        return Ok(Response::Cloned(Cloned::of(&volume, point)));
    }
    let members: Vec<_> = targets.into_iter().map(|target| (target.volume, target.resolved.lsn)).collect();
    let volumes = store.clone_group(&request.name, &members)?;
    let clones = volumes.iter().zip(infos).map(|(volume, point)| Cloned::of(volume, point)).collect();
    Ok(Response::ClonedGroup(ClonedGroup { group: request.name.clone(), clones }))
}

impl Cloned {
    fn of(volume: &Volume, point: PointInfo) -> Cloned {
        let identity = volume.identity();
        Cloned {
            name: identity.name.clone(),
            id: identity.id.to_string(),
            size_bytes: volume.size_bytes(),
            point,
        }
    }
}

/// Copies what a clone, or each member of a group of clones, still reads from its parent, and lets go of that. They can be used
/// meanwhile. A member that cannot be copied does not keep the others from it; the error then says how each of them is.
pub fn hydrate(store: &Store, name: &str, watch: &mut Watch<'_>) -> Result<Response> {
    let Some(members) = store.groups().remove(name) else {
        return hydrate_one(store, name, watch).map(Response::Hydrated);
    };
    let outcomes: Vec<(String, Result<Hydrated>)> =
        members.into_iter().map(|member| (member.clone(), hydrate_one(store, &member, watch))).collect();
    let failed = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err());
    if let Some(first) = failed.clone().next() {
        let each = outcomes.iter().map(|(member, outcome)| match outcome {
            Ok(_) => format!("{member} stands on its own"),
            Err(error) => format!("{member} does not: {error}"),
        });
        let (count, all) = (failed.count(), outcomes.len());
        let context =
            format!("{count} of {all} members of group {name}: {}", each.collect::<Vec<_>>().join("; "));
        let hint = first
            .hint_text()
            .unwrap_or("run it again when that is mended: what stands on its own is not copied again");
        return Err(Error::new(first.kind(), context).hint(hint));
    }
    let clones = outcomes.into_iter().filter_map(|(_, outcome)| outcome.ok()).collect();
    Ok(Response::HydratedGroup(HydratedGroup { group: name.to_owned(), clones }))
}

fn hydrate_one(store: &Store, name: &str, watch: &mut Watch<'_>) -> Result<Hydrated> {
    let copied_bytes = store.hydrate_volume(name, &mut |done, total| {
        watch(Progress { what: format!("copying {name} from its parent"), done, total })
    })?;
    Ok(Hydrated { name: name.to_owned(), copied_bytes })
}
