//! See `cdp_fuzz_replay::nbd_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::nbd_requests::run(data));
