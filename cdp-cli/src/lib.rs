//! The `cdp` command as a library: what the binary is made of, so that tests can call it.

pub mod bisect;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod door;
pub mod files;
pub mod follow;
pub mod hooks;
pub mod host;
pub mod image;
pub mod rates;
pub mod reach;
pub mod report;
pub mod serve;
pub mod units;
pub mod work;
