//! One probe: a throw-away clone of one state, a program that looks at it, and what its exit code means.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdp_core::error::{Error, IoContext, Kind, Result};
use serde::{Deserialize, Serialize};

use super::search::Verdict;
use crate::host::attach::{AttachOptions, attach, detach};
use crate::host::keeper::{Keeper, ask};
use crate::host::past::{PastOptions, mount_past};
use crate::work::Endpoints;

/// The exit code that says: this state cannot be judged.
const SKIP: i32 = 125;
/// Exit codes from here on, and signals, end the search.
const ABORT: i32 = 128;

/// A running program is looked at so often: soon at first, as many are quick.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(50);

/// In which form the program gets the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As an NBD URI. Needs nothing.
    #[default]
    Uri,
    /// As a block device too. Needs root.
    Device,
    /// Mounted too. Needs root.
    Mount,
}

impl Form {
    /// As the command line says it.
    pub fn of(mount: bool, device: bool) -> Form {
        match (mount, device) {
            (true, _) => Form::Mount,
            (_, true) => Form::Device,
            _ => Form::Uri,
        }
    }
}

/// What does not change from probe to probe.
#[derive(Clone, Debug)]
pub struct Prober {
    /// Which volume.
    pub volume: String,
    /// Where the store is served.
    pub endpoints: Endpoints,
    /// Directory of the store.
    pub store: PathBuf,
    /// In which form.
    pub form: Form,
    /// Which partition to mount.
    pub partition: Option<u32>,
    /// The program with its arguments.
    pub program: Vec<String>,
    /// Where attachments are noted.
    pub state_dir: PathBuf,
    /// Who waits for a server that restarts.
    pub keeper: Keeper,
    /// Set by whoever wants a running program ended.
    pub stop: Arc<AtomicBool>,
    /// One state has been mounted here: what cannot be mounted from then on is no good state.
    pub mounted: Arc<AtomicBool>,
}

/// A device or a mount that goes away with the probe.
struct Held<'a> {
    prober: &'a Prober,
    id: String,
    dir: Option<PathBuf>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.prober.state_dir, &self.id, true) {
            tracing::warn!("a probe's device stays: {error}");
        }
        if let Some(dir) = &self.dir {
            // Empty after the unmounting; if it is not, it is not ours to remove.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

impl Prober {
    /// Runs the program on the state after this record. Its exit code is the verdict as git reads it; from 128 on,
    /// or a signal, is an error of [`Kind::Closed`].
    pub fn probe(&self, lsn: u64) -> Result<Verdict> {
        let point = format!("lsn:{lsn}");
        let view = format!("{}@{point}", self.volume);
        let uri = |export: &str| {
            let hint = "start it with --socket PATH as well";
            let none =
                || Error::new(Kind::NotFound, "the server listens nowhere that could be named").hint(hint);
            self.endpoints.uri(export).ok_or_else(none)
        };
        let clone = uri(&format!("{view}+rw"))?;
        let mut environment: Vec<(&str, OsString)> = vec![
            ("CDP_STORE", self.store.clone().into()),
            ("CDP_VOLUME", self.volume.clone().into()),
            ("CDP_POINT", point.into()),
            ("CDP_URI", clone.clone().into()),
        ];
        let held = match self.hold(&view, uri(&view)?, clone.clone(), &mut environment) {
            Err(error) if self.is_bad_itself(&error, &clone) => {
                crate::report::say(&format!("{view} is bad: it cannot be mounted: {error}"));
                return Ok(Verdict::Bad);
            }
            held => held?,
        };
        let status = self.run(environment);
        drop(held);
        verdict(status?)
    }

    /// Whether this is about what the state holds, and not about the machine or the server: others could be mounted, and its
    /// export answers.
    fn is_bad_itself(&self, error: &Error, uri: &str) -> bool {
        self.form == Form::Mount
            && self.mounted.load(Ordering::Relaxed)
            && matches!(error.kind(), Kind::NotFound | Kind::Damaged)
            && ask(uri).is_ok()
    }

    fn hold(
        &self,
        view: &str,
        view_uri: String,
        clone_uri: String,
        environment: &mut Vec<(&str, OsString)>,
    ) -> Result<Option<Held<'_>>> {
        let name = format!("probe {view} {}", std::process::id());
        let (attached, dir) = match self.form {
            Form::Uri => return Ok(None),
            Form::Device => {
                let options = AttachOptions {
                    name,
                    uri: clone_uri,
                    partition: self.partition,
                    state_dir: self.state_dir.clone(),
                    // A clone is gone with its connection: there is nothing to come back to.
                    keeper: Keeper::Nobody,
                    ..AttachOptions::default()
                };
                (attach(&options)?, None)
            }
            Form::Mount => {
                let dir = crate::reach::private_dir()?;
                let mounted = mount_past(&PastOptions {
                    name,
                    called: Some(view.to_owned()),
                    view_uri,
                    clone_uri,
                    clone_is_named: false,
                    writable: true,
                    dir: dir.clone(),
                    partition: self.partition,
                    mount_options: Vec::new(),
                    state_dir: self.state_dir.clone(),
                    keeper: self.keeper.clone(),
                });
                if mounted.is_err() {
                    let _ = std::fs::remove_dir(&dir);
                }
                let mounted = mounted?;
                self.mounted.store(true, Ordering::Relaxed);
                (mounted, Some(dir))
            }
        };
        environment.push(("CDP_DEVICE", attached.device.into()));
        if let Some(dir) = &dir {
            environment.push(("CDP_DIR", dir.clone().into()));
        }
        Ok(Some(Held { prober: self, id: attached.id, dir }))
    }

    fn run(&self, environment: Vec<(&str, OsString)>) -> Result<std::process::ExitStatus> {
        let (program, arguments) = self
            .program
            .split_first()
            .ok_or_else(|| Error::new(Kind::Invalid, "there is no program to run"))?;
        let place = || format!("running {program}");
        // Its output is talk, not our result.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().at(place)?;
        let mut command = Command::new(program);
        command.args(arguments).envs(environment).stdin(Stdio::null()).stdout(Stdio::from(stderr));
        let started = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(Kind::NotFound, format!("there is no program {program}"))
            }
            _ => Error::io(error, place()),
        });
        let mut child = started?;
        let mut pause = POLL_MIN;
        loop {
            if let Some(status) = child.try_wait().at(place)? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::new(Kind::Closed, format!("{program} was ended: stopped")));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL_MAX);
        }
    }
}

fn verdict(status: std::process::ExitStatus) -> Result<Verdict> {
    match status.code() {
        Some(0) => Ok(Verdict::Good),
        Some(SKIP) => Ok(Verdict::Skip),
        Some(code) if code < ABORT => Ok(Verdict::Bad),
        Some(code) => {
            Err(Error::new(Kind::Closed, format!("the program ended the search with exit code {code}")))
        }
        None => {
            let signal = status.signal().unwrap_or(0);
            Err(Error::new(Kind::Closed, format!("the program was ended by signal {signal}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // People bring the script they use with git: the same codes have to mean the same.
    #[test]
    fn exit_codes_mean_what_they_mean_to_git() {
        let of = |code: i32| verdict(std::process::ExitStatus::from_raw(code << 8));
        assert_eq!(of(0).unwrap(), Verdict::Good);
        for code in [1, 2, 124, 126, 127] {
            assert_eq!(of(code).unwrap(), Verdict::Bad, "{code}");
        }
        assert_eq!(of(125).unwrap(), Verdict::Skip);
        for code in [128, 130, 255] {
            assert_eq!(of(code).unwrap_err().kind(), Kind::Closed, "{code}");
        }
        assert!(verdict(std::process::ExitStatus::from_raw(9)).is_err(), "killed");
    }
}
