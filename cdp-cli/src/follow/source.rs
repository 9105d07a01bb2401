//! What is followed: a volume, wherever it is served.

use cdp_core::error::Result;

use crate::work::{DeltaPage, State};

/// A volume that can be asked for its states.
pub trait Source {
    /// The newest durable state. With `settle`, everything that was answered before is in it.
    fn newest(&mut self, settle: bool) -> Result<State>;

    /// The state after a record. [`cdp_core::error::Kind::OutOfRange`]: it is gone;
    /// [`cdp_core::error::Kind::Refused`]: it never was.
    fn state(&mut self, lsn: u64) -> Result<State>;

    /// Keeps these states, and no others, from going while this source is open.
    fn hold(&mut self, lsns: &[u64]) -> Result<()>;

    /// What makes a state of another one, or without `from` of a disk of zeros; see [`crate::work::DeltaOf`].
    fn delta(&mut self, from: Option<u64>, to: u64, offset: u64) -> Result<DeltaPage>;

    /// Bytes of a state that is held.
    fn read(&mut self, lsn: u64, offset: u64, buffer: &mut [u8]) -> Result<()>;
}
