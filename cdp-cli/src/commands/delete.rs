//! `cdp delete` and `cdp undelete`.

use std::io::{BufRead, IsTerminal, Write};

use cdp_core::error::{Error, IoContext, Kind, Result};

use super::Context;
use crate::cli::Delete;
use crate::door::{Door, unexpected};
use crate::report;
use crate::work::{Request, Response};

/// Moves a volume to the trash, after asking.
pub fn run(context: &Context, arguments: &Delete) -> Result<u8> {
    let name = &arguments.volume;
    if arguments.purge {
        return purge(context, arguments);
    }
    let question =
        format!("Delete the volume {name} with all its history? It stays in the trash for 7 days.");
    if !arguments.yes && !confirmed(name, &question)? {
        report::say("cdp: nothing was deleted");
        return Ok(report::REFUSED);
    }
    let request = Request::Delete { volume: name.clone(), force: arguments.force };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Volume(line) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let why = line.why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
        let word = crate::units::shell_word(name);
        format!("{name} is in the trash for 7 days{why}; `cdp undelete {word}` brings it back")
    });
    Ok(report::DONE)
}

/// Brings it back.
pub fn undelete(context: &Context, volume: String) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Undelete { volume }, &mut |_| Ok(()))?;
    let Response::Volume(line) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || super::list::text(std::slice::from_ref(line)));
    Ok(report::DONE)
}

/// Removes for good what is in the trash, after asking.
fn purge(context: &Context, arguments: &Delete) -> Result<u8> {
    let name = &arguments.volume;
    let question =
        format!("Remove the deleted volume {name} and all its history for good? Nobody can bring it back.");
    if !arguments.yes && !confirmed(name, &question)? {
        report::say("cdp: nothing was removed");
        return Ok(report::REFUSED);
    }
    let answer =
        Door::ask_once(&context.config, false, Request::Purge { volume: name.clone() }, &mut |_| Ok(()))?;
    let Response::Purged(purged) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || match purged.removed {
        1 => format!("{name} is gone for good; its space is free"),
        count => format!("{count} deleted volumes named {name} are gone for good; their space is free"),
    });
    Ok(report::DONE)
}

fn confirmed(name: &str, question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let context = format!("deleting {name} wants a confirmation, and nobody is there to ask");
        return Err(Error::new(Kind::Refused, context).hint("say --yes"));
    }
    let place = || "asking".to_owned();
    eprint!("{question} Type its name: ");
    std::io::stderr().flush().at(place)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).at(place)?;
    Ok(line.trim_end_matches(['\r', '\n']) == name)
}
