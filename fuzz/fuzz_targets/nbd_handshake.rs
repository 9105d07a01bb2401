//! See `cdp_fuzz_replay::nbd_handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdp_fuzz_replay::nbd_handshake::run(data));
