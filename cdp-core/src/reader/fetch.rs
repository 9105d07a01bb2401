//! The reads of the journal that a plan needs: carried out together, on several threads if they are many, and checked.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{BLOCK, Piece, Reader};
use crate::error::{Error, Kind};
use crate::format::bytes::crc32;
use crate::ids::Extent;
use crate::io::GatheredRead;
use crate::volume::parts::part_of;

/// So many reads are worth a thread: it takes about 10 µs to wake one, and they about 100 µs from the page cache.
const READS_OF_A_THREAD: usize = 64;

/// The threads, one for each processor but the caller's, made when the first large read of scattered blocks comes. They
/// stay: what a thread needs to use io_uring costs far more to make than it saves. `None` where there can be none.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let make = || {
        let threads = available_parallelism().map_or(1, usize::from) - 1;
        let build =
            || ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "cdp read".into()).build();
        (threads > 0).then(build)?.ok()
    };
    POOL.get_or_init(make).as_ref()
}

/// Threads that read beside their callers at the moment, in the whole process.
static BESIDE: Beside = Beside(AtomicUsize::new(0));

/// Reads of the journal, and for each the pieces that it fetches.
#[derive(Default)]
pub(super) struct Fetches<'p, 'b> {
    reads: Vec<GatheredRead<'b>>,
    pieces: Vec<&'p [Piece]>,
}

impl<'p, 'b> Fetches<'p, 'b> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.reads.len()
    }

    /// One more; `pieces` lie one behind the other in its file.
    pub fn push(&mut self, read: GatheredRead<'b>, pieces: &'p [Piece]) {
        self.reads.push(read);
        self.pieces.push(pieces);
    }
}

impl Reader<'_> {
    /// Carries all out and checks every block. Gives those that failed, by their numbers.
    pub(super) fn carry_out(&self, fetches: Fetches<'_, '_>) -> Vec<(usize, Error)> {
        let Fetches { mut reads, pieces } = fetches;
        let worth = (reads.len() / READS_OF_A_THREAD).saturating_sub(1);
        let pool = if worth > 0 && self.files.is_for_many_threads() { pool() } else { None };
        let beside = BESIDE.take(worth, pool.map_or(0, ThreadPool::current_num_threads));
        let Some(pool) = pool.filter(|_| beside.0 > 0) else {
            return self.carry_out_some(0, &mut reads, &pieces);
        };
        let share = reads.len().div_ceil(beside.0 + 1);
        let mut failed: Vec<_> = (0..=beside.0).map(|_| Vec::new()).collect();
        let mut shares = reads.chunks_mut(share).zip(pieces.chunks(share)).zip(&mut failed).enumerate();
        let own = shares.next();
        pool.in_place_scope(|scope| {
            for (number, ((reads, pieces), failed)) in shares {
                scope.spawn(move |_| *failed = self.carry_out_some(number * share, reads, pieces));
            }
            if let Some((_, ((reads, pieces), failed))) = own {
                *failed = self.carry_out_some(0, reads, pieces);
            }
        });
        failed.into_iter().flatten().collect()
    }

    fn carry_out_some(
        &self,
        first: usize,
        reads: &mut [GatheredRead<'_>],
        pieces: &[&[Piece]],
    ) -> Vec<(usize, Error)> {
        match &mut *reads {
            [] => {}
            [one] => one.result = one.file.read_at(one.offset, one.buffer),
            many => self.files.read_gathered(many),
        }
        let mut failed = Vec::new();
        for (number, (read, pieces)) in (first..).zip(reads.iter_mut().zip(pieces)) {
            match std::mem::replace(&mut read.result, Ok(())) {
                Ok(()) => failed.extend(self.check(pieces, read.buffer).map(|error| (number, error))),
                Err(error) => failed.push((number, self.cannot_read(error))),
            }
        }
        failed
    }

    /// What is wrong with these blocks, if anything.
    fn check(&self, pieces: &[Piece], buffer: &[u8]) -> Option<Error> {
        pieces.iter().zip(buffer.chunks_exact(BLOCK)).find_map(|(piece, bytes)| match piece {
            Piece::Journal { lba, lsn, block, crc } if crc32(bytes) != *crc => {
                self.volume.note_damage(*lsn, Extent::new(lba.0, lba.0 + 1));
                let segment = match part_of(&self.parts, *lsn) {
                    Ok(part) => part.segment.path.display().to_string(),
                    Err(error) => return Some(error),
                };
                let context = format!(
                    "volume {}: block {lba} as {lsn:?} wrote it is damaged: block {block} of {segment}",
                    self.volume.name()
                );
                Some(Error::new(Kind::Damaged, context).hint(
                    "`cdp verify` lists all damage; older and newer versions of the block are not touched",
                ))
            }
            _ => None,
        })
    }
}

/// Counts threads, so that many large reads at once do not start more than the machine can use.
struct Beside(AtomicUsize);

/// So many threads were allowed.
struct Allowed(usize);

impl Beside {
    fn take(&'static self, wanted: usize, max: usize) -> Allowed {
        if wanted.min(max) == 0 {
            return Allowed(0);
        }
        let before = self.0.fetch_add(wanted.min(max), Ordering::Relaxed);
        let allowed = max.saturating_sub(before).min(wanted);
        self.0.fetch_sub(wanted.min(max) - allowed, Ordering::Relaxed);
        Allowed(allowed)
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        BESIDE.0.fetch_sub(self.0, Ordering::Relaxed);
    }
}
