//! Memory for payloads: a buffer for every connection, and one budget for all that goes beyond it.
//!
//! A client is never given memory by its word: a large buffer is address space only, and is charged to the
//! budget as bytes arrive.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{BUFFER_BYTES, BUFFER_BYTES_LARGE, BUFFER_BYTES_MIN};

/// Bytes that all connections together may hold beyond their own buffers.
pub struct Budget {
    total: usize,
    used: Mutex<usize>,
    freed: Condvar,
    waiting: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(total: usize) -> Arc<Budget> {
        Arc::new(Budget {
            total,
            used: Mutex::default(),
            freed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Whether somebody waits for bytes.
    pub fn wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        *self.lock()
    }

    fn take(&self, bytes: usize, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut used = self.lock();
        while self.total - *used < bytes {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            used = self.freed.wait_timeout(used, left).unwrap_or_else(PoisonError::into_inner).0;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        *used += bytes;
        true
    }

    fn give_back(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        *self.lock() -= bytes;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's receive or reply buffer.
pub struct Buffer {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
}

impl Buffer {
    /// An empty buffer that takes what it needs beyond [`BUFFER_BYTES`] from `budget`.
    pub fn new(budget: Arc<Budget>) -> Buffer {
        Buffer { bytes: Vec::new(), charged: 0, budget }
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
            self.budget.give_back(self.charged - charged);
            self.charged = charged;
        }
    }

    /// Charges the budget so that the first `touched` bytes may be used; false if that took too long.
    pub fn charge(&mut self, touched: usize, wait: Duration) -> bool {
        let beyond = touched.saturating_sub(BUFFER_BYTES);
        if beyond <= self.charged {
            return true;
        }
        let taken = self.budget.take(beyond - self.charged, wait);
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
        self.budget.give_back(self.charged);
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
        let mut first = Buffer::new(budget.clone());
        first.grow(BUFFER_BYTES + 1, 0);
        assert!(first.is_large());
        assert!(first.charge(BUFFER_BYTES + (2 << 20), Duration::ZERO));
        let mut second = Buffer::new(budget.clone());
        second.grow(BUFFER_BYTES + 1, 0);
        assert!(second.charge(BUFFER_BYTES, Duration::ZERO), "one's own share is never refused");
        assert!(!second.charge(BUFFER_BYTES + 1, Duration::from_millis(1)));
        first.bytes()[5] = 7;
        first.shrink(6);
        assert_eq!((first.bytes()[5], first.len()), (7, BUFFER_BYTES_MIN));
        assert!(second.charge(BUFFER_BYTES + 1, Duration::ZERO));
        drop(second);
        drop(first);
        assert_eq!(budget.used(), 0);
    }
}
