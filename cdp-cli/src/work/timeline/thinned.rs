//! What a timeline shows where history was thinned: that it was, and the states that are left; never that nothing was
//! written.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdp_core::error::Result;
use cdp_core::history::course::Gap;
use cdp_core::history::point::{Point, Timeline as _, Zone, format_utc, parse};
use cdp_core::ids::{Lsn, Timestamp};
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use cdp_core::volume::retain::ThinnedStretch;

use super::events::event_line;
use super::{Chosen, EventRow, Row};
use crate::report::Report;
use crate::work::points::{self, PointInfo, Target};

/// Where a timeline zooms to.
pub(super) struct Around {
    /// The instant.
    pub(super) at: Timestamp,
    /// The state at it, or the newest one before it that is left.
    pub(super) lsn: Lsn,
    /// The state, if there is one.
    pub(super) info: Option<PointInfo>,
    /// Why not.
    pub(super) gone: Option<String>,
}

impl Around {
    /// A state that can be viewed.
    pub(super) fn of(target: &Target) -> Result<Around> {
        let (at, lsn) = (target.resolved.at, target.resolved.lsn);
        Ok(Around { at, lsn, info: Some(target.info()?), gone: None })
    }
}

/// The instant that a point means although its state was thinned away, on each of the volumes of this name. `None` if that is
/// not why it means no state.
pub(super) fn around(store: &Store, name: &str, point: &str, zone: &Zone) -> Result<Option<Vec<Chosen>>> {
    let now = points::now(store, zone);
    let asked = parse(point, &now)?.point;
    let volumes = store.members(name)?;
    let mut chosen = Vec::with_capacity(volumes.len());
    let mut is_thinned = false;
    for volume in &volumes {
        let thinned = Thinned::of(volume);
        let at = match asked {
            Point::Instant { at, .. } => Some(at),
            Point::Ago(elapsed_ns) => Some(volume.elapsed_ago(elapsed_ns)?),
            Point::Lsn(lsn) if volumes.len() == 1 => thinned.instant_near(lsn),
            _ => None,
        };
        let Some(at) = at.filter(|at| *at >= volume.oldest().1 && *at <= now.wall) else { return Ok(None) };
        is_thinned |= thinned.is_within(at);
        chosen.push((volume.clone(), Some(around_instant(store, volume, &thinned, at, point, zone)?)));
    }
    Ok(is_thinned.then_some(chosen))
}

fn around_instant(
    store: &Store,
    volume: &Arc<Volume>,
    thinned: &Thinned,
    at: Timestamp,
    point: &str,
    zone: &Zone,
) -> Result<Around> {
    match points::of_volume(store, volume.clone(), point, zone) {
        Ok(target) => Around::of(&target),
        Err(error) => {
            let Report { message, hint, .. } = Report::of(&error);
            let gone = hint.map_or(message.clone(), |hint| format!("{message}; {hint}"));
            let lsn = thinned.viewable(volume.newest_known(at)?);
            Ok(Around { at, lsn, info: None, gone: Some(gone) })
        }
    }
}

/// Where a volume's history was thinned.
pub(super) struct Thinned {
    stretches: Vec<ThinnedStretch>,
    gaps: Vec<Gap>,
    horizon: Lsn,
}

impl Thinned {
    /// As it is now.
    pub(super) fn of(volume: &Volume) -> Thinned {
        let (stretches, gaps) = (volume.thinned(), volume.course().gaps().to_vec());
        Thinned { stretches, gaps, horizon: volume.oldest().0 }
    }

    fn stretch_of(&self, lsn: Lsn) -> Option<&ThinnedStretch> {
        self.stretches.iter().find(|stretch| stretch.lsns.0 <= lsn && lsn <= stretch.lsns.1)
    }

    fn is_within(&self, at: Timestamp) -> bool {
        self.stretches.iter().any(|stretch| stretch.timestamps.0 < at && at <= stretch.timestamps.1)
    }

    /// About when a record was whose instant is not known any more; `None` of others.
    fn instant_near(&self, lsn: Lsn) -> Option<Timestamp> {
        let stretch = self.stretch_of(lsn)?;
        let kept = stretch.kept.iter().rev().find(|(kept, _)| *kept <= lsn);
        Some(kept.map_or(Timestamp(stretch.timestamps.0.0 + 1), |(_, at)| *at))
    }

    /// The newest state up to this record that can be viewed.
    pub(super) fn viewable(&self, lsn: Lsn) -> Lsn {
        let mut lsn = self.gaps.iter().rfind(|gap| gap.hides(lsn)).map_or(lsn, |gap| gap.behind);
        while let Some(stretch) = self.stretch_of(lsn) {
            match stretch.kept.iter().rev().find(|(kept, _)| *kept <= lsn) {
                Some((kept, _)) => return (*kept).max(self.horizon),
                None => lsn = stretch.lsns.0.previous(),
            }
        }
        lsn.max(self.horizon)
    }

    /// First and last records of the stretches between two records.
    pub(super) fn between(&self, from: Lsn, to: Lsn) -> Vec<(u64, u64)> {
        let inside = self.stretches.iter().filter(|stretch| stretch.lsns.0 <= to && stretch.lsns.1 >= from);
        inside.map(|stretch| (stretch.lsns.0.max(from).0, stretch.lsns.1.min(to).0)).collect()
    }

    /// A row for the states that are left in each interval, the newest of them named. Those that `rows` show are left out.
    pub(super) fn kept(
        &self,
        volume: &Volume,
        rows: &[EventRow],
        (from, to, step): (u64, u64, u64),
    ) -> Vec<EventRow> {
        let shown: std::collections::BTreeSet<u64> =
            rows.iter().filter(|row| row.kind == "marker").map(|row| row.lsn).collect();
        let mut intervals: BTreeMap<u64, (u64, Lsn, Timestamp)> = BTreeMap::new();
        for (lsn, at) in self.stretches.iter().flat_map(|stretch| stretch.kept.iter().copied()) {
            if lsn >= self.horizon && (from..=to).contains(&at.0) && !shown.contains(&lsn.0) {
                let interval = intervals.entry((at.0 - from) / step).or_insert((0, lsn, at));
                *interval = (interval.0 + 1, lsn, at);
            }
        }
        let row = |(states, lsn, at): (u64, Lsn, Timestamp)| {
            let text = match states {
                1 => "a state of thinned history".to_owned(),
                states => format!("{states} states of thinned history, the newest is this"),
            };
            event_line(volume, (lsn, at), "kept", text, None)
        };
        intervals.into_values().map(row).collect()
    }

    /// Says where it only seems that nothing was written.
    pub(super) fn tell(&self, rows: Vec<Row>, from: u64, step: u64) -> Vec<Row> {
        let mut told: Vec<Row> = Vec::with_capacity(rows.len());
        for row in rows {
            let Row::Quiet { from_ns, to_ns, .. } = row else {
                told.push(row);
                continue;
            };
            let mut at = from_ns;
            for stretch in &self.stretches {
                // Whole intervals, as everywhere here.
                let begin = stretch.timestamps.0.0.saturating_sub(from) / step * step + from;
                let end = (stretch.timestamps.1.0.saturating_sub(from) / step + 1) * step + from;
                let (begin, end) = (begin.max(at), end.min(to_ns));
                if stretch.timestamps.1.0 <= at || begin >= end {
                    continue;
                }
                push_quiet(&mut told, at, begin);
                push_thinned(&mut told, begin, end);
                at = end;
            }
            push_quiet(&mut told, at, to_ns);
        }
        told
    }
}

fn push_quiet(rows: &mut Vec<Row>, from_ns: u64, to_ns: u64) {
    if to_ns > from_ns {
        rows.push(Row::Quiet { from_ns, utc: format_utc(Timestamp(from_ns)), to_ns });
    }
}

fn push_thinned(rows: &mut Vec<Row>, from_ns: u64, end_ns: u64) {
    match rows.last_mut() {
        Some(Row::Thinned { to_ns, .. }) if *to_ns == from_ns => *to_ns = end_ns,
        _ => rows.push(Row::Thinned { from_ns, utc: format_utc(Timestamp(from_ns)), to_ns: end_ns }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thinned() -> Thinned {
        let stretch = |lsns: (u64, u64), times: (u64, u64), kept: &[(u64, u64)]| ThinnedStretch {
            lsns: (Lsn(lsns.0), Lsn(lsns.1)),
            timestamps: (Timestamp(times.0), Timestamp(times.1)),
            kept: kept.iter().map(|(lsn, at)| (Lsn(*lsn), Timestamp(*at))).collect(),
        };
        let stretches =
            vec![stretch((5, 20), (100, 320), &[(9, 150), (11, 290)]), stretch((21, 30), (320, 450), &[])];
        Thinned { stretches, gaps: Vec::new(), horizon: Lsn(2) }
    }

    // Whoever looks for the day on which a file was lost must not read that nobody wrote to the disk.
    #[test]
    fn thinned_time_is_not_quiet_time() {
        let quiet = |from: u64, to: u64| Row::Quiet { from_ns: from, utc: String::new(), to_ns: to };
        let shown: Vec<(bool, u64, u64)> = thinned()
            .tell(vec![quiet(0, 200), quiet(300, 600), quiet(700, 800)], 0, 50)
            .iter()
            .map(|row| match row {
                Row::Quiet { from_ns, to_ns, .. } => (true, *from_ns, *to_ns),
                Row::Thinned { from_ns, to_ns, .. } => (false, *from_ns, *to_ns),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected =
            [(true, 0, 100), (false, 100, 200), (false, 300, 500), (true, 500, 600), (true, 700, 800)];
        assert_eq!(shown, expected);
    }

    // A point that is offered and then refused is worse than none.
    #[test]
    fn only_states_that_are_left_are_offered() {
        let thinned = thinned();
        for (lsn, offered) in [(1, 2), (4, 4), (5, 4), (8, 4), (9, 9), (10, 9), (20, 11), (25, 11), (31, 31)]
        {
            assert_eq!(thinned.viewable(Lsn(lsn)), Lsn(offered), "lsn:{lsn}");
        }
        assert_eq!(thinned.between(Lsn(18), Lsn(40)), [(18, 20), (21, 30)]);
        assert_eq!(thinned.instant_near(Lsn(10)), Some(Timestamp(150)));
        assert_eq!(thinned.instant_near(Lsn(31)), None);
        assert!(thinned.is_within(Timestamp(450)) && !thinned.is_within(Timestamp(100)));
    }
}
