//! The server's part in the votes on which of two sites answers: its own voter, and its seats.

mod sitter;
mod words;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::ids::{EpochNumber, VolumeId};
use cdp_core::io::{Clock, SystemClock};
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use cdp_replica::limits::LEASE_NS;
use cdp_replica::net::tls::Tls;
use cdp_replica::net::votes::{Line, Which};
use cdp_replica::vote::ballots::BallotFile;
use cdp_replica::vote::lease::Lease;
use cdp_replica::vote::service::Service;
use cdp_replica::vote::{Seat, Times};

use self::sitter::Sitter;
pub use self::words::{SeatStatus, VoterStatus, voter_words};
use super::handover::Handover;
use super::overlap;
use crate::config::Config;
use crate::work::Site;

/// A volume or a group that fails over by itself, as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Automatic {
    /// Its name.
    pub target: String,
    /// Where the other site takes replicas, and votes.
    pub peer: String,
    /// Where the witness is.
    pub witness: String,
    /// The replica promotes itself only where no more than so much time would be lost, in nanoseconds of the clocks on the
    /// wall.
    pub loss_max_ns: u64,
}

/// One seat, for the threads that look at it.
struct Place {
    plan: Automatic,
    lease: Arc<Lease>,
    status: Mutex<SeatStatus>,
    heard: AtomicU64,
    handover: Handover,
}

impl Place {
    fn new(plan: &Automatic) -> Arc<Place> {
        let lease = Arc::new(Lease::new(Arc::new(SystemClock)));
        let status = SeatStatus { target: plan.target.clone(), ..SeatStatus::default() };
        let (status, heard) = (Mutex::new(status), AtomicU64::new(0));
        Arc::new(Place { plan: plan.clone(), lease, status, heard, handover: Handover::default() })
    }
}

/// All of it. Empty where nothing is configured.
#[derive(Default)]
pub struct Votes {
    service: Option<Arc<Service>>,
    places: Vec<Arc<Place>>,
    stop: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Votes {
    /// Whether the configuration can work; before anything is opened or made.
    pub fn check(config: &Config) -> Result<()> {
        if config.automatic.is_empty() || config.replica_listen.is_some() {
            return Ok(());
        }
        let context = "[automatic] needs an address where the other site can reach this one";
        Err(Error::new(Kind::Invalid, context)
            .hint("say it with --replica-listen ADDR:PORT, or replica_listen in the configuration"))
    }

    /// Opens the site's ballots, if anything is to fail over by itself. Nothing is answered before [`Votes::start`].
    pub fn prepare(config: &Config, store: &Arc<Store>) -> Result<Votes> {
        let targets: Vec<&str> = config.automatic.iter().map(|plan| &*plan.target).collect();
        if let Some((volume, one, other)) = overlap::named_twice(&store.groups(), &targets) {
            let context = format!("[automatic.{one}] and [automatic.{other}] both mean volume {volume}");
            return Err(Error::new(Kind::Invalid, context)
                .hint("name the group only: its members fail over together, and a half of it is of no use"));
        }
        let groups = store.groups();
        let is_meant = |name: &str| {
            let is_member =
                |target: &&str| groups.get(*target).is_some_and(|m| m.iter().any(|one| one == name));
            targets.iter().any(|target| *target == name || is_member(target))
        };
        let ballots = BallotFile::peek(&**store.files(), store.path());
        overlap::warn_of_forgotten(store, &ballots, is_meant);
        if config.automatic.is_empty() {
            return Ok(Votes::default());
        }
        let own = store.clone();
        let floor = move |id: VolumeId| {
            own.volume_by_id(id).map_or(0, |volume| u64::from(volume.epochs().newest().number.0))
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (files, dir) = (store.files().clone(), store.path());
        let own = store.clone();
        // Nobody else is asked for a vote on a volume.
        let may = move |id: VolumeId, name: &str| own.volume_by_id(id).is_none_or(|one| one.concerns(name));
        let service = Service::open(files, clock.clone(), dir, Box::new(floor), Box::new(may))?;
        let places = config.automatic.iter().map(Place::new).collect();
        Ok(Votes { service: Some(Arc::new(service)), places, ..Votes::default() })
    }

    /// Of a command that has the store open by itself, and asks no voters: what needs a lease is not answered.
    pub fn absent(config: &Config) -> Votes {
        let votes = Votes { places: config.automatic.iter().map(Place::new).collect(), ..Votes::default() };
        let why =
            "it fails over by itself, and only `cdp serve` asks the voters whether this site may answer";
        votes.places.iter().for_each(|place| place.lease.close(why));
        votes
    }

    /// One that is answered under this lease, and that nobody votes on.
    #[cfg(test)]
    pub fn under(plan: &Automatic, lease: Arc<Lease>) -> Votes {
        let place = Arc::into_inner(Place::new(plan)).map(|place| Arc::new(Place { lease, ..place }));
        Votes { places: place.into_iter().collect(), ..Votes::default() }
    }

    /// The site's own voter, for whoever comes for a vote.
    pub fn service(&self) -> Option<Arc<Service>> {
        self.service.clone()
    }

    /// The lease that this volume is answered under, if it is one of those.
    pub fn lease_of(&self, store: &Store, volume: &Volume) -> Option<Arc<Lease>> {
        self.place_of(store, volume).map(|place| place.lease.clone())
    }

    fn place_of(&self, store: &Store, volume: &Volume) -> Option<&Arc<Place>> {
        self.places.iter().find(|place| {
            let target = &place.plan.target;
            let id = volume.identity().id;
            let is_member = |members: Vec<Arc<Volume>>| members.iter().any(|one| one.identity().id == id);
            // A group with a member that cannot be opened is no reason to answer the others without a lease.
            target == volume.name()
                || store
                    .groups()
                    .get(target)
                    .is_some_and(|names| names.iter().any(|name| name == volume.name()))
                || store.members(target).is_ok_and(is_member)
        })
    }

    /// The highest epoch that a voter told of for a volume or a group, or for the group that it belongs to, and that this
    /// site's own voter is bound to: what is begun has to be above it.
    pub fn heard(&self, store: &Store, target: &str) -> EpochNumber {
        let members = store.members(target).unwrap_or_default();
        let places = members.iter().filter_map(|volume| self.place_of(store, volume));
        let heard = places.map(|place| place.heard.load(Ordering::Relaxed));
        let ballot = |volume: &Arc<Volume>| self.service.as_ref()?.ballot(volume.identity().id);
        let heard = heard.chain(members.iter().filter_map(ballot).map(|ballot| ballot.epoch));
        let heard = heard.max().unwrap_or_default();
        EpochNumber(u32::try_from(heard).unwrap_or(u32::MAX - 1))
    }

    /// These are about to be demoted: their epoch is kept until the other site has all of them, and until this instant at
    /// most. Gives whether any of them fails over by itself.
    pub fn step_down(&self, store: &Store, volumes: &[Arc<Volume>], until: Option<Instant>) -> bool {
        let places: Vec<_> = volumes.iter().filter_map(|volume| self.place_of(store, volume)).collect();
        places.iter().for_each(|place| place.handover.begin(until));
        !places.is_empty()
    }

    /// The volumes and groups that are configured to fail over by themselves.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| &*place.plan.target)
    }

    /// How the seats stand.
    pub fn status(&self) -> Vec<SeatStatus> {
        let status = |place: &Arc<Place>| {
            let status = place.status.lock().expect("no panics under this lock").clone();
            SeatStatus { left_ns: place.lease.left_ns(), ..status }
        };
        self.places.iter().map(status).collect()
    }

    /// Takes the seats.
    pub fn start(&self, site: &Arc<Site>, tls: Option<&Tls>) -> Result<()> {
        let (Some(service), Some(tls)) = (&self.service, tls) else { return Ok(()) };
        if !tls.is_sender() {
            let context = "[automatic] needs a certificate with which this site can claim, and its own is for a replica only";
            return Err(
                Error::new(Kind::Invalid, context).hint("`cdp pki issue` without --replica-only makes one")
            );
        }
        for place in &self.places {
            let (post, answers) = mpsc::channel();
            let open =
                |which, address: &str, number| Line::open(which, address, tls.clone(), number, post.clone());
            let lines =
                [open(Which::Peer, &place.plan.peer, 1)?, open(Which::Witness, &place.plan.witness, 2)?];
            let sitter = Sitter {
                site: site.clone(),
                place: place.clone(),
                service: service.clone(),
                own_name: tls.site().to_owned(),
                seat: Seat::new(Times::with_lease(LEASE_NS), service.site()),
                targets: self.places.iter().map(|place| place.plan.target.clone()).collect(),
                lines,
                said: BTreeMap::new(),
                promotion: None,
                promoted_at: None,
                stop: self.stop.clone(),
            };
            let thread = std::thread::Builder::new()
                .name("cdp seat".to_owned())
                .spawn(move || sitter.run(&answers))
                .at(|| "starting the thread of a seat".to_owned())?;
            self.threads.lock().expect("no panics under this lock").push(thread);
        }
        Ok(())
    }

    /// Nobody waits for a lease any more: the server goes down.
    pub fn close(&self) {
        self.places.iter().for_each(|place| place.lease.close("this server is going down"));
    }

    /// Leases are not renewed any more.
    pub fn stop(&self) {
        self.close();
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("no panics under this lock").drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a seat panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::io::native;
    use cdp_core::io::sim::SimClock;
    use cdp_core::store::CreateOptions;
    use cdp_replica::vote::{Ask, Ballot, Claim, SiteId, Verdict};

    use super::*;

    // Somebody promotes by hand what fails over by itself, or one member of such a group: with the number of an epoch that
    // the voters gave to the other site, both would have it.
    #[test]
    fn a_failover_by_hand_is_above_what_was_voted_on() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("store");
        let (files, sim) = (native(false), SimClock::new(1));
        let clock: Arc<dyn Clock> = Arc::new(sim.clone());
        Store::create(&*files, &*clock, &dir).unwrap();
        let store = Store::open(files.clone(), clock.clone(), &dir, "a test").unwrap();
        for name in ["db", "logs", "other"] {
            store.create_volume(name, &CreateOptions::new(1 << 20), None).unwrap();
        }
        store.add_to_group("shop", &["db".to_owned(), "logs".to_owned()], true).unwrap();
        let service = Service::open(files, clock, &dir, Box::new(|_| 0), Box::new(|_, _| true)).unwrap();
        let service = Arc::new(service);
        let [target, peer, witness] = ["shop", "peer:1", "witness:1"].map(str::to_owned);
        let place = Place::new(&Automatic { target, peer, witness, loss_max_ns: 0 });
        let votes = Votes { service: Some(service.clone()), places: vec![place.clone()], ..Votes::default() };
        assert_eq!(votes.heard(&store, "db"), EpochNumber(0));

        sim.advance(2 * LEASE_NS);
        let claim = Claim { ballot: Ballot { epoch: 3, site: SiteId(9) }, trial: false, round: 1 };
        let ask = Ask { volumes: vec![store.volume("db").unwrap().identity().id], claim, gives_up: false };
        assert_eq!(service.answer(&ask, "site-b").answer.verdict, Verdict::Granted);
        place.heard.store(2, Ordering::Relaxed);
        let heard = ["db", "shop", "logs", "other"].map(|name| votes.heard(&store, name).0);
        assert_eq!(heard, [3, 3, 2, 0]);
    }
}
