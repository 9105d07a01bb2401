//! What travels over the control socket: one JSON object a line, requests one way, progress and one answer back.

use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::work::{Progress, Request, Response};

/// Version of the protocol; another one is refused.
pub const VERSION: u32 = 1;
/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Name of the socket in the store.
pub const SOCKET_FILE: &str = "control.sock";

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// [`VERSION`].
    pub version: u32,
    /// The client's TZ, so that civil times mean the same on both sides.
    pub tz: Option<String>,
    /// What to do.
    pub request: Request,
}

/// A line of the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Done(Box<Response>),
    /// It failed.
    Failed(Report),
}
