//! Runs an outside program to its end, with a time limit, and turns its failure into an error.

use crate::hooks::Interrupts;
use crate::host::clients;
use cdp_core::error::{Error, IoContext, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a helper program may take when nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What is kept of a program's output, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Administrators' directories that a plain user's `PATH` lacks.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is: in `PATH`, else in the administrators' directories.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(SBIN.iter().map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// A command for a program that must exist; `NotFound` with the installing line if it does not.
pub fn program(name: &str) -> Result<Command> {
    let path = find(name).ok_or_else(|| clients::missing(name))?;
    let mut command = Command::new(path);
    // Messages are matched nowhere, but they are shown: in one language.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error, trimmed.
    pub stderr: String,
}

/// Runs a program with [`PATIENCE`] and wants success; gives its standard output.
pub fn run<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    run_within(name, arguments, PATIENCE)
}

/// Like [`run`], with a time limit of its own.
pub fn run_within<A: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
    patience: Duration,
) -> Result<String> {
    let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
    let ended = outcome(name, &arguments, patience)?;
    success(name, &arguments, ended)
}

/// Like [`run_within`], until one of these came: the program is killed then, and it is [`Kind::Closed`].
pub fn run_until(
    name: &str,
    arguments: Vec<OsString>,
    patience: Duration,
    interrupts: &Interrupts,
) -> Result<String> {
    let ended = outcome_unless(name, &arguments, patience, &|| interrupts.came())?;
    // The terminal's Ctrl-C reaches the program as well.
    if interrupts.came() {
        return Err(Error::new(Kind::Closed, format!("{name} was stopped")));
    }
    success(name, &arguments, ended)
}

fn success(name: &str, arguments: &[OsString], outcome: Outcome) -> Result<String> {
    if outcome.status.success() {
        return Ok(outcome.stdout);
    }
    let said = if outcome.stderr.is_empty() { outcome.stdout.trim() } else { &outcome.stderr };
    Err(Error::new(Kind::Io, format!("{} failed ({}): {said}", shown(name, arguments), outcome.status)))
}

/// Runs a program and tells how it ended, whether well or not. `Busy` when the time is over; the program is
/// killed then, unless it hangs in the kernel.
pub fn outcome(name: &str, arguments: &[OsString], patience: Duration) -> Result<Outcome> {
    outcome_unless(name, arguments, patience, &|| false)
}

fn outcome_unless(
    name: &str,
    arguments: &[OsString],
    patience: Duration,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let mut command = program(name)?;
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().at(|| format!("cannot start {name}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let Some(status) = wait(&mut child, patience, is_stopped).at(|| format!("waiting for {name}"))? else {
        // The reading threads are left behind: a program stuck in the kernel keeps its pipes open.
        let _ = child.kill();
        if is_stopped() {
            let _ = child.wait();
            return Err(Error::new(Kind::Closed, format!("{name} was stopped")));
        }
        let seconds = patience.as_secs();
        return Err(Error::new(
            Kind::Busy,
            format!("{} did not end within {seconds} s", shown(name, arguments)),
        ));
    };
    let text = |output: Output| output.join().unwrap_or_default();
    Ok(Outcome { status, stdout: text(stdout), stderr: text(stderr).trim().to_owned() })
}

type Output = std::thread::JoinHandle<String>;

fn drain(pipe: Option<impl Read + Send + 'static>) -> Output {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // A broken pipe ends the output; what came before it still helps.
            let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(
    child: &mut Child,
    patience: Duration,
    is_stopped: &dyn Fn() -> bool,
) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline || is_stopped() {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Looks at something every few milliseconds until it is true or the time is over; says which.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

fn shown(name: &str, arguments: &[OsString]) -> String {
    let words = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(name.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    // A failing mount must say what mount said, or the user has nothing to go on.
    #[test]
    fn a_failure_carries_the_words_of_the_program() {
        let error = run("sh", ["-c", "echo no such luck >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }

    // A hanging helper must not hang the command.
    #[test]
    fn a_program_that_hangs_is_given_up() {
        let started = Instant::now();
        let error = run_within("sleep", ["60"], Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    // A missing client is the commonest failure on a fresh machine.
    #[test]
    fn a_missing_program_is_named() {
        let error = run("surely-not-installed", [""; 0]).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("surely-not-installed"));
    }
}
