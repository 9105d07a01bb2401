//! The `cdp` command as a library: what the binary is made of, so that tests can call it.

pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod door;
pub mod hooks;
pub mod host;
pub mod image;
pub mod report;
pub mod serve;
pub mod units;
pub mod work;
