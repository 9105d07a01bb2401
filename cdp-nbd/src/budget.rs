//! Memory for payloads: a buffer for every connection, and one budget for all that goes beyond it.
//!
//! A client is never given memory by its word: a large buffer is address space only, and is charged to the
//! budget as bytes arrive. When it is used up by requests of which each has come in part, nobody could go on: then
//! one of them, the elder, may go beyond it, and the others wait for what it gives back.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{BUFFER_BYTES, BUFFER_BYTES_LARGE, BUFFER_BYTES_MIN, LARGE_WAITS_MAX};

/// Bytes that all connections together may hold beyond their own buffers; the elder's come on top.
pub struct Budget {
    total: usize,
    account: Mutex<Account>,
    freed: Condvar,
    waiting: AtomicUsize,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Account {
    used: usize,
    /// The buffer that may go beyond the budget: the first that found it used up, until it gives all back.
    elder: Option<u64>,
    /// How often something was given back.
    given_back: u64,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(total: usize) -> Arc<Budget> {
        Arc::new(Budget {
            total,
            account: Mutex::default(),
            freed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
        })
    }

    /// Whether somebody waits for bytes.
    pub fn wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// Waits for as long as others give back, but at most [`LARGE_WAITS_MAX`] times `wait`.
    fn take(&self, id: u64, bytes: usize, wait: Duration) -> bool {
        let began = Instant::now();
        let mut deadline = began + wait;
        let mut account = self.lock();
        while account.used + bytes > self.total && *account.elder.get_or_insert(id) != id {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let given_back = account.given_back;
            self.waiting.fetch_add(1, Ordering::Relaxed);
            account = self.freed.wait_timeout(account, left).unwrap_or_else(PoisonError::into_inner).0;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if account.given_back != given_back {
                deadline = (Instant::now() + wait).min(began + wait * LARGE_WAITS_MAX);
            }
        }
        account.used += bytes;
        true
    }

    /// `all` if the buffer holds nothing any more.
    fn give_back(&self, id: u64, bytes: usize, all: bool) {
        let mut account = self.lock();
        let was_elder = all && account.elder == Some(id);
        if was_elder {
            account.elder = None;
        }
        if bytes == 0 && !was_elder {
            return;
        }
        account.used -= bytes;
        account.given_back += 1;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's receive or reply buffer.
pub struct Buffer {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
    id: u64,
}

impl Buffer {
    /// An empty buffer that takes what it needs beyond [`BUFFER_BYTES`] from `budget`.
    pub fn new(budget: Arc<Budget>) -> Buffer {
        let id = budget.next_id.fetch_add(1, Ordering::Relaxed);
        Buffer { bytes: Vec::new(), charged: 0, budget, id }
    }

    /// All bytes that are there; what is beyond [`BUFFER_BYTES`] may be touched only when charged.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many bytes are there.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether it is larger than a connection's own.
    pub fn is_large(&self) -> bool {
        self.bytes.len() > BUFFER_BYTES
    }

    /// Makes room for at least `len` bytes, at most [`BUFFER_BYTES_LARGE`]; the first `keep` stay.
    pub fn grow(&mut self, len: usize, keep: usize) {
        if len > self.bytes.len() {
            self.replace(size_class(len), keep);
        }
    }

    /// Goes back to the smallest size that holds `keep` bytes, which stay.
    pub fn shrink(&mut self, keep: usize) {
        let len = if keep == 0 { 0 } else { size_class(keep) };
        if len < self.bytes.len() {
            self.replace(len, keep);
            let charged = keep.saturating_sub(BUFFER_BYTES).min(self.charged);
            if self.charged > 0 {
                self.budget.give_back(self.id, self.charged - charged, charged == 0);
            }
            self.charged = charged;
        }
    }

    /// Charges the budget so that the first `touched` bytes may be used; false if that took too long.
    pub fn charge(&mut self, touched: usize, wait: Duration) -> bool {
        let beyond = touched.saturating_sub(BUFFER_BYTES);
        if beyond <= self.charged {
            return true;
        }
        let taken = self.budget.take(self.id, beyond - self.charged, wait);
        if taken {
            self.charged = beyond;
        }
        taken
    }

    /// How many bytes may be used.
    pub fn usable(&self) -> usize {
        (BUFFER_BYTES + self.charged).min(self.bytes.len())
    }

    fn replace(&mut self, len: usize, keep: usize) {
        // Fresh zeroed pages: the kernel gives them when they are touched, not before.
        let mut bytes = vec![0; len];
        bytes[..keep].copy_from_slice(&self.bytes[..keep]);
        self.bytes = bytes;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.charged > 0 {
            self.budget.give_back(self.id, self.charged, true);
        }
    }
}

fn size_class(len: usize) -> usize {
    if len > BUFFER_BYTES {
        BUFFER_BYTES_LARGE.max(len)
    } else {
        len.next_power_of_two().clamp(BUFFER_BYTES_MIN, BUFFER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_comes_back() {
        // A leak here would, request by request, end in ENOMEM for everybody.
        let budget = Budget::new(2 << 20);
        let buffer = || {
            let mut buffer = Buffer::new(budget.clone());
            buffer.grow(BUFFER_BYTES + 1, 0);
            buffer
        };
        let (mut first, mut second, mut third) = (buffer(), buffer(), buffer());
        assert!(first.is_large());
        assert!(first.charge(BUFFER_BYTES + (2 << 20), Duration::ZERO));
        assert!(second.charge(BUFFER_BYTES + 1, Duration::ZERO), "the elder goes beyond the budget");
        assert!(third.charge(BUFFER_BYTES, Duration::ZERO), "one's own share is never refused");
        assert!(!third.charge(BUFFER_BYTES + 1, Duration::from_millis(1)), "there is one elder");
        first.bytes()[5] = 7;
        first.shrink(6);
        assert_eq!((first.bytes()[5], first.len()), (7, BUFFER_BYTES_MIN));
        assert!(third.charge(BUFFER_BYTES + 1, Duration::ZERO));
        drop(second);
        drop(third);
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn many_that_have_all_come_in_part_all_get_through() {
        // Clients whose large writes together exceed the budget would wait for each other and all be refused.
        let budget = Budget::new(4 << 20);
        let begin = std::sync::Barrier::new(6);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut buffer = Buffer::new(budget.clone());
                    buffer.grow(BUFFER_BYTES + 1, 0);
                    begin.wait();
                    for mib in 1..=4 {
                        assert!(buffer.charge(BUFFER_BYTES + (mib << 20), Duration::from_secs(10)));
                        std::thread::sleep(Duration::from_millis(2));
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
