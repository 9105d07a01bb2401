//! Of a replica that is far behind: the newest state of the other site, which came ahead of the history between.
//!
//! ```text
//! coalesced/          in the volume's directory: an overlay over the state after the record d, and
//! coalesced/state     manifest: which state t it is, over which, what of it has come, and whether that is all
//! ```
//!
//! It is shown when the manifest says whole, as exactly t, and never as anything else; records go on behind d as ever.
//! When the durable log has arrived at t, it goes. d is pinned meanwhile. A promotion that goes on from t (`takeover.rs`) keeps it
//! until its state is whole in the journal.
//!
//! Legal states after a crash: none; begun, with what the manifest says has come, and anything behind that, which is
//! forgotten; whole; given up. The manifest goes first and the files after it: a directory without one is removed at the
//! next opening.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use super::Volume;
use super::pins::PinGuard;
use crate::base::{Overlay, OverlayUnsynced, OverlayWriter};
use crate::error::{Error, IoContext, Kind, Result};
pub use crate::format::coalesced::{CoalescedState, Come, Progress};
use crate::format::manifest::MANIFEST_BYTES_MAX;
use crate::history::course::Gap;
use crate::history::point::format_utc;
use crate::ids::*;
use crate::io::{Files, read_file, replace_file};
use crate::limits::{VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};

/// Name of the directory in a volume's directory.
pub const COALESCED_DIR: &str = "coalesced";
const STATE_FILE: &str = "state";
const HOLDER: &str = "a newest state, while history is filled in behind it";

/// The newest state, shown while the history before it is filled in.
pub struct Coalesced {
    state: CoalescedState,
    overlay: Overlay,
}

impl Coalesced {
    /// What it is.
    pub fn state(&self) -> &CoalescedState {
        &self.state
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }
}

/// What a volume has of one.
#[derive(Default)]
pub(super) struct Slot {
    state: Option<CoalescedState>,
    shown: Option<Arc<Coalesced>>,
    // Holds the state that it lies over.
    pin: Option<PinGuard>,
    // A promotion is about to go on from it: nothing else removes it.
    is_taken: bool,
    // Somebody fills it, or is about to find out that it is gone; see `Filling`.
    filling: Weak<Filling>,
}

impl Slot {
    /// None from now on. Who fills one still writes no manifest any more.
    fn clear(&mut self) {
        if let Some(filling) = self.filling.upgrade() {
            *filling.lock().expect("no panics under this lock") = false;
        }
        *self = Slot { filling: self.filling.clone(), ..Slot::default() };
    }
}

/// Whether whoever fills one may write its manifest. Held while it is written.
type Filling = Mutex<bool>;

/// Fills one; see [`Volume::begin_coalesced`].
pub struct CoalescedWriter {
    files: Arc<dyn Files>,
    dir: PathBuf,
    state: CoalescedState,
    overlay: OverlayWriter,
    filling: Arc<Filling>,
}

/// What makes one durable up to a block.
pub struct CoalescedSettlement {
    unsynced: OverlayUnsynced,
    files: Arc<dyn Files>,
    dir: PathBuf,
    state: CoalescedState,
    filling: Arc<Filling>,
}

impl CoalescedSettlement {
    /// The blocks first, then the manifest that counts on them.
    pub fn carry_out(&self) -> Result<()> {
        self.unsynced.sync()?;
        let may_write = self.filling.lock().expect("no panics under this lock");
        match *may_write {
            true => write_state(&*self.files, &self.dir, &self.state),
            false => Err(was_dropped()),
        }
    }

    /// What it makes durable.
    pub fn come(&self) -> Come {
        self.state.come
    }
}

fn was_dropped() -> Error {
    Error::new(Kind::Closed, "the newest state was dropped while it came")
}

impl CoalescedWriter {
    /// Which state it is, and what of it is durable.
    pub fn state(&self) -> &CoalescedState {
        &self.state
    }

    /// Everything before this block has come.
    pub fn come_blocks(&self) -> u64 {
        self.overlay.come().blocks
    }

    /// Takes whole blocks, behind all that has come.
    pub fn write(&mut self, first: Lba, blocks: &[u8]) -> Result<()> {
        self.overlay.write(first, blocks)
    }

    /// Takes zeros, however many.
    pub fn write_zeros(&mut self, first: Lba, blocks: u64) -> Result<()> {
        self.overlay.write_zeros(first, blocks)
    }

    /// Nothing more comes.
    pub fn end(&mut self) {
        self.overlay.pass(u64::MAX);
    }

    /// Makes durable what has come, and, if that is `all`, that it is whole. What this gives may be carried out on another
    /// thread while more is written; one at a time.
    pub fn begin_settling(&mut self, all: bool) -> CoalescedSettlement {
        let progress = if all { Progress::Whole } else { Progress::Begun };
        let come = self.overlay.come();
        CoalescedSettlement {
            unsynced: self.overlay.take_unsynced(),
            files: self.files.clone(),
            dir: self.dir.clone(),
            state: CoalescedState { come, progress, ..self.state.clone() },
            filling: self.filling.clone(),
        }
    }

    /// A settlement was carried out, which had this state.
    pub fn note_settled(&mut self, settlement_come: Come) {
        self.state.come = settlement_come;
    }
}

fn write_state(files: &dyn Files, dir: &Path, state: &CoalescedState) -> Result<()> {
    let path = dir.join(STATE_FILE);
    replace_file(files, &path, &state.encode()).at(|| format!("writing {}", path.display()))
}

fn remove_dir(files: &dyn Files, dir: &Path) -> std::io::Result<()> {
    match files.remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Volume {
    fn coalesced_dir(&self) -> PathBuf {
        self.dir.join(COALESCED_DIR)
    }

    /// The newest state, if there is one that is whole and newer than the history here.
    pub fn coalesced(&self) -> Option<Arc<Coalesced>> {
        let slot = self.coalesced.lock().expect("no panics under this lock");
        let shown = slot.shown.as_ref().filter(|shown| shown.state.lsn > self.tip_lsn())?.clone();
        drop(slot);
        self.is_replica().then_some(shown)
    }

    /// What there is of a newest state, whole or not.
    pub fn coalesced_state(&self) -> Option<CoalescedState> {
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        let is_waiting = slot.state.as_ref().is_some_and(|state| state.progress == Progress::Begun);
        if is_waiting && slot.filling.strong_count() == 0 {
            // The last settlement may have said more than it could tell, and what the manifest counts must not go. One that says
            // whole was not shown: it goes on behind its end.
            let path = self.coalesced_dir().join(STATE_FILE);
            let said = read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX).ok();
            let said = said.and_then(|bytes| CoalescedState::decode(&bytes));
            let said = said.map(|said| CoalescedState { progress: Progress::Begun, ..said });
            let is_same = |said: &CoalescedState| {
                slot.state
                    .as_ref()
                    .is_some_and(|known| *said == CoalescedState { come: said.come, ..known.clone() })
            };
            if let Some(said) = said.filter(is_same) {
                slot.state = Some(said);
            }
        }
        slot.state.clone()
    }

    /// At the opening. What cannot be shown is no reason to open nothing: the history is what counts.
    pub(super) fn load_coalesced(&self) {
        let loaded = self.read_coalesced(true);
        let why = match loaded {
            Ok(None) => return,
            Ok(Some(slot)) => {
                *self.coalesced.lock().expect("no panics under this lock") = slot;
                return;
            }
            Err(error) => error,
        };
        self.note_error(format!("the newest state that came ahead of the history is not shown: {why}"));
    }

    fn read_coalesced(&self, cleans: bool) -> Result<Option<Slot>> {
        let (files, dir) = (&*self.shared.files, self.coalesced_dir());
        if files.list(&dir).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let path = dir.join(STATE_FILE);
        let state = match read_file(files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => {
                let bytes = other.at(|| format!("reading {}", path.display()))?;
                let damaged = || Error::new(Kind::Damaged, format!("{} is not readable", path.display()));
                Some(CoalescedState::decode(&bytes).ok_or_else(damaged)?)
            }
        };
        let tip = self.tip_lsn();
        let counts = |state: &CoalescedState| {
            let takes_records = self.is_replica() && self.identity.journal_of.is_none();
            takes_records && state.lsn > tip && state.from <= tip
        };
        let Some(state) = state.filter(|state| counts(state) || self.is_half_written(state)) else {
            if cleans {
                self.remove_coalesced_files()?;
            }
            return Ok(None);
        };
        let mut slot = Slot { state: Some(state.clone()), ..Slot::default() };
        if state.progress != Progress::GivenUp {
            slot.pin = Some(self.pin_what_is_there(state.from, HOLDER)?);
        }
        if state.progress == Progress::Whole {
            slot.shown = Some(Arc::new(self.open_coalesced(state)?));
        }
        Ok(Some(slot))
    }

    fn open_coalesced(&self, state: CoalescedState) -> Result<Coalesced> {
        let (files, dir) = (&self.shared.files, self.coalesced_dir());
        let overlay = Overlay::open(files, &dir, self.identity.journal_id(), state.size_bytes, state.come)?;
        Ok(Coalesced { state, overlay })
    }

    /// Begins to take the state `wanted` of the other site, or goes on with it; its `from` is the newest record here, and
    /// durable. What it says of progress does not count. What was begun of another state goes.
    ///
    /// # Errors
    /// `Refused`: one is shown, or was given up here, and the history has not arrived at it; `Busy` while somebody else
    /// fills it; `Invalid` for a state that does not lie ahead of the history here.
    pub fn begin_coalesced(&self, wanted: &CoalescedState) -> Result<CoalescedWriter> {
        let _using = self.use_files()?;
        self.refuse_unless_replica()?;
        let end = self.end_position();
        let name = self.name();
        let follows = end.is_some_and(|end| end.lsn == wanted.from && end.chain == wanted.from_chain);
        let fits = (VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&wanted.size_bytes);
        if !follows || !fits || wanted.lsn <= wanted.from || self.durable_lsn() < wanted.from {
            let context = format!("a state after {:?} over {:?} of volume {name}", wanted.lsn, wanted.from);
            return Err(Error::new(Kind::Invalid, context));
        }
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        if slot.filling.strong_count() > 0 {
            let context = format!("another connection brings the newest state of volume {name}");
            return Err(Error::new(Kind::Busy, context));
        }
        let is_same = |state: &CoalescedState| -> bool {
            let with = CoalescedState { come: state.come, progress: state.progress, ..wanted.clone() };
            *state == with
        };
        let begun = match &slot.state {
            Some(state) if state.progress != Progress::Begun => {
                let context = format!(
                    "volume {name} has a newest state, {:?}, and its history is not there yet",
                    state.lsn
                );
                return Err(Error::new(Kind::Refused, context));
            }
            Some(state) if is_same(state) => Some(state.clone()),
            _ => None,
        };
        let (files, dir) = (&self.shared.files, self.coalesced_dir());
        let state = match begun {
            Some(state) => state,
            None => {
                slot.clear();
                self.remove_coalesced_files()?;
                let state =
                    CoalescedState { come: Come::default(), progress: Progress::Begun, ..wanted.clone() };
                files
                    .create_dir(&dir)
                    .and_then(|()| files.sync_dir(&self.dir))
                    .at(|| format!("making {}", dir.display()))?;
                write_state(&**files, &dir, &state)?;
                state
            }
        };
        if slot.pin.is_none() {
            slot.pin = Some(self.pin_what_is_there(state.from, HOLDER)?);
        }
        let journal_id = self.identity.journal_id();
        let overlay = OverlayWriter::open(files.clone(), &dir, journal_id, state.size_bytes, state.come)
            .inspect_err(|error| {
                if error.kind() == Kind::Damaged {
                    // It comes again, all of it.
                    slot.clear();
                    let _ = self.remove_coalesced_files();
                }
            })?;
        let filling = Arc::new(Mutex::new(true));
        slot.filling = Arc::downgrade(&filling);
        slot.state = Some(state.clone());
        Ok(CoalescedWriter { files: files.clone(), dir, state, overlay, filling })
    }

    /// The settlement of all of it was carried out: it is shown from now on.
    pub fn show_coalesced(&self, writer: CoalescedWriter) -> Result<()> {
        let state = CoalescedState { progress: Progress::Whole, ..writer.state.clone() };
        let shown = Arc::new(self.open_coalesced(state.clone())?);
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        if !*writer.filling.lock().expect("no panics under this lock") {
            return Err(was_dropped());
        }
        slot.state = Some(state);
        slot.shown = Some(shown);
        Ok(())
    }

    /// Removes what there is of a newest state; whoever has it open reads on. Durable when this returns. Whether there was
    /// anything.
    pub fn drop_coalesced(&self) -> Result<bool> {
        // Until they are gone nobody begins anew in their place.
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        if slot.state.is_none() {
            return Ok(false);
        }
        // Half of it in the journal is no state: only this makes it one.
        if slot.is_taken || slot.state.as_ref().is_some_and(|state| self.is_half_written(state)) {
            return Err(self.is_taken_over());
        }
        slot.clear();
        self.remove_coalesced_files()?;
        Ok(true)
    }

    /// Another site is followed from now on, and what it has of the history that is here ends with `through`: a newest state
    /// from beyond that goes, because records that come now may be others. Durable when this returns.
    pub(crate) fn drop_coalesced_beyond(&self, through: Lsn) -> Result<()> {
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        if slot.state.as_ref().is_some_and(|state| state.lsn <= through) {
            return Ok(());
        }
        if slot.is_taken {
            return Err(self.is_taken_over());
        }
        slot.clear();
        // Also files that could not be read here, or not be removed: a later opening might.
        self.remove_coalesced_files()
    }

    fn is_taken_over(&self) -> Error {
        let name = self.name();
        let context = format!("volume {name} is being promoted to the newest state, or that is not done yet");
        Error::new(Kind::Busy, context).hint(format!(
            "`cdp failover {name}` goes on with that, or says why it cannot; with --give-up-newest it goes on from what history has"
        ))
    }

    /// Why one that is here is not shown, where its files say that it should be.
    pub fn coalesced_problem(&self) -> Option<String> {
        let slot = self.coalesced.lock().expect("no panics under this lock");
        if slot.state.is_some() {
            return None;
        }
        drop(slot);
        let _using = self.use_files().ok()?;
        self.read_coalesced(false).err().map(|error| error.to_string())
    }

    /// A promotion that goes on from it was begun and is not done: the journal has a part of it.
    fn is_half_written(&self, state: &CoalescedState) -> bool {
        let course = self.course.read().expect("no panics under this lock");
        let is_its_own = |gap: &Gap| gap.lsn == state.lsn && gap.at == state.at;
        state.progress == Progress::Whole && course.open_gap().is_some_and(is_its_own)
    }

    /// A promotion was begun here that goes on from a newest state, and its state is not whole: what is missing of it is there yet.
    pub fn is_half_taken_over(&self) -> bool {
        let slot = self.coalesced.lock().expect("no panics under this lock");
        slot.state.as_ref().is_some_and(|state| self.is_half_written(state))
    }

    /// Keeps the newest state after this record, if it is shown, for a promotion that goes on from it. Whether it is.
    pub(super) fn take_coalesced(&self, lsn: Lsn) -> bool {
        let is_ahead = self.coalesced().is_some_and(|newest| newest.state.lsn == lsn);
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        slot.is_taken |= is_ahead && slot.shown.is_some();
        slot.is_taken
    }

    /// As [`Volume::take_coalesced`], for a promotion that was begun on another member of its group: whatever the role is now.
    pub(super) fn take_coalesced_again(&self, lsn: Lsn) {
        let tip = self.tip_lsn();
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        slot.is_taken |= slot.shown.as_ref().is_some_and(|shown| shown.state.lsn == lsn && lsn > tip);
    }

    /// The promotion is over, one way or the other.
    pub(super) fn release_coalesced(&self) {
        self.coalesced.lock().expect("no panics under this lock").is_taken = false;
    }

    /// The one that a promotion goes on from.
    pub(super) fn taken_coalesced(&self) -> Option<Arc<Coalesced>> {
        let slot = self.coalesced.lock().expect("no panics under this lock");
        slot.shown.clone().filter(|shown| slot.is_taken || self.is_half_written(&shown.state))
    }

    /// As [`Volume::drop_coalesced`], and it is not to come again before the history has arrived where it was.
    pub fn give_up_coalesced(&self) -> Result<bool> {
        let _using = self.use_files()?;
        let mut slot = self.coalesced.lock().expect("no panics under this lock");
        let Some(state) = slot.state.clone().filter(|state| state.progress != Progress::GivenUp) else {
            return Ok(false);
        };
        if slot.is_taken || self.is_half_written(&state) {
            return Ok(false);
        }
        let state = CoalescedState { come: Come::default(), progress: Progress::GivenUp, ..state };
        slot.clear();
        slot.state = Some(state.clone());
        drop(slot);
        let (files, dir) = (&*self.shared.files, self.coalesced_dir());
        let free = || {
            for entry in files.list(&dir).at(|| format!("listing {}", dir.display()))? {
                if entry.name != STATE_FILE {
                    let path = dir.join(&entry.name);
                    files.remove(&path).at(|| format!("removing {}", path.display()))?;
                }
            }
            Ok(())
        };
        match write_state(files, &dir, &state) {
            // A full disk has no room for the word either. The manifest goes first: without one nothing in there counts, and after a
            // crash it may come again, as nobody was told yet that it would not.
            Err(error) if error.kind() == Kind::NoSpace => {
                let place = || format!("removing {}", dir.display());
                files.remove(&dir.join(STATE_FILE)).and_then(|()| files.sync_dir(&dir)).at(place)?;
                free().and_then(|()| write_state(files, &dir, &state))?;
            }
            other => other.and_then(|()| free())?,
        }
        Ok(true)
    }

    /// A slow duty: history that has arrived, durably, needs no newest state beside it; nor does a volume that is no replica
    /// any more.
    pub(super) fn retire_coalesced(&self) {
        let Some(state) = self.coalesced_state() else { return };
        if self.taken_coalesced().is_some() {
            return;
        }
        if (state.lsn <= self.durable_lsn() || !self.is_replica())
            && let Err(error) = self.drop_coalesced()
        {
            // It is not shown any more, and the next opening removes it.
            self.note_error(format!(
                "the newest state that history has arrived at stays on the disk: {error}"
            ));
        }
    }

    /// Where the journal is full, and nothing else holds older history: gives up the newest state, because the history
    /// counts more. Whether it did.
    pub(super) fn give_up_coalesced_for_room(&self) -> bool {
        let Some(state) = self.coalesced_state() else { return false };
        if self.pins().first().is_none_or(|oldest| oldest.lsn < state.from) {
            return false;
        }
        match self.give_up_coalesced() {
            Ok(true) => {
                self.note_error(format!(
                    "the newest state, {:?}, is given up before history arrived there: the journal is full",
                    state.lsn
                ));
                true
            }
            Ok(false) => false,
            Err(error) => {
                self.note_error(format!("giving up the newest state for room: {error}"));
                false
            }
        }
    }

    /// Whoever fills one writes nothing by its name from here on: the name may be another instance's.
    pub(crate) fn end_coalesced(&self) {
        self.coalesced.lock().expect("no panics under this lock").clear();
    }

    fn remove_coalesced_files(&self) -> Result<()> {
        let _using = self.use_files()?;
        let (files, dir) = (&*self.shared.files, self.coalesced_dir());
        let gone = match files.remove(&dir.join(STATE_FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| files.sync_dir(&dir)),
        };
        gone.and_then(|()| remove_dir(files, &dir)).at(|| format!("removing {}", dir.display()))
    }

    /// Whether a record of the other site is not the one that the newest state stands behind.
    pub fn parts_from_coalesced(&self, lsn: Lsn, chain: crate::format::record::Chain) -> bool {
        let slot = self.coalesced.lock().expect("no panics under this lock");
        slot.shown.as_ref().is_some_and(|shown| shown.state.lsn == lsn && shown.state.chain != chain)
    }

    /// Why a state between the history that is here and the newest state cannot be had.
    pub(super) fn is_filling(&self, state: &CoalescedState) -> Error {
        let tip = self.tip_lsn();
        let (come, all) = (tip.0.saturating_sub(state.from.0), state.lsn.0 - state.from.0);
        let context = format!(
            "filling: the history of volume {} between {tip:?} and {:?} is on its way, {come} of {all} records are here",
            self.name(),
            state.lsn
        );
        Error::new(Kind::OutOfRange, context).hint(format!(
            "the newest state is there: `latest`, `lsn:{}` ({}); and every instant up to `lsn:{tip}`",
            state.lsn,
            format_utc(state.at)
        ))
    }
}
