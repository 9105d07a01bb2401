//! `cdp diff`.

use cdp_core::error::{Error, Kind, Result};

use super::{Context, compare, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::{Diff, DiffPage, PointInfo, Request, Response};

/// Shows which extents differ between two points. What is found is printed as it is found.
pub fn run(context: &Context, arguments: &cli::Diff) -> Result<u8> {
    let rest: Vec<&str> =
        [&arguments.second, &arguments.third].into_iter().flatten().map(String::as_str).collect();
    let (from, to) = points(&arguments.first, &rest)?;
    if arguments.files {
        return compare::run(context, &from, &to, arguments);
    }
    let mut door = Door::open(&context.config, false)?;
    let shown = show(context, &mut door, &from, &to, arguments);
    let closed = door.close();
    shown?;
    closed?;
    Ok(report::DONE)
}

/// `VOL@A VOL@B`, `VOL A B`, or with the newest state as the second.
fn points(first: &str, rest: &[&str]) -> Result<(String, String)> {
    let volume = first.split('@').next().unwrap_or_default();
    let has_point = first.contains('@');
    Ok(match (has_point, rest) {
        (true, []) => (first.to_owned(), format!("{volume}@latest")),
        (true, [second]) => (first.to_owned(), (*second).to_owned()),
        (false, [from]) => (format!("{first}@{from}"), format!("{first}@latest")),
        (false, [from, to]) if !from.contains('@') && !to.contains('@') => {
            (format!("{first}@{from}"), format!("{first}@{to}"))
        }
        _ => {
            return Err(Error::new(Kind::Invalid, "two points of one volume are to be compared")
                .hint("cdp diff VOL@POINT VOL@POINT, or cdp diff VOL POINT POINT"));
        }
    })
}

fn show(context: &Context, door: &mut Door, from: &str, to: &str, arguments: &cli::Diff) -> Result<()> {
    let mut resolve =
        |target: &str| match door.ask(Request::Resolve { target: target.to_owned() }, &mut |_| Ok(())) {
            Ok(Response::Points(points)) => Ok(points),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(error),
        };
    let (from, to) = (resolve(from)?, resolve(to)?);
    if from.len() != to.len() {
        return Err(Error::new(Kind::Invalid, "a group can be compared with itself only"));
    }
    point::tell(from.iter().chain(&to));
    let pairs: Vec<(PointInfo, PointInfo)> = from.into_iter().zip(to).collect();
    // What cannot be compared at all shows in the first page of each: nothing is printed before.
    let mut begun = Vec::with_capacity(pairs.len());
    for (from, to) in &pairs {
        let mut diff =
            Diff { from: from.export.clone(), to: to.export.clone(), content: arguments.content, offset: 0 };
        let first = next_page(door, &mut diff)?;
        begun.push((diff, first));
    }
    if context.json {
        report::print("[");
    }
    for (number, ((from, to), (mut diff, first))) in pairs.iter().zip(begun).enumerate() {
        let mut printer = Printer { json: context.json, summary: arguments.summary, ..Printer::default() };
        printer.begin(from, to);
        let mut page = first;
        loop {
            printer.page(&page);
            if page.next.is_none() {
                break;
            }
            page = next_page(door, &mut diff)?;
        }
        printer.end(number + 1 == pairs.len());
    }
    if context.json {
        report::print("]");
    }
    Ok(())
}

/// The page at the offset of `diff`, which moves on to the next one.
fn next_page(door: &mut Door, diff: &mut Diff) -> Result<DiffPage> {
    let page = match door.ask(Request::Diff(diff.clone()), &mut |_| Ok(()))? {
        Response::Diff(page) => page,
        _ => return Err(unexpected()),
    };
    match page.next {
        Some(next) if next <= diff.offset => Err(unexpected()),
        next => {
            diff.offset = next.unwrap_or(diff.offset);
            Ok(page)
        }
    }
}

/// Prints extents as they come; one that ends a page and begins the next is one.
#[derive(Default)]
struct Printer {
    json: bool,
    summary: bool,
    held: Option<(u64, u64)>,
    extents: u64,
    bytes: u64,
}

impl Printer {
    fn begin(&self, from: &PointInfo, to: &PointInfo) {
        if self.json {
            let text = |info: &PointInfo| serde_json::to_string(info).unwrap_or_default();
            let volume = serde_json::Value::from(from.volume.as_str());
            report::print(&format!("{{\"volume\": {volume},"));
            report::print(&format!(" \"from\": {},\n \"to\": {},\n \"extents\": [", text(from), text(to)));
        } else if !self.summary {
            report::print(&format!("{:>20} {:>20}", "OFFSET", "BYTES"));
        }
    }

    fn page(&mut self, page: &DiffPage) {
        let mut lines = Vec::new();
        for &(offset, len) in &page.extents {
            match &mut self.held {
                Some(held) if held.0 + held.1 == offset => held.1 += len,
                held => {
                    let done = held.replace((offset, len));
                    lines.extend(done.map(|extent| self.line(extent, true)));
                }
            }
        }
        self.print(lines);
    }

    fn end(&mut self, last: bool) {
        let line = self.held.take().map(|extent| self.line(extent, false));
        self.print(line.into_iter().collect());
        let (extents, bytes) = (self.extents, self.bytes);
        if self.json {
            let comma = if last { "" } else { "," };
            report::print(&format!(" ],\n \"extents_count\": {extents}, \"bytes\": {bytes}}}{comma}"));
        } else {
            let plural = if extents == 1 { "extent" } else { "extents" };
            report::print(&format!("{extents} {plural}, {bytes} bytes ({})", size(bytes)));
        }
    }

    fn line(&mut self, (offset, len): (u64, u64), more: bool) -> String {
        self.extents += 1;
        self.bytes += len;
        match (self.json, more) {
            (true, true) => format!("  {{\"offset\": {offset}, \"bytes\": {len}}},"),
            (true, false) => format!("  {{\"offset\": {offset}, \"bytes\": {len}}}"),
            (false, _) => format!("{offset:>20} {len:>20}"),
        }
    }

    fn print(&self, lines: Vec<String>) {
        if !self.summary && !lines.is_empty() {
            report::print(&lines.join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Comparing other points than were meant would be noticed on the day the backup is needed.
    #[test]
    fn both_ways_of_writing_mean_the_same() {
        let of = |first: &str, rest: &[&str]| {
            points(first, rest).map(|(from, to)| format!("{from} {to}")).unwrap_or_else(|_| "-".to_owned())
        };
        assert_eq!(of("disk@a", &["disk@b"]), "disk@a disk@b");
        assert_eq!(of("disk", &["a", "b"]), "disk@a disk@b");
        assert_eq!(of("disk", &["-5m", "-1m"]), "disk@-5m disk@-1m");
        assert_eq!(of("disk@a", &[]), "disk@a disk@latest");
        assert_eq!(of("disk", &["a"]), "disk@a disk@latest");
        for (first, rest) in [
            ("disk", &[][..]),
            ("disk", &["x@a", "b"]),
            ("disk@a", &["disk@b", "c"]),
            ("disk", &["a", "b", "c"]),
        ] {
            assert_eq!(of(first, rest), "-", "{first} {rest:?}");
        }
    }
}
