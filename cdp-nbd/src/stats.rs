//! What the server measures: latency by class of request, and counters by client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::round::Class;

/// Latencies above this are counted as this, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Digits of latencies that are kept.
const DIGITS: u8 = 2;

/// Latencies of all clients since the server started.
pub struct Latencies {
    classes: [Mutex<Histogram<u64>>; 3],
}

/// Latencies of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quantiles {
    /// How many requests.
    pub count: u64,
    /// Half of them were faster.
    pub p50: Duration,
    /// All but one in a hundred were faster.
    pub p99: Duration,
    /// All but one in a thousand were faster.
    pub p999: Duration,
    /// The slowest.
    pub max: Duration,
}

/// Latencies from a request's arrival to the moment its reply was handed to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LatencySnapshot {
    /// Reads.
    pub read: Quantiles,
    /// Acknowledgement of writes, zeros and trims without FUA.
    pub write: Quantiles,
    /// Flushes and changes with FUA.
    pub flush: Quantiles,
}

impl Default for Latencies {
    fn default() -> Latencies {
        let class = || {
            let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
            Mutex::new(histogram.expect("constant bounds that the crate documents as valid"))
        };
        Latencies { classes: [class(), class(), class()] }
    }
}

impl Latencies {
    /// So many requests of this class took this long.
    pub fn record(&self, class: Class, requests: u64, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut histogram = self.class(class).lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record_n(nanoseconds.max(1), requests);
    }

    /// The latencies so far.
    pub fn snapshot(&self) -> LatencySnapshot {
        let of = |class| {
            let histogram = self.class(class).lock().unwrap_or_else(PoisonError::into_inner);
            let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
            Quantiles {
                count: histogram.len(),
                p50: at(0.5),
                p99: at(0.99),
                p999: at(0.999),
                max: Duration::from_nanos(histogram.max()),
            }
        };
        LatencySnapshot { read: of(Class::Read), write: of(Class::Write), flush: of(Class::Flush) }
    }

    fn class(&self, class: Class) -> &Mutex<Histogram<u64>> {
        &self.classes[match class {
            Class::Read => 0,
            Class::Write => 1,
            Class::Flush => 2,
        }]
    }
}

/// What one client has done.
#[derive(Default)]
pub struct Counters {
    /// Reads, changes and flushes.
    pub requests: AtomicU64,
    /// Bytes read.
    pub bytes_read: AtomicU64,
    /// Bytes written.
    pub bytes_written: AtomicU64,
}

impl Counters {
    /// So many requests about so many bytes are done.
    pub fn add(&self, class: Class, requests: u64, bytes: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        let counter = if class == Class::Read { &self.bytes_read } else { &self.bytes_written };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_tell_the_slow_from_the_fast() {
        // `status` shows these; a mix-up of classes or units would send an operator the wrong way.
        let latencies = Latencies::default();
        latencies.record(Class::Write, 998, Duration::from_micros(10));
        latencies.record(Class::Write, 2, Duration::from_secs(3600));
        let snapshot = latencies.snapshot();
        assert_eq!((snapshot.write.count, snapshot.read.count, snapshot.flush.count), (1000, 0, 0));
        assert!(
            snapshot.write.p50 < Duration::from_micros(11) && snapshot.write.p50 >= Duration::from_micros(10)
        );
        assert!(snapshot.write.p999 > Duration::from_secs(500));
    }
}
