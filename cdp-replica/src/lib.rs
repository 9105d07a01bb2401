//! The second site: the journal is the stream. A [`sender`] reads a volume's durable records and a [`receiver`] appends
//! them to a replica in another store; both are whole sides of a link without a socket, for tests and fuzzers. [`net`]
//! has the sockets, threads and TLS. The protocol stands in `docs/PROTOCOL.md`.

pub mod fault;
pub mod limits;
pub mod net;
pub mod pki;
pub mod receiver;
pub mod sender;
pub mod status;
pub mod vote;
pub mod wire;
