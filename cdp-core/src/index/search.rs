//! A lookup on its way through the parts: what is answered, what is still open.

use super::{Found, Version};
use crate::ids::{Extent, Lba};

/// A lookup of one extent. Hand it to the parts from the newest to the oldest, then [`Search::finish`] it.
///
/// With a bound on the versions the answer may end early: it then covers a prefix of the extent, of at least
/// one block. After a part answered with an error a search is good for nothing.
#[derive(Debug)]
pub struct Search {
    extent: Extent,
    versions_max: usize,
    pub(super) gaps: Vec<Extent>,
    pub(super) found: Vec<Version>,
    spare: Vec<Extent>,
}

impl Search {
    /// Looks up the whole extent, however many versions that takes.
    pub fn new(extent: Extent) -> Search {
        Search::bounded(extent, usize::MAX)
    }

    /// Looks up a prefix of the extent: a part that has found `versions_max` (at least 1) versions ends the
    /// extent there.
    pub fn bounded(extent: Extent, versions_max: usize) -> Search {
        let mut search = Search {
            extent,
            versions_max: versions_max.max(1),
            gaps: Vec::new(),
            found: Vec::new(),
            spare: Vec::new(),
        };
        search.reset(extent);
        search
    }

    /// Starts over with another extent and the same bound, keeping the memory.
    pub fn reset(&mut self, extent: Extent) {
        self.extent = extent;
        self.found.clear();
        self.gaps.clear();
        if extent.blocks > 0 {
            self.gaps.push(extent);
        }
    }

    /// The extent, or the prefix of it that the answer covers.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// What no part has answered yet, in rising order, disjoint and not touching.
    pub fn gaps(&self) -> &[Extent] {
        &self.gaps
    }

    /// Whether nothing is open: older parts need not be asked.
    pub fn is_done(&self) -> bool {
        self.gaps.is_empty()
    }

    /// Sorts what was found. Afterwards [`Search::found`] and [`Search::gaps`] together cover
    /// [`Search::extent`] exactly.
    pub fn finish(&mut self) {
        let end = self.extent.end();
        self.found.retain(|version| version.extent.start.0 < end);
        for version in &mut self.found {
            version.extent.blocks = version.extent.blocks.min(end - version.extent.start.0);
        }
        self.found.sort_unstable_by_key(|version| version.extent.start);
    }

    /// The versions found, in rising order after [`Search::finish`].
    pub fn found(&self) -> &[Version] {
        &self.found
    }

    /// How many versions may have been found when the part that begins now must stop.
    pub(super) fn found_max(&self) -> usize {
        self.found.len().saturating_add(self.versions_max)
    }

    /// Takes the gaps out for a part to work through; give them back with [`Search::recycle`].
    pub(super) fn take_gaps(&mut self) -> Vec<Extent> {
        std::mem::replace(&mut self.gaps, std::mem::take(&mut self.spare))
    }

    /// Keeps the memory of gaps that were worked through.
    pub(super) fn recycle(&mut self, mut gaps: Vec<Extent>) {
        gaps.clear();
        self.spare = gaps;
    }

    /// Leaves `start..end` to older parts.
    pub(super) fn leave(&mut self, start: u64, end: u64) {
        match self.gaps.last_mut() {
            Some(last) if last.end() == start => last.blocks = end - last.start.0,
            _ => self.gaps.push(Extent::new(start, end)),
        }
    }

    /// Answers an extent.
    pub(super) fn answer(&mut self, version: Version) {
        if !matches!(version.found, Found::Payload { .. })
            && let Some(last) = self.found.last_mut()
            && last.extent.end() == version.extent.start.0
            && last.lsn == version.lsn
            && last.found == version.found
        {
            last.extent.blocks += version.extent.blocks;
            return;
        }
        self.found.push(version);
    }

    /// Ends the extent at `end`, which lies behind its start, if it does not end before.
    pub(super) fn cut(&mut self, end: Lba) {
        debug_assert!(end > self.extent.start);
        self.extent.blocks = self.extent.blocks.min(end.0 - self.extent.start.0);
    }
}
