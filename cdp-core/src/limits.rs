//! Every bound in one place, with the relations between them checked when the crate is compiled.

use crate::ids::BLOCK_BYTES;

/// The largest request that is accepted, in bytes. It becomes one record, whole or not at all.
pub const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// Smallest and largest volume, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// See [`VOLUME_BYTES_MIN`].
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

/// Size of a journal segment file, in bytes.
pub const SEGMENT_BYTES: u64 = 128 << 20;
/// The smallest that a replica has on a simulated disk.
pub const SEGMENT_BYTES_SIMULATED_MIN: u64 = 64 << 10;

/// The most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 1024;

/// Unflushed records are written out and synced within this time, in nanoseconds.
pub const UNSYNCED_NS_MAX: u64 = 100_000_000;

/// The same of a replica's records, where whoever receives them has not synced them: they were never answered here.
pub const REPLICA_UNSYNCED_NS_MAX: u64 = 1_000_000_000;

/// An instant that is told to be over is kept with so much more, in nanoseconds: one write does for as long. After a crash a
/// store waits for the wall clock to get there before it opens: its timestamps are those of the clock on the wall.
pub const PROMISED_AHEAD_NS: u64 = 200_000_000;

/// First copies that nobody goes on with are looked for so often, in nanoseconds.
pub const COPIES_LOOK_NS: u64 = 3_600_000_000_000;

/// Unflushed bytes that start a write-out before its time.
pub const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// The durable mark is refreshed at most so often while something is written, in nanoseconds. It only
/// narrows what recovery may take for a crash's tail; flushes do not wait for it.
pub const MARK_INTERVAL_NS: u64 = 1_000_000_000;

/// Memory for the index of the open segment, in bytes, at most and at least, whatever the budget: when it is used up, the next
/// segment is begun. A full segment of writes of 4 KiB takes some 3 MiB.
pub const LIVE_BYTES_MAX: usize = 64 << 20;
/// See [`LIVE_BYTES_MAX`].
pub const LIVE_BYTES_MIN: usize = 4 << 20;
/// The same where the parts in memory of all volumes take too much.
pub const LIVE_BYTES_SHORT: usize = 1 << 20;

/// Memory for all indexes of a store, in bytes, where the configuration says nothing else.
pub const INDEX_BUDGET_BYTES: usize = 256 << 20;

/// So many files of segments that are not written to are kept open, for the whole store.
pub const SEGMENT_FILES_MAX: usize = 256;

/// Length of the file that remembers segments' first and last blocks, in bytes: 16 TiB of journal. Beyond it they are read
/// at every opening.
pub const LOOKED_BYTES_MAX: u64 = 64 << 20;

/// So many of the segments that were believed without a look are read in one step of upkeep.
pub const DOUBTED_PER_STEP: usize = 64;

/// So many neighbouring runs of one level are made one of the next.
pub const MERGE_RUNS: usize = 8;

/// The highest level of merging: a run of 8^4 segments is the index of half a TiB of journal.
pub const MERGE_LEVEL_MAX: u8 = 4;

/// Rows merged in one step of upkeep, between which clients and sealing have their turn.
pub const MERGE_STEP_ROWS: u64 = 200_000;

/// The catalog learns so many names at once, or those of one segment: bounds the memory that it takes to learn a million.
pub const LESSON_NAMES_MAX: usize = 8192;

/// A merged run gets no larger filter than this, in bytes; that is enough for some 700 segments of random writes.
pub const MERGE_FILTER_BYTES_MAX: usize = 32 << 20;

/// After a merge that failed, the next try comes so much later, in nanoseconds.
pub const MERGE_RETRY_NS: u64 = 10_000_000_000;

/// Length of a volume's, group's or marker's name, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// Length of the text of a point with its clone request, in bytes.
pub const POINT_BYTES_MAX: usize = 512;

/// Length of a marker's note, in bytes; so many tags of at most a name's length.
pub const NOTE_BYTES_MAX: usize = 2048;
/// See [`NOTE_BYTES_MAX`].
pub const TAGS_MAX: usize = 16;

/// Segments folded into the base at once: what was overwritten among them is written once.
pub const FOLD_SEGMENTS_MAX: usize = 8;

/// How fast history is folded into the base while the journal has room, in bytes a second. When it is full, as fast
/// as the disk allows.
pub const FOLD_BYTES_PER_S: u64 = 64 << 20;

/// Segments thinned at once: what a stretch gives back is there when all of it is thinned.
pub const THIN_SEGMENTS_MAX: usize = 8;

/// So many neighbouring folds of one level are made one of the next.
pub const THIN_FOLDS: usize = 4;

/// The highest level of folds.
pub const FOLD_LEVEL_MAX: u8 = 8;

/// The most states that one fold keeps: bounds the work of making it, which looks up each of them.
pub const FOLD_POINTS_MAX: u64 = 4096;

/// The most blocks of payload in one fold; bounds the memory that making it takes, about 32 MiB.
pub const FOLD_BLOCKS_MAX: u64 = 256 << 10;

/// Thinning reads the index of a stretch once and keeps that in this part of the memory for indexes; what does not fit is read
/// when its turn comes.
pub const PIECE_MEMORY_PART: usize = 16;

/// It keeps so many entries at least, some 1.5 MiB: more than any record has.
pub const PIECE_ENTRIES_MIN: usize = 32 << 10;

/// After thinning that failed, the next try comes so much later, in nanoseconds.
pub const THIN_RETRY_NS: u64 = 10_000_000_000;

/// Length of a volume's ledger, in bytes: when it is reached, the older half goes.
pub const LEDGER_BYTES_MAX: u64 = 1 << 20;

/// Epochs of a volume, from its beginning on: each is a promotion by a person or a witness.
pub const EPOCHS_MAX: usize = 4096;

/// So many replicas of a volume at most.
pub const REPLICAS_MAX: usize = 16;

/// So many sites that are not believed are remembered for a volume, the lowest epochs least.
pub const CLAIMS_MAX: usize = 8;

/// What such a site claims is taken into account for the number of a new epoch so far above the newest one at most.
pub const CLAIM_EPOCHS_AHEAD_MAX: u32 = 256;

/// Piece of the base kept in one file, in bytes: ext4 ends at 16 TiB.
pub const BASE_PIECE_BYTES: u64 = 1 << 40;

/// Blocks of the largest volume; block numbers fit in so many bits.
pub const LBA_BITS: u32 = 34;

/// Groups of a store.
pub const GROUPS_MAX: usize = 1024;

const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_BYTES == 1 << LBA_BITS);
// A record never spans two segments; room for its unaligned edges, headers and the footer.
const _: () = assert!(REQUEST_BYTES_MAX + 64 * BLOCK_BYTES < SEGMENT_BYTES);
// Payload locations in a run are 32-bit block numbers within a segment.
const _: () = assert!(SEGMENT_BYTES / BLOCK_BYTES < u32::MAX as u64);
// `before:NAME+rw:NAME` is a point.
const _: () = assert!(POINT_BYTES_MAX > 2 * NAME_BYTES_MAX + 16);
const _: () = assert!(MERGE_RUNS >= 2);
const _: () = assert!(THIN_FOLDS >= 2 && THIN_SEGMENTS_MAX >= 1);
// What is thinned at once fits into one fold, whatever is in it.
const _: () = assert!(THIN_SEGMENTS_MAX as u64 * SEGMENT_BYTES / BLOCK_BYTES <= FOLD_BLOCKS_MAX);
