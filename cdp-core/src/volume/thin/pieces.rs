//! The versions of a stretch of history piece by piece: read once, kept by record, and each piece looked up in itself alone.
//!
//! A stretch may have a piece for each of thousands of kept states. Who looked for each of them in the runs, where all of it stands
//! by block, would go through all of it as often as there are pieces: with ten times the history a hundred times as long.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::format::run::Entry;
use crate::ids::*;
use crate::index::{Live, Run, RunEntries, Search, Visible};
use crate::limits::{PIECE_ENTRIES_MIN, PIECE_MEMORY_PART};
use crate::reader::Reader;
use crate::volume::parts::{Part, PartIndex, PartList};

/// The entries of some neighbouring parts, as many as memory allows at once. Pieces are asked for in rising order; who begins again
/// reads again.
pub(in crate::volume) struct Pieces {
    parts: PartList,
    entries_max: usize,
    // Of the first record: LSNs of entries are less it.
    first: Lsn,
    // Those of the records from `loaded.0` to before `loaded.1`; by LSN, once nothing is left to read.
    entries: Vec<Entry>,
    loaded: Option<(u64, u64)>,
    // What is still to be read for them, the next one last.
    sources: Vec<Source>,
    // Of the piece that was asked for last.
    alone: Option<((Lsn, Lsn), Live)>,
    // A run that cannot be read: lookups know another way.
    is_given_up: bool,
}

/// A part, or parts that share a run.
struct Source {
    from: From,
    /// Its records that count: a merged run may speak of others.
    records: Visible,
}

type Ranges = Vec<(Lsn, Lsn)>;

enum From {
    Memory(Arc<Part>),
    Rows(RunEntries),
}

/// How far it is with a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::volume) struct Prepared {
    /// Entries that were read for it.
    pub(in crate::volume) rows: u64,
    /// Whether it can be asked for.
    pub(in crate::volume) is_ready: bool,
}

impl Pieces {
    /// Of these parts, with a share of a budget of so many bytes.
    pub(in crate::volume) fn of(parts: PartList, budget_bytes: usize) -> Pieces {
        // While they are read there may be twice as many.
        let entries_max = budget_bytes / PIECE_MEMORY_PART / (2 * size_of::<Entry>());
        Pieces {
            first: parts.first().map_or(Lsn(1), |part| part.segment.header.first_lsn),
            parts,
            entries_max: entries_max.max(PIECE_ENTRIES_MIN),
            entries: Vec::new(),
            loaded: None,
            sources: Vec::new(),
            alone: None,
            is_given_up: false,
        }
    }

    /// Memory that it takes, in bytes.
    pub(in crate::volume) fn memory_bytes(&self) -> usize {
        let alone = self.alone.as_ref().map_or(0, |(_, live)| live.memory_bytes());
        self.entries.capacity() * size_of::<Entry>() + alone
    }

    /// Reads some `rows_max` entries more for this piece, if it was not read before.
    pub(in crate::volume) fn prepare(&mut self, piece: (Lsn, Lsn), rows_max: u64) -> Prepared {
        let is_loaded = self.has(piece) || self.loaded.is_some_and(|loaded| loaded.0 == self.delta(piece.0));
        if self.sources.is_empty() && !is_loaded && !self.is_given_up {
            self.begin(piece.0);
        }
        let mut rows = 0;
        while rows < rows_max
            && let Some(mut source) = self.sources.pop()
        {
            match self.read(&mut source, rows_max - rows) {
                Ok((read, is_over)) => {
                    rows += read;
                    if !is_over {
                        self.sources.push(source);
                    } else if self.sources.is_empty() {
                        self.entries.sort_by_key(|entry| entry.lsn_delta);
                    }
                }
                Err(_) => self.give_up(),
            }
        }
        Prepared { rows, is_ready: self.sources.is_empty() }
    }

    /// What `search` finds of a piece that was prepared, `visible` being its records; `reader` looks up what is too much for memory.
    pub(in crate::volume) fn search(
        &mut self,
        reader: &Reader<'_>,
        piece: (Lsn, Lsn),
        search: impl Fn() -> Search,
    ) -> Result<Search> {
        if !self.has(piece) {
            return reader.search(search);
        }
        if self.alone.as_ref().is_none_or(|(of, _)| *of != piece) {
            self.alone = None;
            self.alone = Some((piece, self.index_of(piece)?));
        }
        let mut search = search();
        if let Some((_, live)) = &self.alone {
            live.resolve(&Visible::of(vec![piece]), &mut search);
        }
        search.finish();
        Ok(search)
    }

    /// Whether all entries of the piece are there.
    fn has(&self, piece: (Lsn, Lsn)) -> bool {
        self.sources.is_empty()
            && self.loaded.is_some_and(|(from, to)| from <= self.delta(piece.0) && self.delta(piece.1) < to)
    }

    fn delta(&self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(self.first.0)
    }

    /// Begins to read what records from `first` on did.
    fn begin(&mut self, first: Lsn) {
        self.entries.clear();
        self.alone = None;
        self.loaded = Some((self.delta(first), u64::MAX));
        let mut runs: Vec<(Arc<Run>, Ranges)> = Vec::new();
        for part in self.parts.iter() {
            let lsns = (part.segment.header.first_lsn, part.last_lsn());
            if lsns.1 < lsns.0 {
                continue;
            }
            let run = match (&part.index, part.repaired.get()) {
                (PartIndex::Run(run), None) => run,
                _ => {
                    let records = Visible::of(vec![lsns]);
                    self.sources.push(Source { from: From::Memory(part.clone()), records });
                    continue;
                }
            };
            match runs.iter_mut().find(|(other, _)| Arc::ptr_eq(other, run)) {
                Some((_, records)) => records.push(lsns),
                None => runs.push((run.clone(), vec![lsns])),
            }
        }
        for (run, records) in runs {
            if run.is_bad() {
                return self.give_up();
            }
            let from = From::Rows(RunEntries::of(run));
            self.sources.push(Source { from, records: Visible::of(records) });
        }
        self.sources.reverse();
    }

    fn give_up(&mut self) {
        self.sources.clear();
        self.entries = Vec::new();
        self.loaded = None;
        self.is_given_up = true;
    }

    /// Reads some `rows_max` entries of a source: how many, and whether there are no more.
    fn read(&mut self, source: &mut Source, rows_max: u64) -> Result<(u64, bool)> {
        let mut count = 0;
        match &mut source.from {
            From::Rows(rows) => {
                while count < rows_max {
                    let Some((entry, lsn)) = rows.next_entry()? else { return Ok((count, true)) };
                    count += 1;
                    if source.records.contains(lsn) {
                        self.take(lsn, entry);
                    }
                }
                Ok((count, false))
            }
            From::Memory(part) => {
                let mut take = |live: &Live| {
                    for entry in live.iter() {
                        count += 1;
                        self.take(Lsn(live.first_lsn().0 + u64::from(entry.lsn_delta)), entry);
                    }
                };
                match (&part.index, part.repaired.get()) {
                    (PartIndex::Live(live), _) => {
                        take(&live.read().expect("no panics under this lock").live);
                    }
                    (PartIndex::Run(_), Some(repaired)) => take(&repaired.live),
                    (PartIndex::Run(_), None) => unreachable!("its run is read"),
                }
                Ok((count, true))
            }
        }
    }

    fn take(&mut self, lsn: Lsn, entry: Entry) {
        let Some((from, to)) = self.loaded else { return };
        let delta = self.delta(lsn);
        // A fold has no more records than such a number tells apart.
        let Ok(lsn_delta) = u32::try_from(delta) else { return };
        if delta < from || to <= delta {
            return;
        }
        self.entries.push(Entry { lsn_delta, ..entry });
        if self.entries.len() == 2 * self.entries_max {
            // The oldest stay, whole records of them.
            let (_, bound, _) =
                self.entries.select_nth_unstable_by_key(self.entries_max, |entry| entry.lsn_delta);
            let bound = bound.lsn_delta;
            self.entries.retain(|entry| entry.lsn_delta < bound);
            self.loaded = Some((from, u64::from(bound)));
        }
    }

    /// An index of one piece.
    fn index_of(&self, piece: (Lsn, Lsn)) -> Result<Live> {
        let (first, last) = (self.delta(piece.0), self.delta(piece.1));
        let from = self.entries.partition_point(|entry| u64::from(entry.lsn_delta) < first);
        let mut alone = Live::sparse(piece.0, piece.1);
        for entry in self.entries[from..].iter().take_while(|entry| u64::from(entry.lsn_delta) <= last) {
            let lsn_delta = (u64::from(entry.lsn_delta) - first) as u32;
            if !alone.insert_entry(&Entry { lsn_delta, ..*entry }) {
                let what = format!("the index has entries of nothing between {} and {}", piece.0, piece.1);
                return Err(Error::new(Kind::Damaged, what));
            }
        }
        Ok(alone)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::{Change, Device};
    use crate::index::{Found, IndexOptions};
    use crate::io::sim::{Chance, SimClock, SimDisk};
    use crate::store::{CreateOptions, OpenOptions, Store};
    use crate::volume::parts::{PartSet, is_sealed};

    const BLOCKS: u64 = 64;

    fn by_block(search: &Search) -> Vec<(u64, Lsn, Found)> {
        let of_version = |version: &crate::index::Version| {
            let (extent, lsn, found) = (version.extent, version.lsn, version.found);
            (extent.start.0..extent.end()).map(move |block| (block, lsn, found))
        };
        search.found().iter().flat_map(of_version).collect()
    }

    // What is left out here is left out of the fold, and of everything that is checked against it: the segments go, and with them
    // what somebody wanted to keep.
    #[test]
    fn a_piece_is_what_lookups_in_the_runs_say() {
        for seed in 0..6 {
            let mut chance = Chance::new(seed);
            let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
            Store::create(&disk, &clock, Path::new("/store")).unwrap();
            let index = IndexOptions { merge_runs: 3, ..IndexOptions::default() };
            let options = OpenOptions { holder: "a test", index, ..OpenOptions::default() };
            let store =
                Store::open_with(Arc::new(disk), Arc::new(clock), Path::new("/store"), &options).unwrap();
            let create = CreateOptions { segment_bytes: 64 << 10, ..CreateOptions::new(1 << 20) };
            let volume = store.create_volume("disk", &create, None).unwrap();
            for number in 0..400u64 {
                let (start, len) = (chance.below(BLOCKS - 8), 1 + chance.below(8));
                let data = vec![number as u8 | 1; 4096];
                let change = match chance.below(4) {
                    0 => Change::Trim { offset: start * BLOCK_BYTES, len: len * BLOCK_BYTES },
                    _ => Change::Write { offset: start * BLOCK_BYTES, data: &data },
                };
                let mut results = Vec::new();
                volume.apply(SessionId(1), &[change], &mut results);
                results.into_iter().collect::<Result<Vec<_>>>().unwrap();
                if chance.below(8) == 0 {
                    volume.maintain().unwrap();
                }
            }
            let sealed =
                volume.part_list().iter().filter(|part| is_sealed(part)).cloned().collect::<Vec<_>>();
            // The first one shares its run with what is left out.
            let parts = Arc::new(PartSet::new(sealed[1..].to_vec()));
            assert!(parts.len() > 4 && parts.iter().any(|part| part.merged_run().is_some()));
            let (first, last) = (parts[0].segment.header.first_lsn, parts[parts.len() - 1].last_lsn());
            for entries_max in [1, 4, 30, 100_000] {
                let mut pieces = Pieces { entries_max, ..Pieces::of(parts.clone(), 0) };
                for _ in 0..2 {
                    let mut from = first;
                    while from <= last {
                        let piece = (from, Lsn(from.0 + chance.below(60)).min(last));
                        // Some pieces are kept by nobody.
                        from = Lsn(piece.1.0 + 1 + chance.below(3));
                        while !pieces.prepare(piece, 1 + chance.below(200)).is_ready {}
                        let visible = Visible::of(vec![piece]);
                        let reader = volume.reader_of(parts.clone(), &visible);
                        let look = || Search::new(Extent::new(0, 1 << 34));
                        let found = pieces.search(&reader, piece, look).unwrap();
                        let expected = reader.search(look).unwrap();
                        assert_eq!(by_block(&found), by_block(&expected), "seed {seed}, {piece:?}");
                        assert!(pieces.entries.len() < 2 * entries_max);
                    }
                }
            }
        }
    }
}
