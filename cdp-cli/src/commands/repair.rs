//! `cdp repair`.

use cdp_core::error::{Error, Kind, Result};
use cdp_core::volume::open::Accept;

use super::Context;
use crate::cli::Repair;
use crate::door::{Talk, open_accepting};
use crate::report;
use crate::units::size;
use crate::work::repair::{Choice, Diagnosis, diagnose};

/// Lists the choices, or carries one out.
pub fn run(context: &Context, arguments: &Repair) -> Result<u8> {
    if let Some(mut talk) = Talk::connect(&context.config.store)? {
        let pid = talk.hello()?.pid;
        return Err(Error::new(Kind::Busy, format!("the store is being served by pid {pid}"))
            .hint("stop the server first: recovery happens when a volume is opened"));
    }
    let name = arguments.volume.as_str();
    let accept = Accept { loss: arguments.accept_loss, mark_loss: arguments.accept_mark_loss };
    let holder = format!("pid {}, `cdp repair`", std::process::id());
    let none = |_: &str| Accept::default();
    let store = open_accepting(&context.config, false, &holder, &none)?;
    let before = diagnose(&store, name)?;
    if accept == Accept::default() || before.state == "good" {
        store.close()?;
        context.show(&serde_json::to_value(&before).unwrap_or_default(), || text(&before));
        return Ok(if before.state == "good" { report::DONE } else { report::ACT });
    }
    store.close()?;
    drop(store);
    let accepted = |volume: &str| if volume == name { accept } else { Accept::default() };
    let store = open_accepting(&context.config, false, &holder, &accepted)?;
    let after = diagnose(&store, name)?;
    store.close()?;
    let json = serde_json::json!({ "before": before, "after": after });
    context.show(&json, || {
        let mut lines = vec![format!("before: {}", text(&before)), format!("\nafter: {}", text(&after))];
        if after.state == "good" {
            lines.push(format!(
                "\n{name} takes writes again; what was put aside is in `lost-…` in its directory."
            ));
        }
        lines.join("\n")
    });
    Ok(if after.state == "good" { report::DONE } else { report::ACT })
}

fn text(diagnosis: &Diagnosis) -> String {
    let name = &diagnosis.volume;
    if diagnosis.state == "good" {
        return format!("{name} is good: there is nothing to repair");
    }
    let mut lines =
        vec![format!("{name} is {}: {}", diagnosis.state, diagnosis.why.as_deref().unwrap_or_default())];
    if let Some(place) = &diagnosis.serves_through {
        lines.push(format!("  served     everything up to lsn:{} at {}", place.lsn, place.utc));
    }
    if let Some(place) = &diagnosis.durable_once {
        lines.push(format!("  durable    lsn:{} at {}, by the mark", place.lsn, place.utc));
    }
    lines.push("Choices:".to_owned());
    for (number, choice) in diagnosis.choices.iter().enumerate() {
        lines.extend(choice_lines(number + 1, choice));
    }
    lines.join("\n")
}

fn choice_lines(number: usize, choice: &Choice) -> Vec<String> {
    let mut lines = vec![format!("  {number}. {}", choice.how), format!("     loses: {}", choice.loses)];
    if let (Some((first, last)), Some((from, to))) = (choice.lsns, &choice.instants) {
        lines.push(format!("     lsn:{first} … lsn:{last}, {from} … {to}"));
    }
    for (offset, len) in &choice.extents {
        lines.push(format!("     changed bytes {offset}+{len} ({})", size(*len)));
    }
    if choice.unreadable_records > 0 {
        lines.push(format!(
            "     {} of them cannot be read, so what they changed is not known",
            choice.unreadable_records
        ));
    }
    lines
}
