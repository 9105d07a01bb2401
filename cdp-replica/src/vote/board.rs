//! A whole voter: what it is bound to for each volume, and its answer to a claim on several of them.
//!
//! A claim on the members of a group is granted for all of them or for none: otherwise two sites could hold half a group
//! each, and neither could go on. Volumes are known by their ids, so that nothing depends on what somebody calls them.
//!
//! The simulation drives [`Voter`], which decides for one volume; a board adds "all or none" and the file.

use std::collections::BTreeMap;
use std::io;

use cdp_core::ids::VolumeId;

use super::{Answer, Ballot, Claim, SiteId, Times, Verdict, Voter};
use crate::limits::{BALLOTS_MAX, BALLOTS_PER_SITE_MAX};

/// What a voter has to have kept: a ballot, and what the site is called, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The ballot.
    pub ballot: Ballot,
    /// Name of the site, as its certificate says it.
    pub name: String,
}

/// All ballots of one voter.
pub type Ballots = BTreeMap<VolumeId, Kept>;

/// A claim on some volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Which, each once.
    pub volumes: Vec<VolumeId>,
    /// What is claimed on all of them.
    pub claim: Claim,
    /// It is not claimed but given up: the site will never answer under this ballot again, and its promises are over.
    pub gives_up: bool,
}

/// What a voter says, and of whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// The answer.
    pub answer: Answer,
    /// The site that the voter is bound to instead; empty if it granted, or does not know.
    pub holder: String,
}

/// A voter.
pub struct Board {
    times: Times,
    ballots: Ballots,
    voters: BTreeMap<VolumeId, Voter>,
    // The disk may have others: a ballot that was not granted, because keeping it failed half way. Were anybody promised
    // anything before it has these again, a restart would find the other one, and promise to the wrong site.
    is_unsure: bool,
    // Nothing is granted before.
    silent_until_ns: u64,
}

impl Board {
    /// Starts with the ballots that were read: promises anew, from now on, whatever was promised before. `is_durable`: the
    /// disk is known to have them; otherwise they are kept before anything is granted.
    pub fn start(times: Times, ballots: Ballots, is_durable: bool, now_ns: u64) -> Board {
        let voter = |(id, kept): (&VolumeId, &Kept)| (*id, Voter::start(times, Some(kept.ballot), now_ns));
        let voters = ballots.iter().map(voter).collect();
        Board { times, ballots, voters, is_unsure: !is_durable, silent_until_ns: 0 }
    }

    /// Starts without any: it may have had some, and lost them with its file. So it grants nothing for as long as it could
    /// have promised anything.
    pub fn fresh(times: Times, now_ns: u64) -> Board {
        let board = Board::start(times, Ballots::new(), true, now_ns);
        Board { silent_until_ns: now_ns.saturating_add(times.promise_ns), ..board }
    }

    /// What it is bound to.
    pub fn ballots(&self) -> &Ballots {
        &self.ballots
    }

    /// Answers a claim of the site `name` that arrived at `now_ns`. `floor` gives the newest epoch that the voter's own site
    /// has begun on a volume, or 0: nothing older is granted. `keep` returns when all these ballots are durable; if it
    /// fails, nothing is granted and those before hold, whichever of them the disk has: nobody was told of the new ones. From
    /// then on nothing is granted, not even a renewal, before it has returned for all of them again.
    pub fn answer(
        &mut self,
        ask: &Ask,
        name: &str,
        now_ns: u64,
        floor: &dyn Fn(VolumeId) -> u64,
        keep: &mut dyn FnMut(&Ballots) -> io::Result<()>,
    ) -> Said {
        let (verdict, holder) = match ask.gives_up {
            true => (self.release(ask, name), String::new()),
            false => self.decide(ask, name, now_ns, floor, keep),
        };
        Said { answer: Answer { round: ask.claim.round, trial: ask.claim.trial, verdict }, holder }
    }

    /// In memory only: after a restart the promise is there again, which costs time and nothing else.
    fn release(&mut self, Ask { volumes, claim, .. }: &Ask, name: &str) -> Verdict {
        for id in volumes {
            let is_its_own = self.ballots.get(id).is_some_and(|kept| kept.name == name);
            if let Some(voter) = self.voters.get_mut(id).filter(|_| is_its_own) {
                voter.release(claim.ballot);
            }
        }
        Verdict::Granted
    }

    fn decide(
        &mut self,
        Ask { volumes, claim, .. }: &Ask,
        name: &str,
        now_ns: u64,
        floor: &dyn Fn(VolumeId) -> u64,
        keep: &mut dyn FnMut(&Ballots) -> io::Result<()>,
    ) -> (Verdict, String) {
        let mut worst: Option<(Verdict, String)> = None;
        for id in volumes {
            let kept = self.ballots.get(id);
            let holder = kept.map(|kept| kept.name.clone()).unwrap_or_default();
            // An id that goes with another name: somebody speaks for a site that it is not.
            let is_alien =
                kept.is_some_and(|kept| kept.ballot.site == claim.ballot.site && kept.name != name);
            let objection = match floor(*id) {
                by if by > claim.ballot.epoch => Some(Verdict::Superseded { by }),
                _ if is_alien => Some(Verdict::Broken),
                _ => self.voters.get(id).and_then(|voter| voter.objection(claim, now_ns)),
            };
            if let Some(objection) = objection
                && worst.as_ref().is_none_or(|(known, _)| outweighs(&objection, known))
            {
                worst = Some((objection, holder));
            }
        }
        if let Some(worst) = worst {
            return worst;
        }
        if now_ns < self.silent_until_ns {
            let wait_ns = self.silent_until_ns - now_ns;
            return (Verdict::Promised { wait_ns, epoch: 0 }, String::new());
        }
        let granted = (Verdict::Granted, String::new());
        if claim.trial {
            return granted;
        }
        let is_news = |id: &VolumeId| self.voters.get(id).is_none_or(|voter| voter.is_news(claim));
        if self.is_unsure || volumes.iter().any(is_news) {
            let mut ballots = self.ballots.clone();
            for id in volumes {
                ballots.insert(*id, Kept { ballot: claim.ballot, name: name.to_owned() });
            }
            let own = ballots.values().filter(|kept| kept.name == name).count();
            if ballots.len() > BALLOTS_MAX || own > BALLOTS_PER_SITE_MAX {
                return (Verdict::Broken, String::new());
            }
            self.is_unsure = keep(&ballots).is_err();
            if self.is_unsure {
                return (Verdict::Broken, String::new());
            }
            self.ballots = ballots;
        }
        for id in volumes {
            let voter = self.voters.entry(*id).or_insert_with(|| Voter::start(self.times, None, now_ns));
            voter.grant(claim, now_ns);
        }
        granted
    }
}

/// Whether this says more than what is known: that it never will outweighs how long it has to wait.
fn outweighs(new: &Verdict, known: &Verdict) -> bool {
    match (new, known) {
        (Verdict::Superseded { by }, Verdict::Superseded { by: known }) => by > known,
        (Verdict::Superseded { .. }, _) => true,
        (Verdict::Promised { wait_ns, .. }, Verdict::Promised { wait_ns: known, .. }) => wait_ns > known,
        (Verdict::Promised { .. }, Verdict::Broken) => true,
        _ => false,
    }
}

/// The id of a site that never claimed anything yet.
pub fn fresh_site(random: u128) -> SiteId {
    SiteId(random.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_NS: u64 = 8_000;
    const A: SiteId = SiteId(1);
    const B: SiteId = SiteId(2);
    const X: VolumeId = VolumeId(10);
    const Y: VolumeId = VolumeId(11);

    fn ask(volumes: &[VolumeId], epoch: u64, site: SiteId, trial: bool) -> Ask {
        let claim = Claim { ballot: Ballot { epoch, site }, trial, round: 7 };
        Ask { volumes: volumes.to_vec(), claim, gives_up: false }
    }

    fn board() -> Board {
        Board::start(Times::with_lease(LEASE_NS), Ballots::new(), true, 0)
    }

    fn say(board: &mut Board, ask: &Ask, name: &str, now_ns: u64) -> Verdict {
        board.answer(ask, name, now_ns, &|_| 0, &mut |_| Ok(())).answer.verdict
    }

    // Half a group at each site: neither could go on, and nobody could say which instant they have in common.
    #[test]
    fn a_group_is_granted_whole_or_not_at_all() {
        let mut board = board();
        assert_eq!(say(&mut board, &ask(&[Y], 1, A, false), "a", 0), Verdict::Granted);
        let both = ask(&[X, Y], 2, B, false);
        assert_eq!(say(&mut board, &both, "b", 10), Verdict::Promised { wait_ns: 8_990, epoch: 1 });
        // Nothing of it holds: the other site may have the first one, too.
        assert_eq!(say(&mut board, &ask(&[X], 1, A, false), "a", 10), Verdict::Granted);
        assert_eq!(say(&mut board, &both, "b", 9_010), Verdict::Granted);
        assert_eq!(say(&mut board, &ask(&[Y], 1, A, false), "a", 9_010), Verdict::Superseded { by: 2 });
    }

    // Ballots that a disk did not take count for nothing, and those that it took count after a restart.
    #[test]
    fn what_is_not_kept_is_not_granted() {
        let mut board = board();
        let mut disk = Ballots::new();
        let first = ask(&[X, Y], 1, A, false);
        let broken = board.answer(&first, "a", 0, &|_| 0, &mut |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!((broken.answer.verdict, board.ballots().len()), (Verdict::Broken, 0));
        let mut kept = 0;
        for _ in 0..3 {
            let mut keep = |ballots: &Ballots| {
                kept += 1;
                disk = ballots.clone();
                Ok(())
            };
            assert_eq!(board.answer(&first, "a", 0, &|_| 0, &mut keep).answer.verdict, Verdict::Granted);
        }
        assert_eq!((kept, disk.len()), (1, 2), "a renewal needs no disk");
        let mut again = Board::start(Times::with_lease(LEASE_NS), disk, true, 500);
        let other = ask(&[X], 2, B, true);
        assert_eq!(say(&mut again, &other, "b", 600), Verdict::Promised { wait_ns: 8_900, epoch: 1 });
    }

    // Somebody removed the ballots, or a disk was replaced: the voter does not know that it promised the lease to a site, and
    // must not promise it to the other before that is over.
    #[test]
    fn a_voter_without_its_ballots_waits_for_what_it_may_have_promised() {
        let mut board = Board::fresh(Times::with_lease(LEASE_NS), 1_000);
        for is_trial in [true, false] {
            let wait = Verdict::Promised { wait_ns: 1, epoch: 0 };
            assert_eq!(say(&mut board, &ask(&[X], 2, B, is_trial), "b", 9_999), wait);
        }
        assert!(board.ballots().is_empty(), "it binds itself to nobody meanwhile");
        assert_eq!(say(&mut board, &ask(&[X], 2, B, false), "b", 10_000), Verdict::Granted);
    }

    // One site that makes up volumes must not use up the ballots of all the others.
    #[test]
    fn one_site_does_not_fill_the_ballots() {
        let mut board = board();
        let ids: Vec<VolumeId> = (0..=BALLOTS_PER_SITE_MAX as u128).map(VolumeId).collect();
        let (most, one_more) = ids.split_at(BALLOTS_PER_SITE_MAX);
        assert_eq!(say(&mut board, &ask(most, 1, A, false), "a", 0), Verdict::Granted);
        assert_eq!(say(&mut board, &ask(one_more, 1, A, false), "a", 0), Verdict::Broken);
        assert_eq!(say(&mut board, &ask(most, 1, A, false), "a", 0), Verdict::Granted);
        assert_eq!(say(&mut board, &ask(one_more, 1, B, false), "b", 0), Verdict::Granted);
    }

    // The voter's disk has the other site's ballot, because the sync behind the renaming failed; then the first site renews,
    // the voter restarts, finds the other's ballot, and grants it at once, while the first one's lease runs.
    #[test]
    fn after_a_keeping_that_failed_a_renewal_is_kept_too() {
        for restarts in [false, true] {
            let mut board = board();
            let mut disk = Ballots::new();
            let (a, b) = (ask(&[X], 1, A, false), ask(&[X], 2, B, false));
            let mut keep = |ballots: &Ballots| {
                disk = ballots.clone();
                Ok(())
            };
            assert_eq!(board.answer(&a, "a", 0, &|_| 0, &mut keep).answer.verdict, Verdict::Granted);
            // The promise is over, and the disk takes the ballot but fails.
            let mut fail = |ballots: &Ballots| {
                disk = ballots.clone();
                Err(io::ErrorKind::Other.into())
            };
            assert_eq!(board.answer(&b, "b", 9_000, &|_| 0, &mut fail).answer.verdict, Verdict::Broken);
            if restarts {
                // As after a start that could not keep what it read.
                board = Board::start(Times::with_lease(LEASE_NS), board.ballots().clone(), false, 9_000);
            }
            let mut refuse = |_: &Ballots| Err(io::ErrorKind::Other.into());
            let renewal = board.answer(&a, "a", 9_050, &|_| 0, &mut refuse).answer.verdict;
            assert_eq!(renewal, Verdict::Broken, "the disk has another ballot");
            let mut keep = |ballots: &Ballots| {
                disk = ballots.clone();
                Ok(())
            };
            assert_eq!(board.answer(&a, "a", 9_100, &|_| 0, &mut keep).answer.verdict, Verdict::Granted);
            let mut again = Board::start(Times::with_lease(LEASE_NS), disk, true, 9_200);
            assert_eq!(say(&mut again, &b, "b", 9_300), Verdict::Promised { wait_ns: 8_900, epoch: 1 });
        }
    }

    // A site whose own volumes are in a later epoch knows better than its ballots; and who has no certificate of a site must
    // not claim in its name.
    #[test]
    fn a_later_epoch_here_and_a_wrong_name_are_refused() {
        let mut board = board();
        let said = board.answer(&ask(&[X], 2, A, false), "a", 0, &|_| 3, &mut |_| Ok(()));
        assert_eq!(said.answer.verdict, Verdict::Superseded { by: 3 });
        assert_eq!(say(&mut board, &ask(&[X], 3, A, false), "a", 0), Verdict::Granted);
        assert_eq!(say(&mut board, &ask(&[X], 4, A, false), "c", 0), Verdict::Broken);
    }

    // A planned change: whoever handed over says so, and the other site need not wait. A message of long ago, or of somebody else, must
    // not end what was promised to another.
    #[test]
    fn who_gives_up_frees_what_was_promised_to_him_and_nothing_else() {
        let give_up =
            |volumes: &[VolumeId], epoch, site| Ask { gives_up: true, ..ask(volumes, epoch, site, false) };
        let mut board = board();
        assert_eq!(say(&mut board, &ask(&[X, Y], 1, A, false), "a", 0), Verdict::Granted);
        let next = ask(&[X, Y], 2, B, false);
        let is_free = |board: &mut Board| {
            say(board, &Ask { claim: Claim { trial: true, ..next.claim }, ..next.clone() }, "b", 1)
                == Verdict::Granted
        };
        for (ask, name) in
            [(give_up(&[X, Y], 1, A), "b"), (give_up(&[X, Y], 2, A), "a"), (give_up(&[X, Y], 1, B), "a")]
        {
            say(&mut board, &ask, name, 1);
            assert!(!is_free(&mut board), "{name} ended it with {ask:?}");
        }
        say(&mut board, &give_up(&[X], 1, A), "a", 1);
        assert!(!is_free(&mut board), "half of a group is not the group");
        say(&mut board, &give_up(&[Y], 1, A), "a", 1);
        assert!(is_free(&mut board));
        assert_eq!(board.ballots()[&X].ballot, Ballot { epoch: 1, site: A }, "it is bound as before");
        assert!(matches!(say(&mut board, &ask(&[X], 1, B, false), "b", 1), Verdict::Superseded { by: 1 }));
        // One that was under way since then ends nothing of the next.
        assert_eq!(say(&mut board, &next, "b", 2), Verdict::Granted);
        say(&mut board, &give_up(&[X, Y], 1, A), "a", 3);
        let later = say(&mut board, &ask(&[X, Y], 3, A, false), "a", 3);
        assert!(matches!(later, Verdict::Promised { epoch: 2, .. }), "{later:?}");
    }
}
