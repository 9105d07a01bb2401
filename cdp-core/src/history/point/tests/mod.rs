//! Points: what is typed must mean one state, or nothing.

mod clocks;
mod fuzz;
mod names;
mod parse;
mod resolve;
mod timeline;

use super::{Now, Zone};
use crate::error::Kind;
use crate::ids::Timestamp;

/// 2026-11-21T12:34:56.789012345Z, a Saturday.
pub(super) const NOW: u64 = 1_795_264_496_789_012_345;

pub(super) fn now_in(zone: &str) -> Now {
    Now { wall: Timestamp(NOW), zone: Zone::named(zone).unwrap() }
}

pub(super) fn now() -> Now {
    now_in("Europe/Berlin")
}

/// Asserts what kind of error a text gives, and that it tells the person all of these.
pub(super) fn refused(text: &str, now: &Now, kind: Kind, told: &[&str]) {
    let error = match super::parse(text, now) {
        Err(error) => error,
        Ok(request) => panic!("{text:?} was taken for {request:?}"),
    };
    assert_eq!(error.kind(), kind, "{text:?}: {error}");
    assert!(error.hint_text().is_some() || !told.is_empty(), "{text:?} has no hint: {error}");
    for told in told {
        assert!(error.to_string().contains(told), "{text:?} should tell {told:?}: {error}");
    }
}
