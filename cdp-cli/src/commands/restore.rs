//! `cdp restore`.

use cdp_core::error::{Error, IoContext, Kind, Result};

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Request, Response, Restore};

/// Writes a view out.
pub fn run(context: &Context, arguments: &cli::Restore) -> Result<u8> {
    if !arguments.source.contains('@') {
        let error = Error::new(Kind::Invalid, format!("{} names no point", arguments.source));
        return Err(error.hint(format!(
            "{0}@latest is the state now, {0}@-5m that of five minutes ago",
            arguments.source
        )));
    }
    let path =
        std::path::absolute(&arguments.target).at(|| format!("finding {}", arguments.target.display()))?;
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
