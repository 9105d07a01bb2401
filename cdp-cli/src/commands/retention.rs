//! `cdp retention` and `cdp unmark`.

use cdp_core::error::{Error, Kind, Result};

use super::Context;
use crate::cli::RetentionCommand;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::retention::{Retention, Simulated, Sizes, Unmarked};

use crate::work::{Request, Response};

/// Names of markers that are listed.
const NAMES_SHOWN: usize = 8;

/// Shows or sets what is kept.
pub fn run(context: &Context, command: RetentionCommand) -> Result<u8> {
    let (target, request) = match command {
        RetentionCommand::Show { target } => (target.clone(), Request::Retention { target }),
        RetentionCommand::Simulate { target, policy } => return simulate(context, target, policy),
        RetentionCommand::Set { target, policy, codec } => {
            if policy.trim().is_empty() {
                let error = Error::new(Kind::Invalid, "an empty policy");
                return Err(error.hint("`every-write forever` keeps everything; nothing was changed"));
            }
            let codec = codec.map(|codec| format!(", codec {codec}")).unwrap_or_default();
            (target.clone(), Request::SetRetention { target, policy: format!("{policy}{codec}") })
        }
    };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Retention(all) = &answer else { return Err(unexpected()) };
    let is_group = !matches!(&all[..], [one] if one.volume == target);
    context.show(&one_or_all(answer.json(), is_group), || lines_of(all, text));
    Ok(report::DONE)
}

/// Says what a policy would do.
fn simulate(context: &Context, target: String, policy: Option<String>) -> Result<u8> {
    let request = Request::SimulateRetention { target: target.clone(), policy };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Simulated(all) = &answer else { return Err(unexpected()) };
    let is_group = !matches!(&all[..], [one] if one.volume == target);
    context.show(&one_or_all(answer.json(), is_group), || lines_of(all, simulated_text));
    Ok(report::DONE)
}

/// What scripts get: of a volume an object, of a group a list of them.
fn one_or_all(answer: serde_json::Value, is_group: bool) -> serde_json::Value {
    match answer {
        serde_json::Value::Array(mut all) if !is_group && all.len() == 1 => all.remove(0),
        all => all,
    }
}

fn lines_of<T>(all: &[T], text: impl Fn(&T) -> String) -> String {
    all.iter().map(text).collect::<Vec<_>>().join("\n")
}

fn simulated_text(found: &Simulated) -> String {
    let mut lines = vec![
        format!("{}, if its policy were", found.volume),
        format!("  {}", found.policy),
        format!("  oldest      lsn:{} at {}", found.horizon.lsn, found.horizon.utc),
        format!("  every state from lsn:{} at {}", found.window.lsn, found.window.utc),
        format!("  before it   {} single states", found.states_kept),
        format!("  would go    {} states", found.states_gone),
        format!(
            "  journal     {} instead of {}, of that {} thinned",
            size(found.journal_bytes_after),
            size(found.journal_bytes),
            size(found.fold_bytes)
        ),
    ];
    let names = &found.names_gone;
    if !names.is_empty() {
        let more = names.len().saturating_sub(NAMES_SHOWN);
        let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("  names gone  {shown}{more}"));
    }
    let cap = size(found.cap_bytes);
    if let Some(seconds) = found.every_write_seconds {
        let mut line = format!("  {cap}: every write for {}", span(seconds));
        if let Some(seconds) = found.policy_seconds {
            line.push_str(&format!("; with this policy: {}", span(seconds)));
        }
        lines.push(line);
    }
    if found.is_full {
        lines.push(format!("  it would not fit: the journal may take {cap}"));
    }
    lines.join("\n")
}

/// A length of time for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Lets a marker go.
pub fn unmark(context: &Context, target: String, name: String) -> Result<u8> {
    let request = Request::Unmark { target: target.clone(), name };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Unmarked(all) = &answer else { return Err(unexpected()) };
    let is_group = !matches!(&all[..], [one] if one.volume == target);
    let line = |gone: &Unmarked| {
        format!("{}: the marker {} at lsn:{}, {}, is let go", gone.volume, gone.name, gone.lsn, gone.utc)
    };
    context.show(&one_or_all(answer.json(), is_group), || lines_of(all, line));
    Ok(report::DONE)
}

fn text(retention: &Retention) -> String {
    let mut lines = vec![
        retention.volume.clone(),
        format!("  size        {} as clients see it", size(retention.sizes.logical)),
        format!("  policy      {}", retention.policy),
        format!("  oldest      lsn:{} at {}", retention.horizon.lsn, retention.horizon.utc),
        format!("  newest      lsn:{} at {}", retention.tip.lsn, retention.tip.utc),
        format!("  in base     through lsn:{}", retention.base_lsn),
    ];
    lines.extend(size_lines(&retention.sizes, Some(retention.journal_cap_bytes)));
    lines.extend(retention.forecast.words.as_ref().map(|words| format!("  forecast    the journal {words}")));
    for (number, pin) in retention.pins.iter().enumerate() {
        let head = if number == 0 { "held" } else { "" };
        lines.push(format!("  {head:11} lsn:{} by {}", pin.lsn, pin.holder));
    }
    lines.join("\n")
}

/// What a volume takes.
pub fn size_lines(sizes: &Sizes, cap_bytes: Option<u64>) -> Vec<String> {
    let cap = cap_bytes.map(|cap| format!(" of {}", size(cap))).unwrap_or_default();
    let folds = match sizes.folds {
        0 => String::new(),
        folds => format!(" (thinned {})", size(folds)),
    };
    let newest = match sizes.newest {
        0 => String::new(),
        newest => format!(", newest state {}", size(newest)),
    };
    let mut lines = vec![format!(
        "  on disk     journal {}{cap}{folds}, index {}, base {}{newest}",
        size(sizes.journal),
        size(sizes.index),
        size(sizes.base)
    )];
    if sizes.thinned_plain > 0 {
        lines.push(format!(
            "  compressed  {} of block versions that were kept when history was thinned take {}",
            size(sizes.thinned_plain),
            size(sizes.thinned_stored)
        ));
    }
    lines
}
