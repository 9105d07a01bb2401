//! Sockets, threads and TLS: one thread for each connection, on which a whole side of a link runs.

pub mod drive;
pub mod links;
pub mod listen;
pub mod tls;
pub mod votes;
