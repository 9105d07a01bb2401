//! Reseeds that somebody asked for at the site of a replica: what its next copy is compared with.

use std::path::PathBuf;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Zone, split_export};
use cdp_core::ids::VolumeId;
use cdp_core::store::Store;
use cdp_core::store::seeds::{SeedFrom, SeedPlan};
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

use super::points;

/// What to do about reseeds; with nothing in it they are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reseed {
    /// Of which volume, or of all members of which group.
    pub volume: Option<String>,
    /// A volume, `VOL@POINT`, or the whole path of a file; without one, what is here of the volume.
    pub from: Option<String>,
    /// The site that sends it; without one, the one whose records are taken here, or where the volume is believed to have gone on.
    #[serde(default)]
    pub site: Option<String>,
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
    /// What is wrong with it, and what to do about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How far one is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReseedStatus {
    /// As in [`ReseedLine`].
    pub compared_with: String,
    /// So much of the new copy is durable here, in bytes.
    pub done_bytes: u64,
    /// Of so many; 0 before it began.
    pub size_bytes: u64,
}

/// Of a volume that is going to give its place to a new copy.
pub fn of_volume(store: &Store, volume: &Volume) -> Option<ReseedStatus> {
    let id = volume.identity().id;
    let plan = store.seed_plan(volume.name()).ok().flatten().filter(|plan| plan.replaces == Some(id))?;
    let begun = store.copy_state(id).ok().flatten();
    Some(ReseedStatus {
        compared_with: line(store, &plan).compared_with,
        done_bytes: begun.as_ref().map_or(0, |state| state.done_bytes),
        size_bytes: begun.as_ref().map_or(0, |state| state.copied.size_bytes),
    })
}

/// Asks for one or takes one back; gives all that are not done.
pub fn reseed(store: &Store, request: &Reseed, zone: &Zone) -> Result<Vec<ReseedLine>> {
    let site = request.site.as_deref();
    match &request.volume {
        None => {}
        Some(name) if request.cancel => {
            let mut was_any = false;
            for name in names(store, name) {
                was_any |= store.withdraw_reseed(&name)?;
            }
            if !was_any {
                let context = format!("nobody asked for a reseed of {name}");
                return Err(Error::new(Kind::NotFound, context));
            }
        }
        Some(name) if request.from.is_none() => {
            let mut planned: Vec<String> = Vec::new();
            for member in names(store, name) {
                if let Err(error) = store.plan_reseed(&member, None, site) {
                    // All members or none.
                    for member in planned {
                        store.withdraw_reseed(&member)?;
                    }
                    return Err(error);
                }
                planned.push(member);
            }
        }
        Some(name) => {
            let from = request.from.as_deref().map(|from| parse(store, from, zone)).transpose()?;
            store.plan_reseed(name, from, site)?;
        }
    }
    let lines = store.seed_plans()?.into_iter().map(|(name, plan)| match plan {
        Ok(plan) => line(store, &plan),
        Err(error) => {
            let hint = error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
            let problem = Some(format!("{error}{hint}"));
            ReseedLine { volume: name, compared_with: String::new(), replaces: false, problem }
        }
    });
    Ok(lines.collect())
}

/// A group's members, or the one volume.
fn names(store: &Store, name: &str) -> Vec<String> {
    store.groups().remove(name).unwrap_or_else(|| vec![name.to_owned()])
}

fn parse(store: &Store, from: &str, zone: &Zone) -> Result<SeedFrom> {
    if from.starts_with('/') {
        return Ok(SeedFrom::File(PathBuf::from(from)));
    }
    let (name, point) = split_export(from);
    let volume = store.volume(name)?;
    let at = match point {
        Some(text) => {
            let target = points::of_volume(store, volume.clone(), text, zone)?;
            target.refuse_clone(from)?;
            Some(target.resolved.lsn)
        }
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
        problem: None,
    }
}
