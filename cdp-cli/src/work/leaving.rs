//! Volumes that are closed while the server goes on: a new copy takes their place, their tail is set aside, they are
//! deleted. Whoever has one open, or its past, is sent away in order before it happens.

use std::sync::Arc;

use super::rewind::LEAVE_TIME;
use super::{Serving, Site};

/// Whether an export is this volume, or a view or a throw-away clone of it.
pub(super) fn is_export_of(export: &str, volume: &str) -> bool {
    export.strip_prefix(volume).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

impl Serving {
    /// Ends the connections of all who have one of these volumes, a view or a throw-away clone of one: what they asked for is
    /// answered, and what comes later has to connect again. Whoever does not leave in time gets errors.
    fn send_away(&self, volumes: &[String]) {
        volumes.iter().for_each(|volume| self.clones.close_all_of(volume));
        let is_meant = |export: &str| volumes.iter().any(|volume| is_export_of(export, volume));
        if !self.nbd.disconnect(is_meant, LEAVE_TIME) {
            let names = volumes.join(", ");
            tracing::warn!("clients of {names} do not leave; they get errors until they connect again");
        }
    }
}

/// Has a server's clients sent away whenever that is needed.
pub fn watch(site: &Site) {
    let Some(serving) = &site.server else { return };
    let serving = Arc::downgrade(serving);
    site.store.tell_of_leaving(Box::new(move |volumes| {
        if let Some(serving) = serving.upgrade() {
            serving.send_away(volumes);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::is_export_of;

    #[test]
    fn an_export_is_of_the_volume_that_is_named_in_front() {
        let of_vm = ["vm", "vm@latest", "vm@10:00+rw", "vm@latest+rw:try"];
        assert!(of_vm.iter().all(|export| is_export_of(export, "vm")));
        assert!(
            ["vm2", "vm-until-4@latest", "v", "@vm", ""].iter().all(|export| !is_export_of(export, "vm"))
        );
    }
}
