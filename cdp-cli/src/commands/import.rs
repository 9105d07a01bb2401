//! `cdp import`.

use cdp_core::error::{IoContext, Result};

use super::Context;
use super::progress::Bar;
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Import, Request, Response};

/// Brings a volume to what a source holds now.
pub fn run(context: &Context, arguments: &cli::Import) -> Result<u8> {
    let from = arguments.from.canonicalize().at(|| format!("finding {}", arguments.from.display()))?;
    let import = Import {
        volume: arguments.volume.clone(),
        from,
        format: arguments.format,
        frozen: arguments.frozen,
        marker: arguments.mark.clone(),
    };
    let bar = Bar::default();
    let answer = Door::ask_once(&context.config, false, Request::Import(import), &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    let answer = answer?;
    let Response::Imported(imported) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let (compared, written) = (size(imported.compared_bytes), size(imported.written_bytes));
        format!(
            "{}: {compared} compared, {written} differed; marker {}",
            imported.volume, imported.marker.name
        )
    });
    Ok(report::DONE)
}
