//! Metadata contexts: which a client selected, their numbers on the wire, and dirty bitmaps as an export has them.

use std::sync::Arc;

use cdp_core::error::{Error, Kind};

use crate::limits::BITMAPS_MAX;
use crate::proto::{BASE_ALLOCATION_ID, BITMAP_ID_FIRST};

/// Some of the contexts of a connection: `base:allocation`, and dirty bitmaps by their place among those selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contexts {
    /// Bit n stands for the context with the number n on the wire.
    bits: u32,
}

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextKind {
    /// `base:allocation`.
    Allocation,
    /// So many bitmaps were selected before this one.
    Bitmap(usize),
}

impl Contexts {
    /// `base:allocation` or not, and so many bitmaps (more than [`BITMAPS_MAX`] count as that many).
    pub fn new(allocation: bool, bitmaps: usize) -> Contexts {
        let mut contexts = Contexts::default();
        if allocation {
            contexts.bits |= 1 << BASE_ALLOCATION_ID;
        }
        for bitmap in 0..bitmaps.min(BITMAPS_MAX) {
            contexts.bits |= 1 << (BITMAP_ID_FIRST + bitmap as u32);
        }
        contexts
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Whether the number is that of one of these.
    pub fn has(self, id: u32) -> bool {
        id < u32::BITS && self.bits & (1 << id) != 0
    }

    /// These and the one with this number, which must be less than 32.
    pub fn with(self, id: u32) -> Contexts {
        Contexts { bits: self.bits | (1 << id) }
    }

    /// Their numbers, rising, with what each is.
    pub fn iter(self) -> impl Iterator<Item = (u32, ContextKind)> {
        (0..u32::BITS).filter(move |id| self.has(*id)).map(|id| match id.checked_sub(BITMAP_ID_FIRST) {
            None => (id, ContextKind::Allocation),
            Some(bitmap) => (id, ContextKind::Bitmap(bitmap as usize)),
        })
    }
}

/// A dirty bitmap that an export has, before it is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapInfo {
    /// Its name as the client asked for it, without `qemu:dirty-bitmap:`. A reply has to repeat it to the letter.
    pub name: String,
    /// What it means for ever, also where the name is relative to now; for [`Bitmaps::open`].
    pub key: String,
}

/// The dirty bitmaps of an opened export.
pub trait Bitmaps: Send + Sync {
    /// Opens one by its [`BitmapInfo::key`].
    fn open(&self, key: &str) -> Result<Arc<dyn Bitmap>, Error>;
}

/// Which parts of an export are dirty.
pub trait Bitmap: Send + Sync {
    /// Lengths in bytes, and whether they are dirty, of `offset..offset + len`, in order, at most `stretches_max`; may
    /// end early but covers at least one byte. Neighbours should differ.
    fn stretches(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<(u64, bool)>, Error>;
}

/// Opens what was selected before.
pub(crate) fn open_all(
    bitmaps: Option<&dyn Bitmaps>,
    selected: &[BitmapInfo],
) -> Result<Vec<Arc<dyn Bitmap>>, Error> {
    let none = || Error::new(Kind::NotFound, "this export has no dirty bitmaps");
    selected.iter().map(|info| bitmaps.ok_or_else(none)?.open(&info.key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A client that gets one context's extents under another's number copies the wrong blocks.
    #[test]
    fn numbers_are_distinct_and_lead_back() {
        for allocation in [false, true] {
            for bitmaps in 0..=BITMAPS_MAX + 3 {
                let contexts = Contexts::new(allocation, bitmaps);
                let all: Vec<_> = contexts.iter().collect();
                assert_eq!(all.len(), usize::from(allocation) + bitmaps.min(BITMAPS_MAX));
                assert_eq!(contexts.is_empty(), all.is_empty());
                assert!(all.is_sorted_by_key(|(id, _)| *id));
                let again = all.iter().fold(Contexts::default(), |found, (id, _)| found.with(*id));
                assert_eq!(again, contexts);
                for (place, (id, kind)) in
                    all.iter().filter(|(_, kind)| *kind != ContextKind::Allocation).enumerate()
                {
                    assert!(contexts.has(*id) && *id != BASE_ALLOCATION_ID);
                    assert_eq!(*kind, ContextKind::Bitmap(place));
                }
            }
        }
        assert!(!Contexts::new(true, BITMAPS_MAX).has(u32::MAX) && !Contexts::new(true, 0).has(0));
    }
}
