//! Where clients come from: Unix sockets, TCP, sockets inherited from systemd, and standard input and output.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cdp_core::error::{Error, IoContext, Kind, Result};
use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, fchmod, fstat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};

use crate::exports::Peer;
use crate::limits::{BACKLOG, SOCKET_BUFFER_BYTES, SOCKET_PATH_BYTES_MAX};
use crate::server::{Acceptor, Server, Shared, spawn};
use crate::wire::{Signal, Wake};

/// Bytes moved at a time between a pipe and the server.
const PIPE_BYTES: usize = 64 << 10;

/// When accepting fails, for want of descriptors for example, it is tried again after this time.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Permissions of a Unix socket: its owner only.
const SOCKET_MODE: u32 = 0o600;

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Where a socket is that was passed to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inherited {
    /// A Unix socket, at this path if it has one.
    Unix(Option<PathBuf>),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// A socket file, removed when its listener ends, unless another server has replaced it.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Server {
    /// Listens on a Unix socket that only its owner may use. A socket file that nobody answers on any more is
    /// replaced; one that somebody answers on, or a file of another kind, is [`Kind::Busy`] or [`Kind::Exists`].
    pub fn listen_unix(&self, path: &Path) -> Result<()> {
        make_way(path)?;
        let listener = bind_unix(path).at(|| format!("listening on {}", path.display()))?;
        let found = std::fs::symlink_metadata(path).at(|| format!("looking at {}", path.display()))?;
        let file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
        self.accept(Listener::Unix(listener), Some(file))
    }

    /// Listens on a TCP address, and returns it with the port that was given for port 0. Whether an address
    /// beyond loopback is allowed, [`check_plaintext`] decides.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind(address).at(|| format!("listening on {address}"))?;
        let address = listener.local_addr().at(|| format!("listening on {address}"))?;
        self.accept(Listener::Tcp(listener), None)?;
        Ok(address)
    }

    /// Listens on the sockets that systemd passed (LISTEN_FDS); says where they are. For TCP addresses beyond
    /// loopback [`check_plaintext`] decides, before anybody is let in.
    pub fn listen_inherited(&self, insecure_plaintext: bool) -> Result<Vec<Inherited>> {
        let mut inherited = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for number in 0..inherited.len() {
            let place = || format!("inherited socket {number}");
            if let Ok(Some(listener)) = inherited.take_unix_listener(number) {
                let address = listener.local_addr().at(place)?;
                let path = address.as_pathname().map(Path::to_owned);
                listeners.push((Inherited::Unix(path), Listener::Unix(listener)));
                continue;
            }
            let listener = inherited
                .take_tcp_listener(number)
                .at(|| format!("{} is neither a Unix nor a TCP listener", place()))?;
            if let Some(listener) = listener {
                let address = listener.local_addr().at(place)?;
                check_plaintext(address, insecure_plaintext)?;
                listeners.push((Inherited::Tcp(address), Listener::Tcp(listener)));
            }
        }
        let accept = |(place, listener)| self.accept(listener, None).map(|()| place);
        listeners.into_iter().map(accept).collect()
    }

    /// Serves the one client at the other end of standard input and output; returns when it has gone.
    ///
    /// Programs that start a server for themselves often pass it a listening socket instead, as systemd does
    /// (libnbd's `[ COMMAND ]` is one). Then that is served, until the server is shut down.
    pub fn serve_stdio(&self) -> Result<()> {
        if !self.listen_inherited(false)?.is_empty() {
            self.wait_shut_down();
            return Ok(());
        }
        let input = io::stdin().as_fd().try_clone_to_owned().at(|| "standard input".to_owned())?;
        let is_socket = |fd: BorrowedFd<'_>| {
            fstat(fd).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Socket)
        };
        let output = io::stdout().as_fd().try_clone_to_owned().at(|| "standard output".to_owned())?;
        let same = fstat(&input).ok().zip(fstat(&output).ok()).is_some_and(|(a, b)| a.st_ino == b.st_ino);
        if is_socket(input.as_fd()) && same {
            return self.serve_socket_here(input, Peer::Stdio).at(|| "serving standard input".to_owned());
        }
        self.serve_pipes(input, output).at(|| "serving standard input and output".to_owned())
    }

    /// Two pipes in place of a socket: a thread for each direction makes them one.
    fn serve_pipes(&self, input: OwnedFd, output: OwnedFd) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut to_server = theirs.try_clone()?;
        let mut from_server = theirs;
        // Ends when the client closes its pipe; nobody waits for it, since a read cannot be called off.
        std::thread::Builder::new().name("nbd stdin".to_owned()).spawn(move || {
            let _ = pass_on(&mut std::fs::File::from(input), &mut to_server);
            let _ = to_server.shutdown(std::net::Shutdown::Write);
        })?;
        let writer = std::thread::Builder::new().name("nbd stdout".to_owned()).spawn(move || {
            let _ = pass_on(&mut from_server, &mut std::fs::File::from(output));
        })?;
        self.serve_socket_here(ours.into(), Peer::Stdio)?;
        let _ = writer.join();
        Ok(())
    }

    fn accept(&self, listener: Listener, file: Option<SocketFile>) -> Result<()> {
        let signal = Arc::new(Signal::new().at(|| "making an eventfd".to_owned())?);
        listener.set_nonblocking().at(|| "making the listener nonblocking".to_owned())?;
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&signal));
        let run = move || {
            accept_all(&listener, &stop, &shared);
            drop(file);
        };
        let thread = std::thread::Builder::new().name("nbd accept".to_owned()).spawn(run);
        let thread = thread.at(|| "starting the listener's thread".to_owned())?;
        self.acceptors.lock().unwrap_or_else(PoisonError::into_inner).push(Acceptor { signal, thread });
        Ok(())
    }
}

/// Moves bytes until the source ends. Not `io::copy`: that splices, and a splice between a pipe and a socket
/// was seen to keep the last bytes back until more came.
fn pass_on(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Refuses an address beyond loopback unless the user insisted: everything goes over the network in plain text.
pub fn check_plaintext(address: SocketAddr, insecure_plaintext: bool) -> Result<()> {
    if address.ip().is_loopback() || insecure_plaintext {
        return Ok(());
    }
    let context = format!("{address} is reachable from other machines, and the traffic is not encrypted");
    Err(Error::new(Kind::Refused, context).hint("listen on 127.0.0.1, or insist with --insecure-plaintext"))
}

impl Listener {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Unix(listener) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        }
    }

    fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        match self {
            Listener::Unix(listener) => {
                let socket = OwnedFd::from(listener.accept()?.0);
                let credentials = sockopt::socket_peercred(&socket)?;
                let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0);
                Ok((socket, Peer::Unix { pid, uid: credentials.uid.as_raw() }))
            }
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A peer whose machine has gone must not stay for ever.
                sockopt::set_socket_keepalive(&stream, true)?;
                Ok((stream.into(), Peer::Tcp(address)))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn accept_all(listener: &Listener, stop: &Signal, shared: &Arc<Shared>) {
    loop {
        match stop.wait(listener, PollFlags::IN, None) {
            Ok(Wake::Order) => return,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "waiting for connections"),
        }
        let accepted = listener.accept().and_then(|(socket, peer)| {
            if matches!(peer, Peer::Unix { .. }) {
                // The kernel's limit may be lower; more is a favour, not a need.
                let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
            }
            spawn(shared, socket, peer)
        });
        match accepted {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

/// Removes a socket file that a dead server left behind.
fn make_way(path: &Path) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.at(|| format!("looking at {}", path.display()))?,
    };
    if !found.file_type().is_socket() {
        let context = format!("{} is there already and is not a socket", path.display());
        return Err(Error::new(Kind::Exists, context).hint("choose another path for the socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).at(|| format!("removing the stale socket {}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(Error::io(error, format!("looking whether a server answers on {}", path.display())))
        }
        Ok(_) => Err(Error::new(Kind::Busy, format!("another server answers on {}", path.display()))
            .hint("stop it first, or choose another path for the socket")),
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let text = format!(
            "a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes; use a shorter or relative one"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the socket's own mode when it is bound: at no time may others connect.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
