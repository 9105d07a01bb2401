//! The newest state ahead of the history, after an outage: both sides of it. PROTOCOL.md, "Newest state".

pub(crate) mod again;
pub(crate) mod taker;
pub(crate) mod teller;
