//! Every bound of a link, and the relations between them.

use cdp_core::format::record::PAYLOAD_BYTES_MAX;
use cdp_core::limits::{EPOCHS_MAX, REPLICA_UNSYNCED_NS_MAX};

/// Longest body of a frame, in bytes, on the wire and after its coding was undone.
pub const BODY_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Longest body of a control frame, in bytes.
pub const CONTROL_BYTES_MAX: usize = 256 << 10;
/// The most records in one RECORDS frame.
pub const RECORDS_PER_FRAME: usize = 250;
/// A RECORDS or PAYLOAD frame carries about so much payload, in bytes: enough for LZ4, little enough to be quick.
pub const FRAME_PAYLOAD_BYTES: usize = 256 << 10;
/// The longest payload that is coded against what its blocks held before, in bytes.
pub const CODED_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// What the coded payloads of one RECORDS frame become at most, in bytes.
pub const CODED_FRAME_BYTES_MAX: usize = FRAME_PAYLOAD_BYTES + CODED_PAYLOAD_BYTES_MAX;
/// Bytes of records that may be sent beyond what is acknowledged.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// The same of a first copy, which is synced less often: more than comes on a fast line while a sync is under way and the next
/// one gathers, so that nobody waits for one. Neither side holds them in memory.
pub const COPY_WINDOW_BYTES: u64 = 256 << 20;
/// The largest window that a sender believes.
pub const WINDOW_BYTES_MAX: u64 = 256 << 20;
/// What waits for the socket at either side, before nothing more is made.
pub const OUTPUT_BYTES: usize = 1 << 20;
/// Records that wait for their append at the receiver, in bytes; one may be larger.
pub const BATCH_BYTES: usize = 4 << 20;
/// Longest text of an error, in bytes.
pub const ERROR_TEXT_BYTES: usize = 2048;
/// Longest name of a program or site, in bytes.
pub const NAME_BYTES_MAX: usize = 200;
/// Groups of a volume that are told.
pub const GROUPS_MAX: usize = 64;
/// Their members, all together.
pub const GROUP_MEMBERS_MAX: usize = 4096;
/// The most blocks in one COPY frame.
pub const COPY_BLOCKS_MAX: u64 = 256;
/// Blocks of a range that is compared: 1 MiB.
pub const RANGE_BLOCKS: u64 = 256;
/// The most ranges in one RANGES frame.
pub const RANGES_PER_FRAME: usize = 64;
/// RANGES frames that may be unanswered.
pub const RANGES_UNANSWERED: usize = 2;
/// So many ranges are read and hashed before the other side has its turn.
pub const RANGES_PER_TURN: usize = 8;
/// A first copy is synced, and what is durable of it acknowledged, so often at most, in nanoseconds.
pub const COPY_SYNC_NS: u64 = 500_000_000;
/// Or when so many bytes of it are not.
pub const COPY_SYNC_BYTES: u64 = 64 << 20;
/// A newest state goes ahead of the history where it is at most one part in so many of that.
pub const AHEAD_SHARE: u64 = 2;
/// Volumes that a voter is bound for at most.
pub const BALLOTS_MAX: usize = 10_000;
/// Volumes that one site, by the name in its certificate, gets a voter bound for at most.
pub const BALLOTS_PER_SITE_MAX: usize = 2000;
/// The highest epoch that is claimed: epochs of a history have 32 bits, and one has to be left to begin.
pub const CLAIM_EPOCH_MAX: u64 = u32::MAX as u64 - 1;
/// Volumes of one claim.
pub const CLAIM_VOLUMES_MAX: usize = 1000;
/// Longest message between a site and a voter, in bytes.
pub const VOTE_BYTES_MAX: usize = 64 << 10;
/// A lease, in nanoseconds. All voters and sites have to have the same one: it is part of the version of the protocol.
pub const LEASE_NS: u64 = 6_000_000_000;
/// So many blocks' contents a link remembers, 8 bytes each: those of half a GiB that it sent last.
pub const CONTENTS_BLOCKS: usize = 1 << 17;
/// Connections of a receiver at a time.
pub const CONNECTIONS_MAX: usize = 256;

/// Without a byte from the other side for so long the connection is given up, in nanoseconds.
pub const SILENCE_NS_MAX: u64 = 10_000_000_000;
/// The receiver acknowledges so often, also when there is nothing new, in nanoseconds.
pub const ACK_NS_MAX: u64 = 1_000_000_000;
/// The sender says up to when all was sent so often, in nanoseconds.
pub const COMPLETE_NS: u64 = 200_000_000;
/// The receiver leaves nothing unsynced for longer, in nanoseconds. Its syncs are felt by everybody who commits on the
/// same disk, so they are few while records keep coming.
pub const SYNC_NS: u64 = 250_000_000;
/// Nothing came for so long: what did is synced, in nanoseconds.
pub const SYNC_REST_NS: u64 = 20_000_000;
/// So many bytes that are not synced are not left waiting.
pub const SYNC_BYTES: u64 = 4 << 20;

const _: () = assert!(FRAME_PAYLOAD_BYTES * 2 < BODY_BYTES_MAX);
// A frame of records with empty payloads fits.
const _: () = assert!(RECORDS_PER_FRAME * 120 + 32 + FRAME_PAYLOAD_BYTES < BODY_BYTES_MAX);
// An epoch takes 44 bytes.
const _: () = assert!(EPOCHS_MAX * 44 + 4096 < CONTROL_BYTES_MAX);
const _: () = assert!(COPY_BLOCKS_MAX as usize * 4096 + 16 < BODY_BYTES_MAX);
// A patch of all blocks fits, and an answer that all ranges differ.
const _: () = assert!(RANGE_BLOCKS as usize * 4096 + 64 < BODY_BYTES_MAX && RANGE_BLOCKS.is_multiple_of(8));
const _: () = assert!(RANGES_PER_FRAME * (16 + RANGE_BLOCKS as usize * 16) + 8 < BODY_BYTES_MAX);
// What waits for a sync fits into the window, or nothing would go on.
const _: () = assert!(COPY_SYNC_BYTES * 2 < COPY_WINDOW_BYTES && COPY_WINDOW_BYTES <= WINDOW_BYTES_MAX);
const _: () = assert!(CONTROL_BYTES_MAX <= BODY_BYTES_MAX);
const _: () = assert!(ACK_NS_MAX * 4 < SILENCE_NS_MAX && COMPLETE_NS * 4 < SILENCE_NS_MAX);
const _: () = assert!(SYNC_BYTES < WINDOW_BYTES && SYNC_REST_NS < SYNC_NS && SYNC_NS < ACK_NS_MAX);
// The store's own bound for a replica is behind the receiver's.
const _: () = assert!(SYNC_NS < REPLICA_UNSYNCED_NS_MAX / 3);
const _: () = assert!(PAYLOAD_BYTES_MAX < WINDOW_BYTES_MAX);
const _: () =
    assert!(CLAIM_VOLUMES_MAX * 16 + 64 < VOTE_BYTES_MAX && CLAIM_VOLUMES_MAX <= BALLOTS_PER_SITE_MAX);
const _: () = assert!(BALLOTS_PER_SITE_MAX * 5 <= BALLOTS_MAX);
