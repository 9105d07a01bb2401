//! Whose word counts: which sites may feed a volume, and whose epochs it believes.
//!
//! A certificate says who somebody is, not which volumes concern him. A site concerns a volume when it feeds it, fed it, or is
//! fed by it; that stands in the manifests `source` and `replicas`. Who stops a primary has to be one of those: any copy of
//! a store can be promoted somewhere. What another site says is a claim: it is kept, shown, and refused, until somebody
//! here says that it is so (`store/resync.rs`).

use std::collections::BTreeMap;

use super::Volume;
use super::epoch::Elsewhere;
use super::role::Role;
use crate::error::{Error, Kind, Result};
use crate::history::epochs::Standing;
use crate::ids::EpochNumber;
use crate::limits::{CLAIM_EPOCHS_AHEAD_MAX, CLAIMS_MAX};

/// What sites said that are not believed, by their names; since the volume was opened.
#[derive(Default)]
pub(super) struct Claims(BTreeMap<String, Elsewhere>);

impl Claims {
    fn insert(&mut self, other: Elsewhere) {
        if self.0.len() >= CLAIMS_MAX && !self.0.contains_key(&other.site) {
            let lowest = self.0.values().min_by_key(|known| known.epochs.newest().number);
            match lowest.map(|known| (known.epochs.newest().number, known.site.clone())) {
                Some((number, site)) if number < other.epochs.newest().number => drop(self.0.remove(&site)),
                _ => return,
            }
        }
        self.0.insert(other.site.clone(), other);
    }

    pub(super) fn forget(&mut self, site: &str) {
        self.0.remove(site);
    }
}

impl Volume {
    /// Whether the site feeds this volume, fed it last, or is fed by it.
    pub fn concerns(&self, site: &str) -> bool {
        self.source().is_some_and(|source| source.peer == site) || self.feeds(site)
    }

    fn feeds(&self, site: &str) -> bool {
        self.replicas().iter().any(|replica| replica.site.as_deref() == Some(site))
    }

    /// Of a replica: whether it takes records of this site. Of its source; of anybody where it has none; and where it was a
    /// primary that stepped down, and has taken nothing since, of every site that it fed.
    pub fn may_be_fed_by(&self, site: &str) -> bool {
        let Some(source) = self.source() else { return true };
        let stepped_down = match self.role() {
            Role::Replica { ended, .. } => ended == Some(self.tip_lsn()),
            _ => false,
        };
        source.peer == site || stepped_down && self.feeds(site)
    }

    /// The site that a new copy of this volume comes from, if that is another one than now: the one that is named, or the one that
    /// it believes to have gone on.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the named one has not said anything yet; [`Kind::Refused`] without a name where one that is not believed
    /// says that it went on there.
    pub fn source_of_copy(&self, named: Option<&str>) -> Result<Option<String>> {
        let now = self.source().map(|source| source.peer);
        if let Some(named) = named {
            return match now.as_deref() == Some(named) {
                true => Ok(None),
                false => self.other_site(Some(named)).map(|other| Some(other.site)),
            };
        }
        let number = |other: &Elsewhere| other.epochs.newest().number;
        let ours = self.epochs().newest().number;
        let believed = self.elsewhere().filter(|other| number(other) > ours);
        let known = believed.as_ref().map_or(ours, number);
        if let Some(claim) = self.all_claims().iter().find(|claim| self.is_replica() && number(claim) > known)
        {
            let context = format!(
                "the site {} says that volume {} goes on there in epoch {}, and is none that it believes",
                claim.site,
                self.name(),
                number(claim).0
            );
            let stay = now.map(|site| format!(", or --site {site} to stay with that")).unwrap_or_default();
            let hint = format!("say whose copy it is to be: --site {}{stay}; nothing was done", claim.site);
            return Err(Error::new(Kind::Refused, context).hint(hint));
        }
        Ok(believed.map(|other| other.site).filter(|site| Some(site) != now.as_ref()))
    }

    /// Whether what this site says of its epochs is believed.
    pub fn believes(&self, site: &str) -> bool {
        self.concerns(site) || self.is_replica() && self.may_be_fed_by(site)
    }

    /// A site that is not believed says what it has.
    pub fn note_claim(&self, other: Elsewhere) {
        self.claims.lock().expect("no panics under this lock").insert(other);
    }

    /// What sites say that are not believed, where it would change anything here: they have a higher epoch, or the same one
    /// under another id.
    pub fn claims(&self) -> Vec<Elsewhere> {
        let ours = self.epochs();
        let counts = |other: &&Elsewhere| {
            matches!(ours.standing(&other.epochs.newest()), Standing::Fenced | Standing::SplitBrain)
        };
        self.all_claims().iter().filter(counts).cloned().collect()
    }

    fn all_claims(&self) -> Vec<Elsewhere> {
        self.claims.lock().expect("no panics under this lock").0.values().cloned().collect()
    }

    /// The highest epoch that somebody said to have, believed or not: a new one goes above it. A claim that is absurdly
    /// high does not count, or it would use the numbers up.
    pub fn highest_elsewhere(&self) -> EpochNumber {
        let reach = self.epochs().newest().number.0.saturating_add(CLAIM_EPOCHS_AHEAD_MAX);
        let claimed = self.all_claims().into_iter().map(|other| other.epochs.newest().number);
        let believed = self.elsewhere().map(|other| other.epochs.newest().number);
        claimed.filter(|number| number.0 <= reach).chain(believed).max().unwrap_or(EpochNumber(0))
    }

    /// The site that a resync goes by: the one of this name; without a name the one that is believed, and for a replica the
    /// one that claims a higher epoch, if it is the only one.
    ///
    /// # Errors
    /// `NotFound`: nobody said what he has. `Refused`: several claim the same epoch.
    pub fn other_site(&self, named: Option<&str>) -> Result<Elsewhere> {
        let (name, believed, claims) = (self.name(), self.elsewhere(), self.all_claims());
        let list = |sites: &[Elsewhere]| {
            sites.iter().map(|other| other.site.clone()).collect::<Vec<_>>().join(" or ")
        };
        if let Some(named) = named {
            let known = believed.iter().chain(&claims).find(|other| other.site == named);
            return known.cloned().ok_or_else(|| {
                let context = format!("no site {named:?} has said yet what it has of volume {name}");
                Error::new(Kind::NotFound, context)
                    .hint("its name is what its certificate says; it tells when it feeds this one")
            });
        }
        let number = |other: &Elsewhere| other.epochs.newest().number;
        let known = believed.as_ref().map(number).max(Some(self.epochs().newest().number));
        let highest = claims.iter().map(number).filter(|claimed| Some(*claimed) > known).max();
        if let Some(highest) = highest.filter(|_| self.is_replica()) {
            let claiming: Vec<Elsewhere> =
                claims.iter().filter(|other| number(other) == highest).cloned().collect();
            if let [one] = &claiming[..] {
                return Ok(one.clone());
            }
            let context = format!(
                "{} sites say that volume {name} goes on there in epoch {}",
                claiming.len(),
                highest.0
            );
            return Err(Error::new(Kind::Refused, context)
                .hint(format!("decide which it is, and say --site {}", list(&claiming))));
        }
        believed.ok_or_else(|| {
            let context = format!("no other site has said yet what it has of volume {name}");
            let error = Error::new(Kind::NotFound, context);
            match &claims[..] {
                [] => error.hint(format!(
                    "at the site that goes on: `cdp replica add {name} HOST:PORT` with this server's --replica-listen address; a second later try again"
                )),
                claims => error.hint(format!(
                    "one that this site neither feeds nor was fed by did: `cdp resync {name} --site {}` believes it",
                    list(claims)
                )),
            }
        })
    }
}
