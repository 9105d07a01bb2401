//! See `cdp_fuzz_replay::votes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::votes::run(data));
