//! How a command gets at a store: through the server that has it open, or by opening it itself.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::catalog::Catalog;
use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::index::IndexOptions;
use cdp_core::io::{SystemClock, native};
use cdp_core::store::{OpenOptions, Store};
use cdp_core::volume::open::Accept;

use crate::config::Config;
use crate::control::{Call, LINE_BYTES_MAX, Line, SOCKET_FILE, VERSION};
use crate::hooks::Interrupts;
use crate::report;
use crate::serve::votes::Votes;
use crate::work::{self, Hello, Request, Response, Site, Watch};

/// So long a store that is busy, without a server that answers, is tried again: its server is starting or
/// stopping, or another command is at work.
const BUSY_TIME: Duration = Duration::from_secs(5);
const BUSY_STEP: Duration = Duration::from_millis(50);

/// A way to a store.
pub enum Door {
    /// A server has it open.
    Server(Talk),
    /// We have.
    Own(Site),
}

/// A server that says nothing for so long is waited for, but not in silence.
const SILENCE: Duration = Duration::from_secs(5);
/// Where signals only ask, they are looked for so often.
const LOOK: Duration = Duration::from_millis(100);

/// A connection to a server's control socket.
pub struct Talk {
    reader: BufReader<UnixStream>,
    interrupts: Option<Interrupts>,
}

/// A path to a file in `dir` that is short enough for a socket's address, however long the directory's is. It
/// holds as long as the returned directory is open.
pub fn short_path(dir: &Path, name: &str) -> std::io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, path))
}

impl Talk {
    /// Connects to the server of a store; `None` if there is none.
    pub fn connect(store: &Path) -> Result<Option<Talk>> {
        let found = short_path(store, SOCKET_FILE).and_then(|(_dir, path)| UnixStream::connect(path));
        match found {
            Ok(stream) => {
                stream.set_read_timeout(Some(SILENCE)).at(|| "talking to the server".to_owned())?;
                Ok(Some(Talk { reader: BufReader::new(stream), interrupts: None }))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => {
                let context = format!("connecting to the server of {}", store.display());
                Err(Error::io(error, context).hint("run it as the user who runs the server"))
            }
        }
    }

    /// Once one of these came, no answer is waited for any more.
    pub fn give_up_when(&mut self, interrupts: &Interrupts) -> Result<()> {
        self.interrupts = Some(interrupts.clone());
        self.reader.get_ref().set_read_timeout(Some(LOOK)).at(|| "talking to the server".to_owned())
    }

    /// The next line, however long it takes; empty where the server ended.
    fn line(&mut self) -> Result<Vec<u8>> {
        let (began, mut is_told) = (Instant::now(), false);
        let mut line = Vec::new();
        loop {
            let room = LINE_BYTES_MAX.saturating_sub(line.len()) as u64;
            match self.reader.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) => return Ok(line),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(Error::io(error, "talking to the server")),
            }
            if self.interrupts.as_ref().is_some_and(Interrupts::came) {
                return Err(Error::new(Kind::Closed, "stopped while the server did not answer")
                    .hint("what was asked for may or may not have been done"));
            }
            if began.elapsed() >= SILENCE && !is_told {
                is_told = true;
                report::say(
                    "cdp: the server has not answered yet; Ctrl-C ends the waiting, not what it does",
                );
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: Request, watch: &mut Watch<'_>) -> Result<Response> {
        let call = Call { version: VERSION, tz: std::env::var("TZ").ok(), request };
        let mut text = serde_json::to_string(&call)
            .map_err(|error| Error::new(Kind::Invalid, format!("a request that cannot be sent: {error}")))?;
        text.push('\n');
        let lost = || "talking to the server".to_owned();
        self.reader.get_mut().write_all(text.as_bytes()).at(lost)?;
        loop {
            let line = self.line()?;
            if !line.ends_with(b"\n") {
                return Err(Error::new(Kind::Closed, "the server ended before it answered")
                    .hint("look at its log; what was asked for may or may not have been done"));
            }
            let line = serde_json::from_slice(&line).map_err(|error| {
                Error::new(Kind::Invalid, format!("the server's answer makes no sense: {error}"))
                    .hint("are server and command of the same version?")
            })?;
            match line {
                Line::Progress(progress) => watch(progress)?,
                Line::Done(response) => return Ok(*response),
                Line::Failed(report) => return Err(report.into_error()),
            }
        }
    }

    /// Who answers.
    pub fn hello(&mut self) -> Result<Hello> {
        match self.ask(Request::Hello, &mut |_| Ok(()))? {
            Response::Hello(hello) => Ok(hello),
            _ => Err(unexpected()),
        }
    }
}

/// An answer to another question.
pub fn unexpected() -> Error {
    Error::new(Kind::Invalid, "the server's answer belongs to another question")
        .hint("are server and command of the same version?")
}

impl Door {
    /// Finds the server, or opens the store. With `make`, a store that is not there is made.
    pub fn open(config: &Config, make: bool) -> Result<Door> {
        let until = Instant::now() + BUSY_TIME;
        loop {
            if let Some(talk) = Talk::connect(&config.store)? {
                return Ok(Door::Server(talk));
            }
            match open_store(config, make, &format!("pid {} (a cdp command)", std::process::id())) {
                Ok(store) => {
                    let votes = Arc::new(Votes::absent(config));
                    return Ok(Door::Own(Site { store: Arc::new(store), server: None, votes }));
                }
                Err(error) if error.kind() == Kind::Busy && Instant::now() < until => {
                    std::thread::sleep(BUSY_STEP);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: Request, watch: &mut Watch<'_>) -> Result<Response> {
        match self {
            Door::Server(talk) => talk.ask(request, watch),
            Door::Own(site) => work::run(site, std::env::var("TZ").ok().as_deref(), &request, watch),
        }
    }

    /// Ends it: a store that we opened is sealed.
    pub fn close(self) -> Result<()> {
        match self {
            Door::Server(_) => Ok(()),
            Door::Own(site) => site.store.close(),
        }
    }

    /// One question: opens, asks, closes.
    pub fn ask_once(
        config: &Config,
        make: bool,
        request: Request,
        watch: &mut Watch<'_>,
    ) -> Result<Response> {
        let mut door = Door::open(config, make)?;
        let answer = door.ask(request, watch);
        let closed = door.close();
        let answer = answer?;
        closed?;
        Ok(answer)
    }
}

/// While the index is made again, something is said once for so many segments.
const REBUILDING_TOLD_EACH: usize = 8;

/// Opens the store under its lock; with `make`, makes it if it is not there.
pub fn open_store(config: &Config, make: bool, holder: &str) -> Result<Store> {
    open_with(config, make, &OpenOptions { holder, ..OpenOptions::default() })
}

/// As [`open_store`], to serve its volumes for long.
pub fn open_to_serve(config: &Config, holder: &str) -> Result<Store> {
    open_with(config, true, &OpenOptions { holder, prewrite: true, ..OpenOptions::default() })
}

/// As [`open_store`], with what somebody accepted for a volume of this name.
pub fn open_accepting(
    config: &Config,
    make: bool,
    holder: &str,
    accept: &dyn Fn(&str) -> Accept,
) -> Result<Store> {
    open_with(config, make, &OpenOptions { holder, accept, ..OpenOptions::default() })
}

/// Whether there is a store where the configuration says.
pub fn store_exists(config: &Config) -> bool {
    Store::exists(&*native(config.io_uring), &config.store)
}

fn open_with(config: &Config, make: bool, options: &OpenOptions<'_>) -> Result<Store> {
    let files = native(config.io_uring);
    let clock = Arc::new(SystemClock);
    if make && !Store::exists(&*files, &config.store) {
        if let Some(parent) = config.store.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).at(|| format!("making {}", parent.display()))?;
        }
        Store::create(&*files, &*clock, &config.store)?;
    }
    let index = IndexOptions { budget_bytes: config.index_memory_bytes as usize, ..IndexOptions::default() };
    let options = OpenOptions { catalog: &Catalog::open, index, rebuilding: tell_rebuilding, ..*options };
    Store::open_with(files, clock, &config.store, &options)
}

/// Nobody should wonder why opening takes so long when the index is gone.
fn tell_rebuilding(volume: &str, done: usize, total: usize) {
    if done % REBUILDING_TOLD_EACH == 1 || done == total {
        eprintln!("{volume}: making the index again from the journal, segment {done} of {total}");
    }
}
