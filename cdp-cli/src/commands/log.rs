//! `cdp log`.

use cdp_core::error::Result;
use cdp_core::history::point::format_duration;

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::{parse_duration, size};
use crate::work::timeline::{EventRow, Interval, RecordRow, Row};
use crate::work::{Log, Records, Request, Response, Timeline};

/// Width of the bars, in characters.
const BAR: u64 = 24;

/// Shows the timeline, or single records.
pub fn run(context: &Context, arguments: &cli::Log) -> Result<u8> {
    let log = Log {
        target: arguments.target.clone(),
        around: arguments.around.clone(),
        step_ns: arguments.step.as_deref().map(parse_duration).transpose()?,
        count: arguments.count.map(|count| count as usize),
    };
    let request = if arguments.records { Request::Records(log) } else { Request::Log(log) };
    let bar = Bar::default();
    let answer = Door::ask_once(&context.config, false, request, &mut |progress| {
        bar.show(progress);
        Ok(())
    });
    bar.clear();
    let answer = answer?;
    match &answer {
        Response::Timelines(timelines) => {
            point::tell(timelines.iter().flat_map(|timeline| &timeline.around));
            context.show(&answer.json(), || timelines.iter().map(timeline).collect::<Vec<_>>().join("\n\n"));
        }
        Response::Records(all) => {
            point::tell(all.iter().flat_map(|records| &records.around));
            context.show(&answer.json(), || all.iter().map(records).collect::<Vec<_>>().join("\n\n"));
        }
        _ => return Err(unexpected()),
    }
    Ok(report::DONE)
}

fn timeline(timeline: &Timeline) -> String {
    let step = format_duration(timeline.step_ns);
    let mut lines = vec![format!(
        "{}: intervals of {step}, times in UTC; # new  o overwritten  - trimmed",
        timeline.volume
    )];
    if timeline.events_left_out > 0 {
        lines
            .push(format!("({} older events are left out: zoom in with --around)", timeline.events_left_out));
    }
    if timeline.summarised {
        lines.push(
            "(of so many records only sums are shown: # is all that was written; zoom in with --around)"
                .to_owned(),
        );
    }
    if let Some(gone) = &timeline.around_gone {
        lines.push(format!("({gone})"));
    }
    lines.push(format!("{:24} {:24} {:>10}  {}", "WHEN", "", "CHANGED", "RIGHT BEFORE IT, AND IN A URI"));
    let most = timeline.rows.iter().map(changed).max().unwrap_or(0);
    let zoomed = timeline.step_ns < 1_000_000_000;
    for row in &timeline.rows {
        lines.push(match row {
            Row::Interval(interval) => interval_line(interval, most, zoomed),
            Row::Quiet { utc, from_ns, to_ns } => {
                format!("{:24} · nothing written for {}", time(utc, zoomed), format_duration(to_ns - from_ns))
            }
            Row::Thinned { utc, from_ns, to_ns } => {
                let span = format_duration(to_ns - from_ns);
                format!(
                    "{:24} % thinned for {span}: what was written when is not known any more",
                    time(utc, zoomed)
                )
            }
            Row::Event(event) => event_line(event),
        });
    }
    if let Some(coming) = &timeline.coming {
        lines.push(format!("{:24} ~ the journal {coming}", "to come"));
    }
    lines.join("\n")
}

fn changed(row: &Row) -> u64 {
    match row {
        Row::Interval(i) => i.new_bytes.saturating_add(i.overwritten_bytes).saturating_add(i.trimmed_bytes),
        _ => 0,
    }
}

fn interval_line(interval: &Interval, most: u64, zoomed: bool) -> String {
    let all = changed(&Row::Interval(interval.clone()));
    // A square root: a burst stands out, and a trickle is still seen.
    let width = ((all as f64 / most.max(1) as f64).sqrt() * BAR as f64).ceil() as u64;
    let share = |bytes: u64| match bytes {
        0 => 0,
        bytes => ((bytes as f64 / all as f64 * width as f64).round() as u64).max(1),
    };
    let (over, trim) = (share(interval.overwritten_bytes), share(interval.trimmed_bytes));
    let new = share(interval.new_bytes)
        .min(width.saturating_sub(over + trim).max(u64::from(interval.new_bytes > 0)));
    let bar = ["#".repeat(new as usize), "o".repeat(over as usize), "-".repeat(trim as usize)].concat();
    let uri = if interval.uri_before == interval.point_before {
        String::new()
    } else {
        format!("  {}", interval.uri_before)
    };
    format!("{:24} {bar:24} {:>10}  {}{uri}", time(&interval.utc, zoomed), size(all), interval.point_before)
}

fn event_line(event: &EventRow) -> String {
    let sign = match event.kind.as_str() {
        "marker" => "*",
        "proof" => "=",
        "kept" => "%",
        "clock-step" | "damaged" => "!",
        "attached" => ">",
        "left" => "<",
        _ => "+",
    };
    let uri = if event.uri == event.point { String::new() } else { format!("  {}", event.uri) };
    format!("{:24} {sign} {} {}  {}{uri}", time(&event.utc, true), event.kind, event.text, event.point)
}

/// `2026-11-21 10:00:00`, with milliseconds where they count.
fn time(utc: &str, zoomed: bool) -> String {
    let digits = if zoomed { 23 } else { 19 };
    utc.chars().take(digits).map(|c| if c == 'T' { ' ' } else { c }).collect()
}

fn records(records: &Records) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "LSN",
        "UTC",
        "KIND",
        "OFFSET",
        "LENGTH",
        "SESSION",
        "THE STATE AFTER IT, AND IN A URI",
    ]);
    for record in &records.records {
        table.add_row(record_cells(record));
    }
    let mut lines = vec![records.volume.clone()];
    lines.extend(records.around_gone.iter().map(|gone| format!("({gone})")));
    lines.extend(
        records
            .thinned
            .iter()
            .map(|(first, last)| format!("(lsn:{first} to lsn:{last} were thinned: they are not shown)")),
    );
    lines.push(table.trim_fmt());
    lines.join("\n")
}

fn record_cells(record: &RecordRow) -> [String; 7] {
    let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
    let session = match (&record.peer, record.session) {
        (Some(peer), number) => format!("{number} ({peer})"),
        (None, 0) => "store".to_owned(),
        (None, number) => number.to_string(),
    };
    let uri = if record.uri == record.point { String::new() } else { format!("  {}", record.uri) };
    [
        record.lsn.to_string(),
        record.utc.clone(),
        record.kind.clone(),
        number(record.offset),
        number(record.len),
        session,
        format!("{}{uri}", record.point),
    ]
}
