//! Throw-away clones that connections share: which are open, and closing them.

use std::time::{Duration, Instant};

use cdp_core::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::Site;

/// Connections that are told to end have so long for it.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// Without force, those that are there are waited for so long.
const GOING_TIME: Duration = Duration::from_secs(1);
const GOING_STEP: Duration = Duration::from_millis(20);

/// A shared throw-away clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneStatus {
    /// The volume it is a clone of.
    pub volume: String,
    /// What stands behind `+rw:`.
    pub name: String,
    /// The export that everybody who shares it has open.
    pub export: String,
    /// The record behind which its volume is shown.
    pub lsn: u64,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Connections to it.
    pub connections: u64,
    /// What was written to it and is held, in bytes.
    pub used_bytes: u64,
    /// What it may hold, in bytes.
    pub cap_bytes: u64,
}

impl CloneStatus {
    /// Whether somebody who writes `VOL+rw:NAME`, or any export name that ends so, means this one.
    fn is_meant(&self, target: &str) -> bool {
        let rest = target.strip_suffix(self.name.as_str()).and_then(|rest| rest.strip_suffix("+rw:"));
        let rest = rest.and_then(|rest| rest.strip_prefix(self.volume.as_str()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
    }
}

/// Closes a clone: what was written to it is gone. With `force` also under its connections, which are ended.
pub fn close(site: &Site, target: &str, force: bool) -> Result<CloneStatus> {
    let none = |hint: String| {
        let context = format!("no shared clone `{target}` is open");
        Error::new(Kind::NotFound, context).hint(hint)
    };
    let Some(server) = &site.server else {
        return Err(none("they live in the server, and none is running".to_owned()));
    };
    let find = || server.clones.list().into_iter().find(|clone| clone.is_meant(target));
    let Some(mut meant) = find() else {
        let open = server.clones.list();
        let names: Vec<String> = open.iter().map(|c| format!("`{}+rw:{}`", c.volume, c.name)).collect();
        return Err(none(match names.is_empty() {
            true => "there are none".to_owned(),
            false => format!("there are {}", names.join(", ")),
        }));
    };
    // A client that has just ended may be on its way out.
    let until = Instant::now() + GOING_TIME;
    while meant.connections > 0 && !force && Instant::now() < until {
        std::thread::sleep(GOING_STEP);
        meant = find().unwrap_or(meant);
    }
    if meant.connections > 0 && !force {
        let plural = if meant.connections == 1 { "connection" } else { "connections" };
        let context = format!("the shared clone `{}` has {} {plural}", meant.export, meant.connections);
        return Err(Error::new(Kind::Busy, context).hint("end them first, or say --force"));
    }
    server.clones.close(&meant.volume, &meant.name);
    if !server.nbd.disconnect(|export| export == meant.export, LEAVE_TIME) {
        return Err(Error::new(Kind::Busy, format!("connections to `{}` do not end", meant.export)));
    }
    Ok(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is closed is gone: the name must not be taken for another clone's.
    #[test]
    fn a_clone_is_closed_by_its_own_name_only() {
        let clone = CloneStatus {
            volume: "disk".to_owned(),
            name: "try".to_owned(),
            export: "disk@ns:5+rw:try".to_owned(),
            lsn: 1,
            since: String::new(),
            connections: 0,
            used_bytes: 0,
            cap_bytes: 0,
        };
        for meant in ["disk+rw:try", "disk@ns:5+rw:try", "disk@-5m+rw:try", "disk@before:x+rw:try"] {
            assert!(clone.is_meant(meant), "{meant}");
        }
        for other in [
            "disk",
            "disk2+rw:try",
            "a-disk+rw:try",
            "disk+rw:retry",
            "disk+rw",
            "disk@ns:5+rw",
            "+rw:try",
            "try",
        ] {
            assert!(!clone.is_meant(other), "{other}");
        }
    }
}
