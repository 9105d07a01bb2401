//! The control socket: commands of the same user ask the server here. One thread, an event loop on it; the work
//! itself runs on threads that may block.

use std::fs::File;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cdp_core::error::{Error, IoContext, Kind, Result};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::control::{Call, LINE_BYTES_MAX, Line, SOCKET_FILE, VERSION};
use crate::door::short_path;
use crate::report::Report;
use crate::work::{self, Site};

/// So many commands at a time; more wait in the kernel's queue.
const COMMANDS_MAX: usize = 64;
/// A command that says nothing for so long is cut off.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Commands in hand when the server ends have so long to get their answers.
const ANSWER_TIME: Duration = Duration::from_secs(3);
const BACKLOG: i32 = 64;
/// Lines of an answer that wait for a slow reader.
const LINES_WAITING_MAX: usize = 16;

/// The control socket's thread.
pub struct Control {
    stop: Arc<Notify>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    dir: File,
}

impl Control {
    /// Listens in the store, whose lock the caller holds: a socket file that is there is a dead server's.
    pub fn start(site: Arc<Site>) -> Result<Control> {
        let place = || format!("listening on {}", site.store.path().join(SOCKET_FILE).display());
        let (dir, path) = short_path(site.store.path(), SOCKET_FILE).at(place)?;
        let listener = bind_alone(&path).at(place)?;
        let (stop, stopping) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (stopped, refuse) = (stop.clone(), stopping.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(COMMANDS_MAX)
            .build()
            .at(|| "starting the event loop of the control socket".to_owned())?;
        let serve = move || {
            runtime.block_on(accept_all(listener, &site, &stopped, &refuse));
            drop(site);
            // Works that look at `refuse` end by themselves; nobody waits for others.
            runtime.shutdown_timeout(IDLE_TIME);
        };
        let thread = std::thread::Builder::new().name("cdp control".to_owned()).spawn(serve);
        let thread = thread.at(|| "starting the control thread".to_owned())?;
        Ok(Control { stop, stopping, thread: Some(thread), dir })
    }

    /// Ends it; works in progress are told to end, and waited for.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.notify_one();
        let _ = rustix::fs::unlinkat(&self.dir, SOCKET_FILE, rustix::fs::AtFlags::empty());
        if thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

fn bind_alone(path: &Path) -> std::io::Result<StdListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the socket's own mode when it is bound: at no time may others connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    let listener = StdListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept_all(listener: StdListener, site: &Arc<Site>, stop: &Notify, stopping: &Arc<AtomicBool>) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be served"),
    };
    let places = Arc::new(Semaphore::new(COMMANDS_MAX));
    accept_until_stopped(&listener, &places, site, stop, stopping).await;
    // Commands in hand get their answers.
    let _ = tokio::time::timeout(ANSWER_TIME, places.acquire_many(COMMANDS_MAX as u32)).await;
}

async fn accept_until_stopped(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
    site: &Arc<Site>,
    stop: &Notify,
    stopping: &Arc<AtomicBool>,
) {
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stop.notified() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.notified() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (site, stopping) = (site.clone(), stopping.clone());
                tokio::spawn(async move {
                    // A client that vanishes in the middle is nobody's trouble.
                    let _ = serve(stream, site, stopping).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, site: Arc<Site>, stopping: Arc<AtomicBool>) -> std::io::Result<()> {
    let (input, mut output) = stream.split();
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut input).take(LINE_BYTES_MAX as u64);
        let read = tokio::time::timeout(IDLE_TIME, limited.read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let call = match parse(&line) {
            Ok(call) => call,
            Err(error) => {
                // What follows cannot be told apart from the rest of it.
                return output.write_all(&encode(&Line::Failed(Report::of(&error)))).await;
            }
        };
        let (sender, mut lines) = mpsc::channel::<Line>(LINES_WAITING_MAX);
        let (site, stopping) = (site.clone(), stopping.clone());
        tokio::task::spawn_blocking(move || {
            let mut watch = |progress| {
                if stopping.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Closed, "the server is shutting down"));
                }
                sender
                    .blocking_send(Line::Progress(progress))
                    .map_err(|_| Error::new(Kind::Closed, "the command has gone"))
            };
            let last = match work::run(&site, call.tz.as_deref(), &call.request, &mut watch) {
                Ok(response) => Line::Done(Box::new(response)),
                Err(error) => Line::Failed(Report::of(&error)),
            };
            let _ = sender.blocking_send(last);
        });
        let mut is_answered = false;
        while let Some(line) = lines.recv().await {
            is_answered = matches!(line, Line::Done(_) | Line::Failed(_));
            output.write_all(&encode(&line)).await?;
        }
        if !is_answered {
            // Whoever asked would wait for ever.
            let error = Error::new(Kind::Io, "the server failed at this request; its log says where");
            output.write_all(&encode(&Line::Failed(Report::of(&error)))).await?;
        }
    }
}

fn parse(line: &[u8]) -> Result<Call> {
    let wrong = |why: String| {
        Error::new(Kind::Invalid, format!("a control request that makes no sense: {why}"))
            .hint("are server and command of the same version?")
    };
    if !line.ends_with(b"\n") {
        return Err(wrong(format!("it is not one line of at most {LINE_BYTES_MAX} bytes")));
    }
    // The version first: what a newer one asks for may not be known here.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
    if version != VERSION {
        return Err(wrong(format!("version {version}, and this server speaks {VERSION}")));
    }
    serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))
}

fn encode(line: &Line) -> Vec<u8> {
    let mut bytes = match serde_json::to_vec(line) {
        Ok(bytes) if bytes.len() < LINE_BYTES_MAX => bytes,
        _ => {
            let error = Error::new(Kind::Invalid, "the answer is too long for the control socket")
                .hint("ask for less at a time");
            serde_json::to_vec(&Line::Failed(Report::of(&error))).unwrap_or_default()
        }
    };
    bytes.push(b'\n');
    bytes
}
