//! `cdp mount` and `cdp umount`.

use std::path::PathBuf;

use cdp_core::error::{Error, Kind, Result};

use super::{Context, attach, point};
use crate::cli::{Detach, Mount};
use crate::host::attach::Attached;
use crate::host::past::{self, PastOptions};
use crate::report;
use crate::work::PointInfo;

/// Mounts the past; of a group, every member in a directory of its own.
pub fn run(context: &Context, arguments: &Mount) -> Result<u8> {
    let (target, rw) = match arguments.target.strip_suffix("+rw") {
        Some(target) => (target, true),
        None => (arguments.target.as_str(), arguments.rw),
    };
    if let Some((state, _)) = target.split_once("+rw:") {
        let error = Error::new(Kind::Invalid, "a mount has a clone of its own, which no others share");
        return Err(error.hint(format!("leave the name out: cdp mount {state}+rw DIR")));
    }
    let Some((name, _)) = target.split_once('@') else {
        let error = Error::new(Kind::Invalid, format!("{target} names no point"));
        return Err(error.hint(format!(
            "the past: cdp mount {target}@-5m DIR; the live volume: cdp attach {target} DIR"
        )));
    };
    let (endpoints, points) = attach::ask_server(context, target)?;
    point::tell(&points);
    let is_group = points.len() != 1 || points.first().is_some_and(|point| point.volume != name);
    let mut mounted: Vec<Attached> = Vec::new();
    for point in &points {
        let dir = if is_group { arguments.dir.join(&point.volume) } else { arguments.dir.clone() };
        let one = mount(context, arguments, &endpoints, point, dir, rw);
        match one {
            Ok(one) => mounted.push(one),
            Err(error) => {
                // All members or none.
                for one in &mounted {
                    let _ = past::umount(&attach::state_dir(context), &one.id, true);
                }
                return Err(error);
            }
        }
    }
    if is_group {
        let json = serde_json::to_value(&mounted).unwrap_or_default();
        context.show(&json, || {
            let dirs = mounted.iter().flat_map(|one| &one.dir).map(|dir| dir.display().to_string());
            dirs.collect::<Vec<_>>().join("\n")
        });
    } else {
        mounted.iter().for_each(|one| attach::show(context, one));
    }
    Ok(report::DONE)
}

fn mount(
    context: &Context,
    arguments: &Mount,
    endpoints: &crate::work::Endpoints,
    point: &PointInfo,
    dir: PathBuf,
    rw: bool,
) -> Result<Attached> {
    past::mount_past(&PastOptions {
        called: None,
        name: format!("{}@{}", point.volume, point.asked),
        // The instant that it meant now, whenever it is asked for again.
        view_uri: attach::uri(endpoints, &point.export)?,
        clone_uri: attach::uri(endpoints, &format!("{}+rw", point.export))?,
        clone_is_named: false,
        writable: rw,
        dir,
        partition: arguments.partition,
        mount_options: arguments.options.clone(),
        state_dir: attach::state_dir(context),
        keeper: attach::keeper()?,
    })
}

/// Unmounts it.
pub fn umount(context: &Context, arguments: &Detach) -> Result<u8> {
    attach::refuse_if_closed(context, arguments)?;
    let gone = past::umount(&attach::state_dir(context), &arguments.which, arguments.force)?;
    let json = serde_json::to_value(&gone).unwrap_or_default();
    context.show(&json, || format!("{} is unmounted", gone.name));
    Ok(report::DONE)
}
