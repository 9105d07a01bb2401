//! Votes on sockets: a voter's side of a connection, a witness's door, and a site's line to one voter.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender as Post;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::{IoContext, Result};
use rustls::Connection;

use super::tls::Tls;
use crate::fault::{Fault, FaultKind};
use crate::limits::{CONNECTIONS_MAX, LEASE_NS};
use crate::vote::service::Service;
use crate::vote::wire::{decode_ask, decode_said, encode_ask, encode_said, length};
use crate::vote::{Ask, Said};

/// Between two looks whether it should end.
const LOOK: Duration = Duration::from_millis(200);
/// Connecting takes no longer.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// A voter that says nothing for so long is asked again on a new connection: later answers are of no use.
const ANSWER_TIME: Duration = Duration::from_nanos(LEASE_NS / 2);
/// A site that asks nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(500);

/// A connection that carries messages.
struct Talk {
    socket: TcpStream,
    tls: Connection,
    came: Vec<u8>,
}

impl Talk {
    fn new(socket: TcpStream, tls: Connection) -> std::result::Result<Talk, Fault> {
        socket.set_nonblocking(false).map_err(lost)?;
        socket.set_read_timeout(Some(LOOK)).map_err(lost)?;
        socket.set_write_timeout(Some(ANSWER_TIME)).map_err(lost)?;
        Ok(Talk { socket, tls, came: Vec::new() })
    }

    fn send(&mut self, message: &[u8]) -> std::result::Result<(), Fault> {
        self.tls.writer().write_all(message).map_err(lost)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket).map_err(lost)?;
        }
        Ok(())
    }

    /// Some of what came, in clear.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.tls.reader().read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => return other,
        }
        if self.tls.read_tls(&mut self.socket)? == 0 {
            return Ok(0);
        }
        self.tls.process_new_packets().map_err(std::io::Error::other)?;
        match self.tls.reader().read(buffer) {
            // Half a record of TLS, or one that carries nothing: the next one will.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::Interrupted.into()),
            other => other,
        }
    }

    /// The next message; an error when it takes longer than `patience`, or `stop` is set.
    fn next(&mut self, patience: Duration, stop: &AtomicBool) -> std::result::Result<Vec<u8>, Fault> {
        let until = Instant::now() + patience;
        let mut buffer = [0; 4096];
        loop {
            if let Some(length) = length(&self.came)?
                && self.came.len() >= length
            {
                return Ok(self.came.drain(..length).collect());
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Fault::new(FaultKind::Closing, "this side is going down"));
            }
            // Also while something comes, a byte now and then.
            if Instant::now() >= until {
                return Err(Fault::new(FaultKind::Closing, "the other side does not answer"));
            }
            match self.read(&mut buffer) {
                Ok(0) => return Err(Fault::new(FaultKind::Closing, "the other side closed the connection")),
                Ok(read) => self.came.extend_from_slice(&buffer[..read]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

fn lost(error: std::io::Error) -> Fault {
    Fault::new(FaultKind::Closing, format!("the connection is lost: {error}"))
}

/// Answers the site `peer`, as its certificate calls it, until the connection ends.
pub fn serve(service: &Service, socket: &TcpStream, tls: Connection, peer: &str, stop: &AtomicBool) -> Fault {
    let run = || {
        let mut talk = Talk::new(socket.try_clone().map_err(lost)?, tls)?;
        loop {
            let ask = decode_ask(&talk.next(SILENCE, stop)?)?;
            talk.send(&encode_said(&service.answer_other(&ask, peer)))?;
        }
    };
    let outcome: std::result::Result<(), Fault> = run();
    outcome.err().unwrap_or_else(|| Fault::new(FaultKind::Closing, "it ended"))
}

/// A witness's door, open until this is dropped.
pub struct Door {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Answers whoever has a site's certificate at `address`.
    pub fn open(service: Arc<Service>, tls: Tls, address: SocketAddr) -> Result<Door> {
        let place = || format!("listening for votes on {address}");
        let socket = TcpListener::bind(address).at(place)?;
        socket.set_nonblocking(true).at(place)?;
        let address = socket.local_addr().at(place)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("cdp witness".to_owned())
            .spawn(move || accept_all(&socket, &service, &tls, &stopped))
            .at(|| "starting the thread that takes votes".to_owned())?;
        Ok(Door { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that takes votes panicked");
        }
    }
}

fn accept_all(socket: &TcpListener, service: &Arc<Service>, tls: &Tls, stop: &Arc<AtomicBool>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    let count = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
        let (stream, from) = match socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for votes");
                std::thread::sleep(LOOK);
                continue;
            }
        };
        if count.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!(%from, "{CONNECTIONS_MAX} connections are open, no more are taken");
            continue;
        }
        count.fetch_add(1, Ordering::Relaxed);
        let (service, tls, stopped, open) = (service.clone(), tls.clone(), stop.clone(), count.clone());
        let answer = move || {
            let _ = stream.set_nodelay(true);
            let fault = match tls.accept(&stream) {
                Ok((connection, peer)) => serve(&service, &stream, connection, &peer, &stopped),
                Err(fault) => fault,
            };
            open.fetch_sub(1, Ordering::Relaxed);
            match fault.kind.is_lasting() {
                true => tracing::error!(%from, "votes: {fault}"),
                false => tracing::debug!(%from, "votes: {fault}"),
            }
        };
        // Not waited for at the end: they look every moment whether they should end, and hold nothing.
        if let Err(error) = std::thread::Builder::new().name("cdp vote".to_owned()).spawn(answer) {
            count.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "starting a thread that takes votes");
        }
    }
}

/// Which voter is at the other end of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The other site's.
    Peer,
    /// The witness.
    Witness,
}

/// How a line stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LineState {
    /// The voter's name, as its certificate says it, once it was met.
    pub name: Option<String>,
    /// Why it does not answer; nothing while it does.
    pub trouble: Option<String>,
}

/// A site's line to one voter: takes the newest question, posts the answers.
pub struct Line {
    slot: Arc<Slot>,
    thread: Option<JoinHandle<()>>,
}

struct Slot {
    which: Which,
    address: String,
    tls: Tls,
    stop: AtomicBool,
    // The newest question that was not sent; an older one is of no use any more.
    ask: Mutex<Option<Ask>>,
    asked: Condvar,
    state: Mutex<LineState>,
}

impl Line {
    /// A line to the voter at `HOST:PORT`, whose answers go to `post` under the number `voter`.
    pub fn open(
        which: Which,
        address: &str,
        tls: Tls,
        voter: usize,
        post: Post<(usize, Said)>,
    ) -> Result<Line> {
        let state = LineState { name: None, trouble: Some("it was not asked yet".to_owned()) };
        let slot = Arc::new(Slot {
            which,
            address: address.to_owned(),
            tls,
            stop: AtomicBool::new(false),
            ask: Mutex::new(None),
            asked: Condvar::new(),
            state: Mutex::new(state),
        });
        let here = slot.clone();
        let thread = std::thread::Builder::new()
            .name("cdp votes".to_owned())
            .spawn(move || here.run(voter, &post))
            .at(|| "starting the thread that asks a voter".to_owned())?;
        Ok(Line { slot, thread: Some(thread) })
    }

    /// Asks, instead of what was not asked yet.
    pub fn ask(&self, ask: Ask) {
        *self.slot.ask.lock().expect("no panics under this lock") = Some(ask);
        self.slot.asked.notify_all();
    }

    /// Where the voter is.
    pub fn address(&self) -> &str {
        &self.slot.address
    }

    /// How it stands.
    pub fn state(&self) -> LineState {
        self.slot.state.lock().expect("no panics under this lock").clone()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.slot.stop.store(true, Ordering::Relaxed);
        self.slot.asked.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread that asks a voter panicked");
        }
    }
}

impl Slot {
    fn run(&self, voter: usize, post: &Post<(usize, Said)>) {
        let mut talk: Option<Talk> = None;
        while let Some(ask) = self.next() {
            let mut asked = match talk.take() {
                Some(talk) => Ok(talk),
                None => self.connect(),
            };
            if let Ok(open) = &mut asked {
                match self.exchange(open, &ask) {
                    Ok(said) => {
                        self.state.lock().expect("no panics under this lock").trouble = None;
                        if post.send((voter, said)).is_err() {
                            return;
                        }
                    }
                    Err(fault) => asked = Err(fault),
                }
            }
            match asked {
                Ok(open) => talk = Some(open),
                Err(fault) => {
                    self.note(&fault);
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    fn note(&self, fault: &Fault) {
        let mut state = self.state.lock().expect("no panics under this lock");
        let text = fault.to_string();
        if state.trouble.as_ref() != Some(&text) {
            tracing::info!("the voter at {}: {text}", self.address);
            state.trouble = Some(text);
        }
    }

    fn next(&self) -> Option<Ask> {
        let mut ask = self.ask.lock().expect("no panics under this lock");
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(ask) = ask.take() {
                return Some(ask);
            }
            ask = self.asked.wait_timeout(ask, LOOK).expect("no panics under this lock").0;
        }
    }

    fn connect(&self) -> std::result::Result<Talk, Fault> {
        let address = &self.address;
        let lost = |error: std::io::Error| Fault::new(FaultKind::Closing, format!("{address}: {error}"));
        let mut newest = Fault::new(FaultKind::Closing, format!("{address}: the name has no address"));
        for socket in address.to_socket_addrs().map_err(lost)? {
            match TcpStream::connect_timeout(&socket, CONNECT_TIME) {
                Ok(socket) => {
                    let _ = socket.set_nodelay(true);
                    let (tls, name) = match self.which {
                        Which::Peer => self.tls.connect_to_vote(&socket)?,
                        Which::Witness => self.tls.connect_to_witness(&socket)?,
                    };
                    // One voter that is counted twice is a majority by itself.
                    if self.which == Which::Peer && name == self.tls.site() {
                        let text = format!(
                            "{address} is answered by {name}, which is this site's own name: its voter would count twice; `peer` of [automatic] is the other site's address, and each site has a certificate of its own"
                        );
                        return Err(Fault::new(FaultKind::Rights, text));
                    }
                    self.state.lock().expect("no panics under this lock").name = Some(name);
                    return Talk::new(socket, tls);
                }
                Err(error) => newest = lost(error),
            }
        }
        Err(newest)
    }

    fn exchange(&self, talk: &mut Talk, ask: &Ask) -> std::result::Result<Said, Fault> {
        talk.send(&encode_ask(ask))?;
        decode_said(&talk.next(ANSWER_TIME, &self.stop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Rights, issue, make_authority};

    // A voter that sends a byte now and then would hold the line, and the newest question would wait behind it for minutes.
    #[test]
    fn an_answer_that_comes_by_the_byte_is_given_up() {
        let home = tempfile::tempdir().unwrap();
        let [authority, a, b] = ["authority", "a", "b"].map(|name| home.path().join(name));
        make_authority(&authority, "authority").unwrap();
        let rights = Rights { primary: true, replica: true, witness: false };
        issue(&authority, "site-a", rights, &a).unwrap();
        issue(&authority, "site-b", rights, &b).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let slow = std::thread::spawn(move || {
            let socket = listener.accept().unwrap().0;
            let (tls, _) = Tls::load(&b).unwrap().accept(&socket).unwrap();
            let mut talk = Talk::new(socket, tls).unwrap();
            // The header of a long message, and then not enough of it, for twenty times the patience.
            let mut bytes = b"CDPV\x01\x02\x00\x00\x00\x40\x00\x00".to_vec();
            bytes.extend_from_slice(&[0; 400]);
            let began = Instant::now();
            for byte in bytes {
                if began.elapsed() > Duration::from_secs(20) || talk.send(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let socket = TcpStream::connect(address).unwrap();
        let (tls, _) = Tls::load(&a).unwrap().connect_to_vote(&socket).unwrap();
        let mut talk = Talk::new(socket, tls).unwrap();
        let fault = talk.next(Duration::from_secs(1), &AtomicBool::new(false)).unwrap_err();
        assert!(fault.to_string().contains("does not answer"), "{fault}");
        assert!(!slow.is_finished(), "it was waited for to its end");
        drop(talk);
        slow.join().unwrap();
    }
}
