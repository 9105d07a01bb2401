//! `cdp mark`, with the hooks of an application.

use std::time::Duration;

use cdp_core::error::{Error, Result};

use super::Context;
use crate::cli;
use crate::door::{Door, unexpected};
use crate::hooks::{Hooks, Interrupts};
use crate::report;
use crate::units::parse_duration;
use crate::work::{Mark, Request, Response};

/// Sets a marker.
pub fn run(context: &Context, arguments: &cli::Mark) -> Result<u8> {
    let timeout = Duration::from_nanos(parse_duration(&arguments.timeout)?);
    if let Some(name) = &arguments.name {
        // Before any hook makes an application wait for it.
        cdp_core::history::point::validate_marker_name(name)?;
    }
    // Opened before the application is made quiet: opening may take its time.
    let mut door = Door::open(&context.config, false)?;
    let outcome = mark(context, arguments, timeout, &mut door);
    let closed = door.close();
    let (answer, thaw_error) = outcome?;
    closed?;
    let Response::Marked(marked) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let lines: Vec<String> =
            marked.iter().map(|m| format!("{}  lsn:{}  {}  {}", m.volume, m.lsn, m.utc, m.export)).collect();
        lines.join("\n")
    });
    for (one, before) in marked.iter().filter_map(|one| Some((one, one.before_lsn?))) {
        report::say(&format!(
            "cdp: {} was also the name of {}@lsn:{before}: it means this one from now on",
            one.name, one.volume
        ));
    }
    match thaw_error {
        // The marker stands, but the application may stand still.
        Some(error) => Err(error),
        None => Ok(report::DONE),
    }
}

fn mark(
    context: &Context,
    arguments: &cli::Mark,
    timeout: Duration,
    door: &mut Door,
) -> Result<(Response, Option<Error>)> {
    let mut request = Mark {
        target: arguments.target.clone(),
        name: arguments.name.clone(),
        note: arguments.note.clone(),
        tags: arguments.tags.clone(),
        application: arguments.app.then(String::new),
    };
    if !arguments.app {
        return Ok((door.ask(Request::Mark(request), &mut |_| Ok(()))?, None));
    }
    // From here on they only ask: an application that was made quiet has to be let go on.
    let interrupts = Interrupts::take()?;
    if let Door::Server(talk) = door {
        talk.give_up_when(&interrupts)?;
    }
    let environment = vec![
        ("CDP_STORE", context.config.store.clone().into_os_string()),
        ("CDP_TARGET", arguments.target.clone().into()),
        ("CDP_MARKER", arguments.name.clone().unwrap_or_default().into()),
    ];
    let hooks = Hooks::new(arguments.quiesce.clone(), arguments.thaw.clone(), timeout, environment);
    let quiet = hooks.quiesce(&interrupts);
    let marked = quiet.and_then(|output| {
        request.application = Some(output);
        door.ask(Request::Mark(request), &mut |_| Ok(()))
    });
    let thawed = hooks.thaw();
    match (marked, thawed) {
        (Ok(answer), Ok(_)) => Ok((answer, None)),
        (Ok(answer), Err(error)) => Ok((answer, Some(error))),
        (Err(error), Ok(_)) => Err(error),
        (Err(error), Err(thaw)) => Err(Error::new(error.kind(), format!("{error}; and then: {thaw}"))),
    }
}
