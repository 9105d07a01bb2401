//! `cdp create`.

use cdp_core::error::{Error, IoContext, Kind, Result};

use super::Context;
use super::progress::Bar;
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::{parse_duration, parse_size, shell_word, size};
use crate::work::{Create, Request, Response};

/// Makes a volume.
pub fn run(context: &Context, arguments: &cli::Create) -> Result<u8> {
    let from = match &arguments.from {
        // The server has a working directory of its own.
        Some(path) => Some(path.canonicalize().at(|| format!("finding {}", path.display()))?),
        None => None,
    };
    if arguments.size.is_none() && from.is_none() {
        // Before a store is made for it.
        let name = shell_word(&arguments.volume);
        return Err(Error::new(Kind::Invalid, "no size is given")
            .hint(format!("cdp create {name} --size 10G, or cdp create {name} --from IMAGE")));
    }
    let create = Create {
        name: arguments.volume.clone(),
        size_bytes: arguments.size.as_deref().map(parse_size).transpose()?,
        from,
        format: arguments.format,
        first_pass: arguments.first_pass,
        journal_cap_bytes: arguments.journal_cap.as_deref().map(parse_size).transpose()?,
        marker_interval_ns: arguments.marker_interval.as_deref().map(parse_duration).transpose()?,
    };
    let is_new = !crate::door::store_exists(&context.config);
    let bar = Bar::default();
    let answer = Door::ask_once(&context.config, true, Request::Create(create), &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    // Also where no volume came about: it stays.
    if is_new && crate::door::store_exists(&context.config) {
        report::say(&format!("made the store {}", context.config.store.display()));
    }
    let answer = answer?;
    let Response::Created(created) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let taken = match created.imported_bytes {
            0 => String::new(),
            bytes => format!(", {} taken over", size(bytes)),
        };
        format!("{}: {}{taken}", created.name, size(created.size_bytes))
    });
    if let Some(why) = &created.inconsistent {
        report::say(&format!(
            "cdp: a first pass, and no state that ever was: {why}\n  hint: when nobody writes any more: cdp import {} --again {}",
            created.name,
            arguments.from.as_deref().unwrap_or(std::path::Path::new("SOURCE")).display()
        ));
    }
    Ok(report::DONE)
}
