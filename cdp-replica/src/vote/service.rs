//! A voter at work: a board, its file, and the clock that runs on through suspend.

use std::path::Path;
use std::sync::{Arc, Mutex};

use cdp_core::error::Result;
use cdp_core::ids::VolumeId;
use cdp_core::io::{Clock, Files};

use super::ballots::{BallotFile, Opened};
use super::{Ask, Ballot, Board, Said, SiteId, Times};
use crate::limits::LEASE_NS;

/// The newest epoch that the voter's own site has begun on a volume, or 0.
pub type Floor = Box<dyn Fn(VolumeId) -> u64 + Send + Sync>;

/// One of three voters, for whoever asks it.
pub struct Service {
    clock: Arc<dyn Clock>,
    file: BallotFile,
    floor: Floor,
    board: Mutex<Board>,
}

impl Service {
    /// Opens the ballots in `dir`, or makes them. Whoever asks sees to it that nobody else has them open: two voters with
    /// one file would vote twice.
    pub fn open(files: Arc<dyn Files>, clock: Arc<dyn Clock>, dir: &Path, floor: Floor) -> Result<Service> {
        let Opened { file, ballots, is_durable } = BallotFile::open(files, dir, clock.random())?;
        let board = Board::start(Times::with_lease(LEASE_NS), ballots, is_durable, clock.elapsed_ns());
        Ok(Service { clock, file, floor, board: Mutex::new(board) })
    }

    /// The id of the site that it stands at.
    pub fn site(&self) -> SiteId {
        self.file.site()
    }

    /// What it is bound to on a volume.
    pub fn ballot(&self, volume: VolumeId) -> Option<Ballot> {
        let board = self.board.lock().expect("no panics under this lock");
        board.ballots().get(&volume).map(|kept| kept.ballot)
    }

    /// Answers the site `name`, as its certificate calls it. The ballot is durable when this returns.
    pub fn answer(&self, ask: &Ask, name: &str) -> Said {
        let mut board = self.board.lock().expect("no panics under this lock");
        let mut keep = |ballots: &super::Ballots| {
            let kept = self.file.keep(ballots);
            if let Err(error) = &kept {
                tracing::error!(%error, "the ballots cannot be kept: nothing new is granted");
            }
            kept
        };
        // The time of arrival, or later: a promise that begins later is one that lasts longer.
        board.answer(ask, name, self.clock.elapsed_ns(), &self.floor, &mut keep)
    }
}
