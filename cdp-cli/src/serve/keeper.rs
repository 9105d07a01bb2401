//! The store's duties while it is served: one thread for the quick ones, one for the slow ones and the alarm.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Result};
use cdp_core::store::Store;

use super::prove::{self, ProvePlan};
use crate::work::{Site, status};

/// Between two rounds of the quick duties.
const TICK: Duration = Duration::from_millis(10);
/// Between two rounds of the slow ones.
const MAINTAIN: Duration = Duration::from_millis(250);
/// Between two rounds of the slow ones while a journal is full and makes room.
const PRESSED: Duration = Duration::from_millis(2);
/// Between two looks who is a primary, where a program is to be told.
const ROLES: Duration = Duration::from_millis(100);
/// Between two looks at the verdict.
const LOOK: Duration = Duration::from_secs(2);
/// So long the alarm's program may take.
const ALARM_TIME: Duration = Duration::from_secs(60);

/// The threads; they end when this is stopped or dropped.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Keeper {
    /// Starts them.
    pub fn start(site: Arc<Site>, on_alarm: Option<PathBuf>, plans: Vec<ProvePlan>) -> Result<Keeper> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut keeper = Keeper { stop: stop.clone(), threads: Vec::new() };
        let (store, stopped) = (site.store.clone(), stop.clone());
        keeper.spawn("cdp tick", move || tick(&store, &stopped))?;
        if !plans.is_empty() {
            let (site, stopped) = (site.clone(), stop.clone());
            keeper.spawn("cdp prove", move || prove::run(&site, &plans, &stopped))?;
        }
        if site.server.as_ref().is_some_and(|server| server.roles.is_wanted()) {
            let (site, stopped) = (site.clone(), stop.clone());
            keeper.spawn("cdp roles", move || watch_roles(&site, &stopped))?;
        }
        keeper.spawn("cdp maintain", move || maintain(&site, on_alarm.as_deref(), &stop))?;
        Ok(keeper)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let of = name.to_owned();
        let watched = move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                // Without its duties a server would go on until it is full or slow, and say that all is well. One that
                // ends is started again, and loses nothing that was answered.
                eprintln!("cdp: the thread {of:?} panicked; the server ends at once");
                std::process::abort();
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(watched);
        self.threads.push(thread.at(|| format!("starting the thread {name:?}"))?);
        Ok(())
    }

    /// Ends the threads and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a keeper thread panicked");
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn tick(store: &Store, stop: &AtomicBool) {
    let mut said = Said::default();
    while !stop.load(Ordering::Relaxed) {
        said.tell(&store.tick());
        std::thread::sleep(TICK);
    }
}

fn watch_roles(site: &Site, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(server) = &site.server {
            server.roles.look(&site.store, u64::MAX);
        }
        std::thread::sleep(ROLES);
    }
}

/// How far the slow duties step back, as `nice` counts it; on Linux it holds for the one thread.
const MAINTAIN_NICE: i32 = 10;

fn maintain(site: &Site, on_alarm: Option<&Path>, stop: &AtomicBool) {
    let mut said = Said::default();
    let mut alarm = Alarm::default();
    let mut looked = Instant::now();
    // Hashing full segments must not take the processors from the clients. A refusal changes nothing.
    let _ = rustix::process::nice(MAINTAIN_NICE);
    while !stop.load(Ordering::Relaxed) {
        said.tell(&site.store.maintain());
        if let Some(server) = &site.server {
            server.clones.close_stale();
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            match status::status(site, None) {
                Ok(status) => alarm.look(&status, on_alarm),
                Err(error) => tracing::warn!(%error, "the store's status cannot be told"),
            }
        }
        // A full journal whose oldest history may go: somebody is about to wait for it.
        let pressed = site.store.volumes().iter().any(|volume| volume.is_pressed());
        std::thread::sleep(if pressed { PRESSED } else { MAINTAIN });
    }
}

/// The errors of the last round: each is logged once, until it has gone away.
#[derive(Default)]
struct Said(BTreeSet<String>);

impl Said {
    fn tell(&mut self, errors: &[Error]) {
        let now: BTreeSet<String> = errors.iter().map(Error::to_string).collect();
        for error in now.difference(&self.0) {
            tracing::error!("{error}");
        }
        for error in self.0.difference(&now) {
            tracing::info!("no more: {error}");
        }
        self.0 = now;
    }
}

/// Runs the user's program when the verdict turns bad, once per change.
#[derive(Default)]
struct Alarm {
    verdict: Vec<String>,
}

impl Alarm {
    fn look(&mut self, status: &status::Status, program: Option<&Path>) {
        let verdict = if status.act { status.verdict.clone() } else { Vec::new() };
        // Figures in the sentences change all the time; which volumes and how many reasons do not.
        let key: Vec<String> =
            verdict.iter().map(|line| line.chars().filter(|c| !c.is_ascii_digit()).collect()).collect();
        if key == self.verdict {
            return;
        }
        self.verdict = key;
        for line in &verdict {
            tracing::error!("{line}");
        }
        if verdict.is_empty() {
            tracing::info!("all is well again");
            return;
        }
        let Some(program) = program else { return };
        let (program, store) = (program.to_owned(), status.store.clone());
        let run = move || run_alarm(&program, &store, &verdict.join("\n"));
        if let Err(error) = std::thread::Builder::new().name("cdp alarm".to_owned()).spawn(run) {
            tracing::error!(%error, "starting the alarm's thread");
        }
    }
}

fn run_alarm(program: &Path, store: &str, verdict: &str) {
    let child = Command::new(program)
        .arg(verdict)
        .env("CDP_STORE", store)
        .env("CDP_VERDICT", verdict)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return tracing::error!(%error, "on_alarm: {} cannot be run", program.display()),
    };
    let until = Instant::now() + ALARM_TIME;
    loop {
        match child.try_wait() {
            Ok(Some(code)) if code.success() => return,
            Ok(Some(code)) => return tracing::error!("on_alarm: {} ended with {code}", program.display()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
            Ok(None) => {
                tracing::error!("on_alarm: {} takes too long and is killed", program.display());
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            Err(error) => return tracing::error!(%error, "on_alarm: waiting for {}", program.display()),
        }
    }
}
