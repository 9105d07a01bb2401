//! `cdp attach` and `cdp detach`.

use std::path::PathBuf;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::split_export;

use super::Context;
use crate::cli::{Attach, Detach};
use crate::door::{Talk, unexpected};
use crate::host::attach::{self, AttachOptions, Attached};
use crate::host::attachment::STATE_DIR;
use crate::host::keeper::Keeper;
use crate::report;
use crate::work::{Endpoints, PointInfo, Request, Response, VolumeLine};

/// Attaches a volume; without one, lists what is attached.
pub fn run(context: &Context, arguments: &Attach) -> Result<u8> {
    let Some(volume) = &arguments.volume else { return list(context) };
    if volume.contains('@') {
        let error = Error::new(Kind::Invalid, format!("{volume} is a past state, which is mounted"));
        return Err(error.hint(format!("cdp mount {volume} DIR")));
    }
    let (endpoints, _) = ask_server(context, volume)?;
    let attached = attach::attach(&AttachOptions {
        name: volume.clone(),
        uri: uri(&endpoints, volume)?,
        dir: arguments.dir.clone(),
        read_only: arguments.read_only,
        partition: arguments.partition,
        mount_options: arguments.options.clone(),
        state_dir: state_dir(context),
        front: None,
        keeper: keeper()?,
    })?;
    show(context, &attached);
    Ok(report::DONE)
}

/// Takes it away.
pub fn detach(context: &Context, arguments: &Detach) -> Result<u8> {
    refuse_if_closed(context, arguments)?;
    let detached = attach::detach(&state_dir(context), &arguments.which, arguments.force)?;
    let json = serde_json::to_value(&detached).unwrap_or_default();
    context.show(&json, || format!("{} is detached from {}", detached.name, detached.device.display()));
    Ok(report::DONE)
}

/// The volumes, as the server has them now; `None` without one.
fn volumes(context: &Context) -> Option<Vec<VolumeLine>> {
    let mut talk = Talk::connect(&context.config.store).ok()??;
    match talk.ask(Request::List, &mut |_| Ok(())) {
        Ok(Response::Volumes(volumes)) => Some(volumes),
        _ => None,
    }
}

/// Why a server that runs does not answer an attachment.
fn closed(volumes: &[VolumeLine], attached: &Attached) -> Option<String> {
    let (volume, point) = split_export(&attached.name);
    let is_there = |line: &&VolumeLine| line.name == volume && line.state != "deleted";
    match volumes.iter().find(is_there) {
        None => Some(format!("the volume {volume} was deleted")),
        Some(line) if line.state == "held" && point.is_none() => {
            let why = line.why.as_deref().unwrap_or("it is held");
            Some(format!("{volume} is closed to clients until `cdp resume {volume}`: {why}"))
        }
        Some(_) => None,
    }
}

/// Waiting for a server that will not answer helps nobody, and nor does starting it again.
pub fn refuse_if_closed(context: &Context, arguments: &Detach) -> Result<()> {
    if arguments.force || !state_dir(context).exists() {
        return Ok(());
    }
    let attached = attach::find(&state_dir(context), &arguments.which)?;
    // What is only looked at has nothing to lose.
    let why = volumes(context).and_then(|volumes| closed(&volumes, &attached));
    let Some(why) = why.filter(|_| !attached.read_only) else { return Ok(()) };
    let context = format!("what {} still holds cannot be written any more: {why}", attached.device.display());
    Err(Error::new(Kind::Refused, context)
        .hint(format!("cdp detach --force {} takes it away, without what was not written", arguments.which)))
}

fn list(context: &Context) -> Result<u8> {
    let mut all = attach::list(&state_dir(context))?;
    if !all.is_empty()
        && let Some(volumes) = volumes(context)
    {
        for one in &mut all {
            if let Some(why) = closed(&volumes, one) {
                (one.healthy, one.why) = (false, Some(why));
            }
        }
    }
    context.show(&serde_json::to_value(&all).unwrap_or_default(), || {
        if all.is_empty() {
            return "nothing is attached".to_owned();
        }
        let line = |one: &Attached| {
            let dir = one.dir.as_ref().map(|dir| format!(" at {}", dir.display())).unwrap_or_default();
            let why = one.why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
            let health = match one.healthy {
                true => String::new(),
                false => format!(" (BROKEN{why}: detach it with --force)"),
            };
            format!("{}  {}{dir}{health}", one.name, one.device.display())
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    let broken = all.iter().any(|one| !one.healthy);
    Ok(if broken { report::ACT } else { report::DONE })
}

/// The bare device on stdout, for `$(…)`; the rest is talk.
pub fn show(context: &Context, attached: &Attached) {
    if let Some(dir) = &attached.dir {
        let filesystem = attached.filesystem.as_deref().unwrap_or("a filesystem");
        let how = match (attached.through_clone, attached.read_only) {
            (true, true) => ", read-only, from a throw-away clone",
            (true, false) => ", a throw-away clone",
            (false, true) => ", read-only",
            (false, false) => "",
        };
        report::say(&format!("{} is mounted at {} ({filesystem}{how})", attached.name, dir.display()));
    }
    let json = serde_json::to_value(attached).unwrap_or_default();
    context.show(&json, || attached.device.display().to_string());
}

/// Where the state of attachments is.
pub fn state_dir(context: &Context) -> PathBuf {
    context.config.store.join(STATE_DIR)
}

/// Our own relay waits for a server that restarts.
pub fn keeper() -> Result<Keeper> {
    let exe = std::env::current_exe().at(|| "finding this program".to_owned())?;
    Ok(Keeper::Relay(exe))
}

/// A device needs a server; asks it where it listens and what the target means.
pub fn ask_server(context: &Context, target: &str) -> Result<(Endpoints, Vec<PointInfo>)> {
    let Some(mut talk) = Talk::connect(&context.config.store)? else {
        let store = context.config.store.display();
        return Err(Error::new(Kind::NotFound, format!("no server is running on the store {store}"))
            .hint("start one: cdp serve"));
    };
    let hello = talk.hello()?;
    let answer = talk.ask(Request::Resolve { target: target.to_owned() }, &mut |_| Ok(()))?;
    let Response::Points(points) = answer else { return Err(unexpected()) };
    Ok((hello.endpoints, points))
}

/// The URI of an export; the server must listen where it can be named.
pub fn uri(endpoints: &Endpoints, export: &str) -> Result<String> {
    endpoints.uri(export).ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            "the server listens on sockets that were passed to it, and their names are not known",
        )
        .hint("start it with --socket PATH as well")
    })
}
