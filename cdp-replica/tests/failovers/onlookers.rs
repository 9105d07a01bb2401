//! People who have something open at a site while all of that happens: what they read is what they opened, or they are told that it
//! is over. A resync cuts the journal under them, a reseed puts another copy in its place, a removal takes it away.

use cdp_core::device::{Device, Read};
use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::io::sim::Chance;
use cdp_core::view::View;

use crate::model::{BLOCKS, Entry, bytes_of};
use crate::site::Site;
use crate::world::{Outcome, World};

/// So many are open at a site at most: each holds history.
const OPEN_MAX: usize = 3;

/// One view that somebody has open.
pub struct Onlooker {
    what: String,
    view: View,
    entry: Entry,
}

impl World {
    /// They come, look, and go.
    pub fn look_on(&mut self) -> Outcome {
        let Some(mut chance) = self.onlookers.take() else { return Ok(()) };
        for site in 0..2 {
            if !self.is_up(site) {
                continue;
            }
            let met = &mut self.met;
            let site = &mut self.sites[site];
            match chance.below(100) {
                0..8 if site.views.len() < OPEN_MAX => {
                    met.views += u64::from(site.begin_to_look(&mut chance))
                }
                8..10 if !site.views.is_empty() => drop(site.views.remove(0)),
                10..30 => {
                    let (looks, over) = site.look()?;
                    met.looks += looks;
                    met.over += over;
                }
                _ => {}
            }
        }
        self.onlookers = Some(chance);
        Ok(())
    }
}

impl Site {
    /// Opens a view of anything that is there. Whether that could be had.
    fn begin_to_look(&mut self, chance: &mut Chance) -> bool {
        let mut there: Vec<_> =
            self.copies.iter().map(|(name, copy)| (name.to_string(), &copy.log)).collect();
        there.extend(self.orphans.iter().map(|orphan| (orphan.name.clone(), &orphan.log)));
        there.extend(self.asides.iter().map(|aside| (aside.name.clone(), &aside.log)));
        let Some((name, log)) = there.get(chance.below(there.len().max(1) as u64) as usize) else {
            return false;
        };
        let Some(volume) = self.volume(name) else { return false };
        let (oldest, tip) = (volume.oldest().0, volume.tip_lsn().min(log.tip()));
        let lsn = Lsn(oldest.0 + chance.below((tip.0 + 1).saturating_sub(oldest.0).max(1)));
        let Ok(view) = View::open(volume, lsn, "an onlooker") else { return false };
        let (what, entry) = (format!("{name} at {lsn:?}"), log.at(lsn).clone());
        self.views.push(Onlooker { what, view, entry });
        true
    }

    /// How many saw what they had opened, and for how many it was over.
    fn look(&mut self) -> Outcome<(u64, u64)> {
        let (site, disk) = (self.name, self.disk.clone());
        let (mut looks, mut over) = (0, 0);
        let mut broken = None;
        self.views.retain(|one| {
            let mut bytes = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
            let mut reads = [Read { offset: 0, buffer: &mut bytes, result: Ok(()) }];
            one.view.read(&mut reads);
            let [Read { result, .. }] = reads;
            match result {
                Ok(()) if bytes == bytes_of(one.entry.sectors.iter().copied()) => looks += 1,
                Ok(()) => broken = Some(format!("{site}: WRONG BYTES in the view of {}", one.what)),
                Err(error) if error.kind() == Kind::Closed => {
                    over += 1;
                    return false;
                }
                Err(_) if disk.is_crashed() => return false,
                Err(error) => broken = Some(format!("{site}: the view of {}: {error:?}", one.what)),
            }
            true
        });
        broken.map_or(Ok((looks, over)), Err)
    }
}
