//! Groups: names for several volumes that are marked, set back and failed over as one. One small file of the store.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Store, VERSION, validate_volume_name};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ids::*;
use crate::io::{Files, read_file, replace_file};
use crate::limits::GROUPS_MAX;
use crate::volume::Volume;

const GROUPS_FILE: &str = "groups";
const GROUPS_KIND: &str = "cdp-groups";

/// By name.
pub(super) type Groups = BTreeMap<String, Group>;

/// A group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Group {
    /// Its members, in the order in which they were added.
    pub(super) members: Vec<String>,
    /// What the site that feeds the members told of, too, and is not here.
    pub(super) awaited: Vec<VolumeId>,
}

impl Store {
    /// The groups and their members.
    pub fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let groups = self.groups.lock().expect("no panics under this lock");
        groups.iter().map(|(name, group)| (name.clone(), group.members.clone())).collect()
    }

    /// Refuses what concerns a whole group as long as some of its members have not arrived from the site that feeds it.
    ///
    /// # Errors
    /// [`Kind::Refused`].
    pub fn refuse_partial(&self, group: &str) -> Result<()> {
        let groups = self.groups.lock().expect("no panics under this lock");
        let awaited = groups.get(group).map(|group| group.awaited.clone()).unwrap_or_default();
        drop(groups);
        let missing = awaited.iter().filter(|id| self.volume_by_id(**id).is_none()).count();
        if missing == 0 {
            return Ok(());
        }
        let context = format!(
            "the group {group} has {missing} more members at the site that feeds it, and they are not here, or not whole"
        );
        Err(Error::new(Kind::Refused, context))
    }

    /// Makes a group of volumes, or adds volumes to one.
    pub fn add_to_group(&self, group: &str, members: &[String], create: bool) -> Result<()> {
        validate_volume_name(group)?;
        for member in members {
            self.volume(member)?;
        }
        let _naming = self.naming.lock().expect("no panics under this lock");
        self.refuse_if_withheld(group)?;
        let mut groups = self.groups.lock().expect("no panics under this lock");
        let mut changed = groups.clone();
        match (create, changed.contains_key(group)) {
            (true, true) => {
                return Err(Error::new(Kind::Exists, format!("there is a group {group:?} already")));
            }
            (false, false) => return Err(no_group(group)),
            (true, false) if self.volumes.lock().expect("no panics under this lock").contains_key(group) => {
                return Err(Error::new(Kind::Exists, format!("there is a volume named {group:?}")));
            }
            (true, false) => self.refuse_if_decided(group)?,
            _ => {}
        }
        let list = &mut changed.entry(group.to_owned()).or_default().members;
        for member in members {
            if !list.contains(member) {
                list.push(member.clone());
            }
        }
        write_groups(&*self.shared.files, &self.path, &changed)?;
        *groups = changed;
        Ok(())
    }

    /// Takes names out of a group, also those that no volume has any more. A group without members is gone.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: no such group, or a name that is not in it; then nothing is changed.
    pub fn remove_from_group(&self, group: &str, members: &[String]) -> Result<()> {
        self.change_group(group, |list| {
            if let Some(stranger) = members.iter().find(|member| !list.contains(member)) {
                let context = format!("{stranger:?} is not a member of the group {group:?}");
                let there = format!("its members are {}", list.join(", "));
                return Err(Error::new(Kind::NotFound, context).hint(there));
            }
            list.retain(|member| !members.contains(member));
            Ok(())
        })
    }

    /// Forgets a group; its members stay.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub fn delete_group(&self, group: &str) -> Result<()> {
        self.change_group(group, |list| {
            list.clear();
            Ok(())
        })
    }

    fn change_group(&self, group: &str, change: impl FnOnce(&mut Vec<String>) -> Result<()>) -> Result<()> {
        let _naming = self.naming.lock().expect("no panics under this lock");
        self.refuse_if_withheld(group)?;
        let mut groups = self.groups.lock().expect("no panics under this lock");
        let mut changed = groups.clone();
        let list = &mut changed.get_mut(group).ok_or_else(|| no_group(group))?.members;
        change(list)?;
        if list.is_empty() {
            changed.remove(group);
        }
        write_groups(&*self.shared.files, &self.path, &changed)?;
        *groups = changed;
        Ok(())
    }

    /// The volumes that a name stands for: a group's members in the order in which they were added, or one volume.
    pub fn members(&self, name: &str) -> Result<Vec<Arc<Volume>>> {
        let group = self.groups.lock().expect("no panics under this lock").get(name).cloned();
        match group {
            Some(Group { members, .. }) => {
                let member = |member: &String| {
                    self.volume(member).map_err(|error| match error.kind() {
                        Kind::NotFound => error.hint(format!(
                            "it is a member of the group {name:?}: `cdp undelete {member}`, or `cdp group remove {name} {member}`"
                        )),
                        _ => error,
                    })
                };
                members.iter().map(member).collect()
            }
            None => Ok(vec![self.volume(name)?]),
        }
    }

    /// The groups that a volume is a member of, by name, with the ids of their members in the group's order.
    pub fn groups_of(&self, volume: &Volume) -> Vec<(String, Vec<VolumeId>)> {
        let groups = self.groups();
        let volumes = self.volumes.lock().expect("no panics under this lock");
        let id = |name: &String| volumes.get(name).map(|volume| volume.identity().id);
        let of_it = groups.iter().filter(|(_, members)| members.iter().any(|name| name == volume.name()));
        of_it.map(|(group, members)| (group.clone(), members.iter().filter_map(id).collect())).collect()
    }

    /// Learns how the site `peer` groups what it sends here: those of `ids` that are replicas of it make up `group`, in this
    /// order, and the others are awaited. The same group of other volumes stays as it is. Gives whether anything changed.
    ///
    /// # Errors
    /// [`Kind::Exists`] where the name is that of a volume, or of a group with volumes that are not the peer's.
    pub fn learn_group(&self, peer: &str, group: &str, ids: &[VolumeId]) -> Result<bool> {
        validate_volume_name(group)?;
        let is_fed = |volume: &Arc<Volume>| {
            !volume.is_primary() && volume.source().is_some_and(|source| source.peer == peer)
        };
        let (mut members, mut awaited) = (Vec::new(), Vec::new());
        for id in ids {
            match self.volume_by_id(*id).filter(is_fed) {
                Some(volume) => members.push(volume.name().to_owned()),
                None => awaited.push(*id),
            }
        }
        let here = Group { members, awaited };
        let _naming = self.naming.lock().expect("no panics under this lock");
        let mut groups = self.groups.lock().expect("no panics under this lock");
        let known = groups.get(group);
        if here.members.is_empty() || known == Some(&here) {
            return Ok(false);
        }
        let volumes = self.volumes.lock().expect("no panics under this lock").clone();
        if volumes.contains_key(group) {
            let context = format!("{peer} has a group {group:?}, and here a volume has that name");
            return Err(Error::new(Kind::Exists, context));
        }
        let mut known = known.into_iter().flat_map(|group| &group.members);
        let own = known.find(|name| !volumes.get(*name).is_some_and(is_fed));
        if let Some(own) = own {
            let context = format!(
                "{peer} has a group {group:?}; the group of that name here has the volume {own:?}, which is not a replica of it, or cannot be opened"
            );
            return Err(Error::new(Kind::Exists, context));
        }
        let mut changed = groups.clone();
        changed.insert(group.to_owned(), here);
        write_groups(&*self.shared.files, &self.path, &changed)?;
        *groups = changed;
        Ok(true)
    }
}

fn no_group(group: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no group {group:?}"))
        .hint(format!("`cdp group create {group} VOL…` makes one"))
}

pub(super) fn read_groups(files: &dyn Files, path: &Path) -> Result<Groups> {
    let path = path.join(GROUPS_FILE);
    let bytes = match read_file(files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Groups::new()),
        other => other.at(|| format!("reading {}", path.display()))?,
    };
    decode(&bytes).ok_or_else(|| {
        Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display()))
            .hint("remove it and make the groups again; the volumes are not touched")
    })
}

fn decode(bytes: &[u8]) -> Option<Groups> {
    let manifest = Manifest::decode(bytes).filter(|m| m.kind == GROUPS_KIND && m.version == VERSION)?;
    let mut groups = Groups::new();
    for (key, line) in &manifest.values {
        // Names hold no slash, so it separates them.
        let mut fields = line.split('/').map(str::to_owned);
        let group = groups.entry(fields.next()?).or_default();
        match key.split_once('.')?.0 {
            "awaited" => {
                let id = |field: String| u128::from_str_radix(&field, 16).ok().map(VolumeId);
                group.awaited = fields.map(id).collect::<Option<_>>()?;
            }
            _ => group.members = fields.collect(),
        }
    }
    Some(groups)
}

pub(super) fn write_groups(files: &dyn Files, path: &Path, groups: &Groups) -> Result<()> {
    let mut manifest = Manifest::new(GROUPS_KIND, VERSION);
    for (number, (name, group)) in groups.iter().enumerate() {
        let line = |fields: Vec<String>| [vec![name.clone()], fields].concat().join("/");
        manifest.set(&format!("group.{number:06}"), line(group.members.clone()));
        if !group.awaited.is_empty() {
            let ids = group.awaited.iter().map(VolumeId::to_string).collect();
            manifest.set(&format!("awaited.{number:06}"), line(ids));
        }
    }
    let path = path.join(GROUPS_FILE);
    let bytes = manifest.encode();
    if groups.len() > GROUPS_MAX || bytes.len() as u64 > MANIFEST_BYTES_MAX {
        // Longer ones could not be read again.
        let context = format!(
            "a store has at most {GROUPS_MAX} groups in {MANIFEST_BYTES_MAX} bytes; these are {} in {}",
            groups.len(),
            bytes.len()
        );
        return Err(Error::new(Kind::Invalid, context));
    }
    replace_file(files, &path, &bytes).at(|| format!("writing {}", path.display()))
}
