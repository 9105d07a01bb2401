//! Of blocks with different versions, those whose bytes differ too.

use super::ChangedPage;
use crate::error::Result;
use crate::ids::{BLOCK_BYTES, Extent};
use crate::reader::{Piece, Reader};
use crate::view::View;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Versions that one part of the index may give for one plan.
const PLAN_VERSIONS_MAX: usize = 4096;
/// Plans for one page.
pub(super) const PAGE_PLANS_MAX: usize = 1024;
/// Blocks whose bytes are read from either side at a time.
const READ_BLOCKS_MAX: u64 = 256;
/// Blocks that are read from either side for one page.
const PAGE_READ_BLOCKS_MAX: u64 = 64 << 10;

/// What is left of `by_lsn`; the page may end earlier, but not before its first block.
pub(super) fn differing(
    from: &View,
    to: &View,
    by_lsn: ChangedPage,
    extents_max: usize,
) -> Result<ChangedPage> {
    let same_base = from.volume().identity().id == to.volume().identity().id;
    let sides =
        Sides { same_base, a: from.volume().reader(from.visible()), b: to.volume().reader(to.visible()) };
    let mut page = ChangedPage { extents: Vec::new(), end: by_lsn.end };
    let (mut plans, mut read_blocks) = (0, 0);
    for extent in by_lsn.extents {
        let mut at = extent.start.0;
        while at < extent.end() {
            let spent = plans >= PAGE_PLANS_MAX || read_blocks >= PAGE_READ_BLOCKS_MAX;
            if spent || page.extents.len() > extents_max {
                page.end = at;
                return Ok(page.cut(extents_max));
            }
            plans += 1;
            at = sides.compare(Extent::new(at, extent.end()), &mut page, &mut read_blocks)?;
        }
    }
    Ok(page.cut(extents_max))
}

struct Sides<'a> {
    /// Both are of one volume, and have one base.
    same_base: bool,
    a: Reader<'a>,
    b: Reader<'a>,
}

impl Sides<'_> {
    /// Adds what differs of a prefix of `extent`; gives the first block behind it.
    fn compare(&self, extent: Extent, page: &mut ChangedPage, read_blocks: &mut u64) -> Result<u64> {
        let plan_a = self.a.plan_prefix(extent, PLAN_VERSIONS_MAX)?;
        let plan_b = self.b.plan_prefix(extent, PLAN_VERSIONS_MAX)?;
        let mut at = extent.start.0;
        // Blocks from here to `at` can only be told by their bytes.
        let mut unread = at;
        let (mut next_a, mut next_b) = (plan_a.iter().peekable(), plan_b.iter().peekable());
        while let (Some(a), Some(b)) = (next_a.peek(), next_b.peek()) {
            let end = a.extent().end().min(b.extent().end());
            let (end, alike) = self.judge(a, b, at, end)?;
            let pause = alike.is_some() || at - unread >= READ_BLOCKS_MAX;
            if pause && unread < at {
                *read_blocks += at - unread;
                self.read(unread, at, page)?;
            }
            if pause {
                unread = if alike.is_some() { end } else { at };
            }
            if alike == Some(false) {
                page.push(at, end);
            }
            at = end;
            next_a.next_if(|piece| piece.extent().end() <= at);
            next_b.next_if(|piece| piece.extent().end() <= at);
            if *read_blocks >= PAGE_READ_BLOCKS_MAX {
                break;
            }
        }
        *read_blocks += at - unread;
        self.read(unread, at, page)?;
        Ok(at)
    }

    /// Whether the blocks from `at` up to the end that is given back, at most `end`, are the same, where that can be
    /// told without reading them.
    fn judge(&self, a: &Piece, b: &Piece, at: u64, end: u64) -> Result<(u64, Option<bool>)> {
        let few = end.min(at + READ_BLOCKS_MAX);
        Ok(match (a, b) {
            (Piece::Zero { .. }, Piece::Zero { .. }) => (end, Some(true)),
            // Neither state has a record for them: the base is the same under both.
            (Piece::Base { .. }, Piece::Base { .. }) if self.same_base => (end, Some(true)),
            (Piece::Zero { .. }, Piece::Base { .. }) | (Piece::Base { .. }, Piece::Zero { .. }) => {
                let base = if matches!(a, Piece::Base { .. }) { self.a.base } else { self.b.base };
                match base.stretch(at, end)? {
                    (absent, false) => (absent, Some(true)),
                    (present, true) => (present.min(few), None),
                }
            }
            (Piece::Journal { crc, .. }, Piece::Journal { crc: other, .. }) if crc != other => {
                (end, Some(false))
            }
            _ => (few, None),
        })
    }

    fn read(&self, start: u64, end: u64, page: &mut ChangedPage) -> Result<()> {
        let mut at = start;
        while at < end {
            let until = end.min(at + READ_BLOCKS_MAX);
            let mut a = vec![0; (until - at) as usize * BLOCK];
            let mut b = a.clone();
            self.a.read_blocks(at, &mut a)?;
            self.b.read_blocks(at, &mut b)?;
            let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
            for (lba, _) in (at..).zip(blocks).filter(|(_, (a, b))| a != b) {
                page.push(lba, lba + 1);
            }
            at = until;
        }
        Ok(())
    }
}
