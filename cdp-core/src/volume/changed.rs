//! Which blocks differ between two states of a volume: from the index alone, in block order, page by page.

mod content;

use std::sync::Arc;

use super::Volume;
use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::ids::*;
use crate::index::{Difference, Search, Visible};
use crate::view::View;

/// Versions that one look at the index may find in all parts together: bounds its memory, however many parts there
/// are and however many records lie between the states.
const LOOK_VERSIONS_MAX: usize = 64 << 10;
/// Each part finds at least so many in a look, so that a look makes progress.
const PART_VERSIONS_MIN: usize = 16;
/// And at most so many.
const PART_VERSIONS_MAX: usize = 4096;
/// Blocks that one look goes through: a merged run may hold a version of each that is none of these states', and all
/// of them are passed by.
const LOOK_BLOCKS_MAX: u64 = 4 << 20;
/// Looks at the index for one page: bounds the time until an answer, also where nothing is found.
const PAGE_LOOKS_MAX: usize = 16;
/// Extents that the iterator asks for at a time.
const PAGE_EXTENTS: usize = 4096;

/// A part of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangedPage {
    /// Extents that differ, in rising order, disjoint and not touching.
    pub extents: Vec<Extent>,
    /// The answer covers what was asked for up to this block, which is not the first one of it.
    pub end: u64,
}

/// The blocks that differ between two states of one volume, or of two that share history. Holds both views, and so what
/// they pin.
///
/// A block differs if the newest record that changed it is not the same in both: also where the record wrote the same
/// bytes again, or zeros over what was never written. [`Changes::with_content`] leaves those out.
pub struct Changes {
    from: Arc<View>,
    to: Arc<View>,
    legs: Vec<Leg>,
    content: bool,
}

/// The part of the way from one state to the other that lies in one volume.
struct Leg {
    volume: Arc<Volume>,
    difference: Difference,
}

impl Changes {
    /// Between two views of one volume; which of them is older does not matter. [`Kind::Invalid`] for views of
    /// different volumes; and what reading a view would say.
    pub fn between(from: Arc<View>, to: Arc<View>) -> Result<Changes> {
        Changes::across(&[from], &[to])
    }

    /// Between the first of `from` and the first of `to`. Behind each stands the view that is its base, if its volume
    /// is a clone, and so on. A block differs if it was changed on the way from either to what they have in
    /// common. [`Kind::Invalid`] if that is nothing.
    pub fn across(from: &[Arc<View>], to: &[Arc<View>]) -> Result<Changes> {
        let ([a, ..], [b, ..]) = (from, to) else {
            return Err(Error::new(Kind::Invalid, "nothing to compare"));
        };
        if let Some(ahead) = from.iter().chain(to).find(|view| view.is_ahead()) {
            let context = format!(
                "filling: what changed up to {:?} of volume {} is not known before its history is here",
                ahead.lsn(),
                ahead.volume().name()
            );
            return Err(Error::new(Kind::OutOfRange, context));
        }
        let id = |view: &Arc<View>| view.volume().identity().id;
        let met = from.iter().enumerate().find_map(|(depth, view)| {
            to.iter().position(|other| id(other) == id(view)).map(|other| (depth, other))
        });
        let Some((above_a, above_b)) = met else {
            let context =
                format!("{} and {} have no history in common", a.volume().name(), b.volume().name());
            return Err(Error::new(Kind::Invalid, context)
                .hint("give two points of one volume, or of a volume and its clone"));
        };
        let nothing = Visible::through(Lsn::ZERO);
        let alone = from[..above_a].iter().chain(&to[..above_b]).map(|view| Leg {
            volume: view.volume().clone(),
            difference: Difference::between(&nothing, view.visible()),
        });
        let mut legs: Vec<Leg> = alone.collect();
        let (one, other) = (&from[above_a], &to[above_b]);
        let difference = Difference::between(one.visible(), other.visible());
        legs.push(Leg { volume: one.volume().clone(), difference });
        let (from, to) = (a.clone(), b.clone());
        // A state that is gone says so here, and one that is not is held by its view from now on.
        from.extents(0, 1, 1)?;
        to.extents(0, 1, 1)?;
        Ok(Changes { from, to, legs, content: false })
    }

    /// The same, but blocks with the same bytes in both states do not count; those are read where checksums do not
    /// tell.
    pub fn with_content(mut self) -> Changes {
        self.content = true;
        self
    }

    /// The first of the two.
    pub fn from(&self) -> &Arc<View> {
        &self.from
    }

    /// The second.
    pub fn to(&self) -> &Arc<View> {
        &self.to
    }

    /// All blocks that either state has.
    pub fn whole(&self) -> Extent {
        let bytes = self.from.size_bytes().max(self.to.size_bytes());
        Extent::new(0, bytes.div_ceil(BLOCK_BYTES))
    }

    /// Looks through `within` from its start: at most `extents_max` (at least 1) extents; the page may end early for
    /// other reasons too, but covers at least one block of what is not empty.
    pub fn page(&self, within: Extent, extents_max: usize) -> Result<ChangedPage> {
        match self.content {
            false => self.by_lsn(within, extents_max),
            true => {
                let candidates_max = extents_max.min(content::PAGE_PLANS_MAX);
                let by_lsn = self.by_lsn(within, candidates_max)?;
                content::differing(&self.from, &self.to, by_lsn, extents_max.max(1))
            }
        }
    }

    fn by_lsn(&self, within: Extent, extents_max: usize) -> Result<ChangedPage> {
        let page = |leg: &Leg| leg.volume.changed_page(&leg.difference, within, extents_max);
        if let [leg] = &self.legs[..] {
            return page(leg);
        }
        let pages = self.legs.iter().map(page).collect::<Result<Vec<ChangedPage>>>()?;
        Ok(ChangedPage::joined(pages, within.end()).cut(extents_max.max(1)))
    }

    /// All of them, in rising order, found as they are asked for. Ends with the first error.
    pub fn extents(&self) -> Extents<'_> {
        Extents { changes: self, rest: self.whole(), page: Vec::new().into_iter(), held: None }
    }
}

impl ChangedPage {
    fn push(&mut self, start: u64, end: u64) {
        match self.extents.last_mut() {
            Some(last) if last.end() == start => last.blocks += end - start,
            _ => self.extents.push(Extent::new(start, end)),
        }
    }

    /// What any of them has, as far as all of them go, and at most to `end`.
    fn joined(pages: Vec<ChangedPage>, end: u64) -> ChangedPage {
        let end = pages.iter().map(|page| page.end).min().unwrap_or(end);
        let mut all: Vec<Extent> = pages.into_iter().flat_map(|page| page.extents).collect();
        all.retain(|extent| extent.start.0 < end);
        all.sort_unstable_by_key(|extent| extent.start);
        let mut joined = ChangedPage { extents: Vec::new(), end };
        for extent in all {
            let to = extent.end().min(end);
            match joined.extents.last_mut() {
                Some(last) if last.end() >= extent.start.0 => {
                    last.blocks = last.blocks.max(to.saturating_sub(last.start.0));
                }
                _ => joined.extents.push(Extent::new(extent.start.0, to)),
            }
        }
        joined
    }

    /// Ends the page before the extent that is one too many.
    fn cut(mut self, extents_max: usize) -> ChangedPage {
        if let Some(beyond) = self.extents.get(extents_max) {
            self.end = beyond.start.0;
            self.extents.truncate(extents_max);
        }
        self
    }
}

/// See [`Changes::extents`].
pub struct Extents<'a> {
    changes: &'a Changes,
    rest: Extent,
    page: std::vec::IntoIter<Extent>,
    held: Option<Extent>,
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            for extent in self.page.by_ref() {
                match &mut self.held {
                    // One extent may end a page and begin the next.
                    Some(held) if held.end() == extent.start.0 => held.blocks += extent.blocks,
                    held => {
                        if let Some(done) = held.replace(extent) {
                            return Some(Ok(done));
                        }
                    }
                }
            }
            if self.rest.blocks == 0 {
                return self.held.take().map(Ok);
            }
            match self.changes.page(self.rest, PAGE_EXTENTS) {
                Ok(page) => {
                    self.rest = Extent::new(page.end, self.rest.end());
                    self.page = page.extents.into_iter();
                }
                Err(error) => {
                    self.rest.blocks = 0;
                    self.held = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Volume {
    /// The blocks that differ between the states after two records, whichever is older; see [`Changes`].
    pub fn changed(self: &Arc<Self>, a: Lsn, b: Lsn) -> Result<Changes> {
        let view = |lsn| Arc::new(View::new(self.clone(), lsn));
        Changes::between(view(a), view(b))
    }

    /// As [`Changes::page`], of any two states. Costs what the records between them cost, not the volume's size.
    pub fn changed_page(
        &self,
        difference: &Difference,
        within: Extent,
        extents_max: usize,
    ) -> Result<ChangedPage> {
        let mut page = ChangedPage { extents: Vec::new(), end: within.end() };
        if difference.is_empty() {
            return Ok(page);
        }
        let extents_max = extents_max.max(1);
        let reader = self.reader(difference.relevant());
        let versions_max = LOOK_VERSIONS_MAX / reader.parts.layers().len().max(1);
        let versions_max = versions_max.clamp(PART_VERSIONS_MIN, PART_VERSIONS_MAX);
        // Who wants one extent should not wait for thousands.
        let mut versions = extents_max.saturating_mul(2).clamp(PART_VERSIONS_MIN, versions_max);
        let mut next = within;
        for _ in 0..PAGE_LOOKS_MAX {
            if next.blocks == 0 || page.extents.len() > extents_max {
                break;
            }
            let window = Extent { blocks: next.blocks.min(LOOK_BLOCKS_MAX), ..next };
            let search = reader.search(|| Search::bounded(window, versions))?;
            for version in search.found().iter().filter(|version| difference.is_told_by(version.lsn)) {
                page.push(version.extent.start.0, version.extent.end());
            }
            next = Extent::new(search.extent().end(), next.end());
            versions = (versions * 2).min(versions_max);
        }
        page.end = next.start.0;
        Ok(page.cut(extents_max))
    }
}
