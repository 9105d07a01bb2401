//! How fast a link may send: a limit, and others at times of the day.
//!
//! In a manifest `20971520@480-1080,104857600`: bytes a second from minute 480 of the local day to minute 1080, else the
//! last. The first that fits counts; 0 = no limit. A window that ends before it begins goes over midnight.

use crate::history::point::Zone;
use crate::ids::Timestamp;

/// Minutes of a day.
pub const DAY_MINUTES: u16 = 24 * 60;
/// The most windows in one limit.
pub const WINDOWS_MAX: usize = 16;

/// A limit for a part of the day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// First minute of the local day.
    pub from: u16,
    /// Up to this one, excluded; at most [`DAY_MINUTES`].
    pub to: u16,
    /// Bytes a second; 0 = no limit.
    pub bytes_per_s: u64,
}

impl Window {
    fn has(&self, minute: u16) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

/// How fast a link may send.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RateLimit {
    /// Parts of the day with limits of their own, at most [`WINDOWS_MAX`].
    pub windows: Vec<Window>,
    /// Bytes a second otherwise; 0 = no limit.
    pub otherwise: u64,
}

impl From<u64> for RateLimit {
    fn from(bytes_per_s: u64) -> RateLimit {
        RateLimit { windows: Vec::new(), otherwise: bytes_per_s }
    }
}

impl RateLimit {
    /// What counts at this minute of the day, in bytes a second; 0 = no limit.
    pub fn at_minute(&self, minute: u16) -> u64 {
        self.windows
            .iter()
            .find(|window| window.has(minute))
            .map_or(self.otherwise, |window| window.bytes_per_s)
    }

    /// What counts at this instant on this machine's clocks.
    pub fn at(&self, now: Timestamp) -> u64 {
        if self.windows.is_empty() {
            return self.otherwise;
        }
        let zone = Zone::system().unwrap_or_else(|_| Zone::utc());
        self.at_minute(zone.minute_of_day(now).unwrap_or(0))
    }

    pub(super) fn encode(&self) -> String {
        let mut text = String::new();
        for Window { from, to, bytes_per_s } in &self.windows {
            text += &format!("{bytes_per_s}@{from}-{to},");
        }
        text + &self.otherwise.to_string()
    }

    pub(super) fn decode(text: &str) -> Option<RateLimit> {
        let mut parts: Vec<&str> = text.split(',').collect();
        let otherwise = parts.pop()?.parse().ok()?;
        let window = |part: &&str| {
            let (bytes, times) = part.split_once('@')?;
            let (from, to) = times.split_once('-')?;
            let window =
                Window { from: from.parse().ok()?, to: to.parse().ok()?, bytes_per_s: bytes.parse().ok()? };
            (window.from < DAY_MINUTES && window.to <= DAY_MINUTES && window.from != window.to)
                .then_some(window)
        };
        let windows: Vec<Window> = parts.iter().map(window).collect::<Option<_>>()?;
        (windows.len() <= WINDOWS_MAX).then_some(RateLimit { windows, otherwise })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The night's copy must not run into office hours, and a window over midnight is one window.
    #[test]
    fn the_first_window_that_fits_counts() {
        let limit = RateLimit::decode("20@480-1080,5@1320-60,100").unwrap();
        let found: Vec<u64> =
            [0, 59, 60, 479, 480, 1079, 1080, 1319, 1320, 1439].map(|m| limit.at_minute(m)).to_vec();
        assert_eq!(found, [5, 5, 100, 100, 20, 20, 100, 100, 5, 5]);
        assert_eq!(limit.encode(), "20@480-1080,5@1320-60,100");
        assert_eq!(RateLimit::decode("0"), Some(RateLimit::default()));
        for wrong in ["", "x", "1@2,3", "1@2-2,3", "1@1440-3,3", "1@0-1441,0", "1@-1-3,0"] {
            assert_eq!(RateLimit::decode(wrong), None, "{wrong:?}");
        }
    }
}
