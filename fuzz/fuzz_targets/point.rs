//! See `cdp_fuzz_replay::point`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::point::run(data));
