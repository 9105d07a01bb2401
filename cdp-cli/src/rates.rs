//! How fast a link may send, as people type and read it: `20MiB/s`, `20MiB/s@08:00-18:00,100MiB/s`.

use cdp_core::error::{Error, Kind, Result};
use cdp_core::volume::rate::{DAY_MINUTES, RateLimit, WINDOWS_MAX, Window};

use crate::units::{parse_size, size};

/// Limits with `,` between them; one with `@FROM-TO` counts in that part of the day, on this machine's clocks, one without
/// it otherwise. `none` is no limit, which also counts where nothing else does. The first that fits counts.
pub fn parse(text: &str) -> Result<RateLimit> {
    let wrong = |why: &str| {
        Error::new(Kind::Invalid, format!("{text:?} is not a limit: {why}"))
            .hint("like 20MiB/s, or 20MiB/s@08:00-18:00,100MiB/s, or none")
    };
    let mut limit = RateLimit::default();
    let mut otherwise = None;
    for part in text.split(',').map(str::trim) {
        let (rate, times) = part.split_once('@').map_or((part, None), |(rate, times)| (rate, Some(times)));
        let bytes_per_s = match rate.trim() {
            "none" => 0,
            rate => match parse_size(rate.strip_suffix("/s").unwrap_or(rate))? {
                0 => return Err(wrong("a rate of 0 would send nothing; `replica remove` does that")),
                bytes => bytes,
            },
        };
        let Some(times) = times else {
            if otherwise.replace(bytes_per_s).is_some() {
                return Err(wrong("two rates without a time"));
            }
            continue;
        };
        let (from, to) = times.split_once('-').ok_or_else(|| wrong("a time is FROM-TO"))?;
        let minutes = |time: &str| minutes(time).ok_or_else(|| wrong("a time of day is HH:MM"));
        let (from, to) = (minutes(from)?, minutes(to)?);
        if from == to || from == DAY_MINUTES {
            return Err(wrong("a part of the day that is no time at all"));
        }
        limit.windows.push(Window { from, to, bytes_per_s });
        if limit.windows.len() > WINDOWS_MAX {
            return Err(wrong("too many parts of the day"));
        }
    }
    limit.otherwise = otherwise.unwrap_or(0);
    Ok(limit)
}

/// `HH:MM`, up to 24:00.
fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    if hours.len() != 2
        || minutes.len() != 2
        || !text.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
    {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY_MINUTES).then_some(total)
}

/// As it is typed.
pub fn format(limit: &RateLimit) -> String {
    let rate = |bytes: u64| match bytes {
        0 => "none".to_owned(),
        bytes => format!("{}/s", size(bytes)),
    };
    let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let mut parts: Vec<String> = limit
        .windows
        .iter()
        .map(|window| format!("{}@{}-{}", rate(window.bytes_per_s), time(window.from), time(window.to)))
        .collect();
    parts.push(rate(limit.otherwise));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What somebody typed for office hours must not count at night, and what makes no sense is refused.
    #[test]
    fn limits_by_the_time_of_day() {
        let limit = parse("20MiB/s@08:00-18:00, 1M@22:30-24:00,100MiB/s").unwrap();
        assert_eq!(limit.at_minute(8 * 60), 20 << 20);
        assert_eq!(limit.at_minute(18 * 60), 100 << 20);
        assert_eq!(limit.at_minute(23 * 60), 1 << 20);
        assert_eq!(format(&limit), "20 MiB/s@08:00-18:00,1 MiB/s@22:30-24:00,100 MiB/s");
        assert_eq!(parse(&format(&limit)).unwrap(), limit);
        assert_eq!(parse("4MiB").unwrap(), RateLimit::from(4 << 20));
        assert_eq!(parse("none").unwrap(), RateLimit::default());
        assert_eq!(parse("5M@01:00-02:00").unwrap().at_minute(0), 0);
        for wrong in [
            "",
            "0",
            "5M@8-9",
            "5M@08:00",
            "5M@08:00-08:00",
            "5M@08:60-09:00",
            "5M@+8:00-09:00",
            "5M,6M",
            "5M@24:00-01:00",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
