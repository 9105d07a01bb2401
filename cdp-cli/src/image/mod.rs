//! Raw images outside of the store: files and block devices to import from and to restore to.

pub mod source;
pub mod target;
pub mod usage;

pub use source::Source;
