//! What happened when: intervals with their write rates, events, and single records.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use cdp_core::device::{Content, Device};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::format::ledger::{Fact, Reason};
use cdp_core::format::marker::MarkerClass;
use cdp_core::format::record::{RecordHeader, RecordKind};
use cdp_core::format::turn::Turn;
use cdp_core::history::point::{Timeline as _, Zone, escape_uri, format_utc, split_export};
use cdp_core::ids::{BLOCK_BYTES, Lsn, SessionId, Timestamp};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::timeline::EventKind;
use serde::{Deserialize, Serialize};

mod summaries;
mod thinned;

use super::{Progress, Watch};
use super::{forecast, points};
use crate::units::size;
use thinned::{Around, Thinned};

/// Intervals of a timeline where nobody says how long they are.
const INTERVALS: u64 = 40;
/// The most intervals, whatever was asked for.
const INTERVALS_MAX: u64 = 400;
/// Intervals on each side of an instant that is zoomed to.
const AROUND_INTERVALS: u64 = 20;
/// The most events that are shown, the newest; and the most records.
const EVENTS_MAX: usize = 400;
/// Moves of the horizon within such a time, in nanoseconds, are shown as one.
const MOVES_TOGETHER_NS: u64 = 60_000_000_000;
const RECORDS_MAX: usize = 1000;
/// Records shown on each side of an instant, and where nothing else is said.
const RECORDS: usize = 20;
/// So many records are read one by one; of more, the segments' sums are shown.
const RECORDS_READ_MAX: u64 = 200_000;
/// Blocks in one piece of the map of written blocks.
const PIECE_BLOCKS: u64 = 4096 * 8;
/// Stretches asked for at a time, to see what was there before.
const STRETCHES_MAX: usize = 64;

/// Lengths of intervals that people like, in nanoseconds.
const STEPS: [u64; 22] = {
    const S: u64 = 1_000_000_000;
    [
        S / 1000,
        S / 100,
        S / 10,
        S / 5,
        S / 2,
        S,
        2 * S,
        5 * S,
        10 * S,
        30 * S,
        60 * S,
        120 * S,
        300 * S,
        600 * S,
        1800 * S,
        3600 * S,
        7200 * S,
        21_600 * S,
        43_200 * S,
        86_400 * S,
        7 * 86_400 * S,
        28 * 86_400 * S,
    ]
};

/// What to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// A volume or a group; with a point, what is around it.
    pub target: String,
    /// The same point, on its own.
    pub around: Option<String>,
    /// Length of an interval, in nanoseconds.
    pub step_ns: Option<u64>,
    /// How many records on each side of the instant.
    pub count: Option<usize>,
}

/// A volume's timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The volume.
    pub volume: String,
    /// What `around` resolved to.
    pub around: Option<points::PointInfo>,
    /// Why there is no state at that instant, where history was thinned: what is left around it is shown all the same.
    #[serde(default)]
    pub around_gone: Option<String>,
    /// Length of an interval, in nanoseconds.
    pub step_ns: u64,
    /// Older events that are not shown for want of room.
    pub events_left_out: usize,
    /// There were too many records to read each: what the intervals say was counted by segment and shared out by
    /// number of records, and overwritten bytes count as new.
    #[serde(default)]
    pub summarised: bool,
    /// Intervals and events, in their order.
    pub rows: Vec<Row>,
    /// What comes within a day: when the journal reaches its cap, and what happens then.
    #[serde(default)]
    pub coming: Option<String>,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// What was written in an interval.
    Interval(Interval),
    /// Nothing was written for several intervals.
    Quiet {
        /// From when.
        from_ns: u64,
        /// RFC 3339 in UTC.
        utc: String,
        /// Until when.
        to_ns: u64,
    },
    /// History was thinned: nobody knows any more what was written when. The states that are left have rows of their own.
    Thinned {
        /// From when.
        from_ns: u64,
        /// RFC 3339 in UTC.
        utc: String,
        /// Until when.
        to_ns: u64,
    },
    /// A marker with a name, a session, a step of the clock; what is left of thinned history.
    Event(EventRow),
}

/// What was written in an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// When it begins.
    pub from_ns: u64,
    /// RFC 3339 in UTC.
    pub utc: String,
    /// When it ends.
    pub to_ns: u64,
    /// Records that changed blocks.
    pub records: u64,
    /// Bytes written where nothing was.
    pub new_bytes: u64,
    /// Bytes written over others.
    pub overwritten_bytes: u64,
    /// Bytes trimmed or zeroed.
    pub trimmed_bytes: u64,
    /// The state right before it; where that was thinned away, the newest one before it that is left.
    pub point_before: String,
    /// The same, escaped for a URI.
    pub uri_before: String,
}

impl Interval {
    /// The `number`-th one, with nothing in it.
    fn new(volume: &Volume, before: Lsn, (from, to, step): (u64, u64, u64), number: u64) -> Interval {
        let point = format!("{}@lsn:{before}", volume.name());
        let from_ns = from + number * step;
        Interval {
            from_ns,
            utc: format_utc(Timestamp(from_ns)),
            to_ns: (from_ns + step).min(to),
            uri_before: escape_uri(&point),
            point_before: point,
            ..Interval::default()
        }
    }
}

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

/// Records of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// The volume.
    pub volume: String,
    /// What `around` resolved to.
    pub around: Option<points::PointInfo>,
    /// See [`Timeline::around_gone`].
    #[serde(default)]
    pub around_gone: Option<String>,
    /// First and last record of stretches that were thinned: of these there are no rows.
    #[serde(default)]
    pub thinned: Vec<(u64, u64)>,
    /// In the order of their LSNs.
    pub records: Vec<RecordRow>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRow {
    /// Its LSN.
    pub lsn: u64,
    /// When, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
    /// What it is.
    pub kind: String,
    /// First byte that it changed.
    pub offset: Option<u64>,
    /// How many.
    pub len: Option<u64>,
    /// Which session asked for it; 0 is the store itself.
    pub session: u32,
    /// Who that is.
    pub peer: Option<String>,
    /// The state after it.
    pub point: String,
    /// The same, escaped for a URI.
    pub uri: String,
}

/// The timelines of a volume, or of all members of a group.
pub fn timelines(store: &Store, log: &Log, zone: &Zone, watch: &mut Watch<'_>) -> Result<Vec<Timeline>> {
    chosen(store, log, zone)?
        .into_iter()
        .map(|(volume, around)| timeline(store, &volume, around, log.step_ns, watch))
        .collect()
}

type Chosen = (Arc<Volume>, Option<Around>);

fn chosen(store: &Store, log: &Log, zone: &Zone) -> Result<Vec<Chosen>> {
    let (name, point) = split_export(&log.target);
    match log.around.as_deref().or(point) {
        Some(point) => match points::states(store, &format!("{name}@{point}"), zone) {
            Ok(targets) => {
                let around = |target: points::Target| Ok((target.volume.clone(), Some(Around::of(&target)?)));
                targets.into_iter().map(around).collect()
            }
            // A timeline can show what is around an instant that has no state any more.
            Err(error) if error.kind() == Kind::OutOfRange => {
                thinned::around(store, name, point, zone)?.ok_or(error)
            }
            Err(error) => Err(error),
        },
        None => Ok(store.members(name)?.into_iter().map(|volume| (volume, None)).collect()),
    }
}

fn timeline(
    store: &Store,
    volume: &Arc<Volume>,
    around: Option<Around>,
    step_ns: Option<u64>,
    watch: &mut Watch<'_>,
) -> Result<Timeline> {
    if step_ns.is_some_and(|step| step < 1_000) {
        return Err(Error::new(Kind::Invalid, "a step is at least 1 µs; `--records` shows single records"));
    }
    let begin = volume.horizon().1.0;
    let now = store.clock().now().0;
    let (from, to, step) = match &around {
        Some(around) => {
            let at = around.at.0;
            let step = step_ns.unwrap_or_else(|| nice((now - begin) / INTERVALS / 20));
            let half = step.saturating_mul(AROUND_INTERVALS);
            let from = at.saturating_sub(half) / step * step;
            (from.max(begin / step * step), at.saturating_add(half).min(now), step)
        }
        None => {
            let step = step_ns.unwrap_or_else(|| nice((now - begin) / INTERVALS));
            let least = ((now - begin) / INTERVALS_MAX).max(step);
            let step = if least > step { nice(least) } else { step };
            (begin / step * step, now, step)
        }
    };
    let first = if from <= begin { volume.horizon().0 } else { volume.newest_known(Timestamp(from - 1))? };
    let last = volume.newest_known(Timestamp(to))?;
    let summarised = last.0.saturating_sub(first.0) > RECORDS_READ_MAX;
    let thinned = Thinned::of(volume);
    let intervals = match summarised {
        true => summaries::intervals(volume, &thinned, (from, to, step), (first, last))?,
        false => intervals(volume, &thinned, (from, to, step), (first, last), watch)?,
    };
    let (events, events_left_out) = events(volume, &thinned, (from, to, step), (first, last))?;
    Ok(Timeline {
        volume: volume.name().to_owned(),
        around_gone: around.as_ref().and_then(|around| around.gone.clone()),
        around: around.and_then(|around| around.info),
        step_ns: step,
        events_left_out,
        summarised,
        rows: thinned.tell(merge(intervals, events, from, to, step), from, step),
        coming: forecast::of(volume, store.clock().now())?.soon(),
    })
}

/// The shortest of the usual lengths that is not below `ns`.
fn nice(ns: u64) -> u64 {
    STEPS.iter().copied().find(|step| *step >= ns).unwrap_or(ns.max(1))
}

/// The intervals in which something was written, by their numbers.
fn intervals(
    volume: &Arc<Volume>,
    thinned: &Thinned,
    (from, to, step): (u64, u64, u64),
    (first, last): (Lsn, Lsn),
    watch: &mut Watch<'_>,
) -> Result<BTreeMap<u64, Interval>> {
    let mut intervals: BTreeMap<u64, Interval> = BTreeMap::new();
    let mut written = Written::new(volume, first);
    let mut failed = None;
    let total = (last.0 - first.0).max(1);
    volume.records(first.next(), last, &mut |header| {
        if failed.is_some() || !header.kind.changes_blocks() {
            return;
        }
        let number = header.timestamp.0.saturating_sub(from) / step;
        let interval = intervals.entry(number).or_insert_with(|| {
            let before = thinned.viewable(header.lsn.previous());
            Interval::new(volume, before, (from, to, step), number)
        });
        interval.records += 1;
        let (start, end) = (header.lba.0, header.lba.0 + header.blocks);
        let bytes = header.blocks * BLOCK_BYTES - u64::from(header.head_skip) - u64::from(header.tail_skip);
        let outcome = match header.kind {
            RecordKind::Write => written.write(start, end).map(|over| {
                let over = (over * BLOCK_BYTES).min(bytes);
                interval.overwritten_bytes += over;
                interval.new_bytes += bytes - over;
            }),
            _ => written.trim(start, end).map(|()| interval.trimmed_bytes += bytes),
        };
        let told = outcome.and_then(|()| match header.lsn.0 % 100_000 {
            0 => watch(Progress {
                what: format!("reading the history of {}", volume.name()),
                done: header.lsn.0 - first.0,
                total,
            }),
            _ => Ok(()),
        });
        failed = told.err();
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(intervals),
    }
}

/// Which blocks hold data: as far as it was seen in records, from a map; else asked of the state before.
struct Written {
    before: Option<View>,
    // Bits by block, in pieces: looked at, and data.
    pieces: BTreeMap<u64, Box<[(u64, u64)]>>,
}

impl Written {
    fn new(volume: &Arc<Volume>, first: Lsn) -> Written {
        let empty = first == Lsn::ZERO && volume.is_blank_before();
        Written { before: (!empty).then(|| View::new(volume.clone(), first)), pieces: BTreeMap::new() }
    }

    fn piece(&mut self, number: u64) -> &mut [(u64, u64)] {
        let words = (PIECE_BLOCKS / 64) as usize;
        self.pieces.entry(number).or_insert_with(|| vec![(0, 0); words].into_boxed_slice())
    }

    /// Marks blocks as data; gives how many were before.
    fn write(&mut self, start: u64, end: u64) -> Result<u64> {
        let mut over = 0;
        for block in start..end {
            let (seen, data) = self.bits(block);
            over += match seen {
                true => u64::from(data),
                false => u64::from(self.was_data(block)?),
            };
            self.set(block, true);
        }
        Ok(over)
    }

    /// Marks blocks as empty. However long the range is, only what was looked at is visited; the rest is empty
    /// or will be asked about, and then counts as it was before: a small error in favour of a quick answer.
    fn trim(&mut self, start: u64, end: u64) -> Result<()> {
        let pieces: Vec<u64> =
            self.pieces.range(start / PIECE_BLOCKS..=end / PIECE_BLOCKS).map(|(number, _)| *number).collect();
        for number in pieces {
            let first = (number * PIECE_BLOCKS).max(start);
            for block in first..((number + 1) * PIECE_BLOCKS).min(end) {
                self.set(block, false);
            }
        }
        Ok(())
    }

    fn bits(&mut self, block: u64) -> (bool, bool) {
        let (seen, data) = self.piece(block / PIECE_BLOCKS)[(block % PIECE_BLOCKS / 64) as usize];
        (seen >> (block % 64) & 1 == 1, data >> (block % 64) & 1 == 1)
    }

    fn set(&mut self, block: u64, is_data: bool) {
        let word = &mut self.piece(block / PIECE_BLOCKS)[(block % PIECE_BLOCKS / 64) as usize];
        let bit = 1 << (block % 64);
        word.0 |= bit;
        if is_data { word.1 |= bit } else { word.1 &= !bit }
    }

    fn was_data(&self, block: u64) -> Result<bool> {
        let Some(view) = &self.before else { return Ok(false) };
        let offset = block * BLOCK_BYTES;
        if offset >= view.size_bytes() {
            // It has grown since.
            return Ok(false);
        }
        let len = BLOCK_BYTES.min(view.size_bytes() - offset);
        let stretches = view.extents(offset, len, STRETCHES_MAX)?;
        Ok(stretches.iter().any(|stretch| stretch.content == Content::Data))
    }
}

fn events(
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

fn event_row(
    volume: &Volume,
    thinned: &Thinned,
    event: &cdp_core::volume::timeline::Event,
) -> Option<EventRow> {
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
        EventKind::Turn(turn) => (turn.kind().word(), turn_text(turn), None),
        EventKind::Epoch(begun) => {
            ("promoted", format!("epoch {}, to {}", begun.epoch.number.0, begun.asked), None)
        }
        EventKind::Other(kind) => (kind.word(), String::new(), None),
    };
    let is_named = name.is_some();
    let mut row = event_line(volume, (event.lsn, event.at), kind, text, name);
    match event.what {
        // The state that was left: from the record on it is another one.
        EventKind::Turn(_) => row.name_point(volume, thinned.viewable(event.lsn.previous())),
        _ if !is_named => row.name_point(volume, thinned.viewable(event.lsn)),
        _ => {}
    }
    Some(row)
}

fn turn_text(turn: &Turn) -> String {
    match turn {
        Turn::Rollback { to, undo: true, .. } => format!("the rollback before was undone: back to lsn:{to}"),
        Turn::Rollback { to, asked, .. } => format!("rolled back to {asked} (lsn:{to})"),
        Turn::Resize { size_bytes } => format!("grew to {}", crate::units::size(*size_bytes)),
    }
}

fn event_line(
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

/// Intervals and events in one order; stretches where nothing happened become one row.
fn merge(
    intervals: BTreeMap<u64, Interval>,
    events: Vec<EventRow>,
    from: u64,
    to: u64,
    step: u64,
) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut events = events.into_iter().peekable();
    let mut quiet_since = from;
    let quiet = |rows: &mut Vec<Row>, since: u64, until: u64| {
        if until > since {
            rows.push(Row::Quiet { from_ns: since, utc: format_utc(Timestamp(since)), to_ns: until });
        }
    };
    let numbers: Vec<u64> = intervals.keys().copied().collect();
    let mut intervals = intervals;
    for number in numbers {
        let Some(interval) = intervals.remove(&number) else { continue };
        while let Some(event) = events.next_if(|event| event.ns < interval.from_ns) {
            let begin = from + event.ns.saturating_sub(from) / step * step;
            quiet(&mut rows, quiet_since, begin);
            quiet_since = quiet_since.max(begin + step);
            rows.push(Row::Event(event));
        }
        quiet(&mut rows, quiet_since, interval.from_ns);
        let end = interval.from_ns + step;
        quiet_since = quiet_since.max(end);
        rows.push(Row::Interval(interval));
        while let Some(event) = events.next_if(|event| event.ns < end) {
            rows.push(Row::Event(event));
        }
    }
    for event in events {
        let begin = from + event.ns.saturating_sub(from) / step * step;
        quiet(&mut rows, quiet_since, begin);
        // Something did happen in that interval.
        quiet_since = quiet_since.max(begin + step);
        rows.push(Row::Event(event));
    }
    quiet(&mut rows, quiet_since, to);
    rows
}

/// Single records: around an instant, or the newest ones.
pub fn records(store: &Store, log: &Log, zone: &Zone) -> Result<Vec<Records>> {
    let count = log.count.unwrap_or(RECORDS).min(RECORDS_MAX / 2) as u64;
    let mut answers = Vec::new();
    for (volume, around) in chosen(store, log, zone)? {
        let tip = volume.tip_lsn();
        let (from, to) = match &around {
            Some(around) => {
                let at = around.lsn.0;
                (Lsn(at.saturating_sub(count) + 1), Lsn((at + count).min(tip.0)))
            }
            None => (Lsn(tip.0.saturating_sub(2 * count) + 1), tip),
        };
        let peers = peers(&volume)?;
        let mut rows = Vec::new();
        volume.records(from, to, &mut |header| rows.push(record_row(&volume, header, &peers)))?;
        answers.push(Records {
            volume: volume.name().to_owned(),
            around_gone: around.as_ref().and_then(|around| around.gone.clone()),
            around: around.and_then(|around| around.info),
            thinned: Thinned::of(&volume).between(from, to),
            records: rows,
        });
    }
    Ok(answers)
}

/// Sessions by number, newest first: numbers begin anew at each opening of the volume.
type Peers = HashMap<SessionId, Vec<(Lsn, String)>>;

fn peer_of(header: &RecordHeader, peers: &Peers) -> Option<String> {
    let sessions = peers.get(&header.session)?;
    sessions.iter().find(|(opened, _)| *opened <= header.lsn).map(|(_, peer)| peer.clone())
}

fn record_row(volume: &Volume, header: &RecordHeader, peers: &Peers) -> RecordRow {
    let changes = header.kind.changes_blocks();
    let point = format!("{}@lsn:{}", volume.name(), header.lsn);
    let skipped = u64::from(header.head_skip) + u64::from(header.tail_skip);
    RecordRow {
        lsn: header.lsn.0,
        utc: format_utc(header.timestamp),
        ns: header.timestamp.0,
        kind: header.kind.word().to_owned(),
        offset: changes.then(|| header.lba.0 * BLOCK_BYTES + u64::from(header.head_skip)),
        len: changes.then(|| header.blocks * BLOCK_BYTES - skipped),
        session: header.session.0,
        peer: peer_of(header, peers),
        uri: escape_uri(&point),
        point,
    }
}

/// Who the sessions are.
fn peers(volume: &Volume) -> Result<Peers> {
    let mut peers = Peers::new();
    let mut looked = 0;
    volume.events_back(|part, row| {
        if row.kind == RecordKind::SessionOpen as u8 {
            looked += 1;
            if let Ok(event) = volume.event(part, row)
                && let EventKind::SessionOpen { session, peer } = event.what
            {
                peers.entry(session).or_default().push((row.lsn, peer));
            }
        }
        if looked < EVENTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(peers)
}
