//! The NBD server of `cdp`: newstyle fixed, simple and structured replies, extended headers, block status.
//!
//! Two pure machines turn bytes into meaning: [`handshake`] and [`request`]; [`round`] carries requests out on a
//! [`cdp_core::device::Device`] and lays out the replies. None of them knows a socket or a clock. Around them
//! `connection` gives every client a thread of its own, `sender` a second one to those with large replies, and [`server`]
//! owns listeners and connections.

pub mod budget;
mod connection;
pub mod contexts;
pub mod exports;
pub mod handshake;
pub mod limits;
pub mod listen;
pub mod machine;
pub mod option;
pub mod proto;
pub mod reply;
pub mod request;
pub mod round;
mod sender;
pub mod server;
pub mod stats;
mod wire;

pub use contexts::{Bitmap, BitmapInfo, Bitmaps};
pub use exports::{ExportInfo, ExportSummary, Exports, OpenExport, Peer};
pub use server::{ClientInfo, Options, Server};
