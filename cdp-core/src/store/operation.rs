//! Rolling a group back: all members or none, whatever happens in between.
//!
//! What is going to be done is made durable in the file `operation` before the first member acts, and removed when
//! all have. Legal states after a crash, and what the next opening makes of them:
//!
//! | the file | members that have acted | then |
//! |---|---|---|
//! | missing | all or none | nothing |
//! | there | none | nothing was done: the file goes |
//! | there | some | the others follow; then the file goes |
//! | there | all | the file goes |
//!
//! What a member goes back to is durable before the file is, so that it can follow. It has acted when its newest
//! rollback carries the operation's id: one that was taken back has not.
//! Nothing is served before this is settled. Where a member cannot follow, because it cannot be opened or takes no
//! writes, the others stay closed to clients.

use std::io::ErrorKind;
use std::sync::Arc;

use super::{Store, VERSION, in_lock_order};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::turn::Turn;
use crate::ids::*;
use crate::io::{read_file, replace_file};
use crate::volume::Volume;
use crate::volume::rollback::{Back, How, RolledBack};

const OPERATION_FILE: &str = "operation";
const OPERATION_KIND: &str = "cdp-operation";
const UNDO: &str = "undo";

/// What is done to a group.
struct Operation {
    id: u128,
    group: String,
    asked: String,
    members: Vec<(VolumeId, Back)>,
}

impl Operation {
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new(OPERATION_KIND, VERSION);
        manifest.set("id", VolumeId(self.id));
        manifest.set("group", &self.group);
        manifest.set("asked", &self.asked);
        for (number, (id, back)) in self.members.iter().enumerate() {
            let back = match back {
                Back::To(lsn) => lsn.to_string(),
                Back::Undo => UNDO.to_owned(),
            };
            manifest.set(&format!("member.{number:06}"), format!("{id}/{back}"));
        }
        manifest
    }

    fn from_manifest(manifest: &Manifest) -> Option<Operation> {
        if manifest.kind != OPERATION_KIND || manifest.version != VERSION {
            return None;
        }
        let mut members = Vec::new();
        for (_, value) in manifest.values.iter().filter(|(key, _)| key.starts_with("member.")) {
            let (id, back) = value.split_once('/')?;
            let back = if back == UNDO { Back::Undo } else { Back::To(Lsn(back.parse().ok()?)) };
            members.push((VolumeId(u128::from_str_radix(id, 16).ok()?), back));
        }
        Some(Operation {
            id: manifest.get_hex("id")?,
            group: manifest.get("group")?,
            asked: manifest.get("asked")?,
            members,
        })
    }

    fn how(&self, at: Option<Timestamp>) -> How {
        How { group: self.id, asked: self.asked.clone(), at }
    }

    fn undone(&self, why: &str) -> String {
        format!("a rollback of the group {} is not done on all members yet: {why}", self.group)
    }

    fn has_acted(&self, volume: &Volume) -> bool {
        let course = volume.course();
        let newest = course.newest_rollback().map(|newest| &newest.turn);
        matches!(newest, Some(Turn::Rollback { group, .. }) if *group == self.id)
    }
}

impl Store {
    /// Sets a volume back, or all members of a group; `members` has each once. Durable
    /// when this returns. An undo of a group takes back what was done to the whole of it.
    pub fn rollback(
        &self,
        name: &str,
        members: &[(Arc<Volume>, Back)],
        asked: &str,
    ) -> Result<Vec<RolledBack>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        if let [(volume, back)] = members {
            return volume.rollback(*back, asked).map(|done| vec![done]);
        }
        if members.iter().any(|(_, back)| *back == Back::Undo) {
            self.refuse_unequal_undo(name, members)?;
        }
        // Where each goes must be there after a power cut: a member that lost it could not follow the others.
        for (volume, _) in members {
            volume.settle(volume.tip_lsn())?;
        }
        let operation = Operation {
            id: self.shared.clock.random().max(1),
            group: name.to_owned(),
            asked: asked.to_owned(),
            members: members.iter().map(|(volume, back)| (volume.identity().id, *back)).collect(),
        };
        let path = self.path.join(OPERATION_FILE);
        replace_file(&*self.shared.files, &path, &operation.manifest().encode())
            .at(|| format!("writing {}", path.display()))?;
        let how = operation.how(None);
        let done = in_lock_order(
            members,
            |(volume, _)| volume.clone(),
            |members| Volume::rollback_all(members, &how),
        );
        let acted = members.iter().filter(|(volume, _)| operation.has_acted(volume)).count();
        // With some who have and some who have not, the next opening has to see to it.
        if acted == 0 || done.is_ok() {
            self.remove_operation()?;
        }
        done
    }

    /// Members that were set back one by one have no common rollback that could be taken back.
    fn refuse_unequal_undo(&self, name: &str, members: &[(Arc<Volume>, Back)]) -> Result<()> {
        let group_of = |volume: &Volume| match volume.course().newest_rollback().map(|newest| &newest.turn) {
            Some(Turn::Rollback { group, .. }) => *group,
            _ => 0,
        };
        let first = group_of(&members[0].0);
        if first != 0 && members.iter().all(|(volume, _)| group_of(volume) == first) {
            return Ok(());
        }
        let context =
            format!("the newest rollbacks of the members of {name:?} were not one rollback of the group");
        Err(Error::new(Kind::Refused, context).hint("undo them one by one"))
    }

    fn remove_operation(&self) -> Result<()> {
        let path = self.path.join(OPERATION_FILE);
        let files = &self.shared.files;
        files
            .remove(&path)
            .and_then(|()| files.sync_dir(&self.path))
            .at(|| format!("removing {}", path.display()))
    }

    /// A member that was opened behind the start would be served as it was before a rollback that is not done on all: it is
    /// closed to clients, durably, as the others are. The next start finishes that with all of them.
    pub(super) fn hold_if_operated_on(&self, volume: &Volume) -> Result<()> {
        let Some(operation) = self.pending_operation()? else { return Ok(()) };
        if operation.members.iter().any(|(id, _)| *id == volume.identity().id) {
            if !operation.has_acted(volume) {
                volume.await_group();
            }
            volume.hold(&operation.undone("restart the server to finish it"))?;
        }
        Ok(())
    }

    fn pending_operation(&self) -> Result<Option<Operation>> {
        let path = self.path.join(OPERATION_FILE);
        let bytes = match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.at(|| format!("reading {}", path.display()))?,
        };
        let operation = Manifest::decode(&bytes).as_ref().and_then(Operation::from_manifest);
        let damaged = || {
            Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display())).hint(
                "a rollback of a group may be half done: look at its members with `cdp log`, then remove it",
            )
        };
        operation.map(Some).ok_or_else(damaged)
    }

    /// Settles what a crash left of a group's rollback. Before anything is served.
    pub(super) fn finish_operation(&self) -> Result<()> {
        let Some(operation) = self.pending_operation()? else { return Ok(()) };
        let mut members = Vec::new();
        let mut missing = false;
        for (id, back) in &operation.members {
            match self.volumes().into_iter().find(|volume| volume.identity().id == *id) {
                Some(volume) => members.push((volume, *back)),
                None => missing = true,
            }
        }
        let acted = members.iter().filter(|(volume, _)| operation.has_acted(volume)).count();
        if acted == 0 && !missing {
            return self.remove_operation();
        }
        // Those that follow do so at the instant of those that have acted: of the group there is no other.
        let stamps =
            members.iter().map(|(volume, _)| volume.course().rollback_of_group(operation.id).map(|t| t.at));
        let how = operation.how(stamps.flatten().max());
        let mut failure = missing.then(|| "a member cannot be opened".to_owned());
        if acted > 0 {
            for (volume, back) in members.iter().filter(|(volume, _)| !operation.has_acted(volume)) {
                if let Err(error) = Volume::rollback_all(&[(volume.clone(), *back)], &how) {
                    failure = Some(error.to_string());
                }
            }
        }
        let Some(why) = failure else { return self.remove_operation() };
        for (volume, _) in &members {
            if !operation.has_acted(volume) {
                volume.await_group();
            }
            volume.hold(&operation.undone(&why))?;
        }
        Ok(())
    }
}
