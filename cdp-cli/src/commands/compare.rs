//! What happened to the files between two points: for `cdp diff --files` and at the end of `cdp bisect`.

use cdp_core::error::{Error, Kind, Result};
use serde::Serialize;

use super::files::{EntryLine, Past, printable, within};
use super::{Context, point};
use crate::cli;
use crate::door::unexpected;
use crate::files::compare::{CompareOptions, Difference, Happened, compare};
use crate::files::shown;
use crate::files::target::FileTarget;
use crate::reach::Reach;
use crate::report;
use crate::work::{Request, Response};

/// A file that is not the same at both points.
#[derive(Clone, Debug, Serialize)]
pub struct DifferenceLine {
    /// Where it is.
    pub path: String,
    /// created, removed or changed.
    pub happened: Happened,
    /// In what it is different, if it is at both points.
    pub what: Vec<&'static str>,
    /// As it is at the first point.
    pub before: Option<EntryLine>,
    /// As it is at the second point.
    pub after: Option<EntryLine>,
}

impl DifferenceLine {
    fn of(difference: &Difference) -> DifferenceLine {
        let Difference { path, happened, what, before, after } = difference;
        let line =
            |entry: &Option<crate::files::Entry>| entry.as_ref().map(|entry| EntryLine::new(path, entry));
        DifferenceLine {
            path: shown(path),
            happened: *happened,
            what: what.clone(),
            before: line(before),
            after: line(after),
        }
    }

    /// For people: a sign, the path, what is different.
    pub fn text(&self) -> String {
        let sign = match self.happened {
            Happened::Created => '+',
            Happened::Removed => '-',
            Happened::Changed => '~',
        };
        let what = if self.what.is_empty() { String::new() } else { format!("  ({})", self.what.join(", ")) };
        format!("{sign} {}{what}", printable(&self.path))
    }
}

/// What happened to the files between two exports.
pub fn between(
    reach: &mut Reach,
    from: &str,
    to: &str,
    partition: Option<u32>,
    options: CompareOptions,
) -> Result<Vec<DifferenceLine>> {
    let mut open = |export: &str| {
        let target = FileTarget { disk: export.to_owned(), path: None };
        Past::open(reach, &target)?.tree(partition)
    };
    let (mut before, mut after) = (open(from)?, open(to)?);
    let mut lines = Vec::new();
    compare(&mut before, &mut after, &[], options, &mut |difference| {
        lines.push(DifferenceLine::of(&difference));
        Ok(())
    })?;
    Ok(lines)
}

/// `cdp diff --files`: what happened to the files between two points of a volume, or of each member of a group.
pub fn run(context: &Context, from: &str, to: &str, arguments: &cli::Diff) -> Result<u8> {
    within(context, |reach| {
        let mut resolve = |target: &str| {
            let request = Request::Resolve { target: target.to_owned() };
            match reach.ask(request, &mut |_| Ok(()))? {
                Response::Points(points) => Ok(points),
                _ => Err(unexpected()),
            }
        };
        let (from, to) = (resolve(from)?, resolve(to)?);
        if from.len() != to.len() {
            return Err(Error::new(Kind::Invalid, "a group can be compared with itself only"));
        }
        point::tell(from.iter().chain(&to));
        let options = CompareOptions { content: arguments.content, ..CompareOptions::default() };
        let mut all = Vec::new();
        let mut text = Vec::new();
        for (from, to) in from.iter().zip(&to) {
            let lines = between(reach, &from.export, &to.export, arguments.partition, options)?;
            if !arguments.summary {
                text.extend(lines.iter().map(DifferenceLine::text));
            }
            let count = |happened| lines.iter().filter(|line| line.happened == happened).count();
            text.push(format!(
                "{}: {} created, {} removed, {} changed",
                from.volume,
                count(Happened::Created),
                count(Happened::Removed),
                count(Happened::Changed)
            ));
            all.push(serde_json::json!({ "volume": from.volume, "from": from, "to": to, "files": lines }));
        }
        context.show(&serde_json::Value::Array(all), || text.join("\n"));
        Ok(report::DONE)
    })
}
