//! The `cdp` command as a library: what the binary is made of, so that tests can call it.

pub mod host;
