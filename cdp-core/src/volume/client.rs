//! A volume as one client has it open: with the size it was told, and only for as long as what the client may have
//! in its caches can be true.

use std::sync::Arc;

use super::{Volume, check_range};
use crate::device::{Change, Device, Read, Stretch};
use crate::error::{Error, Kind, Result};
use crate::ids::*;

/// What has to be as it was when a client came in, so that what it knows of the disk can be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// The newest rollback.
    rolled_back: Lsn,
    /// So often the volume changed its role since it was opened.
    role_changes: u64,
}

/// The live volume for one connection. After a rollback, and when the volume changed its role, every request fails: what
/// the client knows of the disk is of a state that is no more, and what it writes is meant for that.
pub struct Client {
    volume: Arc<Volume>,
    size_bytes: u64,
    entry: Entry,
}

impl Client {
    /// Lets a client in, or says why not.
    pub fn admit(volume: Arc<Volume>) -> Result<Client> {
        let entry = volume.entry();
        volume.refuse_if_held()?;
        Ok(Client { size_bytes: volume.size_bytes(), entry, volume })
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    fn refuse_if_stale(&self) -> Result<()> {
        if self.volume.entry() == self.entry { Ok(()) } else { Err(stale(&self.volume)) }
    }
}

impl Volume {
    /// What whoever comes in now may count on.
    pub(super) fn entry(&self) -> Entry {
        Entry { rolled_back: self.rolled_back(), role_changes: self.role_changes() }
    }
}

/// The refusal of a client that came in before a rollback, or before the volume changed its role.
pub(super) fn stale(volume: &Volume) -> Error {
    let name = volume.name();
    let context =
        format!("volume {name} was rolled back or changed its role: what this client knows of it is stale");
    Error::new(Kind::Closed, context).hint("connect again")
}

impl Device for Client {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        self.volume.is_read_only()
    }

    fn apply(&self, session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        self.volume.apply_changes(session, self.entry, changes, results);
    }

    fn flush(&self) -> Result<()> {
        self.refuse_if_stale()?;
        self.volume.flush()
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        match self.refuse_if_stale() {
            Ok(()) => {
                self.volume.read(reads);
                // A promotion may have begun to write another state meanwhile.
                if !self.volume.is_primary()
                    && let Err(error) = self.refuse_if_stale()
                {
                    reads.iter_mut().for_each(|read| read.result = Err(error.duplicate()));
                }
            }
            Err(error) => reads.iter_mut().for_each(|read| read.result = Err(error.duplicate())),
        }
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        self.refuse_if_stale()?;
        check_range(offset, len, self.size_bytes)?;
        self.volume.extents(offset, len, stretches_max)
    }
}
