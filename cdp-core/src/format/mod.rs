//! Pure bytes: what stands in files, offset by offset as in `docs/FORMAT.md`. No I/O. All numbers little-endian.

pub mod base;
pub mod base_map;
pub mod bytes;
pub mod coalesced;
pub mod codec;
pub mod epoch;
pub mod fold;
pub mod history;
pub mod ledger;
pub mod looked;
pub mod manifest;
pub mod mark;
pub mod marker;
pub mod promise;
pub mod record;
pub mod run;
pub mod segment;
pub mod turn;
