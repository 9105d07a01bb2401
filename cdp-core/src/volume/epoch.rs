//! The epochs of a volume: who may write is whoever has the highest.
//!
//! An epoch begins with a record, which is where it stands. The manifest `epochs` keeps what those records said when
//! they are folded into the base, and spares the opening a look at all events. It is written before the catalog is
//! told that it knows everything up to a seal, and before the base moves; entries above what it is asked for do not
//! count, the journal's own do. So a crash leaves a file that knows less, or more, than is asked of it, never one that
//! misses what nobody else has.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::MutexGuard;

use super::{Shared, Volume};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::epoch::{Ahead, EPOCHS_FILE, Epoch, EpochPayload, decode_epochs, encode_epochs};
use crate::format::manifest::MANIFEST_BYTES_MAX;
use crate::format::record::{Chain, RecordHeader, RecordKind};
use crate::history::epochs::{Epochs, Standing};
use crate::ids::*;
use crate::io::{Files, read_file, replace_file};
use crate::journal::append::{Appender, Draft};

/// The history of a volume at another site, as that site tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elsewhere {
    /// Its name, as its certificate says it.
    pub site: String,
    /// Its epochs.
    pub epochs: Epochs,
    /// Its newest durable record.
    pub tip: Lsn,
}

/// The epochs, and those that the manifest has. A leaf among the locks but for the file's writing.
pub(super) struct EpochState {
    epochs: Epochs,
    kept: Vec<Epoch>,
    // The site with the highest epoch, as it told since the volume was opened.
    elsewhere: Option<Elsewhere>,
}

impl EpochState {
    /// What the manifest says; the journal is asked later.
    pub(super) fn open(files: &dyn Files, dir: &Path, volume: VolumeId) -> Result<EpochState> {
        let path = dir.join(EPOCHS_FILE);
        let kept = match read_file(files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            // One that is damaged knows nothing. What the journal does not know either is missed below.
            other => decode_epochs(&other.at(|| format!("reading {}", path.display()))?).unwrap_or_default(),
        };
        Ok(EpochState { epochs: Epochs::first(volume), kept, elsewhere: None })
    }
}

/// Writes the epochs of a volume that is being made, whose journal begins behind their records.
pub(crate) fn write_epochs(shared: &Shared, dir: &Path, epochs: &Epochs) -> Result<()> {
    let path = dir.join(EPOCHS_FILE);
    replace_file(&*shared.files, &path, &encode_epochs(&epochs.list()[1..]))
        .at(|| format!("writing {}", path.display()))
}

impl Volume {
    /// Its epochs.
    pub fn epochs(&self) -> Epochs {
        self.epochs.lock().expect("no panics under this lock").epochs.clone()
    }

    /// Another site says which epochs it has. Where its newest is higher than this one's, or the same under another id,
    /// a primary is fenced: it answers no write any more. Gives how they stand to each other; whoever asks acts on it.
    ///
    /// # Errors
    /// The fence could not be made durable. It holds all the same.
    pub fn hear_of(&self, theirs: &Epoch, from: &str) -> Result<Standing> {
        let ours = self.epochs();
        let standing = ours.standing(theirs);
        // Any but a replica: one that is fenced may hear of a still higher one.
        let is_stopped = matches!(self.role(), super::role::Role::Replica { .. });
        match standing {
            Standing::Fenced if !is_stopped => {
                let why =
                    format!("{from} has epoch {}, this site has {}", theirs.number.0, ours.newest().number.0);
                self.fence(theirs.number, &why)?;
            }
            Standing::SplitBrain if !is_stopped => {
                let why = format!("{from} has another epoch {}: two primaries at once", theirs.number.0);
                self.fence(theirs.number, &why)?;
            }
            _ => {}
        }
        Ok(standing)
    }

    /// What the site with the highest epoch, of those that are believed, said of its history since this volume was opened.
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        self.epochs.lock().expect("no panics under this lock").elsewhere.clone()
    }

    /// A site that is believed tells its history. Kept until the volume is closed; sites tell it whenever they meet.
    pub fn note_elsewhere(&self, other: Elsewhere) {
        self.claims.lock().expect("no panics under this lock").forget(&other.site);
        let mut state = self.epochs.lock().expect("no panics under this lock");
        let is_lower = |known: &Elsewhere| known.epochs.newest().number > other.epochs.newest().number;
        if !state.elsewhere.as_ref().is_some_and(is_lower) {
            state.elsewhere = Some(other);
        }
    }

    /// At the opening: takes over what the manifest knows up to `known`, and what the journal said behind that.
    /// `false` if some may be missing: then the journal has to be asked from its beginning.
    ///
    /// # Errors
    /// `Damaged`: what began before the base is not known.
    pub(super) fn take_epochs(&self, known: Lsn, found: &[Epoch]) -> Result<bool> {
        let mut state = self.epochs.lock().expect("no panics under this lock");
        let mut epochs = Epochs::first(self.identity.journal_id());
        let kept: Vec<Epoch> = state.kept.iter().filter(|epoch| epoch.start <= known).copied().collect();
        for epoch in kept.iter().chain(found.iter().filter(|epoch| epoch.start > known)) {
            if !epochs.push(*epoch) {
                let context = format!(
                    "volume {}: epoch {} does not follow on what was before",
                    self.name(),
                    epoch.number.0
                );
                return Err(Error::new(Kind::Damaged, context));
            }
        }
        let list = self.parts.list();
        let mut segments = list.iter().map(|part| &part.segment.header);
        let base = self.base_point();
        if epochs.of_record(base.lsn) != base.epoch {
            let context = format!(
                "volume {}: its base is of epoch {}, and the file `{EPOCHS_FILE}` does not tell of that",
                self.name(),
                base.epoch.0
            );
            return Err(Error::new(Kind::Damaged, context)
                .hint("bring that file back; nobody can tell who may write without it"));
        }
        // A segment says which epoch there was when it was taken into use; one for an epoch whose record then failed
        // says too much.
        let is_all = segments.all(|header| header.epoch <= epochs.of_record(header.first_lsn));
        state.epochs = epochs;
        drop(state);
        self.adopt_epoch();
        Ok(is_all)
    }

    /// New records get the newest epoch.
    fn adopt_epoch(&self) {
        let number = self.epochs().newest().number;
        if let Some(appender) = self.append.lock().expect("no panics under this lock").as_mut() {
            appender.epoch = number;
        }
    }

    /// Makes the manifest know all epochs, before somebody counts on it.
    pub(super) fn keep_epochs(&self) -> Result<()> {
        let _using = self.use_files()?;
        let mut state = self.epochs.lock().expect("no panics under this lock");
        if state.epochs.list()[1..] == state.kept[..] {
            return Ok(());
        }
        write_epochs(&self.shared, &self.dir, &state.epochs)?;
        state.kept = state.epochs.list()[1..].to_vec();
        Ok(())
    }

    /// Checks the epoch of a record of another site that follows on `epochs` and this chain value, and takes it in if it
    /// begins one.
    ///
    /// # Errors
    /// `Refused`: it is of a lower epoch, or of one that nobody began.
    pub fn check_foreign_epoch(
        &self,
        epochs: &mut Epochs,
        before: Chain,
        header: &RecordHeader,
        payload: &[u8],
    ) -> Result<()> {
        let now = epochs.newest();
        let wrong = |what: String| {
            let context = format!("{:?} of another site for volume {}: {what}", header.lsn, self.name());
            Err(Error::new(Kind::Refused, context))
        };
        if header.kind != RecordKind::Epoch {
            return match header.epoch {
                epoch if epoch == now.number => Ok(()),
                epoch if epoch < now.number => {
                    wrong(format!("it is of epoch {}, which is fenced by epoch {}", epoch.0, now.number.0))
                }
                epoch => wrong(format!("it is of epoch {}, which did not begin yet", epoch.0)),
            };
        }
        let Some(begun) = EpochPayload::decode(payload) else {
            return wrong("the epoch that it begins cannot be read".to_owned());
        };
        let epoch = begun.epoch;
        let fits = epoch.start == header.lsn && epoch.chain == before && epoch.number == header.epoch;
        if !fits || !epochs.push(epoch) {
            return wrong(format!("epoch {} does not begin there", epoch.number.0));
        }
        Ok(())
    }

    /// Takes in epochs whose records were just appended. The caller holds the append lock.
    pub(super) fn learn_epochs(&self, append: &mut Appender, epochs: Epochs) {
        append.epoch = epochs.newest().number;
        self.epochs.lock().expect("no panics under this lock").epochs = epochs;
    }

    /// Appends the record with which an epoch begins. The caller holds the append lock, has made room, and sees to it
    /// that it becomes durable before anything is answered. `at` was taken from the clock since, which had been told of the
    /// journal's newest timestamp: another site may have given that.
    pub(super) fn append_epoch(
        &self,
        append: &mut MutexGuard<'_, Option<Appender>>,
        number: EpochNumber,
        id: u128,
        asked: &str,
        at: Timestamp,
        ahead: Option<Ahead>,
    ) -> Result<Epoch> {
        let closed = || Error::new(Kind::Closed, format!("volume {} is closed", self.name()));
        let position = append.as_ref().ok_or_else(closed)?.position;
        let epoch = Epoch { number, id, start: position.lsn.next(), chain: position.chain };
        let mut epochs = self.epochs();
        let before = epochs.newest().number;
        if !epochs.push(epoch) {
            let context = format!("volume {}: epoch {} cannot follow on {}", self.name(), number.0, before.0);
            return Err(Error::new(Kind::Invalid, context));
        }
        let payload = EpochPayload { epoch, asked: asked.to_owned(), ahead }.encode();
        let draft =
            Draft::event(RecordKind::Epoch, SessionId::STORE, self.shared.clock.elapsed_ns(), &payload);
        append.as_mut().ok_or_else(closed)?.epoch = number;
        let appended = self.append_in_any_role(append, &[draft], at).1;
        match (appended, append.as_mut()) {
            (Ok(_), Some(appender)) => self.learn_epochs(appender, epochs),
            (Ok(_), None) => return Err(closed()),
            (Err(error), appender) => {
                if let Some(appender) = appender {
                    appender.epoch = before;
                }
                return Err(error);
            }
        }
        Ok(epoch)
    }
}
