//! Eight bugs that a storage engine can have without anybody noticing for months, planted one at a time: the
//! crash suite must turn red on each, or its green means nothing.
//!
//! `cargo test -p cdp-core --features planted-bugs --test planted`

#[macro_use]
#[allow(dead_code, unused_imports, reason = "a part of what the crash suite shares is used here")]
#[path = "../crash/harness/mod.rs"]
mod harness;

mod bent;
mod suite;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cdp_core::planted::{Bug, plant};

use bent::Bend;

/// Runs the reduced suite and wants a broken promise; one that a panic tells counts too.
fn must_be_found(what: &str, run: impl Fn() -> harness::Outcome, wanted: &str) {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    plant(None);
    let broken = match outcome {
        Ok(Ok(())) => panic!("{what} was planted, and the suite is green"),
        Ok(Err(broken)) => broken,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
    };
    println!("{what}: {broken}");
    assert!(broken.contains(wanted), "{what} was found, but not as {wanted:?}: {broken}");
}

/// Without a planted bug the same suite is green: what it finds below is the bug and nothing else.
#[test]
fn nothing_planted() {
    for suite in [suite::boundaries, suite::failed_sync, suite::rot, suite::missing_segment] {
        suite(&harness::wrap::nothing()).expect("no promise is broken");
    }
    // The wrapper alone changes nothing either.
    suite::boundaries(&Bend::Nothing.wrap()).expect("no promise is broken");
}

#[test]
fn acknowledge_before_write() {
    let wrap = Bend::AcknowledgeBeforeWrite.wrap();
    must_be_found("acknowledge before write", || suite::boundaries(&wrap), "v0");
}

#[test]
fn flush_without_sync() {
    let wrap = Bend::FlushWithoutSync.wrap();
    must_be_found("flush without sync", || suite::boundaries(&wrap), "v0");
}

#[test]
fn cut_on_any_mismatch() {
    plant(Some(Bug::CutOnAnyMismatch));
    let run = || suite::rot(&harness::wrap::nothing());
    must_be_found("cut on any mismatch", run, "LOST");
}

#[test]
fn no_durable_mark() {
    let wrap = Bend::NoDurableMark.wrap();
    must_be_found("no durable mark", || suite::missing_segment(&wrap), "LOST");
}

#[test]
fn errors_of_the_disk_ignored() {
    let wrap = Bend::IgnoreErrors.wrap();
    must_be_found("EIO ignored", || suite::failed_sync(&wrap), "LOST");
}

#[test]
fn time_off_by_one() {
    plant(Some(Bug::TimeOffByOne));
    let run = || suite::boundaries(&harness::wrap::nothing());
    must_be_found("time off by one", run, "stands");
}

#[test]
fn two_batches_swapped() {
    let wrap = Bend::SwapBatches.wrap();
    must_be_found("two batches swapped", || suite::boundaries(&wrap), "v0");
}

#[test]
fn a_directory_sync_skipped() {
    let wrap = Bend::SkipDirectorySync.wrap();
    must_be_found("a directory sync skipped", || suite::boundaries(&wrap), "v0");
}
