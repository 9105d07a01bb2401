//! `cdp history`: the versions of a file.

use std::collections::BTreeMap;

use cdp_core::error::{Error, Kind, Result};
use serde::Serialize;

use super::Context;
use super::files::{EntryLine, Past, within};
use super::progress::Bar;
use crate::cli;
use crate::files::target::FileTarget;
use crate::files::versions::{self, Run};
use crate::files::{Entry, EntryKind, Names, walk};
use crate::reach::Reach;
use crate::report;
use crate::work::{Changes, PointInfo, Progress, Request, Response, Stretch};

/// States that are looked at in any case.
const SAMPLES: u64 = 64;
/// So many of the newest named markers, too.
const NAMED_SAMPLES: usize = 64;
/// The most states that are looked at.
const LOOKS_MAX: u64 = 4_000;

/// What was found at a state.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    /// No such file, or nothing at all on the disk.
    Absent,
    /// It cannot be told; why.
    Unreadable(String),
    /// The file.
    There(Entry),
}

/// A version, for programs.
#[derive(Clone, Debug, Serialize)]
struct Version {
    /// The first marker at which it is there.
    first: PointInfo,
    /// The last one.
    last: PointInfo,
    /// Name of the first marker, if it has one.
    marker: Option<String>,
    /// file, absent or unreadable.
    state: &'static str,
    /// The file.
    entry: Option<EntryLine>,
    /// Of its content.
    blake3: Option<String>,
    /// Why it cannot be read.
    error: Option<String>,
}

/// A file across the states of a volume.
struct Watched<'a> {
    reach: &'a mut Reach,
    volume: String,
    path: &'a Names,
    partition: Option<u32>,
}

impl Watched<'_> {
    fn export(&self, lsn: u64) -> String {
        format!("{}@lsn:{lsn}", self.volume)
    }

    fn open(&mut self, lsn: u64) -> Result<(crate::files::contain::Contained, Vec<Vec<u8>>, Entry)> {
        let target = FileTarget { disk: self.export(lsn), path: None };
        let mut tree = Past::open(self.reach, &target)?.tree(self.partition)?;
        let (path, entry) = walk::follow(&mut tree, self.path)?;
        match entry.kind {
            EntryKind::File => Ok((tree, path, entry)),
            _ => Err(Error::new(
                Kind::Invalid,
                format!("{} is not a regular file", crate::files::shown(&path)),
            )),
        }
    }

    fn look(&mut self, lsn: u64) -> Result<Seen> {
        match self.open(lsn) {
            Ok((.., entry)) => Ok(Seen::There(entry)),
            Err(error) if error.kind() == Kind::NotFound => Ok(Seen::Absent),
            // What the disk holds at one instant is no reason not to look at others.
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Damaged) => Ok(Seen::Unreadable(
                report::Report::of(&error).message.replace(&self.export(lsn), "the disk"),
            )),
            Err(error) => Err(error),
        }
    }

    fn hash(&mut self, lsn: u64) -> Result<String> {
        let (mut tree, path, _) = self.open(lsn)?;
        let mut hash = blake3::Hasher::new();
        tree.read(&path, &mut |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok(hash.finalize().to_hex().to_string())
    }

    fn is_unchanged(&mut self, after: u64, through: u64) -> Result<bool> {
        let stretch = Stretch { volume: self.volume.clone(), after, through };
        match self.reach.ask(Request::Changes(stretch), &mut |_| Ok(()))? {
            Response::Changes(Changes { changes, .. }) => Ok(changes.is_empty()),
            _ => Err(crate::door::unexpected()),
        }
    }
}

/// Shows them.
pub fn run(context: &Context, arguments: &cli::History) -> Result<u8> {
    let target = FileTarget::parse(&arguments.target)?;
    let path = target.need_path()?;
    if target.disk.contains('@') {
        return Err(
            Error::new(Kind::Invalid, "a history has no point").hint("--since POINT and --until POINT")
        );
    }
    within(context, |reach| {
        let volume = target.disk.clone();
        let mut end = |text: &Option<String>, default: &str| {
            let text = text.as_deref().unwrap_or(default);
            reach.point(&format!("{volume}@{text}"))
        };
        let (since, until) = (end(&arguments.since, "start")?, end(&arguments.until, "latest")?);
        if since.lsn > until.lsn {
            return Err(Error::new(Kind::Invalid, "--since is later than --until"));
        }
        let (marks, names) = reach.marks(&volume, since.lsn, until.lsn)?;
        let mut row = vec![since.lsn];
        row.extend(marks);
        if row.last() != Some(&until.lsn) {
            row.push(until.lsn);
        }
        let mut watched = Watched { reach, volume, path, partition: arguments.partition };
        let (runs, cut_short) = find(&mut watched, &row, &names, arguments.every)?;
        let versions = describe(&mut watched, &row, &names, &runs)?;
        if cut_short {
            report::say(
                "cdp: it changes too often for all of it to be shown: --since and --until narrow it down",
            );
        }
        let json = serde_json::json!({
            "volume": watched.volume, "path": crate::files::shown(path), "markers": row.len(),
            "cut_short": cut_short, "versions": versions,
        });
        context.show(&json, || text(&versions));
        match versions.iter().any(|version| version.entry.is_some()) {
            true => Ok(report::DONE),
            false => Ok(report::NOT_FOUND),
        }
    })
}

fn find(
    watched: &mut Watched<'_>,
    row: &[u64],
    names: &BTreeMap<u64, String>,
    every: bool,
) -> Result<(Vec<Run<Seen>>, bool)> {
    let count = row.len() as u64;
    let bar = Bar::default();
    let mut looks = 0;
    let mut look = |watched: &mut Watched<'_>, at: u64| {
        looks += 1;
        bar.show(Progress { what: "looking at markers".to_owned(), done: looks, total: count.max(looks) });
        watched.look(row[at as usize])
    };
    let found = if every {
        let mut runs: Vec<Run<Seen>> = Vec::new();
        for at in 0..count {
            if let Some(last) = runs.last_mut()
                && watched.is_unchanged(row[at as usize - 1], row[at as usize])?
            {
                last.last = at;
                continue;
            }
            let seen = look(watched, at)?;
            match runs.last_mut() {
                Some(run) if run.version == seen => run.last = at,
                _ => runs.push(Run { first: at, last: at, version: seen }),
            }
        }
        (runs, false)
    } else {
        let newest = names.keys().rev().take(NAMED_SAMPLES);
        let named: Vec<u64> =
            newest.filter_map(|lsn| row.binary_search(lsn).ok()).map(|at| at as u64).collect();
        let samples = versions::spread(count, SAMPLES).chain(named);
        let found = versions::find(count, samples, LOOKS_MAX, &mut |at| look(watched, at))?;
        (found.runs, found.cut_short)
    };
    bar.clear();
    Ok(found)
}

fn describe(
    watched: &mut Watched<'_>,
    row: &[u64],
    names: &BTreeMap<u64, String>,
    runs: &[Run<Seen>],
) -> Result<Vec<Version>> {
    let one = |run: &Run<Seen>| {
        let (first, last) = (row[run.first as usize], row[run.last as usize]);
        let (state, entry, error, blake3) = match &run.version {
            Seen::Absent => ("absent", None, None, None),
            Seen::Unreadable(why) => ("unreadable", None, Some(why.clone()), None),
            Seen::There(entry) => {
                let line = EntryLine::new(watched.path, entry);
                match watched.hash(first) {
                    Ok(hash) => ("file", Some(line), None, Some(hash)),
                    Err(error) => ("file", Some(line), Some(error.to_string()), None),
                }
            }
        };
        let mut place = |lsn: u64| watched.reach.point(&format!("{}@lsn:{lsn}", watched.volume));
        let (first_point, last_point) = (place(first)?, place(last)?);
        let marker = names.get(&first).cloned();
        Ok(Version { first: first_point, last: last_point, marker, state, entry, blake3, error })
    };
    runs.iter().map(one).collect()
}

fn text(versions: &[Version]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["FROM", "SIZE", "CHANGED", "BLAKE3", "THE STATE WITH IT"]);
    for version in versions {
        let (size, changed) = match &version.entry {
            Some(entry) => (entry.bytes.to_string(), entry.modified.clone().unwrap_or_default()),
            None => (version.error.clone().unwrap_or_else(|| "not there".to_owned()), String::new()),
        };
        let hash: String = version.blake3.as_deref().unwrap_or("").chars().take(16).collect();
        let marker = version.marker.as_ref().map(|name| format!("  {name}")).unwrap_or_default();
        let time = |text: &str| text.chars().take(19).collect::<String>().replace('T', " ");
        table.add_row([
            time(&version.first.utc),
            size,
            time(&changed),
            hash,
            format!("{}{marker}", version.first.export_by_lsn()),
        ]);
    }
    table.trim_fmt()
}
