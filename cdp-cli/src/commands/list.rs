//! `cdp list`.

use cdp_core::error::Result;

use super::Context;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Request, Response, VolumeLine};

/// Lists the volumes.
pub fn run(context: &Context) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::List, &mut |_| Ok(()))?;
    let Response::Volumes(lines) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || text(lines));
    Ok(report::DONE)
}

/// The lines as a table.
pub fn text(lines: &[VolumeLine]) -> String {
    if lines.is_empty() {
        return "there are no volumes; `cdp create VOL --size 10G` makes one".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["VOLUME", "STATE", "SIZE", "JOURNAL", "TIP", "LAST WRITTEN OR DELETED"]);
    for line in lines {
        let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), size);
        let when = line.tip_utc.as_ref().or(line.since.as_ref());
        table.add_row([
            line.name.clone(),
            line.state.clone(),
            bytes(line.size_bytes),
            bytes(line.journal_bytes),
            line.tip_lsn.map_or("-".to_owned(), |lsn| format!("lsn:{lsn}")),
            when.cloned().unwrap_or_default(),
        ]);
    }
    let mut text = table.trim_fmt();
    for line in lines {
        if let Some(why) = &line.why {
            text.push_str(&format!("\n{}: {why}", line.name));
        }
    }
    text
}
