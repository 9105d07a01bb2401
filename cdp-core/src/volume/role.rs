//! The role of a volume: whether it takes writes of its own, records of another site, or neither.
//!
//! ```text
//!             demote                    records of another site
//!  Primary ───────────▶ Replica ◀─┐     are appended here only
//!     │  ▲                 │      │
//!     │  └──── promote ────┤      │ resync
//!     │ fence              │      │
//!     └───────────────▶ Fenced ───┘
//! ```
//!
//! The role stands in the manifest and survives everything the manifest does. It changes under the append lock, so that
//! no record of its own lands behind a change, and none of another site before it.
//!
//! Legal states after a crash: the role before or the role after. A *demotion* counts, and is answered, when it is
//! durable; until then the volume takes no writes, so that the last record it has is the last one there is. A *fence*
//! holds in memory at once, durable or not: whoever heard of a higher epoch must not answer another write, and a process
//! that dies before it wrote that down hears of it again before it serves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::Volume;
use crate::error::{Error, Kind, Result};
use crate::format::manifest::Manifest;
use crate::history::point::Timeline;
use crate::ids::{EpochNumber, Lsn, Timestamp};
use crate::journal::append::Appender;

/// What a primary says, behind its name, to records of another site. Told to the other site, which knows it by this.
pub const IS_PRIMARY: &str = "is a primary: it takes no records of another site";

/// What a volume takes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Writes of its clients.
    #[default]
    Primary,
    /// Records of another site.
    Replica {
        /// Since when.
        since: Timestamp,
        /// It was a primary until then, and this is its newest record of that time: as long as it has no newer one, all
        /// that happened up to `since` is here.
        ended: Option<Lsn>,
    },
    /// Nothing: another site has a higher epoch, or the same one under another id, and what this one has beyond the
    /// fork is still to be kept aside.
    Fenced {
        /// Since when.
        since: Timestamp,
        /// The highest epoch it heard of.
        by: EpochNumber,
        /// What happened, for people; one line.
        why: String,
    },
}

impl Role {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Replica { .. } => "replica",
            Role::Fenced { .. } => "fenced",
        }
    }

    /// Puts its lines into a manifest; none for a primary.
    pub(super) fn put(&self, manifest: &mut Manifest) {
        match self {
            Role::Primary => return,
            Role::Replica { since, ended } => {
                manifest.set("role_ns", since.0);
                if let Some(lsn) = ended {
                    manifest.set("ended_lsn", lsn.0);
                }
            }
            Role::Fenced { since, by, why } => {
                manifest.set("role_ns", since.0);
                manifest.set("fenced_by", by.0);
                manifest.set("fenced_why", why.replace('\n', " "));
            }
        }
        manifest.set("role", self.word());
    }

    /// Reads the lines of a manifest that has them; `None` if they make no sense.
    pub(super) fn from(manifest: &Manifest) -> Option<Role> {
        let since = Timestamp(manifest.get("role_ns")?);
        match manifest.values.get("role")?.as_str() {
            "replica" => Some(Role::Replica { since, ended: manifest.get("ended_lsn").map(Lsn) }),
            "fenced" => Some(Role::Fenced {
                since,
                by: EpochNumber(manifest.get("fenced_by")?),
                why: manifest.get("fenced_why").unwrap_or_default(),
            }),
            _ => None,
        }
    }
}

/// The role that holds now. A leaf among the locks.
pub(super) struct RoleNow {
    role: Mutex<Role>,
    is_primary: AtomicBool,
    changes: AtomicU64,
    // Held while the role changes, durably and in memory. Of several volumes in rising order of their ids, before any
    // append lock.
    pub(super) changing: Mutex<()>,
}

impl RoleNow {
    pub(super) fn new(role: Role) -> RoleNow {
        RoleNow {
            is_primary: AtomicBool::new(role == Role::Primary),
            role: Mutex::new(role),
            changes: AtomicU64::new(0),
            changing: Mutex::new(()),
        }
    }

    /// What it goes on from is another state: whoever came in before is sent away as by a change of the role.
    pub(super) fn note_other_state(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Volume {
    /// Its role.
    pub fn role(&self) -> Role {
        self.role.role.lock().expect("no panics under this lock").clone()
    }

    /// Whether it takes writes of its clients.
    pub fn is_primary(&self) -> bool {
        self.role.is_primary.load(Ordering::Acquire)
    }

    /// So often its role changed since it was opened.
    pub(super) fn role_changes(&self) -> u64 {
        self.role.changes.load(Ordering::Acquire)
    }

    /// A promotion of it was begun here and is not done: it is closed for that, and no other site fenced it.
    pub fn is_being_promoted(&self) -> bool {
        let is_fenced = |role: &Role| matches!(role, Role::Fenced { .. });
        is_fenced(&self.role()) && !is_fenced(&self.manifest.lock().expect("no panics under this lock").role)
    }

    /// Whether records of its own may be appended.
    pub(super) fn refuse_unless_primary(&self) -> Result<()> {
        if self.is_primary() {
            return Ok(());
        }
        let name = &self.identity.name;
        let past = format!("{name}@POINT shows any instant of it");
        Err(match self.role() {
            Role::Primary => Error::new(Kind::Busy, format!("volume {name} is changing its role")),
            Role::Replica { .. } => {
                let context = format!("volume {name} is a replica: it takes records of its primary only");
                Error::new(Kind::ReadOnly, context)
                    .hint(format!("write at the primary; {past}, {name}@POINT+rw takes throw-away writes"))
            }
            Role::Fenced { by, why, .. } => {
                let context = format!("volume {name} is fenced by epoch {}: {why}", by.0);
                Error::new(Kind::ReadOnly, context).hint(format!(
                    "write where that epoch is; {past}, also what was written here after the fork"
                ))
            }
        })
    }

    /// Whether records of another site may be appended. To be asked under the append lock, where no role changes.
    pub fn refuse_unless_replica(&self) -> Result<()> {
        self.refuse_unless_healthy()?;
        let name = &self.identity.name;
        match self.role() {
            Role::Replica { .. } => Ok(()),
            Role::Primary => {
                let context = format!("volume {name} {IS_PRIMARY}");
                Err(Error::new(Kind::Refused, context).hint("only a replica does"))
            }
            Role::Fenced { by, why, .. } => {
                let context =
                    format!("volume {name} is fenced by epoch {} and takes no records: {why}", by.0);
                Err(Error::new(Kind::Refused, context)
                    .hint("what it has beyond the fork has to be kept aside first"))
            }
        }
    }

    /// An old copy whose place a newer one took is only shown.
    pub fn refuse_if_aside(&self) -> Result<()> {
        if self.identity.journal_of.is_none() {
            return Ok(());
        }
        let name = &self.identity.name;
        let context = format!("volume {name} is an old copy, whose place a newer one took: it is only shown");
        Err(Error::new(Kind::Refused, context)
            .hint(format!("`cdp clone {name}@POINT NEW` makes a volume that begins as it was")))
    }

    /// [`Volume::demote_all`] of one; gives its newest record.
    pub fn demote(&self) -> Result<(Lsn, Timestamp)> {
        Volume::demote_all(&[self])?;
        Ok(self.tip())
    }

    /// Primaries become replicas: they take no more writes from now on, and everything they took is durable, as are their
    /// new roles, when this returns. Gives an instant that is later than all they took, and the same for all: up to it
    /// another site must be complete before it goes on without losing a write. A replica stays one. They are in any order,
    /// each once.
    ///
    /// # Errors
    /// A fenced volume stays fenced. Of what cannot be made durable each is the primary again; others may be demoted.
    pub fn demote_all(volumes: &[&Volume]) -> Result<Timestamp> {
        let mut in_lock_order = volumes.to_vec();
        in_lock_order.sort_by_key(|volume| volume.identity.id);
        let _changing: Vec<_> = in_lock_order
            .iter()
            .map(|volume| volume.role.changing.lock().expect("no panics under this lock"))
            .collect();
        let primaries: Vec<&&Volume> = volumes.iter().filter(|volume| !volume.is_replica()).collect();
        primaries.iter().try_for_each(|volume| volume.refuse_unless_writable())?;
        primaries.iter().for_each(|volume| volume.stop_writes());
        let mut outcome = Ok(());
        for volume in &primaries {
            outcome = outcome.and_then(|()| volume.sync_through(volume.tip_lsn()));
        }
        let mut through = Timestamp(0);
        for volume in volumes {
            let clock = &volume.shared.clock;
            // Later than all of them, also where an older record is of another site with a faster clock.
            clock.pass(volume.tip().1);
            through = through.max(clock.now());
            clock.pass(through);
        }
        for volume in &primaries {
            let role = Role::Replica { since: through, ended: Some(volume.tip_lsn()) };
            let settled =
                outcome.and_then(|()| volume.change_manifest(|manifest| manifest.role = role.clone()));
            // Where the file says replica all the same, the next opening makes it one: nobody was told, no write is lost.
            volume.enter(if settled.is_ok() { role } else { Role::Primary });
            outcome = settled;
        }
        outcome.map(|()| volumes.iter().map(|volume| volume.complete_through().1).min().unwrap_or(through))
    }

    /// Another site has a higher epoch, or the same one under another id: no write is answered from now on. Durable when
    /// this returns without an error; in force in any case. Of a volume that is fenced already, the higher epoch stays.
    pub fn fence(&self, by: EpochNumber, why: &str) -> Result<()> {
        let _changing = self.role.changing.lock().expect("no panics under this lock");
        let role = match self.role() {
            Role::Fenced { by: known, .. } if known >= by => self.role(),
            _ => Role::Fenced { since: self.shared.clock.now(), by, why: why.to_owned() },
        };
        self.enter(role.clone());
        // Again where an earlier one failed to write it.
        if self.manifest.lock().expect("no panics under this lock").role == role {
            return Ok(());
        }
        self.change_manifest(|manifest| manifest.role = role)
    }

    /// A fenced volume that has nothing that another site has not goes on as a replica. Durable when this returns.
    pub(crate) fn receive_from_here(&self) -> Result<()> {
        let _changing = self.role.changing.lock().expect("no panics under this lock");
        let role = Role::Replica { since: self.shared.clock.now(), ended: None };
        self.change_manifest(|manifest| manifest.role = role.clone())?;
        self.enter(role);
        Ok(())
    }

    /// No record of its own is appended once this returns.
    fn stop_writes(&self) {
        let _append = self.append.lock().expect("no panics under this lock");
        self.role.is_primary.store(false, Ordering::Release);
        self.role.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Whoever came in before sees nothing of what follows.
    pub(super) fn enter(&self, role: Role) {
        let append = self.append.lock().expect("no panics under this lock");
        self.enter_under(&append, role);
    }

    /// As [`Volume::enter`], for a caller who holds the append lock.
    pub(super) fn enter_under(&self, _append: &MutexGuard<'_, Option<Appender>>, role: Role) {
        let mut now = self.role.role.lock().expect("no panics under this lock");
        self.role.is_primary.store(role == Role::Primary, Ordering::Release);
        if *now != role {
            self.role.changes.fetch_add(1, Ordering::AcqRel);
        }
        *now = role;
    }
}
