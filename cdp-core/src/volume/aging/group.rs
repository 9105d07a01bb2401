//! Which neighbouring segments or folds become one fold next: a pure function of what they are.

use crate::ids::*;
use crate::limits::{FOLD_BLOCKS_MAX, FOLD_LEVEL_MAX, FOLD_POINTS_MAX, THIN_FOLDS, THIN_SEGMENTS_MAX};

/// Fewer segments than are thinned at once wait until they are older than the window by this part of it.
const WAIT_PART: u64 = 16;
/// A fold is made anew when of its states this part is not wanted any more.
const EXPIRED_PART: usize = 4;

/// Neighbours, by their places in the list, and the level of the fold that they become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::volume) struct Group {
    pub(in crate::volume) from: usize,
    pub(in crate::volume) to: usize,
    pub(in crate::volume) level: u8,
}

/// What the choice needs to know of a segment or fold.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Candidate {
    /// Its first and its last record.
    pub(in crate::volume) lsns: (Lsn, Lsn),
    /// When the last one was.
    pub(in crate::volume) end: Timestamp,
    /// Of a fold its level.
    pub(in crate::volume) level: Option<u8>,
    /// Of a fold its payload, in blocks.
    pub(in crate::volume) blocks: u64,
    /// States that are wanted in it.
    pub(in crate::volume) wanted: usize,
    /// States that a fold keeps besides, and that nobody wants any more.
    pub(in crate::volume) expired: usize,
}

/// The oldest segments of `parts` that can be thinned: all of them may be as far as time goes. `hurry`: as few as there
/// are.
pub(in crate::volume) fn group(
    parts: &[Candidate],
    window: Timestamp,
    every_write_ns: u64,
    hurry: bool,
) -> Option<Group> {
    let wait = Timestamp(window.0.saturating_sub(every_write_ns / WAIT_PART));
    let fits = |from: usize, to: usize| {
        let wanted: usize = parts[from..to].iter().map(|part| part.wanted).sum();
        let blocks: u64 = parts[from..to].iter().map(|part| part.blocks).sum();
        let records = parts[to - 1].lsns.1.0.saturating_sub(parts[from].lsns.0.0);
        // One more for the end, which comes for nothing.
        (wanted as u64) < FOLD_POINTS_MAX && blocks <= FOLD_BLOCKS_MAX && records < u64::from(u32::MAX)
    };
    // What is whole comes first, but where room is wanted: joining folds costs nobody a state.
    match hurry {
        true => fold_group(parts, hurry, &fits).or_else(|| whole_group(parts, wait, hurry, &fits)),
        false => whole_group(parts, wait, hurry, &fits).or_else(|| fold_group(parts, hurry, &fits)),
    }
}

type Fits<'a> = dyn Fn(usize, usize) -> bool + 'a;

fn whole_group(parts: &[Candidate], wait: Timestamp, hurry: bool, fits: &Fits<'_>) -> Option<Group> {
    let mut from = 0;
    while from < parts.len() {
        if parts[from].level.is_some() || !fits(from, from + 1) {
            from += 1;
            continue;
        }
        let mut to = from + 1;
        while to < parts.len()
            && to - from < THIN_SEGMENTS_MAX
            && parts[to].level.is_none()
            && fits(from, to + 1)
        {
            to += 1;
        }
        let is_due = hurry || to - from == THIN_SEGMENTS_MAX || parts[from].end < wait;
        let has_records = parts[from].lsns.0 <= parts[to - 1].lsns.1;
        if is_due && has_records {
            return Some(Group { from, to, level: 0 });
        }
        from = to;
    }
    None
}

fn fold_group(parts: &[Candidate], hurry: bool, fits: &Fits<'_>) -> Option<Group> {
    // A fold that keeps much for nobody.
    let expired = |part: &Candidate| {
        part.level.is_some()
            && part.expired > 0
            && (hurry || part.expired * EXPIRED_PART >= part.expired + part.wanted)
    };
    if let Some(from) = parts.iter().position(expired) {
        return Some(Group { from, to: from + 1, level: parts[from].level.unwrap_or(0) });
    }
    // Neighbouring folds of one level become one of the next; where room is wanted, already two of them.
    let count = if hurry { 2 } else { THIN_FOLDS };
    let last = parts.len().checked_sub(count)?;
    for level in 0..=FOLD_LEVEL_MAX {
        let is_streak = |from: usize| {
            parts[from..from + count].iter().all(|part| part.level == Some(level)) && fits(from, from + count)
        };
        if let Some(from) = (0..=last).find(|from| is_streak(*from)) {
            return Some(Group { from, to: from + count, level: (level + 1).min(FOLD_LEVEL_MAX) });
        }
    }
    None
}
