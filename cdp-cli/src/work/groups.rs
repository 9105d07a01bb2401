//! Groups: volumes that are marked and looked at as of one instant.

use cdp_core::error::{Error, Kind, Result};
use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its volumes.
    pub members: Vec<String>,
}

/// All groups.
pub fn list(store: &Store) -> Vec<Group> {
    store.groups().into_iter().map(|(name, members)| Group { name, members }).collect()
}

/// The names that a name stands for: those of a group's members, or itself, whether there is such a volume or not.
pub fn names(store: &Store, name: &str) -> Vec<String> {
    store.groups().remove(name).unwrap_or_else(|| vec![name.to_owned()])
}

/// Takes volumes out of a group, or with `None` forgets it; gives it as it is now, if it is still there.
pub fn remove(store: &Store, name: &str, members: Option<&[String]>) -> Result<Vec<Group>> {
    match members {
        Some(members) => store.remove_from_group(name, members)?,
        None => store.delete_group(name)?,
    }
    Ok(list(store).into_iter().filter(|known| known.name == name).collect())
}

/// Makes a group, or adds to one; gives it as it is now.
pub fn add(store: &Store, group: &Group, create: bool) -> Result<Vec<Group>> {
    if group.members.is_empty() {
        return Err(Error::new(
            Kind::Invalid,
            format!("no volumes are named for the group {:?}", group.name),
        ));
    }
    store.add_to_group(&group.name, &group.members, create)?;
    Ok(list(store).into_iter().filter(|known| known.name == group.name).collect())
}
