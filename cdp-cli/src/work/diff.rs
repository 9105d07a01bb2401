//! The extents that differ between two points, in pages.

use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::Zone;
use cdp_core::ids::{BLOCK_BYTES, Extent};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::changed::Changes;
use serde::{Deserialize, Serialize};

use super::points;

/// The most extents of a page: below the longest line of the control socket.
const EXTENTS_MAX: usize = 16 << 10;
/// Clones of clones are followed so far: further than they can be made.
const LINEAGE_MAX: usize = 64;

/// Two points of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// `VOL@POINT`.
    pub from: String,
    /// `VOL@POINT`.
    pub to: String,
    /// Blocks with the same bytes do not count, even if they were written.
    pub content: bool,
    /// Begin with this byte: where the page before ended.
    pub offset: u64,
}

/// Part of what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffPage {
    /// First byte and length of each extent that differs, in rising order.
    pub extents: Vec<(u64, u64)>,
    /// Where the next page begins, if there is more to look through.
    pub next: Option<u64>,
}

/// A view, the one that is its base if its volume is a clone, and so on. Ends where a parent is not there.
pub fn lineage(store: &Store, view: Arc<View>) -> Vec<Arc<View>> {
    let mut views = vec![view];
    while let Some(parent) = views.last().and_then(|view| view.volume().parent())
        && views.len() < LINEAGE_MAX
        && let Some(volume) = store.volumes().into_iter().find(|volume| volume.identity().id == parent.id)
    {
        views.push(Arc::new(View::new(volume, parent.lsn)));
    }
    views
}

/// One page. The points should be absolute, so that all pages are about the same two states.
pub fn page(store: &Store, diff: &Diff, zone: &Zone) -> Result<DiffPage> {
    let views = |text: &str| -> Result<Vec<Arc<View>>> {
        let targets = points::shown_targets(store, text, zone)?;
        let [target] = <[points::Target; 1]>::try_from(targets).map_err(|_| {
            Error::new(Kind::Invalid, format!("{text} is a group, and extents are those of a volume"))
        })?;
        if target.request.clone.is_some() {
            return Err(Error::new(Kind::Invalid, format!("{text} asks for a clone")).hint("leave `+rw` out"));
        }
        Ok(lineage(store, Arc::new(target.view("cdp diff")?)))
    };
    let mut changes = Changes::across(&views(&diff.from)?, &views(&diff.to)?)?;
    if diff.content {
        changes = changes.with_content();
    }
    let whole = changes.whole();
    let end_bytes = {
        use cdp_core::device::Device;
        changes.from().size_bytes().max(changes.to().size_bytes())
    };
    let start = (diff.offset / BLOCK_BYTES).min(whole.end());
    let page = changes.page(Extent::new(start, whole.end()), EXTENTS_MAX)?;
    let bytes = |extent: &Extent| {
        let start = extent.start.0 * BLOCK_BYTES;
        (start, (extent.end() * BLOCK_BYTES).min(end_bytes) - start)
    };
    let next = (page.end < whole.end()).then_some(page.end * BLOCK_BYTES);
    Ok(DiffPage { extents: page.extents.iter().map(bytes).collect(), next })
}
