//! `cdp bisect`.

use cdp_core::error::{Error, Kind, Result};
use serde_json::json;

use super::compare::{self, DifferenceLine};
use super::{Context, attach, point};
use crate::bisect::probe::{Form, Prober};
use crate::bisect::run::{Ending, Hunt};
use crate::bisect::state::{End, State, StateFile};
use crate::cli;
use crate::files::compare::CompareOptions;
use crate::hooks::Interrupts;
use crate::reach::Reach;
use crate::report;
use crate::units::size;
use crate::work::PointInfo;

/// At the end, the files of the two states are compared if there are not more than this.
const ENTRIES_COMPARED_MAX: usize = 100_000;
/// So many changes are listed for people.
const CHANGES_SHOWN: usize = 20;

/// Searches, goes on, or forgets.
pub fn run(context: &Context, arguments: &cli::Bisect) -> Result<u8> {
    let file = StateFile::new(&context.config.store, &arguments.volume, arguments.state.as_deref());
    if arguments.reset {
        let there = file.remove()?;
        let said = if there { "forgotten" } else { "there was no search" };
        context.show(&json!({ "reset": there }), || said.to_owned());
        return Ok(report::DONE);
    }
    let interrupts = Interrupts::take()?;
    let mut reach = Reach::open_for_others(&context.config)?;
    let done = search(context, arguments, file, &mut reach, &interrupts);
    let closed = reach.close();
    match done {
        Err(_) if interrupts.came() => {
            let volume = &arguments.volume;
            report::say(&format!(
                "cdp: stopped; what is known so far is kept: cdp bisect {volume} --continue goes on"
            ));
            Ok(report::INTERRUPTED)
        }
        done => done.and_then(|code| closed.map(|()| code)),
    }
}

fn search(
    context: &Context,
    arguments: &cli::Bisect,
    file: StateFile,
    reach: &mut Reach,
    interrupts: &Interrupts,
) -> Result<u8> {
    let state = match arguments.resume {
        true => resumed(reach, &file, &arguments.volume)?,
        false => begun(arguments, reach, &file)?,
    };
    let prober = Prober {
        volume: state.volume.clone(),
        endpoints: reach.endpoints().clone(),
        store: context.config.store.clone(),
        form: state.form,
        partition: state.partition,
        program: state.program.clone(),
        state_dir: attach::state_dir(context),
        keeper: attach::keeper()?,
        stop: Default::default(),
        mounted: Default::default(),
    };
    let together = u64::from(arguments.jobs);
    let mut hunt = Hunt { reach, prober, state, file: file.clone(), together, interrupts };
    let ending = match hunt.run(&mut |what, left| report::say(&format!("{what}: {left} left to judge"))) {
        // There is nothing to go on with: the same search would end the same way.
        Err(error)
            if !interrupts.came() && (hunt.state.verdicts.is_empty() || hunt.state.ends_are_wrong()) =>
        {
            file.remove()?;
            return Err(error);
        }
        other => other?,
    };
    let (good, bad) = (
        place(&mut *hunt.reach, arguments, ending.last_good)?,
        place(&mut *hunt.reach, arguments, ending.first_bad)?,
    );
    file.remove()?;
    let files = files(&mut *hunt.reach, &good, &bad, hunt.state.partition);
    let json = json!({
        "volume": arguments.volume, "exact": ending.exact, "last_good": good, "first_bad": bad,
        "changes": ending.changes, "files": files, "probes": ending.probes,
    });
    context.show(&json, || text(&ending, &good, &bad, files.as_deref().unwrap_or_default()));
    Ok(if ending.exact { report::DONE } else { report::FAILED })
}

fn place(reach: &mut Reach, arguments: &cli::Bisect, lsn: u64) -> Result<PointInfo> {
    reach.point(&format!("{}@lsn:{lsn}", arguments.volume))
}

fn begun(arguments: &cli::Bisect, reach: &mut Reach, file: &StateFile) -> Result<State> {
    if file.load()?.is_some() {
        let context = format!("a search in {} is under way already", arguments.volume);
        return Err(Error::new(Kind::Exists, context).hint("--continue goes on with it, --reset forgets it"));
    }
    let good = arguments.good.as_deref().ok_or_else(|| {
        Error::new(Kind::Invalid, "a point is wanted at which all was well").hint("--good POINT")
    })?;
    let bad = arguments.bad.as_deref().unwrap_or("latest");
    if arguments.program.is_empty() {
        return Err(Error::new(Kind::Invalid, "there is no program that judges").hint(format!(
            "behind --: cdp bisect {} --good POINT --bad POINT -- PROGRAM",
            arguments.volume
        )));
    }
    let mut end = |text: &str| {
        let info = reach.point(&format!("{}@{text}", arguments.volume))?;
        point::tell([&info]);
        Ok::<End, Error>(End { lsn: info.lsn, ns: info.ns })
    };
    let (good, bad) = (end(good)?, end(bad)?);
    if good.lsn >= bad.lsn {
        return Err(Error::new(Kind::Invalid, "the good point is not older than the bad one").hint(
            "to find what mended something, let the program say 0 as long as it is broken, and call that good",
        ));
    }
    let form = Form::of(arguments.mount, arguments.device);
    let state = State {
        form,
        partition: arguments.partition,
        check_ends: !arguments.no_check,
        ..State::new(&arguments.volume, good, bad, &arguments.program)
    };
    file.save(&state)?;
    Ok(state)
}

/// The search that was kept, if its volume is still the same.
fn resumed(reach: &mut Reach, file: &StateFile, volume: &str) -> Result<State> {
    let state = file.load()?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("there is no search in {volume} to go on with"))
            .hint(format!("begin one: cdp bisect {volume} --good POINT --bad POINT -- PROGRAM"))
    })?;
    for end in [state.good, state.bad] {
        let info = reach.point(&format!("{volume}@lsn:{}", end.lsn))?;
        if info.ns != end.ns || state.volume != volume {
            let context = format!("the search was about another volume than {volume} is now");
            return Err(Error::new(Kind::Invalid, context).hint("--reset forgets it"));
        }
    }
    Ok(state)
}

/// Which files are not the same, where that is told quickly; `None` where it is not.
fn files(
    reach: &mut Reach,
    good: &PointInfo,
    bad: &PointInfo,
    partition: Option<u32>,
) -> Option<Vec<DifferenceLine>> {
    let options = CompareOptions { entries_max: ENTRIES_COMPARED_MAX, ..CompareOptions::default() };
    let (good, bad) = (good.export_by_lsn(), bad.export_by_lsn());
    compare::between(reach, &good, &bad, partition, options).ok()
}

fn text(ending: &Ending, good: &PointInfo, bad: &PointInfo, files: &[DifferenceLine]) -> String {
    let line = |name: &str, point: &PointInfo| format!("{name}  {}  {}", point.utc, point.export_by_lsn());
    let mut lines = vec![line("last good", good), line("first bad", bad)];
    if !ending.exact {
        lines.push("the states between them could not be judged: it is one of these records".to_owned());
    }
    for change in ending.changes.iter().take(CHANGES_SHOWN) {
        let what = match change.len {
            0 => String::new(),
            len => format!(" of {} at byte {}", size(len), change.offset),
        };
        lines
            .push(format!("  lsn:{} {}{what}, by session {}", change.place.lsn, change.kind, change.session));
    }
    if ending.changes.len() > CHANGES_SHOWN {
        lines.push(format!("  … and {} more", ending.changes.len() - CHANGES_SHOWN));
    }
    if !files.is_empty() {
        lines.push("files:".to_owned());
        lines.extend(files.iter().take(CHANGES_SHOWN).map(|line| format!("  {}", line.text())));
        if files.len() > CHANGES_SHOWN {
            lines.push(format!("  … and {} more", files.len() - CHANGES_SHOWN));
        }
    }
    lines.push(format!("{} probes", ending.probes));
    lines.join("\n")
}
