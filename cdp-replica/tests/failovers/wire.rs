//! Connections between the sites. Either end may be gone without the other knowing, what is on the way may wait, and
//! an old connection may outlive the one that came after it.

use std::collections::VecDeque;
use std::sync::Arc;

use cdp_core::ids::Lsn;
use cdp_core::io::sim::Chance;
use cdp_replica::fault::Fault;
use cdp_replica::receiver::Receiver;
use cdp_replica::sender::Sender;

use crate::model::Log;
use crate::site::Site;

pub struct Wire {
    pub from: usize,
    pub name: &'static str,
    pub sender: Option<Sender>,
    pub receiver: Option<Receiver>,
    pub stalled: bool,
    /// A newest state may come first on it.
    pub is_thin: bool,
    there: VecDeque<u8>,
    back: VecDeque<u8>,
    // What the sender may have sent.
    source: Log,
}

/// How a connection ended, and at which of its ends that was found.
pub struct End {
    pub fault: Fault,
    pub at_sender: bool,
}

pub fn address(site: &Site) -> String {
    format!("{}:1", site.name)
}

impl Wire {
    /// `None` if either site is down, or the sender has nobody to feed.
    pub fn connect(sites: &[Site; 2], from: usize, name: &'static str, now_ns: u64) -> Option<Wire> {
        let (sending, receiving) = (&sites[from], &sites[1 - from]);
        let volume = sending.volume(name)?;
        let to = address(receiving);
        volume.replicas().iter().find(|replica| replica.address == to)?;
        // As a link does, of the certificate.
        volume.note_replica_site(&to, receiving.name).ok()?;
        let store = receiving.store.clone()?;
        Some(Wire {
            from,
            name,
            sender: Some(Sender::new(volume, &to, now_ns)),
            receiver: Some(Receiver::new(store, Arc::clone(&receiving.feeding), sending.name, now_ns)),
            stalled: false,
            is_thin: false,
            there: VecDeque::new(),
            back: VecDeque::new(),
            source: sending.copies[name].log.clone(),
        })
    }

    /// Flips a bit of what is on the way.
    pub fn flip(&mut self, chance: &mut Chance) -> bool {
        let bytes = if chance.percent(70) { &mut self.there } else { &mut self.back };
        if bytes.is_empty() {
            return false;
        }
        let at = chance.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << chance.below(8);
        true
    }

    /// Lets both ends work and moves bytes, at most so many each way.
    pub fn exchange(
        &mut self,
        sites: &mut [Site; 2],
        now_ns: u64,
        most: (usize, usize),
    ) -> Result<Option<End>, String> {
        let end = |at_sender: bool| move |fault: Fault| End { fault, at_sender };
        if let Some(sender) = &mut self.sender {
            let log = &sites[self.from].copies[self.name].log;
            if log.newest().id != self.source.newest().id && self.source.is_prefix_of(log) {
                self.source = log.clone();
            }
            let outcome = sender.poll(now_ns);
            self.there.extend(sender.output().drain(..));
            if let Err(fault) = outcome {
                self.last_words(sites, now_ns);
                return Ok(Some(end(true)(fault)));
            }
        }
        let incoming: Vec<u8> = match self.stalled {
            true => Vec::new(),
            false => self.there.drain(..most.0.min(self.there.len())).collect(),
        };
        if let Some(receiver) = &mut self.receiver {
            let site = &mut sites[1 - self.from];
            let known = site.volume(self.name).is_some();
            // Of which it is not settled which copy has the name.
            let withheld = !known && site.copies.contains_key(self.name);
            if known && site.is_to_be_replaced(self.name) {
                site.replacing.insert(self.name, self.source.clone());
            }
            if known && !site.disk.is_crashed() {
                // Whatever it appends is what the sender had.
                let copy = site.copy(self.name);
                if self.is_thin {
                    copy.bringing = Some(self.source.clone());
                }
                if copy.log.is_prefix_of(&self.source) {
                    let rest = (copy.log.tip().0 + 1..=self.source.tip().0)
                        .map(|lsn| self.source.at(Lsn(lsn)).clone());
                    copy.pending = rest.collect();
                }
            }
            if !known && !withheld {
                site.making.insert(self.name, self.source.clone());
            }
            let outcome = receiver.receive(&incoming, now_ns).and_then(|()| receiver.poll(now_ns));
            self.back.extend(receiver.output().drain(..));
            if !site.disk.is_crashed() {
                if !known
                    && !withheld
                    && let Some(volume) = site.volume(self.name)
                {
                    // It was made just now, whole or by a first copy.
                    let mut copy = crate::site::Copy::new(self.source.at(Lsn::ZERO).size);
                    copy.log.follow(&self.source, volume.tip_lsn());
                    site.copies.insert(self.name, copy);
                    site.making.remove(self.name);
                }
                site.absorb()?;
                if site.volume(self.name).is_some() {
                    site.replacing.remove(self.name);
                }
            }
            if let Err(fault) = outcome {
                self.last_words(sites, now_ns);
                return Ok(Some(end(false)(fault)));
            }
        }
        if self.stalled {
            return Ok(None);
        }
        let incoming: Vec<u8> = self.back.drain(..most.1.min(self.back.len())).collect();
        if let Some(sender) = &mut self.sender
            && let Err(fault) = sender.receive(&incoming, now_ns)
        {
            return Ok(Some(end(true)(fault)));
        }
        Ok(None)
    }

    /// What the end that gave up had to say may still arrive.
    fn last_words(&mut self, sites: &[Site; 2], now_ns: u64) {
        if self.stalled || sites.iter().any(|site| site.disk.is_crashed()) {
            return;
        }
        let (there, back): (Vec<u8>, Vec<u8>) =
            (self.there.drain(..).collect(), self.back.drain(..).collect());
        if let Some(sender) = &mut self.sender {
            let _ = sender.receive(&back, now_ns);
        }
        // Only what ends a connection: records are for `exchange`, which looks at them.
        drop(there);
    }
}
