//! `cdp serve`: a store's volumes over NBD, and the control socket for the other commands.

pub mod bitmaps;
pub mod control;
pub mod exports;
pub mod gate;
mod handover;
pub mod keeper;
mod overlap;
pub mod prove;
pub mod ready;
pub mod replication;
pub mod roles;
pub mod votes;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::store::{CreateOptions, Store};
use cdp_nbd::limits::SOCKET_PATH_BYTES_MAX;
use cdp_nbd::listen::{Inherited, check_plaintext};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::door::{Talk, open_to_serve};
use crate::host::notify::tell_systemd;
use crate::report;
use crate::work::{Endpoints, Serving, Site, leaving};
use control::Control;
use exports::StoreExports;
use keeper::Keeper;
use replication::Replication;
use roles::RoleHooks;
use votes::Votes;

/// Name of the Unix socket in the store.
const SOCKET_FILE: &str = "nbd.sock";
/// The port that IANA gave to NBD.
const NBD_PORT: u16 = 10809;
/// The first volume of a new store.
const FIRST_VOLUME: &str = "disk";
const FIRST_VOLUME_BYTES: u64 = 1 << 30;
/// Clients have so long to take their last answers.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);
/// Between two looks whether the client that started us is still there.
const PARENT_STEP: Duration = Duration::from_millis(200);
/// A command that has the store for a moment is waited for so long.
const BUSY_TIME: Duration = Duration::from_secs(1);

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// One client on standard input and output.
    pub stdio: bool,
    /// Print the ready lines as one JSON object.
    pub json: bool,
    /// Say nothing on standard output.
    pub quiet: bool,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config, options: &ServeOptions) -> Result<()> {
    // Before anything can be interrupted.
    let mut signals = Signals::new([SIGTERM, SIGINT]).at(|| "taking signals".to_owned())?;
    let handle = signals.handle();
    if let Some(address) = config.listen {
        check_plaintext(address, config.insecure_plaintext)?;
    }
    if !options.stdio {
        Votes::check(config)?;
    }
    raise_open_files();
    let mut running = Running::start(config, options.stdio)?;
    if options.stdio {
        // SIGTERM ends the wait for the client.
        let site = running.site.clone();
        let waiter = std::thread::Builder::new().name("cdp signals".to_owned()).spawn(move || {
            if signals.forever().next().is_some()
                && let Some(server) = &site.server
            {
                server.nbd.shutdown(SHUTDOWN_TIME);
            }
        });
        waiter.at(|| "starting the signals' thread".to_owned())?;
        end_with_parent(&running.site)?;
        let served = running.server().nbd.serve_stdio();
        handle.close();
        running.stop()?;
        return served;
    }
    if !options.quiet {
        ready::print(config, &running.site, &running.news, options.json);
    }
    tell_systemd("READY=1");
    let signal = signals.forever().next();
    tell_systemd("STOPPING=1");
    let name = if signal == Some(SIGINT) { "SIGINT" } else { "SIGTERM" };
    report::say(&format!(
        "cdp: {name}: finishing what is in flight, then sealing the journal (again: at once)"
    ));
    let again = std::thread::Builder::new().name("cdp signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            // As after a power cut, which is safe: the next start recovers.
            std::process::exit(i32::from(report::INTERRUPTED));
        }
    });
    drop(again);
    let stopped = running.stop();
    handle.close();
    stopped
}

/// A client that started us for itself, passed a listening socket and died before it connected would leave us
/// waiting for ever, with the store locked.
fn end_with_parent(site: &Arc<Site>) -> Result<()> {
    let parent = rustix::process::getppid();
    let site = site.clone();
    let watch = move || {
        while rustix::process::getppid() == parent {
            std::thread::sleep(PARENT_STEP);
        }
        if let Some(server) = &site.server {
            server.nbd.shutdown(SHUTDOWN_TIME);
        }
    };
    let thread = std::thread::Builder::new().name("cdp parent".to_owned()).spawn(watch);
    thread.map(drop).at(|| "starting a thread".to_owned())
}

/// A server with all that belongs to it.
pub struct Running {
    /// The store and the server.
    pub site: Arc<Site>,
    /// What was done on the way that the user should know.
    pub news: Vec<String>,
    control: Option<Control>,
    keeper: Option<Keeper>,
    runtime_dir: Option<PathBuf>,
}

impl Running {
    /// Opens the store, making it if need be, and listens.
    pub fn start(config: &Config, stdio: bool) -> Result<Running> {
        let mut news = Vec::new();
        let socket = config.socket.clone().unwrap_or_else(|| config.store.join(SOCKET_FILE));
        if !stdio && !config.store.exists() {
            refuse_if_taken(config)?;
        }
        let store = Arc::new(take_store(config, &socket, &mut news)?);
        // A site that takes replicas gets its volumes from others.
        if config.replica_listen.is_none()
            && store.volumes().is_empty()
            && store.failed().is_empty()
            && store.trash()?.is_empty()
        {
            store.create_volume(FIRST_VOLUME, &CreateOptions::new(FIRST_VOLUME_BYTES), None)?;
            news.push(format!("made the volume `{FIRST_VOLUME}`, 1 GiB, thin"));
        }
        for (name, error) in store.failed() {
            tracing::error!("volume {name} is not served: {error}");
        }
        let votes = Arc::new(Votes::prepare(config, &store)?);
        let exports = Arc::new(StoreExports::new(store.clone(), config.clone_cap_bytes, votes.clone()));
        let clones = exports.clones().clone();
        let nbd = cdp_nbd::Server::start(exports, nbd_options());
        let mut runtime_dir = None;
        let mut endpoints = Endpoints::default();
        if !stdio {
            endpoints = listen(&nbd, config, socket, &mut news, &mut runtime_dir)?;
        }
        let replication = match stdio {
            true => Replication::default(),
            false => Replication::start(config, &store, votes.service())?,
        };
        endpoints.replica = replication.listener.as_ref().map(|listener| listener.address().to_string());
        if let Some(address) = &endpoints.replica {
            news.push(format!("taking replicas of other sites on {address}"));
        }
        let roles = RoleHooks::start(config, &store)?;
        let serving = Serving { nbd, since: SystemTime::now(), endpoints, clones, replication, roles };
        let site = Arc::new(Site { store, server: Some(Arc::new(serving)), votes });
        leaving::watch(&site);
        let server = site.server.as_ref().expect("it was made just now");
        site.votes.start(&site, server.replication.tls.as_ref())?;
        let keeper = Some(Keeper::start(site.clone(), config.on_alarm.clone(), config.prove.clone())?);
        let control = Some(Control::start(site.clone())?);
        Ok(Running { site, news, control, keeper, runtime_dir })
    }

    /// The server.
    pub fn server(&self) -> &Serving {
        self.site.server.as_deref().expect("a running site has a server")
    }

    /// Answers what is in flight, closes connections and the store.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(control) = self.control.take() {
            control.stop();
        }
        self.site.votes.close();
        if !self.server().nbd.shutdown(SHUTDOWN_TIME) {
            tracing::warn!("some connections did not end in time");
        }
        self.site.votes.stop();
        self.server().replication.stop();
        if let Some(keeper) = self.keeper.take() {
            keeper.stop();
        }
        if let Some(dir) = self.runtime_dir.take() {
            let _ = std::fs::remove_dir(dir);
        }
        self.site.store.close()
    }
}

/// Whoever named a socket that somebody else has meant another store, and is not left with a new one.
fn refuse_if_taken(config: &Config) -> Result<()> {
    let taken = |place: String| {
        Err(Error::new(Kind::Busy, format!("{place} is taken by another server"))
            .hint("use that one, stop it, or name another; no store was made"))
    };
    if let Some(socket) = config.socket.as_deref().filter(|socket| UnixStream::connect(socket).is_ok()) {
        return taken(socket.display().to_string());
    }
    let is_taken = |address: &SocketAddr| {
        address.port() != 0
            && TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    match [config.listen, config.replica_listen].into_iter().flatten().find(is_taken) {
        Some(address) => taken(address.to_string()),
        None => Ok(()),
    }
}

/// Opens the store under its lock, or says which server has it.
fn take_store(config: &Config, socket: &Path, news: &mut Vec<String>) -> Result<Store> {
    let until = Instant::now() + BUSY_TIME;
    let holder = format!("pid {}, `cdp serve`, on {}", std::process::id(), socket.display());
    let is_new = !config.store.exists();
    loop {
        match open_to_serve(config, &holder) {
            Ok(store) => {
                if is_new {
                    news.push(format!("made the store {}", config.store.display()));
                }
                return Ok(store);
            }
            Err(error) if error.kind() != Kind::Busy => return Err(error),
            Err(error) => {
                // One that is being killed may take the question with it: then the store is free in a moment.
                let hello = match Talk::connect(&config.store)? {
                    Some(mut talk) => match talk.hello() {
                        Err(_) if Instant::now() < until => None,
                        told => Some(told?),
                    },
                    None => None,
                };
                if let Some(hello) = hello {
                    let place = hello.endpoints.uri("").map(|uri| format!(" at {uri}")).unwrap_or_default();
                    let context = format!(
                        "the store {} is being served already, by pid {}{place}",
                        config.store.display(),
                        hello.pid
                    );
                    return Err(Error::new(Kind::Busy, context)
                        .hint("use that one, stop it, or serve another store with --store DIR"));
                }
                if Instant::now() >= until {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn listen(
    nbd: &cdp_nbd::Server,
    config: &Config,
    socket: PathBuf,
    news: &mut Vec<String>,
    runtime_dir: &mut Option<PathBuf>,
) -> Result<Endpoints> {
    let inherited = nbd.listen_inherited(config.insecure_plaintext)?;
    if !inherited.is_empty() {
        let count = inherited.len();
        news.push(format!("listening on {count} socket(s) passed by the service manager"));
    }
    let mut endpoints = Endpoints::default();
    let none = inherited.is_empty();
    for place in inherited {
        match place {
            Inherited::Unix(path) => endpoints.socket = endpoints.socket.or(path),
            Inherited::Tcp(address) => endpoints.tcp = endpoints.tcp.or(Some(address.to_string())),
        }
    }
    if none || config.socket.is_some() {
        let mut socket = std::path::absolute(&socket).at(|| format!("finding {}", socket.display()))?;
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX && config.socket.is_none() {
            let dir = short_dir()?;
            news.push(format!(
                "{} is too long a path for a socket: it is in {}",
                socket.display(),
                dir.display()
            ));
            socket = dir.join(SOCKET_FILE);
            *runtime_dir = Some(dir);
        }
        nbd.listen_unix(&socket)?;
        endpoints.socket = Some(socket);
    }
    if none || config.listen.is_some() {
        let tcp = match config.listen {
            Some(address) => nbd.listen_tcp(address)?,
            None => listen_nearby(nbd, news)?,
        };
        endpoints.tcp = Some(tcp.to_string());
    }
    Ok(endpoints)
}

/// The usual port on loopback, or whichever the kernel has.
fn listen_nearby(nbd: &cdp_nbd::Server, news: &mut Vec<String>) -> Result<SocketAddr> {
    match nbd.listen_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, NBD_PORT))) {
        Ok(address) => Ok(address),
        Err(error) => {
            let address = nbd.listen_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            tracing::debug!(%error, "the usual port");
            news.push(format!("port {NBD_PORT} is taken: on port {} instead", address.port()));
            Ok(address)
        }
    }
}

/// A fresh directory with a short path, of which only we know the name and have the rights.
fn short_dir() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base = base.filter(|dir| dir.is_dir() && dir.as_os_str().len() < 64).unwrap_or_else(|| "/tmp".into());
    let dir = base.join(format!("cdp-{}-{}", rustix::process::getuid().as_raw(), std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&dir).at(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// A long history has many files, and a busy server many clients.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// So many files stay for the store, whatever clients do.
const FILES_OF_STORE: u64 = 256;
/// A connection's socket and its signal.
const FILES_PER_CONNECTION: u64 = 2;

/// No more clients than there are files for them beside the store's own.
fn nbd_options() -> cdp_nbd::Options {
    let defaults = cdp_nbd::Options::default();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = (files.saturating_sub(FILES_OF_STORE) / FILES_PER_CONNECTION).max(1);
    let connections_max = defaults.connections_max.min(usize::try_from(room).unwrap_or(usize::MAX));
    cdp_nbd::Options { connections_max, ..defaults }
}
