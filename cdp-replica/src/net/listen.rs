//! The receiving site's door: takes connections, and runs a receiver on each.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::{IoContext, Result};
use cdp_core::store::Store;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::drive::Drive;
use super::tls::{Tls, wants_vote};
use super::votes;
use crate::fault::{Fault, FaultKind};
use crate::limits::CONNECTIONS_MAX;
use crate::receiver::{Feeding, Receiver};
use crate::vote::service::Service;

/// Between two looks whether it should end.
const LOOK: Duration = Duration::from_millis(200);

/// A door that is open until this is stopped or dropped.
pub struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Hall {
    store: Arc<Store>,
    tls: Tls,
    feeding: Arc<Feeding>,
    voter: Option<Arc<Service>>,
    stop: Arc<AtomicBool>,
    began: Instant,
    count: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Listener {
    /// Listens at `address` for sites that feed the replicas of `store`.
    pub fn start(store: Arc<Store>, tls: Tls, address: SocketAddr) -> Result<Listener> {
        Listener::with_voter(store, tls, address, None)
    }

    /// As [`Listener::start`]; who comes for a vote gets that of `voter`.
    pub fn with_voter(
        store: Arc<Store>,
        tls: Tls,
        address: SocketAddr,
        voter: Option<Arc<Service>>,
    ) -> Result<Listener> {
        let place = || format!("listening for replication on {address}");
        let socket = TcpListener::bind(address).at(place)?;
        socket.set_nonblocking(true).at(place)?;
        let address = socket.local_addr().at(place)?;
        let stop = Arc::new(AtomicBool::new(false));
        let hall = Arc::new(Hall {
            store,
            tls,
            feeding: Arc::default(),
            voter,
            stop: stop.clone(),
            began: Instant::now(),
            count: AtomicUsize::new(0),
            threads: Mutex::default(),
        });
        let thread = std::thread::Builder::new()
            .name("cdp receive".to_owned())
            .spawn(move || accept_all(&socket, &hall))
            .at(|| "starting the thread that receives".to_owned())?;
        Ok(Listener { address, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and its connections; what they had received is appended.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().expect("no panics under this lock").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that receives panicked");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept_all(socket: &TcpListener, hall: &Arc<Hall>) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    while !hall.stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
        hall.threads.lock().expect("no panics under this lock").retain(|thread| !thread.is_finished());
        match socket.accept() {
            Ok((stream, from)) => take(hall, stream, from),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for replication");
                std::thread::sleep(LOOK);
            }
        }
    }
    for thread in hall.threads.lock().expect("no panics under this lock").drain(..) {
        if thread.join().is_err() {
            tracing::error!("a receiving thread panicked");
        }
    }
}

fn take(hall: &Arc<Hall>, stream: TcpStream, from: SocketAddr) {
    if hall.count.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
        return tracing::warn!(%from, "{CONNECTIONS_MAX} connections for replication are open, no more are taken");
    }
    hall.count.fetch_add(1, Ordering::Relaxed);
    let here = hall.clone();
    let serve = move || {
        let fault = receive(&here, &stream);
        here.count.fetch_sub(1, Ordering::Relaxed);
        match fault.kind.is_lasting() {
            true => tracing::error!(%from, "replication: {fault}"),
            false => tracing::debug!(%from, "replication: {fault}"),
        }
    };
    match std::thread::Builder::new().name("cdp receiver".to_owned()).spawn(serve) {
        Ok(thread) => hall.threads.lock().expect("no panics under this lock").push(thread),
        Err(error) => {
            hall.count.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "starting a receiving thread");
        }
    }
}

fn receive(hall: &Hall, stream: &TcpStream) -> Fault {
    let _ = stream.set_nodelay(true);
    let (tls, peer) = match hall.tls.accept(stream) {
        Ok(greeted) => greeted,
        Err(fault) => return fault,
    };
    if wants_vote(&tls) {
        return match &hall.voter {
            Some(voter) => votes::serve(voter, stream, tls, &peer, &hall.stop),
            None => {
                Fault::new(FaultKind::Rights, format!("{peer} wants a vote, and this site takes no part"))
            }
        };
    }
    let mut drive = Drive::new(stream, tls, hall.began, Arc::default());
    let now_ns = u64::try_from(hall.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut receiver = Receiver::new(hall.store.clone(), hall.feeding.clone(), &peer, now_ns);
    if let Err(fault) = receiver.sync_beside() {
        return fault;
    }
    drive.run(&mut receiver, &hall.stop, &mut |_, _| {})
}
