//! Reseeds that somebody asked for at the site of a replica: what its next copy is compared with.

use std::path::PathBuf;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Zone, split_export};
use cdp_core::ids::VolumeId;
use cdp_core::store::Store;
use cdp_core::store::seeds::{SeedFrom, SeedPlan};
use serde::{Deserialize, Serialize};

use super::points;

/// What to do about reseeds; with nothing in it they are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reseed {
    /// Of which volume.
    pub volume: Option<String>,
    /// A volume, `VOL@POINT`, or the whole path of a file; without one, what is here of the volume.
    pub from: Option<String>,
    /// Take it back.
    #[serde(default)]
    pub cancel: bool,
}

/// A reseed that was asked for and is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReseedLine {
    /// The volume.
    pub volume: String,
    /// What its next copy is compared with: an export's name, or a file.
    pub compared_with: String,
    /// There is an old copy, which steps aside when the new one is whole.
    pub replaces: bool,
}

/// Asks for one or takes one back; gives all that are not done.
pub fn reseed(store: &Store, request: &Reseed, zone: &Zone) -> Result<Vec<ReseedLine>> {
    match &request.volume {
        None => {}
        Some(name) if request.cancel => match store.withdraw_reseed(name)? {
            true => {}
            false => {
                let context = format!("nobody asked for a reseed of volume {name}");
                return Err(Error::new(Kind::NotFound, context));
            }
        },
        Some(name) => {
            let from = request.from.as_deref().map(|from| parse(store, from, zone)).transpose()?;
            store.plan_reseed(name, from)?;
        }
    }
    Ok(store.seed_plans()?.iter().map(|plan| line(store, plan)).collect())
}

fn parse(store: &Store, from: &str, zone: &Zone) -> Result<SeedFrom> {
    if from.starts_with('/') {
        return Ok(SeedFrom::File(PathBuf::from(from)));
    }
    let (name, point) = split_export(from);
    let volume = store.volume(name)?;
    let at = match point {
        Some(text) => Some(points::of_volume(store, volume.clone(), text, zone)?.resolved.lsn),
        None => None,
    };
    Ok(SeedFrom::Volume { id: volume.identity().id, at })
}

fn line(store: &Store, plan: &SeedPlan) -> ReseedLine {
    let name = |id: VolumeId| {
        let volume = store.volume_by_id(id);
        volume.map_or_else(|| format!("{id}, which is not here"), |volume| volume.name().to_owned())
    };
    ReseedLine {
        volume: plan.name.clone(),
        compared_with: match &plan.from {
            SeedFrom::File(path) => path.display().to_string(),
            SeedFrom::Volume { id, at: None } => name(*id),
            SeedFrom::Volume { id, at: Some(lsn) } => format!("{}@lsn:{lsn}", name(*id)),
        },
        replaces: plan.replaces.is_some(),
    }
}
