//! A volume behind a server, or in a store that this command has opened: asked over the control socket, read over NBD.

use std::collections::BTreeMap;

use cdp_core::error::{Error, Kind, Result};

use super::source::Source;
use crate::door::unexpected;
use crate::host::relay::Reader;
use crate::reach::Reach;
use crate::work::{DeltaOf, DeltaPage, Request, Response, State, StateOf};

/// The volume. Its connections are views, and so they keep what they show.
pub struct Remote<'a> {
    reach: &'a mut Reach,
    volume: String,
    readers: BTreeMap<u64, Reader>,
}

impl<'a> Remote<'a> {
    /// Asks nothing yet.
    pub fn new(reach: &'a mut Reach, volume: &str) -> Remote<'a> {
        Remote { reach, volume: volume.to_owned(), readers: BTreeMap::new() }
    }

    fn ask_state(&mut self, lsn: Option<u64>, settle: bool) -> Result<State> {
        let request = Request::State(StateOf { volume: self.volume.clone(), lsn, settle });
        match self.reach.ask(request, &mut |_| Ok(()))? {
            Response::State(state) => Ok(state),
            _ => Err(unexpected()),
        }
    }

    fn reader(&mut self, lsn: u64) -> Result<&mut Reader> {
        use std::collections::btree_map::Entry;
        match self.readers.entry(lsn) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let export = format!("{}@lsn:{lsn}", self.volume);
                let uri = self.reach.uri(&export)?;
                // Whatever the reason, it is asked again later.
                let gone = |error| Error::new(Kind::Closed, format!("connecting to {export}: {error}"));
                Ok(place.insert(Reader::connect(&uri).map_err(gone)?))
            }
        }
    }
}

impl Source for Remote<'_> {
    fn newest(&mut self, settle: bool) -> Result<State> {
        self.ask_state(None, settle)
    }

    fn state(&mut self, lsn: u64) -> Result<State> {
        self.ask_state(Some(lsn), false)
    }

    fn hold(&mut self, lsns: &[u64]) -> Result<()> {
        for lsn in lsns {
            self.reader(*lsn)?;
        }
        self.readers.retain(|lsn, _| lsns.contains(lsn));
        Ok(())
    }

    fn delta(&mut self, from: Option<u64>, to: u64, offset: u64) -> Result<DeltaPage> {
        let request = Request::Delta(DeltaOf { volume: self.volume.clone(), from, to, offset });
        match self.reach.ask(request, &mut |_| Ok(()))? {
            Response::Delta(page) => Ok(page),
            _ => Err(unexpected()),
        }
    }

    fn read(&mut self, lsn: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let place = format!("reading byte {offset} of {}@lsn:{lsn}", self.volume);
        let read = self.reader(lsn)?.read_at(offset, buffer);
        read.map_err(|error| {
            // Whatever it was, the connection may be out of step.
            self.readers.remove(&lsn);
            Error::io(error, place)
        })
    }
}
