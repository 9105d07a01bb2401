//! What happened when: intervals with their write rates and events, in one order; and single records.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline as _, Zone, format_utc, split_export};
use cdp_core::ids::Timestamp;
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

mod events;
mod intervals;
mod records;
mod summaries;
mod thinned;

pub use events::EventRow;
pub use intervals::Interval;
pub use records::{RecordRow, Records, records};

use super::Watch;
use super::{forecast, points};
use thinned::{Around, Thinned};

/// Intervals of a timeline where nobody says how long they are.
const INTERVALS: u64 = 40;
/// The most intervals, whatever was asked for.
const INTERVALS_MAX: u64 = 400;
/// Intervals on each side of an instant that is zoomed to.
const AROUND_INTERVALS: u64 = 20;
/// The most events that are shown, the newest.
const EVENTS_MAX: usize = 400;
/// So many records are read one by one; of more, the segments' sums are shown.
const RECORDS_READ_MAX: u64 = 200_000;

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
        false => intervals::intervals(volume, &thinned, (from, to, step), (first, last), watch)?,
    };
    let (events, events_left_out) = events::events(volume, &thinned, (from, to, step), (first, last))?;
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
