//! `cdp clone` and `cdp hydrate`.

use cdp_core::error::Result;

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{CloneOf, Cloned, Hydrated, Request, Response};

/// Makes a clone, or one of each member of a group; with `--hydrate`, copies their data at once.
pub fn run(context: &Context, arguments: &cli::CloneVolume) -> Result<u8> {
    let request = CloneOf { target: arguments.source.clone(), name: arguments.name.clone() };
    let answer = Door::ask_once(&context.config, false, Request::Clone(request), &mut |_| Ok(()))?;
    let clones = match &answer {
        Response::Cloned(cloned) => std::slice::from_ref(cloned),
        Response::ClonedGroup(group) => &group.clones[..],
        _ => return Err(unexpected()),
    };
    point::tell(clones.iter().map(|cloned| &cloned.point));
    context.show(&answer.json(), || {
        let line = |cloned: &Cloned| {
            format!("{}: {}, a clone of {}", cloned.name, size(cloned.size_bytes), cloned.point.export)
        };
        clones.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    if arguments.hydrate {
        for cloned in clones {
            copy(context, cloned.name.clone(), true)?;
        }
    }
    Ok(report::DONE)
}

/// Copies the data of a clone, or of all members of a group of clones, from their parents.
pub fn hydrate(context: &Context, volume: String) -> Result<u8> {
    copy(context, volume, false)
}

fn copy(context: &Context, volume: String, quiet: bool) -> Result<u8> {
    let bar = Bar::default();
    let answer = Door::ask_once(&context.config, false, Request::Hydrate { volume }, &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    let answer = answer?;
    let hydrated = match &answer {
        Response::Hydrated(hydrated) => std::slice::from_ref(hydrated),
        Response::HydratedGroup(group) => &group.clones[..],
        _ => return Err(unexpected()),
    };
    let line = |hydrated: &Hydrated| match hydrated.copied_bytes {
        0 => format!("{}: nothing to copy, it stands on its own", hydrated.name),
        bytes => format!("{}: {} copied, it stands on its own now", hydrated.name, size(bytes)),
    };
    let text = hydrated.iter().map(line).collect::<Vec<_>>().join("\n");
    if quiet {
        report::say(&text)
    } else {
        context.show(&answer.json(), || text)
    }
    Ok(report::DONE)
}
