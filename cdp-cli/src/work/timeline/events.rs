//! What happened beside writing: markers, sessions, steps of the clock, rollbacks, moves of the horizon, proofs.

use std::ops::ControlFlow;

use cdp_core::error::{Kind, Result};
use cdp_core::format::ledger::{Fact, Reason};
use cdp_core::format::marker::MarkerClass;
use cdp_core::format::record::RecordKind;
use cdp_core::format::turn::Turn;
use cdp_core::history::course::Gap;
use cdp_core::history::point::{Timeline as _, escape_uri, format_utc};
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::volume::Volume;
use cdp_core::volume::timeline::{Event, EventKind};
use serde::{Deserialize, Serialize};

use super::EVENTS_MAX;
use super::thinned::Thinned;
use crate::units::size;

/// Moves of the horizon within such a time, in nanoseconds, are shown as one.
const MOVES_TOGETHER_NS: u64 = 60_000_000_000;

/// Something that changed no blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Its record.
    pub lsn: u64,
    /// When, in Unix nanoseconds.
    pub ns: u64,
    /// RFC 3339 in UTC.
    pub utc: String,
    /// `marker`, `attached`, `left`, `clock-step`, `kept` …
    pub kind: String,
    /// The rest of it, for people.
    pub text: String,
    /// The state right before it; most records of this kind change no blocks, so that it is the state at it, too.
    pub point: String,
    /// The same, escaped for a URI.
    pub uri: String,
}

impl EventRow {
    fn name_point(&mut self, volume: &Volume, lsn: Lsn) {
        self.point = format!("{}@lsn:{lsn}", volume.name());
        self.uri = escape_uri(&self.point);
    }
}

/// The newest events behind `first`, in their order, and how many more there are.
pub(super) fn events(
    volume: &Volume,
    thinned: &Thinned,
    (from, to, step): (u64, u64, u64),
    (first, last): (Lsn, Lsn),
) -> Result<(Vec<EventRow>, usize)> {
    let mut rows = Vec::new();
    let mut left_out = 0;
    let mut failed = None;
    volume.events_back(|part, row| {
        if row.lsn > last {
            return ControlFlow::Continue(());
        }
        if row.lsn <= first {
            return ControlFlow::Break(());
        }
        let periodic = row.kind == RecordKind::Marker as u8 && row.flags <= MarkerClass::Periodic as u8;
        if periodic {
            return ControlFlow::Continue(());
        }
        if rows.len() >= EVENTS_MAX {
            left_out += 1;
            return ControlFlow::Continue(());
        }
        match volume.event(part, row) {
            Ok(event) => rows.extend(event_row(volume, thinned, &event)),
            Err(error) if error.kind() == Kind::Damaged => {
                rows.push(event_line(volume, (row.lsn, row.timestamp), "damaged", error.to_string(), None))
            }
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    rows.reverse();
    // What programs said of states lies beside the history, not in it. Proofs that cannot be read have no row.
    for proof in volume.proofs().unwrap_or_default() {
        if proof.lsn > first && proof.lsn <= last {
            let text = format!("{}, says {}", if proof.good { "good" } else { "NOT good" }, proof.program);
            rows.push(event_line(volume, (proof.lsn, proof.at), "proof", text, None));
        }
    }
    rows.extend(ledger_rows(volume, thinned, (from, to))?);
    rows.extend(thinned.kept(volume, &rows, (from, to, step)));
    rows.sort_by_key(|row| row.ns);
    let too_many = rows.len().saturating_sub(EVENTS_MAX);
    rows.drain(..too_many);
    Ok((rows, left_out + too_many))
}

/// Why history is as long as it is. Of moves of the horizon for one reason, close together, the last one is shown.
fn ledger_rows(volume: &Volume, thinned: &Thinned, (from, to): (u64, u64)) -> Result<Vec<EventRow>> {
    let begin = volume.oldest().1.0.max(from);
    let mut rows: Vec<EventRow> = Vec::new();
    // The streak of moves that the last row stands for: why, from where, since when.
    let mut streak: Option<(Reason, Lsn, Timestamp)> = None;
    for entry in volume.ledger().into_iter().filter(|entry| (begin..=to).contains(&entry.at.0)) {
        let (kind, text) = match &entry.fact {
            Fact::Horizon { from, to, reason } => {
                let goes_on = streak.filter(|(before, _, since)| {
                    before == reason && entry.at.0.saturating_sub(since.0) < MOVES_TOGETHER_NS
                });
                let (_, first, _) = *streak.insert(goes_on.unwrap_or((*reason, from.0, entry.at)));
                if goes_on.is_some() {
                    rows.pop();
                }
                let why = match reason {
                    Reason::Policy => "its time was over",
                    Reason::Cap => "the journal was full",
                };
                ("horizon", format!("lsn:{first} to lsn:{}, {}: {why}", to.0, format_utc(to.1)))
            }
            Fact::Thinned { from, to, kept, bytes_before, bytes_after, reason } => {
                let why = match reason {
                    Reason::Policy => "its every-write time was over",
                    Reason::Cap => "the journal was full",
                };
                let sizes = format!("{} became {}", size(*bytes_before), size(*bytes_after));
                ("thinned", format!("lsn:{} to lsn:{}, {kept} states kept, {sizes}: {why}", from.0, to.0))
            }
            Fact::Policy(policy) => ("retention", policy.clone()),
            Fact::LetGo { name, lsn, .. } => ("unmarked", format!("{name}, lsn:{lsn}")),
        };
        if kind != "horizon" {
            streak = None;
        }
        // The state at it: what was newest then.
        let lsn = thinned.viewable(volume.newest_known(entry.at)?);
        rows.push(event_line(volume, (lsn, entry.at), kind, text, None));
    }
    Ok(rows)
}

fn event_row(volume: &Volume, thinned: &Thinned, event: &Event) -> Option<EventRow> {
    let (kind, text, name) = match &event.what {
        EventKind::PeriodicMarker => return None,
        EventKind::Marker(marker) => {
            let class = if marker.class == MarkerClass::Application { "application" } else { "manual" };
            let mut text = format!("{} ({class}", marker.name);
            if marker.group != 0 {
                text.push_str(", of a group");
            }
            text.push(')');
            if !marker.note.is_empty() {
                text.push_str(&format!(" {}", marker.note));
            }
            for tag in &marker.tags {
                text.push_str(&format!(" #{tag}"));
            }
            let newest =
                volume.marker(&marker.name).ok().flatten().is_some_and(|newest| newest.lsn == event.lsn);
            ("marker", text, newest.then(|| marker.name.clone()))
        }
        EventKind::ClockStep { expected, wall } => {
            let step = (i128::from(wall.0) - i128::from(expected.0)) as f64 / 1e9;
            ("clock-step", format!("the wall clock stepped by {step:+.3} s, to {}", format_utc(*wall)), None)
        }
        EventKind::SessionOpen { session, peer } => {
            ("attached", format!("session {}: {peer}", session.0), None)
        }
        EventKind::SessionClose { session } => ("left", format!("session {}", session.0), None),
        EventKind::Turn(turn) => match whole_at(volume, event.lsn) {
            Some(gap) => {
                (WHOLE, format!("the state of {}, with which this site took over", format_utc(gap.at)), None)
            }
            None => (turn.kind().word(), turn_text(turn), None),
        },
        EventKind::Epoch(begun) => {
            let mut text = format!("epoch {}, to {}", begun.epoch.number.0, begun.asked);
            if let Some(ahead) = &begun.ahead {
                text.push_str(&format!(
                    ": the state of {} (lsn:{} of the other site); gap: the history between lsn:{} ({}) and it was not here when this site took over",
                    format_utc(ahead.at),
                    ahead.lsn,
                    begun.epoch.start.previous(),
                    format_utc(ahead.complete)
                ));
            }
            ("promoted", text, None)
        }
        EventKind::Other(kind) => (kind.word(), String::new(), None),
    };
    let is_named = name.is_some();
    let mut row = event_line(volume, (event.lsn, event.at), kind, text, name);
    match event.what {
        // The state that was left: from the record on it is another one.
        EventKind::Turn(_) if kind != WHOLE => row.name_point(volume, thinned.viewable(event.lsn.previous())),
        _ if !is_named => row.name_point(volume, thinned.viewable(event.lsn)),
        _ => {}
    }
    Some(row)
}

/// What is said of the record with which a newest state is whole that a site took over with.
const WHOLE: &str = "whole";

/// The gap whose end this record is, where a newest state became whole.
fn whole_at(volume: &Volume, lsn: Lsn) -> Option<Gap> {
    let course = volume.course();
    let is_its_end = |gap: &&Gap| gap.is_whole && gap.end.is_some_and(|(end, _)| end == lsn);
    course.gaps().iter().find(is_its_end).copied()
}

fn turn_text(turn: &Turn) -> String {
    match turn {
        Turn::Rollback { to, undo: true, .. } => format!("the rollback before was undone: back to lsn:{to}"),
        Turn::Rollback { to, asked, .. } => format!("rolled back to {asked} (lsn:{to})"),
        Turn::Resize { size_bytes } => format!("grew to {}", size(*size_bytes)),
        // Its record is shown as the beginning of an epoch.
        Turn::Ahead { lsn, .. } => format!("goes on from lsn:{lsn} of another site"),
    }
}

pub(super) fn event_line(
    volume: &Volume,
    (lsn, at): (Lsn, Timestamp),
    kind: &str,
    text: String,
    name: Option<String>,
) -> EventRow {
    let point = name.unwrap_or_else(|| format!("lsn:{lsn}"));
    let point = format!("{}@{point}", volume.name());
    EventRow {
        lsn: lsn.0,
        ns: at.0,
        utc: format_utc(at),
        kind: kind.to_owned(),
        text,
        uri: escape_uri(&point),
        point,
    }
}
