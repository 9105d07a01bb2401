//! How far back a volume goes, what keeps it, and what it takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::history::retention::{self, Policy};
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::COALESCED_DIR;
use serde::{Deserialize, Serialize};

use super::forecast::{self, Forecast};
use super::points::{self, Place};

/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// What `cdp retention show` shows of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// The volume.
    pub volume: String,
    /// The policy in words, as `set` takes it.
    pub policy: String,
    /// The oldest state that can be viewed.
    pub horizon: Place,
    /// The newest one.
    pub tip: Place,
    /// Up to which record history is in the base.
    pub base_lsn: u64,
    /// What the journal may take, in bytes.
    pub journal_cap_bytes: u64,
    /// When it reaches that, and what happens then.
    #[serde(default)]
    pub forecast: Forecast,
    /// What it all takes.
    pub sizes: Sizes,
    /// What is held by whom, oldest state first.
    pub pins: Vec<PinLine>,
}

/// What a volume takes on the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Its own size, as clients see it.
    pub logical: u64,
    /// Segments, and folds.
    pub journal: u64,
    /// Of these the folds: what is left of history that was thinned.
    #[serde(default)]
    pub folds: u64,
    /// Bytes of the block versions that folds keep.
    #[serde(default)]
    pub thinned_plain: u64,
    /// What those take, compressed.
    #[serde(default)]
    pub thinned_stored: u64,
    /// Runs.
    pub index: u64,
    /// Images and checksums of the base.
    pub base: u64,
    /// A newest state that came ahead of the history.
    #[serde(default)]
    pub newest: u64,
}

impl Sizes {
    /// As the filesystem counts it: holes take nothing.
    pub fn of(volume: &Volume) -> Sizes {
        let thinned = volume.thinned_payload();
        let mut sizes = Sizes {
            logical: volume.size_bytes(),
            thinned_plain: thinned.plain_bytes,
            thinned_stored: thinned.stored_bytes,
            ..Sizes::default()
        };
        let disk_bytes =
            |entry: &fs::DirEntry| entry.metadata().map_or(0, |data| data.blocks() * STAT_BLOCK_BYTES);
        // A file that goes away meanwhile takes nothing.
        let newest = fs::read_dir(volume.dir().join(COALESCED_DIR));
        sizes.newest = newest.into_iter().flatten().flatten().map(|entry| disk_bytes(&entry)).sum();
        for entry in fs::read_dir(volume.dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let bytes = disk_bytes(&entry);
            if name.ends_with(".seg") {
                sizes.journal += bytes;
            } else if name.ends_with(".fold") {
                sizes.journal += bytes;
                sizes.folds += bytes;
            } else if name.ends_with(".run") {
                sizes.index += bytes;
            } else if name.starts_with("base.") {
                sizes.base += bytes;
            }
        }
        sizes
    }
}

/// A hold on history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinLine {
    /// The state.
    pub lsn: u64,
    /// Who.
    pub holder: String,
}

/// What holds history, oldest state first.
pub fn pins(volume: &Volume) -> Vec<PinLine> {
    volume.pins().into_iter().map(|pin| PinLine { lsn: pin.lsn.0, holder: pin.holder }).collect()
}

/// A marker that was let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmarked {
    /// The volume.
    pub volume: String,
    /// The marker's name.
    pub name: String,
    /// Its record.
    pub lsn: u64,
    /// When it was set, RFC 3339 in UTC.
    pub utc: String,
}

/// How far back a volume goes, or each member of a group, and why.
pub fn show(store: &Store, target: &str) -> Result<Vec<Retention>> {
    store.members(target)?.iter().map(|volume| of_volume(store, volume)).collect()
}

fn of_volume(store: &Store, volume: &Volume) -> Result<Retention> {
    let ((horizon, horizon_at), (tip, tip_at)) = (volume.horizon(), volume.tip());
    Ok(Retention {
        volume: volume.name().to_owned(),
        policy: volume.retention().to_string(),
        horizon: Place::new(horizon, horizon_at),
        tip: Place::new(tip, tip_at),
        base_lsn: volume.base_point().lsn.0,
        journal_cap_bytes: volume.journal_cap_bytes()?,
        forecast: forecast::of(volume, store.clock().now())?,
        sizes: Sizes::of(volume),
        pins: pins(volume),
    })
}

/// What `cdp retention simulate` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulated {
    /// The volume.
    pub volume: String,
    /// The policy in words.
    pub policy: String,
    /// The oldest state that could be viewed.
    pub horizon: Place,
    /// From here on every state would be there.
    pub window: Place,
    /// The newest one.
    pub tip: Place,
    /// Up to which record history would be in the base.
    pub base_lsn: u64,
    /// Single states that would stay before the window.
    pub states_kept: u64,
    /// States that can be viewed now and could not be any more.
    pub states_gone: u64,
    /// Named markers that would go.
    pub names_gone: Vec<String>,
    /// What the journal takes now, in bytes.
    pub journal_bytes: u64,
    /// What it would take.
    pub journal_bytes_after: u64,
    /// Of that, history that was thinned.
    pub fold_bytes: u64,
    /// What it may take.
    pub cap_bytes: u64,
    /// Whether it would be at its cap after all that.
    pub is_full: bool,
    /// So many seconds of every write fit below the cap, at the rate of this journal.
    pub every_write_seconds: Option<u64>,
    /// So many seconds back the policy goes below the cap, likewise.
    pub policy_seconds: Option<u64>,
}

/// What a policy would make of the history that there is, of a volume or of each member of a group; without one, the policy
/// that is set.
pub fn simulate(store: &Store, target: &str, policy: Option<&str>) -> Result<Vec<Simulated>> {
    let policy = policy.map(retention::parse).transpose()?;
    let members = store.members(target)?;
    members
        .iter()
        .map(|volume| simulate_one(volume, &policy.clone().unwrap_or_else(|| volume.retention())))
        .collect()
}

fn simulate_one(volume: &Volume, policy: &Policy) -> Result<Simulated> {
    let found = volume.simulate_retention(policy)?;
    let before = |lsn: &&cdp_core::ids::Lsn| **lsn >= found.horizon.0 && **lsn < found.window.0;
    let kept = found.stretches.iter().map(|(_, _, kept)| kept.iter().filter(before).count() as u64).sum();
    let seconds = |ns: Option<u64>| ns.map(|ns| ns / 1_000_000_000);
    Ok(Simulated {
        volume: volume.name().to_owned(),
        policy: policy.to_string(),
        horizon: Place::new(found.horizon.0, found.horizon.1),
        window: Place::new(found.window.0, found.window.1),
        tip: Place::new(found.tip.0, found.tip.1),
        base_lsn: found.base_lsn.0,
        states_kept: kept,
        states_gone: found.states_gone,
        names_gone: found.names_gone,
        journal_bytes: found.journal_bytes,
        journal_bytes_after: found.journal_bytes_after,
        fold_bytes: found.fold_bytes,
        cap_bytes: found.cap_bytes,
        is_full: found.is_full,
        every_write_seconds: seconds(found.every_write_ns),
        policy_seconds: seconds(found.policy_ns),
    })
}

/// Sets a policy of a volume, or of all members of a group: of none, if one of them cannot keep it.
pub fn set(store: &Store, target: &str, policy: &str) -> Result<Vec<Retention>> {
    let policy = retention::parse(policy)?;
    let members = store.members(target)?;
    for volume in &members {
        volume.check_retention(&policy).map_err(|error| of_one(target, volume, error))?;
    }
    let set = |volume: &Arc<Volume>| volume.set_retention(policy.clone());
    each(target, &members, "have the policy already", set)?;
    show(store, target)
}

/// Lets a named marker go, of a volume or of all members of a group that have it.
pub fn unmark(store: &Store, target: &str, marker: &str) -> Result<Vec<Unmarked>> {
    let members = store.members(target)?;
    let mut having = Vec::new();
    for volume in &members {
        if Timeline::marker(&**volume, marker)?.is_some() {
            having.push(volume.clone());
        }
    }
    if having.is_empty() && members.len() > 1 {
        let context = format!("no member of the group {target:?} has a marker `{marker}`");
        return Err(Error::new(Kind::NotFound, context));
    }
    // One volume says so itself.
    let those = if having.is_empty() { members } else { having };
    let mut gone = Vec::new();
    each(target, &those, "let it go already", |volume| {
        let (lsn, at) = volume.unmark(marker)?;
        let volume = volume.name().to_owned();
        gone.push(Unmarked { volume, name: marker.to_owned(), lsn: lsn.0, utc: format_utc(at) });
        Ok(())
    })?;
    Ok(gone)
}

/// Does it to one after the other; an error says for which ones it is done.
fn each(
    target: &str,
    volumes: &[Arc<Volume>],
    done: &str,
    mut act: impl FnMut(&Arc<Volume>) -> Result<()>,
) -> Result<()> {
    for (at, volume) in volumes.iter().enumerate() {
        act(volume).map_err(|error| {
            let error = of_one(target, volume, error);
            let before: Vec<&str> = volumes[..at].iter().map(|volume| volume.name()).collect();
            match before.is_empty() {
                true => error,
                false => error.hint(format!("{} {done}; once it is mended, say it again", before.join(", "))),
            }
        })?;
    }
    Ok(())
}

/// Says which member of a group it is.
fn of_one(target: &str, volume: &Volume, error: Error) -> Error {
    match volume.name() == target {
        true => error,
        false => points::of_member(error, target, volume.name()),
    }
}
