//! What is known of a link, for `status`.

use cdp_core::ids::{Lsn, Timestamp};

use crate::fault::Fault;

/// How a link is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LinkState {
    /// No connection yet.
    #[default]
    Connecting,
    /// The two sides agree on where to begin.
    Joining,
    /// A first copy is sent: bytes of the state that were looked at and acknowledged, of so many.
    Copying {
        /// Durable there.
        done_bytes: u64,
        /// All of it.
        total_bytes: u64,
    },
    /// A state is compared with what is there, and what differs is sent: bytes of it that are settled, of so many.
    Comparing {
        /// Durable there.
        done_bytes: u64,
        /// All of it.
        total_bytes: u64,
    },
    /// The newest state is sent ahead of the history: bytes of what differs, of so many.
    Coalescing {
        /// Sent.
        sent_bytes: u64,
        /// All of it; of one that was broken off, what was left.
        total_bytes: u64,
    },
    /// Records are sent.
    Streaming,
    /// The connection ended; the next try comes by itself.
    Waiting(Fault),
    /// Somebody has to look.
    Stopped(Fault),
}

/// What the sender knows of a link.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkStatus {
    /// How it is doing.
    pub state: LinkState,
    /// The other side's site.
    pub peer: String,
    /// The newest record that is durable there.
    pub acknowledged: Lsn,
    /// Everything up to this instant is durable there.
    pub complete: Timestamp,
    /// The oldest state there.
    pub oldest: (Lsn, Timestamp),
    /// The newest state, which is shown there while the history up to it is filled in.
    pub shown: Option<(Lsn, Timestamp)>,
    /// Bytes that went out on this and earlier connections, TLS not counted.
    pub sent_bytes: u64,
    /// What the records sent by them take in a journal, in bytes.
    pub journal_bytes: u64,
    /// So many of them went in fewer bytes, because of what their blocks held before.
    pub coded_records: u64,
    /// Bytes a second over the last seconds.
    pub rate_bytes_per_s: u64,
    /// Tries in a row that came to no connection.
    pub failures: u32,
    /// Connections that came about.
    pub connections: u64,
}
