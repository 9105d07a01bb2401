//! The relay: a keeper of our own between `nbdfuse` and the server, so that a restart of the server is a pause.
//!
//! It holds every request until it is answered. When the server goes away it connects again and asks once more;
//! ESHUTDOWN counts as going away, and ENOSPC is asked again until there is space. Every other error goes through
//! at once, to that request alone: `nbdkit`'s retry filter cannot tell these apart. Asking twice is safe, since
//! a request that was not answered may or may not have been done, and doing it again gives the same bytes. One thing
//! is beyond us, as for every NBD client that connects again: over TCP, a server that lives on behind a broken
//! connection may still do the old request after the new one was answered.

mod front;
mod link;
mod reader;
mod session;
mod uri;
mod wire;

pub use reader::Reader;
pub use uri::Address;

use cdp_core::error::{Error, IoContext, Kind, Result};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// In the description of a volume that was rolled back; behind it the LSN of the newest rollback. After one, what
/// a client knows of the disk is stale, and a relay does not go on.
pub const ROLLED_BACK: &str = "rolled back by lsn:";

/// What it says in its log when it gives a device up for that.
pub const ENDED: &str = "it was rolled back meanwhile: this device ends here; detach it and attach it again";

/// The hidden subcommand that runs a relay.
pub const SUBCOMMAND: &str = "keeper";

/// What a relay is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayOptions {
    /// Written once it listens.
    pub pidfile: PathBuf,
    /// Where it serves.
    pub socket: PathBuf,
    /// Where the export is served.
    pub uri: String,
}

impl RelayOptions {
    /// As the words after the subcommand.
    pub fn arguments(&self) -> Vec<OsString> {
        vec![
            "--pidfile".into(),
            self.pidfile.clone().into(),
            "--unix".into(),
            self.socket.clone().into(),
            self.uri.clone().into(),
        ]
    }

    /// From the words after the subcommand.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<RelayOptions> {
        let words: Vec<OsString> = arguments.into_iter().collect();
        match words.as_slice() {
            [pid_word, pidfile, unix_word, socket, uri]
                if pid_word == "--pidfile" && unix_word == "--unix" =>
            {
                let uri = uri.to_str().ok_or_else(|| Error::new(Kind::Invalid, "the URI is not UTF-8"))?;
                Ok(RelayOptions { pidfile: pidfile.into(), socket: socket.into(), uri: uri.to_owned() })
            }
            _ => Err(Error::new(Kind::Invalid, "usage: keeper --pidfile FILE --unix SOCKET URI")),
        }
    }
}

/// Runs a relay until the process is ended. Each client gets a connection of its own to the server.
pub fn run(options: &RelayOptions) -> Result<()> {
    let address = Address::parse(&options.uri)?;
    let shown = || options.socket.display().to_string();
    let listener = UnixListener::bind(&options.socket).at(|| format!("cannot listen on {}", shown()))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&options.socket, private).at(|| format!("cannot protect {}", shown()))?;
    let pid = std::process::id().to_string();
    std::fs::write(&options.pidfile, pid).at(|| format!("cannot write {}", options.pidfile.display()))?;
    loop {
        let (client, _) = listener.accept().at(|| format!("cannot accept on {}", shown()))?;
        let address = address.clone();
        std::thread::spawn(move || {
            if let Err(error) = session::run(client, &address) {
                // The log of the attachment; nobody else listens.
                eprintln!("a client's connection ended: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // attach writes these words and the relay reads them: if they differ, nothing can be attached.
    #[test]
    fn options_survive_the_command_line() {
        let options = RelayOptions { pidfile: "/a b".into(), socket: "/c".into(), uri: "nbd://h/x".into() };
        assert_eq!(RelayOptions::parse(options.arguments()).unwrap(), options);
        assert_eq!(RelayOptions::parse(["--help".into()]).unwrap_err().kind(), Kind::Invalid);
    }
}
