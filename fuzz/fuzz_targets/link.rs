//! See `cdp_fuzz_replay::link`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::link::run(data));
