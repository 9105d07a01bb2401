//! The past of a store over NBD: from its server, or from one of our own for as long as the command lasts.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use cdp_core::error::{Error, IoContext, Kind, Result};

use crate::config::Config;
use crate::door::{Door, Talk, unexpected};
use crate::files::disk::Disk;
use crate::host::relay::Reader;
use crate::serve::control::Control;
use crate::serve::exports::StoreExports;
use crate::work::{self, Endpoints, Marks, PointInfo, Request, Response, Serving, Site, Stretch, Watch};

/// Our own connections end at once.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// A way to the exports of a store.
pub struct Reach {
    way: Way,
    endpoints: Endpoints,
}

enum Way {
    Server(Talk),
    Own(Own),
}

/// The store, opened and served by ourselves.
struct Own {
    site: Arc<Site>,
    control: Option<Control>,
    // Of the socket that only we know of.
    dir: PathBuf,
}

impl Reach {
    /// Finds the server, or opens the store and serves it on a socket that only we know of.
    pub fn open(config: &Config) -> Result<Reach> {
        let site = match Door::open(config, false)? {
            Door::Server(mut talk) => {
                let endpoints = talk.hello()?.endpoints;
                return Ok(Reach { way: Way::Server(talk), endpoints });
            }
            Door::Own(site) => site,
        };
        let votes = site.votes.clone();
        let exports = StoreExports::new(site.store.clone(), config.clone_cap_bytes, votes.clone());
        let clones = exports.clones().clone();
        let nbd = cdp_nbd::Server::start(Arc::new(exports), cdp_nbd::Options::default());
        let dir = private_dir()?;
        let socket = dir.join("nbd.sock");
        let endpoints = Endpoints { socket: Some(socket.clone()), ..Endpoints::default() };
        let listening = nbd.listen_unix(&socket);
        let serving = Serving {
            nbd,
            since: SystemTime::now(),
            endpoints: endpoints.clone(),
            clones,
            replication: Default::default(),
            roles: Default::default(),
        };
        let site = Arc::new(Site { server: Some(Arc::new(serving)), ..site });
        let reach = Reach { way: Way::Own(Own { site, control: None, dir }), endpoints };
        match listening {
            Ok(()) => Ok(reach),
            Err(error) => reach.close().and(Err(error)),
        }
    }

    /// Finds the server; `None` if there is none, and then the store is left alone.
    pub fn server(config: &Config) -> Result<Option<Reach>> {
        let Some(mut talk) = Talk::connect(&config.store)? else { return Ok(None) };
        let endpoints = talk.hello()?.endpoints;
        Ok(Some(Reach { way: Way::Server(talk), endpoints }))
    }

    /// As [`Reach::open`]; other commands on this store find their server meanwhile.
    pub fn open_for_others(config: &Config) -> Result<Reach> {
        let mut reach = Reach::open(config)?;
        if let Way::Own(own) = &mut reach.way {
            match Control::start(own.site.clone()) {
                Ok(control) => own.control = Some(control),
                Err(error) => return reach.close().and(Err(error)),
            }
        }
        Ok(reach)
    }

    /// Asks the store something.
    pub fn ask(&mut self, request: Request, watch: &mut Watch<'_>) -> Result<Response> {
        match &mut self.way {
            Way::Server(talk) => talk.ask(request, watch),
            Way::Own(own) => work::run(&own.site, std::env::var("TZ").ok().as_deref(), &request, watch),
        }
    }

    /// What a point of one volume means; a group is refused.
    pub fn point(&mut self, target: &str) -> Result<PointInfo> {
        let request = Request::Resolve { target: target.to_owned() };
        let Response::Points(points) = self.ask(request, &mut |_| Ok(()))? else { return Err(unexpected()) };
        let (name, _) = cdp_core::history::point::split_export(target);
        match <[PointInfo; 1]>::try_from(points) {
            Ok([point]) if point.volume == name => Ok(point),
            Ok(_) | Err(_) => Err(Error::new(Kind::Invalid, format!("{name} is a group"))
                .hint("this looks into one volume: name a member")),
        }
    }

    /// The markers behind a record and up to another one, rising; and the names of those that have one.
    pub fn marks(
        &mut self,
        volume: &str,
        after: u64,
        through: u64,
    ) -> Result<(Vec<u64>, BTreeMap<u64, String>)> {
        let (mut all, mut all_names) = (Vec::new(), BTreeMap::new());
        let mut through = through;
        loop {
            let request = Request::Marks(Stretch { volume: volume.to_owned(), after, through });
            let Response::Marks(Marks { lsns, names, more }) = self.ask(request, &mut |_| Ok(()))? else {
                return Err(unexpected());
            };
            through = lsns.last().map_or(after, |oldest| oldest - 1);
            all.extend(lsns);
            all_names.extend(names);
            if !more {
                break;
            }
        }
        all.reverse();
        Ok((all, all_names))
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> Result<String> {
        self.endpoints.uri(export).ok_or_else(|| {
            Error::new(Kind::NotFound, "the server listens nowhere that this command could connect to")
        })
    }

    /// The disk behind an export.
    pub fn disk(&self, export: &str) -> Result<Disk> {
        let reader = Reader::connect(&self.uri(export)?).at(|| format!("connecting to {export}"))?;
        Ok(Disk::new(reader))
    }

    /// Where the store is served.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Ends it; a store of our own is sealed.
    pub fn close(self) -> Result<()> {
        let Way::Own(own) = self.way else { return Ok(()) };
        if let Some(control) = own.control {
            control.stop();
        }
        if let Some(server) = &own.site.server {
            server.nbd.shutdown(SHUTDOWN_TIME);
        }
        let _ = std::fs::remove_dir_all(&own.dir);
        own.site.store.close()
    }
}

/// A fresh directory with a short path that only we may look into.
pub fn private_dir() -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base = base.filter(|dir| dir.is_dir() && dir.as_os_str().len() < 64).unwrap_or_else(|| "/tmp".into());
    let (process, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let dir = base.join(format!("cdp-{}-{process}-{number}", rustix::process::getuid().as_raw()));
    std::fs::DirBuilder::new().mode(0o700).create(&dir).at(|| format!("making {}", dir.display()))?;
    Ok(dir)
}
