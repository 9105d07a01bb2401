//! `cdp witness`: the third voter, a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::io::{Clock, Files, Lock, SystemClock, native};
use cdp_replica::net::tls::Tls;
use cdp_replica::net::votes::Door;
use cdp_replica::vote::service::Service;
use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Context;
use crate::host::notify::tell_systemd;
use crate::report;

/// Certificates, where nothing else is said.
const PKI_DIR: &str = "pki";
const LOCK_FILE: &str = "lock";

/// What `cdp help witness` ends with.
pub const HELP: &str = "\
Examples:
  cdp pki issue authority arbiter --witness --to witness-pki
  cdp witness --dir /var/lib/cdp-witness --listen 0.0.0.0:10812 --pki witness-pki

On a third machine, that neither site takes down with it. At both sites, in the configuration:
  [automatic.shop]                 # a volume or a group
  peer = \"other-site.example:10811\"  # its --replica-listen
  witness = \"witness.example:10812\"

From then on a site answers clients of `shop` only while two of the three agree, and the replica takes over by itself when
the primary is gone; `cdp status` shows who holds the lease. One witness does for many pairs of sites of one authority.";

/// `cdp witness`.
#[derive(Debug, Args)]
pub struct Witness {
    /// Where it keeps its ballots; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Take votes on this address
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Its certificate [default: pki in DIR]
    #[arg(long, value_name = "DIR")]
    pub pki: Option<PathBuf>,
}

#[derive(Serialize)]
struct Ready {
    pid: u32,
    dir: String,
    listen: String,
}

/// Votes until SIGTERM or SIGINT.
pub fn run(context: &Context, arguments: &Witness) -> Result<u8> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).at(|| "taking signals".to_owned())?;
    let dir = &arguments.dir;
    let files = native(false);
    make_dir(&*files, dir)?;
    let tls = Tls::load(&arguments.pki.clone().unwrap_or_else(|| dir.join(PKI_DIR)))?;
    if !tls.is_witness() {
        let context = format!("the certificate of {} is not that of a witness", tls.site());
        return Err(Error::new(Kind::Refused, context)
            .hint("`cdp pki issue AUTHORITY NAME --witness --to DIR` makes one"));
    }
    // Two witnesses with the same ballots would vote twice.
    let _lock = lock(&*files, dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let service = Arc::new(Service::open(files, clock, dir, Box::new(|_| 0), Box::new(|_, _| true))?);
    let door = Door::open(service, tls, arguments.listen)?;
    let ready =
        Ready { pid: std::process::id(), dir: dir.display().to_string(), listen: door.address().to_string() };
    let text = format!("taking votes on {}; ballots in {}", ready.listen, ready.dir);
    context.show(&serde_json::to_value(&ready).unwrap_or_default(), || text);
    tell_systemd("READY=1");
    signals.forever().next();
    tell_systemd("STOPPING=1");
    Ok(report::DONE)
}

fn make_dir(files: &dyn Files, dir: &Path) -> Result<()> {
    let place = || format!("making {}", dir.display());
    match files.create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.at(place)?,
    }
    // So that the ballots in it are found again; also of a directory that was there, which nobody may have synced yet.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files.sync_dir(parent).at(place)
}

fn lock(files: &dyn Files, dir: &Path) -> Result<Box<dyn Lock>> {
    let path = dir.join(LOCK_FILE);
    let holder = format!("pid {}, `cdp witness`", std::process::id());
    match files.lock(&path, &holder) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Error::new(Kind::Busy, format!("{} is in use by {error}", dir.display()))
                .hint("one witness for each directory"))
        }
        other => other.at(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::io::sim::{PowerLoss, SimDisk};

    use super::*;

    // A witness that died as soon as it had made its directory, started again, voted, and lost power: without the directory
    // it would know nothing of its votes.
    #[test]
    fn the_directory_is_durable_before_anybody_votes() {
        for seed in 0..8 {
            let disk = SimDisk::new(seed);
            let dir = Path::new("/witness");
            disk.create_dir(dir).unwrap();
            let disk = disk.crash_process();
            make_dir(&disk, dir).unwrap();
            let disk = disk.crash_power_with(PowerLoss::seeded(seed));
            let again = disk.create_dir(dir).map_err(|error| error.kind());
            assert_eq!(again, Err(std::io::ErrorKind::AlreadyExists), "power loss {seed}");
        }
    }
}
