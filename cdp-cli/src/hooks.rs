//! Programs of the user: quiesce and thaw around an application marker, and those that follow a change of roles. Each has a
//! time limit; thaw always runs.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::format::marker::HOOK_OUTPUT_BYTES_MAX;
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const POLL: Duration = Duration::from_millis(10);
/// After a hook has ended, a child of it that still holds its output is waited for so long.
const OUTPUT_TIME: Duration = Duration::from_millis(200);

/// Ctrl-C and SIGTERM, which only ask from now on: a thaw has to come first.
#[derive(Clone)]
pub struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    /// Takes the signals over for the rest of the process's life.
    pub fn take() -> Result<Interrupts> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, flag.clone()).at(|| "taking signals".to_owned())?;
        }
        Ok(Interrupts(flag))
    }

    /// Whether somebody asked.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The hooks of one marker.
pub struct Hooks {
    quiesce: Option<PathBuf>,
    thaw: Option<PathBuf>,
    timeout: Duration,
    environment: Vec<(&'static str, OsString)>,
}

impl Hooks {
    /// Each may take `timeout`.
    pub fn new(
        quiesce: Option<PathBuf>,
        thaw: Option<PathBuf>,
        timeout: Duration,
        environment: Vec<(&'static str, OsString)>,
    ) -> Hooks {
        Hooks { quiesce, thaw, timeout, environment }
    }

    /// Makes the application quiet; gives what the hook printed. The caller runs [`Hooks::thaw`] afterwards,
    /// whatever comes of this.
    pub fn quiesce(&self, interrupts: &Interrupts) -> Result<String> {
        match &self.quiesce {
            Some(program) => self.run(program, "quiesce", Some(interrupts)),
            None => Ok(String::new()),
        }
    }

    /// Lets it go on. Nothing interrupts this but the time limit.
    pub fn thaw(&self) -> Result<String> {
        match &self.thaw {
            Some(program) => self.run(program, "thaw", None).map_err(|error| {
                let kind = error.kind();
                Error::new(kind, error.to_string())
                    .hint("the application may still stand still: look after it")
            }),
            None => Ok(String::new()),
        }
    }

    fn run(&self, program: &Path, action: &str, interrupts: Option<&Interrupts>) -> Result<String> {
        let limit = Limit { time: self.timeout, hint: "--timeout gives it more time" };
        run_program(program, action, &self.environment, &limit, interrupts)
    }
}

/// How long a program may take.
pub struct Limit<'a> {
    /// So long; then it is killed, with its children.
    pub time: Duration,
    /// What to do about one that needs longer.
    pub hint: &'a str,
}

/// Runs `PROGRAM ACTION`; gives what it printed. An error says what it printed, too.
pub fn run_program(
    program: &Path,
    action: &str,
    environment: &[(&'static str, OsString)],
    limit: &Limit<'_>,
    interrupts: Option<&Interrupts>,
) -> Result<String> {
    let name = || format!("the {action} hook {}", program.display());
    let mut command = Command::new(program);
    command.arg(action).envs(environment.iter().cloned()).stdin(Stdio::null());
    // A group of its own: Ctrl-C is ours to handle, and a hook that hangs is killed with its children.
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().at(|| format!("starting {}", name()))?;
    let output = Output::collect(&mut child);
    let until = Instant::now() + limit.time;
    let ended = loop {
        match child.try_wait().at(|| format!("waiting for {}", name()))? {
            Some(status) if status.success() => break Ok(()),
            Some(status) => break Err(Error::new(Kind::Io, format!("{} failed: {status}", name()))),
            None if interrupts.is_some_and(Interrupts::came) => {
                kill(&mut child);
                break Err(Error::new(Kind::Closed, format!("interrupted during {}", name())));
            }
            None if Instant::now() >= until => {
                kill(&mut child);
                let context = format!("{} took longer than {:?} and was killed", name(), limit.time);
                break Err(Error::new(Kind::Io, context).hint(limit.hint));
            }
            None => std::thread::sleep(POLL),
        }
    };
    let text = output.text();
    ended.map(|()| text.clone()).map_err(|error| match text.trim() {
        "" => error,
        text => {
            let hint = error.hint_text().map(str::to_owned);
            let said = format!("{}; it said: {text}", crate::report::Report::of(&error).message);
            let error = Error::new(error.kind(), said);
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
    })
}

fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// What a hook prints, up to what a marker keeps. The rest is read and thrown away, so that no hook blocks on it.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

impl Output {
    fn collect(child: &mut Child) -> Output {
        let output = Output { bytes: Arc::default(), open: Arc::default() };
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        for mut pipe in pipes.into_iter().flatten() {
            let (bytes, open) = (output.bytes.clone(), output.open.clone());
            open.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                    let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = HOOK_OUTPUT_BYTES_MAX - bytes.len().min(HOOK_OUTPUT_BYTES_MAX);
                    bytes.extend_from_slice(&buffer[..read.min(room)]);
                }
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
        output
    }

    fn text(&self) -> String {
        // A daemon that the hook left behind may hold the pipe for ever.
        let until = Instant::now() + OUTPUT_TIME;
        while self.open.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
