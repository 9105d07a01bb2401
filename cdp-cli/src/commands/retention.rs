//! `cdp retention` and `cdp unmark`.

use cdp_core::error::Result;

use super::Context;
use crate::cli::RetentionCommand;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::retention::{Retention, Sizes};
use crate::work::{Request, Response};

/// Shows or sets what is kept.
pub fn run(context: &Context, command: RetentionCommand) -> Result<u8> {
    let request = match command {
        RetentionCommand::Show { volume } => Request::Retention { volume },
        RetentionCommand::Set { volume, policy } => Request::SetRetention { volume, policy },
    };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Retention(retention) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || text(retention));
    Ok(report::DONE)
}

/// Lets a marker go.
pub fn unmark(context: &Context, volume: String, name: String) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Unmark { volume, name }, &mut |_| Ok(()))?;
    let Response::Unmarked(gone) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        format!("{}: the marker {} at lsn:{}, {}, is let go", gone.volume, gone.name, gone.lsn, gone.utc)
    });
    Ok(report::DONE)
}

fn text(retention: &Retention) -> String {
    let mut lines = vec![
        retention.volume.clone(),
        format!("  policy      {}", retention.policy),
        format!("  oldest      lsn:{} at {}", retention.horizon.lsn, retention.horizon.utc),
        format!("  newest      lsn:{} at {}", retention.tip.lsn, retention.tip.utc),
        format!("  in base     through lsn:{}", retention.base_lsn),
    ];
    lines.extend(size_lines(&retention.sizes, Some(retention.journal_cap_bytes)));
    for (number, pin) in retention.pins.iter().enumerate() {
        let head = if number == 0 { "held" } else { "" };
        lines.push(format!("  {head:11} lsn:{} by {}", pin.lsn, pin.holder));
    }
    lines.join("\n")
}

/// What a volume takes.
pub fn size_lines(sizes: &Sizes, cap_bytes: Option<u64>) -> Vec<String> {
    let cap = cap_bytes.map(|cap| format!(" of {}", size(cap))).unwrap_or_default();
    vec![format!(
        "  on disk     journal {}{cap}, index {}, base {}",
        size(sizes.journal),
        size(sizes.index),
        size(sizes.base)
    )]
}
