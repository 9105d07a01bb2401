//! What the server asks the rest of the program: which exports there are, and to open one.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::Error;
use cdp_core::ids::SessionId;

use crate::contexts::{BitmapInfo, Bitmaps};

/// Who is at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this machine, as the kernel tells it.
    Unix {
        /// Its process id.
        pid: u32,
        /// Its user id.
        uid: u32,
    },
    /// A TCP address.
    Tcp(SocketAddr),
    /// Whoever started us with its end of a pipe.
    Stdio,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix { pid, uid } => write!(f, "pid {pid}, uid {uid}"),
            Peer::Tcp(address) => write!(f, "{address}"),
            Peer::Stdio => f.write_str("stdio"),
        }
    }
}

/// One line of the answer to LIST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportSummary {
    /// What a client can ask for; at most 4096 bytes.
    pub name: String,
    /// For people; may be empty; at most 4096 bytes.
    pub description: String,
}

/// What a client learns of an export before it opens it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether every change is refused.
    pub read_only: bool,
    /// Whether several connections to this name see the same device with one cache.
    pub multi_conn: bool,
    /// The exact name: what a relative point resolved to.
    pub canonical_name: String,
    /// For people; may be empty.
    pub description: String,
}

/// An export that a client has opened.
pub struct OpenExport {
    /// What it reads and writes.
    pub device: Arc<dyn Device>,
    /// Goes with every change into the journal.
    pub session: SessionId,
    /// The exact name: what a relative point resolved to.
    pub canonical_name: String,
    /// For people; may be empty.
    pub description: String,
    /// Whether several connections to this name see the same device with one cache.
    pub multi_conn: bool,
    /// Its dirty bitmaps, if it has any.
    pub bitmaps: Option<Arc<dyn Bitmaps>>,
    /// Dropped when the connection ends, after the last reply.
    pub on_close: Option<Box<dyn Send>>,
}

impl OpenExport {
    /// What INFO would tell of it.
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            size_bytes: self.device.size_bytes(),
            read_only: self.device.is_read_only(),
            multi_conn: self.multi_conn,
            canonical_name: self.canonical_name.clone(),
            description: self.description.clone(),
        }
    }
}

/// The exports of a server. Called from many threads at once. Names are valid UTF-8 without NUL, at most
/// 4096 bytes long; the empty name means the default export.
pub trait Exports: Send + Sync {
    /// What LIST shows.
    fn list(&self) -> Vec<ExportSummary>;

    /// What INFO shows. Records nothing and keeps nothing open.
    fn info(&self, name: &str, peer: &Peer) -> Result<ExportInfo, Error>;

    /// Opens an export for one connection.
    fn open(&self, name: &str, peer: &Peer) -> Result<OpenExport, Error>;

    /// The dirty bitmap of this name (without `qemu:dirty-bitmap:`) on an export; `None` if the export has none of that
    /// name. [`cdp_core::error::Kind::Invalid`] for a name that none can have.
    fn bitmap(&self, export: &str, name: &str, peer: &Peer) -> Result<Option<BitmapInfo>, Error> {
        let _ = (export, name, peer);
        Ok(None)
    }

    /// Names of bitmaps of an export for its lists; there may be more.
    fn bitmaps(&self, export: &str, peer: &Peer) -> Result<Vec<String>, Error> {
        let _ = (export, peer);
        Ok(Vec::new())
    }

    /// Opens an export about which the client asked just before. The protocol wants the same answer: a point
    /// that is relative should mean the instant that `info` named.
    fn open_after_info(&self, name: &str, info: &ExportInfo, peer: &Peer) -> Result<OpenExport, Error> {
        let _ = info;
        self.open(name, peer)
    }
}
