//! Searching time for the write that broke it: a pure search, its saved state, and probes that run a program.

pub mod probe;
pub mod run;
pub mod search;
pub mod state;
