//! How a seat stands, in words: for `cdp status`, and for clients that are not answered.

use cdp_core::history::point::format_duration;
use cdp_core::io::{Clock, SystemClock};
use cdp_replica::vote::{Standing, Verdict};
use serde::{Deserialize, Serialize};

use super::sitter::Sitter;

/// How a seat stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatStatus {
    /// The volume or group.
    pub target: String,
    /// `holds` the lease, `waits` for it as the primary, `hands-over` after it stepped down, `stands-by` as the replica, or
    /// is `out`.
    pub state: String,
    /// The same in a sentence.
    pub text: String,
    /// The site that has the lease, as far as it is known here.
    pub holder: Option<String>,
    /// The epoch that this site claims.
    pub epoch: Option<u64>,
    /// What is left of the lease here, in nanoseconds.
    pub left_ns: u64,
    /// The voters: this site's, the other's, the witness.
    pub voters: Vec<VoterStatus>,
}

/// A voter, as a seat sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterStatus {
    /// `here`, `peer` or `witness`.
    pub which: String,
    /// Where it is.
    pub address: Option<String>,
    /// Its name, once it was met.
    pub name: Option<String>,
    /// Whether it answers.
    pub reachable: bool,
    /// What it said last, or why it says nothing.
    pub text: String,
}

impl Sitter {
    /// The lease for those who answer, and the status for people.
    pub(super) fn tell(&self, standing: Standing, why: &str, clock: &SystemClock) {
        let lease = self.seat.lease(clock.elapsed_ns());
        let held = lease.filter(|(epoch, _)| standing == Standing::Primary(*epoch));
        let voters = self.voters();
        let holder = self.said.values().map(|said| &said.holder).find(|holder| !holder.is_empty());
        let (state, text) = self.words(standing, why, held.is_some(), &voters);
        match standing {
            // Another voter may come back, or say yes the next time.
            Standing::Primary(_) if self.seat.superseded_by().is_none() => self.place.lease.set(held, &text),
            _ => self.place.lease.give_up(&text),
        }
        let epoch = match standing {
            Standing::Primary(epoch) | Standing::Leaving(epoch) => Some(epoch),
            Standing::Ready(epoch) => Some(epoch + 1),
            Standing::Out => None,
        };
        *self.place.status.lock().expect("no panics under this lock") = SeatStatus {
            target: self.place.plan.target.clone(),
            state: state.to_owned(),
            text,
            holder: if held.is_some() { Some(self.own_name.clone()) } else { holder.cloned() },
            epoch,
            left_ns: 0,
            voters,
        };
    }

    fn words(
        &self,
        standing: Standing,
        why: &str,
        is_held: bool,
        voters: &[VoterStatus],
    ) -> (&'static str, String) {
        let silent: Vec<String> = voters
            .iter()
            .filter(|voter| !voter.reachable || voter.text != "granted")
            .map(|voter| format!("{} {}", voter_words(voter), voter.text))
            .collect();
        match standing {
            Standing::Primary(epoch) if is_held => (
                "holds",
                format!("this site answers, in epoch {epoch}, under a lease of two voters of three"),
            ),
            Standing::Primary(epoch) => match self.seat.superseded_by() {
                Some(by) => (
                    "waits",
                    format!(
                        "epoch {by} was given to another site, this site has {epoch}: it answers no more; when the two meet it is fenced, and `cdp resync` joins them"
                    ),
                ),
                None => (
                    "waits",
                    format!("no lease: two voters of three have to grant it, and {}", silent.join("; ")),
                ),
            },
            Standing::Leaving(_) => ("hands-over", why.to_owned()),
            Standing::Ready(_) => match (&self.promotion, &self.promoted_at) {
                (Some((epoch, _)), _) => ("stands-by", format!("it is being promoted, in epoch {epoch}")),
                (None, Some((_, error))) => ("stands-by", format!("the promotion failed: {error}")),
                (None, None) => ("stands-by", "a replica that takes over when the lease ends".to_owned()),
            },
            Standing::Out => ("out", format!("it does not take over by itself: {why}")),
        }
    }

    fn voters(&self) -> Vec<VoterStatus> {
        let said = |number: usize| match self.said.get(&number).map(|said| said.answer.verdict) {
            None => "was not asked yet".to_owned(),
            Some(Verdict::Granted) => "granted".to_owned(),
            Some(Verdict::Superseded { by }) => format!("is bound to epoch {by}{}", self.of(number)),
            Some(Verdict::Promised { wait_ns, epoch: 0 }) => format!(
                "was just made, and votes in {}: it may have promised something before",
                format_duration(wait_ns / 100_000_000 * 100_000_000)
            ),
            Some(Verdict::Promised { wait_ns, epoch }) => format!(
                "promised epoch {epoch}{} for another {}",
                self.of(number),
                format_duration(wait_ns / 100_000_000 * 100_000_000)
            ),
            Some(Verdict::Broken) => "cannot vote: its disk, or this site's certificate".to_owned(),
        };
        let mut voters = vec![VoterStatus {
            which: "here".to_owned(),
            address: None,
            name: Some(self.own_name.clone()),
            reachable: true,
            text: said(0),
        }];
        for (number, (line, which)) in self.lines.iter().zip(["peer", "witness"]).enumerate() {
            let state = line.state();
            voters.push(VoterStatus {
                which: which.to_owned(),
                address: Some(line.address().to_owned()),
                name: state.name,
                reachable: state.trouble.is_none(),
                text: state
                    .trouble
                    .map_or_else(|| said(number + 1), |trouble| format!("does not answer: {trouble}")),
            });
        }
        voters
    }

    fn of(&self, number: usize) -> String {
        let holder = self.said.get(&number).map(|said| &said.holder).filter(|holder| !holder.is_empty());
        holder.map(|holder| format!(" to {holder}")).unwrap_or_default()
    }
}

/// What people call a voter.
pub fn voter_words(voter: &VoterStatus) -> &'static str {
    match voter.which.as_str() {
        "here" => "this site",
        "peer" => "the other site",
        _ => "the witness",
    }
}
