//! A voter at work: a board, its file, and the clock that runs on through suspend.

use std::path::Path;
use std::sync::{Arc, Mutex};

use cdp_core::error::Result;
use cdp_core::ids::VolumeId;
use cdp_core::io::{Clock, Files};

use super::ballots::{BallotFile, Opened};
use super::{Answer, Ask, Ballot, Board, Said, SiteId, Times, Verdict};
use crate::limits::LEASE_NS;

/// The newest epoch that the voter's own site has begun on a volume, or 0.
pub type Floor = Box<dyn Fn(VolumeId) -> u64 + Send + Sync>;

/// Whether the site of this name has anything to say about a volume, as far as the voter's own site knows.
pub type May = Box<dyn Fn(VolumeId, &str) -> bool + Send + Sync>;

/// One of three voters, for whoever asks it.
pub struct Service {
    clock: Arc<dyn Clock>,
    file: BallotFile,
    floor: Floor,
    may: May,
    board: Mutex<Board>,
}

impl Service {
    /// Opens the ballots in `dir`, or makes them. Whoever asks sees to it that nobody else has them open: two voters with
    /// one file would vote twice.
    pub fn open(
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        floor: Floor,
        may: May,
    ) -> Result<Service> {
        let Opened { file, ballots, is_durable } = BallotFile::open(files, dir, clock.random())?;
        let (times, now_ns) = (Times::with_lease(LEASE_NS), clock.elapsed_ns());
        // Also when it starts again before its silence was over: it has granted nothing yet.
        let board = match ballots.is_empty() {
            true => Board::fresh(times, now_ns),
            false => Board::start(times, ballots, is_durable, now_ns),
        };
        Ok(Service { clock, file, floor, may, board: Mutex::new(board) })
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

    /// Answers the other site `name`, as its certificate calls it, on volumes that are its business. The ballot is durable
    /// when this returns.
    pub fn answer_other(&self, ask: &Ask, name: &str) -> Said {
        if ask.volumes.iter().all(|id| (self.may)(*id, name)) {
            return self.answer(ask, name);
        }
        let answer = Answer { round: ask.claim.round, trial: ask.claim.trial, verdict: Verdict::Broken };
        Said { answer, holder: String::new() }
    }

    /// Answers any site `name`. The ballot is durable when this returns.
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

#[cfg(test)]
mod tests {
    use cdp_core::io::sim::{SimClock, SimDisk};

    use super::super::Claim;
    use super::*;

    const X: VolumeId = VolumeId(10);

    fn start(disk: &SimDisk, clock: &SimClock) -> Service {
        let (files, clock) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
        let may = |id: VolumeId, name: &str| id != X || name == "site-a";
        Service::open(files, clock, Path::new("/voter"), Box::new(|_| 0), Box::new(may)).unwrap()
    }

    fn ask(volume: VolumeId) -> Ask {
        let claim = Claim { ballot: Ballot { epoch: 1, site: SiteId(1) }, trial: false, round: 1 };
        Ask { volumes: vec![volume], claim, gives_up: false }
    }

    fn disk() -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir(Path::new("/voter")).unwrap();
        disk
    }

    // A witness whose ballots somebody removed is restarted before what it may have promised is over.
    #[test]
    fn a_restart_does_not_end_the_silence_of_a_new_voter() {
        let (disk, clock) = (disk(), SimClock::new(1));
        for _ in 0..3 {
            let service = start(&disk, &clock);
            clock.advance(LEASE_NS);
            let verdict = service.answer(&ask(X), "site-a").answer.verdict;
            assert_eq!(verdict, Verdict::Promised { wait_ns: LEASE_NS / 8, epoch: 0 });
        }
        let service = start(&disk, &clock);
        clock.advance(LEASE_NS + LEASE_NS / 8);
        assert_eq!(service.answer(&ask(X), "site-a").answer.verdict, Verdict::Granted);
        // With a ballot it is known what it promised, and a site may go on at once.
        let service = start(&disk, &clock);
        assert_eq!(service.answer(&ask(X), "site-a").answer.verdict, Verdict::Granted);
    }

    // Whoever has a certificate of the authority could otherwise end anybody's lease.
    #[test]
    fn nobody_claims_what_is_none_of_its_business() {
        let (disk, clock) = (disk(), SimClock::new(1));
        let service = start(&disk, &clock);
        clock.advance(2 * LEASE_NS);
        let verdict = |volume, name| service.answer_other(&ask(volume), name).answer.verdict;
        assert_eq!(verdict(X, "site-c"), Verdict::Broken);
        assert_eq!(service.ballot(X), None);
        assert_eq!(verdict(X, "site-a"), Verdict::Granted);
        assert_eq!(verdict(VolumeId(11), "site-c"), Verdict::Granted);
    }
}
