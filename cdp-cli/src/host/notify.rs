//! What the service manager is told, where one started us and wants to know (`NOTIFY_SOCKET`, sd_notify(3)).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Tells it: `READY=1`, `STOPPING=1`, `STATUS=…`; several lines at once may be told. Where it cannot be told, that is
/// logged.
pub fn tell_systemd(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        if let Some(name) = path.as_bytes().strip_prefix(b"@") {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)
        } else {
            socket.send_to(state.as_bytes(), Path::new(&path))
        }
    });
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told {state}");
    }
}
