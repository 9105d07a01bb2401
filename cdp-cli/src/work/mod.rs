//! What the commands do with a store, whoever has it open: the server, or the command itself. One function, so
//! that both ways give the same answer.

pub mod branch;
pub mod claims;
pub mod clones;
pub mod diff;
pub mod failover;
pub mod follow;
pub mod forecast;
pub mod groups;
pub mod import;
mod leased;
pub mod leaving;
pub mod mark;
pub mod memory;
pub mod newest;
pub mod points;
pub mod proofs;
pub mod repair;
pub mod replicas;
pub mod reseed;
pub mod restore;
pub mod retention;
pub mod rewind;
pub mod shared;
pub mod status;
pub mod stretch;
pub mod timeline;
pub mod verify;
pub mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use cdp_core::error::Result;
use cdp_core::history::point::Zone;
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

pub use branch::{CloneOf, Cloned, ClonedGroup, Hydrated, HydratedGroup};
pub use clones::CloneStatus;
pub use diff::{Diff, DiffPage};
pub use failover::{Demote, Demoted, FailedOver, Failover, Resync, Resynced};
pub use follow::{DeltaOf, DeltaPage, State, StateOf};
pub use groups::Group;
pub use import::{Import, Imported};
pub use mark::{Mark, Marked};
pub use points::PointInfo;
pub use proofs::{KeepProof, ProofLine};
pub use restore::{Restore, Restored};
pub use rewind::{Rewound, Rollback, Undo};
pub use status::Status;
pub use stretch::{Changes, Marks, Stretch};
pub use timeline::{Log, Records, Timeline};
pub use verify::Verified;
pub use volumes::{Create, Created, Purged, VolumeLine};

/// A store at work.
pub struct Site {
    /// The store.
    pub store: Arc<Store>,
    /// The server that has it open; `None` when the command itself has.
    pub server: Option<Arc<Serving>>,
    /// Its part in the votes on which of two sites answers.
    pub votes: Arc<crate::serve::votes::Votes>,
}

/// What a running server knows of itself.
pub struct Serving {
    /// The NBD server.
    pub nbd: cdp_nbd::Server,
    /// Since when.
    pub since: SystemTime,
    /// Where it listens.
    pub endpoints: Endpoints,
    /// Throw-away clones that its connections share.
    pub clones: Arc<shared::SharedClones>,
    /// Its part in replication.
    pub replication: crate::serve::replication::Replication,
    /// Who is told of changed roles.
    pub roles: crate::serve::roles::RoleHooks,
}

/// Where a server listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Unix socket.
    pub socket: Option<PathBuf>,
    /// TCP address.
    pub tcp: Option<String>,
    /// TCP address for replication.
    #[serde(default)]
    pub replica: Option<String>,
}

impl Endpoints {
    /// The URI of an export, on the Unix socket if there is one.
    pub fn uri(&self, export: &str) -> Option<String> {
        self.unix_uri(export).or_else(|| self.tcp_uri(export))
    }

    /// The URI on the Unix socket.
    pub fn unix_uri(&self, export: &str) -> Option<String> {
        let socket = self.socket.as_ref()?.to_str()?;
        let name = cdp_core::history::point::escape_uri(export);
        Some(format!("nbd+unix:///{name}?socket={}", escape_query(socket)))
    }

    /// The URI on TCP.
    pub fn tcp_uri(&self, export: &str) -> Option<String> {
        let address = self.tcp.as_ref()?;
        Some(format!("nbd://{address}/{}", cdp_core::history::point::escape_uri(export)))
    }
}

/// A path in the query of a URI keeps its slashes.
fn escape_query(path: &str) -> String {
    let parts: Vec<String> = path.split('/').map(cdp_core::history::point::escape_uri).collect();
    parts.join("/")
}

/// What a command asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who is there.
    Hello,
    /// Make a volume.
    Create(Create),
    /// All volumes, and the trash.
    List,
    /// How it is doing: of one volume, of a group, or of all.
    Status {
        /// Which volume or group.
        target: Option<String>,
    },
    /// Set a marker.
    Mark(Mark),
    /// What a point of a volume or a group means.
    Resolve {
        /// `VOL@POINT` or `GROUP@POINT`.
        target: String,
    },
    /// Write a view out.
    Restore(Restore),
    /// Read everything back, of one volume, of a group, or of all.
    Verify {
        /// Which volume or group.
        target: Option<String>,
    },
    /// What happened when.
    Log(Log),
    /// Single records.
    Records(Log),
    /// The markers between two records.
    Marks(Stretch),
    /// The changes between two records.
    Changes(Stretch),
    /// Keep what a program said of a state.
    KeepProof(KeepProof),
    /// What differs between two points.
    Diff(Diff),
    /// Close a shared clone.
    Close {
        /// `VOL+rw:NAME`.
        target: String,
        /// End its connections.
        force: bool,
    },
    /// Make a group.
    GroupCreate(Group),
    /// Add to a group.
    GroupAdd(Group),
    /// Take out of a group.
    GroupRemove(Group),
    /// Forget a group.
    GroupDelete {
        /// Which.
        name: String,
    },
    /// All groups.
    GroupList,
    /// Move a volume to the trash.
    Delete {
        /// Which.
        volume: String,
        /// Disconnect its clients.
        force: bool,
    },
    /// Change what a volume's journal may take.
    SetJournalCap {
        /// Which volume.
        volume: String,
        /// In bytes; without it, all but a tenth of the filesystem.
        cap_bytes: Option<u64>,
    },
    /// Make a clone.
    Clone(CloneOf),
    /// Let a clone, or all members of a group of clones, stand on their own.
    Hydrate {
        /// Which.
        volume: String,
    },
    /// Set back to a point.
    Rollback(Rollback),
    /// Take the newest rollback back.
    Undo(Undo),
    /// Open to clients again.
    Resume {
        /// A volume or a group.
        target: String,
    },
    /// Bring a volume to what a source holds.
    Import(Import),
    /// Take over from another site.
    Failover(Failover),
    /// Step down for another site.
    Demote(Demote),
    /// Make the history one with another site's again.
    Resync(Resync),
    /// Describe a state of a volume.
    State(StateOf),
    /// What makes one state of another.
    Delta(DeltaOf),
    /// Make a volume larger.
    Grow {
        /// Which volume.
        volume: String,
        /// Its new size in bytes.
        size_bytes: u64,
    },
    /// How far back a volume goes.
    Retention {
        /// Which volume or group.
        target: String,
    },
    /// What a policy would make of its history.
    SimulateRetention {
        /// Which volume or group.
        target: String,
        /// In words; without one, the policy that is set.
        policy: Option<String>,
    },
    /// Change what is kept of it.
    SetRetention {
        /// Which volume or group.
        target: String,
        /// In words.
        policy: String,
    },
    /// Feed a replica.
    AddReplica(replicas::AddReplica),
    /// How replicas are doing.
    Replicas {
        /// Only those of this volume.
        volume: Option<String>,
    },
    /// Feed a replica so fast at most.
    LimitReplica {
        /// The volume.
        volume: String,
        /// Where the replica is.
        address: String,
        /// The limit as it is typed.
        limit: String,
    },
    /// Compress what goes to a replica so.
    CompressReplica {
        /// The volume.
        volume: String,
        /// Where the replica is.
        address: String,
        /// `lz4`, `zstd` or `none`.
        codec: String,
    },
    /// Let the newest state go first to a replica, and fill history in behind it.
    CoalesceReplica {
        /// The volume.
        volume: String,
        /// Where the replica is.
        address: String,
        /// Where more than so much waits, or `off`.
        size: String,
    },
    /// Newest states that replicas here show while history is filled in.
    Newest(newest::Newest),
    /// The first copies that are not whole.
    Copies {
        /// One that is removed before, by name or id.
        drop: Option<String>,
    },
    /// Reseeds of replicas here.
    Reseed(reseed::Reseed),
    /// Feed a replica no longer.
    RemoveReplica {
        /// Of which volume.
        volume: String,
        /// Where it is.
        address: String,
    },
    /// Let a named marker go.
    Unmark {
        /// Which volume or group.
        target: String,
        /// Which marker.
        name: String,
    },
    /// Bring it back.
    Undelete {
        /// Which.
        volume: String,
    },
    /// Remove what is deleted for good, now.
    Purge {
        /// Which.
        volume: String,
    },
}

/// What comes of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `Hello`.
    Hello(Hello),
    /// To `Create`.
    Created(Created),
    /// To `List`.
    Volumes(Vec<VolumeLine>),
    /// To `Status`.
    Status(Box<Status>),
    /// To `Mark`.
    Marked(Vec<Marked>),
    /// To `Resolve`.
    Points(Vec<PointInfo>),
    /// To `Restore`.
    Restored(Vec<Restored>),
    /// To `Verify`.
    Verified(Vec<Verified>),
    /// To `Log`.
    Timelines(Vec<Timeline>),
    /// To `Records`.
    Records(Vec<Records>),
    /// To `Marks`.
    Marks(Marks),
    /// To `Changes`.
    Changes(Changes),
    /// To `KeepProof`.
    Proof(ProofLine),
    /// To `Diff`.
    Diff(DiffPage),
    /// To `Close`.
    Closed(CloneStatus),
    /// To `Retention` and `SetRetention`.
    Retention(Vec<retention::Retention>),
    /// To `AddReplica`, `Replicas`, `LimitReplica` and `RemoveReplica`: those that there are now.
    Replicas(Vec<replicas::ReplicaStatus>),
    /// To `Newest`: those that there are now.
    Newest(Vec<newest::NewestLine>),
    /// To `Copies`.
    Copies(Vec<replicas::CopyLine>),
    /// To `Reseed`: those that are not done.
    Reseeds(Vec<reseed::ReseedLine>),
    /// To `SimulateRetention`.
    Simulated(Vec<retention::Simulated>),
    /// To `Unmark`.
    Unmarked(Vec<retention::Unmarked>),
    /// To `Group…`.
    Groups(Vec<Group>),
    /// To `Clone`.
    Cloned(Cloned),
    /// To `Clone` of a group.
    ClonedGroup(ClonedGroup),
    /// To `Hydrate`.
    Hydrated(Hydrated),
    /// To `Hydrate` of a group.
    HydratedGroup(HydratedGroup),
    /// To `Rollback` and `Undo`.
    Rewound(Vec<Rewound>),
    /// To `Import`.
    Imported(Imported),
    /// To `Failover`.
    FailedOver(Vec<FailedOver>),
    /// To `Demote`.
    Demoted(Vec<Demoted>),
    /// To `Resync`.
    Resynced(Vec<Resynced>),
    /// To `State`.
    State(State),
    /// To `Delta`.
    Delta(DeltaPage),
    /// To `Resume`.
    Resumed(Vec<VolumeLine>),
    /// To `Delete`, `Undelete`, `Grow` and `SetJournalCap`.
    Volume(VolumeLine),
    /// To `Purge`.
    Purged(Purged),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Where it listens.
    pub endpoints: Endpoints,
}

impl Response {
    /// The value alone, as `--json` prints it.
    pub fn json(&self) -> serde_json::Value {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().next().map(|(_, value)| value),
            _ => None,
        }
        .unwrap_or_default()
    }
}

/// How far a long work has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub what: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes to do.
    pub total: u64,
}

/// Called now and then by long works; an error from it ends them.
pub type Watch<'a> = dyn FnMut(Progress) -> Result<()> + Send + 'a;

/// Carries a request out, and says so only where this site may answer it.
pub fn run(site: &Site, tz: Option<&str>, request: &Request, watch: &mut Watch<'_>) -> Result<Response> {
    let leased = leased::Leased::begin(site, request)?;
    let response = carry_out(site, tz, request, watch)?;
    leased.end().map(|()| response)
}

fn carry_out(site: &Site, tz: Option<&str>, request: &Request, watch: &mut Watch<'_>) -> Result<Response> {
    let store = &*site.store;
    Ok(match request {
        Request::Hello => Response::Hello(Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            endpoints: site.server.as_ref().map(|server| server.endpoints.clone()).unwrap_or_default(),
        }),
        Request::Create(create) => Response::Created(volumes::create(store, create, watch)?),
        Request::List => Response::Volumes(volumes::list(store)?),
        Request::Status { target } => Response::Status(Box::new(status::status(site, target.as_deref())?)),
        Request::Mark(mark) => Response::Marked(mark::mark(store, mark)?),
        Request::Resolve { target } => Response::Points(points::infos(store, target, &zone(tz)?)?),
        Request::Restore(restore) => Response::Restored(restore::restore(store, restore, &zone(tz)?, watch)?),
        Request::Verify { target } => Response::Verified(verify::verify(store, target.as_deref(), watch)?),
        Request::Log(log) => Response::Timelines(timeline::timelines(store, log, &zone(tz)?, watch)?),
        Request::Records(log) => Response::Records(timeline::records(store, log, &zone(tz)?)?),
        Request::Marks(of) => Response::Marks(stretch::marks(store, of)?),
        Request::Changes(of) => Response::Changes(stretch::changes(store, of)?),
        Request::KeepProof(proof) => Response::Proof(proofs::keep(store, proof)?),
        Request::Diff(diff) => Response::Diff(diff::page(store, diff, &zone(tz)?)?),
        Request::Close { target, force } => Response::Closed(clones::close(site, target, *force)?),
        Request::GroupCreate(group) => Response::Groups(groups::add(store, group, true)?),
        Request::GroupAdd(group) => Response::Groups(groups::add(store, group, false)?),
        Request::GroupRemove(group) => {
            Response::Groups(groups::remove(store, &group.name, Some(&group.members))?)
        }
        Request::GroupDelete { name } => Response::Groups(groups::remove(store, name, None)?),
        Request::GroupList => Response::Groups(groups::list(store)),
        Request::Delete { volume, force } => Response::Volume(volumes::delete(site, volume, *force)?),
        Request::SetJournalCap { volume, cap_bytes } => {
            Response::Volume(volumes::set_journal_cap(store, volume, *cap_bytes)?)
        }
        Request::Clone(clone) => branch::clone(store, clone, &zone(tz)?)?,
        Request::Hydrate { volume } => branch::hydrate(store, volume, watch)?,
        Request::Rollback(rollback) => Response::Rewound(rewind::rollback(site, rollback, &zone(tz)?)?),
        Request::Undo(undo) => Response::Rewound(rewind::undo(site, undo)?),
        Request::Resume { target } => Response::Resumed(rewind::resume(site, target)?),
        Request::Grow { volume, size_bytes } => Response::Volume(rewind::grow(site, volume, *size_bytes)?),
        Request::Import(import) => Response::Imported(import::import(site, import, watch)?),
        Request::Failover(of) => Response::FailedOver(failover::failover(site, of, &zone(tz)?)?),
        Request::Demote(of) => Response::Demoted(failover::demote(site, of, watch)?),
        Request::Resync(of) => Response::Resynced(failover::resync(site, of)?),
        Request::State(of) => Response::State(follow::state(store, of)?),
        Request::Delta(of) => Response::Delta(follow::delta(store, of)?),
        Request::Retention { target } => Response::Retention(retention::show(store, target)?),
        Request::SimulateRetention { target, policy } => {
            Response::Simulated(retention::simulate(store, target, policy.as_deref())?)
        }
        Request::SetRetention { target, policy } => {
            Response::Retention(retention::set(store, target, policy)?)
        }
        Request::AddReplica(add) => Response::Replicas(replicas::add(site, add)?),
        Request::Replicas { volume } => Response::Replicas(replicas::list(site, volume.as_deref())?),
        Request::LimitReplica { volume, address, limit } => {
            Response::Replicas(replicas::limit(site, volume, address, limit)?)
        }
        Request::CompressReplica { volume, address, codec } => {
            Response::Replicas(replicas::compress(site, volume, address, codec)?)
        }
        Request::CoalesceReplica { volume, address, size } => {
            Response::Replicas(replicas::coalesce(site, volume, address, size)?)
        }
        Request::Newest(request) => Response::Newest(newest::newest(store, request)?),
        Request::Copies { drop } => Response::Copies(replicas::copies(site, drop.as_deref())?),
        Request::Reseed(request) => Response::Reseeds(reseed::reseed(store, request, &zone(tz)?)?),
        Request::RemoveReplica { volume, address } => {
            Response::Replicas(replicas::remove(site, volume, address)?)
        }
        Request::Unmark { target, name } => Response::Unmarked(retention::unmark(store, target, name)?),
        Request::Undelete { volume } => Response::Volume(volumes::undelete(store, volume)?),
        Request::Purge { volume } => Response::Purged(volumes::purge(store, volume)?),
    })
}

/// The zone of civil times: what the client's TZ says, else this machine's.
fn zone(tz: Option<&str>) -> Result<Zone> {
    match tz {
        Some(name) if !name.is_empty() => {
            Zone::named(name.strip_prefix(':').unwrap_or(name)).or_else(|error| {
                // A file's path is a legal TZ too, which only the system's own reading knows.
                if std::env::var("TZ").is_ok_and(|ours| ours == name) { Zone::system() } else { Err(error) }
            })
        }
        _ => Zone::system(),
    }
}
