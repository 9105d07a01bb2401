//! What LIST_META_CONTEXT and SET_META_CONTEXT ask for, looked up.

use cdp_core::error::{Error, Kind};

use super::{put, put_refusal};
use crate::contexts::BitmapInfo;
use crate::exports::{Exports, Peer};
use crate::limits::{BITMAP_QUERIES_MAX, BITMAPS_MAX, STRING_BYTES_MAX};
use crate::option::{MetaOption, Query};
use crate::proto::{DIRTY_BITMAP, reply};

/// The queries of one option.
pub(super) struct Asked<'a> {
    request: MetaOption<'a>,
    exports: &'a dyn Exports,
    peer: &'a Peer,
    looked_for: usize,
}

/// Why an option is refused.
pub(super) enum Refused {
    TooMany(&'static str),
    Error(Error),
}

/// Whether `base:allocation` is meant, and which bitmaps, each once.
type Found = (bool, Vec<BitmapInfo>);

impl Refused {
    pub fn put(self, out: &mut Vec<u8>, option: u32) {
        match self {
            Refused::TooMany(text) => put(out, option, reply::ERR_TOO_BIG, &[text.as_bytes()]),
            Refused::Error(error) if error.kind() == Kind::Invalid => {
                let text = error.to_string();
                let text = crate::reply::clip(&text, STRING_BYTES_MAX);
                put(out, option, reply::ERR_INVALID, &[text.as_bytes()]);
            }
            Refused::Error(error) => put_refusal(out, option, &error),
        }
    }
}

impl<'a> Asked<'a> {
    pub fn new(request: MetaOption<'a>, exports: &'a dyn Exports, peer: &'a Peer) -> Asked<'a> {
        Asked { request, exports, peer, looked_for: 0 }
    }

    /// For SET: what is named. Wildcards select nothing.
    pub fn select(&mut self) -> Result<Found, Refused> {
        let (mut allocation, mut bitmaps) = (false, Vec::new());
        for query in self.request.queries() {
            match query {
                Query::Allocation => allocation = true,
                Query::Bitmap(name) => self.add(&mut bitmaps, name)?,
                Query::AllOfBase | Query::AllBitmaps | Query::Unknown => {}
            }
        }
        if bitmaps.len() > BITMAPS_MAX {
            return Err(Refused::TooMany("a connection can select 8 dirty bitmaps"));
        }
        Ok((allocation, bitmaps))
    }

    /// For LIST: what is named, and what wildcards stand for.
    pub fn list(&mut self) -> Result<Found, Refused> {
        let everything = self.request.is_empty();
        let (mut allocation, mut all) = (everything, everything);
        let mut bitmaps = Vec::new();
        for query in self.request.queries() {
            match query {
                Query::Allocation | Query::AllOfBase => allocation = true,
                Query::AllBitmaps => all = true,
                Query::Bitmap(name) => self.add(&mut bitmaps, name)?,
                Query::Unknown => {}
            }
        }
        if all {
            let listed = self.exports.bitmaps(self.request.name, self.peer).map_err(Refused::Error)?;
            for name in listed {
                // A name that a client could not ask for is better left out than cut.
                let is_sendable = DIRTY_BITMAP.len() + name.len() <= STRING_BYTES_MAX;
                if is_sendable && bitmaps.iter().all(|known| known.name != name) {
                    bitmaps.push(BitmapInfo { name, key: String::new() });
                }
            }
        }
        Ok((allocation, bitmaps))
    }

    /// A name that could be one, but is none here, is passed over, as the protocol wants it.
    fn add(&mut self, bitmaps: &mut Vec<BitmapInfo>, name: &str) -> Result<(), Refused> {
        if bitmaps.iter().any(|known| known.name == name) {
            return Ok(());
        }
        self.looked_for += 1;
        if self.looked_for > BITMAP_QUERIES_MAX {
            return Err(Refused::TooMany("more than 64 dirty bitmaps are asked for at once"));
        }
        match self.exports.bitmap(self.request.name, name, self.peer) {
            Ok(found) => bitmaps.extend(found),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::OutOfRange) => {
                tracing::info!(export = self.request.name, bitmap = name, %error, "no such dirty bitmap");
            }
            Err(error) => return Err(Refused::Error(error)),
        }
        Ok(())
    }
}
