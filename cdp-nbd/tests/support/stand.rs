//! A running server with one disk in memory, for tests that treat it badly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use cdp_nbd::{Options, Server};

use super::client::Client;
use super::{MemoryDevice, MemoryExports};

/// Size of the disk in bytes.
pub const SIZE: u64 = 96 << 20;

/// The server goes down with it.
pub struct Setup {
    pub disk: Arc<MemoryDevice>,
    /// Open exports.
    pub open: Arc<AtomicUsize>,
    pub path: PathBuf,
    pub server: Server,
    _directory: tempfile::TempDir,
}

pub fn setup(options: Options) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let disk = Arc::new(MemoryDevice::new(SIZE));
    let exports = MemoryExports::new(vec![("disk", Arc::clone(&disk))]);
    let open = Arc::clone(&exports.open);
    let server = Server::start(Arc::new(exports), options);
    server.listen_unix(&path).unwrap();
    Setup { disk, open, path, server, _directory: directory }
}

/// An honest client can still work.
pub fn honest(path: &Path) {
    let mut client = Client::structured(path, "disk");
    assert_eq!(client.write(SIZE - 4096, b"honest"), 0);
    assert_eq!(client.read(SIZE - 4096, 6).unwrap(), b"honest");
    client.disconnect();
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come true in 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
