//! A search as it is kept between two commands: what was asked for, and every verdict so far.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use cdp_core::error::{Error, IoContext, Kind, Result};
use serde::{Deserialize, Serialize};

use super::probe::Form;
use super::search::Verdict;

/// Version of the file; another one is refused.
const VERSION: u32 = 1;
/// Longest file, in bytes: far more verdicts than a search has.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Directory in the store.
const DIR: &str = "bisect";

/// A record with its timestamp, so that another volume of the same name is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The record.
    pub lsn: u64,
    /// Unix nanoseconds.
    pub ns: u64,
}

/// The search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of the file.
    pub version: u32,
    /// Which volume.
    pub volume: String,
    /// Known, or said to be, good.
    pub good: End,
    /// Known, or said to be, bad.
    pub bad: End,
    /// In which form the program gets a state.
    pub form: Form,
    /// Which partition is mounted.
    pub partition: Option<u32>,
    /// The two ends are asked too.
    pub check_ends: bool,
    /// The program with its arguments.
    pub program: Vec<String>,
    /// By record.
    pub verdicts: BTreeMap<u64, Verdict>,
}

impl State {
    /// Begins.
    pub fn new(volume: &str, good: End, bad: End, program: &[String]) -> State {
        State {
            version: VERSION,
            volume: volume.to_owned(),
            good,
            bad,
            form: Form::Uri,
            partition: None,
            check_ends: true,
            program: program.to_vec(),
            verdicts: BTreeMap::new(),
        }
    }

    /// Whether the program was asked about an end and said another thing than it was told to be.
    pub fn ends_are_wrong(&self) -> bool {
        let is_not = |lsn: u64, wanted: Verdict| self.verdicts.get(&lsn).is_some_and(|said| *said != wanted);
        self.check_ends && (is_not(self.good.lsn, Verdict::Good) || is_not(self.bad.lsn, Verdict::Bad))
    }
}

/// Where a search is kept.
#[derive(Clone, Debug)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// The one that the user names, else the volume's in the store.
    pub fn new(store: &Path, volume: &str, chosen: Option<&Path>) -> StateFile {
        StateFile(match chosen {
            Some(path) => path.to_owned(),
            None => store.join(DIR).join(format!("{volume}.json")),
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The search in it, if there is one.
    pub fn load(&self) -> Result<Option<State>> {
        let place = || format!("reading {}", self.0.display());
        let bytes = match std::fs::metadata(&self.0) {
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{} is no search: too long", self.0.display()),
                ));
            }
            Ok(_) => std::fs::read(&self.0).at(place)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(error, place())),
        };
        let wrong = |why: String| {
            Error::new(Kind::Invalid, format!("{} is no search of this version: {why}", self.0.display()))
                .hint("--reset forgets it")
        };
        let state: State = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if state.version != VERSION {
            return Err(wrong(format!("version {}", state.version)));
        }
        Ok(Some(state))
    }

    /// Keeps it, whole or not at all.
    pub fn save(&self, state: &State) -> Result<()> {
        let place = || format!("writing {}", self.0.display());
        if let Some(dir) = self.0.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).at(place)?;
        }
        let mut draft = self.0.clone().into_os_string();
        draft.push(".new");
        let text = serde_json::to_vec_pretty(state).map_err(std::io::Error::from).at(place)?;
        let mut file = std::fs::File::create(&draft).at(place)?;
        file.write_all(&text).and_then(|()| file.sync_all()).at(place)?;
        std::fs::rename(&draft, &self.0).at(place)
    }

    /// Forgets it; says whether there was one.
    pub fn remove(&self) -> Result<bool> {
        match std::fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(error, format!("removing {}", self.0.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A search of hours is interrupted: every verdict must be there again.
    #[test]
    fn a_search_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path(), "disk", None);
        assert_eq!(file.load().unwrap(), None);
        let end = |lsn| End { lsn, ns: lsn * 10 };
        let mut state = State::new("disk", end(1), end(9), &["test".into(), "-e".into()]);
        state.verdicts.extend([(3, Verdict::Good), (7, Verdict::Bad), (5, Verdict::Skip)]);
        file.save(&state).unwrap();
        assert_eq!(file.load().unwrap(), Some(state));
        std::fs::write(file.path(), "{}").unwrap();
        assert_eq!(file.load().unwrap_err().kind(), Kind::Invalid);
        assert!(file.remove().unwrap() && !file.remove().unwrap());
    }
}
