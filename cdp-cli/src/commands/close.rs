//! `cdp close`.

use cdp_core::error::Result;

use super::Context;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Request, Response};

/// Closes a shared throw-away clone.
pub fn run(context: &Context, target: String, force: bool) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Close { target, force }, &mut |_| Ok(()))?;
    let Response::Closed(clone) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        format!("{} is closed; {} that were written to it are gone", clone.export, size(clone.used_bytes))
    });
    Ok(report::DONE)
}
