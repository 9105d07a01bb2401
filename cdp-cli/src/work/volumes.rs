//! Making, listing, deleting and bringing back volumes.

use std::path::PathBuf;
use std::time::Duration;

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, format_utc};
use cdp_core::history::retention::{AtCap, Policy};
use cdp_core::store::{CreateOptions, Store};
use cdp_core::volume::retain::SEGMENTS_MIN;
use cdp_core::volume::role::Role;
use cdp_core::volume::{Health, Volume};
use serde::{Deserialize, Serialize};

use super::leaving::is_export_of;
use super::mark::{self, Mark};
use super::{Site, Watch};
use crate::image::source::Writers;
use crate::image::{Format, Source};
use crate::units::size;

/// How long clients may take to leave a volume that is deleted with force.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// Of a note that says why a copy is not consistent.
const NOTE_CHARS: usize = 200;

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Its name.
    pub name: String,
    /// Its size in bytes; without it, that of `from`.
    pub size_bytes: Option<u64>,
    /// A file or a block device to begin with.
    pub from: Option<PathBuf>,
    /// Its format; without it, what its first bytes say.
    #[serde(default)]
    pub format: Option<Format>,
    /// It may be written to meanwhile: the volume begins with a state that never was.
    #[serde(default)]
    pub first_pass: bool,
    /// See [`CreateOptions`].
    pub journal_cap_bytes: Option<u64>,
    /// See [`CreateOptions`].
    pub marker_interval_ns: Option<u64>,
}

/// A volume that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Its name.
    pub name: String,
    /// Its identity everywhere.
    pub id: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes taken over from the source.
    pub imported_bytes: u64,
    /// Why what was taken over is no state that the source ever had.
    pub inconsistent: Option<String>,
}

/// A line of `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLine {
    /// Its name.
    pub name: String,
    /// `good`, `replica`, `fenced`, `held` (closed to clients until it is resumed), `read-only`, `closed`, `failed`, `deleted`.
    pub state: String,
    /// `primary`, `replica` or `fenced`, where it is known.
    #[serde(default)]
    pub role: Option<String>,
    /// Why, where it is not good.
    pub why: Option<String>,
    /// Its size in bytes, where it is known.
    pub size_bytes: Option<u64>,
    /// Its newest record.
    pub tip_lsn: Option<u64>,
    /// When that was, RFC 3339 in UTC.
    pub tip_utc: Option<String>,
    /// What the journal takes, in bytes.
    pub journal_bytes: Option<u64>,
    /// When it was made, or deleted, RFC 3339 in UTC.
    pub since: Option<String>,
}

impl VolumeLine {
    /// Of an opened volume.
    pub fn of(volume: &Volume) -> VolumeLine {
        let (lsn, at) = volume.tip();
        let (state, why) = match volume.health() {
            Health::Good => match volume.held() {
                Some(held) => ("held", Some(held.why)),
                None => of_role(&volume.role()),
            },
            Health::ReadOnly { reason, .. } => ("read-only", Some(reason)),
            Health::Closed => ("closed", None),
        };
        VolumeLine {
            name: volume.name().to_owned(),
            state: state.to_owned(),
            role: Some(volume.role().word().to_owned()),
            why,
            size_bytes: Some(volume.size_bytes()),
            tip_lsn: Some(lsn.0),
            tip_utc: Some(format_utc(at)),
            journal_bytes: Some(volume.journal_bytes()),
            since: Some(format_utc(volume.identity().created)),
        }
    }

    fn bare(name: String, state: &str, why: Option<String>, since: Option<String>) -> VolumeLine {
        VolumeLine {
            name,
            state: state.to_owned(),
            role: None,
            why,
            size_bytes: None,
            tip_lsn: None,
            tip_utc: None,
            journal_bytes: None,
            since,
        }
    }
}

/// The state of a volume that is well, and why it takes no writes where it takes none.
pub fn of_role(role: &Role) -> (&'static str, Option<String>) {
    match role {
        Role::Primary => ("good", None),
        Role::Replica { .. } => ("replica", None),
        Role::Fenced { by, why, .. } => ("fenced", Some(format!("it is fenced by epoch {}: {why}", by.0))),
    }
}

/// All volumes, those that cannot be opened, and the trash.
pub fn list(store: &Store) -> Result<Vec<VolumeLine>> {
    let mut lines: Vec<VolumeLine> = store.volumes().iter().map(|volume| VolumeLine::of(volume)).collect();
    lines.extend(
        store
            .failed()
            .into_iter()
            .map(|(name, error)| VolumeLine::bare(name, "failed", Some(error.to_string()), None)),
    );
    lines.extend(
        store.trash()?.into_iter().map(|trashed| {
            VolumeLine::bare(trashed.name, "deleted", None, Some(format_utc(trashed.deleted)))
        }),
    );
    Ok(lines)
}

/// Makes a volume, empty or from a source.
pub fn create(store: &Store, create: &Create, watch: &mut Watch<'_>) -> Result<Created> {
    let writers = if create.first_pass { Writers::Any } else { Writers::None };
    let open = |from| Source::open(from, create.format, writers);
    let mut source = create.from.as_deref().map(open).transpose()?;
    let size_bytes = match (create.size_bytes, &source) {
        (Some(size), Some(source)) if size < source.bytes() => {
            let context =
                format!("{} has {} bytes, more than the {size} asked for", source.name(), source.bytes());
            return Err(Error::new(Kind::Invalid, context).hint("leave --size out, or give a larger one"));
        }
        (Some(size), _) => size,
        (None, Some(source)) => source.bytes().next_multiple_of(512),
        (None, None) => {
            return Err(Error::new(Kind::Invalid, "no size is given")
                .hint(format!("cdp create {} --size 10G", create.name)));
        }
    };
    let mut options = CreateOptions::new(size_bytes);
    check_journal_cap(create.journal_cap_bytes, options.segment_bytes, Policy::default().at_cap)?;
    options.journal_cap_bytes = create.journal_cap_bytes;
    if let Some(interval_ns) = create.marker_interval_ns {
        options.marker_interval_ns = interval_ns;
    }
    let mut imported_bytes = 0;
    let volume = match &mut source {
        None => store.create_volume(&create.name, &options, None)?,
        Some(source) => store.create_volume(
            &create.name,
            &options,
            Some(&mut |base| {
                imported_bytes = source.import(base, watch)?;
                Ok(())
            }),
        )?,
    };
    let inconsistent = source.as_ref().map(Source::inconsistency).transpose()?.flatten();
    if let Some(why) = &inconsistent {
        // Whoever looks for a state to boot from should not take this one.
        let note = format!("not consistent: {why}").chars().take(NOTE_CHARS).collect();
        let (target, name) = (create.name.clone(), Some("first-pass".to_owned()));
        mark::mark(store, &Mark { target, name, note, tags: vec!["import".to_owned()], application: None })?;
    }
    let identity = volume.identity();
    Ok(Created {
        name: identity.name.clone(),
        id: identity.id.to_string(),
        size_bytes: identity.first_size_bytes,
        imported_bytes,
        inconsistent,
    })
}

/// A journal goes by whole segments, and one that is to go on below its cap needs some to turn round in.
fn check_journal_cap(cap_bytes: Option<u64>, segment_bytes: u64, at_cap: AtCap) -> Result<()> {
    let segments = if at_cap == AtCap::Block { 1 } else { SEGMENTS_MIN };
    let Some(bytes) = cap_bytes.filter(|bytes| *bytes < segments * segment_bytes) else { return Ok(()) };
    let context = format!("a journal of at most {}", size(bytes));
    let needs = size(segments * segment_bytes);
    Err(Error::new(Kind::Invalid, context)
        .hint(format!("it grows by segments of {}, and needs {needs} with this policy", size(segment_bytes))))
}

/// Moves a volume to the trash.
pub fn delete(site: &Site, name: &str, force: bool) -> Result<VolumeLine> {
    let groups = site.store.groups();
    if let Some((group, _)) = groups.iter().find(|(_, members)| members.iter().any(|member| member == name)) {
        let context = format!("the volume {name:?} is a member of the group {group:?}");
        if !force {
            return Err(Error::new(Kind::Refused, context)
                .hint(format!("cdp group remove {group} {name}; or --force, which does that, too")));
        }
    }
    if let Some(server) = &site.server {
        let is_meant = |export: &str| is_export_of(export, name);
        let using: Vec<String> = server
            .nbd
            .clients()
            .into_iter()
            .filter(|client| client.export.as_deref().is_some_and(is_meant))
            .map(|client| client.peer.to_string())
            .collect();
        let using = counted(using);
        if !using.is_empty() && !force {
            let context = format!("the volume {name:?} is in use by {}", using.join("; "));
            return Err(Error::new(Kind::Busy, context).hint("detach them first, or say --force"));
        }
        if !using.is_empty() && !server.nbd.disconnect(is_meant, LEAVE_TIME) {
            let context = format!("clients of the volume {name:?} do not leave: {}", using.join("; "));
            return Err(Error::new(Kind::Busy, context));
        }
    }
    if let Some(server) = &site.server {
        server.clones.close_all_of(name);
    }
    let line = match site.store.volume(name) {
        Ok(volume) => VolumeLine::of(&volume),
        Err(_) => VolumeLine::bare(name.to_owned(), "failed", None, None),
    };
    site.store.delete_volume(name)?;
    // A crash in between leaves a name in a group that nobody has: `cdp group remove` takes it out, too.
    let mut left = Vec::new();
    for (group, _) in groups.iter().filter(|(_, members)| members.iter().any(|member| member == name)) {
        site.store.remove_from_group(group, &[name.to_owned()])?;
        left.push(group.as_str());
    }
    let why = (!left.is_empty()).then(|| format!("taken out of the group {}", left.join(", ")));
    Ok(VolumeLine { state: "deleted".to_owned(), why, ..line })
}

/// Clients by who they are: one with many connections stands there once.
pub fn counted(mut clients: Vec<String>) -> Vec<String> {
    clients.sort();
    let same = |chunk: &[String]| match chunk.len() {
        1 => chunk[0].clone(),
        connections => format!("{} ({connections} connections)", chunk[0]),
    };
    clients.chunk_by(|a, b| a == b).map(same).collect()
}

/// Brings a deleted volume back.
pub fn undelete(store: &Store, name: &str) -> Result<VolumeLine> {
    store.undelete_volume(name).map(|volume| VolumeLine::of(&volume))
}

/// What was removed for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Name of the volume.
    pub volume: String,
    /// How many deleted ones had it.
    pub removed: usize,
}

/// Removes the deleted volumes of this name for good.
pub fn purge(store: &Store, name: &str) -> Result<Purged> {
    Ok(Purged { volume: name.to_owned(), removed: store.purge_volume(name)? })
}

/// Changes what a volume's journal may take. A cap below what it takes already refuses the next segment.
pub fn set_journal_cap(store: &Store, name: &str, cap_bytes: Option<u64>) -> Result<VolumeLine> {
    let volume = store.volume(name)?;
    check_journal_cap(cap_bytes, volume.identity().segment_bytes, volume.retention().at_cap)?;
    // The policy's bound counts as well, and the smaller one wins.
    if let Some(at_most) =
        volume.retention().bytes_max.filter(|at_most| cap_bytes.is_none_or(|cap| cap > *at_most))
    {
        let context =
            format!("the policy of volume {name} says `at most {}`, whatever cap is set", size(at_most));
        return Err(Error::new(Kind::Refused, context).hint(format!(
            "`cdp retention show {name}` has the policy, and `cdp retention set {name} POLICY` changes it"
        )));
    }
    volume.set_journal_cap(cap_bytes)?;
    Ok(VolumeLine::of(&volume))
}
