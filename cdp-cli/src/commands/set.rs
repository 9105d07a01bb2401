//! `cdp set`.

use cdp_core::error::Result;

use super::Context;
use crate::cli::Set;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::{parse_size, size};
use crate::work::{Request, Response};

/// Changes a volume's settings.
pub fn run(context: &Context, arguments: &Set) -> Result<u8> {
    let cap_bytes = match arguments.journal_cap.as_str() {
        "none" => None,
        text => Some(parse_size(text)?),
    };
    let request = Request::SetJournalCap { volume: arguments.volume.clone(), cap_bytes };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Volume(line) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || match cap_bytes {
        Some(bytes) => format!("{}: the journal may take {}", line.name, size(bytes)),
        None => format!("{}: the journal may take all but a tenth of the filesystem", line.name),
    });
    Ok(report::DONE)
}
