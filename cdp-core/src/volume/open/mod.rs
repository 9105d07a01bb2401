//! Opening a volume, whatever happened since it was made or closed.

mod aside;
mod runs;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};

use aside::keep_aside;
use runs::{MergedRun, known_from_run, open_merged_runs, open_parts, remove_orphan_runs};

use super::advance::Duties;
use super::cut;
use super::doubt::Doubted;
use super::epoch::EpochState;
use super::gather::Gathered;
use super::identity::{Identity, read_history, read_manifest, read_retention, write_manifest};
use super::ledger::Ledger;
use super::parts::{FreshParts, Part, PartIndex, Parts};
use super::pins::Pins;
use super::retain::History;
use super::role::{Role, RoleNow};
use super::rollback::Door;
use super::source::SourceState;
use super::upkeep::UpkeepState;
use super::{Health, MarkState, Notes, Shared, Staged, Volume, durable};
use crate::base::Base;
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::HISTORY_FILE;
use crate::format::mark::Mark;
use crate::history::course::Course;
use crate::ids::*;
use crate::journal::append::{Appender, Position};
use crate::journal::commit::Commit;
use crate::journal::looked::LookedFile;
use crate::journal::mark::MarkFile;
use crate::journal::pool::Pool;
use crate::journal::reappend::{self, Cut};
use crate::journal::recover::{self, Begin, Found, Recovered, Request};
use crate::journal::segment::Fill;
use crate::journal::verdict::Verdict;
use crate::limits::VOLUME_BYTES_MAX;

/// What somebody accepted when opening a volume that was refused before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Both slots of the mark are gone; go by the other witnesses.
    pub mark_loss: bool,
    /// Records that were durable are gone; go on with what is before them.
    pub loss: bool,
}

/// Opens a volume: recovers its journal, and makes what it shows durable before anybody can read it.
/// Never fails because the journal is damaged: then the volume is read-only and says why.
pub fn open(shared: &Shared, dir: &Path, accept: Accept) -> Result<Arc<Volume>> {
    open_on(shared, dir, accept, None)
}

/// As [`open`]; `parent` is the view that the base of a clone is.
pub fn open_on(
    shared: &Shared,
    dir: &Path,
    accept: Accept,
    parent: Option<Arc<dyn Device>>,
) -> Result<Arc<Volume>> {
    let files = &*shared.files;
    let mut identity = read_manifest(shared, dir)?;
    let history = read_history(shared, dir, &identity)?;
    let begin = Begin::from(&history.base);
    if let Some(at) = identity.cut {
        cut::carry_out(shared, dir, &identity, begin, at)?;
        identity.cut = None;
        identity.role = Role::Replica { since: shared.clock.now(), ended: None };
        write_manifest(shared, dir, &identity)?;
    }
    if identity.parent.is_some() != parent.is_some() {
        let context =
            format!("volume {}: a clone is opened with its parent, and only a clone", identity.name);
        return Err(Error::new(Kind::Invalid, context));
    }
    let (mut mark_file, mark) = MarkFile::open(files, dir)?;
    let merged = open_merged_runs(shared, dir, identity.journal_id());
    let is_accepted = accept.loss || accept.mark_loss;
    let mut looked = match is_accepted {
        // Whoever accepts a loss is told of all of it.
        true => LookedFile::empty(shared.files.clone(), dir, identity.journal_id()),
        false => LookedFile::load(shared.files.clone(), dir, identity.journal_id()),
    };
    let nothing = LookedFile::empty(shared.files.clone(), dir, identity.journal_id());
    let request = Request {
        dir,
        segments: &shared.segments,
        volume: identity.journal_id(),
        begin,
        mark,
        accept_mark_loss: accept.mark_loss,
        believe_seals: true,
        run: &|segment| known_from_run(shared, dir, segment, &merged),
        looked: &looked,
        visit: &|_, _| {},
    };
    let mut survey = survey(shared, &identity, &request, accept, &merged);
    if survey.as_ref().is_ok_and(|survey| survey.health != Health::Good) {
        // Something is lost: the whole of it, and what is served, is said by the files alone.
        let request = Request { looked: &nothing, ..request };
        survey = self::survey(shared, &identity, &request, accept, &merged);
    }
    if survey.as_ref().is_err_and(|error| error.kind() == Kind::Damaged) {
        // A seal told where a segment ends, but its run is gone and its records are not what was sealed: go
        // by the records.
        let request = Request { believe_seals: false, looked: &nothing, ..request };
        survey = self::survey(shared, &identity, &request, accept, &merged);
    }
    let Survey { mut recovered, mut health, front, settled, mut parts } = survey?;
    // A process that died may have left names that no sync covers: a segment made ahead, a mark made anew.
    // What is built on them now must not go with the power.
    files.sync_dir(dir).at(|| format!("syncing {}", dir.display()))?;
    let incarnation = Incarnation((shared.clock.random() as u64).max(1));
    let position = recovered.position(&begin);
    shared.clock.pass(position.timestamp);
    let mut pool = Pool::new(
        shared.files.clone(),
        dir.to_owned(),
        identity.segment_bytes,
        std::mem::take(&mut recovered.unused),
        recovered.next_ordinal,
    );

    let mut appender = None;
    let mut lacks_space = false;
    let mut fresh_segment = None;
    if health == Health::Good {
        let mut begin = || -> Result<(Appender, Vec<Arc<Part>>)> {
            if is_accepted {
                // Before the journal goes on without them: a crash in between leaves the loss to be accepted
                // again, never files that nobody knows to keep.
                keep_aside(shared, dir, &recovered, incarnation)?;
            }
            let (fresh, fresh_parts) = append_tail(
                shared,
                &identity,
                incarnation,
                (&recovered, &begin),
                &front,
                settled,
                &mut pool,
            )?;
            mark_file.write(Mark {
                volume: identity.journal_id(),
                incarnation,
                sequence: 0,
                lsn: fresh.position.lsn,
                chain: fresh.position.chain,
                timestamp: fresh.position.timestamp,
                clean_stop: false,
            })?;
            Ok((fresh, fresh_parts))
        };
        match begin() {
            Ok((fresh, fresh_parts)) => {
                parts.extend(fresh_parts);
                if !is_accepted {
                    for path in &recovered.dead {
                        // A file that stays costs space only; the next opening tries again.
                        let _ = files.remove(path);
                    }
                }
                remove_orphan_runs(shared, dir, &parts);
                let read = front.iter().filter_map(|found| found.looked).collect();
                let counts: HashSet<u64> = front.iter().map(|found| found.segment.header.ordinal).collect();
                looked.settle(read, |ordinal| counts.contains(&ordinal));
                fresh_segment = Some(fresh.segment.clone());
                appender = Some(fresh);
            }
            Err(error) => {
                lacks_space = error.kind() == Kind::NoSpace;
                let hint = match lacks_space {
                    true => {
                        "free space under the store: it is opened for writing again when nobody is connected to it"
                    }
                    false => "repair the disk under the store, then restart",
                };
                health = Health::ReadOnly {
                    reason: format!("recovery could not append to a fresh segment: {error}"),
                    hint: hint.to_owned(),
                };
                let gathered = Gathered::default();
                let stream = &recovered.stream;
                parts = open_parts(shared, dir, &identity, stream, &merged, &gathered, false)?;
            }
        }
    }
    if health != Health::Good {
        for found in &recovered.stream {
            // Nothing may be written, but what is shown is synced as far as the disk allows.
            let _ = found.segment.file.sync();
        }
    }
    let believed = front.iter().filter(|found| found.is_remembered);
    let doubted = believed.map(|found| Doubted::new(&found.segment, found.seal)).collect();
    let position = appender.as_ref().map_or(position, |appender| appender.position);
    let journal_bytes = measure(shared, dir)?;
    let retention = read_retention(shared, dir)?;
    let notes =
        Notes { recovery: describe(&recovered, position), last_error: None, damages: damages(&parts)? };
    let base = match parent {
        Some(parent) => Base::on(&shared.files, dir, identity.journal_id(), parent),
        // It may have grown: whatever pieces there are.
        None => Base::open(&shared.files, dir, identity.journal_id(), VOLUME_BYTES_MAX)?,
    };
    if health != Health::Good && position.lsn == Lsn::ZERO && recovered.witness > Lsn::ZERO {
        refuse_unknown_base(shared, dir, &identity, &base)?;
    }
    // Resizes up to the base are gone with their records.
    let first_size_bytes =
        if history.base.lsn > Lsn::ZERO { history.base.size_bytes } else { identity.first_size_bytes };
    let volume = Volume {
        dir: dir.to_owned(),
        shared: shared.clone(),
        incarnation,
        previous_incarnation: recovered.newest_incarnation,
        base,
        lacks_space,
        append: Mutex::new(appender),
        pool: Mutex::new(pool),
        parts: Parts::new(parts),
        staged: Mutex::new(Staged {
            lsn: position.lsn,
            dirty: fresh_segment.into_iter().collect(),
            bytes: 0,
            since_ns: None,
            syncs: 0,
            lost_sync: None,
        }),
        refused_for_room: AtomicBool::new(false),
        awaits_group: AtomicBool::new(false),
        tip: AtomicU64::new(position.lsn.0),
        commit: Commit::new(position.lsn),
        mark: Mutex::new(MarkState { file: mark_file, written: position.lsn }),
        upkeep: Mutex::new(UpkeepState::new(shared.clock.elapsed_ns(), position.lsn)),
        merging: Mutex::default(),
        thinning_bytes: AtomicUsize::new(0),
        memory: shared.memory.share(),
        looked: Mutex::new(looked),
        doubted: Mutex::new(doubted),
        health: Mutex::new(health),
        uses: Default::default(),
        notes: Mutex::new(notes),
        names: Mutex::default(),
        proving: Mutex::new(()),
        // Every session takes at least one LSN, so that a number never comes again.
        sessions: AtomicU64::new(position.lsn.0 + 1),
        journal_bytes: AtomicU64::new(journal_bytes),
        course: RwLock::new(Course::new(first_size_bytes)),
        size_bytes: AtomicU64::new(first_size_bytes),
        door: Door::new(identity.held.clone()),
        role: RoleNow::new(identity.role.clone()),
        epochs: Mutex::new(EpochState::open(files, dir, identity.journal_id())?),
        claims: Mutex::default(),
        manifest: Mutex::new(identity.clone()),
        history: Mutex::new(History::new(history)),
        ledger: Mutex::new(Ledger::open(&shared.files, dir, identity.journal_id())?),
        pins: Pins::above(history.horizon.0),
        retention: Mutex::new(retention),
        duties: Mutex::new(Duties::new(shared.clock.elapsed_ns())),
        source: Mutex::new(SourceState::open(files, dir)?),
        replicas: Mutex::default(),
        coalesced: Mutex::default(),
        identity,
    };
    volume.load_events()?;
    volume.load_replicas()?;
    volume.load_coalesced();
    volume.note_memory();
    Ok(Arc::new(volume))
}

/// Without `history` a base counts as what the volume was made with. Where the journal cannot be read from its first record on,
/// that is not known: then it may be the state after any record, and no block of it is shown as the first.
fn refuse_unknown_base(shared: &Shared, dir: &Path, identity: &Identity, base: &Base) -> Result<()> {
    let path = dir.join(HISTORY_FILE);
    let is_missing = match shared.files.open(&path, false) {
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        other => other.map(|_| false).at(|| format!("opening {}", path.display()))?,
    };
    if !is_missing || base.parent().is_some() || base.is_empty() {
        return Ok(());
    }
    let context = format!(
        "volume {}: its first records are missing, and {} with them, which says what the base holds",
        identity.name,
        path.display()
    );
    Err(Error::new(Kind::Damaged, context).hint("bring the missing files back"))
}

fn health_after(name: &str, recovered: &Recovered, accept: Accept) -> Health {
    let (reason, hint) = match recovered.verdict {
        Verdict::CrashTail => return Health::Good,
        Verdict::Lost if accept.loss => return Health::Good,
        Verdict::Lost => (
            format!(
                "records from {:?} on are missing or damaged, and {:?} was durable once ({})",
                recovered.first_bad, recovered.witness, recovered.why
            ),
            format!("bring the missing files back, or see `cdp repair {name}`"),
        ),
        Verdict::Foreign if accept.loss => return Health::Good,
        Verdict::Foreign => (
            "its durable mark belongs to another state of the journal: files were swapped or restored from a copy"
                .to_owned(),
            format!("put the matching files back, or see `cdp repair {name}`"),
        ),
        Verdict::MarkLost => (
            "both slots of its durable mark are unreadable, so nothing tells how far it was durable".to_owned(),
            format!("see `cdp repair {name}`; views of everything that can be read are served"),
        ),
    };
    Health::ReadOnly { reason, hint }
}

/// What recovery found, and what is made of it.
struct Survey {
    recovered: Recovered,
    health: Health,
    /// What was surely synced and stays where it is; the rest is appended again.
    front: Vec<Found>,
    /// Its newest record.
    settled: Lsn,
    /// Its index.
    parts: Vec<Arc<Part>>,
}

fn survey(
    shared: &Shared,
    identity: &Identity,
    request: &Request<'_>,
    accept: Accept,
    merged: &[MergedRun],
) -> Result<Survey> {
    let gathered = Gathered::default();
    let request = &Request { visit: &|segment, found| gathered.visit(segment, found), ..*request };
    let recovered = recover::recover(&*shared.files, request)?;
    let health = health_after(&identity.name, &recovered, accept);
    let newest = recovered.position(&request.begin).lsn;
    let settled = if health == Health::Good { recovered.witness.min(newest) } else { newest };
    let mut front = recovered.stream.clone();
    recover::cut_stream(&mut front, settled, request.visit)?;
    let may_write = health == Health::Good;
    let parts = open_parts(shared, request.dir, identity, &front, merged, &gathered, may_write)?;
    Ok(Survey { recovered, health, front, settled, parts })
}

fn append_tail(
    shared: &Shared,
    identity: &Identity,
    incarnation: Incarnation,
    (recovered, begin): (&Recovered, &Begin),
    front: &[Found],
    settled: Lsn,
    pool: &mut Pool,
) -> Result<(Appender, Vec<Arc<Part>>)> {
    let last = front.last();
    let position = last.map_or(begin.position, |found| found.last);
    let cut = Cut {
        predecessor: last.map_or(begin.segment, |found| found.segment.header.id),
        predecessor_end: last.map_or(0, |found| found.end),
        position,
        volume: identity.journal_id(),
        incarnation,
        previous_incarnation: recovered.newest_incarnation,
        epoch: last.map_or(EpochNumber(1), |found| found.segment.header.epoch),
    };
    let mut placed = FreshParts::behind(position);
    let tail = &recovered.stream[front.len().saturating_sub(1)..];
    let appender = reappend::reappend(
        cut,
        pool,
        &|| shared.clock.random(),
        &mut |sink| {
            tail.iter().filter(|found| found.last.lsn > settled).try_for_each(|found| {
                durable::read_records(&found.segment, found.before, settled, found.last.lsn, sink)
            })
        },
        &mut placed,
        // Whoever is served is likely to commit in small steps.
        if shared.prewrite { Fill::Written } else { Fill::Reserved },
    )?;
    Ok((appender, placed.finish()))
}

fn damages(parts: &[Arc<Part>]) -> Result<Vec<(Lsn, Extent)>> {
    let mut damages = Vec::new();
    for part in parts {
        // Runs list theirs; they are asked by `verify`, so that opening reads the same of a long history.
        if matches!(part.index, PartIndex::Live(_)) {
            damages.extend(part.damages()?.iter().map(|row| (row.lsn, row.extent)));
        }
    }
    Ok(damages)
}

pub(super) fn measure(shared: &Shared, dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let entries = shared.files.list(dir).at(|| format!("listing {}", dir.display()))?;
    for entry in entries.iter().filter(|entry| [".seg", ".fold"].iter().any(|end| entry.name.ends_with(end)))
    {
        let path = dir.join(&entry.name);
        bytes += shared.files.stat(&path).at(|| format!("measuring {}", path.display()))?.len;
    }
    Ok(bytes)
}

fn describe(recovered: &Recovered, position: Position) -> String {
    match recovered.verdict {
        Verdict::CrashTail if position.lsn == recovered.witness => {
            format!("clean: {:?} and everything before it is there", position.lsn)
        }
        Verdict::CrashTail => format!(
            "after a crash: {:?} was known to be durable, kept through {:?} ({})",
            recovered.witness, position.lsn, recovered.why
        ),
        other => format!("{other:?}: serves through {:?} ({})", position.lsn, recovered.why),
    }
}
