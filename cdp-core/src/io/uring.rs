//! The real implementation with gathered reads: many reads handed to the kernel at once through io_uring, and
//! write-out started early. The only file of the crate with `unsafe`.
//!
//! Everything else is [`super::posix`]: io_uring does not pay for single writes and syncs.

use std::ffi::{c_int, c_uint};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::posix::{self, Posix, read_one_by_one};
use super::{DirEntry, File, FileStat, Files, GatheredRead, Lock, Space};

/// Fewer reads than this go one by one. Measured on ext4 on a virtio disk: two cold 4-KiB reads take 194 µs
/// together and 262 µs one by one; from the cache, up to eight cost a few µs more together.
const READS_MIN: usize = 2;
/// The most reads one ring has in flight. Its completion queue holds twice as many, so it cannot overflow.
const DEPTH_MAX: u32 = 128;
/// Rings kept for later; more are made while more threads read at once, and closed again.
const RINGS_KEPT_MAX: usize = 8;
/// A read that the kernel gave back undone so often is done with a plain `pread`.
const ATTEMPTS_MAX: u8 = 8;
/// The most bytes of one submission; the rest follows as after any short read.
const READ_BYTES_MAX: usize = 1 << 30;
/// Pause before the kernel is asked again after it refused to be entered.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// Files of the operating system, with gathered reads through io_uring.
pub struct Uring {
    rings: Mutex<Vec<IoUring>>,
}

impl Uring {
    /// Makes a ring and reads through it; the error says why io_uring cannot be used here (containers often
    /// forbid it, kernels before 5.6 lack what is needed).
    pub fn probe() -> io::Result<Uring> {
        let ring = new_ring()?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring may drop completions",
            ));
        }
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring cannot read"));
        }
        Ok(Uring { rings: Mutex::new(vec![ring]) })
    }

    fn take_ring(&self) -> Option<IoUring> {
        let kept = self.rings.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.or_else(|| new_ring().ok())
    }

    fn keep_ring(&self, ring: IoUring) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if rings.len() < RINGS_KEPT_MAX {
            rings.push(ring);
        }
    }
}

/// A hint: what goes wrong is reported by the sync that follows.
fn write_out(file: &fs::File, offset: u64, len: u64) {
    let _ = start_writing_out(file, offset, len);
}

/// Asks the kernel to start writing a range out, and waits for nothing.
fn start_writing_out(file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
    unsafe extern "C" {
        /// In every C library that std uses on Linux.
        fn sync_file_range(fd: c_int, offset: i64, len: i64, flags: c_uint) -> c_int;
    }
    const SYNC_FILE_RANGE_WRITE: c_uint = 2;
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // SAFETY: no pointers are passed, and the borrowed file keeps its descriptor open.
    match unsafe { sync_file_range(file.as_raw_fd(), offset, len, SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn new_ring() -> io::Result<IoUring> {
    // Forked children must not inherit a ring; interrupting the reader for each completion is not needed, since
    // it waits in the kernel for them anyway.
    match IoUring::builder().dontfork().setup_coop_taskrun().build(DEPTH_MAX) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            IoUring::builder().dontfork().build(DEPTH_MAX)
        }
        other => other,
    }
}

/// One read on its way.
struct Flight {
    /// Which of the gathered reads.
    read: usize,
    fd: RawFd,
    /// Bytes that have arrived.
    done: usize,
    attempts: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be handed to the kernel.
    Ready,
    /// The kernel has it, and with it the buffer.
    InKernel,
    /// Its result is set.
    Landed,
    /// To be carried out with `pread`.
    Plain,
}

/// Ends the process if a panic would unwind past buffers that the kernel may still write to.
struct KernelHasBuffers;

impl Drop for KernelHasBuffers {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Carries the flights out on a ring and returns whether the ring can be used again. On return the kernel has
/// nothing of ours: each flight is `Landed` or `Plain`.
fn fly(ring: &mut IoUring, reads: &mut [GatheredRead<'_>], flights: &mut [Flight]) -> bool {
    let guard = KernelHasBuffers;
    let mut in_kernel = 0;
    let usable = loop {
        let more = board(ring, reads, flights, &mut in_kernel);
        if in_kernel == 0 {
            break true;
        }
        // All are wanted before anything goes on; but where more stand waiting the device is kept busy.
        let want = if more { in_kernel.div_ceil(2) } else { in_kernel };
        match ring.submit_and_wait(want).map_err(|error| Errno::from_io_error(&error)) {
            // Interrupted, short of memory, or too many completions unread: read those and ask again.
            Ok(_) | Err(Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)) => {}
            Err(_) => {
                wait_without_entering(ring, reads, flights, &mut in_kernel);
                break false;
            }
        }
        in_kernel -= reap(ring, reads, flights);
    };
    std::mem::forget(guard);
    usable
}

/// Puts ready flights into the submission queue while there is room. Returns whether some are left.
fn board(
    ring: &mut IoUring,
    reads: &mut [GatheredRead<'_>],
    flights: &mut [Flight],
    in_kernel: &mut usize,
) -> bool {
    let mut queue = ring.submission();
    for (index, flight) in flights.iter_mut().enumerate() {
        if flight.stage != Stage::Ready {
            continue;
        }
        if *in_kernel == DEPTH_MAX as usize {
            return true;
        }
        let read = &mut reads[flight.read];
        let rest = &mut read.buffer[flight.done..];
        let len = rest.len().min(READ_BYTES_MAX) as u32;
        let entry = opcode::Read::new(types::Fd(flight.fd), rest.as_mut_ptr(), len)
            .offset(read.offset + flight.done as u64)
            .build()
            .user_data(index as u64);
        // SAFETY: the kernel may write to the `len` bytes from this pointer until it posts the completion of the
        // entry. They lie in `read.buffer`, which `fly` borrows mutably from beginning to end, and while the
        // flight is `InKernel` nobody touches that buffer. `fly` returns only when every entry that the kernel
        // took has been completed, and when it leaves entries in the queue that the kernel did not take, the
        // ring is closed without being entered again, so they are never seen. `fly` does not unwind before
        // that: `KernelHasBuffers` ends the process instead. The descriptor stays open because `read.file` is
        // borrowed as long as the buffer.
        if unsafe { queue.push(&entry) }.is_err() {
            return true;
        }
        flight.stage = Stage::InKernel;
        *in_kernel += 1;
    }
    false
}

/// Takes the completions that have arrived, and returns how many.
fn reap(ring: &mut IoUring, reads: &mut [GatheredRead<'_>], flights: &mut [Flight]) -> usize {
    let mut count = 0;
    for completion in ring.completion() {
        let flight = &mut flights[completion.user_data() as usize];
        land(flight, &mut reads[flight.read], completion.result());
        count += 1;
    }
    count
}

/// The kernel refuses to be entered. What it took before will still complete; what it never took is taken back,
/// which ends the ring.
fn wait_without_entering(
    ring: &mut IoUring,
    reads: &mut [GatheredRead<'_>],
    flights: &mut [Flight],
    in_kernel: &mut usize,
) {
    let never_taken = ring.submission().len();
    loop {
        *in_kernel -= reap(ring, reads, flights);
        if *in_kernel <= never_taken {
            break;
        }
        std::thread::sleep(REFUSED_PAUSE);
    }
    for flight in flights {
        if matches!(flight.stage, Stage::InKernel | Stage::Ready) {
            flight.stage = Stage::Plain;
        }
    }
}

/// What a completion means for its read.
fn land(flight: &mut Flight, read: &mut GatheredRead<'_>, result: i32) {
    if let Ok(bytes) = usize::try_from(result) {
        flight.done += bytes;
        flight.stage = Stage::Ready;
        if flight.done >= read.buffer.len() {
            flight.stage = Stage::Landed;
        } else if bytes == 0 {
            read.result = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            flight.stage = Stage::Landed;
        }
        return;
    }
    let error = io::Error::from_raw_os_error(result.wrapping_neg());
    if let Some(Errno::INTR | Errno::AGAIN | Errno::CANCELED) = Errno::from_io_error(&error) {
        flight.attempts += 1;
        flight.stage = if flight.attempts < ATTEMPTS_MAX { Stage::Ready } else { Stage::Plain };
    } else {
        read.result = Err(error);
        flight.stage = Stage::Landed;
    }
}

impl Files for Uring {
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        posix::open(path, writable, write_out)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        posix::create(path, write_out)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        Posix.stat(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Posix.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Posix.rename(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Posix.create_dir(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Posix.remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        Posix.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Posix.sync_dir(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Posix.space(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Lock>> {
        Posix.lock(path, holder)
    }

    fn read_gathered(&self, reads: &mut [GatheredRead<'_>]) {
        if reads.len() < READS_MIN {
            return read_one_by_one(reads);
        }
        let Some(mut ring) = self.take_ring() else {
            return read_one_by_one(reads);
        };
        let mut flights = Vec::with_capacity(reads.len());
        for (index, read) in reads.iter_mut().enumerate() {
            read.result = Ok(());
            // The offset -1 would mean "wherever the descriptor stands" to io_uring; pread refuses it.
            let end = read.offset.saturating_add(read.buffer.len() as u64);
            let fits = !read.buffer.is_empty() && i64::try_from(end).is_ok();
            let fd = read.file.raw_fd().filter(|_| fits);
            let stage = if fd.is_some() { Stage::Ready } else { Stage::Plain };
            flights.push(Flight { read: index, fd: fd.unwrap_or(-1), done: 0, attempts: 0, stage });
        }
        if fly(&mut ring, reads, &mut flights) {
            self.keep_ring(ring);
        }
        for flight in flights.iter().filter(|flight| flight.stage == Stage::Plain) {
            let read = &mut reads[flight.read];
            let offset = read.offset.saturating_add(flight.done as u64);
            read.result = read.file.read_at(offset, &mut read.buffer[flight.done..]);
        }
    }

    fn is_for_many_threads(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(content: &[u8]) -> (tempfile::TempDir, Arc<dyn File>) {
        let directory = tempfile::tempdir().unwrap();
        let file = Posix.create(&directory.path().join("file")).unwrap();
        file.write_at(0, &[io::IoSlice::new(content)]).unwrap();
        (directory, file)
    }

    fn flight(file: &Arc<dyn File>) -> Flight {
        Flight { read: 0, fd: file.raw_fd().unwrap(), done: 0, attempts: 0, stage: Stage::InKernel }
    }

    /// The kernel may answer a read with less than was asked, or not at all for now: a view must still get every
    /// byte, and a hard error must reach the client as one.
    #[test]
    fn completions_mean_what_the_kernel_says() {
        let (_directory, file) = file_of(b"");
        let mut buffer = [0; 10];
        let mut read = GatheredRead { file: file.clone(), offset: 0, buffer: &mut buffer, result: Ok(()) };

        let mut short = flight(&file);
        land(&mut short, &mut read, 4);
        assert_eq!((short.stage, short.done), (Stage::Ready, 4));
        land(&mut short, &mut read, 6);
        assert_eq!((short.stage, short.done), (Stage::Landed, 10));
        assert!(read.result.is_ok());

        for errno in [Errno::INTR, Errno::AGAIN, Errno::CANCELED] {
            let mut undone = flight(&file);
            land(&mut undone, &mut read, -errno.raw_os_error());
            assert_eq!(undone.stage, Stage::Ready);
            for _ in 1..ATTEMPTS_MAX {
                land(&mut undone, &mut read, -errno.raw_os_error());
            }
            assert_eq!(undone.stage, Stage::Plain, "{errno} for ever must not become a loop");
            assert!(read.result.is_ok());
        }

        let mut ended = flight(&file);
        land(&mut ended, &mut read, 0);
        assert_eq!(ended.stage, Stage::Landed);
        assert_eq!(read.result.as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let mut failed = flight(&file);
        land(&mut failed, &mut read, -Errno::IO.raw_os_error());
        assert_eq!(failed.stage, Stage::Landed);
        assert_eq!(read.result.as_ref().unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
    }

    /// If the kernel suddenly refuses io_uring (a seccomp filter, no memory), reads go on with `pread`.
    #[test]
    fn what_the_kernel_never_took_is_taken_back() {
        let Ok(mut ring) = new_ring() else {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "io_uring is refused in CI");
            return eprintln!("*** SKIPPED: io_uring is refused on this machine ***");
        };
        let (_directory, file) = file_of(b"0123456789");
        let mut buffer = [0; 10];
        let mut reads = [GatheredRead { file: file.clone(), offset: 0, buffer: &mut buffer, result: Ok(()) }];
        let mut flights = [Flight { stage: Stage::Ready, ..flight(&file) }];
        let mut in_kernel = 0;
        assert!(!board(&mut ring, &mut reads, &mut flights, &mut in_kernel));
        assert_eq!((in_kernel, flights[0].stage), (1, Stage::InKernel));
        wait_without_entering(&mut ring, &mut reads, &mut flights, &mut in_kernel);
        assert_eq!(flights[0].stage, Stage::Plain);
        drop(ring);
        assert_eq!(buffer, [0; 10], "the kernel must not have seen the read");
    }

    /// The early write-out is a hint whose errors are ignored, so a wrong call would never be noticed.
    #[test]
    fn the_kernel_accepts_the_write_out() {
        let (directory, _file) = file_of(&[7; 65536]);
        let plain = fs::File::open(directory.path().join("file")).unwrap();
        start_writing_out(&plain, 4096, 8192).unwrap();
        assert!(start_writing_out(&plain, i64::MAX as u64, 8192).is_err());
        assert!(start_writing_out(&plain, u64::MAX, 1).is_err());
    }
}
