//! The replicas that volumes feed, and how they are doing.

use cdp_core::error::Result;
use cdp_core::history::point::{Timeline, format_duration};
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::volume::Volume;
use cdp_core::volume::replicas::Replica;
use cdp_replica::status::{LinkState, LinkStatus};
use serde::{Deserialize, Serialize};

use super::Site;
use super::points::Place;
use crate::units;

/// A replica that is connected and no more than so far behind is up to date, in nanoseconds: what is written is on its
/// way.
const NEAR_NS: u64 = 2_000_000_000;
/// One that is so far behind is a reason to act, in nanoseconds.
pub const LAG_NS_MAX: u64 = 600 * 1_000_000_000;

/// Feed a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReplica {
    /// Of which volume.
    pub volume: String,
    /// Where: `HOST:PORT`.
    pub address: String,
    /// No more than so many bytes a second; 0 = no limit.
    pub limit_bytes_per_s: u64,
    /// It is given up where the journal is full and its oldest history may go.
    #[serde(default)]
    pub gives_way: bool,
}

/// A replica of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The volume.
    pub volume: String,
    /// Where the replica is.
    pub address: String,
    /// The site's name, once it was met.
    pub site: Option<String>,
    /// `up-to-date`, `behind`, `copying`, `connecting`, `waiting`, `stopped`, `given-up`, or `unserved` where no server
    /// runs.
    pub state: String,
    /// The same in a sentence.
    pub text: String,
    /// The newest record that is durable there; nothing before the first acknowledgement.
    pub newest: Option<Place>,
    /// The oldest state there, if it was told.
    pub oldest: Option<Place>,
    /// Records that are not acknowledged.
    pub lag_records: u64,
    /// About what they take in the journal, in bytes.
    pub lag_bytes: u64,
    /// What a loss of this site would cost now, in nanoseconds: the achieved RPO.
    pub lag_ns: u64,
    /// Bytes a second over the last seconds.
    pub rate_bytes_per_s: u64,
    /// Bytes sent since the server started.
    pub sent_bytes: u64,
    /// So much goes out at most, in bytes a second; 0 = no limit.
    pub limit_bytes_per_s: u64,
    /// It is given up where the journal is full and its oldest history may go; else writes are refused.
    pub gives_way: bool,
}

impl ReplicaStatus {
    /// Why somebody should act, if so.
    pub fn reason(&self) -> Option<String> {
        let who = format!("the replica of volume {} at {}", self.volume, self.address);
        match self.state.as_str() {
            "stopped" | "given-up" => Some(format!("ACT: {who} gets nothing: {}.", self.text)),
            _ if self.lag_ns > LAG_NS_MAX => {
                Some(format!("ACT: {who} is {} behind: {}.", format_duration(self.lag_ns), self.text))
            }
            _ => None,
        }
    }
}

/// Adds one.
pub fn add(site: &Site, add: &AddReplica) -> Result<Vec<ReplicaStatus>> {
    let volume = site.store.volume(&add.volume)?;
    volume.add_replica(&add.address, add.limit_bytes_per_s, add.gives_way)?;
    list(site, Some(&add.volume))
}

/// Removes one; gives those that are left.
pub fn remove(site: &Site, volume: &str, address: &str) -> Result<Vec<ReplicaStatus>> {
    site.store.volume(volume)?.remove_replica(address)?;
    list(site, Some(volume))
}

/// All of them, or those of a volume.
pub fn list(site: &Site, volume: Option<&str>) -> Result<Vec<ReplicaStatus>> {
    let volumes = match volume {
        Some(name) => vec![site.store.volume(name)?],
        None => site.store.volumes(),
    };
    Ok(volumes.iter().flat_map(|volume| of_volume(site, volume)).collect())
}

/// Those of a volume.
pub fn of_volume(site: &Site, volume: &Volume) -> Vec<ReplicaStatus> {
    let replicas = volume.replicas();
    if replicas.is_empty() {
        return Vec::new();
    }
    let links = site.server.as_ref().and_then(|server| server.replication.links.as_ref());
    let linked = links.map(|links| links.list()).unwrap_or_default();
    let link = |replica: &Replica| {
        let id = volume.identity().id;
        let mut of_it = linked.iter().filter(|link| link.volume == id && link.address == replica.address);
        // One that was added just now is about to be.
        of_it.next().map(|link| link.status.clone()).or_else(|| links.map(|_| LinkStatus::default()))
    };
    replicas.iter().map(|replica| of_replica(site, volume, replica, link(replica))).collect()
}

fn of_replica(site: &Site, volume: &Volume, replica: &Replica, link: Option<LinkStatus>) -> ReplicaStatus {
    let tip = volume.tip_lsn();
    let acknowledged = if replica.is_acknowledged { replica.held } else { Lsn::ZERO };
    let lag_records = tip.0.saturating_sub(acknowledged.0);
    let place = |lsn: Lsn| volume.timestamp_of(lsn).ok().map(|at| Place::new(lsn, at));
    let newest = place(acknowledged).filter(|_| replica.is_acknowledged);
    let had = newest.as_ref().map_or(volume.identity().created, |place| Timestamp(place.ns));
    let lag_ns = match lag_records {
        0 => 0,
        _ => site.store.clock().now().0.saturating_sub(had.max(replica.complete).0),
    };
    let lag = || format!("{} behind, {lag_records} records", format_duration(lag_ns));
    let (state, text) = match (&replica.gave_up, link.as_ref().map(|link| &link.state)) {
        (Some(why), _) => {
            ("given-up", format!("nothing is kept for it any more: {why}; remove it and add it again"))
        }
        (None, None) if site.server.is_none() => {
            ("unserved", "no server is running here, so nothing is sent".to_owned())
        }
        (None, None) => (
            "stopped",
            "there are no certificates to reach it with; `cdp serve --pki DIR` says where they are"
                .to_owned(),
        ),
        (None, Some(LinkState::Connecting)) => ("connecting", "connecting".to_owned()),
        (None, Some(LinkState::Joining)) => ("connecting", "finding out where to go on".to_owned()),
        (None, Some(LinkState::Copying { done_bytes, total_bytes })) => {
            ("copying", format!("first copy: {} of {}", units::size(*done_bytes), units::size(*total_bytes)))
        }
        (None, Some(LinkState::Streaming)) if lag_records == 0 => ("up-to-date", "has everything".to_owned()),
        (None, Some(LinkState::Streaming)) if lag_ns <= NEAR_NS => ("up-to-date", lag()),
        (None, Some(LinkState::Streaming)) => ("behind", format!("catching up, {}", lag())),
        (None, Some(LinkState::Waiting(fault))) => {
            ("waiting", format!("{fault}; it is tried again by itself"))
        }
        (None, Some(LinkState::Stopped(fault))) => ("stopped", fault.to_string()),
    };
    let link = link.unwrap_or_default();
    ReplicaStatus {
        volume: volume.name().to_owned(),
        address: replica.address.clone(),
        site: Some(link.peer).filter(|peer| !peer.is_empty()),
        state: state.to_owned(),
        text,
        newest,
        oldest: Some(link.oldest).filter(|(_, at)| *at > Timestamp(0)).map(|(lsn, at)| Place::new(lsn, at)),
        lag_records,
        lag_bytes: volume.bytes_behind(acknowledged),
        lag_ns,
        rate_bytes_per_s: link.rate_bytes_per_s,
        sent_bytes: link.sent_bytes,
        limit_bytes_per_s: replica.limit_bytes_per_s,
        gives_way: replica.gives_way,
    }
}
