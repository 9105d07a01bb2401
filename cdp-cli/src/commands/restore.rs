//! `cdp restore`.

use std::path::Path;

use cdp_core::error::{Error, IoContext, Kind, Result};

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::hooks::Interrupts;
use crate::image::{Format, foreign};
use crate::reach::Reach;
use crate::report;
use crate::units::size;
use crate::work::{Request, Response, Restore};

/// Writes a view out.
pub fn run(context: &Context, arguments: &cli::Restore) -> Result<u8> {
    if arguments.follow || arguments.finish {
        return super::follow::run(context, arguments);
    }
    if arguments.state.is_some() {
        return Err(Error::new(Kind::Invalid, "--state belongs to --follow and --finish"));
    }
    if !arguments.source.contains('@') {
        let error = Error::new(Kind::Invalid, format!("{} names no point", arguments.source));
        return Err(error.hint(format!(
            "{0}@latest is the state now, {0}@-5m that of five minutes ago",
            arguments.source
        )));
    }
    let path =
        std::path::absolute(&arguments.target).at(|| format!("finding {}", arguments.target.display()))?;
    let format = arguments.format.unwrap_or_else(|| Format::of_name(&path));
    if format != Format::Raw {
        return super::files::within(context, |reach| as_image(context, arguments, &path, format, reach));
    }
    let mut door = Door::open(&context.config, false)?;
    let done = restore(context, arguments, path, &mut door);
    let closed = door.close();
    let code = done?;
    closed.map(|()| code)
}

fn restore(
    context: &Context,
    arguments: &cli::Restore,
    path: std::path::PathBuf,
    door: &mut Door,
) -> Result<u8> {
    let restore = Restore { target: arguments.source.clone(), path, force: arguments.force };
    let bar = Bar::default();
    let answer = door.ask(Request::Restore(restore), &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    let answer = answer?;
    let Response::Restored(restored) = &answer else { return Err(unexpected()) };
    point::tell(restored.iter().map(|restored| &restored.point));
    context.show(&answer.json(), || {
        let line = |restored: &crate::work::Restored| {
            let (whole, data) = (size(restored.size_bytes), size(restored.written_bytes));
            format!("{}: {whole}, of which {data} data; read back and compared", restored.path.display())
        };
        restored.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(report::DONE)
}

/// Through an export, which QEMU's tools read; of a group, every member in a file of its own.
fn as_image(
    context: &Context,
    arguments: &cli::Restore,
    path: &Path,
    format: Format,
    reach: &mut Reach,
) -> Result<u8> {
    let target = &arguments.source;
    let request = Request::Resolve { target: target.clone() };
    let Response::Points(points) = reach.ask(request, &mut |_| Ok(()))? else { return Err(unexpected()) };
    if target.contains("+rw") {
        return Err(Error::new(Kind::Invalid, "a clone cannot be restored: `+rw` has no meaning here"));
    }
    point::tell(&points);
    let (name, _) = cdp_core::history::point::split_export(target);
    let is_group = points.len() != 1 || points.first().is_some_and(|point| point.volume != name);
    if is_group {
        std::fs::create_dir_all(path).at(|| format!("making {}", path.display()))?;
    }
    let interrupts = Interrupts::take()?;
    let mut written = Vec::new();
    for point in &points {
        let file = match is_group {
            true => path.join(format!("{}.{}", point.volume, format.name())),
            false => path.to_owned(),
        };
        let done = foreign::write(&reach.uri(&point.export)?, &file, format, arguments.force, &interrupts);
        if interrupts.came() && done.is_err() {
            report::say(&format!("cdp: stopped; nothing of {} is left behind", file.display()));
            return Ok(report::INTERRUPTED);
        }
        done?;
        let bytes = file.metadata().at(|| format!("looking at {}", file.display()))?.len();
        written.push(serde_json::json!({
            "point": point, "path": file, "format": format.name(), "written_bytes": bytes,
        }));
    }
    context.show(&serde_json::Value::Array(written.clone()), || {
        let line = |row: &serde_json::Value| {
            let bytes = size(row["written_bytes"].as_u64().unwrap_or(0));
            let path = row["path"].as_str().unwrap_or_default();
            format!("{path}: {}, {bytes}; read back and compared", format.name())
        };
        written.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(report::DONE)
}
