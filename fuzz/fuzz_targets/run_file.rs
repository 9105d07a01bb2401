//! See `cdp_fuzz_replay::run_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::run_file::run(data));
