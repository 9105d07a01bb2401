//! A choice becomes a plan: what of the stretch stays is settled, and nothing else of it can be pinned from then on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Plan;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::fold::PointRow;
use crate::ids::*;
use crate::volume::Volume;
use crate::volume::aging::{Scene, Settled, ThinChoice};
use crate::volume::parts::{Part, PartSet, part_of};
use crate::volume::pins::Thinned;

impl Volume {
    pub(super) fn plan_thin(&self, scene: &Scene<'_>, choice: &ThinChoice) -> Result<Plan> {
        let bricks = &scene.bricks[choice.group.from..choice.group.to];
        let parts: Vec<Arc<Part>> = bricks.iter().flat_map(|brick| brick.parts()).cloned().collect();
        self.refuse_thin_without_room(&parts)?;
        let lsns = scene.lsns_of(choice.group);
        let mut wanted = scene.kept_states(&choice.policy)?;
        wanted.extend(self.held_by_clones().into_iter().map(|(_, lsn)| lsn));
        // Read before the lock: others wait for it.
        bricks.iter().try_for_each(|brick| brick.marks().map(drop))?;
        let mut held = self.pins.lock();
        // Somebody may have come since the choice was made.
        wanted.extend(held.pins().map(|pin| pin.lsn));
        let settled = scene.settle(choice.group, &wanted, &|lsn| held.keeps(lsn));
        let Settled { stretch, kept, states } = settled?;
        let before = held.thin(lsns.0, Thinned { last: lsns.1, kept: states.clone() });
        drop(held);
        let rows: Result<Vec<PointRow>> =
            kept.iter().map(|lsn| point_of(&parts, *lsn, &kept, &states)).collect();
        let parts = Arc::new(PartSet::new(parts));
        match rows {
            Ok(points) => {
                let (level, reason, codec) = (choice.group.level, choice.reason, choice.policy.codec);
                Ok(Plan { parts, lsns, pieces: stretch.pieces(), points, level, reason, codec, before })
            }
            Err(error) => {
                self.pins.lock().unthin(lsns.0, before);
                Err(error)
            }
        }
    }

    fn refuse_thin_without_room(&self, parts: &[Arc<Part>]) -> Result<()> {
        let mut needed = 2 * self.identity.segment_bytes;
        for part in parts {
            needed += part.segment.file.len().at(|| format!("measuring {}", part.segment.path.display()))?;
        }
        let space = self
            .shared
            .files
            .space(&self.dir)
            .at(|| format!("volume {}: asking for free space", self.identity.name))?;
        if space.available < needed {
            let context = format!("{} bytes are free, {needed} are needed", space.available);
            return Err(Error::new(Kind::NoSpace, context));
        }
        Ok(())
    }
}

fn point_of(parts: &[Arc<Part>], lsn: Lsn, kept: &BTreeSet<Lsn>, states: &[Lsn]) -> Result<PointRow> {
    let timestamp = |lsn: Lsn| {
        let missing = || Error::new(Kind::NotFound, format!("there is no {lsn:?} to keep"));
        part_of(parts, lsn)?.timestamp_of(lsn)?.ok_or_else(missing)
    };
    let before = lsn.previous();
    let comes = !kept.contains(&before) && states.binary_search(&before).is_ok();
    let before = if comes { timestamp(before)? } else { Timestamp(0) };
    Ok(PointRow { lsn, at: timestamp(lsn)?, before })
}
