//! `cdp verify`.

use cdp_core::error::Result;

use super::Context;
use super::progress::Bar;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Request, Response, Verified};

/// Reads everything back.
pub fn run(context: &Context, target: Option<String>) -> Result<u8> {
    let bar = Bar::default();
    let answer = Door::ask_once(&context.config, false, Request::Verify { target }, &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    let answer = answer?;
    let Response::Verified(results) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || results.iter().map(text).collect::<Vec<_>>().join("\n"));
    Ok(if results.iter().all(|result| result.good) { report::DONE } else { report::ACT })
}

fn text(result: &Verified) -> String {
    let speed = (result.bytes as f64 / result.seconds.max(1e-6)) as u64;
    let head = match result.good {
        true => "good".to_owned(),
        false => format!("DAMAGED in {} places", result.damage_count),
    };
    let mut lines = vec![format!(
        "{}: {head}; {} read in {} segments, {} records, {:.1} s, {}/s",
        result.volume,
        size(result.bytes),
        result.segments,
        result.records,
        result.seconds,
        size(speed)
    )];
    for place in &result.damages {
        let lsn = place.lsn.map(|lsn| format!(" lsn:{lsn}")).unwrap_or_default();
        let extent = match (place.lba, place.blocks) {
            (Some(lba), Some(blocks)) => format!(" blocks {lba}+{blocks}"),
            _ => String::new(),
        };
        lines.push(format!("  {} byte {}{lsn}{extent}: {}", place.file, place.offset, place.what));
    }
    if result.damage_count > result.damages.len() as u64 {
        lines.push(format!("  … and {} more", result.damage_count - result.damages.len() as u64));
    }
    lines.join("\n")
}
