//! What the end of the log means after a crash: the decision table, as a pure function.
//!
//! | mark slots | clean-stop seal | first bad LSN k against W | verdict |
//! |---|---|---|---|
//! | disagree with the log | – | – | [`Verdict::Foreign`] |
//! | both bad | no | – | [`Verdict::MarkLost`] |
//! | both bad, seal says clean | yes | k > W | [`Verdict::CrashTail`] |
//! | good | – | k > W | [`Verdict::CrashTail`] |
//! | good or rebuilt | – | k ≤ W | [`Verdict::Lost`] |
//!
//! Damage whose extent is known is not here: payload at or below W that is not what was written never becomes k (the record
//! stays on the chain, its blocks answer EIO), and a header that rotted in a segment with a run is not read.
//!
//! W is the largest LSN that any witness says was durable: the mark, a batch header, a seal.

use crate::ids::Lsn;

/// What the two mark slots say together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkEvidence {
    /// The newer good slot fits the log.
    Agrees,
    /// Its volume, incarnation or chain value does not fit the log.
    Disagrees,
    /// Neither slot can be read, or the file is missing.
    BothBad,
}

/// What recovery saw.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// The mark.
    pub mark: MarkEvidence,
    /// The newest segment ends with a seal that says "clean stop".
    pub clean_stop: bool,
    /// The first LSN that is missing, bad or off the chain.
    pub first_bad: Lsn,
    /// W: the newest LSN that was durable, by any witness.
    pub witness: Lsn,
    /// Somebody accepted, knowingly, that the mark is lost.
    pub accept_mark_loss: bool,
}

/// What to do. See the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The mark belongs to another log, or the log was rolled back: refuse.
    Foreign,
    /// Nothing says what was durable: read-only until somebody accepts that.
    MarkLost,
    /// Keep what is before the first bad LSN; what follows was never promised.
    CrashTail,
    /// Durable records are gone: no writes; what is before them is served.
    Lost,
}

/// The first row that fits.
pub fn judge(evidence: Evidence) -> Verdict {
    match evidence.mark {
        MarkEvidence::Disagrees => return Verdict::Foreign,
        MarkEvidence::BothBad if !evidence.clean_stop && !evidence.accept_mark_loss => {
            return Verdict::MarkLost;
        }
        MarkEvidence::BothBad | MarkEvidence::Agrees => {}
    }
    if evidence.first_bad > evidence.witness { Verdict::CrashTail } else { Verdict::Lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever restarts after a crash gets one answer, whatever was found: every combination of inputs is
    /// held against the rows of the table, and exactly one row must claim it.
    #[test]
    fn every_combination_meets_exactly_one_row() {
        type Row = (Verdict, fn(&Evidence) -> bool);
        fn settled(e: &Evidence) -> bool {
            match e.mark {
                MarkEvidence::Agrees => true,
                MarkEvidence::BothBad => e.clean_stop || e.accept_mark_loss,
                MarkEvidence::Disagrees => false,
            }
        }
        let rows: [Row; 4] = [
            (Verdict::Foreign, |e| e.mark == MarkEvidence::Disagrees),
            (Verdict::MarkLost, |e| e.mark == MarkEvidence::BothBad && !(e.clean_stop || e.accept_mark_loss)),
            (Verdict::CrashTail, |e| settled(e) && e.first_bad > e.witness),
            (Verdict::Lost, |e| settled(e) && e.first_bad <= e.witness),
        ];
        let mut seen = 0;
        for mark in [MarkEvidence::Agrees, MarkEvidence::Disagrees, MarkEvidence::BothBad] {
            for flags in 0..4 {
                for (first_bad, witness) in [(1, 0), (5, 4), (5, 5), (5, 6), (1, 1)] {
                    let evidence = Evidence {
                        mark,
                        clean_stop: flags & 1 != 0,
                        first_bad: Lsn(first_bad),
                        witness: Lsn(witness),
                        accept_mark_loss: flags & 2 != 0,
                    };
                    let claims: Vec<_> = rows.iter().filter(|(_, fits)| fits(&evidence)).collect();
                    assert_eq!(claims.len(), 1, "{evidence:?}");
                    assert_eq!(judge(evidence), claims[0].0, "{evidence:?}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 3 * 4 * 5);
    }
}
