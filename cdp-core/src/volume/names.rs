//! The named markers of a volume, in little memory: some 70 bytes each, so that a million of them fit into the budget of the
//! index. Made again at every opening, from the catalog and the journal.

use std::collections::HashMap;

use crate::catalog::{CatalogName, Complete};
use crate::format::bytes::crc32;
use crate::format::marker::MarkerClass;
use crate::history::point::MarkerAt;
use crate::ids::{Lsn, Timestamp};
use crate::limits::NAME_BYTES_MAX;

/// Of a name's place in the text, its length; the other bits are its offset.
const LEN_BITS: u32 = 8;
/// No row.
const NONE: u32 = u32::MAX;

const _: () = assert!(NAME_BYTES_MAX < 1 << LEN_BITS);

/// One marker. They stand by rising LSN.
#[derive(Clone, Copy)]
struct Row {
    lsn: Lsn,
    at: Timestamp,
    /// Where its name stands: offset and length.
    text: u64,
    /// The next older row whose name has the same checksum.
    previous: u32,
    /// `None`: somebody let it go.
    class: Option<MarkerClass>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Names {
    rows: Vec<Row>,
    text: Vec<u8>,
    // By the checksum of a name, the newest row that has it.
    newest: HashMap<u32, u32>,
    // What the catalog does not know yet: names behind this end, and those that went.
    taught: Option<Complete>,
    gone: Vec<Lsn>,
}

impl Names {
    /// Takes a marker in, newer than all others.
    pub(super) fn insert(&mut self, lsn: Lsn, at: Timestamp, name: &str, class: MarkerClass) {
        debug_assert!(self.rows.last().is_none_or(|newest| newest.lsn < lsn), "markers come in order");
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES_MAX)];
        let (Ok(number), hash) = (u32::try_from(self.rows.len()), crc32(name)) else { return };
        if number == NONE {
            return;
        }
        let text = (self.text.len() as u64) << LEN_BITS | name.len() as u64;
        self.text.extend_from_slice(name);
        let previous = self.newest.insert(hash, number).unwrap_or(NONE);
        self.rows.push(Row { lsn, at, text, previous, class: Some(class) });
    }

    /// About how much memory they take, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let index = self.newest.capacity() * (size_of::<(u32, u32)>() + 1);
        self.rows.capacity() * size_of::<Row>() + self.text.capacity() + index
    }

    /// How many there are, those that somebody let go included.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn name(&self, row: &Row) -> &str {
        let (from, len) = ((row.text >> LEN_BITS) as usize, (row.text & ((1 << LEN_BITS) - 1)) as usize);
        let bytes = self.text.get(from..from + len).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    fn at(&self, lsn: Lsn) -> Option<usize> {
        self.rows.binary_search_by_key(&lsn, |row| row.lsn).ok().filter(|&at| self.rows[at].class.is_some())
    }

    /// Whether this record is a marker with a name.
    pub(super) fn contains(&self, lsn: Lsn) -> bool {
        self.at(lsn).is_some()
    }

    /// The marker of this record.
    pub(super) fn marker_at(&self, lsn: Lsn) -> Option<MarkerAt> {
        self.at(lsn).map(|at| self.marker(&self.rows[at]))
    }

    fn marker(&self, row: &Row) -> MarkerAt {
        MarkerAt { name: self.name(row).to_owned(), lsn: row.lsn, at: row.at }
    }

    /// The newest marker of this name.
    pub(super) fn newest_of(&self, name: &str) -> Option<MarkerAt> {
        let mut number = self.newest.get(&crc32(name.as_bytes())).copied().unwrap_or(NONE);
        while let Some(row) = self.rows.get(number as usize) {
            if row.class.is_some() && self.name(row) == name {
                return Some(self.marker(row));
            }
            number = row.previous;
        }
        None
    }

    /// The newest marker that an application was quiet for.
    pub(super) fn newest_of_application(&self) -> Option<MarkerAt> {
        let row = self.rows.iter().rfind(|row| row.class == Some(MarkerClass::Application))?;
        Some(self.marker(row))
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (Lsn, Timestamp, MarkerClass, &str)> {
        self.rows.iter().filter_map(|row| Some((row.lsn, row.at, row.class?, self.name(row))))
    }

    /// The markers that are nearest in time, at most so many, none of them before the record `from`.
    pub(super) fn near(&self, at: Timestamp, from: Lsn, count: usize) -> Vec<MarkerAt> {
        // Timestamps rise with the LSNs.
        let first = self.rows.partition_point(|row| row.lsn < from);
        let behind = self.rows.partition_point(|row| row.at <= at).max(first);
        let mut near: Vec<&Row> =
            self.rows[first..behind].iter().rev().filter(|row| row.class.is_some()).take(count).collect();
        near.extend(self.rows[behind..].iter().filter(|row| row.class.is_some()).take(count));
        near.sort_by_key(|row| (row.at.0.abs_diff(at.0), row.lsn));
        near.truncate(count);
        near.into_iter().map(|row| self.marker(row)).collect()
    }

    /// Somebody let it go.
    pub(super) fn forget(&mut self, lsn: Lsn) {
        if let Some(at) = self.at(lsn) {
            self.rows[at].class = None;
            self.gone.push(lsn);
        }
    }

    /// Of the markers from one record to another only these are kept.
    pub(super) fn forget_within(&mut self, lsns: (Lsn, Lsn), is_kept: impl Fn(Lsn) -> bool) {
        let from = self.rows.partition_point(|row| row.lsn < lsns.0);
        for row in self.rows[from..].iter_mut().take_while(|row| row.lsn <= lsns.1) {
            if row.class.is_some() && !is_kept(row.lsn) {
                row.class = None;
                self.gone.push(row.lsn);
            }
        }
    }

    /// Markers up to this record went with their records.
    pub(super) fn forget_through(&mut self, lsn: Lsn) {
        let count = self.rows.partition_point(|row| row.lsn <= lsn);
        if count == 0 {
            return;
        }
        let mut kept =
            Names { taught: self.taught, gone: std::mem::take(&mut self.gone), ..Names::default() };
        kept.gone.extend(self.rows[..count].iter().filter(|row| row.class.is_some()).map(|row| row.lsn));
        kept.rows.reserve(self.rows.len() - count);
        for row in &self.rows[count..] {
            if let Some(class) = row.class {
                kept.insert(row.lsn, row.at, self.name(row), class);
            }
        }
        *self = kept;
    }

    /// What the catalog is complete through; `None`: nothing that it says counts.
    pub(super) fn taught(&self) -> Option<Complete> {
        self.taught
    }

    /// Whether the catalog, complete through this end, has nothing to learn.
    pub(super) fn is_taught(&self, newest: Complete) -> bool {
        self.taught == Some(newest) && self.gone.is_empty()
    }

    /// How many markers there are behind one record up to another, those that somebody let go included.
    pub(super) fn count_between(&self, behind: Lsn, through: Lsn) -> usize {
        let rows = |lsn| self.rows.partition_point(|row| row.lsn <= lsn);
        rows(through).saturating_sub(rows(behind))
    }

    /// The names that the catalog has to learn to be complete through `complete`, oldest first. It knows them from now on.
    pub(super) fn lesson(&mut self, complete: Complete) -> Vec<CatalogName> {
        let known = self.taught.map_or(Lsn::ZERO, |known| known.lsn);
        self.taught = Some(complete);
        let from = self.rows.partition_point(|row| row.lsn <= known);
        let new = self.rows[from..].iter().take_while(|row| row.lsn <= complete.lsn);
        new.filter_map(|row| {
            let (class, name) = (row.class? as u8, self.name(row).to_owned());
            Some(CatalogName { lsn: row.lsn, at: row.at, class, name })
        })
        .collect()
    }

    /// At most so many of the markers that somebody let go, or that went with their records, and that the catalog may still
    /// know, by rising LSN. It does not know them from now on.
    pub(super) fn take_gone(&mut self, max: usize) -> Vec<Lsn> {
        let mut gone = self.gone.split_off(self.gone.len().saturating_sub(max));
        gone.sort_unstable();
        gone.dedup();
        gone
    }

    /// What the catalog is complete through; `None`: it has to learn all of them.
    pub(super) fn set_taught(&mut self, complete: Option<Complete>) {
        self.taught = complete;
        if complete.is_none() {
            self.gone = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Chain;
    use crate::ids::SegmentId;
    use std::collections::BTreeMap;

    /// Whoever asks for a marker by its name must get the newest one that is left, whatever was set, let go and folded
    /// away before; held against plain maps.
    #[test]
    fn as_plain_maps() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % below
        };
        let mut names = Names::default();
        let mut plain: BTreeMap<Lsn, (String, MarkerClass)> = BTreeMap::new();
        let mut catalog: BTreeMap<Lsn, String> = BTreeMap::new();
        let mut lsn = 0;
        for round in 0..4000 {
            match random(12) {
                0 => {
                    let gone = Lsn(random(lsn + 1));
                    names.forget(gone);
                    plain.remove(&gone);
                }
                1 if round % 7 == 0 => {
                    let through = Lsn(lsn.saturating_sub(random(400)));
                    names.forget_through(through);
                    plain = plain.split_off(&through.next());
                }
                2 => {
                    let complete = Complete {
                        segment: SegmentId(round),
                        lsn: names.taught().map_or(Lsn::ZERO, |t| t.lsn).max(Lsn(lsn.saturating_sub(20))),
                        chain: Chain::default(),
                    };
                    loop {
                        let gone = names.take_gone(7);
                        if gone.is_empty() {
                            break;
                        }
                        assert!(gone.len() <= 7 && gone.is_sorted());
                        gone.iter().for_each(|gone| drop(catalog.remove(gone)));
                    }
                    catalog.extend(names.lesson(complete).into_iter().map(|name| (name.lsn, name.name)));
                    let there: Vec<_> = plain.keys().filter(|lsn| **lsn <= complete.lsn).collect();
                    assert_eq!(catalog.keys().collect::<Vec<_>>(), there, "what the catalog knows");
                }
                _ => {
                    lsn += 1 + random(3);
                    let class = if random(5) == 0 { MarkerClass::Application } else { MarkerClass::Manual };
                    let name = format!("name-{}", random(40));
                    names.insert(Lsn(lsn), Timestamp(lsn * 10), &name, class);
                    plain.insert(Lsn(lsn), (name, class));
                }
            }
            let name = format!("name-{}", random(45));
            let newest = plain.iter().rev().find(|(_, (other, _))| *other == name).map(|(lsn, _)| *lsn);
            assert_eq!(names.newest_of(&name).map(|marker| marker.lsn), newest);
            let newest = plain.iter().rev().find(|(_, (_, class))| *class == MarkerClass::Application);
            assert_eq!(names.newest_of_application().map(|m| m.lsn), newest.map(|(lsn, _)| *lsn));
            let asked = Lsn(random(lsn + 2));
            assert_eq!(names.contains(asked), plain.contains_key(&asked));
            let at = Timestamp(random(lsn * 10 + 20));
            let mut near: Vec<_> = plain.keys().map(|lsn| ((lsn.0 * 10).abs_diff(at.0), *lsn)).collect();
            near.sort_unstable();
            // What is before the horizon is no help to anybody.
            let from = Lsn(random(2) * random(lsn + 2));
            let near: Vec<Lsn> =
                near.into_iter().map(|(_, lsn)| lsn).filter(|lsn| *lsn >= from).take(3).collect();
            assert_eq!(names.near(at, from, 3).iter().map(|marker| marker.lsn).collect::<Vec<_>>(), near);
            if round % 100 == 0 {
                let all: Vec<_> =
                    names.iter().map(|(lsn, _, class, name)| (lsn, (name.to_owned(), class))).collect();
                assert_eq!(all, plain.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    /// A million markers must not take the memory that lookups need.
    #[test]
    fn a_million_fit_into_the_budget() {
        let mut names = Names::default();
        for lsn in 1..=1_000_000u64 {
            names.insert(Lsn(lsn), Timestamp(lsn), &format!("mark-{lsn:06}"), MarkerClass::Manual);
        }
        assert_eq!(names.len(), 1_000_000);
        let bytes = names.memory_bytes();
        assert!(bytes < 96 << 20, "{bytes} bytes");
    }
}
