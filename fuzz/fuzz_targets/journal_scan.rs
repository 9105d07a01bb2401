//! See `cdp_fuzz_replay::journal_scan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::journal_scan::run(data));
