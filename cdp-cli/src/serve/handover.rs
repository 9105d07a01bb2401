//! A planned handover: whoever stepped down keeps its epoch, and answers nobody, until a replica has all that was answered.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cdp_core::volume::Volume;
use cdp_core::volume::role::Role;

/// How long a site that stepped down keeps the other from going on. After a restart: until a replica has everything.
#[derive(Default)]
pub struct Handover {
    until: Mutex<Option<Instant>>,
}

impl Handover {
    /// It steps down now: until a replica has everything, and until this instant at most.
    pub fn begin(&self, until: Option<Instant>) {
        *self.until.lock().expect("no panics under this lock") = until;
    }

    /// Whether the other site may go on, whatever it has.
    fn is_over(&self) -> bool {
        let until = *self.until.lock().expect("no panics under this lock");
        until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether these stepped down here, nobody has gone on yet, and nothing is waited for any more.
    pub fn has_handed_over(&self, members: &[Arc<Volume>], peer: &str) -> bool {
        !members.is_empty()
            && members.iter().all(|volume| has_stepped_down(volume))
            && self.keeps(members, peer).is_none()
    }

    /// Why the epoch is kept, if it is; `peer` is the site that would go on, as the replicas are called.
    pub fn keeps(&self, members: &[Arc<Volume>], peer: &str) -> Option<String> {
        let leaves = |volume: &Arc<Volume>| volume.role() == Role::Primary || has_stepped_down(volume);
        if self.is_over() || !members.iter().all(leaves) {
            return None;
        }
        let missing = members.iter().find(|volume| !is_drained(volume, peer))?;
        Some(format!(
            "volume {} was demoted here, and the other site has not acknowledged all of it yet; it goes on then, or when the time of --drain is over",
            missing.name()
        ))
    }
}

/// Whether it was a primary, and nothing came from another site since: what it answered last may be here only.
fn has_stepped_down(volume: &Volume) -> bool {
    let ended = match volume.role() {
        Role::Replica { ended, .. } => ended,
        _ => None,
    };
    ended == Some(volume.tip_lsn()) && volume.fed_by().is_none()
}

/// Whether the site that would go on has all of a volume that stepped down. Where it goes by another address as a replica,
/// any replica counts.
fn is_drained(volume: &Volume, peer: &str) -> bool {
    let Role::Replica { since, ended: Some(ended) } = volume.role() else { return false };
    let replicas = volume.replicas();
    let is_known = replicas.iter().any(|replica| replica.address == peer);
    replicas.iter().filter(|replica| !is_known || replica.address == peer).any(|replica| {
        // Also of the instant: a group is promoted at one that is complete for all its members.
        replica.is_acknowledged && replica.held >= ended && replica.complete >= since
    })
}
