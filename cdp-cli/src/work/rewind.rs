//! Setting volumes back, taking that back, opening them to clients again, and making them larger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Zone, format_utc};
use cdp_core::volume::Volume;
use cdp_core::volume::rollback::{Back, RolledBack};
use serde::{Deserialize, Serialize};

use super::points::{self, PointInfo};
use super::volumes::counted;
use super::{Site, VolumeLine};

/// How long clients may take to leave a volume that is rolled back with force.
pub(super) const LEAVE_TIME: Duration = Duration::from_secs(10);
/// A client's connection is gone so long after the client at most, as a rule.
const GOODBYE_TIME: Duration = Duration::from_millis(300);
const GOODBYE_POLL: Duration = Duration::from_millis(10);

/// Which state to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// `VOL@POINT` or `GROUP@POINT`.
    pub target: String,
    /// Close the connections of its clients, and keep it closed until it is resumed.
    pub force: bool,
}

/// What to take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// A volume or a group.
    pub target: String,
    /// As for a rollback.
    pub force: bool,
}

/// A volume that was set back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    /// Its name.
    pub volume: String,
    /// The record that did it.
    pub lsn: u64,
    /// When, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
    /// The record whose state it has now.
    pub to_lsn: u64,
    /// What was asked for; nothing after an undo.
    pub point: Option<PointInfo>,
    /// The marker of the state that was left.
    pub marker: String,
    /// An export that shows that state.
    pub export_before: String,
    /// Its size in bytes before.
    pub size_before_bytes: u64,
    /// And now.
    pub size_bytes: u64,
    /// It is closed to clients until it is resumed.
    pub held: bool,
    /// Clients whose connections were closed.
    pub disconnected: Vec<String>,
}

/// Sets a volume, or all members of a group, back to a point.
pub fn rollback(site: &Site, request: &Rollback, zone: &Zone) -> Result<Vec<Rewound>> {
    let (name, point) = cdp_core::history::point::split_export(&request.target);
    let Some(asked) = point else {
        return Err(Error::new(Kind::Invalid, format!("{name} names no point"))
            .hint(format!("{name}@-5m is the state of five minutes ago; `cdp log {name}` shows others")));
    };
    let targets = points::targets(&site.store, &request.target, zone)?;
    if targets.iter().any(|target| target.request.clone.is_some()) {
        return Err(Error::new(Kind::Invalid, "`+rw` has no meaning in a rollback"));
    }
    let infos = targets.iter().map(|target| target.info().map(Some)).collect::<Result<Vec<_>>>()?;
    let members =
        targets.into_iter().map(|target| (target.volume, Back::To(target.resolved.lsn))).collect::<Vec<_>>();
    go_back(site, name, members, asked, request.force, infos)
}

/// Takes the newest rollback of a volume, or of all members of a group, back.
pub fn undo(site: &Site, request: &Undo) -> Result<Vec<Rewound>> {
    if request.target.contains('@') {
        return Err(Error::new(Kind::Invalid, "an undo takes back the newest rollback: it needs no point"));
    }
    let members: Vec<_> =
        site.store.members(&request.target)?.into_iter().map(|volume| (volume, Back::Undo)).collect();
    let infos = vec![None; members.len()];
    go_back(site, &request.target, members, "", request.force, infos)
}

fn go_back(
    site: &Site,
    name: &str,
    members: Vec<(Arc<Volume>, Back)>,
    asked: &str,
    force: bool,
    infos: Vec<Option<PointInfo>>,
) -> Result<Vec<Rewound>> {
    // Nobody comes in while we look who is there.
    let _bars: Vec<_> = members.iter().map(|(volume, _)| volume.bar()).collect();
    let volumes: Vec<_> = members.iter().map(|(volume, _)| volume.clone()).collect();
    let using: Vec<Vec<String>> = volumes.iter().map(|volume| clients(site, volume)).collect();
    let before: Vec<_> = volumes.iter().map(|volume| volume.rolled_back()).collect();
    if using.iter().any(|clients| !clients.is_empty()) {
        if !force {
            return Err(in_use(&volumes, &using));
        }
        send_away(site, &volumes, asked)?;
    }
    let done = site.store.rollback(name, &members, asked);
    if done.is_err() {
        // Whatever it was that could not be: where nothing changed, nobody's caches are stale.
        for (volume, before) in volumes.iter().zip(before) {
            if volume.rolled_back() == before && using.iter().any(|clients| !clients.is_empty()) {
                volume.resume()?;
            }
        }
    }
    let rewound = |(((volume, done), point), disconnected): (((&Arc<Volume>, RolledBack), _), _)| Rewound {
        volume: volume.name().to_owned(),
        lsn: done.lsn.0,
        utc: format_utc(done.at),
        ns: done.at.0,
        to_lsn: done.to.0,
        point,
        export_before: format!("{}@{}", volume.name(), done.marker),
        marker: done.marker,
        size_before_bytes: done.size_before,
        size_bytes: done.size_after,
        held: volume.held().is_some(),
        disconnected,
    };
    Ok(volumes.iter().zip(done?).zip(infos).zip(using).map(rewound).collect())
}

/// Who has the live volume open; views of its past are not touched by a rollback. One who has just closed his connection is given a moment to be gone.
pub(super) fn clients(site: &Site, volume: &Volume) -> Vec<String> {
    clients_of(site, |export| export == volume.name())
}

/// Who has such an export open, after the same moment.
pub(super) fn clients_of(site: &Site, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let Some(server) = &site.server else { return Vec::new() };
    let until = Instant::now() + GOODBYE_TIME;
    loop {
        let clients = server.nbd.clients().into_iter();
        let clients: Vec<String> = clients
            .filter(|client| client.export.as_deref().is_some_and(&is_meant))
            .map(|client| client.peer.to_string())
            .collect();
        if clients.is_empty() || Instant::now() >= until {
            return clients;
        }
        std::thread::sleep(GOODBYE_POLL);
    }
}

pub(super) fn in_use(volumes: &[Arc<Volume>], using: &[Vec<String>]) -> Error {
    let lines: Vec<String> = volumes
        .iter()
        .zip(using)
        .filter(|(_, clients)| !clients.is_empty())
        .map(|(volume, clients)| {
            format!("{} is in use by {}", volume.name(), counted(clients.clone()).join("; "))
        })
        .collect();
    Error::new(Kind::Busy, lines.join(", ")).hint(
        "unmount and detach first, so that nobody goes on with stale caches; or say --force, which closes their connections and keeps the volume closed until `cdp resume`",
    )
}

fn send_away(site: &Site, volumes: &[Arc<Volume>], asked: &str) -> Result<()> {
    let why = if asked.is_empty() {
        "a rollback was undone, and its clients had to go".to_owned()
    } else {
        format!("it was rolled back to {asked}, and its clients had to go")
    };
    for volume in volumes {
        volume.hold(&why)?;
    }
    let Some(server) = &site.server else { return Ok(()) };
    let is_meant = |export: &str| volumes.iter().any(|volume| volume.name() == export);
    if server.nbd.disconnect(is_meant, LEAVE_TIME) {
        return Ok(());
    }
    for volume in volumes {
        volume.resume()?;
    }
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name()).collect();
    let context = format!("clients of {} do not leave; nothing was rolled back", names.join(", "));
    Err(Error::new(Kind::Busy, context))
}

/// Opens a volume, or all members of a group, to clients again.
pub fn resume(site: &Site, target: &str) -> Result<Vec<VolumeLine>> {
    let volumes = site.store.members(target)?;
    for volume in &volumes {
        volume.resume()?;
    }
    Ok(volumes.iter().map(|volume| VolumeLine::of(volume)).collect())
}

/// Makes a volume larger.
pub fn grow(site: &Site, name: &str, size_bytes: u64) -> Result<VolumeLine> {
    let volume = site.store.volume(name)?;
    volume.grow(size_bytes)?;
    Ok(VolumeLine::of(&volume))
}
