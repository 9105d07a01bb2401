//! The messages of the votes: what anybody with a certificate may say to a voter, and what a voter may say back.
//!
//! The first byte chooses: 0 bytes as they come, 1 bodies behind a header that fits (so that no checksum keeps changed bytes
//! out), others a voter's life: so many bytes for each claim, promise given up, restart, or disk that fails.

use std::collections::BTreeMap;
use std::io;

use cdp_core::ids::VolumeId;
use cdp_replica::limits::{BALLOTS_MAX, CLAIM_EPOCH_MAX, CLAIM_VOLUMES_MAX, NAME_BYTES_MAX, VOTE_BYTES_MAX};
use cdp_replica::vote::wire::{self, HEADER_BYTES};
use cdp_replica::vote::{Ask, Ballot, Ballots, Board, Claim, SiteId, Times, Verdict};

const STEP_BYTES: usize = 4;
const STEPS_MAX: usize = 200;
const LEASE_NS: u64 = 80;
const NAMES: [&str; 3] = ["site-a", "site-b", "site-c"];

/// Runs one input.
pub fn run(data: &[u8]) {
    match data {
        [0, bytes @ ..] => stream(bytes),
        [1, body @ ..] => {
            for kind in [1, 2, 3] {
                for (trial, verdict) in [(0, 0), (1, 1), (0, 2), (1, 3), (2, 0), (0, 4)] {
                    stream(&framed(kind, trial, verdict, body));
                }
            }
        }
        [_, steps @ ..] => life(steps),
        [] => {}
    }
}

fn framed(kind: u8, trial: u8, verdict: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"CDPV".to_vec();
    bytes.extend_from_slice(&[1, kind, trial, verdict]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&cdp_core::format::bytes::crc32(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Message by message, as the rim cuts them.
fn stream(mut bytes: &[u8]) {
    while let Ok(Some(length)) = wire::length(bytes) {
        assert!(
            (HEADER_BYTES..=HEADER_BYTES + VOTE_BYTES_MAX).contains(&length),
            "a message of {length} bytes"
        );
        let Some((message, rest)) = bytes.split_at_checked(length) else { return };
        if let Ok(ask) = wire::decode_ask(message) {
            assert!((1..=CLAIM_VOLUMES_MAX).contains(&ask.volumes.len()), "{} volumes", ask.volumes.len());
            assert!(ask.claim.ballot.epoch <= CLAIM_EPOCH_MAX);
            let again = wire::encode_ask(&ask);
            assert_eq!(
                wire::decode_ask(&again).ok(),
                Some(ask),
                "a claim is another one when it is said again"
            );
        }
        if let Ok(said) = wire::decode_said(message) {
            assert!(said.holder.len() <= NAME_BYTES_MAX);
            let again = wire::encode_said(&said);
            assert_eq!(
                wire::decode_said(&again).ok(),
                Some(said),
                "an answer is another one when it is said again"
            );
        }
        bytes = rest;
    }
}

/// What a voter granted, and must not forget.
#[derive(Clone, Copy)]
struct Granted {
    ballot: Ballot,
    until_ns: u64,
}

/// One voter, three sites that claim whatever they like, for each other too, a disk that fails and a process that dies: what
/// was granted is never granted away.
fn life(steps: &[u8]) {
    let times = Times::with_lease(LEASE_NS);
    let mut now_ns = 1000;
    let mut disk = Ballots::new();
    let mut board = Board::start(times, Ballots::new(), true, now_ns);
    let mut granted: BTreeMap<VolumeId, Granted> = BTreeMap::new();
    let mut holders: BTreeMap<(VolumeId, u64), SiteId> = BTreeMap::new();
    for (number, step) in steps.chunks_exact(STEP_BYTES).take(STEPS_MAX).enumerate() {
        let [what, who, epoch, volumes] = [step[0], step[1], step[2], step[3]];
        now_ns += u64::from(what >> 3);
        if what & 7 == 7 {
            // What it has in memory is gone. A file that is empty is one that may have been lost.
            board = match disk.is_empty() {
                true => Board::fresh(times, now_ns),
                false => Board::start(times, disk.clone(), who & 1 == 0, now_ns),
            };
            continue;
        }
        let (site, name) = (SiteId(u128::from(who % 3) + 1), NAMES[usize::from(who / 3 % 4).min(2)]);
        let trial = what & 7 == 6;
        // A volume may be named twice.
        let volumes: Vec<VolumeId> =
            (0..8).filter(|bit| volumes >> bit & 1 == 1).map(|bit| VolumeId(bit % 5)).collect();
        if volumes.is_empty() {
            continue;
        }
        let ballot = Ballot { epoch: u64::from(epoch % 16), site };
        let claim = Claim { ballot, trial, round: number as u64 };
        let gives_up = what & 7 == 4;
        let ask = Ask { volumes: volumes.clone(), claim, gives_up };
        let (fails, floor) = (what & 7 == 5, u64::from(epoch >> 6));
        let before = board.ballots().clone();
        let mut keep = |ballots: &Ballots| {
            // One that fails may have reached the disk or not.
            if !fails || epoch & 0x20 != 0 {
                disk = ballots.clone();
            }
            if fails { Err(io::Error::other("a disk that fails")) } else { Ok(()) }
        };
        let said = board.answer(&ask, name, now_ns, &|_| floor, &mut keep);
        assert_eq!((said.answer.round, said.answer.trial), (claim.round, trial), "another claim's answer");
        assert!(board.ballots().len() <= BALLOTS_MAX);
        if gives_up {
            assert_eq!(*board.ballots(), before, "a ballot was given up, and not only a promise");
            for id in volumes {
                let is_its_own =
                    before.get(&id).is_some_and(|kept| kept.name == name && kept.ballot == ballot);
                // Who gives an epoch up holds none of his earlier ones either: a ballot that reached the disk and was not granted
                // may stand where he has the promise for the one before.
                let is_over = |known: &&mut Granted| {
                    is_its_own && known.ballot.site == ballot.site && known.ballot.epoch <= ballot.epoch
                };
                if let Some(known) = granted.get_mut(&id).filter(is_over) {
                    known.until_ns = 0;
                }
            }
            continue;
        }
        let is_granted = said.answer.verdict == Verdict::Granted;
        if trial || !is_granted {
            assert_eq!(*board.ballots(), before, "bound by what it did not grant");
        }
        if !is_granted {
            continue;
        }
        assert!(ballot.epoch >= floor, "granted an epoch before the newest of its own site");
        for id in volumes {
            if let Some(known) = granted.get(&id) {
                let is_renewal = known.ballot == ballot;
                assert!(
                    known.ballot.epoch <= ballot.epoch,
                    "{id}: went back from {:?} to {ballot:?}",
                    known.ballot
                );
                assert!(
                    is_renewal || known.ballot.site == site || known.until_ns <= now_ns,
                    "{id}: {ballot:?} within the promise for {:?}",
                    known.ballot
                );
            }
            if trial {
                continue;
            }
            let holder = holders.entry((id, ballot.epoch)).or_insert(site);
            assert_eq!(*holder, site, "{id}: two sites hold epoch {}", ballot.epoch);
            assert_eq!(
                disk.get(&id).map(|kept| kept.ballot),
                Some(ballot),
                "{id}: granted, and not on the disk"
            );
            granted.insert(id, Granted { ballot, until_ns: now_ns + times.promise_ns });
        }
    }
}
