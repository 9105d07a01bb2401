//! `cdp restore --follow` and `--finish`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::{format_utc, split_export};
use cdp_core::ids::Timestamp;
use cdp_core::io::{Files, native};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::progress::Bar;
use super::{Context, point};
use crate::cli;
use crate::follow::disk::{DeviceDisk, Disk, FileDisk, How};
use crate::follow::follower::{Bounds, Found, Paths};
use crate::follow::remote::Remote;
use crate::follow::state::Position;
use crate::follow::{Follower, Source, Trouble};
use crate::host::notify::tell_systemd;
use crate::image::{Format, usage};
use crate::reach::Reach;
use crate::report;
use crate::units::{latency, parse_duration};
use crate::work::State;

/// The state that goes on.
const NEWEST: &str = "latest";
/// Behind a target's name: how far it is.
const STATE_SUFFIX: &str = ".cdp-follow";
/// In the store: how far block devices are.
const STATES_DIR: &str = "follow";
/// Between two attempts to reach the server.
const AGAIN: Duration = Duration::from_millis(500);
/// A signal is heard within so long.
const NAP: Duration = Duration::from_millis(50);

/// Keeps a target behind a volume, or finishes it.
pub fn run(context: &Context, arguments: &cli::Restore) -> Result<u8> {
    let (volume, point) = split_export(&arguments.source);
    if point.is_some_and(|point| point.contains("+rw")) {
        return Err(Error::new(Kind::Invalid, "a clone cannot be followed: `+rw` has no meaning here"));
    }
    if arguments.follow && point.is_some_and(|point| point != NEWEST) {
        let context = format!("{} is a past state, which does not go on", arguments.source);
        return Err(Error::new(Kind::Invalid, context).hint(format!(
            "a copy that goes on: cdp restore {volume}@{NEWEST} {0} --follow; the past: leave --follow out",
            arguments.target.display()
        )));
    }
    let target = std::path::absolute(&arguments.target);
    let target = target.at(|| format!("finding {}", arguments.target.display()))?;
    let format = Format::of_name(&target);
    if arguments.follow && format != Format::Raw && !usage::is_block_device(&target) {
        let context =
            format!("{} is named as a {}, and what is followed is raw", target.display(), format.name());
        return Err(Error::new(Kind::Invalid, context).hint("call it .img; --finish, then qemu-img convert"));
    }
    // A link's own directory may be another one than its file's, and a draft has to be renamed within one.
    let target = target.canonicalize().unwrap_or(target);
    let follow = Follow {
        context,
        volume: volume.to_owned(),
        point: point.unwrap_or(NEWEST).to_owned(),
        paths: Paths::of(&state_path(context, arguments, &target)?),
        target,
        force: arguments.force,
        files: native(false),
        stop: Arc::new(AtomicBool::new(false)),
    };
    follow.catch_signals()?;
    match arguments.finish {
        true => follow.finish(arguments.no_store),
        false => follow.follow(Duration::from_nanos(parse_duration(&arguments.every)?).max(NAP)),
    }
}

fn state_path(context: &Context, arguments: &cli::Restore, target: &Path) -> Result<PathBuf> {
    if let Some(state) = &arguments.state {
        return std::path::absolute(state).at(|| format!("finding {}", state.display()));
    }
    if usage::is_block_device(target) {
        let dir = context.config.store.join(STATES_DIR);
        std::fs::create_dir_all(&dir).at(|| format!("making {}", dir.display()))?;
        let name = target.display().to_string().trim_start_matches('/').replace('/', "-");
        let dir = std::path::absolute(&dir).at(|| format!("finding {}", dir.display()))?;
        return Ok(dir.join(format!("{name}{STATE_SUFFIX}")));
    }
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(STATE_SUFFIX);
    Ok(target.with_file_name(name))
}

struct Follow<'a> {
    context: &'a Context,
    volume: String,
    point: String,
    target: PathBuf,
    paths: Paths,
    force: bool,
    files: Arc<dyn Files>,
    stop: Arc<AtomicBool>,
}

impl Follow<'_> {
    fn catch_signals(&self) -> Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).at(|| "taking signals".to_owned())?;
        let stop = self.stop.clone();
        let wait = move || {
            for _ in signals.forever() {
                if stop.swap(true, Ordering::Relaxed) {
                    // As a kill, which is safe.
                    std::process::exit(i32::from(report::INTERRUPTED));
                }
            }
        };
        let thread = std::thread::Builder::new().name("cdp signals".to_owned()).spawn(wait);
        thread.map(drop).at(|| "starting the signals' thread".to_owned())
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for the next look, or for the end.
    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_stopped() && Instant::now() < until {
            std::thread::sleep(NAP.min(until - Instant::now()));
        }
    }

    fn open_disk(&self, how: How) -> Result<Option<Box<dyn Disk>>> {
        let path = &self.target;
        match std::fs::metadata(path) {
            Ok(_) if usage::is_block_device(path) => DeviceDisk::open(path).map(Some),
            Ok(found) if !found.is_file() => {
                let context = format!("{} is neither a file nor a block device", path.display());
                Err(Error::new(Kind::Invalid, context))
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(error, format!("looking at {}", path.display())))
            }
            // A device that is gone must not become a file of its name.
            Err(_) if path.starts_with("/dev") => {
                Err(Error::new(Kind::NotFound, format!("there is no {}", path.display())))
            }
            _ => FileDisk::open(&self.files, path, how, true),
        }
    }

    fn open(&self) -> Result<Found> {
        let opener = |how| self.open_disk(how);
        Follower::open(&self.files, &self.paths, Bounds::default(), &opener, self.force)
    }

    fn follow(&self, every: Duration) -> Result<u8> {
        let mut follower = match self.open()? {
            Found::Ours(follower) => Some(*follower),
            Found::Nothing => None,
        };
        if let Some(follower) = follower.as_ref().filter(|follower| follower.is_standing()) {
            self.tell("standing", follower, 0, || format!("going on with {}", self.target.display()));
        }
        let mut is_waiting = false;
        while !self.is_stopped() {
            let trouble = match Reach::server(&self.context.config) {
                Ok(Some(mut reach)) => {
                    match self.session(&mut reach, &mut follower, every, &mut is_waiting) {
                        Ok(()) => return self.ended(follower.as_ref()),
                        Err(Trouble::Stopped) => break,
                        Err(Trouble::Target(error)) => return Err(error),
                        Err(Trouble::Source(error)) if !may_come_back(&error) => return Err(error),
                        Err(Trouble::Source(error)) => error.to_string(),
                    }
                }
                Ok(None) => format!("no server has {} open", self.context.config.store.display()),
                Err(error) if may_come_back(&error) => error.to_string(),
                Err(error) => return Err(error),
            };
            if !is_waiting {
                is_waiting = true;
                report::say(&format!("cdp: waiting: {trouble}"));
                tell_systemd(&format!("STATUS=waiting: {trouble}"));
            }
            self.rest(AGAIN);
        }
        // The last of it, from whoever has the store now; or from the store itself.
        let Some(mut follower) = follower else { return Ok(report::INTERRUPTED) };
        if !follower.is_standing() {
            report::say(&format!(
                "cdp: {} is not a whole copy yet; the same command goes on",
                self.target.display()
            ));
            return Ok(report::INTERRUPTED);
        }
        let mut reach = Reach::open(&self.context.config).map_err(|error| left(&follower, &error))?;
        let caught_up = self.catch_up(&mut Remote::new(&mut reach, &self.volume), &mut follower);
        let closed = reach.close();
        caught_up.map_err(|error| left(&follower, &error))?;
        closed?;
        self.ended(Some(&follower))
    }

    fn ended(&self, follower: Option<&Follower>) -> Result<u8> {
        let Some(follower) = follower else { return Ok(report::INTERRUPTED) };
        tell_systemd("STOPPING=1");
        self.tell("ended", follower, 0, || {
            format!(
                "{}\n`cdp restore {} {} --finish` hands it over; the same command goes on",
                stands(follower),
                self.volume,
                self.target.display()
            )
        });
        Ok(report::DONE)
    }

    /// Follows one server, as long as it is there. `Ok`: somebody wanted the end, and the target holds all there was.
    fn session(
        &self,
        reach: &mut Reach,
        follower: &mut Option<Follower>,
        every: Duration,
        is_waiting: &mut bool,
    ) -> std::result::Result<(), Trouble> {
        if follower.is_none() {
            let info = reach.point(&format!("{}@{}", self.volume, self.point)).map_err(Trouble::Source)?;
            point::tell([&info]);
            let first = Remote::new(reach, &self.volume).state(info.lsn);
            let first = match first {
                // Not durable yet.
                Err(error) if error.kind() == Kind::Refused => Remote::new(reach, &self.volume).newest(true),
                other => other,
            };
            let first = first.map_err(Trouble::Source)?;
            let opener = |how| self.open_disk(how);
            let (files, bounds) = (&self.files, Bounds::default());
            let begun = Follower::begin(files, &self.paths, bounds, &opener, self.force, &first);
            *follower = Some(begun.map_err(Trouble::Target)?);
        }
        let Some(follower) = follower else { return Ok(()) };
        let mut source = Remote::new(reach, &self.volume);
        follower.join(&mut source)?;
        let bar = Bar::default();
        let mut was_standing = follower.is_standing();
        let mut told = follower.position();
        if was_standing {
            tell_systemd("READY=1");
        }
        loop {
            let is_last = self.is_stopped() && follower.is_standing();
            let newest = source.newest(is_last).map_err(Trouble::Source)?;
            // The last step is short, and ends well before anybody loses patience.
            let advanced = follower.advance(&mut source, &newest, &mut |progress| {
                bar.show(progress);
                is_last || follower_may_go_on(&self.stop, was_standing)
            });
            bar.clear();
            advanced?;
            if std::mem::take(is_waiting) {
                report::say("cdp: going on");
            }
            let lag = now_ns().saturating_sub(newest.complete_through_ns);
            if !was_standing {
                was_standing = true;
                tell_systemd("READY=1");
                self.tell("standing", follower, lag, || {
                    format!("{}; following (Ctrl-C: brings it to what was written last)", stands(follower))
                });
            } else if told != follower.position() && self.context.json {
                self.tell("standing", follower, lag, String::new);
            }
            told = follower.position();
            tell_systemd(&format!("STATUS={}, {} behind", stands(follower), latency(lag)));
            if is_last {
                return Ok(());
            }
            self.rest(every);
        }
    }

    /// Everything that was answered, as it is now.
    fn catch_up(&self, source: &mut Remote<'_>, follower: &mut Follower) -> Result<()> {
        self.bring(source, follower, |source| source.newest(true))
    }

    fn bring(
        &self,
        source: &mut Remote<'_>,
        follower: &mut Follower,
        to: impl FnOnce(&mut Remote<'_>) -> Result<State>,
    ) -> Result<()> {
        let bar = Bar::default();
        let brought = follower.join(source).and_then(|()| {
            let to = to(source).map_err(Trouble::Source)?;
            follower.advance(source, &to, &mut |progress| {
                bar.show(progress);
                true
            })
        });
        bar.clear();
        brought.map_err(|trouble| match trouble {
            Trouble::Source(error) | Trouble::Target(error) => error,
            Trouble::Stopped => Error::new(Kind::Closed, "stopped"),
        })
    }

    fn finish(&self, no_store: bool) -> Result<u8> {
        let Found::Ours(mut follower) = self.open()? else {
            let context = format!(
                "{} is not being followed: there is no {}",
                self.target.display(),
                self.paths.state.display()
            );
            return Err(Error::new(Kind::NotFound, context)
                .hint("begin with --follow, or leave --finish out for a copy at once"));
        };
        if no_store {
            if !follower.is_standing() {
                let context = format!("{} is no whole copy of any instant", self.target.display());
                return Err(
                    Error::new(Kind::Refused, context).hint("only the volume can help: leave --no-store out")
                );
            }
        } else {
            let mut reach = Reach::open(&self.context.config).map_err(|error| left(&follower, &error))?;
            let brought = self.finish_by(&mut reach, &mut follower);
            let closed = reach.close();
            brought.map_err(|error| left(&follower, &error))?;
            closed?;
        }
        let stands = stands(&follower);
        let line = self.line("handed-over", &follower, 0);
        follower.hand_over()?;
        self.show(&line, || format!("{stands}; cdp does not write to it any more"));
        Ok(report::DONE)
    }

    fn finish_by(&self, reach: &mut Reach, follower: &mut Follower) -> Result<()> {
        if self.point == NEWEST {
            return self.catch_up(&mut Remote::new(reach, &self.volume), follower);
        }
        let info = reach.point(&format!("{}@{}", self.volume, self.point))?;
        point::tell([&info]);
        let mut source = Remote::new(reach, &self.volume);
        self.bring(&mut source, follower, |source| {
            source.newest(true)?;
            source.state(info.lsn)
        })
    }

    fn line(&self, event: &str, follower: &Follower, lag_ns: u64) -> serde_json::Value {
        let Position { lsn, ns, size_bytes } = follower.position();
        json!({
            "event": event, "volume": self.volume, "target": self.target, "lsn": lsn, "ns": ns,
            "utc": format_utc(Timestamp(ns)), "export": format!("{}@lsn:{lsn}", self.volume),
            "size_bytes": size_bytes, "lag_ns": lag_ns,
        })
    }

    fn tell(&self, event: &str, follower: &Follower, lag_ns: u64, text: impl FnOnce() -> String) {
        self.show(&self.line(event, follower, lag_ns), text);
    }

    /// As JSON, one line for each event: there may be many.
    fn show(&self, line: &serde_json::Value, text: impl FnOnce() -> String) {
        match self.context.json {
            true => report::print(&line.to_string()),
            false => report::print(&text()),
        }
    }
}

/// A copy that takes hours ends at once; a step of a standing target is finished.
fn follower_may_go_on(stop: &AtomicBool, is_standing: bool) -> bool {
    is_standing || !stop.load(Ordering::Relaxed)
}

fn stands(follower: &Follower) -> String {
    let Position { lsn, ns, .. } = follower.position();
    format!("{} stands at {} (lsn:{lsn})", follower.name(), format_utc(Timestamp(ns)))
}

/// The error of a last step that did not come about.
fn left(follower: &Follower, error: &Error) -> Error {
    let context = format!("what was written last could not be had: {error}");
    match follower.is_standing() {
        true => Error::new(error.kind(), format!("{context}; {}", stands(follower)))
            .hint("`--finish --no-store` hands it over as it is"),
        false => Error::new(error.kind(), context),
    }
}

/// Whether waiting may help: the server is restarting, or its disk has a bad moment.
fn may_come_back(error: &Error) -> bool {
    matches!(error.kind(), Kind::Io | Kind::Closed | Kind::Busy)
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
