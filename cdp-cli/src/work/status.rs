//! How a store is doing: a verdict in words first, then the figures behind it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdp_core::device::Device;
use cdp_core::error::{IoContext, Result};
use cdp_core::format::turn::Turn;
use cdp_core::history::course::TurnAt;
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::history::retention::AtCap;
use cdp_core::ids::Timestamp;
use cdp_core::store::Store;
use cdp_core::volume::clone::Parent;
use cdp_core::volume::rollback::MARKER_PREFIX;
use cdp_core::volume::{Health, Volume};
use cdp_nbd::stats::Quantiles;
use serde::{Deserialize, Serialize};

use super::claims::Claim;
use super::clones::CloneStatus;
use super::forecast::{self, Forecast};
use super::groups;
use super::memory::MemoryStatus;
use super::newest::{self, NewestLine};
use super::points::Place;
use super::replicas::{self, ReplicaStatus};
use super::reseed::{self, ReseedStatus};
use super::retention::{self, PinLine, Sizes};
use super::{Endpoints, ProofLine, Serving, Site, volumes};
use crate::serve::votes::{SeatStatus, voter_words};

/// So many places of damage are listed.
const DAMAGES_MAX: usize = 20;

/// What `cdp status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// In words; one sentence for each reason to act.
    pub verdict: Vec<String>,
    /// Somebody should act.
    pub act: bool,
    /// What is about to happen that somebody may not want; one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Where the store is.
    pub store: String,
    /// Which implementation of the file seam works.
    pub io: String,
    /// Free space of its filesystem, in bytes.
    pub free_bytes: u64,
    /// What the indexes take of memory.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// The server, when one runs.
    pub server: Option<ServerStatus>,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// A running server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its process.
    pub pid: u32,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Where it listens.
    pub endpoints: Endpoints,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// Throw-away clones that are shared.
    pub clones: Vec<CloneStatus>,
    /// What fails over by itself, and how this site stands to it.
    #[serde(default)]
    pub votes: Vec<SeatStatus>,
    /// How long a write takes until it is acknowledged.
    pub acknowledge: LatencyStatus,
    /// How long a flush takes.
    pub flush: LatencyStatus,
    /// How long a read takes.
    pub read: LatencyStatus,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Process and user, or address.
    pub peer: String,
    /// What it has open.
    pub export: Option<String>,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Requests answered.
    pub requests: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// Latencies since the server started, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// How many requests.
    pub count: u64,
    /// Half of them were faster.
    pub p50_ns: u64,
    /// All but one in a hundred were faster.
    pub p99_ns: u64,
    /// All but one in a thousand were faster.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// `good`, `replica`, `fenced`, `held` (closed to clients until it is resumed), `read-only`, `closed`, `failed`.
    pub state: String,
    /// `primary`, `replica` or `fenced`, where it is known.
    #[serde(default)]
    pub role: Option<String>,
    /// Why, where it is not good.
    pub why: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its newest record.
    pub tip: Option<Place>,
    /// The oldest state that can be viewed.
    pub horizon: Option<Place>,
    /// The newest record that is known to survive power loss.
    pub durable: Option<Place>,
    /// What the journal takes, in bytes.
    pub journal_bytes: u64,
    /// What it may take, in bytes.
    pub journal_cap_bytes: Option<u64>,
    /// What it all takes.
    #[serde(default)]
    pub sizes: Sizes,
    /// What holds history, oldest state first.
    #[serde(default)]
    pub pins: Vec<PinLine>,
    /// What is kept, in words.
    #[serde(default)]
    pub retention: String,
    /// The oldest history goes when the journal is full; else writes are refused.
    #[serde(default)]
    pub drops_oldest: bool,
    /// How fast it grows, in bytes a second.
    pub journal_rate: Option<f64>,
    /// Hours until it is full at that rate.
    pub hours_until_full: Option<f64>,
    /// When it reaches its cap, and what happens then.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// Places of damage that are known.
    pub damages: Vec<DamageStatus>,
    /// What is missing or cannot be used of the files of its base.
    #[serde(default)]
    pub base_problems: Vec<String>,
    /// What it reads from as long as it is not hydrated: `VOL@lsn:N`.
    #[serde(default)]
    pub clone_of: Option<String>,
    /// Its newest rollback.
    #[serde(default)]
    pub rolled_back: Option<RollbackStatus>,
    /// The newest error of the storage.
    pub last_error: Option<String>,
    /// What recovery found when it was opened.
    pub recovery: String,
    /// The newest state that a program called good.
    pub proven: Option<ProofLine>,
    /// How old that state is, in nanoseconds.
    pub proven_age_ns: Option<u64>,
    /// The newest state that a program judged, if it called it not good.
    pub disproven: Option<ProofLine>,
    /// The replicas that it feeds.
    #[serde(default)]
    pub replicas: Vec<ReplicaStatus>,
    /// Of a replica: the site that feeds it, and up to when everything is here.
    #[serde(default)]
    pub fed: Option<FedStatus>,
    /// Sites that say to go on with it, and are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    /// Of a replica that is going to be copied anew: what is known of that.
    #[serde(default)]
    pub reseed: Option<ReseedStatus>,
    /// Of a replica: a newest state that came ahead of its history, or comes.
    #[serde(default)]
    pub newest: Option<NewestLine>,
    /// An old copy of a replica, whose place a newer one took: it is only shown.
    #[serde(default)]
    pub old_copy: bool,
}

/// Where a replica's records come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FedStatus {
    /// The site.
    pub site: String,
    /// Everything up to this instant is here and durable, RFC 3339 in UTC.
    pub complete_utc: String,
    /// The same in Unix nanoseconds.
    pub complete_ns: u64,
}

/// A rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackStatus {
    /// Its record.
    pub at: Place,
    /// The record whose state the volume had then.
    pub to_lsn: u64,
    /// The point as it was asked for; nothing for an undo.
    pub asked: String,
    /// The marker of the state that was left.
    pub marker: String,
}

/// A place of damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageStatus {
    /// The record whose payload it is.
    pub lsn: u64,
    /// First block.
    pub lba: u64,
    /// How many blocks.
    pub blocks: u64,
}

/// Looks at the store; `target` picks one volume, or the members of a group.
pub fn status(site: &Site, target: Option<&str>) -> Result<Status> {
    let store = &*site.store;
    let one = |name: &String| match store.volume(name) {
        Ok(volume) => of_volume(site, &volume),
        // One that could not be opened has a status, one that is not there has none.
        Err(error) => failed(store).into_iter().find(|line| line.name == *name).ok_or(error),
    };
    let volumes: Vec<VolumeStatus> = match target {
        Some(target) => groups::names(store, target).iter().map(one).collect::<Result<_>>()?,
        None => {
            let opened = store.volumes();
            let opened = opened.iter().map(|volume| of_volume(site, volume));
            opened.chain(failed(store).into_iter().map(Ok)).collect::<Result<_>>()?
        }
    };
    let verdict: Vec<String> = volumes.iter().flat_map(reasons).collect();
    let votes = site.server.as_ref().map(|_| site.votes.status()).unwrap_or_default();
    let verdict: Vec<String> = verdict.into_iter().chain(votes.iter().filter_map(vote_reason)).collect();
    let verdict: Vec<String> = verdict.into_iter().chain(unknown_targets(site)).collect();
    let act = !verdict.is_empty();
    let forecasts = volumes.iter().filter_map(|volume| volume.forecast.as_ref());
    let memory = MemoryStatus::of(store);
    let warnings = forecasts.filter_map(|forecast| forecast.warning.clone()).chain(memory.warning());
    let warnings = warnings.chain(votes.iter().flat_map(vote_warnings)).collect();
    let space =
        store.files().space(store.path()).at(|| format!("asking for space at {}", store.path().display()))?;
    Ok(Status {
        verdict: if act { verdict } else { vec![calm(site, &volumes)] },
        act,
        warnings,
        store: store.path().display().to_string(),
        io: store.files().name().to_owned(),
        free_bytes: space.available,
        memory,
        server: site.server.as_ref().map(|server| of_server(server, votes)),
        volumes,
    })
}

fn calm(site: &Site, volumes: &[VolumeStatus]) -> String {
    let what = match volumes.len() {
        0 => "there are no volumes yet".to_owned(),
        1 => format!("the volume {} is good", volumes[0].name),
        count => format!("all {count} volumes are good"),
    };
    let server = if site.server.is_some() { "being served" } else { "no server is running" };
    format!("All is well: {what}; {server}.")
}

fn vote_reason(seat: &SeatStatus) -> Option<String> {
    (seat.state == "waits").then(|| format!("ACT: {} is not answered here: {}.", seat.target, seat.text))
}

/// What is configured to fail over by itself and is not here: a name that is misspelt, or a replica that never came.
fn unknown_targets(site: &Site) -> Vec<String> {
    let failed = site.store.failed();
    let is_known = |target: &str| {
        site.store.groups().contains_key(target)
            || site.store.volume(target).is_ok()
            || failed.iter().any(|(name, _)| name == target)
    };
    let unknown = site.votes.targets().filter(|target| !is_known(target));
    unknown
        .map(|target| {
            format!(
                "ACT: [automatic.{target}] in the configuration: there is no volume or group {target} here, so nothing of that name fails over by itself; `cdp list` shows the names."
            )
        })
        .collect()
}

/// Two voters are enough; with one of them away there is none to spare.
fn vote_warnings(seat: &SeatStatus) -> Vec<String> {
    let out = (["out", "hands-over"].contains(&seat.state.as_str()) && !seat.text.is_empty())
        .then(|| format!("{}: {}.", seat.target, seat.text));
    let silent = seat.voters.iter().filter(|voter| !voter.reachable && seat.state != "out");
    let silent = silent.map(|voter| {
        format!(
            "{}: {} has no vote to give: it {}. Nothing stops as long as the two other voters hear each other.",
            seat.target,
            voter_words(voter),
            voter.text
        )
    });
    out.into_iter().chain(silent).collect()
}

fn reasons(volume: &VolumeStatus) -> Vec<String> {
    let mut reasons = Vec::new();
    let name = &volume.name;
    if ["failed", "read-only", "held", "fenced"].contains(&volume.state.as_str()) {
        let why = volume.why.as_deref().unwrap_or("no reason is known");
        let what = match volume.state.as_str() {
            "failed" => "cannot be opened",
            "held" => "is closed to clients",
            _ => "takes no writes",
        };
        let remedy = volume.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        reasons.push(format!("ACT: volume {name} {what}: {why}{remedy}."));
    }
    if !volume.damages.is_empty() {
        reasons.push(format!(
            "ACT: volume {name} has {} known places of damage; `cdp verify {name}` lists them all.",
            volume.damages.len()
        ));
    }
    if let Some(first) = volume.base_problems.first() {
        reasons.push(format!(
            "ACT: volume {name}: {first}; bring it back: reading what it should hold is an error, and no history is folded meanwhile."
        ));
    }
    if let Some(proof) = &volume.disproven {
        reasons.push(format!(
            "ACT: {} says that volume {name} is not good at lsn:{} ({}).",
            proof.program, proof.place.lsn, proof.place.utc
        ));
    }
    reasons.extend(volume.claims.iter().map(|claim| claim.reason(name)));
    reasons.extend(volume.replicas.iter().filter_map(ReplicaStatus::reason));
    reasons.extend(volume.forecast.iter().filter_map(|forecast| forecast.alarm.clone()));
    reasons
}

fn failed(store: &Store) -> Vec<VolumeStatus> {
    let line = |(name, error): (String, cdp_core::error::Error)| VolumeStatus {
        remedy: error.hint_text().map(str::to_owned),
        why: Some(crate::report::Report::of(&error).message),
        name,
        state: "failed".to_owned(),
        role: None,
        size_bytes: 0,
        tip: None,
        horizon: None,
        durable: None,
        journal_bytes: 0,
        journal_cap_bytes: None,
        sizes: Sizes::default(),
        pins: Vec::new(),
        retention: String::new(),
        drops_oldest: false,
        journal_rate: None,
        hours_until_full: None,
        forecast: None,
        damages: Vec::new(),
        base_problems: Vec::new(),
        clone_of: None,
        rolled_back: None,
        last_error: None,
        recovery: String::new(),
        proven: None,
        proven_age_ns: None,
        disproven: None,
        replicas: Vec::new(),
        fed: None,
        claims: Vec::new(),
        reseed: None,
        newest: None,
        old_copy: false,
    };
    store.failed().into_iter().map(line).collect()
}

fn of_volume(site: &Site, volume: &Volume) -> Result<VolumeStatus> {
    let store = &*site.store;
    let (state, why, remedy) = match volume.health() {
        Health::Good => match volume.held() {
            Some(held) => {
                let why = format!("since {}: {}", format_utc(held.since), held.why);
                let remedy = format!("`cdp resume {}` opens it again", volume.name());
                ("held", Some(why), Some(remedy))
            }
            None => match volumes::of_role(&volume.role()) {
                (state, Some(why)) => {
                    let remedy = "write where that epoch is; nothing that was written here is lost";
                    (state, Some(why), Some(remedy.to_owned()))
                }
                (state, None) => (state, None, None),
            },
        },
        Health::ReadOnly { reason, hint } => ("read-only", Some(reason), Some(hint)),
        Health::Closed => ("closed", None, None),
    };
    let notes = volume.notes();
    let policy = volume.retention();
    // Not a reason to know nothing of the volume; `cdp prove` says what is wrong with them.
    let proofs = volume.proofs().unwrap_or_default();
    let newest_good = proofs.iter().rev().find(|proof| proof.good);
    let durable = volume.durable_lsn();
    let (tip, tip_at) = volume.tip();
    let (horizon, horizon_at) = volume.horizon();
    let cap = volume.journal_cap_bytes()?;
    let forecast = forecast::of(volume, store.clock().now())?;
    Ok(VolumeStatus {
        name: volume.name().to_owned(),
        state: state.to_owned(),
        role: Some(volume.role().word().to_owned()),
        why,
        remedy,
        size_bytes: volume.size_bytes(),
        tip: Some(Place::new(tip, tip_at)),
        horizon: Some(Place::new(horizon, horizon_at)),
        durable: Some(Place::new(durable, volume.timestamp_of(durable)?)),
        journal_bytes: volume.journal_bytes(),
        journal_cap_bytes: Some(cap),
        sizes: Sizes::of(volume),
        pins: retention::pins(volume),
        retention: policy.to_string(),
        drops_oldest: policy.at_cap == AtCap::DropOldest,
        journal_rate: Some(forecast.bytes_per_s),
        hours_until_full: forecast.hours,
        forecast: Some(forecast),
        base_problems: volume
            .base_problems()
            .into_iter()
            .filter(|problem| problem.extent.is_some())
            .map(|problem| format!("{}: {}", problem.file.display(), problem.what))
            .collect(),
        damages: notes
            .damages
            .iter()
            .take(DAMAGES_MAX)
            .map(|(lsn, extent)| DamageStatus { lsn: lsn.0, lba: extent.start.0, blocks: extent.blocks })
            .collect(),
        clone_of: volume.parent().map(|parent| parent_name(store, parent)),
        rolled_back: volume.course().newest_rollback().and_then(rollback_status),
        last_error: notes.last_error,
        recovery: notes.recovery,
        proven_age_ns: newest_good.map(|proof| store.clock().now().0.saturating_sub(proof.at.0)),
        proven: newest_good.map(ProofLine::of),
        // An old state that was found bad is history; the newest one that was judged is a reason to act.
        disproven: proofs.last().filter(|proof| !proof.good).map(ProofLine::of),
        replicas: replicas::of_volume(site, volume),
        fed: volume.source().filter(|_| volume.is_replica()).map(|source| {
            let complete = volume.complete_through().1;
            FedStatus { site: source.peer, complete_utc: format_utc(complete), complete_ns: complete.0 }
        }),
        claims: Claim::all_of(volume),
        reseed: reseed::of_volume(store, volume),
        newest: newest::of_volume(volume),
        old_copy: volume.identity().journal_of.is_some(),
    })
}

fn parent_name(store: &Store, parent: Parent) -> String {
    let volume = store.volumes().into_iter().find(|volume| volume.identity().id == parent.id);
    let name = volume.map_or_else(|| format!("(deleted, {})", parent.id), |volume| volume.name().to_owned());
    format!("{name}@lsn:{}", parent.lsn)
}

fn rollback_status(rollback: &TurnAt) -> Option<RollbackStatus> {
    let Turn::Rollback { to, number, asked, .. } = &rollback.turn else { return None };
    Some(RollbackStatus {
        at: Place::new(rollback.lsn, rollback.at),
        to_lsn: to.0,
        asked: asked.clone(),
        marker: format!("{MARKER_PREFIX}{number}"),
    })
}

fn of_server(server: &Serving, votes: Vec<SeatStatus>) -> ServerStatus {
    let latencies = server.nbd.latencies();
    ServerStatus {
        pid: std::process::id(),
        since: utc(server.since),
        endpoints: server.endpoints.clone(),
        clones: server.clones.list(),
        votes,
        clients: server
            .nbd
            .clients()
            .into_iter()
            .map(|client| ClientStatus {
                peer: client.peer.to_string(),
                export: client.export,
                since: utc(client.since),
                requests: client.requests,
                bytes_read: client.bytes_read,
                bytes_written: client.bytes_written,
            })
            .collect(),
        acknowledge: latency(&latencies.write),
        flush: latency(&latencies.flush),
        read: latency(&latencies.read),
    }
}

fn latency(quantiles: &Quantiles) -> LatencyStatus {
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    LatencyStatus {
        count: quantiles.count,
        p50_ns: ns(quantiles.p50),
        p99_ns: ns(quantiles.p99),
        p999_ns: ns(quantiles.p999),
        max_ns: ns(quantiles.max),
    }
}

/// As RFC 3339 in UTC.
pub(super) fn utc(time: SystemTime) -> String {
    let ns = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format_utc(Timestamp(u64::try_from(ns).unwrap_or(u64::MAX)))
}
