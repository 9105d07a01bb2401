//! Images outside of the store: files and block devices to import from and to restore to.

pub mod foreign;
pub mod frozen;
pub mod source;
pub mod target;
pub mod usage;

pub use foreign::Format;
pub use source::Source;
