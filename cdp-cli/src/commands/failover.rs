//! `cdp failover`, `demote` and `resync`.

use cdp_core::error::{Error, Kind, Result};

use super::Context;
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::serve::roles::HookRun;
use crate::work::failover::AheadOf;
use crate::work::{Demote, FailedOver, Failover, Request, Response, Resync};

/// Promotes.
pub fn failover(context: &Context, arguments: &cli::Failover) -> Result<u8> {
    let request = Failover {
        target: arguments.target.clone(),
        to: arguments.to.clone(),
        dry_run: arguments.dry_run,
        partial: arguments.partial,
        give_up_newest: arguments.give_up_newest,
        force: arguments.force,
    };
    let answer = Door::ask_once(&context.config, false, Request::Failover(request), &mut |_| Ok(()))?;
    let Response::FailedOver(volumes) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let line = |line: &crate::work::FailedOver| {
            let verb = if line.done { "is" } else { "would be" };
            let beyond = match line.tip_lsn.saturating_sub(line.to_lsn) {
                0 => String::new(),
                records => format!(
                    "; {records} records that came later stay in its history, up to {}@lsn:{}",
                    line.volume, line.tip_lsn
                ),
            };
            let newest = match (&line.newest, line.done) {
                (Some(newest), true) => {
                    format!("\n  the state of {} (lsn:{}), which was shown ahead of it, is given up", newest.utc, newest.lsn)
                }
                (Some(newest), false) => format!(
                    "\n  that is older than the state of {} (lsn:{}), which is shown while history is filled in: it would be given up",
                    newest.utc, newest.lsn
                ),
                (None, _) => String::new(),
            };
            if let Some(ahead) = &line.ahead {
                return ahead_line(line, verb, ahead);
            }
            format!(
                "{} {verb} the primary, in epoch {}, from {} (lsn:{}) on{beyond}; complete through {}{newest}",
                line.volume, line.epoch, line.to_utc, line.to_lsn, line.complete_utc
            )
        };
        let hooks = volumes.iter().flat_map(|volume| &volume.hooks).map(said);
        volumes.iter().map(line).chain(hooks).collect::<Vec<_>>().join("\n")
    });
    done(volumes.iter().flat_map(|volume| &volume.hooks))
}

fn ahead_line(line: &FailedOver, verb: &str, ahead: &AheadOf) -> String {
    let here = match ahead.here_lsn {
        Some(lsn) => format!(", here {}@lsn:{lsn}", line.volume),
        None => String::new(),
    };
    let (was, written) = match line.done {
        true => ("was", "was"),
        false => ("is", "would be"),
    };
    format!(
        "{} {verb} the primary, in epoch {}, from the newest state, that of {} (lsn:{} of the other site{here}), on\n  history {was} here through {} (lsn:{}); the {} records between are lost as points in time, what they wrote is not\n  {} of what differs {written} written before clients can write",
        line.volume,
        line.epoch,
        line.to_utc,
        line.to_lsn,
        ahead.behind.utc,
        ahead.behind.lsn,
        ahead.lost_records,
        crate::units::size(ahead.write_bytes),
    )
}

fn said(hook: &HookRun) -> String {
    let output = hook.output.trim();
    format!("{} {}{}{output}", hook.program.display(), hook.action, if output.is_empty() { "" } else { ": " })
}

/// The roles have changed, but somebody who should know of it may not.
fn done<'a>(hooks: impl Iterator<Item = &'a HookRun>) -> Result<u8> {
    let failed: Vec<&str> = hooks.filter_map(|hook| hook.error.as_deref()).collect();
    match failed.is_empty() {
        true => Ok(report::DONE),
        false => Err(Error::new(Kind::Io, failed.join("; "))
            .hint("the roles have changed all the same: do by hand what the program should have done")),
    }
}

/// Steps down.
pub fn demote(context: &Context, arguments: &cli::Demote) -> Result<u8> {
    let request = Demote {
        target: arguments.target.clone(),
        force: arguments.force,
        drain_s: arguments.drain,
        to: arguments.to.clone(),
    };
    let answer = Door::ask_once(&context.config, false, Request::Demote(request), &mut |_| Ok(()))?;
    let Response::Demoted(volumes) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let line = |line: &crate::work::Demoted| {
            let drained = match &line.drained_to {
                Some(address) => format!("; the replica at {address} has all of it"),
                None => String::new(),
            };
            let lacking = match &line.lacking[..] {
                [] => String::new(),
                all => format!("; NOT all of it has {}", all.join(", ")),
            };
            format!(
                "{} takes no more writes; its last record is lsn:{} ({}){drained}{lacking}",
                line.volume, line.lsn, line.utc
            )
        };
        let hooks = volumes.iter().flat_map(|volume| &volume.hooks).map(said);
        volumes.iter().map(line).chain(hooks).collect::<Vec<_>>().join("\n")
    });
    done(volumes.iter().flat_map(|volume| &volume.hooks))
}

/// Makes two histories one.
pub fn resync(context: &Context, arguments: &cli::Resync) -> Result<u8> {
    let request = Resync {
        target: arguments.target.clone(),
        force: arguments.force,
        dry_run: arguments.dry_run,
        site: arguments.site.clone(),
    };
    let answer = Door::ask_once(&context.config, false, Request::Resync(request), &mut |_| Ok(()))?;
    let Response::Resynced(volumes) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let line = |line: &crate::work::Resynced| {
            let ours = line.tip_lsn.saturating_sub(line.common_lsn);
            let theirs = line.their_tip_lsn.saturating_sub(line.common_lsn);
            let mut text = format!(
                "{}: both sites have everything through lsn:{} ({}); since then {ours} records here, {theirs} at {}, in epoch {}",
                line.volume, line.common_lsn, line.common_utc, line.site, line.their_epoch
            );
            match (&line.orphan, line.done) {
                (Some(orphan), _) => {
                    text.push_str(&format!("\n  what only this site had: {orphan}, with the same LSNs"));
                }
                (None, true) => text.push_str("\n  this site had nothing that the other has not"),
                (None, false) if !arguments.dry_run => text.push_str(&format!(
                    "\n  nothing to do: both sites are in epoch {}, and {} is the primary here as before",
                    line.their_epoch, line.volume
                )),
                (None, false) => {}
            }
            if let Some(newest) = &line.newest {
                let (state, site) = (format!("the state of {} (lsn:{})", newest.utc, newest.lsn), &line.site);
                text.push_str(&match line.done {
                    true => format!("\n  {state}, which was shown ahead of the history, is given up: {site} does not have it"),
                    false => format!(
                        "\n  {state}, which is shown while history is filled in, would be given up: {site} does not have it\n  `cdp restore {}@lsn:{} FILE` saves it before",
                        line.volume, newest.lsn
                    ),
                });
            }
            if line.done {
                text.push_str(&format!("\n  it is a replica of {} now, and is brought up from there", line.site));
            }
            text
        };
        volumes.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(report::DONE)
}
