//! The server: who is connected, and how it all ends.
//!
//! Every connection and every listener has an operating-system thread. The data path blocks on a socket and on
//! the disk and has nothing to multiplex: with big receives and joined replies threads are as fast as any event
//! loop at depth, and faster at depth one, where a hand-over between threads would cost as much as the request.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::budget::Budget;
use crate::connection;
use crate::exports::{Exports, Peer};
use crate::limits::{CONNECTIONS_MAX, HANDSHAKE_OPTION_TIME, LARGE_BYTES_TOTAL, SHUTDOWN_GRACE};
use crate::stats::{Counters, Latencies, LatencySnapshot};
use crate::wire::{Order, Signal, Wire};

/// After the deadline of a shutdown, connections are told to end at once, and have this long.
const END_TIME: Duration = Duration::from_secs(1);

/// Bounds that a program may set to other than the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// See [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// See [`LARGE_BYTES_TOTAL`].
    pub large_bytes_total: usize,
    /// See [`HANDSHAKE_OPTION_TIME`].
    pub handshake_option_time: Duration,
    /// See [`SHUTDOWN_GRACE`].
    pub shutdown_grace: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connections_max: CONNECTIONS_MAX,
            large_bytes_total: LARGE_BYTES_TOTAL,
            handshake_option_time: HANDSHAKE_OPTION_TIME,
            shutdown_grace: SHUTDOWN_GRACE,
        }
    }
}

/// A connection as its own thread and the server see it.
pub(crate) struct Client {
    id: u64,
    pub(crate) peer: Peer,
    since: SystemTime,
    export: OnceLock<String>,
    pub(crate) signal: Signal,
    pub(crate) counters: Counters,
}

impl Client {
    /// The handshake is over.
    pub(crate) fn opened(&self, export: &str) {
        let _ = self.export.set(export.to_owned());
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) options: Options,
    pub(crate) budget: Arc<Budget>,
    pub(crate) latencies: Latencies,
    stopping: AtomicBool,
    next_id: AtomicU64,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    left: Condvar,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection; when there are too many, the oldest in its handshake has to go, and if there is
    /// none, the new one.
    fn admit(&self, peer: Peer) -> io::Result<Arc<Client>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            id,
            peer,
            since: SystemTime::now(),
            export: OnceLock::new(),
            signal: Signal::new()?,
            counters: Counters::default(),
        });
        let mut clients = self.clients();
        if self.stopping.load(Ordering::SeqCst) {
            return Err(io::Error::other("the server is shutting down"));
        }
        if clients.len() >= self.options.connections_max {
            let greeted = clients
                .values()
                .filter(|client| client.export.get().is_none() && client.signal.order() == Order::Run);
            match greeted.min_by_key(|client| client.id) {
                Some(oldest) => oldest.signal.give(Order::End, None),
                None => return Err(io::Error::other("too many connections")),
            }
        }
        clients.insert(id, Arc::clone(&client));
        Ok(client)
    }

    /// Waits until no client is left of those that `of` names; false if that took too long.
    fn wait_gone(&self, of: impl Fn(&Client) -> bool, until: Instant) -> bool {
        let mut clients = self.clients();
        while clients.values().any(|client| of(client)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            clients = self.left.wait_timeout(clients, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Takes the connection off the list, also when its thread panics.
struct Leave {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.shared.clients().remove(&self.client.id);
        self.shared.left.notify_all();
    }
}

/// What `status` tells of a client.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Number of the connection, from 1.
    pub id: u64,
    /// Who it is.
    pub peer: Peer,
    /// The exact name of what it has open; `None` during the handshake.
    pub export: Option<String>,
    /// When it connected.
    pub since: SystemTime,
    /// Requests answered.
    pub requests: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// A listener's thread.
pub(crate) struct Acceptor {
    pub(crate) signal: Arc<Signal>,
    pub(crate) thread: JoinHandle<()>,
}

/// An NBD server. Dropping it shuts it down without a grace period.
pub struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) acceptors: Mutex<Vec<Acceptor>>,
}

impl Server {
    /// A server for these exports; it listens nowhere yet.
    pub fn start(exports: Arc<dyn Exports>, options: Options) -> Server {
        let shared = Arc::new(Shared {
            exports,
            options,
            budget: Budget::new(options.large_bytes_total),
            latencies: Latencies::default(),
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            clients: Mutex::default(),
            left: Condvar::new(),
        });
        Server { shared, acceptors: Mutex::default() }
    }

    /// Serves one connected stream socket on a thread of its own.
    pub fn serve_socket(&self, socket: OwnedFd, peer: Peer) -> io::Result<()> {
        spawn(&self.shared, socket, peer)
    }

    /// Serves one connected stream socket on this thread; returns when the connection is over.
    pub fn serve_socket_here(&self, socket: OwnedFd, peer: Peer) -> io::Result<()> {
        let client = self.shared.admit(peer)?;
        run(&Arc::clone(&self.shared), client, socket);
        Ok(())
    }

    /// Who is connected, by age.
    pub fn clients(&self) -> Vec<ClientInfo> {
        let clients = self.shared.clients();
        let mut infos: Vec<ClientInfo> = clients
            .values()
            .map(|client| ClientInfo {
                id: client.id,
                peer: client.peer.clone(),
                export: client.export.get().cloned(),
                since: client.since,
                requests: client.counters.requests.load(Ordering::Relaxed),
                bytes_read: client.counters.bytes_read.load(Ordering::Relaxed),
                bytes_written: client.counters.bytes_written.load(Ordering::Relaxed),
            })
            .collect();
        infos.sort_by_key(|info| info.id);
        infos
    }

    /// Latencies since the start.
    pub fn latencies(&self) -> LatencySnapshot {
        self.shared.latencies.snapshot()
    }

    /// Ends all connections whose export's exact name `is_meant` names: requests in hand are answered, then the
    /// socket is closed. Returns whether all were gone after `wait`.
    pub fn disconnect(&self, is_meant: impl Fn(&str) -> bool, wait: Duration) -> bool {
        let is_meant = |client: &Client| client.export.get().is_some_and(|export| is_meant(export));
        for client in self.shared.clients().values().filter(|client| is_meant(client)) {
            client.signal.give(Order::End, None);
        }
        self.shared.wait_gone(is_meant, Instant::now() + wait)
    }

    /// Stops listening; requests in hand are answered, later ones get ESHUTDOWN for a short while, then all
    /// connections are closed, at the latest after `deadline`. Returns whether all are gone; what is left then
    /// hangs in the device.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.stop_listening();
        self.order_all(Order::WindDown, Some(until));
        if self.shared.wait_gone(|_| true, until) {
            return true;
        }
        self.order_all(Order::End, None);
        self.shared.wait_gone(|_| true, Instant::now() + END_TIME)
    }

    /// Returns when somebody has called [`Server::shutdown`] and all connections are gone.
    pub fn wait_shut_down(&self) {
        let mut clients = self.shared.clients();
        while !(self.shared.stopping.load(Ordering::SeqCst) && clients.is_empty()) {
            clients = self.shared.left.wait(clients).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn order_all(&self, order: Order, until: Option<Instant>) {
        let clients = self.shared.clients();
        self.shared.stopping.store(true, Ordering::SeqCst);
        for client in clients.values() {
            client.signal.give(order, until);
        }
        self.shared.left.notify_all();
    }

    fn stop_listening(&self) {
        let acceptors = std::mem::take(&mut *self.acceptors.lock().unwrap_or_else(PoisonError::into_inner));
        for acceptor in &acceptors {
            acceptor.signal.give(Order::End, None);
        }
        for acceptor in acceptors {
            let _ = acceptor.thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_listening();
        self.order_all(Order::End, None);
    }
}

/// Serves a new connection on a thread of its own.
pub(crate) fn spawn(shared: &Arc<Shared>, socket: OwnedFd, peer: Peer) -> io::Result<()> {
    let client = shared.admit(peer)?;
    let leave = Leave { shared: Arc::clone(shared), client: Arc::clone(&client) };
    let name = connection::thread_name(&client.peer);
    let thread = move || run_until_left(&leave, socket);
    std::thread::Builder::new().name(name).spawn(thread).map(drop)
}

fn run(shared: &Arc<Shared>, client: Arc<Client>, socket: OwnedFd) {
    run_until_left(&Leave { shared: Arc::clone(shared), client }, socket);
}

fn run_until_left(leave: &Leave, socket: OwnedFd) {
    let wire = Wire::new(socket, &leave.client.signal);
    connection::serve(&wire, &leave.client, &leave.shared);
}
