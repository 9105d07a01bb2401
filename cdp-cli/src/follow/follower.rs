//! The follower: brings a target from one state of a volume to the next, so that after a crash at any moment it is
//! known what the target holds.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::io::Files;

use super::delta::{DATA_BYTES_MAX, Delta, DeltaWriter, Entry, Step};
use super::disk::{Disk, How, Opener};
use super::source::Source;
use super::state::{FollowState, Phase, Position};
use crate::work::{Progress, State};

/// Compared in pieces of this size when only what differs is written, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Bounds that tests make small.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Data in a delta file, in bytes; a single record's may be more.
    pub delta_bytes_max: u64,
    /// So much is written or compared between two notes of how far a copy is, in bytes.
    pub copied_bytes_per_note: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { delta_bytes_max: 256 << 20, copied_bytes_per_note: 512 << 20 }
    }
}

/// Where the two files beside a target are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The state file.
    pub state: PathBuf,
    /// The delta file.
    pub delta: PathBuf,
}

impl Paths {
    /// The state file, and the delta file next to it.
    pub fn of(state: &Path) -> Paths {
        let mut name = state.file_name().unwrap_or_default().to_owned();
        name.push(".delta");
        Paths { state: state.to_owned(), delta: state.with_file_name(name) }
    }
}

/// Why a follower does not go on.
#[derive(Debug)]
pub enum Trouble {
    /// The volume cannot be asked or read; it may come back.
    Source(Error),
    /// The target, or what stands beside it.
    Target(Error),
    /// Somebody wants it to stop.
    Stopped,
}

type Outcome<T> = std::result::Result<T, Trouble>;

/// Told how far a long work is; `false` ends it.
pub type Watch<'a> = dyn FnMut(Progress) -> bool + 'a;

/// What [`Follower::open`] found.
pub enum Found {
    /// A target to go on with.
    Ours(Box<Follower>),
    /// Nothing to go on with: [`Follower::begin`].
    Nothing,
}

/// A target and what it holds.
pub struct Follower {
    files: Arc<dyn Files>,
    paths: Paths,
    bounds: Bounds,
    disk: Box<dyn Disk>,
    state: FollowState,
}

/// What to do with a target's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// They are zeros: write what is not.
    Fill,
    /// Write what differs.
    Update,
    /// Nothing may differ.
    Check,
}

impl Follower {
    /// Goes on with a target. A step that was not finished is finished, without the volume. With `force`, one that
    /// somebody else wrote to, or that was handed over, is [`Found::Nothing`]; otherwise [`Kind::Refused`].
    pub fn open(
        files: &Arc<dyn Files>,
        paths: &Paths,
        bounds: Bounds,
        opener: &Opener<'_>,
        force: bool,
    ) -> Result<Found> {
        let Some(mut state) = FollowState::load(&**files, &paths.state)? else { return Ok(Found::Nothing) };
        if state.phase == Phase::Rewriting {
            state.phase = Phase::Copying { fresh: false, offset: 0 };
        }
        let how = match state.phase {
            Phase::Copying { fresh: true, .. } => How::Begun,
            _ => How::Existing,
        };
        let Some(disk) = opener(how)? else { return Ok(Found::Nothing) };
        let name = disk.name();
        let mut follower =
            Follower { files: files.clone(), paths: paths.clone(), bounds, disk, state: state.clone() };
        match state.phase {
            Phase::Copying { .. } | Phase::Rewriting => return Ok(Found::Ours(Box::new(follower))),
            Phase::HandedOver if force => return Ok(Found::Nothing),
            Phase::HandedOver => {
                let context = format!("{name} was finished and handed over, and may be in use since");
                return Err(Error::new(Kind::Refused, context)
                    .hint("--force compares it as a whole, and overwrites what differs"));
            }
            Phase::Standing => {}
        }
        let delta = Delta::open(&**files, &paths.delta)?;
        let is_next = |delta: &Delta| {
            delta.step.from == state.position && format!("{:032x}", delta.step.volume_id) == state.volume_id
        };
        if let Some(delta) = delta.filter(is_next) {
            follower.apply(&delta)?;
            return Ok(Found::Ours(Box::new(follower)));
        }
        let witness = follower.disk.witness()?;
        if state.witness.is_some() && witness != state.witness {
            if force {
                return Ok(Found::Nothing);
            }
            let context = format!("it cannot be told that nobody else wrote to {name} since it was left");
            return Err(Error::new(Kind::Refused, context).hint(
                "if what it holds now is not needed: --force compares it as a whole, and overwrites what differs",
            ));
        }
        Ok(Found::Ours(Box::new(follower)))
    }

    /// Begins with a target. One that is there already is [`Kind::Exists`] without `force`, and compared as a whole
    /// with it.
    pub fn begin(
        files: &Arc<dyn Files>,
        paths: &Paths,
        bounds: Bounds,
        opener: &Opener<'_>,
        force: bool,
        first: &State,
    ) -> Result<Follower> {
        let state = |fresh| FollowState {
            volume_id: first.volume_id.clone(),
            position: position(first),
            phase: Phase::Copying { fresh, offset: 0 },
            witness: None,
        };
        let make = |disk, state| Follower { files: files.clone(), paths: paths.clone(), bounds, disk, state };
        if let Some(disk) = opener(How::Existing)? {
            if !force {
                let context = format!("{} is there already", disk.name());
                return Err(Error::new(Kind::Exists, context)
                    .hint("--force compares it as a whole, and overwrites what differs"));
            }
            disk.set_size(first.size_bytes)?;
            let follower = make(disk, state(false));
            follower.save()?;
            return Ok(follower);
        }
        // Said before it is so: a draft is worth nothing without it.
        state(true).save(&**files, &paths.state)?;
        let disk = opener(How::Fresh)?;
        let disk = disk.ok_or_else(|| Error::new(Kind::NotFound, "there is no such target"))?;
        Ok(make(disk, state(true)))
    }

    /// Which state of the volume the target holds, or while it is copied will hold.
    pub fn position(&self) -> Position {
        self.state.position
    }

    /// Whether it holds it.
    pub fn is_standing(&self) -> bool {
        self.state.phase == Phase::Standing
    }

    /// The target's name.
    pub fn name(&self) -> String {
        self.disk.name()
    }

    /// Makes sure that the volume is the one that this target is of. Where the target's state is gone from the volume,
    /// the target is to be compared as a whole. [`Kind::Refused`] where the volume never had it.
    pub fn join(&mut self, source: &mut dyn Source) -> Outcome<()> {
        let newest = source.newest(false).map_err(Trouble::Source)?;
        if newest.volume_id != self.state.volume_id {
            let context =
                format!("{} is a copy of another volume, {}", self.disk.name(), self.state.volume_id);
            return Err(refused(context));
        }
        match self.is_kept(source)? {
            true => Ok(()),
            false => self.start_over(&newest),
        }
    }

    /// Whether the volume still has the state that the target holds, or is being brought to; [`Kind::Refused`] where its history is
    /// another one now: somebody may have set it to another site's while it was followed.
    fn is_kept(&self, source: &mut dyn Source) -> Outcome<bool> {
        let Position { lsn, ns, .. } = self.state.position;
        let name = self.disk.name();
        match source.state(lsn) {
            Ok(found) if found.ns == ns => Ok(true),
            // Kept nowhere while nobody followed.
            Err(error) if error.kind() == Kind::OutOfRange => Ok(false),
            Err(error) if error.kind() != Kind::Refused => Err(Trouble::Source(error)),
            // Copied from the beginning anyway.
            _ if !self.is_standing() => Ok(false),
            Ok(_) => {
                Err(refused(format!("{name} holds another lsn:{lsn} than the volume: their histories part")))
            }
            Err(error) => Err(refused(format!("{name} stands at lsn:{lsn}, and {error}"))),
        }
    }

    /// Behind reading what makes the one state of the other: what was read is of one history, if that has both now. None comes back
    /// that was given up.
    fn check_read(&self, source: &mut dyn Source, to: &Position) -> Outcome<()> {
        let found = source.state(to.lsn).map_err(Trouble::Source)?;
        if self.is_kept(source)? && position(&found) == *to {
            return Ok(());
        }
        let context = format!("the volume got another history while lsn:{} of it was read", to.lsn);
        Err(Trouble::Source(Error::new(Kind::Closed, context)))
    }

    /// From now on to be compared as a whole, with this state.
    fn start_over(&mut self, newest: &State) -> Outcome<()> {
        self.state.position = position(newest);
        self.state.phase = match self.state.phase {
            // Still a draft.
            Phase::Copying { fresh: true, offset: 0 } => Phase::Copying { fresh: true, offset: 0 },
            _ => Phase::Copying { fresh: false, offset: 0 },
        };
        self.state.witness = None;
        self.save().map_err(Trouble::Target)
    }

    /// Brings the target to this state. One that is not standing is copied as a whole first.
    pub fn advance(&mut self, source: &mut dyn Source, to: &State, watch: &mut Watch<'_>) -> Outcome<()> {
        if !self.is_standing() {
            self.copy(source, watch)?;
        }
        while self.state.position != position(to) {
            let from = self.state.position.lsn;
            if !self.is_kept(source)? {
                self.start_over(to)?;
                self.copy(source, watch)?;
                continue;
            }
            let mut goal = to.clone();
            while !self.step(source, &goal, watch)? {
                // Too much for one delta file: half of the way, which is a state too.
                let half = from + (goal.lsn.saturating_sub(from)) / 2;
                let state = if half > from { source.state(half).ok() } else { None };
                match state {
                    Some(state) => goal = state,
                    None => {
                        self.rewrite(source, &goal, watch)?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// One step by way of the delta file. `false`: it is too large for that, and nothing was done.
    fn step(&mut self, source: &mut dyn Source, to: &State, watch: &mut Watch<'_>) -> Outcome<bool> {
        let volume_id = u128::from_str_radix(&self.state.volume_id, 16).unwrap_or_default();
        let from = self.state.position;
        let step = Step { volume_id, from, to: position(to) };
        source.hold(&[from.lsn, to.lsn]).map_err(Trouble::Source)?;
        let writer = DeltaWriter::create(&*self.files, &self.paths.delta, &step);
        let mut writer = writer.map_err(Trouble::Target)?;
        let max = self.bounds.delta_bytes_max;
        let what = format!("reading what changed up to {}", to.utc);
        let mut is_too_large = false;
        each_change(source, &from, to, &mut |at, entry| {
            writer.add(entry).map_err(Trouble::Target)?;
            is_too_large = writer.data_bytes() > max;
            let total = to.size_bytes;
            match watch(Progress { what: what.clone(), done: at, total }) {
                true => Ok(!is_too_large),
                false => Err(Trouble::Stopped),
            }
        })?;
        if is_too_large {
            return Ok(false);
        }
        self.check_read(source, &step.to)?;
        let done = writer.finish(&*self.files, &self.paths.delta);
        done.and_then(|()| {
            let delta = Delta::open(&*self.files, &self.paths.delta)?.filter(|delta| delta.step == step);
            let lost = || {
                Error::new(Kind::Damaged, format!("{} is not what was written", self.paths.delta.display()))
            };
            self.apply(&delta.ok_or_else(lost)?)
        })
        .map_err(Trouble::Target)?;
        Ok(true)
    }

    /// Does to the target what a whole delta file says. Doing it twice is doing it once.
    fn apply(&mut self, delta: &Delta) -> Result<()> {
        self.disk.check_alone()?;
        let name = self.disk.name();
        self.disk.set_size(delta.step.to.size_bytes)?;
        delta.each(&mut |entry| write(&*self.disk, &name, entry))?;
        self.disk.file().sync().at(|| format!("syncing {name}"))?;
        self.stand(delta.step.to)
    }

    /// A step that no delta file holds goes straight to the target, which is no state of the volume meanwhile.
    fn rewrite(&mut self, source: &mut dyn Source, to: &State, watch: &mut Watch<'_>) -> Outcome<()> {
        let name = self.disk.name();
        let from = self.state.position;
        source.hold(&[from.lsn, to.lsn]).map_err(Trouble::Source)?;
        self.disk.check_alone().map_err(Trouble::Target)?;
        self.state.phase = Phase::Rewriting;
        self.save().map_err(Trouble::Target)?;
        self.disk.set_size(to.size_bytes).map_err(Trouble::Target)?;
        let what = format!("bringing {name} to {}", to.utc);
        let done = each_change(source, &from, to, &mut |at, entry| {
            write(&*self.disk, &name, entry).map_err(Trouble::Target)?;
            match watch(Progress { what: what.clone(), done: at, total: to.size_bytes }) {
                true => Ok(true),
                false => Err(Trouble::Stopped),
            }
        });
        if let Err(trouble) = done.and_then(|()| self.check_read(source, &position(to))) {
            // What is half done is compared as a whole.
            self.state.phase = Phase::Copying { fresh: false, offset: 0 };
            return Err(trouble);
        }
        self.disk.file().sync().at(|| format!("syncing {name}")).map_err(Trouble::Target)?;
        self.stand(position(to)).map_err(Trouble::Target)
    }

    /// Copies the state as a whole, or goes on with that; then reads everything back.
    fn copy(&mut self, source: &mut dyn Source, watch: &mut Watch<'_>) -> Outcome<()> {
        let Phase::Copying { fresh, offset } = self.state.phase else { return Ok(()) };
        let position = self.state.position;
        source.hold(&[position.lsn]).map_err(Trouble::Source)?;
        self.disk.check_alone().map_err(Trouble::Target)?;
        self.disk.set_size(position.size_bytes).map_err(Trouble::Target)?;
        let mode = if fresh { Mode::Fill } else { Mode::Update };
        self.pass(source, mode, offset, watch)?;
        self.note_copied(position.size_bytes)?;
        self.disk.forget();
        let checked = self.pass(source, Mode::Check, 0, watch);
        // First: that it is of another history is no fault of the target's.
        self.check_read(source, &position)?;
        checked?;
        self.disk.name_it().and_then(|()| self.stand(position)).map_err(Trouble::Target)
    }

    /// Everything up to here is on the target for good.
    fn note_copied(&mut self, offset: u64) -> Outcome<()> {
        let Phase::Copying { fresh, .. } = self.state.phase else { return Ok(()) };
        let place = || format!("syncing {}", self.disk.name());
        self.disk.file().sync().at(place).map_err(Trouble::Target)?;
        self.state.phase = Phase::Copying { fresh, offset };
        self.save().map_err(Trouble::Target)
    }

    /// Goes through the whole state from a byte on.
    fn pass(
        &mut self,
        source: &mut dyn Source,
        mode: Mode,
        offset: u64,
        watch: &mut Watch<'_>,
    ) -> Outcome<()> {
        let Position { lsn, size_bytes, .. } = self.state.position;
        let name = self.disk.name();
        let what = match mode {
            Mode::Fill => format!("copying to {name}"),
            Mode::Update => format!("comparing {name}, writing what differs"),
            Mode::Check => format!("reading back {name}"),
        };
        let mut wanted = vec![0; DATA_BYTES_MAX as usize];
        let mut found = vec![0; DATA_BYTES_MAX as usize];
        let (mut next, mut unnoted) = (Some(offset), 0);
        while let Some(from) = next.filter(|from| *from < size_bytes) {
            let page = source.delta(None, lsn, from).map_err(Trouble::Source)?;
            for (start, len, zeros) in page.stretches {
                let (mut at, end) = (start, start + len);
                while at < end {
                    if zeros {
                        // Most of what should be zeros is a hole of the target.
                        let data = match mode {
                            Mode::Fill => None,
                            _ => self
                                .disk
                                .file()
                                .next_data(at)
                                .at(|| format!("reading {name}"))
                                .map_err(Trouble::Target)?,
                        };
                        at = data.unwrap_or(end).clamp(at, end);
                    }
                    let step = (end - at).min(DATA_BYTES_MAX) as usize;
                    let (wanted, found) = (&mut wanted[..step], &mut found[..step]);
                    match zeros {
                        true => wanted.fill(0),
                        false => source.read(lsn, at, wanted).map_err(Trouble::Source)?,
                    }
                    if step > 0 {
                        treat(&*self.disk, &name, mode, at, wanted, found).map_err(Trouble::Target)?;
                    }
                    at += step as u64;
                    unnoted += step as u64;
                    if mode != Mode::Check && unnoted >= self.bounds.copied_bytes_per_note {
                        unnoted = 0;
                        self.note_copied(at)?;
                    }
                    let go_on = watch(Progress { what: what.clone(), done: at, total: size_bytes });
                    if !go_on {
                        if mode != Mode::Check {
                            self.note_copied(at)?;
                        }
                        return Err(Trouble::Stopped);
                    }
                }
            }
            next = page.next;
        }
        Ok(())
    }

    fn stand(&mut self, position: Position) -> Result<()> {
        let witness = self.disk.witness()?;
        self.state = FollowState { position, phase: Phase::Standing, witness, ..self.state.clone() };
        self.save()
    }

    /// It is somebody else's from now on.
    pub fn hand_over(mut self) -> Result<Position> {
        self.state.phase = Phase::HandedOver;
        self.save()?;
        // Of no use any more; a small one that stays does no harm.
        let _ = self.files.remove(&self.paths.delta);
        Ok(self.state.position)
    }

    fn save(&self) -> Result<()> {
        self.state.save(&*self.files, &self.paths.state)
    }
}

fn refused(context: String) -> Trouble {
    let error = Error::new(Kind::Refused, context);
    Trouble::Target(error.hint("--force compares it as a whole, and overwrites what differs"))
}

fn position(state: &State) -> Position {
    Position { lsn: state.lsn, ns: state.ns, size_bytes: state.size_bytes }
}

fn write(disk: &dyn Disk, name: &str, entry: Entry<'_>) -> Result<()> {
    match entry {
        Entry::Data(offset, data) => disk
            .file()
            .write_at(offset, &[IoSlice::new(data)])
            .at(|| format!("writing byte {offset} of {name}")),
        Entry::Zeros(offset, len) => {
            disk.file().punch(offset, len).at(|| format!("writing byte {offset} of {name}"))
        }
    }
}

/// Fills, updates or checks a range of the target.
fn treat(disk: &dyn Disk, name: &str, mode: Mode, at: u64, wanted: &[u8], found: &mut [u8]) -> Result<()> {
    if mode == Mode::Fill {
        return match is_zero(wanted) {
            true => Ok(()),
            false => write(disk, name, Entry::Data(at, wanted)),
        };
    }
    disk.file().read_at(at, found).at(|| format!("reading byte {at} of {name}"))?;
    if wanted == found {
        return Ok(());
    }
    if mode == Mode::Check {
        let differs = wanted.iter().zip(found.iter()).position(|(a, b)| a != b).unwrap_or(0);
        let context = format!("byte {} of {name} is not what was written", at + differs as u64);
        return Err(Error::new(Kind::Damaged, context)
            .hint("the target is bad, or somebody else writes to it; the volume is not touched"));
    }
    let mut offset = at;
    for (wanted, found) in wanted.chunks(PIECE_BYTES).zip(found.chunks(PIECE_BYTES)) {
        if wanted != found {
            match is_zero(wanted) {
                true => write(disk, name, Entry::Zeros(offset, wanted.len() as u64))?,
                false => write(disk, name, Entry::Data(offset, wanted))?,
            }
        }
        offset += wanted.len() as u64;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Visits what makes the state `to` of the state `from`, in an order that may be carried out; told how far it is.
/// Ends early when the visitor says `false`.
fn each_change(
    source: &mut dyn Source,
    from: &Position,
    to: &State,
    visit: &mut dyn FnMut(u64, Entry<'_>) -> Outcome<bool>,
) -> Outcome<()> {
    // What a device held there before is not of this volume.
    if to.size_bytes > from.size_bytes {
        let zeros = Entry::Zeros(from.size_bytes, to.size_bytes - from.size_bytes);
        if !visit(0, zeros)? {
            return Ok(());
        }
    }
    let mut buffer = vec![0; DATA_BYTES_MAX as usize];
    let mut next = Some(0);
    while let Some(offset) = next {
        let page = source.delta(Some(from.lsn), to.lsn, offset).map_err(Trouble::Source)?;
        for (start, len, zeros) in page.stretches {
            if zeros {
                if !visit(start, Entry::Zeros(start, len))? {
                    return Ok(());
                }
                continue;
            }
            let (mut at, end) = (start, start + len);
            while at < end {
                let step = (end - at).min(DATA_BYTES_MAX) as usize;
                let data = &mut buffer[..step];
                source.read(to.lsn, at, data).map_err(Trouble::Source)?;
                if !visit(at, Entry::Data(at, data))? {
                    return Ok(());
                }
                at += step as u64;
            }
        }
        next = page.next;
    }
    Ok(())
}
