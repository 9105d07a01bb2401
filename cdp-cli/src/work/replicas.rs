//! The replicas that volumes feed, and how they are doing.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::format::codec::Codec;
use cdp_core::history::point::{Timeline, format_duration, format_utc};
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::store::copies::UnfinishedCopy;
use cdp_core::volume::Volume;
use cdp_core::volume::rate::RateLimit;
use cdp_core::volume::replicas::Replica;
use cdp_core::volume::role::IS_PRIMARY;
use cdp_replica::fault::{Fault, FaultKind};
use cdp_replica::status::{LinkState, LinkStatus};
use serde::{Deserialize, Serialize};

use super::Site;
use super::points::Place;
use crate::{rates, units};

/// That a volume has a replica at this address; [`Kind::NotFound`] if not.
pub fn refuse_unless_fed(volume: &Volume, address: &str) -> Result<()> {
    let fed: Vec<String> = volume.replicas().into_iter().map(|replica| replica.address).collect();
    match fed.iter().any(|known| known == address) {
        true => Ok(()),
        false => {
            let context = format!("volume {} has no replica at {address}", volume.name());
            Err(Error::new(Kind::NotFound, context).hint(format!("those are: {}", fed.join(", "))))
        }
    }
}

/// A replica that is connected and no more than so far behind is up to date, in nanoseconds: what is written is on its
/// way.
const NEAR_NS: u64 = 2_000_000_000;
/// After so many tries in a row, which take some seconds, one that was never reached is a reason to act: its address may be
/// wrong.
const FAILURES_MAX: u32 = 3;
/// One that is so far behind is a reason to act, in nanoseconds, where the configuration says nothing else.
const LAG_NS_MAX: u64 = 600 * 1_000_000_000;

/// What says that a newest state never goes first.
const OFF: &str = "off";

/// Feed a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReplica {
    /// Of which volume.
    pub volume: String,
    /// Where: `HOST:PORT`.
    pub address: String,
    /// No more than so fast, as it is typed.
    pub limit: Option<String>,
    /// It is given up where the journal is full and its oldest history may go.
    #[serde(default)]
    pub gives_way: bool,
    /// `lz4`, `zstd` or `none`; without it what is usual.
    #[serde(default)]
    pub codec: Option<String>,
    /// The newest state may go first where more of the journal than so many bytes waits, as it is typed; without it never.
    #[serde(default)]
    pub coalesce: Option<String>,
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
    /// `up-to-date`, `behind`, `copying`, `comparing`, `coalescing`, `filling`, `connecting`, `waiting`, `stopped`, `given-up`, `resting` where the
    /// volume is not to be sent from here, or `unserved` where no server runs.
    pub state: String,
    /// The same in a sentence.
    pub text: String,
    /// The newest record that is durable there; nothing before the first acknowledgement.
    pub newest: Option<Place>,
    /// The oldest state there, if it was told.
    pub oldest: Option<Place>,
    /// Everything up to this instant is durable there, in Unix nanoseconds; of a group it is the oldest of its members'.
    #[serde(default)]
    pub complete_ns: u64,
    /// The groups that the volume is a member of.
    #[serde(default)]
    pub groups: Vec<String>,
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
    /// What the records sent took in the journal, in bytes.
    #[serde(default)]
    pub sent_journal_bytes: u64,
    /// So much goes out at most, now, in bytes a second; 0 = no limit.
    pub limit_bytes_per_s: u64,
    /// The limit as it is typed, with its times of day; nothing without one.
    #[serde(default)]
    pub limit: Option<String>,
    /// How what goes there is compressed: `lz4`, `zstd` or `none`.
    #[serde(default)]
    pub codec: String,
    /// From this lag on somebody should act, in nanoseconds.
    #[serde(default)]
    pub lag_alarm_ns: u64,
    /// It is given up where the journal is full and its oldest history may go; else writes are refused.
    pub gives_way: bool,
    /// Where more of the journal than this waits, in bytes, the newest state may go first; nothing: never.
    #[serde(default)]
    pub coalesce_bytes: Option<u64>,
    /// The newest state, which is shown there while the history up to it is filled in.
    #[serde(default)]
    pub shown: Option<Place>,
    /// It never was reached, and was tried several times.
    #[serde(default)]
    pub unmet: bool,
}

impl ReplicaStatus {
    /// Why somebody should act, if so.
    pub fn reason(&self) -> Option<String> {
        let who = format!("the replica of volume {} at {}", self.volume, self.address);
        match self.state.as_str() {
            "stopped" | "given-up" => Some(format!("ACT: {who} gets nothing: {}.", self.text)),
            "resting" => None,
            _ if self.lag_ns > self.lag_alarm_ns => Some(format!(
                "ACT: {who} is {} behind, more than {}: {}.",
                format_duration(self.lag_ns),
                format_duration(self.lag_alarm_ns),
                self.text
            )),
            _ if self.unmet => Some(format!("ACT: {who} was never reached: {}.", self.text)),
            _ => None,
        }
    }
}

/// A first copy that is received, or was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyLine {
    /// The volume's name where it comes from.
    pub name: String,
    /// Its id.
    pub id: String,
    /// So much of it is durable here, in bytes.
    pub done_bytes: u64,
    /// Of so many.
    pub size_bytes: u64,
    /// It is being sent now.
    pub active: bool,
    /// When it last went on; nothing if that is not known.
    pub touched: Option<String>,
}

/// The first copies that are not whole; the one of this name or id is removed before, if one is named.
pub fn copies(site: &Site, drop: Option<&str>) -> Result<Vec<CopyLine>> {
    if let Some(which) = drop {
        let copies = site.store.copies()?;
        let mut named =
            copies.iter().filter(|copy| copy.state.name == which || copy.volume.to_string() == which);
        let copy = named.next().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no unfinished first copy {which:?}"))
                .hint("`cdp replica copies` names them")
        })?;
        if named.next().is_some() {
            let context = format!("two unfinished first copies are named {which:?}");
            return Err(Error::new(Kind::Invalid, context).hint("name it by its id"));
        }
        site.store.drop_copy(copy.volume)?;
    }
    let line = |copy: &UnfinishedCopy| CopyLine {
        name: copy.state.name.clone(),
        id: copy.volume.to_string(),
        done_bytes: copy.state.done_bytes,
        size_bytes: copy.state.copied.size_bytes,
        active: copy.is_active,
        touched: Some(copy.state.touched).filter(|at| *at > Timestamp(0)).map(format_utc),
    };
    Ok(site.store.copies()?.iter().map(line).collect())
}

/// Refuses what cannot be a replica's address, and our own: records that come back to where they are from make no copy.
fn check_address(site: &Site, address: &str) -> Result<()> {
    let parts = address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>().unwrap_or(0)));
    let is_one_host = |host: &str| {
        !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'))
    };
    let Some((host, port)) = parts.filter(|(host, port)| *port != 0 && is_one_host(host)) else {
        return Err(Error::new(Kind::Invalid, format!("{address:?} is not HOST:PORT")).hint(
            "the address that the other site's `cdp serve --replica-listen` has, as it is reached from here",
        ));
    };
    let listens = site.server.as_ref().and_then(|server| server.endpoints.replica.as_ref());
    let Some(ours) = listens.and_then(|ours| ours.parse::<SocketAddr>().ok()) else { return Ok(()) };
    // Whether a name can be resolved at this moment is the link's business.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let named = if port == ours.port() { (host, port).to_socket_addrs().ok() } else { None };
    let is_here = |ip: IpAddr| match ours.ip().is_unspecified() {
        true => ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok(),
        false => ip == ours.ip(),
    };
    if named.into_iter().flatten().any(|there| is_here(there.ip())) {
        return Err(Error::new(
            Kind::Refused,
            format!("{address} is where this server takes replicas itself"),
        )
        .hint("a replica belongs to another site, on another machine"));
    }
    Ok(())
}

/// Adds one, to a volume or to all members of a group. Of a group it is added to all of them or to none.
pub fn add(site: &Site, add: &AddReplica) -> Result<Vec<ReplicaStatus>> {
    let limit = add.limit.as_deref().map(rates::parse).transpose()?.unwrap_or_default();
    let codec = add.codec.as_deref().map(parse_codec).transpose()?;
    let coalesce = add.coalesce.as_deref().map(units::parse_size).transpose()?;
    check_address(site, &add.address)?;
    let mut added: Vec<Arc<Volume>> = Vec::new();
    for volume in site.store.members(&add.volume)? {
        if let Err(error) = volume.add_replica(&add.address, limit.clone(), add.gives_way) {
            for volume in added {
                volume.remove_replica(&add.address)?;
            }
            return Err(error);
        }
        added.push(volume);
    }
    for volume in added.iter().filter(|_| codec.is_some()) {
        volume.compress_replica(&add.address, codec.unwrap_or_default())?;
    }
    for volume in added.iter().filter(|_| coalesce.is_some()) {
        volume.coalesce_replica(&add.address, coalesce)?;
    }
    list(site, Some(&add.volume))
}

/// Removes one, of a volume or of all members of a group that have it; gives those that are left.
pub fn remove(site: &Site, name: &str, address: &str) -> Result<Vec<ReplicaStatus>> {
    on_members(site, name, |volume| volume.remove_replica(address).map(|_| ()))
}

/// Sends so fast at most from now on; gives the replicas of the volume or group.
pub fn limit(site: &Site, name: &str, address: &str, limit: &str) -> Result<Vec<ReplicaStatus>> {
    let limit = rates::parse(limit)?;
    on_members(site, name, |volume| volume.limit_replica(address, limit.clone()))
}

/// Compresses so from now on; gives the replicas of the volume or group.
pub fn compress(site: &Site, name: &str, address: &str, codec: &str) -> Result<Vec<ReplicaStatus>> {
    let codec = parse_codec(codec)?;
    on_members(site, name, |volume| volume.compress_replica(address, codec))
}

/// The newest state may go first from now on where so much waits, or never; gives the replicas of the volume or group.
pub fn coalesce(site: &Site, name: &str, address: &str, size: &str) -> Result<Vec<ReplicaStatus>> {
    let bytes = if size == OFF { None } else { Some(units::parse_size(size)?) };
    on_members(site, name, |volume| volume.coalesce_replica(address, bytes))
}

fn parse_codec(word: &str) -> Result<Codec> {
    Codec::from_word(word)
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{word:?} is not lz4, zstd or none")))
}

/// Members that do not have it are left alone, unless none has it.
fn on_members(site: &Site, name: &str, change: impl Fn(&Volume) -> Result<()>) -> Result<Vec<ReplicaStatus>> {
    let (mut is_changed, mut missing) = (false, None);
    for volume in site.store.members(name)? {
        match change(&volume) {
            Ok(()) => is_changed = true,
            Err(error) if error.kind() == Kind::NotFound => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if !is_changed => Err(error),
        _ => list(site, Some(name)),
    }
}

/// All of them, or those of a volume or of a group's members.
pub fn list(site: &Site, name: Option<&str>) -> Result<Vec<ReplicaStatus>> {
    let volumes = match name {
        Some(name) => site.store.members(name)?,
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

/// Up to when everything is durable there: what it said, or its newest record.
fn had_complete(replica: &Replica, newest: Timestamp) -> Timestamp {
    if replica.is_acknowledged { replica.complete.max(newest) } else { Timestamp(0) }
}

fn groups_of(site: &Site, volume: &Volume) -> Vec<String> {
    let groups = site.store.groups().into_iter();
    groups
        .filter(|(_, members)| members.iter().any(|member| member == volume.name()))
        .map(|(name, _)| name)
        .collect()
}

/// From which lag on somebody should act.
fn lag_alarm_ns(site: &Site) -> u64 {
    let chosen = site.server.as_ref().and_then(|server| server.replication.lag_alarm_ns);
    chosen.unwrap_or(LAG_NS_MAX)
}

/// The other side does not take what is here because it is the one that goes on, and this volume is its replica; whether
/// or not it feeds it at this moment.
fn changed_places(volume: &Volume, replica: &Replica, fault: &Fault) -> bool {
    // One that is fed by a third site is told of a history that parted from that one.
    let is_from_there = volume.source().is_none_or(|source| replica.site.as_ref() == Some(&source.peer));
    let goes_on_there = fault.kind == FaultKind::Fenced || fault.from_peer && fault.text.contains(IS_PRIMARY);
    volume.is_replica() && is_from_there && goes_on_there
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
    let rests = volume.replica_rests(replica);
    let shown = link.as_ref().and_then(|link| link.shown);
    let (state, text) = match (&replica.gave_up, link.as_ref().map(|link| &link.state)) {
        _ if rests.is_some() => ("resting", rests.unwrap_or_default()),
        (Some(why), _) => (
            "given-up",
            format!(
                "nothing is kept for it any more: {why}; remove it and add it again, or `cdp replica reseed` there"
            ),
        ),
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
        (None, Some(LinkState::Comparing { done_bytes, total_bytes })) => (
            "comparing",
            format!(
                "compared with what is there, {} of {}; what differs is sent",
                units::size(*done_bytes),
                units::size(*total_bytes)
            ),
        ),
        (None, Some(LinkState::Coalescing { sent_bytes, total_bytes })) => (
            "coalescing",
            format!(
                "the newest state goes first: {} of {}; then history is filled in behind it",
                units::size(*sent_bytes),
                units::size(*total_bytes)
            ),
        ),
        (None, Some(LinkState::Streaming)) if shown.is_some() => {
            let to = shown.unwrap_or_default();
            let left = to.0.0.saturating_sub(acknowledged.0);
            ("filling", format!("shows LSN {} of {}; filling, {left} records to go", to.0, format_utc(to.1)))
        }
        (None, Some(LinkState::Streaming)) if lag_records == 0 => ("up-to-date", "has everything".to_owned()),
        (None, Some(LinkState::Streaming)) if lag_ns <= NEAR_NS => ("up-to-date", lag()),
        (None, Some(LinkState::Streaming)) => ("behind", format!("catching up, {}", lag())),
        (None, Some(LinkState::Waiting(fault))) => {
            ("waiting", format!("{fault}; it is tried again by itself"))
        }
        (None, Some(LinkState::Stopped(fault))) if changed_places(volume, replica, fault) => {
            let there = replica.site.as_deref().unwrap_or("the other site");
            ("resting", format!("this volume is a replica of what {there} has: that is where it comes from"))
        }
        (None, Some(LinkState::Stopped(fault))) => ("stopped", fault.to_string()),
    };
    let link = link.unwrap_or_default();
    let newest_ns = newest.as_ref().map_or(Timestamp(0), |place| Timestamp(place.ns));
    ReplicaStatus {
        volume: volume.name().to_owned(),
        address: replica.address.clone(),
        site: Some(link.peer).filter(|peer| !peer.is_empty()).or_else(|| replica.site.clone()),
        state: state.to_owned(),
        text,
        newest,
        oldest: Some(link.oldest).filter(|(_, at)| *at > Timestamp(0)).map(|(lsn, at)| Place::new(lsn, at)),
        complete_ns: had_complete(replica, newest_ns).0,
        groups: groups_of(site, volume),
        lag_records,
        lag_bytes: volume.bytes_behind(acknowledged),
        lag_ns,
        rate_bytes_per_s: link.rate_bytes_per_s,
        sent_bytes: link.sent_bytes,
        sent_journal_bytes: link.journal_bytes,
        limit_bytes_per_s: replica.limit.at(site.store.clock().now()),
        limit: Some(&replica.limit).filter(|limit| **limit != RateLimit::default()).map(rates::format),
        codec: replica.codec.to_string(),
        lag_alarm_ns: lag_alarm_ns(site),
        gives_way: replica.gives_way,
        coalesce_bytes: replica.coalesce_bytes,
        shown: shown.map(|(lsn, at)| Place::new(lsn, at)),
        unmet: replica.site.is_none() && link.failures >= FAILURES_MAX,
    }
}
