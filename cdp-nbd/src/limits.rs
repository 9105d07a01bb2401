//! Every bound of the server in one place, with the relations between them checked when the crate is compiled.

use std::time::Duration;

/// The largest payload of one request or reply that is accepted, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = cdp_core::limits::REQUEST_BYTES_MAX as u32;

/// The largest payload that is advertised, in bytes: what every client can be expected to cope with.
pub const PAYLOAD_BYTES_ADVERTISED: u32 = 32 << 20;

/// A write that is too large is read and refused up to this length, in bytes; behind it the connection ends,
/// because a peer that announces so much is not worth listening to.
pub const PAYLOAD_SKIP_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;

/// Preferred alignment of requests, in bytes.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// The longest string that the protocol allows, in bytes: export names, descriptions, error texts.
pub const STRING_BYTES_MAX: usize = 4096;

/// The longest error text that is sent, in bytes.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// Data of one option that is held and understood, in bytes. Longer data is read past and refused.
pub const OPTION_BYTES_MAX: usize = 128 << 10;

/// Data of one option that is read past, in bytes; behind it the connection ends.
pub const OPTION_SKIP_BYTES_MAX: u32 = 32 << 20;

/// Replies to options are sent when this many bytes have gathered.
pub const HANDSHAKE_REPLY_BYTES: usize = 32 << 10;

/// The most exports named in reply to LIST.
pub const LIST_EXPORTS_MAX: usize = 10_000;

/// An option has to arrive, and its reply has to be taken, within this time.
pub const HANDSHAKE_OPTION_TIME: Duration = Duration::from_secs(10);

/// The whole handshake has to be done within this time.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(120);

/// Connections at once. When they are used up, the oldest one that is still in its handshake makes room.
pub const CONNECTIONS_MAX: usize = 1024;

/// Receive and reply buffers begin with this size, in bytes, and go back to it when the client is idle.
pub const BUFFER_BYTES_MIN: usize = 64 << 10;

/// Every connection may have a receive and a reply buffer of this size, in bytes: the payloads that are common,
/// and their headers.
pub const BUFFER_BYTES: usize = (1 << 20) + (64 << 10);

/// Size of the buffer for a request beyond [`BUFFER_BYTES`], in bytes. It is always the same size, above
/// what an allocator keeps in its heap, so that untouched pages cost nothing; see [`LARGE_BYTES_TOTAL`].
pub const BUFFER_BYTES_LARGE: usize = PAYLOAD_BYTES_MAX as usize + (64 << 10);

/// Bytes that all connections together may hold beyond their own [`BUFFER_BYTES`], except for one large buffer.
pub const LARGE_BYTES_TOTAL: usize = 512 << 20;

/// A large payload is charged in steps of this many bytes, as it arrives. While others wait for memory it is
/// refused when less than one step comes in [`IDLE_TIME`].
pub const LARGE_STEP_BYTES: usize = 1 << 20;

/// How long a request waits for its share of [`LARGE_BYTES_TOTAL`] while nobody gives any back, before it is
/// answered ENOMEM.
pub const LARGE_WAIT: Duration = Duration::from_secs(2);

/// It waits at most so many times [`LARGE_WAIT`], whatever others give back.
pub const LARGE_WAITS_MAX: u32 = 10;

/// A connection from which nothing came for this time gives back its buffers.
pub const IDLE_TIME: Duration = Duration::from_secs(1);

/// After so many rounds without a large request its buffer is given back.
pub const LARGE_KEPT_ROUNDS: u32 = 64;

/// With more than this missing from a request, just its rest is received, so that nothing has to be moved.
pub const RECEIVE_EXACT_BYTES: usize = 64 << 10;

/// Requests executed together at most.
pub const ROUND_REQUESTS_MAX: usize = cdp_core::limits::BATCH_RECORDS_MAX;

/// Data of one chunk of a reply in pieces, in bytes.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// Reads of at most this many bytes are not looked through for holes.
pub const HOLE_SCAN_BYTES_MIN: u64 = 64 << 10;

/// Pieces that one read is looked through for holes; what is behind them goes as data.
pub const HOLE_SCAN_STRETCHES_MAX: usize = 64;

/// Holes shorter than this go as data, in bytes.
pub const HOLE_BYTES_MIN: u64 = 4096;

/// Dirty bitmaps that one connection may select.
pub const BITMAPS_MAX: usize = 8;

/// Dirty bitmaps that are looked for by name for one option; a client that asks for more is refused.
pub const BITMAP_QUERIES_MAX: usize = 64;

/// Extents of each context in one block status reply.
pub const STATUS_EXTENTS_MAX: usize = 16_384;

/// How long requests are still answered ESHUTDOWN when the server goes down.
pub const SHUTDOWN_GRACE: Duration = Duration::from_millis(250);

/// When the server goes down, a client that takes nothing of its replies for this time is not waited for.
pub const STALLED_TIME: Duration = Duration::from_secs(2);

/// Replies of at least this many bytes are sent beside the connection's thread.
pub const SEND_BESIDE_BYTES_MIN: usize = 256 << 10;

/// Whoever waits for a client to take its replies looks this often whether the server wants it to end.
pub const SEND_LOOK_TIME: Duration = Duration::from_millis(250);

/// Socket buffer asked for, in bytes; the kernel may give less.
pub const SOCKET_BUFFER_BYTES: usize = 2 << 20;

/// Connections waiting to be accepted.
pub const BACKLOG: i32 = 512;

/// Longest path of a Unix socket, in bytes, without its closing NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

const _: () = assert!(PAYLOAD_BYTES_ADVERTISED <= PAYLOAD_BYTES_MAX);
const _: () = assert!(cdp_core::limits::REQUEST_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(PIECE_BYTES_MAX + 1024 < BUFFER_BYTES);
// Contexts are bits of a number.
const _: () = assert!(crate::proto::BITMAP_ID_FIRST as usize + BITMAPS_MAX <= u32::BITS as usize);
// A block status reply fits in a reply buffer: 16 bytes an extent and its headers.
const _: () = assert!(STATUS_EXTENTS_MAX * 16 + 1024 < BUFFER_BYTES);
// One option with all its data fits; and the unsupported part of a GO with the longest name does too.
const _: () = assert!(STRING_BYTES_MAX + 1024 < OPTION_BYTES_MAX);
// A large buffer is larger than the largest threshold of the allocator's heap (32 MiB).
const _: () = assert!(BUFFER_BYTES_LARGE > (32 << 20));
const _: () = assert!(BUFFER_BYTES_LARGE < LARGE_BYTES_TOTAL);
const _: () = assert!(ERROR_TEXT_BYTES_MAX <= STRING_BYTES_MAX);
