//! The sending site's links: one thread for each replica of each volume, as long as the volume names it.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::{IoContext, Result};
use cdp_core::format::codec::Codec;
use cdp_core::ids::VolumeId;
use cdp_core::store::Store;
use cdp_core::volume::Volume;

use super::drive::Drive;
use super::tls::Tls;
use crate::fault::{Fault, FaultKind};
use crate::sender::Sender;
use crate::status::{LinkState, LinkStatus};
use crate::wire::control::{CODING_AGAINST_OLDER, CODING_LZ4, CODING_RANGES, CODING_ZSTD};

/// Between two looks which replicas there are.
const LOOK: Duration = Duration::from_millis(200);
/// A connection comes about within this time, or not.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The first try after a connection ended comes so soon; each further one after twice the time.
const RETRY: Duration = Duration::from_millis(200);
/// The longest time between two tries of what may pass by itself.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// And of what somebody has to look at.
const RETRY_LASTING: Duration = Duration::from_secs(10);
/// A connection that lived so long makes the next try soon again.
const LIVED: Duration = Duration::from_secs(5);
/// The rate is that of the last so many seconds.
const RATE_TIME: Duration = Duration::from_secs(2);

type Key = (VolumeId, String);
/// The groups of a volume, as [`Store::groups_of`] gives them.
type Memberships = Vec<(String, Vec<VolumeId>)>;

/// A link as others see it.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// The volume.
    pub volume: VolumeId,
    /// The replica's address.
    pub address: String,
    /// How it is doing.
    pub status: LinkStatus,
}

struct Link {
    volume: Arc<Volume>,
    stop: Arc<AtomicBool>,
    limit_bytes_per_s: Arc<AtomicU64>,
    codec: Codec,
    coalesces: Option<u64>,
    groups: Arc<Mutex<Memberships>>,
    status: Arc<Mutex<LinkStatus>>,
    thread: JoinHandle<()>,
}

/// All links of a store; they end when this is stopped or dropped.
pub struct Links {
    stop: Arc<AtomicBool>,
    running: Arc<Mutex<BTreeMap<Key, Link>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Links {
    /// Feeds the replicas of all volumes of `store`, those added later too.
    pub fn start(store: Arc<Store>, tls: Tls) -> Result<Links> {
        let stop = Arc::new(AtomicBool::new(false));
        let running: Arc<Mutex<BTreeMap<Key, Link>>> = Arc::default();
        let (stopped, links) = (stop.clone(), running.clone());
        let thread = std::thread::Builder::new()
            .name("cdp links".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    match_replicas(&store, &tls, &links);
                    std::thread::sleep(LOOK);
                }
            })
            .at(|| "starting the links' thread".to_owned())?;
        Ok(Links { stop, running, thread: Mutex::new(Some(thread)) })
    }

    /// All links now.
    pub fn list(&self) -> Vec<LinkInfo> {
        let running = self.running.lock().expect("no panics under this lock");
        let info = |((volume, address), link): (&Key, &Link)| LinkInfo {
            volume: *volume,
            address: address.clone(),
            status: link.status.lock().expect("no panics under this lock").clone(),
        };
        running.iter().map(info).collect()
    }

    /// Ends them and waits for that.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().expect("no panics under this lock").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the links' thread panicked");
        }
        let links = std::mem::take(&mut *self.running.lock().expect("no panics under this lock"));
        links.values().for_each(|link| link.stop.store(true, Ordering::Relaxed));
        for (_, link) in links {
            if link.thread.join().is_err() {
                tracing::error!("a link's thread panicked");
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts links that are missing and ends those that are not wanted any more.
fn match_replicas(store: &Arc<Store>, tls: &Tls, running: &Mutex<BTreeMap<Key, Link>>) {
    let now = store.clock().now();
    let mut wanted: BTreeMap<Key, (Arc<Volume>, u64, Codec, Option<u64>)> = BTreeMap::new();
    for volume in store.volumes() {
        for replica in volume.replicas() {
            if volume.replica_rests(&replica).is_some() {
                volume.let_source_go(&replica.address);
                continue;
            }
            let key = (volume.identity().id, replica.address.clone());
            let limit = replica.limit.at(now);
            wanted.insert(key, (volume.clone(), limit, replica.codec, replica.coalesce_bytes));
        }
    }
    let mut running = running.lock().expect("no panics under this lock");
    running.retain(|key, link| {
        // A volume that was opened anew, by a resync say, is another one: the old one hears of nothing any more.
        // One that is to compress or to catch up otherwise begins anew.
        let is_wanted = wanted.get(key).is_some_and(|(volume, _, codec, coalesces)| {
            let is_same = Arc::ptr_eq(volume, &link.volume);
            is_same && *codec == link.codec && *coalesces == link.coalesces
        });
        if !is_wanted {
            // It ends by itself; nobody waits for it.
            link.stop.store(true, Ordering::Relaxed);
        }
        is_wanted && !link.thread.is_finished()
    });
    for (key, (volume, limit, codec, coalesces)) in wanted {
        if let Some(link) = running.get(&key) {
            link.limit_bytes_per_s.store(limit, Ordering::Relaxed);
            *link.groups.lock().expect("no panics under this lock") = store.groups_of(&volume);
            continue;
        }
        let limit_bytes_per_s = Arc::new(AtomicU64::new(limit));
        let (stop, status) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<LinkStatus>>::default());
        let groups = Arc::new(Mutex::new(store.groups_of(&volume)));
        let address = key.1.clone();
        let link = Feeder {
            volume: volume.clone(),
            address,
            limit_bytes_per_s: limit_bytes_per_s.clone(),
            codec,
            coalesces,
            groups: groups.clone(),
            tls: tls.clone(),
            stop: stop.clone(),
            status: status.clone(),
        };
        match std::thread::Builder::new().name("cdp link".to_owned()).spawn(move || link.run()) {
            Ok(thread) => {
                let link = Link { volume, stop, limit_bytes_per_s, codec, coalesces, groups, status, thread };
                running.insert(key, link);
            }
            Err(error) => tracing::error!(%error, "starting a link's thread"),
        }
    }
}

struct Feeder {
    volume: Arc<Volume>,
    address: String,
    limit_bytes_per_s: Arc<AtomicU64>,
    codec: Codec,
    coalesces: Option<u64>,
    groups: Arc<Mutex<Memberships>>,
    tls: Tls,
    stop: Arc<AtomicBool>,
    status: Arc<Mutex<LinkStatus>>,
}

impl Feeder {
    fn run(&self) {
        let mut wait = RETRY;
        let mut said = None;
        let mut codings = match self.codec {
            Codec::None => !(CODING_LZ4 | CODING_ZSTD),
            Codec::Lz4 => !CODING_ZSTD,
            // The other side may be of an earlier version.
            Codec::Zstd => u32::MAX,
        };
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let fault = self.feed(codings);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let mut compared = false;
            self.with_status(|status| compared = matches!(status.state, LinkState::Comparing { .. }));
            match (fault.kind, compared) {
                // What it was compared with changes there, so it is sent.
                (FaultKind::Coding, true) => codings &= !CODING_RANGES,
                // What is as it is can always be read there.
                (FaultKind::Coding, false) => codings &= !CODING_AGAINST_OLDER,
                _ => {}
            }
            if said.as_ref() != Some(&fault) {
                match fault.kind.is_lasting() {
                    true => tracing::error!("{} to {}: {fault}", self.volume.name(), self.address),
                    false => tracing::info!("{} to {}: {fault}", self.volume.name(), self.address),
                }
                said = Some(fault.clone());
            }
            wait = match () {
                () if fault.kind.is_lasting() => RETRY_LASTING,
                () if began.elapsed() >= LIVED => RETRY,
                () => (wait * 2).min(RETRY_MAX),
            };
            let state =
                if fault.kind.is_lasting() { LinkState::Stopped(fault) } else { LinkState::Waiting(fault) };
            self.with_status(|status| {
                status.failures = status.failures.saturating_add(1);
                status.state = state;
                status.rate_bytes_per_s = 0;
            });
            let until = Instant::now() + wait;
            while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK.min(wait));
            }
        }
    }

    fn with_status(&self, change: impl FnOnce(&mut LinkStatus)) {
        change(&mut self.status.lock().expect("no panics under this lock"));
    }

    /// One connection, from the beginning to its end.
    fn feed(&self, codings: u32) -> Fault {
        let socket = match connect(&self.address) {
            Ok(socket) => socket,
            Err(fault) => return fault,
        };
        let (tls, peer) = match self.tls.connect(&socket) {
            Ok(greeted) => greeted,
            Err(fault) => return fault,
        };
        if let Err(error) = self.volume.note_replica_site(&self.address, &peer) {
            return Fault::from(error);
        }
        self.with_status(|status| {
            status.peer = peer;
            status.state = LinkState::Joining;
            status.connections += 1;
            status.failures = 0;
        });
        let mut drive = Drive::new(&socket, tls, Instant::now(), self.limit_bytes_per_s.clone());
        let mut sender = Sender::new(self.volume.clone(), &self.address, 0);
        sender.restrict_codings(codings);
        if let Some(bytes) = self.coalesces {
            sender.coalesce(bytes);
        }
        let mut rate = Rate::new();
        let mut groups = Memberships::new();
        drive.run(&mut sender, &self.stop, &mut |sender, sent| {
            rate.add(sent);
            let now = self.groups.lock().expect("no panics under this lock");
            if *now != groups {
                groups.clone_from(&now);
                sender.set_groups(&groups);
            }
            drop(now);
            self.with_status(|status| {
                status.sent_bytes += sent;
                status.rate_bytes_per_s = rate.bytes_per_s;
                sender.fill_status(status);
            });
        })
    }
}

fn connect(address: &str) -> Result<TcpStream, Fault> {
    let lost =
        |error: std::io::Error| Fault::new(FaultKind::Closing, format!("connecting to {address}: {error}"));
    let mut newest = None;
    for socket in address.to_socket_addrs().map_err(lost)? {
        match TcpStream::connect_timeout(&socket, CONNECT_TIME) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => newest = Some(error),
        }
    }
    Err(lost(newest.unwrap_or_else(|| std::io::Error::other("the name has no address"))))
}

/// Bytes a second, of late.
struct Rate {
    since: Instant,
    bytes: u64,
    bytes_per_s: u64,
}

impl Rate {
    fn new() -> Rate {
        Rate { since: Instant::now(), bytes: 0, bytes_per_s: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed >= RATE_TIME {
            self.bytes_per_s = (self.bytes as f64 / elapsed.as_secs_f64()) as u64;
            self.bytes = 0;
            self.since = Instant::now();
        }
    }
}
