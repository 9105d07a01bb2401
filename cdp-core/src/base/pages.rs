//! Which pages of a checksum file are in use: a bit each.

use std::collections::BTreeSet;

use super::PIECE_BLOCKS;
use crate::format::base::SUMS_PAGE_BLOCKS;

const PAGES: u64 = PIECE_BLOCKS / SUMS_PAGE_BLOCKS;

/// The pages of one piece.
#[derive(Default)]
pub(super) struct Pages {
    words: Vec<u64>,
    // Those that no durable map names yet.
    fresh: BTreeSet<u64>,
}

impl Pages {
    /// As a map says.
    pub fn of(words: Vec<u64>) -> Pages {
        Pages { words, fresh: BTreeSet::new() }
    }

    /// For a map.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether this page is in use.
    pub fn has(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// A page came into use.
    pub fn add(&mut self, page: u64) {
        debug_assert!(page < PAGES);
        let word = (page / 64) as usize;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (page % 64);
        self.fresh.insert(page);
    }

    /// Whether there are some that no durable map names.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// A map with all of them is durable, or whoever makes it so goes by no others.
    pub fn settle(&mut self) {
        self.fresh.clear();
    }

    /// What came into use since then may not be on the disk: it is not in use.
    pub fn take_back(&mut self) {
        for page in std::mem::take(&mut self.fresh) {
            self.words[(page / 64) as usize] &= !(1 << (page % 64));
        }
    }

    /// Up to which page, at most `to`, those from `from` on are alike, and whether they are in use.
    pub fn alike(&self, from: u64, to: u64) -> (u64, bool) {
        let used = self.has(from);
        let mut at = from + 1;
        while at < to {
            let word = self.words.get((at / 64) as usize).copied();
            let Some(word) = word else {
                // Behind the last one nothing is in use.
                return (if used { at } else { to }, used);
            };
            let other = if used { !word } else { word } >> (at % 64);
            if other != 0 {
                return ((at + u64::from(other.trailing_zeros())).min(to), used);
            }
            at = (at / 64 + 1) * 64;
        }
        (to, used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page that is taken for unused makes blocks absent: every stretch is as a plain list says it.
    #[test]
    fn stretches_are_those_of_a_list() {
        let used = [0, 1, 2, 63, 64, 65, 127, 128, 300, 301];
        let mut pages = Pages::default();
        used.iter().for_each(|page| pages.add(*page));
        for from in 0..400 {
            for to in [from + 1, from + 2, from + 63, from + 64, from + 65, from + 500] {
                let is = used.contains(&from);
                let end = (from..to).find(|page| used.contains(page) != is).unwrap_or(to);
                assert_eq!(pages.alike(from, to), (end, is), "{from}..{to}");
            }
        }
        assert_eq!(pages.alike(PAGES - 1, PAGES), (PAGES, false));
    }

    #[test]
    fn what_was_not_made_durable_is_taken_back() {
        let mut pages = Pages::default();
        pages.add(5);
        pages.settle();
        pages.add(5);
        pages.add(70);
        pages.settle();
        pages.add(71);
        assert!(pages.has_fresh());
        pages.take_back();
        assert!(!pages.has_fresh() && pages.has(5) && pages.has(70) && !pages.has(71));
    }
}
