//! The second site: the journal is the stream. A [`sender`] reads a volume's durable records and a [`receiver`] appends
//! them to a replica in another store; both are whole sides of a link without a socket, for tests and fuzzers. [`net`]
//! has the sockets, threads and TLS. The protocol stands in `docs/PROTOCOL.md`.

mod alive;
mod coalesce;
pub mod coder;
mod contents;
mod copying;
pub mod fault;
mod intake;
pub mod limits;
pub mod net;
pub mod pki;
pub mod receiver;
mod reseed;
pub mod sender;
pub mod status;
mod stretch;
mod syncer;
pub mod vote;
pub mod wire;
