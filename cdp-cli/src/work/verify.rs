//! Reading everything back.

use std::time::Instant;

use cdp_core::error::{Kind, Result};
use cdp_core::store::Store;
use cdp_core::volume::verify::{self, Damage};
use serde::{Deserialize, Serialize};

use super::{Progress, Watch, groups};

/// What was found on a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// The volume.
    pub volume: String,
    /// Nothing is damaged.
    pub good: bool,
    /// Bytes read.
    pub bytes: u64,
    /// Segments read.
    pub segments: u64,
    /// Records read.
    pub records: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many places are damaged.
    pub damage_count: u64,
    /// The first of them.
    pub damages: Vec<Place>,
}

/// A place of damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// In which file.
    pub file: String,
    /// From which byte on.
    pub offset: u64,
    /// Of which record.
    pub lsn: Option<u64>,
    /// First block of the volume that is affected.
    pub lba: Option<u64>,
    /// How many blocks.
    pub blocks: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl From<Damage> for Place {
    fn from(damage: Damage) -> Place {
        Place {
            file: damage.file.display().to_string(),
            offset: damage.offset,
            lsn: damage.lsn.map(|lsn| lsn.0),
            lba: damage.extent.map(|extent| extent.start.0),
            blocks: damage.extent.map(|extent| extent.blocks),
            what: damage.what,
        }
    }
}

/// How many places go into an answer.
const PLACES_MAX: usize = 200;

/// Verifies one volume, all members of a group, or all there are; one that cannot be opened counts as damaged.
pub fn verify(store: &Store, target: Option<&str>, watch: &mut Watch<'_>) -> Result<Vec<Verified>> {
    let mut failed = store.failed();
    let volumes = match target.map(|target| groups::names(store, target)) {
        Some(names) => {
            failed.retain(|(name, _)| names.contains(name));
            let opened = names.iter().filter(|name| failed.iter().all(|(failed, _)| failed != *name));
            opened.map(|name| store.volume(name)).collect::<Result<_>>()?
        }
        None => store.volumes(),
    };
    let mut results = Vec::new();
    for volume in volumes {
        let begin = Instant::now();
        let what = format!("verifying {}", volume.name());
        let found =
            verify::verify(&volume, &mut |done, total| watch(Progress { what: what.clone(), done, total }))?;
        results.push(Verified {
            volume: volume.name().to_owned(),
            good: found.damage_count == 0,
            bytes: found.bytes,
            segments: found.segments,
            records: found.records,
            seconds: begin.elapsed().as_secs_f64(),
            damage_count: found.damage_count,
            damages: found.damages.into_iter().take(PLACES_MAX).map(Place::from).collect(),
        });
    }
    for (name, error) in failed {
        let what = match error.kind() {
            Kind::Damaged => error.to_string(),
            _ => format!("it cannot be opened: {error}"),
        };
        let place = Place { file: String::new(), offset: 0, lsn: None, lba: None, blocks: None, what };
        results.push(Verified {
            volume: name,
            good: false,
            bytes: 0,
            segments: 0,
            records: 0,
            seconds: 0.0,
            damage_count: 1,
            damages: vec![place],
        });
    }
    Ok(results)
}
