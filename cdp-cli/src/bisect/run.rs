//! The search over a volume's history: first over markers, then over the records between two of them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use cdp_core::error::{Error, Kind, Result};

use super::probe::{Form, Prober};
use super::search::{Search, Standing, Verdict};
use super::state::{State, StateFile};
use crate::door::unexpected;
use crate::hooks::Interrupts;
use crate::reach::Reach;
use crate::work::stretch::{CHANGES_MAX, Change, Changes, Stretch};
use crate::work::{Request, Response};

/// Told after each round: what is being searched, how many candidates are left.
pub type Tell<'a> = dyn FnMut(&str, u64) + 'a;

/// A search at work.
pub struct Hunt<'a> {
    /// The store.
    pub reach: &'a mut Reach,
    /// Runs the program.
    pub prober: Prober,
    /// What is known.
    pub state: State,
    /// Where that is kept.
    pub file: StateFile,
    /// Probes at the same time.
    pub together: u64,
    /// Ctrl-C.
    pub interrupts: &'a Interrupts,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Nothing lies between the two but records that change nothing.
    pub exact: bool,
    /// The state after this record is good.
    pub last_good: u64,
    /// The state after this one is bad.
    pub first_bad: u64,
    /// What was written between them; not all of it if there are more than [`CHANGES_MAX`].
    pub changes: Vec<Change>,
    /// How often the program was run, in all.
    pub probes: u64,
}

impl Hunt<'_> {
    /// Searches to the end.
    pub fn run(&mut self, tell: &mut Tell<'_>) -> Result<Ending> {
        let (mut good, mut bad) = (self.state.good.lsn, self.state.bad.lsn);
        if self.state.check_ends {
            self.check_ends(good, bad, tell)?;
        }
        let (marks, _) = self.reach.marks(&self.state.volume, good, bad - 1)?;
        let row: Vec<u64> = [good].into_iter().chain(marks).chain([bad]).collect();
        let mut search = Search::new(row.len() as u64);
        self.hunt(&mut search, &|at| row[at as usize], &|_| true, "markers", tell)?;
        (good, bad) = (row[search.last_good() as usize], row[search.first_bad() as usize]);

        // Too many records to list: their numbers do.
        if bad - good > CHANGES_MAX as u64 {
            let first = good;
            let mut search = Search::new(bad - good + 1);
            let go_on = |search: &Search| search.left() > CHANGES_MAX as u64;
            self.hunt(&mut search, &|at| first + at, &go_on, "records", tell)?;
            (good, bad) = (first + search.last_good(), first + search.first_bad());
        }
        let changes = self.changes(good, bad)?;
        if changes.is_empty() {
            let context =
                format!("nothing was written between lsn:{good}, which is good, and lsn:{bad}, which is bad");
            return Err(Error::new(Kind::Invalid, context)
                .hint("the program does not judge by what is on the disk alone"));
        }
        // What follows the last change is the same state as that of the bad end.
        let last = changes.len() as u64;
        let lsn_of = |at: u64| match at {
            0 => good,
            at if at == last => bad,
            at => changes[at as usize - 1].place.lsn,
        };
        let mut search = Search::new(last + 1);
        self.hunt(&mut search, &lsn_of, &|_| true, "records", tell)?;
        let between = search.last_good() as usize..search.first_bad() as usize;
        let exact = search.standing() == Standing::Found;
        let first_bad = changes[search.first_bad() as usize - 1].place.lsn;
        let last_good = match exact {
            // Between them there are only records that change nothing.
            true => first_bad - 1,
            false => lsn_of(search.last_good()),
        };
        let probes = self.state.verdicts.len() as u64;
        Ok(Ending { exact, last_good, first_bad, changes: changes[between].to_vec(), probes })
    }

    fn check_ends(&mut self, good: u64, bad: u64, tell: &mut Tell<'_>) -> Result<()> {
        tell("the two ends", 2);
        // One after the other where they are mounted: a bad one may be one that cannot be.
        let together = if self.state.form == Form::Mount { 1 } else { self.together.min(2) };
        for pair in [good, bad].chunks(together as usize) {
            self.ask(pair)?;
        }
        let wrong = |lsn: u64, said: &str, wanted: &str| {
            Error::new(
                Kind::Invalid,
                format!("the program says {said} of lsn:{lsn}, which should be {wanted}"),
            )
            .hint("give other ends, or look at the program; --no-check leaves the ends unasked")
        };
        match (self.state.verdicts.get(&good), self.state.verdicts.get(&bad)) {
            (Some(Verdict::Good), Some(Verdict::Bad)) => Ok(()),
            (Some(Verdict::Bad), _) => Err(wrong(good, "bad", "good")),
            (Some(Verdict::Good), Some(Verdict::Good)) => Err(wrong(bad, "good", "bad")),
            (Some(Verdict::Good), _) => Err(wrong(bad, "skip", "bad")),
            _ => Err(wrong(good, "skip", "good")),
        }
    }

    /// Asks until there is nothing left to ask, or `go_on` says so.
    fn hunt(
        &mut self,
        search: &mut Search,
        lsn_of: &dyn Fn(u64) -> u64,
        go_on: &dyn Fn(&Search) -> bool,
        what: &str,
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        while search.standing() == Standing::Open && go_on(search) {
            tell(what, search.left());
            let next = search.next(self.together);
            let lsns: Vec<u64> = next.iter().map(|at| lsn_of(*at)).collect();
            self.ask(&lsns)?;
            for (at, lsn) in next.into_iter().zip(lsns) {
                let verdict = self.state.verdicts.get(&lsn);
                search.note(at, *verdict.ok_or_else(unexpected)?);
            }
        }
        Ok(())
    }

    /// Gets the verdicts that are not known yet, all at the same time, and keeps each as soon as it is there.
    fn ask(&mut self, lsns: &[u64]) -> Result<()> {
        if self.interrupts.came() {
            return Err(interrupted(&self.state.volume));
        }
        let unknown: BTreeSet<u64> =
            lsns.iter().copied().filter(|lsn| !self.state.verdicts.contains_key(lsn)).collect();
        let state = Mutex::new(&mut self.state);
        let (prober, file) = (&self.prober, &self.file);
        let one = |lsn: u64| {
            let verdict = prober.probe(lsn)?;
            let mut state = state.lock().expect("no panics under this lock");
            state.verdicts.insert(lsn, verdict);
            file.save(&state)
        };
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = unknown.iter().map(|&lsn| scope.spawn(move || one(lsn))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(unexpected()))).collect()
        });
        match results.into_iter().collect::<Result<()>>() {
            Err(_) if self.interrupts.came() => Err(interrupted(&self.state.volume)),
            other => other,
        }
    }

    fn stretch(&self, after: u64, through: u64) -> Stretch {
        Stretch { volume: self.state.volume.clone(), after, through }
    }

    /// The changes in `(good, bad]`, which are not more than a page.
    fn changes(&mut self, good: u64, bad: u64) -> Result<Vec<Change>> {
        match self.reach.ask(Request::Changes(self.stretch(good, bad)), &mut |_| Ok(()))? {
            Response::Changes(Changes { changes, .. }) => Ok(changes),
            _ => Err(unexpected()),
        }
    }
}

fn interrupted(volume: &str) -> Error {
    Error::new(Kind::Closed, "stopped; what is known so far is kept")
        .hint(format!("cdp bisect {volume} --continue"))
}
