//! What the small files of a volume's directory say: its manifest, where its history begins, its retention policy.

use std::io::ErrorKind;
use std::path::Path;

use super::Shared;
#[cfg(doc)]
use super::Volume;
use super::clone::Parent;
use super::cut::{CutAt, Orphan};
use super::role::Role;
use super::rollback::Held;
#[cfg(doc)]
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::{HISTORY_FILE, HistoryState};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::mark::Mark;
use crate::format::record::Chain;
use crate::history::retention::Policy;
use crate::ids::*;
use crate::io::{read_file, replace_file};
use crate::journal::mark::MarkFile;

/// Name of a volume's manifest in its directory.
pub const MANIFEST_FILE: &str = "volume";
/// Name of the file with the volume's retention policy; missing where none was set.
pub const RETENTION_FILE: &str = "retention";
const MANIFEST_KIND: &str = "cdp-volume";
/// Of a primary; and of a volume with another role, which older programs must not write to.
const MANIFEST_VERSION: u32 = 1;
const MANIFEST_VERSION_ROLE: u32 = 2;

/// What the manifest says. [`Volume::identity`] gives it as it was when the volume was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name in the store.
    pub name: String,
    /// Its name everywhere.
    pub id: VolumeId,
    /// The size in bytes that it was made with. What it has now, [`Device::size_bytes`] tells; what it had at an
    /// instant, [`Volume::size_at`].
    pub first_size_bytes: u64,
    /// When it was made: the timestamp of LSN 0.
    pub created: Timestamp,
    /// Size of its journal segments in bytes.
    pub segment_bytes: u64,
    /// How much the journal may take, in bytes; without it, what leaves a tenth of the filesystem free. As of
    /// the opening: [`Volume::journal_cap_bytes`] knows what holds now.
    pub journal_cap_bytes: Option<u64>,
    /// A periodic marker is set so often, in nanoseconds, when something was written; 0 = never.
    pub marker_interval_ns: u64,
    /// It was closed to clients, until somebody opens it again. As of the opening: [`Volume::held`] knows.
    pub held: Option<Held>,
    /// Of a clone: whose view its base is. As of the opening: [`Volume::parent`] knows what holds now.
    pub parent: Option<Parent>,
    /// Whether it takes writes of its own. As of the opening: [`Volume::role`] knows what holds now.
    pub role: Role,
    /// The journal is to be cut behind this record before anything else; only while nobody has it open.
    pub cut: Option<CutAt>,
    /// Of a volume that holds what only a losing site had: what that is.
    pub orphan: Option<Orphan>,
    /// Of a replica whose place a newer copy took: the volume that it was. Its files name that one; it is shown, and nothing is
    /// written to it any more.
    pub journal_of: Option<VolumeId>,
}

impl Identity {
    /// The volume that its files and records name.
    pub fn journal_id(&self) -> VolumeId {
        self.journal_of.unwrap_or(self.id)
    }
}

impl Identity {
    fn manifest(&self) -> Manifest {
        let version = if self.role == Role::Primary { MANIFEST_VERSION } else { MANIFEST_VERSION_ROLE };
        let mut manifest = Manifest::new(MANIFEST_KIND, version);
        self.role.put(&mut manifest);
        manifest.set("name", &self.name);
        manifest.set("id", self.id);
        manifest.set("size_bytes", self.first_size_bytes);
        manifest.set("created_ns", self.created.0);
        manifest.set("segment_bytes", self.segment_bytes);
        manifest.set("marker_interval_ns", self.marker_interval_ns);
        if let Some(cap) = self.journal_cap_bytes {
            manifest.set("journal_cap_bytes", cap);
        }
        if let Some(held) = &self.held {
            manifest.set("held_ns", held.since.0);
            manifest.set("held_why", held.why.replace('\n', " "));
        }
        if let Some(parent) = &self.parent {
            manifest.set("parent_id", parent.id);
            manifest.set("parent_lsn", parent.lsn.0);
        }
        let chain = |chain: Chain| format!("{:032x}", u128::from_be_bytes(chain.0));
        if let Some(cut) = &self.cut {
            manifest.set("cut_lsn", cut.lsn);
            manifest.set("cut_chain", chain(cut.chain));
        }
        if let Some(orphan) = &self.orphan {
            manifest.set("orphan_of", orphan.of);
            manifest.set("orphan_fork", orphan.fork);
            manifest.set("orphan_through", orphan.through);
            manifest.set("orphan_chain", chain(orphan.chain));
        }
        if let Some(of) = self.journal_of {
            manifest.set("journal_of", of);
        }
        manifest
    }

    fn from_manifest(manifest: &Manifest) -> Option<Identity> {
        let role = match manifest.version {
            MANIFEST_VERSION => Role::Primary,
            MANIFEST_VERSION_ROLE => Role::from(manifest)?,
            _ => return None,
        };
        if manifest.kind != MANIFEST_KIND {
            return None;
        }
        let chain = |key: &str| Some(Chain(manifest.get_hex(key)?.to_be_bytes()));
        Some(Identity {
            role,
            name: manifest.get("name")?,
            id: VolumeId(manifest.get_hex("id")?),
            first_size_bytes: manifest.get("size_bytes")?,
            created: Timestamp(manifest.get("created_ns")?),
            segment_bytes: manifest.get("segment_bytes")?,
            journal_cap_bytes: manifest.get("journal_cap_bytes"),
            marker_interval_ns: manifest.get("marker_interval_ns")?,
            held: manifest.get("held_ns").map(|since| Held {
                since: Timestamp(since),
                why: manifest.get("held_why").unwrap_or_default(),
            }),
            parent: match manifest.get_hex("parent_id") {
                Some(id) => Some(Parent { id: VolumeId(id), lsn: Lsn(manifest.get("parent_lsn")?) }),
                None => None,
            },
            cut: match manifest.get("cut_lsn") {
                Some(lsn) => Some(CutAt { lsn: Lsn(lsn), chain: chain("cut_chain")? }),
                None => None,
            },
            orphan: match manifest.get_hex("orphan_of") {
                Some(of) => Some(Orphan {
                    of: VolumeId(of),
                    fork: Lsn(manifest.get("orphan_fork")?),
                    through: Lsn(manifest.get("orphan_through")?),
                    chain: chain("orphan_chain")?,
                }),
                None => None,
            },
            journal_of: manifest.get_hex("journal_of").map(VolumeId),
        })
    }
}

/// Puts the mark of a new volume into `dir`, which exists and is otherwise empty (but for a base). The volume is there when
/// its manifest is: that is written last.
pub fn create_mark(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    let mark = Mark {
        volume: identity.journal_id(),
        incarnation: Incarnation(0),
        sequence: 0,
        lsn: Lsn::ZERO,
        chain: Chain::default(),
        timestamp: identity.created,
        clean_stop: true,
    };
    MarkFile::create(&*shared.files, dir, mark)
}

/// As [`create_mark`], and the manifest behind it.
pub fn create(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    create_mark(shared, dir, identity)?;
    write_manifest(shared, dir, identity)
}

/// Replaces the manifest.
pub fn write_manifest(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    replace_file(&*shared.files, &path, &identity.manifest().encode())
        .at(|| format!("writing {}", path.display()))
}

/// Reads a volume's manifest.
pub fn read_manifest(shared: &Shared, dir: &Path) -> Result<Identity> {
    let path = dir.join(MANIFEST_FILE);
    let bytes =
        read_file(&*shared.files, &path, MANIFEST_BYTES_MAX).at(|| format!("reading {}", path.display()))?;
    Manifest::decode(&bytes).as_ref().and_then(Identity::from_manifest).ok_or_else(|| damaged_manifest(&path))
}

/// Reads where the volume's history begins.
pub(super) fn read_history(shared: &Shared, dir: &Path, identity: &Identity) -> Result<HistoryState> {
    let path = dir.join(HISTORY_FILE);
    match read_file(&*shared.files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(HistoryState::beginning(identity.created)),
        other => {
            let bytes = other.at(|| format!("reading {}", path.display()))?;
            HistoryState::decode(&bytes).ok_or_else(|| damaged_manifest(&path))
        }
    }
}

pub(super) fn read_retention(shared: &Shared, dir: &Path) -> Result<Policy> {
    let path = dir.join(RETENTION_FILE);
    match read_file(&*shared.files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Policy::default()),
        other => {
            let bytes = other.at(|| format!("reading {}", path.display()))?;
            super::retain::decode_policy(&bytes).ok_or_else(|| damaged_manifest(&path))
        }
    }
}

fn damaged_manifest(path: &Path) -> Error {
    Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display()))
        .hint("restore it from a backup of the store; the journal itself is not touched")
}
