//! Dirty bitmaps of exports: the blocks that changed since any point, for clients that know QEMU's. `POINT` is one of the
//! volume itself, `VOL@POINT` one of a volume that it shares history with: its parent, its clone, another clone of its parent.

use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, Zone, split_export};
use cdp_core::ids::{BLOCK_BYTES, Extent, Lsn};
use cdp_core::store::Store;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::changed::Changes;
use cdp_nbd::{Bitmap, BitmapInfo, Bitmaps};

use crate::work::diff::lineage;
use crate::work::points::{self, Target};

/// So many named markers are listed as bitmaps, the newest.
const LISTED_MAX: usize = 20;
/// The oldest state.
const START: &str = "start";

/// The bitmaps of one opened export: any point of its volume names one.
pub struct PointBitmaps {
    store: Arc<Store>,
    volume: Arc<Volume>,
    /// What is exported; `None` for the live volume.
    to: Option<Arc<View>>,
}

impl PointBitmaps {
    /// Of a view.
    pub fn of_view(store: &Arc<Store>, view: &Arc<View>) -> PointBitmaps {
        PointBitmaps { store: store.clone(), volume: view.volume().clone(), to: Some(view.clone()) }
    }

    /// Of a live volume: what has changed until the moment in which it is asked.
    pub fn of_live(store: &Arc<Store>, volume: &Arc<Volume>) -> PointBitmaps {
        PointBitmaps { store: store.clone(), volume: volume.clone(), to: None }
    }
}

/// What a bitmap of this name means on a volume.
pub fn find(store: &Store, volume: &Arc<Volume>, name: &str) -> Result<BitmapInfo> {
    let target = target(store, volume, name)?;
    Ok(BitmapInfo { name: name.to_owned(), key: absolute_name(volume, &target) })
}

/// The point since which changes are shown.
pub fn target(store: &Store, volume: &Arc<Volume>, text: &str) -> Result<Target> {
    let (other, point) = match split_export(text) {
        (other, Some(point)) => (store.volume(other)?, point),
        _ => (volume.clone(), text),
    };
    refuse_strangers(store, volume, &other)?;
    let target = points::of_volume(store, other, point, &Zone::system()?)?;
    if target.request.clone.is_some() {
        let context = format!("changes are counted from a point, and `{text}` asks for a clone");
        return Err(Error::new(Kind::Invalid, context).hint("leave `+rw` out"));
    }
    Ok(target)
}

/// An error unless changes from one to the other can be told.
fn refuse_strangers(store: &Store, volume: &Arc<Volume>, other: &Arc<Volume>) -> Result<()> {
    let family = |volume: &Arc<Volume>| -> Vec<_> {
        let view = Arc::new(View::new(volume.clone(), volume.tip_lsn()));
        lineage(store, view).iter().map(|view| view.volume().identity().id).collect()
    };
    let ours = family(volume);
    if family(other).iter().any(|id| ours.contains(id)) {
        return Ok(());
    }
    let context = format!("{} and {} have no history in common", volume.name(), other.name());
    Err(Error::new(Kind::Invalid, context).hint(
        "changes can be told since a point of the volume itself, of its parent, or of another clone of that",
    ))
}

/// How a point is called among the bitmaps of a volume; for ever the same one.
pub fn absolute_name(volume: &Arc<Volume>, since: &Target) -> String {
    named(volume, since, &since.resolved.absolute_name)
}

fn named(volume: &Arc<Volume>, since: &Target, point: &str) -> String {
    match Arc::ptr_eq(volume, &since.volume) {
        true => point.to_owned(),
        false => format!("{}@{point}", since.volume.name()),
    }
}

/// The name under which the one bitmap of `…+since:POINT` is listed: it means the same when it is asked for.
pub fn listed_name(volume: &Arc<Volume>, since: &Target) -> String {
    match since.resolved.relative {
        true => absolute_name(volume, since),
        false => named(volume, since, &since.asked),
    }
}

/// The bitmap of a clone against its parent: what it began with, as long as it reads there and the parent can be named.
fn parent_name(store: &Store, volume: &Volume) -> Option<String> {
    let parent = volume.parent()?;
    let volume = store.volumes().into_iter().find(|volume| volume.identity().id == parent.id)?;
    Some(format!("{}@lsn:{}", volume.name(), parent.lsn))
}

/// Newest first: the named markers before `to`, then of a clone what it began with, and then the beginning. Never one alone, which a client that takes the
/// only one there is might take without knowing what it means; `+since:` is for those.
pub fn listed_names(store: &Store, volume: &Volume, to: Lsn) -> Vec<String> {
    let mut names = Vec::new();
    for (marker, _) in volume.named_markers().into_iter().rev().filter(|(marker, _)| marker.lsn < to) {
        if names.len() == LISTED_MAX {
            break;
        }
        // An older marker of the same name cannot be had by it.
        let newest = volume.marker(&marker.name).ok().flatten();
        if newest.is_some_and(|newest| newest.lsn == marker.lsn) {
            names.push(marker.name);
        }
    }
    names.extend(parent_name(store, volume));
    if !names.is_empty() {
        names.push(START.to_owned());
    }
    names
}

impl Bitmaps for PointBitmaps {
    fn open(&self, key: &str) -> Result<Arc<dyn Bitmap>> {
        let since = target(&self.store, &self.volume, key)?;
        let from = lineage(&self.store, Arc::new(View::new(since.volume, since.resolved.lsn)));
        Ok(match &self.to {
            Some(to) => Arc::new(Changed(Changes::across(&from, &lineage(&self.store, to.clone()))?)),
            None => {
                let (store, volume) = (self.store.clone(), self.volume.clone());
                Arc::new(ChangedUntilNow { store, volume, from })
            }
        })
    }
}

/// Between two views.
struct Changed(Changes);

/// Between a view and the tip.
struct ChangedUntilNow {
    store: Arc<Store>,
    volume: Arc<Volume>,
    from: Vec<Arc<View>>,
}

impl Bitmap for Changed {
    fn stretches(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<(u64, bool)>> {
        stretches(&self.0, offset, len, stretches_max)
    }
}

impl Bitmap for ChangedUntilNow {
    fn stretches(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<(u64, bool)>> {
        let tip = Arc::new(View::new(self.volume.clone(), self.volume.tip_lsn()));
        let changes = Changes::across(&self.from, &lineage(&self.store, tip))?;
        stretches(&changes, offset, len, stretches_max)
    }
}

fn stretches(changes: &Changes, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<(u64, bool)>> {
    let end = offset + len;
    let within = Extent::new(offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
    // Between two extents there is a stretch that is clean.
    let page = changes.page(within, stretches_max / 2 + 1)?;
    let mut found = Vec::new();
    let mut at = offset;
    let mut push = |until: u64, dirty| {
        let until = until.saturating_mul(BLOCK_BYTES).clamp(at, end);
        if until > at && found.len() < stretches_max {
            found.push((until - at, dirty));
            at = until;
        }
    };
    for extent in &page.extents {
        push(extent.start.0, false);
        push(extent.end(), true);
    }
    push(page.end, false);
    Ok(found)
}
