//! The heart of `cdp`: a volume whose every write goes to a timestamped journal before it is acknowledged,
//! and which can be read as of any of those writes.
//!
//! The crate is synchronous: no sockets, no printing, no threads and no clock of its own. Files and time come
//! through [`io::Files`] and [`io::Clock`], so that a simulated disk and clock drive the same code.

pub mod base;
pub mod catalog;
pub mod device;
pub mod error;
pub mod format;
pub mod generate;
pub mod history;
pub mod ids;
pub mod index;
pub mod io;
pub mod journal;
pub mod limits;
pub mod planted;
pub mod promises;
pub mod reader;
pub mod store;
pub mod time;
pub mod view;
pub mod volume;
