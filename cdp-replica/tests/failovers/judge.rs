//! What must hold at every instant, and what it all has to come to once nothing goes wrong any more.

use std::sync::Arc;

use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::volume::Volume;

use crate::wire::address;
use crate::world::{Keeping, Outcome, World};

impl World {
    /// Everything that must hold at every instant.
    pub fn check(&mut self) -> Outcome {
        for site in 0..2 {
            if !self.is_up(site) {
                continue;
            }
            self.sites[site].note_durable();
            for name in self.names {
                if self.sites[site].copies.contains_key(name) {
                    self.met.states += self.sites[site].check(name, &mut self.chance, false)?;
                }
            }
        }
        if !self.is_up(0) || !self.is_up(1) {
            return Ok(());
        }
        for name in self.names {
            let [a, b] = [0, 1].map(|site| self.sites[site].volume(name));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let common = self.sites[0].copies[name].log.common(&self.sites[1].copies[name].log);
            if common <= a.durable_lsn().min(b.durable_lsn())
                && let (Ok(at_a), Ok(at_b)) = (a.position_at(common), b.position_at(common))
                && (at_a.chain != at_b.chain || at_a.timestamp != at_b.timestamp)
            {
                broken!("{name}: {common:?} is not the same record at both sites");
            }
            for (from, volume, other) in [(0, &a, &b), (1, &b, &a)] {
                for replica in volume.replicas() {
                    if replica.is_acknowledged && replica.held > common {
                        broken!("{name}: {:?} is taken for acknowledged, {common:?} is common", replica.held);
                    }
                }
                // What it was told of completeness.
                let whole = &self.sites[from].copies[name].log;
                let complete = other.source().map_or(Timestamp(0), |source| source.complete);
                if volume.is_primary()
                    && other.is_replica()
                    && complete > Timestamp(0)
                    // Of an instant before its oldest state a volume knows no record: its journal may be cut there by now.
                    && complete >= volume.oldest().1
                    && self.sites[1 - from].copies[name].log.is_prefix_of(whole)
                    && let Ok(through) = volume.lsn_at(complete)
                    && through > other.durable_lsn()
                {
                    broken!(
                        "{name}: complete through {through:?} ({complete:?}), and it has {:?}; {:?} is of {:?}",
                        other.durable_lsn(),
                        other.durable_lsn().next(),
                        volume.timestamp_of(other.durable_lsn().next())
                    );
                }
            }
        }
        Ok(())
    }

    /// No more trouble: people look after it until there is one history at both sites, in which nothing is missing.
    pub fn heal(&mut self) -> Outcome {
        self.faults = false;
        self.onlookers = None;
        self.sites.iter_mut().for_each(|site| site.views.clear());
        self.wires.clear();
        for site in 0..2 {
            self.sites[site].dark = 0;
            self.sites[site].disk.clear_crash();
            self.sites[site].disk.set_capacity(None);
            if self.is_up(site) {
                self.crash(site, false);
            }
        }
        self.restart()?;
        let mut said = String::new();
        for round in 0..60 {
            // Where a disk was full there is room again.
            self.upkeep()?;
            self.empty_trash()?;
            if self.keeping == Keeping::DropOldest {
                // What an orphan reads from holds the journal at its cap.
                for site in 0..2 {
                    self.make_independent(site);
                }
            }
            for site in 0..2 {
                let address = address(&self.sites[1 - site]);
                for volume in self.sites[site].volumes().iter().filter(|volume| volume.replicas().is_empty())
                {
                    let _ = volume.add_replica(&address, 0, self.gives_way());
                }
            }
            for name in self.names {
                for from in 0..2 {
                    said = self.converse(from, name)?.unwrap_or(said);
                }
            }
            if self.is_one()? {
                return self.check_all();
            }
            for site in 0..2 {
                self.resync(site)?;
            }
            if round % 3 == 2 {
                self.decide()?;
            }
        }
        let states: Vec<String> = self
            .sites
            .iter()
            .flat_map(|site| site.volumes().into_iter().map(move |volume| (site.name, volume)))
            .map(|(site, volume)| {
                let (role, epoch) = (volume.role(), volume.epochs().newest());
                format!(
                    "{site} {}: {role:?}, {epoch:?}, {:?}, {:?}",
                    volume.name(),
                    volume.tip_lsn(),
                    volume.health()
                )
            })
            .collect();
        broken!("they do not become one: {states:#?}; {said}")
    }

    /// One connection, for two seconds.
    pub fn converse(&mut self, from: usize, name: &'static str) -> Outcome<Option<String>> {
        let Some(mut wire) = self.connect(from, name) else { return Ok(None) };
        for _ in 0..40 {
            self.now_ns += 50_000_000;
            self.sites.iter().for_each(|site| site.clock.advance(50_000_000));
            if let Some(end) = wire.exchange(&mut self.sites, self.now_ns, (usize::MAX, usize::MAX))? {
                let said = format!("{name} from {}: {}", self.sites[from].name, end.fault);
                self.ended(&wire, end)?;
                drop(wire);
                self.begin_anew()?;
                return Ok(Some(said));
            }
        }
        Ok(None)
    }

    /// Nobody goes on: somebody decides who shall.
    pub fn decide(&mut self) -> Outcome {
        for name in self.names {
            let volumes = [0, 1].map(|site| self.sites[site].volume(name));
            if volumes.iter().flatten().any(|volume| volume.is_primary()) {
                continue;
            }
            let standing = |volume: &Option<Arc<Volume>>| {
                volume.as_ref().map(|volume| (volume.epochs().newest().number, volume.tip_lsn()))
            };
            let site = usize::from(standing(&volumes[1]) > standing(&volumes[0]));
            if let Some(volume) = &volumes[site] {
                let to = volume.coalesced().map_or(volume.tip_lsn(), |newest| newest.state().lsn);
                self.promote(site, &[(volume.clone(), to)])?;
            }
        }
        Ok(())
    }

    /// One primary of each volume, and a replica that has all of it.
    pub fn is_one(&self) -> Outcome<bool> {
        for name in self.names {
            let [a, b] = [0, 1].map(|site| self.sites[site].volume(name));
            let (Some(a), Some(b)) = (a, b) else { return Ok(false) };
            let is_pair = a.is_primary() && b.is_replica() || b.is_primary() && a.is_replica();
            if !is_pair || a.tip_lsn() != b.tip_lsn() || a.epochs() != b.epochs() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every state of both sites, and all that was set aside.
    pub fn check_all(&mut self) -> Outcome {
        self.check()?;
        for site in 0..2 {
            for name in self.names {
                self.met.states += self.sites[site].check(name, &mut self.chance, true)?;
                let volume = self.sites[site].volume(name).expect("it is there");
                let _ = volume.maintain();
                if let Some(state) = volume.coalesced_state() {
                    broken!("{}: {name} has {state:?} beside its history", self.sites[site].name);
                }
                self.met.bases_moved += u64::from(volume.base_point().lsn > Lsn::ZERO);
                self.met.folds +=
                    volume.part_list().iter().filter(|part| part.segment.fold.is_some()).count() as u64;
            }
            self.sites[site].check_orphans()?;
            self.sites[site].check_asides()?;
            self.met.asides += self.sites[site].asides.len() as u64;
        }
        for name in self.names {
            let [a, b] = [0, 1].map(|site| &self.sites[site].copies[name].log);
            if a.tip() != b.tip() || a.newest().id != b.newest().id {
                broken!("{name} is not the same at both sites");
            }
        }
        Ok(())
    }
}
