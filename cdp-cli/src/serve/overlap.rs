//! Whether what fails over by itself is named as it should be: each volume once, and none forgotten.

use std::collections::BTreeMap;

use cdp_core::store::Store;
use cdp_replica::vote::Ballots;

/// A volume that two of these names mean, itself or by a group, and the two.
pub fn named_twice(
    groups: &BTreeMap<String, Vec<String>>,
    targets: &[&str],
) -> Option<(String, String, String)> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for target in targets {
        let members: Vec<&str> = match groups.get(*target) {
            Some(members) => members.iter().map(|member| &**member).collect(),
            None => vec![target],
        };
        for member in members {
            if let Some(other) = seen.insert(member, target).filter(|other| other != target) {
                return Some((member.to_owned(), other.to_owned(), (*target).to_owned()));
            }
        }
    }
    None
}

/// Warns of the primaries that somebody votes on, and that no target means any more: nobody asks before they answer, and
/// the other site takes that for silence.
pub fn warn_of_forgotten(store: &Store, ballots: &Ballots, is_meant: impl Fn(&str) -> bool) {
    for name in forgotten(store, ballots, is_meant) {
        tracing::warn!(
            "volume {name} failed over by itself before, and no [automatic] of this configuration names it: it is answered without asking anybody, and the other site may take over while it is; take the lines out there first"
        );
    }
}

fn forgotten(store: &Store, ballots: &Ballots, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let volumes = store.volumes().into_iter();
    volumes
        .filter(|volume| volume.is_primary() && ballots.contains_key(&volume.identity().id))
        .map(|volume| volume.name().to_owned())
        .filter(|name| !is_meant(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A group and one of its members, both by themselves: the member is promoted without the others, and no instant of the
    // group is at either site.
    #[test]
    fn a_volume_that_two_targets_mean_is_found() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let groups = BTreeMap::from([
            ("shop".to_owned(), names(&["db", "logs"])),
            ("office".to_owned(), names(&["mail", "logs"])),
        ]);
        let found = |volume: &str, one: &str, other: &str| Some((volume.into(), one.into(), other.into()));
        assert_eq!(named_twice(&groups, &["db", "shop"]), found("db", "db", "shop"));
        assert_eq!(named_twice(&groups, &["office", "shop"]), found("logs", "office", "shop"));
        assert_eq!(named_twice(&groups, &["mail", "other", "shop"]), None);
    }
}
