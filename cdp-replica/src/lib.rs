//! The second site: the journal is the stream. Not built yet; `docs/PROTOCOL.md` holds the draft.

pub mod vote;
