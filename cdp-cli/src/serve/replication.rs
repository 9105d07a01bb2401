//! The server's part in replication: links that feed replicas elsewhere, and the door for those that are fed here.

use std::path::PathBuf;
use std::sync::Arc;

use cdp_core::error::{Error, Kind, Result};
use cdp_core::store::Store;
use cdp_replica::net::links::Links;
use cdp_replica::net::listen::Listener;
use cdp_replica::net::tls::Tls;
use cdp_replica::vote::service::Service;

use crate::config::Config;

/// Name of the directory with certificates in the store.
const PKI_DIR: &str = "pki";

/// What runs.
#[derive(Default)]
pub struct Replication {
    /// Feeds replicas elsewhere; `None` without certificates.
    pub links: Option<Links>,
    /// Is fed.
    pub listener: Option<Listener>,
    /// The certificates.
    pub tls: Option<Tls>,
    /// From this lag on somebody should act, in nanoseconds, if the configuration says it.
    pub lag_alarm_ns: Option<u64>,
}

impl Replication {
    /// Starts what the configuration asks for. Without certificates there is none, which is an error only if somebody
    /// asked for it. Who comes for a vote gets that of `voter`.
    pub fn start(config: &Config, store: &Arc<Store>, voter: Option<Arc<Service>>) -> Result<Replication> {
        let dir = pki_dir(config);
        let is_wanted = config.pki.is_some() || config.replica_listen.is_some();
        if !is_wanted && !dir.is_dir() {
            return Ok(Replication { lag_alarm_ns: config.lag_alarm_ns, ..Replication::default() });
        }
        let tls = Tls::load(&dir).map_err(|error| match error.kind() {
            Kind::Invalid if !dir.is_dir() => no_certificates(&dir),
            _ => error,
        })?;
        if !tls.is_site() {
            let context = format!(
                "the certificate in {} is not that of a site: it may neither send nor receive",
                dir.display()
            );
            return Err(Error::new(Kind::Refused, context)
                .hint("`cdp pki issue AUTHORITY SITE --to DIR` without --witness makes a site's"));
        }
        let listener = config
            .replica_listen
            .map(|address| Listener::with_voter(store.clone(), tls.clone(), address, voter))
            .transpose()?;
        let links = Some(Links::start(store.clone(), tls.clone())?);
        Ok(Replication { links, listener, tls: Some(tls), lag_alarm_ns: config.lag_alarm_ns })
    }

    /// Ends it: connections are closed, what had come in is appended.
    pub fn stop(&self) {
        if let Some(links) = &self.links {
            links.stop();
        }
        if let Some(listener) = &self.listener {
            listener.stop();
        }
    }
}

fn pki_dir(config: &Config) -> PathBuf {
    config.pki.clone().unwrap_or_else(|| config.store.join(PKI_DIR))
}

fn no_certificates(dir: &std::path::Path) -> Error {
    Error::new(Kind::NotFound, format!("there are no certificates in {}", dir.display()))
        .hint("`cdp pki issue AUTHORITY SITE --to DIR` makes them; `cdp serve --pki DIR` says where they are")
}
