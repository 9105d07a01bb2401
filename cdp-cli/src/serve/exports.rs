//! The store's volumes and their past as NBD exports.

use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{CloneRequest, SINCE, Timeline, Zone, format_utc, split_export, split_since};
use cdp_core::ids::{Lsn, SessionId};
use cdp_core::store::Store;
use cdp_core::view::ThrowAway;
use cdp_core::volume::Volume;
use cdp_core::volume::client::Client;
use cdp_core::volume::role::Role;
use cdp_nbd::{BitmapInfo, Bitmaps, ExportInfo, ExportSummary, Exports, OpenExport, Peer};

use super::bitmaps::{self, PointBitmaps};
use super::gate::{DOOR_PATIENCE, Gated, refusal};
use super::votes::Votes;
use crate::host::relay::ROLLED_BACK;
use crate::units;
use crate::work::points::{self, Target};
use crate::work::shared::{self, SharedClones};

/// So many named markers of each volume are listed, the newest.
const LISTED_MARKERS_MAX: usize = 20;
/// The newest state of a replica.
const NEWEST: &str = "latest";
/// What the default export is called where there are several volumes.
const DEFAULT_VOLUME: &str = "disk";

/// Exports of a store.
pub struct StoreExports {
    store: Arc<Store>,
    clone_cap_bytes: u64,
    clones: Arc<SharedClones>,
    votes: Arc<Votes>,
}

/// What a name stands for.
enum Found {
    Live(Arc<Volume>),
    Past(Box<Past>),
}

/// A point, and the one since which the changes are shown.
struct Past {
    target: Target,
    since: Option<Target>,
}

/// Writes the end of a session into the history when the connection is over.
struct Session {
    volume: Arc<Volume>,
    id: SessionId,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.volume.close_session(self.id) {
            tracing::warn!(volume = self.volume.name(), %error, "the end of a session is not in the history");
        }
    }
}

impl StoreExports {
    /// Throw-away clones hold at most `clone_cap_bytes` each; live volumes are answered under the leases of `votes`.
    pub fn new(store: Arc<Store>, clone_cap_bytes: u64, votes: Arc<Votes>) -> StoreExports {
        let clones = Arc::new(SharedClones::new(store.clone(), clone_cap_bytes));
        StoreExports { store, clone_cap_bytes, clones, votes }
    }

    /// Clones that connections share.
    pub fn clones(&self) -> &Arc<SharedClones> {
        &self.clones
    }

    fn find(&self, name: &str) -> Result<Found> {
        let (volume, point) = split_export(name);
        let volume = if volume.is_empty() { self.default_volume()? } else { self.store.volume(volume)? };
        match point {
            None => {
                volume.refuse_if_held()?;
                if volume.is_replica() {
                    // What moves under a client's caches is no disk: it gets the newest state as it is now.
                    let target = points::shown_of_volume(&self.store, volume, NEWEST, &Zone::system()?)?;
                    return Ok(Found::Past(Box::new(Past { target, since: None })));
                }
                Ok(Found::Live(volume))
            }
            Some(text) => {
                let (point, since) = split_since(text);
                let target = points::shown_of_volume(&self.store, volume.clone(), point, &Zone::system()?)?;
                let since = since.map(|text| bitmaps::target(&self.store, &volume, text)).transpose()?;
                if target.request.clone.is_some() && since.is_some() {
                    let context = format!("a clone of `{point}` has no changes to show");
                    return Err(Error::new(Kind::Invalid, context).hint("leave `+rw` or `+since:` out"));
                }
                Ok(Found::Past(Box::new(Past { target, since })))
            }
        }
    }

    fn default_volume(&self) -> Result<Arc<Volume>> {
        let volumes = self.store.volumes();
        match <[Arc<Volume>; 1]>::try_from(volumes) {
            Ok([only]) => Ok(only),
            Err(_) => self.store.volume(DEFAULT_VOLUME),
        }
    }
}

impl Found {
    fn canonical_name(&self, clones: &SharedClones) -> Result<String> {
        match self {
            Found::Live(volume) => Ok(volume.name().to_owned()),
            Found::Past(past) => {
                let Past { target, since } = &**past;
                let mut point = target.resolved.absolute_name.clone();
                let suffix = match &target.request.clone {
                    None => match since {
                        Some(since) => format!("{SINCE}{}", bitmaps::absolute_name(&target.volume, since)),
                        None => String::new(),
                    },
                    Some(CloneRequest::Private) => "+rw".to_owned(),
                    Some(CloneRequest::Shared(name)) => {
                        point = clones.point_of(target, name)?.unwrap_or(point);
                        format!("+rw:{name}")
                    }
                };
                Ok(format!("{}@{point}{suffix}", target.volume.name()))
            }
        }
    }

    fn info(&self, clones: &SharedClones) -> Result<ExportInfo> {
        let canonical_name = self.canonical_name(clones)?;
        Ok(match self {
            Found::Live(volume) => ExportInfo {
                size_bytes: volume.size_bytes(),
                read_only: volume.is_read_only(),
                multi_conn: true,
                canonical_name,
                description: describe_live(volume),
            },
            Found::Past(past) => {
                let Past { target, since } = &**past;
                let clone = target.request.clone.is_some();
                ExportInfo {
                    size_bytes: target.size_bytes(),
                    read_only: !clone,
                    multi_conn: match &target.request.clone {
                        // Four connections to `-5m` would see four instants.
                        None => !target.resolved.relative,
                        // Four clones are four disks.
                        Some(CloneRequest::Private) => false,
                        // One disk without a cache of its own, whatever the point is.
                        Some(CloneRequest::Shared(_)) => true,
                    },
                    canonical_name,
                    description: describe_past(target, since.as_ref()),
                }
            }
        })
    }
}

fn describe_live(volume: &Volume) -> String {
    let rolled_back = match volume.rolled_back() {
        Lsn::ZERO => String::new(),
        // Whoever held the disk before that holds stale caches; `attach` looks for these words.
        lsn => format!(", {ROLLED_BACK}{lsn}"),
    };
    let held = if volume.held().is_some() { ", closed to clients" } else { "" };
    let role = match volume.role() {
        Role::Primary => "live",
        Role::Replica { .. } => "replica, read-only",
        Role::Fenced { .. } => "fenced, read-only",
    };
    let (size, made) = (units::size(volume.size_bytes()), format_utc(volume.identity().created));
    format!("{size}, {role}, made {made}{held}{rolled_back}")
}

fn describe_past(target: &Target, since: Option<&Target>) -> String {
    let kind = if target.request.clone.is_some() { "throw-away clone of" } else { "as of" };
    let since = since.map(|since| {
        let of = match Arc::ptr_eq(&since.volume, &target.volume) {
            true => String::new(),
            false => format!("{}@", since.volume.name()),
        };
        format!(", with the changes since {} ({of}lsn:{})", format_utc(since.resolved.at), since.resolved.lsn)
    });
    let since = since.unwrap_or_default();
    let filling = if target.is_ahead() { ", while the history before it is filled in" } else { "" };
    format!("{kind} {} (lsn:{}){filling}{since}", format_utc(target.resolved.at), target.resolved.lsn)
}

impl Exports for StoreExports {
    fn list(&self) -> Vec<ExportSummary> {
        let mut exports = Vec::new();
        for volume in self.store.volumes() {
            exports
                .push(ExportSummary { name: volume.name().to_owned(), description: describe_live(&volume) });
            let markers = volume.named_markers();
            for (marker, class) in markers.iter().rev().take(LISTED_MARKERS_MAX) {
                // An older marker of the same name cannot be had by it.
                if volume.marker(&marker.name).ok().flatten().is_none_or(|newest| newest.lsn != marker.lsn) {
                    continue;
                }
                let note = volume.marker_payload(marker.lsn).map(|payload| payload.note).unwrap_or_default();
                let note = if note.is_empty() { note } else { format!(": {note}") };
                let class = format!("{class:?}").to_lowercase();
                exports.push(ExportSummary {
                    name: format!("{}@{}", volume.name(), marker.name),
                    description: format!(
                        "{class} marker, {} (lsn:{}){note}",
                        format_utc(marker.at),
                        marker.lsn
                    ),
                });
            }
        }
        exports.extend(
            self.clones
                .list()
                .into_iter()
                .map(|clone| ExportSummary { description: shared::describe(&clone), name: clone.export }),
        );
        exports
    }

    fn info(&self, name: &str, _peer: &Peer) -> Result<ExportInfo> {
        self.find(name)?.info(&self.clones)
    }

    fn open(&self, name: &str, peer: &Peer) -> Result<OpenExport> {
        let found = self.find(name)?;
        let info = found.info(&self.clones)?;
        let mut bitmaps: Option<Arc<dyn Bitmaps>> = None;
        let (device, session, on_close): (Arc<dyn Device>, _, Option<Box<dyn Send>>) = match found {
            Found::Live(volume) => {
                let lease = self.votes.lease_of(&self.store, &volume);
                if let Some(lease) = &lease
                    && volume.is_primary()
                    && lease.enter(DOOR_PATIENCE).is_none()
                {
                    return Err(refusal(volume.name(), lease));
                }
                let client: Arc<dyn Device> = Arc::new(Client::admit(volume.clone())?);
                let id = volume.open_session(&format!("{peer}, {}", info.canonical_name))?;
                let session = Session { volume: volume.clone(), id };
                bitmaps = Some(Arc::new(PointBitmaps::of_live(&self.store, &volume)));
                let device = match lease {
                    Some(lease) => Arc::new(Gated::new(client, volume.name(), lease)),
                    None => client,
                };
                (device, id, Some(Box::new(session)))
            }
            Found::Past(past) => {
                let target = past.target;
                let clone = target.request.clone.clone();
                if let Some(CloneRequest::Shared(name)) = clone {
                    let used = self.clones.attach(target, &name)?;
                    return Ok(OpenExport {
                        device: used.device(),
                        session: SessionId::STORE,
                        canonical_name: info.canonical_name,
                        description: info.description,
                        multi_conn: true,
                        bitmaps: None,
                        on_close: Some(Box::new(used)),
                    });
                }
                let holder = format!("{peer}, {}", info.canonical_name);
                let view = target.view(&holder)?;
                match clone {
                    None => {
                        let view = Arc::new(view);
                        bitmaps = Some(Arc::new(PointBitmaps::of_view(&self.store, &view)));
                        (view, SessionId::STORE, None)
                    }
                    Some(_) => {
                        let (store, cap) = (&self.store, self.clone_cap_bytes);
                        let random = store.clock().random();
                        let clone = ThrowAway::new(view, &**store.files(), &store.tmp_dir(), cap, random)?;
                        (Arc::new(clone), SessionId::STORE, None)
                    }
                }
            }
        };
        Ok(OpenExport {
            device,
            session,
            canonical_name: info.canonical_name,
            description: info.description,
            multi_conn: info.multi_conn,
            bitmaps,
            on_close,
        })
    }

    fn bitmap(&self, export: &str, name: &str, _peer: &Peer) -> Result<Option<BitmapInfo>> {
        match self.find(export)? {
            Found::Past(past) if past.target.request.clone.is_some() => Ok(None),
            Found::Past(past) => bitmaps::find(&self.store, &past.target.volume, name).map(Some),
            Found::Live(volume) => bitmaps::find(&self.store, &volume, name).map(Some),
        }
    }

    fn bitmaps(&self, export: &str, _peer: &Peer) -> Result<Vec<String>> {
        Ok(match self.find(export)? {
            Found::Live(volume) => bitmaps::listed_names(&self.store, &volume, Lsn::MAX),
            Found::Past(past) => match *past {
                Past { target, since: Some(since) } => vec![bitmaps::listed_name(&target.volume, &since)],
                // Of a newest state nobody knows yet what changed in it.
                Past { target, .. } if target.request.clone.is_some() || target.is_ahead() => Vec::new(),
                Past { target, .. } => {
                    bitmaps::listed_names(&self.store, &target.volume, target.resolved.lsn)
                }
            },
        })
    }

    fn open_after_info(&self, name: &str, info: &ExportInfo, peer: &Peer) -> Result<OpenExport> {
        let mut export = match self.find(name)? {
            Found::Live(_) => return self.open(name, peer),
            // The name says which.
            Found::Past(past) if matches!(past.target.request.clone, Some(CloneRequest::Shared(_))) => {
                return self.open(name, peer);
            }
            // What the client was told, not what the point means by now.
            Found::Past(..) => self.open(&info.canonical_name, peer)?,
        };
        export.multi_conn = info.multi_conn;
        Ok(export)
    }
}
