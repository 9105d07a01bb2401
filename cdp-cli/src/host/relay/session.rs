//! One client of the relay: its unanswered requests, and the three threads that move them.
//!
//! ```text
//! client ──take──▶ pending ──send──▶ server
//! client ◀─────────answer─────────── server
//! ```
//!
//! A request leaves `pending` only when its answer goes to the client. When the link breaks, every pending request
//! counts as unsent again. Only `pending` and the link are shared; no thread does I/O while it holds the lock.

use super::front::{self, Chosen};
use super::link::{self, Export, Link};
use super::uri::Address;
use super::wire::{self, Request};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause before a server that is away is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Pause before a server that is out of space is asked again.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(1);

/// The most unanswered requests of one client; the next one waits in its socket.
const PENDING_MAX: usize = 1024;

/// The most bytes of their payloads.
const PENDING_BYTES_MAX: usize = 256 << 20;

struct Pending {
    request: Request,
    payload: Arc<Vec<u8>>,
    /// The client's name for it. Ours is the key in the map: it is unique, and it keeps the order.
    cookie: u64,
    sent: bool,
    /// Not to be sent before.
    not_before: Option<Instant>,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, Pending>,
    pending_bytes: usize,
    next: u64,
    /// Where requests go; none while the server is away.
    link: Option<Arc<Link>>,
    /// The client is gone.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked leaves whole entries behind; the others may end in order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        if let Some(link) = &state.link {
            link.shut();
        }
        self.changed.notify_all();
    }
}

/// Serves one client until it goes away.
pub(super) fn run(client: UnixStream, address: &Address) -> io::Result<()> {
    let Some((link, export)) = first_link(&client, address)? else {
        return Ok(());
    };
    let mut handshake = client.try_clone()?;
    if front::shake_hands(&mut handshake, export)? == Chosen::Nothing {
        return Ok(());
    }
    let shared = Shared::default();
    let (answers, requests) = (client.try_clone()?, client.try_clone()?);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&shared));
        scope.spawn(|| {
            let ended = answer(&shared, link, export, address, answers);
            // Whatever ended it, the other two must not wait for ever.
            let _ = client.shutdown(std::net::Shutdown::Both);
            shared.close();
            ended
        });
        let ended = take(&shared, requests);
        shared.close();
        ended
    })
}

/// The first connection: the client waits until there is one, or goes away.
fn first_link(client: &UnixStream, address: &Address) -> io::Result<Option<(Link, Export)>> {
    loop {
        match link::connect(address) {
            Ok(connected) => return Ok(Some(connected)),
            Err(error) => eprintln!("the server cannot be reached: {error}"),
        }
        std::thread::sleep(RECONNECT_PAUSE);
        if is_gone(client) {
            return Ok(None);
        }
    }
}

fn is_gone(client: &UnixStream) -> bool {
    let mut byte = [0];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(client, &mut byte, flags), Ok((_, 0)))
}

/// Takes requests from the client.
fn take(shared: &Shared, mut client: UnixStream) -> io::Result<()> {
    loop {
        let (request, cookie) = match Request::read(&mut client) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        if request.command == wire::COMMAND_DISCONNECT {
            return Ok(());
        }
        let payload = Arc::new(wire::bytes(&mut client, request.payload_bytes())?);
        let mut state = shared.lock();
        while !state.closed
            && (state.pending.len() >= PENDING_MAX || state.pending_bytes >= PENDING_BYTES_MAX)
        {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Ok(());
        }
        let number = state.next;
        state.next += 1;
        state.pending_bytes += payload.len();
        state.pending.insert(number, Pending { request, payload, cookie, sent: false, not_before: None });
        shared.changed.notify_all();
    }
}

/// Sends what is unsent, oldest first.
fn send(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return;
        }
        let now = Instant::now();
        let link = state.link.clone();
        let next = state
            .pending
            .iter_mut()
            .find(|(_, pending)| !pending.sent && pending.not_before.is_none_or(|time| time <= now));
        if let (Some(link), Some((&number, pending))) = (link, next) {
            pending.sent = true;
            let (head, payload) = (pending.request.encode(number), Arc::clone(&pending.payload));
            drop(state);
            let mut writer: &Link = &link;
            if writer.write_all(&head).and_then(|()| writer.write_all(&payload)).is_err() {
                // The answering thread meets the same and connects again.
                link.shut();
            }
            state = shared.lock();
            continue;
        }
        let waiting = state.pending.values().filter(|pending| !pending.sent);
        let soonest = waiting.filter_map(|pending| pending.not_before).min();
        state = match soonest.filter(|&time| time > now && state.link.is_some()) {
            Some(time) => {
                let woken = shared.changed.wait_timeout(state, time - now);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

/// Carries answers to the client, over as many links as it takes.
fn answer(
    shared: &Shared,
    first: Link,
    export: Export,
    address: &Address,
    mut client: UnixStream,
) -> io::Result<()> {
    let mut link = Arc::new(first);
    loop {
        publish(shared, &link);
        let mut reader: &Link = &link;
        let broken = loop {
            match one_answer(shared, &mut reader, &mut client) {
                Ok(()) => {}
                Err(Broken::Client(error)) => return Err(error),
                Err(Broken::Server(error)) => break error,
            }
        };
        link.shut();
        withdraw(shared);
        if shared.lock().closed {
            return Ok(());
        }
        eprintln!("the server went away: {broken}");
        let Some(again) = reconnect(shared, export, address) else {
            return Ok(());
        };
        eprintln!("the server is back");
        link = Arc::new(again);
    }
}

enum Broken {
    Client(io::Error),
    Server(io::Error),
}

fn one_answer(shared: &Shared, link: &mut &Link, client: &mut UnixStream) -> Result<(), Broken> {
    let server = Broken::Server;
    wire::want(wire::u32(link).map_err(server)?, wire::REPLY_MAGIC, "reply magic").map_err(server)?;
    let (error, number) = (wire::u32(link).map_err(server)?, wire::u64(link).map_err(server)?);
    let known = shared.lock().pending.get(&number).map(|pending| (pending.request, pending.cookie));
    let Some((request, cookie)) = known else {
        return Err(server(wire::wrong(format!("an answer to {number}, which nobody asked"))));
    };
    match error {
        0 => {
            let data = wire::bytes(link, request.answer_bytes()).map_err(server)?;
            client.write_all(&wire::reply(0, cookie)).map_err(Broken::Client)?;
            client.write_all(&data).map_err(Broken::Client)?;
        }
        // It is about to close; the next one will answer.
        wire::ESHUTDOWN => return Err(server(io::Error::other("it is shutting down"))),
        wire::ENOSPC => {
            let mut state = shared.lock();
            if let Some(pending) = state.pending.get_mut(&number) {
                pending.sent = false;
                pending.not_before = Some(Instant::now() + NO_SPACE_PAUSE);
            }
            shared.changed.notify_all();
            return Ok(());
        }
        error => client.write_all(&wire::reply(error, cookie)).map_err(Broken::Client)?,
    }
    let mut state = shared.lock();
    if let Some(done) = state.pending.remove(&number) {
        state.pending_bytes -= done.payload.len();
    }
    shared.changed.notify_all();
    Ok(())
}

/// A new link: everything unanswered goes over it.
fn publish(shared: &Shared, link: &Arc<Link>) {
    let mut state = shared.lock();
    for pending in state.pending.values_mut() {
        pending.sent = false;
    }
    state.link = Some(Arc::clone(link));
    if state.closed {
        link.shut();
    }
    shared.changed.notify_all();
}

fn withdraw(shared: &Shared) {
    shared.lock().link = None;
}

/// Tries until the same export is there again; none when the client is gone, or the volume was rolled back.
fn reconnect(shared: &Shared, export: Export, address: &Address) -> Option<Link> {
    let mut last_said = String::new();
    loop {
        // First a pause, so that a server that only says goodbye is not asked in a rush. Woken early when the
        // client goes.
        let state = shared.lock();
        let (state, _) = shared
            .changed
            .wait_timeout_while(state, RECONNECT_PAUSE, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        drop(state);
        let said = match link::connect(address) {
            Ok((_, now)) if now.rolled_back != export.rolled_back => {
                // Going on would write what the client holds in its caches over a state that it never saw.
                eprintln!("{}", super::ENDED);
                return None;
            }
            // It may have grown: what the client was told is there still.
            Ok((link, now)) if now.flags == export.flags && now.bytes >= export.bytes => return Some(link),
            Ok((_, now)) => format!("another disk is served under that name: {now:?}"),
            Err(error) => error.to_string(),
        };
        if said != last_said {
            eprintln!("still away: {said}");
            last_said = said;
        }
    }
}
